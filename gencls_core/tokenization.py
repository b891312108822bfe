"""From a text to the windows that a model reads, each token predicted exactly once.

A text of n tokens t1 … tn becomes the sequence BOS t1 … tn EOS. BOS is conditioned on and never
scored; EOS is scored when `score_eos` is on. A model that reads at most W tokens at once sees a
longer sequence in overlapping windows (here W = 4, so each later window adds W // 2 = 2 targets):

    inputs    BOS t1  t2  t3  t4  t5  t6            targets of window
              └──────────────┘                      t1 t2 t3 t4         (1)
                      └──────────────┘              t5 t6               (2)  t3, t4 are context
                              └──────────────┘      t7 EOS              (3)  t5, t6 are context

Training and scoring both use this module, so a class model is trained on what it will be asked.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import pairwise

import numpy as np
from numpy.typing import NDArray

from gencls_core.config import SequenceConfig

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

    @classmethod
    def of(cls, token_ids: Sequence[int], policy: SequencePolicy) -> TokenizedText:
        """Put BOS before the tokens and, unless the text was cut or EOS is off, EOS after them.

        A cut text did not end where it was cut, so its end is not scored.
        """
        truncated = policy.max_length is not None and len(token_ids) > policy.max_length
        kept = list(token_ids[: policy.max_length] if truncated else token_ids)
        if policy.score_eos and not truncated:
            kept.append(policy.eos_id)
        sequence = np.array([policy.bos_id, *kept], dtype=np.int32)
        return cls(inputs=sequence[:-1], targets=sequence[1:], truncated=truncated)

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

    def __len__(self) -> int:
        """Give the number of input tokens."""
        return self.stop - self.start


def windows_of(texts: Sequence[TokenizedText], size: int) -> list[Window]:
    """Cut texts into windows of at most `size` input tokens; each target is scored once."""
    windows = []
    for number, text in enumerate(texts):
        ends = list(range(min(size, len(text)), len(text), max(1, size // 2)))
        ends.append(len(text))
        if len(text) <= size:
            ends = [len(text)] if len(text) else []
        for scored, stop in pairwise([0, *ends]):
            windows.append(Window(number, max(0, stop - size), scored, stop))
    return windows


def batches_by_token_budget(
    windows: Iterable[Window], tokens: int, *, longest_first: bool = True
) -> Iterator[list[Window]]:
    """Group windows of similar length into batches of at most `tokens` padded tokens.

    A window longer than the budget makes a batch of its own. Longest first, so that memory that
    does not suffice shows at once.
    """
    batch: list[Window] = []
    longest = 0
    for window in sorted(windows, key=lambda w: (len(w), w.text, w.start), reverse=longest_first):
        longest_now = max(longest, len(window))
        if batch and longest_now * (len(batch) + 1) > tokens:
            yield batch
            batch, longest_now = [], len(window)
        batch.append(window)
        longest = longest_now
    if batch:
        yield batch
