"""The choice of a recipe: candidates are trained and judged by held-out texts, one is taken.

    <run>/candidates/<name>/candidate.json        what it cost; written last
    <run>/candidates/<name>/validation-scores/    what it was judged by
    <run>/candidates/<name>/{models,systems}/     until the choice is made

The model that is taken becomes the run's own, and run.json says what was chosen and why: from then
on the run is one of that recipe. What a candidate cost is read from what it committed, so a choice
that was interrupted goes on to the same end.
"""

from __future__ import annotations

import time
from collections.abc import Generator, Sequence
from dataclasses import replace

from cluster.connection import Workplace
from cluster.manifest import previous_manifest
from cluster.preparation import Preparation, main_system, prepare_run
from cluster.stages import base_stage
from cluster.trial import Trial
from cluster.workload import training_of
from gencls_core.config import RunConfig
from gencls_core.datasets import Dataset
from gencls_core.errors import counted
from gencls_core.events import Event, StageFinished, StageStarted
from gencls_core.ownership import Lease
from gencls_core.selection import MIN_HELD_OUT, Candidate, Verdict, candidates_of, judge
from gencls_core.selection_report import SelectionReport, TrialReport
from gencls_core.storage import digest_of, remove_tree

__all__ = ["as_chosen_before", "choose_recipe", "first_candidate", "why_not_chosen_by"]


def first_candidate(config: RunConfig) -> RunConfig:
    """Give the settings to begin with: those of the first candidate where a recipe is chosen."""
    if config.recipe.recipe != "auto":
        return config
    return candidates_of(config)[0].applied(config)


def why_not_chosen_by(dataset: Dataset) -> str | None:
    """Say why no recipe can be chosen by the held-out texts of a dataset; None where one can."""
    held_out = dataset.splits["validation"].rows if "validation" in dataset.splits else 0
    if held_out >= MIN_HELD_OUT:
        return None
    return (
        f"{counted(held_out, 'held-out text')} cannot tell recipes apart: {MIN_HELD_OUT} are needed"
    )


def as_chosen_before(config: RunConfig, first: Preparation, *, scores: bool) -> Preparation:
    """Give the run with the recipe that was chosen under the same conditions, else as it is.

    Args:
        config: what is asked for: a run that chooses its recipe.
        first: the run with its first candidate.
        scores: whether texts are scored, too.
    """
    open_choice = replace(first, asked=config)
    made = previous_manifest(first.run).get("selection")
    if made is None:
        return open_choice
    report = SelectionReport.model_validate(made)
    chosen = {candidate.name: candidate for candidate in candidates_of(config)}.get(report.chosen)
    if chosen is None or report.key != _key(config, first):
        return open_choice
    return _chosen(chosen, open_choice, report, scores=scores)


def choose_recipe(
    first: Preparation, place: Workplace, lease: Lease, *, scores: bool
) -> Generator[Event, None, Preparation]:
    """Try candidates while the budget lasts, take one, and make its models the run's own.

    Args:
        first: the run with its first candidate, and what was asked for.
        place: where work is done.
        lease: the ownership of the run.
        scores: whether texts are scored, too.
    """
    began = time.perf_counter()
    config = first.asked
    assert config is not None, "the recipe is open"
    candidates = candidates_of(config)
    reason = why_not_chosen_by(first.dataset)
    if reason is not None:
        yield StageFinished("choose", f"{candidates[0].name}: {reason}", 0.0)
        report = _report(config, first, candidates, [], [reason] * len(candidates), None)
        return replace(first, selection=report)
    first = yield from base_stage(first, place)
    yield StageStarted(
        "choose",
        f"trying up to {len(candidates)} recipes for {config.recipe.budget} in all, by "
        f"{first.dataset.splits['validation'].rows:,} held-out texts",
    )
    trials: list[Trial] = []
    left_out: list[str] = [""] * len(candidates)
    for number, candidate in enumerate(candidates):
        trial = Trial.of(candidate, config, first)
        spent = sum(done.seconds for done in trials)
        if trials and (too_long := _too_long(trial, trials, spent, config)):
            left_out[number] = too_long
            continue
        yield StageStarted("system", f"recipe {candidate.name} ({number + 1} of {len(candidates)})")
        trial = yield from trial.run(place, lease)
        trials.append(trial)
    verdict = judge([trial.nll for trial in trials])
    taken = trials[verdict.chosen]
    report = _report(config, first, candidates, trials, left_out, verdict)
    lease.check()
    taken.adopt(first.run)
    for trial in trials:
        remove_tree(trial.preparation.run.models_of(trial.preparation.system.name))
    yield StageFinished(
        "choose", f"{taken.candidate.name}: {report.reason}", time.perf_counter() - began
    )
    return _chosen(taken.candidate, first, report, scores=scores)


