"""A second system beside the likelihoods: its weight, whether it is taken, what comes of it."""

import json
import math
import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from cluster_fixtures import gencls, succeed
from model_fixtures import make_model_folder
from report_fixtures import CLASSES, make_run, write_scores
from run_fixtures import CLASSES as CLASSES_OF_RUN
from run_fixtures import make_data, sentences, write_jsonl
from scipy.optimize import minimize
from scipy.special import log_softmax

from gencls_core.calibration import fit_beside_alone, fit_calibration
from gencls_core.comparison.results import read_results
from gencls_core.ensemble import companions_of, fit_pool, with_beside
from gencls_core.errors import StoreError
from gencls_core.posterior import cross_fitted, folds_of, posterior_of
from gencls_core.report.build import build_report
from gencls_core.report.ensembles import decided, ensemble_of
from gencls_core.report.fitting import EnsembleFit
from gencls_core.report.inference import infer, infer_by_range
from gencls_core.report.schema import Report
from gencls_core.run import RunDirectory
from gencls_core.score_matrix import LikelihoodMatrix, read_likelihoods
from gencls_core.scores import ShardKey
from gencls_core.selection_report import SelectionReport

UNIFORM = {"a": 1 / 3, "b": 1 / 3, "c": 1 / 3}


def matrix_of(scores, codes, beside=None, *, tokens=10, quantity="log_likelihood"):
    rows, classes = np.shape(scores)
    return LikelihoodMatrix(
        example_ids=pa.chunked_array([[f"text-{row}" for row in range(rows)]], pa.string()),
        label_codes=np.asarray(codes, dtype=np.int64),
        classes=tuple("abcdefgh"[:classes]),
        scores=np.asarray(scores, dtype=np.float64),
        num_tokens=np.full(rows, tokens),
        truncated=np.zeros(rows, dtype=bool),
        num_windows=np.ones(rows, dtype=np.int64),
        loss_scores=None,
        quantity=quantity,
        beside=beside,
    )


def planted(rows, *, scale, weight, seed):
    """Likelihoods and another system that know different things; labels drawn from both."""
    rng = np.random.default_rng(seed)
    scores, beside = rng.normal(0, 8, (rows, 3)), rng.normal(0, 1.5, (rows, 3))
    drawn = scale * scores + weight * beside + rng.gumbel(size=(rows, 3))
    return matrix_of(scores - 300, drawn.argmax(axis=1), beside)


def naive_objective(matrix, scale, weight, biases, prior):
    """What the fit minimises, written down as in the module."""
    logits = scale * matrix.scores + weight * matrix.beside + biases + np.log(list(prior.values()))
    own = log_softmax(logits, axis=1)[np.arange(len(matrix)), matrix.label_codes]
    expected = -0.5 * math.log(matrix.num_tokens.mean())
    distance = (math.log(scale) - expected) ** 2 + weight**2 + (biases**2).sum()
    return -own.sum() + 0.5 * distance


def test_planted_weight_is_found():
    found = fit_calibration(planted(20_000, scale=0.2, weight=0.7, seed=0), UNIFORM)
    assert found.scale == pytest.approx(0.2, rel=0.05)
    assert found.weight == pytest.approx(0.7, rel=0.05)


@pytest.mark.parametrize("rows", [12, 200])
def test_no_other_weight_is_more_probable(rows):
    matrix = planted(rows, scale=0.2, weight=0.7, seed=1)
    found = fit_calibration(matrix, UNIFORM)
    biases = np.array(list(found.biases.values()))
    least = naive_objective(matrix, found.scale, found.weight, biases, UNIFORM)
    for step in (-1e-2, 1e-2):
        others = [
            (found.scale * math.exp(step), found.weight, biases),
            (found.scale, max(0.0, found.weight + step), biases),
            *((found.scale, found.weight, biases + step * (row - 1 / 3)) for row in np.eye(3)),
        ]
        for other in others:
            assert naive_objective(matrix, *other, UNIFORM) >= least


