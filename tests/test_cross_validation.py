"""Few held-out texts: parts of the train texts judge recipes, and the calibration rests on them."""

from __future__ import annotations

import json
import shutil
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
from cluster_fixtures import gencls, succeed
from model_fixtures import make_model_folder
from run_fixtures import CLASSES, make_config, make_data, write_jsonl

import cluster.trial
import gencls_core.config_training
from cluster.choice_report import Tried
from cluster.cross_validation import parts_of
from cluster.pipeline import prepare, run_all, train_models
from cluster.selection import first_candidate
from cluster.trial import Trial
from gencls_core.config import RunConfig, TrainingConfig
from gencls_core.datasets import Dataset
from gencls_core.datasets.parts import find_part, part_of_each, write_part
from gencls_core.errors import ResourceError, TrainingError
from gencls_core.events import ClassTrained, Event, Note
from gencls_core.report.build import build_report
from gencls_core.report.fitting import Fitter
from gencls_core.report.inference import infer
from gencls_core.run import RunDirectory
from gencls_core.score_matrix import read_likelihoods
from gencls_core.selection import RECORD
from gencls_core.storage import files_below
from gencls_core.training_loop import chosen_by_held_out


@pytest.mark.parametrize("parts", [2, 4, 5])
def test_parts_are_even_over_all_and_within_a_class(parts):
    labels = ["a"] * 11 + ["b"] * 7 + [None] * 2 + ["c"] * 5
    part_N = part_of_each(labels, parts, seed=3)
    assert [part_N[row] for row in (18, 19)] == [-1, -1]
    for name in "abc":
        found = Counter(int(p) for p, label in zip(part_N, labels, strict=True) if label == name)
        assert max(found.values()) - min(found.values()) <= 1
        assert len(found) == parts
    sizes = Counter(part_N[part_N >= 0].tolist())
    assert max(sizes.values()) - min(sizes.values()) <= 1
    assert (part_of_each(labels, parts, seed=3) == part_N).all()
    assert (part_of_each(labels, parts, seed=4) != part_N).any()


@pytest.fixture(scope="module")
def data(tmp_path_factory, shared_ray) -> Path:
    found = tmp_path_factory.mktemp("parts")
    make_data(found / "data", train=24, test=8)
    make_data(found / "few", train=8, test=4)
    make_model_folder(found / "base", "gpt2", context=64)
    return found


def config_of(folder: Path, output: Path, **changes) -> RunConfig:
    values = {
        "output_dir": str(output),
        "training": {"epochs": 1, "batch_size": 16, "learning_rate": 5e-3},
        "recipe": {"recipe": "auto", "budget": "1h", "folds": 3},
        "data": {"validation_fraction": 0.1},
        **changes,
    }
    return make_config(folder, **values)


def command(data: Path, output: Path, *more: str) -> list[str]:
    return [
        "run", "--data-dir", str(data / "data"), "--model", str(data / "base"), "--epochs", "1",
        "--batch-size", "16", "--learning-rate", "5e-3", "--num-cpus", "2", "--memory-gb", "8",
        "--output-dir", str(output), "--recipe", "auto", "--budget", "1h", "--folds", "3", *more,
    ]  # fmt: skip


@pytest.fixture(scope="module")
def chosen(data) -> tuple[Path, str]:
    return data / "run", " ".join(succeed(*command(data, data / "run")).split())


@pytest.mark.ray
def test_each_train_text_is_scored_by_a_model_without_it(chosen):
    folder, said = chosen
    run = RunDirectory(folder)
    train = run.dataset().read("train").column("example_id").to_pylist()
    assert f"by {len(train)} train texts in 3 parts" in said
    selection = run.manifest()["selection"]
    assert (selection["parts"], selection["held_out_texts"]) == (3, len(train))
    seen = []
    for number in range(3):
        part = Dataset.open(folder / "candidates" / f"part-{number}" / "dataset")
        learned, held_out = (
            set(part.read(split).column("example_id").to_pylist())
            for split in ("train", "validation")
        )
        assert learned | held_out == set(train)
        assert not learned & held_out
        assert sorted(set(part.read("validation").column("label").to_pylist())) == sorted(CLASSES)
        seen += held_out
        for name in ("joint", "conditional", "independent", "discriminative"):
            tried = RunDirectory(folder / "candidates" / f"{name}-part-{number}")
            [system] = tried.validation_scores.systems()
            scored = read_likelihoods(tried.validation_scores, system, CLASSES)
            assert set(scored.example_ids.to_pylist()) == held_out
        light = RunDirectory(folder / "candidates" / f"part-{number}").validation_scores
        assert sorted(light.systems()) == ["nbsvm", "tfidf"]
    assert sorted(seen) == sorted(train)
    assert not [name for name in files_below(folder / "candidates") if "safetensors" in name]
    verified = succeed("verify", str(folder))
    assert "whole" in verified


