"""Whose turn it is: the rules without Ray, and the line as an actor of a real one."""

from __future__ import annotations

import pytest

from cluster.queue import Admission, Line, Waiting

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
