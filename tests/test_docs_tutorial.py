"""docs/tutorial.md from its first block to its last, as a reader would do it."""

from __future__ import annotations

import re
import shlex
from pathlib import Path

import pyarrow.csv
import pytest
from cluster_fixtures import RAY_VARIABLES, gencls

from gencls_core.run import RunDirectory

DOCUMENT = (Path(__file__).parents[1] / "docs" / "tutorial.md").read_text(encoding="utf-8")


@pytest.mark.ray
@pytest.mark.timeout(1200)
def test_every_block_runs(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("GENCLS_HOME", str(tmp_path / "home"))
    for name in RAY_VARIABLES:
        monkeypatch.delenv(name, raising=False)
    blocks = re.findall(r"^```(sh|python)\n(.*?)^```", DOCUMENT, flags=re.MULTILINE | re.DOTALL)
    assert len(blocks) >= 9
    said: dict[str, list[str]] = {}
    names: dict[str, object] = {}
    try:
        for kind, block in blocks:
            if kind == "python":
                exec(compile(block, "docs/tutorial.md", "exec"), names)
                continue
            for line in block.replace("\\\n", " ").splitlines():
                program, *arguments = shlex.split(line, comments=True)
                assert program == "gencls"
                said.setdefault(arguments[0], []).append(run(arguments, said))
    finally:
        gencls("cluster", "down")
    runs = {name: RunDirectory(tmp_path / "runs" / name) for name in ("town", "town-away")}
    assert [len(run.manifest()["classes"]) for run in runs.values()] == [5, 4]
    assert all(run.manifest()["status"] == "finished" for run in runs.values())
    answers = pyarrow.csv.read_csv(tmp_path / "answers.csv")
    assert set(answers["answer"].to_pylist()) >= {"water"}
    assert "whole" in said["verify"][0]
    assert "nats" in said["explain"][1]


def run(arguments: list[str], said: dict[str, list[str]]) -> str:
    """Run a command; an id of a job is that of the one that was submitted."""
    submitted = re.findall(r"gencls-run-[0-9a-f]{12}", "".join(said.get("submit", [])))
    if submitted:
        arguments = [submitted[0] if part.startswith("gencls-run-") else part for part in arguments]
    code, output = gencls(*arguments)
    assert code == 0, (arguments, output)
    return output
