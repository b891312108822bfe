"""The rows of the score store, and the commit record of a shard of them."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import pyarrow as pa

__all__ = [
    "PARTITION_FIELDS",
    "SCORE_FORMAT",
    "SCORE_SCHEMA",
    "Quantity",
    "ShardKey",
    "ShardRecord",
    "shard_of_record",
]

SCORE_FORMAT = 2
Quantity = Literal["log_likelihood", "pseudo_log_likelihood", "log_posterior"]

SCORE_SCHEMA = pa.schema(
    [
        pa.field("example_id", pa.string(), nullable=False),
        pa.field("label", pa.string()),
        pa.field("score", pa.float64(), nullable=False, metadata={"unit": "nats"}),
        pa.field("standard_error", pa.float64(), metadata={"unit": "nats"}),
        pa.field("quantity", pa.string(), nullable=False),
        pa.field("num_tokens", pa.int32(), nullable=False, metadata={"unit": "tokens"}),
        pa.field("truncated", pa.bool_(), nullable=False),
        pa.field("num_windows", pa.int32(), nullable=False),
        pa.field("loss_score", pa.float64(), metadata={"unit": "nats"}),
        pa.field("token_ids", pa.list_(pa.int32())),
        pa.field("token_scores", pa.list_(pa.float32()), metadata={"unit": "nats"}),
    ]
)
"""Columns inside a shard; `system` and `class` are its partition.

`score` is the log-likelihood (or what `quantity` says) in nats, and `standard_error` that of an
estimate by random draws, null where nothing is drawn; `loss_score` the original
experiment's mean loss times the number of tokens, negated, where it was asked for; `token_ids` and
`token_scores` are null unless per-token scores were asked for.
"""

PARTITION_FIELDS = [pa.field("class", pa.string()), pa.field("system", pa.string())]


@dataclass(frozen=True, order=True)
class ShardKey:
    """Which part of which class's scores: examples `index` of `count` equal ranges."""

    system: str
    class_name: str
    index: int
    count: int

    @property
    def stem(self) -> str:
        """File name without suffix; sorts by index."""
        return f"shard-{self.index:05d}-of-{self.count:05d}"


@dataclass(frozen=True)
class ShardRecord:
    """The commit record of one shard.

    `digest` names everything that the rows depend on (texts, range, class model, scoring
    settings, format); a shard whose digest is the wanted one is not computed again.
    `seconds`, `tokens` and `peak_memory_bytes` say what it cost, `train_seconds` what learning did
    where that went before in one go.
    """

    format: int
    system: str
    class_name: str
    index: int
    count: int
    start: int
    stop: int
    rows: int
    digest: str
    sha256: str
    bytes: int
    seconds: float
    tokens: int
    peak_memory_bytes: int
    train_seconds: float = 0.0
    attempt: str = ""
    """Which attempt wrote it; see gencls_core.ownership."""

    @property
    def key(self) -> ShardKey:
        """The shard that this record commits."""
        return ShardKey(self.system, self.class_name, self.index, self.count)


def shard_of_record(name: str) -> str:
    """Give the name of the file that the commit record of that name vouches for."""
    return name.replace("/_shard-", "/shard-").removesuffix(".json") + ".parquet"
