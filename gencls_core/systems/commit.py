"""A light system's scores, committed: one shard per class, once for the same texts and settings."""

from __future__ import annotations

import time

from gencls_core.datasets.dataset import Dataset
from gencls_core.measure import peak_memory_bytes
from gencls_core.ownership import Fence
from gencls_core.scores import ScoreStore, ShardKey
from gencls_core.systems import System

__all__ = ["commit_system", "is_committed"]


def is_committed(system: System, dataset: Dataset, store: ScoreStore) -> bool:
    """Say whether the test split's scores are committed, for these texts, and as they were."""
    digest = system.digest(dataset, "test")
    found = [record for key in _keys(system, dataset) if (record := store.record(key)) is not None]
    current = [record for record in found if record.digest == digest]
    return len(current) == len(dataset.classes) and not store.torn(current)


def commit_system(
    system: System, dataset: Dataset, store: ScoreStore, fence: Fence | None = None
) -> bool:
    """Train and score the test split; False where that was committed already.

    Raises:
        DataError: when the dataset lacks what the system learns from.
        OwnershipError: when this attempt must not commit any more.
    """
    if is_committed(system, dataset, store):
        return False
    digest = system.digest(dataset, "test")
    store.retire(system.name, ())
    began = trained = time.perf_counter()

    def on_trained() -> None:
        nonlocal trained
        trained = time.perf_counter()

    tables = system.score_rows(dataset, "test", on_trained)
    keys = _keys(system, dataset)
    scoring = (time.perf_counter() - trained) / len(keys)
    training = (trained - began) / len(keys)
    for key in keys:
        store.commit(
            key,
            tables[key.class_name],
            start=0,
            digest=digest,
            seconds=round(scoring, 6),
            train_seconds=round(training, 6),
            peak_memory_bytes=peak_memory_bytes(),
            fence=fence,
        )
    return True


def _keys(system: System, dataset: Dataset) -> list[ShardKey]:
    return [ShardKey(system.name, name, 0, 1) for name in dataset.classes]
