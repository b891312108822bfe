"""Decisive phrases: planted ones are found, odd texts lift nothing, figures are the naive ones."""

from __future__ import annotations

import numpy as np
import pytest
from scipy.stats import t as student

from gencls_core.phrases import PhraseCounter, _phrases_of

CLASSES = ("a", "b")


def counted(
    texts: list[tuple[str, dict[str, float]]], fewest: int = 5, characters: int | None = None
) -> PhraseCounter:
    """Let every token be a word, and say what is given of it for `a`, the negative for `b`.

    Texts are cut after so many characters.
    """
    counter = PhraseCounter(CLASSES, longest=3, fewest_texts=fewest)
    for text, _ in texts:
        counter.see(text)
    for text, nats in texts:
        offsets, place = [], 0
        for word in text.split(" "):
            offsets.append((place, place + len(word)))
            place += len(word) + 1
        offsets = [
            (start, stop if characters is None else min(stop, characters))
            for start, stop in offsets
            if characters is None or start < characters
        ]
        for_a = np.array([nats.get(text[slice(*at)].lower(), 0.0) for at in offsets])
        counter.add(text, offsets, np.stack([for_a, -for_a], axis=1))
    return counter


def test_phrases_end_at_signs():
    found = [phrase for phrase, *_ in _phrases_of("Late Goal , late\n goal today", 3)]
    assert found == [
        "late", "late goal", "goal", "late", "late goal", "late goal today", "goal", "goal today",
        "today",
    ]  # fmt: skip
    assert [phrase for phrase, *_ in _phrases_of("天気", 3)] == ["天", "天気", "気"]
    assert list(_phrases_of("", 3)) == []


def test_the_surest_first_and_no_phrase_twice():
    rng = np.random.default_rng(0)
    texts, values = [], []
    for number in range(40):
        values.append(4.0 + rng.normal())
        # Twice in a text it counts once, with the mean.
        text = f"cup final , {number}" + " , cup final" * (number % 2)
        texts.append((text, {"cup": values[-1], "final": 1.0}))
        texts.append((f"vote nr {number}", {"vote": -3.0 + rng.normal()}))
    texts.append(("freak vote", {"freak": 90.0, "vote": 90.0}))
    texts += [(f"odd thing {n}", {"odd": 80.0 if n == 0 else 0.1}) for n in range(5)]
    found = counted(texts).decisive(10)
    assert [phrase.words for phrase in found["a"]] == ["cup final"]
    assert [phrase.words for phrase in found["b"]] == ["vote nr"]
    top = found["a"][0]
    naive = np.array(values) + 1.0
    assert (top.texts, top.nats) == (40, pytest.approx(naive.mean()))
    # All phrases of five texts or more, for two classes: their intervals hold together.
    kept = {"cup", "cup final", "final", "vote", "vote nr", "nr", "odd", "odd thing", "thing"}
    quantile = student.isf(0.025 / (2 * len(kept)), 39)
    reach = quantile * naive.std(ddof=1) / np.sqrt(40)
    assert (top.low, top.high) == pytest.approx((naive.mean() - reach, naive.mean() + reach))
    assert counted(texts).decisive(0) == {"a": [], "b": []}


def test_the_same_text_again_is_no_more_support():
    same = [("Cup  final", {"cup": 4.0})] * 9 + [("a cup", {"cup": 4.0})]
    assert counted(same, fewest=3).decisive(5) == {"a": [], "b": []}
    assert counted([], fewest=3).decisive(5) == {"a": [], "b": []}


def test_what_was_cut_off_is_not_counted():
    """It was not scored: that is no 0 nats, and the text does not hold the phrase."""
    rng = np.random.default_rng(2)
    values = rng.normal(2.0, 0.3, 8)
    scored = [(f"goal nr {number}", {"goal": value}) for number, value in enumerate(values)]
    behind = [(f"text nr {number} , a goal", {"goal": 9.0}) for number in range(8)]
    halved = [(f"a longer goal , {number}", {"go": 9.0}) for number in range(3)]
    texts = scored + behind + halved
    [found] = counted(texts, characters=len("a longer go")).decisive(10)["a"]
    assert (found.words, found.texts, found.nats) == ("goal", 8, pytest.approx(values.mean()))
    # As if nothing had stood there.
    [alone] = counted(scored + [(text[:11], {}) for text, _ in behind + halved]).decisive(10)["a"]
    assert found == alone
    rare = [("a cup", {"cup": 9.0}), ("text , a cup", {"cup": 9.0}), ("text", {})]
    with np.errstate(all="raise"):
        assert counted(rare, fewest=2, characters=5).decisive(10) == {"a": [], "b": []}


def test_few_texts_take_much_to_be_shown():
    """With five texts and thousands of phrases, some are the same in all of them by chance."""
    rng = np.random.default_rng(1)
    words = [f"w{number}" for number in range(400)]
    texts = [
        (" , ".join(rng.permutation(words)), dict(zip(words, rng.normal(size=400), strict=True)))
        for _ in range(5)
    ]
    assert counted(texts).decisive(50) == {"a": [], "b": []}
