"""What docs/accuracy.md measures: which systems, on which texts, and what a cell's figures are."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from gencls_core.storage import read_json

__all__ = ["CELLS", "Cell", "Figures", "figures_of"]


@dataclass(frozen=True)
class Texts:
    """A data set in the folder of them all."""

    title: str
    folder: str
    columns: tuple[str, ...] = ()
    """Options that name its columns."""


TEXTS = {
    "sst2": Texts("SST-2", "sst2"),
    "mr": Texts("MR", "mr", ("--text-column", "review", "--label-column", "sentiment")),
    "agnews": Texts("AG News", "agnews-classifier"),
    "c50-10": Texts("C50-10", "c50-10"),
}

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

    def __post_init__(self) -> None:
        """Refuse what would count seeds that are not run."""
        assert self.systems or len(self.seeds) == 1, "`gencls run` has one seed"

    @property
    def texts(self) -> Texts:
        """The data set."""
        return TEXTS[self.data]

    @property
    def name(self) -> str:
        """What it is called on the command line: `sst2-16`, `sst2-16-run`, `sst2-16-class-lm`."""
        also = [] if self.systems == _USUAL else self.systems[:1] or ("run",)
        return "-".join([self.data, str(self.size), *also])

    @property
    def title(self) -> str:
        """What it is called in the table."""
        return f"{self.texts.title}, {self.size}"

    def arguments(self, data: Path, model: str, precision: str, output: Path) -> list[str]:
        """Give what `gencls` is told.

        Args:
            data: the folder of all data sets.
            model: the base.
            precision: of the arithmetic.
            output: the folder of all cells.
        """
        common = [
            *("--data-dir", str(data / self.texts.folder), *self.texts.columns),
            *("--model", model, "--precision", precision),
            *("--max-test-samples", str(self.test_texts), "--output-dir", str(output / self.name)),
        ]
        seeds = ",".join(map(str, self.seeds))
        if not self.systems:
            size = ["--max-samples", str(self.size), "--seed", seeds, "--sample-seed", seeds]
            return ["run", *common, *size]
        systems = ["--systems", ",".join(self.systems)]
        return ["compare", *common, *systems, "--train-sizes", str(self.size), "--seeds", seeds]


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
        report = read_json(folder / "report" / "report.json")
        return {"run": _of_run(report)}, []
    report = read_json(folder / "report.json")
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
