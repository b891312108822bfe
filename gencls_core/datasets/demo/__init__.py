"""The embedded `demo` dataset: short invented messages to a town's help desk."""

from __future__ import annotations

from importlib.resources import files
from pathlib import Path

__all__ = ["DEMO_NAME", "demo_folder"]

DEMO_NAME = "town-desk"


def demo_folder() -> Path:
    """Give the folder that holds the demo's `train.jsonl` and `test.jsonl`."""
    return Path(str(files(__name__)))
