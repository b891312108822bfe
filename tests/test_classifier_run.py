"""A run used from Python says what `gencls classify` and the run's own files say."""

from __future__ import annotations

import pickle
from pathlib import Path

import numpy as np
import pandas as pd
import polars as pl
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from cluster_fixtures import succeed
from run_fixtures import CLASSES, make_config, sentences, write_jsonl
from scipy.special import log_softmax
from transformers import AutoModelForCausalLM, AutoTokenizer

from cluster.pipeline import run_all, train_models
from gencls_core import Classification, ClassifierRun
from gencls_core.errors import StoreError, UsageError
from gencls_core.run import RunDirectory

pytestmark = [pytest.mark.ray, pytest.mark.usefixtures("shared_ray")]

# Texts are batched otherwise here than in shards: float32 rounds otherwise.
NATS = 2e-3

RUNS = {
    "independent": {"posterior": {"prior": "uniform"}, "sequence": {"max_length": 12}},
    "joint with TF-IDF": {"recipe": {"recipe": "joint"}, "posterior": {"ensemble": "tfidf"}},
    "fine-tune": {"posterior": {"ensemble": "discriminative"}},
    "adapters by losses": {"model": {"lora_rank": 2}, "scoring": {"likelihood": "loss"}},
}
SECOND = {"joint with TF-IDF": "tfidf", "fine-tune": "discriminative"}


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    return tmp_path_factory.mktemp("used from Python")


@pytest.fixture(scope="module")
def runs(folder) -> dict[str, RunDirectory]:
    for name, changes in RUNS.items():
        config = make_config(
            folder, **changes, compute={"actors": 1}, output_dir=str(folder / name)
        )
        for _ in run_all(config):
            pass
    return {name: RunDirectory(folder / name) for name in RUNS}


def new_texts() -> list[str]:
    return [text for label in CLASSES for text in sentences(label, 6, 9)]


@pytest.mark.parametrize("name", RUNS)
def test_new_texts_get_the_answer_of_the_command(runs, tmp_path, name):
    texts = new_texts()
    file = write_jsonl(tmp_path / "new.jsonl", [{"text": text} for text in texts])
    found = ClassifierRun.open(runs[name].path).classify(texts)
    for prior in (None, "unlabelled"):
        flags = [] if prior is None else ["--prior", prior]
        succeed(
            "classify", "--model-dir", runs[name].path, file, "--output", tmp_path / "out.parquet",
            "--actors", "1", *flags,
        )  # fmt: skip
        rows = pq.read_table(tmp_path / "out.parquet").to_pylist()
        if prior is not None:
            found = ClassifierRun.open(runs[name].path).classify(texts, prior=prior)
        calibrated = name in SECOND
        for one, row in zip(found, rows, strict=True):
            probability = row["calibrated_probability" if calibrated else "probability"]
            assert one.predicted == row["answer"]
            assert max(one.probabilities.values()) == pytest.approx(probability, abs=NATS)
            assert sum(one.probabilities.values()) == pytest.approx(1)
            assert (one.num_tokens, one.truncated) == (row["num_tokens"], row["truncated"])
            assert one.second_system == SECOND.get(name)
            assert one.decided is one.expected_cost is row["decided"] is None
            assert tuple(one.probabilities) == tuple(one.log_likelihoods) == CLASSES
    assert any(one.truncated for one in found) == (name == "independent")


@pytest.mark.parametrize("name", RUNS)
def test_the_runs_own_texts_get_its_own_scores_and_predictions(runs, name):
    run = ClassifierRun.open(runs[name].path)
    texts = runs[name].dataset().read("test")
    assert run.classes == CLASSES
    scores = run.scores(system=runs[name].system)
    nats_NK = run.log_likelihoods(texts["text"])
    assert nats_NK.dtype == np.float64
    assert nats_NK.shape == (len(texts), len(CLASSES))
    for column, label in enumerate(CLASSES):
        stored = scores.filter(pa.compute.equal(scores["class"], label)).sort_by("example_id")
        order = pa.compute.sort_indices(texts["example_id"])
        np.testing.assert_allclose(nats_NK[order, column], stored["score"], atol=NATS)
    predictions = run.predictions()
    said = run.classify(texts["text"])
    assert [one.predicted for one in said] == predictions["answer"].to_pylist()
    probabilities_NK = run.predict_proba(texts["text"])
    np.testing.assert_array_equal(
        probabilities_NK, [list(one.probabilities.values()) for one in said]
    )
    report = run.report()
    assert report is not None
    assert report.num_examples == len(texts)


