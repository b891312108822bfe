"""Decisive phrases: planted ones are found, odd texts lift nothing, figures are the naive ones."""

from __future__ import annotations

import numpy as np
import pytest
from scipy.stats import t as student

from gencls_core.phrases import PhraseCounter, phrases_in

CLASSES = ("a", "b")


def spoken(text: str, nats: dict[str, float], longest: int = 3):
    """Let every token be a word, and say what is given of it for `a`."""
    offsets, place = [], 0
    for word in text.split(" "):
        offsets.append((place, place + len(word)))
        place += len(word) + 1
    for_a = np.array([nats.get(text[slice(*at)].lower(), 0.0) for at in offsets])
    return phrases_in(text, offsets, np.stack([for_a, -for_a], axis=1), longest)


def test_phrases_end_at_signs_and_count_once_a_text():
    found = spoken("Late Goal , late goal today", {"goal": 2.0, "late": 1.0, "today": 0.5})
    assert set(found) == {
        "late", "goal", "late goal", "today", "goal today", "late goal today",
    }  # fmt: skip
    assert found["late goal"].tolist() == [3.0, -3.0]
    assert found["goal"].tolist() == [2.0, -2.0]  # the mean of two
    assert spoken("", {}) == {}


def test_the_surest_first_and_no_phrase_twice():
    counter = PhraseCounter(CLASSES)
    rng = np.random.default_rng(0)
    values = []
    for number in range(40):
        values.append(4.0 + rng.normal())
        counter.add(spoken(f"cup final {number}", {"cup": values[-1], "final": 1.0}))
        counter.add(spoken(f"a vote {number}", {"vote": -3.0 + rng.normal()}))
    counter.add(spoken("freak vote", {"freak": 90.0, "vote": 90.0}))
    for number in range(5):
        counter.add(spoken(f"odd {number}", {"odd": 80.0 if number == 0 else 0.1}))
    found = counter.decisive(10, 5)
    assert [phrase.words for phrase in found["a"]] == ["cup final"]
    assert found["b"][0].words in ("a vote", "vote")
    top = found["a"][0]
    naive = np.array(values) + 1.0
    reach = student.ppf(0.975, 39) * naive.std(ddof=1) / np.sqrt(40)
    assert (top.texts, top.nats) == (40, pytest.approx(naive.mean()))
    assert (top.low, top.high) == pytest.approx((naive.mean() - reach, naive.mean() + reach))
    assert counter.decisive(0, 5) == {"a": [], "b": []}
