"""What a worker is told to train. Light, so that whoever plans trainings loads no torch for it."""

from __future__ import annotations

from dataclasses import dataclass

from gencls_core.config import SequenceConfig, TrainingConfig
from gencls_core.model_source import ResolvedModel
from gencls_core.ownership import Fence
from gencls_core.precision import Precision
from gencls_core.remote_path import Location

__all__ = ["TrainingTask"]


@dataclass(frozen=True)
class TrainingTask:
    """Everything that trains one class model."""

    class_name: str
    class_id: int
    digest: str
    base: ResolvedModel
    texts: list[str]
    validation_texts: list[str]
    destination: Location
    """Folder that the committed model is renamed to."""
    sequence: SequenceConfig
    training: TrainingConfig
    lora_rank: int | None
    lora_alpha: float | None
    precision: Precision
    device: str
    threads: int
    tokens_per_pass: int
    checkpoint_seconds: float = 600.0
    """A checkpoint is saved after each epoch, and when the last one is older than this."""
    fence: Fence | None = None
    """The right to save and to commit."""
