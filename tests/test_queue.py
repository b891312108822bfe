"""Whose turn it is: the rules without Ray, and the line as an actor of a real one."""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Iterator
from contextlib import contextmanager
from unittest import mock

import pytest
from run_fixtures import make_config

from cluster.errors import ClusterError
from cluster.evaluation import evaluate_models
from cluster.line import ACTOR, NAMESPACE, Line
from cluster.pipeline import run_all, train_models
from cluster.queue import Admission, Waiting
from gencls_core.events import ClassTrained, Event, Note, StageFinished, StageStarted
from gencls_core.ownership import OwnershipError, own
from gencls_core.run import RunDirectory

T = 1_000_000.0


def stand(line: Line, job: str, *, priority: int = 0, submitted: float = T, now: float = T):
    return line.stand(job, priority, submitted, None, now)


def test_one_works_and_the_others_wait_in_the_order_of_their_submission():
    line = Line()
    assert stand(line, "a").admitted
    # c asks before b does, but was submitted after it.
    assert stand(line, "c", submitted=T + 2).place == 1
    second = stand(line, "b", submitted=T + 1)
    assert (second.place, second.of, second.behind) == (1, 2, (("a", T),))
    assert stand(line, "c", submitted=T + 2).place == 2
    line.leave("a", T + 5)
    assert stand(line, "b", submitted=T + 1, now=T + 5).admitted
    assert stand(line, "c", submitted=T + 2, now=T + 5).place == 1


def test_higher_priority_goes_first_and_interrupts_nobody():
    line = Line()
    assert stand(line, "a").admitted
    assert stand(line, "b", submitted=T + 1).place == 1
    assert stand(line, "urgent", priority=5, submitted=T + 2).place == 1
    assert stand(line, "b", submitted=T + 1).place == 2
    assert stand(line, "a").admitted
    line.leave("a", T)
    assert stand(line, "urgent", priority=5, submitted=T + 2).admitted
    assert not stand(line, "b", submitted=T + 1).admitted


def test_more_may_work_when_the_limit_says_so_and_less_interrupts_nobody():
    line = Line()
    for job in "abc":
        stand(line, job)
    line.set_limit(2, T)
    assert [stand(line, job).admitted for job in "abc"] == [True, True, False]
    line.set_limit(1, T)
    assert [stand(line, job).admitted for job in "abc"] == [True, True, False]
    line.leave("a", T)
    assert not stand(line, "c").admitted
    line.leave("b", T)
    assert stand(line, "c").admitted


@pytest.mark.parametrize("silent", ["holder", "waiting"])
def test_who_is_silent_loses_the_place(silent):
    line = Line(silence=15)
    stand(line, "a")
    stand(line, "b", submitted=T + 1)
    stand(line, "c", submitted=T + 2)
    if silent == "holder":
        assert not stand(line, "b", submitted=T + 1, now=T + 14).admitted
        assert stand(line, "b", submitted=T + 1, now=T + 16).admitted
    else:
        stand(line, "a", now=T + 14)
        assert stand(line, "c", submitted=T + 2, now=T + 16).place == 1


def test_who_works_is_believed_after_the_line_forgot_it():
    line = Line()
    assert stand(line, "b").admitted
    returned = line.stand("a", 0, T, T - 60, T + 1)
    assert returned.admitted
    # Both hold CPUs; a third must wait for both.
    assert not stand(line, "c", now=T + 1).admitted
    line.leave("b", T + 1)
    assert not stand(line, "c", now=T + 1).admitted


def test_a_line_that_remembers_nobody_lets_those_who_work_speak_first():
    line = Line(opens=T + 15)
    assert stand(line, "b", now=T + 1).place == 1
    assert line.stand("a", 0, T, T - 60, T + 2).admitted
    assert not stand(line, "b", now=T + 15).admitted
    line.leave("a", T + 16)
    assert stand(line, "b", now=T + 16).admitted


@pytest.mark.ray
def test_the_line_of_a_cluster(shared_ray):
    with Admission("first") as first:
        assert list(first.wait()) == []
        with Admission("second") as second:
            notes = second.wait()
            told = next(notes)
            assert isinstance(told, Waiting)
            assert (told.place, told.of) == (1, 1)
            assert told.message.startswith(
                "waiting: place 1 of 1, behind first, which has held the cluster since "
            )
            first.__exit__(None, None, None)
            assert [note.to_json()["message"] for note in notes] == ["it is this job's turn"]
    with Admission("third") as third:
        assert list(third.wait()) == []


def actor_of_the_line():
    import ray

    return ray.get_actor(ACTOR, namespace=NAMESPACE)


