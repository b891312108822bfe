"""The systems without a language model: what each must decide, and what none of them can."""

from __future__ import annotations

import math
import subprocess
import sys
from collections import Counter
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from bag_of_words_fixtures import (
    FOUR,
    TOPICS,
    TWO,
    Rows,
    accuracy_of,
    digest_on,
    make_dataset,
    order_rows,
    pair_rows,
    scores_of,
    topic_rows,
)

from gencls_core.errors import DataError, UsageError
from gencls_core.posterior import log_posterior
from gencls_core.scores import SCORE_SCHEMA, ScoreStore, ShardKey
from gencls_core.storage import digest_of
from gencls_core.systems import System, bag_of_words, majority, naive_bayes, nbsvm, tfidf
from gencls_core.systems.commit import score_rows
from gencls_core.systems.majority import MajoritySystem
from gencls_core.systems.naive_bayes import NaiveBayesSystem
from gencls_core.systems.nbsvm import NbsvmSystem
from gencls_core.systems.registry import LIGHT_SYSTEMS, light_system
from gencls_core.systems.tfidf import TfidfSystem

LEARNING = ("tfidf", "nbsvm", "naive-bayes")
WITHOUT_EXTRAS = tuple(name for name in LIGHT_SYSTEMS if name != "setfit")


@pytest.mark.parametrize("name", WITHOUT_EXTRAS)
@pytest.mark.parametrize("classes", [TWO, FOUR], ids=["two", "four"])
def test_rows_of_every_system(tmp_path: Path, name: str, classes: tuple[str, ...]) -> None:
    test: Rows = [*topic_rows(1, 15, classes), ("", None), ("unseen words only", None)]
    dataset = make_dataset(tmp_path / "data", classes, train=topic_rows(0, 40, classes), test=test)
    system = light_system(name, seed=3)
    tables = score_rows(system, dataset, "test")
    assert system.name == name
    assert list(tables) == list(classes)
    store = ScoreStore(tmp_path / "scores")
    for class_name, table in tables.items():
        assert table.schema.equals(SCORE_SCHEMA)
        table.validate(full=True)
        assert table.column("example_id").to_pylist() == [f"test-{n}" for n in range(len(test))]
        assert table.column("label").to_pylist() == [label for _, label in test]
        assert set(table.column("quantity").to_pylist()) == {system.quantity}
        assert set(table.column("num_windows").to_pylist()) == {1}
        assert not any(table.column("truncated").to_pylist())
        store.commit(ShardKey(name, class_name, 0, 1), table, start=0, digest="d")
    scores_NC = scores_of(system, dataset)
    assert np.isfinite(scores_NC).all()
    if system.quantity == "log_posterior":
        np.testing.assert_allclose(np.exp(scores_NC).sum(axis=1), 1.0, atol=1e-12)
    again = score_rows(light_system(name, seed=3), dataset, "test")
    assert all(again[each].equals(tables[each]) for each in classes)


@pytest.mark.parametrize("name", LEARNING)
@pytest.mark.parametrize("classes", [TWO, FOUR], ids=["two", "four"])
def test_where_words_decide_all_win(tmp_path: Path, name: str, classes: tuple[str, ...]) -> None:
    test = topic_rows(1, 100, classes)
    dataset = make_dataset(tmp_path / "d", classes, train=topic_rows(0, 60, classes), test=test)
    assert accuracy_of(light_system(name), dataset, test) >= 0.98
    assert accuracy_of(MajoritySystem(), dataset, test) == 1 / len(classes)


@pytest.mark.parametrize(
    ("name", "wins"), [("tfidf", True), ("nbsvm", True), ("naive-bayes", False)]
)
def test_where_word_pairs_decide_naive_bayes_is_at_chance(
    tmp_path: Path, name: str, wins: bool
) -> None:
    test = pair_rows(1, 100)
    dataset = make_dataset(tmp_path / "d", train=pair_rows(0, 100), test=test)
    accuracy = accuracy_of(light_system(name), dataset, test)
    # Both texts of a two hold the same words: of each two, exactly one is right.
    assert accuracy >= 0.98 if wins else accuracy == 0.5


@pytest.mark.parametrize("name", WITHOUT_EXTRAS)
def test_where_long_range_order_decides_all_are_at_chance(tmp_path: Path, name: str) -> None:
    test = order_rows(1, 60)
    dataset = make_dataset(tmp_path / "d", train=order_rows(0, 60), test=test)
    scores_NC = scores_of(light_system(name), dataset)
    np.testing.assert_allclose(scores_NC[0::2], scores_NC[1::2], atol=1e-9)
    assert np.isclose(accuracy_of(light_system(name), dataset, test), 0.5, atol=0.1)