def test_a_system_that_is_wrong_has_no_weight():
    matrix = planted(500, scale=0.2, weight=0.7, seed=2)
    assert fit_calibration(replace(matrix, beside=-matrix.beside), UNIFORM).weight == 0


def test_a_dozen_texts_say_little_of_a_weight():
    few = [
        fit_calibration(planted(12, scale=0.2, weight=0.0, seed=seed), UNIFORM).weight
        for seed in range(20)
    ]
    assert np.mean(few) < 0.3


def test_without_another_system_nothing_changes():
    """Beside what says nothing the fit is that of the likelihoods alone."""
    matrix = planted(60, scale=0.2, weight=0.7, seed=3)
    alone = fit_calibration(replace(matrix, beside=None), UNIFORM)
    beside = fit_calibration(replace(matrix, beside=np.zeros((60, 3))), UNIFORM)
    assert (alone.weight, beside.weight) == (0, 0)
    assert beside.scale == pytest.approx(alone.scale, rel=1e-4)
    assert beside.biases == pytest.approx(alone.biases, abs=1e-4)


def test_rows_are_matched_by_id_and_the_prior_it_learned_is_taken_out():
    matrix = matrix_of(np.zeros((4, 2)), [0, 1, 0, 1])
    log_q = np.log([[0.9, 0.1], [0.6, 0.4], [0.2, 0.8], [0.5, 0.5]])
    other = matrix_of(log_q, [0, 1, 0, 1], quantity="log_posterior")
    counts = {"a": 30, "b": 10}
    expected = log_q - np.log([0.75, 0.25])
    np.testing.assert_allclose(with_beside(matrix, other, counts).beside, expected)
    turned = other.take(np.array([2, 0, 3, 1]))
    np.testing.assert_allclose(with_beside(matrix, turned, counts).beside, expected)
    part = matrix.take(np.array([2, 3]))
    np.testing.assert_allclose(with_beside(part, other, counts, start=2).beside, expected[2:])
    with pytest.raises(StoreError, match="did not score 1 text"):
        with_beside(matrix, other.take(np.array([0, 1, 3])), counts)


def test_another_prior_counts_once():
    """What the second system says is relative to the frequencies that it learned from."""
    log_q = np.log([[0.75, 0.25]] * 2)  # nothing but its own prior
    matrix = with_beside(
        matrix_of(np.zeros((2, 2)), [0, 1]),
        matrix_of(log_q, [0, 1], quantity="log_posterior"),
        {"a": 30, "b": 10},
    )
    fitted = fit_calibration(matrix, {"a": 0.5, "b": 0.5})
    for prior in ({"a": 0.5, "b": 0.5}, {"a": 0.1, "b": 0.9}):
        posterior = posterior_of(matrix, prior, replace(fitted, weight=5.0))
        np.testing.assert_allclose(np.exp(posterior[0]), list(prior.values()), atol=1e-6)


def test_the_second_system_alone_is_as_if_there_were_no_likelihoods():
    matrix = planted(200, scale=0.2, weight=0.7, seed=3)
    found = fit_beside_alone(matrix, UNIFORM)
    other = replace(matrix, scores=np.zeros((200, 3)))
    posterior = posterior_of(matrix, UNIFORM, found)
    np.testing.assert_array_equal(posterior, posterior_of(other, UNIFORM, found))
    expected = log_softmax(
        found.weight * matrix.beside + np.array(list(found.biases.values())), axis=1
    )
    np.testing.assert_allclose(posterior, expected, atol=1e-12)
    one_class = replace(matrix, label_codes=np.zeros(200, dtype=np.int64))
    assert fit_beside_alone(one_class, UNIFORM).weight == 1


def naive_pool(matrix, pool, prior):
    """The module's formula, in probabilities."""
    parts = []
    for member, share in zip(pool.members, pool.shares, strict=True):
        logits = member.scale * matrix.scores + member.weight * matrix.beside
        logits += np.array(list(member.biases.values())) + np.log(list(prior.values()))
        parts.append(share * np.exp(log_softmax(logits, axis=1)))
    return np.sum(parts, axis=0)


