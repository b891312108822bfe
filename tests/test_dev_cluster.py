"""`gencls cluster`: loopback only, nobody in without the token, nothing left afterwards."""

from __future__ import annotations

import http.server
import json
import os
import socket
import stat
import threading
from pathlib import Path

import psutil
import pytest
from cluster_fixtures import cluster_up, files_with, gencls, succeed, wait_for

from cluster.dev_cluster import dev_cluster, processes
from cluster.errors import (
    AddressConflictError,
    NotARayHeadError,
    UnauthorisedError,
    UnreachableError,
    VersionError,
)
from cluster.job_client import JobClient
from cluster.target import find_target
from gencls_core.errors import UsageError


@pytest.fixture
def nowhere(tmp_path, monkeypatch):
    """No development cluster, and nothing in the environment that names one."""
    monkeypatch.setenv("GENCLS_HOME", str(tmp_path / "home"))
    for name in (
        "RAY_ADDRESS",
        "RAY_API_SERVER_ADDRESS",
        "RAY_AUTH_MODE",
        "RAY_AUTH_TOKEN",
        "RAY_AUTH_TOKEN_PATH",
    ):
        monkeypatch.delenv(name, raising=False)


@pytest.mark.ray
def test_a_cluster_is_ours_alone_and_leaves_nothing(tmp_path):
    home = tmp_path / "home"
    with cluster_up(
        home, "--nodes", "2", "--cpus-per-node", "3", "--gpus-per-node", "1"
    ) as cluster:
        status = succeed("cluster", "status")
        assert "2 nodes, 3 CPUs and 1 GPUs each" in status
        # Ray gathers what its nodes have every few seconds.
        in_all = "0 of 6 CPUs in use, 0 of 2 GPUs in use"
        wait_for(lambda: in_all in succeed("cluster", "status"), 60)
        assert "up already" in succeed("cluster", "up")

        ours = processes(cluster)
        sockets = [
            connection.laddr.ip.removeprefix("::ffff:")
            for process in ours
            for connection in process.net_connections("inet")
            if connection.status == psutil.CONN_LISTEN
        ]
        # Head, two raylets and their agents at least.
        assert len(sockets) >= 8
        assert set(sockets) == {"127.0.0.1"}

        token = Path(cluster.token_path)
        assert stat.S_IMODE(token.stat().st_mode) == 0o600
        assert stat.S_IMODE(Path(cluster.folder).stat().st_mode) == 0o700
        assert files_with(cluster.token, home, Path(cluster.folder)) == [token]
        assert not any(cluster.token in " ".join(process.cmdline()) for process in ours)

        with pytest.raises(UnauthorisedError, match="no token"):
            JobClient(cluster.url).check()
        with pytest.raises(UnauthorisedError, match="does not know") as refused:
            JobClient(cluster.url, "0" * 64).jobs()
        assert cluster.token not in str(refused.value)
        with pytest.raises(NotARayHeadError):
            JobClient(f"http://{cluster.gcs_address}", cluster.token).check()
        os.environ["RAY_ADDRESS"] = "10.1.2.3:6379"
        try:
            assert gencls("jobs")[0] == AddressConflictError.exit_code
        finally:
            del os.environ["RAY_ADDRESS"]
    assert processes(cluster) == []
    assert not any(process.is_running() for process in ours)
    assert not Path(cluster.folder).exists()
    assert list((home / "cluster").iterdir()) == []
    assert gencls("cluster", "down")[1].startswith("No development cluster")


def test_a_dead_cluster_is_said_to_be_dead(nowhere, tmp_path):
    state = {
        "id": "0", "url": "http://127.0.0.1:9", "gcs_address": "127.0.0.1:8", "folder": "/nowhere",
        "token_path": "/nowhere/token", "pid": 2**22 - 1, "started": 1.0, "nodes": 1,
        "cpus_per_node": 1, "gpus_per_node": 0,
    }  # fmt: skip
    (tmp_path / "home/cluster").mkdir(parents=True)
    (tmp_path / "home/cluster/state.json").write_text(json.dumps(state))
    found = dev_cluster()
    assert found is not None
    assert not found.alive
    code, said = gencls("jobs")
    assert code == UnreachableError.exit_code
    assert "has ended" in said


def test_a_taken_port_is_refused(nowhere):
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        code, said = gencls("cluster", "up", "--dashboard-port", str(port))
    assert code == 2
    assert str(port) in said


def answering(body: bytes, code: int = 200) -> http.server.ThreadingHTTPServer:
    class Handler(http.server.BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            self.send_response(code)
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, *arguments: object) -> None:
            return

    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    return server


@pytest.mark.parametrize(
    ("body", "code", "error"),
    [
        (b"<html>It works!</html>", 200, NotARayHeadError),
        (b'{"hello": "world"}', 200, NotARayHeadError),
        (b"not found", 404, NotARayHeadError),
        (b"moved", 302, NotARayHeadError),
        (b'{"ray_version": "2.9.3"}', 200, VersionError),
    ],
)
def test_what_answers_is_no_usable_head(nowhere, body, code, error):
    server = answering(body, code)
    try:
        exit_code, said = gencls(
            "cluster", "status", "--address", f"http://127.0.0.1:{server.server_port}"
        )
    finally:
        server.shutdown()
        server.server_close()
    assert exit_code == error.exit_code
    assert "remedy:" in said


def test_nobody_answers(nowhere):
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    code, said = gencls("jobs", "--address", f"http://127.0.0.1:{port}")
    assert code == UnreachableError.exit_code
    assert f"http://127.0.0.1:{port}" in said
    code, said = gencls("jobs")
    assert code == UnreachableError.exit_code
    assert "gencls cluster up" in said


def test_addresses(nowhere, monkeypatch):
    assert find_target("head:9000").url == "http://head:9000"
    assert find_target("http://localhost").url == "http://127.0.0.1:8265"
    assert find_target("https://ray.example.org").url == "https://ray.example.org:443"
    with pytest.raises(UsageError, match="ray://"):
        find_target("ray://head:10001")
    monkeypatch.setenv("RAY_API_SERVER_ADDRESS", "http://head:1")
    assert find_target(None).url == "http://head:1"
    monkeypatch.setenv("RAY_ADDRESS", "http://head:1")
    assert find_target(None).url == "http://head:1"
    with pytest.raises(AddressConflictError, match="other"):
        find_target("http://other:1")


def test_a_token_goes_to_a_named_cluster(nowhere, monkeypatch, tmp_path):
    assert find_target("head").token is None
    (tmp_path / "token").write_text("abc\n")
    monkeypatch.setenv("RAY_AUTH_TOKEN_PATH", str(tmp_path / "token"))
    assert find_target("head").token == "abc"
    monkeypatch.setenv("RAY_AUTH_TOKEN", "def")
    assert find_target("head").token == "def"
    monkeypatch.delenv("RAY_AUTH_TOKEN")
    monkeypatch.setenv("RAY_AUTH_TOKEN_PATH", str(tmp_path / "missing"))
    with pytest.raises(UnauthorisedError):
        find_target("head")