def test_majority_predicts_the_largest_train_class(tmp_path: Path) -> None:
    classes = ("Sports", "Sci/Tech", "01")
    train = [("w", "Sports")] * 3 + [("w", "Sci/Tech")] * 12 + [("w", "01")] * 5 + [("w", None)] * 9
    test: Rows = [("!!!", "Sci/Tech")] * 8 + [("", "01")] * 2
    dataset = make_dataset(tmp_path / "d", classes, train=train, test=test)
    scores_NC = scores_of(MajoritySystem(), dataset)
    wanted_C = np.log(np.array([4, 13, 6]) / 23)
    np.testing.assert_allclose(scores_NC, np.tile(wanted_C, (10, 1)), atol=1e-15)
    assert accuracy_of(MajoritySystem(), dataset, test) == 0.8
    # The prior is in it: Bayes' rule puts none on top.
    posterior_NC = log_posterior(
        scores_NC, dict(zip(classes, (0.9, 0.05, 0.05), strict=True)), quantity="log_posterior"
    )
    np.testing.assert_allclose(posterior_NC, scores_NC, atol=1e-12)


def unbalanced_rows(seed: int) -> list[tuple[str, str | None]]:
    rows = topic_rows(seed, 40, FOUR)
    kept = [row for n, row in enumerate(rows) if row[1] != "Sports" or n % 16 == 0]
    return [*kept, ("goal of nothing", None)]


def test_naive_bayes_is_the_formula(tmp_path: Path) -> None:
    smoothing = 0.3
    test: Rows = [*topic_rows(1, 5, FOUR), ("unseen goal goal UNSEEN Bank", None), ("§", None)]
    train = unbalanced_rows(0)
    dataset = make_dataset(tmp_path / "d", FOUR, train=train, test=test)
    tables = score_rows(NaiveBayesSystem(smoothing=smoothing), dataset, "test")
    known = {word for text, label in train if label for word in text.split()}
    for name in FOUR:
        counts = Counter(word for text, label in train if label == name for word in text.split())
        total = counts.total() + smoothing * len(known)
        for row, (text, _) in enumerate(test):
            words = [word for word in text.lower().split() if word in known]
            by_hand = math.fsum(math.log((counts[word] + smoothing) / total) for word in words)
            assert tables[name].column("score")[row].as_py() == pytest.approx(by_hand, rel=1e-12)
            assert tables[name].column("num_tokens")[row].as_py() == len(words)


def test_prior_goes_into_naive_bayes_once(tmp_path: Path) -> None:
    from sklearn.feature_extraction.text import CountVectorizer
    from sklearn.naive_bayes import MultinomialNB
    from sklearn.pipeline import make_pipeline

    train = unbalanced_rows(0)
    test = topic_rows(1, 10, FOUR)
    dataset = make_dataset(tmp_path / "d", FOUR, train=train, test=test)
    system = NaiveBayesSystem(smoothing=1.0)
    labelled = [(text, FOUR.index(label)) for text, label in train if label]
    texts, targets = zip(*labelled, strict=True)
    model = make_pipeline(CountVectorizer(token_pattern=r"\w+"), MultinomialNB(alpha=1.0))
    theirs_NC = model.fit(texts, targets).predict_log_proba([text for text, _ in test])
    counts = Counter(targets)
    assert len(set(counts.values())) > 1, "a prior that is uniform would prove nothing"
    prior = {name: counts[c] / len(targets) for c, name in enumerate(FOUR)}
    ours_NC = log_posterior(scores_of(system, dataset), prior, quantity=system.quantity)
    np.testing.assert_allclose(ours_NC, theirs_NC, atol=1e-10)


