"""What mistakes cost, as people write it: a CSV file with the columns `label`, `decided`, `cost`.

Read once, where a setting names the file: a run keeps what it says, and needs the file no more.
"""

from __future__ import annotations

import csv
import math
from collections.abc import Iterator, Sequence
from pathlib import Path

from gencls_core.errors import UsageError

__all__ = ["CostPair", "check_cost_pairs", "costs_among", "read_cost_pairs"]

CostPair = tuple[str, str, float]
"""The true class, the decided one, and what that costs."""

_COLUMNS = ("label", "decided", "cost")


def read_cost_pairs(path: Path, classes: Sequence[str] | None = None) -> tuple[CostPair, ...]:
    """Read a CSV file with the columns `label`, `decided` and `cost`, one line for each pair.

    Args:
        path: the file.
        classes: those that may stand in it; None where they are not known yet.

    Raises:
        UsageError: naming the line, when a class is unknown, a pair there twice, or a cost is no
            number from 0 on; and when the file cannot be read or costs nothing at all.
    """
    pairs: dict[tuple[str, str], CostPair] = {}
    lines: dict[tuple[str, str], int] = {}
    for line, label, decided, cost in _rows(path):
        for name in (label, decided):
            if classes is not None and name not in classes:
                raise _error(path, line, f"class {name!r}", f"one of {', '.join(classes)}")
        pair = (label, decided)
        if pair in pairs:
            found = f"{label!r} decided as {decided!r} a second time"
            raise _error(path, line, found, f"it once (line {lines[pair]})")
        pairs[pair], lines[pair] = (label, decided, cost), line
    costs = tuple(pairs.values())
    if classes is not None:
        check_cost_pairs(costs, classes, path)
    return costs


def check_cost_pairs(
    pairs: Sequence[CostPair], classes: Sequence[str], place: object = "posterior.costs"
) -> None:
    """Refuse costs that do not fit a run's classes.

    Raises:
        UsageError: when a class is unknown, or no mistake costs anything.
    """
    for label, decided, _ in pairs:
        for name in (label, decided):
            if name not in classes:
                expected = f"one of {', '.join(classes)}"
                raise _error(place, None, f"class {name!r}", expected)
    if _are_free(pairs, classes):
        raise _error(place, None, "no cost above 0", "mistakes that cost something")


def costs_among(pairs: Sequence[CostPair], classes: Sequence[str]) -> tuple[CostPair, ...] | None:
    """Give what mistakes cost among some of the classes.

    Returns:
        None where no pair is of them alone, or no mistake would cost anything: then costs decide
        nothing.
    """
    kept = tuple(pair for pair in pairs if pair[0] in classes and pair[1] in classes)
    return kept if kept and not _are_free(kept, classes) else None


def _are_free(pairs: Sequence[CostPair], classes: Sequence[str]) -> bool:
    """Say whether no mistake costs anything; a pair that is left out costs 1."""
    free = {(label, decided) for label, decided, cost in pairs if cost == 0}
    mistakes = {(one, other) for one in classes for other in classes if one != other}
    return mistakes <= free and not any(cost for *_, cost in pairs)


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


def _error(place: object, line: int | None, found: str, expected: str) -> UsageError:
    return UsageError.of(
        "the costs of decisions cannot be read",
        place=str(place) if line is None else f"{place}, line {line}",
        found=found,
        expected=expected,
        remedy="lines such as `Sports,World,5`: a text of Sports that is decided as World costs 5",
    )
