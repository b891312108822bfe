"""The memory plan, without a GPU: it is arithmetic over sizes."""

from __future__ import annotations

from dataclasses import replace

import pytest

from cluster import capacity
from cluster.memory import _longest
from cluster.placement import Demand, place, room
from cluster.resources import (
    GB,
    Budget,
    ModelSize,
    Node,
    Workload,
    local_budget,
    make_plan,
    scoring_bytes,
)
from gencls_core.config import ComputeConfig
from gencls_core.config_parsing import parse_run_config
from gencls_core.errors import ResourceError, UsageError

GPT2 = ModelSize(parameters=124_439_808, layers=12, width=768, vocabulary=50257, context=1024)
GPT2_MEDIUM = ModelSize(
    parameters=354_823_168, layers=24, width=1024, vocabulary=50257, context=1024
)
WORKSTATION = Budget.of(cpus=8, gpus=1, memory_bytes=32 * GB, gpu_memory_bytes=16 * GB)
WORK = Workload(
    models=2,
    trainings=2,
    shards=32,
    batch_size=8,
    longest_text_bytes=14_000,
    window=None,
    max_length=None,
    tokens_per_batch=4096,
    precision="fp16",
    lora_rank=None,
    gradient_checkpointing=False,
)


def workstation(**changes):
    return Budget((replace(WORKSTATION.nodes[0], **changes),))


def plan(budget=WORKSTATION, size=GPT2, work=WORK, **compute):
    return make_plan(budget, size, work, ComputeConfig(**compute))


@pytest.mark.parametrize("precision", ["fp16", "bf16"])
def test_16_gb_gpu_trains_two_gpt2_or_one_medium_at_once(precision):
    work = replace(WORK, precision=precision)
    two = plan(work=work)
    assert (two.concurrent_trainings, two.gpus_per_training) == (2, 0.5)
    one = plan(size=GPT2_MEDIUM, work=work)
    assert (one.concurrent_trainings, one.gpus_per_training) == (1, 1.0)


def test_fp32_makes_passes_smaller():
    two = plan(work=replace(WORK, precision="fp32"))
    assert (two.concurrent_trainings, two.tokens_per_pass) == (2, 4096)
    one = plan(size=GPT2_MEDIUM, work=replace(WORK, precision="fp32"))
    assert (one.concurrent_trainings, one.tokens_per_pass) == (1, 4096)


def test_what_cannot_fit_is_refused_with_figures():
    small = workstation(gpu_memory_bytes=7 * GB)
    with pytest.raises(ResourceError, match=r"one GPU\n.*6\.4 GB to plan with\n.*\d+\.\d GB") as e:
        plan(small, size=GPT2_MEDIUM)
    assert "--lora-rank 8" in str(e.value)
    assert plan(small, size=GPT2_MEDIUM, work=replace(WORK, lora_rank=8)).concurrent_trainings == 1


def test_lora_and_checkpointing_need_less():
    full = plan().bytes_per_training
    assert plan(work=replace(WORK, lora_rank=8)).bytes_per_training < full
    assert plan(work=replace(WORK, gradient_checkpointing=True)).bytes_per_training < full
    many = plan(work=replace(WORK, models=60, lora_rank=8))
    assert (many.actors, many.models_per_actor) == (1, 60)


def test_cpu_plan_shares_the_cpus():
    budget = Budget.of(cpus=2, memory_bytes=19 * GB)
    work = replace(WORK, precision="fp32", models=4, trainings=4, longest_text_bytes=1200)
    found = plan(budget, work=work)
    assert found.device == "cpu"
    assert found.concurrent_trainings * found.cpus_per_training == 2
    assert found.actors * found.cpus_per_actor == 2
    assert found.gpus_per_training == found.gpus_per_actor == 0
    tight = plan(Budget.of(cpus=2, memory_bytes=5 * GB), work=work)
    assert (tight.concurrent_trainings, tight.cpus_per_training) == (1, 2)


def test_several_gpus():
    budget = workstation(gpus=4, cpus=32)
    found = plan(budget, work=replace(WORK, trainings=10, models=10))
    assert found.concurrent_trainings == 8
    assert found.gpus_per_training == 0.5
    assert (found.actors, found.gpus_per_actor) == (4, 1.0)
    few = plan(budget, work=replace(WORK, trainings=3, models=3))
    assert (few.concurrent_trainings, few.gpus_per_training) == (3, 1.0)


def test_asked_for_more_than_fits():
    assert plan(concurrent_trainings=1).concurrent_trainings == 1
    with pytest.raises(ResourceError, match=r"--concurrent-trainings 3 does not fit"):
        plan(concurrent_trainings=3)
    with pytest.raises(ResourceError, match=r"--actors 90"):
        plan(actors=90)


