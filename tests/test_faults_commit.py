"""A writer killed at each step of a commit, and disks that are full or read-only: what is read is
always whole, and what is left over is collected."""

from __future__ import annotations

import contextlib
import subprocess
from pathlib import Path

import pytest
from fault_fixtures import die, killed, make_run, shards_of

from benchmarks.synthetic import CLASSES, StubModels
from gencls_core import scores as scores_module
from gencls_core import storage
from gencls_core.config import ScoringConfig, SequenceConfig
from gencls_core.errors import StoreError
from gencls_core.scores import ScoreStore, read_scores

pytestmark = pytest.mark.fault


def commit(run, digest: str = "d", shard_size: int = 8) -> None:
    """Commit one shard under every class."""
    shard = shards_of(run, shard_size)[0]
    texts = run.dataset().read("test", shard.start, shard.stop)
    for key in shard.keys:
        table = StubModels().score(texts, key.class_name, SequenceConfig(), ScoringConfig())
        ScoreStore(run.scores.path).commit(key, table, start=0, digest=digest)


def before(function, number: int = 1):
    """Die instead of the n-th call."""
    calls = []

    def replaced(*args, **options):
        calls.append(1)
        if len(calls) == number:
            die()
        return function(*args, **options)

    return replaced


def after(function, number: int = 1):
    """Die after the n-th call."""
    calls = []

    def replaced(*args, **options):
        result = function(*args, **options)
        calls.append(1)
        if len(calls) == number:
            die()
        return result

    return replaced


STEPS = {
    "before the file is written": lambda: setattr(
        scores_module.pq, "write_table", before(scores_module.pq.write_table)
    ),
    "after the file is written": lambda: setattr(
        scores_module.pq, "write_table", after(scores_module.pq.write_table)
    ),
    "before fsync": lambda: setattr(storage, "_sync", before(storage._sync)),
    "after fsync": lambda: setattr(storage, "_sync", after(storage._sync)),
    "before rename": lambda: setattr(Path, "replace", before(Path.replace)),
    "after rename": lambda: setattr(Path, "replace", after(Path.replace)),
    "before the record": lambda: setattr(
        scores_module, "write_json", before(scores_module.write_json)
    ),
    "in the record": lambda: setattr(Path, "replace", before(Path.replace, 2)),
    "after the record": lambda: setattr(
        scores_module, "write_json", after(scores_module.write_json)
    ),
}


@pytest.mark.parametrize("over_an_old_one", [False, True])
@pytest.mark.parametrize("step", STEPS)
def test_a_writer_killed_at_each_step(tmp_path, step, over_an_old_one):
    run = make_run(tmp_path, rows=8)
    store = ScoreStore(run.scores.path)
    if over_an_old_one:
        commit(run, "old")

    def write_and_die() -> None:
        STEPS[step]()
        commit(run, "new")

    killed(write_and_die)
    # What is committed is whole, and of one digest or the other.
    records = store.records()
    assert store.torn(records) == []
    table = read_scores(run.scores.path)
    assert table.num_rows == 8 * len(records)
    first = store.record(shards_of(run, 8)[0].keys[0])
    if step == "after the record":
        assert first is not None
        assert first.digest == "new"
    elif first is not None:
        assert first.digest == "old"
    # Left-overs are found and go; then the same work again gives the undisturbed run.
    store.remove(store.orphans())
    assert store.orphans() == []
    commit(run, "new")
    assert {record.digest for record in store.records()} == {"new"}
    assert read_scores(run.scores.path).num_rows == 8 * len(CLASSES)


def test_no_file_that_is_half_written_has_a_parquet_name(tmp_path):
    """DuckDB's globs read dotfiles, too: a temporary name must not end in .parquet."""
    run = make_run(tmp_path, rows=8)

    def write_and_die() -> None:
        STEPS["after fsync"]()
        commit(run)

    killed(write_and_die)
    files = [path for path in run.scores.path.rglob("*") if path.is_file()]
    assert files, "the killed writer left its temporary file"
    assert not [path for path in files if path.suffix in (".parquet", ".json")]


@pytest.fixture
def small_disk(tmp_path):
    """A disk of 300 KB."""
    disk = tmp_path / "disk"
    disk.mkdir()
    done = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", "size=300k", "tmpfs", str(disk)],
        capture_output=True,
        check=False,
    )
    if done.returncode:
        pytest.skip("mounting a tmpfs needs privileges: " + done.stderr.decode().strip())
    yield disk
    subprocess.run(["umount", "-l", str(disk)], check=True)


def fill(path: Path) -> None:
    """Write until the disk is full."""
    with path.open("wb", buffering=0) as filler, contextlib.suppress(OSError):
        while True:
            filler.write(b"x" * 1024)


def test_a_full_disk(small_disk):
    run = make_run(small_disk, rows=8)
    commit(run)
    before_it = read_scores(run.scores.path)
    fill(small_disk / "filler")
    with pytest.raises(StoreError, match="no space is left") as error:
        commit(run, shard_size=4)
    assert "free some space" in str(error.value)
    assert "run the same command again" in str(error.value)
    records = ScoreStore(run.scores.path).records()
    assert ScoreStore(run.scores.path).torn(records) == []
    assert not [p for p in run.scores.path.rglob(".*") if p.is_file()]
    (small_disk / "filler").unlink()
    commit(run)
    assert read_scores(run.scores.path).equals(before_it)


def test_a_read_only_disk(small_disk):
    run = make_run(small_disk, rows=8)
    commit(run)
    remount = ["mount", "-o", "remount,ro", str(small_disk)]
    subprocess.run(remount, check=True, capture_output=True)
    try:
        with pytest.raises(StoreError, match="cannot be written to") as error:
            commit(run, "again")
        assert "make it writable" in str(error.value)
    finally:
        subprocess.run(["mount", "-o", "remount,rw", str(small_disk)], check=True)
    assert read_scores(run.scores.path).num_rows == 8 * len(CLASSES)


@pytest.mark.parametrize("damage", ["deleted", "truncated", "flipped"])
def test_a_damaged_shard_is_found(tmp_path, damage):
    run = make_run(tmp_path, rows=8)
    commit(run)
    store = ScoreStore(run.scores.path)
    victim = store.records()[2]
    path = Path(str(store.shard_path(victim.key)))
    content = bytearray(path.read_bytes())
    if damage == "deleted":
        path.unlink()
    elif damage == "truncated":
        path.write_bytes(content[: len(content) // 2])
    else:
        content[len(content) // 2] ^= 1
        path.write_bytes(content)
    found = {record.key for record in store.records()} - {
        record.key for record in store.torn(store.records())
    }
    assert len(found) == len(CLASSES) - 1
    assert victim.key not in found
