"""The schema of report.json: every figure of a run, with its unit.

`docs/report-schema.md` is written from these models by `python -m gencls_core.report.schema_docs`,
and a test keeps it current. Times are seconds, log-probabilities are nats, memory is bytes.
"""

from __future__ import annotations

from typing import Any, Generic, Literal, TypeVar

from pydantic import Field

from gencls_core.report.schema_rejection import RejectionReport, SelectiveReport
from gencls_core.report_part import ReportPart
from gencls_core.selection_report import SelectionReport

__all__ = [
    "REPORT_FORMAT",
    "BaselineReport",
    "Both",
    "CalibrationReport",
    "ClassReport",
    "DatasetReport",
    "EnsembleReport",
    "EpochReport",
    "LikelihoodCheck",
    "PerplexityReport",
    "PriorReport",
    "ReliabilityBinReport",
    "Report",
    "ScoringTask",
    "TaskReport",
    "Timing",
    "TrainingTask",
]

REPORT_FORMAT: Literal[1] = 1

T = TypeVar("T")

Answer = Literal["uncalibrated", "calibrated"]


class Both(ReportPart, Generic[T]):
    """A figure by the plain rule of Bayes, and by the calibrated one."""

    uncalibrated: T = Field(description="From the log-likelihoods as they are, plus the log prior.")
    calibrated: T | None = Field(
        description="After scale, biases and the shares of a second system (where an ensemble is "
        "taken) were fitted on held-out texts; null without calibration."
    )

    def of(self, answer: Answer) -> T:
        """Give the figure of an answer."""
        if answer == "calibrated" and self.calibrated is not None:
            return self.calibrated
        return self.uncalibrated


class ClassReport(ReportPart):
    """How well one class is recognised."""

    precision: float = Field(description="Right among the texts given this class; 0 if none were.")
    recall: float = Field(description="Right among the texts of this class; 0 if there are none.")
    f1: float = Field(description="Harmonic mean of precision and recall.")
    support: int = Field(description="Test texts labelled with this class.")


class ReliabilityBinReport(ReportPart):
    """Texts whose predicted class has a probability in (lower, upper]."""

    lower: float = Field(description="Lower edge, excluded.")
    upper: float = Field(description="Upper edge, included.")
    count: int = Field(description="Texts in the bin.")
    confidence: float | None = Field(description="Mean probability of the predicted class.")
    accuracy: float | None = Field(description="Part of them that is right; null for none.")


class PriorReport(ReportPart):
    """The class prior that was used."""

    name: str = Field(
        description="As it was asked for: `train`, `uniform`, `unlabelled` or `World=0.4,…`."
    )
    per_class: dict[str, float] = Field(description="Probability of each class.")
    standard_error: dict[str, float] | None = Field(
        None,
        description="Of each probability, where they were estimated from the test texts without "
        "their labels; else null.",
    )


MEMBERS = ("likelihoods", "second system", "both")
"""What an ensemble averages, in the order of `calibration.Pool`."""


class PoolMemberReport(ReportPart):
    """One of the calibrated posteriors that an ensemble averages."""

    of: str = Field(description="`likelihoods`, `second system`, or `both` in one exponent.")
    share: float = Field(description="Its share of the mean; the shares sum to 1.")
    scale: float = Field(description="Multiplies the likelihoods' scores; 0 without them.")
    weight: float = Field(
        description="Multiplies the second system's log-posterior, less the log of the class "
        "frequencies that it learned from; 0 without it."
    )
    biases: dict[str, float] = Field(description="Added per class, in nats; they sum to 0.")


class EnsembleReport(ReportPart):
    """A second system beside the likelihoods, its shares fitted on held-out texts."""

    system: str = Field(description="The second system.")
    taken: bool = Field(description="Whether the calibrated figures are with it.")
    reason: str = Field(description="Why, in words.")
    members: list[PoolMemberReport] = Field(
        description="What is averaged, and with which shares; none where it is not taken."
    )
    num_texts: int = Field(description="Labelled held-out texts that it was judged by.")
    nll_alone: float = Field(
        description="Their mean −log P(true class), nats, calibrated without the text itself."
    )
    nll_together: float = Field(description="The same with the second system.")
    standard_error: float = Field(description="Of the difference, text by text, nats.")


class CalibrationReport(ReportPart):
    """Scale and biases of the likelihoods alone, fitted on held-out texts; and an ensemble."""

    scale: float = Field(description="Multiplies every score; below 1: the raw one is too sure.")
    biases: dict[str, float] = Field(description="Added per class, in nats; they sum to 0.")
    num_texts: int = Field(
        description="Labelled texts that it was fitted on: held out, or of a cross-validation."
    )
    nll_before: float = Field(description="Their mean −log P(true class), nats, uncalibrated.")
    nll_after: float = Field(
        description="The same, calibrated, with the second system where it is taken."
    )
    ensemble: EnsembleReport | None = Field(
        None, description="Null where none was asked for, or the second system has no scores."
    )


