"""How a recipe was chosen, put together for `run.json` and the report."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from cluster.cross_validation import parts_of
from cluster.preparation import Preparation
from cluster.trial import Outcome
from cluster.trial_costs import training_of_candidate
from gencls_core.config import MIN_HELD_OUT, RunConfig
from gencls_core.ensemble import FINE_TUNE
from gencls_core.errors import counted
from gencls_core.selection import Candidate, Verdict, candidates_of, judge
from gencls_core.selection_report import SelectionReport, TrialReport
from gencls_core.storage import digest_of

__all__ = ["choice_report", "failed_under", "key_of", "untried", "wants_fine_tune"]


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


def untried(
    config: RunConfig, first: Preparation, reason: str, *, scores: bool, passing: bool = False
) -> SelectionReport:
    """Say that the first recipe was taken without a trial."""
    candidates = candidates_of(config)
    return SelectionReport(
        key=key_of(config, first, scores=scores),
        failed_under=failed_under(config) if passing else None,
        budget_seconds=config.recipe.budget_seconds,
        held_out_texts=first.dataset.held_out,
        chosen=candidates[0].name,
        rate_chosen=candidates[0].learning_rate is not None,
        reason=f"{reason}, so the first was taken",
        trials=[
            _row(candidate, config, first, "not tried" if number else None)
            for number, candidate in enumerate(candidates)
        ],
    )


def choice_report(
    config: RunConfig,
    first: Preparation,
    outcomes: Mapping[str, Outcome],
    left_out: Mapping[str, str],
    *,
    texts: int,
    parts: int,
    cut_into: int,
    part_models: Mapping[str, Mapping[str, dict[str, str]]],
    fine_tune: bool,
    fine_tune_note: str | None,
    passing: bool,
    scores: bool,
) -> SelectionReport:
    """Judge what was tried, and say what is taken and why.

    Args:
        config: what was asked for.
        first: the run with its first candidate.
        outcomes: of the candidates that were tried, in order.
        left_out: why others were not.
        texts: that judge.
        parts: of a cross-validation that were judged; 0 where held-out texts judge.
        cut_into: parts that the train texts were cut into.
        part_models: candidate, or fine-tune → folder of each part → class → digest.
        fine_tune: whether there is time for a fine-tune beside.
        fine_tune_note: why not, where it was thought of.
        passing: whether something failed that may not fail again.
        scores: whether texts are scored, too.
    """
    tried, judged = list(outcomes), list(outcomes.values())
    verdict = judge([outcome.nll for outcome in judged])
    rows = []
    for candidate in candidates_of(config):
        row = _row(candidate, config, first, left_out.get(candidate.name, "not tried"))
        if candidate.name in outcomes:
            number, outcome = tried.index(candidate.name), outcomes[candidate.name]
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
    chosen = tried[verdict.chosen]
    reason = _reason(tried, left_out, verdict)
    if texts < MIN_HELD_OUT:
        judging = "judged train text" if parts < cut_into else "train text"
        few = f"{counted(texts, judging)} cannot tell recipes apart"
        reason = f"{few}, so the first was taken"
    rates = {candidate.name: candidate.learning_rate for candidate in candidates_of(config)}
    return SelectionReport(
        key=key_of(config, first, scores=scores),
        failed_under=failed_under(config) if passing else None,
        budget_seconds=config.recipe.budget_seconds,
        held_out_texts=texts,
        parts=parts,
        cut_into=cut_into,
        part_models={
            folder: models
            for name in (chosen, FINE_TUNE)
            for folder, models in part_models.get(name, {}).items()
        },
        chosen=chosen,
        rate_chosen=rates[chosen] is not None,
        reason=reason,
        fine_tune=fine_tune,
        fine_tune_note=fine_tune_note,
        trials=rows,
    )


def _row(
    candidate: Candidate, config: RunConfig, first: Preparation, note: str | None
) -> TrialReport:
    return TrialReport(
        name=candidate.name,
        recipe=candidate.recipe,
        learning_rate=training_of_candidate(candidate, config, first.dataset).learning_rate,
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
