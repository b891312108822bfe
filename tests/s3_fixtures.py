"""A real S3-speaking server on loopback (moto's), and a proxy before it that counts and fails.

Credentials are in the environment from the import of this file on: Ray's workers take it when Ray
starts, which may be for a test of another file. Where the server is stands in each URI.
"""

from __future__ import annotations

import atexit
import contextlib
import http.client
import logging
import os
import shutil
import tempfile
import threading
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from functools import lru_cache
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Literal
from urllib.parse import parse_qs, unquote, urlsplit

import pytest
from run_fixtures import make_config

from gencls_core.remote_path import RemotePath

os.environ.setdefault("AWS_ACCESS_KEY_ID", "testing")
os.environ.setdefault("AWS_SECRET_ACCESS_KEY", "testing")
# Without it the client asks for the role of a cloud machine, which answers after a timeout.
os.environ.setdefault("AWS_EC2_METADATA_DISABLED", "true")

BUCKET = "bucket"
IMPATIENT = "max_attempts=2&connect_timeout=1&request_timeout=1"
"""URI options for tests that wait until a request has failed for good."""


@dataclass(frozen=True)
class Request:
    """One request that came to the store; `query` names the sub-resource, if any."""

    method: str
    key: str
    query: frozenset[str]

    @property
    def kind(self) -> str:
        """PUT, GET, HEAD, LIST, DELETE, or the name of a multipart or bulk step."""
        if self.method == "GET" and "list-type" in self.query:
            return "LIST"
        if self.query & {"uploads", "uploadId"}:
            return "MULTIPART"
        if "delete" in self.query:
            return "DELETE"
        return self.method


@dataclass
class Fault:
    """What befalls requests whose kind and key match, the first `times` of them."""

    how: Literal[500, 503, "stall", "cut"]
    times: float = float("inf")
    kinds: tuple[str, ...] = ("PUT", "GET", "HEAD", "LIST", "DELETE", "MULTIPART")
    matching: str = ""
    suffered: int = 0
    lock: threading.Lock = field(default_factory=threading.Lock)

    def strikes(self, request: Request) -> bool:
        """Say whether this request fails, and count it."""
        with self.lock:
            if (
                request.kind not in self.kinds
                or self.matching not in request.key
                or self.suffered >= self.times
            ):
                return False
            self.suffered += 1
            return True


class S3Server:
    """The store as a test sees it."""

    def __init__(self) -> None:
        import boto3
        from moto.server import ThreadedMotoServer

        logging.getLogger("werkzeug").setLevel(logging.ERROR)
        self._moto = ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
        self._moto.start()
        self.backend: tuple[str, int] = self._moto.get_host_and_port()
        self.requests: list[Request] = []
        self.faults: list[Fault] = []
        self.before: Callable[[Request], None] = lambda request: None
        self.released = threading.Event()
        self._proxy = ThreadingHTTPServer(("127.0.0.1", 0), type("_", (_Proxy,), {"store": self}))
        self._proxy.daemon_threads = True
        threading.Thread(target=self._proxy.serve_forever, daemon=True).start()
        host, port = self.backend
        self.client = boto3.client(
            "s3", endpoint_url=f"http://{host}:{port}", region_name="us-east-1"
        )
        self.client.create_bucket(Bucket=BUCKET)

    @property
    def address(self) -> str:
        """Host and port of the proxy."""
        return f"127.0.0.1:{self._proxy.server_address[1]}"

    def path(self, prefix: str, options: str = "") -> RemotePath:
        """Give a place in the bucket."""
        where = f"endpoint_override={self.address}&scheme=http&region=us-east-1"
        return RemotePath.parse(f"s3://{BUCKET}/{prefix}?{where}&{options}".rstrip("&"))

    def get(self, path: RemotePath) -> bytes:
        """Read an object past the proxy."""
        key = path.key.removeprefix(f"{BUCKET}/")
        content: bytes = self.client.get_object(Bucket=BUCKET, Key=key)["Body"].read()
        return content

    def put(self, path: RemotePath, content: bytes) -> None:
        """Write an object past the proxy."""
        self.client.put_object(Bucket=BUCKET, Key=path.key.removeprefix(f"{BUCKET}/"), Body=content)

    def delete(self, path: RemotePath) -> None:
        """Delete an object past the proxy."""
        self.client.delete_object(Bucket=BUCKET, Key=path.key.removeprefix(f"{BUCKET}/"))

    def keys(self, path: RemotePath) -> set[str]:
        """List the keys below a place, past the proxy, named from it on.

        Left out are the empty objects `folder/` that Arrow leaves where it has deleted something.
        """
        prefix = path.key.removeprefix(f"{BUCKET}/") + "/"
        pages = self.client.get_paginator("list_objects_v2").paginate(Bucket=BUCKET, Prefix=prefix)
        keys = {o["Key"][len(prefix) :] for page in pages for o in page.get("Contents", [])}
        return {key for key in keys if key and not key.endswith("/")}

    @contextlib.contextmanager
    def failing(self, fault: Fault) -> Iterator[Fault]:
        """Let requests fail for the duration of a block."""
        self.faults.append(fault)
        self.released.clear()
        try:
            yield fault
        finally:
            self.faults.remove(fault)
            self.released.set()

    @contextlib.contextmanager
    def counting(self) -> Iterator[Counter[str]]:
        """Count the requests of a block by kind; known when it has ended."""
        counts: Counter[str] = Counter()
        first = len(self.requests)
        yield counts
        counts.update(request.kind for request in self.requests[first:])

    def close(self) -> None:
        """End proxy and server."""
        self.released.set()
        self._proxy.shutdown()
        self._proxy.server_close()
        self._moto.stop()


