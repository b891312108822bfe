"""Files that are either whole or absent.

A writer writes under a temporary name that starts with `.` and does not end in the final suffix
(DuckDB's globs read dotfiles, so `.x.parquet` would be seen), flushes to disk and renames. The
rename publishes: whoever finds the final name finds the whole file.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import secrets
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from urllib.parse import quote, unquote

from gencls_core.errors import DataError

__all__ = [
    "class_directory_name",
    "class_name_of",
    "digest_of",
    "file_sha256",
    "publish_directory",
    "publish_file",
    "read_json",
    "write_json",
]


def _temporary(path: Path) -> Path:
    return path.parent / f".{path.name}.{os.getpid()}-{secrets.token_hex(4)}.tmp"


def _sync(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


@contextlib.contextmanager
def publish_file(path: Path) -> Iterator[Path]:
    """Give a temporary path to write; on success sync and rename it to `path`, else remove it."""
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = _temporary(path)
    try:
        yield temporary
        _sync(temporary)
        temporary.replace(path)
        _sync(path.parent)
    finally:
        temporary.unlink(missing_ok=True)


@contextlib.contextmanager
def publish_directory(path: Path) -> Iterator[Path]:
    """Give a temporary folder to fill; on success put it in the place of `path`, else remove it.

    An existing folder at `path` is replaced: it is moved aside first, so that a reader finds the
    old folder, none, or the new one, never a mixture.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = _temporary(path)
    temporary.mkdir()
    try:
        yield temporary
        for child in temporary.rglob("*"):
            if child.is_file():
                _sync(child)
        if path.exists():
            old = _temporary(path)
            path.rename(old)
            temporary.rename(path)
            shutil.rmtree(old)
        else:
            temporary.rename(path)
        _sync(path.parent)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


def write_json(path: Path, value: Any) -> None:
    """Publish `value` as indented UTF-8 JSON."""
    with publish_file(path) as temporary:
        temporary.write_text(
            json.dumps(value, indent=2, ensure_ascii=False, allow_nan=False) + "\n",
            encoding="utf-8",
        )


def read_json(path: Path) -> Any:
    """Read a JSON file; raises FileNotFoundError or json.JSONDecodeError."""
    return json.loads(path.read_text(encoding="utf-8"))


def digest_of(value: Any) -> str:
    """Give the SHA-256 (64 hex digits) of `value` as canonical JSON: sorted keys, no spaces."""
    text = json.dumps(
        value, sort_keys=True, separators=(",", ":"), ensure_ascii=False, allow_nan=False
    )
    return hashlib.sha256(text.encode("utf-8")).hexdigest()


def file_sha256(path: Path) -> str:
    """Give the SHA-256 (64 hex digits) of a file's bytes."""
    with path.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()


def class_directory_name(class_name: str) -> str:
    """Give a class's folder name: URL-encoded, so that no class name leaves its parent folder.

    Letters, digits, `_`, `-` and `~` and non-leading `.` stay as they are; everything else,
    `/` and `%` included, becomes `%XX`. This is the encoding that Hive partitions use, and that
    pyarrow, DuckDB and Polars undo.
    """
    encoded = quote(class_name, safe="")
    if len(encoded) > 200:
        raise DataError.of(
            "a class name that is too long for a file name",
            found=f"{class_name[:60]!r}…, {len(encoded)} bytes when encoded",
            expected="at most 200 bytes; a character beyond ASCII takes up to 12",
            remedy="shorter class names",
        )
    if encoded.startswith("."):
        encoded = "%2E" + encoded[1:]
    return encoded


def class_name_of(directory_name: str) -> str:
    """Undo `class_directory_name`."""
    return unquote(directory_name)
