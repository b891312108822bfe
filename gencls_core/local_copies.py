"""Copies on this machine of what lies committed in an object store: class models and bases.

    $GENCLS_HOME/objects/<digest>/       the files, checked against their SHA-256
    $GENCLS_HOME/objects/<digest>.used   locked by every process that uses them, touched by each

After each new copy, those that were used longest ago go until the rest is within
`$GENCLS_OBJECTS_GB`. One that some process has locked never goes: the lock ends with the process.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import shutil
import tempfile
from collections.abc import Mapping
from pathlib import Path

from gencls_core.errors import StoreError, UsageError
from gencls_core.remote_path import Location, RemotePath
from gencls_core.storage import digest_of, file_sha256, files_below, gencls_home

__all__ = ["OBJECTS_GB", "local_folder"]

OBJECTS_GB = 50.0
"""What the copies of a machine may take, in GB (10^9 bytes), where the variable is not set."""

_locks: dict[Path, int] = {}
"""The locks of this process, as file descriptors; kept open until it ends."""


def local_folder(path: Location, files: Mapping[str, str]) -> Path:
    """Give a folder on this machine with the content of `path`; downloads it once where needed.

    Args:
        path: a folder, which is given back as it is, or a place in an object store.
        files: SHA-256 of every file that is needed, by its name below `path`.

    Raises:
        StoreError: when a file is missing or is not the one that was committed.
        UsageError: when `GENCLS_OBJECTS_GB` is no number.
    """
    if isinstance(path, Path):
        return path
    limit = _limit_bytes()
    copy = gencls_home() / "objects" / digest_of(dict(files))[:32]
    copy.parent.mkdir(parents=True, exist_ok=True)
    _use(copy)
    if not copy.exists():
        _fetch(path, files, copy)
        _drop_oldest(copy.parent, limit)
    return copy


def _fetch(path: RemotePath, files: Mapping[str, str], copy: Path) -> None:
    temporary = Path(tempfile.mkdtemp(prefix=".incoming-", dir=copy.parent))
    try:
        for name, sha256 in files.items():
            (temporary / name).parent.mkdir(parents=True, exist_ok=True)
            try:
                (path / name).download(temporary / name)
            except FileNotFoundError:
                found = "no such object"
            else:
                found = file_sha256(temporary / name)
            if found != sha256:
                raise StoreError.of(
                    "a file is not as it was committed",
                    place=str(path / name),
                    found=found[:16],
                    expected=f"SHA-256 {sha256[:16]}…",
                    remedy="`gencls verify --repair` removes what is torn; the next run makes it "
                    "again",
                )
        # Several processes of a node may come here together: the first rename is as good as any.
        with contextlib.suppress(OSError):
            temporary.rename(copy)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


def _limit_bytes() -> int:
    given = os.environ.get("GENCLS_OBJECTS_GB") or OBJECTS_GB
    try:
        return int(float(given) * 10**9)
    except (ValueError, OverflowError):
        raise UsageError.of(
            "GENCLS_OBJECTS_GB is not a number of GB", found=str(given), expected="for example 50"
        ) from None


def _lock_of(copy: Path) -> Path:
    return copy.with_name(f"{copy.name}.used")


def _use(copy: Path) -> None:
    """Keep a copy from being removed as long as this process lives."""
    if copy not in _locks:
        descriptor = os.open(_lock_of(copy), os.O_RDWR | os.O_CREAT, 0o600)
        # A file system without locks removes nothing, either.
        with contextlib.suppress(OSError):
            fcntl.flock(descriptor, fcntl.LOCK_SH)
        _locks[copy] = descriptor
    os.utime(_lock_of(copy))


def _drop_oldest(folder: Path, limit: int) -> None:
    """Remove what was used longest ago and is not in use, until the rest is within the limit."""
    marks = sorted(folder.glob("*.used"), key=lambda mark: mark.stat().st_mtime)
    copies = [mark.with_suffix("") for mark in marks if mark.with_suffix("").is_dir()]
    sizes = {copy: sum(files_below(copy).values()) for copy in copies}
    total = sum(sizes.values())
    for copy in copies:
        if total <= limit:
            return
        # A descriptor of its own: a process may lock the same file against itself.
        descriptor = os.open(_lock_of(copy), os.O_RDWR)
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            # Renamed first: a copy that is there is whole.
            doomed = Path(tempfile.mkdtemp(prefix=".outgoing-", dir=folder))
            copy.rename(doomed / "copy")
            shutil.rmtree(doomed, ignore_errors=True)
            total -= sizes[copy]
        except OSError:
            # In use.
            continue
        finally:
            os.close(descriptor)
