"""A masked language model made ready for scoring: its parts and its limits.

Any `AutoModelForMaskedLM` will do (RoBERTa, BERT, DistilBERT, ModernBERT …). What exactness rests
on is checked by a probe: the model reads both sides of a mask, and padding changes nothing.

Shapes: B rows, T padded length, N masked positions in row order, D hidden size, V vocabulary.
"""

from __future__ import annotations

import inspect
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from transformers.modeling_outputs import BaseModelOutput
from transformers.utils import ModelOutput

from gencls_core.errors import ModelError
from gencls_core.likelihood import LOGITS_PER_CHUNK, token_log_probs
from gencls_core.masked_batches import MaskedBatch, MaskedRow
from gencls_core.models import refuse_foreign_tokenizer

__all__ = ["MaskedLM", "wrap_masked_lm"]

_PROBE_TOKENS = 6
_DEFAULT_CONTEXT = 512


@dataclass(frozen=True)
class MaskedLM:
    """A masked language model with its tokenizer and what the tokenizer puts around a text."""

    model: nn.Module
    tokenizer: Any
    mask_id: int
    padding_id: int
    prefix: tuple[int, ...]
    """Special tokens before a text, such as `<s>` or `[CLS]`; read, never masked or scored."""
    suffix: tuple[int, ...]
    context: int
    """Tokens that the model reads at once, special ones included."""
    vocabulary: int
    head_apart: bool = True
    """Whether what follows the trunk treats each position by itself, so that logits are needed at
    masked positions only. Where not, a few rows at a time get logits at every position."""

    @property
    def window(self) -> int:
        """Own tokens of a text that the model reads at once."""
        return self.context - self.num_special

    @property
    def num_special(self) -> int:
        """Special tokens around each window."""
        return len(self.prefix) + len(self.suffix)

    def with_prompt(self, ids: Sequence[int]) -> MaskedLM:
        """Give the same model with a prompt before each text, after the special tokens there.

        Like those, it is read, and never masked or scored.
        """
        return replace(self, prefix=(*self.prefix, *ids))

    def window_of(self, tokens: int | None) -> int:
        """Give the own tokens that are read at once where a window holds `tokens` at most.

        Raises:
            ModelError: when what is read before and after a text leaves no room for it.
        """
        held = min(self.context, tokens or self.context)
        if held <= self.num_special:
            raise ModelError.of(
                "special tokens and prompt leave no room for the text",
                found=f"{self.num_special} tokens of them",
                expected=f"fewer than the {held} tokens of a window",
                remedy="a shorter prompt, or a longer --window",
            )
        return held - self.num_special

    def encode(self, texts: list[str]) -> list[list[int]]:
        """Give each text's own token ids, without special tokens.

        `<mask>` or `[SEP]` written in a text is text: it is cut into ordinary tokens.
        """
        if not texts:
            return []
        ids: list[list[int]] = self.tokenizer(
            texts,
            add_special_tokens=False,
            split_special_tokens=True,
            return_attention_mask=False,
            return_token_type_ids=False,
            verbose=False,
        )["input_ids"]
        return ids

    def batch(self, rows: Sequence[MaskedRow]) -> MaskedBatch:
        """Make rows of own tokens, of at most `window` each, into what this model reads.

        Raises:
            ValueError: when there is no row, or a row that is too long or without a masked token.
        """
        longest = max((len(ids) for ids, _ in rows), default=0)
        if longest > self.window:
            raise ValueError(f"{longest} tokens do not fit into a window of {self.window}")
        return MaskedBatch.of(
            rows,
            prefix=self.prefix,
            suffix=self.suffix,
            mask_id=self.mask_id,
            padding_id=self.padding_id,
        )

    def log_probs(self, batch: MaskedBatch) -> Tensor:
        """Give log P(own token | what is not masked) at each masked position: [N], nats, float32.

        The softmax is over the whole vocabulary and in float32. Gradients flow if they are on.
        """
        batch = batch.to(next(self.model.parameters()).device)
        if self.head_apart:
            hidden_ND = self._hidden(batch)[batch.masked_BT]
            return token_log_probs(hidden_ND, self._head, batch.targets_N, self.vocabulary)
        return self._log_probs_of_whole_logits(batch)

    def _inputs(self, batch: MaskedBatch) -> dict[str, Tensor]:
        inputs = {"input_ids": batch.input_ids_BT, "attention_mask": batch.attention_mask_BT}
        if "token_type_ids" in inspect.signature(_trunk(self.model).forward).parameters:
            inputs["token_type_ids"] = torch.zeros_like(batch.input_ids_BT)
        return inputs

    def _logits(self, batch: MaskedBatch) -> Tensor:
        logits_BTV: Tensor = self.model(**self._inputs(batch)).logits
        return logits_BTV

    def _hidden(self, batch: MaskedBatch) -> Tensor:
        hidden_BTD: Tensor = _trunk(self.model)(**self._inputs(batch))[0]
        return hidden_BTD

    def _head(self, hidden_ND: Tensor) -> Tensor:
        """Give logits [N, V]: all that the model does after its trunk, on hidden states of ours.

        Each architecture names and nests its head differently. So the model runs as a whole on one
        token, and what its trunk hands on is replaced on the way.
        """

        def given(_module: nn.Module, _inputs: Any, output: Any) -> Any:
            kind = type(output) if isinstance(output, ModelOutput) else BaseModelOutput
            return kind(last_hidden_state=hidden_ND[None])

        one = torch.full((1, 1), self.mask_id, device=hidden_ND.device)
        handle = _trunk(self.model).register_forward_hook(given)
        try:
            logits_NV: Tensor = self.model(input_ids=one).logits[0]
        finally:
            handle.remove()
        return logits_NV

    def _log_probs_of_whole_logits(self, batch: MaskedBatch) -> Tensor:
        """The same where the head needs its neighbours; with gradients, all logits stay held."""
        rows = max(1, LOGITS_PER_CHUNK // (self.vocabulary * batch.input_ids_BT.shape[1]))
        scores = []
        for start in range(0, len(batch.lengths_B), rows):
            part = batch.rows(start, start + rows)
            logits_CV = self._logits(part)[part.masked_BT].float()
            chosen_C = logits_CV.gather(1, part.targets_N[:, None]).squeeze(1)
            scores.append(chosen_C - logits_CV.logsumexp(dim=1))
        return torch.cat(scores)


def wrap_masked_lm(model: nn.Module, tokenizer: Any, *, place: str) -> MaskedLM:
    """Take a loaded masked LM and its tokenizer, and check that texts can be scored with them.

    Args:
        model: made by `AutoModelForMaskedLM`, plain or inside a LoRA wrapper; on any device.
        tokenizer: a fast tokenizer with a mask token.
        place: what messages call the model.

    Raises:
        ModelError: when the tokenizer has no mask token or does not fit the vocabulary, when the
            model does not read both sides of a mask, or when padding changes what it says.
    """
    if tokenizer.mask_token_id is None:
        raise ModelError.of(
            "the tokenizer has no mask token",
            place=place,
            expected="the tokenizer of a masked language model, such as roberta-base",
            remedy="choose a masked model, or set `mask_token` in tokenizer_config.json",
        )
    inner = _plain(model)
    vocabulary = inner.get_input_embeddings().weight.shape[0]
    refuse_foreign_tokenizer(tokenizer, vocabulary, place)
    prefix, suffix = _special_tokens(tokenizer, place)
    padding = inner.config.pad_token_id
    if padding is None:
        padding = tokenizer.pad_token_id
    lm = MaskedLM(
        model=model,
        tokenizer=tokenizer,
        mask_id=tokenizer.mask_token_id,
        padding_id=0 if padding is None else padding,
        prefix=prefix,
        suffix=suffix,
        context=_context(model),
        vocabulary=vocabulary,
    )
    if lm.window < 1:
        raise ModelError.of(
            "the model has no room for a text",
            place=place,
            found=f"{lm.context} positions and {lm.num_special} special tokens",
        )
    return replace(lm, head_apart=_probe(lm, place))


def _plain(model: Any) -> Any:
    """Give the plain masked LM inside a LoRA wrapper."""
    return model.get_base_model() if hasattr(model, "peft_config") else model


def _trunk(model: Any) -> Any:
    inner = _plain(model)
    return getattr(inner, inner.base_model_prefix)


def _context(model: Any) -> int:
    """Give the tokens that the model has positions for.

    RoBERTa and its kin count positions from the padding id + 1: of 514 positions, 512 are of use.
    """
    limit = getattr(_plain(model).config, "max_position_embeddings", None) or _DEFAULT_CONTEXT
    for name, module in _trunk(model).named_modules():
        if (
            name.endswith("position_embeddings")
            and isinstance(module, nn.Embedding)
            and module.padding_idx is not None
        ):
            return int(limit) - module.padding_idx - 1
    return int(limit)


def _special_tokens(tokenizer: Any, place: str) -> tuple[tuple[int, ...], tuple[int, ...]]:
    """Give the special tokens that the tokenizer puts before and after a text."""
    own = tokenizer("a", add_special_tokens=False)["input_ids"]
    whole = tokenizer("a")["input_ids"]
    for start in range(len(whole) - len(own) + 1):
        if own and whole[start : start + len(own)] == own:
            return tuple(whole[:start]), tuple(whole[start + len(own) :])
    raise ModelError.of(
        "the tokenizer does more to a text than put special tokens around it",
        place=place,
        found=f"'a' is {own}, with special tokens {whole}",
    )


@torch.no_grad()
def _probe(lm: MaskedLM, place: str) -> bool:
    """Check the model on a few tokens; say whether its head can be run apart from its trunk."""
    training = lm.model.training
    lm.model.eval()
    special = set(lm.tokenizer.all_special_ids)
    ordinary = [i for i in range(lm.vocabulary) if i not in special][:_PROBE_TOKENS] or [0]
    long = np.resize(np.array(ordinary, dtype=np.int32), min(_PROBE_TOKENS, lm.window))
    first = np.arange(len(long)) == 0
    short = (long[: len(long) // 2 + 1], first[: len(long) // 2 + 1])
    ends = (long, first | (np.arange(len(long)) == len(long) - 1))
    batch = lm.batch([(long, first), short])
    whole_BTV = lm._logits(batch)
    alone_TV = lm._logits(lm.batch([short]))[0]
    other_TV = lm._logits(lm.batch([ends, short]))[0]
    apart_NV = lm._head(lm._hidden(batch)[batch.masked_BT])
    lm.model.train(training)
    scale = whole_BTV.abs().max().item() or 1.0
    exact = whole_BTV.dtype in (torch.float32, torch.float64)
    tolerance = scale * (1e-4 if exact else 5e-2)
    at = len(lm.prefix)
    if len(long) > 1 and torch.equal(other_TV[at], whole_BTV[0, at]):
        raise ModelError.of(
            "the model does not read what follows a mask: it is not a masked language model",
            place=place,
            found="logits that stay the same when a later token changes",
            remedy="choose a masked model, such as roberta-base",
        )
    if (whole_BTV[1, : len(alone_TV)] - alone_TV).abs().max().item() > tolerance:
        raise ModelError.of(
            "padding changes what the model says of a text",
            place=place,
            found=type(_plain(lm.model)).__name__,
            expected="a model that obeys its attention mask",
            remedy="choose another architecture, or open an issue that names this one",
        )
    same_shape = apart_NV.shape == whole_BTV[batch.masked_BT].shape
    return same_shape and ((apart_NV - whole_BTV[batch.masked_BT]).abs().max().item() <= tolerance)
