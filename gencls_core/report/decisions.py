"""What decisions by costs come to on a run's test texts."""

from __future__ import annotations

import numpy as np

from gencls_core.cost_matrix import CostMatrix
from gencls_core.intervals import quantiles95, resampled_means
from gencls_core.report.inference import Inference
from gencls_core.report.schema import DecisionReport

__all__ = ["decision_report"]

RESAMPLES = 10_000


def decision_report(costs: CostMatrix, inference: Inference) -> DecisionReport:
    """Compare decisions by their costs with the likeliest classes, by the posterior that the run
    stands by; at least one text has a label."""
    decided_N, expected_N = costs.decide(inference.answer)
    likeliest_N = inference.answer.argmax(axis=1)
    rows_N = np.flatnonzero(inference.matrix.label_codes >= 0)
    codes_N = inference.matrix.label_codes[rows_N]
    cost_N = costs.of(codes_N, decided_N[rows_N])
    of_likeliest_N = costs.of(codes_N, likeliest_N[rows_N])
    values_K, texts_K = np.unique(of_likeliest_N - cost_N, return_counts=True)
    saved_ci95 = None
    if len(rows_N) > 1:
        generator = np.random.default_rng(0)
        saved_ci95 = quantiles95(resampled_means(values_K, texts_K, RESAMPLES, generator))
    confusion_CC = np.zeros((len(costs.classes), len(costs.classes)), dtype=np.int64)
    np.add.at(confusion_CC, (codes_N, decided_N[rows_N]), 1)
    return DecisionReport(
        costs=costs.costs_CC.tolist(),
        mean_cost=float(cost_N.mean()),
        mean_cost_of_likeliest=float(of_likeliest_N.mean()),
        saved_ci95=saved_ci95,
        expected_cost=float(expected_N[rows_N].mean()),
        accuracy=float((codes_N == decided_N[rows_N]).mean()),
        confusion=confusion_CC.tolist(),
    )
