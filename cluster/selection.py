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
from collections.abc import Generator, Mapping, Sequence
from dataclasses import replace

from cluster.connection import Workplace
from cluster.manifest import previous_manifest
from cluster.preparation import Preparation, main_system, prepare_run
from cluster.resources import Budget
from cluster.stages import base_stage
from cluster.trial import FAILURES, RECORD, Outcome, Trial, reason_of
from cluster.workload import training_of
from gencls_core.config import ResolvedTraining, RunConfig
from gencls_core.datasets import Dataset
from gencls_core.ensemble import FINE_TUNE
from gencls_core.errors import counted
from gencls_core.events import Event, Note, StageFinished, StageStarted
from gencls_core.ownership import Lease
from gencls_core.run import RunDirectory
from gencls_core.selection import MIN_HELD_OUT, Candidate, Verdict, candidates_of, judge
from gencls_core.selection_report import SelectionReport, TrialReport
from gencls_core.storage import children, digest_of, remove_tree
from gencls_core.systems.names import system_title
from gencls_core.systems.registry import MODEL_SYSTEMS

__all__ = ["choose_recipe", "first_candidate", "prepare_open", "why_not_chosen_by"]


def first_candidate(config: RunConfig) -> RunConfig:
    """Give the settings to begin with: those of the first candidate where a recipe is chosen."""
    if config.recipe.recipe != "auto":
        return config
    return candidates_of(config)[0].applied(config)


def why_not_chosen_by(dataset: Dataset) -> str | None:
    """Say why no recipe can be chosen by the held-out texts of a dataset; None where one can."""
    held_out = dataset.held_out
    if held_out >= MIN_HELD_OUT:
        return None
    return (
        f"{counted(held_out, 'held-out text')} cannot tell recipes apart: {MIN_HELD_OUT} are "
        "needed (a larger --validation-fraction holds out more)"
    )


def prepare_open(
    config: RunConfig, dataset: Dataset, run: RunDirectory, *, budget: Budget | None, scores: bool
) -> Preparation:
    """Prepare a run that chooses its recipe: with the one that it has chosen, else the first.

    Args:
        config: what is asked for.
        dataset: the prepared texts.
        run: where the results go.
        budget: the nodes to plan for; None measures this machine.
        scores: whether texts are scored, too.
    """

    def prepared(candidate: Candidate) -> Preparation:
        settings = candidate.applied(config)
        found = prepare_run(settings, dataset, run, budget=budget, scores=scores)
        return replace(found, asked=config)

    made = previous_manifest(run).get("selection")
    candidates = candidates_of(config)
    if made is not None:
        report = SelectionReport.model_validate(made)
        for candidate in candidates:
            if candidate.name == report.chosen:
                found = prepared(candidate)
                if report.key == _key(config, found):
                    return replace(found, selection=report)
    return prepared(candidates[0])


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
        yield Note(f"nothing is chosen, recipe {candidates[0].name} is taken: {reason}")
        report = _report(config, first, candidates, {}, {candidates[0].name: reason}, None)
        return replace(first, selection=report)
    first = yield from base_stage(first, place)
    yield StageStarted(
        "choose",
        f"trying up to {len(candidates)} recipes for {config.recipe.budget} in all, by "
        f"{first.dataset.held_out:,} held-out texts",
    )
    trials: dict[str, Trial] = {}
    outcomes: dict[str, Outcome] = {}
    left_out: dict[str, str] = {}
    kept_free = 0.0
    for number, candidate in enumerate(candidates):
        if too_long := _too_long(candidate, outcomes, config, first.dataset, kept_free):
            left_out[candidate.name] = too_long
            yield Note(f"recipe {candidate.name} is left out: {too_long}")
            continue
        yield StageStarted("system", f"recipe {candidate.name} ({number + 1} of {len(candidates)})")
        try:
            trial = Trial.of(candidate, config, first)
            found = trial.before()
            if isinstance(found, str) and outcomes:
                left_out[candidate.name] = found
                continue
            if not isinstance(found, Outcome):
                found = yield from trial.run(place, lease)
        except FAILURES as error:
            if not outcomes:
                raise
            left_out[candidate.name] = reason_of(error)
            yield Note(f"recipe {candidate.name}: {left_out[candidate.name]}")
            continue
        trials[candidate.name], outcomes[candidate.name] = trial, found
        yield StageFinished(
            "system",
            f"recipe {candidate.name}: NLL {found.nll.mean():.3f}, accuracy {found.accuracy:.1%} "
            "of the held-out texts, calibrated",
            found.seconds,
        )
        if len(outcomes) == 1 and _wants_fine_tune(config):
            kept_free = _seconds_of_fine_tune(candidate, found, config, first.dataset)
            if (left := _left(config, outcomes)) < kept_free:
                too_long = _takes(kept_free, left)
                yield Note(f"{system_title(FINE_TUNE)} beside it is left out: {too_long}")
                kept_free = 0.0
    verdict = judge([outcome.nll for outcome in outcomes.values()])
    taken = list(trials.values())[verdict.chosen]
    report = _report(config, first, candidates, outcomes, left_out, verdict)
    report = report.model_copy(update={"fine_tune": kept_free > 0})
    taken.adopt(lease)
    _clear(first.run, lease)
    yield StageFinished("choose", f"{report.chosen}: {report.reason}", time.perf_counter() - began)
    settings = taken.candidate.applied(config)
    chosen = prepare_run(settings, first.dataset, first.run, budget=first.budget, scores=scores)
    return replace(chosen, asked=config, selection=report)


