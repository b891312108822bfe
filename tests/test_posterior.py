"""Bayes' rule, priors, calibration, and the matrix they start from."""

from __future__ import annotations

import math
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
from report_fixtures import CLASSES, score_table

from gencls_core.errors import StoreError, UsageError
from gencls_core.metrics import Metrics, evaluate
from gencls_core.posterior import (
    Calibration,
    LikelihoodMatrix,
    fit_calibration,
    label_prior,
    log_posterior,
    posterior_of,
    read_likelihoods,
    resolve_prior,
    why_not_calibrated,
)
from gencls_core.score_matrix import blocks_of, iter_likelihoods
from gencls_core.scores import ScoreStore, ShardKey


def matrix_of(
    scores: np.ndarray,
    labels: list[str | None],
    classes: tuple[str, ...],
    quantity: str = "log_likelihood",
) -> LikelihoodMatrix:
    rows = len(labels)
    return LikelihoodMatrix(
        example_ids=pa.chunked_array([[str(row) for row in range(rows)]], pa.string()),
        label_codes=np.array([-1 if x is None else classes.index(x) for x in labels], np.int64),
        classes=classes,
        scores=np.asarray(scores, dtype=np.float64),
        num_tokens=np.full(rows, 10),
        truncated=np.zeros(rows, dtype=bool),
        num_windows=np.ones(rows, dtype=np.int64),
        loss_scores=None,
        quantity=quantity,  # type: ignore[arg-type]
    )


class TestPrior:
    def test_train_counts_with_one_added(self) -> None:
        found = resolve_prior("train", ["a", "b", "c"], {"a": 7, "b": 0})
        assert found == {"a": 8 / 10, "b": 1 / 10, "c": 1 / 10}
        assert list(found) == ["a", "b", "c"]

    def test_uniform(self) -> None:
        assert resolve_prior("uniform", ["a", "b"], {"a": 99}) == {"a": 0.5, "b": 0.5}

    def test_names_with_signs(self) -> None:
        classes = ["Sci/Tech", "War, and peace", "x=y", "x", "two words"]
        text = "x=0.1, Sci/Tech=0.2,War, and peace=0.3,two words=0.15, x=y=0.25"
        found = resolve_prior(text, classes, {})
        assert list(found) == classes
        assert found["x=y"] == pytest.approx(0.25)
        assert found["War, and peace"] == pytest.approx(0.3)
        assert math.fsum(found.values()) == pytest.approx(1, abs=1e-15)

    @pytest.mark.parametrize(
        ("prior", "message"),
        [
            ("World=1.0", "no Sports"),
            ("World=0.4,Sport=0.6", "did you mean 'Sports'"),
            ("World=0.4,Sports=0.5", "a sum of 0.9"),
            ("World=0,Sports=1", "above 0"),
            ("World=nan,Sports=1", "above 0"),
            ("World=-1,Sports=2", "above 0"),
            ("World=half,Sports=0.5", "not a number"),
            ("World=0.5,World=0.5", "twice"),
            ("unifrom", "did you mean 'uniform'"),
            ("", "no World"),
        ],
    )
    def test_refusals(self, prior: str, message: str) -> None:
        with pytest.raises(UsageError, match=message):
            resolve_prior(prior, ["World", "Sports"], {})


class TestLogPosterior:
    def test_naive_formula(self) -> None:
        random = np.random.default_rng(1)
        scores = random.normal(-5, 3, (40, 3))
        prior = {"a": 0.5, "b": 0.3, "c": 0.2}
        calibration = Calibration(0.4, {"a": 0.5, "b": -0.2, "c": -0.3})
        found = log_posterior(scores, prior, calibration)
        joint = np.exp(0.4 * scores + [0.5, -0.2, -0.3]) * [0.5, 0.3, 0.2]
        np.testing.assert_allclose(np.exp(found), joint / joint.sum(1, keepdims=True), rtol=1e-12)

    def test_blocks_change_no_bit(self, monkeypatch: pytest.MonkeyPatch) -> None:
        random = np.random.default_rng(2)
        scores = random.normal(-300, 30, (50, 4))
        labels = random.integers(-1, 4, 50)
        prior = dict(zip("abcd", (0.1, 0.2, 0.3, 0.4), strict=True))
        whole = log_posterior(scores, prior)
        figures = evaluate(whole, labels, tuple(prior))
        monkeypatch.setattr("gencls_core.score_matrix._BLOCK_ROWS", 7)
        assert len(list(blocks_of(50))) == 8
        np.testing.assert_array_equal(log_posterior(scores, prior), whole)
        assert evaluate(whole, labels, tuple(prior)) == figures

    def test_long_texts_do_not_underflow(self) -> None:
        found = log_posterior(np.array([[-9000.0, -9001.0]]), {"a": 0.5, "b": 0.5})
        np.testing.assert_allclose(found[0, 0] - found[0, 1], 1.0)
        assert np.exp(found).sum() == pytest.approx(1)

    def test_the_prior_is_not_counted_twice(self) -> None:
        prior = {"a": 0.9, "b": 0.1}
        scores = np.log([[0.3, 0.7]])
        found = log_posterior(scores, prior, quantity="log_posterior")
        np.testing.assert_allclose(np.exp(found), [[0.3, 0.7]])
        assert log_posterior(scores, prior).argmax() == 0

    def test_order_of_the_prior_does_not_matter_for_a_matrix(self) -> None:
        matrix = matrix_of(np.array([[0.0, 0.0]]), ["a"], ("a", "b"))
        found = posterior_of(matrix, {"b": 0.2, "a": 0.8})
        np.testing.assert_allclose(np.exp(found), [[0.8, 0.2]])


