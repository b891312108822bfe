"""A light system's scores, committed: one shard per class, once for the same texts and settings."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass

import pyarrow as pa

from gencls_core.datasets.dataset import Dataset, SplitName
from gencls_core.measure import peak_memory_bytes
from gencls_core.ownership import Fence
from gencls_core.run import RunDirectory
from gencls_core.scores import ScoreStore, ShardKey
from gencls_core.systems import System
from gencls_core.systems.bag_of_words import rows_by_class

__all__ = ["Target", "commit_system", "missing_targets", "score_rows", "targets_of"]


@dataclass(frozen=True)
class Target:
    """Texts to be scored, and where their scores go."""

    texts: Dataset
    split: SplitName
    store: ScoreStore


def targets_of(
    run: RunDirectory, dataset: Dataset, *, held_out: bool = False
) -> tuple[Target, ...]:
    """Give the test texts of a run, and with `held_out` its validation texts where it has some."""
    splits: list[SplitName] = ["test"]
    if held_out and "validation" in dataset.splits:
        splits.append("validation")
    return tuple(Target(dataset, split, run.scores_of(split)) for split in splits)


def missing_targets(
    system: System, dataset: Dataset, targets: Sequence[Target]
) -> tuple[Target, ...]:
    """Give the targets whose scores are not committed, for these texts, and as they were."""
    return tuple(target for target in targets if not _is_committed(system, dataset, target))


def _is_committed(system: System, dataset: Dataset, target: Target) -> bool:
    digest = system.digest(dataset, target.texts.split(target.split))
    store, keys = target.store, _keys(system, dataset)
    found = [record for key in keys if (record := store.record(key)) is not None]
    current = [record for record in found if record.digest == digest]
    return len(current) == len(keys) and not store.torn(current)


def score_rows(
    system: System, dataset: Dataset, split: SplitName, texts: Dataset | None = None
) -> dict[str, pa.Table]:
    """Learn from the train split of a dataset and score a split, of it or of `texts`.

    Returns:
        One table in SCORE_SCHEMA per class, all with the split's examples in their order.

    Raises:
        DataError: when the dataset lacks what the system learns from.
    """
    return rows_by_class(texts or dataset, split, system.quantity, system.fit(dataset))


def commit_system(
    system: System, dataset: Dataset, targets: Sequence[Target], fence: Fence | None = None
) -> bool:
    """Learn once and score what is not committed yet; False where all of it is.

    Args:
        system: what learns and scores.
        dataset: what it learns from.
        targets: what is scored.
        fence: the right to commit.

    Raises:
        DataError: when the dataset lacks what the system learns from.
        OwnershipError: when this attempt must not commit any more.
    """
    missing = missing_targets(system, dataset, targets)
    if not missing:
        return False
    for target in missing:
        target.store.retire(system.name, ())
    began = time.perf_counter()
    scorer = system.fit(dataset)
    keys = _keys(system, dataset)
    training = (time.perf_counter() - began) / len(keys)
    for target in missing:
        began = time.perf_counter()
        tables = rows_by_class(target.texts, target.split, system.quantity, scorer)
        scoring = (time.perf_counter() - began) / len(keys)
        for key in keys:
            target.store.commit(
                key,
                tables[key.class_name],
                start=0,
                digest=system.digest(dataset, target.texts.split(target.split)),
                seconds=round(scoring, 6),
                train_seconds=round(training, 6),
                peak_memory_bytes=peak_memory_bytes(),
                fence=fence,
            )
    return True


def _keys(system: System, dataset: Dataset) -> list[ShardKey]:
    return [ShardKey(system.name, name, 0, 1) for name in dataset.classes]