def test_applying_models_needs_no_room_to_train():
    work = replace(WORK, precision="fp32", trainings=0)
    budget = workstation(gpu_memory_bytes=6 * GB)
    found = plan(budget, size=GPT2_MEDIUM, work=work)
    assert (found.actors, found.concurrent_trainings, found.tokens_per_pass) == (1, 0, 0)
    with pytest.raises(ResourceError, match="training one model does not fit"):
        plan(budget, size=GPT2_MEDIUM, work=replace(work, trainings=1))


def test_training_alone_needs_no_room_to_score():
    work = replace(WORK, tokens_per_batch=10_000_000)
    with pytest.raises(ResourceError, match="scoring actor with one model does not fit"):
        plan(work=work)
    assert plan(work=replace(work, shards=0)).actors == 0


def test_one_class_to_train_gets_all_the_cpus():
    budget = Budget.of(cpus=8, memory_bytes=60 * GB)
    four = replace(WORK, precision="fp32", models=4, trainings=4)
    assert plan(budget, work=four).cpus_per_training == 2
    assert plan(budget, work=replace(four, trainings=1)).cpus_per_training == 8


def test_measured_budget_is_of_this_machine():
    found = local_budget(ComputeConfig(num_gpus=0))
    assert found.cpus >= 1
    assert found.memory_bytes > GB
    # Ray's own processes and its object store come off.
    assert local_budget(ComputeConfig(num_cpus=3, memory_gb=5, num_gpus=0)) == Budget.of(
        cpus=3, memory_bytes=4 * GB
    )
    # Faked GPUs are counted where no model goes to them, and refused where one would.
    assert local_budget(ComputeConfig(num_gpus=3, device="cpu")).gpus == 3


def test_device():
    assert plan().device == "cuda"
    assert plan(device="cpu").device == "cpu"
    assert plan(device="cpu").gpus_per_training == 0
    with pytest.raises(ResourceError, match=r"--device cuda, and no GPU on this machine"):
        plan(workstation(gpus=0), device="cuda")


def test_tasks_ask_for_main_memory_only_where_models_live_in_it():
    on_gpu = plan()
    assert (on_gpu.memory_per_training, on_gpu.memory_per_actor) == (0, 0)
    assert "memory" not in on_gpu.training_options()
    on_cpu = plan(device="cpu")
    assert on_cpu.training_options()["memory"] == on_cpu.bytes_per_training
    assert on_cpu.actor_options()["memory"] == on_cpu.bytes_per_actor
    reserved = on_cpu.concurrent_trainings * on_cpu.memory_per_training
    assert reserved <= WORKSTATION.memory_bytes


# Several class models on one GPU.


def test_processes_on_a_gpu_leave_room_for_all_contexts():
    found = plan()
    fraction = found.gpu_memory_fraction_per_training
    model_bytes = found.bytes_per_training - 600_000_000
    assert fraction * 16 * GB >= model_bytes, "the model fits into what torch may allocate"
    assert 2 * (fraction * 16 * GB + 600_000_000) <= 0.92 * 16 * GB + 1
    assert plan(size=GPT2_MEDIUM).gpu_memory_fraction_per_training is None, "alone on its GPU"


@pytest.mark.parametrize(("asked", "share", "at_once"), [(0.5, 0.5, 2), (1, 1.0, 1), (0.4, 0.4, 2)])
def test_asked_share_of_a_gpu(asked, share, at_once):
    work = replace(WORK, trainings=8, lora_rank=8, gradient_checkpointing=True)
    found = plan(work=work, gpus_per_class=asked)
    assert (found.gpus_per_training, found.concurrent_trainings) == (share, at_once)


def test_a_third_of_a_gpu_is_rounded_down_as_ray_counts():
    budget = workstation(gpu_memory_bytes=80 * GB, gpus=1, cpus=9)
    found = plan(budget, work=replace(WORK, trainings=9), gpus_per_class=1 / 3)
    assert (found.gpus_per_training, found.concurrent_trainings) == (0.3333, 3)
    assert found.cpus_per_training == 3


