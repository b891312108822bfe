"""Which words of a text decided for one class against another, in nats that add up.

Under Bayes' rule the log-odds of two classes are a sum:

    log P(a | x) / P(b | x)  =  Σ_t s · (log P(x_t | x_<t, a) − log P(x_t | x_<t, b))     tokens
                              +  s · (the same of the end of the text)
                              +  b_a − b_b                                            calibration
                              +  log π_a − log π_b                                          prior

with s = 1 and no b where nothing is calibrated. Where an ensemble is the answer, its posterior is a
mean and no sum; what it adds to the calibrated likelihoods stands as one item of its own; so does
what tokens that are scored again, on a machine that rounds otherwise, say less than the scores that
decided. So the items always add up to the log-odds that decided.

What a token adds is what the two models make of it after what they have read: a word late in a text
may say little because the first ones said it already.

Shapes: T tokens of a text, W words, K columns of numbers.
"""

from __future__ import annotations

import unicodedata
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

__all__ = [
    "Evidence",
    "Piece",
    "evidence_of",
    "spans_of",
    "strengths_of",
    "word_bounds",
    "word_sums",
]

FloatArray = NDArray[np.float64]
Bounds = tuple[int, int]
"""Characters [start, stop) of a text."""

_JOINERS = frozenset("'’-\u200c\u200d")
"""They hold a word together, if there are letters on both sides."""
_FAINT = 0.05
"""A word that says less, beside the one that says most, is not coloured."""


@dataclass(frozen=True)
class Piece:
    """Some characters of a text and what they add to the log-odds."""

    start: int
    """First character."""
    stop: int
    """After the last one."""
    nats: float
    """Above 0 it speaks for the class, below 0 for the other."""


@dataclass(frozen=True)
class Evidence:
    """Everything that a decision between two classes rests on."""

    text: str
    class_name: str
    against: str
    log_odds: float
    """Of the first class against the other: what the run's answer says, in nats."""
    tokens: tuple[Piece, ...]
    end: float
    """That the text ends where it does; 0 where that is not scored."""
    calibration: float
    """The difference of the classes' biases."""
    prior: float
    ensemble: float
    """What a second system adds to the likelihoods."""
    rounding: float
    """What the scores that decided say more than the tokens, which were scored again here."""
    truncated: bool
    """Whether the text was cut before it was scored: what follows has no part in it."""

    @property
    def words(self) -> tuple[Piece, ...]:
        """Give whole words; they add up to what the tokens add up to."""
        bounds = word_bounds(self.text)
        offsets = [(token.start, token.stop) for token in self.tokens]
        nats_T1 = np.array([[token.nats] for token in self.tokens]).reshape(-1, 1)
        sums_W = word_sums(self.text, bounds, offsets, nats_T1)[:, 0]
        if not bounds:
            return (Piece(0, len(self.text), float(sums_W[0])),) if self.tokens else ()
        return tuple(
            Piece(start, stop, float(nats))
            for (start, stop), nats in zip(bounds, sums_W, strict=True)
        )

    @property
    def spans(self) -> tuple[Piece, ...]:
        """Give phrases that speak for one of the classes, the most decisive first."""
        return spans_of(self.words)

    @property
    def beside_words(self) -> tuple[tuple[str, float], ...]:
        """Give the items that are no words, by name."""
        return (
            ("that the text ends there", self.end),
            ("the classes' biases", self.calibration),
            ("the prior", self.prior),
            ("the second system", self.ensemble),
            ("rounding of this machine", self.rounding),
        )

    @property
    def total(self) -> float:
        """Add up all items; `log_odds` but for the last bits."""
        parts = [piece.nats for piece in self.tokens]
        return float(np.sum(parts + [nats for _, nats in self.beside_words]))


def evidence_of(
    text: str,
    offsets_T: Sequence[Bounds],
    scores_T: NDArray[np.float32],
    others_T: NDArray[np.float32],
    *,
    class_name: str,
    against: str,
    log_odds: float,
    scale: float = 1.0,
    calibration: float = 0.0,
    prior: float = 0.0,
    ensemble: bool = False,
    rounding: float = 0.0,
    truncated: bool = False,
) -> Evidence:
    """Lay out what decided between two classes.

    Args:
        text: what was scored.
        offsets_T: characters of each of its tokens, the end of the text left out.
        scores_T: log P of each scored token under the class, in nats; one more than `offsets_T`
            where the end is scored.
        others_T: the same under the other class.
        class_name: the class.
        against: the other.
        log_odds: what the answer says of the two, in nats.
        scale: that the likelihoods are multiplied by.
        calibration: the class's bias less the other's.
        prior: the logarithm of the ratio of their priors.
        ensemble: whether the answer is that of an ensemble; what remains is its item.
        rounding: log-likelihood ratio by the scores that decided, less that by the tokens.
        truncated: whether the text was cut.
    """
    nats_T = scale * (scores_T.astype(np.float64) - others_T.astype(np.float64))
    count = len(offsets_T)
    pieces = tuple(
        Piece(start, stop, float(nats))
        for (start, stop), nats in zip(offsets_T, nats_T[:count], strict=True)
    )
    end = float(nats_T[count:].sum())
    rounding *= scale
    rest = 0.0
    if ensemble:
        rest = log_odds - float(nats_T.sum()) - calibration - prior - rounding
    return Evidence(
        text, class_name, against, log_odds, pieces, end, calibration, prior, rest, rounding,
        truncated,
    )  # fmt: skip


