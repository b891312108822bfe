"""What one training and one scoring actor take of memory: arithmetic over a model's sizes.

Training one class model in float32 with AdamW holds weights, gradients and two moments (16 bytes a
parameter) and the activations of one pass: 34·D bytes per token and layer in 16 bits, twice that in
32 (Korthikanti et al. 2022, "Reducing Activation Recomputation in Large Transformer Models",
eq. 2, without the attention matrix, which SDPA does not keep). All sizes are bytes.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from cluster.capacity import Device
from gencls_core.training_task import TOKENS_PER_PASS

__all__ = [
    "ModelSize",
    "Workload",
    "process_bytes",
    "scoring_bytes",
    "tokens_per_pass",
    "training_bytes",
]

PROCESS_BYTES = 800 * 10**6
"""Python with torch, transformers and Ray's worker, before any model."""
CUDA_CONTEXT_BYTES = 600 * 10**6
HEAD_CHUNK_BYTES = 3 * 2**26
"""Logits held at once with what is made of them (gencls_core.likelihood)."""
BYTES_PER_TOKEN = 3
"""Careful estimate of text bytes per token, where texts are not tokenised yet."""


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
    """What is to be done, as far as memory and the number of places depend on it."""

    models: int
    """Models that a text is scored under."""
    trainings: int
    """Models still to be trained; 0 where trained models are only applied."""
    shards: int
    """Ranges of texts to be scored; 0 where nothing is scored."""
    batch_size: int
    longest_text_bytes: int
    window: int | None
    max_length: int | None
    tokens_per_batch: int
    precision: str
    lora_rank: int | None
    gradient_checkpointing: bool
    average_weights: bool = False
    """Whether training holds the mean of weights, too."""
    trained_tokens: int | None = None
    """Training reads at most so many tokens of a text; None: as many as scoring."""
    prefix_bytes: int = 0
    """Of the longest prompt that stands before a text."""
    compared: int = 1
    """Sequences that training makes of a text."""
    texts_to_train: int = 0
    """Texts that all trainings read, each as often as there are epochs."""
    texts_to_score: int = 0
    """Texts that are scored, each under every model."""


def process_bytes(device: Device) -> int:
    """Give what a worker takes of the memory that models live in, before any model."""
    return CUDA_CONTEXT_BYTES if device == "cuda" else PROCESS_BYTES


def training_bytes(size: ModelSize, work: Workload, tokens_per_pass: int) -> int:
    """Estimate the memory of one training, without the process itself."""
    trained = size.parameters
    half = work.precision in ("bf16", "fp16")
    # In 16 bits, passes go through a copy of the weights, whoever makes it: we or autocast.
    weights = (4 + 2 * half) * size.parameters
    if work.lora_rank is not None:
        # Two matrices of rank r on some seven linear maps a layer.
        trained = 2 * 7 * work.lora_rank * size.width * size.layers
        weights += 4 * trained
    optimiser = (12 + 4 * work.average_weights) * trained
    per_value = 34 if half else 68
    layers = size.layers
    if work.gradient_checkpointing:
        # Only each layer's input is kept, and one layer's inside while it is recomputed.
        kept = 2 * size.width * layers * (1 if half else 2)
        activations = tokens_per_pass * (kept + per_value * size.width)
    else:
        activations = tokens_per_pass * per_value * size.width * layers
    return weights + optimiser + activations + HEAD_CHUNK_BYTES


def scoring_bytes(size: ModelSize, work: Workload, classes: int) -> int:
    """Estimate the memory of one actor with `classes` class models, without the process itself.

    LoRA adapters share one base, beside which they weigh nothing.
    """
    per_value = 2 if work.precision in ("bf16", "fp16") else 4
    models = 1 if work.lora_rank is not None else classes
    weights = models * size.parameters * per_value
    tokens = max(work.tokens_per_batch, _longest(size, work))
    activations = tokens * size.width * 20 * per_value
    return weights + activations + HEAD_CHUNK_BYTES


def tokens_per_pass(
    device: Device, size: ModelSize, work: Workload, places: Callable[[int], int]
) -> int:
    """Choose the padded tokens of one training pass: smaller passes need less memory.

    The usual size is halved once where that gives more places, and as often as needed for there to
    be one; never below the longest sequence.

    Args:
        device: where trainings run.
        size: the base model.
        work: what is to be done.
        places: how many trainings of that many bytes can run at once and are of use.
    """
    longest = _longest(size, work, work.trained_tokens)
    batch = work.batch_size * work.compared * longest
    usual = max(min(TOKENS_PER_PASS[device], batch), longest)
    halves = [usual]
    while halves[-1] > longest:
        halves.append(max(longest, halves[-1] // 2))
    found = [places(process_bytes(device) + training_bytes(size, work, n)) for n in halves]
    if max(found[:2]):
        return halves[found.index(max(found[:2]))]
    return next((n for n, room in zip(halves, found, strict=True) if room), halves[-1])


def _longest(size: ModelSize, work: Workload, cut: int | None = None) -> int:
    """Estimate the tokens of the longest sequence that goes through the model at once.

    Of a text at most `cut` tokens are read; its prompt stands before it.
    """
    text = math.ceil(work.longest_text_bytes / BYTES_PER_TOKEN) + 1
    text = min(text, work.max_length or text, cut or text)
    sequence = text + math.ceil(work.prefix_bytes / BYTES_PER_TOKEN)
    return max(1, min(sequence, work.window or size.context, size.context))
