"""The memory plan: how many class models train at once, how many actors score, and what cannot fit.

Pure arithmetic over sizes, so `gencls plan` can print it and tests can check it without a GPU.
All sizes are bytes; 1 GB is 10^9 bytes.

Training one class model in float32 with AdamW holds weights, gradients and two moments (16 bytes a
parameter) and the activations of one pass: 34·D bytes per token and layer in 16 bits, twice that in
32 (Korthikanti et al. 2022, "Reducing Activation Recomputation in Large Transformer Models",
eq. 2, without the attention matrix, which SDPA does not keep).
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any, Literal

from gencls_core.config import ComputeConfig
from gencls_core.errors import ResourceError

__all__ = [
    "GB",
    "Budget",
    "ModelSize",
    "Plan",
    "Workload",
    "local_budget",
    "make_plan",
    "scoring_bytes",
    "training_bytes",
]

GB = 10**9

PROCESS_BYTES = 800 * 10**6
"""Python with torch, transformers and Ray's worker, before any model."""
CUDA_CONTEXT_BYTES = 600 * 10**6
RAY_BYTES = 1_000 * 10**6
"""Ray's own processes and its object store."""
GPU_USABLE = 0.92
"""Part of a GPU's memory that is planned with; fragmentation takes the rest."""
HEAD_CHUNK_BYTES = 3 * 2**26
"""Logits of one chunk, their exponentials and their gradient (gencls_core.likelihood)."""
CPUS_PER_ACTOR = 4
TOKENS_PER_PASS = {"cpu": 2048, "cuda": 8192}
BYTES_PER_TOKEN = 3
"""Careful estimate of text bytes per token, where texts are not tokenised yet."""

Device = Literal["cpu", "cuda"]


@dataclass(frozen=True)
class Budget:
    """What there is to work with."""

    cpus: int
    gpus: int
    memory_bytes: int
    gpu_memory_bytes: int

    @property
    def device(self) -> Device:
        """Where models run."""
        return "cuda" if self.gpus else "cpu"


@dataclass(frozen=True)
class ModelSize:
    """Sizes of the base model that memory depends on."""

    parameters: int
    layers: int
    width: int
    vocabulary: int
    context: int

    @classmethod
    def of(cls, config: dict[str, Any], parameters: int) -> ModelSize:
        """Read sizes from a model's config.json, GPT-2's names or the common ones."""

        def first(*names: str, default: int = 0) -> int:
            return next((int(config[n]) for n in names if config.get(n)), default)

        return cls(
            parameters=parameters,
            layers=first("num_hidden_layers", "n_layer", default=12),
            width=first("hidden_size", "n_embd", default=768),
            vocabulary=first("vocab_size", default=50257),
            context=first("max_position_embeddings", "n_positions", default=2048),
        )


@dataclass(frozen=True)
class Workload:
    """What is to be done, as far as memory depends on it."""

    classes: int
    shards: int
    batch_size: int
    longest_text_bytes: int
    window: int | None
    max_length: int | None
    tokens_per_batch: int
    precision: str
    lora_rank: int | None
    gradient_checkpointing: bool
    trains: bool = True
    """False where trained models are only applied."""


@dataclass(frozen=True)
class Plan:
    """Who runs where. `tokens_per_pass` is the padded tokens of one training pass."""

    device: Device
    concurrent_trainings: int
    cpus_per_training: int
    gpus_per_training: float
    bytes_per_training: int
    tokens_per_pass: int
    actors: int
    cpus_per_actor: int
    gpus_per_actor: float
    bytes_per_actor: int


def local_budget(compute: ComputeConfig) -> Budget:
    """Measure this machine; what the settings give overrides what is measured."""
    import os

    import psutil

    gpus, gpu_memory = compute.num_gpus, compute.gpu_memory_gb
    if gpus is None:
        import torch

        gpus = torch.cuda.device_count()
    if gpus and gpu_memory is None:
        import torch

        present = torch.cuda.device_count()
        if present == 0:
            raise ResourceError.of(
                "GPUs are asked for, and this machine shows none",
                found=f"--num-gpus {gpus}",
                remedy="leave --num-gpus out, or say --gpu-memory-gb to plan for another machine",
            )
        found = [torch.cuda.get_device_properties(i).total_memory for i in range(present)]
        gpu_memory = min(found) / GB
    memory = compute.memory_gb
    usable = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    return Budget(
        cpus=compute.num_cpus or usable or 1,
        gpus=gpus,
        memory_bytes=int(memory * GB) if memory else int(psutil.virtual_memory().available * 0.9),
        gpu_memory_bytes=int((gpu_memory or 0) * GB),
    )


def training_bytes(size: ModelSize, work: Workload, tokens_per_pass: int) -> int:
    """Estimate the memory of one training, without the process itself."""
    trained = size.parameters
    weights = 4 * size.parameters
    if work.lora_rank is not None:
        # Two matrices of rank r on some seven linear maps a layer.
        trained = 2 * 7 * work.lora_rank * size.width * size.layers
        weights += 4 * trained
    optimiser = 12 * trained
    per_value = 34 if work.precision in ("bf16", "fp16") else 68
    layers = size.layers
    if work.gradient_checkpointing:
        # Only each layer's input is kept, and one layer's inside while it is recomputed.
        kept = 2 * size.width * layers * (1 if per_value == 34 else 2)
        activations = tokens_per_pass * (kept + per_value * size.width)
    else:
        activations = tokens_per_pass * per_value * size.width * layers
    return weights + optimiser + activations + HEAD_CHUNK_BYTES


