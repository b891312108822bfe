"""Whole runs on a real private Ray: what is made, what is reused, what is made again."""

from __future__ import annotations

import contextlib
import json
import math
import shutil
import threading
import time
from collections import Counter
from pathlib import Path

import psutil
import pyarrow.parquet as pq
import pytest
from run_fixtures import CLASSES, make_config, make_data, sentences, write_jsonl

from cluster.evaluation import classify_texts, evaluate_models
from cluster.pipeline import run_all, train_models
from gencls_core.class_models import ClassModel
from gencls_core.config import DataConfig
from gencls_core.datasets import Dataset
from gencls_core.errors import DataError, ModelError, ResourceError, StoreError, UsageError
from gencls_core.events import (
    ClassReused,
    ClassTrained,
    Event,
    Note,
    ShardCommitted,
    StageFinished,
    StageStarted,
    TrainingProgress,
)
from gencls_core.model_source import ResolvedModel
from gencls_core.models import load_causal_lm
from gencls_core.report.build import build_report
from gencls_core.run import RunDirectory
from gencls_core.scores import read_scores

pytestmark = [pytest.mark.ray, pytest.mark.usefixtures("shared_ray")]

TEST_ROWS = 14 * 3
SHARDS = math.ceil(TEST_ROWS / 16)


def kinds(events: list[Event]) -> Counter[str]:
    return Counter(type(event).__name__ for event in events)


@pytest.fixture(scope="module")
def first(tmp_path_factory) -> tuple[Path, list[Event]]:
    folder = tmp_path_factory.mktemp("first")
    return folder, list(run_all(make_config(folder)))


@pytest.fixture
def copy(first, tmp_path) -> Path:
    """Give a copy of the finished run, to be changed."""
    shutil.copytree(first[0], tmp_path / "copy")
    return tmp_path / "copy"


ONE_ACTOR = {"actors": 1}
"""Starting a process is most of a small stage; what is computed does not depend on their number."""


def rerun(folder: Path, source: Path, *, compute=ONE_ACTOR, **changes) -> list[Event]:
    """Run again in a copied run directory, on the data and base of the first."""
    config = make_config(source, compute=compute, **changes)
    return list(run_all(config.model_copy(update={"output_dir": folder / "run"})))


def test_every_class_is_trained_and_every_text_scored_once(first):
    folder, events = first
    run = RunDirectory(folder / "run")
    assert kinds(events)["ClassTrained"] == 3
    assert any(isinstance(event, TrainingProgress) for event in events)
    for name in CLASSES:
        record = json.loads((run.model_path(name) / "committed.json").read_text())
        assert record["class"] == name
        load_causal_lm(ResolvedModel.of_folder(name, run.model_path(name)))
    rows = read_scores(run.path / "scores", "class-lm").to_pylist()
    pairs = Counter((row["example_id"], row["class"]) for row in rows)
    assert len(pairs) == TEST_ROWS * 3
    assert set(pairs.values()) == {1}
    assert {row["example_id"] for row in rows} == {f"test-{n}" for n in range(TEST_ROWS)}


def test_scores_are_the_class_models_own(first):
    """Score one text anew from the committed folder alone."""
    import torch

    run = RunDirectory(first[0] / "run")
    table = read_scores(run.path / "scores", "class-lm").to_pylist()
    texts = {row["example_id"]: row["text"] for row in run.dataset().read("test").to_pylist()}
    for row in (table[0], table[-1]):
        lm = load_causal_lm(ResolvedModel.of_folder("x", run.model_path(row["class"])))
        sequence = [lm.bos_id, *lm.encode([texts[row["example_id"]]])[0], lm.eos_id]
        with torch.no_grad():
            logits = lm.model.double()(torch.tensor([sequence[:-1]])).logits[0]
        naive = torch.log_softmax(logits, -1)[range(len(sequence) - 1), sequence[1:]].sum().item()
        assert row["score"] == pytest.approx(naive, abs=1e-4)
        assert row["num_tokens"] == len(sequence) - 1


