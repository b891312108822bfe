"""Texts × class models → exact log-likelihoods.

Every class model reads the same windows of the same tokens, so differences between classes come
from the models alone. A text's log-likelihood is the float64 sum of its tokens' float32
log-probabilities.

Shapes: B windows, T padded length, N scored positions, D hidden size.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import pyarrow as pa
import torch
from numpy.typing import NDArray
from torch import Tensor

from gencls_core.class_models import ClassModel
from gencls_core.config import ScoringConfig, SequenceConfig
from gencls_core.likelihood import token_log_probs
from gencls_core.loaded_models import LoadedClassModels
from gencls_core.model_inputs import window_states
from gencls_core.model_source import ResolvedModel
from gencls_core.models import CausalLM, load_causal_lm, tokenizer_digest
from gencls_core.scores import SCORE_SCHEMA
from gencls_core.tokenization import (
    SequencePolicy,
    TokenizedText,
    Window,
    batches_by_token_budget,
    windows_of,
)

__all__ = ["ClassModelSet", "PlainModel", "TextScores", "score_table", "score_texts"]


@dataclass(frozen=True)
class TextScores:
    """What one class model says of a list of texts.

    `token_scores[i]` are text i's log-probabilities in nats, one per scored token.
    """

    token_scores: list[NDArray[np.float32]]

    @property
    def log_likelihoods(self) -> NDArray[np.float64]:
        """Sums per text, in nats, added up in float64."""
        return np.array([s.sum(dtype=np.float64) for s in self.token_scores], dtype=np.float64)


@torch.inference_mode()
def score_texts(
    lm: CausalLM,
    texts: Sequence[TokenizedText],
    *,
    window: int,
    tokens_per_batch: int,
    on_batch: Callable[[int], None] | None = None,
) -> TextScores:
    """Score tokenised texts under one model.

    Args:
        lm: the model; its device and dtype are used as they are.
        texts: sequences made by `TokenizedText.of`.
        window: input tokens that the model reads at once.
        tokens_per_batch: padded tokens that go through the model at once.
        on_batch: called with the number of tokens scored so far in this call.
    """
    scores = [np.zeros(len(text), dtype=np.float32) for text in texts]
    done = 0
    batches = batches_by_token_budget(windows_of(texts, window), tokens_per_batch)
    for batch, log_probs in _one_ahead((b, _score_batch(lm, texts, b)) for b in batches):
        offset = 0
        for part in batch:
            count = part.stop - part.score_from
            scores[part.text][part.score_from : part.stop] = log_probs[offset : offset + count]
            offset += count
        done += offset
        if on_batch is not None:
            on_batch(done)
    return TextScores(scores)


def _one_ahead(
    batches: Iterator[tuple[list[Window], _OnItsWay]],
) -> Iterator[tuple[list[Window], NDArray[np.float32]]]:
    """Give a batch's scores when the next is under way: a GPU then has work while we store them."""
    before: tuple[list[Window], _OnItsWay] | None = None
    for batch in batches:
        if before is not None:
            yield before[0], before[1].wait()
        before = batch
    if before is not None:
        yield before[0], before[1].wait()


def _score_batch(lm: CausalLM, texts: Sequence[TokenizedText], batch: list[Window]) -> _OnItsWay:
    """Score one padded batch; gives the scored positions of its windows, one after the other."""
    hidden_ND, targets_N = window_states(lm, texts, batch)
    return _OnItsWay(token_log_probs(hidden_ND, lm.head, targets_N, lm.vocabulary))


class _OnItsWay:
    """Numbers that a GPU is to bring to main memory; on a CPU they are there."""

    def __init__(self, values_N: Tensor) -> None:
        self._values_N, self._arrival = values_N, None
        if values_N.device.type == "cuda":
            self._values_N = torch.empty_like(values_N, device="cpu", pin_memory=True)
            self._values_N.copy_(values_N, non_blocking=True)
            self._arrival = torch.cuda.Event()  # type: ignore[no-untyped-call]
            self._arrival.record()

    def wait(self) -> NDArray[np.float32]:
        if self._arrival is not None:
            self._arrival.synchronize()
        result: NDArray[np.float32] = self._values_N.cpu().numpy()
        return result


