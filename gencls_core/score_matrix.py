"""One system's scores as a matrix: an example a row, a class a column.

The score store is long (one row per example and class) so that classes can be added and resumed
one by one. Bayes' rule needs them side by side. Reading is columnar throughout: no Python object
is made per score, so a million texts cost some hundred megabytes and seconds.

Shapes: N examples, C classes.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any, cast

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from gencls_core.errors import StoreError
from gencls_core.scores import Quantity, ScoreStore, ShardRecord

__all__ = ["BoolArray", "FloatArray", "IntArray", "LikelihoodMatrix", "read_likelihoods"]

FloatArray = npt.NDArray[np.float64]
IntArray = npt.NDArray[np.int64]
BoolArray = npt.NDArray[np.bool_]

RERUN = "run the same command again: it computes what is missing"
_COLUMNS = [
    "example_id",
    "label",
    "score",
    "quantity",
    "num_tokens",
    "truncated",
    "num_windows",
    "loss_score",
]


@dataclass(frozen=True, eq=False)
class LikelihoodMatrix:
    """Scores of N examples under C classes, all of one system; read-only by convention."""

    example_ids: pa.ChunkedArray
    """[N] strings. Kept in Arrow: a million Python strings would outweigh the scores."""
    labels: list[str | None]
    """[N] true classes, None where the example has no label."""
    classes: tuple[str, ...]
    """Names of the C columns."""
    scores: FloatArray
    """[N, C] in nats; what they are says `quantity`."""
    num_tokens: IntArray
    """[N] tokens that were scored; every class scores the same ones."""
    truncated: BoolArray
    """[N] whether the text was cut before it was scored."""
    num_windows: IntArray
    """[N] windows that the text was scored in."""
    loss_scores: FloatArray | None
    """[N, C] mean loss × number of tokens, negated, in nats; None where it was not computed."""
    quantity: Quantity

    @cached_property
    def label_codes(self) -> IntArray:
        """[N] number of the true class, -1 where the example has no label."""
        return _codes(pa.array(self.labels, pa.string()), self.classes)

    @property
    def is_likelihood(self) -> bool:
        """Whether Bayes' rule applies; a log-posterior already contains its prior."""
        return self.quantity != "log_posterior"

    def example_id(self, row: int) -> str:
        """Give the id of one example."""
        return cast(str, self.example_ids[row].as_py())


def read_likelihoods(store: ScoreStore, system: str, classes: Sequence[str]) -> LikelihoodMatrix:
    """Read the committed scores of `system` under every class, one row per example.

    Rows come in the order of the scored split. Classes whose shards list the same examples in the
    same order are laid side by side; others are matched by `example_id`.

    Raises:
        StoreError: when an (example, class) pair is missing or stands there twice, when a score is
            NaN, or when classes disagree about labels, tokens or the quantity. The message names
            the class and how many rows.
    """
    records = store.records(system)
    matrix: LikelihoodMatrix | None = None
    reference = pa.array([], pa.string())
    has_loss = True
    for column, name in enumerate(classes):
        of_class = [record for record in records if record.class_name == name]
        table = store.read(_whole(store, system, name, of_class), _COLUMNS)
        place = _Place(store, system, name)
        if matrix is None:
            reference = table.column("example_id").combine_chunks()
            _refuse_duplicates(place, reference)
            matrix = _empty_matrix(place, table, tuple(classes))
            rows = None
        else:
            rows = _rows_of(place, table.column("example_id"), reference)
            _refuse_disagreement(place, table, rows, matrix, tuple(classes))
        scores = _numpy(table, "score")
        if np.isnan(scores).any():
            raise place.error("has scores that are NaN", f"{int(np.isnan(scores).sum()):,} rows")
        target = slice(None) if rows is None else rows
        matrix.scores[target, column] = scores
        has_loss = has_loss and table.column("loss_score").null_count == 0
        if has_loss and matrix.loss_scores is not None:
            matrix.loss_scores[target, column] = _numpy(table, "loss_score")
    if matrix is None:
        raise StoreError.of("no class to read scores of", place=store.path)
    if not has_loss or len(reference) == 0:
        matrix = replace(matrix, loss_scores=None)
    return matrix


@dataclass(frozen=True)
class _Place:
    """Where a row stands, for messages."""

    store: ScoreStore
    system: str
    class_name: str

    def error(self, problem: str, found: str, expected: str | None = None) -> StoreError:
        return StoreError.of(
            f"class {self.class_name!r} of system {self.system!r} {problem}",
            place=self.store.directory(self.system, self.class_name),
            found=found,
            expected=expected,
            remedy=RERUN,
        )


