"""Decisions by what mistakes cost: the class with the lowest expected cost, not the likeliest.

    cost(d | x) = Σ_c P(c | x) · cost(true c, decided d)

(Elkan 2001, "The Foundations of Cost-Sensitive Learning"). Only the posterior is asked, so other
costs are as cheap as another prior; it must be calibrated for the costs to mean what they say.

Shapes: N texts, C classes.
"""

from __future__ import annotations

import csv
import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from gencls_core.errors import UsageError
from gencls_core.score_matrix import FloatArray, IntArray

__all__ = ["CostMatrix", "read_costs"]

_COLUMNS = ("label", "decided", "cost")


@dataclass(frozen=True)
class CostMatrix:
    """What each decision costs under each true class."""

    classes: tuple[str, ...]
    costs_CC: FloatArray
    """[true class, decided class], any unit."""

    def decide(self, log_posterior_NC: FloatArray) -> tuple[IntArray, FloatArray]:
        """Give the decision with the lowest expected cost of each text, [N], and that cost, [N]."""
        expected_NC = np.exp(log_posterior_NC) @ self.costs_CC
        decided_N = expected_NC.argmin(axis=1)
        return decided_N, expected_NC[np.arange(len(decided_N)), decided_N]

    def of(self, codes_N: IntArray, decided_N: IntArray) -> FloatArray:
        """Give what decisions cost of texts whose classes are known, [N]."""
        costs_N: FloatArray = self.costs_CC[codes_N, decided_N]
        return costs_N


def read_costs(path: Path, classes: Sequence[str]) -> CostMatrix:
    """Read a CSV file with the columns `label`, `decided` and `cost`, one line for each pair.

    A pair that is left out costs 1, and 0 where the decision is right.

    Raises:
        UsageError: naming the line, when a class is unknown, a pair there twice, or a cost is no
            number from 0 on; and when the file cannot be read or costs nothing at all.
    """
    costs_CC = 1.0 - np.eye(len(classes))
    numbers = {name: number for number, name in enumerate(classes)}
    seen: dict[tuple[str, str], int] = {}
    for line, label, decided, cost in _rows(path):
        for name in (label, decided):
            if name not in numbers:
                raise _error(path, line, f"class {name!r}", f"one of {', '.join(classes)}")
        if (label, decided) in seen:
            found = f"{label!r} decided as {decided!r} a second time"
            raise _error(path, line, found, f"it once (line {seen[label, decided]})")
        seen[label, decided] = line
        costs_CC[numbers[label], numbers[decided]] = cost
    if not costs_CC.any():
        raise _error(path, None, "no cost above 0", "mistakes that cost something")
    return CostMatrix(tuple(classes), costs_CC)


def _rows(path: Path) -> Iterator[tuple[int, str, str, float]]:
    """Give each line's number, classes and cost."""
    try:
        with path.open(encoding="utf-8-sig", newline="") as stream:
            reader = csv.DictReader(stream, skipinitialspace=True)
            columns = [name.strip() for name in reader.fieldnames or ()]
            if missing := [name for name in _COLUMNS if name not in columns]:
                found = f"columns {', '.join(columns) or 'none'}"
                raise _error(path, 1, found, f"columns {', '.join(missing)} as well")
            reader.fieldnames = columns
            for row in reader:
                label, decided, cost = (row[name] or "" for name in _COLUMNS)
                yield reader.line_num, label, decided, _cost(path, reader.line_num, cost)
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise _error(path, None, str(error), "a CSV file in UTF-8") from None


def _cost(path: Path, line: int, text: str) -> float:
    try:
        cost = float(text)
    except ValueError:
        cost = math.nan
    if not 0.0 <= cost < math.inf:
        raise _error(path, line, repr(text), "a number from 0 on")
    return cost


def _error(path: Path, line: int | None, found: str, expected: str) -> UsageError:
    return UsageError.of(
        "the costs of decisions cannot be read",
        place=str(path) if line is None else f"{path}, line {line}",
        found=found,
        expected=expected,
        remedy="lines such as `Sports,World,5`: a text of Sports that is decided as World costs 5",
    )