def test_a_pool_is_the_mean_of_its_members():
    matrix = planted(200, scale=0.2, weight=0.7, seed=3)
    pool = fit_pool(matrix, UNIFORM).pool
    assert pool.alone.weight == pool.other.scale == 0
    assert min(pool.both.scale, pool.both.weight, *pool.shares) > 0
    assert sum(pool.shares) == pytest.approx(1, abs=1e-12)
    for prior in (UNIFORM, {"a": 0.7, "b": 0.2, "c": 0.1}):
        found = np.exp(posterior_of(matrix, prior, pool))
        np.testing.assert_allclose(found, naive_pool(matrix, pool, prior), atol=1e-12)
        np.testing.assert_allclose(found.sum(axis=1), 1, atol=1e-12)


@pytest.mark.parametrize("rows", [12, 200])
def test_no_other_shares_are_more_probable(rows):
    matrix = planted(rows, scale=0.2, weight=0.7, seed=5)
    fitted = fit_pool(matrix, UNIFORM)
    ways = {"alone": fit_calibration, "other": fit_beside_alone, "both": fit_calibration}
    own = []
    for name, fit in ways.items():
        texts = replace(matrix, beside=None) if name == "alone" else matrix
        posterior = cross_fitted(texts, fit=fit)
        own.append(np.exp(posterior[np.arange(rows), matrix.label_codes]))
    np.testing.assert_allclose(fitted.alone, -np.log(own[0]), atol=1e-12)

    def objective(shares):
        return np.log(np.asarray(shares) @ np.array(own)).sum() + np.log(shares).sum()

    best = objective(fitted.pool.shares)
    for one, other in ((0, 1), (0, 2), (1, 2)):
        for step in (-1e-3, 1e-3):
            shares = list(fitted.pool.shares)
            shares[one], shares[other] = shares[one] + step, shares[other] - step
            assert objective(shares) < best


def test_a_second_system_that_knows_more_helps():
    fitted = fit_pool(planted(400, scale=0.2, weight=0.7, seed=4), UNIFORM)
    assert fitted.nll_alone - fitted.nll_together > 2 * fitted.standard_error > 0
    assert fitted.pool.shares[2] > 0.8  # labels were drawn from both in one exponent


def test_shares_that_judge_a_text_are_fitted_on_others():
    matrix = planted(60, scale=0.2, weight=0.7, seed=7)
    codes_N, rows_N = matrix.label_codes, np.arange(60)
    members = [
        cross_fitted(replace(matrix, beside=None)),
        cross_fitted(matrix, fit=fit_beside_alone),
        cross_fitted(matrix),
    ]
    own_KN = np.stack([posterior[rows_N, codes_N] for posterior in members])
    judged_N = next(folds_of(codes_N))

    def objective(free):
        shares = np.exp(log_softmax([*free, 0.0]))
        return -np.log(shares @ np.exp(own_KN[:, ~judged_N])).sum() - np.log(shares).sum()

    shares = np.exp(log_softmax([*minimize(objective, [0.0, 0.0], tol=1e-12).x, 0.0]))
    expected = -np.log(shares @ np.exp(own_KN[:, judged_N]))
    found = fit_pool(matrix, UNIFORM)
    np.testing.assert_allclose(found.together[judged_N], expected, atol=1e-5)
    assert found.pool.shares != pytest.approx(shares.tolist(), abs=1e-4)  # those of all texts


@pytest.mark.parametrize("seed", range(8))
def test_a_system_that_is_wrong_or_noise_costs_little(seed):
    matrix = planted(80, scale=0.2, weight=0.7, seed=seed)
    noise = np.random.default_rng(100 + seed).normal(0, 1.5, (80, 3))
    for beside in (-matrix.beside, noise):
        fitted = fit_pool(replace(matrix, beside=beside), UNIFORM)
        assert fitted.pool.shares[1] < 0.25
        # Three members start with a third each; the 80 texts leave a wrong one next to nothing.
        assert fitted.nll_together - fitted.nll_alone < 0.06


