"""The figures of the report page. Each is drawn from figures of the report alone.

Two series differ in colour (blue and orange, apart for every common colour blindness) and also in
place, line style or label, so that no figure rests on colour.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator, PercentFormatter

from gencls_core.report import words
from gencls_core.report.details import Details
from gencls_core.report.schema import ReliabilityBinReport, Report
from gencls_core.report.svg import GRID, INK, MUTED, RIGHT, WRONG, draw
from gencls_core.systems.names import system_title

__all__ = [
    "IntervalRow",
    "accuracy_plot",
    "confusion_plot",
    "interval_plot",
    "ratio_plot",
    "reliability_plot",
    "risk_plot",
    "training_plots",
]

_WIDE = (4.7, 3.0)
_LINE_ROWS = 0.36
"""Height of one more line of a name, where a row is 1."""


@dataclass(frozen=True)
class IntervalRow:
    """A system's accuracy with its 95 % interval, as one row of a plot."""

    label: str
    accuracy: float
    interval: tuple[float, float]
    colour: str
    marker: str = "o"


def accuracy_plot(report: Report) -> str:
    """Draw each system's accuracy with its 95 % interval."""
    name = system_title(report.system)
    found = report.accuracy.uncalibrated, report.accuracy_ci95.uncalibrated
    rows = [IntervalRow(name, *found, RIGHT)]
    if report.accuracy.calibrated is not None and report.accuracy_ci95.calibrated is not None:
        found = report.accuracy.calibrated, report.accuracy_ci95.calibrated
        rows.append(IntervalRow(f"{name}, calibrated", *found, RIGHT))
    for system, baseline in report.baselines.items():
        found = baseline.accuracy, baseline.accuracy_ci95
        rows.append(IntervalRow(system_title(system), *found, MUTED))
    return interval_plot(rows)


def interval_plot(rows: Sequence[IntervalRow], limits: tuple[float, float] = (0, 1)) -> str:
    """Draw accuracies with their intervals, one below the other, between two accuracies."""
    # Names stand over their own line: long ones need no margin on the left, but may need lines.
    extra = [_LINE_ROWS * row.label.count("\n") for row in rows]
    places = [number + sum(extra[: number + 1]) for number in range(len(rows))]
    bottom, top = places[-1] + 0.4, -0.75

    def plot(figure: Figure, axes: Axes) -> None:
        for place, row in zip(places, rows, strict=True):
            axes.plot(row.interval, [place, place], color=row.colour, linewidth=3, alpha=0.45)
            axes.plot([row.accuracy], [place], row.marker, color=row.colour, markersize=6.5)
            for edge, text, align in zip(
                limits, (row.label, words.percent(row.accuracy)), ("left", "right"), strict=True
            ):
                axes.annotate(
                    text,
                    (edge, place),
                    xytext=(0, 6),
                    textcoords="offset points",
                    ha=align,
                    va="bottom",
                    in_layout=False,
                )
        axes.set_ylim(bottom, top)
        axes.set_xlim(*limits)
        axes.set_yticks([])
        axes.grid(visible=False)
        axes.spines["left"].set_visible(False)
        axes.xaxis.set_major_locator(MaxNLocator(6, steps=[1, 2, 5, 10]))
        axes.xaxis.set_major_formatter(PercentFormatter(1, decimals=0, symbol=" %"))
        axes.set_xlabel("accuracy with 95 % interval")

    spoken = "; ".join(
        f"{' '.join(row.label.split())} {words.percent(row.accuracy)}" for row in rows
    )
    size = (_WIDE[0], 0.75 + 0.5 * (len(rows) + sum(extra)))
    return draw("accuracy", f"Accuracy of each system: {spoken}.", size, plot)


