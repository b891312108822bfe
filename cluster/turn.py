"""A submitted job's turn: what it waits for, and what it lets go of meanwhile.

Whether there is work is told from what is committed: a job that finds all of it committed takes no
CPU and no GPU, so it does not wait. One that waits, which may be for hours, does not own its run:
another driver may work on it. When it is its turn it owns the run again and plans anew, from the
nodes, the data and the commits that are there then.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Generator, Iterator, Sequence
from contextlib import ExitStack
from typing import TypeVar

from cluster.job_context import job_context
from cluster.preparation import Preparation
from cluster.queue import wait_for_turn
from gencls_core.class_models import ClassModel
from gencls_core.datasets.dataset import Dataset, SplitName
from gencls_core.errors import StoreError
from gencls_core.events import Event, Note, StageStarted
from gencls_core.ownership import await_silent_owner
from gencls_core.remote_path import Location
from gencls_core.run import RunDirectory
from gencls_core.shard_work import shard_work

__all__ = ["has_work", "in_turn", "is_missing"]

Entered = TypeVar("Entered")


def in_turn(
    stack: ExitStack,
    runs: Sequence[Location],
    enter: Callable[[ExitStack], Entered],
    works: Callable[[Entered], bool],
) -> Generator[Event, None, tuple[Entered, float]]:
    """Enter a run when it is this job's turn; gives what was entered, and the seconds of waiting.

    Args:
        stack: gives the place in the queue back when it ends, and lets the run go after that.
        runs: run directories, whose owners are waited for where they seem dead.
        enter: owns the run until the stack that it is given ends, and plans.
        works: says whether what was entered has anything to do that takes CPUs or GPUs.
    """
    # Before Ray in the order of endings: the run is let go when nothing works on it any more.
    holding = stack.enter_context(ExitStack())
    yield from _await_owners(runs)
    entered = enter(holding)
    if job_context() is None or not works(entered):
        return entered, 0.0
    asked, waited = time.perf_counter(), False
    for event in wait_for_turn(stack):
        holding.close()
        waited = True
        yield event
    seconds = time.perf_counter() - asked
    if waited:
        yield StageStarted("prepare", "reading the data again: the run may have changed meanwhile")
        yield from _await_owners(runs)
        entered = enter(holding)
    return entered, seconds


def _await_owners(runs: Sequence[Location]) -> Iterator[Event]:
    for run in runs:
        for message in await_silent_owner(run):
            yield Note(message)


def has_work(preparation: Preparation, *, score: bool) -> bool:
    """Say whether a run has anything to train or, with `score`, to score."""
    if preparation.must_choose or preparation.must_build_base or preparation.training_tasks():
        return True
    if not score:
        return False
    try:
        models = preparation.trained_models()
    except StoreError:
        return True  # `--class-id` trained some of them only
    run, dataset = preparation.run, preparation.dataset
    return any(is_missing(preparation, models, run, dataset, s) for s in preparation.splits)


def is_missing(
    preparation: Preparation,
    models: tuple[ClassModel, ...],
    run: RunDirectory,
    dataset: Dataset,
    split: SplitName,
) -> bool:
    """Say whether some shard of a split is not committed in `run`, or not as it was committed."""
    job = preparation.scoring_job(models)
    # The records come first: where one is missing, no shard need be read.
    checks = (False, True) if preparation.config.compute.check_scores else (False,)
    return any(shard_work(job, dataset, split, run, check=check).work for check in checks)
