"""One owner per run: claims, leases that lapse, owners that lost theirs."""

from __future__ import annotations

import contextlib
import json
import multiprocessing
import os
import signal
import time
from pathlib import Path

import pytest

from gencls_core import ownership
from gencls_core.ownership import OwnershipError, await_silent_owner, own

pytestmark = pytest.mark.fault

fork = multiprocessing.get_context("fork")


def hold(run: Path, ready) -> None:
    with own(run, "the other"):
        ready.set()
        time.sleep(60)


@pytest.fixture
def other(tmp_path):
    """Another process that owns the run."""
    ready = fork.Event()
    process = fork.Process(target=hold, args=(tmp_path, ready))
    process.start()
    assert ready.wait(20)
    yield process
    process.kill()
    process.join(20)


def owner_file(run: Path) -> Path:
    (found,) = (run / ".owners").glob("*.owner")
    return found


def test_the_second_is_told_who_owns_it_and_since_when(tmp_path, other):
    with pytest.raises(OwnershipError) as error, own(tmp_path, "me"):
        pass
    text = str(error.value)
    assert f"the other, process {other.pid} on" in text
    assert "since 20" in text
    assert "last sign of life" in text
    assert list((tmp_path / ".owners").glob("*.claim")) == []


def test_a_dead_owners_place_is_taken_at_once_on_its_machine(tmp_path, other):
    os.kill(other.pid, signal.SIGKILL)
    other.join()
    stale = owner_file(tmp_path)
    with own(tmp_path, "me") as lease:
        assert not stale.exists()
        lease.check()
    assert not (tmp_path / ".owners").exists()


def as_if_elsewhere(run: Path, silent: float) -> Path:
    """Make the owner's file that of a process on another machine, silent for some seconds."""
    path = owner_file(run)
    path.write_text(json.dumps({**json.loads(path.read_text()), "host": "elsewhere"}))
    past = time.time() - silent
    os.utime(path, (past, past))
    return path


def test_an_owner_elsewhere_keeps_its_place_until_it_was_silent_for_long(tmp_path, other):
    os.kill(other.pid, signal.SIGSTOP)
    try:
        as_if_elsewhere(tmp_path, ownership.LEASE_SECONDS - 20)
        with pytest.raises(OwnershipError, match="on elsewhere"), own(tmp_path, "me"):
            pass
        as_if_elsewhere(tmp_path, ownership.LEASE_SECONDS + 20)
        with own(tmp_path, "me"):
            pass
    finally:
        os.kill(other.pid, signal.SIGCONT)


def test_a_silent_owner_is_waited_for(tmp_path, other, monkeypatch):
    os.kill(other.pid, signal.SIGSTOP)
    try:
        monkeypatch.setattr(ownership, "HEARTBEAT_SECONDS", 0.2)
        as_if_elsewhere(tmp_path, ownership.LEASE_SECONDS - 1)
        messages = list(await_silent_owner(tmp_path))
        assert len(messages) == 1
        assert "has been silent for 59 s" in messages[0]
        with own(tmp_path, "me"):
            pass
    finally:
        os.kill(other.pid, signal.SIGCONT)


def test_an_owner_that_was_paused_and_replaced_stops_writing(tmp_path, monkeypatch):
    monkeypatch.setattr(ownership, "HEARTBEAT_SECONDS", 0.1)
    with own(tmp_path, "paused") as lease:
        fence = lease.fence("work")
        fence.check()
        # Another machine takes the place: its owner file appears and ours is removed.
        mine = owner_file(tmp_path)
        mine.rename(mine.with_name("20990101T000000-other.owner"))
        with pytest.raises(OwnershipError, match="another owner"):
            fence.check()
        with pytest.raises(OwnershipError):
            lease.check()
        time.sleep(0.4)
        assert not mine.exists(), "the heartbeat must not bring a lost lease back"
    assert owner_file(tmp_path).name.endswith("-other.owner")


def test_an_owner_that_brought_its_file_back_by_accident_withdraws(tmp_path, monkeypatch):
    """Taken over between the look and the write of one heartbeat."""
    monkeypatch.setattr(ownership, "SETTLE_SECONDS", 0.1)
    monkeypatch.setattr(ownership, "HEARTBEAT_SECONDS", 0.1)
    with own(tmp_path, "paused") as lease:
        (tmp_path / ".owners" / "20990101T000000-other.owner").write_text("{}")
        time.sleep(0.5)
        with pytest.raises(OwnershipError):
            lease.check()


def race(run: Path, start, winners) -> None:
    start.wait(20)
    try:
        with own(run, "racer"):
            with winners.get_lock():
                winners.value += 1
            time.sleep(1.5)
    except OwnershipError:
        pass


def test_of_many_at_the_same_time_at_most_one_owns(tmp_path):
    """Six processes, all at once: never two winners while the first still holds it."""
    start, winners = fork.Event(), fork.Value("i", 0)
    racers = [fork.Process(target=race, args=(tmp_path, start, winners)) for _ in range(6)]
    for racer in racers:
        racer.start()
    start.set()
    time.sleep(1.2)
    assert winners.value <= 1
    for racer in racers:
        racer.join(30)
        assert racer.exitcode == 0
    assert winners.value >= 1


def test_unreadable_words_of_another_do_not_free_its_place(tmp_path, other):
    owner_file(tmp_path).write_text("{ torn")
    with pytest.raises(OwnershipError), own(tmp_path, "me"):
        pass


@pytest.mark.parametrize("stale", ["its claim alone", "nothing"])
def test_a_listing_in_which_an_owner_is_missed(tmp_path, monkeypatch, stale):
    """While one lists, the other turns its claim into ownership: its owner file is not in the
    listing, and its claim is gone when it is looked at, or was never in the listing either."""
    owners = tmp_path / ".owners"
    listing = ownership.children
    seen = [[owners / "other.claim"] if stale == "its claim alone" else []]
    monkeypatch.setattr(ownership, "children", lambda place: seen.pop() if seen else listing(place))
    owners.mkdir()
    words = json.dumps({**ownership._who(), "what": "the other"})
    (owners / "other.owner").write_text(words)
    with pytest.raises(OwnershipError, match="the other, process"), own(tmp_path, "me"):
        pass
    assert [path.name for path in owners.iterdir()] == ["other.owner"]


def claim_all(runs: list[Path], barrier, token: str) -> None:
    for run in runs:
        barrier.wait(60)
        with contextlib.suppress(OwnershipError):
            ownership._claim(run / ".owners", token, json.dumps(ownership._who()))


@pytest.mark.parametrize("after_a_dead_one", [False, True])
def test_of_three_at_once_at_most_one_owns_in_many_rounds(tmp_path, after_a_dead_one):
    runs = [tmp_path / str(number) for number in range(60)]
    if after_a_dead_one:
        for run in runs:
            (run / ".owners").mkdir(parents=True)
            dead = {**ownership._who(), "pid": 2**22 - 3, "began": 1.0}
            (run / ".owners" / "dead.owner").write_text(json.dumps(dead))
    barrier = fork.Barrier(3)
    workers = [fork.Process(target=claim_all, args=(runs, barrier, f"p{n}")) for n in range(3)]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join(120)
        assert worker.exitcode == 0
    owned_by = [len(list((run / ".owners").glob("*.owner"))) for run in runs]
    assert set(owned_by) <= {0, 1}
    assert sum(owned_by) > 50, "nearly always one wins"
