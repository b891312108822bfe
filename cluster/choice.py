"""A choice of a recipe under way: what is tried, by which texts, and what comes of it."""

from __future__ import annotations

import time
from collections.abc import Generator, Iterator, Sequence

from cluster.choice_report import choice_report, untried, wants_fine_tune
from cluster.connection import Workplace
from cluster.cross_validation import Part, judging_texts, make_parts
from cluster.failures import FAILURES, reason_of
from cluster.preparation import Preparation
from cluster.trial import Outcome, Trial
from cluster.trial_costs import Costs, takes
from gencls_core.config import MIN_HELD_OUT, RunConfig
from gencls_core.datasets import Dataset
from gencls_core.ensemble import FINE_TUNE, companions_of
from gencls_core.errors import counted
from gencls_core.events import Event, Note, StageFinished, StageStarted
from gencls_core.ownership import Lease
from gencls_core.selection import Candidate, candidates_of, part_name
from gencls_core.selection_report import SelectionReport
from gencls_core.systems.names import system_title
from gencls_core.systems.registry import MODEL_SYSTEMS

__all__ = ["Choice", "why_not_chosen_by"]


def why_not_chosen_by(dataset: Dataset) -> str | None:
    """Say why no recipe can be chosen by the held-out texts of a dataset; None where one can."""
    held_out = dataset.held_out
    if held_out >= MIN_HELD_OUT:
        return None
    return (
        f"{counted(held_out, 'held-out text')} cannot tell recipes apart: {MIN_HELD_OUT} are "
        "needed (a larger --validation-fraction holds out more)"
    )


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
        self._costs = Costs(config, first.dataset, self._candidates, parts)
        self._parts: list[Part] = []
        self._outcomes: dict[str, Outcome] = {}
        self._left_out: dict[str, str] = {}
        self._spent = 0.0
        self._kept_free = 0.0
        """Seconds of the fine-tune that is to stand beside; 0 for none."""
        self._fine_tune_note: str | None = None
        self._wants_fine_tune = scores and wants_fine_tune(config)

    def made(self) -> Generator[Event, None, SelectionReport]:
        """Try, judge and take one; its model, where there is one already, becomes the run's."""
        began = time.perf_counter()
        config, parts, first = self._config, self._costs.parts, self._candidates[0]
        texts = judging_texts(self._dataset, parts)
        by = f"train texts in {parts} parts" if parts else "held-out texts"
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
            return untried(config, self._first, reason)
        for number, candidate in enumerate(candidates):
            yield from self._try(candidate, number)
            if not self._outcomes:
                self._adopt(first)
                return untried(config, self._first, self._left_out[first.name])
        yield from self._try_beside()
        report = choice_report(
            config,
            self._first,
            self._outcomes,
            self._left_out,
            parts=parts,
            fine_tune=self._kept_free > 0,
            fine_tune_note=self._fine_tune_note,
        )
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
            held_out=judging_texts(self._dataset, len(self._parts)),
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