class TestCalibration:
    classes = ("a", "b", "c")

    def planted(self, rows: int, scale: float, biases: list[float], seed: int) -> LikelihoodMatrix:
        random = np.random.default_rng(seed)
        scores = random.normal(0, 8, (rows, 3))
        log_p = log_posterior(
            scores,
            dict.fromkeys(self.classes, 1 / 3),
            Calibration(scale, dict(zip(self.classes, biases, strict=True))),
        )
        noise = random.gumbel(size=log_p.shape)
        labels: list[str | None] = [self.classes[i] for i in (log_p + noise).argmax(axis=1)]
        return matrix_of(scores - 300, labels, self.classes)

    def test_recovers_planted_values(self) -> None:
        matrix = self.planted(20_000, 0.2, [0.6, 0.1, -0.7], 0)
        found = fit_calibration(matrix, dict.fromkeys(self.classes, 1 / 3))
        assert found is not None
        assert found.scale == pytest.approx(0.2, rel=0.05)
        assert list(found.biases.values()) == pytest.approx([0.6, 0.1, -0.7], abs=0.06)
        assert math.fsum(found.biases.values()) == pytest.approx(0, abs=1e-12)
        assert found == fit_calibration(matrix, dict.fromkeys(self.classes, 1 / 3))

    def test_improves_texts_it_has_not_seen(self) -> None:
        fitted = fit_calibration(
            self.planted(300, 0.1, [1.0, 0.0, -1.0], 1), dict.fromkeys(self.classes, 1 / 3)
        )
        other = self.planted(3000, 0.1, [1.0, 0.0, -1.0], 2)
        prior = dict.fromkeys(self.classes, 1 / 3)
        plain, better = (
            evaluate(posterior_of(other, prior, c), other.label_codes, self.classes)
            for c in (None, fitted)
        )
        assert better.nll < 0.5 * plain.nll
        assert better.ece < 0.5 * plain.ece

    def test_few_texts_do_not_lead_astray(self) -> None:
        """Nine texts say something about the scale and next to nothing about single classes."""
        prior = dict.fromkeys(self.classes, 1 / 3)
        plain, fitted = [], []
        for seed in range(30):
            few, other = (
                self.planted(9, 0.3, [0, 0, 0], seed),
                self.planted(900, 0.3, [0, 0, 0], 99),
            )
            if why_not_calibrated(few) is not None:
                continue
            for figures, calibration in ((plain, None), (fitted, fit_calibration(few, prior))):
                posterior = posterior_of(other, prior, calibration)
                figures.append(evaluate(posterior, other.label_codes, self.classes))
        assert len(fitted) > 20

        def mean(figures: list[Metrics], name: str) -> float:
            return float(np.mean([getattr(of, name) for of in figures]))

        assert mean(fitted, "nll") < 0.8 * mean(plain, "nll")
        # Biases that followed nine texts freely would lose 4 points.
        assert mean(fitted, "accuracy") > mean(plain, "accuracy") - 0.02

    def test_without_evidence_the_scale_is_that_of_so_many_tokens(self) -> None:
        """10 tokens: the noise of their sum is √10 times that of one."""
        matrix = matrix_of(np.full((4, 2), -50.0), ["a", "b"] * 2, ("a", "b"))
        found = fit_calibration(matrix, {"a": 0.5, "b": 0.5})
        assert found is not None
        assert found.scale == pytest.approx(10**-0.5)
        judged = matrix_of(
            np.log(np.full((4, 2), 0.5)), ["a", "b"] * 2, ("a", "b"), "log_posterior"
        )
        found = fit_calibration(judged, {"a": 0.5, "b": 0.5})
        assert found is not None
        assert found.scale == pytest.approx(1)

    def test_separable_texts_stay_finite(self) -> None:
        scores = np.array([[0.0, -200.0], [-200.0, 0.0]] * 10)
        matrix = matrix_of(scores, ["a", "b"] * 10, ("a", "b"))
        found = fit_calibration(matrix, {"a": 0.5, "b": 0.5})
        assert found is not None
        assert 0 < found.scale < 10

    def test_scores_that_say_nothing(self) -> None:
        labels: list[str | None] = ["a"] * 15 + ["b"] * 5
        matrix = matrix_of(np.full((20, 2), -50.0), labels, ("a", "b"))
        found = fit_calibration(matrix, label_prior(matrix))
        assert found is not None
        # The frequencies are in the prior: the biases have nothing left to explain.
        assert found.biases["a"] == pytest.approx(0, abs=0.1)

    def test_no_prior_beside_a_log_posterior(self) -> None:
        labels: list[str | None] = ["a", "b"] * 20
        scores = np.log([[0.7, 0.3], [0.4, 0.6]] * 20)
        matrix = matrix_of(scores, labels, ("a", "b"), "log_posterior")
        lopsided = fit_calibration(matrix, {"a": 0.99, "b": 0.01})
        assert lopsided == fit_calibration(matrix, {"a": 0.5, "b": 0.5})

    @pytest.mark.parametrize(
        ("labels", "reason"),
        [([None] * 9, "no held-out text"), (["a"] * 20, "one class")],
    )
    def test_too_little(self, labels: list[str | None], reason: str) -> None:
        matrix = matrix_of(np.zeros((len(labels), 2)), labels, ("a", "b"))
        assert fit_calibration(matrix, {"a": 0.5, "b": 0.5}) is None
        assert reason in (why_not_calibrated(matrix) or "")


