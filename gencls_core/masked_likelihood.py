"""How likely a text is under a masked language model: two answers, in nats.

A masked model gives log P(x_i | x_¬M), the probability of a token under a mask, given the tokens
outside the set M of masked ones. The product rule makes no likelihood of the text from that by
itself, as it does for a causal model. Two quantities are in use.

`pseudo`, the pseudo-log-likelihood (Salazar et al. 2020, https://arxiv.org/abs/1910.14659): each
token masked once, by itself,

    PLL(x) = Σ_i log P(x_i | x_¬{i})

Exact, no randomness, n passes for a text of n tokens; not the logarithm of a probability
distribution over texts.

`masked`, a bound on a likelihood. Draw an order σ of the positions and predict the tokens in this
order, each given those before it, the rest masked: a proper model of texts of n tokens. With the
order drawn at random, log P(x) = log E_σ P(x | σ), and by Jensen's inequality

    log P(x) ≥ E_σ Σ_t log P(x_σ(t) | x_σ(<t))  =  L(x)

(Uria et al. 2014, https://arxiv.org/abs/1310.1757). Before step t the k = n − t + 1 tokens still
masked are a random subset M of size k, and each of them is equally likely to be the next. So step t
contributes E_M 1/k Σ_{i∈M} log P(x_i | x_¬M), and drawing k uniformly from 1 … n instead of adding
up the n steps (Hoogeboom et al. 2022, https://arxiv.org/abs/2110.02037),

    L(x) = E_k E_M [ n/k · Σ_{i∈M} log P(x_i | x_¬M) ]

One draw of (k, M) is one pass and an unbiased estimate. The bound of a masked diffusion model
(Sahoo et al. 2024, https://arxiv.org/abs/2406.07524), ∫₀¹ dt/t E Σ_{i∈M} log P(x_i | x_¬M) where
each token is masked with probability t, is the same number: a set of k tokens gets the weight
∫₀¹ t^k (1−t)^(n−k) dt/t = 1 / (k · C(n, k)), as above. Drawing the count instead of the rate only
removes variance, and something is masked in every draw.

How k and M are drawn, the same for every class model, and what the standard error of an estimate
and of a difference is: `gencls_core.masked_draws`. A text of one token has one mask only: there,
both quantities are exact and the same.

A text longer than the model's window is cut into the fewest windows that do, of sizes that differ
by one at most. Each has its own special tokens, they do not overlap, and their values add up: the
windows are treated as independent. A text without tokens scores 0, the logarithm of 1, under every
model. Special tokens are neither masked nor scored.

Shapes: N texts, S draws, n own tokens of a window.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import pairwise

import numpy as np
import torch
from numpy.typing import NDArray

from gencls_core.errors import ModelError
from gencls_core.masked_draws import draw_masks, standard_error
from gencls_core.masked_models import MaskedLM

__all__ = ["MaskedScores", "MaskedText", "score_masked", "score_pseudo"]

BoolArray = NDArray[np.bool_]
FloatArray = NDArray[np.float64]


@dataclass(frozen=True)
class MaskedText:
    """A text's own tokens, and the windows [start, stop) in which they are read."""

    ids: NDArray[np.int32]
    windows: tuple[tuple[int, int], ...]
    truncated: bool

    @classmethod
    def of(
        cls, token_ids: Sequence[int], *, window: int, max_length: int | None = None
    ) -> MaskedText:
        """Cut token ids into windows of at most `window` own tokens; see `MaskedLM.window`.

        Args:
            token_ids: own tokens of the text.
            window: own tokens that the model reads at once.
            max_length: own tokens kept; None keeps all.
        """
        kept = np.array(token_ids[:max_length], dtype=np.int32)
        count = -(-len(kept) // window)
        ends = [len(kept) * i // count for i in range(count + 1)] if count else []
        return cls(ids=kept, windows=tuple(pairwise(ends)), truncated=len(kept) < len(token_ids))

    def __len__(self) -> int:
        """Give the number of scored tokens."""
        return len(self.ids)


@dataclass(frozen=True)
class MaskedScores:
    """What one masked model says of a list of texts."""

    values_NS: FloatArray
    """One unbiased estimate per text and draw, in nats; one column where nothing is drawn."""
    token_scores: list[NDArray[np.float32]]
    """What each token contributes, in nats: of text i, they add up to `log_likelihoods[i]`."""

    @property
    def log_likelihoods(self) -> FloatArray:
        """Means over the draws, [N] in nats."""
        means: FloatArray = self.values_NS.mean(axis=1)
        return means

    @property
    def standard_errors(self) -> FloatArray | None:
        """Standard errors of `log_likelihoods` that come from the draws, [N] in nats.

        None for a single draw, which tells nothing about its spread, and for `score_pseudo`.
        """
        return standard_error(self.values_NS) if self.values_NS.shape[1] > 1 else None


@dataclass(frozen=True)
class _Row:
    """One pass over one window with some tokens masked."""

    text: int
    draw: int
    start: int
    ids: NDArray[np.int32]
    mask: BoolArray
    weight: float
    """What a masked token's log-probability is multiplied by in its draw."""


def score_pseudo(
    lm: MaskedLM,
    texts: Sequence[MaskedText],
    *,
    tokens_per_batch: int,
    on_batch: Callable[[int], None] | None = None,
) -> MaskedScores:
    """Give pseudo-log-likelihoods: each token masked once, given all others of its window.

    A piece of a word is masked by itself, as in the original; the other pieces of a long word tell
    much about it, which the variant of Kauf & Ivanova (2023) avoids. Classes are compared on the
    same tokens, so this does not favour one of them.

    Args:
        lm: the model; its device and dtype are used as they are. It should be in eval mode.
        texts: cut with `window=lm.window`.
        tokens_per_batch: padded tokens that go through the model at once.
        on_batch: called with the number of masked tokens scored so far in this call.

    Raises:
        ModelError: when the model gives a log-probability that is not a finite number.
    """

    def rows(text: int, start: int, ids: NDArray[np.int32]) -> Iterator[_Row]:
        for position in range(len(ids)):
            yield _Row(text, 0, start, ids, np.arange(len(ids)) == position, 1.0)

    return _score(lm, texts, 1, _rows(texts, rows), tokens_per_batch, on_batch)


def score_masked(
    lm: MaskedLM,
    texts: Sequence[MaskedText],
    example_ids: Sequence[str],
    *,
    samples: int,
    seed: int,
    tokens_per_batch: int,
    on_batch: Callable[[int], None] | None = None,
) -> MaskedScores:
    """Estimate the any-order bound on log-likelihoods; see the module for what it is.

    Args:
        lm: the model; its device and dtype are used as they are. It should be in eval mode.
        texts: cut with `window=lm.window`.
        example_ids: one per text; masks are drawn by them.
        samples: draws per text, each a pass over it; standard errors need two.
        seed: of the masks.
        tokens_per_batch: padded tokens that go through the model at once.
        on_batch: called with the number of masked tokens scored so far in this call.

    Raises:
        ModelError: when the model gives a log-probability that is not a finite number.
        ValueError: when `samples` is below 1, or ids and texts differ in number.
    """
    if samples < 1 or len(texts) != len(example_ids):
        raise ValueError(f"{samples} samples, {len(texts)} texts, {len(example_ids)} example ids")

    def rows(text: int, start: int, ids: NDArray[np.int32]) -> Iterator[_Row]:
        key = ("score", example_ids[text], len(texts[text]), start)
        masks_Sn = draw_masks(len(ids), samples, seed=seed, key=key)
        for draw, mask in enumerate(masks_Sn):
            yield _Row(text, draw, start, ids, mask, len(ids) / int(mask.sum()))

    return _score(lm, texts, samples, _rows(texts, rows), tokens_per_batch, on_batch)


def _rows(
    texts: Sequence[MaskedText],
    rows: Callable[[int, int, NDArray[np.int32]], Iterator[_Row]],
) -> Iterator[_Row]:
    """Go through the rows of all windows, longest first: memory that does not suffice shows at
    once, and neighbours need little padding."""
    windows = [(i, start, stop) for i, text in enumerate(texts) for start, stop in text.windows]
    for text, start, stop in sorted(windows, key=lambda w: (w[1] - w[2], w)):
        yield from rows(text, start, texts[text].ids[start:stop])


def _batches(rows: Iterable[_Row], tokens: int, special: int) -> Iterator[list[_Row]]:
    """Group rows, which come longest first, by at most `tokens` padded tokens."""
    batch: list[_Row] = []
    for row in rows:
        if batch and (len(batch) + 1) * (len(batch[0].ids) + special) > tokens:
            yield batch
            batch = []
        batch.append(row)
    if batch:
        yield batch


@torch.inference_mode()
def _score(
    lm: MaskedLM,
    texts: Sequence[MaskedText],
    draws: int,
    rows: Iterable[_Row],
    tokens_per_batch: int,
    on_batch: Callable[[int], None] | None,
) -> MaskedScores:
    values_NS = np.zeros((len(texts), draws))
    token_sums = [np.zeros(len(text)) for text in texts]
    done = 0
    for batch in _batches(rows, tokens_per_batch, lm.num_special):
        log_probs_N = lm.log_probs(lm.batch([(row.ids, row.mask) for row in batch]))
        scores_N = log_probs_N.double().cpu().numpy()
        if not np.isfinite(scores_N).all():
            raise ModelError.of(
                "the model gives a log-probability that is not a finite number",
                found=str(scores_N[~np.isfinite(scores_N)][0]),
                remedy="score in a wider precision, or look whether its training went astray",
            )
        offset = 0
        for row in batch:
            positions = row.start + np.flatnonzero(row.mask)
            scores = row.weight * scores_N[offset : offset + len(positions)]
            values_NS[row.text, row.draw] += scores.sum()
            token_sums[row.text][positions] += scores
            offset += len(positions)
        done += offset
        if on_batch is not None:
            on_batch(done)
    return MaskedScores(values_NS, [(sums / draws).astype(np.float32) for sums in token_sums])
