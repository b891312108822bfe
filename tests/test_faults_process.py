"""Whole processes that are killed, stopped or started twice, over one run: in the end every row is
there once, and nothing was computed twice."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections import Counter
from pathlib import Path

import psutil
import pytest
from run_fixtures import CLASSES, make_config, make_data

from cluster.pipeline import train_models
from gencls_core.events import ClassTrained
from gencls_core.run import RunDirectory
from gencls_core.scores import read_scores

pytestmark = [pytest.mark.ray, pytest.mark.fault]

TEST_TEXTS = 240
SHARD_SIZE = 10


@pytest.fixture(scope="module")
def trained(tmp_path_factory, shared_ray) -> Path:
    """A run whose class models are trained and whose many shards are not scored."""
    folder = tmp_path_factory.mktemp("processes")
    make_data(folder / "data", train=12, test=TEST_TEXTS // 3)
    events = list(train_models(make_config(folder)))
    assert sum(isinstance(event, ClassTrained) for event in events) == 3
    shared_ray.stop()
    return folder


def start(folder: Path) -> subprocess.Popen[str]:
    command = [
        sys.executable, "-m", "jobs", "run", "--data-dir", str(folder / "data"),
        "--validation-fraction", "0.2", "--model", str(folder / "base"), "--epochs", "2",
        "--batch-size", "8", "--learning-rate", "5e-3", "--shard-size", str(SHARD_SIZE),
        "--num-cpus", "2", "--memory-gb", "8", "--output-dir", str(folder / "run"), "--no-baseline",
        "--recipe", "independent",
    ]  # fmt: skip
    # A session of its own, as a terminal or a batch system gives it: signals reach it alone.
    return subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, start_new_session=True
    )


def committed(folder: Path) -> Counter[tuple[str, str, int]]:
    """Count the commits of each shard over all processes, from the event log."""
    path = folder / "run" / "events.jsonl"
    lines = [json.loads(line) for line in path.read_text().splitlines(keepends=False)]
    return Counter(
        (line["split"], line["class_name"], line["shard"])
        for line in lines
        if line["event"] == "ShardCommitted"
    )


def wait_for_more(folder: Path, process: subprocess.Popen[str], before: int) -> None:
    """Wait until a shard more than `before` is committed."""
    deadline = time.monotonic() + 120
    while sum(committed(folder).values()) <= before:
        assert process.poll() is None, process.communicate()[1]
        assert time.monotonic() < deadline
        time.sleep(0.005)


def family(process: subprocess.Popen[str]) -> list[psutil.Process]:
    return psutil.Process(process.pid).children(recursive=True)


def assert_gone(processes: list[psutil.Process]) -> None:
    _, alive = psutil.wait_procs(processes, timeout=40)
    assert alive == []


def status(folder: Path) -> str:
    return RunDirectory(folder / "run").manifest()["status"]


def test_killed_refused_and_interrupted(trained):
    """One run through its fates."""
    # SIGKILL of the driver: its Ray ends with it, and what was committed stays.
    first = start(trained)
    wait_for_more(trained, first, 0)
    # A second driver meanwhile is told who owns the run. The first is held so that it stays so.
    os.kill(first.pid, signal.SIGSTOP)
    second = start(trained)
    _, said = second.communicate(timeout=120)
    assert second.returncode == 1
    assert "another gencls owns this run" in said
    assert f"process {first.pid} on" in said
    # Ray's two agents give up their dead raylet only after some 75 s; all others go at once.
    processes = [p for p in family(first) if not p.cmdline()[0].endswith("Agent")]
    assert len(processes) >= 3
    first.kill()
    first.wait()
    assert_gone(processes)
    assert status(trained) == "running", "nobody was there to say otherwise"
    before = sum(committed(trained).values())

    # Ctrl-C, then SIGTERM, which is what `gencls cancel` sends: the shards in hand are committed,
    # then it ends.
    for number in (signal.SIGINT, signal.SIGTERM):
        process = start(trained)
        wait_for_more(trained, process, before)
        processes = family(process)
        process.send_signal(number)
        _, said = process.communicate(timeout=120)
        assert process.returncode == 130, said
        assert "the shards in hand are being committed" in said
        assert status(trained) == "stopped"
        assert_gone(processes)
        assert not (trained / "run" / ".owners").exists()
        before = sum(committed(trained).values())

    total = (TEST_TEXTS // SHARD_SIZE) * len(CLASSES)
    of_test = sum(count for key, count in committed(trained).items() if key[0] == "test")
    assert of_test < total, "it was stopped before its end"
    last = start(trained)
    _, said = last.communicate(timeout=200)
    assert last.returncode == 0, said
    assert "nothing to train" in said
    assert status(trained) == "finished"
    counts = committed(trained)
    # SIGKILL may come between a commit and its line in the log, never the other way: while the
    # driver is held, its actor commits the shard in hand, and nobody is there to log it.
    logged = [key for key in counts if key[0] == "test"]
    assert total - len(logged) in (0, len(CLASSES))
    assert set(counts.values()) == {1}
    rows = read_scores(trained / "run" / "scores")
    pairs = Counter(zip(rows["example_id"].to_pylist(), rows["class"].to_pylist(), strict=True))
    assert len(pairs) == TEST_TEXTS * len(CLASSES)
    assert set(pairs.values()) == {1}
