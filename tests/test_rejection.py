"""Texts that are not answered: curves and thresholds by naive loops, promises by simulation."""

from __future__ import annotations

import json
import math

import numpy as np
import pyarrow.parquet as pq
import pytest
from cluster_fixtures import gencls, succeed
from report_fixtures import make_run
from scipy.special import expit
from sklearn.metrics import roc_auc_score

from gencls_core.errors import StoreError, UsageError
from gencls_core.query import run_query
from gencls_core.rejection import (
    area_above,
    log_odds,
    selective,
    threshold_for_coverage,
    threshold_for_error_rate,
)
from gencls_core.report.build import build_report
from gencls_core.report.inference import infer
from gencls_core.report.predictions import predict
from gencls_core.report.rejections import Rejecter, Wanted


def test_the_curve_is_that_of_a_naive_loop():
    rng = np.random.default_rng(0)
    confidence_N = rng.permutation(60) / 7.0
    correct_N = rng.random(60) < expit(confidence_N - 4)
    found = selective(confidence_N, correct_N)
    risks = []
    for answered in range(1, 61):
        surest = sorted(range(60), key=lambda row: -confidence_N[row])[:answered]
        risks.append(sum(not correct_N[row] for row in surest) / answered)
    assert [point.risk for point in found.curve] == pytest.approx(risks)
    assert [point.coverage for point in found.curve] == pytest.approx(np.arange(1, 61) / 60)
    assert found.aurc == pytest.approx(np.mean(risks))
    assert found.auroc == pytest.approx(roc_auc_score(correct_N, confidence_N))
    perfect = selective(correct_N.astype(float), correct_N)
    assert perfect.aurc == pytest.approx(perfect.aurc_best)
    assert perfect.aurc_best == pytest.approx(found.aurc_best)


def test_texts_of_equal_confidence_share_their_mistakes():
    correct_N = np.array([True, False, False, True, True])
    confidence_N = np.array([1.0, 1.0, 0.0, 0.0, 2.0])
    found = selective(confidence_N, correct_N)
    assert [point.risk for point in found.curve] == pytest.approx([0, 0.25, 1 / 3, 3 / 8, 2 / 5])
    assert found == selective(confidence_N[::-1], correct_N[::-1])
    assert found.auroc == pytest.approx(roc_auc_score(correct_N, confidence_N))
    # Thousands of texts are no thousands of points.
    many = selective(np.arange(5000.0), np.arange(5000) % 9 > 0)
    assert len(many.curve) == 101
    assert many.curve[-1].coverage == 1.0
    assert area_above(np.ones(3), np.empty(0)) is None


def test_log_odds_tell_texts_apart_whose_probability_is_one():
    log_posterior_NC = np.log([[0.7, 0.2, 0.1], [0.1, 0.1, 0.8]])
    expected = [math.log(0.7 / 0.3), math.log(0.8 / 0.2)]
    np.testing.assert_allclose(log_odds(log_posterior_NC), expected)
    sure = log_odds(np.array([[0.0, -800.0], [0.0, -900.0]]))
    assert sure.tolist() == [800, 900]


def test_the_coverage_of_further_texts_is_the_wanted_one_in_the_mean():
    rng = np.random.default_rng(1)
    for count, coverage in ((19, 0.9), (19, 0.5), (199, 0.7)):
        found = []
        for _ in range(2000):
            held_out_M = rng.normal(size=count)
            chosen = threshold_for_coverage(held_out_M, held_out_M > 0, coverage)
            found.append(expit(-1.702 * chosen.value))  # a logistic curve, close to the normal one
            low, high = chosen.coverage_ci95
        assert np.mean(found) == pytest.approx(coverage, abs=0.015)
        assert np.mean((np.array(found) > low) & (np.array(found) < high)) > 0.93
    everything = threshold_for_coverage(held_out_M, held_out_M > 0, 1.0)
    assert (everything.value, everything.answered) == (-math.inf, 199)


def test_a_promised_error_rate_is_kept():
    # P(wrong | confidence) = 0.3 · (1 - confidence), confidence uniform: risk above t is
    # 0.15 · (1 - t).
    rng = np.random.default_rng(2)
    broken, promised = 0, 0
    for _ in range(1000):
        confidence_M = rng.random(400)
        correct_M = rng.random(400) >= 0.3 * (1 - confidence_M)
        found = threshold_for_error_rate(confidence_M, correct_M, 0.1)
        if found.promised:
            promised += 1
            assert found.bound <= 0.1
            broken += 0.15 * (1 - max(found.value, 0.0)) > 0.1
    assert promised > 400
    assert broken <= 0.05 * 1000


def test_too_few_texts_promise_nothing():
    confidence_M = np.arange(8.0)
    found = threshold_for_error_rate(confidence_M, confidence_M != 0, 0.05)
    assert found.promised is False
    assert found.needed > 8
    assert found.bound > 0.05
    assert (found.value, found.answered, found.mistakes) == (0.0, 7, 0)
    # So many are enough, all answered rightly.
    count = 2 * found.needed
    many = threshold_for_error_rate(np.arange(float(count)), np.ones(count, dtype=bool), 0.05)
    assert many.promised
    assert many.value == -math.inf
    assert threshold_for_error_rate(confidence_M, confidence_M != 7, 0.05) is None