def _clear(run: RunDirectory, lease: Lease) -> None:
    """Remove models of all candidates, and all of those that were not tried to their end."""
    for folder in children(run.path / "candidates"):
        lease.check()
        if (folder / RECORD).exists():
            remove_tree(folder / "models")
            remove_tree(folder / "systems")
        else:
            remove_tree(folder)


def _too_long(
    candidate: Candidate,
    outcomes: Mapping[str, Outcome],
    config: RunConfig,
    dataset: Dataset,
    kept_free: float,
) -> str | None:
    """Say why a candidate does not fit into the budget any more; None where it does.

    What it will take is told from what the most similar one took, by forward passes over tokens.
    That one may have been tried before this process: all follows from what is committed.
    """
    if not outcomes:
        return None
    names = {tried.name: tried for tried in candidates_of(config)}
    like = min(outcomes, key=lambda name: names[name].recipe != candidate.recipe)
    outcome = outcomes[like]
    tokens, epochs = (
        _tokens(candidate, outcome, config),
        _training(candidate, config, dataset).epochs,
    )
    passes = candidate.passes(config.recipe.compared(len(dataset.classes)))
    seconds = _second_a_pass(names[like], outcome, config, dataset)
    needed = seconds * passes * tokens * epochs + outcome.seconds - outcome.train_seconds
    left = _left(config, outcomes) - kept_free
    return None if needed <= left else _takes(needed, left)


def _tokens(candidate: Candidate, outcome: Outcome, config: RunConfig) -> float:
    """Give the tokens of an average text that a candidate learns from."""
    tokens_N = outcome.num_tokens
    if candidate.recipe == "joint":
        tokens_N = tokens_N.clip(max=config.recipe.tuned_tokens)
    return float(tokens_N.mean())


def _second_a_pass(
    candidate: Candidate, outcome: Outcome, config: RunConfig, dataset: Dataset
) -> float:
    """Give the seconds of a forward pass of training over a token of every train text."""
    passes = candidate.passes(config.recipe.compared(len(dataset.classes)))
    return outcome.train_seconds / (passes * _tokens(candidate, outcome, config) * outcome.epochs)


def _wants_fine_tune(config: RunConfig) -> bool:
    return config.posterior.ensemble in (None, "auto")


