"""Likelihoods side by side, read a range of examples at a time, however many there are.

A GROUP BY over the score rows would hold every example until the last row is read. But shards
belong to ranges of examples, so all rows of an example lie in the shards of one range: a range is
grouped by itself, and its rows are given away before the next one's are needed.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from itertools import chain

import pyarrow as pa

from gencls_core.score_columns import ahead
from gencls_core.scores import ScoreStore, ShardRecord

__all__ = ["LikelihoodStream"]

_EXAMPLE_FIELDS = [
    pa.field("example_id", pa.string()),
    pa.field("label", pa.string()),
    pa.field("num_tokens", pa.int32()),
]


class LikelihoodStream:
    """One row per example: its id, label and tokens, and a column of log P(text | class) per class.

    In nats; null where a class has no committed score of the example.

    It has Arrow's PyCapsule interface: DuckDB opens a new stream for each scan of it.
    """

    def __init__(
        self, store: ScoreStore, records: Sequence[ShardRecord], column_of: Mapping[str, str]
    ) -> None:
        """Take the shards of one system, and the column of each class in order."""
        self._store, self._column_of = store, column_of
        self._ranges = list(_ranges(records))
        scores = [pa.field(column, pa.float64()) for column in column_of.values()]
        self.schema = pa.schema([*_EXAMPLE_FIELDS, *scores])

    def __arrow_c_schema__(self) -> object:
        return self.schema.__arrow_c_schema__()

    def __arrow_c_stream__(self, requested_schema: object = None) -> object:
        tables = ahead(self._side_by_side, self._ranges)
        batches = chain.from_iterable(table.to_batches() for table in tables)
        reader = pa.RecordBatchReader.from_batches(self.schema, batches)
        return reader.__arrow_c_stream__(requested_schema)

    def _side_by_side(self, records: list[ShardRecord]) -> pa.Table:
        """Bring each example of a range together from the shards of all classes."""
        long = pa.concat_tables(
            [self.schema.empty_table(), *map(self._scores_of, records)], promote_options="default"
        )
        # The first that is not null; without threads, examples keep their order.
        first = [(name, "first") for name in self.schema.names[1:]]
        wide = long.group_by("example_id", use_threads=False).aggregate(first)
        return wide.rename_columns(self.schema.names)

    def _scores_of(self, record: ShardRecord) -> pa.Table:
        names = [field.name for field in _EXAMPLE_FIELDS]
        table = self._store.read([record], [*names, "score"]).select([*names, "score"])
        return table.rename_columns([*names, self._column_of[record.class_name]])


def _ranges(records: Sequence[ShardRecord]) -> Iterator[list[ShardRecord]]:
    """Cut shards at the examples where a shard of no class goes on."""
    found: list[ShardRecord] = []
    reached = 0
    for record in sorted(records, key=lambda record: record.start):
        if found and record.start >= reached:
            yield found
            found = []
        found.append(record)
        reached = max(reached, record.stop)
    if found:
        yield found
