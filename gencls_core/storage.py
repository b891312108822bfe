"""Files that are either whole or absent, in a folder or in an object store.

In a folder a writer writes under a temporary name that starts with `.` and does not end in the
final suffix (DuckDB's globs read dotfiles, so `.x.parquet` would be seen), flushes to disk and
renames: the rename publishes. In an object store one put does. Whoever finds the final name finds
the whole file.
"""

from __future__ import annotations

import contextlib
import errno
import hashlib
import json
import os
import re
import secrets
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from urllib.parse import quote, unquote

import pyarrow.fs as pafs

from gencls_core.errors import DataError, GenclsError, StoreError
from gencls_core.remote_path import Location, RemotePath

__all__ = [
    "TEMPORARY_NAME",
    "children",
    "class_directory_name",
    "class_name_of",
    "digest_of",
    "file_sha256",
    "files_below",
    "filesystem_of",
    "gencls_home",
    "publish_directory",
    "publish_file",
    "read_json",
    "remove_tree",
    "resolve_below",
    "size_of",
    "storage_error",
    "write_errors",
    "write_json",
    "write_text",
]

TEMPORARY_SUFFIX = ".tmp"
TEMPORARY_NAME = re.compile(r"\..+\.\d+(-[0-9a-f]{8})?\.tmp")
"""What is written under such a name, and left there, its writer did not bring to its end."""

_FULL = {errno.ENOSPC, errno.EDQUOT, errno.EFBIG}
_REFUSED = {errno.EROFS, errno.EACCES, errno.EPERM}


def storage_error(error: OSError, place: object) -> StoreError | None:
    """Say in our words why a file could not be written; None for errors that are not the disk's."""
    if error.errno in _FULL:
        problem, remedy = "no space is left", "free some space"
    elif error.errno in _REFUSED:
        problem, remedy = "the folder cannot be written to", "make it writable, or name another"
    elif error.errno == errno.EIO:
        problem, remedy = "the disk failed", "look into the system's log"
    else:
        return None
    return StoreError.of(
        f"cannot write: {problem}",
        place=str(error.filename or place),
        found=error.strerror,
        remedy=f"{remedy}, then run the same command again: it goes on from what is committed",
    )


@contextlib.contextmanager
def write_errors(place: object) -> Iterator[None]:
    """Turn a full disk, a read-only folder or a failing disk into a StoreError."""
    try:
        yield
    except GenclsError:
        raise
    except OSError as error:
        known = storage_error(error, place)
        if known is None:
            raise
        raise known from error


def _temporary(path: Path) -> Path:
    return path.parent / f".{path.name}.{os.getpid()}-{secrets.token_hex(4)}{TEMPORARY_SUFFIX}"


