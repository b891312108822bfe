"""One class's committed scores as columns, read a shard at a time and checked.

Of a shard only numbers and ids are kept, so that what is in memory is one class's columns and a few
shards, however many rows there are. Nothing here compares classes: see score_matrix.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from itertools import accumulate
from typing import TypeVar

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from gencls_core.errors import StoreError
from gencls_core.scores import Quantity, ScoreStore, ShardRecord

__all__ = [
    "BoolArray",
    "Columns",
    "FloatArray",
    "IntArray",
    "Place",
    "ahead",
    "read_columns",
    "refuse_duplicates",
    "shards_by_class",
]

FloatArray = npt.NDArray[np.float64]
IntArray = npt.NDArray[np.int64]
BoolArray = npt.NDArray[np.bool_]

Item = TypeVar("Item")
Result = TypeVar("Result")

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
_NO_LABEL, _NO_CLASS = -1, -2
_READ_AHEAD = 4
"""Shards read while one is worked on: an object store answers slowly, but many at a time."""


@dataclass(frozen=True)
class Place:
    """Where rows stand: for reading them, and for messages."""

    store: ScoreStore
    system: str
    class_name: str

    def error(self, problem: str, found: str, expected: str | None = None) -> StoreError:
        """Build the error about this class's rows."""
        return StoreError.of(
            f"class {self.class_name!r} of system {self.system!r} {problem}",
            place=self.store.directory(self.system, self.class_name),
            found=found,
            expected=expected,
            remedy=RERUN,
        )


def _whole(place: Place, records: list[ShardRecord]) -> list[ShardRecord]:
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


def shards_by_class(
    store: ScoreStore,
    system: str,
    classes: Sequence[str],
    records: Sequence[ShardRecord] | None = None,
) -> dict[str, list[ShardRecord]]:
    """Give every class's shards in example order; `records` are the system's, where known already.

    Raises:
        StoreError: when a class has no shards, or some are missing.
    """
    if not classes:
        raise StoreError.of("no class to read scores of", place=str(store.path))
    shards: dict[str, list[ShardRecord]] = {name: [] for name in classes}
    for record in store.records(system) if records is None else records:
        if record.class_name in shards:
            shards[record.class_name].append(record)
    return {name: _whole(Place(store, system, name), found) for name, found in shards.items()}


@dataclass(frozen=True, eq=False)
class Columns:
    """Rows of one class, in the order of its shards."""

    example_ids: pa.ChunkedArray
    label_codes: IntArray
    """Number of the label's class, -1 where there is no label."""
    scores: FloatArray
    num_tokens: IntArray
    truncated: BoolArray
    num_windows: IntArray
    loss_scores: FloatArray | None
    quantity: Quantity


def read_columns(place: Place, records: list[ShardRecord], classes: tuple[str, ...]) -> Columns:
    """Read a class's shards, several at a time, each into its rows of the columns.

    Raises:
        StoreError: when a shard cannot be read, a label is none of `classes`, or quantities mix.
    """
    rows = sum(record.rows for record in records)
    codes, scores, loss_scores = np.empty(rows, np.int64), np.empty(rows), np.empty(rows)
    num_tokens, num_windows = np.empty(rows, np.int64), np.empty(rows, np.int64)
    truncated = np.empty(rows, np.bool_)

    def fill(shard: tuple[ShardRecord, int]) -> tuple[pa.ChunkedArray, set[Quantity], bool]:
        record, start = shard
        table = place.store.read([record], _COLUMNS, dictionaries=["label", "quantity"])
        if len(table) != record.rows:
            raise place.error(
                f"has a shard of another size: {record.key.stem}",
                f"{len(table):,} rows",
                f"{record.rows:,} rows, as committed",
            )
        part = slice(start, start + record.rows)
        codes[part] = _codes(table.column("label"), classes)
        scores[part] = table.column("score")
        num_tokens[part] = table.column("num_tokens")
        truncated[part] = table.column("truncated")
        num_windows[part] = table.column("num_windows")
        has_loss = table.column("loss_score").null_count == 0
        if has_loss:
            loss_scores[part] = table.column("loss_score")
        quantities = set(pc.unique(table.column("quantity")).to_pylist())
        return table.column("example_id"), quantities, has_loss

    starts = accumulate((record.rows for record in records), initial=0)
    filled = list(ahead(fill, list(zip(records, starts, strict=False))))
    quantities = set[Quantity]().union(*(of_shard for _, of_shard, _ in filled))
    unknown = int((codes == _NO_CLASS).sum())
    if unknown:
        raise place.error(
            "holds labels that are no class", f"{unknown:,} rows", f"one of {', '.join(classes)}"
        )
    if len(quantities) > 1:
        raise place.error("mixes quantities", ", ".join(sorted(quantities)))
    return Columns(
        example_ids=pa.chunked_array(
            [chunk for ids, _, _ in filled for chunk in ids.chunks], pa.string()
        ),
        label_codes=codes,
        scores=scores,
        num_tokens=num_tokens,
        truncated=truncated,
        num_windows=num_windows,
        loss_scores=loss_scores if all(has_loss for _, _, has_loss in filled) else None,
        quantity=quantities.pop() if quantities else "log_likelihood",
    )


def ahead(work: Callable[[Item], Result], items: Sequence[Item]) -> Iterator[Result]:
    """Give the results of `work` in order, the next few being worked on meanwhile."""
    if len(items) == 1:
        yield work(items[0])
        return
    with ThreadPoolExecutor(_READ_AHEAD) as pool:
        waiting: deque[Future[Result]] = deque()
        for item in items:
            waiting.append(pool.submit(work, item))
            if len(waiting) > _READ_AHEAD:
                yield waiting.popleft().result()
        while waiting:
            yield waiting.popleft().result()


def refuse_duplicates(place: Place, ids: pa.Array) -> None:
    """Refuse a class that has scored an example twice."""
    if _ascending(ids):
        return
    twice = len(ids) - pc.count_distinct(ids).as_py()
    if twice:
        raise place.error("has examples scored more than once", f"{twice:,} rows too many")


def _ascending(ids: pa.Array) -> bool:
    """Say whether each id is longer than the one before, or as long and greater.

    Numbered ids in their order (`test-9`, `test-10`) are, and then no id stands there twice: a
    hundred times cheaper to see than with a table of all ids.
    """
    if len(ids) < 2:
        return True
    before, after = ids.slice(0, len(ids) - 1), ids.slice(1)
    lengths = [pc.binary_length(part) for part in (before, after)]
    same_length_and_greater = pc.and_(pc.equal(*lengths), pc.less(before, after))
    return bool(pc.all(pc.or_(pc.less(*lengths), same_length_and_greater)).as_py())


def _codes(labels: pa.ChunkedArray, classes: tuple[str, ...]) -> pa.Array:
    """Give the number of each label's class; labels are a dictionary array."""
    found = labels.combine_chunks()
    number = pc.index_in(found.dictionary, value_set=pa.array(classes, pa.string()))
    return number.fill_null(_NO_CLASS).take(found.indices).fill_null(_NO_LABEL)
