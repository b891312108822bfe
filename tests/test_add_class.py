"""A class comes to a finished run, or goes: what is made, what stays, what is refused."""

from __future__ import annotations

import contextlib
import csv
import hashlib
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import run_fixtures
from click.testing import CliRunner
from fault_fixtures import die, killed
from run_fixtures import CLASSES, make_config, sentences, write_jsonl

import cluster.add_class
import gencls_core.dropping
from cluster.add_class import add_class
from cluster.drop_class import drop_class
from cluster.evaluation import classify_texts, evaluate_models
from cluster.pipeline import run_all, train_models
from gencls_core import ClassifierRun, GenerativeClassifier
from gencls_core.class_models import ClassModel
from gencls_core.config import DataConfig
from gencls_core.datasets.growth import NewClass
from gencls_core.errors import DataError, GenclsError, StoreError, UsageError
from gencls_core.events import ClassReused, ClassTrained, Event, Note, ShardCommitted
from gencls_core.ownership import OwnershipError, own
from gencls_core.query import run_query
from gencls_core.report.build import build_report
from gencls_core.report.class_change import class_change
from gencls_core.run import RunDirectory
from gencls_core.scores import read_scores
from gencls_core.scoring_job import ANY_CLASS
from gencls_core.storage import read_json
from gencls_core.verify import verify
from jobs.main import cli

pytestmark = [pytest.mark.ray, pytest.mark.usefixtures("shared_ray")]

NEW = "weather"
"""Sorts last, so that a run of all classes numbers it the same."""
run_fixtures.WORDS[NEW] = "rain cloud thunder drizzle frost breeze hail sunshine"
TRAIN, TEST = 20, 11


def rows(label: str, split: str, count: int) -> list[dict[str, Any]]:
    texts = sentences(label, count, 1 if split == "train" else 2)
    return [{"id": f"{split}-{label}-{n}", "text": t, "label": label} for n, t in enumerate(texts)]


def write_data(folder: Path, classes: tuple[str, ...]) -> None:
    for split, count in (("train", TRAIN), ("test", 14)):
        made = [rows(name, split, count if name in CLASSES else of(split)) for name in classes]
        write_jsonl(folder / f"{split}.jsonl", [row for part in made for row in part])


def of(split: str) -> int:
    return TRAIN if split == "train" else TEST


def config_of(folder: Path) -> Any:
    return make_config(folder, data={"id_column": "id"}, training={"epochs": 1})


@pytest.fixture(scope="module")
def made(tmp_path_factory) -> Path:
    """Give a folder with a finished run of three classes, and the texts of a fourth."""
    folder = tmp_path_factory.mktemp("made")
    write_data(folder / "data", CLASSES)
    for split in ("train", "test"):
        write_jsonl(folder / f"new-{split}.jsonl", rows(NEW, split, of(split)))
    list(run_all(config_of(folder)))
    return folder


@pytest.fixture
def run(made, tmp_path) -> RunDirectory:
    shutil.copytree(made / "run", tmp_path / "run")
    return RunDirectory(tmp_path / "run")


def asked(made: Path, *, test: bool = True, name: str = NEW, **changes: Any) -> NewClass:
    def data(file: str) -> DataConfig:
        return DataConfig(**{"data": str(made / file), "id_column": "id", **changes})

    return NewClass(name, data("new-train.jsonl"), data("new-test.jsonl") if test else None)


@pytest.fixture(scope="module")
def grown(made, tmp_path_factory) -> tuple[RunDirectory, list[Event]]:
    """Give a copy of the run to which the class was added, and what happened."""
    folder = tmp_path_factory.mktemp("grown")
    shutil.copytree(made / "run", folder / "run")
    run = RunDirectory(folder / "run")
    return run, list(add_class(run.path, asked(made), {}))


@pytest.fixture
def larger(grown, tmp_path) -> RunDirectory:
    shutil.copytree(grown[0].path, tmp_path / "run")
    return RunDirectory(tmp_path / "run")