def scoring_bytes(size: ModelSize, work: Workload) -> int:
    """Estimate the memory of one actor that holds all class models, without the process itself."""
    per_value = 2 if work.precision in ("bf16", "fp16") else 4
    models = 1 if work.lora_rank is not None else work.classes
    weights = models * size.parameters * per_value
    tokens = max(work.tokens_per_batch, _longest(size, work))
    activations = tokens * size.width * 20 * per_value
    return weights + activations + HEAD_CHUNK_BYTES


def make_plan(budget: Budget, size: ModelSize, work: Workload, compute: ComputeConfig) -> Plan:
    """Decide how many trainings and actors run at once.

    Raises:
        ResourceError: when one training or one actor does not fit; says by how much.
    """
    if budget.device == "cuda":
        process, what = CUDA_CONTEXT_BYTES, "one GPU"
        memory = int(budget.gpu_memory_bytes * GPU_USABLE)
    else:
        process, what = PROCESS_BYTES, "main memory"
        memory = budget.memory_bytes - RAY_BYTES
    tokens = _tokens_per_pass(budget, size, work, memory, process)
    training = process + (training_bytes(size, work, tokens) if work.trains else 0)
    scoring = process + scoring_bytes(size, work)
    trainings = _how_many(
        "training one class model",
        training,
        memory,
        what,
        "a smaller --model, --lora-rank 8, --gradient-checkpointing, or a shorter --window",
    )
    scorers = _how_many(
        f"an actor with all {work.classes} class models",
        scoring,
        memory,
        what,
        "--lora-rank 8 (adapters share the base), --precision bf16, or a smaller --model",
    )
    per_unit = budget.gpus if budget.device == "cuda" else 1
    # Every training needs a CPU of its own, on a GPU too.
    trainings = min(trainings, max(1, budget.cpus // per_unit))
    concurrent = min(work.classes, trainings * per_unit)
    if compute.concurrent_trainings is not None:
        concurrent = _at_most(
            "--concurrent-trainings", compute.concurrent_trainings, trainings * per_unit, training
        )
    per_gpu = math.ceil(concurrent / per_unit)
    if budget.device == "cuda":
        actors = budget.gpus
    else:
        actors = max(1, min(scorers, budget.cpus // CPUS_PER_ACTOR))
    actors = max(1, min(actors, work.shards))
    if compute.actors is not None:
        limit = min(scorers * per_unit, budget.cpus)
        actors = _at_most("--actors", compute.actors, limit, scoring)
    on_gpu = budget.device == "cuda"
    return Plan(
        device=budget.device,
        concurrent_trainings=concurrent,
        cpus_per_training=max(1, budget.cpus // concurrent),
        gpus_per_training=_fraction(per_gpu) if on_gpu else 0.0,
        bytes_per_training=training,
        tokens_per_pass=tokens,
        actors=actors,
        cpus_per_actor=max(1, budget.cpus // actors),
        gpus_per_actor=_fraction(math.ceil(actors / budget.gpus)) if on_gpu else 0.0,
        bytes_per_actor=scoring,
    )


def _tokens_per_pass(
    budget: Budget, size: ModelSize, work: Workload, memory: int, process: int
) -> int:
    """Choose the padded tokens of one training pass: smaller passes need less memory.

    The usual size is halved once where that lets a second training run beside the first, and as
    often as needed for one to fit; never below the longest sequence.
    """
    longest = _longest(size, work)
    usual = max(min(TOKENS_PER_PASS[budget.device], work.batch_size * longest), longest)
    halves = [usual]
    while halves[-1] > longest:
        halves.append(max(longest, halves[-1] // 2))

    def fit(tokens: int) -> int:
        return memory // (process + training_bytes(size, work, tokens))

    wanted = min(2, work.classes)
    candidates = [tokens for tokens in halves[:2] if fit(tokens) >= wanted]
    candidates += [tokens for tokens in halves if fit(tokens) >= 1]
    return candidates[0] if candidates else halves[-1]


def _longest(size: ModelSize, work: Workload) -> int:
    """Estimate the tokens of the longest sequence that goes through the model at once."""
    longest = math.ceil(work.longest_text_bytes / BYTES_PER_TOKEN) + 1
    return max(
        1, min(longest, work.max_length or longest, work.window or size.context, size.context)
    )


def _fraction(parts: int) -> float:
    """Give 1 / parts, rounded down as Ray counts (four decimals), so that all parts fit."""
    return 1.0 if parts <= 1 else math.floor(10_000 / parts) / 10_000


def _how_many(task: str, needed: int, memory: int, what: str, remedies: str) -> int:
    if needed > memory:
        raise ResourceError.of(
            f"{task} does not fit into {what}",
            found=f"{max(memory, 0) / GB:.1f} GB to plan with",
            expected=f"{needed / GB:.1f} GB",
            remedy=remedies,
        )
    return memory // needed


def _at_most(flag: str, asked: int, possible: int, each: int) -> int:
    if asked > possible:
        raise ResourceError.of(
            f"{flag} {asked} does not fit",
            found=f"room for {possible}, at {each / GB:.1f} GB each",
            remedy=f"{flag} {possible}, or leave it out",
        )
    return asked