class ClassModelSet:
    """All class models of a run in one process, ready to score.

    Models with own weights are loaded whole; LoRA adapters share one base.
    """

    def __init__(
        self,
        models: Sequence[ClassModel],
        base: ResolvedModel,
        *,
        dtype: torch.dtype = torch.float32,
        device: str = "cpu",
        compiled: bool = False,
    ) -> None:
        """Load the models.

        Args:
            models: committed class models.
            base: the base model; read only for LoRA adapters.
            dtype: of the weights; the softmax is float32 whatever it is.
            device: torch device.
            compiled: whether the models' layers are compiled.

        Raises:
            ModelError: when the models do not share one tokenizer.
        """
        self._loaded: LoadedClassModels[CausalLM] = LoadedClassModels(
            models,
            base,
            load=lambda resolved: load_causal_lm(resolved, dtype),
            tokenizer_of=lambda lm: tokenizer_digest(lm.tokenizer),
            device=device,
            setting="--model",
            compiled=compiled,
        )
        self.any = self._loaded.any

    def model(self, class_name: str) -> CausalLM:
        """Give one class's model, its adapter switched on."""
        return self._loaded.model(class_name)

    def policy(self, config: SequenceConfig) -> SequencePolicy:
        """Bind the sequence settings to these models."""
        return self.any.policy(config)

    def score(
        self,
        examples: pa.Table,
        class_name: str,
        sequence: SequenceConfig,
        scoring: ScoringConfig,
        *,
        encoded: list[list[int]] | None = None,
        on_batch: Callable[[int], None] | None = None,
    ) -> pa.Table:
        """Score examples (EXAMPLE_SCHEMA) under one class; gives rows in SCORE_SCHEMA, in order.

        Args:
            encoded: token ids of the examples' texts, where the caller scores several classes.
            on_batch: called with the number of tokens scored so far.
        """
        lm = self.model(class_name)
        policy = self.policy(sequence)
        ids = encoded if encoded is not None else self.encode(examples)
        texts, scores = _read_alone(lm, ids, policy, scoring, on_batch)
        loss_scores = None
        if scoring.likelihood == "loss":
            loss_scores = _loss_scores(lm, ids, policy, scoring.batch_tokens(lm.device.type))
        return score_table(examples, texts, scores, policy, scoring, loss_scores)

    def encode(self, examples: pa.Table) -> list[list[int]]:
        """Tokenise the examples' texts once for all classes."""
        return self.any.encode(examples.column("text").to_pylist())


class PlainModel:
    """One causal language model that reads texts alone, whatever class is asked for."""

    def __init__(self, lm: CausalLM) -> None:
        """Take a model; its device and dtype are used as they are."""
        self._lm = lm

    def encode(self, examples: pa.Table) -> list[list[int]]:
        """Tokenise the examples' texts."""
        return self._lm.encode(examples.column("text").to_pylist())

    def score(
        self,
        examples: pa.Table,
        class_name: str,
        sequence: SequenceConfig,
        scoring: ScoringConfig,
        *,
        encoded: list[list[int]] | None = None,
        on_batch: Callable[[int], None] | None = None,
    ) -> pa.Table:
        """Score examples (EXAMPLE_SCHEMA); gives rows in SCORE_SCHEMA, in order."""
        lm = self._lm
        policy = lm.policy(sequence)
        ids = encoded if encoded is not None else self.encode(examples)
        texts, scores = _read_alone(lm, ids, policy, scoring, on_batch)
        return score_table(examples, texts, scores, policy, scoring)


def _read_alone(
    lm: CausalLM,
    ids: list[list[int]],
    policy: SequencePolicy,
    scoring: ScoringConfig,
    on_batch: Callable[[int], None] | None,
) -> tuple[list[TokenizedText], TextScores]:
    """Score texts with nothing before them but BOS."""
    texts = [TokenizedText.of(own, policy) for own in ids]
    scores = score_texts(
        lm,
        texts,
        window=policy.window,
        tokens_per_batch=scoring.batch_tokens(lm.device.type),
        on_batch=on_batch,
    )
    return texts, scores


def _loss_scores(
    lm: CausalLM, ids: list[list[int]], policy: SequencePolicy, tokens_per_batch: int
) -> NDArray[np.float64]:
    """Score as the original experiment did: minus the mean loss times the number of tokens.

    It has no BOS and no EOS, cuts at the model's context, averages over the n − 1 tokens that have
    a predecessor and multiplies by n: near the exact sum, but not it.
    """
    kept = min(policy.window, policy.max_length or policy.window)
    cut = [tokens[:kept] for tokens in ids]
    texts = [
        TokenizedText(
            np.array(tokens[:-1], dtype=np.int32), np.array(tokens[1:], dtype=np.int32), False
        )
        for tokens in cut
    ]
    sums = score_texts(
        lm, texts, window=policy.window, tokens_per_batch=tokens_per_batch
    ).log_likelihoods
    lengths = np.array([len(tokens) for tokens in cut], dtype=np.float64)
    result: NDArray[np.float64] = sums * lengths / np.maximum(lengths - 1, 1)
    return result


def score_table(
    examples: pa.Table,
    texts: Sequence[TokenizedText],
    scores: TextScores,
    policy: SequencePolicy,
    scoring: ScoringConfig,
    loss_scores: NDArray[np.float64] | None = None,
) -> pa.Table:
    """Put one class's scores into rows of SCORE_SCHEMA."""
    rows = len(texts)
    windows = np.zeros(rows, dtype=np.int32)
    for window in windows_of(texts, policy.window):
        windows[window.text] += 1
    per_token = scoring.per_token
    columns = {
        "example_id": examples.column("example_id"),
        "label": examples.column("label"),
        "score": pa.array(scores.log_likelihoods, pa.float64()),
        "standard_error": pa.nulls(rows, pa.float64()),
        "quantity": pa.array(["log_likelihood"] * rows, pa.string()),
        "num_tokens": pa.array([len(text) for text in texts], pa.int32()),
        "truncated": pa.array([text.truncated for text in texts], pa.bool_()),
        "num_windows": pa.array(windows, pa.int32()),
        "loss_score": pa.array(
            [None] * rows if loss_scores is None else loss_scores.tolist(), pa.float64()
        ),
        "token_ids": pa.array(
            [text.targets if per_token else None for text in texts], pa.list_(pa.int32())
        ),
        "token_scores": pa.array(
            [s if per_token else None for s in scores.token_scores], pa.list_(pa.float32())
        ),
    }
    return pa.table(columns, schema=SCORE_SCHEMA)
