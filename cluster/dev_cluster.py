"""A Ray cluster for development: several nodes as processes of this machine, and nobody else's.

    $GENCLS_HOME/cluster/state.json    addresses, processes, folder
    $GENCLS_HOME/cluster/token         what the cluster knows its users by (mode 0600)
    /tmp/gencls-ray-…/                 Ray's own files (mode 0700), removed with the cluster

Every port listens on 127.0.0.1 alone, and every request needs the token. The processes carry a
random mark in their environment: `down` ends those that bear it, and no others.
"""

from __future__ import annotations

import contextlib
import json
import os
import secrets
import shutil
import socket
import subprocess
import sys
import tempfile
import time
from dataclasses import asdict, dataclass
from pathlib import Path

import psutil

from cluster.dev_processes import MARK, is_process, processes_of
from cluster.errors import ClusterError
from cluster.job_client import JobClient
from gencls_core.errors import ResourceError, UsageError
from gencls_core.storage import gencls_home, read_json, write_json

__all__ = ["DevCluster", "bring_down", "bring_up", "dev_cluster", "join_dev_cluster", "processes"]

OBJECT_STORE_BYTES = 200 * 10**6
"""Of each node: only paths, records and events travel through it."""
UP_SECONDS = 180.0
DOWN_SECONDS = 20.0


@dataclass(frozen=True)
class DevCluster:
    """The development cluster that was brought up here."""

    id: str
    url: str
    """Where jobs are submitted to: Ray's dashboard."""
    gcs_address: str
    """Where a driver connects to."""
    folder: str
    token_path: str
    pid: int
    started: float
    """When the process `pid` was started, in seconds since the epoch: a pid alone is used again."""
    nodes: int
    cpus_per_node: int
    gpus_per_node: int

    @property
    def token(self) -> str:
        """The cluster's token."""
        return Path(self.token_path).read_text(encoding="ascii").strip()

    @property
    def alive(self) -> bool:
        """Say whether the process that holds the nodes is there."""
        return is_process(self.pid, self.started)


def _home() -> Path:
    return gencls_home() / "cluster"


def dev_cluster() -> DevCluster | None:
    """Give the cluster that was brought up and not down, whether or not it still lives."""
    try:
        return DevCluster(**read_json(_home() / "state.json"))
    except FileNotFoundError:
        return None
    except (ValueError, TypeError):
        raise ClusterError.of(
            "a broken record of the development cluster",
            place=_home() / "state.json",
            remedy="remove the file; processes of an old cluster have GENCLS_CLUSTER_ID in their "
            "environment",
        ) from None


def bring_up(
    *,
    nodes: int = 1,
    cpus_per_node: int,
    gpus_per_node: int = 0,
    port: int | None = None,
    dashboard_port: int | None = None,
) -> DevCluster:
    """Start a cluster and wait until it takes jobs.

    Args:
        nodes: how many, the head included.
        cpus_per_node: in Ray's books; more than the machine has is allowed.
        gpus_per_node: in Ray's books; there need not be any.
        port: where drivers connect; None takes a free one.
        dashboard_port: where jobs are submitted; None takes a free one.

    Raises:
        UsageError: when a cluster is up already, or a port is taken.
        ResourceError: when Ray does not start.
    """
    found = dev_cluster()
    if found is not None:
        if found.alive:
            raise UsageError.of(
                "a development cluster is up", place=found.url, remedy="`gencls cluster down` first"
            )
        bring_down(found)
    for wanted in (port, dashboard_port):
        if wanted is not None:
            _refuse_taken(wanted)
    free = _free_ports(nodes + 4)
    # Ray's sockets lie under it, and the path of a socket holds at most 107 bytes.
    base = "/tmp" if Path("/tmp").is_dir() else None
    folder = Path(tempfile.mkdtemp(prefix="gencls-ray-", dir=base))
    identity = secrets.token_hex(8)
    token_path = _write_token()
    wishes = {
        "cpus_per_node": cpus_per_node,
        "gpus_per_node": gpus_per_node,
        "object_store_bytes": OBJECT_STORE_BYTES,
        "port": port or free[0],
        "dashboard_port": dashboard_port or free[1],
        "agent_ports": free[4:],
    }
    (folder / "wanted.json").write_text(json.dumps(wishes), encoding="utf-8")
    process = _start(folder, _environment(identity, folder, token_path, free[2:4]))
    cluster = DevCluster(
        id=identity,
        url=f"http://127.0.0.1:{wishes['dashboard_port']}",
        gcs_address=f"127.0.0.1:{wishes['port']}",
        folder=str(folder),
        token_path=str(token_path),
        pid=process.pid,
        started=process.create_time(),
        nodes=nodes,
        cpus_per_node=cpus_per_node,
        gpus_per_node=gpus_per_node,
    )
    write_json(_home() / "state.json", asdict(cluster))
    try:
        _wait_until_ready(cluster, process)
    except BaseException:
        bring_down(cluster)
        raise
    return cluster


