"""Evidence adds up, whatever the tokens are; words and phrases against naive ways to find them."""

from __future__ import annotations

from itertools import pairwise

import numpy as np
import pyarrow as pa
import pytest

from gencls_core.calibration import Calibration, Pool
from gencls_core.evidence import Evidence, Piece, evidence_of, spans_of, strengths_of, word_bounds
from gencls_core.explanations import laid_out
from gencls_core.posterior import posterior_of
from gencls_core.score_matrix import LikelihoodMatrix
from gencls_core.token_offsets import scored_of

TEXT = "  The striker's goal — won it.\n\nNot the weather "


def pieces_of(text: str, cuts: list[int]) -> list[tuple[int, int]]:
    return list(pairwise([0, *cuts, len(text)]))


def words_of(text: str, tokens: list[Piece]) -> tuple[Piece, ...]:
    rest = ("log_odds", "end", "calibration", "prior", "ensemble", "rounding")
    nats = dict.fromkeys(rest, 0.0)
    return Evidence(text, "a", "b", tokens=tuple(tokens), truncated=False, **nats).words


@pytest.mark.parametrize("seed", range(30))
def test_each_token_goes_to_the_word_that_it_begins(seed):
    rng = np.random.default_rng(seed)
    cuts = sorted(rng.choice(range(1, len(TEXT)), rng.integers(1, 45), replace=False).tolist())
    tokens = [Piece(*bounds, float(rng.normal())) for bounds in pieces_of(TEXT, cuts)]
    words = words_of(TEXT, tokens)
    shown = [TEXT[word.start : word.stop] for word in words]
    assert shown == ["The", "striker's", "goal", "—", "won", "it", ".", "Not", "the", "weather"]
    naive = [0.0] * len(words)
    for token in tokens:
        # The first word that ends after the token's first visible character, or the last.
        visible = [at for at in range(token.start, len(TEXT)) if not TEXT[at].isspace()]
        after = [n for n, word in enumerate(words) if visible and word.stop > visible[0]]
        naive[after[0] if after else -1] += token.nats
    assert [word.nats for word in words] == pytest.approx(naive)


def test_tokens_that_share_a_character_and_texts_without_words():
    # A character of three bytes may be three tokens, all at its place.
    text = "天气 ok"
    tokens = [Piece(0, 1, 1.0), Piece(0, 1, 2.0), Piece(1, 2, 4.0), Piece(2, 5, 8.0)]
    assert words_of(text, tokens) == (Piece(0, 1, 3.0), Piece(1, 2, 4.0), Piece(3, 5, 8.0))
    assert words_of("", []) == ()
    assert words_of("  ", [Piece(0, 2, 1.5)]) == (Piece(0, 2, 1.5),)
    tokens = [Piece(0, 5, 1.0), Piece(5, 7, 10.0), Piece(7, 8, 100.0), Piece(8, 13, 1000.0)]
    assert [word.nats for word in words_of("alpha\n\n  beta", tokens)] == [1.0, 1110.0]


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("हिन्दी भाषा", ["हिन्दी", "भाषा"]),
        ("한국어 문장", ["한국어", "문장"]),
        ("مُحَمَّد قال", ["مُحَمَّد", "قال"]),
        ("cafe\u0301s!", ["cafe\u0301s", "!"]),
        ("天気がいい", list("天気がいい")),
        ("well-known 'quoted' it’s", ["well-known", "'", "quoted", "'", "it’s"]),
        ("a_b 3,5 - x", ["a_b", "3", ",", "5", "-", "x"]),
        ("<b>…</b>", ["<", "b", ">…</", "b", ">"]),
    ],
)
def test_words_of_many_scripts(text, words):
    assert [text[start:stop] for start, stop in word_bounds(text)] == words


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


def test_colours_are_as_strong_as_what_a_word_says():
    words = [Piece(at, at + 1, nats) for at, nats in enumerate((-4.0, 1.0, 0.19, 0.0))]
    assert strengths_of(words) == [1.0, 0.25, 0.0, 0.0]
    assert strengths_of(words[3:]) == [0.0]
    assert strengths_of([]) == []


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


