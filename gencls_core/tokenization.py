"""From a text to the windows that a model reads, each token predicted exactly once.

A text of n tokens t1 … tn becomes the sequence BOS t1 … tn EOS. BOS is conditioned on and never
scored; EOS is scored when `score_eos` is on. A model that reads at most W tokens at once sees a
longer sequence in overlapping windows (here W = 4, so each later window adds W // 2 = 2 targets):

    inputs    BOS t1  t2  t3  t4  t5  t6            targets of window
              └──────────────┘                      t1 t2 t3 t4         (1)
                      └──────────────┘              t5 t6               (2)  t3, t4 are context
                              └──────────────┘      t7 EOS              (3)  t5, t6 are context

A prompt stands between BOS and t1. It is conditioned on and never scored, and every window reads it
again: BOS and prompt come first, then the window's part of the text.

Training and scoring both use this module, so a class model is trained on what it will be asked.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field, replace
from itertools import pairwise
from typing import Self

import numpy as np
from numpy.typing import NDArray

from gencls_core.config import SequenceConfig
from gencls_core.errors import ModelError

__all__ = [
    "IGNORED",
    "SequencePolicy",
    "TokenizedText",
    "Window",
    "batches_by_token_budget",
    "windows_of",
]

IGNORED = -100
"""Target of a position that is context only; torch's own default ignore index."""


@dataclass(frozen=True)
class SequencePolicy:
    """How a text becomes the sequence that is scored; resolved against one model."""

    bos_id: int
    eos_id: int
    score_eos: bool
    window: int
    """Input tokens that the model reads at once."""
    max_length: int | None = None
    """Text tokens kept; None keeps all."""

    @classmethod
    def resolve(
        cls, config: SequenceConfig, *, bos_id: int, eos_id: int, context: int
    ) -> SequencePolicy:
        """Bind the settings to a model whose context holds `context` tokens."""
        return cls(
            bos_id=bos_id,
            eos_id=eos_id,
            score_eos=config.score_eos,
            window=min(context, config.window or context),
            max_length=config.max_length,
        )


@dataclass(frozen=True)
class TokenizedText:
    """A text as the sequence that is scored: `inputs[i]` precedes `targets[i]`."""

    inputs: NDArray[np.int32]
    targets: NDArray[np.int32]
    truncated: bool
    before: NDArray[np.int32] = field(default_factory=lambda: np.zeros(0, dtype=np.int32))
    """BOS and prompt but for the prompt's last token, which is `inputs[0]`; empty without one."""

    @classmethod
    def of(
        cls, token_ids: Sequence[int], policy: SequencePolicy, prompt: Sequence[int] = ()
    ) -> TokenizedText:
        """Put BOS and prompt before the tokens, and EOS after them unless it is off.

        A cut text did not end where it was cut, so its end is not scored.
        """
        truncated = policy.max_length is not None and len(token_ids) > policy.max_length
        kept = list(token_ids[: policy.max_length] if truncated else token_ids)
        if policy.score_eos and not truncated:
            kept.append(policy.eos_id)
        targets = np.array(kept, dtype=np.int32)
        return cls(targets[:0], targets, truncated).after(policy.bos_id, prompt)

    def after(self, bos_id: int, prompt: Sequence[int]) -> Self:
        """Give the same tokens to score after BOS and another prompt."""
        context = np.array([bos_id, *prompt], dtype=np.int32)
        inputs = np.concatenate([context[-1:], self.targets])[:-1]
        return replace(self, inputs=inputs, before=context[:-1])

    def read_by(self, window: Window) -> NDArray[np.int32]:
        """Give the input tokens of a window; its last `stop - start` precede its targets."""
        part = self.inputs[window.start : window.stop]
        if not len(self.before):
            return part
        again = self.inputs[:1] if window.start else self.inputs[:0]
        return np.concatenate([self.before, again, part])

    def __len__(self) -> int:
        """Give the number of scored tokens."""
        return len(self.targets)


@dataclass(frozen=True)
class Window:
    """One pass over part of a text: targets [start, stop) read, [score_from, stop) scored."""

    text: int
    """Number of the text in the list that was windowed."""
    start: int
    score_from: int
    stop: int
    context: int = 0
    """Tokens of BOS and prompt that are read before."""

    def __len__(self) -> int:
        """Give the number of input tokens."""
        return self.context + self.stop - self.start


def windows_of(texts: Sequence[TokenizedText], size: int) -> list[Window]:
    """Cut texts into windows of at most `size` input tokens; each target is scored once.

    Raises:
        ModelError: when a prompt leaves no room for the text.
    """
    windows = []
    for number, text in enumerate(texts):
        if not len(text):
            continue
        before = len(text.before)
        # Later windows read all of the prompt; the first finds its last token in the text's inputs.
        room, later = size - before, size - before - bool(before)
        ends = [len(text)]
        if len(text) > room:
            if before and later < 2:
                raise ModelError.of(
                    "the prompt leaves no room for the text",
                    found=f"{before} tokens of prompt",
                    expected=f"far fewer than the {size} tokens that the model reads at once",
                    remedy="a shorter prompt",
                )
            ends = [*range(room, len(text), max(1, later // 2)), len(text)]
        for scored, stop in pairwise([0, *ends]):
            start = max(0, stop - later) if scored else 0
            context = before + bool(before and start)
            windows.append(Window(number, start, scored, stop, context))
    return windows


def batches_by_token_budget(
    windows: Iterable[Window], tokens: int, *, fewest: bool = False
) -> list[list[Window]]:
    """Group windows of similar length into batches of at most `tokens` padded tokens.

    The cuts are those that make the whole cheapest. A batch costs its padded tokens and, because
    weights are read anew, as much as a 16th of the budget (measured on two CPU cores). With
    `fewest` it costs the whole budget: in training gradients as large as the model are added up
    after each. A window longer than the budget makes a batch of its own. Longest first, so that
    memory that does not suffice shows at once.
    """
    ordered = sorted(windows, key=lambda w: (len(w), w.text, w.start), reverse=True)
    lengths = np.array([len(window) for window in ordered], dtype=np.int64)
    cuts = _cheapest_cuts(lengths, tokens, tokens if fewest else max(1, tokens // 16))
    return [ordered[start:stop] for start, stop in pairwise(cuts)]


def _cheapest_cuts(lengths: NDArray[np.int64], tokens: int, cost_of_batch: int) -> list[int]:
    """Cut lengths, in descending order, into groups; gives where each begins, and the end.

    A group of n costs n times its first length, and `cost_of_batch`.
    """
    cheapest = np.zeros(len(lengths) + 1, dtype=np.int64)
    begins = np.zeros(len(lengths) + 1, dtype=np.int64)
    first = 0
    for stop in range(1, len(lengths) + 1):
        while first < stop - 1 and lengths[first] * (stop - first) > tokens:
            first += 1
        starts = np.arange(first, stop)
        costs = cheapest[starts] + lengths[starts] * (stop - starts) + cost_of_batch
        best = int(costs.argmin())
        cheapest[stop], begins[stop] = costs[best], first + best
    cuts = [len(lengths)]
    while cuts[-1]:
        cuts.append(int(begins[cuts[-1]]))
    return cuts[::-1]