class _Proxy(BaseHTTPRequestHandler):
    """Passes requests on, unless a fault strikes."""

    protocol_version = "HTTP/1.1"
    store: S3Server

    def _any(self) -> None:
        parts = urlsplit(self.path)
        query = frozenset(parse_qs(parts.query, keep_blank_values=True))
        key = unquote(parts.path).removeprefix(f"/{BUCKET}").lstrip("/")
        request = Request(self.command, key, query)
        self.store.requests.append(request)
        self.store.before(request)
        fault = next((fault for fault in self.store.faults if fault.strikes(request)), None)
        if fault is not None and fault.how == "cut":
            # The line is cut when a part of the body has come.
            self.rfile.read(16)
            self._hang_up()
            return
        body = self._body()
        if fault is None:
            self._forward(body)
        elif fault.how == "stall":
            self.store.released.wait(60)
            self._hang_up()
        else:
            self._refuse(fault.how)

    do_GET = do_PUT = do_POST = do_HEAD = do_DELETE = _any

    def _body(self) -> bytes:
        if self.headers.get("Transfer-Encoding") != "chunked":
            return self.rfile.read(int(self.headers.get("Content-Length") or 0))
        parts = []
        while size := int(self.rfile.readline().split(b";")[0], 16):
            parts.append(self.rfile.read(size))
            self.rfile.readline()
        while self.rfile.readline().strip():
            pass
        return b"".join(parts)

    def _hang_up(self) -> None:
        self.close_connection = True
        with contextlib.suppress(OSError):
            self.connection.shutdown(2)

    def _refuse(self, status: int) -> None:
        code = "SlowDown" if status == 503 else "InternalError"
        self._answer(status, [], f"<Error><Code>{code}</Code></Error>".encode())

    def _forward(self, body: bytes) -> None:
        connection = http.client.HTTPConnection(*self.store.backend, timeout=30)
        try:
            hop = ("expect", "transfer-encoding", "connection", "content-length")
            headers = {k: v for k, v in self.headers.items() if k.lower() not in hop}
            connection.request(self.command, self.path, body=body or None, headers=headers)
            answer = connection.getresponse()
            content = answer.read()
            given = answer.getheaders()
        finally:
            connection.close()
        self._answer(answer.status, given, content)

    def _answer(self, status: int, headers: list[tuple[str, str]], content: bytes) -> None:
        self.send_response_only(status)
        named = {name.lower() for name, _ in headers}
        for name, value in headers:
            if name.lower() not in ("connection", "transfer-encoding"):
                self.send_header(name, value)
        if "content-length" not in named:
            self.send_header("Content-Length", str(len(content)))
        self.end_headers()
        with contextlib.suppress(OSError):
            if self.command != "HEAD":
                self.wfile.write(content)

    def log_message(self, *_args: object) -> None:
        """Say nothing."""


@lru_cache(maxsize=1)
def local_run(rank: int) -> Path:
    """Give the folder of one finished local run, with its data and base, for all tests to read.

    Its LoRA adapters have the given rank. Needs a Ray (fixture `shared_ray`).
    """
    from cluster.pipeline import run_all

    folder = Path(tempfile.mkdtemp(prefix="gencls-local-run-"))
    atexit.register(shutil.rmtree, folder, ignore_errors=True)
    for _ in run_all(make_config(folder, model={"lora_rank": rank}, compute={"actors": 1})):
        pass
    return folder


@pytest.fixture(scope="session")
def s3() -> Iterator[S3Server]:
    """One store for all tests; each uses a prefix of its own."""
    server = S3Server()
    yield server
    server.close()
