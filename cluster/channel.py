"""What comes back from Ray's workers: events while they work, and errors in our own words."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from ray.exceptions import (
    GetTimeoutError,
    NodeDiedError,
    ObjectLostError,
    OutOfMemoryError,
    RayActorError,
    RayTaskError,
    WorkerCrashedError,
)
from ray.util.queue import Empty, Queue

from cluster.guard import exceeded_error
from gencls_core.errors import GenclsError, ResourceError
from gencls_core.events import Event, MemoryExceeded

__all__ = ["CRASHES", "Channel", "failure_of", "send"]

CRASHES = (WorkerCrashedError, RayActorError, NodeDiedError, OutOfMemoryError, ObjectLostError)
"""What Ray raises when a worker or its node is gone: the work may be tried elsewhere."""
DRAIN_SECONDS = 10.0


class Channel:
    """A queue that workers put events into; it takes no CPU of the plan."""

    def __init__(self) -> None:
        self.queue = Queue(actor_options={"num_cpus": 0})
        self._exceeded: dict[str, MemoryExceeded] = {}

    def drain(self) -> Iterator[Event]:
        """Give the events that have come, without waiting for more."""
        try:
            waiting = self.queue.size()
            events = self.queue.get_nowait_batch(waiting) if waiting else []
        except (Empty, GetTimeoutError, *CRASHES):
            # The queue died with its node: progress is lost, work is not.
            return
        for event in events:
            if isinstance(event, MemoryExceeded):
                self._exceeded[event.attempt] = event
            else:
                yield event

    def why(self, attempt: str, what: str) -> GenclsError | None:
        """Give the reason that a worker left behind before it died, if there is one."""
        event = self._exceeded.get(attempt)
        return None if event is None else exceeded_error(what, event)

    def close(self) -> None:
        """End the queue."""
        self.queue.shutdown(force=True)


def send(queue: Queue, event: Event) -> None:
    """Put an event into the queue without waiting for it to arrive.

    `queue.put` would wait, and Ray lends out the CPUs of a task that waits: a further training
    would start beside those that the plan allows.
    """
    actor: Any = queue.actor
    actor.put_nowait.remote(event)


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
    if isinstance(error, CRASHES):
        return ResourceError.of(
            f"{what}: the worker process died, and died again on every retry",
            found=str(error).strip().splitlines()[0],
            remedy="look for the out-of-memory killer in the system's log; run the same command "
            "again to go on from what is committed",
        )
    raise error