def word_bounds(text: str) -> list[Bounds]:
    """Give the words of a text, and between them the runs of other visible signs.

    Letters, digits and the marks on them are a word; so is each character of a script that is
    written without blanks and has about a word in each (Chinese, Japanese).
    """
    return list(_bounds(text))


def _bounds(text: str) -> Iterator[Bounds]:
    start, kind = 0, ""
    for place, character in enumerate(text):
        found = _kind_of(text, place, character)
        if found != kind or found == "alone":
            if kind:
                yield start, place
            start, kind = place, found
    if kind:
        yield start, len(text)


def _kind_of(text: str, place: int, character: str) -> str:
    """Say whether a character is of a `word`, stands `alone`, is a `sign`, or is blank."""
    if character.isspace():
        return ""
    if _stands_alone(character):
        return "alone"
    if _is_of_word(character):
        return "word"
    between = 0 < place < len(text) - 1
    if character in _JOINERS and between and _is_of_word(text[place - 1]):
        return "word" if _is_of_word(text[place + 1]) else "sign"
    return "sign"


def _is_of_word(character: str) -> bool:
    return character.isalnum() or character == "_" or unicodedata.category(character)[0] == "M"


def _stands_alone(character: str) -> bool:
    code = ord(character)
    return (
        0x3040 <= code <= 0x30FF  # Hiragana, Katakana
        or 0x3400 <= code <= 0x4DBF
        or 0x4E00 <= code <= 0x9FFF  # Han
        or 0xF900 <= code <= 0xFAFF
        or 0x20000 <= code <= 0x3FFFF
    )


def word_sums(
    text: str, bounds: Sequence[Bounds], offsets_T: Sequence[Bounds], values_TK: FloatArray
) -> FloatArray:
    """Add up numbers of tokens by words, [W, K]; nothing is lost or counted twice.

    A token goes to the word that its first visible character is in, and one of blanks alone to the
    word after it, at the end to the last. A text without a word has one sum.

    Args:
        text: the text.
        bounds: its words, as `word_bounds` gives them.
        offsets_T: characters of each token.
        values_TK: the numbers.
    """
    sums_WK = np.zeros((max(1, len(bounds)), values_TK.shape[1]))
    starts_W = np.array([start for start, _ in bounds], dtype=np.int64)
    visible_T = np.array([_first_visible(text, start) for start, _ in offsets_T], dtype=np.int64)
    words_T = np.searchsorted(starts_W, visible_T, side="right") - 1
    np.add.at(sums_WK, words_T.clip(0), values_TK)
    return sums_WK


def _first_visible(text: str, place: int) -> int:
    while place < len(text) and text[place].isspace():
        place += 1
    return place


def spans_of(words: Sequence[Piece]) -> tuple[Piece, ...]:
    """Give the runs of words that speak most for either class, the most decisive first.

    Those for the class and those against it are each all maximal scoring subsequences (Ruzzo &
    Tompa 1999): a run is as long as it pays, so one that speaks for a class may hold a word or two
    that do not.
    """
    found = []
    for sign in (1.0, -1.0):
        for first, last in _maximal_runs([sign * word.nats for word in words]):
            nats = sum(word.nats for word in words[first : last + 1])
            found.append(Piece(words[first].start, words[last].stop, nats))
    return tuple(sorted(found, key=lambda piece: (-abs(piece.nats), piece.start)))


def strengths_of(words: Sequence[Piece]) -> list[float]:
    """Say how strong the colour of each word is: 1 for what says most, 0 for next to nothing."""
    most = max((abs(word.nats) for word in words), default=0.0) or 1.0
    shares = [abs(word.nats) / most for word in words]
    return [share if share >= _FAINT else 0.0 for share in shares]


def _maximal_runs(values: Sequence[float]) -> list[tuple[int, int]]:
    """Give the first and last position of each maximal scoring subsequence, in order."""
    runs: list[tuple[int, int, float, float]] = []  # first, last, sum before it, sum with it
    total = 0.0
    for place, value in enumerate(values):
        before, total = total, total + value
        if value <= 0:
            continue
        run = (place, place, before, total)
        while True:
            # The nearest run that begins lower, if it does not end higher, is extended by this one.
            at = next((n for n in reversed(range(len(runs))) if runs[n][2] < run[2]), None)
            if at is None or runs[at][3] >= run[3]:
                break
            run = (runs[at][0], run[1], runs[at][2], run[3])
            del runs[at:]
        runs.append(run)
    return [(first, last) for first, last, _, _ in runs]
