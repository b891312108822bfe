"""docs/data.md names every setting of the data; the demo's README counts what is there."""

from __future__ import annotations

import json
import re
from collections import Counter
from pathlib import Path

from gencls_core.config import DataConfig
from gencls_core.datasets.demo import DEMO_NAME, demo_folder
from gencls_core.datasets.table_readers import TABLE_SUFFIXES

DOCUMENT = (Path(__file__).parents[1] / "docs" / "data.md").read_text(encoding="utf-8")


def test_every_setting_and_suffix_is_named() -> None:
    for name in DataConfig.model_fields:
        assert f"--{name.replace('_', '-')}" in DOCUMENT
    for suffix in TABLE_SUFFIXES:
        assert f"`{suffix}`" in DOCUMENT


def test_demo_readme_counts_what_is_there() -> None:
    readme = (demo_folder() / "README.md").read_text(encoding="utf-8")
    assert readme.startswith(f"# {DEMO_NAME}\n")
    counts = {}
    for split in ("train", "test"):
        lines = (demo_folder() / f"{split}.jsonl").read_text(encoding="utf-8").splitlines()
        rows = [json.loads(line) for line in lines]
        assert len({row["text"] for row in rows}) == len(rows)
        counts[split] = Counter(row["label"] for row in rows)
    found = re.findall(r"^\| `(\w+)` \|.*\| (\d+) \| (\d+) \|$", readme, flags=re.MULTILINE)
    assert {name: (int(train), int(test)) for name, train, test in found} == {
        name: (counts["train"][name], counts["test"][name]) for name in counts["train"]
    }
    total = sum(counts["train"].values()) + sum(counts["test"].values())
    assert f"{total} original messages" in readme