def digests(run: RunDirectory, *folders: str) -> dict[str, str]:
    """Give the SHA-256 of every file below some folders of a run."""
    return {
        str(path.relative_to(run.path)): hashlib.sha256(path.read_bytes()).hexdigest()
        for folder in folders or ("models", "scores", "validation-scores", "dataset", "base")
        for path in sorted((run.path / folder).rglob("*"))
        if path.is_file() and ".owners" not in path.parts
    }


def figures(run: RunDirectory) -> dict[str, Any]:
    """Give a report but for when it was written, and how long things took."""
    report = read_json(run.report_path / "report.json")
    for name in ("generated", "timing", "tasks", "environment"):
        del report[name]
    return report


def scores(run: RunDirectory, store: str = "scores") -> dict[tuple[str, str], float]:
    table = read_scores(run.path / store, "class-lm")
    columns = (table[name].to_pylist() for name in ("example_id", "class", "score"))
    return {(example, name): score for example, name, score in zip(*columns, strict=True)}


def test_one_model_is_trained_and_everything_of_the_others_stays_as_it_is(made, grown):
    run, events = grown
    assert [event.class_name for event in events if isinstance(event, ClassTrained)] == [NEW]
    assert {event.class_name for event in events if isinstance(event, ClassReused)} == set(CLASSES)
    before, after = digests(RunDirectory(made / "run")), digests(run)
    changed = {name for name in before if after.get(name) != before[name]}
    # Bags of words learn all classes anew.
    assert {name for name in changed if "system=" not in name} == {"dataset/dataset.json"}
    assert all("tfidf" in name or "nbsvm" in name for name in changed if "system=" in name)
    lm = [name for name in before if "system=class-lm" in name]
    assert lm
    assert {after[name] for name in lm} == {before[name] for name in lm}
    shards = [event for event in events if isinstance(event, ShardCommitted)]
    # The old test texts under the new class, and its own under all: 42 and 11 texts, 16 a shard.
    tested = [event for event in shards if event.split == "test"]
    assert sorted((e.class_name, e.shard, e.rows) for e in tested if e.class_name != NEW) == [
        (name, 3, TEST) for name in sorted(CLASSES)
    ]
    assert sum(event.rows for event in tested if event.class_name == NEW) == 42 + TEST


def test_models_and_scores_are_those_of_a_run_with_all_classes(made, grown, tmp_path):
    run, _ = grown
    write_data(tmp_path / "data", (*CLASSES, NEW))
    shutil.copytree(made / "base", tmp_path / "base")
    list(run_all(config_of(tmp_path)))
    anew = RunDirectory(tmp_path / "run")
    for name in (*CLASSES, NEW):
        mine, theirs = (ClassModel.open(r.model_path(name)) for r in (run, anew))
        assert mine.digest == theirs.digest
        assert mine.files == theirs.files
    assert run.dataset().splits.keys() == anew.dataset().splits.keys()
    for split in ("train", "validation", "test"):
        mine, theirs = (r.dataset().split(split) for r in (run, anew))
        assert mine.class_fingerprints == theirs.class_fingerprints
        assert mine.rows == theirs.rows
    for store in ("scores", "validation-scores"):
        mine, theirs = scores(run, store), scores(anew, store)
        assert mine.keys() == theirs.keys()
        assert max(abs(mine[key] - theirs[key]) for key in mine) < 1e-4
    mine, theirs = figures(run), figures(anew)
    assert mine["confusion"] == theirs["confusion"]
    assert mine["prior"]["per_class"] == pytest.approx(theirs["prior"]["per_class"])
    assert mine["calibration"]["scale"] == pytest.approx(theirs["calibration"]["scale"], rel=1e-3)


