"""Differences between systems and their tests: against statsmodels, enumeration and simulation.

Shapes: S runs, N texts.
"""

from __future__ import annotations

import dataclasses
import itertools
import math

import numpy as np
import pytest
from statsmodels.stats.contingency_tables import mcnemar as statsmodels_mcnemar
from statsmodels.stats.multitest import multipletests

from gencls_core.intervals import resampled_means
from gencls_core.significance import (
    MID_P_BELOW,
    compare_pairs,
    format_p,
    holm,
    mcnemar,
    paired_difference,
)


def pair_of(both: int, only_a: int, only_b: int, neither: int) -> tuple[np.ndarray, np.ndarray]:
    """Two systems that are right on so many texts."""
    counts = (both, only_a, only_b, neither)
    return np.repeat([True, True, False, False], counts), np.repeat(
        [True, False, True, False], counts
    )


def runs_over(
    generator: np.random.Generator, runs: int, texts_N: np.ndarray, seed_sd: float, shift: float = 0
) -> np.ndarray:
    """Runs whose skill differs by seed, on texts of different difficulty: [S, N]."""
    skill_S1 = 1.5 + shift + generator.normal(0, seed_sd, (runs, 1))
    return skill_S1 + texts_N + generator.normal(0, 1, (runs, len(texts_N))) > 0


# --- McNemar's test


@pytest.mark.parametrize(
    ("only_a", "only_b"),
    [(0, 0), (1, 0), (3, 9), (9, 3), (7, 7), (40, 61), (300, 200), (5000, 4800)],
)
def test_mcnemar_against_statsmodels(only_a: int, only_b: int) -> None:
    found = mcnemar(*pair_of(50, only_a, only_b, 20))
    expected = statsmodels_mcnemar([[50, only_a], [only_b, 20]], exact=True).pvalue
    assert found.exact_p == pytest.approx(expected, rel=1e-10)
    assert (found.only_a, found.only_b) == (only_a, only_b)
    assert found.num_texts == 70 + only_a + only_b


@pytest.mark.parametrize("count", range(1, 11))
def test_mcnemar_against_enumeration(count: int) -> None:
    # Which system has each of the texts: all 2^n equally likely possibilities.
    outcomes = [sum(signs) for signs in itertools.product((0, 1), repeat=count)]
    off = np.abs(np.array(outcomes) - count / 2)
    for only_a in range(count + 1):
        here = abs(only_a - count / 2)
        found = mcnemar(*pair_of(3, only_a, count - only_a, 2))
        assert found.exact_p == pytest.approx((off >= here).mean())
        assert found.mid_p == pytest.approx((off > here).mean() + (off == here).mean() / 2)


def test_mid_p_of_the_paper() -> None:
    # Fagerland, Lydersen & Laake 2013, table 1: 1 and 7 children; mid-p 0.039, exact 0.070.
    found = mcnemar(*pair_of(1, 1, 7, 12))
    assert found.mid_p == pytest.approx(10 / 256)
    assert found.exact_p == pytest.approx(18 / 256)


def test_mid_p_is_for_small_counts() -> None:
    below, from_there = mcnemar(*pair_of(9, 20, 4, 9)), mcnemar(*pair_of(9, 20, 5, 9))
    assert below.only_a + below.only_b == MID_P_BELOW - 1
    assert (below.method, below.p) == ("mid-p", below.mid_p)
    assert (from_there.method, from_there.p) == ("exact", from_there.exact_p)


def test_mcnemar_of_systems_that_agree() -> None:
    found = mcnemar(*pair_of(5, 0, 0, 3))
    assert (found.exact_p, found.mid_p, found.p) == (1, 1, 1)


# --- Holm's correction


@pytest.mark.parametrize("count", [1, 2, 3, 10, 45])
def test_holm_against_statsmodels(count: int) -> None:
    generator = np.random.default_rng(count)
    p_values = list(generator.random(count) ** 4)
    p_values[-1] = p_values[0]
    expected = multipletests(p_values, method="holm")[1]
    np.testing.assert_allclose(holm(p_values), expected, rtol=1e-12)


def test_holm_by_hand() -> None:
    assert holm([0.04, 0.01, 0.03, 0.9]) == pytest.approx([0.09, 0.04, 0.09, 0.9])
    assert holm([]) == []


@pytest.mark.parametrize("wrong", [-0.1, 1.1, math.nan])
def test_what_is_no_p_value(wrong: float) -> None:
    with pytest.raises(ValueError, match="not a p-value"):
        holm([0.5, wrong])
    with pytest.raises(ValueError, match="not a p-value"):
        format_p(wrong)


# --- The difference of accuracies


def test_resampled_means_against_enumeration() -> None:
    texts = [-1, 0, 2, 2]
    exact = np.array([sum(drawn) / 4 for drawn in itertools.product(texts, repeat=4)])
    means = resampled_means(
        np.array([-1, 0, 2]), np.array([1, 1, 2]), 40_000, np.random.default_rng(0)
    )
    for value in np.unique(exact):
        share = (exact == value).mean()
        error = math.sqrt(share * (1 - share) / len(means))
        assert (means == value).mean() == pytest.approx(share, abs=4.5 * error)
    assert set(means) <= set(exact)


