"""What comes back from Ray's workers: events while they work, and errors in our own words."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from ray.exceptions import (
    OutOfMemoryError,
    RayActorError,
    RayTaskError,
    WorkerCrashedError,
)
from ray.util.queue import Empty, Queue

from gencls_core.errors import GenclsError, ResourceError
from gencls_core.events import Event

__all__ = ["drain", "failure_of", "open_channel", "send"]


def open_channel() -> Queue:
    """Open a queue that workers put events into; it takes no CPU of the plan."""
    return Queue(actor_options={"num_cpus": 0})


def send(channel: Queue, event: Event) -> None:
    """Put an event into the queue without waiting for it to arrive.

    `channel.put` would wait, and Ray lends out the CPUs of a task that waits: a further training
    would start beside those that the plan allows.
    """
    actor: Any = channel.actor
    actor.put_nowait.remote(event)


def drain(channel: Queue) -> Iterator[Event]:
    """Give the events that have come, without waiting."""
    try:
        waiting = channel.size()
        if waiting:
            yield from channel.get_nowait_batch(waiting)
    except Empty:
        return


def failure_of(error: Exception, what: str) -> GenclsError:
    """Turn what Ray raised into the error that the user should read.

    An error of ours that was raised in a worker is given back as it was; a crash becomes a
    ResourceError that says so; anything else is a bug and is raised again with its traceback.
    """
    if isinstance(error, RayTaskError):
        cause = error.cause
        if isinstance(cause, GenclsError):
            return cause
        raise error
    if isinstance(error, OutOfMemoryError):
        return ResourceError.of(
            f"{what}: the worker took more memory than there is, and was ended",
            found=str(error).strip().splitlines()[0],
            remedy="fewer at once (--concurrent-trainings 1, --actors 1), a smaller --batch-size "
            "or --tokens-per-batch, --lora-rank 8",
        )
    if isinstance(error, WorkerCrashedError | RayActorError):
        return ResourceError.of(
            f"{what}: the worker process died, and died again on every retry",
            found=str(error).strip().splitlines()[0],
            remedy="look for the out-of-memory killer in the system's log; run the same command "
            "again to go on from what is committed",
        )
    raise error
