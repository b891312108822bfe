"""What speaks for each class over all test texts: phrases with their support and an interval.

A word speaks for class c by what it adds to log P(text | c) less the mean over the other classes,
in nats, scaled as the run's answer scales it; a phrase by the sum of its words. Each text that
holds a phrase counts once, with the mean over its occurrences, and a phrase is ranked by the lower
end of the 95 % interval (Student's t) of the mean over texts: one odd text lifts nothing.

Only stored token scores are read (`--per-token`); labels are not.

Shapes: T tokens, W words of a text, K classes.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from gencls_core.evidence import Piece, words_of

__all__ = ["Phrase", "PhraseCounter", "phrases_in"]

FloatArray = NDArray[np.float64]


@dataclass(frozen=True)
class Phrase:
    """Some words that speak for a class wherever they stand."""

    words: str
    texts: int
    """That hold it."""
    nats: float
    """Mean over these texts."""
    low: float
    """Lower end of its 95 % interval."""
    high: float


def phrases_in(
    text: str, offsets_T: Sequence[tuple[int, int]], nats_TK: FloatArray, longest: int
) -> dict[str, FloatArray]:
    """Give the phrases of a text, each with the mean of what its occurrences say, [K] nats.

    Args:
        text: the text; upper and lower case are not told apart.
        offsets_T: characters of each token.
        nats_TK: what each token says for each class.
        longest: words of a phrase at the most.
    """
    columns = [
        words_of(text, [Piece(*at, float(nats)) for at, nats in zip(offsets_T, of_T, strict=True)])
        for of_T in nats_TK.T
    ]
    words = [text[piece.start : piece.stop].casefold() for piece in columns[0]]
    nats_WK = np.array([[piece.nats for piece in column] for column in columns]).T
    found: dict[str, list[FloatArray]] = {}
    for first, last in _runs_of(words, longest):
        phrase = " ".join(words[first : last + 1])
        found.setdefault(phrase, []).append(nats_WK[first : last + 1].sum(axis=0))
    return {phrase: np.mean(each, axis=0) for phrase, each in found.items()}


def _runs_of(words: Sequence[str], longest: int) -> Iterator[tuple[int, int]]:
    """Give first and last place of all runs of words without a sign between them."""
    for first in range(len(words)):
        for last in range(first, min(first + longest, len(words))):
            if not words[last][:1].isalnum():
                break
            yield first, last


class PhraseCounter:
    """Adds up phrases text by text; memory is a number for each phrase and class."""

    def __init__(self, classes: Sequence[str]) -> None:
        self._classes = tuple(classes)
        self._sums: dict[str, tuple[int, FloatArray, FloatArray]] = {}

    def add(self, phrases: dict[str, FloatArray]) -> None:
        """Count the phrases of one text."""
        zeros_K = np.zeros(len(self._classes))
        for phrase, nats_K in phrases.items():
            texts, sum_K, squares_K = self._sums.get(phrase, (0, zeros_K, zeros_K))
            self._sums[phrase] = (texts + 1, sum_K + nats_K, squares_K + nats_K**2)

    def decisive(self, most: int, fewest_texts: int) -> dict[str, list[Phrase]]:
        """Give the phrases of each class that speak for it, the surest first.

        One that is part of a surer one, or holds it, is left out.

        Args:
            most: phrases of a class.
            fewest_texts: texts that must hold a phrase.
        """
        from scipy.stats import t as student

        found = {}
        for number, name in enumerate(self._classes):
            ranked = []
            for phrase, (texts, sum_K, squares_K) in self._sums.items():
                if texts < max(2, fewest_texts):
                    continue
                mean = float(sum_K[number]) / texts
                spread = max(0.0, float(squares_K[number]) - texts * mean**2) / (texts - 1)
                reach = float(student.ppf(0.975, texts - 1)) * math.sqrt(spread / texts)
                if mean - reach > 0:
                    ranked.append(Phrase(phrase, texts, mean, mean - reach, mean + reach))
            ranked.sort(key=lambda phrase: (-phrase.low, phrase.words))
            found[name] = _apart(ranked, most)
        return found


def _apart(ranked: Sequence[Phrase], most: int) -> list[Phrase]:
    kept: list[Phrase] = []
    for phrase in ranked:
        if len(kept) == most:
            break
        padded = f" {phrase.words} "
        if not any(f" {one.words} " in padded or padded in f" {one.words} " for one in kept):
            kept.append(phrase)
    return kept
