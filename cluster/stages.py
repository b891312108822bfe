"""Stages of a run, each a stream of events: base, train, baseline, report. Scoring: `scorer.py`."""

from __future__ import annotations

import time
from collections.abc import Generator, Iterator, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING

from cluster.companions import companions
from cluster.connection import Workplace
from cluster.placement import memory_share
from cluster.preparation import Preparation
from gencls_core.config import RunConfig
from gencls_core.datasets import Dataset
from gencls_core.errors import counted
from gencls_core.events import ClassReused, Event, StageFinished, StageStarted
from gencls_core.model_source import ResolvedModel
from gencls_core.ownership import Lease
from gencls_core.remote_path import uri_of
from gencls_core.run import CLASS_LM, RunDirectory
from gencls_core.storage import children, remove_tree
from gencls_core.systems.names import BASELINE, system_title

if TYPE_CHECKING:
    from gencls_core.systems import System
    from gencls_core.systems.commit import Target

__all__ = [
    "base_stage",
    "baseline_stage",
    "light_stage",
    "report_stage",
    "score_here",
    "train_stage",
]


def base_stage(preparation: Preparation, place: Workplace) -> Generator[Event, None, Preparation]:
    """Make a base model from scratch where the run wants one that does not exist yet.

    Gives the preparation with the base as it is then.
    """
    if not preparation.must_build_base:
        return preparation
    base = preparation.base
    # Another system of the same run may have made it since the preparation.
    if ResolvedModel.of_staged(base.name, base.path) is None:
        yield from _make_base(preparation, place)
    made = ResolvedModel.of_staged(base.name, base.path)
    assert made is not None, "it was published, or making it raised"
    return replace(preparation, base=replace(made, digest=base.digest))


def _make_base(preparation: Preparation, place: Workplace) -> Iterator[Event]:
    import ray

    from cluster.channel import failure_of
    from gencls_core.scratch import build_scratch_base

    began = time.perf_counter()
    base = preparation.base
    yield StageStarted("base", f"making {base.name}: tokenizer and start weights")
    place.need()
    build = ray.remote(build_scratch_base).options(num_cpus=1)
    try:
        ray.get(
            build.remote(
                base.name,
                preparation.dataset.path,
                preparation.config.training.seed,
                base.path,
            )
        )
    except Exception as error:
        raise failure_of(error, "making the base model") from error
    yield StageFinished("base", f"{base.name} made", time.perf_counter() - began)


def train_stage(preparation: Preparation, place: Workplace, lease: Lease) -> Iterator[Event]:
    """Train the models that are not committed; nothing where the system has none of its own."""
    if preparation.system.objective is None:
        return
    began = time.perf_counter()
    tasks = preparation.training_tasks()
    wanted = preparation.wanted_models()
    system, run = preparation.system, preparation.run
    what = "class model" if system.name == CLASS_LM else f"{system.name} model"
    todo = {task.class_name for task in tasks}
    reused = [name for _, name in wanted if name not in todo]
    for name in reused:
        yield ClassReused(name, preparation.digest_of(name))
    if not tasks:
        yield StageStarted(
            "train",
            f"nothing to train: {counted(len(wanted), what)} committed",
            len(wanted),
            len(reused),
        )
        return
    plan = preparation.plan
    if preparation.is_main:
        run.drop_report()
    for task in tasks:
        # Scores of the model that is about to be replaced, and what was made of them, must not
        # outlive it.
        for store in (run.scores, run.validation_scores):
            for name in (task.class_name,) if task.class_name else task.classes:
                store.drop(system.name, name)
    yield StageStarted(
        "train",
        f"training {counted(len(tasks), what)} of {len(wanted)}, "
        f"{min(plan.concurrent_trainings, len(tasks))} at once",
        len(wanted),
        len(reused),
    )
    place.need()
    from cluster.training import train_classes

    base = place.reachable(preparation.base, run)
    yield from train_classes(
        [replace(task, base=base) for task in tasks],
        preparation.dataset.path,
        plan,
        lease,
        memory_share(
            preparation.budget.nodes,
            plan.concurrent_trainings,
            plan.cpus_per_training,
            plan.memory_per_training,
        ),
    )
    for leftover in children(run.models_of(system.name)):
        if leftover.name.startswith("."):
            remove_tree(leftover)
    yield StageFinished(
        "train", f"{counted(len(tasks), what)} trained", time.perf_counter() - began
    )


def baseline_stage(preparation: Preparation, lease: Lease) -> Iterator[Event]:
    """Score baseline and light second systems of an ensemble where that is not committed.

    The second system scores the held-out texts, too, by which it is weighted.
    """
    yield from light_stage(
        preparation.config, preparation.dataset, preparation.run, companions(preparation), lease
    )


def light_stage(
    config: RunConfig, dataset: Dataset, run: RunDirectory, beside: Sequence[str], lease: Lease
) -> Iterator[Event]:
    """Do so with nothing prepared: the second systems of an ensemble are given."""
    from gencls_core.systems.commit import targets_of
    from gencls_core.systems.registry import LIGHT_SYSTEMS, light_system

    wanted = dict.fromkeys([*([BASELINE] if config.baseline else []), *beside])
    for name in wanted:
        if name in LIGHT_SYSTEMS:
            system = light_system(name, config.data.seed_of_sample, config.systems)
            targets = targets_of(run, dataset, held_out=name in beside)
            yield from score_here(system, dataset, targets, lease)


def score_here(
    system: System, dataset: Dataset, targets: Sequence[Target], lease: Lease
) -> Iterator[Event]:
    """Let a light system learn from a dataset and score what is not committed, in this process."""
    from gencls_core.systems.commit import commit_system

    lease.check()
    began = time.perf_counter()
    if commit_system(system, dataset, targets):
        yield StageFinished(
            "baseline", f"{system_title(system.name)} scored", time.perf_counter() - began
        )


def report_stage(
    config: RunConfig, run: RunDirectory, models_of: RunDirectory | None
) -> Iterator[Event]:
    """Write the report; the event's message is its folder."""
    from gencls_core.report.build import build_report

    began = time.perf_counter()
    posterior = config.posterior
    build_report(
        run,
        prior=posterior.prior,
        ensemble=posterior.ensemble,
        costs=posterior.costs,
        models_of=models_of,
    )
    yield StageFinished("report", uri_of(run.report_path), time.perf_counter() - began)
