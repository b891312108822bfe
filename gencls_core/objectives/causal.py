"""One class's texts under a causal language model: the loss is the exact likelihood.

Texts are read as scoring will read them, windows included (`gencls_core.tokenization`), and the
loss is the kernel's (`gencls_core.likelihood`).
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from gencls_core.errors import TrainingError
from gencls_core.model_inputs import window_states
from gencls_core.models import CausalLM, attach_lora, load_causal_lm, tokenizer_digest
from gencls_core.objectives.texts import OfTexts, write_model
from gencls_core.scoring import score_texts
from gencls_core.tokenization import (
    SequencePolicy,
    TokenizedText,
    Window,
    batches_by_token_budget,
    windows_of,
)
from gencls_core.training_loss import negative_log_likelihood
from gencls_core.training_task import TrainingTask

__all__ = ["CausalObjective", "load_base", "windows_nll"]

_Pass = tuple[list[TokenizedText], list[Window]]


class CausalObjective(OfTexts[CausalLM, TokenizedText]):
    """A causal language model and the tokenised texts of one class."""

    def __init__(
        self,
        lm: CausalLM,
        policy: SequencePolicy,
        texts: list[TokenizedText],
        held_out: list[TokenizedText],
    ) -> None:
        super().__init__(lm, texts, held_out)
        self._policy = policy

    @classmethod
    def of(cls, task: TrainingTask) -> CausalObjective:
        """Load the base and tokenise the texts; see `load_objective`."""
        lm, policy = load_base(task)
        texts = _tokenize(lm, task.texts, policy)
        if not texts:
            raise TrainingError.of("no tokens to train on", place=task.title)
        return cls(lm, policy, texts, _tokenize(lm, task.validation_texts, policy))

    def passes(self, numbers: Sequence[int], tokens: int, epoch: int) -> Iterator[_Pass]:
        """Cut texts into windows, and windows into passes."""
        texts = [self._texts[number] for number in numbers]
        for windows in batches_by_token_budget(
            windows_of(texts, self._policy.window), tokens, fewest=True
        ):
            yield texts, windows

    def loss(self, part: _Pass) -> Tensor:
        """Sum −log P over the scored positions of one padded pass, in nats."""
        return windows_nll(self._computing, *part)

    def held_out_nll(self, tokens: int) -> float:
        """Give nats per token, by the scoring code."""
        scores = score_texts(
            self._computing, self._held_out, window=self._policy.window, tokens_per_batch=tokens
        )
        return float(-scores.log_likelihoods.sum() / sum(map(len, self._held_out)))

    def save(self, folder: Path) -> str:
        """Write weights (or adapter) and tokenizer."""
        write_model(self._lm, folder)
        return tokenizer_digest(self._lm.tokenizer)


def load_base(task: TrainingTask) -> tuple[CausalLM, SequencePolicy]:
    """Load the base, with an adapter where one is trained, and say what it reads of a text.

    Raises:
        ModelError: when the base cannot be loaded, or is no causal language model.
    """
    lm = load_causal_lm(task.base)
    if task.lora_rank is not None:
        lm = attach_lora(lm, task.lora_rank, task.lora_alpha)
    return lm, lm.policy(task.sequence)


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


def _tokenize(lm: CausalLM, texts: list[str], policy: SequencePolicy) -> list[TokenizedText]:
    encoded = [TokenizedText.of(ids, policy) for ids in lm.encode(texts)] if texts else []
    return [text for text in encoded if len(text)]
