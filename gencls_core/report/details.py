"""What the page shows beyond report.json: single texts, and how far apart the classes are."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from gencls_core.datasets.dataset import Dataset
from gencls_core.report.inference import Inference
from gencls_core.score_matrix import BoolArray, FloatArray, blocks_of

__all__ = ["SHOWN_MISTAKES", "Details", "Mistake", "details_of"]

SHOWN_MISTAKES = 20


@dataclass(frozen=True)
class Mistake:
    """A test text that was labelled wrongly."""

    example_id: str
    text: str | None
    """None where the dataset no longer holds the text under this id."""
    label: str
    predicted: str
    margin: float
    """log P(predicted class) − log P(true class), in nats."""
    calibrated_probability: float | None
    """Of the wrongly predicted class, where there is a calibration."""
    num_tokens: int


@dataclass(frozen=True)
class Details:
    """Figures over the M labelled texts that are drawn, not stored."""

    ratios: FloatArray
    """[M] score under the true class minus the best score under another class, in nats."""
    correct: BoolArray
    """[M] whether the uncalibrated prediction is right."""
    mistakes: tuple[Mistake, ...]
    """The most confident ones, most confident first."""


def details_of(inference: Inference, dataset: Dataset) -> Details:
    """Collect the ratios and the most confident mistakes of the uncalibrated predictions."""
    matrix = inference.matrix
    rows_M = np.flatnonzero(matrix.label_codes >= 0)
    correct_M = np.empty(len(rows_M), dtype=np.bool_)
    ratios_M, margin_M = np.empty(len(rows_M)), np.empty(len(rows_M))
    for block in blocks_of(len(rows_M)):
        rows_B = rows_M[block]
        each_B, truth_B = np.arange(len(rows_B)), matrix.label_codes[rows_B]
        log_p_BC, others_BC = inference.log_posterior[rows_B], matrix.scores[rows_B]
        predicted_B = log_p_BC.argmax(axis=1)
        correct_M[block] = predicted_B == truth_B
        own_B = others_BC[each_B, truth_B]
        others_BC[each_B, truth_B] = -np.inf
        ratios_M[block] = own_B - others_BC.max(axis=1)
        # 0 where the prediction is right
        margin_M[block] = log_p_BC[each_B, predicted_B] - log_p_BC[each_B, truth_B]
    wrong = np.flatnonzero(~correct_M)
    # Stable: equal margins keep the order of the test split, and the page its bytes.
    chosen = wrong[np.argsort(-margin_M[wrong], kind="stable")][:SHOWN_MISTAKES]
    return Details(
        ratios=ratios_M,
        correct=correct_M,
        mistakes=tuple(
            _mistake(inference, dataset, int(rows_M[i]), float(margin_M[i])) for i in chosen
        ),
    )


def _mistake(inference: Inference, dataset: Dataset, row: int, margin: float) -> Mistake:
    matrix = inference.matrix
    predicted = int(inference.log_posterior[row].argmax())
    probability = None
    if inference.calibrated is not None:
        probability = float(np.exp(inference.calibrated[row, predicted]))
    example_id = matrix.example_id(row)
    return Mistake(
        example_id=example_id,
        text=_text_of(dataset, row, example_id),
        label=matrix.label(row) or "",
        predicted=matrix.classes[predicted],
        margin=margin,
        calibrated_probability=probability,
        num_tokens=int(matrix.num_tokens[row]),
    )


def _text_of(dataset: Dataset, row: int, example_id: str) -> str | None:
    """Read one text; scores are in the order of the test split, so its row is known."""
    found = dataset.read("test", row, row + 1).to_pylist()
    if not found or found[0]["example_id"] != example_id:
        return None
    return str(found[0]["text"])
