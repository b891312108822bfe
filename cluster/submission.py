"""Submitting, resubmitting and cancelling: the very same command, run on a cluster.

`gencls submit -- run experiment.toml` becomes a job that runs `python -m jobs run experiment.toml`
there. Its id is made of what was asked: the same command on the same files is the same job, and
only one that failed or was stopped is tried again, as `…-2`. It goes on where that one stopped,
since running the same command again is the resume.
"""

from __future__ import annotations

import json
import os
import re
import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from cluster.errors import ClusterError
from cluster.job_client import Job, JobClient, JobExistsError, RayStatus
from cluster.job_context import environment_of
from cluster.job_package import Shipment, entrypoint_of, write_package
from cluster.job_view import METADATA, record_of
from gencls_core.errors import UsageError
from gencls_core.storage import gencls_home

__all__ = ["GRACE_SECONDS", "Options", "Submission", "cancel", "resubmit", "submit"]

GRACE_SECONDS = 60
"""From being asked to stop to being killed: time to commit a shard that is in hand."""

POLL_SECONDS = 0.5
FREED_SECONDS = 60.0
SETTLE_SECONDS = 2.0
"""Nodes tell the head what they have free a moment after it is."""
ATTEMPT = re.compile(r"^(?P<base>.+?)(?:-(?P<number>[2-9]|[1-9]\d{1,3}))?$")
"""A digest is longer than any number of an attempt."""


@dataclass(frozen=True)
class Options:
    """How a job is run, beside what it runs."""

    priority: int = 0
    max_concurrent: int | None = None
    """How many submitted runs may work at once on the cluster; None leaves that as it is."""
    grace_seconds: int = GRACE_SECONDS
    driver_cpus: float = 0.0
    """CPUs held for the driver beside its workers'; 0 lets it run on the head node."""
    environment: Mapping[str, str] = field(default_factory=dict)
    """Variables for the job; they may be secrets, and are not kept where Ray shows things."""


@dataclass(frozen=True)
class Submission:
    """What became of a request."""

    job_id: str
    status: RayStatus
    fresh: bool
    """Whether a job was started; otherwise it is one that was there."""
    previous: Job | None = None
    """The attempt before this one."""


def submit(
    client: JobClient, shipment: Shipment, options: Options, *, again: bool = False
) -> Submission:
    """Start a job, unless the same one waits, runs or has succeeded.

    Args:
        client: the cluster.
        shipment: the command and its files.
        options: how it is run.
        again: start it even when it has succeeded.

    Raises:
        ClusterError: when the cluster cannot be used.
        ResourceError: when there is too much to ship.
        UsageError: when a shipped file would stand in for one of gencls.
    """
    client.check()
    for _ in range(3):
        attempts = _attempts(client.jobs(), shipment.job_id)
        last = attempts[-1] if attempts else None
        if last is not None and not last.over:
            return Submission(last.id, last.status, fresh=False)
        if last is not None and last.status == "SUCCEEDED" and not again:
            return Submission(last.id, last.status, fresh=False)
        number = _number(last.id) + 1 if last is not None else 1
        job_id = shipment.job_id if number == 1 else f"{shipment.job_id}-{number}"
        try:
            _send(client, shipment, options, job_id)
        except JobExistsError:
            # Somebody submitted the same in the meantime.
            continue
        return Submission(job_id, "PENDING", fresh=True, previous=last)
    raise ClusterError.of(
        "the job could not be given an id",
        place=client.url,
        found=f"{shipment.job_id}: taken each time it was tried",
        remedy="look at `gencls jobs`, and try again",
    )


def resubmit(client: JobClient, job_id: str, given: Mapping[str, str]) -> Submission:
    """Start a new attempt of a job that is over, whatever became of it.

    How many may work at once is the cluster's affair, and stays as it is.

    Args:
        client: the cluster.
        job_id: any attempt of it.
        given: values of the variables that the job was sent with; others of them are taken from
            this process's environment.

    Raises:
        UsageError: when it is not over, was not submitted by gencls, its files have been changed,
            or a variable is not there any more.
    """
    client.check()
    job = client.job(job_id)
    record = record_of(job)
    if not record:
        raise UsageError.of("not a job that gencls submitted", place=client.url, found=job_id)
    if not job.over:
        raise UsageError.of(
            "the job is not over",
            found=f"{job_id}: {job.status}",
            remedy=f"gencls cancel {job_id}",
        )
    folder = Path(record["folder"])
    if not folder.is_dir():
        raise UsageError.of(
            "the folder that the job was submitted from is not here",
            place=folder,
            remedy="resubmit it from where it was submitted",
        )
    shipment = Shipment.of(record["command"], record["ship"], folder)
    if shipment.job_id != _base(job_id):
        raise UsageError.of(
            "the job's files have been changed since, so it would be another job",
            place=folder,
            remedy="submit it with `gencls submit`",
        )
    values = {name: given.get(name, os.environ.get(name)) for name in record["environment"]}
    lost = sorted(name for name, value in values.items() if value is None)
    if lost:
        raise UsageError.of(
            "variables that the job was sent with are not set here",
            found=", ".join(lost),
            remedy=f"set them, or give them: --env {lost[0]}=…",
        )
    options = Options(
        priority=record["priority"],
        grace_seconds=record["grace_seconds"],
        driver_cpus=record["driver_cpus"],
    )
    kept = {name: value for name, value in values.items() if value is not None}
    return submit(client, shipment, replace(options, environment={**kept, **given}), again=True)


