"""Placement on a real Ray of several raylets with faked GPUs: Ray does what the plan says."""

from __future__ import annotations

import os
import time
from collections import Counter
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest
from click.testing import CliRunner
from node_fixtures import raylets

from cluster.resources import (
    GB,
    Budget,
    ModelSize,
    Plan,
    Workload,
    cluster_budget,
    make_plan,
)
from cluster.shared_path import nodes_without, require_shared
from gencls_core.config import ComputeConfig
from gencls_core.errors import ResourceError
from jobs.main import cli

pytestmark = pytest.mark.ray

SIZE = ModelSize(parameters=124_439_808, layers=12, width=768, vocabulary=50257, context=1024)
WORK = Workload(
    models=12,
    trainings=12,
    shards=64,
    batch_size=8,
    longest_text_bytes=600,
    window=None,
    max_length=None,
    tokens_per_batch=512,
    precision="fp32",
    lora_rank=None,
    gradient_checkpointing=False,
)


@pytest.fixture(scope="module")
def nodes(tmp_path_factory) -> Iterator[dict[str, str]]:
    """A head without CPUs and three nodes; gives their ids and folders by name."""
    has = {
        "two gpus": {"num_cpus": 4, "num_gpus": 2, "memory": 17 * GB},
        "one gpu": {"num_cpus": 3, "num_gpus": 1, "memory": 13 * GB},
        "no gpu": {"num_cpus": 2, "num_gpus": 0, "memory": 5 * GB},
    }
    folders = {name: tmp_path_factory.mktemp(name.replace(" ", "-")) for name in has}
    with raylets(has, folders=folders) as (_, started):
        yield {name: node.node_id for name, node in started.items()} | {
            f"{name}: folder": str(folder) for name, folder in folders.items()
        }


@pytest.fixture
def budget(nodes) -> Budget:
    return cluster_budget(ComputeConfig(device="cpu"))


def by_name(budget: Budget, nodes: dict[str, str], name: str):
    return next(node for node in budget.nodes if node.identity == nodes[name])


def run_together(options: dict, count: int, more: int = 0) -> list[tuple[str, tuple[int, ...]]]:
    """Run tasks with a plan's options; each ends only when `count` run at once, and never more.

    Gives node and GPUs of the first `count`; `more` wait until those are done.
    """
    import ray

    @ray.remote(num_cpus=0)
    class Meeting:
        def __init__(self) -> None:
            self.there = 0

        def arrive(self) -> None:
            self.there += 1

        def arrived(self) -> int:
            return self.there

    @ray.remote
    def where(meeting) -> tuple[str, tuple[int, ...]]:
        # Without waiting for an answer: Ray would lend out the CPUs of a task that waits.
        meeting.arrive.remote()
        found = ray.get_runtime_context().get_node_id(), tuple(ray.get_gpu_ids())
        deadline = time.monotonic() + 180
        while not Path(gate).exists():
            if time.monotonic() > deadline:
                raise TimeoutError("the others did not come")
            time.sleep(0.02)
        return found

    gate = f"/tmp/gencls-test-{os.getpid()}-{time.monotonic_ns()}"
    meeting = Meeting.remote()
    references = [where.options(**options).remote(meeting) for _ in range(count + more)]
    try:
        deadline = time.monotonic() + 120
        while ray.get(meeting.arrived.remote()) < count:
            assert time.monotonic() < deadline, "planned together, and Ray did not place them so"
            time.sleep(0.05)
        if more:
            time.sleep(1)
        assert ray.get(meeting.arrived.remote()) == count
    finally:
        Path(gate).touch()
    found = ray.get(references, timeout=30)
    Path(gate).unlink()
    ray.kill(meeting)
    return found[:count]


def test_the_cluster_is_what_its_nodes_say(budget, nodes):
    assert len(budget.nodes) == 4
    assert (budget.cpus, budget.gpus) == (9, 3)
    two = by_name(budget, nodes, "two gpus")
    assert (two.cpus, two.gpus, two.memory_bytes) == (4, 2, 17 * GB)
    capped = cluster_budget(ComputeConfig(device="cpu", memory_gb=8))
    assert by_name(capped, nodes, "two gpus").memory_bytes == 8 * GB
    assert by_name(capped, nodes, "no gpu").memory_bytes == 5 * GB
    told = cluster_budget(ComputeConfig(gpu_memory_gb=40))
    assert told.gpu_memory_bytes == 40 * GB


