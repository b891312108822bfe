"""Whose turn it is: Ray runs every submitted job at once, gencls lets a few at a time work.

A job's driver starts at once and reads its data; before it takes CPUs or GPUs it stands in line.
The line is kept by one named actor of the cluster that outlives the jobs. Higher priority goes
first, then who was submitted first; nobody who works is interrupted. Drivers report every few
seconds, and one that is silent for 15 s has lost its place: a killed driver blocks nobody.
"""

from __future__ import annotations

import contextlib
import os
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import ExitStack
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from cluster.errors import ClusterError
from cluster.job_context import job_context, secrets_of_job
from cluster.line import ACTOR, NAMESPACE, SILENCE_SECONDS, Standing
from gencls_core.events import Event, Note

__all__ = ["Admission", "Waiting", "wait_for_turn"]

BEAT_SECONDS = 2.0
LOST_SECONDS = 120.0
"""After so long without an answer from the actor, a waiting job gives up."""
START_SECONDS = 90.0
"""For a process that imports Ray on a busy machine, joins the cluster and starts the actor."""


@dataclass(frozen=True)
class Waiting(Note):
    """A job waits for its turn."""

    place: int
    of: int


def _line_actor() -> Any:
    """Give the cluster's line; starts it where there is none.

    It is started by a process of its own: an actor that a job started would keep that job's
    package, code and secrets on the cluster for as long as it lives, and it outlives every job.

    Raises:
        ClusterError: when it cannot be started.
    """
    import ray

    with contextlib.suppress(ValueError):
        return ray.get_actor(ACTOR, namespace=NAMESPACE)
    address = ray.get_runtime_context().gcs_address
    ours = ("GENCLS_", "RAY_JOB_", "RAY_RUNTIME_ENV")
    secret = secrets_of_job()
    environment = {
        name: value
        for name, value in os.environ.items()
        if name not in secret and not name.startswith(ours)
    }
    code = "import sys; sys.path.insert(0, sys.argv[1]); from cluster.line import start; "
    code += "del sys.path[0]; start(sys.argv[2])"
    # Ray hands this process's folder to the actor as a place of code: `/` holds none.
    try:
        done = subprocess.run(
            [sys.executable, "-c", code, str(Path(__file__).parent.parent), address],
            cwd="/",
            env={**environment, "RAY_ADDRESS": address},
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            errors="replace",
            timeout=START_SECONDS,
            # Ctrl-C is this process's to heed.
            start_new_session=True,
        )
    except subprocess.TimeoutExpired:
        raise _not_started(
            address,
            f"the process that joins the cluster and starts it had not ended after "
            f"{START_SECONDS:g} s",
        ) from None
    if done.returncode:
        raise _not_started(address, (done.stderr.strip().splitlines() or ["no word"])[-1])
    return ray.get_actor(ACTOR, namespace=NAMESPACE)


def _not_started(address: str, found: str) -> ClusterError:
    return ClusterError.of(
        "the cluster's queue could not be started",
        place=address,
        found=found,
        remedy="look at the cluster (`gencls cluster status`), then submit again",
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
        self._trouble = ""
        """Why the actor did not answer when it was asked last."""
        self._answered = time.monotonic()
        self._changed = threading.Event()
        self._done = threading.Event()
        self._line: Any = _line_actor()
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
        # A cluster that has gone needs no telling, and one that does not hear notices the silence.
        with contextlib.suppress(Exception):
            ray.get(self._line.leave.remote(self._job_id), timeout=5)

    def wait(self) -> Iterator[Event]:
        """Give a note whenever the place changes; ends when the job may work.

        Raises:
            ClusterError: when the line does not answer any more.
        """
        told: tuple[Any, ...] | None = None
        worried = False
        while True:
            self._changed.wait(timeout=1.0)
            self._changed.clear()
            standing = self._standing
            if standing is not None and standing.admitted:
                if told is not None:
                    yield Note("it is this job's turn")
                return
            silence = time.monotonic() - self._answered
            if silence > LOST_SECONDS:
                raise ClusterError.of(
                    "the cluster's queue does not answer",
                    found=f"no word for {LOST_SECONDS:.0f} s; {self._trouble}",
                    remedy="look at the cluster (`gencls cluster status`), then submit again",
                )
            if silence > SILENCE_SECONDS and not worried:
                yield Note(
                    f"the cluster's queue has not answered for {silence:.0f} s "
                    f"({self._trouble or 'no word'}); trying for {LOST_SECONDS:.0f} s"
                )
            worried = silence > SILENCE_SECONDS
            if standing is None:
                continue
            shown = (standing.place, standing.of, standing.behind)
            if shown != told:
                told = shown
                yield Waiting(_words(standing), standing.place, standing.of)

    def _beat(self) -> None:
        """Run in a thread of the driver: say that it lives, and learn where it stands."""
        while True:
            try:
                self._ask()
            # Whatever it is: a thread that ended here would lose the place of a job that works.
            except Exception as error:
                self._trouble = (
                    f"{type(error).__name__}: {str(error).strip().partition(chr(10))[0]}"
                )
                self._line = None
            if self._done.wait(BEAT_SECONDS):
                return

    def _ask(self) -> None:
        import ray

        if self._line is None:
            self._line = _line_actor()
        call = self._line.stand.remote(self._job_id, self._priority, self._submitted, self._since)
        standing = Standing(**ray.get(call, timeout=SILENCE_SECONDS))
        self._answered = time.monotonic()
        if standing.admitted and self._since is None:
            self._since = dict(standing.behind).get(self._job_id, time.time())
        self._standing = standing
        self._changed.set()


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
