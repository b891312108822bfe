"""One system's scores as a matrix: an example a row, a class a column.

The score store is long (one row per example and class) so that classes can be added and resumed
one by one. Bayes' rule needs them side by side. Reading is columnar throughout, a shard at a time:
no Python object is made per score, and beside the matrix only one class's columns are in memory.
What needs no view of all rows at once goes through `iter_likelihoods`, in the memory of one shard.

Shapes: N examples, C classes.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, replace
from itertools import pairwise
from typing import Any, cast

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from gencls_core.errors import StoreError
from gencls_core.scores import Quantity, ScoreStore, ShardRecord

__all__ = [
    "BoolArray",
    "FloatArray",
    "IntArray",
    "LikelihoodMatrix",
    "blocks_of",
    "iter_likelihoods",
    "read_likelihoods",
]

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
_READ_AHEAD = 4
"""Shards read while one is worked on: an object store answers slowly, but many at a time."""
_BLOCK_ROWS = 1 << 16


@dataclass(frozen=True, eq=False)
class LikelihoodMatrix:
    """Scores of N examples under C classes, all of one system; read-only by convention."""

    example_ids: pa.ChunkedArray
    """[N] strings. Kept in Arrow: a million Python strings would outweigh the scores."""
    label_codes: IntArray
    """[N] number of the true class, -1 where the example has no label."""
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

    def __len__(self) -> int:
        return len(self.label_codes)

    @property
    def labels(self) -> pa.Array:
        """[N] names of the true classes, null where the example has no label."""
        unlabelled = self.label_codes < 0
        return pa.array(self.classes, pa.string()).take(pa.array(self.label_codes, mask=unlabelled))

    @property
    def is_likelihood(self) -> bool:
        """Whether Bayes' rule applies; a log-posterior already contains its prior."""
        return self.quantity != "log_posterior"

    def example_id(self, row: int) -> str:
        """Give the id of one example."""
        return cast(str, self.example_ids[row].as_py())

    def label(self, row: int) -> str | None:
        """Give the true class of one example, None where it has no label."""
        code = int(self.label_codes[row])
        return None if code < 0 else self.classes[code]


def blocks_of(rows: int) -> Iterator[slice]:
    """Cut N rows into blocks that fit the processor's cache.

    What is computed row by row gives the same bits in blocks, in a fraction of the time, and
    without whole matrices of intermediate values.
    """
    for start in range(0, rows, _BLOCK_ROWS):
        yield slice(start, min(start + _BLOCK_ROWS, rows))


def read_likelihoods(store: ScoreStore, system: str, classes: Sequence[str]) -> LikelihoodMatrix:
    """Read the committed scores of `system` under every class, one row per example.

    Rows come in the order of the scored split. Classes whose shards list the same examples in the
    same order are laid side by side; others are matched by `example_id`.

    Raises:
        StoreError: when an (example, class) pair is missing or stands there twice, when a score is
            NaN, or when classes disagree about labels, tokens or the quantity. The message names
            the class and how many rows.
    """
    shards = _shards_by_class(store, system, classes)
    return _side_by_side(store, system, shards)


def iter_likelihoods(
    store: ScoreStore, system: str, classes: Sequence[str]
) -> Iterator[LikelihoodMatrix]:
    """Read the same rows in the same order as `read_likelihoods`, one range of examples at a time.

    Needs the memory of one shard of every class, however many there are. An example that stands in
    two ranges is not noticed: ranges that overlap are refused instead.

    Raises:
        StoreError: as `read_likelihoods` does, at the range in question; and when the classes'
            shards are not cut at the same examples.
    """
    shards = _shards_by_class(store, system, classes)
    first = next(iter(shards))
    ranges = [(record.start, record.stop) for record in shards[first]]
    for name, of_class in shards.items():
        found = [(record.start, record.stop) for record in of_class]
        if found != ranges or any(a[1] != b[0] for a, b in pairwise(found)):
            raise _Place(store, system, name).error(
                "has shards that are not cut as those of the first class",
                f"{len(found):,} shards",
                f"{len(ranges):,} shards, one after the other",
            )
    for index in range(len(ranges)):
        part = {name: [of_class[index]] for name, of_class in shards.items()}
        yield _side_by_side(store, system, part)


def _shards_by_class(
    store: ScoreStore, system: str, classes: Sequence[str]
) -> dict[str, list[ShardRecord]]:
    """Give every class's shards in example order; refuses gaps."""
    if not classes:
        raise StoreError.of("no class to read scores of", place=str(store.path))
    shards: dict[str, list[ShardRecord]] = {name: [] for name in classes}
    for record in store.records(system):
        if record.class_name in shards:
            shards[record.class_name].append(record)
    return {name: _whole(_Place(store, system, name), found) for name, found in shards.items()}