def test_requests_that_can_never_be_met_are_refused_with_the_figures():
    with pytest.raises(ResourceError, match=r"--gpus-per-class 2 can never be met") as error:
        plan(gpus_per_class=2)
    assert "at most 1 GPU on one node" in str(error.value)
    assert "remedy: --gpus-per-class 1" in str(error.value)
    with pytest.raises(ResourceError, match=r"--gpus-per-actor 0.5 can never") as error:
        plan(workstation(gpus=0), gpus_per_actor=0.5)
    assert "at most 0 GPUs" in str(error.value)
    # In 0.7 of the GPU the model fits with smaller passes; 0.4 is less than it takes at all.
    assert plan(size=GPT2_MEDIUM, gpus_per_class=0.7).gpus_per_training == 0.7
    with pytest.raises(ResourceError, match=r"does not fit into 0.4 of a GPU") as error:
        plan(size=GPT2_MEDIUM, gpus_per_class=0.4)
    assert "found: 5.9 GB to plan with" in str(error.value)
    assert "expected: 8.0 GB" in str(error.value)
    found = float(str(error.value).split("--gpus-per-class ")[1].split(",")[0])
    assert plan(size=GPT2_MEDIUM, gpus_per_class=found).gpus_per_training == found
    with pytest.raises(ResourceError, match=r"--actors 9 does not fit\n.*room for 8"):
        plan(work=replace(WORK, longest_text_bytes=99, tokens_per_batch=99), actors=9)
    with pytest.raises(ResourceError, match="no CPU to run on"):
        plan(workstation(cpus=0))


@pytest.mark.parametrize("flag", ["gpus_per_class", "gpus_per_actor"])
@pytest.mark.parametrize("value", [0, -1, 1.5, 0.00001])
def test_gpus_that_ray_cannot_count_are_usage_errors(flag, value):
    with pytest.raises(UsageError, match=f"compute.{flag}"):
        parse_run_config({"data": {"data": "demo"}, "compute": {flag: value}})


def test_groups_of_classes_where_all_do_not_fit_into_one_actor():
    work = replace(WORK, models=10, trainings=0)
    all_in_one = plan(work=work)
    assert all_in_one.models_per_actor == 10
    room_for_six = 600_000_000 + scoring_bytes(GPT2, work, 6)
    tight = workstation(gpu_memory_bytes=int(room_for_six / 0.92) + 1)
    grouped = plan(tight, work=work)
    # Two groups would do: five models, not six and four.
    assert grouped.models_per_actor == 5
    assert grouped.bytes_per_actor <= 0.92 * tight.gpu_memory_bytes
    assert grouped.groups("abcdefghij") == [tuple("abcde"), tuple("fghij")]
    assert grouped.groups("abc") == [tuple("abc")]
    assert plan(tight, work=replace(work, lora_rank=8)).models_per_actor == 10
    # A share of a GPU holds fewer classes, and is not refused for it.
    assert plan(work=work, gpus_per_actor=0.2).models_per_actor < 10


# Several nodes.


def cluster(*nodes: tuple[int, int, float, float]) -> Budget:
    """Nodes given as CPUs, GPUs, GB of main memory and GB of each GPU."""
    return Budget(
        tuple(
            Node(c, g, int(m * GB), int(v * GB), None, f"node {n}", f"{n:056x}")
            for n, (c, g, m, v) in enumerate(nodes)
        )
    )


CPU_WORK = replace(WORK, precision="fp32", models=12, trainings=12, longest_text_bytes=600)


def test_memory_of_one_node_is_not_another_nodes():
    each = plan(Budget.of(cpus=1, memory_bytes=99 * GB), work=CPU_WORK).bytes_per_training / GB
    together = plan(Budget.of(cpus=8, memory_bytes=int(2.4 * each * GB)), work=CPU_WORK)
    assert together.concurrent_trainings == 2
    apart = plan(cluster((4, 0, 1.2 * each, 0), (4, 0, 1.2 * each, 0)), work=CPU_WORK)
    assert apart.concurrent_trainings == 2
    halves = cluster((4, 0, 0.6 * each, 0), (4, 0, 0.6 * each, 0))
    small = replace(CPU_WORK, lora_rank=None, max_length=1, window=8)
    with pytest.raises(ResourceError, match=r"on node 0, the largest") as error:
        plan(halves, work=replace(small, shards=0), size=GPT2_MEDIUM)
    assert f"{0.6 * each:.1f} GB to plan with" in str(error.value)


def test_cpus_of_unequal_nodes():
    def found(*cpus, trainings=12):
        budget = cluster(*((n, 0, 500, 0) for n in cpus))
        made = plan(budget, work=replace(CPU_WORK, trainings=trainings))
        return made.concurrent_trainings, made.cpus_per_training

    assert found(8, 8, trainings=4) == (4, 4)
    assert found(2, 2, 2, trainings=2) == (2, 2)
    # A small node is left out where it would make all others small...
    assert found(64, 2, trainings=2) == (2, 32)
    # ... and head nodes without CPUs take part in nothing.
    assert found(0, 4, trainings=2) == (2, 2)


def test_asked_numbers_hold_over_nodes():
    budget = cluster((16, 0, 500, 0), (4, 0, 500, 0))
    one = plan(budget, work=CPU_WORK, concurrent_trainings=1, actors=20)
    assert (one.concurrent_trainings, one.cpus_per_training) == (1, 16)
    assert (one.actors, one.cpus_per_actor) == (20, 1)
    with pytest.raises(ResourceError, match="room for 20"):
        plan(budget, work=CPU_WORK, actors=21)