def reliability_plot(report: Report) -> str:
    """Draw how often predictions are right against how sure they were."""
    series = [("uncalibrated", report.reliability.uncalibrated, WRONG, "o", "--")]
    if report.reliability.calibrated is not None:
        series.append(("calibrated", report.reliability.calibrated, RIGHT, "s", "-"))
    total = report.num_examples - report.num_unlabelled

    def points(bins: list[ReliabilityBinReport]) -> list[tuple[float, float, int]]:
        return [
            (b.confidence, b.accuracy, b.count)
            for b in bins
            if b.confidence is not None and b.accuracy is not None
        ]

    def plot(figure: Figure, axes: Axes) -> None:
        axes.plot([0, 1], [0, 1], color=MUTED, linewidth=1, linestyle=":")
        for label, bins, colour, marker, line in series:
            found = points(bins)
            xs, ys = [p[0] for p in found], [p[1] for p in found]
            axes.plot(xs, ys, line, color=colour, linewidth=1.2, alpha=0.7)
            # The area of a point is its share of the texts: a bin of three texts says little.
            areas = [14 + 160 * p[2] / total for p in found]
            axes.scatter(
                xs, ys, s=areas, color=colour, marker=marker, alpha=0.8, linewidths=0, clip_on=False
            )
            axes.plot([], [], marker + line, color=colour, markersize=6, label=label)
        axes.set_xlim(0, 1.04)
        axes.set_ylim(0, 1.04)
        axes.xaxis.set_major_formatter(PercentFormatter(1, symbol=" %"))
        axes.yaxis.set_major_formatter(PercentFormatter(1, symbol=" %"))
        axes.set_xlabel("probability of the predicted class")
        axes.set_ylabel("predictions that are right")
        axes.legend(loc="upper left")

    eces = f"{words.number(report.ece.uncalibrated)} uncalibrated"
    if report.ece.calibrated is not None:
        eces += f", {words.number(report.ece.calibrated)} calibrated"
    label = f"Reliability diagram. Expected calibration error: {eces}."
    return draw("reliability", label, _WIDE, plot)


def risk_plot(report: Report) -> str | None:
    """Draw how many answers are wrong where only the surest are given; None without a curve."""
    found, made = report.selective, report.rejection
    if found is None:
        return None
    coverages = np.array([point.coverage for point in found.curve])
    risks = [point.risk for point in found.curve]
    right = 1 - risks[-1]
    best = np.maximum(coverages - right, 0) / coverages

    def plot(figure: Figure, axes: Axes) -> None:
        axes.plot(coverages, best, ":", color=MUTED, linewidth=1.2)
        axes.plot(coverages, risks, color=RIGHT)
        if made is not None and made.risk is not None:
            axes.plot([made.coverage], [made.risk], "X", color=WRONG, markersize=9, clip_on=False)
        axes.set_xlim(0, 1.02)
        axes.set_ylim(0, 1.15 * max(*risks, 0.01))
        axes.xaxis.set_major_formatter(PercentFormatter(1, symbol=" %"))
        axes.yaxis.set_major_formatter(PercentFormatter(1, symbol=" %"))
        axes.set_xlabel("texts that are answered")
        axes.set_ylabel("answers that are wrong")

    label = f"Risk-coverage curve. {words.confidence(found)}"
    return draw("risk", label, _WIDE, plot)


def ratio_plot(details: Details, *, likelihood: bool) -> str:
    """Draw a histogram of true class against best other class, right and wrong apart."""
    ratios, correct = details.ratios, details.correct
    low, high = np.percentile(ratios, [0.5, 99.5])
    edge = max(abs(float(low)), abs(float(high)), 1e-6)
    # Edges symmetric about 0, so that no bar holds both sides of the decision.
    half = 15
    edges = np.linspace(-edge, edge, 2 * half + 1)
    inside = np.clip(ratios, -edge, edge)
    right, _ = np.histogram(inside[correct], edges)
    wrong, _ = np.histogram(inside[~correct], edges)

    def plot(figure: Figure, axes: Axes) -> None:
        width = edges[1] - edges[0]
        for counts, bottom, colour in ((right, 0, RIGHT), (wrong, right, WRONG)):
            axes.bar(
                edges[:-1], counts, width, bottom, align="edge", color=colour, ec=colour, lw=0.4
            )
        axes.axvline(0, color=INK, linewidth=1)
        first, last = np.flatnonzero(right + wrong)[[0, -1]]
        axes.set_xlim(min(edges[first], -width), max(edges[last + 1], width))
        axes.yaxis.set_major_locator(MaxNLocator(5, integer=True))
        axes.grid(visible=False, axis="x")
        axes.set_ylim(0, 1.22 * float((right + wrong).max()))
        for text, place, align, colour in (
            (f"wrong: {words.count(int((~correct).sum()))}", 0.01, "left", WRONG),
            (f"right: {words.count(int(correct.sum()))}", 0.99, "right", RIGHT),
        ):
            axes.text(place, 0.99, text, ha=align, va="top", color=colour, transform=axes.transAxes)
        axes.set_xlabel(
            ("log-likelihood ratio" if likelihood else "log-odds")
            + ", true class against best other (nats)"
        )
        axes.set_ylabel("texts")

    label = (
        f"Histogram of true class against best other class. Median {words.nats(_median(ratios))} "
        f"nats; {int(correct.sum())} right, {int((~correct).sum())} wrong."
    )
    return draw("ratios", label, _WIDE, plot)


