"""Few held-out texts: parts of the train texts judge recipes, and the calibration rests on them."""

from __future__ import annotations

import json
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
from cluster_fixtures import succeed
from model_fixtures import make_model_folder
from run_fixtures import CLASSES, make_config, make_data

from cluster.cross_validation import parts_of
from cluster.pipeline import run_all
from gencls_core.config import RunConfig
from gencls_core.datasets import Dataset
from gencls_core.datasets.parts import part_of_each, write_part
from gencls_core.events import ClassTrained, Event, Note
from gencls_core.report.fitting import Fitter
from gencls_core.report.inference import infer
from gencls_core.run import RunDirectory
from gencls_core.score_matrix import read_likelihoods
from gencls_core.storage import files_below


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
        assert light.systems() == ["tfidf"]
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
    assert inference.fit.ensemble.trial.held_out == rows
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
    assert infer(run).fit.ensemble is None


@pytest.mark.ray
def test_no_time_for_parts(data, tmp_path):
    config = config_of(data, tmp_path / "run", recipe={"recipe": "auto", "budget": "0.01s"})
    events = list(run_all(config))
    assert trained(events) == ["joint-lm"]
    [note] = [event.message for event in events if isinstance(event, Note)]
    assert "nothing is chosen, recipe joint is taken" in note
    assert "of a cross-validation of the train texts, it would take about" in note
    selection = RunDirectory(tmp_path / "run").manifest()["selection"]
    assert (selection["chosen"], selection["parts"]) == ("joint", 0)
    # The model was trained once, and is the run's own; a second time nothing is.
    assert trained(list(run_all(config))) == []


def test_who_is_cross_validated(data, tmp_path):
    def dataset(**counts: int) -> Dataset:
        opened = Dataset.open(data / "run" / "dataset")
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


def test_a_part_is_written_once(chosen, tmp_path):
    dataset = Dataset.open(chosen[0] / "dataset")
    first = write_part(dataset, 0, 3, 7, tmp_path / "part")
    written = (tmp_path / "part" / "train.parquet").stat().st_mtime_ns
    assert write_part(dataset, 0, 3, 7, tmp_path / "part") == first
    assert (tmp_path / "part" / "train.parquet").stat().st_mtime_ns == written
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
