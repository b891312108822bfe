"""What report.json says of confidence and of texts that are not answered."""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from gencls_core.report_part import ReportPart

__all__ = ["RejectionReport", "RiskPointReport", "SelectiveReport"]


class RiskPointReport(ReportPart):
    """What comes out where only the surest part of the texts is answered."""

    coverage: float = Field(description="Part of the labelled texts that is answered.")
    risk: float = Field(description="Part of these that is answered wrongly.")


class SelectiveReport(ReportPart):
    """How well a confidence tells right answers from wrong ones, on the labelled test texts."""

    curve: list[RiskPointReport] = Field(
        description="The risk-coverage curve, at most 101 points; the last answers every text."
    )
    aurc: float = Field(description="Area under it: mean risk over all coverages; lower is better.")
    aurc_best: float = Field(
        description="The area if every right answer were surer than every wrong one."
    )
    auroc: float | None = Field(
        description="Probability that a right answer is surer than a wrong one; null where all are "
        "right, or all wrong."
    )


class RejectionReport(ReportPart):
    """A threshold on the confidence, chosen on held-out texts, and what it does to test texts."""

    method: Literal["posterior", "background", "both"] = Field(
        description="The confidence. `posterior`: log-odds of the answer against all other "
        "classes, by the posterior that the run stands by; `background`: how much likelier the "
        "text is under the classes than under the untrained base, per token; `both`: the lower of "
        "a text's ranks by these two among the held-out texts."
    )
    wanted_coverage: float | None = Field(
        description="Coverage that was asked for; null where it was an error rate."
    )
    wanted_error_rate: float | None = Field(
        description="Error rate among answered texts that was asked for; null where it was a "
        "coverage."
    )
    threshold: float | None = Field(
        description="Texts whose confidence is above it are answered, nats, of `both` a rank "
        "among the held-out texts; null: all are."
    )
    held_out: int = Field(description="Labelled held-out texts that it was chosen on.")
    held_out_answered: int = Field(description="Those of them above it.")
    held_out_mistakes: int = Field(description="Wrong answers among these.")
    expected_coverage_ci95: tuple[float, float] = Field(
        description="95 % interval of the coverage, for texts like those held out."
    )
    promised: bool | None = Field(
        description="Whether held-out texts show that the error rate is not exceeded, with a "
        "probability of 95 %; false: the threshold is a guess. Null of a coverage."
    )
    risk_bound: float | None = Field(
        description="Upper bound of the error rate by the held-out texts, with that probability; "
        "null of a coverage."
    )
    held_out_needed: int | None = Field(
        description="Held-out texts above the threshold that a promise needs at the least, all "
        "answered rightly; null of a coverage."
    )
    answered: int = Field(description="Test texts that are answered, labelled or not.")
    coverage: float = Field(description="Part of the test texts that is answered.")
    coverage_ci95: tuple[float, float] = Field(description="Its 95 % Wilson interval.")
    risk: float | None = Field(
        description="Part of the answered labelled test texts that is answered wrongly; null "
        "where none is answered."
    )
    risk_ci95: tuple[float, float] | None = Field(description="Its 95 % Wilson interval.")
    risk_of_all: float = Field(description="The same, were every text answered.")
