"""Places in an object store: what they are called, single puts, and stores that fail."""

from __future__ import annotations

import contextlib
import gc
import hashlib
import io
import time

import pytest
from s3_fixtures import IMPATIENT, Fault, Request, S3Server, s3

from gencls_core.errors import StoreError, UsageError
from gencls_core.remote_path import RemotePath, as_location, uri_of
from gencls_core.storage import (
    children,
    file_sha256,
    files_below,
    publish_directory,
    publish_file,
    remove_tree,
)

__all__ = ["s3"]

PATIENT_ONCE = "max_attempts=1&request_timeout=1"


@pytest.mark.parametrize(
    ("uri", "problem"),
    [
        ("ftp://host/run", "unknown kind"),
        ("s3:///run", "not a place"),
        ("s3://bucket/../other", "not a place"),
        ("s3://key:secret@bucket/run", "holds credentials"),
        ("s3://bucket/run?access_key=a&secret_key=b", "holds credentials"),
        ("s3://bucket/run?colour=red", "unknown options"),
        ("s3://bucket/run?max_attempts=none", "max_attempts=none"),
        ("s3://bucket/run?request_timeout=0", "request_timeout=0"),
    ],
)
def test_what_is_refused(uri, problem):
    with pytest.raises(UsageError, match=problem) as error:
        RemotePath.parse(uri).exists()
    assert "secret" not in str(error.value).replace("SECRET", "")


def test_a_uri_is_read_as_it_was_written():
    uri = "s3://bucket/runs/a b?region=eu-central-1"
    path = as_location(uri)
    assert uri_of(path) == uri
    assert uri_of(path / "models" / "Sci%2FTech") == (
        "s3://bucket/runs/a b/models/Sci%2FTech?region=eu-central-1"
    )
    assert str(path) == "s3://bucket/runs/a b"


def test_the_endpoint_of_the_environment(s3: S3Server, monkeypatch):
    """The URI can then be plain, as for Amazon's own store."""
    s3.put(s3.path("endpoint/a"), b"here")
    monkeypatch.setenv("AWS_ENDPOINT_URL", f"http://{s3.address}")
    # A number of its own, so that no file system of another test is taken.
    assert as_location("s3://bucket/endpoint/a?max_attempts=7").read_bytes() == b"here"
    monkeypatch.setenv("AWS_ENDPOINT_URL_S3", "http://127.0.0.1:9")
    with pytest.raises(StoreError, match="cannot be read"):
        as_location("s3://bucket/endpoint/a?max_attempts=1").read_bytes()


def test_names_that_need_quoting(s3: S3Server):
    top = s3.path("names")
    names = ["%2E%2E", "Sci%2FTech", "a b", "ü+&=?#"]
    for name in names:
        (top / name / "x.json").write_text(name)
        assert (top / name / "x.json").read_text() == name
    assert [path.name for path in children(top)] == names
    assert files_below(top) == {f"{p.name}/x.json": len(p.name.encode()) for p in children(top)}
    remove_tree(top / "a b")
    assert not (top / "a b").exists()
    assert (top / "Sci%2FTech").exists()


def test_a_file_is_one_put(s3: S3Server):
    path = s3.path("put/file.bin")
    with s3.counting() as counts, publish_file(path) as temporary:
        temporary.write_bytes(b"x" * 9_000_000)
        assert not s3.keys(s3.path("put"))
    assert counts == {"PUT": 1}
    assert len(s3.get(path)) == 9_000_000
    assert file_sha256(path) == hashlib.sha256(b"x" * 9_000_000).hexdigest()


def test_a_writer_that_fails_puts_nothing(s3: S3Server):
    path = s3.path("fails/file")
    path.write_text("old")
    with contextlib.suppress(RuntimeError), publish_file(path) as temporary:
        temporary.write_text("half")
        raise RuntimeError
    assert s3.get(path) == b"old"


def test_a_folder_appears_with_its_mark(s3: S3Server):
    place = s3.path("folder")

    def publish(names: list[str]) -> list[str]:
        first = len(s3.requests)
        with publish_directory(place, "mark.json") as folder:
            for name in names:
                (folder / name).write_text(name)
        return [r.key for r in s3.requests[first:] if r.kind == "PUT" and not r.key.endswith("/")]

    assert publish(["mark.json", "a", "z"])[-1] == "folder/mark.json"
    # A new version: the mark goes before anything else does, and what is stale goes, too.
    states = []
    s3.before = lambda request: states.append((request, s3.keys(place)))
    try:
        publish(["mark.json", "a", "b"])
    finally:
        s3.before = lambda request: None
    assert s3.keys(place) == {"mark.json", "a", "b"}
    for request, keys in states:
        if request.kind == "PUT" and request.key in ("folder/a", "folder/b"):
            assert "mark.json" not in keys


@pytest.mark.parametrize("how", [500, 503, "stall", "cut"])
def test_a_store_that_fails_for_a_moment_is_survived(s3: S3Server, how):
    path = s3.path(f"moment-{how}/file", "request_timeout=1")
    with s3.failing(Fault(how, times=1, kinds=("PUT",))) as fault:
        path.write_text("content")
    assert fault.suffered == 1
    if how == "stall":
        return
    with s3.failing(Fault(how, times=1, kinds=("GET",))) as fault:
        assert path.read_text() == "content"
    assert fault.suffered == 1


@pytest.mark.parametrize("how", [500, 503, "stall", "cut"])
def test_a_store_that_fails_for_good_is_named(s3: S3Server, how):
    # A stalled put is waited for several seconds, however short the time-out is.
    path = s3.path(f"good-{how}/file", IMPATIENT if how != "stall" else PATIENT_ONCE)
    path.write_text("old")
    with s3.failing(Fault(how)):
        began = time.monotonic()
        with pytest.raises(StoreError, match="cannot be written") as error:
            path.write_text("new, and longer than what stood there")
        assert time.monotonic() - began < 20
    assert str(error.value).startswith(f"s3://bucket/good-{how}/file: ")
    assert "found: When uploading" in str(error.value)
    assert "run the same command again" in str(error.value)
    assert s3.get(path) == b"old"
    for action, said in ((path.read_bytes, "read"), (path.exists, "looked up")):
        with s3.failing(Fault(500)), pytest.raises(StoreError, match=f"cannot be {said}"):
            action()
    with s3.failing(Fault(500)), pytest.raises(StoreError, match="cannot be listed"):
        list(path.parent.iterdir())
    assert path.read_text() == "old"


def test_a_large_file_that_fails_in_the_middle_never_appears(s3: S3Server):
    """Arrow would publish the parts that had come when the stream is collected."""
    path = s3.path("large/file", "max_attempts=1")
    content = b"x" * (25 << 20)
    fault = Fault(500, kinds=("MULTIPART",), times=1)
    parts = []

    def fail_the_second_part(request: Request) -> None:
        if "partNumber" in request.query:
            parts.append(request)
            if len(parts) == 2:
                s3.faults.append(fault)

    s3.before = fail_the_second_part
    try:
        with pytest.raises(StoreError, match="UploadPart"):
            path.upload(io.BytesIO(content))
        gc.collect()
    finally:
        s3.before = lambda request: None
        s3.faults.clear()
    assert fault.suffered == 1
    assert s3.keys(s3.path("large")) == set()
    path.upload(io.BytesIO(content))
    assert s3.get(path) == content


def test_a_bucket_that_is_not_there(s3: S3Server):
    path = RemotePath.parse(s3.path("x").uri.replace("bucket", "no-such-bucket", 1))
    with pytest.raises(StoreError, match="cannot be written"):
        path.write_text("x")
