"""What one model is trained on, and texts to score, without a dataset or Ray."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import pyarrow as pa

from gencls_core.class_models import ClassModel
from gencls_core.config import ScoringConfig, SequenceConfig, TrainingConfig
from gencls_core.datasets.dataset import EXAMPLE_SCHEMA
from gencls_core.model_source import ResolvedModel
from gencls_core.scoring_job import ModelSystem, ScoringJob
from gencls_core.training_task import TrainingTask


def labelled_task(
    base: ResolvedModel,
    destination: Path,
    train: Sequence[tuple[str, int]],
    held_out: Sequence[tuple[str, int]],
    **settings: object,
) -> TrainingTask:
    """Make the training of one model of all classes: in float32, on one thread."""
    values = {
        "class_name": "",
        "class_id": 0,
        "digest": "d" * 64,
        "sequence": SequenceConfig(),
        "training": TrainingConfig(epochs=1, batch_size=16, learning_rate=5e-3),
        "lora_rank": None,
        "lora_alpha": None,
        "precision": "fp32",
        "device": "cpu",
        "threads": 1,
        "tokens_per_pass": 512,
    }
    return TrainingTask(
        base=base,
        destination=destination,
        texts=[text for text, _ in train],
        labels=tuple(label for _, label in train),
        validation_texts=[text for text, _ in held_out],
        validation_labels=tuple(label for _, label in held_out),
        **(values | settings),
    )


def job_of(
    trained: ClassModel, base: ResolvedModel, system: ModelSystem, classes: tuple[str, ...]
) -> ScoringJob:
    """Make what scores texts by one model of all classes: in float32."""
    return ScoringJob(
        system=system,
        classes=classes,
        models=(trained,),
        base=base,
        sequence=SequenceConfig(),
        scoring=ScoringConfig(),
        precision="fp32",
        device="cpu",
    )


def examples_of(texts: list[str]) -> pa.Table:
    """Give unlabelled examples."""
    names = [str(number) for number in range(len(texts))]
    columns = {"example_id": names, "text": texts, "label": [None] * len(texts)}
    return pa.table(columns, schema=EXAMPLE_SCHEMA)
