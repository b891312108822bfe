"""A light system's scores, committed: one shard per class, once for the same texts and settings."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa

from gencls_core.datasets.dataset import Dataset, SplitName
from gencls_core.measure import peak_memory_bytes
from gencls_core.ownership import Fence
from gencls_core.run import RunDirectory
from gencls_core.score_matrix import FloatArray
from gencls_core.scores import SCORE_SCHEMA, Quantity, ScoreStore, ShardKey
from gencls_core.systems import Scorer, System

__all__ = [
    "Target",
    "commit_system",
    "missing_targets",
    "score_rows",
    "targets_of",
]


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


def score_rows(system: System, dataset: Dataset, split: SplitName) -> dict[str, pa.Table]:
    """Learn from the train split of a dataset and score a split of it.

    Returns:
        One table in SCORE_SCHEMA per class, all with the split's examples in their order.

    Raises:
        DataError: when the dataset lacks what the system learns from.
    """
    return _rows_by_class(dataset, split, system.quantity, system.fit(dataset))


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
    began = time.perf_counter()
    scorer = system.fit(dataset)
    keys = _keys(system, dataset)
    training = (time.perf_counter() - began) / len(keys)
    for target in missing:
        digest = system.digest(dataset, target.texts.split(target.split))
        began = time.perf_counter()
        tables = _rows_by_class(target.texts, target.split, system.quantity, scorer)
        scoring = (time.perf_counter() - began) / len(keys)
        target.store.retire(system.name, ())
        for key in keys:
            target.store.commit(
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


def _rows_by_class(
    dataset: Dataset, split: SplitName, quantity: Quantity, scorer: Scorer
) -> dict[str, pa.Table]:
    """Score a split batch by batch; give one table in SCORE_SCHEMA per class, in its order."""
    ids: list[str] = []
    labels: list[str | None] = []
    words: list[int] = []
    truncated: list[bool] = []
    blocks: list[FloatArray] = []
    for batch in dataset.iter_batches(split, ["example_id", "text", "label"]):
        ids.extend(batch.column("example_id").to_pylist())
        labels.extend(batch.column("label").to_pylist())
        found = scorer(batch.column("text").to_pylist())
        blocks.append(found.scores)
        words.extend(found.num_tokens)
        truncated.extend(found.truncated or [False] * len(batch))
    scores_NC = np.concatenate(blocks) if blocks else np.zeros((0, len(dataset.classes)))
    count = len(ids)
    shared: dict[str, Any] = {
        "example_id": ids,
        "label": labels,
        "standard_error": [None] * count,
        "quantity": [quantity] * count,
        "num_tokens": words,
        "truncated": truncated,
        "num_windows": [1] * count,
        "loss_score": [None] * count,
        "token_ids": [None] * count,
        "token_scores": [None] * count,
    }
    return {
        name: pa.table({**shared, "score": scores_NC[:, column]}, schema=SCORE_SCHEMA)
        for column, name in enumerate(dataset.classes)
    }
