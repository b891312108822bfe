"""The figures of the comparison page, drawn from the comparison alone.

Lines differ in colour, in mark and in dashes, and rows stand under their names, so that no figure
rests on colour.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from itertools import pairwise
from typing import Any

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.ticker import (
    FixedFormatter,
    FixedLocator,
    MaxNLocator,
    NullLocator,
    PercentFormatter,
)

from gencls_core.comparison.schema import Comparison, CurvePoint, EstimateReport
from gencls_core.comparison.words import compared_systems, number_of_texts
from gencls_core.report import words
from gencls_core.report.plots import IntervalRow, interval_plot
from gencls_core.report.svg import INK, MUTED, RIGHT, SERIES, draw, wrapped
from gencls_core.systems.registry import UNTRAINED

__all__ = ["accuracy_plot", "learning_curve_plot"]

_WIDTH = 4.7
_LABEL_COLUMNS = 40
"""Of names in a figure: more would not fit beside the figures at the width of a phone."""
_MARKERS = ("o", "s", "^", "D", "v", "P", "X", "*")
# Other lengths than the markers and colours have: 40 lines until all three come again.
_DASHES: tuple[str | tuple[int, tuple[float, ...]], ...] = (
    "-",
    (0, (5, 1.6)),
    (0, (1.2, 1.4)),
    (0, (6, 1.5, 1.2, 1.5)),
    (0, (8, 1.5, 1.2, 1.5, 1.2, 1.5)),
)
_CONSTANT = UNTRAINED | {"majority"}
"""Systems that the number of train texts does not change."""


def accuracy_plot(comparison: Comparison) -> str:
    """Draw the accuracy of each system with its interval, the most accurate first.

    A round mark stands for an interval over texts and seeds, a square one for texts alone.
    """
    systems = compared_systems(comparison)
    rows = [
        IntervalRow(
            wrapped(system.name, _LABEL_COLUMNS),
            system.accuracy.value,
            (system.accuracy.low, system.accuracy.high),
            MUTED if system.system in _CONSTANT else RIGHT,
            "o" if "seeds" in system.accuracy.sources else "s",
        )
        for system in systems
    ]
    return interval_plot(rows, _limits([system.accuracy for system in systems]))


def learning_curve_plot(comparison: Comparison) -> str | None:
    """Draw accuracy against train texts per class; None where there is but one number of them."""
    lines = _lines(comparison)
    moving = [line for line in lines.values() if _moves(line)]
    counts = sorted({point.train_texts for line in moving for point in line})
    if len(counts) < 2 or counts[0] <= 0:
        return None
    limits = _limits([point.accuracy for line in lines.values() for point in line])
    # Where several systems have the same number of texts their bars stand side by side.
    closest = min(math.log(b / a) for a, b in pairwise(counts))
    span = math.log(counts[-1] / counts[0])
    step = min(0.012 * span, 0.6 * closest / len(lines))

    def plot(figure: Figure, axes: Axes) -> None:
        keys = []
        for number, (name, line) in enumerate(lines.items()):
            shift = math.exp(step * (number - (len(lines) - 1) / 2))
            colour = SERIES[number % len(SERIES)]
            style: dict[str, Any] = {
                "color": colour,
                "linestyle": _DASHES[number % len(_DASHES)],
                "marker": _MARKERS[number % len(_MARKERS)],
                "markersize": 5.5,
                "linewidth": 1.6,
            }
            if _moves(line):
                places = [point.train_texts * shift for point in line]
                axes.plot(places, [point.accuracy.value for point in line], **style)
            else:
                places = [counts[0] * shift * math.exp(-0.14 * span)]
                value = line[0].accuracy.value
                axes.axhline(value, color=colour, linestyle=style["linestyle"], linewidth=1.3)
                axes.plot(places, [value], **style)
            for place, point in zip(places, line, strict=False):
                axes.plot(
                    [place, place],
                    [point.accuracy.low, point.accuracy.high],
                    color=colour,
                    linewidth=2.2,
                    alpha=0.4,
                )
            keys.append((Line2D([], [], **style), wrapped(name, _LABEL_COLUMNS)))
        axes.set_xscale("log")
        constant = len(moving) < len(lines)
        axes.set_xlim(
            counts[0] * math.exp(-(0.2 if constant else 0.06) * span),
            counts[-1] * math.exp(0.06 * span),
        )
        ticks = _apart(counts, 0.07 * span)
        axes.xaxis.set_major_locator(FixedLocator(ticks))
        axes.xaxis.set_major_formatter(FixedFormatter([number_of_texts(tick) for tick in ticks]))
        axes.xaxis.set_minor_locator(NullLocator())
        axes.grid(visible=False, axis="x")
        axes.set_ylim(*limits)
        axes.yaxis.set_major_locator(MaxNLocator(6, steps=[1, 2, 5, 10]))
        axes.yaxis.set_major_formatter(PercentFormatter(1, decimals=0, symbol=" %"))
        axes.set_xlabel("train texts per class (log scale)")
        axes.set_ylabel("accuracy with 95 % interval")
        _legend(figure, keys)

    rows = [wrapped(name, _LABEL_COLUMNS).count("\n") + 1 for name in lines]
    columns = _legend_columns(list(lines))
    height = 3.2 + 0.215 * (sum(rows) if columns == 1 else math.ceil(len(rows) / 2))
    return draw("curve", _spoken(lines), (_WIDTH, height), plot)


def _lines(comparison: Comparison) -> dict[str, list[CurvePoint]]:
    """Give the points of each system, the systems in the order of the accuracy plot."""
    lines: dict[str, list[CurvePoint]] = {s.name: [] for s in compared_systems(comparison)}
    for point in comparison.learning_curve:
        lines.setdefault(point.system, []).append(point)
    constant = {s.name for s in comparison.systems if s.system in _CONSTANT}
    found = {}
    for name, points in lines.items():
        points = sorted(points, key=lambda point: point.train_texts)
        if name in constant and len({point.accuracy.value for point in points}) == 1:
            points = [points[0].model_copy(update={"train_texts": 0.0})]
        if points:
            found[name] = points
    return found


def _moves(line: Sequence[CurvePoint]) -> bool:
    """Whether the number of train texts matters to a system; the others have none."""
    return line[0].train_texts > 0


def _limits(estimates: Sequence[EstimateReport]) -> tuple[float, float]:
    """Give the accuracies between which all intervals lie, in steps of 5 points."""
    step = 0.05
    low = min(estimate.low for estimate in estimates)
    high = max(estimate.high for estimate in estimates)
    bottom = max(0.0, step * math.floor((low - 0.01) / step))
    # Room for a mark that stands at 100 %.
    top = min(1.01, step * math.ceil((high + 0.01) / step))
    return bottom, max(top, bottom + 2 * step)


def _apart(counts: Sequence[float], distance: float) -> list[float]:
    """Leave out ticks whose labels would touch; the first and the last stay."""
    kept = [counts[0]]
    for count in counts[1:-1]:
        if min(math.log(count / kept[-1]), math.log(counts[-1] / count)) >= distance:
            kept.append(count)
    return [*kept, counts[-1]]


def _legend_columns(names: Sequence[str]) -> int:
    return 2 if max(map(len, names)) <= 17 else 1


def _legend(figure: Figure, keys: Sequence[tuple[Line2D, str]]) -> None:
    legend = figure.legend(
        [key for key, _ in keys],
        # A name that begins with `_` would be taken for one that is to be left out.
        [f"\N{ZERO WIDTH SPACE}{name}" if name.startswith("_") else name for _, name in keys],
        loc="outside lower left",
        ncols=_legend_columns([name for _, name in keys]),
        handlelength=3.6,
        fontsize=10,
    )
    for text in legend.get_texts():
        text.set_color(INK)


def _spoken(lines: dict[str, list[CurvePoint]]) -> str:
    told = []
    for name, line in lines.items():
        first, last = line[0], line[-1]
        if not _moves(line):
            told.append(f"{name} {words.percent(first.accuracy.value)} without training")
        elif first is last:
            told.append(f"{name} {_at(first)}")
        else:
            told.append(f"{name} {_at(first)}, {_at(last)}")
    return f"Learning curve, accuracy against train texts per class: {'; '.join(told)}."


def _at(point: CurvePoint) -> str:
    return f"{words.percent(point.accuracy.value)} at {number_of_texts(point.train_texts)}"
