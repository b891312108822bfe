"""How a recipe was chosen, as `run.json` and `report.json` say it. Times are seconds."""

from __future__ import annotations

from pydantic import Field

from gencls_core.report_part import ReportPart

__all__ = ["SelectionReport", "TrialReport"]


class TrialReport(ReportPart):
    """A recipe that might have been taken."""

    name: str = Field(description="Recipe, and its learning rate where that is not the default.")
    recipe: str = Field(description="`joint`, `conditional` or `independent`.")
    learning_rate: float = Field(description="Peak learning rate.")
    nll: float | None = Field(
        None,
        description="Mean −log P(true class) of the held-out texts, nats, calibrated without the "
        "text itself; null where it was not tried.",
    )
    above_best: float | None = Field(None, description="Its difference from the lowest, nats.")
    standard_error: float | None = Field(
        None, description="Of that difference, text by text, nats."
    )
    accuracy: float | None = Field(None, description="On the held-out texts.")
    train_seconds: float | None = Field(None, description="Training.")
    seconds: float | None = Field(None, description="Training, and scoring the held-out texts.")
    note: str | None = Field(None, description="Why it was not tried.")


class SelectionReport(ReportPart):
    """How `--recipe auto` chose; the test texts had no part in it."""

    key: str = Field(description="SHA-256 over what the choice depends on.")
    budget_seconds: float = Field(description="Time that trying might take.")
    held_out_texts: int = Field(
        description="Texts that recipes are judged by; with too few the first is taken."
    )
    parts: int = Field(
        0,
        description="Parts of a cross-validation that were judged: the texts are then of the train "
        "split, each scored by a model that did not learn from its part; 0: they were held out.",
    )
    cut_into: int = Field(
        0,
        description="Parts that the train texts were cut into; fewer are judged where the budget "
        "has no time for all.",
    )
    part_models: dict[str, dict[str, str]] = Field(
        {},
        description="Folder below `candidates/` → class (or nothing) → digest of the models that "
        "scored the parts, of the recipe that was taken and of a fine-tune.",
    )
    chosen: str = Field(description="Name of the recipe that was taken.")
    rate_chosen: bool = Field(
        False,
        description="Whether its learning rate was chosen, too, and not given or the default.",
    )
    reason: str = Field(description="Why, in words.")
    fine_tune: bool = Field(
        False,
        description="Whether the budget has time for a discriminative fine-tune of the base, to "
        "stand beside the likelihoods unless held-out texts speak against it.",
    )
    fine_tune_note: str | None = Field(
        None, description="Why there is no such fine-tune, where it was thought of."
    )
    failed_under: str | None = Field(
        None,
        description="Where something failed for want of memory or of a worker: SHA-256 over the "
        "compute settings. Under others the recipe is chosen again.",
    )
    trials: list[TrialReport] = Field(description="All recipes, the most promising first.")
