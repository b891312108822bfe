"""One system's scores as a matrix: an example a row, a class a column.

The score store is long (one row per example and class) so that classes can be added and resumed
one by one. Bayes' rule needs them side by side. Reading is columnar throughout, a shard at a time
(score_columns.py): no Python object is made per score, and beside the matrix only one class's
columns are in memory. What needs no view of all rows at once goes through `iter_likelihoods`, in
the memory of a few shards.

Shapes: N examples, C classes.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import pairwise
from typing import Any, cast

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from gencls_core.score_columns import (
    BoolArray,
    Columns,
    FloatArray,
    IntArray,
    Place,
    ahead,
    read_columns,
    refuse_duplicates,
    shards_by_class,
)
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
    beside: FloatArray | None = None
    """[N, C] what another system says of the same texts, in nats: log P(class | text) less the
    log of the class frequencies that it learned from. Only an ensemble has it."""

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

    def take(self, rows: IntArray) -> LikelihoodMatrix:
        """Give some of the examples, by their row numbers."""
        losses = None if self.loss_scores is None else self.loss_scores[rows]
        return replace(
            self,
            example_ids=self.example_ids.take(pa.array(rows)),
            label_codes=self.label_codes[rows],
            scores=self.scores[rows],
            num_tokens=self.num_tokens[rows],
            truncated=self.truncated[rows],
            num_windows=self.num_windows[rows],
            loss_scores=losses,
            beside=None if self.beside is None else self.beside[rows],
        )

    @classmethod
    def concatenated(cls, matrices: Sequence[LikelihoodMatrix]) -> LikelihoodMatrix:
        """Put examples of one system and the same classes below each other."""
        first, *others = matrices
        if not others:
            return first
        assert all((m.classes, m.quantity) == (first.classes, first.quantity) for m in others)

        def stacked(name: str) -> Any:
            return np.concatenate([getattr(matrix, name) for matrix in matrices])

        def stacked_if_all_have(name: str) -> FloatArray | None:
            missing = any(getattr(matrix, name) is None for matrix in matrices)
            return None if missing else stacked(name)

        chunks = [chunk for matrix in matrices for chunk in matrix.example_ids.chunks]
        return cls(
            example_ids=pa.chunked_array(chunks, pa.string()),
            label_codes=stacked("label_codes"),
            classes=first.classes,
            scores=stacked("scores"),
            num_tokens=stacked("num_tokens"),
            truncated=stacked("truncated"),
            num_windows=stacked("num_windows"),
            loss_scores=stacked_if_all_have("loss_scores"),
            quantity=first.quantity,
            beside=stacked_if_all_have("beside"),
        )

    @classmethod
    def of_tables(cls, tables: Mapping[str, pa.Table]) -> LikelihoodMatrix:
        """Lay rows of SCORE_SCHEMA that were just made side by side: the same texts, without
        labels, in the same order in each class's table."""
        first = next(iter(tables.values()))
        losses = None
        if len(first) and not any(table["loss_score"].null_count for table in tables.values()):
            losses = np.stack([t["loss_score"].to_numpy() for t in tables.values()], axis=1)
        return cls(
            example_ids=first["example_id"],
            label_codes=np.full(len(first), -1),
            classes=tuple(tables),
            scores=np.stack([table["score"].to_numpy() for table in tables.values()], axis=1),
            num_tokens=first["num_tokens"].to_numpy(),
            truncated=first["truncated"].to_numpy(),
            num_windows=first["num_windows"].to_numpy(),
            loss_scores=losses,
            quantity=first["quantity"][0].as_py() if len(first) else "log_likelihood",
        )

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


def read_likelihoods(
    store: ScoreStore,
    system: str,
    classes: Sequence[str],
    records: Sequence[ShardRecord] | None = None,
) -> LikelihoodMatrix:
    """Read the committed scores of `system` under every class, one row per example.

    Rows come in the order of the scored split. Classes whose shards list the same examples in the
    same order are laid side by side; others are matched by `example_id`. `records` are the system's
    commit records, where they have been read already.

    Raises:
        StoreError: when an (example, class) pair is missing or stands there twice, when a score is
            NaN, or when classes disagree about labels, tokens or the quantity. The message names
            the class and how many rows.
    """
    shards = shards_by_class(store, system, classes, records)
    return _side_by_side(store, system, shards)


