"""One row per test text: what was predicted, and how sure. Needs no labels."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.csv
import pyarrow.parquet as pq

from gencls_core.errors import UsageError
from gencls_core.report.inference import Inference
from gencls_core.score_matrix import FloatArray
from gencls_core.storage import publish_file

__all__ = ["PREDICTION_SUFFIXES", "prediction_table", "write_predictions"]

PREDICTION_SUFFIXES = (".parquet", ".csv", ".jsonl")


def prediction_table(inference: Inference) -> pa.Table:
    """Give the predictions as a table, one row per text in the order of the test split.

    Columns: `example_id`, `label` (may be null), `predicted`, `probability` of the predicted class,
    `margin` (log-odds in nats between the best class and the second), `calibrated_predicted`,
    `calibrated_probability` (null without calibration), `num_tokens`, `truncated`, `num_windows`.
    """
    matrix = inference.matrix
    best_N, probability_N = _decide(inference.log_posterior)
    ordered_NC = np.sort(inference.log_posterior, axis=1)
    margin_N = ordered_NC[:, -1] - ordered_NC[:, -2]
    names = pa.array(matrix.classes, pa.string())
    columns = {
        "example_id": matrix.example_ids,
        "label": pa.array(matrix.labels, pa.string()),
        "predicted": names.take(pa.array(best_N)),
        "probability": pa.array(probability_N),
        "margin": pa.array(margin_N),
        "calibrated_predicted": pa.nulls(len(best_N), pa.string()),
        "calibrated_probability": pa.nulls(len(best_N), pa.float64()),
        "num_tokens": pa.array(matrix.num_tokens),
        "truncated": pa.array(matrix.truncated),
        "num_windows": pa.array(matrix.num_windows),
    }
    if inference.calibrated is not None:
        best_N, probability_N = _decide(inference.calibrated)
        columns["calibrated_predicted"] = names.take(pa.array(best_N))
        columns["calibrated_probability"] = pa.array(probability_N)
    return pa.table(columns)


def write_predictions(inference: Inference, path: Path) -> None:
    """Publish the predictions as Parquet, CSV or JSONL, by the suffix of `path`.

    Raises:
        UsageError: for another suffix.
    """
    if path.suffix not in PREDICTION_SUFFIXES:
        raise UsageError.of(
            "predictions cannot be written in this form",
            place=path,
            found=f"suffix {path.suffix!r}",
            expected=" or ".join(PREDICTION_SUFFIXES),
        )
    table = prediction_table(inference)
    with publish_file(path) as temporary:
        if path.suffix == ".parquet":
            pq.write_table(table, temporary, compression="zstd")
        elif path.suffix == ".csv":
            pyarrow.csv.write_csv(table, str(temporary))
        else:
            with temporary.open("w", encoding="utf-8") as stream:
                for batch in table.to_batches(max_chunksize=4096):
                    for row in batch.to_pylist():
                        stream.write(json.dumps(row, ensure_ascii=False) + "\n")


def _decide(log_posterior_NC: FloatArray) -> tuple[np.ndarray, FloatArray]:
    best_N = log_posterior_NC.argmax(axis=1)
    return best_N, np.minimum(np.exp(log_posterior_NC[np.arange(len(best_N)), best_N]), 1.0)
