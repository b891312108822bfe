"""What a run took: time, tokens and memory per class, read from the commit records."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict

from gencls_core.class_models import ClassModel
from gencls_core.report.schema import ScoringTask, TaskReport, Timing, TrainingTask
from gencls_core.run import RunDirectory
from gencls_core.scores import ShardRecord

__all__ = ["tasks_of", "timing_of", "training_of"]


def tasks_of(
    classes: tuple[str, ...],
    records: Sequence[ShardRecord],
    models: RunDirectory | None,
    system: str,
) -> dict[str, TaskReport]:
    """Give the cost of each class.

    Args:
        classes: the classes, in order.
        records: the test score shards of the reported system.
        models: the run whose models were used; None for a system that has none.
        system: the reported system.
    """
    return {
        name: TaskReport(
            training=None if models is None else training_of(models, system, name),
            scoring=_scoring([record for record in records if record.class_name == name]),
        )
        for name in classes
    }


def timing_of(
    tasks: dict[str, TaskReport], shared: TrainingTask | None, wall_seconds: float | None
) -> Timing:
    """Sum the costs of the classes, and of a model that they share.

    Tasks may have run side by side, so it is not wall time.
    """
    trained = [task.training for task in tasks.values() if task.training is not None]
    if shared is not None:
        trained.append(shared)
    train_seconds = sum(task.seconds for task in trained)
    scoring_seconds = sum(task.scoring.seconds for task in tasks.values())
    scoring_tokens = sum(task.scoring.tokens for task in tasks.values())
    return Timing(
        train_seconds=train_seconds if trained else None,
        train_tokens_per_second=(
            sum(task.tokens for task in trained) / train_seconds if train_seconds else None
        ),
        scoring_seconds=scoring_seconds,
        scoring_tokens=scoring_tokens,
        scoring_tokens_per_second=scoring_tokens / scoring_seconds if scoring_seconds else None,
        wall_seconds=wall_seconds,
    )


def training_of(models: RunDirectory, system: str, name: str = "") -> TrainingTask | None:
    """Give what training a class's model took, or without a name that of all classes."""
    found = ClassModel.find(models.model_path(name, system))
    return None if found is None else TrainingTask.model_validate(asdict(found.training))


def _scoring(records: list[ShardRecord]) -> ScoringTask:
    return ScoringTask(
        shards=len(records),
        rows=sum(record.rows for record in records),
        tokens=sum(record.tokens for record in records),
        seconds=sum(record.seconds for record in records),
        peak_memory_bytes=max((record.peak_memory_bytes for record in records), default=0),
    )
