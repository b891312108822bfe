"""What a result depends on, as one digest: the same digest means that it need not be made again.

A digest covers inputs and settings that change the result, and nothing else: not the number of
actors, not the batch sizes of scoring, not where the run directory lies.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import asdict

from gencls_core.class_models import CLASS_MODEL_FORMAT
from gencls_core.config import (
    ModelConfig,
    ObjectiveName,
    RecipeConfig,
    ResolvedTraining,
    SequenceConfig,
    TrainingConfig,
)
from gencls_core.datasets.dataset import Dataset, SplitName
from gencls_core.masked_draws import MASK_FORMAT
from gencls_core.scores import SCORE_FORMAT
from gencls_core.scoring_job import ScoringJob
from gencls_core.scratch import SCRATCH_FORMAT, scratch_preset
from gencls_core.storage import digest_of

__all__ = ["scoring_digests", "scratch_digest", "shard_ranges", "training_digest"]


def scratch_digest(model: ModelConfig, training: TrainingConfig, dataset: Dataset) -> str:
    """Name a base model that is made from scratch, before it is made."""
    return digest_of(
        {
            "format": SCRATCH_FORMAT,
            "preset": asdict(scratch_preset(model.model)),
            "seed": training.seed,
            "texts": dataset.split("train").fingerprint,
        }
    )


def training_digest(
    *,
    class_name: str,
    dataset: Dataset,
    base_digest: str,
    model: ModelConfig,
    sequence: SequenceConfig,
    training: ResolvedTraining,
    precision: str,
    objective: ObjectiveName,
    prefixes: Sequence[str],
    recipe: RecipeConfig,
) -> str:
    """Name one trained model.

    That of a class depends on its own texts only, so that another class may come or go; one of all
    classes (`class_name` is empty) on all of them.
    """
    splits = {
        name: dataset.splits[name].class_fingerprints.get(class_name)
        if class_name
        else dataset.splits[name].fingerprint
        for name in ("train", "validation")
        if name in dataset.splits
    }
    settings = training.model_dump(mode="json")
    # Recomputing activations changes memory and time, not the gradients.
    del settings["gradient_checkpointing"]
    # Models that were trained before there was a mean are those trained without.
    if not settings["average_weights"]:
        del settings["average_weights"]
    parts = {
        "format": CLASS_MODEL_FORMAT,
        "class": class_name,
        "texts": splits,
        "base": base_digest,
        "lora": [model.lora_rank, model.lora_alpha],
        "sequence": sequence.model_dump(mode="json"),
        "training": settings,
        "precision": precision,
    }
    if objective != "causal":
        parts |= {"objective": objective, "classes": [] if class_name else dataset.classes}
    if objective == "masked":
        parts["masks"] = MASK_FORMAT
    if objective in ("conditional", "joint"):
        parts["prefixes"] = list(prefixes)
    if objective == "joint":
        compared = recipe.compared(len(dataset.classes))
        learned_from = recipe.learned_from(len(dataset.classes))
        drawn = [learned_from] if learned_from < compared else []
        parts["joint"] = [recipe.lm_weight, recipe.tuned_tokens, compared, *drawn]
    return digest_of(parts)


def scoring_digests(
    job: ScoringJob,
    class_name: str,
    dataset: Dataset,
    split: SplitName,
    ranges: Sequence[tuple[int, int]],
) -> list[str]:
    """Name the score rows of each range of examples [start, stop) under one class.

    What all ranges have in common is digested once: a split may have 10^5 of them.
    """
    weights = job.weights_of(class_name)
    common = digest_of(
        {
            "format": SCORE_FORMAT,
            "system": job.system.name,
            "model": weights.digest,
            "weights": weights.files,
            "texts": dataset.split(split).fingerprint,
            "sequence": job.sequence.model_dump(mode="json"),
            "per_token": job.scoring.per_token,
            "precision": job.precision,
            **job.system.depends_on(job, class_name),
        }
    )
    return [digest_of([common, start, stop]) for start, stop in ranges]


def shard_ranges(rows: int, shard_size: int | None) -> list[tuple[int, int]]:
    """Cut `rows` examples into ranges; depends on the rows alone, not on who will score them."""
    size = shard_size or min(4096, max(32, math.ceil(rows / 32)))
    return [(start, min(start + size, rows)) for start in range(0, rows, size)]
