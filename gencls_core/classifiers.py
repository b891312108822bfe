"""A causal language model with a classification head: log P(class | text) of all classes at once.

    BOS  t1  t2  …  tn          the head reads the hidden state at tn; of an empty text, at BOS

A classifier reads a text once: one that is longer than the model reads at once is cut to its front
part. Rows are padded on the right and the last position is told by length, never by token id. No
EOS is read, so that transformers, which pools at the last token that is not padding, pools at the
same one: GPT-2 pads with its EOS.

Shapes: B texts of a batch, N texts, T padded length, D hidden size, C classes.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from gencls_core.config import SequenceConfig
from gencls_core.model_inputs import pad_windows
from gencls_core.models import plain_model, tokenize, tokenizer_digest
from gencls_core.tokenization import Window, batches_by_token_budget

__all__ = ["HEAD", "Classifier", "ReadText", "text_batches"]

HEAD = "score"
"""What transformers calls the head of a causal model's classifier."""


@dataclass(frozen=True)
class ReadText:
    """A text as the classifier reads it."""

    inputs_T: NDArray[np.int32]
    """BOS and the text's own tokens."""
    truncated: bool

    def __len__(self) -> int:
        """Give the number of tokens read, BOS included."""
        return len(self.inputs_T)


@dataclass(frozen=True)
class Classifier:
    """A sequence classifier taken apart into trunk and head, with its tokenizer."""

    model: nn.Module
    """Plain, or inside a LoRA wrapper."""
    tokenizer: Any
    classes: tuple[str, ...]
    """In the order of the head's outputs."""
    bos_id: int
    padding_id: int
    context: int
    """Tokens that the model reads at once."""

    def encode(self, texts: list[str]) -> list[list[int]]:
        """Give each text's own token ids, without BOS, EOS or any other special token."""
        return tokenize(self.tokenizer, texts)

    def read(self, token_ids: Iterable[Sequence[int]], sequence: SequenceConfig) -> list[ReadText]:
        """Put BOS before texts, and cut each to what `sequence` and the model let it read."""
        limit = min(self.context, sequence.window or self.context) - 1
        if sequence.max_length is not None:
            limit = min(limit, sequence.max_length)
        return [
            ReadText(np.array([self.bos_id, *ids[:limit]], dtype=np.int32), len(ids) > limit)
            for ids in token_ids
        ]

    def pad(self, texts: Sequence[ReadText], padding_id: int | None = None) -> Tensor:
        """Give the token ids of texts, [B, T], padded on the right, on the model's device."""
        rows = [torch.from_numpy(text.inputs_T).long() for text in texts]
        padding = self.padding_id if padding_id is None else padding_id
        return pad_windows(rows, padding).to(next(self.model.parameters()).device)

    def logits(self, texts: Sequence[ReadText], padding_id: int | None = None) -> Tensor:
        """Give the head's outputs for texts in one padded pass, [B, C], float32.

        Args:
            texts: what `read` gave.
            padding_id: another token to pad with; it must make no difference.
        """
        inner = plain_model(self.model)
        trunk = getattr(inner, inner.base_model_prefix)
        hidden_BTD = trunk(input_ids=self.pad(texts, padding_id), use_cache=False).last_hidden_state
        last_B = torch.tensor([len(text) - 1 for text in texts], device=hidden_BTD.device)
        hidden_BD = hidden_BTD[torch.arange(len(texts), device=hidden_BTD.device), last_B]
        logits_BC: Tensor = getattr(inner, HEAD)(hidden_BD)
        return logits_BC.float()

    @torch.inference_mode()
    def log_posteriors(
        self,
        texts: Sequence[ReadText],
        *,
        tokens_per_batch: int,
        on_batch: Callable[[int], None] | None = None,
    ) -> NDArray[np.float64]:
        """Give log P(class | text) in nats, [N, C].

        The logits are float32 and their softmax float64, where what the model is sure of does not
        round to 0 nats.

        Args:
            texts: what `read` gave.
            tokens_per_batch: padded tokens that go through the model at once.
            on_batch: called with the number of tokens read so far in this call.
        """
        scores_NC = np.zeros((len(texts), len(self.classes)))
        done = 0
        for numbers in text_batches(texts, range(len(texts)), tokens_per_batch):
            logits_BC = self.logits([texts[number] for number in numbers])
            scores_NC[numbers] = logits_BC.cpu().double().log_softmax(dim=1).numpy()
            done += sum(len(texts[number]) for number in numbers)
            if on_batch is not None:
                on_batch(done)
        return scores_NC

    def save(self, folder: Path) -> str:
        """Write weights (or adapter and head), configuration and tokenizer; give the tokenizer's
        digest."""
        model: Any = self.model
        model.save_pretrained(folder)
        # Beside an adapter too: it names the classes. transformers pools by the padding token.
        config = copy.deepcopy(plain_model(model).config)
        config.get_text_config().pad_token_id = self.padding_id
        config.save_pretrained(folder)
        self.tokenizer.save_pretrained(folder)
        return tokenizer_digest(self.tokenizer)


def text_batches(
    texts: Sequence[ReadText], numbers: Iterable[int], tokens: int, *, fewest: bool = False
) -> Iterator[list[int]]:
    """Group texts by number into batches of at most `tokens` padded tokens, longest first."""
    whole = [Window(number, 0, 0, len(texts[number])) for number in numbers]
    for batch in batches_by_token_budget(whole, tokens, fewest=fewest):
        yield [window.text for window in batch]
