"""What is to be scored, as values: the shards that are missing.

Light, so that whoever plans work loads neither torch nor Ray.
"""

from __future__ import annotations

from dataclasses import dataclass

from gencls_core.datasets.dataset import Dataset, SplitName
from gencls_core.digests import shards_of, wanted_shards
from gencls_core.remote_path import Location
from gencls_core.run import RunDirectory
from gencls_core.scores import ShardKey
from gencls_core.scoring_job import ScoringJob

__all__ = ["ShardPlan", "ShardWork", "shard_work"]


@dataclass(frozen=True)
class ShardWork:
    """Examples [start, stop) of one split, under the classes that are not committed yet."""

    dataset: Location
    split: SplitName
    store: Location
    start: int
    stop: int
    keys: tuple[ShardKey, ...]
    digests: tuple[str, ...]

    def of(self, classes: frozenset[str]) -> ShardWork | None:
        """Give the part of the work that concerns some classes; None where none does."""
        pairs = [
            (key, digest)
            for key, digest in zip(self.keys, self.digests, strict=True)
            if key.class_name in classes
        ]
        if not pairs:
            return None
        keys, digests = zip(*pairs, strict=True)
        return ShardWork(self.dataset, self.split, self.store, self.start, self.stop, keys, digests)

    @property
    def name(self) -> str:
        """Name the work in messages."""
        return f"{self.split} shard {self.keys[0].index}"


@dataclass(frozen=True)
class ShardPlan:
    """Which shards of a split are wanted, and which of them are missing."""

    work: list[ShardWork]
    committed: frozenset[ShardKey]
    torn: tuple[ShardKey, ...]
    """Committed, but the file's bytes are not those that were committed: to be made again."""


def shard_work(
    job: ScoringJob,
    dataset: Dataset,
    split: SplitName,
    run: RunDirectory,
    *,
    check: bool = True,
) -> ShardPlan:
    """Compare the shards that are wanted with those that are committed.

    Args:
        job: the system, its models and how texts are scored.
        dataset: the texts.
        split: which of them.
        run: where the scores lie.
        check: also read the bytes of committed shards: a file that rotted or was edited is then
            scored again.
    """
    store, system = run.scores_of(split), job.system.name
    shards = shards_of(dataset, split, job.scoring.shard_size)
    wanted = wanted_shards(job, dataset, split)
    found = [r for r in store.records(system) if wanted.get(r.key) == r.digest]
    torn = tuple(record.key for record in store.torn(found if check else []))
    committed = frozenset(record.key for record in found).difference(torn)
    work = []
    for shard in shards:
        keys = [ShardKey(system, name, shard.index, shard.count) for name in job.classes]
        keys = [key for key in keys if key not in committed]
        if keys:
            work.append(
                ShardWork(
                    dataset=dataset.path,
                    split=split,
                    store=store.path,
                    start=shard.start,
                    stop=shard.stop,
                    keys=tuple(keys),
                    digests=tuple(wanted[key] for key in keys),
                )
            )
    return ShardPlan(work, committed, torn)