def cancel(client: JobClient, job_id: str) -> Iterator[str]:
    """Stop a job, and wait until it is over and holds nothing any more; says what happens.

    Raises:
        ClusterError: when it does not end in its time.
    """
    job = client.job(job_id)
    if job.over:
        yield f"{job_id} was over already: {job.status}"
        return
    grace = int(record_of(job).get("grace_seconds") or GRACE_SECONDS)
    client.stop(job_id)
    yield f"{job_id} was asked to stop; it has {grace} s to end; a shard in hand is committed first"
    began = time.monotonic()
    while not job.over:
        if time.monotonic() - began > grace + FREED_SECONDS:
            raise ClusterError.of(
                "the job does not stop",
                place=client.url,
                found=f"{job.status} {grace + FREED_SECONDS:.0f} s after it was asked to stop",
                remedy="look at the cluster (`gencls cluster status`) and at its logs",
            )
        time.sleep(POLL_SECONDS)
        job = client.job(job_id)
    yield f"{job_id}: {job.status} after {time.monotonic() - began:.0f} s"
    yield _wait_until_freed(client, job)


def _wait_until_freed(client: JobClient, job: Job) -> str:
    """Wait until nothing of a job that is over holds CPUs or GPUs; say what is in use then."""
    began = time.monotonic()
    alone = not any(other.status in ("PENDING", "RUNNING") for other in client.jobs())
    while True:
        actors = client.live_actors(job.ray_job) if job.ray_job else 0
        usage = client.usage()
        # What was counted before the job's end tells nothing.
        stale = usage is not None and (usage.counted or 0.0) < (job.ended or 0.0) + SETTLE_SECONDS
        busy = usage is not None and any(usage.used.get(name) for name in ("CPU", "GPU"))
        if not actors and not (alone and (stale or busy)):
            break
        if time.monotonic() - began > FREED_SECONDS:
            if actors:
                raise ClusterError.of(
                    "the job is over, but some of it still holds CPUs or GPUs",
                    place=client.url,
                    found=f"{actors} actors; {usage}",
                    remedy="look at the cluster's dashboard",
                )
            if stale:
                return "no actor of it lives; Ray has not counted again what is in use"
            # Not this job's: somebody joined the cluster by hand.
            return f"its resources are free; others use the cluster: {usage}"
        time.sleep(POLL_SECONDS)
    if not alone:
        return "its resources are free for the other jobs"
    return "its resources are free" + (f": {usage}" if usage is not None else "")


def _send(client: JobClient, shipment: Shipment, options: Options, job_id: str) -> None:
    record = {
        "command": list(shipment.command),
        "folder": str(shipment.folder),
        "ship": list(shipment.ship),
        "environment": sorted(options.environment),
        "priority": options.priority,
        "grace_seconds": options.grace_seconds,
        "driver_cpus": options.driver_cpus,
    }
    # 0700: nobody else reads what is packed.
    with tempfile.TemporaryDirectory(prefix="gencls-submit-") as folder:
        package = Path(folder) / "package.zip"
        proof = gencls_home() / "submitted" / job_id
        write_package(shipment, job_id, dict(options.environment), proof, package)
        uri = client.upload(package)
    request: dict[str, Any] = {
        "entrypoint": entrypoint_of(shipment),
        "submission_id": job_id,
        "runtime_env": {
            "working_dir": uri,
            "env_vars": environment_of(
                job_id,
                priority=options.priority,
                max_concurrent=options.max_concurrent,
                submitted=time.time(),
                grace_seconds=options.grace_seconds,
            ),
        },
        "metadata": {METADATA: json.dumps(record)},
    }
    if options.driver_cpus:
        request["entrypoint_num_cpus"] = options.driver_cpus
    client.submit(request)


def _attempts(jobs: Sequence[Job], base: str) -> list[Job]:
    """Give the attempts of a job, the first first."""
    return sorted((job for job in jobs if _base(job.id) == base), key=lambda job: _number(job.id))


def _base(job_id: str) -> str:
    found = ATTEMPT.match(job_id)
    return found["base"] if found else job_id


def _number(job_id: str) -> int:
    found = ATTEMPT.match(job_id)
    return int(found["number"] or 1) if found else 1