def test_report_and_manifest(first):
    run = RunDirectory(first[0] / "run")
    report = json.loads((run.report_path / "report.json").read_text())
    for key in ("accuracy", "accuracy_ci95", "confusion", "per_class"):
        assert {"uncalibrated", "calibrated"} <= set(report[key])
    assert report["accuracy"]["uncalibrated"] > 0.8, "the classes use different words"
    assert "tfidf" in report["baselines"]
    assert (run.report_path / "report.html").exists()
    manifest = run.manifest()
    assert manifest["status"] == "finished"
    assert manifest["classes"] == list(CLASSES)
    lines = run.events_path.read_text().splitlines()
    assert Counter(json.loads(line)["event"] for line in lines)["ShardCommitted"] >= SHARDS * 3


def test_the_same_run_again_does_nothing_and_says_so(first, copy):
    models = sorted((copy / "run" / "models").rglob("*"))
    before = {path: path.stat().st_mtime_ns for path in models}
    events = rerun(copy, first[0])
    assert kinds(events)["ClassTrained"] == 0
    assert kinds(events)["ShardCommitted"] == 0
    assert kinds(events)["ClassReused"] == 3
    said = [event.message for event in events if isinstance(event, StageStarted)]
    assert any(message.startswith("nothing to train") for message in said)
    assert sum(message.startswith("nothing to score") for message in said) == 2
    assert {path: path.stat().st_mtime_ns for path in models} == before


def test_a_deleted_shard_is_rescored_and_only_that_one(first, copy):
    scores = copy / "run" / "scores"
    before = read_scores(scores)
    victim = sorted((scores / "system=class-lm" / "class=01").glob("shard-*.parquet"))[1]
    victim.unlink()
    events = rerun(copy, first[0])
    committed = [event for event in events if isinstance(event, ShardCommitted)]
    assert [(e.split, e.class_name, e.shard) for e in committed] == [("test", "01", 1)]
    assert kinds(events)["ClassTrained"] == 0
    assert read_scores(scores).equals(before)


def test_one_flipped_byte_of_a_model_or_of_the_baseline_is_noticed(first, copy):
    """The sizes are right, and figures would be wrong."""
    run = RunDirectory(copy / "run")
    before = read_scores(run.path / "scores")
    weights = run.model_path("01") / "model.safetensors"
    (baseline,) = (run.path / "scores" / "system=tfidf" / "class=01").glob("shard-*.parquet")
    for path in (weights, baseline):
        content = path.read_bytes()
        middle = len(content) // 2
        path.write_bytes(content[:middle] + bytes([content[middle] ^ 1]) + content[middle + 1 :])
    events = rerun(copy, first[0])
    assert [event.class_name for event in events if isinstance(event, ClassTrained)] == ["01"]
    again = [event for event in events if isinstance(event, ShardCommitted)]
    assert {event.class_name for event in again} == {"01"}
    assert any(isinstance(e, StageFinished) and e.stage == "baseline" for e in events)
    assert ClassModel.open(run.model_path("01")).torn_files() == []
    assert run.scores.torn(run.scores.records()) == []
    after = read_scores(run.path / "scores")
    assert after.num_rows == before.num_rows


@pytest.mark.fault
def test_changed_training_trains_anew_and_mixes_nothing(first, copy):
    before = read_scores(copy / "run" / "scores", "class-lm")
    events = rerun(copy, first[0], training={"learning_rate": 4e-3})
    assert kinds(events)["ClassTrained"] == 3
    assert kinds(events)["ClassReused"] == 0
    after = read_scores(copy / "run" / "scores", "class-lm")
    assert len(after) == len(before)
    assert not set(after["score"].to_pylist()) & set(before["score"].to_pylist())


