"""Entering a run directory: owning it, and bringing new data into it."""

from __future__ import annotations

import contextlib
import tempfile
from collections.abc import Iterator
from pathlib import Path

from gencls_core.ownership import Lease, own
from gencls_core.remote_path import RemotePath
from gencls_core.run import RunDirectory
from gencls_core.storage import remove_tree

__all__ = ["incoming_folder", "owned"]


@contextlib.contextmanager
def owned(run: RunDirectory, what: str) -> Iterator[Lease]:
    """Own a run directory; one that was made for it and stayed empty is removed again.

    Raises:
        OwnershipError: when a living process owns it.
    """
    existed = run.path.exists()
    try:
        with own(run.path, what) as lease:
            yield lease
    finally:
        if not existed and isinstance(run.path, Path):
            with contextlib.suppress(OSError):
                run.path.rmdir()


@contextlib.contextmanager
def incoming_folder(run: RunDirectory) -> Iterator[Path]:
    """Give a folder on this machine for data on its way into the run; it is removed again."""
    if isinstance(run.path, RemotePath):
        with tempfile.TemporaryDirectory(prefix="gencls-") as folder:
            yield Path(folder) / "dataset"
        return
    incoming = run.path / ".incoming-dataset"
    existed = run.path.exists()
    try:
        yield incoming
    finally:
        remove_tree(incoming)
        if not existed:
            with contextlib.suppress(OSError):
                run.path.rmdir()
