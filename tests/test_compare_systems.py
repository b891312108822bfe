"""`gencls compare` on data: every system through the same scheduler, commits and resume, as a user
would call it; what is there is not made again, and what is damaged is."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections import Counter
from pathlib import Path

import pyarrow.parquet as pq
import pytest
from cluster_fixtures import gencls, succeed
from model_fixtures import make_model_folder
from run_fixtures import CLASSES, make_data

from gencls_core.run import RunDirectory
from gencls_core.scores import SCORE_SCHEMA, read_scores

pytestmark = pytest.mark.ray

TRAINED = ("class-lm", "conditional-lm", "joint-lm", "discriminative", "masked-lm")
UNTRAINED = ("zero-shot", "masked-lm-untrained")
LIGHT = ("tfidf", "majority")
SYSTEMS = (*TRAINED, *UNTRAINED, *LIGHT)
TEST_TEXTS = 24


def make_sources(folder: Path) -> Path:
    make_data(folder / "data", train=14, test=TEST_TEXTS // len(CLASSES))
    make_model_folder(folder / "base", "gpt2", context=64)
    return folder


def command(folder: Path, *more: str, systems: tuple[str, ...] = SYSTEMS) -> list[str]:
    return [
        "compare", "--data-dir", str(folder / "data"), "--model", str(folder / "base"),
        "--masked-model", "scratch:masked-tiny", "--systems", ",".join(systems),
        "--train-sizes", "5,12", "--validation-fraction", "0.3", "--epochs", "1",
        "--learning-rate", "1e-3", "--num-cpus", "2", "--memory-gb", "8",
        "--output-dir", str(folder / "out"), *more,
    ]  # fmt: skip


def cell(folder: Path, size: int, seed: int = 0) -> RunDirectory:
    return RunDirectory(folder / "out" / "cells" / f"{size}-texts" / f"seed-{seed}")


def commits(run: RunDirectory) -> Counter[tuple[str, str, int]]:
    """Count what was committed, by the event log, over all processes."""
    found = map(json.loads, Path(str(run.events_path)).read_text().splitlines())
    return Counter(
        (event["split"], event["class_name"], event["shard"])
        for event in found
        if event["event"] == "ShardCommitted"
    )


@pytest.fixture(scope="module")
def compared(tmp_path_factory, shared_ray) -> tuple[Path, str]:
    """A comparison of all systems at two numbers of train texts, and what it said."""
    folder = make_sources(tmp_path_factory.mktemp("compare"))
    return folder, succeed(*command(folder))


def test_every_system_scores_every_text_in_every_cell(compared):
    folder, said = compared
    for size, systems in ((5, (*TRAINED, *LIGHT)), (12, SYSTEMS)):
        run = cell(folder, size)
        assert set(run.scores.systems()) == set(systems)
        for system in systems:
            table = read_scores(run.scores.path, system)
            pairs = set(
                zip(table["example_id"].to_pylist(), table["class"].to_pylist(), strict=True)
            )
            assert table.num_rows == len(pairs) == TEST_TEXTS * len(CLASSES)
            records = run.scores.records(system)
            assert all(record.attempt for record in records), "committed under a fence"
            file = Path(str(run.scores.shard_path(records[0].key)))
            assert (
                pq.ParquetFile(file)
                .schema_arrow.remove_metadata()
                .equals(SCORE_SCHEMA.remove_metadata())
            )
        # Held-out texts serve what was trained; what was not sees no label.
        assert set(run.validation_scores.systems()) == set(TRAINED)
        manifest = run.manifest()
        assert (manifest["status"], manifest["systems"]) == ("finished", list(systems))
        assert not (Path(str(run.path)) / ".owners").exists()
    assert "5 texts per class, seed 0: class-lm" in said
    assert str(folder / "out" / "report.html") in said.replace("\n", "")


def test_the_report_answers_from_all_systems(compared):
    folder, _ = compared
    report = json.loads((folder / "out" / "report.json").read_text())
    found = {(system["system"], system["sample"]) for system in report["systems"]}
    sizes = {(name, size) for name in (*TRAINED, *LIGHT) for size in (5, 12)}
    assert found == {*sizes, *((name, None) for name in UNTRAINED)}
    assert {system["name"] for system in report["systems"]} == set(SYSTEMS)
    for system in report["systems"]:
        assert (system["train_seconds"] is None) == (system["system"] in UNTRAINED)
    asked = {answer["question"]: answer["verdict"] for answer in report["questions"]}
    # Four of the class models, three of the tuned model.
    assert sum(verdict != "not asked" for verdict in asked.values()) == 7
    compared_pairs = len(SYSTEMS) * (len(SYSTEMS) - 1) // 2
    assert len(report["pairs"]) == compared_pairs, "every two systems, the constant ones too"
    assert {point["system"] for point in report["learning_curve"]} == set(SYSTEMS)
    assert (folder / "out" / "learning-curve.svg").exists()


def test_the_same_command_again_makes_nothing_and_starts_no_ray(compared, shared_ray):
    folder, _ = compared
    before = [commits(cell(folder, size)) for size in (5, 12)]
    shared_ray.stop()
    import ray

    said = succeed(*command(folder))
    assert "0 score sets to be made" in said
    assert not ray.is_initialized()
    assert [commits(cell(folder, size)) for size in (5, 12)] == before
    for size in (5, 12):
        assert succeed("verify", str(cell(folder, size).path))


def test_what_is_damaged_is_made_again_and_nothing_else(compared, shared_ray):
    folder, _ = compared
    shared_ray.start()
    run = cell(folder, 12)
    before = commits(run)
    shard = next(Path(str(run.scores.path)).glob("system=masked-lm/class=01/*.parquet"))
    rows = pq.read_table(shard)
    shard.unlink()
    weights = Path(str(run.model_path("", "discriminative"))) / "model.safetensors"
    content = bytearray(weights.read_bytes())
    content[-1] ^= 1
    weights.write_bytes(content)
    code, said = gencls("verify", str(run.path))
    assert code == 1
    assert "systems/discriminative" in said
    said = succeed(*command(folder))
    assert "training 1 discriminative model of 1" in said
    assert said.count("• training ") == 1
    again = commits(run) - before
    assert again == Counter(
        {
            ("test", "01", 0): 2,  # masked-lm's lost shard, and the classifier's
            **{
                (split, name, 0): 1
                for split in ("test", "validation")
                for name in CLASSES
                if (split, name) != ("test", "01")
            },
        }
    )
    assert pq.read_table(shard).equals(rows)
    assert succeed("verify", str(run.path))


def test_more_seeds_and_other_systems_keep_what_is_there(compared, shared_ray):
    folder, _ = compared
    shared_ray.start()
    before = commits(cell(folder, 12))
    said = succeed(*command(folder, "--seeds", "0,1", systems=LIGHT))
    assert "training 4 light systems" in said
    assert commits(cell(folder, 12)) == before
    report = json.loads((folder / "out" / "report.json").read_text())
    tfidf = [system for system in report["systems"] if system["system"] == "tfidf"]
    assert [system["seeds"] for system in tfidf] == [[[0, 0], [1, 1]]] * 2
    # The test texts are those of every seed; the train texts are another sample.
    one, other = (cell(folder, 5, seed).dataset() for seed in (0, 1))
    assert one.split("test").fingerprint == other.split("test").fingerprint
    assert one.split("train").fingerprint != other.split("train").fingerprint


def test_scores_keep_the_settings_that_they_were_made_with(compared, shared_ray, tmp_path):
    """A later command names other settings and other systems: nothing is attributed to them."""
    folder, _ = compared
    shared_ray.start()
    succeed(*command(folder, "--epochs", "7", systems=("naive-bayes",)))
    run = cell(folder, 12)
    manifest = run.manifest()
    assert manifest["config"]["training"]["epochs"] == 7
    assert manifest["settings"]["class-lm"]["training"]["epochs"] == 1
    assert manifest["training"]["class-lm"]["epochs"] == 1
    report = json.loads((folder / "out" / "report.json").read_text())
    assert {system["name"] for system in report["systems"]} == {"naive-bayes"}
    runs = (str(run.path), str(cell(folder, 5).path))
    output = ("--output-dir", str(tmp_path / "chosen"))
    succeed("compare", *runs, "--systems", "class-lm,tfidf", *output)
    report = json.loads((tmp_path / "chosen" / "report.json").read_text())
    assert {system["name"] for system in report["systems"]} == {"class-lm", "tfidf"}
    code, said = gencls("compare", str(folder / "out"), *output)
    assert (code, "/cells/*/*" in said) == (2, True)


@pytest.mark.parametrize(
    ("arguments", "code", "words"),
    [
        (["--systems", "clas-lm"], 2, "did you mean 'class-lm'?"),
        (["--masked-model", "scratch:tiny"], 1, "not a masked language model"),
        (["--masked-model", "./nowhere"], 1, "no such model folder"),
        (["--train-sizes", "8,some"], 2, "'some' is not a whole number from 1 on, or `all`"),
        (["--seeds", "1,1"], 2, "names a number twice"),
        (["--class-words", "sports=balls"], 2, "words for a class that the data does not have"),
        (["--prompt", "A text:"], 2, "does not say where the class goes"),
        (["--systems", "setfit", "--setfit-model", "./nowhere"], None, "sentence-transformers"),
    ],
)
def test_mistakes_are_said_before_anything_is_begun(tmp_path, arguments, code, words):
    folder = make_sources(tmp_path)
    found, said = gencls(*command(folder, *arguments))
    assert found == code if code is not None else found
    assert words in said
    assert not list(folder.glob("out/**/*.parquet"))


def test_runs_or_data_but_not_both(tmp_path):
    folder = make_sources(tmp_path)
    assert gencls("compare")[0] == 2
    code, said = gencls(*command(folder), str(tmp_path / "run"))
    assert (code, "both runs and data" in said) == (2, True)
    code, said = gencls("compare", str(tmp_path / "run"), "--train-sizes", "8")
    assert (code, "--train-sizes is a setting of runs" in said) == (2, True)


@pytest.mark.fault
def test_a_comparison_that_is_killed_goes_on_where_it_was(tmp_path):
    folder = make_sources(tmp_path)
    arguments = command(
        folder, "--shard-size", "4", systems=("class-lm", "discriminative", "tfidf")
    )
    process = subprocess.Popen(
        [sys.executable, "-m", "jobs", *arguments],
        stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, start_new_session=True,
    )  # fmt: skip
    run = cell(folder, 5)
    deadline = time.monotonic() + 240
    while not run.scores.path.exists() or not run.scores.records("class-lm"):
        assert process.poll() is None
        assert time.monotonic() < deadline
        time.sleep(0.02)
    os.killpg(process.pid, signal.SIGKILL)
    process.wait()
    weights = {
        name: (Path(str(run.model_path(name))) / "model.safetensors").read_bytes()
        for name in CLASSES
    }
    before = {record.key: record.sha256 for record in run.scores.records()}
    done = subprocess.run(
        [sys.executable, "-m", "jobs", *arguments], capture_output=True, text=True, timeout=400
    )
    assert done.returncode == 0, done.stderr
    for name, content in weights.items():
        found = (Path(str(run.model_path(name))) / "model.safetensors").read_bytes()
        assert found == content, "committed models are not trained again"
    after = {record.key: record.sha256 for record in run.scores.records()}
    assert before.items() <= after.items()
    for size in (5, 12):
        table = read_scores(cell(folder, size).scores.path)
        assert table.num_rows == 3 * TEST_TEXTS * len(CLASSES)
        assert cell(folder, size).scores.orphans() == []
    assert max(commits(run).values()) <= 2, "once by each of the two systems of models"
