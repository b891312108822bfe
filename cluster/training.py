"""Class models trained as Ray tasks, as many at once as the plan allows."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import ray
from ray.util.queue import Queue

from cluster.channel import drain, failure_of, open_channel, send
from cluster.resources import Plan
from gencls_core.class_models import ClassModel
from gencls_core.errors import GenclsError
from gencls_core.events import ClassTrained, Event, Note
from gencls_core.training import TrainingTask, train_class

__all__ = ["train_classes"]

RETRIES_AFTER_A_CRASH = 2


def train_classes(tasks: list[TrainingTask], dataset: Path, plan: Plan) -> Iterator[Event]:
    """Train every task's class; yields progress as it comes.

    A class that fails does not stop the others: their work is committed, and the error is raised
    when all are done.

    Raises:
        GenclsError: the first failure.
    """
    channel = open_channel()
    remote = ray.remote(_train).options(
        num_cpus=plan.cpus_per_training,
        num_gpus=plan.gpus_per_training,
        max_retries=RETRIES_AFTER_A_CRASH,
        retry_exceptions=False,
    )
    pending = {
        remote.remote(task, dataset, channel, plan.gpus_per_training): task.class_name
        for task in tasks
    }
    first_failure: GenclsError | None = None
    while pending:
        done, _ = ray.wait(list(pending), num_returns=1, timeout=0.3)
        yield from drain(channel)
        for reference in done:
            class_name = pending.pop(reference)
            try:
                model: ClassModel = ray.get(reference)
            except Exception as error:
                failure = failure_of(error, f"training of class {class_name!r}")
                yield Note(f"class {class_name!r} failed: {str(failure).splitlines()[0]}")
                first_failure = first_failure or failure
                continue
            record = model.training
            yield ClassTrained(
                class_name=class_name,
                seconds=record.seconds,
                tokens_per_second=record.tokens_per_second,
                validation_perplexity=record.validation_perplexity,
                peak_memory_bytes=record.peak_memory_bytes,
                best_epoch=record.best_epoch,
            )
    channel.shutdown()
    if first_failure is not None:
        raise first_failure


def _train(task: TrainingTask, dataset: Path, channel: Queue, gpu_share: float) -> ClassModel:
    """Run in a Ray worker: read the class's own texts and train on them."""
    import torch

    from gencls_core.datasets.dataset import Dataset

    if task.device == "cuda" and gpu_share < 1:
        # Ray's fractions isolate nothing: hold each task to its share.
        torch.cuda.set_per_process_memory_fraction(gpu_share)
    texts = Dataset.open(dataset)

    model = train_class(
        replace(
            task,
            texts=texts.texts_of("train", task.class_name),
            validation_texts=texts.texts_of("validation", task.class_name),
        ),
        lambda event: send(channel, event),
    )
    if task.device == "cuda":
        torch.cuda.empty_cache()
    return model
