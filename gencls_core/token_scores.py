"""Scores of single tokens that a run has kept (`--per-token`), by text or by range of texts."""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np
import pyarrow as pa

from gencls_core.errors import StoreError
from gencls_core.run import RunDirectory
from gencls_core.scores import ScoreStore, ShardRecord

__all__ = ["Tokens", "kept_tokens", "ranges_of", "stored_tokens", "tokens_of"]

Tokens = tuple[list[int], "np.ndarray[Any, Any]", "np.ndarray[Any, Any]"]
"""Ids of the scored tokens, and their scores under either of two classes, in nats."""

_COLUMNS = ["token_ids", "token_scores"]


def ranges_of(
    records: Sequence[ShardRecord], classes: Sequence[str]
) -> dict[tuple[int, int], dict[str, ShardRecord]]:
    """Give the shards of each range of texts (first, number), by class.

    Raises:
        StoreError: when a class has none of the same.
    """
    found = _by_range(records)
    for (start, rows), shards in found.items():
        if set(shards) != set(classes):
            raise StoreError(
                f"texts {start} to {start + rows} are scored under {', '.join(shards)} alone, or "
                "in shards of another size; run the same command again"
            )
    return found


def _by_range(records: Sequence[ShardRecord]) -> dict[tuple[int, int], dict[str, ShardRecord]]:
    found: dict[tuple[int, int], dict[str, ShardRecord]] = {}
    for record in sorted(records, key=lambda record: record.start):
        found.setdefault((record.start, record.rows), {})[record.class_name] = record
    return found


def stored_tokens(
    run: RunDirectory, records: Sequence[ShardRecord], row: int, pair: tuple[str, str]
) -> Tokens | None:
    """Read a test text's token scores under two classes; None where they were not kept."""
    return next(kept_tokens(run.scores, records, {row: pair}), (row, None))[1]


def kept_tokens(
    store: ScoreStore, records: Sequence[ShardRecord], pairs: Mapping[int, tuple[str, str]]
) -> Iterator[tuple[int, Tokens]]:
    """Read token scores of some texts, a range at a time; texts without them are left out.

    Args:
        store: the scores.
        records: commit records of the shards that hold them.
        pairs: row of a text → the two classes.
    """
    order = sorted(pairs)
    for (start, rows), shards in _by_range(records).items():
        wanted = order[bisect_left(order, start) : bisect_left(order, start + rows)]
        names = {name for row in wanted for name in pairs[row]} & set(shards)
        tables = {
            name: store.read([shards[name]], _COLUMNS).take([row - start for row in wanted])
            for name in sorted(names)
        }
        for number, row in enumerate(wanted):
            tokens = tokens_of(tables, number, pairs[row])
            if tokens is not None:
                yield row, tokens


def tokens_of(tables: Mapping[str, pa.Table], row: int, pair: tuple[str, str]) -> Tokens | None:
    """Give the tokens of a row under two classes; None where one is missing."""
    if any(name not in tables or not tables[name]["token_ids"][row].is_valid for name in pair):
        return None
    first, second = (
        np.asarray(tables[name]["token_scores"][row].as_py(), dtype=np.float32) for name in pair
    )
    return tables[pair[0]]["token_ids"][row].as_py(), first, second