def test_reports_views_and_checks_know_the_class(made, grown):
    run, _ = grown
    report = read_json(run.report_path / "report.json")
    assert report["classes"] == [*CLASSES, NEW]
    assert report["num_examples"] == 42 + TEST
    assert "tfidf" in report["baselines"]
    assert verify(run).whole, verify(run).findings
    assert run_query(run, "select count(*) as n from examples")["n"].to_pylist() == [
        sum(info.rows for info in run.dataset().splits.values())
    ]
    found = run_query(run, f"select label, {NEW} from likelihoods where label = '{NEW}'")
    assert found.num_rows == TEST
    before = read_json(made / "run" / "report" / "report.json")
    change = class_change(run, NEW)
    assert change is not None
    old = before["confusion"][before["answer"]]
    assert change.texts == 42 == sum(map(sum, old))
    assert change.correct_before == int(np.trace(old))
    assert change.new_texts == TEST
    assert change.moved == sum(row[-1] for row in report["confusion"][report["answer"]][:-1])
    assert 0 < change.seconds < change.seconds_of_all


def test_texts_are_held_out_where_no_test_texts_are_given(made, run):
    list(add_class(run.path, asked(made, test=False), {}))
    counts = {name: info.class_counts[NEW] for name, info in run.dataset().splits.items()}
    assert counts == {"train": 13, "validation": 3, "test": 4}
    assert run.dataset().prior_counts[NEW] == 16


def test_the_same_command_and_that_of_the_run_find_everything_done(made, larger):
    before = digests(larger)
    for again in (add_class(larger.path, asked(made), {}), run_all(config_at(made, larger))):
        events = list(again)
        assert not [e for e in events if isinstance(e, ClassTrained | ShardCommitted)]
        assert digests(larger) == before
    assert larger.manifest()["classes"] == [*CLASSES, NEW]


def config_at(made: Path, run: RunDirectory) -> Any:
    return config_of(made).model_copy(update={"output_dir": run.path})


def test_dropping_gives_back_the_run_as_it_was(made, larger):
    before = RunDirectory(made / "run")
    events = list(drop_class(larger.path, NEW, {}))
    assert not [e for e in events if isinstance(e, ClassTrained | ShardCommitted)]
    assert without_times(digests(larger), larger) == without_times(digests(before), before)
    assert figures(larger) == figures(before)
    assert verify(larger).whole, verify(larger).findings
    assert "dropping" not in larger.manifest()
    assert larger.manifest()["status"] == "finished"


def without_times(found: dict[str, str], run: RunDirectory) -> dict[str, str]:
    """Leave out commit records of bags of words, which say how long it took to learn."""
    assert found
    return {name: value for name, value in found.items() if not name.endswith(".json")} | {
        name: value for name, value in found.items() if "class-lm" in name or "models/" in name
    }


def test_a_class_of_the_first_day_goes_too(made, grown, larger):
    gone = CLASSES[0]
    whole = scores(larger)
    models = {n: d for n, d in digests(larger, "models").items() if f"models/{gone}/" not in n}
    events = list(drop_class(larger.path, gone, {}))
    assert not [e for e in events if isinstance(e, ClassTrained | ShardCommitted)]
    assert digests(larger, "models") == models
    left = scores(larger)
    texts = set(larger.dataset().read("test")["example_id"].to_pylist())
    assert len(texts) == 28 + TEST
    assert left == {key: whole[key] for key in whole if key[0] in texts and key[1] != gone}
    report = read_json(larger.report_path / "report.json")
    assert report["classes"] == [*CLASSES[1:], NEW]
    assert report["calibration"] is not None
    assert verify(larger).whole, verify(larger).findings
    # By digest, too: the run's command finds nothing to do.
    events = list(run_all(config_at(made, larger)))
    assert not [e for e in events if isinstance(e, ClassTrained | ShardCommitted)]
    assert scores(larger) == left


def test_the_classes_go_on_to_be_used(made, larger, tmp_path):
    texts = write_jsonl(tmp_path / "texts.jsonl", [{"text": t} for t in sentences(NEW, 5, 9)])
    *_, last = classify_texts(larger.path, DataConfig(data=str(texts)), {})
    found = RunDirectory(Path(last.message))
    assert {name for _, name in scores(found)} == {*CLASSES, NEW}


