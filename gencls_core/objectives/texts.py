"""What the objectives share: a model, and tokenised texts to learn from and held out."""

from __future__ import annotations

from collections.abc import Sequence, Sized
from dataclasses import replace
from typing import Generic, TypeVar

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from gencls_core.errors import TrainingError
from gencls_core.model_inputs import window_states
from gencls_core.models import LM, CausalLM
from gencls_core.tokenization import TokenizedText, Window
from gencls_core.training_loss import negative_log_likelihood
from gencls_core.training_task import TrainingTask

__all__ = ["OfTexts", "refuse_absent_classes", "windows_nll"]

Text = TypeVar("Text", bound=Sized)


class OfTexts(Generic[LM, Text]):
    """A model and tokenised texts, counted in tokens; the base of every objective."""

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
        """Count tokens: the loss is per token."""
        return sum(len(self._texts[number]) for number in numbers)


def windows_nll(
    lm: CausalLM,
    texts: Sequence[TokenizedText],
    windows: Sequence[Window],
    weights: NDArray[np.floating] | None = None,
) -> Tensor:
    """Give −Σ w log P over the scored positions of one padded pass, in nats, with gradients.

    Args:
        lm: the model.
        texts: what the windows are of.
        windows: what goes through the model at once.
        weights: w of each text; None: 1.
    """
    hidden_ND, targets_N = window_states(lm, texts, windows)
    weights_N = None
    if weights is not None:
        lengths = [window.stop - window.score_from for window in windows]
        repeated = np.repeat([weights[window.text] for window in windows], lengths)
        weights_N = torch.from_numpy(repeated.astype(np.float32)).to(hidden_ND.device)
    return negative_log_likelihood(hidden_ND, lm.head, targets_N, lm.vocabulary, weights_N)


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
