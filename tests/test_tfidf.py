"""The TF-IDF baseline writes the rows of every system, learned from the train split only."""

from __future__ import annotations

import random
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest
from bag_of_words_fixtures import digest_on, make_dataset

from gencls_core.errors import DataError
from gencls_core.scores import SCORE_SCHEMA, ScoreStore, ShardKey
from gencls_core.systems import System
from gencls_core.systems.commit import score_rows
from gencls_core.systems.tfidf import TfidfSystem

TOPICS = {
    "Sports": ["match", "team", "goal", "player", "season", "coach"],
    "Sci/Tech": ["chip", "software", "network", "data", "robot", "code"],
    "01": ["market", "stock", "bank", "profit", "trade", "price"],
}
Rows = Sequence[tuple[str, str | None]]


def make_rows(seed: int, per_class: int, classes: Sequence[str]) -> list[tuple[str, str | None]]:
    generator = random.Random(seed)
    rows: list[tuple[str, str | None]] = []
    for _ in range(per_class):
        for name in classes:
            words = generator.choices(TOPICS[name], k=4) + generator.choices(["the", "a"], k=4)
            rows.append((" ".join(words), name))
    return rows


@pytest.mark.parametrize("count", [2, 3])
def test_rows_are_log_posteriors_of_the_right_classes(tmp_path: Path, count: int) -> None:
    classes = tuple(TOPICS)[:count]
    test = [*make_rows(1, 30, classes), ("", None), ("unseen words only", None)]
    dataset = make_dataset(tmp_path / "data", classes, train=make_rows(0, 80, classes), test=test)
    system: System = TfidfSystem(seed=3)
    tables = score_rows(system, dataset, "test")
    assert (system.name, system.quantity) == ("tfidf", "log_posterior")
    assert list(tables) == list(classes)
    for name, table in tables.items():
        assert table.schema.equals(SCORE_SCHEMA)
        table.validate(full=True)
        assert table.column("example_id").to_pylist() == [f"test-{n}" for n in range(len(test))]
        assert table.column("label").to_pylist() == [label for _, label in test]
        assert table.column("num_tokens").to_pylist() == [len(text.split()) for text, _ in test]
        assert set(table.column("quantity").to_pylist()) == {"log_posterior"}
        store = ScoreStore(tmp_path / "scores")
        store.commit(ShardKey("tfidf", name, 0, 1), table, start=0, digest="d")
    scores_NC = np.stack([table.column("score").to_numpy() for table in tables.values()], axis=1)
    np.testing.assert_allclose(np.exp(scores_NC).sum(axis=1), 1.0, atol=1e-12)
    right = [
        classes[best] == label for best, (_, label) in zip(scores_NC.argmax(1), test, strict=True)
    ]
    assert sum(right) >= 0.95 * 30 * count
    again = score_rows(TfidfSystem(3), dataset, "test")
    assert all(again[name].equals(tables[name]) for name in classes)


def test_test_labels_and_validation_texts_are_not_learned_from(tmp_path: Path) -> None:
    classes = ("Sports", "01")
    train, test = make_rows(0, 20, classes), make_rows(1, 10, classes)
    swapped: Rows = [(text, classes[label == classes[0]]) for text, label in test]
    first = make_dataset(tmp_path / "a", classes, train=train, test=test, validation=test)
    second = make_dataset(tmp_path / "b", classes, train=train, test=swapped, validation=swapped)
    ours, theirs = (
        score_rows(TfidfSystem(), first, "test"),
        score_rows(TfidfSystem(), second, "test"),
    )
    for name in classes:
        assert ours[name].column("score").equals(theirs[name].column("score"))
    assert digest_on(TfidfSystem(), first) != digest_on(TfidfSystem(), second)
    assert digest_on(TfidfSystem(), first) == digest_on(TfidfSystem(), first)
    assert digest_on(TfidfSystem(), first) != digest_on(TfidfSystem(seed=1), first)


@pytest.mark.parametrize("per_class", [1, 2, 3])
def test_few_texts(tmp_path: Path, per_class: int) -> None:
    classes = tuple(TOPICS)
    train: Rows = [(" ".join(TOPICS[name]), name) for name in classes] * per_class
    dataset = make_dataset(tmp_path / "d", classes, train=train, test=make_rows(0, 5, classes))
    tables = score_rows(TfidfSystem(), dataset, "test")
    scores_NC = np.stack([table.column("score").to_numpy() for table in tables.values()], axis=1)
    assert np.isfinite(scores_NC).all()
    assert list(scores_NC[:3].argmax(axis=1)) == [0, 1, 2]


def test_unlabelled_train_texts_are_passed_over(tmp_path: Path) -> None:
    classes = ("Sports", "01")
    train = [*make_rows(0, 5, classes), ("goal goal", None)]
    dataset = make_dataset(tmp_path / "d", classes, train=train, test=[("goal", None)])
    assert score_rows(TfidfSystem(), dataset, "test")["Sports"].column("score")[0].as_py() > np.log(
        0.5
    )


def test_no_words(tmp_path: Path) -> None:
    rows: Rows = [("!!! ???", "Sports"), (" … ", "01")] * 4
    dataset = make_dataset(tmp_path / "d", ("Sports", "01"), train=rows, test=rows)
    with pytest.raises(DataError, match=r"(?s)no word.*empty vocabulary.*--no-baseline"):
        score_rows(TfidfSystem(), dataset, "test")


def test_class_without_texts(tmp_path: Path) -> None:
    rows = make_rows(0, 3, ("Sports", "01"))
    dataset = make_dataset(tmp_path / "d", ("Sports", "01", "absent"), train=rows, test=rows)
    with pytest.raises(DataError, match="no text of absent"):
        score_rows(TfidfSystem(), dataset, "test")
    with pytest.raises(DataError, match="no validation split"):
        score_rows(
            TfidfSystem(),
            make_dataset(tmp_path / "e", ("Sports", "01"), train=rows, test=rows),
            "validation",
        )
