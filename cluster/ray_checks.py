"""Can Ray work here: a private one, a cluster that is joined, a cluster that takes jobs?"""

from __future__ import annotations

import os
import shutil
import socket
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

from cluster.capacity import GB, Budget, cluster_budget, joined_address
from cluster.connection import ray_session
from cluster.dev_cluster import dev_cluster
from cluster.errors import UnreachableError
from cluster.target import VARIABLE, find_target
from gencls_core.checks import Finding, failure
from gencls_core.config import ComputeConfig
from gencls_core.errors import ResourceError, counted
from gencls_core.place_checks import check_folder

__all__ = ["check_cluster", "check_jobs", "check_private_ray", "check_ray_folder"]

TASK_SECONDS = 60.0
"""A worker starts within it on a machine that does something else, too."""
CONNECT_SECONDS = 10.0

SOCKET_BYTES = 107
"""The longest path of a socket on Linux."""
SOCKET = "session_2026-01-01_00-00-00_000000_1234567/sockets/plasma_store"
"""The longest path that Ray makes in its folder, as a process with a long number would."""
FULL = 0.95
"""Ray makes no objects on a disk that is fuller."""


def check_ray_folder() -> Iterator[Finding]:
    """Look at the folder of Ray's sockets and logs."""
    folder = Path(os.environ.get("RAY_TMPDIR") or os.environ.get("TMPDIR") or "/tmp") / "ray"
    name, remedy = "Ray's folder", "export RAY_TMPDIR=/tmp, or another short path"
    length = len(os.fsencode(folder / SOCKET))
    if length > SOCKET_BYTES:
        yield Finding(
            name,
            "problem",
            f"{folder}: paths of Ray's sockets would have {length} bytes, and the system takes no "
            f"more than {SOCKET_BYTES}",
            remedy,
        )
        return
    found = check_folder(name, folder, remedy=remedy)
    if found.state == "ok":
        disk = shutil.disk_usage(next(path for path in folder.parents if path.exists()))
        if 1 - disk.free / disk.total > FULL:
            found = Finding(
                name, "warning", f"{found.found}, less than Ray wants of the disk", remedy
            )
    yield found


def check_private_ray(address: str | None) -> Iterator[Finding]:
    """Start a Ray of one CPU, as a run does, let a worker import gencls, and end it.

    Args:
        address: of the command line; where runs are to join another Ray, nothing is started.
    """
    if _joined(address):
        return
    began = time.monotonic()
    with ray_session(Budget.of(cpus=1, memory_bytes=GB // 2)):
        version, seconds = _run_a_task(), time.monotonic() - began
        yield Finding(
            "ray", "ok", f"a private Ray {version} started and ran a task ({seconds:.1f} s)"
        )


def check_cluster(address: str | None) -> Iterator[Finding]:
    """Join the cluster that is named, if one is, and let a worker there import gencls.

    Args:
        address: of the command line.
    """
    named = os.environ.get("RAY_ADDRESS")
    if joined := _joined(address):
        yield _join(joined)
    elif not address and named and named != "local":
        yield _named_by_ray_alone(named)


def _join(address: str) -> Finding:
    _require_answer(address)
    with ray_session(None, address):
        version = _run_a_task()
        budget = cluster_budget(ComputeConfig(device="cpu"))
    found = (
        f"{address}: Ray {version}, {counted(len(budget.nodes), 'node')} with "
        f"{counted(budget.cpus, 'CPU')}, {counted(budget.gpus, 'GPU')} and "
        f"{budget.memory_bytes / GB:.1f} GB for workers"
    )
    if budget.cpus:
        return Finding("cluster", "ok", found)
    return Finding("cluster", "problem", found, "start nodes with CPUs: ray start --num-cpus N")


def _named_by_ray_alone(address: str) -> Finding:
    """Look at what RAY_ADDRESS names: a cluster to join, or a dashboard, which Ray's jobs take.

    Nothing about it is a problem: runs start a Ray of their own all the same.
    """
    is_dashboard = _is_dashboard(address)
    try:
        found = _ask_dashboard("cluster", address) if is_dashboard else _join(address)
    except Exception as error:  # as of any check
        found = failure("cluster", error)
    if found.state != "ok":
        remedy = "; or ".join(filter(None, ("unset RAY_ADDRESS", found.remedy)))
        return replace(found, state="warning", remedy=remedy)
    use = "`gencls submit` goes there" if is_dashboard else "runs join it"
    note = f"{use} with --address, RAY_ADDRESS alone is not enough"
    return replace(found, found=f"{found.found}; {note}")


def _require_answer(address: str) -> None:
    """Refuse an address where nobody listens; Ray would go on trying for a minute.

    Raises:
        UnreachableError: when no connection can be made.
    """
    host, separator, port = address.removeprefix("ray://").rpartition(":")
    if not separator or not port.isdigit():
        return
    try:
        socket.create_connection((host.strip("[]"), int(port)), timeout=CONNECT_SECONDS).close()
    except OSError as error:
        raise UnreachableError.of(
            "the Ray cluster cannot be reached",
            place=address,
            found=error.strerror or str(error),
            remedy="check address and network; on its head: ray status",
        ) from None


def check_jobs(address: str | None) -> Iterator[Finding]:
    """Ask the cluster that `gencls submit` would find, if there is one, whether it takes our jobs.

    Args:
        address: of the command line.
    """
    if address is None and not os.environ.get(VARIABLE):
        try:
            local = dev_cluster()
        except OSError:  # of gencls's folder, which has a check of its own
            return
        if local is None or not local.alive:
            return
    elif address is not None and not _is_dashboard(address):
        return
    yield _ask_dashboard("jobs", address)


def _ask_dashboard(name: str, address: str | None) -> Finding:
    target = find_target(address)
    client = target.client()
    version, jobs = client.check(), client.jobs()
    return Finding(
        name, "ok", f"{target.url}: Ray {version}, {counted(len(jobs), 'job')} in its history"
    )


def _joined(address: str | None) -> str | None:
    """Give the address that a run with this `--address` would join."""
    return joined_address(ComputeConfig(address=None if _is_dashboard(address) else address))


def _is_dashboard(address: str | None) -> bool:
    return (address or "").startswith(("http://", "https://"))


def _run_a_task() -> str:
    """Let a worker import this module; give the version of its Ray.

    Raises:
        ResourceError: when no worker can, or none does in time.
    """
    import ray

    try:
        # Without a CPU of its own it need not wait for a busy cluster.
        task = ray.remote(num_cpus=0, max_retries=0)(_ray_version)
        version: str = ray.get(task.remote(), timeout=TASK_SECONDS)
        return version
    except ray.exceptions.GetTimeoutError:
        raise ResourceError.of(
            "Ray runs, but no worker answers",
            expected=f"an answer within {TASK_SECONDS:g} s",
            remedy="free memory and CPUs; logs are in the folder `session_latest` of Ray's folder",
        ) from None
    except ray.exceptions.RayError as error:
        raise ResourceError.of(
            "Ray runs, but a worker cannot work",
            found=str(error).strip().splitlines()[-1],
            remedy="install the same gencls for the Python of every node, or use `gencls submit`, "
            "which brings it along",
        ) from None


def _ray_version() -> str:
    import ray

    return str(ray.__version__)