def test_likelihoods_are_the_naive_formula_in_float64(runs):
    """log P(text) = Σ log softmax(logits)[next token], from the separator to the end."""
    text = "goal medal 天 1."
    [found_K] = ClassifierRun.open(runs["fine-tune"].path).log_likelihoods([text])
    for name, found in zip(CLASSES, found_K, strict=True):
        folder = runs["fine-tune"].model_path(name)
        tokenizer = AutoTokenizer.from_pretrained(folder)
        model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float64).eval()
        ids = [tokenizer.bos_token_id, *tokenizer(text).input_ids, tokenizer.eos_token_id]
        with torch.no_grad():
            logits_TV = model(torch.tensor([ids])).logits[0]
        nats_TV = logits_TV.log_softmax(dim=1).numpy()
        naive = sum(nats_TV[place, token] for place, token in enumerate(ids[1:]))
        assert found == pytest.approx(naive, abs=1e-3)


def test_bayes_by_hand(runs):
    run = ClassifierRun.open(runs["independent"].path)
    texts = new_texts()
    nats_NK = run.log_likelihoods(texts)
    np.testing.assert_allclose(
        run.predict_log_proba(texts), log_softmax(nats_NK, axis=1), rtol=1e-12, atol=1e-12
    )
    prior = dict(zip(CLASSES, (0.7, 0.2, 0.1), strict=True))
    asked = ",".join(f"{name}={value}" for name, value in prior.items())
    expected = log_softmax(nats_NK + np.log(list(prior.values())), axis=1)
    found = run.predict_proba(texts, prior=asked)
    np.testing.assert_allclose(found, np.exp(expected), rtol=1e-9, atol=1e-12)
    calibrated = run.predict_log_proba(texts, calibrated=True)
    assert not np.allclose(calibrated, run.predict_log_proba(texts))


def test_models_are_loaded_once_and_texts_scored_together(runs, monkeypatch):
    import gencls_core.trained_run as module

    run = ClassifierRun.open(str(runs["joint with TF-IDF"].path))
    texts = new_texts()
    first = run.classify(texts)
    models = run._models
    monkeypatch.setattr(module, "_AT_ONCE", 5)
    again = run.classify(texts)  # in several parts, in the same order
    assert run._models is models
    for one, other in zip(first, again, strict=True):
        assert one.predicted == other.predicted
        assert one.log_likelihoods == pytest.approx(other.log_likelihoods, abs=NATS)


def test_any_kind_of_column(runs):
    run = ClassifierRun.open(runs["independent"].path)
    texts = new_texts()[:3]
    said = run.classify(texts)
    frame = pa.table({"text": texts})
    for given in (
        tuple(texts), iter(texts), np.array(texts), np.array(texts, dtype=object), frame["text"],
        pd.Series(texts), pl.Series(texts),
    ):  # fmt: skip
        assert run.classify(given) == said
    for nothing in ([], np.array([], dtype=object), pd.Series([], dtype=str)):
        assert run.classify(nothing) == []
        assert run.predict_proba(nothing).shape == (0, 3)
        assert run.log_likelihoods(nothing).shape == (0, 3)
    [empty] = run.classify([""])
    assert isinstance(empty, Classification)
    assert empty.num_tokens == 1  # its end


