"""report.html: one page that needs no network and no other file.

A script makes the table of texts; everything else is there without it.
"""

from __future__ import annotations

import math
from base64 import b64encode
from dataclasses import dataclass
from hashlib import sha256
from importlib.resources import files
from typing import Any

import numpy as np

from gencls_core.report import plots, words
from gencls_core.report.details import Details
from gencls_core.report.schema import Report
from gencls_core.report.templates import template
from gencls_core.report.texts import Texts, as_json

__all__ = ["render_html"]

_TABLE_CLASSES = 16
"""Classes up to which the confusion matrix is a table; beyond, it is drawn."""
_SHOWN_CURVES = 24


@dataclass(frozen=True)
class _Figure:
    """A figure, uncalibrated beside calibrated."""

    name: str
    meaning: str
    uncalibrated: str
    calibrated: str


@dataclass(frozen=True)
class _Cell:
    count: int
    share: float
    diagonal: bool

    @property
    def shade(self) -> int:
        """Strength of the cell's colour in percent; 0 only for an empty cell."""
        return 0 if not self.count else round(8 + 52 * self.share)


def render_html(report: Report, details: Details, texts: Texts) -> str:
    """Give the page; everything from the data set is escaped, and only our own script runs."""
    script = files(__package__).joinpath("texts.js").read_text(encoding="utf-8")
    curves = plots.training_plots(report, _SHOWN_CURVES)
    trained = len(report.trainings)
    return template("gencls_core.report", "report.html.j2").render(
        report=report,
        headline=words.headline(report),
        figures=_figures(report),
        confusion=_confusion(report) if len(report.classes) <= _TABLE_CLASSES else None,
        confusion_svg=(
            None if len(report.classes) <= _TABLE_CLASSES else plots.confusion_plot(report)
        ),
        confusions=_largest_confusions(report),
        accuracy_svg=plots.accuracy_plot(report),
        reliability_svg=plots.reliability_plot(report),
        ratio_svg=plots.ratio_plot(details, likelihood=report.quantity != "log_posterior"),
        risk_svg=plots.risk_plot(report),
        median_ratio=words.nats(float(np.median(details.ratios))),
        curves=curves,
        curves_left_out=max(0, trained - len(curves)) if curves else 0,
        texts=texts,
        texts_json=as_json(texts, report.classes),
        script=script,
        script_digest=b64encode(sha256(script.encode()).digest()).decode(),
        settings=_settings(report),
    )


def _figures(report: Report) -> list[_Figure]:
    def interval(bounds: tuple[float, float] | None) -> str:
        if bounds is None:
            return "–"
        return f"{100 * bounds[0]:.1f}–{100 * bounds[1]:.1f}{words.NBSP}%"

    accuracy, intervals = report.accuracy, report.accuracy_ci95
    figures = [
        _Figure(
            "Accuracy",
            "texts labelled correctly",
            words.percent(accuracy.uncalibrated),
            words.percent(accuracy.calibrated),
        ),
        _Figure(
            f"95{words.NBSP}% interval",
            "Wilson, of the accuracy",
            interval(intervals.uncalibrated),
            interval(intervals.calibrated),
        ),
    ]
    for name, meaning, both, shown in (
        ("Macro F1", "mean over the classes", report.macro_f1, words.number),
        ("Weighted F1", "mean weighted by texts", report.weighted_f1, words.number),
        (
            "NLL",
            f"nats per text; guessing evenly: {math.log(len(report.classes)):.2f}",
            report.nll,
            words.nats,
        ),
        ("Brier score", "0 is perfect, 2 worst", report.brier, words.number),
        ("Calibration error", "expected, 15 bins; 0 is best", report.ece, words.number),
        (
            "… by chance",
            "of so many texts, were each probability right",
            report.ece_by_chance,
            words.number,
        ),
    ):
        figures.append(_Figure(name, meaning, shown(both.uncalibrated), shown(both.calibrated)))
    return figures


def _confusion(report: Report) -> list[tuple[str, list[_Cell]]]:
    return [
        (
            name,
            [
                _Cell(cell, cell / max(1, sum(row)), number == column)
                for column, cell in enumerate(row)
            ],
        )
        for number, (name, row) in enumerate(
            zip(report.classes, report.confusion.of(report.answer), strict=True)
        )
    ]


def _largest_confusions(report: Report, limit: int = 15) -> list[tuple[str, str, int]]:
    found = [
        (report.classes[row], report.classes[column], cell)
        for row, cells in enumerate(report.confusion.of(report.answer))
        for column, cell in enumerate(cells)
        if row != column and cell
    ]
    return sorted(found, key=lambda pair: -pair[2])[:limit]


def _settings(report: Report) -> list[tuple[str, list[tuple[str, str]]]]:
    """Give every section of the settings as names and values."""
    sections: dict[str, list[tuple[str, str]]] = {"run": []}
    for name, value in report.config.items():
        if isinstance(value, dict):
            sections[name] = [(key, _shown(entry)) for key, entry in value.items()]
        else:
            sections["run"].append((name, _shown(value)))
    return [(name, entries) for name, entries in sections.items() if entries]


def _shown(value: Any) -> str:
    if value is None:
        return "–"
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, list | tuple):
        return ", ".join(map(str, value))
    return str(value)