def test_difference_by_hand() -> None:
    a = np.array([[1, 1, 1, 0], [1, 1, 0, 0]], dtype=bool)
    b = np.array([[1, 0, 0, 0]], dtype=bool)
    found = paired_difference(a, b)
    assert found.difference == 5 / 8 - 1 / 4
    assert (found.num_texts, found.num_seeds, found.sources) == (4, (2, 1), ("texts", "seeds"))
    assert paired_difference(a[:1], b).sources == ("texts",)
    other = paired_difference(b, a)
    assert other.difference == -found.difference


@pytest.mark.parametrize("num_texts", [1, 10, 1000])
@pytest.mark.parametrize("runs", [1, 3])
def test_identical_systems(num_texts: int, runs: int) -> None:
    correct = np.random.default_rng(0).random((runs, num_texts)) < 0.8
    found = paired_difference(correct, correct)
    assert (found.difference, found.p) == (0, 1)
    assert found.low < 0 < found.high


def test_systems_that_are_always_right_may_still_differ() -> None:
    found = paired_difference(np.ones((1, 100), dtype=bool), np.ones((1, 100), dtype=bool))
    # The rule of three: what happened in none of n texts may happen in 3 of n.
    assert (found.low, found.high) == pytest.approx((-0.03, 0.03), abs=0.01)


def test_one_text_shows_nothing() -> None:
    found = paired_difference(np.array([[True]]), np.array([[False]]))
    assert found.difference == 1
    assert found.low <= 0 <= found.high
    assert found.p > 0.05


def test_p_is_never_0() -> None:
    found = paired_difference(*(row[None] for row in pair_of(0, 500, 0, 0)), resamples=999)
    assert found.p == 2 / 1000
    assert found.high == 1


@pytest.mark.parametrize("only_a", range(3, 12))
def test_few_texts_count_about_as_in_the_exact_test(only_a: int) -> None:
    a, b = pair_of(200, only_a, 1, 30)
    bootstrap = paired_difference(a[None], b[None]).p
    exact = mcnemar(a, b)
    assert exact.mid_p * 0.8 < bootstrap < exact.exact_p * 1.6


def test_interval_is_that_of_bonett_and_price_for_many_texts() -> None:
    a, b = pair_of(2000, 300, 200, 500)
    found = paired_difference(a[None], b[None])
    part_a, part_b = 301 / 3002, 201 / 3002
    half = 1.96 * math.sqrt((part_a + part_b - (part_a - part_b) ** 2) / 3002)
    expected = part_a - part_b - half, part_a - part_b + half
    assert (found.low, found.high) == pytest.approx(expected, abs=0.001)


def test_same_seed_same_result() -> None:
    generator = np.random.default_rng(0)
    a, b = generator.random((2, 3, 50)) < 0.7
    assert paired_difference(a, b, seed=7) == paired_difference(a, b, seed=7)
    assert paired_difference(a, b, seed=7) != paired_difference(a, b, seed=8)


@pytest.mark.parametrize(("only_a", "only_b"), [(0.1, 0.1), (0.15, 0.05), (0.02, 0.02)])
def test_coverage_over_texts(only_a: float, only_b: float) -> None:
    generator, trials = np.random.default_rng(1), 600
    covered = 0
    for trial in range(trials):
        drawn_N = generator.random(200)
        a, b = drawn_N > only_b, (drawn_N <= only_b) | (drawn_N > only_b + only_a)
        found = paired_difference(a[None], b[None], resamples=800, seed=trial)
        covered += found.low <= only_a - only_b <= found.high
    assert covered / trials >= 0.93


@pytest.mark.parametrize(("runs", "seed_sd"), [(2, 0.3), (3, 0.0), (3, 0.6), (5, 0.15)])
def test_false_positives_over_seeds(runs: int, seed_sd: float) -> None:
    """Systems that are equally good by construction, whatever their seeds and texts."""
    generator, trials = np.random.default_rng(2), 250
    wrong = wrong_without_seeds = 0
    for trial in range(trials):
        texts_N = generator.normal(0, 1, 200)
        a, b = (runs_over(generator, runs, texts_N, seed_sd) for _ in range(2))
        found = paired_difference(a, b, resamples=800, seed=trial)
        wrong += found.p < 0.05
        assert (found.p < 0.05) == (not found.low <= 0 <= found.high) or 0.03 < found.p < 0.06
        wrong_without_seeds += mcnemar(a[0], b[0]).p < 0.05
    # 5 % and three standard errors of 250 trials.
    assert wrong / trials <= 0.09
    if seed_sd >= 0.3:
        assert wrong_without_seeds / trials > 0.3


