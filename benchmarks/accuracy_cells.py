"""What docs/accuracy.md measures: which systems, on which texts, and what a cell's figures are."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

__all__ = ["CELLS", "Cell", "Figures", "figures_of"]

TEXTS: dict[str, tuple[str, ...]] = {
    "sst2": ("--data-dir", "data/sst2"),
    "mr": ("--data-dir", "data/mr", "--text-column", "review", "--label-column", "sentiment"),
    "agnews": ("--data-dir", "data/agnews-classifier"),
    "c50-10": ("--data-dir", "data/c50-10"),
}
"""Data set → how a command is told of it, in a folder `data`."""

_TITLES = {"sst2": "SST-2", "mr": "MR", "agnews": "AG News", "c50-10": "C50-10"}
_USUAL = ("joint-lm", "discriminative", "tfidf", "nbsvm")


@dataclass(frozen=True)
class Cell:
    """One command: systems side by side on the same splits, or what `gencls run` comes to."""

    data: str
    size: int
    """Train texts per class."""
    test_texts: int
    seeds: tuple[int, ...] = (0,)
    systems: tuple[str, ...] = _USUAL
    """Empty: `gencls run`, which chooses its recipe."""
    options: tuple[str, ...] = ()

    @property
    def name(self) -> str:
        """What it is called on the command line: `sst2-16`, `sst2-16-run`, `sst2-16-class-lm`."""
        also = [] if self.systems == _USUAL else self.systems[:1] or ("run",)
        return "-".join([self.data, str(self.size), *also])

    @property
    def title(self) -> str:
        """What it is called in the table."""
        return f"{_TITLES[self.data]}, {self.size}"

    def command(self, model: str, precision: str) -> list[str]:
        """Give the command without its output folder."""
        base = ["--model", model, "--precision", precision]
        size = ["--max-test-samples", str(self.test_texts), *self.options]
        if not self.systems:
            train = ["--max-samples", str(self.size), "--seed", str(self.seeds[0])]
            return ["gencls", "run", *TEXTS[self.data], *base, *train, *size]
        train = ["--train-sizes", str(self.size), "--seeds", ",".join(map(str, self.seeds))]
        systems = ["--systems", ",".join(self.systems)]
        return ["gencls", "compare", *TEXTS[self.data], *base, *systems, *train, *size]


_SENTENCES, _SEEDS = ("sst2", "mr", "agnews"), (0, 1, 2)

CELLS = (
    *(Cell(data, size, 300, _SEEDS) for size in (16, 64) for data in _SENTENCES),
    *(Cell(data, size, 300, systems=()) for size in (16, 64) for data in _SENTENCES),
    *(Cell(data, 300, 600) for data in _SENTENCES),
    *(Cell(data, 300, 600, systems=()) for data in _SENTENCES),
    *(
        Cell(data, 64, 300, _SEEDS, systems=("class-lm", "conditional-lm"))
        for data in ("sst2", "agnews")
    ),
    Cell("c50-10", 16, 100, systems=("tfidf", "nbsvm", "discriminative")),
    Cell("c50-10", 16, 100, systems=()),
)
"""Everything that is measured, the cheapest first."""


@dataclass(frozen=True)
class Figures:
    """What one system comes to in a cell."""

    accuracy: float
    low: float
    high: float
    nll: float
    ece: float
    train_seconds: float | None
    seconds_per_1000_texts: float | None
    ece_by_chance: float | None = None
    """Of so many texts, were each probability right; told by a run's own report."""
    found: str = ""
    """What `gencls run` took."""


def figures_of(cell: Cell, folder: Path) -> tuple[dict[str, Figures], list[dict[str, Any]]]:
    """Read the figures of a cell's systems, and its tested pairs, from what a command has written.

    Raises:
        OSError: when there is no report.
    """
    if not cell.systems:
        report = json.loads((folder / "report" / "report.json").read_text(encoding="utf-8"))
        return {"run": _of_run(report)}, []
    report = json.loads((folder / "report.json").read_text(encoding="utf-8"))
    found = {}
    for system in report["systems"]:
        accuracy = system["accuracy"]
        found[system["system"]] = Figures(
            accuracy["value"],
            accuracy["low"],
            accuracy["high"],
            system["nll"]["value"],
            system["ece"]["value"],
            system["train_seconds"],
            system["seconds_per_1000_texts"],
        )
    return found, report["pairs"]


def _of_run(report: dict[str, Any]) -> Figures:
    answer = report["answer"]
    low, high = report["accuracy_ci95"][answer]
    chosen = (report["selection"] or {}).get("chosen", "")
    ensemble = (report["calibration"] or {}).get("ensemble") or {}
    beside = f", {ensemble['system']} beside" if ensemble.get("taken") else ""
    return Figures(
        report["accuracy"][answer],
        low,
        high,
        report["nll"][answer],
        report["ece"][answer],
        report["timing"]["wall_seconds"],
        None,
        report["ece_by_chance"][answer],
        f"{chosen}{beside}",
    )
