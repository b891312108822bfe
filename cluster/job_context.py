"""What a process knows when it runs as a submitted job: who it is, where paths lead, its secrets.

`gencls submit` ships a folder with gencls, the run file and a description of the job. Ray unpacks
it on the cluster and starts `python -m jobs …` in it; `enter_job` is the first thing that process
does. From then on the very same command runs as at home.

Paths: where the cluster sees the folder that the command was given in (a development cluster, a
shared home), relative paths lead there, as at home. It is told by a small file that `submit` left
here and that nobody could know by chance. Elsewhere they lead into the shipped folder, which is
gone when the job is.
"""

from __future__ import annotations

import json
import os
import shlex
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from gencls_core.errors import UsageError
from gencls_core.storage import file_sha256

__all__ = [
    "ADDRESS",
    "JOB_FILE",
    "SECRETS_FILE",
    "JobContext",
    "enter_job",
    "environment_of",
    "job_context",
    "refuse_temporary",
    "secrets_of_job",
    "worker_setup",
]

JOB_FILE = "gencls-job.json"
SECRETS_FILE = "gencls-secrets.json"

ID, ADDRESS = "GENCLS_JOB_ID", "GENCLS_ADDRESS"
PRIORITY, LIMIT, SUBMITTED = "GENCLS_PRIORITY", "GENCLS_MAX_CONCURRENT", "GENCLS_SUBMITTED"

_secrets: dict[str, str] = {}
_package: Path | None = None
"""The shipped folder, unless relative paths lead home."""


@dataclass(frozen=True)
class JobContext:
    """The job that this process is the driver of."""

    id: str
    address: str
    priority: int
    max_concurrent: int | None
    submitted: float
    """Seconds since the epoch."""


def environment_of(
    job_id: str, *, priority: int, max_concurrent: int | None, submitted: float, grace_seconds: int
) -> dict[str, str]:
    """Give the variables that make a process the driver of a job; `job_context` reads them."""
    values = {
        ID: job_id,
        ADDRESS: "auto",
        PRIORITY: str(priority),
        SUBMITTED: f"{submitted:.3f}",
        # Ray kills the driver so long after it has asked it to stop …
        "RAY_JOB_STOP_WAIT_TIME_S": str(grace_seconds),
        # … and the shards in hand must be committed before that.
        "GENCLS_STOP_SECONDS": str(max(1, grace_seconds - 15)),
    }
    return values if max_concurrent is None else {**values, LIMIT: str(max_concurrent)}


def job_context() -> JobContext | None:
    """Give the job that this process is the driver of, or None where it is none."""
    job_id = os.environ.get(ID)
    if not job_id:
        return None
    limit = os.environ.get(LIMIT)
    return JobContext(
        id=job_id,
        address=os.environ.get(ADDRESS) or "auto",
        priority=int(os.environ.get(PRIORITY) or 0),
        max_concurrent=int(limit) if limit else None,
        submitted=float(os.environ.get(SUBMITTED) or 0.0),
    )


def enter_job(arguments: list[str]) -> list[str]:
    """Take up the secrets and the paths of the job; give the command's arguments as they hold here.

    Raises:
        UsageError: when a shipped file has been changed at home since.
    """
    global _package
    here = Path.cwd()
    _take_secrets(here)
    if not (here / JOB_FILE).exists():
        return arguments
    job = json.loads((here / JOB_FILE).read_text(encoding="utf-8"))
    if _is_home(job):
        os.chdir(job["folder"])
        for file in job["files"]:
            given = Path(file["given"])
            if not given.is_file() or file_sha256(given) != file["sha256"]:
                raise UsageError.of(
                    "changed since it was submitted",
                    place=given.absolute(),
                    remedy=f"submit it again: gencls submit -- {shlex.join(arguments)}",
                )
        return arguments
    _package = here
    moved = {f["given"]: f["path"] for f in job["files"] if f["given"] != f["path"]}
    return [moved.get(argument, argument) for argument in arguments]


def refuse_temporary(output: object) -> None:
    """Refuse a run directory inside the shipped folder: it would be lost with the job.

    Raises:
        UsageError: where it lies there.
    """
    if _package is not None and isinstance(output, Path) and output.is_relative_to(_package):
        raise UsageError.of(
            "the run directory would be lost with the job",
            place=output.relative_to(_package),
            found="a relative path, and the cluster does not see the folder it was given in",
            remedy="an absolute path that all nodes share, or an object store (--output-dir …)",
        )


def secrets_of_job() -> dict[str, str]:
    """Give the variables that `submit --env` sent with this job."""
    return dict(_secrets)


def worker_setup() -> Callable[[], None] | None:
    """Give what every worker of the job does first, or None where there is nothing to do.

    The function travels pickled by value, inside Ray; nothing of it is shown anywhere.
    """
    if not _secrets:
        return None
    values, left = dict(_secrets), SECRETS_FILE

    def set_environment() -> None:
        import contextlib
        import os

        os.environ.update(values)
        # A node that no driver ran on has unpacked the file, too.
        with contextlib.suppress(OSError):
            os.unlink(left)  # noqa: PTH108

    return set_environment


def _take_secrets(folder: Path) -> None:
    """Read the secrets that came with the job, and remove their file."""
    path = folder / SECRETS_FILE
    try:
        values: dict[str, str] = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        return
    path.unlink()
    _secrets.update(values)
    os.environ.update(values)


def _is_home(job: dict[str, Any]) -> bool:
    """Say whether this process sees the disk that the job was submitted from."""
    try:
        seen = Path(job["proof"]["path"]).read_text(encoding="ascii")
    except (OSError, UnicodeError):
        return False
    return bool(seen == job["proof"]["content"]) and Path(job["folder"]).is_dir()
