"""Other systems on the same test texts, beside the one that the report is of."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from gencls_core.errors import StoreError
from gencls_core.metrics import Metrics, evaluate, wilson_interval
from gencls_core.posterior import LikelihoodMatrix, posterior_of, read_likelihoods
from gencls_core.report.inference import Inference, prior_counts
from gencls_core.report.schema import BaselineReport
from gencls_core.run import RunDirectory
from gencls_core.scoring_job import BACKGROUND

__all__ = ["baselines_of"]


def baselines_of(
    run: RunDirectory,
    origin: RunDirectory,
    manifest: dict[str, Any],
    inference: Inference,
    system: str,
) -> tuple[dict[str, BaselineReport], list[str]]:
    """Measure every other system of the score store, and `majority`; and say what to know of them.

    Args:
        run: whose test scores are reported.
        origin: the run whose train texts its models know.
        manifest: of `run`.
        inference: of the system that the report is of.
        system: its name.
    """
    matrix = inference.matrix
    found: dict[str, BaselineReport] = {}
    notes = []
    for name in run.scores.systems():
        if name in (system, BACKGROUND):
            continue
        try:
            other = read_likelihoods(run.scores, name, matrix.classes)
        except StoreError as error:
            # An unfinished comparison must not take the finished result away.
            notes.append(f"The baseline {name} is left out: {str(error).splitlines()[0]}.")
            continue
        if not (other.label_codes >= 0).any():
            notes.append(f"The baseline {name} is left out: it scored no labelled text.")
            continue
        found[name] = _as_baseline(
            evaluate(posterior_of(other, inference.prior), other.label_codes, matrix.classes)
        )
        if (other_settings := _other_settings(manifest, system, name)) is not None:
            notes.append(f"The baseline {name} was made with other settings: {other_settings}.")
        if not other.example_ids.equals(matrix.example_ids):
            notes.append(f"The baseline {name} was not scored on the same texts in the same order.")
    found.setdefault("majority", _majority(matrix, prior_counts(run, origin)))
    return found, notes


def _other_settings(manifest: dict[str, Any], system: str, other: str) -> str | None:
    """Say in which settings of model and training another system of the run differs."""
    settings = manifest.get("settings", {})
    if system not in settings or other not in settings:
        return None
    differing = [
        f"{name} {value}"
        for section in ("model", "sequence", "training")
        for name, value in settings[other].get(section, {}).items()
        if settings[system].get(section, {}).get(name, value) != value
    ]
    return ", ".join(differing) or None


def _majority(matrix: LikelihoodMatrix, prior_counts: Mapping[str, int]) -> BaselineReport:
    """Label every text with the largest class of the train split."""
    largest = max(matrix.classes, key=lambda name: prior_counts.get(name, 0))
    count = int((matrix.label_codes >= 0).sum())
    correct = int((matrix.label_codes == matrix.classes.index(largest)).sum())
    # All other classes have an F1 of 0.
    macro_f1 = 2 * correct / (count + correct) / len(matrix.classes)
    return BaselineReport(
        accuracy=correct / count,
        accuracy_ci95=wilson_interval(correct, count),
        macro_f1=macro_f1,
        num_examples=count,
    )


def _as_baseline(metrics: Metrics) -> BaselineReport:
    return BaselineReport(
        accuracy=metrics.accuracy,
        accuracy_ci95=metrics.accuracy_ci95,
        macro_f1=metrics.macro_f1,
        num_examples=metrics.num_labelled,
    )