def test_smoothing_is_chosen_by_held_out_likelihood(tmp_path: Path) -> None:
    from sklearn.feature_extraction.text import CountVectorizer
    from sklearn.naive_bayes import MultinomialNB

    seed = 5
    # Words of one text only: a held-out text's own ones are unknown and must not count.
    rows = enumerate(topic_rows(0, 6, FOUR))
    train = [(f"{text} once{n} also{n}", name) for n, (text, name) in rows]
    texts, targets_N = [text for text, _ in train], np.array([FOUR.index(n) for _, n in train])
    likelihoods = {}
    for smoothing in naive_bayes._SMOOTHINGS:
        likelihoods[smoothing] = 0.0
        for fit, held in bag_of_words.folds_of(targets_N, seed):
            vectorizer = CountVectorizer(token_pattern=bag_of_words.WORD)
            counts = vectorizer.fit_transform(texts[n] for n in fit)
            model = MultinomialNB(alpha=smoothing).fit(counts, targets_N[fit])
            joint = vectorizer.transform([texts[n] for n in held]) @ model.feature_log_prob_.T
            likelihoods[smoothing] += joint[np.arange(len(held)), targets_N[held]].sum()
    best = max(likelihoods, key=likelihoods.__getitem__)
    assert best not in (min(likelihoods), max(likelihoods)), "planted so that neither end is best"
    dataset = make_dataset(tmp_path / "d", FOUR, train=train, test=train)
    np.testing.assert_array_equal(
        scores_of(NaiveBayesSystem(seed), dataset),
        scores_of(NaiveBayesSystem(seed, smoothing=best), dataset),
    )


@pytest.mark.parametrize("name", LEARNING)
@pytest.mark.parametrize("per_class", [1, 2, 3])
def test_few_texts(tmp_path: Path, name: str, per_class: int) -> None:
    train = [(" ".join(TOPICS[each]), each) for each in FOUR] * per_class
    dataset = make_dataset(tmp_path / "d", FOUR, train=train, test=topic_rows(0, 5, FOUR))
    scores_NC = scores_of(light_system(name), dataset)
    assert np.isfinite(scores_NC).all()
    assert (scores_NC.argmax(axis=1) == np.arange(20) % 4).all()


@pytest.mark.parametrize("name", LEARNING)
def test_folds_that_share_no_word(tmp_path: Path, name: str) -> None:
    train: Rows = [("one", "Sports"), ("two", "Sports"), ("three", "01"), ("four", "01")]
    dataset = make_dataset(tmp_path / "d", train=train, test=train)
    scores_NC = scores_of(light_system(name), dataset)
    assert np.isfinite(scores_NC).all()
    assert list(scores_NC.argmax(axis=1)) == [0, 0, 1, 1]


@pytest.mark.parametrize("name", LEARNING)
def test_fold_without_any_word(tmp_path: Path, name: str) -> None:
    train: Rows = [("…", "Sports"), ("one", "Sports"), ("!", "01"), ("?", "01")]
    dataset = make_dataset(tmp_path / "d", train=train, test=[*train, ("", None)])
    assert np.isfinite(scores_of(light_system(name), dataset)).all()


@pytest.mark.parametrize("name", WITHOUT_EXTRAS)
def test_refusals(tmp_path: Path, name: str) -> None:
    rows = topic_rows(0, 3, TWO)
    system = light_system(name)
    way_out = "--no-baseline" if name == "tfidf" else f"leave {name} out"
    absent = make_dataset(tmp_path / "a", (*TWO, "absent"), train=rows, test=rows)
    with pytest.raises(DataError, match=rf"(?s)train\.parquet: .*no text of absent.*{way_out}"):
        score_rows(system, absent, "test")
    single = make_dataset(tmp_path / "b", ("Sports",), train=rows[:1], test=rows[:1])
    with pytest.raises(DataError, match=rf"(?s)found: one class.*{way_out}"):
        score_rows(system, single, "test")
    with pytest.raises(DataError, match="no validation split"):
        score_rows(system, make_dataset(tmp_path / "c", train=rows, test=rows), "validation")
    wordless: Rows = [("!!! ???", "Sports"), (" … ", "01")] * 4
    if name != "majority":
        empty = make_dataset(tmp_path / "d", train=wordless, test=wordless)
        with pytest.raises(DataError, match=rf"(?s)no word.*empty vocabulary.*{way_out}"):
            score_rows(system, empty, "test")


@pytest.mark.parametrize("name", WITHOUT_EXTRAS)
def test_only_train_is_learned_from(tmp_path: Path, name: str) -> None:
    train, test = topic_rows(0, 10, TWO), topic_rows(1, 5, TWO)
    swapped: Rows = [(text, TWO[label == TWO[0]]) for text, label in test]
    first = make_dataset(tmp_path / "a", train=train, test=test, validation=test)
    second = make_dataset(tmp_path / "b", train=train, test=swapped, validation=swapped * 3)
    unlabelled: Rows = [*train, ("goal goal bank", None)]
    third = make_dataset(tmp_path / "c", train=unlabelled, test=test)
    scores_NC = scores_of(light_system(name), first)
    np.testing.assert_array_equal(scores_NC, scores_of(light_system(name), second))
    np.testing.assert_array_equal(scores_NC, scores_of(light_system(name), third))


