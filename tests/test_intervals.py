"""Intervals of a system's figures: against metrics.evaluate, naive resampling and simulation.

Shapes: S runs, N texts, C classes, R resamples.
"""

from __future__ import annotations

import json
import tracemalloc
from dataclasses import asdict

import numpy as np
import pytest
from scipy.stats import t as student
from sklearn.metrics import f1_score

from gencls_core import intervals
from gencls_core.intervals import estimate_system, with_seeds
from gencls_core.metrics import evaluate, wilson_interval
from gencls_core.outcomes import Outcomes, Sums, ece_if_calibrated, sums_of_texts


def posteriors_of(
    generator: np.random.Generator, runs: int, texts: int, classes: int, sharpness: float = 1.0
) -> tuple[list[np.ndarray], np.ndarray]:
    """Runs with the same difficult texts; labels are drawn from posteriors of sharpness 1."""
    shared_NC = generator.normal(0, 2, (texts, classes))
    label_N = (shared_NC + generator.gumbel(size=shared_NC.shape)).argmax(axis=1)
    found = []
    for _ in range(runs):
        noise = 0 if runs == 1 else generator.normal(0, 0.5, shared_NC.shape)
        logits_NC = sharpness * (shared_NC + noise)
        found.append(logits_NC - np.log(np.exp(logits_NC).sum(axis=1, keepdims=True)))
    return found, label_N


def certain(predicted_N: list[int], classes: int) -> np.ndarray:
    """Posteriors that predict these classes with probability 0.9."""
    rest = 0.1 / (classes - 1)
    return np.log(np.where(np.eye(classes)[predicted_N] > 0, 0.9, rest))


@pytest.mark.parametrize(("runs", "texts", "classes"), [(1, 40, 2), (3, 200, 4), (2, 30, 12)])
def test_figures_are_those_of_evaluate(runs: int, texts: int, classes: int) -> None:
    runs_SNC, label_N = posteriors_of(np.random.default_rng(0), runs, texts, classes)
    label_N[::7] = -1
    found = estimate_system(Outcomes.of(runs_SNC, label_N), resamples=50)
    expected = [evaluate(run_NC, label_N, [str(c) for c in range(classes)]) for run_NC in runs_SNC]
    for name in ("accuracy", "macro_f1", "nll", "ece"):
        estimate = getattr(found, name)
        mean = np.mean([getattr(metrics, name) for metrics in expected])
        assert estimate.value == pytest.approx(mean, rel=1e-12)
        assert estimate.low <= estimate.value <= estimate.high
        assert estimate.num_texts == (label_N >= 0).sum()
        assert estimate.num_seeds == runs
        assert estimate.sources == (("texts",) if runs == 1 else ("texts", "seeds"))
    json.dumps(asdict(found), allow_nan=False)


def test_sums_of_a_resample_are_those_of_its_texts() -> None:
    generator = np.random.default_rng(1)
    runs_SNC, label_N = posteriors_of(generator, 2, 60, 3)
    outcomes = Outcomes.of(runs_SNC, label_N)
    weights_NR = generator.multinomial(60, np.full(60, 1 / 60), size=20).T.astype(float)
    sums_KN = sums_of_texts(outcomes)
    f1_SR, nll_SR, ece_SR = Sums.of(sums_KN @ weights_NR, outcomes).figures(np.zeros(2, dtype=int))
    for r in range(20):
        drawn = np.repeat(np.arange(60), weights_NR[:, r].astype(int))
        for s in range(2):
            expected = evaluate(runs_SNC[s][drawn], label_N[drawn], "abc")
            assert nll_SR[s, r] == pytest.approx(expected.nll)
            assert ece_SR[s, r] == pytest.approx(expected.ece)
            f1 = f1_score(label_N[drawn], runs_SNC[s][drawn].argmax(axis=1), average="macro")
            assert f1_SR[s, r] == pytest.approx(f1)


def test_a_class_that_a_resample_misses_does_not_lower_its_f1() -> None:
    # One text in 50 is of class 2, always right: a third of the resamples lack it.
    label_N = np.array([0] * 25 + [1] * 24 + [2])
    predicted = label_N.tolist()
    predicted[0] = 1
    estimate = estimate_system(Outcomes.of([certain(predicted, 3)], label_N)).macro_f1
    assert estimate.low > 0.9


