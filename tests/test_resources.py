"""The memory plan, without a GPU: it is arithmetic over sizes."""

from __future__ import annotations

from dataclasses import replace

import pytest

from cluster.resources import GB, Budget, ModelSize, Workload, local_budget, make_plan
from gencls_core.config import ComputeConfig
from gencls_core.errors import ResourceError

GPT2 = ModelSize(parameters=124_439_808, layers=12, width=768, vocabulary=50257, context=1024)
GPT2_MEDIUM = ModelSize(
    parameters=354_823_168, layers=24, width=1024, vocabulary=50257, context=1024
)
WORKSTATION = Budget(cpus=8, gpus=1, memory_bytes=32 * GB, gpu_memory_bytes=16 * GB)
WORK = Workload(
    classes=2,
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
    small = replace(WORKSTATION, gpu_memory_bytes=7 * GB)
    with pytest.raises(ResourceError, match=r"one GPU\n.*6\.4 GB to plan with\n.*\d+\.\d GB") as e:
        plan(small, size=GPT2_MEDIUM)
    assert "--lora-rank 8" in str(e.value)
    assert plan(small, size=GPT2_MEDIUM, work=replace(WORK, lora_rank=8)).concurrent_trainings == 1
    with pytest.raises(ResourceError, match="all 60 class models"):
        plan(work=replace(WORK, classes=60))


def test_lora_and_checkpointing_need_less():
    full = plan().bytes_per_training
    assert plan(work=replace(WORK, lora_rank=8)).bytes_per_training < full
    assert plan(work=replace(WORK, gradient_checkpointing=True)).bytes_per_training < full
    many = plan(work=replace(WORK, classes=60, lora_rank=8))
    assert many.actors == 1


def test_cpu_plan_shares_the_cpus():
    budget = Budget(cpus=2, gpus=0, memory_bytes=20 * GB, gpu_memory_bytes=0)
    work = replace(WORK, precision="fp32", classes=4, longest_text_bytes=1200)
    found = plan(budget, work=work)
    assert found.device == "cpu"
    assert found.concurrent_trainings * found.cpus_per_training == 2
    assert found.actors * found.cpus_per_actor == 2
    assert found.gpus_per_training == found.gpus_per_actor == 0
    tight = plan(replace(budget, memory_bytes=6 * GB), work=work)
    assert (tight.concurrent_trainings, tight.cpus_per_training) == (1, 2)


def test_several_gpus():
    budget = replace(WORKSTATION, gpus=4, cpus=32)
    found = plan(budget, work=replace(WORK, classes=10))
    assert found.concurrent_trainings == 8
    assert found.gpus_per_training == 0.5
    assert (found.actors, found.gpus_per_actor) == (4, 1.0)
    few = plan(budget, work=replace(WORK, classes=3))
    assert (few.concurrent_trainings, few.gpus_per_training) == (3, 1.0)


def test_asked_for_more_than_fits():
    assert plan(concurrent_trainings=1).concurrent_trainings == 1
    with pytest.raises(ResourceError, match=r"--concurrent-trainings 3 does not fit"):
        plan(concurrent_trainings=3)
    with pytest.raises(ResourceError, match=r"--actors 90"):
        plan(actors=90)


def test_applying_models_needs_no_room_to_train():
    work = replace(WORK, precision="fp32", trains=False)
    assert plan(size=GPT2_MEDIUM, work=work).actors == 1


def test_measured_budget_is_of_this_machine():
    found = local_budget(ComputeConfig(num_gpus=0))
    assert found.cpus >= 1
    assert found.memory_bytes > GB
    assert local_budget(ComputeConfig(num_cpus=3, memory_gb=5, num_gpus=0)) == Budget(
        cpus=3, gpus=0, memory_bytes=5 * GB, gpu_memory_bytes=0
    )
