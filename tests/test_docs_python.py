"""Every block of docs/python.md runs, one after the other, on a run of a small model."""

from __future__ import annotations

import re
from pathlib import Path

import numpy as np
import pytest
from run_fixtures import make_config

from cluster.pipeline import run_all

DOCUMENT = (Path(__file__).parents[1] / "docs" / "python.md").read_text(encoding="utf-8")


@pytest.mark.ray
@pytest.mark.usefixtures("shared_ray")
def test_every_block_runs(tmp_path, monkeypatch):
    config = make_config(
        tmp_path, output_dir=str(tmp_path / "runs" / "agnews"), recipe={"recipe": "joint"}
    )
    for _ in run_all(config):
        pass
    monkeypatch.chdir(tmp_path)
    names: dict[str, object] = {}
    blocks = re.findall(r"^```python\n(.*?)^```", DOCUMENT, flags=re.MULTILINE | re.DOTALL)
    assert len(blocks) >= 5
    for block in blocks:
        exec(compile(block, "docs/python.md", "exec"), names)
    run, classifier = names["run"], names["classifier"]
    assert [len(run.classify(texts)) for texts in ([], ["a"], ["a", "b"])] == [0, 1, 2]
    assert classifier.classes_.tolist() == ["money", "sport"]
    assert np.isfinite(classifier.predict_log_proba(["goal"])).all()
