"""A class goes from a run: what is to be is written beside, decided, then put in place.

    <run>/.change/scores/…, validation-scores/…    shards that must be written anew
    <run>/.change/change.json                      written last: then the change is decided

Before `change.json` the run is as it was, and what lies in `.change` is thrown away. After it,
`finish_change` does each step however often it was begun: whoever owns the run next calls it. No
text is scored: rows of the class's texts are left out of the other classes' shards, and a shard
that holds none of them keeps its file.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import takewhile
from pathlib import Path
from typing import Any

import pyarrow.compute as pc

from gencls_core.class_models import ClassModel
from gencls_core.config import RunConfig
from gencls_core.datasets.dataset import Dataset, SplitName
from gencls_core.digests import ShardRange, shards_of, wanted_shards
from gencls_core.errors import StoreError
from gencls_core.model_source import ResolvedModel
from gencls_core.remote_path import Location
from gencls_core.run import RunDirectory
from gencls_core.scores import ScoreStore, ShardKey, ShardRecord
from gencls_core.scoring_job import ANY_CLASS, BACKGROUND, ScoringJob
from gencls_core.storage import children, class_directory_name, read_json, remove_tree, write_json
from gencls_core.trained_run import main_system, models_of_run

__all__ = ["CHANGE", "Drop", "finish_change", "tidy_dataset"]

CHANGE = ".change"
_DECISION = "change.json"
_SPLITS: tuple[SplitName, ...] = ("validation", "test")


@dataclass(frozen=True)
class Drop:
    """A class that is to go, and all that is known before anything is changed."""

    run: RunDirectory
    name: str
    before: Dataset
    after: Dataset
    """Files that it does not share with `before` lie in the dataset's folder already."""
    manifest: dict[str, Any]
    """What `run.json` is to say; `classes` are those that stay."""

    def decide(self) -> None:
        """Write what must be written anew, then the decision.

        Raises:
            StoreError: when a class that stays has no model, or its scores are not whole.
        """
        folder = self.run.path / CHANGE
        remove_tree(folder)
        models = models_of_run(self.run, self.manifest)
        shards = {}
        for split in _SPLITS:
            staged = RunDirectory(folder).scores_of(split)
            keys = [*self._stage(split, staged, models), *self._of_background(split)]
            shards[split] = [[key.system, key.class_name, key.index, key.count] for key in keys]
        write_json(
            folder / _DECISION,
            {
                "name": self.name,
                "shards": shards,
                "dataset": self.after.to_json(),
                "manifest": self.manifest,
            },
        )

    def _stage(
        self, split: SplitName, staged: ScoreStore, models: tuple[ClassModel, ...]
    ) -> Iterator[ShardKey]:
        """Write the shards of a split that cannot stay as they are; give all that are to be."""
        if split not in self.after.splits:
            return
        store, job = self.run.scores_of(split), _job(self.manifest, models)
        wanted = wanted_shards(job, self.after, split)
        ranges = shards_of(self.after, split, job.scoring.shard_size)
        were = wanted_shards(job, self.before, split)
        found: dict[str, list[ShardRecord]] = {name: [] for name in job.classes}
        for record in store.records(job.system.name):
            if record.class_name in found:
                found[record.class_name].append(record)
        if not any(found.values()):
            return  # never scored, and not now
        for name, records in found.items():
            there = {(record.key, record.digest, record.start) for record in records}
            keys = {
                ShardKey(job.system.name, name, shard.index, shard.count): shard for shard in ranges
            }
            anew = {k: s for k, s in keys.items() if (k, wanted[k], s.start) not in there}
            if anew:
                of_class = [record for record in records if were.get(record.key) == record.digest]
                self._write(store, of_class, staged, anew, wanted, self.after.split(split).rows)
            yield from keys

    def _of_background(self, split: SplitName) -> Iterator[ShardKey]:
        """Give the shards of the untrained base that stay: of the files before the first that
        changes."""
        if split not in self.after.splits:
            return
        parts = zip(self.before.parts(split), self.after.parts(split), strict=False)
        rows = sum(part.rows for part, _ in takewhile(lambda pair: pair[0] == pair[1], parts))
        for shard in shards_of(self.after, split, _config(self.manifest).scoring.shard_size):
            if shard.stop <= rows:
                yield ShardKey(BACKGROUND, ANY_CLASS, shard.index, shard.count)

    def _write(
        self,
        store: ScoreStore,
        records: list[ShardRecord],
        staged: ScoreStore,
        anew: dict[ShardKey, ShardRange],
        digests: dict[ShardKey, str],
        rows: int,
    ) -> None:
        """Write a class's shards without the rows of the texts that go; costs are shared out."""
        records = sorted(records, key=lambda record: record.start)
        if store.torn(records):
            records = []
        table = store.read(records).drop_columns(["class", "system"]) if records else None
        if table is not None:
            table = table.filter(pc.not_equal(pc.fill_null(table["label"], ""), self.name))
        if table is None or table.num_rows != rows:
            raise StoreError.of(
                "the scores are not whole",
                place=store.directory(*_of(anew)),
                found=f"{0 if table is None else table.num_rows:,} rows of texts that stay",
                expected=f"{rows:,}",
                remedy="run the command that scored (`gencls run` or `gencls evaluate`) again: it "
                "scores what is missing",
            )
        scored = sum(record.rows for record in records)
        seconds = sum(record.seconds for record in records)
        for key, shard in anew.items():
            part = table.slice(shard.start, shard.stop - shard.start)
            staged.commit(
                key,
                part,
                start=shard.start,
                digest=digests[key],
                seconds=round(seconds * part.num_rows / scored, 6),
                peak_memory_bytes=max(record.peak_memory_bytes for record in records),
            )


