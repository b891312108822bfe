"""A node is lost without grace, during scoring and during training: the others finish."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import psutil
import pytest
from fault_fixtures import CLASSES, Misbehaving, assert_whole, make_run, score
from node_fixtures import OBJECT_STORE_BYTES, raylets
from run_fixtures import CLASSES as TRAINED
from run_fixtures import make_config

from cluster.pipeline import train_models
from cluster.resources import GB
from gencls_core.class_models import ClassModel
from gencls_core.events import ClassTrained, Event, Note, ShardCommitted, TrainingProgress
from gencls_core.run import RunDirectory

pytestmark = [pytest.mark.ray, pytest.mark.fault]

ROWS = 64
HAS = {"num_cpus": 1, "memory": 4 * GB}
# A dead raylet is noticed after three missed checks; by default it takes 15 s and more.
HEALTH = {
    "health_check_initial_delay_ms": 0,
    "health_check_period_ms": 500,
    "health_check_timeout_ms": 2000,
    "health_check_failure_threshold": 3,
}


class Nodes:
    """Two nodes with one CPU each; one that was lost is replaced before the next test."""

    def __init__(self, cluster: Any, nodes: dict[str, Any]) -> None:
        self._cluster = cluster
        self._nodes = list(nodes.values())

    def lose(self, node_id: str | None = None) -> str:
        """Kill a node, the first or the one named: its raylet and its workers, with SIGKILL."""
        lost = next(node for node in self._nodes if node_id in (None, node.node_id))
        raylet = psutil.Process(lost.all_processes["raylet"][0].process.pid)
        # As at a power cut: nothing that runs there ends its work while its raylet dies.
        workers = raylet.children()
        for worker in workers:
            worker.suspend()
        self._cluster.remove_node(lost, allow_graceful=False)
        for worker in workers:
            worker.kill()
        self._nodes.remove(lost)
        return str(lost.node_id)

    def complete(self) -> None:
        """Bring the cluster back to two nodes."""
        while len(self._nodes) < 2:
            self._nodes.append(
                self._cluster.add_node(**HAS, object_store_memory=OBJECT_STORE_BYTES)
            )


@pytest.fixture(scope="module")
def cluster() -> Iterator[Nodes]:
    with raylets({"one": HAS, "two": HAS}, system_config=HEALTH) as (started, nodes):
        yield Nodes(started, nodes)


@pytest.fixture
def nodes(cluster) -> Nodes:
    cluster.complete()
    return cluster


def slowly_on_a_node(behaviour, table, class_name):
    """Say where the shard is being scored, and take long enough for the node to be lost."""
    import ray

    where = ray.get_runtime_context().get_node_id()
    (behaviour.memory / f"node-{where}").touch()
    time.sleep(0.15)


def test_a_node_lost_during_scoring(nodes, tmp_path):
    run = make_run(tmp_path, rows=ROWS)
    (tmp_path / "memory").mkdir()
    lost: list[str] = []

    def lose() -> None:
        deadline = time.monotonic() + 120
        while time.monotonic() < deadline:
            seen = sorted((tmp_path / "memory").glob("node-*"))
            if len(seen) == 2:
                lost.append(nodes.lose(seen[0].name.removeprefix("node-")))
                return
            time.sleep(0.02)

    thread = threading.Thread(target=lose)
    thread.start()
    events = score(run, Misbehaving(tmp_path / "memory", slowly_on_a_node), shard_size=8)
    thread.join()
    assert lost, "both nodes were at work when one was lost"
    notes = [event.message for event in events if isinstance(event, Note)]
    assert any("its actor died; trying again" in note for note in notes)
    committed = [event for event in events if isinstance(event, ShardCommitted)]
    assert len(committed) == ROWS // 8 * len(CLASSES)
    assert_whole(run, rows=ROWS)


def train(folder: Path, output: str, lose: Callable[[], Any]) -> tuple[RunDirectory, list[Event]]:
    """Train three class models on the nodes; call `lose` when two trainings are under way."""
    config = make_config(
        folder,
        output_dir=str(folder / output),
        training={"epochs": 12, "batch_size": 2, "learning_rate": 5e-3, "patience": 0},
        compute={"num_cpus": None, "memory_gb": None},
    )
    events, under_way = [], set()
    for event in train_models(config):
        events.append(event)
        if isinstance(event, TrainingProgress) and len(under_way) < 2:
            under_way.add(event.class_name)
            if len(under_way) == 2:
                lose()
    return RunDirectory(config.output_dir), events


def weights(run: RunDirectory) -> dict[str, dict[str, str]]:
    """Give the SHA-256 of every file of every class model."""
    models = {name: ClassModel.find(run.model_path(name)) for name in TRAINED}
    return {name: dict(model.files) for name, model in models.items() if model is not None}


def test_a_node_lost_during_training(nodes, tmp_path):
    undisturbed, _ = train(tmp_path, "undisturbed", lambda: None)
    disturbed, events = train(tmp_path, "disturbed", nodes.lose)
    notes = [event.message for event in events if isinstance(event, Note)]
    assert any("its worker died; going on" in note for note in notes)
    trained = sorted(event.class_name for event in events if isinstance(event, ClassTrained))
    assert trained == sorted(TRAINED), "each once"
    found = weights(disturbed)
    assert sorted(found) == sorted(TRAINED)
    assert found == weights(undisturbed)
