"""A choice of a recipe under way: what is tried, by which texts, and what comes of it."""

from __future__ import annotations

import time
from collections.abc import Generator, Iterator, Sequence
from dataclasses import replace

from cluster.choice_report import choice_report, untried, wants_fine_tune
from cluster.companions import companions
from cluster.connection import Workplace
from cluster.cross_validation import MOST_TEXTS, Part, find_parts, judging_texts, make_parts
from cluster.failures import FAILURES, LASTING, reason_of
from cluster.preparation import Preparation
from cluster.trial import Outcome, Trial
from cluster.trial_costs import Costs, takes
from gencls_core.config import MIN_HELD_OUT, RunConfig
from gencls_core.datasets import Dataset
from gencls_core.ensemble import FINE_TUNE, companions_of
from gencls_core.errors import GenclsError, ResourceError, TrainingError, counted
from gencls_core.events import Event, Note, StageFinished, StageStarted
from gencls_core.ownership import Lease
from gencls_core.selection import Candidate, candidates_of, part_name
from gencls_core.selection_report import SelectionReport
from gencls_core.systems.names import system_title
from gencls_core.systems.registry import MODEL_SYSTEMS

__all__ = ["Choice", "parts_are_scored", "why_not_chosen_by"]


def why_not_chosen_by(dataset: Dataset) -> str | None:
    """Say why no recipe can be chosen by the held-out texts of a dataset; None where one can."""
    held_out = dataset.held_out
    if held_out >= MIN_HELD_OUT:
        return None
    few = ""
    if "train" in dataset.splits:
        texts, *each = dataset.split("train").rows, *dataset.split("train").class_counts.values()
        if texts > MOST_TEXTS:
            few = f"; {texts:,} train texts are too many to cross-validate"
        elif min(each) < 2:
            few = "; a class with one train text cannot be cross-validated"
    return (
        f"{counted(held_out, 'held-out text')} cannot tell recipes apart: {MIN_HELD_OUT} are "
        f"needed (a larger --validation-fraction holds out more){few}"
    )


def _settings_of(name: str, config: RunConfig) -> RunConfig:
    """Give the settings of a candidate, or of the second system of an ensemble."""
    candidates = candidates_of(config)
    for candidate in candidates:
        if candidate.name == name:
            return candidate.applied(config)
    # It is trained as was asked for, not as a candidate is.
    return candidates[0].applied(config).model_copy(update={"training": config.training})


def _trial_of(name: str, config: RunConfig, first: Preparation, part: Part | None = None) -> Trial:
    settings, system = _settings_of(name, config), MODEL_SYSTEMS.get(name)
    if part is None:
        return Trial.of(name, settings, first, system=system)
    folder = part_name(part.number, name)
    return Trial.of(folder, settings, first, dataset=part.dataset, system=system)


def parts_are_scored(preparation: Preparation) -> bool:
    """Say whether all that a cross-validated calibration rests on is there, as it was committed.

    Args:
        preparation: of the recipe that was taken, with the choice.
    """
    config, made = preparation.asked, preparation.selection
    assert config is not None, "the recipe is open"
    assert made is not None, "it was chosen"
    if not made.parts:
        return True
    parts = find_parts(preparation, made.parts, made.cut_into)
    if parts is None:
        return False
    names = companions(preparation)
    light = [name for name in names if name not in MODEL_SYSTEMS]
    models = [made.chosen, *(name for name in names if name in MODEL_SYSTEMS)]
    if not all(part.is_scored_by(name, preparation.config) for name in light for part in parts):
        return False
    try:
        return all(
            isinstance(_trial_of(name, config, preparation, part).before(), Outcome)
            for name in models
            for part in parts
        )
    except ResourceError:
        return True  # what might be lost could not be made again here