def test_sure_mistakes_are_bounded_by_the_other_system():
    """Held-out texts without one cannot tell of them; a linear pool does not need to be told."""
    held_out = planted(200, scale=0.5, weight=1.5, seed=10)
    pool = fit_pool(held_out, UNIFORM).pool
    scores, beside = np.array([[0.0, -60.0, -60.0]]), np.array([[-1.0, 1.0, 0.0]])
    mistake = matrix_of(scores, [1], beside)
    alone, together = (-posterior_of(mistake, UNIFORM, how)[0, 1] for how in (pool.alone, pool))
    assert alone > 12
    other = -posterior_of(mistake, UNIFORM, pool.other)[0, 1]
    assert together <= other - math.log(pool.shares[1])


def test_many_texts_are_no_business_of_pairs_of_words():
    many = companions_of("auto", baseline=True, fine_tune=False, held_out=99, texts=20_001)
    assert many == ("tfidf",)
    assert companions_of("nbsvm", baseline=True, fine_tune=False, held_out=9, texts=20_001)


@pytest.mark.parametrize(
    ("wanted", "baseline", "fine_tune", "held_out", "systems"),
    [
        (None, True, True, 99, ()),
        ("none", True, True, 99, ()),
        ("auto", True, False, 99, ("tfidf", "nbsvm")),
        ("auto", True, True, 99, ("tfidf", "nbsvm", "discriminative")),
        ("auto", True, True, 16, ("tfidf", "nbsvm", "discriminative")),
        ("auto", True, True, 15, ()),
        ("auto", False, False, 99, ()),
        ("auto", False, True, 99, ("discriminative",)),
        ("nbsvm", False, True, 2, ("nbsvm",)),
        ("discriminative", False, False, 2, ("discriminative",)),
        ("nbsvm", True, False, 0, ()),
    ],
)
def test_which_systems_are_meant(wanted, baseline, fine_tune, held_out, systems):
    found = companions_of(wanted, baseline=baseline, fine_tune=fine_tune, held_out=held_out)
    assert found == systems


def made_run(
    folder: Path, ensemble: str | None, validation_rows: int = 90, fine_tune: bool | None = None
) -> RunDirectory:
    """A run whose second system has scored the held-out texts, too; with a fine-tune that is given,
    whether it knows of it."""
    run = make_run(folder, validation_rows=validation_rows)
    held_out = pq.read_table(run.dataset_path / "validation.parquet")
    tested = pq.read_table(run.dataset_path / "test.parquet")
    random = np.random.default_rng(8)
    write_scores(random, run.validation_scores, CLASSES, held_out, system="tfidf", shards=1)
    for store, texts in ((run.validation_scores, held_out), (run.scores, tested)):
        write_scores(random, store, CLASSES, texts, system="nbsvm", shards=1)
    manifest = run.manifest()
    if fine_tune is not None:
        random = np.random.default_rng(9)
        for store, texts in ((run.validation_scores, held_out), (run.scores, tested)):
            write_scores(random, store, CLASSES, texts, system="discriminative", shards=1)
        manifest["selection"] = SelectionReport(
            key="k", budget_seconds=1, held_out_texts=90, chosen="independent", reason="r",
            fine_tune=fine_tune, trials=[],
        ).model_dump(mode="json")  # fmt: skip
    manifest["config"]["posterior"]["ensemble"] = ensemble
    run.write_manifest(manifest)
    return run


def report_of(run: RunDirectory) -> Report:
    return Report.model_validate_json((run.report_path / "report.json").read_text())


