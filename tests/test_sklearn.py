"""GenerativeClassifier: scikit-learn's own rules, and the run that it leaves."""

from __future__ import annotations

import copy
import gc
import pickle
import random
import subprocess
import sys
from pathlib import Path

import numpy as np
import pandas as pd
import pyarrow.parquet as pq
import pytest
import torch
from cluster_fixtures import succeed
from model_fixtures import make_model_folder
from run_fixtures import CLASSES, make_config, sentences, write_jsonl
from s3_fixtures import S3Server, s3
from sklearn.base import clone
from sklearn.exceptions import NotFittedError
from sklearn.model_selection import GridSearchCV, cross_val_predict, cross_val_score
from sklearn.pipeline import Pipeline
from sklearn.preprocessing import FunctionTransformer
from sklearn.utils import estimator_checks
from sklearn.utils.estimator_checks import check_estimator
from sklearn.utils.validation import check_is_fitted, validate_data

from cluster.pipeline import train_models
from gencls_core import ClassifierRun, GenerativeClassifier
from gencls_core.class_models import ClassModel
from gencls_core.config import DataConfig, ModelConfig, SequenceConfig, TrainingConfig
from gencls_core.errors import DataError, ModelError, UsageError
from gencls_core.run import RunDirectory

__all__ = ["s3"]

TEXTS = [text for label in CLASSES for text in sentences(label, 12, 3)]
LABELS = [label for label in CLASSES for _ in range(12)]
NEW = [text for label in CLASSES for text in sentences(label, 5, 4)]


@pytest.fixture(scope="module")
def base(tmp_path_factory) -> str:
    return str(make_model_folder(tmp_path_factory.mktemp("base") / "base", "gpt2", context=64))


@pytest.fixture(scope="module")
def settings(base) -> dict:
    return {"model": base, "epochs": 2, "learning_rate": 5e-3}


@pytest.fixture(scope="module")
def fitted(settings) -> GenerativeClassifier:
    return GenerativeClassifier(**settings).fit(TEXTS, LABELS)


# Of an estimator that takes texts scikit-learn yields no check but that it can be cloned, and warns
# of it: the rest feeds numbers. Those that need no data are asked for by name.
@pytest.mark.filterwarnings("ignore:Can't test estimator")
def test_check_estimator():
    assert {found["status"] for found in check_estimator(GenerativeClassifier())} == {"passed"}


@pytest.mark.parametrize(
    "check",
    [
        "check_estimator_cloneable", "check_estimator_tags_renamed", "check_valid_tag_types",
        "check_estimator_repr", "check_no_attributes_set_in_init",
        "check_do_not_raise_errors_in_init_or_set_params", "check_mixin_order",
        "check_parameters_default_constructible", "check_get_params_invariance",
        "check_set_params",
    ],
)  # fmt: skip
def test_checks_that_need_no_numbers(check, settings):
    getattr(estimator_checks, check)("GenerativeClassifier", GenerativeClassifier(**settings))


class OnNumbers(GenerativeClassifier):
    """Reads rows of numbers as texts, so that scikit-learn can feed it."""

    def __init__(self, model="gpt2", *, epochs=1, learning_rate=5e-3, max_length=16):
        super().__init__(model, epochs=epochs, learning_rate=learning_rate, max_length=max_length)

    def fit(self, X, y):
        X = validate_data(self, X) if y is None else validate_data(self, X, y)[0]
        return super().fit(written(X), y)

    def predict_log_proba(self, X):
        check_is_fitted(self, "run_")
        return super().predict_log_proba(written(validate_data(self, X, reset=False)))

    def __sklearn_tags__(self):
        tags = super().__sklearn_tags__()
        tags.input_tags.two_d_array, tags.input_tags.one_d_array = True, False
        tags.input_tags.string = False
        return tags


def written(X):
    return [" ".join(f"{value:.2f}" for value in row) for row in X]


@pytest.mark.slow
def test_all_checks_of_scikit_learn_on_written_numbers(base):
    found = check_estimator(OnNumbers(base), on_fail=None, on_skip=None)
    assert len(found) > 45
    assert [
        (one["check_name"], one["exception"]) for one in found if one["status"] == "failed"
    ] == []


