"""What a plan depends on of the work that is asked for: settings, texts and system, as sizes."""

from __future__ import annotations

from collections.abc import Sequence

from cluster.capacity import Device
from cluster.memory import Workload
from gencls_core.config import RunConfig
from gencls_core.datasets.dataset import Dataset, SplitName
from gencls_core.digests import shards_of
from gencls_core.precision import Precision
from gencls_core.prompts import prefixes_for, prompts_for
from gencls_core.scoring_job import ModelSystem, names_classes
from gencls_core.trained_run import training_of

__all__ = ["workload_of"]


def workload_of(
    config: RunConfig,
    dataset: Dataset,
    system: ModelSystem,
    precision: Precision,
    device: Device,
    *,
    models: int,
    trainings: int,
    scores: bool,
) -> Workload:
    """Give what the plan depends on of the work that `config` asks for on `dataset`."""
    splits: list[SplitName] = [name for name in ("validation", "test") if name in dataset.splits]
    scored = [dataset.splits[name].rows for name in splits]
    train = dataset.splits.get("train")
    shards = sum(len(shards_of(dataset, name, config.scoring.shard_size)) for name in splits)
    joint = system.objective == "joint"
    training = training_of(config, dataset, system)
    under = len(dataset.classes) if names_classes(system) else models
    return Workload(
        models=models,
        trainings=trainings,
        shards=shards if scores else 0,
        batch_size=config.training.batch_size,
        longest_text_bytes=max(info.longest_text_bytes for info in dataset.splits.values()),
        window=config.sequence.window,
        max_length=config.sequence.max_length,
        tokens_per_batch=config.scoring.batch_tokens(device),
        precision=precision,
        lora_rank=config.model.lora_rank,
        gradient_checkpointing=config.training.gradient_checkpointing,
        average_weights=training.average_weights,
        texts_to_train=round(train.rows * training.epochs) if train and trainings else 0,
        trained_tokens=config.recipe.tuned_tokens if joint else None,
        prefix_bytes=max(len(prefix.encode()) for prefix in _read_before(config, dataset, system)),
        compared=config.recipe.compared(len(dataset.classes)) if joint else 1,
        texts_to_score=sum(scored) * under if scores else 0,
    )


def _read_before(config: RunConfig, dataset: Dataset, system: ModelSystem) -> Sequence[str]:
    """Give what stands before texts."""
    if not names_classes(system):
        return [""]
    if system.objective is not None:
        return prefixes_for(config.recipe, config.systems, dataset.classes)
    return [p for name in dataset.classes for p in prompts_for(config.systems, name)]
