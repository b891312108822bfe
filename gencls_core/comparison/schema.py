"""The schema of a comparison's report.json: every figure, with its unit and what it rests on.

Times are seconds, log-probabilities are nats.
"""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from gencls_core.report_part import ReportPart

__all__ = [
    "ALPHA",
    "COMPARISON_FORMAT",
    "Answer",
    "Comparison",
    "CurvePoint",
    "EstimateReport",
    "PairReport",
    "SystemReport",
    "TextsReport",
]

COMPARISON_FORMAT: Literal[1] = 1
ALPHA = 0.05
"""Corrected p-values below are called significant."""


class EstimateReport(ReportPart):
    """A figure with its 95 % interval."""

    value: float = Field(description="Mean over the repetitions.")
    low: float = Field(description="Lower end of the 95 % interval.")
    high: float = Field(description="Upper end.")
    method: str = Field(description="`wilson`, or the kind of bootstrap interval.")
    sources: tuple[str, ...] = Field(
        description="What was allowed to vary: `texts`, and `seeds` where there are repetitions."
    )


class SystemReport(ReportPart):
    """One system, trained on so many texts."""

    name: str = Field(description="The system, with the settings in which variants differ.")
    system: str = Field(description="The system's name in the score store.")
    quantity: str = Field(description="What its scores are.")
    runs: list[str] = Field(description="Run directories, one per repetition.")
    seeds: list[tuple[int, int]] = Field(description="Seeds of the data and of the training.")
    sample: int | None = Field(description="Train texts per class asked for; null: all.")
    train_texts: float = Field(description="Mean train texts per class, held-out ones included.")
    accuracy: EstimateReport = Field(description="Part of the texts labelled correctly.")
    macro_f1: EstimateReport = Field(description="Unweighted mean of F1 over the classes.")
    nll: EstimateReport = Field(description="Mean −log P(true class | text), nats per text.")
    ece: EstimateReport = Field(description="Expected calibration error over 15 bins.")
    uncalibrated_accuracy: float | None = Field(
        description="Mean accuracy without the calibration; null where there is none."
    )
    train_seconds: float | None = Field(
        description="Training, mean over the repetitions; null where nothing is trained."
    )
    seconds_per_1000_texts: float = Field(
        description="Scoring 1,000 texts under all classes, in batches, mean over the repetitions."
    )


class PairReport(ReportPart):
    """Two systems, trained on equally many texts, on the same test texts."""

    a: str = Field(description="One system.")
    b: str = Field(description="The other.")
    sample: int | None = Field(description="Train texts per class of both.")
    difference: float = Field(description="Accuracy of a minus accuracy of b.")
    low: float = Field(description="Lower end of its 95 % interval.")
    high: float = Field(description="Upper end.")
    sources: tuple[str, ...] = Field(description="What the interval rests on.")
    only_a: int = Field(description="Texts that only a's first run gets right.")
    only_b: int = Field(description="Texts that only b's first run gets right.")
    mcnemar_p: float = Field(description="Exact McNemar test of the first runs.")
    mcnemar_method: str = Field(description="`exact`, or `mid-p` where few texts differ.")
    bootstrap_p: float = Field(description="Two-sided, of the difference of means.")
    holm_p: float = Field(description="`holm_of`'s p-value, corrected over all pairs.")
    holm_of: str = Field(description="`mcnemar`, or `bootstrap` where a system has repetitions.")


class CurvePoint(ReportPart):
    """Accuracy of a system after so many train texts."""

    system: str = Field(description="The system.")
    train_texts: float = Field(description="Mean train texts per class.")
    accuracy: EstimateReport = Field(description="Accuracy.")


class Answer(ReportPart):
    """One of the questions that a comparison is made for."""

    question: str = Field(description="The question.")
    verdict: Literal["yes", "no", "not shown", "not asked"] = Field(
        description="`not shown`: the interval spans zero; `not asked`: a system is missing."
    )
    words: str = Field(description="The answer in a sentence, with its figures.")


class TextsReport(ReportPart):
    """The texts that all systems were scored on."""

    name: str = Field(description="Name of the data set.")
    fingerprint: str = Field(description="SHA-256 over id, text and label of every test text.")
    texts: dict[str, int] = Field(description="Labelled test texts per class.")
    warnings: list[str] = Field(description="What was noticed when the data was prepared.")


class Comparison(ReportPart):
    """report.json of a comparison."""

    format: Literal[1] = Field(default=COMPARISON_FORMAT, description="Version of this schema.")
    generated: str = Field(description="When it was written (ISO 8601, UTC).")
    test: TextsReport = Field(description="The test texts.")
    systems: list[SystemReport] = Field(description="Every system at every number of train texts.")
    pairs: list[PairReport] = Field(
        description="Every two systems at the largest number of train texts."
    )
    learning_curve: list[CurvePoint] = Field(description="Empty for one number of train texts.")
    questions: list[Answer] = Field(description="The questions, answered from the figures.")
    notes: list[str] = Field(description="What a reader should know.")