def _of(keys: dict[ShardKey, ShardRange]) -> tuple[str, str]:
    key = next(iter(keys))
    return key.system, key.class_name


def _config(manifest: dict[str, Any]) -> RunConfig:
    return RunConfig.model_validate(manifest["config"])


def _job(manifest: dict[str, Any], models: Sequence[ClassModel]) -> ScoringJob:
    """Give what names the shards of a run; nothing is loaded."""
    config, first = _config(manifest), models[0]
    return ScoringJob(
        system=main_system(config),
        classes=tuple(manifest["classes"]),
        models=tuple(models),
        base=ResolvedModel(first.base, first.path, first.base_digest, parameters=0, config={}),
        sequence=config.sequence,
        scoring=config.scoring,
        precision=manifest["precision"],
        device="cpu",
        systems=config.systems,
        seed=config.training.seed,
    )


def finish_change(run: RunDirectory) -> bool:
    """Bring a change that was decided to its end; throw away one that was not. Only its owner may.

    Returns:
        Whether there was one that was decided.
    """
    folder = run.path / CHANGE
    try:
        made = read_json(folder / _DECISION)
    except FileNotFoundError:
        remove_tree(folder)
        return False
    run.drop_report()
    write_json(run.dataset_path / "dataset.json", made["dataset"])
    for split in _SPLITS:
        store, staged = run.scores_of(split), RunDirectory(folder).scores_of(split)
        wanted = {ShardKey(*key) for key in made["shards"][split]}
        for key in sorted(wanted):
            if staged.record_path(key).is_file():
                _put(staged, store, key)
        for name in store.systems():
            # Whatever else has scored these texts knows the class that went.
            store.retire(name, [key for key in wanted if key.system == name])
    name = class_directory_name(made["name"])
    for child in children(run.models_path):
        if child.name == name or child.name.startswith(f".training-{name}-"):
            remove_tree(child)
    remove_tree(run.path / "candidates")
    tidy_dataset(run)
    run.write_manifest(made["manifest"])
    (folder / _DECISION).unlink()
    remove_tree(folder)
    return True


def _put(staged: ScoreStore, store: ScoreStore, key: ShardKey) -> None:
    """Put a shard in its place; a record never stands beside a file of another."""
    store.record_path(key).unlink(missing_ok=True)
    if staged.shard_path(key).is_file():
        _move(staged.shard_path(key), store.shard_path(key))
    _move(staged.record_path(key), store.record_path(key))


def _move(source: Location, target: Location) -> None:
    if isinstance(source, Path) and isinstance(target, Path):
        target.parent.mkdir(parents=True, exist_ok=True)
        source.replace(target)
        return
    assert not isinstance(target, Path), "both are below the run"
    target.write_bytes(source.read_bytes())
    source.unlink(missing_ok=True)


def tidy_dataset(run: RunDirectory) -> None:
    """Remove files of the dataset's folder that it does not name: of a change that went by."""
    dataset = run.dataset()
    named = {part.file for split in dataset.splits for part in dataset.parts(split)}  # type: ignore[arg-type]
    for child in children(run.dataset_path):
        if child.name not in {"dataset.json", *named}:
            child.unlink()