def bring_down(cluster: DevCluster) -> list[int]:
    """End the cluster's processes and remove its files; give the pids of what would not end.

    The holder is asked first; whatever it leaves, jobs included, is ended after it.
    """
    if cluster.alive:
        with contextlib.suppress(psutil.NoSuchProcess):
            holder = psutil.Process(cluster.pid)
            holder.terminate()
            psutil.wait_procs([holder], timeout=DOWN_SECONDS)
    for end in ("terminate", "kill"):
        left = processes(cluster)
        for process in left:
            with contextlib.suppress(psutil.NoSuchProcess):
                getattr(process, end)()
        psutil.wait_procs(left, timeout=5)
    remaining = [process.pid for process in processes(cluster)]
    if not remaining:
        shutil.rmtree(cluster.folder, ignore_errors=True)
        for name in ("state.json", "token"):
            (_home() / name).unlink(missing_ok=True)
    return remaining


def processes(cluster: DevCluster) -> list[psutil.Process]:
    """Give every living process of a cluster, the jobs on it included."""
    return processes_of(cluster.id, cluster.folder)


def join_dev_cluster(address: str) -> None:
    """Make a driver in this process fit for the development cluster, if `address` is its.

    Ray decides about these variables at import, so this comes first.
    """
    cluster = dev_cluster()
    if cluster is None or address not in (cluster.gcs_address, cluster.url):
        return
    os.environ.update(_connection(Path(cluster.token_path), Path(cluster.folder)))
    os.environ.pop("RAY_AUTH_TOKEN", None)


def _connection(token_path: Path, folder: Path) -> dict[str, str]:
    """Give the variables that the cluster's processes and its drivers share."""
    return {
        "RAY_AUTH_MODE": "token",
        "RAY_AUTH_TOKEN_PATH": str(token_path),
        # Without it Ray replaces 127.0.0.1 by the address of the network card.
        "RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER": "0",
        "RAY_TMPDIR": str(folder),
    }


def _environment(
    identity: str, folder: Path, token_path: Path, metric_ports: list[int]
) -> dict[str, str]:
    kept = {n: v for n, v in os.environ.items() if not n.startswith(("RAY_", "GENCLS_JOB"))}
    # Jobs call `python`: it must be the one that gencls and Ray are installed for.
    path = os.pathsep.join([str(Path(sys.executable).parent), kept.get("PATH", os.defpath)])
    return {
        **kept,
        **_connection(token_path, folder),
        MARK: identity,
        "PATH": path,
        "RAY_USAGE_STATS_ENABLED": "0",
        "RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO": "0",
        "DASHBOARD_METRIC_PORT": str(metric_ports[0]),
        "AUTOSCALER_METRIC_PORT": str(metric_ports[1]),
    }


def _start(folder: Path, environment: dict[str, str]) -> psutil.Popen:
    root = str(Path(__file__).parent.parent)
    # Not by the file's path: this folder's queue.py would stand in for the standard library's.
    code = f"import sys; sys.path.insert(0, {root!r}); from cluster.dev_node import main; main()"
    with (folder / "cluster.log").open("wb") as log:
        return psutil.Popen(
            [sys.executable, "-c", code, str(folder / "wanted.json")],
            env=environment,
            cwd=folder,
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )


def _wait_until_ready(cluster: DevCluster, process: psutil.Popen) -> None:
    ready = Path(cluster.folder) / "ready.json"
    deadline = time.monotonic() + UP_SECONDS
    while not ready.exists():
        if process.poll() is not None or time.monotonic() > deadline:
            log = (Path(cluster.folder) / "cluster.log").read_text(errors="replace").strip()
            raise ResourceError.of(
                "the development cluster did not start",
                found=log.splitlines()[-1] if log else "no word from it",
                remedy="free memory, or ask for fewer nodes",
            )
        time.sleep(0.1)
    JobClient(cluster.url, cluster.token).check()


def _write_token() -> Path:
    path = _home() / "token"
    path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
    path.unlink(missing_ok=True)
    descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
    with os.fdopen(descriptor, "w", encoding="ascii") as stream:
        stream.write(secrets.token_hex(32))
    return path


def _free_ports(count: int) -> list[int]:
    """Give ports that nobody listens on now; held together, so that no two are the same."""
    held = [socket.socket(socket.AF_INET, socket.SOCK_STREAM) for _ in range(count)]
    try:
        for one in held:
            one.bind(("127.0.0.1", 0))
        return [one.getsockname()[1] for one in held]
    finally:
        for one in held:
            one.close()


def _refuse_taken(port: int) -> None:
    with socket.socket(socket.AF_INET, socket.SOCK_STREAM) as one:
        one.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            one.bind(("127.0.0.1", port))
        except OSError as error:
            raise UsageError.of(
                "the port is taken",
                found=f"{port}: {error.strerror}",
                remedy="leave it out: a free one is found",
            ) from None
