"""Entering a run directory: owning it, and bringing new data into it."""

from __future__ import annotations

import contextlib
import os
import re
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path

from gencls_core.class_models import ClassModel
from gencls_core.dropping import finish_change
from gencls_core.errors import UsageError
from gencls_core.ownership import Lease, OwnershipError, own
from gencls_core.remote_path import RemotePath
from gencls_core.run import RunDirectory
from gencls_core.storage import TEMPORARY_NAME, children, read_json, remove_tree

__all__ = ["incoming_folder", "owned"]


@contextlib.contextmanager
def owned(run: RunDirectory, what: str) -> Iterator[Lease]:
    """Own a run directory; one that was made for it and stayed empty is removed again.

    What killed writers left is removed, of this run and of those before; a class that one of them
    was taking out is out.

    Raises:
        OwnershipError: when a living process owns it.
        UsageError: when it is a file, or has a `run.json` that is none of gencls.
    """
    _refuse_foreign(run)
    existed = run.path.exists()
    try:
        with own(run.path, what) as lease:
            _collect(run)
            finish_change(run)
            try:
                yield lease
            finally:
                # Not where another one owns the run by now. Workers have ended before.
                with contextlib.suppress(OwnershipError, OSError):
                    lease.check()
                    _collect(run)
    finally:
        if not existed and isinstance(run.path, Path):
            with contextlib.suppress(OSError):
                run.path.rmdir()


def _refuse_foreign(run: RunDirectory) -> None:
    remedy = "give another --output-dir"
    if isinstance(run.path, Path) and run.path.exists() and not run.path.is_dir():
        raise UsageError.of(
            "the run directory is a file", place=run.path, expected="a folder", remedy=remedy
        )
    try:
        values = read_json(run.manifest_path)
    except (FileNotFoundError, ValueError):
        return  # a torn one is written anew
    if not isinstance(values, dict) or "format" not in values:
        raise UsageError.of(
            "the folder has a run.json that is not of gencls",
            place=run.manifest_path,
            expected="a folder of its own for the run",
            remedy=remedy,
        )


def _collect(run: RunDirectory) -> None:
    """Remove what writers left that were killed; only a run's owner may, for only it writes.

    Temporary files, of a report as of a shard; and the checkpoints of a class model that was
    committed before its worker could remove them.
    """
    places = [run.models_path, *(run.models_of(s.name) for s in children(run.path / "systems"))]
    for training in [child for place in places for child in children(place)]:
        parts = re.fullmatch(r"\.training-(.+)-([0-9a-f]{16})", training.name)
        if parts is None:
            continue
        model = ClassModel.find(training.parent / parts[1])
        if model is not None and model.digest.startswith(parts[2]):
            remove_tree(training)
    if not isinstance(run.path, Path):
        return  # an object store shows nothing before it is whole
    for folder, folders, files in os.walk(run.path):
        if Path(folder) == run.path:
            # Each evaluation has an owner of its own, and whoever asks for the lease writes there.
            folders[:] = [name for name in folders if name not in ("evaluations", ".owners")]
        for name in [name for name in folders if TEMPORARY_NAME.fullmatch(name)]:
            folders.remove(name)
            shutil.rmtree(Path(folder, name), ignore_errors=True)
        for name in files:
            if TEMPORARY_NAME.fullmatch(name):
                Path(folder, name).unlink(missing_ok=True)


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
