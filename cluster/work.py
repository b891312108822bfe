"""What is to be scored, as values: the shards that are missing, and what actors need for them.

Light, so that whoever plans work loads neither torch nor Ray.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol

import pyarrow as pa

from gencls_core.class_models import ClassModel
from gencls_core.config import RunConfig, ScoringConfig, SequenceConfig
from gencls_core.datasets.dataset import Dataset, SplitName
from gencls_core.digests import scoring_digests, shard_ranges
from gencls_core.model_source import ResolvedModel
from gencls_core.precision import Precision
from gencls_core.remote_path import Location
from gencls_core.run import RunDirectory
from gencls_core.scores import ShardKey

__all__ = ["SYSTEM", "Models", "ScoringJob", "ShardPlan", "ShardWork", "shard_work"]

SYSTEM = "class-lm"


class Models(Protocol):
    """What an actor needs of the models of a group of classes: `ClassModelSet` has it."""

    def encode(self, examples: pa.Table) -> list[list[int]]:
        """Give the token ids of the examples' texts."""

    def score(
        self,
        examples: pa.Table,
        class_name: str,
        sequence: SequenceConfig,
        scoring: ScoringConfig,
        *,
        encoded: list[list[int]] | None = None,
        on_batch: Callable[[int], None] | None = None,
    ) -> pa.Table:
        """Score examples under one class; rows in SCORE_SCHEMA, in order."""


@dataclass(frozen=True)
class ScoringJob:
    """What every actor needs: the models, and how texts are scored."""

    models: tuple[ClassModel, ...]
    base: ResolvedModel
    sequence: SequenceConfig
    scoring: ScoringConfig
    precision: Precision
    device: str
    load: Callable[[ScoringJob, frozenset[str]], Models] | None = None
    """Gives the models of some classes; None loads the committed class models."""


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
    *,
    config: RunConfig,
    precision: Precision,
    models: tuple[ClassModel, ...],
    dataset: Dataset,
    split: SplitName,
    run: RunDirectory,
) -> ShardPlan:
    """Compare the shards that are wanted with those that are committed.

    The bytes of committed shards are checked, unless `check_scores` is off: a file that rotted or
    was edited is scored again.
    """
    store = run.scores_of(split)
    ranges = shard_ranges(dataset.split(split).rows, config.scoring.shard_size)
    wanted: dict[ShardKey, str] = {}
    for model in models:
        digests = scoring_digests(
            model=model,
            dataset=dataset,
            split=split,
            ranges=ranges,
            sequence=config.sequence,
            scoring=config.scoring,
            precision=precision,
        )
        for index, digest in enumerate(digests):
            wanted[ShardKey(SYSTEM, model.class_name, index, len(ranges))] = digest
    found = [r for r in store.records(SYSTEM) if wanted.get(r.key) == r.digest]
    checked = found if config.compute.check_scores else []
    torn = tuple(record.key for record in store.torn(checked))
    committed = frozenset(record.key for record in found).difference(torn)
    work = []
    for index, (start, stop) in enumerate(ranges):
        keys = [ShardKey(SYSTEM, model.class_name, index, len(ranges)) for model in models]
        keys = [key for key in keys if key not in committed]
        if keys:
            work.append(
                ShardWork(
                    dataset=dataset.path,
                    split=split,
                    store=store.path,
                    start=start,
                    stop=stop,
                    keys=tuple(keys),
                    digests=tuple(wanted[key] for key in keys),
                )
            )
    return ShardPlan(work, committed, torn)