def test_more_epochs_train_anew_and_no_old_score_stays(first, copy):
    config = make_config(first[0], training={"epochs": 3})
    events = list(train_models(config.model_copy(update={"output_dir": copy / "run"})))
    assert kinds(events)["ClassTrained"] == 3
    assert kinds(events)["ClassReused"] == 0
    assert len(read_scores(copy / "run" / "scores", "class-lm")) == 0
    assert len(read_scores(copy / "run" / "validation-scores", "class-lm")) == 0


def kill_one(title: str, killed: list[int]) -> threading.Thread:
    """SIGKILL the first process of ours whose title begins so, as soon as there is one."""

    def watch():
        deadline = time.monotonic() + 60
        while not killed and time.monotonic() < deadline:
            for process in psutil.Process().children(recursive=True):
                with contextlib.suppress(psutil.Error):
                    if any(part.startswith(title) for part in process.cmdline()):
                        process.kill()
                        killed.append(process.pid)
                        break
            time.sleep(0.005)

    thread = threading.Thread(target=watch)
    thread.start()
    return thread


def test_a_killed_actor_costs_nothing(first, copy):
    before = read_scores(copy / "run" / "scores")
    shutil.rmtree(copy / "run" / "scores")
    killed: list[int] = []
    thread = kill_one("ray::ScoringActor.score", killed)
    events = rerun(copy, first[0], compute={"actors": 2})
    thread.join()
    assert len(killed) == 1
    notes = [event.message for event in events if isinstance(event, Note)]
    assert any("its actor died; trying again" in note for note in notes)
    assert read_scores(copy / "run" / "scores").equals(before)


def test_a_killed_training_is_started_again(tmp_path):
    killed: list[int] = []
    thread = kill_one("ray::_train", killed)
    events = list(train_models(make_config(tmp_path)))
    thread.join()
    assert len(killed) == 1
    assert kinds(events)["ClassTrained"] == 3


def test_a_stopped_rerun_leaves_no_mixture(first, copy):
    """New settings, stopped in training: no score of the old models stays to be reported."""
    config = make_config(first[0], training={"learning_rate": 1e-3})
    stream = run_all(config.model_copy(update={"output_dir": copy / "run"}))
    for event in stream:
        if isinstance(event, ClassTrained):
            break
    stream.close()
    run = RunDirectory(copy / "run")
    assert run.manifest()["status"] == "stopped"
    assert not run.predictions_path.exists()
    with pytest.raises(StoreError):
        build_report(run)
    with pytest.raises(StoreError, match="--class-id"):
        list(evaluate_models(run.path, None, {}))


def test_a_refused_run_leaves_the_finished_one_as_it_was(first, copy):
    """Other data with a model, prior or class number that cannot be: nothing is replaced."""
    before = {p: p.stat().st_mtime_ns for p in (copy / "run").rglob("*") if p.is_file()}
    make_data(copy / "other", train=5, test=4)
    data = {"data_dir": str(copy / "other")}
    for changes, error in (
        ({"model": {"model": "scratch:tinny"}}, ModelError),
        ({"posterior": {"prior": "01=1"}}, UsageError),
        ({"class_id": 9}, UsageError),
        ({"compute": {"memory_gb": 0.5}}, ResourceError),
    ):
        with pytest.raises(error):
            rerun(copy, first[0], data=data, **changes)
    assert {p: p.stat().st_mtime_ns for p in (copy / "run").rglob("*") if p.is_file()} == before


def test_other_data_replaces_all_that_was_made_of_the_old(first, copy):
    make_data(copy / "other", train=20, test=4)
    rerun(copy, first[0], data={"data_dir": str(copy / "other")})
    run = RunDirectory(copy / "run")
    assert len(read_scores(run.path / "scores", "class-lm")) == 4 * 3 * 3
    assert pq.read_table(run.predictions_path).num_rows == 12