def test_report_with_an_ensemble(tmp_path):
    run = made_run(tmp_path / "run", "auto")
    report = build_report(run)
    found = report.calibration.ensemble
    assert (found.system, found.taken, found.num_texts) == ("tfidf", True, 90)
    assert found.nll_together < found.nll_alone
    assert [member.of for member in found.members] == ["likelihoods", "second system", "both"]
    assert sum(member.share for member in found.members) == pytest.approx(1)
    assert found.members[2].weight > 0
    assert report.answer == "calibrated"
    assert report.accuracy.calibrated > report.accuracy.uncalibrated
    alone = build_report(run, ensemble="none")
    assert alone.calibration.ensemble is None
    assert alone.answer == "uncalibrated"
    assert alone.accuracy.uncalibrated == report.accuracy.uncalibrated
    assert alone.accuracy.calibrated < report.accuracy.calibrated
    build_report(run)
    for page in ("report.md", "report.html"):
        text = " ".join((run.report_path / page).read_text().split())
        assert "with TF-IDF with logistic regression beside them" in text
        assert "stands beside the likelihoods: held-out texts are better predicted with it" in text
        assert "mean of three calibrated posteriors: likelihoods" in text
        assert "By the likelihoods alone" in text
    rows = pq.read_table(run.predictions_path)
    assert rows.column("answer").equals(rows.column("calibrated_predicted"))
    assert not rows.column("answer").equals(rows.column("predicted"))
    right = sum(
        a == b for a, b in zip(rows["answer"].to_pylist(), rows["label"].to_pylist(), strict=True)
    )
    assert right / rows.num_rows == report.accuracy.calibrated


def test_posterior_is_the_formula(tmp_path):
    run = made_run(tmp_path / "run", "tfidf")
    inference = infer(run)
    likelihoods = read_likelihoods(run.scores, "class-lm", CLASSES)
    judged = read_likelihoods(run.scores, "tfidf", CLASSES)
    counts = run.dataset().split("train").class_counts
    pool = inference.calibration
    q = np.array([counts[name] for name in CLASSES]) / sum(counts.values())
    matrix = replace(likelihoods, beside=judged.scores - np.log(q))
    expected = np.log(naive_pool(matrix, pool, {name: inference.prior[name] for name in CLASSES}))
    np.testing.assert_allclose(inference.calibrated, expected, atol=1e-9)
    # What is stored is untouched, and a range at a time gives the same.
    assert (inference.matrix.scores == likelihoods.scores).all()
    parts = np.concatenate([part.calibrated for part in infer_by_range(run)])
    np.testing.assert_array_equal(parts, inference.calibrated)


def test_other_systems_of_the_run_stand_alone(tmp_path):
    run = made_run(tmp_path / "run", "tfidf")
    assert infer(run, system="tfidf").fit.ensemble is None


@pytest.mark.parametrize(
    ("lost", "said"),
    [
        ("validation_scores", "tfidf has not scored the held-out texts"),
        ("scores", "tfidf has not scored the test texts"),
    ],
)
def test_a_second_system_without_scores_is_left_out_and_said(tmp_path, lost, said):
    run = made_run(tmp_path / "run", "tfidf")
    getattr(run, lost).retire("tfidf", ())
    report = build_report(run)
    assert f"There is no ensemble: {said}." in report.notes
    assert report.accuracy == build_report(run, ensemble="none").accuracy
    assert report.answer == "uncalibrated"


def fit_of(system, alone_N, gain):
    """A second system with which held-out texts are better predicted by `gain` nats in the mean."""
    rows, spread = len(alone_N), 0.5 if system == "tfidf" else -0.5
    differences = np.where(np.arange(rows) % 2, gain + spread, gain - spread)
    fitted = replace(NO_POOL, alone=alone_N, together=alone_N - differences)
    return EnsembleFit(system, matrix_of(np.zeros((rows, 3)), np.zeros(rows)), fitted)


NO_POOL = fit_pool(planted(12, scale=0.2, weight=0.7, seed=0), UNIFORM)


