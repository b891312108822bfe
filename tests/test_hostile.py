"""Inputs that try to leave the run directory, or to run code: kept inside, or refused by name."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from model_fixtures import make_model_folder
from run_fixtures import make_config, write_jsonl

from benchmarks.synthetic import StubModels
from cluster.pipeline import run_all
from gencls_core.config import DataConfig, ModelConfig, ScoringConfig, SequenceConfig
from gencls_core.datasets.ingest import ingest
from gencls_core.errors import DataError, ModelError, UsageError
from gencls_core.model_source import resolve_model
from gencls_core.remote_path import RemotePath
from gencls_core.run import RunDirectory
from gencls_core.scores import ScoreStore, ShardKey, read_scores

pytestmark = pytest.mark.fault

NAMES = ["../../x", "a/b", "🦉 owl", "..", ".", "%2e%2e", "CON", "a\nb", " "]


def make_source(folder: Path, names: list[str]) -> Path:
    for split in ("train", "test"):
        rows = [
            {"text": f"{split} text {k} of {n}", "label": name}
            for n, name in enumerate(names)
            for k in range(4)
        ]
        write_jsonl(folder / f"{split}.jsonl", rows)
    return folder


def inside(path: Path, folder: Path) -> bool:
    return path.resolve().is_relative_to(folder.resolve()) and path.resolve() != folder.resolve()


@pytest.mark.parametrize("name", NAMES)
def test_no_class_name_leaves_the_run_directory(name, tmp_path):
    run = RunDirectory(tmp_path / "deep" / "run")
    key = ShardKey("class-lm", name, 0, 1)
    assert inside(run.model_path(name), run.models_path)
    assert inside(run.scores.shard_path(key), run.scores.path)
    assert inside(run.scores.record_path(key), run.scores.path)
    remote = RunDirectory(RemotePath.parse("s3://bucket/deep/run"))
    parts = str(remote.scores.shard_path(key)).split("/")
    assert ".." not in parts
    assert "." not in parts


def test_classes_with_hostile_names_go_through_and_come_back(tmp_path):
    names = ["../../x", "a/b", "🦉 owl"]
    run = RunDirectory(tmp_path / "deep" / "run")
    config = DataConfig(data_dir=make_source(tmp_path / "source", names))
    dataset = ingest(config, Path(str(run.dataset_path)))
    assert set(dataset.classes) == set(names)
    texts = dataset.read("test")
    for name in names:
        table = StubModels().score(texts, "lamps", SequenceConfig(), ScoringConfig())
        ScoreStore(run.scores.path).commit(
            ShardKey("class-lm", name, 0, 1), table, start=0, digest="d"
        )
    rows = read_scores(run.scores.path)
    assert set(rows["class"].to_pylist()) == set(names)
    outside = [p for p in tmp_path.rglob("*") if p.is_file() and not inside(p, run.path)]
    assert {p.parent for p in outside} == {tmp_path / "source"}


def test_a_data_path_with_dots_is_the_folder_that_it_names(tmp_path):
    make_source(tmp_path / "source", ["a", "b"])
    (tmp_path / "other").mkdir()
    config = DataConfig(data_dir=tmp_path / "other" / ".." / "source")
    dataset = ingest(config, tmp_path / "run" / "dataset")
    assert dataset.classes == ("a", "b")
    with pytest.raises(DataError):
        ingest(DataConfig(data_dir=tmp_path / "other" / ".." / "nothing"), tmp_path / "out")


@pytest.mark.parametrize("uri", ["s3://bucket/../other", "s3://bucket/a/./b", "s3:///x"])
def test_a_uri_with_dots_is_refused(uri):
    with pytest.raises(UsageError, match=r"`\.` and `\.\.`"):
        RemotePath.parse(uri)


def test_credentials_in_a_uri_are_refused_and_not_repeated():
    with pytest.raises(UsageError) as error:
        RemotePath.parse("s3://AKIAKEY:topsecret@bucket/run")
    assert "topsecret" not in str(error.value)
    assert "AWS_ACCESS_KEY_ID" in str(error.value)


class Trap:
    """Runs code when it is unpickled."""

    def __reduce__(self):
        return (Path.touch, (Path("trapped"),))


def test_pickled_weights_are_not_loaded(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    folder = make_model_folder(tmp_path / "model", "gpt2")
    (folder / "model.safetensors").unlink()
    torch.save({"weights": Trap()}, folder / "pytorch_model.bin")
    with pytest.raises(ModelError, match="no safetensors weights") as error:
        resolve_model(ModelConfig(model=str(folder)))
    assert "pytorch_model.bin" in str(error.value)
    assert not (tmp_path / "trapped").exists()


def test_a_commit_record_that_names_files_elsewhere_is_not_followed(tmp_path):
    """A record is found by its place; what it says of itself leads nowhere."""
    store = ScoreStore(tmp_path / "scores")
    folder = tmp_path / "scores" / "system=s" / "class=c"
    folder.mkdir(parents=True)
    (tmp_path / "outside.parquet").write_bytes(b"x" * 9)
    (folder / "_shard-00000-of-00001.json").write_text(
        json.dumps({"class_name": "../../..", "bytes": 9})
    )
    assert store.records() == []
    assert store.orphans() == ["system=s/class=c/_shard-00000-of-00001.json"]


@pytest.mark.parametrize("end", ["jsonl", "csv"])
def test_a_text_of_50_mb_is_refused_by_its_line(end, tmp_path):
    """As one sequence it would take ten gigabytes to tokenise and a day to score."""
    source = make_source(tmp_path / "source", ["a", "b"])
    huge = "the quick brown fox " * 2_500_000
    if end == "jsonl":
        with (source / "test.jsonl").open("a") as stream:
            stream.write(json.dumps({"text": huge, "label": "a"}) + "\n")
    else:
        for split in ("train", "test"):
            (source / f"{split}.jsonl").unlink()
            rows = ["text,label", *(f"{split} {k} of {c},{c}" for c in "ab" for k in range(4))]
            rows += [f"{huge},a"] * (split == "test")
            (source / f"{split}.csv").write_text("\n".join(rows) + "\n")
    with pytest.raises(DataError, match="text too long") as error:
        ingest(DataConfig(data_dir=source), tmp_path / "dataset")
    line = 9 if end == "jsonl" else 10
    assert f"test.{end}:{line}: text too long" in str(error.value)
    assert "50,000,000 characters" in str(error.value)
    assert len(str(error.value)) < 1000
    assert not (tmp_path / "dataset").exists()


@pytest.mark.parametrize("content", ['{"a": 1}', "[]"])
def test_what_is_not_ours_is_not_overwritten(tmp_path: Path, content: str) -> None:
    folder = tmp_path / "mine"
    folder.mkdir()
    (folder / "run.json").write_text(content)
    with pytest.raises(UsageError, match=r"run\.json that is not of gencls"):
        list(run_all(make_config(tmp_path, output_dir=str(folder))))
    assert [path.name for path in folder.iterdir()] == ["run.json"]
    assert (folder / "run.json").read_text() == content


def test_a_file_is_no_run_directory(tmp_path: Path) -> None:
    file = tmp_path / "mine"
    file.write_text("x")
    with pytest.raises(UsageError, match="the run directory is a file"):
        list(run_all(make_config(tmp_path, output_dir=str(file))))
    assert file.read_text() == "x"
