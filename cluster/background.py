"""The pass of the untrained base model over a run's texts, for `--reject background`."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import ExitStack
from dataclasses import replace
from typing import Any

from cluster.connection import Workplace
from cluster.preparation import Preparation, prepare_run
from cluster.resources import make_plan
from cluster.scorer import Scorer
from cluster.turn import is_missing
from cluster.workload import workload_of
from gencls_core.datasets import Dataset
from gencls_core.errors import GenclsError, ModelError
from gencls_core.events import Event
from gencls_core.ownership import Lease
from gencls_core.run import RunDirectory
from gencls_core.selection import part_name
from gencls_core.selection_report import SelectionReport
from gencls_core.systems.background import Background

__all__ = ["background_missing", "background_stage"]


def background_stage(
    preparation: Preparation,
    source: RunDirectory,
    place: Workplace,
    lease: Lease,
    lease_of_source: Callable[[], Lease],
) -> Iterator[Event]:
    """Score the test texts by the base model, and the held-out texts of the run.

    Args:
        preparation: of the run, or of an evaluation.
        source: the run whose models score.
        place: a Ray to work on.
        lease: ownership of where the test scores go.
        lease_of_source: owns the run where held-out texts lack scores.
    """
    found = _prepared(preparation, source)
    with ExitStack() as actors:
        scorer = Scorer(actors, found, place, ())
        for run, dataset in _held_out(source):
            shards = scorer.compare(run, dataset, "validation")
            if shards.work:
                yield from scorer.score(run, lease_of_source(), dataset, "validation", shards)
        yield from scorer.score(found.run, lease, found.dataset, "test")


def background_missing(preparation: Preparation, source: RunDirectory) -> bool:
    """Say whether the base model has texts to score."""
    try:
        found = _prepared(preparation, source)
    except GenclsError:
        return False  # it is raised where they would be scored
    return is_missing(found, (), found.run, found.dataset, "test") or any(
        is_missing(found, (), run, dataset, "validation") for run, dataset in _held_out(source)
    )


def _prepared(preparation: Preparation, source: RunDirectory) -> Preparation:
    """Prepare scoring by the base that the run started from.

    Raises:
        ModelError: when it is another one by now.
    """
    config, budget = preparation.config, preparation.budget
    own = source.dataset()
    found = prepare_run(config, own, source, system=Background(), budget=budget)
    wanted = _base_digest(preparation, source)
    if found.base.digest != wanted:
        raise ModelError.of(
            "the base model is not the one that the run started from",
            place=found.base.path,
            found=found.base.digest[:12],
            expected=wanted[:12],
            remedy="bring that model back",
        )
    if preparation.run.path == source.path:
        return found
    dataset = preparation.dataset
    work = workload_of(
        config,
        dataset,
        found.system,
        found.precision,
        found.plan.device,
        models=1,
        trainings=0,
        scores=True,
    )
    plan = make_plan(budget, found.size, work, config.compute)
    return replace(found, run=preparation.run, dataset=dataset, plan=plan)


def _base_digest(preparation: Preparation, source: RunDirectory) -> str:
    manifest: dict[str, Any] = source.manifest()
    return str(manifest.get("model", {}).get("digest", preparation.base.digest))


def _held_out(source: RunDirectory) -> Iterator[tuple[RunDirectory, Dataset]]:
    """Give the validation texts of a run, and those of each part of a cross-validation."""
    own = source.dataset()
    if "validation" in own.splits:
        yield source, own
    made = source.manifest().get("selection")
    parts = 0 if made is None else SelectionReport.model_validate(made).parts
    for number in range(parts or 0):
        part = RunDirectory(source.candidate_path(part_name(number)))
        yield part, part.dataset()
