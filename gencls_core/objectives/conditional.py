"""All classes' texts under one causal language model, each after the prefix of its class.

The loss is the exact −log P(text | BOS, prefix of the class), as in
`gencls_core.objectives.causal`; the classes share all weights, so each learns from all texts.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path

from torch import Tensor

from gencls_core.models import CausalLM
from gencls_core.objectives.causal import windows_nll
from gencls_core.objectives.prefixed import LabelledText, PrefixedTexts
from gencls_core.objectives.texts import OfTexts
from gencls_core.scoring import score_texts
from gencls_core.tokenization import TokenizedText, Window, batches_by_token_budget
from gencls_core.training_task import TrainingTask

__all__ = ["ConditionalObjective"]

_Pass = tuple[list[TokenizedText], list[Window]]


class ConditionalObjective(OfTexts[CausalLM, LabelledText]):
    """A causal language model, a prefix for each class, and texts of all classes."""

    def __init__(self, loaded: PrefixedTexts) -> None:
        super().__init__(loaded.lm, loaded.texts, loaded.held_out)
        self._loaded = loaded

    @classmethod
    def of(cls, task: TrainingTask) -> ConditionalObjective:
        """Load the base and tokenise the texts; see `load_objective`."""
        return cls(PrefixedTexts.of(task))

    def passes(self, numbers: Sequence[int], tokens: int, epoch: int) -> Iterator[_Pass]:
        """Cut texts into windows, and windows into passes."""
        texts = [self._texts[number] for number in numbers]
        windows = self._loaded.prefixes.windows_of(texts)
        for batch in batches_by_token_budget(windows, tokens, fewest=True):
            yield [text.tokens for text in texts], batch

    def loss(self, part: _Pass) -> Tensor:
        """Sum −log P over the scored positions of one padded pass, in nats."""
        return windows_nll(self._computing, *part)

    def held_out_nll(self, tokens: int) -> float:
        """Give nats per token, by the scoring code."""
        total = 0.0
        for label, window in enumerate(self._loaded.prefixes.windows):
            texts = [text.tokens for text in self._held_out if text.label == label]
            scores = score_texts(self._computing, texts, window=window, tokens_per_batch=tokens)
            total -= float(scores.log_likelihoods.sum())
        return total / sum(map(len, self._held_out))

    def save(self, folder: Path) -> str:
        """Write weights (or adapter), tokenizer and prefixes."""
        return self._loaded.save(folder)