def test_a_class_that_never_occurs_counts_as_in_evaluate() -> None:
    label_N = np.array([0, 1] * 20)
    run_NC = certain([0, 1] * 19 + [1, 1], 4)
    found = estimate_system(Outcomes.of([run_NC], label_N), resamples=300)
    assert found.macro_f1.value == pytest.approx(evaluate(run_NC, label_N, "abcd").macro_f1)
    assert 0.4 < found.macro_f1.low <= found.macro_f1.high <= 0.5


@pytest.mark.parametrize("runs", [1, 3])
def test_always_right(runs: int) -> None:
    label_N = np.array([0, 1, 2, 1] * 10)
    found = estimate_system(Outcomes.of([certain(label_N.tolist(), 3)] * runs, label_N))
    for estimate in (found.accuracy, found.macro_f1):
        assert (estimate.value, estimate.high) == (1, 1)
        assert 0.8 < estimate.low < 0.97
    wrong = estimate_system(Outcomes.of([certain(((label_N + 1) % 3).tolist(), 3)] * runs, label_N))
    for estimate in (wrong.accuracy, wrong.macro_f1):
        assert (estimate.value, estimate.low) == (0, 0)
        assert 0.03 < estimate.high < 0.2


def test_one_text() -> None:
    found = estimate_system(Outcomes.of([certain([1], 2)], np.array([1])), resamples=100)
    assert found.accuracy.value == 1
    assert (found.accuracy.low, found.accuracy.high) == wilson_interval(1, 1)
    assert found.macro_f1.value == 0.5
    assert (found.ece.low, found.ece.value) == (0, pytest.approx(0.1))
    assert found.nll.low == found.nll.high == pytest.approx(-np.log(0.9))


def test_one_run_has_the_interval_of_its_own_report() -> None:
    (run_NC,), label_N = posteriors_of(np.random.default_rng(2), 1, 100, 3)
    found = estimate_system(Outcomes.of([run_NC], label_N), resamples=10).accuracy
    assert (found.low, found.high) == evaluate(run_NC, label_N, "abc").accuracy_ci95
    assert found.method == "wilson"


def test_same_seed_same_result() -> None:
    outcomes = Outcomes.of(*posteriors_of(np.random.default_rng(3), 2, 50, 3))
    assert estimate_system(outcomes, resamples=99) == estimate_system(outcomes, resamples=99)
    other = estimate_system(outcomes, resamples=99, seed=1)
    assert estimate_system(outcomes, resamples=99).nll != other.nll


