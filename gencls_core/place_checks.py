"""Can folders be written to, is the Hugging Face hub within reach, are pulled models whole?"""

from __future__ import annotations

import os
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path

from gencls_core.checks import Finding, State
from gencls_core.storage import gencls_home

__all__ = ["LOW_DISK_BYTES", "check_folder", "check_home", "check_hub", "check_hub_cache",
           "check_pulled", "check_runs_folder"]  # fmt: skip

LOW_DISK_BYTES = 2 * 10**9
"""Three class models of 135 million parameters in float32, and something for scores."""
_HUB_SECONDS = 5.0
_OFFLINE = ("HF_HUB_OFFLINE", "TRANSFORMERS_OFFLINE", "HF_DATASETS_OFFLINE")


def check_home() -> Iterator[Finding]:
    """Look at the folder for what gencls keeps on this machine."""
    yield check_folder(
        "gencls's folder", gencls_home(), remedy="export GENCLS_HOME=/a/folder/to/write/to"
    )


def check_hub_cache() -> Iterator[Finding]:
    """Look at the folder that hub models and datasets are downloaded to."""
    from huggingface_hub import constants

    # One that others fill may be read-only.
    yield check_folder(
        "hub's cache",
        Path(constants.HF_HUB_CACHE),
        remedy="export HF_HOME=/a/folder/to/write/to",
        otherwise="warning",
    )


def check_runs_folder() -> Iterator[Finding]:
    """Look at the current folder, where runs go unless they are told otherwise."""
    yield check_folder(
        "current folder",
        Path.cwd(),
        remedy="give runs another one: --output-dir /a/folder/to/write/to",
        otherwise="warning",
    )


def check_folder(name: str, folder: Path, *, remedy: str, otherwise: State = "problem") -> Finding:
    """Say whether a folder can be written to, and what its disk has free.

    One that is not there yet could be made if the nearest one above it can be written to; nothing
    is made here.

    Args:
        name: of the finding.
        folder: where things would be written.
        remedy: what to do where that cannot be.
        otherwise: how bad that is.
    """
    there = next(path for path in (folder, *folder.parents) if os.path.lexists(path))
    try:
        with tempfile.TemporaryFile(dir=there):
            pass
    except OSError as error:
        reason = f"{there} is no folder" if there.is_file() else error.strerror or str(error)
        return Finding(name, otherwise, f"cannot write to {folder}: {reason}", remedy)
    free = shutil.disk_usage(there).free
    found = f"{folder}, {free / 1e9:,.1f} GB free"
    if free < LOW_DISK_BYTES:
        return Finding(name, "warning", found, f"free some space, or {remedy}")
    return Finding(name, "ok", found)


def check_hub() -> Iterator[Finding]:
    """Ask the hub for a sign of life, with the client that downloads use: its proxy, its trust."""
    from huggingface_hub import constants, get_session

    place, name = constants.ENDPOINT, "hub"
    offline = [f"{n}={os.environ[n]}" for n in _OFFLINE if _is_on(os.environ.get(n))]
    if offline:
        yield Finding(
            name,
            "warning",
            f"{', '.join(offline)}: what is not in its cache is not looked for",
            f"unset {' '.join(setting.partition('=')[0] for setting in offline)}",
        )
        return
    try:
        answer = get_session().head(place, timeout=_HUB_SECONDS)
    except Exception as error:  # errors of several HTTP libraries
        reason = (str(error).strip() or type(error).__name__).splitlines()[0]
        yield _without_hub(f"{place} cannot be reached: {reason}")
        return
    if answer.status_code >= 500:
        yield _without_hub(f"{place} answers {answer.status_code}")
    else:
        yield Finding(name, "ok", f"{place} answers")


def _without_hub(found: str) -> Finding:
    from gencls_core.pull import PULLABLE

    return Finding(
        "hub",
        "warning",
        found,
        "check the network and HTTPS_PROXY; a model without the hub: "
        f"gencls pull {next(iter(PULLABLE))}",
    )


def _is_on(value: str | None) -> bool:
    # As huggingface_hub reads it.
    return (value or "").upper() in ("1", "ON", "YES", "TRUE")


def check_pulled() -> Iterator[Finding]:
    """Say which models of `gencls pull` are here; files are checked by their size."""
    from gencls_core.pull import PULLABLE, pulled_model_path

    folder = gencls_home() / "models"
    whole = [name for name in PULLABLE if pulled_model_path(name) is not None]
    broken = [name for name in PULLABLE if name not in whole and (folder / name).exists()]
    for name in broken:
        yield Finding(
            "pulled models", "warning", f"{name}: not whole, {folder / name}", f"gencls pull {name}"
        )
    if whole:
        yield Finding("pulled models", "ok", ", ".join(whole))
    elif not broken:
        yield Finding(
            "pulled models", "ok", f"none; `gencls pull {next(iter(PULLABLE))}` brings one"
        )