def test_probabilities(fitted):
    found_NK = fitted.predict_proba(NEW)
    assert found_NK.shape == (len(NEW), len(CLASSES))
    np.testing.assert_allclose(found_NK.sum(axis=1), 1)
    np.testing.assert_allclose(np.log(found_NK), fitted.predict_log_proba(NEW), atol=1e-12)
    assert fitted.classes_.tolist() == sorted(CLASSES)
    np.testing.assert_array_equal(fitted.predict(NEW), fitted.classes_[found_NK.argmax(axis=1)])
    truth = [label for label in CLASSES for _ in range(5)]
    assert fitted.score(NEW, truth) == np.mean(fitted.predict(NEW) == truth) > 0.8
    assert fitted.predict([]).shape == (0,)


@pytest.mark.parametrize(
    ("labels", "classes"),
    [
        ([3, 1, 2], [1, 2, 3]),
        (["b", "ü", "a"], ["a", "b", "ü"]),
        ([True, False, True], [False, True]),
        (np.array(["b", "c", "a"], dtype=object), ["a", "b", "c"]),
        (pd.Series([30, 10, 20]), [10, 20, 30]),
    ],
)
def test_labels_come_back_as_they_were(settings, labels, classes):
    kinds = dict(zip(CLASSES, labels, strict=True))
    y = np.array([kinds[label] for label in LABELS], dtype=np.asarray(labels).dtype)
    found = GenerativeClassifier(**settings).fit(pd.Series(TEXTS), y)
    assert found.classes_.tolist() == classes
    assert found.classes_.dtype == found.predict(NEW).dtype == y.dtype
    assert set(found.predict(NEW).tolist()) <= set(classes)
    assert found.run_.classes == tuple(map(str, classes))


def test_fitting_twice_is_fitting_once(settings, fitted):
    again = clone(fitted)
    assert not hasattr(again, "run_")
    assert again.get_params() == fitted.get_params()
    probabilities = again.fit(TEXTS, LABELS).predict_proba(NEW)
    np.testing.assert_array_equal(probabilities, fitted.predict_proba(NEW))
    before = again.__dict__ | {}
    again.predict(NEW)
    assert again.__dict__ == before
    for text, expected in zip(NEW[:3], probabilities[:3], strict=True):
        np.testing.assert_allclose(again.predict_proba([text])[0], expected, atol=1e-4)
    first = again._folder
    again.fit(TEXTS[:24], LABELS[:24])
    assert again.classes_.tolist() == list(CLASSES[:2])
    assert not first.exists()


def test_it_says_how_training_goes_when_asked(settings, capsys):
    GenerativeClassifier(**settings).fit(TEXTS, LABELS)
    assert capsys.readouterr().out == ""
    GenerativeClassifier(**settings, verbose=1).fit(TEXTS, LABELS)
    lines = capsys.readouterr().out.splitlines()
    assert {line.split(":")[0] for line in lines} == set(CLASSES)
    assert all("loss" in line and "held-out" in line for line in lines if "epoch 2.0" in line)


def test_random_numbers_go_on(settings):
    def drawn():
        return random.random(), np.random.random(), torch.rand(1).item()

    def seeded():
        random.seed(5)
        np.random.seed(5)
        torch.manual_seed(5)

    seeded()
    expected = drawn()
    seeded()
    GenerativeClassifier(**settings).fit(TEXTS, LABELS)
    assert drawn() == expected


def test_it_goes_where_estimators_go(settings, fitted, tmp_path):
    folder = fitted._folder
    found = [pickle.loads(pickle.dumps(fitted)), copy.deepcopy(fitted)]
    for other in found:
        assert other._folder != folder
        np.testing.assert_array_equal(other.predict_proba(NEW), fitted.predict_proba(NEW))
    folders = [other._folder for other in found]
    del other, found
    gc.collect()
    assert not any(path.exists() for path in folders)
    assert folder.exists()
    kept = GenerativeClassifier(**settings, output_dir=tmp_path / "kept").fit(TEXTS, LABELS)
    other = pickle.loads(pickle.dumps(kept))
    del kept
    gc.collect()
    assert other.run_.path == tmp_path / "kept"
    assert other.predict(NEW[:1]).tolist() == fitted.predict(NEW[:1]).tolist()
    bare = pickle.loads(pickle.dumps(GenerativeClassifier(**settings)))
    assert bare.get_params() == GenerativeClassifier(**settings).get_params()


