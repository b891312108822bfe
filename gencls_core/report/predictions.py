"""One row per test text: what was predicted, and how sure. Needs no labels."""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.csv
import pyarrow.parquet as pq

from gencls_core.cost_matrix import CostMatrix, costs_of_run
from gencls_core.errors import UsageError
from gencls_core.remote_path import Location
from gencls_core.report.inference import Inference, infer_by_range
from gencls_core.report.rejections import Rejecter, Wanted
from gencls_core.run import RunDirectory
from gencls_core.score_matrix import FloatArray
from gencls_core.storage import publish_file

__all__ = [
    "PREDICTION_SCHEMA",
    "PREDICTION_SUFFIXES",
    "predict",
    "prediction_tables",
    "write_predictions",
]

PREDICTION_SUFFIXES = (".parquet", ".csv", ".jsonl")

PREDICTION_SCHEMA = pa.schema(
    [
        pa.field("example_id", pa.string()),
        pa.field("label", pa.string()),
        pa.field("answer", pa.string()),
        pa.field("predicted", pa.string()),
        pa.field("probability", pa.float64()),
        pa.field("margin", pa.float64()),
        pa.field("calibrated_predicted", pa.string()),
        pa.field("calibrated_probability", pa.float64()),
        pa.field("num_tokens", pa.int64()),
        pa.field("truncated", pa.bool_()),
        pa.field("num_windows", pa.int64()),
        pa.field("decided", pa.string()),
        pa.field("expected_cost", pa.float64()),
        pa.field("reason", pa.string()),
    ]
)
"""`label` may be null; `answer` is `predicted`, or `calibrated_predicted` where the run stands by
that (its recipe was judged, or an ensemble taken, by calibrated held-out texts); `probability` is
that of the predicted class; `margin` the log-odds in nats between the best class and the second;
the calibrated columns are null without calibration; `decided` is the class with the lowest
`expected_cost` by the answer's posterior, and both are null where no costs were given. `reason`
says why a text is not answered: then every column that would name a class for it is null, so that
nobody takes one for an answer, and `errors` does not count it; probabilities and margin stay."""

_GROUP_ROWS = 1 << 15
"""Rows of a Parquet row group, which are in memory as strings while they are written."""

_REPEATED = [
    "label", "answer", "predicted", "calibrated_predicted", "num_tokens", "num_windows", "decided",
    "reason",
]  # fmt: skip
"""Columns that a dictionary makes smaller. Of ids and probabilities it would hold every value:
twice the time to write and to read, and a larger file."""


def prediction_tables(
    inference: Inference, costs: CostMatrix | None = None, rejecter: Rejecter | None = None
) -> Iterator[pa.Table]:
    """Give the predictions in PREDICTION_SCHEMA, one row per text in the order of the test split.

    They come in parts of at most _GROUP_ROWS rows.
    """
    matrix = inference.matrix
    reasons = pa.nulls(len(matrix), pa.string())
    if rejecter is not None:
        reasons = rejecter.reasons(inference)
    names = pa.array(matrix.classes, pa.string())
    labels = matrix.labels
    for start in range(0, len(matrix), _GROUP_ROWS):
        part = slice(start, start + _GROUP_ROWS)
        log_p_BC = inference.log_posterior[part]
        best_B, probability_B = _decide(log_p_BC)
        ordered_BC = np.sort(log_p_BC, axis=1)
        predicted = answer = names.take(pa.array(best_B))
        calibrated: list[pa.Array] = [
            pa.nulls(len(best_B), pa.string()),
            pa.nulls(len(best_B), pa.float64()),
        ]
        if inference.calibrated is not None:
            calibrated_B, sure_B = _decide(inference.calibrated[part])
            calibrated = [names.take(pa.array(calibrated_B)), pa.array(sure_B)]
            if inference.stands_by_calibrated:
                answer = calibrated[0]
        by_cost: list[pa.Array] = [
            pa.nulls(len(best_B), pa.string()),
            pa.nulls(len(best_B), pa.float64()),
        ]
        if costs is not None:
            decided_B, expected_B = costs.decide(inference.answer[part])
            by_cost = [names.take(pa.array(decided_B)), pa.array(expected_B)]
        columns = [
            matrix.example_ids.slice(start, _GROUP_ROWS),
            labels.slice(start, _GROUP_ROWS),
            answer,
            predicted,
            pa.array(probability_B),
            pa.array(ordered_BC[:, -1] - ordered_BC[:, -2]),
            *calibrated,
            pa.array(matrix.num_tokens[part]),
            pa.array(matrix.truncated[part]),
            pa.array(matrix.num_windows[part]),
            *by_cost,
            reasons.slice(start, _GROUP_ROWS),
        ]
        yield _unanswered(pa.table(columns, schema=PREDICTION_SCHEMA))