class PerplexityReport(ReportPart):
    """Perplexity per token of the test texts of one class."""

    own: float = Field(description="exp(−Σ scores / Σ tokens) as texts of their own class.")
    others: float | None = Field(description="Mean of the same as texts of the other classes.")
    texts: int = Field(description="Test texts of the class.")
    tokens: int = Field(description="Tokens scored in them.")


class BaselineReport(ReportPart):
    """Another system on the same test texts."""

    accuracy: float = Field(description="Part of the labelled test texts it labels correctly.")
    accuracy_ci95: tuple[float, float] = Field(description="95 % Wilson interval of the accuracy.")
    macro_f1: float = Field(description="Unweighted mean of F1 over the classes.")
    num_examples: int = Field(description="Labelled test texts it was measured on.")


class LikelihoodCheck(ReportPart):
    """Exact log-likelihoods against the mean loss times the number of tokens."""

    rows: int = Field(description="(text, class) pairs compared.")
    max_abs_difference: float = Field(description="Largest absolute difference, nats.")
    mean_abs_difference: float = Field(description="Mean absolute difference, nats.")
    argmax_disagreements: int = Field(description="Texts whose predicted class would differ.")


class Timing(ReportPart):
    """What the run took, summed over its tasks; tasks may have run side by side."""

    train_seconds: float | None = Field(description="Training, summed over the classes.")
    train_tokens_per_second: float | None = Field(description="Tokens trained on per second.")
    scoring_seconds: float = Field(description="Scoring the test texts, summed over the shards.")
    scoring_tokens: int = Field(description="Tokens scored, summed over texts and classes.")
    scoring_tokens_per_second: float | None = Field(description="Null where no time was taken.")
    wall_seconds: float | None = Field(description="Wall time of the whole run.")


class EpochReport(ReportPart):
    """One point of a training curve."""

    epoch: float = Field(description="Passes over the train texts so far.")
    step: int = Field(description="Optimiser steps so far.")
    train_loss: float = Field(description="Nats per unit, mean since the last point.")
    validation_nll: float | None = Field(description="Nats per unit on held-out texts.")
    learning_rate: float = Field(description="At this step.")
    averaged_nll: float | None = Field(
        None,
        description="`validation_nll` of the mean of weights; null without one of two epochs.",
    )


class TrainingTask(ReportPart):
    """Training of one model: of a class, or of all classes."""

    texts: int = Field(description="Its train texts.")
    tokens: int = Field(description="Tokens trained on, over all epochs.")
    seconds: float = Field(description="Time it took.")
    tokens_per_second: float = Field(description="Tokens trained on per second.")
    steps: int = Field(description="Optimiser steps.")
    epochs: float = Field(description="Passes over the train texts.")
    best_epoch: float = Field(description="The epoch after which the kept weights were taken.")
    averaged_epochs: int = Field(
        0, description="Ends of epochs that they are the mean of; 0: one epoch's own weights."
    )
    loss_per: str = Field(
        description="Unit of the losses: `token`, or `text` where training compared classes."
    )
    train_loss: float = Field(description="Nats per unit in the last epoch.")
    validation_nll: float | None = Field(description="Nats per unit, of the kept weights.")
    validation_perplexity: float | None = Field(
        description="exp(validation_nll); null where the unit is a text."
    )
    peak_memory_bytes: int = Field(description="Peak resident memory of the process.")
    peak_gpu_memory_bytes: int = Field(description="Peak GPU memory; 0 on a CPU.")
    device: str = Field(description="Where it ran.")
    precision: str = Field(description="Arithmetic it ran in.")
    threads: int = Field(description="CPU threads of the process.")
    history: list[EpochReport] = Field(description="The training curve.")


class ScoringTask(ReportPart):
    """Scoring of the test texts under one class."""

    shards: int = Field(description="Score shards.")
    rows: int = Field(description="Texts scored.")
    tokens: int = Field(description="Tokens scored.")
    seconds: float = Field(description="Time it took, summed over the shards.")
    peak_memory_bytes: int = Field(description="Largest peak resident memory of a scorer.")


class TaskReport(ReportPart):
    """What one class cost."""

    training: TrainingTask | None = Field(
        description="Null where no class model was found, or one model serves all classes."
    )
    scoring: ScoringTask = Field(description="Scoring of the test texts under this class.")


class DecisionReport(ReportPart):
    """Decisions with the lowest expected cost, beside the likeliest classes."""

    costs: list[list[float]] = Field(
        description="What a decision costs: rows are true classes, columns decided ones."
    )
    mean_cost: float = Field(description="Of a labelled text.")
    mean_cost_of_likeliest: float = Field(description="The same, were the answer decided.")
    saved_ci95: tuple[float, float] | None = Field(
        description="95 % interval of the second minus the first, text by text (bootstrap); null "
        "for one text."
    )
    expected_cost: float = Field(
        description="Mean over the same texts of what the posterior expects; far from `mean_cost` "
        "where it is not calibrated."
    )
    accuracy: float = Field(description="Part of the labelled texts decided correctly.")
    confusion: list[list[int]] = Field(
        description="Texts: rows are true classes, columns decided ones."
    )


