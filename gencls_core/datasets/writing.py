"""Second pass over a source: rows go to their splits' Parquet files and into fingerprints."""

from __future__ import annotations

import contextlib
import hashlib
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq

from gencls_core.datasets.checks import changed_error
from gencls_core.datasets.dataset import EXAMPLE_SCHEMA, ROW_GROUP_ROWS, SplitInfo, SplitName
from gencls_core.datasets.plan import FINAL_SPLITS, UNUSED, Plan
from gencls_core.datasets.source import ALL, Source
from gencls_core.datasets.survey import text_hash

__all__ = ["SplitWriter", "row_frame", "write_splits"]

# Very long texts: a row group is closed before its texts take more memory than this.
_ROW_GROUP_BYTES = 8 << 20


class SplitWriter:
    """Writes one split's file; a context manager."""

    def __init__(self, path: Path, classes: tuple[str, ...]) -> None:
        self._path = path
        self._rows: dict[str, list[str | None]] = {name: [] for name in EXAMPLE_SCHEMA.names}
        self._held_bytes = 0
        self._longest_bytes = 0
        self._total = 0
        self._counts = dict.fromkeys(classes, 0)
        self._digest = hashlib.sha256()
        self._class_digests = {name: hashlib.sha256() for name in classes}

    def __enter__(self) -> SplitWriter:
        self._writer = pq.ParquetWriter(self._path, EXAMPLE_SCHEMA, compression="zstd")
        return self

    def __exit__(self, *exception: object) -> None:
        if exception[0] is None:
            self._flush()
        self._writer.close()

    def add(self, example_id: str, text: str, label: str | None) -> None:
        """Append one row."""
        frame = row_frame(example_id, text, label)
        self._digest.update(frame)
        if label is not None:
            self._class_digests[label].update(frame)
            self._counts[label] += 1
        self._total += 1
        size = len(text.encode("utf-8"))
        self._longest_bytes = max(self._longest_bytes, size)
        for name, value in zip(EXAMPLE_SCHEMA.names, (example_id, text, label), strict=True):
            self._rows[name].append(value)
        self._held_bytes += size
        if len(self._rows["text"]) == ROW_GROUP_ROWS or self._held_bytes >= _ROW_GROUP_BYTES:
            self._flush()

    def _flush(self) -> None:
        if self._rows["text"]:
            self._writer.write_table(pa.table(self._rows, schema=EXAMPLE_SCHEMA))
            for values in self._rows.values():
                values.clear()
            self._held_bytes = 0

    def info(self) -> SplitInfo:
        """Give the counts and fingerprints of what was added."""
        return SplitInfo(
            rows=self._total,
            fingerprint=self._digest.hexdigest(),
            class_counts=dict(self._counts),
            class_fingerprints={k: digest.hexdigest() for k, digest in self._class_digests.items()},
            longest_text_bytes=self._longest_bytes,
        )


def row_frame(example_id: str, text: str, label: str | None) -> bytes:
    """Give the bytes by which a row enters the fingerprints."""
    return b"".join(
        _framed(None if value is None else value.encode("utf-8"))
        for value in (example_id, text, label)
    )


def _framed(value: bytes | None) -> bytes:
    """Put the length before a value, so that no two rows run together; None is its own mark."""
    if value is None:
        return b"\xff" * 8
    return len(value).to_bytes(8, "big") + value


def write_splits(
    source: Source,
    plan: Plan,
    folder: Path,
    splits: tuple[SplitName, ...],
    *,
    labelled: bool = True,
) -> dict[str, SplitInfo]:
    """Write `<split>.parquet` for each of `splits` that has rows.

    Raises:
        DataError: when the source no longer gives the texts that the plan was made for.
    """
    used = {FINAL_SPLITS[k] for part in plan.final for k in set(part.tolist()) if k != UNUSED}
    names = [name for name in FINAL_SPLITS if name in used and name in splits]
    with contextlib.ExitStack() as stack:
        writers = {
            name: stack.enter_context(SplitWriter(folder / f"{name}.parquet", plan.classes))
            for name in names
        }
        for found, final in zip(plan.surveys, plan.final, strict=True):
            hashes, rows = found.texts, 0
            for example in source.examples(found.split):
                rows += 1
                if rows > len(found) or text_hash(example) != hashes[example.row].tobytes():
                    raise changed_error(source)
                if final[example.row] == UNUSED:
                    continue
                split = FINAL_SPLITS[final[example.row]]
                if split not in writers:
                    continue
                prefix = split if found.split == ALL else found.split
                writers[split].add(
                    example.example_id or f"{prefix}-{example.row}",
                    example.text,
                    example.label if labelled else None,
                )
            if rows != len(found):
                raise changed_error(source)
    return {name: writer.info() for name, writer in writers.items()}
