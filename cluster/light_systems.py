"""Light systems as Ray tasks: each learns, scores and commits in one go."""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from cluster.connection import Workplace
from gencls_core.errors import counted
from gencls_core.events import Event, Note, StageFinished, StageStarted
from gencls_core.ownership import Fence, Lease
from gencls_core.remote_path import Location
from gencls_core.run import RunDirectory
from gencls_core.systems import System
from gencls_core.systems.commit import commit_system, targets_of

__all__ = ["LightWork", "light_stage"]

ATTEMPTS = 3


@dataclass(frozen=True)
class LightWork:
    """A system to be trained and scored on the texts of a run."""

    run: RunDirectory
    system: System
    lease: Lease
    name: str
    """Names system and run in messages."""


def light_stage(pieces: Sequence[LightWork], place: Workplace) -> Iterator[Event]:
    """Train and score light systems, side by side.

    Raises:
        GenclsError: when one refuses, or its worker died ATTEMPTS times.
    """
    if not pieces:
        return
    began = time.perf_counter()
    what = counted(len(pieces), "light system")
    yield StageStarted("systems", f"training {what}", len(pieces))
    place.need()
    yield from _train(pieces)
    yield StageFinished("systems", f"{what} trained", time.perf_counter() - began)


def _train(pieces: Sequence[LightWork]) -> Iterator[Event]:
    import ray

    from cluster.channel import CRASHES, failure_of

    # Tried again by us, under a new fence.
    remote = ray.remote(_score).options(num_cpus=1, max_retries=0)
    waiting = deque((piece, 1) for piece in pieces)
    pending: dict[Any, tuple[LightWork, Fence, int]] = {}
    while waiting or pending:
        while waiting:
            piece, attempt = waiting.popleft()
            fence = piece.lease.fence(f"system-{piece.system.name}")
            task = remote.remote(piece.system, piece.run.path, fence)
            pending[task] = (piece, fence, attempt)
        done, _ = ray.wait(list(pending), num_returns=1)
        for task in done:
            piece, fence, attempt = pending.pop(task)
            try:
                ray.get(task)
            except CRASHES as error:
                piece.lease.retire(fence)
                if attempt == ATTEMPTS:
                    raise failure_of(error, piece.name) from error
                yield Note(f"{piece.name}: its worker died; trying again")
                waiting.append((piece, attempt + 1))
            except Exception as error:
                raise failure_of(error, piece.name) from error


def _score(system: System, folder: Location, fence: Fence) -> None:
    """Run in a Ray worker."""
    run = RunDirectory(folder)
    dataset = run.dataset()
    commit_system(system, dataset, targets_of(run, dataset), fence)
