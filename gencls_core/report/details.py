"""What the page draws beyond report.json: how far apart the classes are."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from gencls_core.report.inference import Inference
from gencls_core.score_matrix import BoolArray, FloatArray, blocks_of

__all__ = ["Details", "details_of"]


@dataclass(frozen=True)
class Details:
    """Figures over the M labelled texts that are drawn, not stored."""

    ratios: FloatArray
    """[M] score under the true class minus the best score under another class, in nats."""
    correct: BoolArray
    """[M] whether the answer is right."""


def details_of(inference: Inference) -> Details:
    """Collect the ratios, and which answers are right."""
    matrix = inference.matrix
    rows_M = np.flatnonzero(matrix.label_codes >= 0)
    correct_M, ratios_M = np.empty(len(rows_M), dtype=np.bool_), np.empty(len(rows_M))
    for block in blocks_of(len(rows_M)):
        rows_B = rows_M[block]
        each_B, truth_B = np.arange(len(rows_B)), matrix.label_codes[rows_B]
        correct_M[block] = inference.answer[rows_B].argmax(axis=1) == truth_B
        others_BC = matrix.scores[rows_B]
        own_B = others_BC[each_B, truth_B]
        others_BC[each_B, truth_B] = -np.inf
        ratios_M[block] = own_B - others_BC.max(axis=1)
    return Details(ratios_M, correct_M)
