"""Which processes belong to a development cluster: told by what they carry, not by their names.

Every process of the cluster inherits a mark in its environment. Ray's workers and agents write
their titles over the memory that shows it to others; they are known by the files that they hold
open below the cluster's folder.
"""

from __future__ import annotations

import os
from pathlib import Path

import psutil

__all__ = ["MARK", "is_process", "processes_of"]

MARK = "GENCLS_CLUSTER_ID"


def processes_of(identity: str, folder: str) -> list[psutil.Process]:
    """Give every living process of a cluster but this one, the jobs on it included.

    Args:
        identity: what the variable MARK of its processes holds.
        folder: where its files lie.
    """
    return [
        process
        for process in psutil.process_iter()
        if process.pid != os.getpid() and _belongs(process, identity, folder)
    ]


def is_process(pid: int, started: float) -> bool:
    """Say whether a process lives that was started at that time (seconds since the epoch)."""
    try:
        process = psutil.Process(pid)
        return bool(
            abs(process.create_time() - started) < 1 and process.status() != psutil.STATUS_ZOMBIE
        )
    except psutil.NoSuchProcess:
        return False


def _belongs(process: psutil.Process, identity: str, folder: str) -> bool:
    try:
        if process.status() == psutil.STATUS_ZOMBIE:
            return False
        environment = process.environ()
        if environment.get(MARK) == identity:
            return True
        if environment and not process.name().startswith("ray"):
            return False
        return any(Path(file.path).is_relative_to(folder) for file in process.open_files())
    except (psutil.AccessDenied, psutil.NoSuchProcess, OSError):
        return False