def _unanswered(table: pa.Table) -> pa.Table:
    """Take every class away from the texts that there is a reason not to answer."""
    refused = pc.is_valid(table["reason"])
    if not pc.any(refused, min_count=0).as_py():
        return table
    for name in ("answer", "predicted", "calibrated_predicted", "decided", "expected_cost"):
        number = table.schema.get_field_index(name)
        kept = pc.if_else(refused, pa.scalar(None, table.schema.field(name).type), table[name])
        table = table.set_column(number, table.schema.field(name), kept)
    return table


def write_predictions(
    inference: Inference,
    path: Location,
    costs: CostMatrix | None = None,
    rejecter: Rejecter | None = None,
) -> int:
    """Publish the predictions as Parquet, CSV or JSONL, by the suffix of `path`; give the rows.

    Raises:
        UsageError: for another suffix.
    """
    return _publish(prediction_tables(inference, costs, rejecter), path)


def predict(
    run: RunDirectory,
    path: Location,
    *,
    prior: str | None = None,
    ensemble: str | None = None,
    system: str | None = None,
    models_of: RunDirectory | None = None,
    reject: Wanted | None = None,
) -> int:
    """Publish the predictions of a run's scores, however many: a shard at a time in memory.

    Arguments are those of `gencls_core.report.inference.infer` and `build_report`; the rows are
    those that `write_predictions` writes.

    Raises:
        UsageError: for another suffix, or when the prior or `reject` cannot be obeyed.
        StoreError: when scores are missing or contradict each other.
    """
    _check_suffix(path)
    costs = costs_of_run(run.manifest())
    inferences = infer_by_range(
        run, prior=prior, ensemble=ensemble, system=system, models_of=models_of
    )

    def tables() -> Iterator[pa.Table]:
        rejecter = None
        for inference in inferences:
            if reject is not None and rejecter is None:
                rejecter = Rejecter.of(run, inference, reject, models_of)
            yield from prediction_tables(inference, costs, rejecter)

    return _publish(tables(), path)


def _publish(tables: Iterable[pa.Table], path: Location) -> int:
    _check_suffix(path)
    with publish_file(path) as temporary:
        match path.suffix:
            case ".parquet":
                return _write_parquet(tables, temporary)
            case ".csv":
                return _write_csv(tables, temporary)
            case _:
                return _write_jsonl(tables, temporary)


def _check_suffix(path: Location) -> None:
    if path.suffix not in PREDICTION_SUFFIXES:
        raise UsageError.of(
            "predictions cannot be written in this form",
            place=str(path),
            found=f"suffix {path.suffix!r}",
            expected=" or ".join(PREDICTION_SUFFIXES),
        )


def _write_parquet(tables: Iterable[pa.Table], path: Path) -> int:
    rows = 0
    with pq.ParquetWriter(
        path, PREDICTION_SCHEMA, compression="zstd", use_dictionary=_REPEATED
    ) as writer:
        for table in _grouped(tables):
            writer.write_table(table)
            rows += table.num_rows
    return rows


def _write_csv(tables: Iterable[pa.Table], path: Path) -> int:
    rows = 0
    with pyarrow.csv.CSVWriter(str(path), PREDICTION_SCHEMA) as writer:
        for table in tables:
            writer.write_table(table)
            rows += table.num_rows
    return rows


def _write_jsonl(tables: Iterable[pa.Table], path: Path) -> int:
    rows = 0
    with path.open("w", encoding="utf-8") as stream:
        for table in tables:
            rows += table.num_rows
            for batch in table.to_batches(max_chunksize=4096):
                for row in batch.to_pylist():
                    stream.write(json.dumps(row, ensure_ascii=False) + "\n")
    return rows


def _grouped(tables: Iterable[pa.Table]) -> Iterator[pa.Table]:
    """Join small tables until they make a row group."""
    waiting: list[pa.Table] = []
    for table in tables:
        waiting.append(table)
        if sum(part.num_rows for part in waiting) >= _GROUP_ROWS:
            yield pa.concat_tables(waiting)
            waiting = []
    if waiting:
        yield pa.concat_tables(waiting)


def _decide(log_posterior_NC: FloatArray) -> tuple[np.ndarray, FloatArray]:
    best_N = log_posterior_NC.argmax(axis=1)
    return best_N, np.minimum(np.exp(log_posterior_NC[np.arange(len(best_N)), best_N]), 1.0)
