"""What a worker is told to train. Light, so that whoever plans trainings loads no torch for it."""

from __future__ import annotations

from dataclasses import dataclass, field, replace

from gencls_core.config import (
    ObjectiveName,
    RecipeConfig,
    ResolvedTraining,
    SequenceConfig,
    TrainingConfig,
)
from gencls_core.datasets.dataset import Dataset, SplitName
from gencls_core.model_source import ResolvedModel
from gencls_core.ownership import Fence
from gencls_core.precision import Precision
from gencls_core.remote_path import Location

__all__ = ["TOKENS_PER_PASS", "TrainingTask"]

TOKENS_PER_PASS = {"cpu": 2048, "cuda": 8192}
"""Padded tokens of a pass, by device, where memory allows; a longer text is a pass by itself."""


@dataclass(frozen=True)
class TrainingTask:
    """Everything that trains one model: of one class, or of all classes together."""

    class_name: str
    """The class whose texts it learns from; empty where it learns from those of all classes."""
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
    system: str = "class-lm"
    objective: ObjectiveName = "causal"
    classes: tuple[str, ...] = ()
    """All classes, in order."""
    labels: tuple[int, ...] = ()
    """Of a model of all classes: the class number of each train text."""
    validation_labels: tuple[int, ...] = ()
    prefixes: tuple[str, ...] = ()
    """What a conditional model reads before a text of each class."""
    recipe: RecipeConfig = field(default_factory=RecipeConfig)
    checkpoint_seconds: float = 600.0
    """A checkpoint is saved after the best epoch so far, after one that was not short, and when the
    last one is older than this."""
    judged: bool = False
    """Whether the labels of the held-out texts are to judge the model, and choose no epoch."""
    compiled: bool = False
    """Whether the model's layers are compiled (`gencls_core.compilation`)."""
    fence: Fence | None = None
    """The right to save and to commit."""

    @property
    def label(self) -> str:
        """Name the model where progress is shown."""
        if self.system == "class-lm":
            return self.class_name
        return f"{self.system} {self.class_name}".rstrip()

    @property
    def title(self) -> str:
        """Name the model in messages."""
        of_class = f"class {self.class_name!r}" if self.class_name else ""
        return ", ".join(filter(None, [self.system if self.system != "class-lm" else "", of_class]))

    @property
    def resolved_training(self) -> ResolvedTraining:
        """The settings of the training, with nothing left open."""
        return self.training.resolved(
            self.objective, adapter=self.lora_rank is not None, texts=len(self.texts)
        )

    def with_texts(self, dataset: Dataset) -> TrainingTask:
        """Read the texts that it learns from, and those held out."""
        if self.class_name:
            return replace(
                self,
                texts=dataset.texts_of("train", self.class_name),
                validation_texts=dataset.texts_of("validation", self.class_name),
            )
        texts, labels = _labelled(dataset, "train", self.classes)
        held_out, held_out_labels = _labelled(dataset, "validation", self.classes)
        return replace(
            self,
            texts=texts,
            labels=labels,
            validation_texts=held_out,
            validation_labels=held_out_labels,
        )


def _labelled(
    dataset: Dataset, split: SplitName, classes: tuple[str, ...]
) -> tuple[list[str], tuple[int, ...]]:
    """Give a split's texts with a known class, and its number; nothing where there is no split."""
    if split not in dataset.splits:
        return [], ()
    numbers = {name: number for number, name in enumerate(classes)}
    texts: list[str] = []
    labels: list[int] = []
    for batch in dataset.iter_batches(split, ["text", "label"]):
        columns = (batch.column(name).to_pylist() for name in ("text", "label"))
        for text, label in zip(*columns, strict=True):
            if label in numbers:
                texts.append(text)
                labels.append(numbers[label])
    return texts, tuple(labels)
