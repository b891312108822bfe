"""Class models trained as Ray tasks, as many at once as the plan allows."""

from __future__ import annotations

import traceback
from collections import deque
from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import ray
from ray.util.queue import Queue

from cluster.channel import CRASHES, Channel, failure_of, send
from cluster.guard import bound_memory
from cluster.resources import Plan
from gencls_core.class_models import ClassModel
from gencls_core.errors import GenclsError, ResourceError
from gencls_core.events import ClassTrained, Event, Note
from gencls_core.ownership import Fence, Lease
from gencls_core.remote_path import Location
from gencls_core.startup import collector_paused
from gencls_core.training_task import TrainingTask

__all__ = ["train_classes"]

ATTEMPTS_PER_CLASS = 3


def train_classes(
    tasks: list[TrainingTask],
    dataset: Location,
    plan: Plan,
    lease: Lease,
    memory_limit: int,
) -> Iterator[Event]:
    """Train every task's class; yields progress as it comes.

    A class that fails does not stop the others: their work is committed, and the error is raised
    when all are done. A training whose worker or node dies goes on elsewhere from its last whole
    checkpoint; the attempt that died can commit no more, should it only have been unreachable.

    Args:
        tasks: what to train; each reads its own texts.
        dataset: the prepared dataset.
        plan: what each training reserves.
        lease: the ownership of the run.
        memory_limit: resident bytes after which a training is ended.

    Raises:
        GenclsError: the first failure.
    """
    channel = Channel()
    # A training that died is tried again by us, under a new fence.
    remote = ray.remote(_train).options(
        **plan.training_options(), max_retries=0, retry_exceptions=False
    )
    waiting = deque((task, 1) for task in tasks)
    pending: dict[Any, tuple[TrainingTask, Fence, int]] = {}
    first_failure: GenclsError | None = None
    try:
        while waiting or pending:
            while waiting and len(pending) < plan.concurrent_trainings:
                task, attempt = waiting.popleft()
                fence = lease.fence(f"train-{task.system}-{task.class_id}")
                reference = remote.remote(
                    replace(task, fence=fence), dataset, channel.queue, plan, memory_limit
                )
                pending[reference] = (task, fence, attempt)
            done, _ = ray.wait(list(pending), num_returns=1, timeout=0.3)
            yield from channel.drain()
            lease.check()
            for reference in done:
                task, fence, attempt = pending.pop(reference)
                what = f"training of {task.title}"
                try:
                    model: ClassModel = ray.get(reference)
                except CRASHES as error:
                    lease.retire(fence)
                    reason = channel.why(fence.attempt, what)
                    if reason is None and attempt < ATTEMPTS_PER_CLASS:
                        yield Note(f"{what}: its worker died; going on from its last checkpoint")
                        waiting.append((task, attempt + 1))
                        continue
                    failure = reason or failure_of(error, what)
                except Exception as error:
                    failure = failure_of(error, what)
                else:
                    yield _trained(task, model)
                    continue
                yield Note(f"{task.title} failed: {str(failure).splitlines()[0]}")
                first_failure = first_failure or failure
    finally:
        for reference in pending:
            ray.cancel(reference, force=True)
        channel.close()
    if first_failure is not None:
        raise first_failure


def _trained(task: TrainingTask, model: ClassModel) -> ClassTrained:
    record = model.training
    return ClassTrained(
        class_name=task.label,
        seconds=record.seconds,
        tokens_per_second=record.tokens_per_second,
        validation_perplexity=record.validation_perplexity,
        peak_memory_bytes=record.peak_memory_bytes,
        best_epoch=record.best_epoch,
        averaged_epochs=record.averaged_epochs,
    )


def _train(
    task: TrainingTask, dataset: Location, queue: Queue, plan: Plan, memory_limit: int
) -> ClassModel:
    """Run in a Ray worker: read the class's own texts and train on them."""
    attempt = task.fence.attempt if task.fence is not None else task.label
    with bound_memory(memory_limit, queue, attempt):
        return _train_bounded(task, dataset, queue, plan)


def _train_bounded(task: TrainingTask, dataset: Location, queue: Queue, plan: Plan) -> ClassModel:
    with collector_paused(stays=True):
        import torch

        from gencls_core.compilation import why_not_compiled
        from gencls_core.datasets.dataset import Dataset
        from gencls_core.process_memory import hand_back_memory
        from gencls_core.training import train_class

    if task.device == "cuda" and plan.gpu_memory_fraction_per_training is not None:
        # Ray's fractions isolate nothing: hold each task to its share.
        torch.cuda.set_per_process_memory_fraction(plan.gpu_memory_fraction_per_training)
    if task.compiled and (reason := why_not_compiled(task.device)):
        send(queue, Note(f"{task.title}: not compiled: {reason}"))
        task = replace(task, compiled=False)
    try:
        return train_class(
            task.with_texts(Dataset.open(dataset)),
            lambda event: send(queue, event),
        )
    except torch.OutOfMemoryError as error:
        traceback.clear_frames(error.__traceback__)
        raise ResourceError.of(
            f"training of {task.title} does not fit into its part of the GPU",
            found=str(error).splitlines()[0],
            remedy="--concurrent-trainings 1, a smaller --batch-size, --gradient-checkpointing, "
            "or --lora-rank 8",
        ) from None
    except BaseException as error:
        # Its frames would hold trainer and model as long as it is on its way.
        traceback.clear_frames(error.__traceback__)
        raise
    finally:
        hand_back_memory()
        if task.device == "cuda":
            torch.cuda.empty_cache()
