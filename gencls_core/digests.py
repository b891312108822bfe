"""What a result depends on, as one digest: the same digest means that it need not be made again.

A digest covers inputs and settings that change the result, and nothing else: not the number of
actors, not the batch sizes of scoring, not where the run directory lies.
"""

from __future__ import annotations

import math
from bisect import bisect_right
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from itertools import accumulate

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
from gencls_core.scores import SCORE_FORMAT, ShardKey
from gencls_core.scoring_job import ScoringJob
from gencls_core.scratch import SCRATCH_FORMAT, scratch_preset
from gencls_core.storage import digest_of

__all__ = [
    "ShardRange",
    "scoring_digests",
    "scratch_digest",
    "shard_ranges",
    "shards_of",
    "training_digest",
    "wanted_shards",
]


@dataclass(frozen=True)
class ShardRange:
    """Examples [start, stop) of a split, and the number of their shard."""

    start: int
    stop: int
    index: int
    count: int
    """Shards up to the end of the part: a part that is appended renames no shard before it."""


def scratch_digest(model: ModelConfig, training: TrainingConfig, dataset: Dataset) -> str:
    """Name a base model that is made from scratch, before it is made."""
    return digest_of(
        {
            "format": SCRATCH_FORMAT,
            "preset": asdict(scratch_preset(model.model)),
            "seed": training.seed,
            # A class that comes later, or goes, finds the base made.
            "texts": dataset.source.get("base_texts") or dataset.split("train").fingerprint,
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

    No range lies in two parts. What all ranges of one have in common is digested once: a split may
    have 10^5 of them.
    """
    weights, parts = job.weights_of(class_name), dataset.parts(split)
    common = [
        digest_of(
            {
                "format": SCORE_FORMAT,
                "system": job.system.name,
                "model": weights.digest,
                "weights": weights.files,
                "texts": part.fingerprint,
                "sequence": job.sequence.model_dump(mode="json"),
                "per_token": job.scoring.per_token,
                "precision": job.precision,
                **job.system.depends_on(job, class_name),
            }
        )
        for part in parts
    ]
    firsts = list(accumulate((part.rows for part in parts[:-1]), initial=0))
    digests = []
    for start, stop in ranges:
        number = bisect_right(firsts, start) - 1
        first = firsts[number]
        digests.append(digest_of([common[number], start - first, stop - first]))
    return digests


def shard_ranges(rows: int, shard_size: int | None) -> list[tuple[int, int]]:
    """Cut `rows` examples into ranges; depends on the rows alone, not on who will score them."""
    size = shard_size or min(4096, max(32, math.ceil(rows / 32)))
    return [(start, min(start + size, rows)) for start in range(0, rows, size)]


def shards_of(dataset: Dataset, split: SplitName, shard_size: int | None) -> list[ShardRange]:
    """Cut a split into shards, each part of it for itself."""
    shards: list[ShardRange] = []
    first = 0
    for part in dataset.parts(split):
        ranges, before = shard_ranges(part.rows, shard_size), len(shards)
        count = before + len(ranges)
        shards.extend(
            ShardRange(first + start, first + stop, before + number, count)
            for number, (start, stop) in enumerate(ranges)
        )
        first += part.rows
    return shards


def wanted_shards(job: ScoringJob, dataset: Dataset, split: SplitName) -> dict[ShardKey, str]:
    """Give every shard of a split under the job's classes, with the digest that it must have."""
    shards = shards_of(dataset, split, job.scoring.shard_size)
    ranges = [(shard.start, shard.stop) for shard in shards]
    return {
        ShardKey(job.system.name, name, shard.index, shard.count): digest
        for name in job.classes
        for shard, digest in zip(
            shards, scoring_digests(job, name, dataset, split, ranges), strict=True
        )
    }