POOL = Pool(
    alone=Calibration(0.4, {"a": 0.3, "b": -0.3, "c": 0.0}),
    other=Calibration(0.0, {"a": 0.0, "b": 0.2, "c": -0.2}, weight=1.1),
    both=Calibration(0.3, {"a": 0.0, "b": 0.0, "c": 0.0}, weight=0.7),
    shares=(0.5, 0.2, 0.3),
)


@pytest.mark.parametrize("answer", [None, POOL.alone, POOL])
def test_the_rule_of_a_run_is_taken_apart(answer):
    """Each item against the formula, by a posterior that was made without it."""
    rng = np.random.default_rng(3)
    scores = {name: rng.normal(-3, 1, 5).astype(np.float32) for name in "abc"}
    # The scores that decided were made on another machine, which rounded otherwise.
    sums_C = [float(scores[name].sum(dtype=np.float64)) for name in "abc"]
    sums_C = [nats + rounded for nats, rounded in zip(sums_C, (0.1, -0.2, 0.3), strict=True)]
    beside_C = rng.normal(size=3)
    matrix = LikelihoodMatrix(
        example_ids=pa.chunked_array([["x"]], pa.string()),
        label_codes=np.array([-1]), classes=("a", "b", "c"), scores=np.array([sums_C]),
        num_tokens=np.array([5]), truncated=np.array([True]), num_windows=np.array([1]),
        loss_scores=None, quantity="log_likelihood", beside=beside_C[None],
    )  # fmt: skip
    prior = {"a": 0.2, "b": 0.7, "c": 0.1}
    tokens = ([1, 2, 3, 4, 0], scores["c"], scores["b"])
    said = dict(zip("abc", posterior_of(matrix, prior, answer)[0].tolist(), strict=True))
    found = laid_out(
        TEXT, pieces_of(TEXT, [5, 9, 20]), tokens, ("c", "b"), said, prior, answer, rounding=0.5
    )
    log_prior_C = np.log([0.2, 0.7, 0.1])

    def posterior(member) -> np.ndarray:
        logits_C = member.scale * np.array(sums_C) + member.weight * beside_C + log_prior_C
        logits_C = logits_C + [member.biases[name] for name in "abc"]
        return np.exp(logits_C - logits_C.max()) / np.exp(logits_C - logits_C.max()).sum()

    if isinstance(answer, Pool):
        together = zip(answer.members, answer.shares, strict=True)
        decided_C = sum(share * posterior(member) for member, share in together)
        used = answer.alone
    else:
        used = answer or Calibration(1.0, dict.fromkeys("abc", 0.0))
        decided_C = posterior(used)
    assert found.log_odds == pytest.approx(np.log(decided_C[2] / decided_C[1]))
    assert found.total == pytest.approx(found.log_odds, abs=1e-9)
    assert found.prior == pytest.approx(np.log(1 / 7))
    assert found.rounding == pytest.approx(used.scale * 0.5)
    assert found.calibration == pytest.approx(used.biases["c"] - used.biases["b"])
    expected = used.scale * (scores["c"].astype(float) - scores["b"].astype(float))
    assert [token.nats for token in found.tokens] == pytest.approx(expected[:4].tolist())
    assert found.end == pytest.approx(expected[4])
    alone = found.total - found.ensemble
    assert alone == pytest.approx(np.log(posterior(used)[2] / posterior(used)[1]))


def test_which_tokens_were_scored():
    assert scored_of([1, 2, 3], [1, 2, 3, 0]) == 3  # and the end
    assert scored_of([1, 2, 3], [1, 2, 3]) == 3
    assert scored_of([1, 2, 3], [1, 2]) == 2  # cut
    assert scored_of([], [0]) == 0
    assert scored_of([1, 2, 3], [1, 9, 3]) is None
    assert scored_of([1, 2, 3], [1, 2, 0]) is None
    assert scored_of([1, 2], [1, 2, 3, 0]) is None
