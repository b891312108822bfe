"""The line of jobs, and the actor that keeps it: whose turn it is, by rules that need no Ray.

This module imports nothing of gencls: the actor is started from it alone, without the package of
any job (`queue.py`), and what it is asked and answers are plain values. Another version of gencls
that changes these has another `ACTOR`.
"""

from __future__ import annotations

import sys
import time
from dataclasses import dataclass
from typing import Any

__all__ = ["ACTOR", "NAMESPACE", "SILENCE_SECONDS", "Line", "Standing", "start"]

NAMESPACE = "gencls"
ACTOR = "gencls-queue-2"
"""With the number of its protocol: another version of gencls on the cluster has its own actor."""

SILENCE_SECONDS = 15.0


@dataclass(frozen=True)
class Standing:
    """Where a job stands: at work, or in the line at `place` of `of`."""

    admitted: bool
    place: int
    of: int
    behind: tuple[tuple[str, float], ...]
    """Who works now, and since when, in seconds since the epoch."""
    limit: int


@dataclass
class _Ticket:
    job_id: str
    priority: int
    submitted: float
    heard: float
    since: float | None = None
    """When it was admitted."""


class Line:
    """Who may work and who waits. Times are given to it, in seconds since the epoch."""

    def __init__(
        self, limit: int = 1, silence: float = SILENCE_SECONDS, opens: float = 0.0
    ) -> None:
        self._limit = limit
        self._silence = silence
        self._opens = opens
        """Nobody is admitted before: who works already has until then to say so."""
        self._tickets: dict[str, _Ticket] = {}

    def stand(
        self, job_id: str, priority: int, submitted: float, since: float | None, now: float
    ) -> Standing:
        """Say that a job is alive and wants to work; give where it stands.

        Args:
            job_id: the job.
            priority: higher goes first.
            submitted: who came first goes first among equals.
            since: when it was admitted, if it believes it was. It is believed: it holds CPUs and
                GPUs, whether the line forgot it for its silence or was itself restarted.
            now: the time.
        """
        ticket = self._tickets.setdefault(job_id, _Ticket(job_id, priority, submitted, now))
        ticket.heard = now
        ticket.since = ticket.since or since
        self._move(now)
        waiting = self._waiting()
        return Standing(
            admitted=ticket.since is not None,
            place=0 if ticket.since is not None else waiting.index(ticket) + 1,
            of=len(waiting),
            behind=tuple((t.job_id, t.since) for t in self._working() if t.since is not None),
            limit=self._limit,
        )

    def leave(self, job_id: str, now: float) -> None:
        """Give a place back, of whichever kind."""
        self._tickets.pop(job_id, None)
        self._move(now)

    def set_limit(self, limit: int, now: float) -> None:
        """Change how many may work at once; nobody who works is interrupted."""
        self._limit = limit
        self._move(now)

    def _working(self) -> list[_Ticket]:
        return sorted(
            (t for t in self._tickets.values() if t.since is not None),
            key=lambda t: (t.since, t.job_id),
        )

    def _waiting(self) -> list[_Ticket]:
        return sorted(
            (t for t in self._tickets.values() if t.since is None),
            key=lambda t: (-t.priority, t.submitted, t.job_id),
        )

    def _move(self, now: float) -> None:
        silent = [t.job_id for t in self._tickets.values() if now - t.heard > self._silence]
        for job_id in silent:
            del self._tickets[job_id]
        if now < self._opens:
            return
        free = max(0, self._limit - len(self._working()))
        for ticket in self._waiting()[:free]:
            ticket.since = now


class LineActor:
    """The line as an actor; its clock is the only one that counts."""

    def __init__(self) -> None:
        import ray

        again = ray.get_runtime_context().was_current_actor_reconstructed
        self._line = Line(opens=time.time() + SILENCE_SECONDS if again else 0.0)

    def stand(
        self, job_id: str, priority: int, submitted: float, since: float | None
    ) -> dict[str, Any]:
        return vars(self._line.stand(job_id, priority, submitted, since, time.time()))

    def leave(self, job_id: str) -> None:
        self._line.leave(job_id, time.time())

    def set_limit(self, limit: int) -> None:
        self._line.set_limit(limit, time.time())


def start(address: str) -> None:
    """Start the actor on a cluster, unless it is there.

    For a process of its own, which is no part of a job: an actor inherits what the driver that
    starts it has, and this one outlives every job.
    """
    import ray
    from ray import cloudpickle

    # The actor's worker finds no gencls to import.
    cloudpickle.register_pickle_by_value(sys.modules[__name__])
    ray.init(address=address, namespace=NAMESPACE, log_to_driver=False, logging_level="ERROR")
    actor = (
        ray.remote(LineActor)
        .options(
            name=ACTOR,
            namespace=NAMESPACE,
            lifetime="detached",
            get_if_exists=True,
            num_cpus=0,
            max_restarts=-1,
            max_task_retries=-1,
        )
        .remote()
    )
    ray.get(actor.__ray_ready__.remote())