def _sync(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


@contextlib.contextmanager
def publish_file(path: Location) -> Iterator[Path]:
    """Give a temporary path to write; on success it appears at `path` whole, else not at all.

    Raises:
        StoreError: when the disk is full or read-only, or the object store refuses.
    """
    if isinstance(path, RemotePath):
        with tempfile.TemporaryDirectory(prefix="gencls-") as folder:
            temporary = Path(folder) / path.name
            with write_errors(temporary):
                yield temporary
            with temporary.open("rb") as stream:
                path.upload(stream)
        return
    with write_errors(path):
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
def publish_directory(path: Location, mark: str) -> Iterator[Path]:
    """Give a temporary folder to fill; on success put it in the place of `path`, else remove it.

    An existing folder at `path` is replaced: a reader finds the old folder, none, or the new one,
    never a mixture. In an object store the mark goes first and comes last, so that a folder with
    its mark is whole.

    Args:
        path: where the folder is to appear.
        mark: the file in it without which the folder counts as absent.

    Raises:
        StoreError: when the disk is full or read-only, or the object store refuses.
    """
    if isinstance(path, RemotePath):
        with tempfile.TemporaryDirectory(prefix="gencls-") as folder, write_errors(folder):
            yield Path(folder)
            _upload_directory(Path(folder), path, mark)
        return
    with write_errors(path):
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


def _upload_directory(folder: Path, path: RemotePath, mark: str) -> None:
    (path / mark).unlink(missing_ok=True)
    files = [file.relative_to(folder).as_posix() for file in folder.rglob("*") if file.is_file()]
    for stale, _ in path.files():
        if str(stale.relative_to(path)) not in files:
            stale.unlink(missing_ok=True)
    for name in sorted(files, key=lambda name: name == mark):
        with (folder / name).open("rb") as stream:
            (path / name).upload(stream)


def gencls_home() -> Path:
    """Give the folder for what gencls keeps on a machine: `$GENCLS_HOME` or `~/.cache/gencls`."""
    return Path(os.environ.get("GENCLS_HOME") or "~/.cache/gencls").expanduser().absolute()


def remove_tree(path: Location) -> None:
    """Remove a folder and all below it, if it is there."""
    if isinstance(path, RemotePath):
        path.remove_tree()
    else:
        shutil.rmtree(path, ignore_errors=True)


def children(path: Location) -> list[Location]:
    """Give what lies directly in a folder, by name; nothing where there is no folder."""
    if isinstance(path, Path) and not path.is_dir():
        return []
    return sorted(path.iterdir(), key=lambda child: child.name)


def resolve_below(path: Location, relative: str) -> Location:
    """Follow a relative path with `..` in it; a key of an object store has no `..`."""
    for part in relative.split("/"):
        path = path.parent if part == ".." else path / part
    return path


def files_below(path: Location) -> dict[str, int]:
    """Give every file below a folder, named from it on, with its size in bytes."""
    if isinstance(path, RemotePath):
        return {str(file.relative_to(path)): stat.st_size for file, stat in path.files()}
    found = {}
    for folder, _, names in os.walk(path):
        for name in names:
            file = Path(folder) / name
            # A file that goes meanwhile, as a heartbeat's does, was not there.
            with contextlib.suppress(FileNotFoundError):
                found[file.relative_to(path).as_posix()] = file.lstat().st_size
    return found


def size_of(path: Location) -> int | None:
    """Give a file's size in bytes, None where there is none."""
    try:
        return path.stat().st_size
    except FileNotFoundError:
        return None


def filesystem_of(path: Location) -> tuple[pafs.FileSystem, str]:
    """Give the Arrow file system of a path, and the path's name in it."""
    if isinstance(path, RemotePath):
        return path.filesystem, path.key
    return pafs.LocalFileSystem(), str(path.absolute())


def write_json(path: Location, value: Any) -> None:
    """Publish `value` as indented UTF-8 JSON."""
    write_text(path, json.dumps(value, indent=2, ensure_ascii=False, allow_nan=False) + "\n")


def write_text(path: Location, text: str) -> None:
    """Publish a text as UTF-8."""
    if isinstance(path, RemotePath):
        path.write_text(text)
        return
    with publish_file(path) as temporary:
        temporary.write_text(text, encoding="utf-8")


def read_json(path: Location) -> Any:
    """Read a JSON file; raises FileNotFoundError or json.JSONDecodeError."""
    return json.loads(path.read_text(encoding="utf-8"))


def digest_of(value: Any) -> str:
    """Give the SHA-256 (64 hex digits) of `value` as canonical JSON: sorted keys, no spaces."""
    text = json.dumps(
        value, sort_keys=True, separators=(",", ":"), ensure_ascii=False, allow_nan=False
    )
    return hashlib.sha256(text.encode("utf-8")).hexdigest()


def file_sha256(path: Location) -> str:
    """Give the SHA-256 (64 hex digits) of a file's bytes."""
    if isinstance(path, RemotePath):
        digest = hashlib.sha256()
        for chunk in path.chunks():
            digest.update(chunk)
        return digest.hexdigest()
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
