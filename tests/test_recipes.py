"""`gencls run --recipe`: one model of all classes through the whole job, as a user calls it."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
from cluster_fixtures import gencls, succeed
from model_fixtures import make_model_folder
from run_fixtures import CLASSES, make_data, write_jsonl

from gencls_core.run import RunDirectory
from gencls_core.storage import files_below

pytestmark = pytest.mark.ray

TEST_TEXTS = 24


def command(folder: Path, *more: str) -> list[str]:
    return [
        "run", "--data-dir", str(folder / "data"), "--model", str(folder / "base"),
        "--validation-fraction", "0.3", "--epochs", "16", "--learning-rate", "5e-3",
        "--num-cpus", "2", "--memory-gb", "8", "--output-dir", str(folder / "run"),
        *(() if "--recipe" in more else ("--recipe", "independent")), *more,
    ]  # fmt: skip


@pytest.fixture(scope="module")
def folder(tmp_path_factory, shared_ray) -> Path:
    found = tmp_path_factory.mktemp("recipes")
    make_data(found / "data", train=20, test=TEST_TEXTS // len(CLASSES))
    make_model_folder(found / "base", "gpt2", context=64)
    return found


@pytest.fixture(scope="module")
def said(folder) -> str:
    """What a run of the joint recipe said."""
    return succeed(*command(folder, "--recipe", "joint"))


@pytest.fixture
def report(folder, said) -> dict:
    return json.loads((folder / "run" / "report" / "report.json").read_text())


def test_the_report_is_of_the_recipes_system(folder, said, report):
    assert "the tuned conditional model" in said
    run = RunDirectory(folder / "run")
    assert run.system == "joint-lm" == report["system"]
    assert run.manifest()["systems"] == ["joint-lm"]
    assert set(run.scores.systems()) == {"joint-lm", "tfidf"}
    assert report["quantity"] == "log_likelihood"
    # Words of a class tell it at once, in the first epochs.
    assert report["accuracy"]["uncalibrated"] >= 0.9
    assert report["calibration"] is not None
    assert all(report["perplexity"][name]["own"] for name in CLASSES)


def test_the_model_of_all_classes_stands_once_in_the_report(folder, report):
    training = report["training"]
    assert training["texts"] == sum(report["dataset"]["counts"]["train"].values())
    assert (training["loss_per"], training["validation_perplexity"]) == ("text", None)
    assert [task["training"] for task in report["tasks"].values()] == [None] * len(CLASSES)
    assert report["timing"]["train_seconds"] == training["seconds"]
    assert not [note for note in report["notes"] if "No committed class model" in note]
    page = (folder / "run" / "report" / "report.html").read_text()
    assert page.count(">all classes</th>") == 1
    assert "nats per text" in page
    assert "| *all classes* |" in (folder / "run" / "report" / "report.md").read_text()


def test_the_same_command_again_makes_nothing(folder, said):
    before = files_below(folder / "run" / "systems"), files_below(folder / "run" / "scores")
    again = succeed(*command(folder, "--recipe", "joint"))
    assert "nothing to train: 1 joint-lm model committed" in again
    assert before == (
        files_below(folder / "run" / "systems"),
        files_below(folder / "run" / "scores"),
    )


def test_plan_query_and_verify_know_the_recipe(folder, said):
    planned = succeed("plan", *command(folder, "--recipe", "joint")[1:])
    assert "a language model that reads the class before the text" in " ".join(planned.split())
    assert "the model          committed" in planned
    counted = "SELECT count(*) AS n FROM likelihoods"
    rows = succeed("query", str(folder / "run"), counted, "--format", "json")
    assert json.loads(rows) == [{"n": TEST_TEXTS}]
    assert "whole: 1 model" in succeed("verify", str(folder / "run"))


def test_other_texts_are_labelled_by_the_same_model(folder, said):
    texts = write_jsonl(folder / "new.jsonl", [{"text": "orbit laser kernel chip radio 1."}])
    output = folder / "predictions.jsonl"
    succeed("classify", "--model-dir", str(folder / "run"), str(texts), "--output", str(output))
    [row] = map(json.loads, output.read_text().splitlines())
    assert row["predicted"] == "Sci/Tech"
    (folder / "other").mkdir()
    make_data(folder / "other", train=3, test=4)
    output = succeed(
        "evaluate", "--model-dir", str(folder / "run"), "--data", str(folder / "other/test.jsonl")
    )
    [evaluated] = [
        path for path in (folder / "run" / "evaluations").iterdir() if (path / "report").exists()
    ]
    found = json.loads((evaluated / "report" / "report.json").read_text())
    assert (found["system"], found["num_examples"]) == ("joint-lm", 4 * len(CLASSES))
    # An evaluation that lost its manifest is a finding, not the end of the check.
    (evaluated / "run.json").unlink()
    code, said = gencls("verify", str(folder / "run"))
    assert code == 1
    assert "the evaluation has not come to its end" in " ".join(said.split())
    shutil.rmtree(evaluated)


def test_other_prefixes_train_another_model(folder, said):
    planned = succeed("plan", *command(folder, "--recipe", "joint", "--prefix", "{class}: ")[1:])
    assert "the model          to be trained" in planned
    words = ("--recipe", "joint", "--class-words", "01=sports")
    assert "to be trained" in succeed("plan", *command(folder, *words)[1:])
    # Only joint tuning knows how much of a text it reads.
    planned = succeed("plan", *command(folder, "--recipe", "joint", "--tuned-tokens", "16")[1:])
    assert "to be trained" in planned


def test_another_recipe_in_the_same_run_is_compared_with_what_is_there(folder, report):
    said = succeed(
        *command(
            folder,
            "--recipe",
            "conditional",
            "--prefix",
            r"{class}:\n",
            "--epochs",
            "2",
            "--learning-rate",
            "0.002",
        )
    )
    run = RunDirectory(folder / "run")
    assert run.system == "conditional-lm"
    found = json.loads((folder / "run" / "report" / "report.json").read_text())
    assert found["training"]["loss_per"] == "token"
    assert found["training"]["validation_perplexity"] > 1
    assert found["baselines"]["joint-lm"]["accuracy"] == report["accuracy"]["uncalibrated"]
    model = run.model_path("", "conditional-lm")
    assert json.loads((model / "prefixes.json").read_text())["01"] == "01:\n"
    assert "one conditional model" in said
    # The tuned model keeps the settings that it was made with, and the report says so.
    assert run.manifest()["settings"]["joint-lm"]["training"]["epochs"] == 16
    assert found["notes"][-1] == (
        "The baseline joint-lm was made with other settings: epochs 16.0, learning_rate 0.005."
    )


@pytest.mark.parametrize(
    ("more", "problem"),
    [
        (("--likelihood", "loss"), "--recipe independent"),
        (("--prefix", "no place"), "write {class} there"),
        (("--class-words", "01=a b"), "two classes have the same prompts"),
        (("--class-words", "nobody=a"), "words for a class that the data does not have"),
        (("--tuned-tokens", "4"), "tuned_tokens"),
        (("--prefix", "{class}" + " word" * 70), "leave no room"),
    ],
)
def test_what_does_not_fit_is_refused(folder, tmp_path, more, problem):
    arguments = command(folder, "--recipe", "joint", *more, "--output-dir", str(tmp_path / "run"))
    code, said = gencls(*arguments)
    assert code in (1, 2)
    assert problem in " ".join(said.split())


@pytest.mark.parametrize(
    ("more", "flag"),
    [
        (("--prefix", "{class}: "), "--prefix has no effect with --recipe independent"),
        (("--class-words", "01=sports"), "--class-words has no effect with --recipe independent"),
        (
            ("--recipe", "conditional", "--lm-weight", "1"),
            "--lm-weight has no effect with --recipe cond",
        ),
    ],
)
def test_settings_that_the_recipe_does_not_read_are_refused(folder, tmp_path, more, flag):
    code, said = gencls(*command(folder, *more, "--output-dir", str(tmp_path / "run")))
    assert code == 2
    assert flag in " ".join(said.split())


def test_a_model_made_for_a_comparison_is_the_recipes(folder, tmp_path):
    """The same settings give the same digest, whichever command asks for them."""
    shared = command(folder, "--recipe", "joint")[1:-4]
    succeed("compare", *shared, "--systems", "joint-lm", "--output-dir", str(tmp_path / "out"))
    cell = tmp_path / "out" / "cells" / "all-texts" / "seed-0"
    planned = succeed(
        "plan", *shared, "--recipe", "joint", "--sample-seed", "0", "--output-dir", str(cell)
    )
    assert "the model          committed" in planned


def test_one_of_several_class_models_cannot_be_trained_of_one(folder, tmp_path):
    arguments = command(folder, "--recipe", "joint", "--class-id", "1")
    arguments = ["train", *arguments[1:-2], "--output-dir", str(tmp_path / "run")]
    arguments += ["--class-id", "1", "--recipe", "joint"]
    code, said = gencls(*arguments)
    assert code == 2
    assert "has one for all classes" in said