def _side_by_side(
    store: ScoreStore, system: str, shards: dict[str, list[ShardRecord]]
) -> LikelihoodMatrix:
    """Read shards of each class into one matrix."""
    classes = tuple(shards)
    matrix: LikelihoodMatrix | None = None
    reference = pa.array([], pa.string())
    loss_scores: FloatArray | None = None
    for column, (name, records) in enumerate(shards.items()):
        place = _Place(store, system, name)
        found = _read_columns(place, records, classes)
        if matrix is None:
            reference = found.example_ids.combine_chunks()
            _refuse_duplicates(place, reference)
            matrix = _matrix_of(place, found, classes)
            loss_scores = None if found.loss_scores is None else np.empty_like(matrix.scores)
            rows = None
        else:
            rows = _rows_of(place, found.example_ids, reference)
            _refuse_disagreement(place, found, rows, matrix)
        if np.isnan(found.scores).any():
            count = int(np.isnan(found.scores).sum())
            raise place.error("has scores that are NaN", f"{count:,} rows")
        target: Any = slice(None) if rows is None else rows
        matrix.scores[target, column] = found.scores
        if found.loss_scores is None:
            loss_scores = None
        elif loss_scores is not None:
            loss_scores[target, column] = found.loss_scores
    assert matrix is not None  # there is at least one class
    return replace(matrix, loss_scores=loss_scores if len(matrix) else None)


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


def _whole(place: _Place, records: list[ShardRecord]) -> list[ShardRecord]:
    """Give a class's shards in example order; refuse gaps, which no comparison of ids can see
    when every class lacks the same shard."""
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


@dataclass(frozen=True, eq=False)
class _Columns:
    """One class's rows, in the order of its shards."""

    example_ids: pa.ChunkedArray
    label_codes: IntArray
    scores: FloatArray
    num_tokens: IntArray
    truncated: BoolArray
    num_windows: IntArray
    loss_scores: FloatArray | None
    quantity: Quantity


def _read_columns(place: _Place, records: list[ShardRecord], classes: tuple[str, ...]) -> _Columns:
    """Read a class's shards one after the other; of a shard only numbers and ids are kept."""
    ids, labels, quantities = [], [], set()
    columns: dict[str, list[npt.NDArray[Any]]] = {}
    has_loss, unknown = True, 0
    for table in _tables_ahead(place.store, records):
        ids.extend(table.column("example_id").chunks)
        labels.append(_codes(table.column("label"), classes))
        unknown += int((labels[-1] < 0).sum()) - table.column("label").null_count
        quantities.update(pc.unique(table.column("quantity")).to_pylist())
        has_loss = has_loss and table.column("loss_score").null_count == 0
        for name in ("score", "num_tokens", "truncated", "num_windows", "loss_score"):
            if name != "loss_score" or has_loss:
                columns.setdefault(name, []).append(table.column(name).to_numpy())
    if unknown:
        raise place.error(
            "holds labels that are no class", f"{unknown:,} rows", f"one of {', '.join(classes)}"
        )
    if len(quantities) > 1:
        raise place.error("mixes quantities", ", ".join(sorted(quantities)))
    return _Columns(
        example_ids=pa.chunked_array(ids, pa.string()),
        label_codes=np.concatenate(labels),
        scores=np.concatenate(columns["score"]),
        num_tokens=np.concatenate(columns["num_tokens"]).astype(np.int64),
        truncated=np.concatenate(columns["truncated"]).astype(np.bool_),
        num_windows=np.concatenate(columns["num_windows"]).astype(np.int64),
        loss_scores=np.concatenate(columns["loss_score"]) if has_loss else None,
        quantity=cast(Quantity, quantities.pop() if quantities else "log_likelihood"),
    )


def _tables_ahead(store: ScoreStore, records: list[ShardRecord]) -> Iterator[pa.Table]:
    """Give the shards' tables in order, the next ones being read meanwhile."""
    with ThreadPoolExecutor(_READ_AHEAD) as pool:
        waiting: deque[Future[pa.Table]] = deque()
        for record in records:
            waiting.append(pool.submit(store.read, [record], _COLUMNS))
            if len(waiting) > _READ_AHEAD:
                yield waiting.popleft().result()
        while waiting:
            yield waiting.popleft().result()


def _matrix_of(place: _Place, found: _Columns, classes: tuple[str, ...]) -> LikelihoodMatrix:
    """Take everything but the scores from the first class."""
    return LikelihoodMatrix(
        example_ids=found.example_ids,
        label_codes=found.label_codes,
        classes=classes,
        scores=np.full((len(found.scores), len(classes)), np.nan),
        num_tokens=found.num_tokens,
        truncated=found.truncated,
        num_windows=found.num_windows,
        loss_scores=None,
        quantity=found.quantity,
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
    place: _Place, found: _Columns, rows: IntArray | None, matrix: LikelihoodMatrix
) -> None:
    """Every class must have scored the same tokens of the same labelled text."""
    target: Any = slice(None) if rows is None else rows
    differing = int((found.label_codes != matrix.label_codes[target]).sum())
    if differing:
        raise place.error("disagrees with the first class about labels", f"{differing:,} rows")
    if found.quantity != matrix.quantity:
        raise place.error(
            "scores another quantity than the first class", found.quantity, matrix.quantity
        )
    for name in ("num_tokens", "truncated"):
        differing = int((getattr(found, name) != getattr(matrix, name)[target]).sum())
        if differing:
            raise place.error(
                f"disagrees with the first class about {name}: their scores cannot be compared",
                f"{differing:,} rows",
            )


def _codes(labels: pa.ChunkedArray, classes: tuple[str, ...]) -> IntArray:
    """Give the number of each label's class, -1 for null and for what is no class."""
    found = pc.index_in(labels, value_set=pa.array(classes, pa.string()))
    return cast(IntArray, found.fill_null(-1).to_numpy().astype(np.int64))
