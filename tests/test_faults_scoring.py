"""Scoring under faults: actors that die, texts that kill, attempts that come late. Rows are
counted, and compared with those of an undisturbed run."""

from __future__ import annotations

import os
import signal
import threading
import time
from pathlib import Path

import numpy as np
import psutil
import pyarrow as pa
import pytest
from fault_fixtures import (
    CLASSES,
    Misbehaving,
    assert_whole,
    make_job,
    make_run,
    score,
    shards_of,
    slowly,
    small_plan,
    well,
)

from benchmarks.synthetic import StubModels
from cluster.crew import Crew
from cluster.resources import GB
from cluster.scoring import score_shards
from cluster.stopping import STOP
from gencls_core.config import ScoringConfig, SequenceConfig
from gencls_core.errors import IncompleteError, StoreError
from gencls_core.events import Note, ShardCommitted
from gencls_core.ownership import OwnershipError, own
from gencls_core.scores import ScoreStore

pytestmark = [pytest.mark.ray, pytest.mark.fault, pytest.mark.usefixtures("shared_ray")]

ROWS = 64
POISON = 21


@pytest.fixture
def run(tmp_path):
    return make_run(tmp_path, rows=ROWS)


@pytest.fixture
def memory(tmp_path) -> Path:
    (tmp_path / "memory").mkdir()
    return tmp_path / "memory"


def die_once_per_actor_pair(behaviour, table, class_name):
    """Two actors die at once, in the middle of a shard."""
    if class_name == "roads" and (behaviour.first_time("one") or behaviour.first_time("two")):
        deadline = time.monotonic() + 5
        while not (behaviour.memory / "two").exists() and time.monotonic() < deadline:
            time.sleep(0.01)
        os.kill(os.getpid(), signal.SIGKILL)


def die_of_poison(behaviour, table, class_name):
    if f"test-{POISON}" in table["example_id"].to_pylist():
        os.kill(os.getpid(), signal.SIGKILL)


class DiesAtLoad(Misbehaving):
    def __call__(self, job, classes):
        super().__call__(job, classes)
        os.kill(os.getpid(), signal.SIGKILL)


