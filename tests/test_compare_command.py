"""`gencls compare` as a command: light systems are trained on Ray where a run lacks them, once."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
from cluster_fixtures import gencls, succeed
from report_fixtures import make_run
from test_comparison import another

from gencls_core.run import RunDirectory

LIGHT = {"tfidf", "nbsvm", "naive-bayes", "majority"}


@pytest.fixture
def runs(tmp_path) -> list[RunDirectory]:
    """Two runs of the same systems with other seeds, without light systems."""
    first = make_run(tmp_path / "a", validation_rows=0)
    second = another(tmp_path / "b", right=0.8, training={"seed": 1})
    for run in (first, second):
        shutil.rmtree(Path(str(run.path)) / "scores" / "system=tfidf")
    return [first, second]


@pytest.mark.ray
def test_missing_systems_are_trained_once(runs, tmp_path, shared_ray):
    folder = tmp_path / "comparison"
    paths = [run.path for run in runs]
    command = ("compare", *paths, "--output-dir", folder, "--num-cpus", "2", "--memory-gb", "4")
    said = succeed(*command)
    assert "training 8 light systems" in said
    for run in runs:
        assert set(run.scores.systems()) == LIGHT | {"class-lm"}
        for system in LIGHT:
            records = run.scores.records(system)
            assert sorted(r.class_name for r in records) == sorted(run.manifest()["classes"])
            assert {r.rows for r in records} == {240}
            assert all(r.attempt for r in records), "committed under a fence"
        assert not (Path(str(run.path)) / ".owners").exists()
    report = json.loads((folder / "report.json").read_text())
    # The train texts are the same: what draws no other numbers for another seed counts once.
    assert {s["name"]: len(s["runs"]) for s in report["systems"]} == {
        "class-lm": 2, "majority": 1, "naive-bayes": 1, "nbsvm": 1, "tfidf": 1,
    }  # fmt: skip
    assert len(report["pairs"]) == 10
    assert "Are the class models better than TF-IDF with logistic regression? Yes." in said
    for name in ("report.html", "report.md"):
        assert "naive" in (folder / name).read_text()
    assert str(folder / "report.html") in said.replace("\n", "")

    shared_ray.stop()
    import ray

    again = succeed(*command)
    assert "light system" not in again
    assert not ray.is_initialized(), "a comparison of what is there needs no Ray"

    # A damaged file is noticed, and that system alone is made again.
    shard = next(Path(str(runs[0].path)).glob("scores/system=nbsvm/class=01/*.parquet"))
    content = bytearray(shard.read_bytes())
    content[len(content) // 2] ^= 1
    shard.write_bytes(content)
    assert "training 1 light system" in succeed(*command)


def test_mistakes_are_said_before_anything_is_trained(runs, tmp_path):
    first = runs[0].path
    for arguments, code, words in (
        (["--systems", "nbsmv"], 2, "did you mean 'nbsvm'?"),
        (["--also", tmp_path / "nowhere"], 1, "not the folder of a comparison"),
        ([first], 2, "the same run twice"),
        ([tmp_path / "nowhere"], 1, "not a run directory"),
    ):
        found, said = gencls("compare", first, *arguments, "--output-dir", tmp_path / "c")
        assert found == code, said
        assert words in said
    assert not (tmp_path / "c").exists()
    assert runs[0].scores.systems() == ["class-lm"]
