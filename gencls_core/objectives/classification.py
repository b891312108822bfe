"""All classes' texts under one classifier: the loss is −log P(class | text), summed over texts.

Texts are read as scoring will read them (`gencls_core.classifiers`), and cut where it will cut.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from gencls_core.classifier_loading import add_adapter, load_classifier
from gencls_core.classifiers import Classifier, ReadText, text_batches
from gencls_core.objectives.texts import OfTexts, refuse_absent_classes
from gencls_core.training_task import TrainingTask

__all__ = ["ClassificationObjective"]


class ClassificationObjective(OfTexts[Classifier, ReadText]):
    """A classifier and the tokenised texts of all classes, each with its class number."""

    loss_per = "text"

    def __init__(
        self,
        classifier: Classifier,
        texts: list[ReadText],
        labels: Sequence[int],
        held_out: list[ReadText],
        held_out_labels: Sequence[int],
    ) -> None:
        super().__init__(classifier, texts, held_out)
        self._labels = labels
        self._held_out_labels = held_out_labels

    @classmethod
    def of(cls, task: TrainingTask) -> ClassificationObjective:
        """Load the base, draw a head and tokenise the texts; see `load_objective`."""
        refuse_absent_classes(task)
        classifier = load_classifier(task.base, task.classes, new_head=True)
        if task.lora_rank is not None:
            classifier = add_adapter(classifier, task.lora_rank, task.lora_alpha)
        texts, held_out = (
            classifier.read(classifier.encode(texts), task.sequence) if texts else []
            for texts in (task.texts, task.validation_texts)
        )
        return cls(classifier, texts, task.labels, held_out, task.validation_labels)

    def passes(self, numbers: Sequence[int], tokens: int, epoch: int) -> Iterator[list[int]]:
        """Cut texts into passes of similar length."""
        return text_batches(self._texts, numbers, tokens, fewest=True)

    def loss(self, part: list[int]) -> Tensor:
        """Sum −log P(class | text) over the texts of one padded pass, in nats."""
        logits_BC = self._computing.logits([self._texts[number] for number in part])
        labels_B = torch.tensor([self._labels[number] for number in part], device=logits_BC.device)
        return torch.nn.functional.cross_entropy(logits_BC, labels_B, reduction="sum")

    def held_out_nll(self, tokens: int) -> float:
        """Give nats per text, by the scoring code."""
        scores_NC = self._computing.log_posteriors(self._held_out, tokens_per_batch=tokens)
        return float(-scores_NC[np.arange(self.held_out), list(self._held_out_labels)].mean())

    def save(self, folder: Path) -> str:
        """Write weights (or adapter and head), configuration and tokenizer."""
        return self._lm.save(folder)
