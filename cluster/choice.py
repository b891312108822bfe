"""A choice of a recipe under way: what is tried, by which texts, and what comes of it."""

from __future__ import annotations

import math
import time
from collections.abc import Generator, Iterator, Sequence
from dataclasses import replace

from cluster.choice_report import Tried, choice_report, untried, wants_fine_tune
from cluster.companions import companions
from cluster.connection import Workplace
from cluster.cross_validation import MOST_TEXTS, Part, find_parts, judging_texts, make_parts
from cluster.failures import FAILURES, reason_of
from cluster.preparation import Preparation
from cluster.trial import Outcome, Trial
from cluster.trial_costs import Costs, takes
from gencls_core.config import MIN_HELD_OUT, RunConfig
from gencls_core.datasets import Dataset
from gencls_core.durations import duration
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
        self._place, self._lease = place, lease
        costs = Costs(config, first.dataset, candidates_of(config), parts, parts)
        self._tried = Tried(first, scores, costs)
        self._wants_fine_tune = scores and wants_fine_tune(config)

    def made(self) -> Generator[Event, None, SelectionReport]:
        """Try, judge and take one; its model, where there is one already, becomes the run's."""
        began = time.perf_counter()
        tried, candidates = self._tried, self._tried.costs.candidates
        config, dataset, first = tried.config, tried.first.dataset, candidates[0]
        parts = tried.costs.parts
        texts = judging_texts(dataset, parts)
        by = f"train texts in {parts} parts" if parts else "held-out texts"
        number = 1 if texts < MIN_HELD_OUT else len(candidates)
        yield StageStarted(
            "choose",
            f"trying up to {counted(number, 'recipe')} for {config.recipe.budget_in_words} in all, "
            f"by {texts:,} {by}",
        )
        if parts and (reason := (yield from self._why_no_parts())):
            yield Note(f"nothing is chosen, recipe {first.name} is taken: {reason}")
            self._adopt(first)
            return untried(tried, reason)
        few = tried.judging < MIN_HELD_OUT
        for number, candidate in enumerate(candidates[:1] if few else candidates):
            yield from self._try(candidate, number)
            if tried.parts and not tried.outcomes:
                self._adopt(first)
                return untried(tried, tried.left_out[first.name])
        if not tried.outcomes:
            raise self._failure(first.name, tried.left_out[first.name])
        yield from self._try_beside()
        report = choice_report(tried)
        taken = next(c for c in candidates if c.name == report.chosen)
        if not parts or taken == first:
            self._adopt(taken)
        spent = time.perf_counter() - began
        yield StageFinished("choose", f"{report.chosen}: {report.reason}", spent)
        return report

    def _failure(self, name: str, reason: str) -> GenclsError:
        """Give what went wrong, now or earlier, where nothing can be taken in its place."""
        return self._tried.errors.get(name) or TrainingError.of(
            f"{name} could not be trained",
            place=self._tried.first.run.path,
            found=reason,
            remedy="other settings, such as a lower --learning-rate",
        )

    def _trial(self, name: str, part: Part | None = None) -> Trial:
        return _trial_of(name, self._tried.config, self._tried.first, part)

    def _adopt(self, candidate: Candidate) -> None:
        self._trial(candidate.name).adopt(self._lease)

    def _why_no_parts(self) -> Generator[Event, None, str]:
        """Train the first candidate on all train texts, and make the parts if there is time left
        for them; else say why not."""
        tried = self._tried
        candidate = tried.costs.candidates[0]
        yield StageStarted("system", f"recipe {candidate.name}, all train texts")
        trial = self._trial(candidate.name)
        found = trial.before()
        if not isinstance(found, Outcome):
            found = yield from trial.run(self._place, self._lease)
        tried.took(found)
        parts, needed, left = tried.costs.parts, tried.costs.of_part(found), tried.left
        there_is_time_for = min(parts, int(left / max(needed, 1e-9))) if left > 0 else 0
        judged = max(there_is_time_for, self._fewest_parts(parts))
        if not judged:
            few = why_not_chosen_by(tried.first.dataset)
            return f"{few}; of a part of a cross-validation, {takes(needed, left)}"
        tried.costs = replace(tried.costs, judged=judged)
        tried.parts = make_parts(tried.first, judged, parts, self._lease)
        if judged > there_is_time_for:
            yield Note(
                f"judging {counted(judged, 'part')} of {parts}, so that there are "
                f"{MIN_HELD_OUT} texts to rest on: about {duration(judged * needed)}"
            )
        elif judged < parts:
            yield Note(f"the budget has time to judge {counted(judged, 'part')} of {parts}")
        return ""

    def _fewest_parts(self, parts: int) -> int:
        """Give how many parts are judged at the least, where no budget was asked for: as many as
        have the texts that recipes and ensembles are chosen by."""
        tried = self._tried
        texts = judging_texts(tried.first.dataset, parts)
        if tried.config.recipe.budget is not None or texts < MIN_HELD_OUT:
            return 0
        return min(parts, math.ceil(MIN_HELD_OUT / (texts // parts)))

    def _try(self, candidate: Candidate, number: int) -> Iterator[Event]:
        """Train and judge a candidate, or say why it is left out."""
        name, tried = candidate.name, self._tried
        outcomes = tried.outcomes
        if outcomes:
            needed = tried.costs.of_candidate(candidate, outcomes)
            left = tried.left - tried.kept_free
            if needed > left:
                tried.left_out[name] = takes(needed, left)
                yield Note(f"recipe {name} is left out: {tried.left_out[name]}")
                return
        of = len(tried.costs.candidates)
        yield StageStarted("system", f"recipe {name} ({number + 1} of {of})")
        found = yield from self._judged(name)
        if isinstance(found, str):
            tried.left_out[name] = found
            yield Note(f"recipe {name}: {found}")
            return
        outcomes[name] = found
        tried.took(found)
        by = "train texts, each by a model without it" if tried.parts else "held-out texts"
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
        tried = self._tried
        needed, left = tried.costs.of_fine_tune(candidate, found), tried.left
        if needed <= left:
            tried.kept_free = needed
        else:
            tried.fine_tune_note = takes(needed, left)
            yield Note(f"{system_title(FINE_TUNE)} beside it is left out: {tried.fine_tune_note}")

    def _judged(self, name: str) -> Generator[Event, None, Outcome | str]:
        """Train on what is not held out, score what is; or give why it failed, now or before."""
        found, tried = [], self._tried
        parts: Sequence[Part | None] = tried.parts or [None]
        for part in parts:
            try:
                trial = self._trial(name, part)
                outcome = trial.before()
                if isinstance(outcome, str):
                    return outcome
                if outcome is None:
                    outcome = yield from trial.run(self._place, self._lease)
            except FAILURES as error:
                tried.errors[name] = error
                return reason_of(error)
            if part is not None:
                trial.drop_models(self._lease)
                tried.part_models.setdefault(name, {})[trial.name] = trial.digests
            found.append(outcome)
        return Outcome.together(found)

    def _try_beside(self) -> Iterator[Event]:
        """Let second systems of an ensemble score the parts, as they will score held-out texts."""
        tried = self._tried
        if not tried.parts:
            return
        config = tried.costs.candidates[0].applied(tried.config)
        names = companions_of(
            config.posterior.ensemble,
            baseline=config.baseline,
            fine_tune=tried.kept_free > 0,
            held_out=tried.judging,
            texts=tried.first.dataset.split("train").rows,
        )
        for name in names:
            if name in MODEL_SYSTEMS:
                found = yield from self._judged(name)
                if isinstance(found, str):
                    if config.posterior.ensemble != "auto":
                        raise self._failure(name, found)
                    tried.kept_free, tried.fine_tune_note = 0.0, found
                    yield Note(f"{system_title(name)} beside it is left out: {found}")
            else:
                for part in tried.parts:
                    yield from part.score_light(name, config, self._lease)
