"""Several runs on the same test texts: the light systems that are missing, then the comparison."""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Iterator, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from typing import Any

from cluster.connection import Workplace
from cluster.run_folder import owned
from gencls_core.config import ComputeConfig
from gencls_core.datasets.dataset import Dataset
from gencls_core.errors import UsageError, counted
from gencls_core.events import Event, Note, StageFinished, StageStarted
from gencls_core.ownership import Fence, Lease
from gencls_core.remote_path import Location, uri_of
from gencls_core.run import RunDirectory
from gencls_core.scores import ScoreStore
from gencls_core.systems import System
from gencls_core.systems.commit import commit_system, is_committed
from gencls_core.systems.registry import light_system

__all__ = ["compare"]

ATTEMPTS = 3


@dataclass(frozen=True)
class _Piece:
    """A system to be trained and scored on the texts of a run."""

    run: RunDirectory
    system: System
    lease: Lease

    @property
    def name(self) -> str:
        return f"{self.system.name} on {uri_of(self.run.path)}"


def compare(
    runs: Sequence[Location],
    systems: Sequence[str],
    others: Sequence[Location],
    output: Location,
    compute: ComputeConfig,
) -> Iterator[Event]:
    """Compare every system in some runs; the last event's message is the folder of the report.

    Args:
        runs: run directories with the same test texts.
        systems: light systems that every run is to have; those that are missing are trained.
        others: folders of comparisons on other test texts.
        output: where the report goes.
        compute: what Ray may use.

    Raises:
        DataError: when the test texts cannot tell systems apart.
        StoreError: when a directory is no run or no comparison, or its scores are not whole.
        UsageError: when a system is not known, or runs were not scored on the same texts.
    """
    for name in systems:
        light_system(name)
    directories = [RunDirectory(path) for path in runs]
    if len({uri_of(path) for path in runs}) < len(runs):
        raise UsageError.of("the same run twice", found=", ".join(uri_of(path) for path in runs))
    from gencls_core.comparison import compare_runs, publish_comparison, read_comparison

    elsewhere = [read_comparison(path) for path in others]
    for run in directories:
        run.manifest()
    with ExitStack() as stack:
        yield from _complete(stack, directories, systems, compute)
    began = time.perf_counter()
    yield StageStarted("compare", "drawing texts again, 2,000 times for every system")
    comparison = compare_runs(directories, elsewhere)
    publish_comparison(comparison, output)
    yield StageFinished("compare", uri_of(output), time.perf_counter() - began)


def _complete(
    stack: ExitStack,
    runs: Sequence[RunDirectory],
    names: Sequence[str],
    compute: ComputeConfig,
) -> Iterator[Event]:
    """Train and score the light systems that runs lack."""
    began = time.perf_counter()
    pieces = []
    for run in runs:
        dataset = run.dataset()
        seed = run.manifest()["config"]["data"]["split_seed"]
        wanted = [light_system(name, seed) for name in names]
        missing = [s for s in wanted if not is_committed(s, dataset, run.scores)]
        if missing:
            lease = stack.enter_context(owned(run, "compare"))
            pieces += [_Piece(run, system, lease) for system in missing]
    if not pieces:
        return
    yield StageStarted("systems", f"training {counted(len(pieces), 'light system')}", len(pieces))
    place = Workplace(stack, compute)
    place.need()
    yield from _train(pieces)
    yield StageFinished("systems", f"{len(pieces)} trained", time.perf_counter() - began)


def _train(pieces: Sequence[_Piece]) -> Iterator[Event]:
    import ray

    from cluster.channel import CRASHES, failure_of

    # Tried again by us, under a new fence.
    remote = ray.remote(_score).options(num_cpus=1, max_retries=0)
    waiting = deque((piece, 1) for piece in pieces)
    pending: dict[Any, tuple[_Piece, Fence, int]] = {}
    while waiting or pending:
        while waiting:
            piece, attempt = waiting.popleft()
            fence = piece.lease.fence(f"system-{piece.system.name}")
            run = piece.run
            task = remote.remote(piece.system, run.dataset_path, run.scores.path, fence)
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
            else:
                yield Note(f"{piece.name}: scored")


def _score(system: System, dataset: Location, store: Location, fence: Fence) -> None:
    """Run in a Ray worker."""
    commit_system(system, Dataset.open(dataset), ScoreStore(store), fence)