@pytest.mark.parametrize("change", ["added", "dropped"])
def test_an_evaluation_is_of_the_classes_that_it_was_made_with(made, larger, tmp_path, change):
    run = larger
    if change == "added":
        list(drop_class(run.path, NEW, {}))
    texts = [{"text": t, "label": c} for c in CLASSES for t in sentences(c, 5, 9)]
    data = DataConfig(data=str(write_jsonl(tmp_path / "later.jsonl", texts)))
    *_, last = evaluate_models(run.path, data, {})
    evaluation = RunDirectory(Path(last.message).parent)
    before = build_report(evaluation)
    if change == "added":
        list(add_class(run.path, asked(made), {}))
    else:
        list(drop_class(run.path, NEW, {}))
    for ask in (lambda: build_report(evaluation), lambda: ClassifierRun.open(evaluation.path)):
        with pytest.raises(StoreError, match="other classes than") as error:
            ask()
        assert NEW in str(error.value)
        assert "gencls evaluate" in str(error.value)
    # The scores are there, and the texts can be scored again under the classes of now.
    assert run_query(evaluation, "select count(*) as n from scores").column("n")[0].as_py() > 0
    *_, last = evaluate_models(run.path, data, {})
    report = build_report(RunDirectory(Path(last.message).parent))
    assert set(before.classes) ^ set(report.classes) == {NEW}


INTERRUPTIONS = {"training": ClassTrained, "scoring": ShardCommitted}


@pytest.mark.parametrize("where", INTERRUPTIONS)
def test_stopped_and_run_again_it_comes_to_the_same_end(made, grown, run, where):
    events = add_class(run.path, asked(made), {})
    with contextlib.closing(events):
        next(event for event in events if isinstance(event, INTERRUPTIONS[where]))
    assert run.manifest()["status"] == "stopped"
    again = list(add_class(run.path, asked(made), {}))
    assert not [event for event in again if isinstance(event, ClassTrained)]
    assert_same(run, grown[0])


def assert_same(run: RunDirectory, other: RunDirectory) -> None:
    def content(of: RunDirectory) -> dict[str, str]:
        return {n: d for n, d in digests(of).items() if not n.endswith(".json")}

    assert content(run) == content(other)
    assert figures(run) == figures(other)
    assert run.manifest()["classes"] == other.manifest()["classes"]
    assert verify(run).whole, verify(run).findings


@pytest.mark.parametrize("where", ["publish_files", "tidy_dataset", "work_off"])
def test_killed_as_the_dataset_grows_nothing_is_lost(made, grown, run, where):
    before = digests(run)

    def add_and_die() -> None:
        setattr(cluster.add_class, where, die)
        list(add_class(run.path, asked(made), {}))

    killed(add_and_die)
    after = digests(run)
    assert {n: after[n] for n in before if n != "dataset/dataset.json"} == {
        n: d for n, d in before.items() if n != "dataset/dataset.json"
    }
    if where == "publish_files":
        assert after == before
    else:
        # Half added, it may be taken back, and another one has to wait.
        with pytest.raises(StoreError, match="not finished"):
            list(add_class(run.path, asked(made, name="other"), {}))
        list(drop_class(run.path, NEW, {}))
        assert figures(run)["confusion"] == figures(RunDirectory(made / "run"))["confusion"]
    list(add_class(run.path, asked(made), {}))
    assert_same(run, grown[0])


@pytest.mark.parametrize("where", ["write_json", "_put", "tidy_dataset", "remove_tree"])
def test_killed_as_a_class_goes_it_is_gone_or_there(made, larger, tmp_path, where):
    undisturbed = RunDirectory(tmp_path / "undisturbed")
    shutil.copytree(larger.path, undisturbed.path)
    list(drop_class(undisturbed.path, CLASSES[0], {}))

    def drop_and_die() -> None:
        kept, calls = getattr(gencls_core.dropping, where), []

        def dying(*arguments: Any) -> Any:
            # The second call: some of it is done.
            calls.append(arguments)
            return die() if len(calls) == 2 else kept(*arguments)

        setattr(gencls_core.dropping, where, die if where == "tidy_dataset" else dying)
        list(drop_class(larger.path, CLASSES[0], {}))

    killed(drop_and_die)
    list(drop_class(larger.path, CLASSES[0], {}))
    assert_same(larger, undisturbed)