@pytest.mark.parametrize(
    ("gains", "taken", "reason"),
    [
        # One standard error is 0.05.
        ({"tfidf": 0.04}, None, "do not show that it helps"),
        ({"tfidf": 0.06}, "tfidf", "are better predicted with it"),
        ({"tfidf": 0.2, "nbsvm": 0.21}, "tfidf", "are better predicted with it"),
        ({"tfidf": 0.2, "nbsvm": 0.4}, "nbsvm", "are better predicted with it"),
        ({"discriminative": 0.01}, "discriminative", "are better predicted with it"),
        ({"discriminative": -0.04}, "discriminative", "do not speak against it"),
        ({"discriminative": -0.06}, None, "are better predicted without it"),
        ({"tfidf": 0.02, "discriminative": -0.02}, "discriminative", "do not speak against it"),
        ({"tfidf": 0.2, "discriminative": -0.2}, "tfidf", "are better predicted with it"),
        ({"tfidf": -0.2, "discriminative": -0.1}, None, "are better predicted without it"),
    ],
)
def test_a_fine_tune_must_do_harm_to_be_left_out_and_a_bag_of_words_help(gains, taken, reason):
    alone_N = np.full(100, 1.0)
    fits = [fit_of(system, alone_N, gain) for system, gain in gains.items()]
    found = decided(fits, always=False)
    assert found.reason == f"held-out texts {reason}"
    assert (found.system if found.taken else None) == taken
    asked = decided(fits[:1], always=True)
    assert (asked.taken, asked.reason) == (True, "it was asked for")


def test_without_the_scores_of_the_one_the_other_is_tried(tmp_path):
    run = made_run(tmp_path / "run", "auto", fine_tune=True)
    assert infer(run).fit.ensemble.system == ensemble_of(run) == "discriminative"
    for store, texts in ((run.scores, "test"), (run.validation_scores, "held-out")):
        store.retire("discriminative", ())
        report = build_report(run)
        assert report.calibration.ensemble.system == "tfidf"
        lost = f"A second system was left out: discriminative has not scored the {texts} texts."
        assert lost in report.notes


def test_a_fine_tune_that_a_comparison_left_there_is_not_the_runs(tmp_path):
    run = made_run(tmp_path / "run", "auto", fine_tune=False)
    assert infer(run).fit.ensemble.system == "tfidf"
    assert infer(run, ensemble="discriminative").fit.ensemble.system == "discriminative"


def test_too_few_held_out_texts_take_none_unless_it_is_asked_for(tmp_path):
    run = made_run(tmp_path / "run", "auto", validation_rows=15)
    report = build_report(run)
    assert report.calibration.ensemble is None
    assert report.answer == "uncalibrated"
    assert ensemble_of(run) is None
    assert build_report(run, ensemble="tfidf").calibration.ensemble.taken
    assert ensemble_of(run, "tfidf") == "tfidf"
    assert ensemble_of(run, "nbsvm") == "nbsvm"  # to be scored


def test_a_second_system_that_is_wrong_is_left_out_and_said(tmp_path):
    run = made_run(tmp_path / "run", "auto")
    held_out = run.validation_scores
    good = [pq.read_table(held_out.shard_path(r.key)) for r in held_out.records("tfidf")]
    for system in ("tfidf", "nbsvm"):
        held_out.retire(system, ())
    for name, table in zip(CLASSES, good, strict=True):
        wrong = table.set_column(
            table.column_names.index("score"),
            table.schema.field("score"),
            pa.array(-4.0 - table.column("score").to_numpy()),
        )
        held_out.commit(ShardKey("tfidf", name, 0, 1), wrong, start=0, digest="e" * 64)
    found = build_report(run).calibration.ensemble
    assert (found.taken, found.members) == (False, [])
    assert found.reason == "held-out texts do not show that it helps"
    text = " ".join((run.report_path / "report.md").read_text().split())
    assert "was tried beside the likelihoods and left out: held-out texts do not show" in text


def test_without_calibration_an_ensemble_that_was_asked_for_is_missed(tmp_path):
    run = make_run(tmp_path / "run", validation_rows=0)
    notes = build_report(run, ensemble="tfidf").notes
    assert "There is no ensemble without calibration." in notes
    assert not [note for note in build_report(run, ensemble="auto").notes if "ensemble" in note]