def training_plots(report: Report, limit: int = 24) -> list[tuple[str, str]]:
    """Draw the training curve of each model, on one scale; at most `limit`."""
    histories = [
        (name, training) for name, training in report.trainings.items() if training.history
    ][:limit]
    losses = [
        loss
        for _, training in histories
        for point in training.history
        for loss in (point.train_loss, point.validation_nll, point.averaged_nll)
        if loss is not None
    ]
    if not losses:
        return []
    margin = 0.08 * (max(losses) - min(losses)) or 0.1
    # Room for the legend above the curves.
    bounds = (min(losses) - margin, max(losses) + 3.5 * margin)
    drawn = []
    for number, (name, training) in enumerate(histories):
        epochs = [point.epoch for point in training.history]
        train = [point.train_loss for point in training.history]
        held_out = [_or_nan(point.validation_nll) for point in training.history]
        averaged = [_or_nan(point.averaged_nll) for point in training.history]

        def plot(
            figure: Figure,
            axes: Axes,
            epochs: list[float] = epochs,
            train: list[float] = train,
            held_out: list[float] = held_out,
            averaged: list[float] = averaged,
            best: float = training.best_epoch,
            unit: str = training.loss_per,
        ) -> None:
            axes.plot(epochs, train, "o--", color=MUTED, markersize=3.5, label="train")
            if not all(math.isnan(value) for value in held_out):
                axes.plot(epochs, held_out, "s-", color=RIGHT, markersize=4, label="held out")
                if not all(math.isnan(value) for value in averaged):
                    axes.plot(epochs, averaged, "^:", color=RIGHT, markersize=4, label="of mean")
                axes.axvline(best, color=WRONG, linewidth=1, linestyle=":", label="kept")
            axes.set_ylim(*bounds)
            axes.xaxis.set_major_locator(MaxNLocator(5, steps=[1, 2, 5, 10], min_n_ticks=2))
            axes.yaxis.set_major_locator(MaxNLocator(5))
            axes.set_xlabel("epoch")
            axes.set_ylabel(f"nats per {unit}")
            axes.legend(loc="upper right", ncols=3, fontsize=8.5, handlelength=1.6)

        averages = training.averaged_epochs
        label = (
            f"Training curve of {name}: train loss {words.nats(training.train_loss)}, "
            f"held out {words.nats(training.validation_nll)} nats per {training.loss_per}; "
            + (f"the mean of {training.averaged_epochs} epochs up to " if averages else "epoch ")
            + f"{training.best_epoch:g} was kept."
        )
        drawn.append((name, draw(f"training-{number}", label, (4.0, 2.5), plot)))
    return drawn


def _or_nan(value: float | None) -> float:
    return math.nan if value is None else value


def confusion_plot(report: Report) -> str:
    """Draw the confusion matrix as a heat map, for more classes than a table can show."""
    confusion = np.array(report.confusion.of(report.answer), dtype=np.float64)
    shares = confusion / np.maximum(confusion.sum(axis=1, keepdims=True), 1)
    size = len(shares)

    def plot(figure: Figure, axes: Axes) -> None:
        for row, column in zip(*np.nonzero(shares), strict=True):
            axes.fill_between(
                [column, column + 1],
                row,
                row + 1,
                color=RIGHT if row == column else WRONG,
                alpha=0.15 + 0.85 * shares[row, column],
                linewidth=0,
            )
        axes.set_xlim(0, size)
        axes.set_ylim(size, 0)
        axes.set_aspect("equal")
        axes.grid(visible=False)
        for side in ("top", "right"):
            axes.spines[side].set_visible(True)
            axes.spines[side].set_color(GRID)
        axes.xaxis.set_major_locator(MaxNLocator(8, integer=True))
        axes.yaxis.set_major_locator(MaxNLocator(8, integer=True))
        axes.set_xlabel("number of the predicted class")
        axes.set_ylabel("number of the true class")

    label = f"Confusion matrix of {size} classes as a heat map; the numbers are in report.json."
    return draw("confusion", label, (5.2, 4.8), plot)


def _median(values: np.ndarray) -> float:
    return float(np.median(values))