def test_digest_covers_what_the_rows_depend_on(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    train, test = topic_rows(0, 4, TWO), topic_rows(1, 2, TWO)
    dataset = make_dataset(tmp_path / "a", train=train, test=test, validation=test[1:])
    other_text = [("another text", "Sports"), *train[1:]]
    changed = {
        "train text": make_dataset(tmp_path / "b", train=other_text, test=test),
        "train size": make_dataset(tmp_path / "c", train=[*train, train[0]], test=test),
        "test": make_dataset(tmp_path / "d", train=train, test=test[1:]),
        "order of classes": replace(dataset, classes=TWO[::-1]),
    }
    digests = {name: digest_on(light_system(name), dataset) for name in WITHOUT_EXTRAS}
    assert len(set(digests.values())) == len(WITHOUT_EXTRAS)
    for name, digest in digests.items():
        system = light_system(name)
        assert len(digest) == 64
        assert digest_on(light_system(name), dataset) == digest
        assert digest_on(system, dataset, "validation") != digest
        for what, found in changed.items():
            # Train texts say nothing to the majority class, only how many there are.
            same = name == "majority" and what == "train text"
            assert (digest_on(system, found) == digest) is same, (name, what)
        assert (digest_on(light_system(name, seed=1), dataset) == digest) is (name == "majority")
    assert digest_on(NaiveBayesSystem(smoothing=1.0), dataset) != digests["naive-bayes"]
    assert digest_on(NbsvmSystem(interpolation=0.5), dataset) != digests["nbsvm"]
    settings: list[tuple[str, object, str, object]] = [
        ("tfidf", tfidf, "TFIDF_FORMAT", 99),
        ("tfidf", tfidf, "_STRENGTHS", (1.0,)),
        ("nbsvm", nbsvm, "NBSVM_FORMAT", 99),
        ("nbsvm", nbsvm, "_STRENGTHS", (1.0,)),
        ("nbsvm", nbsvm, "_RATIO_SMOOTHING", 2.0),
        ("nbsvm", nbsvm, "_TOLERANCE", 0.5),
        ("nbsvm", nbsvm, "version", lambda package: "0"),
        ("naive-bayes", naive_bayes, "NAIVE_BAYES_FORMAT", 99),
        ("naive-bayes", naive_bayes, "_SMOOTHINGS", (1.0,)),
        ("majority", majority, "MAJORITY_FORMAT", 99),
        *((name, bag_of_words, "version", lambda package: "0") for name in LEARNING),
    ]
    for name, module, setting, value in settings:
        with monkeypatch.context() as patch:
            patch.setattr(module, setting, value)
            assert digest_on(light_system(name), dataset) != digests[name], (
                name,
                setting,
            )


def test_digest_of_tfidf_is_what_it_was(tmp_path: Path) -> None:
    """Rows that runs have committed are not made again."""
    from importlib.metadata import version

    dataset = make_dataset(tmp_path / "a", train=topic_rows(0, 2, TWO), test=topic_rows(1, 2, TWO))
    assert digest_on(TfidfSystem(7), dataset) == digest_of(
        {
            "format": 1,
            "seed": 7,
            "classes": TWO,
            "train": dataset.split("train").fingerprint,
            "scored": dataset.split("test").fingerprint,
            "strengths": (0.1, 1.0, 10.0, 100.0),
            "scikit-learn": version("scikit-learn"),
        }
    )


@pytest.mark.parametrize(
    "make", [lambda: NaiveBayesSystem(smoothing=0.0), lambda: NbsvmSystem(interpolation=1.5)]
)
def test_settings_out_of_bounds(make: Callable[[], System]) -> None:
    with pytest.raises(ValueError, match="must"):
        make()


def test_registry() -> None:
    assert tuple(LIGHT_SYSTEMS) == ("setfit", "tfidf", "nbsvm", "naive-bayes", "majority")
    with pytest.raises(UsageError, match=r"(?s)no such system.*did you mean 'naive-bayes'"):
        light_system("naive_bayes")
    code = (
        "import sys; from gencls_core.systems.registry import LIGHT_SYSTEMS, light_system\n"
        "for name in LIGHT_SYSTEMS: light_system(name)\n"
        "assert not {'sklearn', 'torch'} & set(sys.modules)"
    )
    subprocess.run([sys.executable, "-c", code], check=True)