def iter_likelihoods(
    store: ScoreStore,
    system: str,
    classes: Sequence[str],
    records: Sequence[ShardRecord] | None = None,
) -> Iterator[LikelihoodMatrix]:
    """Read the same rows in the same order as `read_likelihoods`, one range of examples at a time.

    Needs the memory of a few shards, however many there are. An example that stands in two ranges
    is not noticed: ranges that overlap are refused instead.

    Raises:
        StoreError: as `read_likelihoods` does, at the range in question; and when the classes'
            shards are not cut at the same examples.
    """
    shards = shards_by_class(store, system, classes, records)
    first = next(iter(shards))
    ranges = [(record.start, record.stop) for record in shards[first]]
    for name, of_class in shards.items():
        found = [(record.start, record.stop) for record in of_class]
        if found != ranges or any(a[1] != b[0] for a, b in pairwise(found)):
            raise Place(store, system, name).error(
                "has shards that are not cut as those of the first class",
                f"{len(found):,} shards",
                f"{len(ranges):,} shards, one after the other",
            )
    parts = [
        {name: [of_class[index]] for name, of_class in shards.items()}
        for index in range(len(ranges))
    ]
    yield from ahead(lambda part: _side_by_side(store, system, part), parts)


def _side_by_side(
    store: ScoreStore, system: str, shards: dict[str, list[ShardRecord]]
) -> LikelihoodMatrix:
    """Read shards of each class into one matrix; one class's columns at a time are beside it."""
    classes = tuple(shards)
    matrix: LikelihoodMatrix | None = None
    for name, records in shards.items():
        place = Place(store, system, name)
        if matrix is None:
            matrix = _first_class(place, read_columns(place, records, classes), classes)
        else:
            matrix = _with_class(matrix, place, read_columns(place, records, classes))
    assert matrix is not None  # there is at least one class
    return matrix


def _first_class(place: Place, found: Columns, classes: tuple[str, ...]) -> LikelihoodMatrix:
    """Give a matrix that holds the first class's scores, and has room for the others'."""
    example_ids = found.example_ids.combine_chunks()
    refuse_duplicates(place, example_ids)
    empty = LikelihoodMatrix(
        example_ids=pa.chunked_array([example_ids], pa.string()),
        label_codes=found.label_codes,
        classes=classes,
        scores=_by_class(len(found.scores), len(classes)),
        num_tokens=found.num_tokens,
        truncated=found.truncated,
        num_windows=found.num_windows,
        loss_scores=_by_class(len(found.scores), len(classes)) if len(found.scores) else None,
        quantity=found.quantity,
    )
    return _put(empty, place, found, slice(None))


def _with_class(matrix: LikelihoodMatrix, place: Place, found: Columns) -> LikelihoodMatrix:
    """Put another class's scores into their column."""
    rows = _rows_of(place, found.example_ids, matrix.example_ids)
    _refuse_disagreement(place, found, rows, matrix)
    return _put(matrix, place, found, rows)


def _put(
    matrix: LikelihoodMatrix, place: Place, found: Columns, rows: IntArray | slice
) -> LikelihoodMatrix:
    not_numbers = int(np.isnan(found.scores).sum())
    if not_numbers:
        raise place.error("has scores that are NaN", f"{not_numbers:,} rows")
    column = matrix.classes.index(place.class_name)
    matrix.scores[rows, column] = found.scores
    if matrix.loss_scores is None or found.loss_scores is None:
        return replace(matrix, loss_scores=None)
    matrix.loss_scores[rows, column] = found.loss_scores
    return matrix


def _by_class(examples: int, classes: int) -> FloatArray:
    """Give an [N, C] array to fill in which each class's scores lie together in memory.

    A class is written at once, and maxima and sums over classes become as many sums over long
    columns: ten times as fast as over rows of a few numbers.
    """
    return np.empty((classes, examples)).T


def _rows_of(place: Place, ids: pa.ChunkedArray, known: pa.ChunkedArray) -> IntArray | slice:
    """Give the matrix row of each of a class's rows; a slice of all where the order is the same."""
    if ids.equals(known):
        return slice(None)
    refuse_duplicates(place, ids.combine_chunks())
    rows = pc.index_in(ids, value_set=known)
    missing = len(known) - (len(ids) - rows.null_count)
    if missing or rows.null_count:
        raise place.error(
            "was scored on other examples than the first class",
            f"{missing:,} examples without a score, {rows.null_count:,} that only it has",
            f"{len(known):,} examples",
        )
    return cast(IntArray, rows.to_numpy().astype(np.int64))


def _refuse_disagreement(
    place: Place, found: Columns, rows: IntArray | slice, matrix: LikelihoodMatrix
) -> None:
    """Every class must have scored the same tokens of the same labelled text."""
    differing = int((found.label_codes != matrix.label_codes[rows]).sum())
    if differing:
        raise place.error("disagrees with the first class about labels", f"{differing:,} rows")
    if found.quantity != matrix.quantity:
        raise place.error(
            "scores another quantity than the first class", found.quantity, matrix.quantity
        )
    for name in ("num_tokens", "truncated"):
        differing = int((getattr(found, name) != getattr(matrix, name)[rows]).sum())
        if differing:
            raise place.error(
                f"disagrees with the first class about {name}: their scores cannot be compared",
                f"{differing:,} rows",
            )
