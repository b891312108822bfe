"""Which cluster is meant, who is shown which token, and what is said where there is none."""

from __future__ import annotations

import http.server
import json
import os
import socket
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import psutil
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


def record(home: Path, pid: int, started: float) -> None:
    """Write down a development cluster that the given process holds."""
    folder = home / "cluster"
    folder.mkdir(parents=True)
    (folder / "token").write_text("0" * 64)
    state = {
        "id": "0", "url": "http://127.0.0.1:9", "gcs_address": "127.0.0.1:8", "folder": "/nowhere",
        "token_path": str(folder / "token"), "pid": pid, "started": started, "nodes": 2,
        "cpus_per_node": 1, "gpus_per_node": 0,
    }  # fmt: skip
    (folder / "state.json").write_text(json.dumps(state))


def test_a_dead_cluster_is_said_to_be_dead(nowhere, tmp_path):
    record(tmp_path / "home", 2**22 - 1, 1.0)
    found = dev_cluster()
    assert found is not None
    assert not found.alive
    code, said = gencls("jobs")
    assert code == UnreachableError.exit_code
    assert "has ended" in said


def test_a_cluster_that_is_up_is_not_always_the_one_that_was_asked_for(nowhere, tmp_path):
    record(tmp_path / "home", os.getpid(), psutil.Process().create_time())
    code, said = gencls("cluster", "up")
    assert code == 0
    assert "up already, a development cluster of 2 nodes, 1 CPU each: http://127.0.0.1:9" in said
    assert "not as asked" not in said
    assert "not as asked" not in gencls("cluster", "up", "--nodes", "2", "--port", "8")[1]
    code, said = gencls("cluster", "up", "--nodes", "5", "--cpus-per-node", "1", "--port", "7")
    assert code == 0
    assert "! not as asked: --nodes 5 (2 there), --port 7 (8 there)." in said


def test_another_cluster_on_the_same_host_is_another_cluster(nowhere, tmp_path, monkeypatch):
    record(tmp_path / "home", os.getpid(), psutil.Process().create_time())
    for same in ("127.0.0.1:8", "localhost:8", "http://127.0.0.1:9", "auto"):
        monkeypatch.setenv("RAY_ADDRESS", same)
        assert find_target(None).development
    for other in ("127.0.0.1:1234", "127.0.0.1", "ray://127.0.0.1:10001", "http://127.0.0.1:8"):
        monkeypatch.setenv("RAY_ADDRESS", other)
        with pytest.raises(AddressConflictError, match=other):
            find_target(None)
    # And the other way round. Where drivers connect to one that others brought up is not known.
    monkeypatch.setenv("RAY_ADDRESS", "127.0.0.1:8")
    with pytest.raises(AddressConflictError):
        find_target("http://127.0.0.1:1")
    monkeypatch.setenv("RAY_ADDRESS", "127.0.0.1:1234")
    assert not find_target("http://127.0.0.1:1").development


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


@contextmanager
def saying(words: bytes) -> Iterator[str]:
    """Give the address of somebody who says a few words, whatever is asked, and hangs up."""
    with socket.create_server(("127.0.0.1", 0)) as server:

        def serve() -> None:
            connection, _ = server.accept()
            with connection:
                connection.recv(65536)
                connection.sendall(words)

        thread = threading.Thread(target=serve, daemon=True)
        thread.start()
        yield f"http://127.0.0.1:{server.getsockname()[1]}"
        thread.join(timeout=10)


@pytest.mark.fault
@pytest.mark.parametrize(
    ("words", "error"),
    [
        (b"", UnreachableError),
        (b"HTTP/1.1 200 OK\r\nContent-Length: 100\r\n\r\n[", UnreachableError),
        (b"SSH-2.0-OpenSSH_9.6\r\n", NotARayHeadError),
    ],
)
def test_a_head_that_goes_down_is_not_taken_for_something_else(nowhere, words, error):
    with saying(words) as address:
        assert gencls("jobs", "--address", address)[0] == error.exit_code


def test_nobody_answers(nowhere, monkeypatch):
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    code, said = gencls("jobs", "--address", f"http://127.0.0.1:{port}")
    assert code == UnreachableError.exit_code
    assert f"http://127.0.0.1:{port}: the cluster cannot be reached" in said
    monkeypatch.setenv("RAY_API_SERVER_ADDRESS", f"127.0.0.1:{port}")
    code, said = gencls("jobs")
    assert code == UnreachableError.exit_code
    assert f"http://127.0.0.1:{port} (from RAY_API_SERVER_ADDRESS): the cluster cannot" in said
    monkeypatch.delenv("RAY_API_SERVER_ADDRESS")
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
    monkeypatch.setenv("RAY_ADDRESS", "https://ray.example.org")
    assert find_target("https://ray.example.org").url == "https://ray.example.org:443"


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
