"""What a run took: time, tokens and memory per class, read from the commit records."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict

from gencls_core.class_models import ClassModel
from gencls_core.report.schema import ScoringTask, TaskReport, Timing, TrainingTask
from gencls_core.run import RunDirectory
from gencls_core.scores import ShardRecord

__all__ = ["tasks_of", "timing_of"]


def tasks_of(
    classes: tuple[str, ...], records: Sequence[ShardRecord], models: RunDirectory | None
) -> dict[str, TaskReport]:
    """Give the cost of each class.

    Args:
        classes: the classes, in order.
        records: the test score shards of the reported system.
        models: the run whose class models were used; None for a system that has none.
    """
    return {
        name: TaskReport(
            training=None if models is None else _training(models, name),
            scoring=_scoring([record for record in records if record.class_name == name]),
        )
        for name in classes
    }


def timing_of(tasks: dict[str, TaskReport], wall_seconds: float | None) -> Timing:
    """Sum the costs of the classes; tasks may have run side by side, so it is not wall time."""
    trained = [task.training for task in tasks.values() if task.training is not None]
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


def _training(models: RunDirectory, name: str) -> TrainingTask | None:
    found = ClassModel.find(models.model_path(name))
    return None if found is None else TrainingTask.model_validate(asdict(found.training))


def _scoring(records: list[ShardRecord]) -> ScoringTask:
    return ScoringTask(
        shards=len(records),
        rows=sum(record.rows for record in records),
        tokens=sum(record.tokens for record in records),
        seconds=sum(record.seconds for record in records),
        peak_memory_bytes=max((record.peak_memory_bytes for record in records), default=0),
    )
