"""Which cluster is meant, who is shown which token, and what is said where there is none."""

from __future__ import annotations

import http.server
import json
import socket
import threading

import pytest
from cluster_fixtures import gencls

from cluster.dev_cluster import dev_cluster
from cluster.errors import (
    AddressConflictError,
    NotARayHeadError,
    UnauthorisedError,
    UnreachableError,
    VersionError,
)
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


@pytest.mark.fault
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


@pytest.mark.parametrize(
    "address", ["http://head:notaport", "head:99999", "http://[::1", "http://"]
)
def test_what_is_no_address_is_a_usage_error(nowhere, monkeypatch, address):
    assert gencls("jobs", "--address", address)[0] == 2
    monkeypatch.setenv("RAY_API_SERVER_ADDRESS", address)
    code, said = gencls("jobs")
    assert code == 2
    assert address in said
    # What Ray itself would follow is another cluster, whatever it is.
    monkeypatch.setenv("RAY_ADDRESS", address)
    with pytest.raises(AddressConflictError):
        find_target("head")


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