def test_blocks_hold_every_text_of_every_resample(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(intervals, "_BLOCK_CELLS", 100)
    blocks = list(intervals._text_weights(30, 10, np.random.default_rng(0)))
    assert [block.shape for block in blocks] == [(30, 3), (30, 3), (30, 3), (30, 1)]
    weights_NR = np.concatenate(blocks, axis=1)
    assert (weights_NR.sum(axis=0) == 30).all()
    assert len({tuple(column) for column in weights_NR.T}) == 10
    assert weights_NR.mean(axis=1).std() > 0


def test_memory_is_bounded() -> None:
    outcomes = Outcomes.of(*posteriors_of(np.random.default_rng(4), 1, 10_000, 4))
    tracemalloc.start()
    estimate_system(outcomes, resamples=2_000)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    # All weights at once would be 160 MB, without intermediates.
    assert peak < 60e6


# --- Coverage


def test_coverage_over_texts() -> None:
    """Four classes, one run; the truth is taken from very many texts."""
    generator, trials = np.random.default_rng(5), 120
    names = ("accuracy", "macro_f1", "nll", "ece")
    (run_NC,), label_N = posteriors_of(generator, 1, 200_000, 4, sharpness=2.0)
    metrics = evaluate(run_NC, label_N, "abcd")
    covered = dict.fromkeys(names, 0)
    for trial in range(trials):
        rows = generator.integers(0, 200_000, 300)
        outcomes = Outcomes.of([run_NC[rows]], label_N[rows])
        found = estimate_system(outcomes, resamples=300, seed=trial)
        for name in names:
            estimate = getattr(found, name)
            covered[name] += estimate.low <= getattr(metrics, name) <= estimate.high
    # 95 % less three standard errors of 120 trials.
    assert min(covered.values()) / trials > 0.89, covered


def test_coverage_over_seeds() -> None:
    """Accuracy of three runs whose seeds matter more than which texts are read."""
    generator, trials = np.random.default_rng(6), 200
    truth = 0.8
    covered = {True: 0, False: 0}
    for trial in range(trials):
        skill_S1 = np.clip(truth + generator.normal(0, 0.06, (3, 1)), 0, 1)
        right_SN = generator.random((3, 400)) < skill_S1
        run_SNC = [certain(np.where(right_N, 0, 1).tolist(), 2) for right_N in right_SN]
        label_N = np.zeros(400, dtype=int)
        for several in (True, False):
            outcomes = Outcomes.of(run_SNC if several else run_SNC[:1], label_N)
            found = estimate_system(outcomes, resamples=400, seed=trial).accuracy
            covered[several] += found.low <= truth <= found.high
    assert covered[True] / trials > 0.9
    # An interval over texts says nothing about other seeds, as its sources say.
    assert covered[False] / trials < 0.75


def test_seeds_alone_give_students_interval() -> None:
    figures_S = np.random.default_rng(7).normal(0.8, 0.05, 12)
    draws_R = with_seeds(np.full(100_000, 0.8), [figures_S], 10_000, np.random.default_rng(0))
    off = np.quantile(draws_R, (0.025, 0.975)) - 0.8
    half = student.ppf(0.975, 11) * figures_S.std(ddof=1) / np.sqrt(12)
    assert off == pytest.approx((-half, half), rel=0.1)


def test_variances_of_texts_and_seeds_add_up() -> None:
    figures_S = np.array([0.7, 0.8, 0.84])
    seeds = figures_S.var(ddof=1) / 3
    texts_R = np.random.default_rng(11).normal(0.78, np.sqrt(3 * seeds), 400_000)
    draws_R = with_seeds(texts_R, [figures_S], 10_000, np.random.default_rng(0))
    freedom = 4**2 / (1**2 / 2 + 3**2 / 9_999)
    assert draws_R.var() == pytest.approx(4 * seeds * freedom / (freedom - 2), rel=0.01)
    assert draws_R.mean() == pytest.approx(texts_R.mean(), abs=1e-3)


def test_seeds_that_do_not_matter_change_nothing() -> None:
    texts_R = np.random.default_rng(8).normal(0.8, 0.01, 10_000)
    assert with_seeds(texts_R, [np.array([0.8])], 100, np.random.default_rng(0)) is texts_R
    same = with_seeds(texts_R, [np.full(3, 0.8)], 10_000, np.random.default_rng(0))
    assert np.quantile(same, (0.025, 0.975)) == pytest.approx(
        np.quantile(texts_R, (0.025, 0.975)), abs=1e-3
    )


def test_ece_of_calibrated_and_of_too_sure_posteriors() -> None:
    generator = np.random.default_rng(9)
    fair, sure = (
        estimate_system(Outcomes.of(*posteriors_of(generator, 1, 500, 3, sharpness))).ece
        for sharpness in (1.0, 3.0)
    )
    assert fair.low == 0 < fair.value <= fair.high < 0.1
    assert 0.05 < sure.low < sure.value <= sure.high
    assert sure.method == "basic"


def test_ece_if_calibrated_against_drawn_labels() -> None:
    generator = np.random.default_rng(10)
    (run_NC,), label_N = posteriors_of(generator, 1, 400, 3)
    outcomes = Outcomes.of([run_NC], label_N)
    drawn = []
    for _ in range(300):
        other_N = (run_NC + generator.gumbel(size=run_NC.shape)).argmax(axis=1)
        drawn.append(evaluate(run_NC, other_N, "abc").ece)
    found_R = ece_if_calibrated(outcomes, 5_000, generator)
    assert found_R.mean() == pytest.approx(np.mean(drawn), rel=0.05)
    assert np.quantile(found_R, 0.975) == pytest.approx(np.quantile(drawn, 0.975), rel=0.1)


# --- What cannot be used


def test_refusals() -> None:
    run_NC, label_N = certain([0, 1, 1], 2), np.array([0, 1, 0])
    with pytest.raises(ValueError, match="no run"):
        Outcomes.of([], label_N)
    with pytest.raises(ValueError, match="do not match"):
        Outcomes.of([run_NC, run_NC[:2]], label_N)
    with pytest.raises(ValueError, match="do not match"):
        Outcomes.of([run_NC], label_N[:2])
    with pytest.raises(ValueError, match="no labelled row"):
        Outcomes.of([run_NC], np.full(3, -1))
    with pytest.raises(ValueError, match="at least one resample"):
        estimate_system(Outcomes.of([run_NC], label_N), resamples=0)
    for wrong in (np.nan, -np.inf):
        broken_NC = run_NC.copy()
        broken_NC[2, 0] = wrong
        with pytest.raises(ValueError, match="not finite"):
            Outcomes.of([broken_NC], label_N)
