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
import math
import os
from collections.abc import Callable, Collection, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict
from functools import lru_cache
from pathlib import Path
from typing import TypeVar

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from gencls_core.errors import StoreError
from gencls_core.ownership import Fence
from gencls_core.remote_path import Location, RemotePath, store_failure
from gencls_core.score_records import (
    PARTITION_FIELDS,
    SCORE_FORMAT,
    SCORE_SCHEMA,
    Quantity,
    ShardKey,
    ShardRecord,
    shard_of_record,
)
from gencls_core.storage import (
    class_directory_name,
    class_name_of,
    file_sha256,
    filesystem_of,
    publish_file,
    write_errors,
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

Item = TypeVar("Item")
Result = TypeVar("Result")

READERS = 16
"""Threads that read records and check files: object stores answer slowly but many at a time."""
ITEMS_AT_ONCE = 256
"""Files that a thread takes at once: handing out one by one would cost more than a local file."""


class ScoreStore:
    """Score shards under one folder."""

    def __init__(self, path: Location) -> None:
        self.path = path

    def directory(self, system: str, class_name: str) -> Location:
        """Give the partition folder of one class."""
        return self.path / _partition(system, class_name)

    def shard_path(self, key: ShardKey) -> Location:
        """Give the Parquet file of a shard."""
        return self.directory(key.system, key.class_name) / f"{key.stem}.parquet"

    def record_path(self, key: ShardKey) -> Location:
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
        train_seconds: float = 0.0,
        peak_memory_bytes: int = 0,
        fence: Fence | None = None,
    ) -> ShardRecord:
        """Write a shard whole, then its record; replaces what stood there.

        Args:
            table: rows in SCORE_SCHEMA, one per example of the shard's range, in order.
            start: number of the first example; the range is [start, start + rows).
            digest: names all inputs of the rows.
            seconds: time the scoring took, kept for the report.
            train_seconds: time that a system took to learn before it scored.
            peak_memory_bytes: peak resident memory of the process that scored.
            fence: the right to write, asked before anything is replaced and again before the
                record is written.

        Raises:
            StoreError: when a score is NaN or infinite: such a row must not become a figure; or
                when the disk is full or the object store refuses.
            OwnershipError: when the run or the shard belongs to somebody else by now.
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
        if fence is not None:
            fence.check()
        with write_errors(path):
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
            train_seconds=train_seconds,
            tokens=tokens,
            peak_memory_bytes=peak_memory_bytes,
            attempt="" if fence is None else fence.attempt,
        )
        if fence is not None:
            fence.check()
        write_json(self.record_path(key), asdict(record))
        return record

    def record(self, key: ShardKey) -> ShardRecord | None:
        """Give a shard's commit record, or None where it is absent or its file is not as written.

        The file is checked by its size here; `torn` checks its SHA-256.
        """
        try:
            size = self.shard_path(key).stat().st_size
        except FileNotFoundError:
            return None
        return self._read_record(self.record_path(key), size)

    def _read_record(self, path: Location, size: int | None) -> ShardRecord | None:
        try:
            record = ShardRecord(**json.loads(path.read_text(encoding="utf-8")))
        except (FileNotFoundError, ValueError, TypeError):
            return None
        return record if size == record.bytes and record.format == SCORE_FORMAT else None

    def records(self, system: str | None = None) -> list[ShardRecord]:
        """Give every committed shard, ordered by system, class and index.

        One listing gives the sizes of all files, so that only the records themselves are read.
        """
        sizes = {
            path: size for path, size in self._files() if system is None or _is_of(path, system)
        }
        found = [path for path in sizes if path.endswith(".json") and "/_shard-" in path]

        def read(name: str) -> ShardRecord | None:
            return self._read_record(self.path / name, sizes.get(shard_of_record(name)))

        # Reading local records is work for Python, which threads would only take turns at.
        each = _in_threads if isinstance(self.path, RemotePath) else map
        return sorted(
            (record for record in each(read, found) if record is not None),
            # Not by `record.key`: a hundred thousand keys compare a million times.
            key=lambda record: (record.system, record.class_name, record.index, record.count),
        )

    def _files(self) -> Iterator[tuple[str, int]]:
        """Give every file below with its size, named from the store's folder on."""
        if isinstance(self.path, RemotePath):
            for path, stat in self.path.files():
                yield str(path.relative_to(self.path)), stat.st_size
            return
        for partition in sorted(self.path.glob("system=*/class=*")):
            prefix = partition.relative_to(self.path).as_posix()
            with os.scandir(partition) as entries:
                for entry in entries:
                    yield f"{prefix}/{entry.name}", entry.stat().st_size

    def torn(self, records: Sequence[ShardRecord]) -> list[ShardRecord]:
        """Give the records whose file does not have the bytes that were committed."""

        def is_torn(record: ShardRecord) -> bool:
            try:
                return file_sha256(self.shard_path(record.key)) != record.sha256
            except FileNotFoundError:
                return True

        flags = _in_threads(is_torn, records)
        return [record for record, flag in zip(records, flags, strict=True) if flag]

    def orphans(self) -> list[str]:
        """Give the files that no commit record vouches for, named from the store's folder on.

        What a killed writer leaves: temporary files, a shard without its record, a record without
        its shard or of another.
        """
        vouched = {name for record in self.records() for name in _names(record.key)}
        return sorted(name for name, _ in self._files() if name not in vouched)

    def remove(self, names: Sequence[str]) -> None:
        """Remove files, named from the store's folder on; records first."""
        for name in sorted(names, key=lambda name: not name.rpartition("/")[2].startswith("_")):
            (self.path / name).unlink(missing_ok=True)

    def retire(self, system: str, wanted: Collection[ShardKey]) -> int:
        """Remove all files of `system` but those of the wanted shards; give how many.

        Left-overs of other settings, and of killed writers, would be seen by plain globs, and
        mixed with what a killed run had come to. Records go first.
        """
        keep = {name for key in wanted for name in _names(key)}
        return self._keep_only(keep, f"system={class_directory_name(system)}/")

    def drop(self, system: str, class_name: str) -> int:
        """Remove all files of one class; give how many."""
        return self._keep_only(set(), _partition(system, class_name) + "/")

    def _keep_only(self, keep: set[str], prefix: str) -> int:
        gone = [name for name, _ in self._files() if name.startswith(prefix) and name not in keep]
        self.remove(gone)
        if isinstance(self.path, Path):
            for folder in {(self.path / name).parent for name in gone}:
                # Plain tools would take an empty partition for a class, or for a system.
                with contextlib.suppress(OSError):
                    folder.rmdir()
                    folder.parent.rmdir()
        return len(gone)

    def systems(self) -> list[str]:
        """Give the names of the systems that have a folder here."""
        return sorted(class_name_of(p.name[len("system=") :]) for p in self.path.glob("system=*"))

    def read(
        self,
        records: list[ShardRecord],
        columns: list[str] | None = None,
        *,
        dictionaries: Sequence[str] = (),
    ) -> pa.Table:
        """Read columns of committed shards as one table.

        Args:
            records: the shards, in the order of their rows.
            columns: names of SCORE_SCHEMA; None for all of it, and `class` and `system`.
            dictionaries: text columns that are given as dictionary arrays: for few values, the
                cheaper form to read and to look into.
        """
        if not records:
            return _empty()
        return pa.concat_tables(
            [self._table(record, columns, list(dictionaries)) for record in records]
        )

    def _table(
        self, record: ShardRecord, columns: list[str] | None, dictionaries: list[str]
    ) -> pa.Table:
        path = self.shard_path(record.key)
        filesystem, name = filesystem_of(path)
        try:
            # Not `pq.read_table`, which looks at every file as a data set: twice the time.
            with pq.ParquetFile(
                name, filesystem=filesystem, pre_buffer=True, read_dictionary=dictionaries
            ) as shard:
                table = shard.read(columns).replace_schema_metadata(None)
        except (OSError, pa.ArrowInvalid) as error:
            raise store_failure(path, error) or StoreError.of(
                "cannot read a committed score shard",
                place=str(path),
                found=str(error).splitlines()[0],
                remedy="delete the file and run the same command again: it is rescored",
            ) from error
        if columns is None:
            for field, value in zip(
                PARTITION_FIELDS, (record.class_name, record.system), strict=True
            ):
                table = table.append_column(field, pa.repeat(value, table.num_rows))
        return table