class TestReadLikelihoods:
    ids: tuple[str, ...] = ("e0", "e1", "e2", "e3")

    def store(self, path: Path, **by_class: dict[str, object]) -> ScoreStore:
        """Commit two shards per class; `by_class` (c0, c1, c2) changes one class's rows."""
        store = ScoreStore(path)
        labels = ["Sci/Tech", "01", None, "a&b <x>"]
        for number, name in enumerate(CLASSES):
            scores = [-10.0 * number - row for row in range(4)]
            rows = {"ids": list(self.ids), "labels": labels, "scores": scores}
            rows.update(by_class.get(f"c{number}", {}))
            values = score_table(**rows)  # type: ignore[arg-type]
            half = 2
            for index in range(2):
                part = values.slice(index * half, None if index else half)
                store.commit(ShardKey("class-lm", name, index, 2), part, start=2 * index, digest="")
        return store

    def test_side_by_side(self, tmp_path: Path) -> None:
        matrix = read_likelihoods(self.store(tmp_path), "class-lm", CLASSES)
        assert matrix.example_ids.to_pylist() == list(self.ids)
        assert matrix.labels.to_pylist() == ["Sci/Tech", "01", None, "a&b <x>"]
        assert [matrix.label(row) for row in range(4)] == matrix.labels.to_pylist()
        assert matrix.label_codes.tolist() == [0, 1, -1, 2]
        np.testing.assert_array_equal(
            matrix.scores, [[-10.0 * c - row for c in range(3)] for row in range(4)]
        )
        assert matrix.loss_scores is None
        assert matrix.num_tokens.tolist() == [10] * 4

    def test_another_order_is_matched_by_id(self, tmp_path: Path) -> None:
        turned = {
            "ids": ["e3", "e1", "e0", "e2"],
            "labels": ["a&b <x>", "01", "Sci/Tech", None],
            "scores": [-3.0, -1.0, -0.5, -2.0],
        }
        matrix = read_likelihoods(self.store(tmp_path, c1=turned), "class-lm", CLASSES)
        assert matrix.scores[:, 1].tolist() == [-0.5, -1.0, -2.0, -3.0]

    def test_loss_scores(self, tmp_path: Path) -> None:
        loss = {"loss_score": [-1.0, -2.0, -3.0, -4.0]}
        store = self.store(tmp_path, c0=loss, c1=loss, c2=loss)
        matrix = read_likelihoods(store, "class-lm", CLASSES)
        assert matrix.loss_scores is not None
        assert matrix.loss_scores[:, 2].tolist() == [-1.0, -2.0, -3.0, -4.0]

    @pytest.mark.parametrize(
        ("change", "message"),
        [
            ({"ids": ["e0", "e1", "e1", "e3"]}, "'01'.*\n.*1 rows too many"),
            ({"ids": ["e3", "e0", "e10", "e0"]}, "'01'.*\n.*1 rows too many"),
            ({"ids": ["e0", "e1", "e9", "e3"]}, "'01'.*\n.*1 examples without a score, 1 that"),
            ({"labels": ["01", "01", None, "a&b <x>"]}, "about labels\n.*1 rows"),
            ({"num_tokens": [10, 10, 11, 11]}, "about num_tokens.*\n.*2 rows"),
            ({"quantity": "log_posterior"}, "another quantity"),
            ({"quantity": ["log_posterior", *["log_likelihood"] * 3]}, "mixes quantities"),
        ],
    )
    def test_contradictions(self, tmp_path: Path, change: dict[str, object], message: str) -> None:
        with pytest.raises(StoreError, match=message) as caught:
            read_likelihoods(self.store(tmp_path, c1=change), "class-lm", CLASSES)
        assert "run the same command again" in str(caught.value)

    @pytest.mark.parametrize("ids", [("e0", "e1", "e2", "e3"), ("e9", "e10", "e2", "e3")])
    def test_range_by_range(self, tmp_path: Path, ids: tuple[str, ...]) -> None:
        store = self.store(tmp_path, **{f"c{c}": {"ids": list(ids)} for c in range(3)})
        whole = read_likelihoods(store, "class-lm", CLASSES)
        parts = list(iter_likelihoods(store, "class-lm", CLASSES))
        assert [len(part) for part in parts] == [2, 2]
        assert tuple(x for part in parts for x in part.example_ids.to_pylist()) == ids
        assert [x for part in parts for x in part.labels.to_pylist()] == whole.labels.to_pylist()
        for name in ("scores", "num_tokens", "truncated", "num_windows"):
            joined = np.concatenate([getattr(part, name) for part in parts])
            np.testing.assert_array_equal(joined, getattr(whole, name))

    def test_ranges_that_are_cut_differently(self, tmp_path: Path) -> None:
        store = self.store(tmp_path)
        store.drop("class-lm", "01")
        rows = score_table(list(self.ids), ["Sci/Tech", "01", None, "a&b <x>"], [-1.0] * 4)
        store.commit(ShardKey("class-lm", "01", 0, 1), rows, start=0, digest="")
        assert len(read_likelihoods(store, "class-lm", CLASSES)) == 4
        with pytest.raises(StoreError, match=r"'01'.*not cut as"):
            next(iter_likelihoods(store, "class-lm", CLASSES))

    def test_contradictions_are_seen_in_their_range(self, tmp_path: Path) -> None:
        store = self.store(tmp_path, c1={"num_tokens": [10, 10, 10, 11]})
        ranges = iter_likelihoods(store, "class-lm", CLASSES)
        assert next(ranges).scores.tolist() == [[0.0, -10.0, -20.0], [-1.0, -11.0, -21.0]]
        with pytest.raises(StoreError, match=r"num_tokens.*\n.*1 rows"):
            next(ranges)

    def test_duplicates_in_the_first_class(self, tmp_path: Path) -> None:
        store = self.store(tmp_path, c0={"ids": ["e0", "e1", "e1", "e3"]})
        with pytest.raises(StoreError, match=r"'Sci/Tech'.*more than once"):
            read_likelihoods(store, "class-lm", CLASSES)

    def test_a_shard_of_another_size_than_committed(self, tmp_path: Path) -> None:
        store = self.store(tmp_path)
        path = store.record_path(ShardKey("class-lm", "01", 0, 2))
        path.write_text(path.read_text().replace('"rows": 2', '"rows": 1'))
        with pytest.raises(StoreError, match=r"'01'.*shard-00000-of-00002\n.*2 rows"):
            read_likelihoods(store, "class-lm", CLASSES)

    def test_label_that_is_no_class(self, tmp_path: Path) -> None:
        store = self.store(tmp_path)
        with pytest.raises(StoreError, match="labels that are no class"):
            read_likelihoods(store, "class-lm", CLASSES[:2])

    @pytest.mark.parametrize(
        ("index", "message"), [(0, "examples 0 to 1 have none"), (1, "none after example 2")]
    )
    def test_missing_shard_of_every_class(self, tmp_path: Path, index: int, message: str) -> None:
        store = self.store(tmp_path)
        for name in CLASSES:
            store.shard_path(ShardKey("class-lm", name, index, 2)).unlink()
        with pytest.raises(StoreError, match=message):
            read_likelihoods(store, "class-lm", CLASSES)

    def test_missing_class(self, tmp_path: Path) -> None:
        store = self.store(tmp_path)
        with pytest.raises(StoreError, match=r"'new'.*no committed scores"):
            read_likelihoods(store, "class-lm", (*CLASSES, "new"))

    def test_nan(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        # `commit` refuses NaN: only another writer can have put it there.
        monkeypatch.setattr("gencls_core.scores._refuse_unfinite", lambda *_: None)
        store = self.store(tmp_path, c2={"scores": [0.0, math.nan, math.nan, 0.0]})
        with pytest.raises(StoreError, match=r"NaN\n.*2 rows"):
            read_likelihoods(store, "class-lm", CLASSES)