def test_the_next_owner_ends_a_drop_that_was_decided(made, larger):
    def drop_and_die() -> None:
        gencls_core.dropping._put = die
        list(drop_class(larger.path, CLASSES[0], {}))

    killed(drop_and_die)
    assert (larger.path / ".change" / "change.json").exists()
    list(run_all(config_at(made, larger)))
    assert larger.manifest()["classes"] == [*CLASSES[1:], NEW]
    assert verify(larger).whole, verify(larger).findings


def refused(run: RunDirectory, action: Iterator[Event], kind: type[GenclsError]) -> str:
    """Check that something is refused and has changed nothing; give the message."""
    before = digests(run, *(child.name for child in run.path.iterdir() if child.is_dir()))
    manifest = run.manifest()
    with pytest.raises(kind) as error:
        list(action)
    after = digests(run, *(child.name for child in run.path.iterdir() if child.is_dir()))
    assert after == before
    assert run.manifest() == manifest
    return str(error.value)


@pytest.mark.parametrize("name", [CLASSES[0], "SCI/TECH", " a  B ", "", "\x07"])
def test_a_name_that_is_there_or_none_is_refused(made, run, name):
    message = refused(run, add_class(run.path, asked(made, name=name), {}), UsageError)
    assert "--name" in message
    assert "found:" in message


def new_file(folder: Path, content: list[dict[str, Any]]) -> NewClass:
    write_jsonl(folder / "new.jsonl", content)
    return NewClass(NEW, DataConfig(data=str(folder / "new.jsonl"), id_column="id"))


def test_unusable_texts_are_refused(made, run, tmp_path):
    good = rows(NEW, "train", 12)
    leak = rows(CLASSES[1], "test", 3)[2]
    cases = {
        "no texts": [],
        "too few texts": good[:3],
        "empty text": [*good, {"id": "x", "text": "  "}],
        "stands in the run's test split": [
            *good,
            {"id": "x", "text": f" {leak['text']}  "},
        ],
        "stands twice": [*good, {"id": "train-01-3", "text": "a new text"}],
    }
    for problem, content in cases.items():
        message = refused(run, add_class(run.path, new_file(tmp_path, content), {}), DataError)
        assert problem in message
        assert "new.jsonl" in message
    (tmp_path / "new.jsonl").write_text('{"text": "a"}\n{"text": \n')
    with pytest.raises(DataError, match=r"new.jsonl:"):
        list(add_class(run.path, new_asked(tmp_path), {}))
    (tmp_path / "new.jsonl").unlink()
    with pytest.raises(DataError, match="no such file"):
        list(add_class(run.path, new_asked(tmp_path), {}))


def new_asked(folder: Path) -> NewClass:
    return NewClass(NEW, DataConfig(data=str(folder / "new.jsonl")))


def test_a_run_that_cannot_take_a_class_is_refused(made, run, tmp_path):
    manifest = run.manifest()
    run.write_manifest({**manifest, "status": "stopped"})
    assert "status stopped" in refused(run, add_class(run.path, asked(made), {}), StoreError)
    assert "status stopped" in refused(run, drop_class(run.path, CLASSES[0], {}), StoreError)
    joint = {**manifest["config"], "recipe": {"recipe": "joint"}}
    run.write_manifest({**manifest, "config": joint})
    for action in (add_class(run.path, asked(made), {}), drop_class(run.path, "01", {})):
        assert "--recipe independent" in refused(run, action, UsageError)
    run.write_manifest(manifest)
    shutil.rmtree(run.model_path(CLASSES[1]))
    assert CLASSES[1] in refused(run, add_class(run.path, asked(made), {}), StoreError)
    with pytest.raises(StoreError, match="not a run directory"):
        list(add_class(tmp_path / "nothing", asked(made), {}))


def test_a_class_does_not_go_from_scores_that_are_not_whole(run):
    run.scores.drop("class-lm", CLASSES[2])
    assert "not whole" in refused(run, drop_class(run.path, CLASSES[0], {}), StoreError)


