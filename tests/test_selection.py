"""`--recipe auto`: which candidates are tried, which is taken, and what an interruption leaves."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
from cluster_fixtures import gencls, succeed
from model_fixtures import make_model_folder
from pydantic import ValidationError
from run_fixtures import CLASSES, make_config, make_data, write_jsonl

import cluster.choice
import cluster.choice_report
import cluster.pipeline
import cluster.selection
import cluster.trial
from cluster.pipeline import run_all
from cluster.trial import drop_models
from gencls_core.calibration import fit_calibration
from gencls_core.config import RecipeConfig, RunConfig, TrainingConfig
from gencls_core.errors import TrainingError
from gencls_core.events import ClassTrained, Event, Note, StageStarted
from gencls_core.posterior import FOLDS, cross_fitted, label_prior, posterior_of
from gencls_core.run import RunDirectory
from gencls_core.score_matrix import LikelihoodMatrix
from gencls_core.selection import Candidate, candidates_of, judge
from gencls_core.storage import files_below

# --- what is tried -------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "seconds"), [("90s", 90), ("10m", 600), ("1h30m", 5400), ("45", 45), ("0.5h", 1800)]
)
def test_a_budget_is_a_length_of_time(text, seconds):
    assert RecipeConfig(budget=text).budget_seconds(first=400.0) == seconds


def test_the_default_budget_grows_with_what_the_first_recipe_takes():
    """What stands beside a long training costs no more than it once more."""
    assert RecipeConfig().budget_seconds(first=20.0) == 600
    assert RecipeConfig().budget_seconds(first=3000.0) == 6000


@pytest.mark.parametrize("text", ["", "soon", "10 parsecs", "-5m", "m10"])
def test_what_is_no_length_of_time_is_refused(text):
    with pytest.raises(ValidationError, match="length of time"):
        RecipeConfig(budget=text)


def test_the_most_promising_comes_first_and_rates_are_tried_unless_given():
    names = [candidate.name for candidate in candidates_of(RunConfig())]
    assert names == ["joint", "joint-0.0002", "joint-5e-05", "conditional", "independent"]
    given = RunConfig(training=TrainingConfig(learning_rate=3e-4))
    names = [candidate.name for candidate in candidates_of(given)]
    assert names == ["joint", "conditional", "independent"]
    adapter = RunConfig.model_validate({"model": {"lora_rank": 8}})
    assert candidates_of(adapter)[1].learning_rate == pytest.approx(1e-3)


def test_a_candidate_changes_recipe_rate_and_ensemble_alone():
    config = RunConfig.model_validate({"recipe": {"recipe": "auto"}, "training": {"epochs": 7}})
    applied = Candidate("conditional", 2e-4).applied(config)
    assert (applied.recipe.recipe, applied.training.learning_rate) == ("conditional", 2e-4)
    assert applied.training.epochs == 7
    # Where a recipe is chosen, so is what stands beside it, unless that was asked for.
    assert applied.posterior.ensemble == "auto"
    opened = {"recipe": config.recipe, "training": config.training, "posterior": config.posterior}
    assert applied.model_copy(update=opened) == config
    config = RunConfig.model_validate({"posterior": {"ensemble": "none"}})
    assert Candidate("joint", None).applied(config).posterior.ensemble == "none"


@pytest.mark.parametrize(
    ("objective", "adapter", "epochs", "rate"),
    [
        ("causal", False, 3, 5e-5),
        ("masked", False, 3, 5e-5),
        ("causal", True, 3, 25e-5),
        ("conditional", False, 3, 1e-4),
        ("joint", False, 3, 1e-4),
        ("joint", True, 3, 5e-4),
        ("classification", False, 3, 1e-4),
    ],
)
def test_what_settings_leave_open_follows_from_what_is_trained(objective, adapter, epochs, rate):
    found = TrainingConfig().resolved(objective, adapter=adapter, texts=10_000)
    assert (found.epochs, found.learning_rate) == (epochs, pytest.approx(rate))
    given = TrainingConfig(epochs=1.5, learning_rate=7e-5)
    taken = given.resolved(objective, adapter=adapter, texts=10_000)
    assert (taken.epochs, taken.learning_rate) == (1.5, 7e-5)


def test_few_texts_are_gone_through_more_often_to_tell_classes_apart():
    def epochs(texts: int) -> float:
        return TrainingConfig().resolved("joint", adapter=False, texts=texts).epochs

    assert epochs(16) > epochs(32) > epochs(1000) == 3
    assert epochs(1) < 30
    assert TrainingConfig().resolved("conditional", adapter=False, texts=16).epochs == 3


@pytest.mark.parametrize(
    ("texts", "objective", "steps", "warm"),
    [
        (56, "joint", 21, 7),  # 3 epochs of 7 steps
        (28, "joint", 24, 7),
        (160, "classification", 60, 7),
        (8000, "joint", 3000, 300),
        (56, "causal", 21, 2),
    ],
)
def test_few_steps_begin_gently_where_classes_are_compared(texts, objective, steps, warm):
    found = TrainingConfig().resolved(objective, adapter=False, texts=texts)
    assert found.epochs * -(-texts // found.batch_size) == steps
    assert round(found.warmup * steps) == warm
    given = TrainingConfig(warmup=0.05).resolved(objective, adapter=False, texts=texts)
    assert given.warmup == 0.05


# --- how it is judged ----------------------------------------------------------------------------


def matrix_of(scores: np.ndarray, codes: np.ndarray) -> LikelihoodMatrix:
    count = len(codes)
    return LikelihoodMatrix(
        example_ids=pa.chunked_array([[f"t-{n}" for n in range(count)]]),
        label_codes=codes,
        classes=("a", "b", "c"),
        scores=scores,
        num_tokens=np.full(count, 9),
        truncated=np.zeros(count, bool),
        num_windows=np.ones(count, np.int64),
        loss_scores=None,
        quantity="log_likelihood",
    )


def test_each_text_is_calibrated_without_itself():
    rng = np.random.default_rng(3)
    codes = rng.integers(0, 3, 90)
    scores = rng.normal(size=(90, 3)) * 20
    scores[np.arange(90), codes] += 25
    before = cross_fitted(matrix_of(scores, codes))
    np.testing.assert_allclose(np.exp(before).sum(axis=1), 1, rtol=1e-12)
    # A text's own label has no part in its posterior, which is that of the other four parts.
    matrix = matrix_of(scores, codes)
    found = 0
    for row in range(0, 90, 15):
        parts = [fold for fold in _parts_without(matrix, row) if row not in fold]
        for others in parts:
            fitted = fit_calibration(matrix.take(others), prior := label_prior(matrix.take(others)))
            expected = posterior_of(matrix.take(np.array([row])), prior, fitted)
            found += bool(np.allclose(before[row], expected[0], atol=1e-9))
    assert found == 6
    # Calibrated: raw posteriors of sums of 20 nats are far too sure.
    raw = scores - np.logaddexp.reduce(scores, axis=1, keepdims=True)
    assert -before[np.arange(90), codes].mean() < -raw[np.arange(90), codes].mean()


def _parts_without(matrix: LikelihoodMatrix, row: int) -> list[np.ndarray]:
    """Give the texts that each part was judged by, found by their effect on the posterior."""
    base = cross_fitted(matrix)
    # Changing the scores of a text changes the posteriors of exactly the parts that it calibrates.
    seen = []
    for other in range(len(matrix)):
        scores = matrix.scores.copy()
        scores[other] = scores[other][::-1] * 3 - 1
        changed = cross_fitted(matrix_of(scores, matrix.label_codes))
        seen.append(not np.array_equal(base[row], changed[row]))
    return [np.array([n for n in range(len(matrix)) if seen[n] and n != row])]


def test_unlabelled_texts_have_no_part():
    rng = np.random.default_rng(3)
    codes = np.tile([0, 1, 2, -1], 15)
    found = cross_fitted(matrix_of(rng.normal(size=(60, 3)), codes))
    assert found.shape == (45, 3)
    assert np.isfinite(found).all()


def test_parts_have_all_classes_alike():
    """Of sorted labels, too: else a part would be judged by texts of other classes alone."""
    codes = np.repeat([0, 1, 2], 20)
    scores = np.zeros((60, 3))
    # Nothing but class frequencies to learn: every part sees them alike, so all posteriors agree.
    found = cross_fitted(matrix_of(scores, codes))
    assert FOLDS == 5
    np.testing.assert_allclose(found, np.log(1 / 3), atol=1e-9)


def test_the_first_that_cannot_be_told_from_the_best_is_taken():
    rng = np.random.default_rng(0)
    best = rng.gamma(2.0, 0.2, 200)
    near = best + rng.normal(0.001, 0.3, 200)  # 0.001 above it, give or take 0.02
    far = best + 0.2 + rng.normal(0, 0.1, 200)
    verdict = judge([far, near, best])
    assert (verdict.chosen, verdict.best) == (1, 2)
    assert verdict.differences[2] == 0 == verdict.errors[2]
    assert verdict.differences[0] > verdict.errors[0]
    assert judge([best, near, far]).chosen == 0
    assert judge([far]).chosen == 0


# --- whole runs ----------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def data(tmp_path_factory, shared_ray) -> Path:
    found = tmp_path_factory.mktemp("selection")
    make_data(found / "data", train=60, test=8)
    make_model_folder(found / "base", "gpt2", context=64)
    return found


def config_of(folder: Path, output: Path, **changes) -> RunConfig:
    values = {
        "output_dir": str(output),
        "data": {"validation_fraction": 0.3},
        "training": {"epochs": 1, "batch_size": 16, "learning_rate": 5e-3},
        "recipe": {"recipe": "auto", "budget": "1h"},
        **changes,
    }
    return make_config(folder, **values)


def command(data: Path, output: Path, *more: str) -> list[str]:
    return [
        "run", "--data-dir", str(data / "data"), "--model", str(data / "base"),
        "--validation-fraction", "0.3", "--epochs", "1", "--batch-size", "16",
        "--learning-rate", "5e-3", "--num-cpus", "2", "--memory-gb", "8",
        "--output-dir", str(output), "--recipe", "auto", "--budget", "1h", *more,
    ]  # fmt: skip


@pytest.fixture(scope="module")
def chosen(data) -> tuple[Path, str]:
    """A run that has chosen, and what it said."""
    return data / "run", succeed(*command(data, data / "run"))


@pytest.mark.ray
def test_a_run_takes_one_recipe_and_says_why(chosen):
    folder, said = chosen
    run = RunDirectory(folder)
    found = json.loads((folder / "report" / "report.json").read_text())["selection"]
    assert found == run.manifest()["selection"]
    trials = {trial["name"]: trial for trial in found["trials"]}
    assert list(trials) == ["joint", "conditional", "independent"]
    assert found["held_out_texts"] == 54
    assert all(trial["note"] is None for trial in trials.values())
    assert min(trial["above_best"] for trial in trials.values()) == 0
    taken = trials[found["chosen"]]
    assert taken["above_best"] <= taken["standard_error"]
    # From now on it is a run of that recipe.
    config = run.manifest()["config"]["recipe"]
    assert (config["recipe"], run.system) == (taken["recipe"], run.scores.records()[0].system)
    # The budget has time for a fine-tune beside.
    assert set(run.scores.systems()) == {run.system, "tfidf", "nbsvm", "discriminative"}
    held_out = set(run.validation_scores.systems())
    assert held_out == {run.system, "tfidf", "nbsvm", "discriminative"}
    assert found["fine_tune"]
    assert "discriminative fine-tune" in said
    for page in ("report.md", "report.html"):
        text = (folder / "report" / page).read_text()
        assert "Choice of the recipe" in text
        assert found["reason"] in " ".join(text.split())
    assert found["reason"] in " ".join(said.split())


@pytest.mark.ray
def test_weights_of_the_others_go_and_what_they_were_judged_by_stays(chosen):
    folder, _ = chosen
    run = RunDirectory(folder)
    candidates = files_below(folder / "candidates")
    assert not [name for name in candidates if name.endswith(".safetensors")]
    for name in ("joint", "conditional", "independent"):
        assert f"{name}/candidate.json" in candidates
    assert [name for name in files_below(run.models_of(run.system)) if "safetensors" in name]
    assert "whole" in succeed("verify", str(folder))
    # A shard that rots there is found.
    shard = next(folder.glob("candidates/joint/validation-scores/*/*/*.parquet"))
    content = shard.read_bytes()
    shard.write_bytes(content[:-1] + bytes([content[-1] ^ 1]))
    code, said = gencls("verify", str(folder))
    shard.write_bytes(content)
    assert code == 1
    assert "candidates/joint/validation-scores" in "".join(said.split())


@pytest.mark.ray
def test_the_same_command_again_chooses_and_trains_nothing(chosen, data):
    folder, _ = chosen
    before = files_below(folder / "candidates"), files_below(folder / "scores")
    again = succeed(*command(data, folder))
    assert "nothing to train" in again
    assert "trying" not in again
    assert before == (files_below(folder / "candidates"), files_below(folder / "scores"))
    assert RunDirectory(folder).manifest()["selection"]
    planned = " ".join(succeed("plan", *command(data, folder)[1:]).split())
    assert RunDirectory(folder).manifest()["selection"]["reason"] in planned


@pytest.mark.ray
def test_another_budget_trains_nothing_that_was_tried(chosen, data, tmp_path):
    shutil.copytree(chosen[0], tmp_path / "run")
    said = succeed(*command(data, tmp_path / "run", "--budget", "2h"))
    assert "trying up to 3 recipes" in said
    assert "model trained" not in said


@pytest.mark.ray
def test_plan_says_what_would_be_tried(data, tmp_path):
    planned = " ".join(succeed("plan", *command(data, tmp_path / "run")[1:]).split())
    beside = "a fine-tune beside it (--ensemble), conditional, independent"
    assert f"joint is tried first, then, while 1h last: {beside}" in planned
    assert "54 held-out texts" in planned
    assert not (tmp_path / "run").exists()


@pytest.mark.ray
def test_the_budget_leaves_recipes_out_but_never_the_first(data, tmp_path):
    events = list(run_all(config_of(data, tmp_path / "run", recipe={
        "recipe": "auto", "budget": "0.001s"})))  # fmt: skip
    assert [e.class_name for e in events if isinstance(e, ClassTrained)] == ["joint-lm"]
    selection = RunDirectory(tmp_path / "run").manifest()["selection"]
    assert selection["chosen"] == "joint"
    assert "no other" in selection["reason"]
    assert not selection["fine_tune"]
    notes = [event.message for event in events if isinstance(event, Note)]
    assert any("the discriminative fine-tune beside it is left out: it would" in n for n in notes)
    assert ["it would take about" in (t["note"] or "") for t in selection["trials"]] == [
        False,
        True,
        True,
    ]


@pytest.mark.ray
def test_too_few_held_out_texts_choose_nothing(data, tmp_path):
    config = config_of(
        data,
        tmp_path / "run",
        data={"validation_fraction": 0.1},
        recipe={"recipe": "auto", "folds": 0},
    )
    events = list(run_all(config))
    assert [e.class_name for e in events if isinstance(e, ClassTrained)] == ["joint-lm"]
    selection = RunDirectory(tmp_path / "run").manifest()["selection"]
    assert (selection["chosen"], selection["held_out_texts"]) == ("joint", 18)
    assert "18 held-out texts cannot tell recipes apart: 50 are needed" in selection["reason"]
    assert [t["note"] for t in selection["trials"]] == [None, "not tried", "not tried"]
    assert not (tmp_path / "run" / "candidates").exists()
    # The second time, too, the choice stands.
    again = list(run_all(config))
    assert not any(isinstance(event, ClassTrained) for event in again)


def trained(events: list[Event]) -> list[str]:
    return [event.class_name for event in events if isinstance(event, ClassTrained)]


@pytest.fixture
def again(chosen, data, tmp_path) -> RunConfig:
    """The settings of a copy of the run that has chosen."""
    shutil.copytree(chosen[0], tmp_path / "run")
    return config_of(data, tmp_path / "run")


def with_recipe(config: RunConfig, recipe: str, **changes) -> RunConfig:
    section = config.recipe.model_copy(update={"recipe": recipe, **changes})
    return config.model_copy(update={"recipe": section})


@pytest.mark.ray
def test_a_recipe_may_be_asked_for_in_between(again):
    run = RunDirectory(again.output_dir)
    taken = run.manifest()["config"]["recipe"]["recipe"]
    assert trained(list(run_all(with_recipe(again, taken)))) == []
    assert "selection" not in run.manifest()
    report = json.loads((run.report_path / "report.json").read_text())
    assert report["selection"] is None
    # What candidates came to is still there.
    assert trained(list(run_all(again))) == []
    assert run.manifest()["selection"]["chosen"]


@pytest.mark.ray
def test_other_test_texts_choose_nothing_anew(again):
    data = again.data.model_copy(update={"max_test_samples": 12})
    events = list(run_all(again.model_copy(update={"data": data})))
    assert trained(events) == []
    assert not any("trying" in getattr(event, "message", "") for event in events)


@pytest.mark.ray
def test_a_model_that_the_run_has_is_not_trained_again(data, tmp_path):
    config = config_of(data, tmp_path / "run")
    assert trained(list(run_all(with_recipe(config, "joint")))) == ["joint-lm"]
    assert trained(list(run_all(with_recipe(config, "auto", budget="0")))) == []
    assert RunDirectory(config.output_dir).manifest()["selection"]["chosen"] == "joint"


@pytest.mark.ray
def test_a_candidate_that_fails_ends_nothing(data, tmp_path, monkeypatch):
    stage = cluster.trial.train_stage

    def fails(preparation, *arguments):
        if preparation.system.name == "conditional-lm":
            raise TrainingError.of("the loss is no longer a finite number", found="nan")
        yield from stage(preparation, *arguments)

    monkeypatch.setattr(cluster.trial, "train_stage", fails)
    config = config_of(data, tmp_path / "run")
    seen = trained(list(run_all(config)))
    assert "joint-lm" in seen
    assert set(CLASSES) < set(seen)
    selection = RunDirectory(tmp_path / "run").manifest()["selection"]
    notes = {trial["name"]: trial["note"] for trial in selection["trials"]}
    assert notes["conditional"] == "it failed: the loss is no longer a finite number"
    assert notes["joint"] is notes["independent"] is None
    # It is written down: another budget does not try it again, though it would work now.
    monkeypatch.undo()
    assert trained(list(run_all(with_recipe(config, "auto", budget="2h")))) == []


@pytest.mark.ray
def test_where_the_first_fails_the_next_is_tried(data, tmp_path, monkeypatch):
    stage, works = cluster.trial.train_stage, {"conditional-lm"}

    def fails(preparation, *arguments):
        if preparation.system.name not in works:
            raise TrainingError.of(f"{preparation.system.name}: no finite number", found="nan")
        yield from stage(preparation, *arguments)

    monkeypatch.setattr(cluster.trial, "train_stage", fails)
    config = with_recipe(config_of(data, tmp_path / "run"), "auto", budget="0")
    assert trained(list(run_all(config))) == ["conditional-lm"]
    selection = RunDirectory(tmp_path / "run").manifest()["selection"]
    assert selection["chosen"] == "conditional"
    notes = {trial["name"]: trial["note"] for trial in selection["trials"]}
    assert notes["joint"] == "it failed: joint-lm: no finite number"
    assert "it would take about" in notes["independent"]
    assert "no other could be trained, or the budget left no time for it" in selection["reason"]
    # Where none can be trained, that is the end, with the first one's error, and again.
    works.clear()
    config = config.model_copy(update={"output_dir": tmp_path / "none"})
    with pytest.raises(TrainingError, match="joint-lm: no finite number"):
        list(run_all(config))
    assert RunDirectory(tmp_path / "none").manifest()["status"] == "failed"
    with pytest.raises(TrainingError, match="could not be trained"):
        list(run_all(config))


@pytest.mark.ray
def test_a_fine_tune_that_fails_ends_nothing(data, tmp_path, monkeypatch):
    stage = cluster.pipeline.train_stage

    def fails(preparation, *arguments):
        if preparation.system.name == "discriminative":
            raise TrainingError("the loss is no longer a finite number")
        yield from stage(preparation, *arguments)

    monkeypatch.setattr(cluster.pipeline, "train_stage", fails)
    config = config_of(data, tmp_path / "run")
    events = list(run_all(config))
    [note] = [e.message for e in events if isinstance(e, Note) and "is left out" in e.message]
    assert note.endswith("it failed: the loss is no longer a finite number")
    report = json.loads((tmp_path / "run" / "report" / "report.json").read_text())
    assert report["calibration"]["ensemble"]["system"] == "tfidf"
    # It is written down, and not tried again; the run is whole without it.
    assert report["selection"]["fine_tune_note"].startswith("it failed: the loss")
    assert (
        "No fine-tune stands beside it" in (tmp_path / "run" / "report" / "report.md").read_text()
    )
    assert trained(list(run_all(config))) == []
    assert "whole" in succeed("verify", str(tmp_path / "run"))


@pytest.mark.ray
def test_texts_are_classified_by_what_was_chosen(again, tmp_path):
    texts = write_jsonl(tmp_path / "new.jsonl", [{"text": "orbit laser kernel chip radio 1."}])
    output = tmp_path / "predictions.jsonl"
    folder = str(again.output_dir)
    succeed("classify", "--model-dir", folder, str(texts), "--output", str(output))
    [row] = map(json.loads, output.read_text().splitlines())
    assert row["predicted"] in CLASSES


@pytest.mark.ray
def test_a_rate_that_was_chosen_is_not_one_that_was_given(data, tmp_path, monkeypatch):
    """Another system of the run is trained as the user asked, not as a candidate was."""
    candidates = (Candidate("joint", 4e-3), Candidate("conditional", None))
    for module in (cluster.choice, cluster.choice_report, cluster.selection):
        monkeypatch.setattr(module, "candidates_of", lambda _config: candidates)
    training = {"epochs": 1, "batch_size": 16, "learning_rate": None}
    config = config_of(data, tmp_path / "run", training=training)
    config = config.model_copy(update={"training": TrainingConfig(epochs=1, batch_size=16)})
    list(run_all(with_recipe(config, "auto", budget="0")))
    manifest = RunDirectory(tmp_path / "run").manifest()
    assert manifest["selection"]["chosen"] == "joint-0.004"
    assert manifest["config"]["training"]["learning_rate"] == 4e-3
    assert manifest["selection"]["rate_chosen"]
    assert manifest["training"]["joint-lm"]["learning_rate"] == 4e-3
    report = json.loads((tmp_path / "run" / "report" / "report.json").read_text())
    assert report["config"]["training"]["learning_rate"] == 4e-3
    output = ["--output-dir", str(tmp_path / "out")]
    succeed("compare", str(tmp_path / "run"), "--systems", "conditional-lm", *output)
    systems = tmp_path / "run" / "systems" / "conditional-lm" / "all+classes"
    record = json.loads((systems / "committed.json").read_text())
    # The default of 1e-4, after its warm-up and some of its decay.
    assert record["training"]["history"][0]["learning_rate"] <= 1e-4
    # Evaluating asks for the model as it was trained.
    succeed("evaluate", "--model-dir", str(tmp_path / "run"))


@pytest.mark.ray
@pytest.mark.fault
@pytest.mark.parametrize("when", ["second candidate", "weights removed"])
def test_an_interrupted_choice_goes_on_to_the_same_end(chosen, data, tmp_path, monkeypatch, when):
    config = config_of(data, tmp_path / "run")
    stopped = run_all(config)
    seen: list[Event] = []

    dropped: list[Path] = []

    def interrupt(folder):
        if dropped:
            raise KeyboardInterrupt
        dropped.append(folder)
        drop_models(folder)

    if when == "second candidate":
        for event in stopped:
            seen.append(event)
            if isinstance(event, StageStarted) and "(2 of 3)" in event.message:
                stopped.close()
                break
    else:
        monkeypatch.setattr(cluster.selection, "drop_models", interrupt)
        with pytest.raises(KeyboardInterrupt):
            seen.extend(stopped)
        monkeypatch.undo()
    assert RunDirectory(tmp_path / "run").manifest()["status"] == "stopped"
    rest = list(run_all(config))
    # Nothing was trained twice.
    everything = ["joint-lm", "conditional-lm", *CLASSES, "discriminative"]
    assert sorted(trained(seen) + trained(rest)) == sorted(everything)
    expected = RunDirectory(chosen[0]).manifest()["selection"]
    found = RunDirectory(tmp_path / "run").manifest()["selection"]
    assert found["chosen"] == expected["chosen"]
    for mine, theirs in zip(found["trials"], expected["trials"], strict=True):
        assert mine["nll"] == pytest.approx(theirs["nll"], rel=1e-6)
    assert "whole" in succeed("verify", str(tmp_path / "run"))