@pytest.mark.ray
def test_the_calibration_is_fitted_on_all_of_them(chosen):
    folder, _ = chosen
    run = RunDirectory(folder)
    dataset = run.dataset()
    rows = dataset.split("train").rows + dataset.split("validation").rows
    inference = infer(run)
    assert len(inference.fit.texts) == rows
    assert len(inference.fit.ensemble.fitted.alone) == rows
    assert inference.stands_by_calibrated
    report = json.loads((folder / "report" / "report.json").read_text())
    assert report["calibration"]["num_texts"] == rows
    assert report["answer"] == "calibrated"
    text = " ".join((folder / "report" / "report.md").read_text().split())
    assert "each scored by a model that did not learn from its part (3 parts)" in text
    # Without one part there is no calibration, and that is said.
    fitter = Fitter(run, run, CLASSES, by_loss=False)
    store = RunDirectory(
        folder / "candidates" / f"{run.manifest()['selection']['chosen']}-part-1"
    ).validation_scores
    kept = {path: (store.path / path).read_bytes() for path in files_below(store.path)}
    store.retire(run.system, ())
    fit, [note] = Fitter(run, run, CLASSES, by_loss=False).fit(run.system)
    for path, content in kept.items():
        (store.path / path).parent.mkdir(parents=True, exist_ok=True)
        (store.path / path).write_bytes(content)
    assert fit is None
    assert "of the cross-validation" in note
    assert len(fitter.fit(run.system)[0].texts) == rows


@pytest.mark.ray
def test_the_taken_model_learns_from_all_and_the_second_time_nothing_is_done(chosen, data):
    folder, _ = chosen
    run = RunDirectory(folder)
    models = list(run.models_of(run.system).iterdir())
    texts = [json.loads((m / "committed.json").read_text())["training"]["texts"] for m in models]
    assert sum(texts) == run.dataset().split("train").rows
    again = succeed(*command(data, folder))
    assert "nothing to train" in again
    assert "trying" not in again
    planned = " ".join(succeed("plan", *command(data, data / "new")[1:]).split())
    assert "train texts, cross-validated in 3 parts" in planned


@pytest.mark.ray
def test_new_texts_are_judged_by_the_same_calibration(chosen, data, tmp_path):
    make_data(tmp_path / "other", train=2, test=6)
    output = tmp_path / "report.json"
    succeed("evaluate", "--model-dir", str(chosen[0]), "--data-dir", str(tmp_path / "other"),
            "--num-cpus", "2", "--output", str(output))  # fmt: skip
    own = json.loads((chosen[0] / "report" / "report.json").read_text())["calibration"]
    assert json.loads(output.read_text())["calibration"] == own


def trained(events: list[Event]) -> list[str]:
    return [event.class_name for event in events if isinstance(event, ClassTrained)]


@pytest.mark.ray
def test_too_few_to_choose_still_calibrate(data, tmp_path):
    """18 train texts: one recipe, in two parts, since a class has few texts more."""
    config = config_of(
        data, tmp_path / "run", data={"data_dir": str(data / "few")},
        recipe={"recipe": "auto", "budget": "1h", "folds": 2},
    )  # fmt: skip
    events = list(run_all(config))
    assert trained(events) == ["joint-lm"] * 3
    run = RunDirectory(tmp_path / "run")
    selection = run.manifest()["selection"]
    rows = run.dataset().split("train").rows
    assert rows < 50
    assert (selection["chosen"], selection["parts"]) == ("joint", 2)
    assert (
        selection["reason"]
        == f"{rows} train texts cannot tell recipes apart, so the first was taken"
    )
    assert not selection["fine_tune"]
    assert len(infer(run).fit.texts) == rows + run.dataset().held_out
    # Nor is a fine-tune trained for so few; a bag of words costs nothing.
    assert infer(run).fit.ensemble.system in ("tfidf", "nbsvm")