@pytest.mark.ray
def test_the_line_is_no_part_of_a_job(shared_ray):
    """It has nothing of who needed it first; when it comes back, nobody gets in by that."""
    import ray

    with Admission("holder") as holder:
        assert list(holder.wait()) == []
        actor = actor_of_the_line()
        look = "__import__('os').environ.get('GENCLS_HOME'), __import__('os').getpid()"
        home, pid = ray.get(actor.__ray_call__.remote(lambda _self: eval(look)))
        assert home == os.environ["GENCLS_HOME"]
        modules = ray.get(actor.__ray_call__.remote(lambda _self: list(__import__("sys").modules)))
        assert [name for name in modules if name.startswith(("cluster", "gencls", "jobs"))] == []
        os.kill(pid, signal.SIGKILL)
        with Admission("next") as following:
            notes = following.wait()
            # The holder says again that it works, or the line learns it from nobody else in time.
            assert isinstance(next(notes), Waiting)


class Unkind:
    """A handle of an actor that is gone in an unforeseen way."""

    @property
    def stand(self):
        raise TypeError("not what anybody expected")


@pytest.mark.ray
def test_a_place_outlives_any_error_of_asking(shared_ray, monkeypatch):
    monkeypatch.setattr("cluster.queue.BEAT_SECONDS", 0.1)
    with Admission("holder") as holder:
        for _ in holder.wait():
            pass  # an actor that was started again in an earlier test lets nobody in at first
        answered = holder._answered
        holder._line = Unkind()
        deadline = time.monotonic() + 20
        while holder._answered == answered or isinstance(holder._line, Unkind):
            assert time.monotonic() < deadline, "the thread has ended"
            time.sleep(0.05)


def test_a_line_that_does_not_answer_is_told_of(monkeypatch):
    monkeypatch.setattr("cluster.queue._line_actor", Unkind)
    monkeypatch.setattr("cluster.queue.BEAT_SECONDS", 0.05)
    monkeypatch.setattr("cluster.queue.SILENCE_SECONDS", 0.2)
    monkeypatch.setattr("cluster.queue.LOST_SECONDS", 2.5)
    admission = Admission("a")
    admission._thread.start()
    try:
        notes = admission.wait()
        told = next(notes)
        assert isinstance(told, Note)
        assert "TypeError: not what anybody expected" in told.message
        with pytest.raises(ClusterError, match="not what anybody expected"):
            list(notes)
    finally:
        admission._done.set()


@pytest.mark.ray
def test_a_line_that_does_not_start_in_time_is_told_of(shared_ray, monkeypatch):
    monkeypatch.setattr("cluster.queue.ACTOR", "nobody-is-called-so")
    monkeypatch.setattr("cluster.queue.START_SECONDS", 0.05)
    with pytest.raises(ClusterError, match="could not be started") as refused:
        Admission("a")
    assert "had not ended after 0.05 s" in str(refused.value)


@contextmanager
def as_job(name: str) -> Iterator[None]:
    """Let this process be the driver of a submitted job."""
    with mock.patch.dict(os.environ, {"GENCLS_JOB_ID": name}):
        yield


def trained(events: list[Event]) -> int:
    return sum(isinstance(event, ClassTrained) for event in events)


def waits(events: list[Event]) -> bool:
    return any(isinstance(event, Waiting) for event in events)


@pytest.mark.ray
def test_who_waits_does_not_own_the_run_and_who_has_no_work_does_not_wait(shared_ray, tmp_path):
    config = make_config(tmp_path, training={"epochs": 1})
    run = RunDirectory(config.output_dir)
    with Admission("holder") as holder:
        assert list(holder.wait()) == []
        with as_job("job"):
            events = run_all(config)
            seen = []
            while not waits(seen):
                seen.append(next(events))
        # Another driver does half of the work meanwhile.
        assert not (run.path / ".owners").exists()
        assert trained(list(train_models(config))) == 3
    rest = list(events)
    assert any(isinstance(e, StageStarted) and "may have changed" in e.message for e in rest)
    assert trained(rest) == 0, "it has planned anew"
    assert isinstance(rest[-1], StageFinished)
    assert run.manifest()["status"] == "finished"

    with Admission("holder") as holder:
        assert list(holder.wait()) == []
        with as_job("again"):
            assert not waits(list(run_all(config)))
            assert not waits(list(train_models(config)))
            assert not waits(list(evaluate_models(run.path, None, {})))
            # Another owner at the time of its turn is refused as ever.
            shard = next(run.scores.path.rglob("*.parquet"))
            content = bytearray(shard.read_bytes())
            content[-20] ^= 1
            shard.write_bytes(content)
            events = evaluate_models(run.path, None, {})
            assert waits([next(events)])
            events.close()
            events = run_all(config)
            seen = []
            while not waits(seen):
                seen.append(next(events))
        with own(run.path, "test"):
            holder.__exit__(None, None, None)
            with pytest.raises(OwnershipError, match="another gencls owns this run"):
                list(events)
