"""Evidence adds up, whatever the tokens are; words and phrases against naive ways to find them."""

from __future__ import annotations

from itertools import pairwise

import numpy as np
import pytest

from gencls_core.evidence import Piece, evidence_of, spans_of, words_of

TEXT = "  The striker's goal — won it.\n\nNot the weather "


def pieces_of(text: str, cuts: list[int]) -> list[tuple[int, int]]:
    return list(pairwise([0, *cuts, len(text)]))


@pytest.mark.parametrize("seed", range(20))
def test_words_add_up_to_what_their_tokens_add_up_to(seed):
    rng = np.random.default_rng(seed)
    cuts = sorted(rng.choice(range(1, len(TEXT)), rng.integers(1, 25), replace=False).tolist())
    tokens = [Piece(*bounds, float(rng.normal())) for bounds in pieces_of(TEXT, cuts)]
    words = words_of(TEXT, tokens)
    shown = [TEXT[word.start : word.stop] for word in words]
    assert shown == ["The", "striker's", "goal", "—", "won", "it", ".", "Not", "the", "weather"]
    assert sum(word.nats for word in words) == pytest.approx(sum(t.nats for t in tokens))


def test_a_token_is_of_the_word_that_it_begins():
    text = "ab cd\n"
    tokens = [Piece(0, 1, 1.0), Piece(1, 2, 2.0), Piece(2, 5, 4.0), Piece(5, 6, 8.0)]
    assert words_of(text, tokens) == (Piece(0, 2, 3.0), Piece(3, 5, 12.0))
    # A character of three bytes may be three tokens, all at its place.
    text = "天气 ok"
    tokens = [Piece(0, 1, 1.0), Piece(0, 1, 2.0), Piece(1, 2, 4.0), Piece(2, 5, 8.0)]
    assert words_of(text, tokens) == (Piece(0, 1, 3.0), Piece(1, 2, 4.0), Piece(3, 5, 8.0))
    assert words_of("", []) == ()
    assert words_of("  ", [Piece(0, 2, 1.5)]) == (Piece(0, 2, 1.5),)


def naive_runs(values: list[float]) -> set[tuple[int, int]]:
    """Take the best run, then the best of what is left and right of it (their definition)."""

    def best(first: int, last: int) -> set[tuple[int, int]]:
        found = [
            (sum(values[i : j + 1]), -(j - i), -i, i, j)
            for i in range(first, last + 1)
            for j in range(i, last + 1)
        ]
        if not found or max(found)[0] <= 0:
            return set()
        *_, i, j = max(found)
        return {(i, j)} | best(first, i - 1) | best(j + 1, last)

    return best(0, len(values) - 1)


@pytest.mark.parametrize("seed", range(60))
def test_phrases_are_maximal_scoring_subsequences(seed):
    rng = np.random.default_rng(seed)
    values = rng.normal(size=rng.integers(0, 14)).tolist()
    words = [Piece(2 * n, 2 * n + 1, value) for n, value in enumerate(values)]
    found = spans_of(words)
    runs = {(piece.start // 2, (piece.stop - 1) // 2) for piece in found if piece.nats > 0}
    assert runs == naive_runs(values)
    against = {(piece.start // 2, (piece.stop - 1) // 2) for piece in found if piece.nats < 0}
    assert against == naive_runs([-value for value in values])
    sizes = [abs(piece.nats) for piece in found]
    assert sizes == sorted(sizes, reverse=True)


def test_all_items_add_up_to_the_log_odds():
    rng = np.random.default_rng(1)
    offsets = pieces_of(TEXT, [5, 9, 20])
    scores, others = rng.normal(-4, 2, (2, 5)).astype(np.float32)
    scale, calibration, prior = 0.3, -0.2, 0.7
    log_odds = scale * float(scores.sum(dtype=np.float64) - others.sum(dtype=np.float64))
    log_odds += calibration + prior
    given = {"class_name": "a", "against": "b", "scale": scale, "calibration": calibration}
    found = evidence_of(TEXT, offsets, scores, others, log_odds=log_odds, prior=prior, **given)
    assert found.total == pytest.approx(log_odds, abs=1e-9)
    assert found.end == pytest.approx(scale * float(scores[4] - others[4]))
    assert found.ensemble == 0
    together = evidence_of(
        TEXT, offsets, scores, others, log_odds=2.5, prior=prior, ensemble=True, **given
    )
    assert together.total == pytest.approx(2.5, abs=1e-9)
    assert together.ensemble == pytest.approx(2.5 - log_odds)
    assert together.tokens == found.tokens
