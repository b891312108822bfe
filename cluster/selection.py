"""The choice of a recipe: candidates are trained and judged by held-out texts, one is taken.

    <run>/candidates/<name>/candidate.json        what it cost; written last
    <run>/candidates/<name>/validation-scores/    what it was judged by
    <run>/candidates/<name>/{models,systems}/     until the choice is made

The model that is taken becomes the run's own, and run.json says what was chosen and why: from then
on the run is one of that recipe. What a candidate cost is read from what it committed, so a choice
that was interrupted goes on to the same end.

Where few texts are held out, candidates are cross-validated (`cross_validation.py`).
"""

from __future__ import annotations

import time
from collections.abc import Generator, Iterator, Mapping, Sequence
from dataclasses import replace
from typing import Any

from cluster.connection import Workplace
from cluster.cross_validation import Part, make_parts, parts_of
from cluster.failures import FAILURES, reason_of
from cluster.manifest import previous_manifest
from cluster.preparation import Preparation, prepare_run
from cluster.resources import Budget
from cluster.stages import base_stage
from cluster.trial import RECORD, Outcome, Trial
from cluster.trial_costs import Costs, takes, training_of_candidate
from gencls_core.config import MIN_HELD_OUT, RunConfig
from gencls_core.datasets import Dataset
from gencls_core.ensemble import FINE_TUNE, companions_of
from gencls_core.errors import counted
from gencls_core.events import Event, Note, StageFinished, StageStarted
from gencls_core.ownership import Lease
from gencls_core.run import RunDirectory
from gencls_core.selection import (
    Candidate,
    Verdict,
    candidates_of,
    is_part_name,
    judge,
    part_name,
)
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
    config = first.asked
    assert config is not None, "the recipe is open"
    parts = parts_of(config, first.dataset) if scores else 0
    reason = why_not_chosen_by(first.dataset)
    if reason is not None and not parts:
        candidates = candidates_of(config)
        yield Note(f"nothing is chosen, recipe {candidates[0].name} is taken: {reason}")
        return replace(first, selection=_untried(config, first, reason))
    first = yield from base_stage(first, place)
    choice = _Choice(first, config, parts, place, lease, scores=scores)
    report = yield from choice.made()
    _clear(first.run, lease)
    taken = next(c for c in candidates_of(config) if c.name == report.chosen)
    settings = taken.applied(config)
    chosen = prepare_run(settings, first.dataset, first.run, budget=first.budget, scores=scores)
    return replace(chosen, asked=config, selection=report)


