"""How a recipe was chosen, put together for `run.json` and the report."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace

from cluster.cross_validation import Part, parts_of
from cluster.failures import LASTING
from cluster.preparation import Preparation
from cluster.trial import Outcome
from cluster.trial_costs import Costs, training_of_candidate
from gencls_core.config import MIN_HELD_OUT, RunConfig
from gencls_core.ensemble import FINE_TUNE
from gencls_core.errors import GenclsError, counted
from gencls_core.selection import Candidate, Verdict, candidates_of, judge
from gencls_core.selection_report import SelectionReport, TrialReport
from gencls_core.storage import digest_of

__all__ = ["Tried", "choice_report", "failed_under", "key_of", "untried", "wants_fine_tune"]


def wants_fine_tune(config: RunConfig) -> bool:
    """Say whether a fine-tune is to stand beside where there is time for it."""
    return config.posterior.ensemble in (None, "auto")


def key_of(config: RunConfig, first: Preparation, *, scores: bool) -> str:
    """Name all that a choice depends on.

    Args:
        config: what is asked for.
        first: the run with any of its candidates.
        scores: whether texts are scored, too: what is only trained has no cross-validation, and no
            fine-tune beside it.
    """
    sections = [config.model, config.sequence, config.training, config.recipe]
    settings = [section.model_dump(mode="json") for section in sections]
    del settings[-1]["folds"]
    parts = parts_of(config, first.dataset) if scores else 0
    return digest_of(
        {
            "settings": settings,
            "class_words": config.systems.class_words,
            "candidates": [candidate.name for candidate in candidates_of(config)],
            "classes": first.dataset.classes,
            # The test texts have no part in it.
            "texts": [
                info.fingerprint for name, info in first.dataset.splits.items() if name != "test"
            ],
            "base": first.base.digest,
            "precision": first.precision,
            # Its time is kept free before other recipes are tried.
            "fine_tune": scores and wants_fine_tune(config),
            "parts": parts,
            # Second systems score the parts while the choice is made.
            "beside": [config.posterior.ensemble or "auto", config.baseline] if parts else None,
        }
    )


def failed_under(config: RunConfig) -> str:
    """Name the settings that a passing failure, such as a lack of memory, may hang on."""
    return digest_of(config.compute.model_dump(mode="json"))


@dataclass
class Tried:
    """What a choice has come to so far."""

    first: Preparation
    """The run with its first candidate."""
    scores: bool
    """Whether texts are scored, too."""
    costs: Costs
    parts: list[Part] = field(default_factory=list)
    """Of a cross-validation that judge; none where held-out texts do."""
    outcomes: dict[str, Outcome] = field(default_factory=dict)
    """Of the candidates that were tried, in order."""
    left_out: dict[str, str] = field(default_factory=dict)
    """Candidate → why it was not tried."""
    part_models: dict[str, dict[str, dict[str, str]]] = field(default_factory=dict)
    """Candidate, or fine-tune → folder of each part → class (or nothing) → digest."""
    errors: dict[str, GenclsError] = field(default_factory=dict)
    """Candidate, or second system → what went wrong just now."""
    spent: float = 0.0
    """Seconds."""
    kept_free: float = 0.0
    """Seconds of the fine-tune that is to stand beside; 0 for none."""
    fine_tune_note: str | None = None
    """Why there is none, where it was thought of."""

    @property
    def config(self) -> RunConfig:
        """What was asked for."""
        return self.costs.config

    @property
    def judging(self) -> int:
        """Texts that recipes are judged by."""
        if not self.parts:
            return self.first.dataset.held_out
        return sum(part.dataset.held_out for part in self.parts)

    @property
    def left(self) -> float:
        """Seconds that remain of the budget."""
        return self.costs.budget - self.spent

    def took(self, found: Outcome) -> None:
        """Count what a training and its scores took; the first may set the budget."""
        self.spent += found.seconds
        if not self.costs.first:
            self.costs = replace(self.costs, first=found.seconds)

    def report(self, chosen: Candidate, reason: str, trials: list[TrialReport]) -> SelectionReport:
        """Say what is taken and why."""
        # What may not fail again is tried again under other settings.
        passing = any(not isinstance(error, LASTING) for error in self.errors.values())
        return SelectionReport(
            key=key_of(self.config, self.first, scores=self.scores),
            failed_under=failed_under(self.config) if passing else None,
            budget_seconds=self.costs.budget,
            held_out_texts=self.judging,
            parts=len(self.parts),
            cut_into=self.costs.parts if self.parts else 0,
            part_models={
                folder: models
                for name in (chosen.name, FINE_TUNE)
                for folder, models in self.part_models.get(name, {}).items()
            },
            chosen=chosen.name,
            rate_chosen=chosen.learning_rate is not None,
            reason=reason,
            fine_tune=self.kept_free > 0,
            fine_tune_note=self.fine_tune_note,
            trials=trials,
        )


def untried(tried: Tried, reason: str) -> SelectionReport:
    """Say that the first recipe was taken without a trial."""
    rows = [
        _row(candidate, tried, "not tried" if number else None)
        for number, candidate in enumerate(tried.costs.candidates)
    ]
    nothing = replace(tried, parts=[], part_models={})
    return nothing.report(tried.costs.candidates[0], f"{reason}, so the first was taken", rows)


def choice_report(tried: Tried) -> SelectionReport:
    """Judge what was tried, and say what is taken and why."""
    outcomes, names = tried.outcomes, list(tried.outcomes)
    verdict = judge([outcome.nll for outcome in outcomes.values()])
    rows = []
    for candidate in tried.costs.candidates:
        row = _row(candidate, tried, tried.left_out.get(candidate.name, "not tried"))
        if candidate.name in outcomes:
            number, outcome = names.index(candidate.name), outcomes[candidate.name]
            figures = {
                "nll": verdict.means[number],
                "above_best": verdict.differences[number],
                "standard_error": verdict.errors[number],
                "accuracy": outcome.accuracy,
                "train_seconds": outcome.train_seconds,
                "seconds": outcome.seconds,
                "note": None,
            }
            row = row.model_copy(update=figures)
        rows.append(row)
    chosen = next(c for c in tried.costs.candidates if c.name == names[verdict.chosen])
    reason = _reason(names, tried.left_out, verdict)
    if tried.judging < MIN_HELD_OUT:
        fewer = tried.parts and len(tried.parts) < tried.costs.parts
        texts = counted(tried.judging, "judged train text" if fewer else "train text")
        reason = f"{texts} cannot tell recipes apart, so the first was taken"
    return tried.report(chosen, reason, rows)


def _row(candidate: Candidate, tried: Tried, note: str | None) -> TrialReport:
    training = training_of_candidate(candidate, tried.config, tried.first.dataset)
    return TrialReport(
        name=candidate.name,
        recipe=candidate.recipe,
        learning_rate=training.learning_rate,
        note=note,
    )


def _reason(tried: Sequence[str], left_out: Mapping[str, str], verdict: Verdict) -> str:
    if len(tried) == 1:
        failed = [reason.startswith("it failed") for reason in left_out.values()]
        if not any(failed):
            return "the budget left time for no other"
        others = "no other could be trained"
        return others if all(failed) else f"{others}, or the budget left no time for it"
    if verdict.chosen == verdict.best:
        return f"the lowest held-out NLL of {len(tried)} that were tried"
    return (
        f"its held-out NLL cannot be told from the lowest, that of {tried[verdict.best]} "
        f"({verdict.differences[verdict.chosen]:.3f} ± {verdict.errors[verdict.chosen]:.3f} nats "
        f"above it), and it comes first of {len(tried)} that were tried"
    )
