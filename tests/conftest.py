"""Shared settings of the tests: no network, nothing of the user's is touched, one Ray for many."""

from __future__ import annotations

import faulthandler
import os
import tempfile
from contextlib import ExitStack
from pathlib import Path

import pytest

os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
# Threads that wait for each other over tensors of some hundred numbers cost more than they bring,
# and far more on a busy machine.
os.environ.setdefault("OMP_NUM_THREADS", "1")
# Workers of Ray import what the tests hand to them.
_TESTS = Path(__file__).parent
os.environ["PYTHONPATH"] = os.pathsep.join(
    [str(_TESTS), str(_TESTS.parent), *filter(None, [os.environ.get("PYTHONPATH")])]
)
os.environ["GENCLS_HOME"] = tempfile.mkdtemp(prefix="gencls-home-")


class SharedRay:
    """A private Ray of 2 CPUs for all tests that only need some Ray; a run uses the one it finds.

    It starts with the first file that asks for it (fixture `shared_ray`) and ends before the first
    Ray test that does not, since that one brings its own.
    """

    def __init__(self) -> None:
        self._stack = ExitStack()
        self.runs = False

    def start(self) -> None:
        """Start unless it runs."""
        from cluster.connection import ray_session
        from cluster.resources import GB, Budget

        if not self.runs:
            budget = Budget.of(cpus=2, memory_bytes=8 * GB)
            # Ray ends idle workers when there are more than CPUs. Those that trained have torch
            # loaded, and the next training would have to load it again.
            with pytest.MonkeyPatch.context() as environment:
                environment.setenv("RAY_num_workers_soft_limit", "8")
                self._stack.enter_context(ray_session(budget))
            self.runs = True

    def stop(self) -> None:
        """End it; it must be gone."""
        if self.runs:
            import ray

            self._stack.close()
            self.runs = False
            assert not ray.is_initialized()


RAY = SharedRay()


@pytest.fixture(scope="session")
def shared_ray() -> SharedRay:
    """Let runs of any fixture or test use the Ray that other files use too; see SharedRay."""
    return RAY


SLOWEST = (
    "test_cross_validation.py",
    "test_selection.py",
    "test_compare_systems.py",
    "test_recipes.py",
)
"""Files of minutes: begun last, one would keep a worker busy while the others have nothing left."""


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Begin with the slowest files, then those that share a Ray, which then starts once; files of
    seconds come last, so that all workers end together (`--no-loadscope-reorder` keeps this)."""
    turns: dict[Path, int] = {}
    for item in items:
        turn = len(SLOWEST) + 2
        if item.path.name in SLOWEST:
            turn = SLOWEST.index(item.path.name)
        elif "shared_ray" in getattr(item, "fixturenames", ()):
            turn = len(SLOWEST)
        elif item.get_closest_marker("ray"):
            turn = len(SLOWEST) + 1
        turns[item.path] = min(turn, turns.get(item.path, turn))
    items.sort(key=lambda item: turns[item.path])


_STDERR = pytest.StashKey[int]()


def pytest_configure(config: pytest.Config) -> None:
    """Keep the true standard error, which pytest catches during tests."""
    with config.pluginmanager.getplugin("capturemanager").global_and_fixture_disabled():
        config.stash[_STDERR] = os.dup(2)


@pytest.hookimpl(tryfirst=True)
def pytest_runtest_setup(item: pytest.Item) -> None:
    """Before fixtures of any scope: a test that shares Ray has it, one that brings its own none."""
    if "shared_ray" in getattr(item, "fixturenames", ()):
        RAY.start()
    elif item.get_closest_marker("ray"):
        RAY.stop()
    # Ray put its own handler in the place of pytest's, which writes where pytest catches it: a
    # crash would end everything without a word.
    faulthandler.disable()
    faulthandler.enable(item.config.stash[_STDERR])


def pytest_sessionfinish() -> None:
    """End what the last files shared."""
    RAY.stop()
