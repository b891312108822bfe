"""A development cluster that is brought up and down by its own commands, and those that use it."""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from unittest import mock

import psutil
from click.testing import CliRunner

from cluster.dev_cluster import DevCluster, dev_cluster
from gencls_core.errors import GenclsError
from jobs.main import cli

RAY_VARIABLES = ("RAY_ADDRESS", "RAY_API_SERVER_ADDRESS", "RAY_AUTH_TOKEN", "RAY_AUTH_TOKEN_PATH")


def gencls(*arguments: str | Path) -> tuple[int, str]:
    """Run a command in this process; give its exit code and all that it says."""
    result = CliRunner().invoke(cli, [str(argument) for argument in arguments])
    if isinstance(result.exception, GenclsError):
        return result.exception.exit_code, f"{result.output}{result.exception}"
    if result.exception is not None and not isinstance(result.exception, SystemExit):
        raise result.exception
    return result.exit_code, result.output


def succeed(*arguments: str | Path) -> str:
    code, output = gencls(*arguments)
    assert code == 0, output
    return output


@contextmanager
def cluster_up(home: Path, *options: str) -> Iterator[DevCluster]:
    """Bring a cluster up under its own GENCLS_HOME; it is down afterwards, or this fails."""
    with mock.patch.dict(os.environ, {"GENCLS_HOME": str(home)}):
        for name in RAY_VARIABLES:
            os.environ.pop(name, None)
        succeed("cluster", "up", *options)
        cluster = dev_cluster()
        assert cluster is not None
        try:
            yield cluster
        finally:
            succeed("cluster", "down")


def wait_for(what: Callable[[], bool], seconds: float = 150.0, every: float = 0.3) -> None:
    deadline = time.monotonic() + seconds
    while not what():
        assert time.monotonic() < deadline, "it did not come about"
        time.sleep(every)


def drivers_of(job_id: str) -> list[psutil.Process]:
    """Give the living processes that a job was started as, or that it started itself."""
    found = []
    for process in psutil.process_iter():
        try:
            if process.environ().get("GENCLS_JOB_ID") == job_id:
                found.append(process)
        except (psutil.AccessDenied, psutil.NoSuchProcess, OSError):
            continue
    return found


def files_with(value: str, *folders: Path) -> list[Path]:
    """Give the files that hold a value in clear."""
    needle = value.encode()
    found = []
    for folder in folders:
        for path in folder.rglob("*"):
            try:
                if path.is_file() and needle in path.read_bytes():
                    found.append(path)
            except OSError:
                continue
    return found