def test_systems_are_compared_as_they_are_alone(tmp_path):
    run = made_run(tmp_path / "run", "tfidf")
    conditions = read_results([run]).conditions
    (ours,) = [found.runs[0] for found in conditions if found.system == "class-lm"]
    np.testing.assert_array_equal(ours.log_posterior, infer(run, ensemble="none").calibrated)


@pytest.fixture(scope="module")
def data(tmp_path_factory, shared_ray) -> Path:
    found = tmp_path_factory.mktemp("ensemble")
    make_data(found / "data", train=60, test=8)
    make_model_folder(found / "base", "gpt2", context=64)
    texts = [{"text": text} for text in sentences(CLASSES_OF_RUN[0], 5, 77)]
    write_jsonl(found / "new.jsonl", texts)
    return found


@pytest.fixture(scope="module")
def finished(data) -> tuple[Path, str]:
    """A run of class models with NBSVM beside them, and what it said."""
    said = succeed(
        "run", "--data-dir", str(data / "data"), "--model", str(data / "base"),
        "--validation-fraction", "0.3", "--epochs", "1", "--batch-size", "16",
        "--learning-rate", "5e-3", "--num-cpus", "2", "--memory-gb", "8",
        "--output-dir", str(data / "run"), "--recipe", "independent", "--ensemble", "nbsvm",
    )  # fmt: skip
    return data / "run", said


@pytest.mark.ray
def test_a_run_scores_and_weighs_the_second_system(finished):
    folder, said = finished
    run = RunDirectory(folder)
    assert set(run.scores.systems()) == {"class-lm", "tfidf", "nbsvm"}
    assert set(run.validation_scores.systems()) == {"class-lm", "nbsvm"}
    assert "NBSVM stands beside its likelihoods: it was asked for." in " ".join(said.split())
    report = report_of(run)
    assert report.calibration.ensemble.system == "nbsvm"
    assert report.calibration.ensemble.num_texts == 54
    assert "whole" in succeed("verify", str(folder))


@pytest.mark.ray
def test_new_texts_get_the_answer_of_the_ensemble(finished, data, tmp_path):
    output = tmp_path / "answers.jsonl"
    succeed("classify", "--model-dir", str(finished[0]), str(data / "new.jsonl"),
            "--num-cpus", "2", "--output", str(output))  # fmt: skip
    rows = [json.loads(line) for line in output.read_text().splitlines()]
    assert len(rows) == 5
    assert all(row["answer"] == row["calibrated_predicted"] for row in rows)
    (evaluation,) = (finished[0] / "evaluations").iterdir()
    scored = RunDirectory(evaluation)
    assert set(scored.scores.systems()) == {"class-lm", "nbsvm"}
    # Committed once; another system can be asked for afterwards, and the run is not touched.
    held_out = sorted(RunDirectory(finished[0]).validation_scores.systems())
    said = succeed("classify", "--model-dir", str(finished[0]), str(data / "new.jsonl"),
                   "--num-cpus", "2", "--output", str(output), "--ensemble", "tfidf")  # fmt: skip
    assert "scored" in said
    assert set(scored.validation_scores.systems()) == {"tfidf"}
    assert held_out == sorted(RunDirectory(finished[0]).validation_scores.systems())


@pytest.mark.ray
def test_labelled_texts_are_evaluated_with_the_ensemble(finished, data, tmp_path):
    make_data(tmp_path / "other", train=2, test=6)
    said = succeed("evaluate", "--model-dir", str(finished[0]), "--data-dir",
                   str(tmp_path / "other"), "--num-cpus", "2",
                   "--output", str(tmp_path / "report.json"))  # fmt: skip
    assert "NBSVM" in said
    report = json.loads((tmp_path / "report.json").read_text())
    own = report_of(RunDirectory(finished[0])).calibration
    assert report["answer"] == "calibrated"
    ensemble = own.ensemble.model_dump(mode="json")
    assert report["calibration"]["ensemble"]["members"] == ensemble["members"]
    # The run's own report can be had without it, and nothing is scored for that.
    copy = tmp_path / "copy"
    shutil.copytree(finished[0], copy)
    assert "NBSVM stands" not in succeed("report", str(copy), "--ensemble", "none")


