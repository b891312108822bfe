"""The sections of a run file that say what is trained, and how; see `gencls_core.config`."""

from __future__ import annotations

import math
from typing import Annotated, Literal

from pydantic import Field, field_validator

from gencls_core.config_sections import Positive, Section, with_class
from gencls_core.durations import seconds_of

__all__ = [
    "COMPARING",
    "MIN_HELD_OUT",
    "RECIPES",
    "ObjectiveName",
    "RecipeConfig",
    "ResolvedTraining",
    "TrainingConfig",
]

ObjectiveName = Literal["causal", "conditional", "joint", "masked", "classification"]

COMPARING: frozenset[ObjectiveName | None] = frozenset({"joint", "classification"})
"""Objectives that learn to tell classes apart."""

MIN_HELD_OUT = 50
"""With fewer labelled held-out texts nothing is chosen by them: no epoch, recipe or ensemble."""


class TrainingConfig(Section):
    """How one class model is trained."""

    epochs: Annotated[float, Field(gt=0)] | None = Field(
        None,
        description="Passes over the train texts; default: 3, and for a model that learns to tell "
        "classes apart as many more as few texts need.",
    )
    batch_size: Positive = Field(8, description="Texts per optimiser batch.")
    batch_tokens: Positive | None = Field(
        None, description="Tokens per optimiser batch, instead of a number of texts."
    )
    gradient_accumulation: Positive = Field(
        1, description="Batches whose gradients are summed into one optimiser step."
    )
    learning_rate: Annotated[float, Field(gt=0)] | None = Field(
        None,
        description="Peak learning rate; default: 5e-5, the original experiment's, and 1e-4 for a "
        "model of all classes; of a LoRA adapter five times that.",
    )
    schedule: Literal["linear", "cosine", "constant"] = Field(
        "linear", description="Decay of the learning rate after the warm-up."
    )
    warmup: Annotated[float, Field(ge=0, lt=1)] | None = Field(
        None,
        description="Part of all steps spent warming up; default: 0.1, and for a model that learns "
        "to tell classes apart as many as make 7 steps of --batch-size texts, a third at most.",
    )
    weight_decay: float = Field(0.01, ge=0, description="AdamW's decoupled weight decay.")
    max_grad_norm: Annotated[float, Field(gt=0)] = Field(
        1.0, description="Gradients are clipped to this norm."
    )
    seed: int = Field(0, ge=0, description="Seed of weights made from scratch, order and dropout.")
    patience: int = Field(
        2,
        ge=0,
        description="Stop after this many epochs without a better held-out negative "
        "log-likelihood; 0 trains all epochs. The best epoch's weights are kept either way; "
        "but see --average-weights: fewer than 50 labels choose no epoch and stop none.",
    )
    average_weights: bool | None = Field(
        None,
        description="Also average the weights at the ends of the second half of all epochs, "
        "and keep the mean where it does better on held-out texts, or they are few; "
        "default: for a model that learns to tell classes apart.",
    )
    gradient_checkpointing: bool = Field(
        False, description="Recompute activations in the backward pass: less memory, more time."
    )

    def resolved(
        self, objective: ObjectiveName | None, *, adapter: bool, texts: int
    ) -> ResolvedTraining:
        """Put in what the settings leave to the kind of model and the number of texts.

        Args:
            objective: what it learns; None where nothing is trained.
            adapter: whether a LoRA adapter is trained instead of all weights.
            texts: how many it learns from.
        """
        compares = objective in COMPARING
        rate, epochs = self.learning_rate, self.epochs
        # Each step sees about so many texts, unless it is asked for tokens.
        batch = self.batch_size * self.gradient_accumulation
        if rate is None:
            rate = _RATE_OF_ALL if objective in _OF_ALL_CLASSES else _RATE
            rate *= _RATE_OF_ADAPTER if adapter else 1
        if epochs is None:
            enough = math.ceil(_ENOUGH_STEPS * batch / max(texts, 1)) if compares else 0
            epochs = float(min(max(_EPOCHS, enough), _MOST_EPOCHS))
        warmup = self.warmup
        if warmup is None:
            warmup = _WARMUP
            if compares:
                steps = epochs * math.ceil(max(texts, 1) / batch)
                warmup = round(min(max(warmup, _ENOUGH_WARMUP / steps), _MOST_WARMUP), 3)
        values = self.model_dump()
        average = compares if self.average_weights is None else self.average_weights
        values |= {"learning_rate": rate, "epochs": epochs, "warmup": warmup}
        values |= {"average_weights": average}
        return ResolvedTraining(**values)


class ResolvedTraining(TrainingConfig):
    """The same, with nothing left open."""

    epochs: float
    learning_rate: float
    warmup: float
    average_weights: bool = False


