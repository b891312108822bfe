"""The garbage collector rests while a process starts, and works again whatever happens."""

from __future__ import annotations

import gc
import weakref

import pytest

from gencls_core import startup
from gencls_core.startup import collector_paused


class Loop:
    """Garbage that only the collector finds."""

    def __init__(self) -> None:
        self.me = self


def test_the_collector_rests_inside_and_works_after():
    assert gc.isenabled()
    with collector_paused():
        assert not gc.isenabled()
        with collector_paused():
            assert not gc.isenabled()
        assert not gc.isenabled()
    assert gc.isenabled()


@pytest.mark.parametrize("first", [True, False])
def test_what_stays_is_kept_once_at_the_start_of_a_process(first, monkeypatch):
    monkeypatch.setattr(startup, "_kept", not first)
    garbage = weakref.ref(Loop())
    with collector_paused(stays=True):
        pass
    gc.collect()
    assert (garbage() is not None) == first
    gc.unfreeze()
    gc.collect()
    assert garbage() is None


def test_nothing_is_kept_unless_asked():
    garbage = weakref.ref(Loop())
    with collector_paused():
        pass
    gc.collect()
    assert garbage() is None


def test_the_collector_works_again_after_an_error():
    with pytest.raises(RuntimeError), collector_paused():
        raise RuntimeError
    assert gc.isenabled()


def test_a_collector_that_was_off_stays_off():
    gc.disable()
    try:
        with collector_paused():
            pass
        assert not gc.isenabled()
    finally:
        gc.enable()