class _Choice:
    """A choice under way."""

    def __init__(
        self,
        first: Preparation,
        config: RunConfig,
        parts: int,
        place: Workplace,
        lease: Lease,
        *,
        scores: bool,
    ) -> None:
        self._first, self._config = first, config
        self._dataset = first.dataset
        self._place, self._lease = place, lease
        self._candidates = candidates_of(config)
        self._costs = Costs(config, first.dataset, self._candidates, parts)
        self._parts: list[Part] = []
        self._outcomes: dict[str, Outcome] = {}
        self._left_out: dict[str, str] = {}
        self._spent = 0.0
        self._kept_free = 0.0
        """Seconds of the fine-tune that is to stand beside; 0 for none."""
        self._fine_tune_note: str | None = None
        self._wants_fine_tune = scores and _wants_fine_tune(config)

    def made(self) -> Generator[Event, None, SelectionReport]:
        """Try, judge and take one; its model, where there is one already, becomes the run's."""
        began = time.perf_counter()
        config, parts, first = self._config, self._costs.parts, self._candidates[0]
        texts, by = self._dataset.held_out, "held-out texts"
        if parts:
            texts, by = self._dataset.split("train").rows, f"train texts in {parts} parts"
        few = texts < MIN_HELD_OUT
        candidates = self._candidates[:1] if few else self._candidates
        yield StageStarted(
            "choose",
            f"trying up to {counted(len(candidates), 'recipe')} for {config.recipe.budget} in all, "
            f"by {texts:,} {by}",
        )
        if parts and (reason := (yield from self._why_no_parts())):
            yield Note(f"nothing is chosen, recipe {first.name} is taken: {reason}")
            self._adopt(first)
            return _untried(config, self._first, reason)
        for number, candidate in enumerate(candidates):
            yield from self._try(candidate, number)
            if not self._outcomes:
                self._adopt(first)
                return _untried(config, self._first, self._left_out[first.name])
        yield from self._try_beside()
        verdict = judge([outcome.nll for outcome in self._outcomes.values()])
        report = _report(
            config, self._first, self._candidates, self._outcomes, self._left_out, verdict
        )
        changes: dict[str, Any] = {
            "held_out_texts": texts,
            "parts": parts,
            "fine_tune": self._kept_free > 0,
            "fine_tune_note": self._fine_tune_note,
        }
        if few:
            too_few = f"{counted(texts, 'train text')} cannot tell recipes apart"
            changes["reason"] = f"{too_few}, so the first was taken"
        report = report.model_copy(update=changes)
        taken = next(c for c in self._candidates if c.name == report.chosen)
        if not parts or taken == first:
            self._adopt(taken)
        spent = time.perf_counter() - began
        yield StageFinished("choose", f"{report.chosen}: {report.reason}", spent)
        return report

    def _trial(self, name: str, settings: RunConfig, part: Part | None = None) -> Trial:
        system = MODEL_SYSTEMS.get(name)
        if part is None:
            return Trial.of(name, settings, self._first, system=system)
        folder = part_name(part.number, name)
        return Trial.of(folder, settings, self._first, dataset=part.dataset, system=system)

    def _adopt(self, candidate: Candidate) -> None:
        self._trial(candidate.name, candidate.applied(self._config)).adopt(self._lease)

    def _why_no_parts(self) -> Generator[Event, None, str]:
        """Train the first candidate on all train texts, and make the parts if there is time left
        for them; else say why not."""
        candidate = self._candidates[0]
        yield StageStarted("system", f"recipe {candidate.name}, all train texts")
        trial = self._trial(candidate.name, candidate.applied(self._config))
        found = trial.before()
        if not isinstance(found, Outcome):
            found = yield from trial.run(self._place, self._lease)
        self._spent += found.seconds
        needed, left = self._costs.cross_validation(found), self._costs.left(self._spent)
        if needed > left:
            few = why_not_chosen_by(self._dataset)
            return f"{few}; of a cross-validation of the train texts, {takes(needed, left)}"
        self._parts = make_parts(self._first, self._costs.parts, self._lease)
        return ""

    def _try(self, candidate: Candidate, number: int) -> Iterator[Event]:
        """Train and judge a candidate, or say why it is left out."""
        name, outcomes = candidate.name, self._outcomes
        if outcomes:
            needed = self._costs.of_candidate(candidate, outcomes)
            left = self._costs.left(self._spent) - self._kept_free
            if needed > left:
                self._left_out[name] = takes(needed, left)
                yield Note(f"recipe {name} is left out: {self._left_out[name]}")
                return
        yield StageStarted("system", f"recipe {name} ({number + 1} of {len(self._candidates)})")
        try:
            found = yield from self._judged(name, candidate.applied(self._config))
        except FAILURES as error:
            if not outcomes and not self._parts:
                raise
            found = reason_of(error)
        if isinstance(found, str):
            self._left_out[name] = found
            yield Note(f"recipe {name}: {found}")
            return
        outcomes[name] = found
        self._spent += found.seconds
        by = "train texts, each by a model without it" if self._parts else "held-out texts"
        yield StageFinished(
            "system",
            f"recipe {name}: calibrated NLL {found.nll.mean():.3f} and accuracy "
            f"{found.accuracy:.1%} of the {by}",
            found.seconds,
        )
        if len(outcomes) == 1 and self._wants_fine_tune and len(found.labels) >= MIN_HELD_OUT:
            yield from self._keep_free(candidate, found)

    def _keep_free(self, candidate: Candidate, found: Outcome) -> Iterator[Event]:
        """Keep time for a fine-tune beside, where it fits into what is left."""
        needed, left = self._costs.of_fine_tune(candidate, found), self._costs.left(self._spent)
        if needed <= left:
            self._kept_free = needed
        else:
            self._fine_tune_note = takes(needed, left)
            yield Note(f"{system_title(FINE_TUNE)} beside it is left out: {self._fine_tune_note}")

    def _judged(self, name: str, settings: RunConfig) -> Generator[Event, None, Outcome | str]:
        """Train on what is not held out, score what is; or give why it failed before."""
        found = []
        parts: Sequence[Part | None] = self._parts or [None]
        for part in parts:
            trial = self._trial(name, settings, part)
            outcome = trial.before()
            if isinstance(outcome, str) and self._outcomes:
                return outcome
            if not isinstance(outcome, Outcome):
                outcome = yield from trial.run(self._place, self._lease)
            if part is not None:
                trial.drop_models(self._lease)
            found.append(outcome)
        return Outcome.together(found)

    def _try_beside(self) -> Iterator[Event]:
        """Let second systems of an ensemble score the parts, as they will score held-out texts."""
        if not self._parts:
            return
        config = self._candidates[0].applied(self._config)
        names = companions_of(
            config.posterior.ensemble,
            baseline=config.baseline,
            fine_tune=self._kept_free > 0,
            held_out=self._dataset.split("train").rows,
        )
        for name in names:
            if name in MODEL_SYSTEMS:
                settings = config.model_copy(update={"training": self._config.training})
                try:
                    found = yield from self._judged(name, settings)
                except FAILURES as error:
                    if config.posterior.ensemble != "auto":
                        raise
                    found = reason_of(error)
                if isinstance(found, str):
                    self._kept_free, self._fine_tune_note = 0.0, found
                    yield Note(f"{system_title(name)} beside it is left out: {found}")
            else:
                for part in self._parts:
                    yield from part.score_light(name, config, self._lease)


def _wants_fine_tune(config: RunConfig) -> bool:
    return config.posterior.ensemble in (None, "auto")


def _clear(run: RunDirectory, lease: Lease) -> None:
    """Remove models of all candidates, and all of those that were not tried to their end."""
    for folder in children(run.path / "candidates"):
        lease.check()
        if (folder / RECORD).exists():
            remove_tree(folder / "models")
            remove_tree(folder / "systems")
        elif not is_part_name(folder.name):
            remove_tree(folder)


def _key(config: RunConfig, first: Preparation) -> str:
    """Name all that a choice depends on."""
    sections = [config.model, config.sequence, config.training, config.recipe]
    settings = [section.model_dump(mode="json") for section in sections]
    if not parts_of(config, first.dataset):
        del settings[-1]["folds"]
    return digest_of(
        {
            "settings": settings,
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


def _untried(config: RunConfig, first: Preparation, reason: str) -> SelectionReport:
    """Say that the first was taken without a trial."""
    candidates = candidates_of(config)
    return _report(config, first, candidates, {}, {candidates[0].name: reason}, None)


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
            learning_rate=training_of_candidate(candidate, config, first.dataset).learning_rate,
            note=untried if verdict is None else left_out.get(candidate.name, untried),
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
            row = row.model_copy(update={**figures, "note": None})
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