def read_scores(store: Location, system: str | None = None) -> pa.Table:
    """Read every committed score row under `store` (a run's `scores` folder) as an Arrow table."""
    scores = ScoreStore(store)
    return scores.read(scores.records(system))


def _in_threads(work: Callable[[Item], Result], items: Sequence[Item]) -> Iterator[Result]:
    """Give the results of `work` in order."""
    if len(items) < 2:
        yield from map(work, items)
        return
    size = min(ITEMS_AT_ONCE, math.ceil(len(items) / READERS))
    parts = [items[start : start + size] for start in range(0, len(items), size)]
    with ThreadPoolExecutor(READERS) as pool:
        for results in pool.map(lambda part: [work(item) for item in part], parts):
            yield from results


def _is_of(name: str, system: str) -> bool:
    return name.startswith(f"system={class_directory_name(system)}/")


@lru_cache(maxsize=4096)
def _partition(system: str, class_name: str) -> str:
    """Name the folder of one class, from the store's folder on."""
    return f"system={class_directory_name(system)}/class={class_directory_name(class_name)}"


def _names(key: ShardKey) -> tuple[str, str]:
    """Name the record and the file of a shard, from the store's folder on."""
    folder = _partition(key.system, key.class_name)
    return f"{folder}/_{key.stem}.json", f"{folder}/{key.stem}.parquet"


def _empty() -> pa.Table:
    return pa.schema([*SCORE_SCHEMA, *PARTITION_FIELDS]).empty_table()


def _refuse_unfinite(table: pa.Table, path: Location) -> None:
    finite = pc.is_finite(table.column("score"))
    if not pc.all(finite, min_count=0).as_py():
        row = finite.to_pylist().index(False)
        raise StoreError.of(
            "a score that is not a finite number",
            place=str(path),
            found=f"{table.column('score')[row]} for example {table.column('example_id')[row]}",
            expected="a log-likelihood in nats",
            remedy="the class model is broken: train it again with a lower learning rate",
        )
