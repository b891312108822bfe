"""What the objectives share: a model, and tokenised texts to learn from and held out."""

from __future__ import annotations

from collections.abc import Sequence, Sized
from dataclasses import replace
from pathlib import Path
from typing import Generic, Literal, TypeVar

from torch import nn

from gencls_core.errors import TrainingError
from gencls_core.models import LM, LanguageModel
from gencls_core.training_task import TrainingTask

__all__ = ["OfTexts", "refuse_absent_classes", "write_model"]

Text = TypeVar("Text", bound=Sized)


class OfTexts(Generic[LM, Text]):
    """A model and tokenised texts; the base of every objective."""

    loss_per: Literal["token", "text"] = "token"

    def __init__(self, lm: LM, texts: list[Text], held_out: list[Text]) -> None:
        self._lm = lm
        self._computing = lm
        """What texts go through: the model itself, or a copy of it."""
        self._texts = texts
        self._held_out = held_out

    @property
    def model(self) -> nn.Module:
        """What is trained."""
        return self._lm.model

    def compute_with(self, copied: nn.Module) -> None:
        """Let texts go through a copy of the model from now on."""
        self._computing = replace(self._lm, model=copied)

    @property
    def lengths(self) -> list[int]:
        """Tokens of each text: those that count for its loss, or are read for it."""
        return [len(text) for text in self._texts]

    @property
    def held_out(self) -> int:
        """Number of held-out texts."""
        return len(self._held_out)

    def units(self, numbers: Sequence[int]) -> int:
        """Count tokens, or texts: a long one decides its class once, as a short one does."""
        if self.loss_per == "text":
            return len(numbers)
        return sum(len(self._texts[number]) for number in numbers)


def write_model(lm: LanguageModel, folder: Path) -> None:
    """Write weights (or adapter) and tokenizer in Hugging Face form."""
    lm.model.save_pretrained(folder)  # type: ignore[operator]
    lm.tokenizer.save_pretrained(folder)


def refuse_absent_classes(task: TrainingTask) -> None:
    """Check that there are train texts of every class, and two classes at least.

    Raises:
        TrainingError: when there are not; a model that compares classes has nothing to learn.
    """
    there = set(task.labels)
    absent = [name for number, name in enumerate(task.classes) if number not in there]
    if absent or len(task.classes) < 2:
        raise TrainingError.of(
            "a model of all classes needs train texts of at least two classes, and of every class",
            place=task.title,
            found=f"no text of {', '.join(absent)}" if absent else "one class",
            remedy=f"add texts, or leave out `{task.system}`: class models (--recipe independent) "
            "need none of the others",
        )