def test_gpus_that_torch_does_not_see_are_refused(nodes):
    torch = pytest.importorskip("torch")
    if torch.cuda.is_available():
        pytest.skip("the GPUs are not faked here")
    with pytest.raises(ResourceError, match="Ray counts GPUs where torch sees none") as error:
        cluster_budget(ComputeConfig())
    assert "--device cpu" in str(error.value)


def plan_of(budget: Budget, work: Workload = WORK, **compute) -> Plan:
    return make_plan(budget, SIZE, work, ComputeConfig(device="cpu", **compute))


def test_main_memory_decides_per_node(budget, nodes):
    """CPUs alone would let one more run: Ray's books of memory hold each node to the plan."""
    heavy = replace(SIZE, parameters=350_000_000)
    plan = make_plan(budget, heavy, replace(WORK, shards=0), ComputeConfig(device="cpu"))
    fit = {name: by_name(budget, nodes, name).memory_bytes // plan.bytes_per_training
           for name in ("two gpus", "one gpu", "no gpu")}  # fmt: skip
    assert fit == {"two gpus": 2, "one gpu": 1, "no gpu": 0}
    assert (plan.concurrent_trainings, plan.cpus_per_training) == (3, 2)
    found = Counter(node for node, _ in run_together(plan.training_options(), 3, more=1))
    assert found == {nodes["two gpus"]: 2, nodes["one gpu"]: 1}


def test_fractions_of_gpus_are_packed(budget, nodes):
    plan = plan_of(budget, gpus_per_class=0.5)
    assert (plan.concurrent_trainings, plan.gpus_per_training) == (6, 0.5)
    found = run_together(plan.training_options(), 6)
    held = Counter((node, gpu) for node, gpus in found for gpu in gpus)
    assert held == {
        (nodes["two gpus"], 0): 2,
        (nodes["two gpus"], 1): 2,
        (nodes["one gpu"], 0): 2,
    }


def test_whole_gpus_are_on_one_node(budget, nodes):
    plan = plan_of(budget, gpus_per_class=2)
    assert plan.concurrent_trainings == 1
    assert run_together(plan.training_options(), 1) == [(nodes["two gpus"], (0, 1))]


def test_nodes_whose_gpus_are_too_small_are_avoided(budget, nodes):
    """GPU sizes are said here, not measured; where tasks go is Ray's doing."""
    sizes = {nodes["two gpus"]: 4 * GB, nodes["one gpu"]: 40 * GB}
    sized = Budget(
        tuple(replace(node, gpu_memory_bytes=sizes.get(node.identity, 0)) for node in budget.nodes)
    )
    work = replace(WORK, trainings=4, precision="bf16", shards=0, lora_rank=None)
    heavy = replace(SIZE, parameters=300_000_000)
    plan = make_plan(sized, heavy, work, ComputeConfig())
    assert plan.avoid_nodes_for_training == (nodes["two gpus"],)
    found = run_together(plan.training_options(), plan.concurrent_trainings)
    assert {node for node, _ in found} == {nodes["one gpu"]}


def test_actors_of_groups_are_placed_together(budget, nodes):
    """No node holds all models: every group has its actor, each with a GPU of its own."""
    import ray

    work = replace(WORK, models=30, trainings=0, precision="fp32", shards=8)
    plan = plan_of(budget, work, gpus_per_actor=1)
    groups = plan.groups([str(n) for n in range(30)])
    assert len(groups) == 1, "15 GB of class models fit onto the largest node"
    tight = Budget(
        tuple(replace(n, memory_bytes=min(n.memory_bytes, 11 * GB)) for n in budget.nodes)
    )
    plan = plan_of(tight, work, gpus_per_actor=1, actors=2)
    groups = plan.groups([str(n) for n in range(30)])
    assert [len(group) for group in groups] == [15, 15]
    assert (plan.actors, plan.gpus_per_actor) == (2, 1.0)

    @ray.remote
    class Holder:
        def __init__(self, group: tuple[str, ...]) -> None:
            self.group = group

        def where(self) -> tuple[str, int, int]:
            (gpu,) = ray.get_gpu_ids()
            return ray.get_runtime_context().get_node_id(), gpu, len(self.group)

    actors = [Holder.options(**plan.actor_options()).remote(group) for group in groups]
    found = ray.get([actor.where.remote() for actor in actors], timeout=120)
    assert len({(node, gpu) for node, gpu, _ in found}) == 2
    assert [size for _, _, size in found] == [15, 15]
    for actor in actors:
        ray.kill(actor)