def outgrow_memory(behaviour, table, class_name):
    if f"test-{POISON}" in table["example_id"].to_pylist():
        hog = np.ones(10**9 // 8)
        time.sleep(30)
        del hog


def give_nan(behaviour, table, class_name):
    if class_name != "waste":
        return None
    values = table["score"].to_numpy().copy()
    values[0] = np.nan
    return table.set_column(table.column_names.index("score"), "score", pa.array(values))


def test_two_actors_killed_mid_shard(run, memory):
    events = score(run, Misbehaving(memory, die_once_per_actor_pair))
    notes = [event.message for event in events if isinstance(event, Note)]
    assert sum("its actor died; trying again" in note for note in notes) == 2
    assert_whole(run, rows=ROWS)


def test_a_fatal_example_is_isolated_and_the_run_says_that_it_is_incomplete(run, memory):
    with pytest.raises(IncompleteError, match=f"'test-{POISON}'") as error:
        score(run, Misbehaving(memory, die_of_poison))
    assert f"row {POISON}" in str(error.value)
    assert "32 score rows" in str(error.value)
    # All other shards are committed, so the next run has this one to do.
    records = ScoreStore(run.scores.path).records()
    assert len(records) == (ROWS // 8 - 1) * len(CLASSES)
    assert POISON // 8 not in {record.index for record in records}
    again = [part for part in shards_of(run, 8) if part.start == POISON // 8 * 8]
    score(run, Misbehaving(memory, well), work=again)
    assert_whole(run, rows=ROWS)


def test_a_stop_ends_the_search_for_a_fatal_example_at_once(run, memory, monkeypatch):
    """There is nothing in hand to be committed."""
    monkeypatch.setattr(STOP, "requested", False)
    work = [shard for shard in shards_of(run, 8) if shard.start == POISON // 8 * 8]
    with (
        own(run.path, "test") as lease,
        Crew(make_job(memory, Misbehaving(memory, die_of_poison)), small_plan(1), 4 * GB) as crew,
    ):
        events = score_shards(crew, work, lease)
        while "searching" not in getattr(next(events), "message", ""):
            pass
        with pytest.raises(KeyboardInterrupt):
            STOP.ask()
        events.close()
    assert ScoreStore(run.scores.path).records() == []


def test_workers_that_always_die_are_not_tried_for_ever(run, memory):
    with pytest.raises(IncompleteError, match=r"test shard \d+: the worker process died") as error:
        score(run, DiesAtLoad(memory, well))
    assert f"{ROWS * len(CLASSES)} score rows" in str(error.value)
    assert len(Misbehaving(memory, well).loads()) <= 2 * 3 + 3


def test_a_worker_that_outgrows_memory_is_ended_with_the_figures(run, memory):
    limit = 700 * 10**6
    with pytest.raises(IncompleteError, match=f"'test-{POISON}'") as error:
        score(run, Misbehaving(memory, outgrow_memory), memory_limit=limit, shard_size=2)
    assert "outgrew its share of main memory" in str(error.value)
    assert "at most 0.7 GB" in str(error.value) or "GB" in str(error.value)
    records = ScoreStore(run.scores.path).records()
    assert len(records) == (ROWS // 2 - 1) * len(CLASSES)


def test_nan_is_never_committed(run, memory):
    with pytest.raises(StoreError, match="not a finite number"):
        score(run, Misbehaving(memory, give_nan))
    assert "waste" not in {record.class_name for record in ScoreStore(run.scores.path).records()}


def test_a_late_attempt_is_refused(run):
    """The work was given to another; then the first one comes back."""
    shard = shards_of(run, 8)[0]
    store = ScoreStore(run.scores.path)
    texts = run.dataset().read("test", shard.start, shard.stop)
    table = StubModels().score(texts, CLASSES[0], SequenceConfig(), ScoringConfig())
    with own(run.path, "test") as lease:
        late, next_one = lease.fence("shard-0"), lease.fence("shard-0")
        lease.retire(late)
        record = store.commit(shard.keys[0], table, start=0, digest="d", fence=next_one)
        with pytest.raises(OwnershipError, match="late attempt"):
            store.commit(shard.keys[0], table, start=0, digest="d", fence=late)
        assert store.record(shard.keys[0]) == record
        assert record.attempt == next_one.attempt
    with pytest.raises(OwnershipError, match="another owner"):
        store.commit(shard.keys[0], table, start=0, digest="d", fence=next_one)


@pytest.mark.parametrize(
    ("shard_size", "actors", "models_per_actor"), [(64, 1, 4), (5, 2, 4), (16, 2, 1), (1, 2, 3)]
)
def test_shards_actors_and_groups_change_no_value(
    run, memory, shard_size, actors, models_per_actor
):
    plan = small_plan(actors, models_per_actor)
    score(run, Misbehaving(memory, well), shard_size=shard_size, plan=plan)
    assert_whole(run, rows=ROWS)
    loads = [line.split()[1].split(",") for line in Misbehaving(memory, well).loads()]
    assert max(map(len, loads)) <= models_per_actor


def test_an_actor_killed_from_outside(run, memory):
    """SIGKILL from outside, as the out-of-memory killer sends it."""
    killed: list[int] = []
    behaviour = Misbehaving(memory, slowly)

    def kill() -> None:
        deadline = time.monotonic() + 30
        while not killed and time.monotonic() < deadline:
            for line in behaviour.loads():
                pid = int(line.split()[0])
                if psutil.pid_exists(pid):
                    os.kill(pid, signal.SIGKILL)
                    killed.append(pid)
                    return
            time.sleep(0.02)

    thread = threading.Thread(target=kill)
    thread.start()
    events = score(run, behaviour)
    thread.join()
    assert killed
    assert sum(isinstance(event, ShardCommitted) for event in events) == ROWS // 8 * len(CLASSES)
    assert_whole(run, rows=ROWS)
