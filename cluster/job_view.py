"""What a person wants to know of a job, read from afar: its state, its last word, what to do.

The driver prints a line `#gencls {…}` into its log now and then (`jobs/job_lines.py`); the last one
tells how far it is. Nothing else of the cluster is asked, so it works wherever the dashboard is
reachable.
"""

from __future__ import annotations

import itertools
import json
import re
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

from cluster.job_client import Job, JobClient

__all__ = [
    "METADATA",
    "PROGRESS_MARK",
    "JobView",
    "record_of",
    "view_of",
    "views_of",
    "without_marks",
]

PROGRESS_MARK = "#gencls "
METADATA = "gencls"

START_SECONDS = 60.0
"""A job that is PENDING for longer waits for something, and Ray says for what."""


@dataclass(frozen=True)
class JobView:
    """One line of `gencls jobs`."""

    id: str
    state: str
    """Ray's status, or WAITING where the job runs but stands in the queue."""
    command: str
    progress: str
    age_seconds: float
    """Since it was submitted."""
    duration_seconds: float | None
    """From submission to the end, waiting included; None before."""
    accuracy: float | None
    """Of the run's system as trained, from 0 to 1; None before the report."""
    accuracy_calibrated: float | None
    """Of the same, calibrated on held-out texts; None where that was not done."""
    run: str | None
    """The run directory, once the report is written."""
    why: str
    """Why it waits, or why it failed and what to do."""
    exit_code: int | None
    priority: int

    def to_json(self) -> dict[str, Any]:
        """Give the fields."""
        return asdict(self)


def views_of(client: JobClient, last: int) -> list[JobView]:
    """Give the newest `last` jobs of gencls, oldest first."""
    ours = [job for job in client.jobs() if METADATA in job.metadata]
    return [view_of(client, job) for job in ours[-last:]]


def view_of(client: JobClient, job: Job, log: str | None = None) -> JobView:
    """Read a job's log and put together what it says; `log` saves reading it again."""
    if log is None:
        log = "" if job.status == "PENDING" else client.logs(job.id)
    said = _last_word(log)
    waits = job.status == "RUNNING" and said.get("stage") == "waiting"
    record = record_of(job)
    now = time.time()
    started = job.started or now
    return JobView(
        id=job.id,
        state="WAITING" if waits else job.status,
        command=" ".join(record.get("command") or [job.entrypoint]),
        progress=_progress(said, over=job.over),
        age_seconds=round(max(0.0, now - started), 1),
        duration_seconds=round(job.ended - started, 1) if job.over and job.ended else None,
        accuracy=said.get("accuracy"),
        accuracy_calibrated=said.get("accuracy_calibrated"),
        run=said.get("run"),
        why=str(said.get("message") or "") if waits else _why(job, log),
        exit_code=job.exit_code,
        priority=int(record.get("priority") or 0),
    )


def record_of(job: Job) -> dict[str, Any]:
    """Give what `submit` wrote about the job; empty for jobs of others."""
    try:
        record: dict[str, Any] = json.loads(job.metadata.get(METADATA) or "{}")
    except ValueError:
        return {}
    return record


def without_marks(lines: Sequence[str]) -> list[str]:
    """Leave out what is meant for `gencls jobs`."""
    kept = []
    for line in lines:
        text, mark, _ = line.partition(PROGRESS_MARK)
        if text or not mark:
            kept.append(text)
    return kept


def _last_word(log: str) -> dict[str, Any]:
    while (at := log.rfind(PROGRESS_MARK)) >= 0:
        try:
            said = json.loads(log[at + len(PROGRESS_MARK) :].partition("\n")[0])
        except ValueError:
            # The line is being written, or another program's words stand in it.
            said = None
        if isinstance(said, dict):
            return said
        log = log[:at]
    return {}


def _progress(said: dict[str, Any], *, over: bool) -> str:
    stage, done, total = said.get("stage"), said.get("done"), said.get("total")
    if not stage or (over and stage == "report"):
        return ""
    if stage == "waiting":
        return "" if over else f"place {done} of {total}"
    counted = f" {done:,}/{total:,}" if isinstance(done, int) and isinstance(total, int) else ""
    percent = said.get("percent")
    return f"{stage}{counted}" + (f" ({percent} %)" if percent is not None else "")


def _why(job: Job, log: str) -> str:
    """Say why a job failed, in one line, and what to do where that is known."""
    if job.status == "PENDING":
        starts = time.time() - (job.started or 0.0) < START_SECONDS
        return "" if starts else job.message.partition("\n")[0]
    if job.status != "FAILED":
        return ""
    text = log or job.message
    missing = re.findall(r"ModuleNotFoundError: No module named '([\w.]+)'", text)
    if missing:
        return (
            f"the cluster's Python lacks {missing[-1]}: install what gencls needs on every node "
            "(docs/cluster.md)"
        )
    if job.exit_code == 127:
        return "the cluster has no `python` on its PATH"
    said = text.splitlines()
    own = [at for at, line in enumerate(said) if line.startswith("gencls: ")]
    if own:
        problem = said[own[-1]].removeprefix("gencls: ")
        details = itertools.takewhile(lambda line: line.startswith("  "), said[own[-1] + 1 :])
        found = next((line.strip() for line in details if line.startswith("  found: ")), "")
        return f"{problem}; {found}" if found else problem
    lines = [line for line in without_marks(text.strip().splitlines()) if line.strip()]
    return lines[-1].strip()[:300] if lines else job.message[:300]