def test_a_temporary_folder_goes_with_its_process(base):
    code = (
        "from gencls_core import GenerativeClassifier; "
        f"c = GenerativeClassifier({base!r}, epochs=1).fit({TEXTS!r}, {LABELS!r}); "
        "print(c._folder, c._folder.exists())"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True
    ).stdout.split()
    assert done[1] == "True"
    assert not Path(done[0]).exists()


def test_in_the_tools_of_scikit_learn(settings):
    estimator = GenerativeClassifier(**settings)
    texts, labels = np.array(TEXTS), np.array(LABELS)
    scores = cross_val_score(estimator, texts, labels, cv=2)
    assert scores.mean() > 0.7
    proba = cross_val_predict(estimator, TEXTS, LABELS, cv=2, method="predict_proba")
    assert proba.shape == (len(TEXTS), 3)
    pipeline = Pipeline(
        [("lower", FunctionTransformer(lambda X: [x.lower() for x in X])), ("lm", estimator)]
    )
    assert pipeline.fit(TEXTS, LABELS).score([text.upper() for text in TEXTS], LABELS) > 0.7
    search = GridSearchCV(pipeline, {"lm__prior": ["train", "uniform"]}, cv=2)
    assert search.fit(TEXTS, LABELS).best_params_["lm__prior"] in ("train", "uniform")


@pytest.mark.parametrize(
    ("changes", "X", "y", "error", "words"),
    [
        ({}, [1.5, "a"], ["x", "y"], UsageError, r"texts\[0\]: not a text"),
        ({}, [["a"], ["b"]], ["x", "y"], UsageError, r"texts\[0\]"),
        ({}, ["a", "b"], None, ValueError, "requires y to be passed"),
        ({}, ["a", "b"], ["x"], ValueError, "inconsistent numbers of samples"),
        ({}, ["a", "b"], pd.Series(["x", None]), ValueError, r"y\[1\]: no label"),
        ({}, [], [], ValueError, "0 sample"),
        ({}, ["a", "b"], [0.5, 1.5], ValueError, "Unknown label type"),
        ({}, ["a", "b"], ["x", "x"], ValueError, "one class only"),
        ({}, ["a", " "], ["x", "y"], DataError, "row 1 .from 0.: empty text"),
        ({}, ["a", "b"], ["x", " "], UsageError, "told apart by their names"),
        ({"recipe": "auto"}, ["a", "b"], ["x", "y"], UsageError, "chosen by `gencls run`"),
        ({"recipe": "best"}, ["a", "b"], ["x", "y"], UsageError, "recipe"),
        ({"epochs": -1}, ["a", "b"], ["x", "y"], UsageError, "epochs"),
        ({"prior": "z=1"}, ["a", "b"], ["x", "y"], UsageError, "names no class"),
        ({"model": "./absent"}, ["a", "b"], ["x", "y"], ModelError, "no such model folder"),
        ({"model": "scratch:none"}, ["a", "b"], ["x", "y"], ModelError, "no such preset"),
    ],
)
def test_mistakes(settings, changes, X, y, error, words, tmp_path):
    estimator = GenerativeClassifier(**settings | changes, output_dir=tmp_path / "run")
    with pytest.raises(error, match=words):
        estimator.fit(X, y)
    assert not (tmp_path / "run").exists()
    with pytest.raises(NotFittedError):
        estimator.predict(["a"])


def test_defaults_are_those_of_the_command():
    defaults = GenerativeClassifier().get_params()
    for section in (DataConfig, ModelConfig, SequenceConfig, TrainingConfig):
        for name, field in section.model_fields.items():
            if name in defaults:
                assert defaults[name] == field.default, name


