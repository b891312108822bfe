"""What a comparison takes for repetitions, for variants and for points of a curve; its figures
against those of the run report and of scikit-learn; its refusals; its answers."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from report_fixtures import CLASSES, make_run, score_table

from gencls_core.comparison import compare_runs
from gencls_core.comparison.questions import answers
from gencls_core.comparison.schema import Comparison, PairReport
from gencls_core.comparison.words import points
from gencls_core.errors import DataError, StoreError, UsageError
from gencls_core.report.build import build_report
from gencls_core.run import RunDirectory
from gencls_core.scores import ShardKey, read_scores


def change(run: RunDirectory, **sections: dict[str, Any]) -> None:
    """Have the run say that it was made with other settings."""
    manifest = run.manifest()
    for section, values in sections.items():
        manifest["config"][section] |= values
    run.write_manifest(manifest)


def score_anew(run: RunDirectory, right: float, seed: int, system: str = "class-lm") -> None:
    """Give the system scores by which so many of the test texts are labelled correctly."""
    texts = run.dataset().read("test")
    ids, labels = texts["example_id"].to_pylist(), texts["label"].to_pylist()
    generator = np.random.default_rng(seed)
    wrong = generator.permutation(len(ids)) >= round(right * len(ids))
    quantity = "log_likelihood" if system == "class-lm" else "log_posterior"
    for name in CLASSES:
        behind = {c: CLASSES[(CLASSES.index(c) + 1) % len(CLASSES)] for c in CLASSES}
        chosen = [behind[label] if w else label for label, w in zip(labels, wrong, strict=True)]
        scores = np.where([name == one for one in chosen], -0.2, -2.4)
        key = ShardKey(system, name, 0, 1)
        run.scores.commit(
            key, score_table(ids, labels, scores, quantity=quantity), start=0, digest=f"{seed:064}"
        )
    keep = [ShardKey(system, name, 0, 1) for name in CLASSES]
    run.scores.retire(system, keep)


@pytest.fixture
def run(tmp_path) -> RunDirectory:
    return make_run(tmp_path / "a", validation_rows=0)


def another(path: Path, right: float | None = None, seed: int = 1, **sections: Any) -> RunDirectory:
    """Make a run on the same texts, with other settings and other class-lm scores."""
    run = make_run(path, validation_rows=0)
    change(run, **sections)
    if right is not None:
        score_anew(run, right, seed)
    return run


def named(comparison: Comparison) -> dict[str, list[str]]:
    return {system.name: system.runs for system in comparison.systems}


def pair_of(comparison: Comparison, a: str, b: str) -> PairReport:
    return next(pair for pair in comparison.pairs if (pair.a, pair.b) == (a, b))


def test_the_figures_are_those_of_the_run_report(run):
    report = build_report(run)
    system, baseline = compare_runs([run]).systems
    assert (system.name, baseline.name) == ("class-lm", "tfidf")
    accuracy = system.accuracy
    assert accuracy.value == report.accuracy.uncalibrated
    assert (accuracy.low, accuracy.high) == report.accuracy_ci95.uncalibrated
    assert system.macro_f1.value == pytest.approx(report.macro_f1.uncalibrated)
    assert system.nll.value == pytest.approx(report.nll.uncalibrated)
    assert system.ece.value == pytest.approx(report.ece.uncalibrated)
    assert baseline.accuracy.value == report.baselines["tfidf"].accuracy
    assert system.train_seconds == pytest.approx(3 * 95.4 + 3)
    assert system.seconds_per_1000_texts == pytest.approx(1000 * 3 * 2 * 12.5 / 240)


def test_a_calibrated_system_is_compared_as_calibrated(tmp_path):
    run = make_run(tmp_path / "a")
    report = build_report(run)
    system = compare_runs([run]).systems[0]
    assert report.accuracy.calibrated != report.accuracy.uncalibrated
    assert system.accuracy.value == report.accuracy.calibrated
    assert system.uncalibrated_accuracy == report.accuracy.uncalibrated


def test_other_seeds_are_repetitions_and_copies_count_once(run, tmp_path):
    again = another(tmp_path / "b", right=0.8, training={"seed": 1})
    comparison = compare_runs([run, again])
    assert named(comparison) == {
        "class-lm": [str(run.path), str(again.path)],
        "tfidf": [str(run.path)],
    }
    system = comparison.systems[0]
    assert system.seeds == [(0, 0), (0, 1)]
    assert system.accuracy.sources == ("texts", "seeds")
    alone = [compare_runs([one]).systems[0].accuracy.value for one in (run, again)]
    assert system.accuracy.value == pytest.approx(np.mean(alone))
    assert pair_of(comparison, "class-lm", "tfidf").holm_of == "bootstrap"
    assert any("Trained once" in note and "tfidf" in note for note in comparison.notes)


def test_other_settings_make_another_system_named_after_them(run, tmp_path):
    other = another(tmp_path / "b", right=0.9, training={"learning_rate": 1e-3, "epochs": 7.0})
    # What changes no result makes no other system.
    change(other, scoring={"tokens_per_batch": 99}, compute={"actors": 1})
    names = list(named(compare_runs([run, other])))
    assert names == [
        "class-lm (epochs=3.0, learning_rate=5e-05)",
        "class-lm (epochs=7.0, learning_rate=0.001)",
        "tfidf",
    ]


def test_other_numbers_of_train_texts_are_points_of_a_curve(run, tmp_path):
    runs = [run]
    for sample, right in ((8, 0.5), (64, 0.8)):
        made = another(tmp_path / str(sample), right=right, data={"max_samples": sample})
        score_anew(made, right - 0.1, sample, "tfidf")
        runs.append(made)
    comparison = compare_runs(runs)
    curve = [(point.system, point.accuracy.value) for point in comparison.learning_curve]
    assert curve[:2] == [("class-lm", pytest.approx(0.5)), ("class-lm", pytest.approx(0.8))]
    assert len(curve) == 6
    # Systems are compared at the largest number, here all texts.
    assert [(pair.a, pair.b, pair.sample) for pair in comparison.pairs] == [
        ("class-lm", "tfidf", None)
    ]
    without_all = compare_runs(runs[1:])
    assert [pair.sample for pair in without_all.pairs] == [64]
    assert pair_of(without_all, "class-lm", "tfidf").difference == pytest.approx(0.1)


def test_a_difference_counts_the_texts(run):
    score_anew(run, 0.9, 1)
    score_anew(run, 0.6, 2, "tfidf")
    pair = pair_of(compare_runs([run]), "class-lm", "tfidf")
    rows = read_scores(run.scores.path).to_pandas()
    best = rows.loc[rows.groupby(["system", "example_id"])["score"].idxmax()]
    right = best["class"] == best["label"]
    by_text = {
        system: right[best["system"] == system].to_numpy() for system in ("class-lm", "tfidf")
    }
    assert pair.only_a == int((by_text["class-lm"] & ~by_text["tfidf"]).sum())
    assert pair.only_b == int((by_text["tfidf"] & ~by_text["class-lm"]).sum())
    assert pair.difference == pytest.approx((pair.only_a - pair.only_b) / 240)
    assert pair.low < pair.difference < pair.high
    assert pair.holm_of == "mcnemar"
    assert 0 < pair.mcnemar_p == pair.holm_p < 1e-6


def test_refusals(run, tmp_path):
    other_texts = make_run(tmp_path / "b", validation_rows=0, seed=5)
    with pytest.raises(UsageError, match="not scored on the same test texts") as error:
        compare_runs([run, other_texts])
    assert str(other_texts.path) in str(error.value)
    assert str(run.path) in str(error.value)

    twin = another(tmp_path / "c", right=0.7)
    with pytest.raises(UsageError, match="the same settings and seeds"):
        compare_runs([run, twin])

    with pytest.raises(StoreError, match="not a run directory"):
        compare_runs([RunDirectory(tmp_path / "nothing")])

    one_class = make_run(tmp_path / "d", classes=("only",), validation_rows=0)
    with pytest.raises(DataError, match="cannot tell systems apart"):
        compare_runs([one_class])

    for system in ("class-lm", "tfidf"):
        twin.scores.retire(system, ())
    with pytest.raises(StoreError, match="without scores"):
        compare_runs([twin])


def test_a_class_whose_scores_are_missing_is_said(run):
    run.scores.drop("tfidf", CLASSES[0])
    comparison = compare_runs([run])
    assert named(comparison) == {"class-lm": [str(run.path)]}
    assert "tfidf is left out: not every text was scored." in comparison.notes
    # Asked for by name, it must be there.
    with pytest.raises(StoreError, match="Sci/Tech"):
        compare_runs([run], systems=[("class-lm", "tfidf")])
    run.scores.drop("class-lm", CLASSES[0])
    with pytest.raises(StoreError, match="Sci/Tech"):
        compare_runs([run])


def test_only_the_chosen_systems_are_compared(run):
    assert named(compare_runs([run], systems=[("tfidf",)])) == {"tfidf": [str(run.path)]}


def test_a_warning_of_one_run_alone_is_told_with_its_name(run, tmp_path):
    other = another(tmp_path / "b", right=0.8, training={"seed": 1})
    other.write_manifest({**other.manifest(), "notes": ["3 texts also stand in the test split"]})
    notes = compare_runs([run, other]).notes
    assert f"{other.path}: 3 texts also stand in the test split" in notes


def make_pair(a: str, b: str, difference: float, p: float = 0.001) -> PairReport:
    return PairReport(
        a=a, b=b, sample=None, difference=difference, low=difference - 0.02,
        high=difference + 0.02, sources=("texts",), only_a=5, only_b=1, mcnemar_p=p,
        mcnemar_method="exact", bootstrap_p=p, holm_p=p, holm_of="mcnemar",
    )  # fmt: skip


@pytest.mark.parametrize("turned", [False, True])
@pytest.mark.parametrize(
    ("difference", "p", "verdict"),
    [(0.1, 0.001, "yes"), (-0.1, 0.001, "no"), (0.01, 0.001, "not shown"), (0.1, 0.2, "not shown")],
)
def test_answers_go_by_interval_and_corrected_p(difference, p, verdict, turned):
    pair = make_pair("class-lm", "zero-shot", difference, p)
    if turned:
        pair = make_pair("zero-shot", "class-lm", -difference, p)
    first, second, *_ = answers([pair], [])
    assert first.verdict == verdict
    assert f"{points(difference)} points" in first.words
    assert second.verdict == "not asked"


def test_variants_must_agree():
    better = make_pair("class-lm (epochs=1.0)", "tfidf", 0.1)
    worse = make_pair("tfidf", "class-lm (epochs=3.0)", 0.1)
    question = "Are the class models better than TF-IDF with logistic regression?"
    both = next(a for a in answers([better, worse], []) if a.question == question)
    assert both.verdict == "not shown"
    assert "variants differ" in both.words
    assert "class-lm (epochs=3.0) minus tfidf: −10.0 points (−12.0 to −8.0" in both.words
    one = next(a for a in answers([better], []) if a.question == question)
    assert one.verdict == "yes"


def elsewhere(comparison: Comparison) -> Comparison:
    """Give a comparison as if it were on other test texts."""
    return comparison.model_copy(
        update={"test": comparison.test.model_copy(update={"fingerprint": "0" * 64})}
    )


def test_the_pattern_on_other_data(run):
    score_anew(run, 0.9, 1)
    score_anew(run, 0.6, 2, "tfidf")
    here = compare_runs([run])
    assert {a.verdict for a in here.questions} == {"yes", "not asked"}
    assert here.questions[-1].verdict == "not asked"
    score_anew(run, 0.4, 3)
    there = compare_runs([run], [elsewhere(here)])
    assert there.questions[-1].verdict == "no"
    assert "No here; yes on news <demo>" in there.questions[-1].words
    assert compare_runs([run], [elsewhere(there)]).questions[-1].verdict == "yes"
    with pytest.raises(UsageError, match="says nothing of other ones"):
        compare_runs([run], [here])
