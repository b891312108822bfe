"""The score store: one row per (example, class), in Parquet shards that commit one by one.

    <store>/system=class-lm/class=Sci%2FTech/shard-00007-of-00064.parquet
    <store>/system=class-lm/class=Sci%2FTech/_shard-00007-of-00064.json      commit record

A shard is committed when its record exists and names the shard file's SHA-256. The record is
written after the file, so presence means complete. Readers take shards from the records, never
from a glob. Both partition columns are strings whatever they look like: pyarrow would read
`class=01` as an integer and pandas as a category, so the schema is pinned here.

Plain tools read the files too (leading `_` and `.` are ignored by all of them):

    duckdb   select * from read_parquet('<store>/*/*/*.parquet',
                                        hive_partitioning=true, hive_types_autocast=false)
    polars   pl.scan_parquet('<store>/**/*.parquet', hive_partitioning=True,
                             hive_schema={'system': pl.String, 'class': pl.String})
    pandas   gencls_core.scores.read_scores(Path('<store>')).to_pandas()
"""

from __future__ import annotations

import contextlib
import json
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Literal

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from gencls_core.errors import StoreError
from gencls_core.storage import (
    class_directory_name,
    class_name_of,
    file_sha256,
    publish_file,
    read_json,
    write_json,
)

__all__ = [
    "SCORE_FORMAT",
    "SCORE_SCHEMA",
    "Quantity",
    "ScoreStore",
    "ShardKey",
    "ShardRecord",
    "read_scores",
]

SCORE_FORMAT = 1

Quantity = Literal["log_likelihood", "pseudo_log_likelihood", "log_posterior"]