def _seconds_of_fine_tune(
    candidate: Candidate, outcome: Outcome, config: RunConfig, dataset: Dataset
) -> float:
    """Estimate what a discriminative fine-tune would take, from what a candidate took.

    A step forward and backward costs three forward passes, over all of a text.
    """
    epochs = training_of(config, dataset, MODEL_SYSTEMS[FINE_TUNE]).epochs
    work = 3.0 * float(outcome.num_tokens.mean()) * epochs
    scoring = (outcome.seconds - outcome.train_seconds) / len(dataset.classes)
    return _second_a_pass(candidate, outcome, config, dataset) * work + scoring


def _left(config: RunConfig, outcomes: Mapping[str, Outcome]) -> float:
    return config.recipe.budget_seconds - sum(done.seconds for done in outcomes.values())


def _takes(needed: float, left: float) -> str:
    from gencls_core.report.words import duration

    return f"it would take about {duration(needed)}, and {duration(max(left, 0.0))} were left"


def _training(candidate: Candidate, config: RunConfig, dataset: Dataset) -> ResolvedTraining:
    settings = candidate.applied(config)
    return training_of(settings, dataset, main_system(settings))


def _key(config: RunConfig, first: Preparation) -> str:
    """Name all that a choice depends on."""
    sections = [config.model, config.sequence, config.training, config.recipe]
    return digest_of(
        {
            "settings": [section.model_dump(mode="json") for section in sections],
            "class_words": config.systems.class_words,
            "candidates": [candidate.name for candidate in candidates_of(config)],
            "classes": first.dataset.classes,
            # The test texts have no part in it.
            "texts": [
                info.fingerprint for name, info in first.dataset.splits.items() if name != "test"
            ],
            "base": first.base.digest,
            "precision": first.precision,
            # Its time is kept free before other recipes are tried.
            **({} if _wants_fine_tune(config) else {"fine_tune": False}),
        }
    )


def _report(
    config: RunConfig,
    first: Preparation,
    candidates: Sequence[Candidate],
    outcomes: Mapping[str, Outcome],
    left_out: Mapping[str, str],
    verdict: Verdict | None,
) -> SelectionReport:
    rows: list[TrialReport] = []
    tried = list(outcomes)
    for candidate in candidates:
        untried = "not tried" if rows else None  # the first is taken
        row = TrialReport(
            name=candidate.name,
            recipe=candidate.recipe,
            learning_rate=_training(candidate, config, first.dataset).learning_rate,
            note=untried if verdict is None else left_out.get(candidate.name),
        )
        if verdict is not None and candidate.name in outcomes:
            number, outcome = tried.index(candidate.name), outcomes[candidate.name]
            figures = {
                "nll": verdict.means[number],
                "above_best": verdict.differences[number],
                "standard_error": verdict.errors[number],
                "accuracy": outcome.accuracy,
                "train_seconds": outcome.train_seconds,
                "seconds": outcome.seconds,
            }
            row = row.model_copy(update=figures)
        rows.append(row)
    chosen = candidates[0].name if verdict is None else tried[verdict.chosen]
    rates = {candidate.name: candidate.learning_rate for candidate in candidates}
    return SelectionReport(
        key=_key(config, first),
        budget_seconds=config.recipe.budget_seconds,
        held_out_texts=first.dataset.held_out,
        chosen=chosen,
        rate_chosen=rates[chosen] is not None,
        reason=_reason(tried, left_out, verdict),
        trials=rows,
    )


def _reason(tried: Sequence[str], left_out: Mapping[str, str], verdict: Verdict | None) -> str:
    if verdict is None:
        return f"{next(iter(left_out.values()))}, so the first was taken"
    if len(tried) == 1:
        failed = any(reason.startswith("it failed") for reason in left_out.values())
        return "no other could be trained" if failed else "the budget left time for no other"
    if verdict.chosen == verdict.best:
        return f"the lowest held-out NLL of {len(tried)} that were tried"
    return (
        f"its held-out NLL cannot be told from the lowest, that of {tried[verdict.best]} "
        f"({verdict.differences[verdict.chosen]:.3f} ± {verdict.errors[verdict.chosen]:.3f} nats "
        f"above it), and it comes first of {len(tried)} that were tried"
    )