def test_power() -> None:
    generator, trials = np.random.default_rng(3), 100
    single = several = 0
    for trial in range(trials):
        texts_N = generator.normal(0, 1, 300)
        a, b = (runs_over(generator, 5, texts_N, 0.05, shift) for shift in (0.5, 0))
        single += paired_difference(a[:1], b[:1], resamples=800, seed=trial).p < 0.05
        several += paired_difference(a, b, resamples=800, seed=trial).p < 0.05
    assert single / trials > 0.7
    assert several / trials > 0.95


def test_seeds_that_share_their_train_texts_are_paired() -> None:
    generator = np.random.default_rng(4)
    texts_N = generator.normal(0, 1, 2000)
    skill_S1 = np.array([[-0.6], [0.0], [0.7], [0.2]])
    a, b = (
        skill_S1 + shift + texts_N + generator.normal(0, 1, (4, 2000)) > 0 for shift in (1.2, 1)
    )
    apart, together = (paired_difference(a, b, paired_seeds=paired) for paired in (False, True))
    assert apart.difference == together.difference
    assert together.high - together.low < (apart.high - apart.low) / 2
    assert apart.p > 0.05 > together.p


@pytest.mark.parametrize(
    ("shape_a", "shape_b"), [((1, 3), (1, 4)), ((1, 0), (1, 0)), ((0, 3), (1, 3)), ((3,), (3,))]
)
def test_what_cannot_be_compared(shape_a: tuple[int, ...], shape_b: tuple[int, ...]) -> None:
    with pytest.raises(ValueError, match="not runs over the same texts"):
        paired_difference(np.ones(shape_a, dtype=bool), np.ones(shape_b, dtype=bool))


def test_seeds_that_cannot_be_paired() -> None:
    a, b = np.ones((2, 3), dtype=bool), np.ones((3, 3), dtype=bool)
    with pytest.raises(ValueError, match="2 and 3 runs cannot be paired"):
        paired_difference(a, b, paired_seeds=True)
    with pytest.raises(ValueError, match="at least one resample"):
        paired_difference(a, b, resamples=0)


# --- All pairs


def test_all_pairs_of_single_runs() -> None:
    generator = np.random.default_rng(5)
    skills = {"x": 0.9, "y": 0.7, "z": 0.72}
    correct = {name: generator.random((1, 300)) < skill for name, skill in skills.items()}
    pairs = compare_pairs(correct)
    assert [(pair.a, pair.b) for pair in pairs] == [("x", "y"), ("x", "z"), ("y", "z")]
    assert {pair.holm_of for pair in pairs} == {"mcnemar"}
    tested = [mcnemar(correct[pair.a][0], correct[pair.b][0]) for pair in pairs]
    assert [pair.mcnemar for pair in pairs] == tested
    expected = multipletests([test.p for test in tested], method="holm")[1]
    assert [pair.holm_p for pair in pairs] == pytest.approx(list(expected))
    assert pairs[0].holm_p < 0.001
    assert pairs[2].holm_p > 0.05


def test_all_pairs_of_several_runs() -> None:
    generator = np.random.default_rng(6)
    correct = {
        "a": generator.random((3, 100)) < 0.9,
        "b": generator.random((3, 100)) < 0.5,
        "c": generator.random((1, 100)) < 0.5,
    }
    pairs = compare_pairs(correct, paired_seeds=True)
    assert {pair.holm_of for pair in pairs} == {"bootstrap"}
    expected = multipletests([pair.difference.p for pair in pairs], method="holm")[1]
    assert [pair.holm_p for pair in pairs] == pytest.approx(list(expected))
    assert [pair.difference.paired_seeds for pair in pairs] == [True, False, False]
    assert pairs[0].mcnemar == mcnemar(correct["a"][0], correct["b"][0])
    assert pairs[1].difference == paired_difference(correct["a"], correct["c"])
    assert compare_pairs({"a": correct["a"]}) == ()


def test_results_are_frozen() -> None:
    (pair,) = compare_pairs({name: np.array([[True, False]]) for name in "ab"})
    with pytest.raises(dataclasses.FrozenInstanceError):
        pair.holm_p = 0.0  # type: ignore[misc]


# --- Writing it down


@pytest.mark.parametrize(
    ("p", "text"),
    [
        (0.0, "p < 0.0001"),
        (0.00009999, "p < 0.0001"),
        (0.0001, "p = 0.00010"),
        (0.0012345, "p = 0.0012"),
        (0.032, "p = 0.032"),
        (0.05, "p = 0.050"),
        (0.04996, "p = 0.04996"),
        (0.2, "p = 0.20"),
        (0.99, "p = 0.99"),
        (0.996, "p > 0.99"),
        (1.0, "p = 1"),
    ],
)
def test_format_p(p: float, text: str) -> None:
    assert format_p(p) == text


def test_format_p_stays_on_its_side_of_five_percent() -> None:
    for p in np.linspace(0.049, 0.051, 501):
        shown = float(format_p(p).removeprefix("p = "))
        assert (shown < 0.05) == (p < 0.05)