@pytest.mark.ray
@pytest.mark.usefixtures("shared_ray")
@pytest.mark.parametrize("recipe", ["independent", "joint"])
def test_it_is_the_run_that_the_command_trains(tmp_path, recipe):
    """The same texts and settings: the same models by digest, the same answers, of either."""
    # Without dropout, which is drawn anew for each pass: a plan may choose passes of another size.
    make_model_folder(tmp_path / "base", "llama")
    data = tmp_path / "data"
    write_jsonl(
        data / "train.jsonl",
        [{"text": text, "label": label} for text, label in zip(TEXTS, LABELS, strict=True)],
    )
    tests = [{"text": text, "label": CLASSES[n // 5]} for n, text in enumerate(NEW)]
    write_jsonl(data / "test.jsonl", tests)
    config = make_config(
        tmp_path, recipe={"recipe": recipe}, data={"validation_fraction": 0.1},
        output_dir=str(tmp_path / "command"),
    )  # fmt: skip
    for _ in train_models(config):
        pass
    commanded = RunDirectory(tmp_path / "command")
    estimator = GenerativeClassifier(
        str(tmp_path / "base"), recipe=recipe, epochs=2, learning_rate=5e-3, calibrate=False,
        output_dir=tmp_path / "fit",
    ).fit(TEXTS, LABELS)  # fmt: skip
    run = RunDirectory(tmp_path / "fit")
    for name in CLASSES if recipe == "independent" else ("",):
        mine, theirs = (
            ClassModel.open(found.model_path(name, run.system)) for found in (run, commanded)
        )
        assert mine.digest == theirs.digest
        assert mine.training.steps == theirs.training.steps
    trained = ClassifierRun.open(commanded.path)
    np.testing.assert_allclose(
        estimator.run_.log_likelihoods(NEW), trained.log_likelihoods(NEW), atol=2e-3
    )
    assert run.manifest()["training"] == commanded.manifest()["training"]
    # The command takes what fit has left.
    succeed("verify", run.path)
    file = write_jsonl(tmp_path / "new.jsonl", [{"text": text} for text in NEW])
    out = tmp_path / "out.parquet"
    succeed("classify", "--model-dir", run.path, file, "--output", out, "--actors", "1")
    rows = pq.read_table(out)
    assert rows["answer"].to_pylist() == estimator.predict(NEW).tolist()
    estimator.set_params(calibrate=True)
    assert rows["calibrated_predicted"].to_pylist() == estimator.predict(NEW).tolist()
    np.testing.assert_allclose(
        estimator.predict_proba(NEW).max(axis=1), rows["calibrated_probability"], atol=2e-3
    )


def test_in_an_object_store(s3: S3Server, settings, fitted):
    place = s3.path("fit").uri
    kept = GenerativeClassifier(**settings, output_dir=place).fit(TEXTS, LABELS)
    np.testing.assert_array_equal(kept.predict_proba(NEW), fitted.predict_proba(NEW))
    run = pickle.loads(pickle.dumps(ClassifierRun.open(place)))
    assert run.classify(NEW[:1])[0].predicted == kept.predict(NEW[:1])[0]
    assert run.scores("validation").num_rows == 9
    assert run.report() is None


def test_fitting_again_in_its_folder_trains_nothing(settings, tmp_path):
    estimator = GenerativeClassifier(**settings, output_dir=tmp_path / "run").fit(TEXTS, LABELS)
    models = sorted(estimator.run_.path.rglob("*.safetensors"))
    times = [path.stat().st_mtime_ns for path in models]
    estimator.fit(TEXTS, LABELS)
    assert [path.stat().st_mtime_ns for path in models] == times
    estimator.fit(TEXTS[:-6], LABELS[:-6])  # the last class has other texts
    assert [
        path.stat().st_mtime_ns == time for path, time in zip(models, times, strict=True)
    ].count(False) == 1


def test_without_held_out_texts_there_is_no_calibration(settings):
    estimator = GenerativeClassifier(**settings, validation_fraction=0).fit(TEXTS, LABELS)
    plain = estimator.run_.predict_log_proba(NEW)
    np.testing.assert_array_equal(estimator.predict_log_proba(NEW), plain)
    assert any("no validation text" in note for note in estimator.run_.notes)