def test_a_class_that_cannot_go_is_refused(run):
    assert "no such class" in refused(run, drop_class(run.path, "nobody", {}), UsageError)
    list(drop_class(run.path, CLASSES[0], {}))
    assert "two classes" in refused(run, drop_class(run.path, CLASSES[1], {}), UsageError)


def test_one_process_at_a_time_has_the_run(made, run):
    with own(run.path, "a test"):
        for action in (add_class(run.path, asked(made), {}), drop_class(run.path, "01", {})):
            with pytest.raises(OwnershipError):
                list(action)
    assert run.manifest()["classes"] == list(CLASSES)


def test_dropping_loads_neither_torch_nor_ray(larger):
    code = (
        "import sys; from pathlib import Path; from cluster.drop_class import drop_class; "
        f"list(drop_class(Path({str(larger.path)!r}), {NEW!r}, {{}}, baseline=False)); "
        "print({'torch', 'ray', 'transformers'} & set(sys.modules))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.stdout == "set()\n", done.stdout + done.stderr
    assert read_json(larger.report_path / "report.json")["baselines"].keys() == {"majority"}
    assert larger.manifest()["classes"] == list(CLASSES)


@pytest.fixture(scope="module")
def trained_once(made, tmp_path_factory) -> Path:
    """Give a run whose models were trained, and of which nothing was scored."""
    folder = tmp_path_factory.mktemp("trained")
    list(train_models(config_of(made).model_copy(update={"output_dir": folder / "run"})))
    return folder / "run"


@pytest.fixture
def trained(trained_once, tmp_path) -> RunDirectory:
    shutil.copytree(trained_once, tmp_path / "run")
    return RunDirectory(tmp_path / "run")


def command(*arguments: object) -> str:
    result = CliRunner().invoke(cli, list(map(str, arguments)))
    assert result.exit_code == 0, result.output
    return result.output


def test_a_run_that_was_only_trained_stays_without_scores(made, trained):
    texts = made / "new-train.jsonl"
    assert "Models: " in command("add-class", trained.path, "--name", NEW, texts)
    assert trained.manifest()["classes"] == [*CLASSES, NEW]
    assert "Models: " in command("drop-class", trained.path, "--name", CLASSES[0])
    manifest = trained.manifest()
    assert manifest["classes"] == [*CLASSES[1:], NEW]
    assert manifest["status"] == "finished"
    assert not {"dropping", "added"} & manifest.keys()
    assert not trained.model_path(CLASSES[0]).exists()
    assert not [p for p in (trained.report_path, trained.scores.path) if p.exists()]
    assert verify(trained).whole, verify(trained).findings
    assert "no such class" in refused(trained, drop_class(trained.path, CLASSES[0], {}), UsageError)
    events = list(run_all(config_at(made, trained)))
    assert not [event for event in events if isinstance(event, ClassTrained)]
    assert read_json(trained.report_path / "report.json")["classes"] == [*CLASSES[1:], NEW]


def test_what_scikit_learn_fitted_takes_a_class_and_lets_one_go(made, tmp_path):
    made_rows = [row for name in CLASSES for row in rows(name, "train", TRAIN)]
    texts, labels = ([row[key] for row in made_rows] for key in ("text", "label"))
    classifier = GenerativeClassifier(
        str(made / "base"), epochs=1, learning_rate=5e-3, output_dir=tmp_path / "run"
    ).fit(texts, labels)
    run = RunDirectory(tmp_path / "run")
    changes = {"compute": {"num_cpus": 2, "memory_gb": 8}}
    with_test = add_class(run.path, asked(made), changes)
    assert "leave `--test` away" in refused(run, with_test, DataError)
    events = list(add_class(run.path, asked(made, test=False), changes))
    assert [event.class_name for event in events if isinstance(event, ClassTrained)] == [NEW]
    counts = {name: info.class_counts[NEW] for name, info in run.dataset().splits.items()}
    assert counts == {"train": 18, "validation": 2}
    # Its probabilities rest on held-out texts: those of all classes, under all.
    assert run.scored("class-lm") == ("validation",)
    assert len(scores(run, "validation-scores")) == 4 * run.dataset().held_out
    assert ClassifierRun.open(run.path).notes == ()
    assert ClassifierRun.open(run.path).classify(sentences(NEW, 1, 9))[0].predicted == NEW
    list(drop_class(run.path, CLASSES[0], {}))
    assert run.manifest()["status"] == "finished"
    assert verify(run).whole, verify(run).findings
    assert ClassifierRun.open(run.path).classes == (*CLASSES[1:], NEW)
    # Whoever fits again wants the classes that are given.
    assert classifier.fit(texts, labels).run_.classes == CLASSES
    assert set(classifier.predict(texts)) <= set(CLASSES)


def prior_of(*classes: str) -> str:
    """Give a prior that makes every text one of the first class."""
    return ",".join(f"{name}={1e-60 if n else 1}" for n, name in enumerate(classes))


def test_before_and_after_are_by_the_same_rule(made, run):
    build_report(run, prior=prior_of(*CLASSES))
    list(add_class(run.path, asked(made), {}))
    before = read_json(made / "run" / "report" / "report.json")
    change = class_change(run, NEW)
    assert change is not None
    assert change.correct_before == int(np.trace(before["confusion"][before["answer"]])) > 14
    list(add_class(run.path, asked(made), {"posterior": {"prior": prior_of(*CLASSES, NEW)}}))
    assert class_change(run, NEW) is None


def test_a_new_prior_is_that_of_before_too(made, run):
    list(add_class(run.path, asked(made), {"posterior": {"prior": prior_of(*CLASSES, NEW)}}))
    change = class_change(run, NEW)
    assert change is not None
    assert (change.correct_before, change.correct_after) == (14, 14)


def write_csv(path: Path, columns: dict[str, list[str]]) -> Path:
    with path.open("w", newline="") as stream:
        writer = csv.writer(stream)
        writer.writerow(columns)
        writer.writerows(zip(*columns.values(), strict=True))
    return path


def test_texts_without_ids_of_their_own_get_some(made, trained, tmp_path):
    texts = sentences(NEW, 12, 1)
    command(
        "add-class", trained.path, "--name", NEW, write_csv(tmp_path / "a.csv", {"text": texts})
    )
    splits: Any = trained.dataset().splits
    rows_of = [row for split in splits for row in trained.dataset().read(split).to_pylist()]
    numbers = {row["text"]: row["example_id"] for row in rows_of if row["label"] == NEW}
    assert len(numbers) == 12
    for number, text in enumerate(texts):
        assert numbers[text] in [f"{split}-{NEW}-{number}" for split in splits]


def test_ids_that_are_taken_can_be_left_away(made, trained, tmp_path):
    texts, taken = sentences(NEW, 12, 1), [f"train-01-{n}" for n in range(12)]
    columns = {"id": taken, "text": texts}
    arguments = ["add-class", trained.path, "--name", NEW, write_csv(tmp_path / "a.csv", columns)]
    found = CliRunner().invoke(cli, list(map(str, arguments)))
    assert isinstance(found.exception, DataError)
    assert "--no-id-column" in str(found.exception)
    with pytest.raises(DataError, match="no column `number`"):
        CliRunner().invoke(
            cli, [*map(str, arguments), "--id-column", "number"], catch_exceptions=False
        )
    command(*arguments, "--no-id-column")
    ids = trained.dataset().read("train")["example_id"].to_pylist()
    assert sum(name.startswith(f"train-{NEW}-") for name in ids) == 8


def test_a_prior_of_the_old_classes_must_be_said_anew(made, run):
    manifest = run.manifest()
    posterior = {**manifest["config"]["posterior"], "prior": "Sci/Tech=0.5,01=0.25,a b=0.25"}
    run.write_manifest({**manifest, "config": {**manifest["config"], "posterior": posterior}})
    assert "--prior" in refused(run, add_class(run.path, asked(made), {}), UsageError)
    list(add_class(run.path, asked(made), {"posterior": {"prior": "uniform"}}))
    assert read_json(run.report_path / "report.json")["prior"]["name"] == "uniform"


def test_other_systems_are_left_out_with_a_note(made, run):
    for store in (run.scores, run.validation_scores):
        shutil.copytree(store.path / "system=class-lm", store.path / "system=zero-shot")
    events = list(add_class(run.path, asked(made), {}))
    assert any("does not know the new class" in e.message for e in events if isinstance(e, Note))
    assert run.scores.systems() == ["class-lm", "tfidf"]
    assert verify(run).whole, verify(run).findings


def test_what_the_untrained_base_said_of_the_old_texts_stays(made, run):
    config = config_at(made, run)
    config = config.model_copy(
        update={"scoring": config.scoring.model_copy(update={"background": True})}
    )
    list(run_all(config))
    before = digests(run, "scores/system=background", "validation-scores/system=background")
    assert before
    events = list(add_class(run.path, asked(made), {}))
    added = [e for e in events if isinstance(e, ShardCommitted) and e.class_name == ANY_CLASS]
    assert {e.split for e in added} == {"test", "validation"}
    after = digests(run, "scores/system=background", "validation-scores/system=background")
    assert before.items() < after.items()
    assert sum(e.rows for e in added) == TEST + run.dataset().held_out - 12
    assert not [e for e in run_all(config) if isinstance(e, ShardCommitted)]
    list(drop_class(run.path, NEW, {}))
    assert before == digests(run, "scores/system=background", "validation-scores/system=background")
    events = list(drop_class(run.path, CLASSES[0], {}))
    assert any("untrained base" in e.message for e in events if isinstance(e, Note))
    assert "background" not in run.scores.systems()


def test_costs_go_with_the_classes(made, run):
    manifest = run.manifest()
    pair = [CLASSES[0], CLASSES[1], 7.0]
    posterior = {**manifest["config"]["posterior"], "costs": [pair]}
    run.write_manifest({**manifest, "config": {**manifest["config"], "posterior": posterior}})
    list(add_class(run.path, asked(made), {}))
    costs = read_json(run.report_path / "report.json")["decisions"]["costs"]
    assert (len(costs), costs[0][1], costs[0][3]) == (4, 7.0, 1.0)
    list(drop_class(run.path, CLASSES[1], {}))
    assert run.manifest()["config"]["posterior"]["costs"] is None
    assert read_json(run.report_path / "report.json")["decisions"] is None


def test_costs_that_would_decide_nothing_go_with_a_class(trained):
    a, b, gone = CLASSES
    manifest = trained.manifest()
    pairs = [[a, b, 0.0], [b, a, 0.0], [a, gone, 5.0]]
    posterior = {**manifest["config"]["posterior"], "costs": pairs}
    trained.write_manifest({**manifest, "config": {**manifest["config"], "posterior": posterior}})
    events = list(drop_class(trained.path, gone, {}))
    assert any("costs of decisions" in e.message for e in events if isinstance(e, Note))
    assert trained.manifest()["config"]["posterior"]["costs"] is None


def test_the_commands_say_what_changed_and_what_it_cost(made, run):
    runner = CliRunner()
    arguments = ["add-class", str(run.path), "--name", NEW, str(made / "new-train.jsonl")]
    result = runner.invoke(cli, [*arguments, "--test", str(made / "new-test.jsonl")])
    assert result.exit_code == 0, result.output
    for words in ("old test texts that are right", f"recall of {NEW}", "Cost:", "of 42"):
        assert words in result.output
    assert build_report(run).classes == [*CLASSES, NEW]
    result = runner.invoke(cli, ["drop-class", str(run.path), "--name", NEW])
    assert result.exit_code == 0, result.output
    assert build_report(run).classes == list(CLASSES)


@pytest.mark.parametrize("name", ["add-class", "drop-class"])
def test_help(name):
    assert "gencls " + name in CliRunner().invoke(cli, [name, "--help"]).output