class Choice:
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
        self._costs = Costs(config, first.dataset, self._candidates, parts, parts)
        self._parts: list[Part] = []
        self._outcomes: dict[str, Outcome] = {}
        self._left_out: dict[str, str] = {}
        self._spent = 0.0
        self._kept_free = 0.0
        """Seconds of the fine-tune that is to stand beside; 0 for none."""
        self._fine_tune_note: str | None = None
        self._wants_fine_tune = scores and wants_fine_tune(config)
        self._scores = scores
        self._part_models: dict[str, dict[str, dict[str, str]]] = {}
        """Candidate, or fine-tune → folder of each part → models."""
        self._errors: dict[str, GenclsError] = {}
        """Candidate, or second system → what went wrong just now."""

    def made(self) -> Generator[Event, None, SelectionReport]:
        """Try, judge and take one; its model, where there is one already, becomes the run's."""
        began = time.perf_counter()
        config, parts, first = self._config, self._costs.parts, self._candidates[0]
        texts = judging_texts(self._dataset, parts)
        by = f"train texts in {parts} parts" if parts else "held-out texts"
        number = 1 if texts < MIN_HELD_OUT else len(self._candidates)
        yield StageStarted(
            "choose",
            f"trying up to {counted(number, 'recipe')} for {config.recipe.budget} in all, "
            f"by {texts:,} {by}",
        )
        if parts and (reason := (yield from self._why_no_parts())):
            yield Note(f"nothing is chosen, recipe {first.name} is taken: {reason}")
            self._adopt(first)
            return self._untried(reason)
        few = self._judging < MIN_HELD_OUT
        for number, candidate in enumerate(self._candidates[:1] if few else self._candidates):
            yield from self._try(candidate, number)
            if self._parts and not self._outcomes:
                self._adopt(first)
                return self._untried(self._left_out[first.name])
        if not self._outcomes:
            raise self._failure(first.name, self._left_out[first.name])
        yield from self._try_beside()
        report = choice_report(
            config,
            self._first,
            self._outcomes,
            self._left_out,
            texts=self._judging,
            parts=len(self._parts),
            cut_into=parts,
            part_models=self._part_models,
            fine_tune=self._kept_free > 0,
            fine_tune_note=self._fine_tune_note,
            passing=self._passing,
            scores=self._scores,
        )
        taken = next(c for c in self._candidates if c.name == report.chosen)
        if not parts or taken == first:
            self._adopt(taken)
        spent = time.perf_counter() - began
        yield StageFinished("choose", f"{report.chosen}: {report.reason}", spent)
        return report

    @property
    def _judging(self) -> int:
        """Texts that recipes are judged by."""
        if not self._parts:
            return self._dataset.held_out
        return sum(part.dataset.held_out for part in self._parts)

    def _untried(self, reason: str) -> SelectionReport:
        return untried(
            self._config, self._first, reason, scores=self._scores, passing=self._passing
        )

    @property
    def _passing(self) -> bool:
        return any(not isinstance(error, LASTING) for error in self._errors.values())

    def _failure(self, name: str, reason: str) -> GenclsError:
        """Give what went wrong, now or earlier, where nothing can be taken in its place."""
        return self._errors.get(name) or TrainingError.of(
            f"{name} could not be trained",
            place=self._first.run.path,
            found=reason,
            remedy="other settings, such as a lower --learning-rate",
        )

    def _trial(self, name: str, part: Part | None = None) -> Trial:
        return _trial_of(name, self._config, self._first, part)

    def _adopt(self, candidate: Candidate) -> None:
        self._trial(candidate.name).adopt(self._lease)

    def _why_no_parts(self) -> Generator[Event, None, str]:
        """Train the first candidate on all train texts, and make the parts if there is time left
        for them; else say why not."""
        candidate = self._candidates[0]
        yield StageStarted("system", f"recipe {candidate.name}, all train texts")
        trial = self._trial(candidate.name)
        found = trial.before()
        if not isinstance(found, Outcome):
            found = yield from trial.run(self._place, self._lease)
        self._spent += found.seconds
        needed, left = self._costs.of_part(found), self._costs.left(self._spent)
        judged = min(self._costs.parts, int(left / max(needed, 1e-9))) if left > 0 else 0
        if not judged:
            few = why_not_chosen_by(self._dataset)
            return f"{few}; of a part of a cross-validation, {takes(needed, left)}"
        self._costs = replace(self._costs, judged=judged)
        self._parts = make_parts(self._first, judged, self._costs.parts, self._lease)
        if judged < self._costs.parts:
            yield Note(
                f"the budget has time to judge {counted(judged, 'part')} of {self._costs.parts}"
            )
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
        found = yield from self._judged(name)
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

    def _judged(self, name: str) -> Generator[Event, None, Outcome | str]:
        """Train on what is not held out, score what is; or give why it failed, now or before."""
        found = []
        parts: Sequence[Part | None] = self._parts or [None]
        for part in parts:
            try:
                trial = self._trial(name, part)
                outcome = trial.before()
                if isinstance(outcome, str):
                    return outcome
                if outcome is None:
                    outcome = yield from trial.run(self._place, self._lease)
            except FAILURES as error:
                self._errors[name] = error
                return reason_of(error)
            if part is not None:
                trial.drop_models(self._lease)
                self._part_models.setdefault(name, {})[trial.name] = trial.digests
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
            held_out=self._judging,
            texts=self._dataset.split("train").rows,
        )
        for name in names:
            if name in MODEL_SYSTEMS:
                found = yield from self._judged(name)
                if isinstance(found, str):
                    if config.posterior.ensemble != "auto":
                        raise self._failure(name, found)
                    self._kept_free, self._fine_tune_note = 0.0, found
                    yield Note(f"{system_title(name)} beside it is left out: {found}")
            else:
                for part in self._parts:
                    yield from part.score_light(name, config, self._lease)
