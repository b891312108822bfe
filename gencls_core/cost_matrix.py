"""Decisions by what mistakes cost: the class with the lowest expected cost, not the likeliest.

    cost(d | x) = Σ_c P(c | x) · cost(true c, decided d)

(Elkan 2001, "The Foundations of Cost-Sensitive Learning"). Only the posterior is asked, so other
costs are as cheap as another prior; it must be calibrated for the costs to mean what they say.

Shapes: N texts, C classes.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from gencls_core.cost_file import CostPair, check_cost_pairs
from gencls_core.score_matrix import FloatArray, IntArray

__all__ = ["CostMatrix", "costs_of_run"]


@dataclass(frozen=True)
class CostMatrix:
    """What each decision costs under each true class."""

    classes: tuple[str, ...]
    costs_CC: FloatArray
    """[true class, decided class], any unit."""

    @classmethod
    def from_pairs(cls, pairs: Sequence[CostPair], classes: Sequence[str]) -> CostMatrix:
        """Fill in what is left out: a pair costs 1, and 0 where the decision is right.

        Raises:
            UsageError: when a class is unknown, or no mistake costs anything.
        """
        check_cost_pairs(pairs, classes)
        costs_CC = 1.0 - np.eye(len(classes))
        for label, decided, cost in pairs:
            costs_CC[classes.index(label), classes.index(decided)] = cost
        return cls(tuple(classes), costs_CC)

    def decide(self, log_posterior_NC: FloatArray) -> tuple[IntArray, FloatArray]:
        """Give the decision with the lowest expected cost of each text, [N], and that cost, [N]."""
        expected_NC = np.exp(log_posterior_NC) @ self.costs_CC
        decided_N = expected_NC.argmin(axis=1)
        return decided_N, expected_NC[np.arange(len(decided_N)), decided_N]

    def of(self, codes_N: IntArray, decided_N: IntArray) -> FloatArray:
        """Give what decisions cost of texts whose classes are known, [N]."""
        costs_N: FloatArray = self.costs_CC[codes_N, decided_N]
        return costs_N


def costs_of_run(
    manifest: dict[str, Any], given: Sequence[CostPair] | None = None
) -> CostMatrix | None:
    """Give what mistakes cost: as given, else as the run's settings say; None where none do."""
    pairs = given if given is not None else manifest["config"]["posterior"].get("costs")
    return None if pairs is None else CostMatrix.from_pairs(pairs, manifest["classes"])