@pytest.mark.parametrize(
    ("given", "words"),
    [
        ((None, 0.9, None), ["--coverage", "no --reject"]),
        ((None, None, 0.1), ["--error-rate", "no --reject"]),
        (("posterior", 0.9, 0.1), ["--coverage 0.9", "--error-rate 0.1", "one of the two"]),
        (("posterior", 0.0, None), ["--coverage 0", "above 0"]),
        (("posterior", 1.5, None), ["--coverage 1.5"]),
        (("posterior", math.nan, None), ["--coverage nan"]),
        (("posterior", None, 1.0), ["--error-rate 1", "0.05"]),
        (("magic", None, None), ["magic", "posterior"]),
    ],
)
def test_what_may_not_be_asked_for(given, words):
    with pytest.raises(UsageError) as error:
        Wanted.of(*given)
    for word in words:
        assert word in str(error.value)


def test_what_may_be_asked_for():
    assert Wanted.of(None, None, None) is None
    assert Wanted.of("posterior", None, None).coverage == 0.9
    assert Wanted.of("posterior", 1.0, None).coverage == 1.0


def test_a_report_that_leaves_texts_without_an_answer(tmp_path):
    run = make_run(tmp_path / "run", unlabelled=6)
    said = " ".join(
        succeed("report", str(run.path), "--reject", "posterior", "--coverage", "0.8").split()
    )
    report = json.loads((run.report_path / "report.json").read_text())
    made, found = report["rejection"], infer(run)
    assert made["method"] == "posterior"
    assert made["wanted_coverage"] == 0.8
    confidence_N = log_odds(found.answer)
    answered_N = confidence_N > made["threshold"]
    assert made["answered"] == answered_N.sum()
    assert made["coverage"] == pytest.approx(answered_N.mean())
    judged_N = answered_N & (found.matrix.label_codes >= 0)
    wrong_N = found.answer.argmax(axis=1) != found.matrix.label_codes
    assert made["risk"] == pytest.approx(wrong_N[judged_N].mean())
    assert made["risk"] < made["risk_of_all"]
    low, high = made["expected_coverage_ci95"]
    assert low < 0.8 < high
    assert made["held_out"] == 90
    assert report["selective"]["curve"][-1]["risk"] == pytest.approx(made["risk_of_all"])
    assert "With --reject posterior" in said
    for page in ("report.md", "report.html"):
        text = (run.report_path / page).read_text()
        assert "With --reject posterior" in text
        assert "risk-coverage curve" in text
    rows = pq.read_table(run.predictions_path).to_pylist()
    for row, answered in zip(rows, answered_N, strict=True):
        assert row["reason"] == (None if answered else "posterior")
        for column in ("answer", "predicted", "calibrated_predicted"):
            assert (row[column] is not None) == answered
        assert row["probability"] is not None
    # What was not answered is no mistake.
    errors = run_query(run, "select reason from errors")
    assert set(errors["reason"].to_pylist()) == {None}
    # Without the option every text is answered; the curve stays.
    succeed("report", str(run.path))
    report = json.loads((run.report_path / "report.json").read_text())
    assert report["rejection"] is None
    assert report["selective"]["aurc"] >= report["selective"]["aurc_best"]
    assert pq.read_table(run.predictions_path)["reason"].null_count == len(rows)


def test_an_error_rate_that_cannot_be_promised_is_not(tmp_path):
    run = make_run(tmp_path / "run", validation_rows=12)
    said = succeed("report", str(run.path), "--reject", "posterior", "--error-rate", "0.05")
    assert "cannot be promised" in " ".join(said.split())
    made = json.loads((run.report_path / "report.json").read_text())["rejection"]
    assert made["promised"] is False
    assert made["held_out_needed"] > 12


def test_test_labels_have_no_part_in_the_threshold(tmp_path):
    run = make_run(tmp_path / "run")
    inference = infer(run)
    wanted = Wanted.of("posterior", None, 0.2)
    before = Rejecter.of(run, inference, wanted)
    inference.matrix.label_codes[:] = 0
    assert Rejecter.of(run, inference, wanted) == before


def test_predictions_by_range_are_the_same(tmp_path):
    run = make_run(tmp_path / "run")
    wanted = Wanted.of("posterior", 0.7, None)
    build_report(run, reject=wanted)
    assert predict(run, tmp_path / "by-range.parquet", reject=wanted) == 240
    whole = pq.read_table(run.predictions_path)
    assert pq.read_table(tmp_path / "by-range.parquet").equals(whole)
    assert whole["reason"].null_count < 240


def test_nothing_to_choose_a_threshold_on(tmp_path):
    run = make_run(tmp_path / "run", validation_rows=0)
    with pytest.raises(StoreError, match="no held-out texts") as error:
        build_report(run, reject=Wanted.of("posterior", 0.9, None))
    for word in ("no validation text was scored", "--validation-fraction", str(run.path)):
        assert word in str(error.value)
    code, said = gencls("report", str(run.path), "--coverage", "0.9")
    assert code == 2
    assert "no --reject" in said


def test_few_labelled_texts_have_no_curve(tmp_path):
    run = make_run(tmp_path / "run", test_rows=19)
    assert build_report(run).selective is None
    assert "Refusals" not in (run.report_path / "report.html").read_text()
