"""One class's committed scores as columns, read a shard at a time and checked.

Of a shard only numbers and ids are kept, so that what is in memory is one class's columns and a few
shards, however many rows there are. Nothing here compares classes: see score_matrix.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any, TypeVar, cast

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
    store: ScoreStore, system: str, classes: Sequence[str]
) -> dict[str, list[ShardRecord]]:
    """Give every class's shards in example order.

    Raises:
        StoreError: when a class has no shards, or some are missing.
    """
    if not classes:
        raise StoreError.of("no class to read scores of", place=str(store.path))
    shards: dict[str, list[ShardRecord]] = {name: [] for name in classes}
    for record in store.records(system):
        if record.class_name in shards:
            shards[record.class_name].append(record)
    return {name: _whole(Place(store, system, name), found) for name, found in shards.items()}


@dataclass(frozen=True, eq=False)
class Columns:
    """One class's rows, in the order of its shards."""

    example_ids: pa.ChunkedArray
    label_codes: IntArray
    scores: FloatArray
    num_tokens: IntArray
    truncated: BoolArray
    num_windows: IntArray
    loss_scores: FloatArray | None
    quantity: Quantity


def read_columns(place: Place, records: list[ShardRecord], classes: tuple[str, ...]) -> Columns:
    """Read a class's shards one after the other; of a shard only numbers and ids are kept.

    Raises:
        StoreError: when a shard cannot be read, a label is none of `classes`, or quantities mix.
    """
    ids, labels, quantities = [], [], set()
    columns: dict[str, list[npt.NDArray[Any]]] = {}
    has_loss, unknown = True, 0
    for table in ahead(lambda record: place.store.read([record], _COLUMNS), records):
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
    return Columns(
        example_ids=pa.chunked_array(ids, pa.string()),
        label_codes=np.concatenate(labels),
        scores=np.concatenate(columns["score"]),
        num_tokens=np.concatenate(columns["num_tokens"]).astype(np.int64),
        truncated=np.concatenate(columns["truncated"]).astype(np.bool_),
        num_windows=np.concatenate(columns["num_windows"]).astype(np.int64),
        loss_scores=np.concatenate(columns["loss_score"]) if has_loss else None,
        quantity=cast(Quantity, quantities.pop() if quantities else "log_likelihood"),
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


def _codes(labels: pa.ChunkedArray, classes: tuple[str, ...]) -> IntArray:
    """Give the number of each label's class, -1 for null and for what is no class."""
    found = pc.index_in(labels, value_set=pa.array(classes, pa.string()))
    return cast(IntArray, found.fill_null(-1).to_numpy().astype(np.int64))