@pytest.mark.parametrize(
    ("texts", "words"),
    [
        ("one text", ["one text where several", r"\[text\]"]),
        (["a", 3.5], [r"texts\[1\]: not a text", "found: float 3.5", "expected: str"]),
        (["a", None], [r"texts\[1\]", "NoneType None"]),
        (np.array([["a", "b"]]), ["one column of texts", r"ndarray of shape \(1, 2\)"]),
        (pd.DataFrame({"text": ["a"]}), [r"DataFrame of shape \(1, 1\)", r"frame\['text'\]"]),
        (pa.table({"text": ["a"]}), ["one column of texts"]),
        ([["a"]], [r"texts\[0\]", r"found: list \['a'\]"]),
        (["a\ud800"], [r"texts\[0\]", "half of a surrogate pair at character 1"]),
        (7, ["not a sequence of texts", "int"]),
    ],
)
def test_what_is_no_text_is_named(runs, texts, words):
    run = ClassifierRun.open(runs["independent"].path)
    for method in (run.classify, run.predict_proba, run.log_likelihoods):
        for word in words:
            with pytest.raises(UsageError, match=word):
                method(texts)


def test_what_is_no_run(runs, folder, tmp_path):
    with pytest.raises(StoreError, match="no such run directory"):
        ClassifierRun.open(tmp_path / "absent")
    with pytest.raises(StoreError, match=r"no run\.json"):
        ClassifierRun.open(tmp_path)
    with pytest.raises(UsageError, match="unknown kind"):
        ClassifierRun.open("ftp://host/run")
    run = ClassifierRun.open(runs["independent"].path)
    with pytest.raises(UsageError, match="names no class"):
        run.classify(["a"], prior="football=1")
    with pytest.raises(UsageError, match="'test' or 'validation'"):
        run.scores("train")
    with pytest.raises(UsageError, match="neither text nor example"):
        run.explain()


def test_a_run_that_is_not_done_yet(folder):
    config = make_config(folder, output_dir=str(folder / "half"), class_id=0)
    for _ in train_models(config):
        pass
    run = ClassifierRun.open(folder / "half")
    assert run.report() is None
    assert run.scores().num_rows == 0
    with pytest.raises(StoreError, match="gencls report"):
        run.predictions()
    with pytest.raises(StoreError, match=r"--class-id 1(.|\n)*gencls train"):
        run.classify(["a"])


def test_tables_are_frames(runs):
    run = ClassifierRun.open(runs["joint with TF-IDF"].path)
    rows = run.scores()
    assert set(rows["system"].to_pylist()) == {"joint-lm", "tfidf"}
    assert pl.from_arrow(rows).height == rows.to_pandas().shape[0] == rows.num_rows
    assert run.scores("validation", system="joint-lm").num_rows == 3 * 4 * 3


def test_explained_by_the_models_that_are_loaded(runs):
    assert ClassifierRun.open(runs["fine-tune"].path).explain(example="test-3").text
    run = ClassifierRun.open(runs["independent"].path)
    text = new_texts()[0]
    [said] = run.classify([text])
    found = run.explain(text=text)
    a, b = found.class_name, found.against
    assert (found.text, a) == (text, said.predicted)
    nats = said.log_likelihoods  # of a uniform prior, and without calibration, they are all
    assert found.log_odds == pytest.approx(nats[a] - nats[b], abs=NATS)
    assert found.total == pytest.approx(found.log_odds, abs=1e-6)


def test_a_run_goes_to_another_process_by_its_place(runs):
    run = ClassifierRun.open(runs["independent"].path)
    said = run.classify(new_texts()[:2])
    other = pickle.loads(pickle.dumps(run))
    assert repr(other) == repr(run)
    assert other.classify(new_texts()[:2]) == said


def test_an_evaluation_is_a_run_too(runs, tmp_path):
    file = write_jsonl(tmp_path / "new.jsonl", [{"text": text} for text in new_texts()])
    source = runs["joint with TF-IDF"]
    succeed("classify", "--model-dir", source.path, file, "--output", tmp_path / "o.csv")
    [evaluation] = [
        path.parent
        for path in source.path.glob("evaluations/*/run.json")
        if RunDirectory(path.parent).dataset().split("test").rows == len(new_texts())
    ][:1]
    # Its prior is the one that it was asked with.
    run, texts = ClassifierRun.open(evaluation), new_texts()
    assert run.classify(texts, prior="train") == ClassifierRun.open(source.path).classify(texts)