def _whole(
    store: ScoreStore, system: str, name: str, records: list[ShardRecord]
) -> list[ShardRecord]:
    """Give a class's shards in example order; refuse gaps, which no comparison of ids can see
    when every class lacks the same shard."""
    place = _Place(store, system, name)
    if not records:
        raise place.error("has no committed scores", "0 shards")
    records = sorted(records, key=lambda record: (record.start, record.stop))
    reached = 0
    for record in records:
        if record.start > reached:
            raise place.error(
                "lacks scores", f"examples {reached:,} to {record.start - 1:,} have none"
            )
        reached = max(reached, record.stop)
    if records[-1].index != records[-1].count - 1:
        raise place.error(
            "lacks scores",
            f"{len(records)} shards, none after example {reached:,}",
            f"{records[-1].count} shards",
        )
    return records


def _empty_matrix(place: _Place, table: pa.Table, classes: tuple[str, ...]) -> LikelihoodMatrix:
    """Take everything but the scores from the first class."""
    codes = _codes(table.column("label"), classes)
    unknown = int((codes < 0).sum()) - table.column("label").null_count
    if unknown:
        raise place.error(
            "holds labels that are no class",
            f"{unknown:,} rows",
            f"one of {', '.join(classes)}",
        )
    # One shared string per class instead of one per row.
    names = np.array([*classes, None], dtype=object)
    shape = (table.num_rows, len(classes))
    return LikelihoodMatrix(
        example_ids=table.column("example_id"),
        labels=names[codes].tolist(),
        classes=classes,
        scores=np.full(shape, np.nan),
        num_tokens=_numpy(table, "num_tokens").astype(np.int64),
        truncated=_numpy(table, "truncated").astype(np.bool_),
        num_windows=_numpy(table, "num_windows").astype(np.int64),
        loss_scores=np.full(shape, np.nan) if not table.column("loss_score").null_count else None,
        quantity=_quantity(place, table),
    )


def _rows_of(place: _Place, ids: pa.ChunkedArray, reference: pa.Array) -> IntArray | None:
    """Give the matrix row of each of a class's rows; None when they are in the same order."""
    if ids.equals(pa.chunked_array([reference], pa.string())):
        return None
    _refuse_duplicates(place, ids)
    rows = pc.index_in(ids, value_set=reference)
    missing = len(reference) - (len(ids) - rows.null_count)
    if missing or rows.null_count:
        raise place.error(
            "was scored on other examples than the first class",
            f"{missing:,} examples without a score, {rows.null_count:,} that only it has",
            f"{len(reference):,} examples",
        )
    return cast(IntArray, rows.to_numpy().astype(np.int64))


def _refuse_duplicates(place: _Place, ids: pa.Array | pa.ChunkedArray) -> None:
    twice = len(ids) - pc.count_distinct(ids).as_py()
    if twice:
        raise place.error("has examples scored more than once", f"{twice:,} rows too many")


def _refuse_disagreement(
    place: _Place,
    table: pa.Table,
    rows: IntArray | None,
    matrix: LikelihoodMatrix,
    classes: tuple[str, ...],
) -> None:
    """Every class must have scored the same tokens of the same labelled text."""
    target: Any = slice(None) if rows is None else rows
    differing = int((_codes(table.column("label"), classes) != matrix.label_codes[target]).sum())
    if differing:
        raise place.error("disagrees with the first class about labels", f"{differing:,} rows")
    if _quantity(place, table) != matrix.quantity:
        raise place.error(
            "scores another quantity than the first class",
            _quantity(place, table),
            matrix.quantity,
        )
    for name in ("num_tokens", "truncated"):
        held = getattr(matrix, name)[target]
        differing = int((_numpy(table, name) != held).sum())
        if differing:
            raise place.error(
                f"disagrees with the first class about {name}: their scores cannot be compared",
                f"{differing:,} rows",
            )


def _quantity(place: _Place, table: pa.Table) -> Quantity:
    found = pc.unique(table.column("quantity")).to_pylist()
    if len(found) > 1:
        raise place.error("mixes quantities", ", ".join(sorted(found)))
    return cast(Quantity, found[0] if found else "log_likelihood")


def _codes(labels: pa.Array | pa.ChunkedArray, classes: tuple[str, ...]) -> IntArray:
    """Give the number of each label's class, -1 for null and for what is no class."""
    chunked = labels if isinstance(labels, pa.ChunkedArray) else pa.chunked_array([labels])
    found = pc.index_in(chunked, value_set=pa.array(classes, pa.string()))
    return cast(IntArray, found.fill_null(-1).to_numpy().astype(np.int64))


def _numpy(table: pa.Table, column: str) -> npt.NDArray[Any]:
    return cast(npt.NDArray[Any], table.column(column).to_numpy())
