"""Results → figures, tests, answers."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import asdict
from datetime import UTC, datetime

import numpy as np

from gencls_core.comparison.questions import answers
from gencls_core.comparison.results import Condition, Results, read_results
from gencls_core.comparison.schema import (
    Comparison,
    CurvePoint,
    EstimateReport,
    PairReport,
    SystemReport,
    TextsReport,
)
from gencls_core.comparison.sizes import at_largest, largest_sample
from gencls_core.errors import UsageError
from gencls_core.intervals import Estimate, estimate_system
from gencls_core.remote_path import uri_of
from gencls_core.run import RunDirectory
from gencls_core.significance import PAIR_RESAMPLES, PairComparison, compare_pairs
from gencls_core.systems.registry import UNTRAINED

__all__ = ["compare_runs"]


def compare_runs(
    runs: Sequence[RunDirectory],
    others: Sequence[Comparison] = (),
    systems: Sequence[Collection[str] | None] = (),
) -> Comparison:
    """Compare systems in some runs, which were scored on the same test texts.

    Args:
        runs: run directories.
        others: comparisons on other test texts, for the question whether the pattern holds.
        systems: see `read_results`.

    Raises:
        DataError: when the test texts have no label or all the same one.
        StoreError: when a directory is no run, or its scores are missing or contradict each other.
        UsageError: when the runs were not scored on the same texts, or others were.
    """
    results = read_results(runs, systems)
    fingerprint = results.dataset.split("test").fingerprint
    if any(other.test.fingerprint == fingerprint for other in others):
        raise UsageError.of(
            "a comparison on these very test texts says nothing of other ones",
            place="--also",
            found=f"test split {fingerprint[:12]}",
            remedy="name comparisons on other data",
        )
    reports = [_system(condition) for condition in results.conditions]
    largest = largest_sample(results.conditions)
    pairs = [_pair(pair, largest) for pair in _compared(results)]
    return Comparison(
        generated=datetime.now(UTC).isoformat(timespec="seconds"),
        test=_test_set(results),
        systems=reports,
        pairs=pairs,
        learning_curve=_curve(reports),
        questions=answers(pairs, others),
        notes=[*results.notes, *_notes(results)],
    )


def _system(condition: Condition) -> SystemReport:
    estimates = estimate_system(condition.outcomes)
    runs = condition.runs
    plain = [r.uncalibrated_accuracy for r in runs if r.uncalibrated_accuracy is not None]
    trained = [r.train_seconds for r in runs if r.train_seconds is not None]
    num_texts = len(runs[0].log_posterior)
    return SystemReport(
        name=condition.name,
        system=condition.system,
        quantity=runs[0].quantity,
        runs=[uri_of(run.run.path) for run in runs],
        seeds=[run.seeds for run in runs],
        sample=condition.sample,
        train_texts=condition.train_texts,
        accuracy=_estimate(estimates.accuracy),
        macro_f1=_estimate(estimates.macro_f1),
        nll=_estimate(estimates.nll),
        ece=_estimate(estimates.ece),
        uncalibrated_accuracy=float(np.mean(plain)) if plain else None,
        train_seconds=float(np.mean(trained)) if trained else None,
        seconds_per_1000_texts=1000 * float(np.mean([r.scoring_seconds for r in runs])) / num_texts,
    )


def _estimate(estimate: Estimate) -> EstimateReport:
    values = asdict(estimate)
    return EstimateReport(**{name: values[name] for name in EstimateReport.model_fields})


def _compared(results: Results) -> tuple[PairComparison, ...]:
    conditions = {condition.name: condition for condition in at_largest(results.conditions)}
    # Runs with the same seeds share the sample of train texts that these draw.
    repeated = {
        tuple(run.seeds for run in condition.runs)
        for condition in conditions.values()
        if len(condition.runs) > 1
    }
    # A bootstrap's smallest p-value, times the number of pairs, must lie well below 0.05.
    count = len(conditions) * (len(conditions) - 1) // 2
    resamples = max(PAIR_RESAMPLES, 400 * count)
    correct = {name: condition.outcomes.correct_SN for name, condition in conditions.items()}
    return compare_pairs(correct, paired_seeds=len(repeated) == 1, resamples=resamples)


def _pair(pair: PairComparison, sample: int | None) -> PairReport:
    difference, mcnemar = pair.difference, pair.mcnemar
    return PairReport(
        a=pair.a,
        b=pair.b,
        sample=sample,
        difference=difference.difference,
        low=difference.low,
        high=difference.high,
        sources=difference.sources,
        only_a=mcnemar.only_a,
        only_b=mcnemar.only_b,
        mcnemar_p=mcnemar.p,
        mcnemar_method=mcnemar.method,
        bootstrap_p=difference.p,
        holm_p=pair.holm_p,
        holm_of=pair.holm_of,
    )


def _curve(systems: list[SystemReport]) -> list[CurvePoint]:
    if len({system.sample for system in systems}) < 2:
        return []
    return [
        CurvePoint(system=s.name, train_texts=s.train_texts, accuracy=s.accuracy) for s in systems
    ]


def _test_set(results: Results) -> TextsReport:
    split = results.dataset.split("test")
    return TextsReport(
        name=results.dataset.name,
        fingerprint=split.fingerprint,
        texts={name: split.class_counts.get(name, 0) for name in results.classes},
        warnings=list(results.dataset.warnings),
    )


def _notes(results: Results) -> list[str]:
    notes = []
    conditions = at_largest(results.conditions)
    trained = [c for c in conditions if c.system not in UNTRAINED and c.system != "majority"]
    repeated = {condition.name: len(condition.runs) for condition in trained}
    single = [name for name, count in repeated.items() if count == 1]
    if single:
        notes.append(
            "Trained once, so that the intervals are about these very models and not about "
            f"training them again: {', '.join(dict.fromkeys(single))}."
        )
    calibrated = {c.name for c in conditions if _is_calibrated(c)}
    plain = {c.name for c in conditions} - calibrated
    if calibrated and plain:
        notes.append(
            f"Compared as calibrated on held-out texts: {', '.join(sorted(calibrated))}; as they "
            f"are: {', '.join(sorted(plain))}. Accuracies without calibration stand in the table."
        )
    return notes


def _is_calibrated(condition: Condition) -> bool:
    return any(run.uncalibrated_accuracy is not None for run in condition.runs)