def _chosen(
    candidate: Candidate, first: Preparation, report: SelectionReport, *, scores: bool
) -> Preparation:
    assert first.asked is not None, "the recipe was open"
    found = prepare_run(
        candidate.applied(first.asked), first.dataset, first.run, budget=first.budget, scores=scores
    )
    return replace(found, asked=first.asked, selection=report)


def _too_long(trial: Trial, trials: Sequence[Trial], spent: float, config: RunConfig) -> str | None:
    """Say why a candidate does not fit into the budget any more; None where it does.

    What it will take is told from the candidate that is most like it: by forward passes, as the
    first one's texts went.
    """
    from gencls_core.report.words import duration

    left = config.recipe.budget_seconds - spent
    if trial.is_done:
        needed = trial.seconds
    else:
        like = min(trials, key=lambda done: done.candidate.recipe != trial.candidate.recipe)
        ratio = trial.passes * trial.preparation.training.epochs / (like.passes * like.epochs)
        needed = like.train_seconds * ratio + like.seconds - like.train_seconds
    if needed <= left:
        return None
    return f"it would take about {duration(needed)}, and {duration(max(left, 0.0))} were left"


def _key(config: RunConfig, first: Preparation) -> str:
    """Name all that a choice depends on."""
    sections = [config.model, config.sequence, config.training, config.recipe]
    return digest_of(
        {
            "settings": [section.model_dump(mode="json") for section in sections],
            "class_words": config.systems.class_words,
            "candidates": [candidate.name for candidate in candidates_of(config)],
            "texts": first.dataset.fingerprint,
            "base": first.base.digest,
            "precision": first.precision,
        }
    )


def _report(
    config: RunConfig,
    first: Preparation,
    candidates: Sequence[Candidate],
    trials: Sequence[Trial],
    left_out: Sequence[str],
    verdict: Verdict | None,
) -> SelectionReport:
    tried = {trial.candidate.name: number for number, trial in enumerate(trials)}
    rows = []
    for candidate, note in zip(candidates, left_out, strict=True):
        rate = _rate(candidate, config, first)
        row = TrialReport(
            name=candidate.name, recipe=candidate.recipe, learning_rate=rate, note=note or None
        )
        if verdict is not None and candidate.name in tried:
            number = tried[candidate.name]
            trial = trials[number]
            row = row.model_copy(
                update={
                    "nll": verdict.means[number],
                    "above_best": verdict.differences[number],
                    "standard_error": verdict.errors[number],
                    "accuracy": trial.accuracy,
                    "train_seconds": trial.train_seconds,
                    "seconds": trial.seconds,
                }
            )
        rows.append(row)
    chosen = candidates[0] if verdict is None else trials[verdict.chosen].candidate
    return SelectionReport(
        key=_key(config, first),
        budget_seconds=config.recipe.budget_seconds,
        held_out_texts=len(trials[0].nll) if trials else 0,
        chosen=chosen.name,
        reason=_reason(trials, left_out, verdict),
        trials=rows,
    )


def _rate(candidate: Candidate, config: RunConfig, first: Preparation) -> float:
    settings = candidate.applied(config)
    return training_of(settings, first.dataset, main_system(settings)).learning_rate


def _reason(trials: Sequence[Trial], left_out: Sequence[str], verdict: Verdict | None) -> str:
    if verdict is None:
        return f"{left_out[0]}, so the first was taken"
    if len(trials) == 1:
        return "the budget left time for no other"
    if verdict.chosen == verdict.best:
        return f"the lowest held-out NLL of {len(trials)} that were tried"
    best = trials[verdict.best].candidate.name
    return (
        f"its held-out NLL cannot be told from the lowest, that of {best} "
        f"({verdict.differences[verdict.chosen]:.3f} ± {verdict.errors[verdict.chosen]:.3f} nats "
        f"above it), and it comes first of {len(trials)} that were tried"
    )
