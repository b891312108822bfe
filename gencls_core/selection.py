"""`--recipe auto`: which recipes are tried, and which of them a run takes.

Each candidate learns from the train texts and is judged by held-out ones, never by the test split.
The measure is the negative log-likelihood of the held-out labels after calibration, cross-fitted:
scale and biases that judge a text were fitted without it. Of those that cannot be told from the
best, the one that stands first is taken (the one-standard-error rule of Breiman et al. 1984, with
the standard error of the difference, text by text): the order says what is to be expected where
texts are few.

Shapes: N examples.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np

from gencls_core.config import RunConfig
from gencls_core.score_matrix import FloatArray

__all__ = [
    "Candidate",
    "Verdict",
    "candidates_of",
    "is_part_name",
    "judge",
    "part_name",
]

_RATE_MULTIPLES = (2.0, 0.5)
"""Other learning rates that joint tuning is tried with, as multiples of its default."""


@dataclass(frozen=True)
class Candidate:
    """A recipe with its learning rate."""

    recipe: Literal["independent", "conditional", "joint"]
    learning_rate: float | None
    """None: as the settings have it, or the recipe's default."""

    @property
    def name(self) -> str:
        """Name of its folder, and what it is called."""
        rate = "" if self.learning_rate is None else f"-{self.learning_rate:g}"
        return f"{self.recipe}{rate}"

    def applied(self, config: RunConfig) -> RunConfig:
        """Give the settings of a run with this recipe."""
        recipe = config.recipe.model_copy(update={"recipe": self.recipe})
        training = config.training
        if self.learning_rate is not None:
            training = training.model_copy(update={"learning_rate": self.learning_rate})
        posterior = config.posterior
        if posterior.ensemble is None:
            posterior = posterior.model_copy(update={"ensemble": "auto"})
        return config.model_copy(
            update={"recipe": recipe, "training": training, "posterior": posterior}
        )

    def passes(self, compared: int, learned_from: int) -> float:
        """Estimate what a token of a train text costs in an epoch, in forward passes.

        A step forward and backward costs three. Joint tuning scores a text under each compared
        class, then learns from its own and, as a rule, half of the others that it may learn from.
        """
        if self.recipe != "joint":
            return 3.0
        return compared + 3.0 * (1.0 + (learned_from - 1) / 2)


RECORD = "candidate.json"
"""What a training came to, in its folder; written last."""


def part_name(number: int, name: str | None = None) -> str:
    """Name the folder of a part of the train texts, or of what `name` says of it."""
    return f"part-{number}" if name is None else f"{name}-part-{number}"


def is_part_name(folder: str) -> bool:
    """Say whether a folder is that of a part."""
    return folder.startswith("part-")


def candidates_of(config: RunConfig) -> tuple[Candidate, ...]:
    """Give what `auto` tries, the most promising first.

    A learning rate that was asked for is taken as it is.
    """
    given = config.training.learning_rate
    rates: list[float | None] = [None]
    if given is None:
        default = config.training.resolved(
            "joint", adapter=config.model.lora_rank is not None, texts=1
        ).learning_rate
        rates += [factor * default for factor in _RATE_MULTIPLES]
    return (
        *(Candidate("joint", rate) for rate in rates),
        Candidate("conditional", None),
        Candidate("independent", None),
    )


@dataclass(frozen=True)
class Verdict:
    """Which of some candidates is taken, and how the others differ from the best."""

    chosen: int
    best: int
    """The one with the lowest mean; not always the one that is taken."""
    means: tuple[float, ...]
    """Nats per text."""
    differences: tuple[float, ...]
    """From the best."""
    errors: tuple[float, ...]
    """Standard errors of the differences."""


def judge(nlls: Sequence[FloatArray]) -> Verdict:
    """Take the first candidate that cannot be told from the best.

    Args:
        nlls: of each candidate, [N] nats of the same texts in the same order.
    """
    means = [float(nll_N.mean()) for nll_N in nlls]
    best = int(np.argmin(means))
    differences, errors = [], []
    for nll_N in nlls:
        difference_N = nll_N - nlls[best]
        differences.append(float(difference_N.mean()))
        count = len(difference_N)
        spread = float(difference_N.std(ddof=1)) if count > 1 else math.inf
        errors.append(spread / math.sqrt(count))
    chosen = next(
        number
        for number, (difference, error) in enumerate(zip(differences, errors, strict=True))
        if difference <= error
    )
    return Verdict(chosen, best, tuple(means), tuple(differences), tuple(errors))