def test_evaluating_with_other_settings_leaves_the_run_alone(first, copy):
    run = RunDirectory(copy / "run")
    before = read_scores(run.path / "scores")
    manifest = run.manifest()["config"]
    changes = {"scoring": {"likelihood": "loss"}, "compute": ONE_ACTOR}
    events = list(evaluate_models(run.path, None, changes))
    report = json.loads((Path(events[-1].message) / "report.json").read_text())
    assert report["likelihood_check"]["rows"] == TEST_ROWS * 3
    assert report["likelihood_check"]["max_abs_difference"] > 0
    assert any("loss-based" in note for note in report["notes"])
    assert read_scores(run.path / "scores").equals(before)
    assert run.manifest()["config"] == manifest
    assert json.loads((run.report_path / "report.json").read_text())["likelihood_check"] is None


def test_other_shards_leave_no_old_files(first, copy):
    rerun(copy, first[0], scoring={"shard_size": 40})
    files = list((copy / "run" / "scores" / "system=class-lm").rglob("shard-*"))
    assert sorted({path.name for path in files}) == [
        "shard-00000-of-00002.parquet",
        "shard-00001-of-00002.parquet",
    ]


def test_one_class_alone_then_the_rest(tmp_path):
    events = list(train_models(make_config(tmp_path, class_id=1)))
    trained = [event.class_name for event in events if isinstance(event, ClassTrained)]
    assert trained == [CLASSES[1]]
    run = RunDirectory(tmp_path / "run")
    with pytest.raises(StoreError, match="--class-id 0"):
        list(evaluate_models(run.path, None, {}))
    events = list(train_models(make_config(tmp_path)))
    assert [e.class_name for e in events if isinstance(e, ClassReused)] == [CLASSES[1]]
    assert kinds(events)["ClassTrained"] == 2
    with pytest.raises(UsageError, match="--class-id 7"):
        list(train_models(make_config(tmp_path, class_id=7)))


def test_evaluate_other_texts_and_classify(first, copy):
    run = RunDirectory(copy / "run")
    make_data(copy / "other", train=3, test=5)
    leaked = run.dataset().texts_of("train", "01")[0]
    rows = [{"text": t, "label": c} for c in CLASSES for t in sentences(c, 4, seed=9)]
    assert rows[0]["label"] == "01"
    rows = [{"text": leaked, "label": "01"}, *rows[1:]]
    write_jsonl(copy / "other" / "test.jsonl", rows)
    other = DataConfig(data_dir=copy / "other")
    events = list(evaluate_models(run.path, other, {"compute": ONE_ACTOR}))
    assert kinds(events)["ShardCommitted"] > 0
    notes = [event.message for event in events if isinstance(event, Note)]
    assert any(note.startswith("1 of the texts also stand in the train texts") for note in notes)
    last = events[-1]
    assert isinstance(last, StageFinished)
    report = json.loads((Path(last.message) / "report.json").read_text())
    assert report["num_examples"] == 12
    assert report["accuracy"]["calibrated"] is not None
    # The run's own report is untouched.
    own = json.loads((run.report_path / "report.json").read_text())
    assert own["num_examples"] == TEST_ROWS

    texts = write_jsonl(copy / "new.jsonl", [{"text": t} for t in sentences("01", 6, seed=5)])
    events = list(classify_texts(run.path, DataConfig(data=str(texts)), {"compute": ONE_ACTOR}))
    scored = RunDirectory(Path(events[-1].message))
    assert len(read_scores(scored.path / "scores")) == 6 * 3
    assert Dataset.open(scored.dataset_path).splits["test"].rows == 6


def test_bad_data_and_models_leave_nothing(tmp_path):
    config = make_config(tmp_path)
    broken = tmp_path / "data" / "train.jsonl"
    broken.write_text('{"text": "x", "label": "01"}\n{"text": \n')
    with pytest.raises(DataError, match=r"train\.jsonl:2"):
        list(run_all(config))
    assert not (tmp_path / "run").exists()
    shutil.rmtree(tmp_path / "data")
    (tmp_path / "base" / "tokenizer.json").unlink()
    with pytest.raises(ModelError, match="tokenizer"):
        list(run_all(make_config(tmp_path)))
    assert not ClassModel.find(tmp_path / "run" / "models" / "01")