class DatasetReport(ReportPart):
    """The data that was used."""

    name: str = Field(description="Name of the data set.")
    fingerprint: str = Field(description="SHA-256 over the classes and all rows.")
    source: dict[str, Any] = Field(description="Where it came from.")
    counts: dict[str, dict[str, int]] = Field(description="Texts per split and class.")
    warnings: list[str] = Field(description="What was noticed when the data was prepared.")


class Report(ReportPart):
    """report.json: what one system did on one set of test texts."""

    format: Literal[1] = Field(default=REPORT_FORMAT, description="Version of this schema.")
    generated: str = Field(description="When this report was written (ISO 8601, UTC).")
    system: str = Field(description="The system that is reported; `class-lm`: the class models.")
    quantity: str = Field(
        description="What its scores are: `log_likelihood`, `pseudo_log_likelihood` or "
        "`log_posterior` (whose prior is inside it)."
    )
    answer: Answer = Field(
        "uncalibrated",
        description="The figures that the run stands by: `calibrated` where its recipe was judged "
        "by calibrated held-out texts or a second system stands beside the likelihoods.",
    )
    classes: list[str] = Field(description="The classes; the order of every matrix.")
    num_examples: int = Field(description="Test texts, labelled or not.")
    num_unlabelled: int = Field(description="Test texts without a label, left out of all figures.")
    accuracy: Both[float] = Field(description="Part of the labelled texts labelled correctly.")
    accuracy_ci95: Both[tuple[float, float]] = Field(description="Its 95 % Wilson interval.")
    macro_f1: Both[float] = Field(description="Unweighted mean of F1 over the classes.")
    weighted_f1: Both[float] = Field(description="Mean of F1 weighted by the classes' texts.")
    nll: Both[float] = Field(description="Mean −log P(true class | text), nats per text.")
    brier: Both[float] = Field(description="Mean squared error of the probabilities, 0 to 2.")
    ece: Both[float] = Field(description="Expected calibration error over 15 bins, 0 to 1.")
    ece_by_chance: Both[float] = Field(
        description="What that is in the mean of so many texts where each probability is right: "
        "an error no larger shows nothing."
    )
    per_class: Both[dict[str, ClassReport]] = Field(description="Figures of each class.")
    confusion: Both[list[list[int]]] = Field(
        description="Texts: rows are true classes, columns predicted ones."
    )
    reliability: Both[list[ReliabilityBinReport]] = Field(
        description="15 equal-width bins of the predicted class's probability."
    )
    prior: PriorReport = Field(description="The class prior.")
    calibration: CalibrationReport | None = Field(description="Null: `notes` says why.")
    decisions: DecisionReport | None = Field(
        None, description="By costs of mistakes; null where none were given."
    )
    selective: SelectiveReport | None = Field(
        None,
        description="How well confidence tells right answers from wrong ones: that of `rejection`, "
        "else of the answer's posterior; null for fewer than 20 labelled texts.",
    )
    rejection: RejectionReport | None = Field(
        None,
        description="Texts that are not answered; null where none were to be refused. All other "
        "figures are of all texts.",
    )
    perplexity: dict[str, PerplexityReport | None] = Field(
        description="Per class; null without test texts, or where scores are no likelihoods."
    )
    truncated: int = Field(description="Test texts that were cut before scoring.")
    windowed: int = Field(description="Test texts that were scored in more than one window.")
    baselines: dict[str, BaselineReport] = Field(
        description="Every other system in the score store, and `majority`: always the class "
        "with the most train texts."
    )
    likelihood_check: LikelihoodCheck | None = Field(
        description="Null where the loss was not scored beside the exact log-likelihood."
    )
    timing: Timing = Field(description="What the run took.")
    tasks: dict[str, TaskReport] = Field(description="What each class took.")
    training: TrainingTask | None = Field(
        description="Training of the one model of all classes; null where each has its own."
    )
    selection: SelectionReport | None = Field(
        None, description="How the recipe was chosen; null where it was given."
    )
    dataset: DatasetReport = Field(description="The data.")
    model: dict[str, Any] = Field(description="The base model, as in run.json.")
    config: dict[str, Any] = Field(
        description="Every setting, as in run.json; of the training nothing is left open."
    )
    environment: dict[str, Any] = Field(description="Versions and machine, as in run.json.")
    score_digest: str = Field(description="SHA-256 over the score shards this is computed from.")
    notes: list[str] = Field(description="What a reader should know, in plain sentences.")

    @property
    def trainings(self) -> dict[str, TrainingTask]:
        """Every training by what it is called: the class, or `all classes`."""
        found = {name: task.training for name, task in self.tasks.items() if task.training}
        return found if self.training is None else {"all classes": self.training, **found}