@pytest.mark.parametrize(
    ("compute", "message"),
    [
        ({"gpus_per_class": 3}, "at most 2 GPUs on one node"),
        ({"gpus_per_actor": 4}, "at most 2 GPUs on one node"),
        ({"actors": 50}, "room for"),
        ({"concurrent_trainings": 50}, "room for"),
    ],
)
def test_what_can_never_be_placed_is_refused_at_once(budget, compute, message):
    began = time.monotonic()
    with pytest.raises(ResourceError, match=message):
        plan_of(budget, **compute)
    assert time.monotonic() - began < 1


def test_what_the_entrypoint_of_this_job_holds_is_taken_off(nodes, monkeypatch):
    """The record is written here as Ray's Jobs API writes it; the driver's node is the head."""
    import json

    import ray
    from ray.dashboard.modules.job.common import JobInfoStorageClient
    from ray.experimental.internal_kv import _internal_kv_put

    here = ray.get_runtime_context().get_node_id()
    before = {n.identity: n for n in cluster_budget(ComputeConfig(device="cpu")).nodes}
    key = JobInfoStorageClient.JOB_DATA_KEY.format(job_id="gencls-test")
    record = json.dumps({"entrypoint_memory": 2 * GB, "entrypoint_num_cpus": 1})
    _internal_kv_put(key, record, namespace=b"job")
    settings = json.dumps({"metadata": {"job_submission_id": "gencls-test"}})
    monkeypatch.setenv("RAY_JOB_CONFIG_JSON_ENV_VAR", settings)
    after = {n.identity: n for n in cluster_budget(ComputeConfig(device="cpu")).nodes}
    assert after[here].memory_bytes == before[here].memory_bytes - 2 * GB
    assert {k: v for k, v in after.items() if k != here} == {
        k: v for k, v in before.items() if k != here
    }


def test_a_run_directory_that_is_not_shared_is_refused(budget, nodes, tmp_path, monkeypatch):
    require_shared(tmp_path / "run", budget.nodes)
    assert not list((tmp_path / "run").iterdir()), "nothing of the probe stays"
    # A path that is another folder for every process: this one's, and each raylet's.
    monkeypatch.chdir(nodes["two gpus: folder"])
    apart = Path("/proc/self/cwd") / "run"
    with pytest.raises(ResourceError, match="not shared by all nodes") as error:
        require_shared(apart, budget.nodes)
    for name in ("one gpu", "no gpu"):
        assert by_name(budget, nodes, name).name in str(error.value)
    assert by_name(budget, nodes, "two gpus").name not in str(error.value), "it has that folder"
    assert "s3://" in str(error.value)
    assert not list(apart.iterdir())
    require_shared(apart, budget.nodes[:1])


def test_a_base_model_that_a_node_lacks_is_named(budget, nodes, tmp_path):
    (tmp_path / "base").mkdir()
    assert nodes_without(tmp_path / "base", budget.nodes), "an empty folder is no model"
    (tmp_path / "base" / "config.json").write_text("{}")
    assert nodes_without(tmp_path / "base", budget.nodes) == []
    local = Path(nodes["one gpu: folder"]) / "base"
    local.mkdir()
    (local / "config.json").write_text("{}")
    relative = Path("/proc/self/cwd/base")
    missing = nodes_without(relative, budget.nodes)
    assert {node.identity for node in missing} == {nodes["two gpus"], nodes["no gpu"]}


def test_the_plan_command_shows_the_nodes_of_the_cluster(nodes):
    """Joined as with --address: the figures are the cluster's, not this machine's."""
    words = ["plan", "--data", "demo", "--model", "scratch:tiny", "--device", "cpu"]
    words += ["--recipe", "independent"]
    result = CliRunner().invoke(cli, [*words, "--actors", "3"], env={"COLUMNS": "200"})
    assert result.exit_code == 0, result.output
    for has in ("4 CPUs, 17.0 GB for workers, 2 GPUs", "3 CPUs, 13.0 GB", "2 CPUs, 5.0 GB"):
        assert has in result.output
    assert "3 actors, each with all" in result.output
    refused = CliRunner().invoke(cli, [*words, "--gpus-per-class", "3"])
    assert isinstance(refused.exception, ResourceError)
    assert "at most 2 GPUs on one node" in str(refused.exception)