SCORE_SCHEMA = pa.schema(
    [
        pa.field("example_id", pa.string(), nullable=False),
        pa.field("label", pa.string()),
        pa.field("score", pa.float64(), nullable=False, metadata={"unit": "nats"}),
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

`score` is the log-likelihood (or what `quantity` says) in nats; `loss_score` the original
experiment's mean loss times the number of tokens, negated, where it was asked for; `token_ids` and
`token_scores` are null unless per-token scores were asked for.
"""

_PARTITION_FIELDS = [pa.field("class", pa.string()), pa.field("system", pa.string())]


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
    `seconds`, `tokens` and `peak_memory_bytes` say what it cost.
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

    @property
    def key(self) -> ShardKey:
        """The shard that this record commits."""
        return ShardKey(self.system, self.class_name, self.index, self.count)


class ScoreStore:
    """Score shards under one folder."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def directory(self, system: str, class_name: str) -> Path:
        """Give the partition folder of one class."""
        return (
            self.path
            / f"system={class_directory_name(system)}"
            / f"class={class_directory_name(class_name)}"
        )

    def shard_path(self, key: ShardKey) -> Path:
        """Give the Parquet file of a shard."""
        return self.directory(key.system, key.class_name) / f"{key.stem}.parquet"

    def record_path(self, key: ShardKey) -> Path:
        """Give the commit record of a shard."""
        return self.directory(key.system, key.class_name) / f"_{key.stem}.json"

    def commit(
        self,
        key: ShardKey,
        table: pa.Table,
        *,
        start: int,
        digest: str,
        seconds: float = 0.0,
        peak_memory_bytes: int = 0,
    ) -> ShardRecord:
        """Write a shard whole, then its record; replaces what stood there.

        Args:
            table: rows in SCORE_SCHEMA, one per example of the shard's range, in order.
            start: number of the first example; the range is [start, start + rows).
            digest: names all inputs of the rows.
            seconds: time the scoring took, kept for the report.
            peak_memory_bytes: peak resident memory of the process that scored.

        Raises:
            StoreError: when a score is NaN or infinite: such a row must not become a figure.
        """
        table = table.cast(SCORE_SCHEMA)
        _refuse_unfinite(table, self.shard_path(key))
        metadata = {
            "gencls.format": str(SCORE_FORMAT),
            "gencls.digest": digest,
            "gencls.system": key.system,
            "gencls.class": key.class_name,
            "gencls.score_unit": "nats",
        }
        path = self.shard_path(key)
        # A record must never vouch for a file it was not written for.
        self.record_path(key).unlink(missing_ok=True)
        with publish_file(path) as temporary:
            pq.write_table(
                table.replace_schema_metadata({**(table.schema.metadata or {}), **metadata}),
                temporary,
                compression="zstd",
            )
            sha256, size = file_sha256(temporary), temporary.stat().st_size
        tokens = pc.sum(table.column("num_tokens"), min_count=0).as_py()
        record = ShardRecord(
            format=SCORE_FORMAT,
            system=key.system,
            class_name=key.class_name,
            index=key.index,
            count=key.count,
            start=start,
            stop=start + table.num_rows,
            rows=table.num_rows,
            digest=digest,
            sha256=sha256,
            bytes=size,
            seconds=seconds,
            tokens=tokens,
            peak_memory_bytes=peak_memory_bytes,
        )
        write_json(self.record_path(key), asdict(record))
        return record

    def record(self, key: ShardKey) -> ShardRecord | None:
        """Give a shard's commit record, or None where it is absent or its file is not as written.

        The file is checked by its size here; `verify` checks its SHA-256.
        """
        try:
            record = ShardRecord(**read_json(self.record_path(key)))
            size = self.shard_path(key).stat().st_size
        except (FileNotFoundError, json.JSONDecodeError, TypeError):
            return None
        return record if size == record.bytes and record.format == SCORE_FORMAT else None

    def verify(self, record: ShardRecord) -> bool:
        """Say whether the shard file's bytes are those that were committed."""
        path = self.shard_path(record.key)
        return path.exists() and file_sha256(path) == record.sha256

    def records(self, system: str | None = None) -> list[ShardRecord]:
        """Give every committed shard, ordered by system, class and index."""
        pattern = "system=*" if system is None else f"system={class_directory_name(system)}"
        found = []
        for path in sorted(self.path.glob(f"{pattern}/class=*/_shard-*.json")):
            with contextlib.suppress(FileNotFoundError, json.JSONDecodeError, TypeError):
                record = self.record(ShardRecord(**read_json(path)).key)
                if record is not None:
                    found.append(record)
        return sorted(found, key=lambda record: record.key)

    def retire(self, system: str, wanted: Mapping[ShardKey, str]) -> int:
        """Remove all files of `system` but the shards that have their wanted digest; give how many.

        Left-overs of other settings would be seen by plain globs, and mixed with what a killed
        run had come to. The record goes first.
        """
        keep = set()
        for key, digest in wanted.items():
            record = self.record(key)
            if record is not None and record.digest == digest:
                keep |= {self.record_path(key), self.shard_path(key)}
        folders = self.path.glob(f"system={class_directory_name(system)}/class=*")
        return sum(_empty_folder(folder, keep) for folder in folders)

    def drop(self, system: str, class_name: str) -> int:
        """Remove all files of one class; give how many."""
        folder = self.directory(system, class_name)
        return _empty_folder(folder, set()) if folder.exists() else 0

    def systems(self) -> list[str]:
        """Give the names of the systems that have a folder here."""
        return sorted(class_name_of(p.name[len("system=") :]) for p in self.path.glob("system=*"))

    def read(self, records: list[ShardRecord], columns: list[str] | None = None) -> pa.Table:
        """Read committed shards as one table with the columns `system` and `class` added."""
        return pa.concat_tables(list(self._tables(records, columns))) if records else _empty()

    def _tables(self, records: list[ShardRecord], columns: list[str] | None) -> Iterator[pa.Table]:
        wanted = None if columns is None else [c for c in columns if c not in ("class", "system")]
        for record in records:
            path = self.shard_path(record.key)
            try:
                table = pq.read_table(path, columns=wanted, partitioning=None)
            except (OSError, pa.ArrowInvalid) as error:
                raise StoreError.of(
                    "cannot read a committed score shard",
                    place=path,
                    found=str(error).splitlines()[0],
                    remedy="delete the file and run the same command again: it is rescored",
                ) from error
            table = table.replace_schema_metadata(None)
            for field, value in zip(
                _PARTITION_FIELDS, (record.class_name, record.system), strict=True
            ):
                table = table.append_column(field, pa.array([value] * table.num_rows, pa.string()))
            yield table


def read_scores(store: Path, system: str | None = None) -> pa.Table:
    """Read every committed score row under `store` (a run's `scores` folder) as an Arrow table."""
    scores = ScoreStore(store)
    return scores.read(scores.records(system))


def _empty_folder(folder: Path, keep: set[Path]) -> int:
    """Remove a partition's files but those to keep, records first; give how many."""
    removed = 0
    for path in sorted(folder.iterdir(), key=lambda p: not p.name.startswith("_")):
        if path not in keep:
            path.unlink(missing_ok=True)
            removed += 1
    if not any(folder.iterdir()):
        folder.rmdir()
    return removed


def _empty() -> pa.Table:
    return pa.schema([*SCORE_SCHEMA, *_PARTITION_FIELDS]).empty_table()


def _refuse_unfinite(table: pa.Table, path: Path) -> None:
    finite = pc.is_finite(table.column("score"))
    if not pc.all(finite, min_count=0).as_py():
        row = finite.to_pylist().index(False)
        raise StoreError.of(
            "a score that is not a finite number",
            place=path,
            found=f"{table.column('score')[row]} for example {table.column('example_id')[row]}",
            expected="a log-likelihood in nats",
            remedy="the class model is broken: train it again with a lower learning rate",
        )