@pytest.mark.ray
def test_evaluating_its_own_texts_leaves_what_others_scored(finished, data, tmp_path):
    """A comparison may have added TF-IDF to a run that does without a baseline."""
    folder = tmp_path / "run"
    shutil.copytree(finished[0], folder)
    run = RunDirectory(folder)
    manifest = run.manifest()
    manifest["config"]["baseline"] = False
    run.write_manifest(manifest)
    before = [record.digest for record in run.scores.records("tfidf")]
    succeed("evaluate", "--model-dir", str(folder), "--data-dir", str(data / "data"),
            "--num-cpus", "2")  # fmt: skip
    assert before == [record.digest for record in run.scores.records("tfidf")] != []
    assert (
        report_of(run).calibration.ensemble
        == report_of(RunDirectory(finished[0])).calibration.ensemble
    )


@pytest.mark.ray
def test_a_fine_tune_that_was_asked_for(finished, data, tmp_path):
    """Trained and scored by the run, once; whole; applied to other texts."""
    folder = tmp_path / "run"
    shutil.copytree(finished[0], folder)
    run = RunDirectory(folder)
    command = [
        "run", "--data-dir", str(data / "data"), "--model", str(data / "base"),
        "--validation-fraction", "0.3", "--epochs", "1", "--batch-size", "16",
        "--learning-rate", "5e-3", "--num-cpus", "2", "--memory-gb", "8",
        "--output-dir", str(folder), "--recipe", "independent", "--ensemble", "discriminative",
    ]  # fmt: skip
    planned = " ".join(succeed("plan", *command[1:]).split())
    assert "beside it the discriminative fine-tune: to be trained" in planned
    said = " ".join(succeed(*command).split())
    assert "1 discriminative model trained" in said
    assert "The discriminative fine-tune stands beside its likelihoods: it was asked for" in said
    assert {"class-lm", "tfidf", "discriminative"} <= set(run.scores.systems())
    report = report_of(run)
    assert report.calibration.ensemble.system == "discriminative"
    assert "discriminative" in report.baselines
    assert run.manifest()["systems"] == ["class-lm", "discriminative"]
    assert "whole" in succeed("verify", str(folder))
    again = succeed(*command)
    assert "trained" not in again
    assert "nothing to score" in again
    # Other texts, labelled and not, are scored by the committed fine-tune.
    output = tmp_path / "answers.jsonl"
    succeed("classify", "--model-dir", str(folder), str(data / "new.jsonl"),
            "--num-cpus", "2", "--output", str(output))  # fmt: skip
    rows = [json.loads(line) for line in output.read_text().splitlines()]
    assert all(row["answer"] == row["calibrated_predicted"] for row in rows)
    make_data(tmp_path / "other", train=2, test=6)
    succeed("evaluate", "--model-dir", str(folder), "--data-dir", str(tmp_path / "other"),
            "--num-cpus", "2", "--output", str(tmp_path / "report.json"))  # fmt: skip
    evaluated = json.loads((tmp_path / "report.json").read_text())["calibration"]["ensemble"]
    assert evaluated["members"] == report.calibration.ensemble.model_dump(mode="json")["members"]
    # Without the model there is no ensemble for new texts, and that is said.
    shutil.rmtree(folder / "systems")
    shutil.rmtree(folder / "evaluations")
    said = " ".join(succeed("classify", "--model-dir", str(folder), str(data / "new.jsonl"),
                            "--num-cpus", "2", "--output", str(output)).split())  # fmt: skip
    assert "there is no ensemble" in said


@pytest.mark.ray
def test_a_name_that_is_none(data, tmp_path):
    code, said = gencls("run", "--data-dir", str(data / "data"), "--ensemble", "tf-idf",
                        "--output-dir", str(tmp_path / "run"))  # fmt: skip
    assert code != 0
    assert "'tf-idf' is not one of 'none', 'auto', 'tfidf', 'nbsvm', 'discriminative'" in " ".join(
        said.split()
    )
