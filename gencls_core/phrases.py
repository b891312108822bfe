"""What speaks for each class over all test texts: phrases with their support and an interval.

A word speaks for class c by what it adds to log P(text | c) less the mean over the other classes,
in nats, scaled as the run's answer scales it; a phrase by the sum of its words. Each text that
holds a phrase counts once, with the mean over its occurrences, and the same text twice as one.

A phrase is ranked by the lower end of an interval (Student's t) of the mean over texts. Thousands
of phrases are looked at and the best are shown, so the intervals hold for all of them together
(Bonferroni): with 5 texts it takes much for one to be shown, and one odd text lifts nothing.

Shapes: T tokens, W words of a text, K classes, P phrases.
"""

from __future__ import annotations

import functools
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from gencls_core.evidence import Bounds, word_bounds, word_sums

__all__ = ["Phrase", "PhraseCounter"]

FloatArray = NDArray[np.float64]
IntArray = NDArray[np.int64]


@dataclass(frozen=True)
class Phrase:
    """Some words that speak for a class wherever they stand."""

    words: str
    texts: int
    """That hold it."""
    nats: float
    """Mean over these texts."""
    low: float
    """Lower end of its interval: 95 % for all phrases together."""
    high: float


class PhraseCounter:
    """Adds up phrases text by text.

    First every text is shown to `see`, then again to `add` with its numbers: only what enough texts
    hold is kept, a number for each class. While texts are seen, memory is 8 bytes for each
    occurrence.
    """

    def __init__(self, classes: Sequence[str], *, longest: int, fewest_texts: int) -> None:
        """Begin.

        Args:
            classes: names of the classes.
            longest: words of a phrase at the most.
            fewest_texts: texts that must hold a phrase; 2 at least.
        """
        self._classes = tuple(classes)
        self._longest = longest
        self._fewest = max(2, fewest_texts)
        self._seen: list[IntArray] = []
        self._texts: set[int] = set()
        self._place: dict[str, int] = {}
        self._counts: list[int] = []
        self._sums: list[FloatArray] = []
        self._squares: list[FloatArray] = []

    def see(self, text: str) -> None:
        """Take note of the phrases of a text; of the same text again nothing."""
        key = hash(" ".join(text.casefold().split()))
        if key not in self._texts:
            self._texts.add(key)
            phrases = {phrase for phrase, *_ in _phrases_of(text, self._longest)}
            self._seen.append(np.array([hash(phrase) for phrase in phrases], dtype=np.int64))

    @functools.cached_property
    def _kept(self) -> frozenset[int]:
        """Hashes of the phrases that enough texts hold; one in 10^9 might be of two."""
        self._texts.clear()  # from here on texts are added
        if not self._seen:
            return frozenset()
        hashes_P, texts_P = np.unique(np.concatenate(self._seen), return_counts=True)
        self._seen.clear()
        return frozenset(hashes_P[texts_P >= self._fewest].tolist())

    def add(self, text: str, offsets_T: Sequence[Bounds], nats_TK: FloatArray) -> None:
        """Count the phrases of one text that was seen.

        What stands behind the last token was cut off: it was not scored, and is not counted.

        Args:
            text: the text; upper and lower case are not told apart.
            offsets_T: characters of each token that was scored.
            nats_TK: what each token says for each class.
        """
        kept = self._kept
        key = hash(" ".join(text.casefold().split()))
        if key in self._texts:
            return
        self._texts.add(key)
        bounds = word_bounds(text)
        scored_until = offsets_T[-1][1] if offsets_T else 0
        until_WK = np.zeros((len(bounds) + 1, len(self._classes)))
        if bounds:
            np.cumsum(word_sums(text, bounds, offsets_T, nats_TK), axis=0, out=until_WK[1:])
        found: dict[str, list[FloatArray]] = {}
        for phrase, first, last in _phrases_of(text, self._longest):
            if bounds[last][1] <= scored_until and hash(phrase) in kept:
                found.setdefault(phrase, []).append(until_WK[last + 1] - until_WK[first])
        for phrase, each in found.items():
            self._count(phrase, np.mean(each, axis=0))

    def _count(self, phrase: str, nats_K: FloatArray) -> None:
        place = self._place.setdefault(phrase, len(self._counts))
        if place == len(self._counts):
            self._counts.append(0)
            self._sums.append(np.zeros_like(nats_K))
            self._squares.append(np.zeros_like(nats_K))
        self._counts[place] += 1
        self._sums[place] += nats_K
        self._squares[place] += nats_K**2

    def decisive(self, most: int) -> dict[str, list[Phrase]]:
        """Give the phrases of each class that speak for it, the surest first.

        One that is part of a surer one, or holds it, is left out.

        Args:
            most: phrases of a class.
        """
        # Some texts that hold a phrase may have been cut before it.
        enough = [place for place, count in enumerate(self._counts) if count >= self._fewest]
        if not enough:
            return {name: [] for name in self._classes}
        texts_P = np.array(self._counts)[enough]
        mean_PK = np.stack([self._sums[place] for place in enough]) / texts_P[:, None]
        spread_PK = np.stack([self._squares[place] for place in enough])
        spread_PK -= texts_P[:, None] * mean_PK**2
        spread_PK = spread_PK.clip(0.0) / (texts_P - 1)[:, None]
        reach_PK = _quantiles(texts_P, mean_PK.size)[:, None] * np.sqrt(
            spread_PK / texts_P[:, None]
        )
        low_PK = mean_PK - reach_PK
        phrases = list(self._place)
        words = [phrases[place] for place in enough]
        found = {}
        for number, name in enumerate(self._classes):
            order = sorted(
                np.flatnonzero(low_PK[:, number] > 0).tolist(),
                key=lambda place: (-low_PK[place, number], words[place]),
            )
            found[name] = [
                Phrase(
                    words[place],
                    int(texts_P[place]),
                    float(mean_PK[place, number]),
                    float(low_PK[place, number]),
                    float((mean_PK + reach_PK)[place, number]),
                )
                for place in _apart(order, words, most)
            ]
        return found


def _quantiles(texts_P: IntArray, intervals: int) -> FloatArray:
    """Give the quantiles of Student's t with which so many intervals hold together, 95 %."""
    from scipy.stats import t as student

    each, place_P = np.unique(texts_P, return_inverse=True)
    found_P: FloatArray = student.isf(0.025 / intervals, each - 1)[place_P]
    return found_P


def _phrases_of(text: str, longest: int) -> Iterator[tuple[str, int, int]]:
    """Give all runs of words without a sign between them, each with its first and last word."""
    bounds = word_bounds(text)
    words = [text[start:stop].casefold() for start, stop in bounds]
    for first, (start, _) in enumerate(bounds):
        for last in range(first, min(first + longest, len(words))):
            if not words[last][0].isalnum():
                break
            # As it stands in the text, but for the kind of blanks.
            yield " ".join(text[start : bounds[last][1]].casefold().split()), first, last


def _apart(order: Sequence[int], words: Sequence[str], most: int) -> list[int]:
    kept: list[int] = []
    for place in order:
        if len(kept) == most:
            break
        padded = f" {words[place]} "
        if not any(f" {words[one]} " in padded or padded in f" {words[one]} " for one in kept):
            kept.append(place)
    return kept
