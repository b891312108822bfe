"""A small labelled dataset and a small base model, for whole runs on a real Ray."""

from __future__ import annotations

import json
import random
from pathlib import Path
from typing import Any

from model_fixtures import make_model_folder

from gencls_core.config import RunConfig
from gencls_core.config_parsing import parse_run_config

WORDS = {
    "Sci/Tech": "orbit laser kernel compiler protein telescope chip radio",
    "01": "goal referee league sprint coach medal stadium relay",
    "a b": "bond tariff ledger merger dividend invoice audit credit",
}
CLASSES = tuple(sorted(WORDS))


def write_jsonl(path: Path, rows: list[dict[str, Any]]) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return path


def sentences(label: str, count: int, seed: int) -> list[str]:
    generator = random.Random(f"{label}-{seed}")
    return [
        " ".join(generator.choices(WORDS[label].split(), k=generator.randint(4, 9))) + f" {n}."
        for n in range(count)
    ]


def make_data(folder: Path, *, train: int = 20, test: int = 14) -> Path:
    for split, count, seed in (("train", train, 1), ("test", test, 2)):
        rows = [
            {"text": text, "label": label}
            for label in CLASSES
            for text in sentences(label, count, seed)
        ]
        random.Random(seed).shuffle(rows)
        write_jsonl(folder / f"{split}.jsonl", rows)
    return folder


def make_config(folder: Path, **changes: Any) -> RunConfig:
    """Give the settings of a run of seconds; data and model are made where they are missing."""
    if not (folder / "data").exists():
        make_data(folder / "data")
    if not (folder / "base").exists():
        make_model_folder(folder / "base", "gpt2", context=64)
    values: dict[str, Any] = {
        "output_dir": str(folder / "run"),
        "data": {"data_dir": str(folder / "data"), "validation_fraction": 0.2},
        "model": {"model": str(folder / "base")},
        "training": {"epochs": 2, "batch_size": 8, "learning_rate": 5e-3},
        "scoring": {"shard_size": 16},
        "compute": {"num_cpus": 2, "memory_gb": 8},
    }
    for key, value in changes.items():
        values[key] = {**values.get(key, {}), **value} if isinstance(value, dict) else value
    return parse_run_config(values)