def test_gpus_of_unequal_size():
    budget = cluster((16, 2, 64, 16), (16, 1, 64, 80), (8, 0, 64, 0))
    few = plan(budget, work=replace(WORK, trainings=3))
    assert (few.concurrent_trainings, few.gpus_per_training) == (3, 1.0)
    many = plan(budget, work=replace(WORK, trainings=30))
    # Ten a GPU on the large one beat two on each; Ray would see room on the small ones, too.
    assert many.concurrent_trainings > 6
    assert many.avoid_nodes_for_training == (f"{0:056x}",)
    assert many.training_options()["label_selector"] == {"ray.io/node-id": f"!in({0:056x})"}
    assert "label_selector" not in few.training_options()


def test_faked_gpus_are_reserved_on_a_cpu_plan():
    budget = cluster((8, 2, 64, 0), (8, 0, 64, 0))
    found = plan(budget, work=CPU_WORK, device="cpu", gpus_per_class=0.5, gpus_per_actor=1)
    assert (found.device, found.concurrent_trainings, found.gpus_per_training) == ("cpu", 4, 0.5)
    assert (found.actors, found.gpus_per_actor) == (2, 1.0)
    assert found.gpu_memory_fraction_per_training is None
    assert found.memory_per_training > 0


def test_every_plan_can_be_placed():
    """What is planned together fits together, node by node, as Ray adds it up."""
    from random import Random

    random = Random(5)
    checked = 0
    for _ in range(300):
        budget = cluster(
            *(
                (random.randint(0, 33), random.choice([0, 0, 1, 2, 4]), random.uniform(1, 200), 0)
                for _ in range(random.randint(1, 6))
            )
        )
        demand = Demand(
            memory_bytes=random.choice([0, 3 * GB, 40 * GB]),
            gpus=random.choice([0, 0.25, 0.3333, 1, 2]),
        )
        wanted = random.randint(1, 20)
        if not room(budget.nodes, demand):
            continue
        checked += 1
        found = place(budget.nodes, [demand], wanted, models_on_gpu=False)
        assert 1 <= found.at_once <= wanted
        left = found.at_once
        for node in budget.nodes:
            cpus, memory = node.cpus, node.memory_bytes
            gpus = [10_000] * node.gpus
            while left and cpus >= found.cpus and memory >= demand.memory_bytes:
                if demand.gpus > 1:
                    free = [i for i, part in enumerate(gpus) if part == 10_000]
                    if len(free) < demand.gpus:
                        break
                    for i in free[: int(demand.gpus)]:
                        gpus[i] = 0
                elif demand.gpus:
                    part = round(demand.gpus * 10_000)
                    fitting = [i for i, rest in enumerate(gpus) if rest >= part]
                    if not fitting:
                        break
                    gpus[fitting[0]] -= part
                cpus -= found.cpus
                memory -= demand.memory_bytes
                left -= 1
        assert left == 0
    assert checked > 100


def test_bf16_on_a_cpu_without_it_is_said_to_be_slow(monkeypatch):
    asked = ComputeConfig(device="cpu", precision="bf16")
    monkeypatch.setattr(capacity, "cpu_multiplies_bf16", lambda: False)
    precision, note = capacity.precision_of(WORKSTATION, asked, "cpu")
    assert precision == "bf16"
    assert "no products in bf16" in note
    assert "--precision fp32" in note
    # What a cluster's nodes have is not what this machine has.
    away = asked.model_copy(update={"address": "auto"})
    assert capacity.precision_of(WORKSTATION, away, "cpu") == ("bf16", None)
    with monkeypatch.context() as in_a_job:
        in_a_job.setenv("GENCLS_ADDRESS", "auto")
        assert capacity.precision_of(WORKSTATION, asked, "cpu") == ("bf16", None)
    monkeypatch.setattr(capacity, "cpu_multiplies_bf16", lambda: True)
    assert capacity.precision_of(WORKSTATION, asked, "cpu") == ("bf16", None)


def test_joint_tuning_is_planned_with_what_it_reads():
    """The first tokens of a text after a prefix, under each compared class."""
    long = replace(WORK, longest_text_bytes=30_000, window=None, max_length=None)
    whole = _longest(GPT2, long, long.trained_tokens)
    joint = replace(long, trained_tokens=64, prefix_bytes=30, compared=4)
    assert _longest(GPT2, joint, joint.trained_tokens) == 64 + 10 < whole
    assert _longest(GPT2, joint) == whole, "scoring reads all of a text"
