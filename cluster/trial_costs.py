"""What trainings of a choice will take, told from what those before them took.

By forward passes over tokens, from what is committed: a choice that was interrupted goes on to the
same end.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from cluster.trial import Outcome
from gencls_core.config import ResolvedTraining, RunConfig
from gencls_core.datasets import Dataset
from gencls_core.durations import duration
from gencls_core.ensemble import FINE_TUNE
from gencls_core.scoring_job import ModelSystem
from gencls_core.selection import Candidate
from gencls_core.systems.registry import MODEL_SYSTEMS
from gencls_core.trained_run import training_of

__all__ = ["Costs", "takes", "training_of_candidate"]


def training_of_candidate(
    candidate: Candidate, config: RunConfig, dataset: Dataset
) -> ResolvedTraining:
    """Give how a candidate is trained, with nothing left open."""
    settings = candidate.applied(config)
    return training_of(settings, dataset, MODEL_SYSTEMS[settings.recipe.system])


def takes(needed: float, left: float) -> str:
    """Say why something is left out."""
    remains = f"{duration(left)} were left" if left > 0 else "the budget is used up"
    return f"it would take about {duration(needed)}, and {remains}"


@dataclass(frozen=True)
class Costs:
    """Seconds of trainings on a dataset."""

    config: RunConfig
    dataset: Dataset
    candidates: tuple[Candidate, ...]
    parts: int
    """That the train texts are cut into for a cross-validation; 0 where the run's held-out texts
    judge."""
    judged: int
    """Parts that are judged."""
    first: float = 0.0
    """Seconds that the first recipe took."""

    @property
    def budget(self) -> float:
        """Seconds that all may take."""
        return self.config.recipe.budget_seconds(self.first)

    @property
    def _with_last(self) -> float:
        """How much more it is to train on all texts at last, too, where parts were judged."""
        return 1.0 + self.parts / (self.judged * (self.parts - 1)) if self.parts else 1.0

    def of_part(self, whole: Outcome) -> float:
        """Estimate what a part of a cross-validation takes from one training on all texts.

        A training without the part; and its texts are scored.
        """
        scoring = (whole.seconds - whole.train_seconds) / max(1, self.dataset.held_out)
        texts = self.dataset.split("train").rows
        return ((self.parts - 1) * whole.train_seconds + scoring * texts) / self.parts

    def of_candidate(self, candidate: Candidate, outcomes: Mapping[str, Outcome]) -> float:
        """Estimate a candidate from the most similar one that was judged."""
        names = {tried.name: tried for tried in self.candidates}
        like = min(outcomes, key=lambda name: names[name].recipe != candidate.recipe)
        outcome = outcomes[like]
        work = self._passes(candidate) * self._tokens(candidate, outcome)
        work *= training_of_candidate(candidate, self.config, self.dataset).epochs
        seconds = self._second_a_pass(names[like], outcome) * work
        return (seconds + outcome.seconds - outcome.train_seconds) * self._with_last

    def of_fine_tune(self, candidate: Candidate, outcome: Outcome) -> float:
        """Estimate a discriminative fine-tune from what a candidate took.

        A step forward and backward costs three forward passes, over all of a text.
        """
        system: ModelSystem = MODEL_SYSTEMS[FINE_TUNE]
        work = 3.0 * float(outcome.num_tokens.mean())
        work *= training_of(self.config, self.dataset, system).epochs
        scoring = (outcome.seconds - outcome.train_seconds) / len(self.dataset.classes)
        return (self._second_a_pass(candidate, outcome) * work + scoring) * self._with_last

    def _passes(self, candidate: Candidate) -> float:
        recipe, classes = self.config.recipe, len(self.dataset.classes)
        return candidate.passes(recipe.compared(classes), recipe.learned_from(classes))

    def _tokens(self, candidate: Candidate, outcome: Outcome) -> float:
        """Give the tokens of an average text that a candidate learns from."""
        tokens_N = outcome.num_tokens
        if candidate.recipe == "joint":
            tokens_N = tokens_N.clip(max=self.config.recipe.tuned_tokens)
        return float(tokens_N.mean())

    def _second_a_pass(self, candidate: Candidate, outcome: Outcome) -> float:
        """Give the seconds of a forward pass of training over a token of every train text."""
        tokens = self._tokens(candidate, outcome)
        return outcome.train_seconds / (self._passes(candidate) * tokens * outcome.epochs)
