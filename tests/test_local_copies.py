"""Copies of what lies in an object store: fetched once, bounded, never taken from who uses them."""

from __future__ import annotations

import os
import subprocess
import sys
import time

import pytest
from s3_fixtures import S3Server, s3

from gencls_core.errors import UsageError
from gencls_core.local_copies import local_folder
from gencls_core.remote_path import as_location, uri_of
from gencls_core.storage import file_sha256

__all__ = ["s3"]

USER = """
import sys
from gencls_core.local_copies import local_folder
from gencls_core.remote_path import as_location
print(local_folder(as_location(sys.argv[1]), {"weights": sys.argv[2]}), flush=True)
sys.stdin.read()
"""


@pytest.fixture
def models(s3: S3Server, tmp_path, monkeypatch):
    """Four models of 1 MB each in a store: their places and SHA-256s."""
    monkeypatch.setenv("GENCLS_HOME", str(tmp_path / "home"))
    monkeypatch.setattr("gencls_core.local_copies._locks", {})
    found = []
    for number in range(4):
        file = tmp_path / "weights"
        file.write_bytes(os.urandom(10**6))
        place = uri_of(s3.path(f"copies/{tmp_path.name}/{number}"))
        with file.open("rb") as stream:
            (as_location(place) / "weights").upload(stream)
        found.append((place, file_sha256(file)))
    return found


def copies(tmp_path) -> set[str]:
    folder = tmp_path / "home/objects"
    return {path.name for path in folder.iterdir() if path.is_dir()}


def test_what_was_used_longest_ago_goes_and_what_is_in_use_stays(models, tmp_path, monkeypatch):
    monkeypatch.setenv("GENCLS_OBJECTS_GB", "0.0025")
    users = []
    names = []
    for place, sha256 in models:
        user = subprocess.Popen(
            [sys.executable, "-c", USER, place, sha256],
            text=True, stdin=subprocess.PIPE, stdout=subprocess.PIPE,
        )  # fmt: skip
        names.append(user.stdout.readline().strip().rpartition("/")[2])
        users.append(user)
        if len(users) != 1:
            user.communicate()
            assert user.returncode == 0
        # Clocks of file systems are coarse.
        time.sleep(0.02)
        if len(users) == 3:
            # The first is the oldest, and stays: its process lives.
            assert copies(tmp_path) == {names[0], names[2]}
    users[0].communicate()
    assert copies(tmp_path) == {names[0], names[3]}
    # It is fetched again when it is wanted, and what nobody uses any more goes for it.
    place, sha256 = models[1]
    folder = local_folder(as_location(place), {"weights": sha256})
    assert file_sha256(folder / "weights") == sha256
    assert copies(tmp_path) == {names[1], names[3]}


def test_a_limit_that_is_no_number_is_refused(models, monkeypatch):
    monkeypatch.setenv("GENCLS_OBJECTS_GB", "much")
    with pytest.raises(UsageError, match="much"):
        local_folder(as_location(models[0][0]), {"weights": models[0][1]})
