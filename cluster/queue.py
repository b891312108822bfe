"""Whose turn it is: Ray runs every submitted job at once, gencls lets a few at a time work.

A job's driver starts at once and reads its data; before it takes CPUs or GPUs it stands in line.
The line is kept by one named actor of the cluster that outlives the jobs. Higher priority goes
first, then who was submitted first; nobody who works is interrupted. Drivers report every few
seconds, and one that is silent for 15 s has lost its place: a killed driver blocks nobody.
"""

from __future__ import annotations

import contextlib
import os
import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from datetime import datetime
from types import TracebackType
from typing import Any, Self

from cluster.errors import ClusterError
from cluster.job_context import job_context, secrets_of_job
from gencls_core.events import Event, Note

__all__ = ["Admission", "Line", "Standing", "Waiting", "wait_for_turn"]

NAMESPACE = "gencls"
ACTOR = "gencls-queue-1"
"""With the number of its protocol: another version of gencls on the cluster has its own actor."""

BEAT_SECONDS = 2.0
SILENCE_SECONDS = 15.0
LOST_SECONDS = 120.0
"""After so long without an answer from the actor, a waiting job gives up."""


@dataclass(frozen=True)
class Standing:
    """Where a job stands: at work, or in the line at `place` of `of`."""

    admitted: bool
    place: int
    of: int
    behind: tuple[tuple[str, float], ...]
    """Who works now, and since when, in seconds since the epoch."""
    limit: int


@dataclass(frozen=True)
class Waiting(Note):
    """A job waits for its turn."""

    place: int
    of: int


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

    def __init__(self, limit: int = 1, silence: float = SILENCE_SECONDS) -> None:
        self._limit = limit
        self._silence = silence
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
        free = max(0, self._limit - len(self._working()))
        for ticket in self._waiting()[:free]:
            ticket.since = now


class _LineActor:
    """The line as an actor; its clock is the only one that counts."""

    def __init__(self, forget: Sequence[str]) -> None:
        # It was started by some job and outlives it: that job's secrets are not its business.
        for name in forget:
            os.environ.pop(name, None)
        self._line = Line()

    def stand(self, job_id: str, priority: int, submitted: float, since: float | None) -> Standing:
        return self._line.stand(job_id, priority, submitted, since, time.time())

    def leave(self, job_id: str) -> None:
        self._line.leave(job_id, time.time())

    def set_limit(self, limit: int) -> None:
        self._line.set_limit(limit, time.time())


def _line_actor() -> Any:
    """Give the cluster's line; starts it where there is none."""
    import ray

    return (
        ray.remote(_LineActor)
        .options(
            name=ACTOR,
            namespace=NAMESPACE,
            lifetime="detached",
            get_if_exists=True,
            num_cpus=0,
            max_restarts=-1,
            max_task_retries=-1,
            runtime_env={"env_vars": {"GENCLS_JOB_ID": ""}},
        )
        .remote(list(secrets_of_job()))
    )


class Admission:
    """A job's place in the line, kept alive by a thread; given back at the end of the block.

    Needs a Ray that is connected.
    """

    def __init__(
        self,
        job_id: str,
        priority: int = 0,
        *,
        submitted: float | None = None,
        max_concurrent: int | None = None,
    ) -> None:
        self._job_id = job_id
        self._priority = priority
        self._submitted = time.time() if submitted is None else submitted
        self._since: float | None = None
        self._standing: Standing | None = None
        self._answered = time.monotonic()
        self._changed = threading.Event()
        self._done = threading.Event()
        self._line = _line_actor()
        if max_concurrent is not None:
            self._line.set_limit.remote(max_concurrent)
        self._thread = threading.Thread(target=self._beat, name="gencls-queue", daemon=True)

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        import ray

        self._done.set()
        self._thread.join(timeout=2 * BEAT_SECONDS)
        # A cluster that has gone needs no telling.
        with contextlib.suppress(ray.exceptions.RayError):
            ray.get(self._line.leave.remote(self._job_id), timeout=5)

    def wait(self) -> Iterator[Event]:
        """Give a note whenever the place changes; ends when the job may work.

        Raises:
            ClusterError: when the line does not answer any more.
        """
        told: tuple[Any, ...] | None = None
        while True:
            self._changed.wait(timeout=1.0)
            self._changed.clear()
            standing = self._standing
            if standing is not None and standing.admitted:
                if told is not None:
                    yield Note("it is this job's turn")
                return
            if time.monotonic() - self._answered > LOST_SECONDS:
                raise ClusterError.of(
                    "the cluster's queue does not answer",
                    found=f"no word for {LOST_SECONDS:.0f} s",
                    remedy="look at the cluster (`gencls cluster status`), then submit again",
                )
            if standing is None:
                continue
            shown = (standing.place, standing.of, standing.behind)
            if shown != told:
                told = shown
                yield Waiting(_words(standing), standing.place, standing.of)

    def _beat(self) -> None:
        """Run in a thread of the driver: say that it lives, and learn where it stands."""
        import ray

        while True:
            call = self._line.stand.remote(
                self._job_id, self._priority, self._submitted, self._since
            )
            try:
                standing: Standing = ray.get(call, timeout=SILENCE_SECONDS)
            except ray.exceptions.RayError:
                standing = None  # type: ignore[assignment]
            if standing is not None:
                self._answered = time.monotonic()
                if standing.admitted and self._since is None:
                    self._since = dict(standing.behind).get(self._job_id, time.time())
                self._standing = standing
                self._changed.set()
            if self._done.wait(BEAT_SECONDS):
                return


def wait_for_turn(stack: ExitStack) -> Iterator[Event]:
    """Let a submitted job stand in line; gives the place back when `stack` ends.

    Anything but a submitted job does not wait: who joins a cluster by hand is at the wheel.
    """
    job = job_context()
    if job is None:
        return
    admission = stack.enter_context(
        Admission(
            job.id,
            job.priority,
            submitted=job.submitted,
            max_concurrent=job.max_concurrent,
        )
    )
    yield from admission.wait()


def _words(standing: Standing) -> str:
    working = [
        f"{job_id}, which has held the cluster since {datetime.fromtimestamp(since):%H:%M}"
        for job_id, since in standing.behind
    ]
    behind = f", behind {' and '.join(working)}" if working else ""
    return f"waiting: place {standing.place} of {standing.of}{behind}"