@pytest.mark.ray
def test_no_time_for_parts(data, tmp_path):
    config = config_of(data, tmp_path / "run", recipe={"recipe": "auto", "budget": "0.01s"})
    events = list(run_all(config))
    assert trained(events) == ["joint-lm"]
    [note] = [event.message for event in events if isinstance(event, Note)]
    assert "nothing is chosen, recipe joint is taken" in note
    assert "of a part of a cross-validation, it would take about" in note
    selection = RunDirectory(tmp_path / "run").manifest()["selection"]
    assert (selection["chosen"], selection["parts"]) == ("joint", 0)
    # The model was trained once, and is the run's own; a second time nothing is.
    assert trained(list(run_all(config))) == []


@pytest.mark.ray
def test_time_for_some_parts(data, tmp_path, monkeypatch):
    """What fits into the budget is judged, and the calibration rests on that."""
    left = Tried.left
    found = []
    took = Tried.took

    def two_parts(self):
        monkeypatch.setattr(Tried, "left", left)
        return 2.5 * self.costs.of_part(found[0])

    monkeypatch.setattr(
        Tried, "took", lambda self, outcome: (found.append(outcome), took(self, outcome))[1]
    )
    monkeypatch.setattr(Tried, "left", property(two_parts))
    config = config_of(data, tmp_path / "run", recipe={"recipe": "auto", "budget": "0.01s"})
    events = list(run_all(config))
    assert trained(events) == ["joint-lm"] * 3
    assert "the budget has time to judge 2 parts of 4" in [
        event.message for event in events if isinstance(event, Note)
    ]
    run = RunDirectory(tmp_path / "run")
    selection = run.manifest()["selection"]
    judged = [
        Dataset.open(tmp_path / "run" / "candidates" / f"part-{number}" / "dataset").held_out
        for number in range(2)
    ]
    assert (selection["parts"], selection["cut_into"]) == (2, 4)
    assert selection["held_out_texts"] == sum(judged)
    assert report_of(config)["calibration"]["num_texts"] == sum(judged) + run.dataset().held_out
    text = " ".join((tmp_path / "run" / "report" / "report.md").read_text().split())
    assert "did not learn from its part (2 of 4 parts)" in text
    monkeypatch.undo()
    assert trained(list(run_all(config))) == []
    assert "whole" in succeed("verify", str(tmp_path / "run"))


@pytest.mark.ray
def test_without_a_budget_enough_parts_are_judged(data, tmp_path, monkeypatch):
    """However little time there is: without them neither calibration nor ensemble has a ground."""
    monkeypatch.setattr(gencls_core.config_training, "_LEAST_BUDGET", 0.0)
    monkeypatch.setattr(gencls_core.config_training, "_TIMES_THE_FIRST", 0.0)
    config = config_of(
        data, tmp_path / "run", recipe={"recipe": "auto", "folds": 4}, baseline=False,
        data={"validation_fraction": 0.05},
    )  # fmt: skip
    events = list(run_all(config))
    assert trained(events) == ["joint-lm"] * 4
    notes = " ".join(event.message for event in events if isinstance(event, Note))
    assert "judging 3 parts of 4, so that there are 50 texts to rest on" in notes
    selection = RunDirectory(tmp_path / "run").manifest()["selection"]
    assert (selection["parts"], selection["cut_into"]) == (3, 4)
    assert selection["held_out_texts"] >= 50
    assert {trial["name"]: trial["nll"] is not None for trial in selection["trials"]}["joint"]