_EPOCHS, _MOST_EPOCHS = 3, 10
_ENOUGH_STEPS = 20
"""Optimiser steps that a model needs to tell classes apart, however few texts there are."""
_WARMUP, _MOST_WARMUP = 0.1, 1 / 3
_ENOUGH_WARMUP = 7
"""Steps before the full rate. With two, Adam's first steps, nearly as long for every weight, may
lose what the base knows: its moments still rest on a handful of texts (Mosbach et al. 2021, On the
Stability of Fine-tuning BERT)."""
_RATE, _RATE_OF_ALL = 5e-5, 1e-4
_OF_ALL_CLASSES = frozenset({"conditional", "joint", "classification"})
_RATE_OF_ADAPTER = 5
"""An adapter wants a higher rate than all weights (Schulman et al. 2025, LoRA Without Regret)."""


RECIPES = {
    "independent": "class-lm",
    "conditional": "conditional-lm",
    "joint": "joint-lm",
}
"""Recipe → the system that it makes. `auto` becomes one of them (`gencls_core.selection`)."""

_LEAST_BUDGET, _TIMES_THE_FIRST = 600.0, 2.0
"""Where none is given: what a small run may take, and what a long one may take longer."""


class RecipeConfig(Section):
    """Which class models a run trains, and what one model of all classes needs."""

    recipe: Literal["independent", "conditional", "joint", "auto"] = Field(
        "independent",
        description="`independent`: a language model per class, the original method; "
        "`conditional`: one model for all, which reads the class before the text; `joint`: the "
        "same, tuned to tell the classes apart; `auto`: the first of these, from the last on, that "
        "held-out texts cannot tell from the best, as far as --budget lets them be tried. Default: "
        "`auto` where texts are scored, too (`gencls run`), `independent` for `gencls train`.",
    )
    budget: str | None = Field(
        None,
        description="`--recipe auto`: time of training and scoring that trying recipes may take "
        "in all (90s, 10m, 1h30m; starting processes is not counted); the first is trained however "
        "long it takes. Default: 10m, or twice what the first takes, or what a cross-validation "
        "by 50 texts takes.",
    )
    folds: int = Field(
        4,
        ge=0,
        description="`--recipe auto` with fewer than 50 held-out texts, and 1,000 train texts at "
        "most: parts of a cross-validation by which recipes are judged and the calibration is "
        "fitted, as many as the budget has time for; 0 for none.",
    )
    prefix: str = Field(
        "Topic: {class}\n",
        description="What the one model of all classes reads before a text; `{class}` stands for "
        "the class (`--class-words`).",
    )
    lm_weight: Annotated[float, Field(gt=0)] = Field(
        0.2,
        description="Joint tuning: weight of the mean log-likelihood of a text of average length "
        "beside the class's log-probability; it keeps likelihoods likelihoods.",
    )
    tuned_tokens: Annotated[int, Field(ge=8)] = Field(
        128, description="Joint tuning reads the first tokens of each text, so many of them."
    )
    compared_classes: Annotated[int, Field(ge=2)] = Field(
        16,
        description="Joint tuning compares a text's own class with the others, drawn anew in each "
        "epoch where there are more than this many in all.",
    )
    learned_classes: Annotated[int, Field(ge=2)] = Field(
        4,
        description="Of the classes that joint tuning compares a text under, a step learns from "
        "its own and others, so many in all, drawn by the probability that the model gives them.",
    )

    def compared(self, classes: int) -> int:
        """Give how many of so many classes joint tuning compares a text under."""
        return min(self.compared_classes, classes)

    def learned_from(self, classes: int) -> int:
        """Give under how many of them, at the most, a step learns from a text."""
        return min(self.learned_classes, self.compared(classes))

    @property
    def system(self) -> str:
        """Name of the system that the recipe makes; `auto` has none until it has chosen."""
        return RECIPES[self.recipe]

    def budget_seconds(self, first: float) -> float:
        """Give the budget in seconds.

        Args:
            first: seconds that the first recipe took.
        """
        if self.budget is None:
            return max(_LEAST_BUDGET, _TIMES_THE_FIRST * first)
        return seconds_of(self.budget)

    @property
    def budget_in_words(self) -> str:
        """The budget before anything was tried."""
        return self.budget or "10m (or twice what the first takes)"

    @field_validator("budget")
    @classmethod
    def _is_duration(cls, value: str | None) -> str | None:
        if value is not None:
            seconds_of(value)
        return value

    @field_validator("prefix")
    @classmethod
    def _names_the_class(cls, value: str) -> str:
        return with_class(value)