@pytest.mark.ray
def test_who_is_cross_validated(chosen, data, tmp_path):
    def dataset(**counts: int) -> Dataset:
        opened = Dataset.open(chosen[0] / "dataset")
        splits = dict(opened.splits)
        for name, rows in counts.items():
            info = opened.splits[name]
            per_class = dict.fromkeys(info.class_counts, rows // len(CLASSES))
            splits[name] = type(info)(**{**info.__dict__, "rows": rows, "class_counts": per_class})
        return Dataset(**{**opened.__dict__, "splits": splits})

    config = config_of(data, tmp_path / "run")
    assert parts_of(config, dataset(train=60)) == 3
    assert parts_of(config, dataset(train=6)) == 2
    assert parts_of(config, dataset(train=3)) == 0
    assert parts_of(config, dataset(train=3000)) == 0
    assert parts_of(config, dataset(train=900, validation=60)) == 0
    without = config_of(data, tmp_path / "run", recipe={"recipe": "auto", "folds": 0})
    assert parts_of(without, dataset(train=60)) == 0


@pytest.mark.ray
def test_a_part_is_written_once(chosen, tmp_path):
    dataset = Dataset.open(chosen[0] / "dataset")
    first = write_part(dataset, 0, 3, 7, tmp_path / "part")
    written = (tmp_path / "part" / "train.parquet").stat().st_mtime_ns
    assert write_part(dataset, 0, 3, 7, tmp_path / "part") == first
    assert (tmp_path / "part" / "train.parquet").stat().st_mtime_ns == written
    # One that has lost a file is written again.
    (tmp_path / "part" / "train.parquet").unlink()
    assert find_part(dataset, 0, 3, 7, tmp_path / "part") is None
    assert write_part(dataset, 0, 3, 7, tmp_path / "part") == first
    assert find_part(dataset, 0, 3, 7, tmp_path / "part") == first
    other = write_part(dataset, 1, 3, 7, tmp_path / "part")
    assert other.fingerprint != first.fingerprint
    assert np.isclose(other.split("validation").rows, dataset.split("train").rows / 3, atol=1)


@pytest.mark.ray
@pytest.mark.fault
def test_interrupted_it_goes_on_to_the_same_end(chosen, data, tmp_path):
    config = config_of(data, tmp_path / "run")
    stopped = run_all(config)
    seen: list[Event] = []
    for event in stopped:
        seen.append(event)
        # The whole, two parts, and the third.
        if len(trained(seen)) == 3:
            stopped.close()
            break
    events = list(run_all(config))
    # Of the third part the model is there; what was judged is not trained again.
    assert trained(events).count("joint-lm") <= 2
    ours, theirs = (
        RunDirectory(folder).manifest()["selection"] for folder in (tmp_path / "run", chosen[0])
    )
    found = [[trial["nll"] for trial in made["trials"]] for made in (ours, theirs)]
    assert found[0] == pytest.approx(found[1], rel=1e-4)  # shards of another size
    assert ours["chosen"] == theirs["chosen"]


@pytest.fixture
def again(chosen, data, tmp_path) -> RunConfig:
    """The settings of a copy of the run that has chosen."""
    shutil.copytree(chosen[0], tmp_path / "run")
    return config_of(data, tmp_path / "run")


def with_ensemble(config: RunConfig, ensemble: str) -> RunConfig:
    posterior = config.posterior.model_copy(update={"ensemble": ensemble})
    return config.model_copy(update={"posterior": posterior})


def report_of(config: RunConfig) -> dict:
    return json.loads((Path(config.output_dir) / "report" / "report.json").read_text())


@pytest.mark.ray
@pytest.mark.parametrize("lost", ["model", "record", "light", "text"])
def test_what_a_calibration_rests_on_is_made_again(again, lost):
    before = report_of(again)["calibration"]
    candidates = Path(again.output_dir) / "candidates"
    chosen = RunDirectory(Path(again.output_dir)).manifest()["selection"]["chosen"]
    text = candidates / "part-1" / "dataset" / "validation.parquet"
    if lost == "text":
        text.unlink()
    elif lost == "record":
        (candidates / f"{chosen}-part-1" / RECORD).write_text("{")
        assert "is lost, or of another choice" in gencls("verify", str(again.output_dir))[1]
    else:
        folder = f"{chosen}-part-1" if lost == "model" else "part-1"
        store = RunDirectory(candidates / folder).validation_scores
        shard = store.shard_path(store.records(store.systems()[-1])[0].key)
        shard.write_bytes(b"torn" * (shard.stat().st_size // 4))
    events = list(run_all(again))
    # Nothing is tried but what was lost: of the recipe that was taken, one part.
    models = len(CLASSES) if chosen == "independent" else 1
    assert len(trained(events)) == (models if lost in ("model", "record") else 0)
    assert text.is_file()
    assert report_of(again)["calibration"] == before
    assert "whole" in succeed("verify", str(again.output_dir))
    assert trained(list(run_all(again))) == []


@pytest.mark.ray
def test_a_second_system_that_is_asked_for_later_scores_the_parts(again):
    alone = with_ensemble(again, "none")
    assert trained(list(run_all(alone))) == []
    assert report_of(alone)["calibration"]["ensemble"] is None
    asked = with_ensemble(again, "nbsvm")
    assert trained(list(run_all(asked))) == []
    report = report_of(asked)
    assert report["calibration"]["ensemble"]["system"] == "nbsvm"
    assert report["calibration"]["ensemble"]["num_texts"] == report["calibration"]["num_texts"]
    assert not [note for note in report["notes"] if "ensemble" in note]


@pytest.mark.ray
def test_train_and_then_run_is_run(chosen, data, tmp_path):
    config = config_of(data, tmp_path / "run")
    assert trained(list(train_models(config))) == ["joint-lm"]
    assert RunDirectory(tmp_path / "run").manifest()["selection"]["parts"] == 0
    list(run_all(config))
    ours, theirs = (
        RunDirectory(folder).manifest()["selection"] for folder in (tmp_path / "run", chosen[0])
    )
    assert (ours["key"], ours["chosen"]) == (theirs["key"], theirs["chosen"])
    assert (ours["parts"], ours["fine_tune"]) == (theirs["parts"], theirs["fine_tune"])
    # What was chosen with scores will do for training alone.
    assert trained(list(train_models(config))) == []
    assert RunDirectory(tmp_path / "run").manifest()["selection"] == ours


@pytest.mark.ray
@pytest.mark.fault
def test_a_calibration_is_never_of_two_choices(again):
    """Another choice in the same folder, ended half-way, has replaced one part of three."""
    training = again.training.model_copy(update={"epochs": 2})
    stopped = run_all(again.model_copy(update={"training": training}))
    run = RunDirectory(again.output_dir)
    record = run.candidate_path(f"{run.manifest()['selection']['chosen']}-part-0") / RECORD
    before = record.read_bytes()
    for _event in stopped:
        if record.exists() and record.read_bytes() != before:
            break
    stopped.close()
    report = build_report(RunDirectory(again.output_dir))
    assert report.calibration is None
    assert any("was made anew by a choice of a recipe" in note for note in report.notes)
    list(run_all(again))
    assert report_of(again)["calibration"]["num_texts"] > 50


@pytest.mark.ray
def test_a_base_from_scratch_is_made_for_each_part(data, tmp_path):
    config = config_of(
        data, tmp_path / "run", model={"model": "scratch:tiny"},
        data={"data_dir": str(data / "few")},
        recipe={"recipe": "auto", "budget": "1h", "folds": 2},
    )  # fmt: skip
    events = list(run_all(config))
    assert trained(events) == ["joint-lm"] * 3
    selection = RunDirectory(tmp_path / "run").manifest()["selection"]
    assert selection["parts"] == 2
    assert report_of(config)["calibration"]["num_texts"] > 16
    assert trained(list(run_all(config))) == []


@pytest.mark.ray
def test_texts_are_classified_where_none_were_held_out(data, tmp_path):
    """The second system of an ensemble was weighed by parts of the train texts alone."""
    config = config_of(
        data, tmp_path / "run", data={"validation_fraction": 0},
        recipe={"recipe": "auto", "budget": "1h", "folds": 2},
    )  # fmt: skip
    list(run_all(with_ensemble(config, "tfidf")))
    assert "validation" not in RunDirectory(tmp_path / "run").dataset().splits
    assert report_of(config)["calibration"]["ensemble"]["taken"]
    texts = write_jsonl(tmp_path / "new.jsonl", [{"text": "orbit laser kernel chip radio 1."}])
    output = tmp_path / "answers.jsonl"
    succeed("classify", "--model-dir", str(tmp_path / "run"), str(texts), "--num-cpus", "2",
            "--output", str(output))  # fmt: skip
    [row] = map(json.loads, output.read_text().splitlines())
    assert row["answer"] == row["calibrated_predicted"]


@pytest.mark.ray
@pytest.mark.parametrize("lasting", [True, False])
def test_only_a_failure_that_would_come_again_is_kept(data, tmp_path, monkeypatch, lasting):
    stage = cluster.trial.train_stage
    error = TrainingError("the loss is no number") if lasting else ResourceError("memory is full")

    def fails(preparation, *arguments):
        if preparation.system.name == "conditional-lm":
            raise error
        yield from stage(preparation, *arguments)

    monkeypatch.setattr(cluster.trial, "train_stage", fails)
    config = config_of(data, tmp_path / "run")
    list(run_all(config))
    selection = RunDirectory(tmp_path / "run").manifest()["selection"]
    assert (selection["failed_under"] is None) is lasting
    monkeypatch.undo()
    # The same settings are no reason to try in vain again; others are.
    assert trained(list(run_all(config))) == []
    compute = config.compute.model_copy(update={"memory_gb": 9.0})
    other = config.model_copy(update={"compute": compute})
    assert trained(list(train_models(other))) == []
    assert trained(list(run_all(other))) == ([] if lasting else ["conditional-lm"] * 3)
    assert RunDirectory(tmp_path / "run").manifest()["selection"]["failed_under"] is None
    assert "whole" in succeed("verify", str(tmp_path / "run"))


@pytest.mark.ray
def test_other_train_texts_leave_nothing_of_a_choice(again, data, tmp_path):
    make_data(tmp_path / "other", train=30, test=8)
    source = again.data.model_copy(update={"data_dir": tmp_path / "other"})
    recipe = again.recipe.model_copy(update={"recipe": "conditional"})
    list(run_all(again.model_copy(update={"data": source, "recipe": recipe})))
    assert not (Path(again.output_dir) / "candidates").exists()
    assert "whole" in succeed("verify", str(again.output_dir))


@pytest.mark.ray
def test_a_run_that_is_whole_needs_no_memory_for_its_parts(again):
    """Its models of parts are gone, and are not planned for."""
    compute = again.compute.model_copy(update={"concurrent_trainings": 40})
    small = again.model_copy(update={"compute": compute})
    assert trained(list(run_all(small))) == []


def test_labels_that_judge_choose_nothing():
    class Held:
        held_out, loss_per = 90, "text"

    training = TrainingConfig(epochs=4).resolved("joint", adapter=False, texts=300)
    assert chosen_by_held_out(Held(), training)
    assert not chosen_by_held_out(Held(), training, judged=True)
    Held.loss_per = "token"
    assert not chosen_by_held_out(Held(), training, judged=True)


@pytest.mark.ray
def test_trainings_on_parts_are_judged_by_them(chosen, data):
    config = config_of(data, chosen[0])
    whole = prepare(config)
    part = Dataset.open(chosen[0] / "candidates" / "part-0" / "dataset")
    settings = first_candidate(config)
    for dataset, judged in ((None, False), (part, True)):
        trial = Trial.of("new", settings, whole, dataset=dataset)
        assert {task.judged for task in trial.preparation.training_tasks()} == {judged}


@pytest.mark.ray
def test_a_system_that_the_choice_did_without_is_calibrated_on_what_was_held_out(again):
    run = RunDirectory(again.output_dir)
    manifest = run.manifest()
    models = manifest["selection"]["part_models"]
    manifest["selection"]["part_models"] = {
        folder: digests for folder, digests in models.items() if "discriminative" not in folder
    }
    run.write_manifest(manifest)
    found = infer(run, system="discriminative", ensemble="none")
    assert len(found.fit.texts) == run.dataset().held_out
