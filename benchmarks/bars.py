"""The bars: what is measured, what it must reach, and which module measures it."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from importlib import import_module
from pathlib import Path
from typing import Any, Literal

from benchmarks.pairs import Ratio

__all__ = ["BARS", "GROUPS", "NEED_BF16", "Bar", "BarResult", "Options", "bar_of", "measurer"]

Unit = Literal["×", "of the roof", "MB", "s", "%", "nats"]


@dataclass(frozen=True)
class Options:
    """What the command line asks of a group."""

    pairs: int
    quick: bool
    """Few tokens and one case of each kind: to see that everything runs."""
    model: str
    """A model's name or folder, as `gencls run --model` takes it."""
    data: Path | None
    """The folder that holds `agnews-classifier` and `imdb-classifier`."""
    threads: int
    precisions: tuple[str, ...] = ("bf16", "fp32")
    """What this machine's CPU multiplies, the faster one first."""
    case: str = ""
    """Of training: only cases that have this in their name."""

    @property
    def has_bf16(self) -> bool:
        """Whether bars in bf16 can be measured here."""
        return "bf16" in self.precisions


@dataclass(frozen=True)
class Bar:
    """One figure that is held to a number."""

    key: str
    """Its name in results.json."""
    group: str
    what: str
    unit: Unit
    better: Literal["higher", "lower"]
    demand: float | None = None
    """At least (where higher is better) or at most this; None: shown, and held to nothing."""

    def worst(self, cases: tuple[Ratio, ...]) -> Ratio:
        """Give the case that is furthest from what is wanted."""
        return self.furthest(cases, key=lambda case: case.median)

    @property
    def furthest(self) -> Callable[..., Any]:
        """Choose the figure that is furthest from what is wanted: min or max."""
        return min if self.better == "higher" else max

    def met(self, figure: float) -> bool | None:
        """Say whether a figure reaches the demand; None where there is none."""
        if self.demand is None:
            return None
        return figure >= self.demand if self.better == "higher" else figure <= self.demand


@dataclass(frozen=True)
class BarResult:
    """What was measured for a bar, case by case."""

    key: str
    cases: tuple[Ratio, ...]
    whole: bool = True
    """Whether these are all of its cases; until then it is shown and not kept."""


NEED_BF16 = ("training", "agreement")
"""Groups that have nothing to measure without products in bf16."""

GROUPS = {
    "scoring": "benchmarks.scoring_bars",
    "training": "benchmarks.training_bars",
    "memory": "benchmarks.memory_bars",
    "growth": "benchmarks.growth_bars",
    "ray": "benchmarks.ray_bars",
    "rows": "benchmarks.rows_bars",
    "help": "benchmarks.rows_bars",
    "agreement": "benchmarks.agreement_bars",
}
"""Each group's module; it has `measure(options)`, or `measure_<group>(options)`."""

_SPEED = "steady-state speed"

BARS = (
    Bar("scoring_bf16_vs_lmeval", "scoring", f"scoring in bf16: {_SPEED} against lm-eval in bf16",
        "×", "higher", 1.5),
    Bar("scoring_bf16_vs_roof", "scoring", f"scoring in bf16: {_SPEED}, part of the matrix roof",
        "of the roof", "higher", 0.60),
    Bar("scoring_fp32_vs_lmeval", "scoring", f"scoring in fp32: {_SPEED} against lm-eval in fp32",
        "×", "higher", 1.3),
    Bar("scoring_fp32_vs_roof", "scoring", f"scoring in fp32: {_SPEED}, part of the matrix roof",
        "of the roof", "higher", 0.75),
    Bar("scoring_setup_vs_lmeval", "scoring",
        "set-up, process start to first scored batch: lm-eval's time against ours",
        "×", "higher", 1.0),
    Bar("scoring_k4_vs_4x1", "scoring",
        "scoring under 4 class models: time against 4 × the time of one", "×", "lower", 1.05),
    Bar("scoring_bf16_vs_naive", "scoring",
        f"scoring in bf16: {_SPEED} against the naive formula, a text at a time", "×", "higher"),
    Bar("scoring_bf16_vs_labels_loss", "scoring",
        f"scoring in bf16: {_SPEED} against transformers' `labels=` loss, a text at a time",
        "×", "higher"),
    Bar("training_bf16_vs_trainer_original", "training",
        "training in bf16: speed against Trainer in fp32 with dynamic padding",
        "×", "higher", 2.5),
    Bar("training_bf16_vs_trainer_best", "training",
        "training in bf16: speed against Trainer at its best", "×", "higher", 1.2),
    Bar("training_bf16_vs_roof", "training", "training in bf16: speed, part of the matrix roof",
        "of the roof", "higher", 0.50),
    Bar("training_memory_vs_trainer", "training",
        "peak memory of training against Trainer's, same tokens a step", "×", "lower", 0.7),
    Bar("training_bf16_vs_trainer_padded", "training",
        "training in bf16: speed against Trainer in fp32 with padding to 256 tokens",
        "×", "higher"),
    Bar("training_bf16_vs_trainer_bf16_weights", "training",
        "training in bf16: speed against Trainer with weights in bf16, no float32 masters",
        "×", "higher"),
    Bar("training_memory_vs_trainer_fp32", "training",
        "peak memory of training against Trainer's in fp32, same tokens a step", "×", "lower"),
    Bar("training_loss_vs_trainer_fp32", "training",
        "held-out loss after training: difference from Trainer's in fp32", "%", "lower", 2.0),
    Bar("scoring_memory_above_weights_mb", "memory",
        "peak memory of scoring above the loaded weights", "MB", "lower", 400.0),
    Bar("scoring_memory_100k_vs_1k", "memory",
        "peak memory of scoring 100,000 texts against 1,000", "×", "lower", 1.05),
    Bar("growth_texts", "growth", "time for twice the texts", "×", "lower", 2.1),
    Bar("growth_classes", "growth", "time for twice the classes", "×", "lower", 2.1),
    Bar("ray_vs_one_process_seconds", "ray",
        "a run of 4 classes on Ray: seconds above 1.05 × the same work in one process",
        "s", "lower", 8.0),
    Bar("report_query_10m_rows_seconds", "rows", "report and query on 10,000,000 score rows",
        "s", "lower", 10.0),
    Bar("report_query_10m_rows_memory_mb", "rows", "peak memory of the same", "MB", "lower",
        1000.0),
    Bar("gencls_help_seconds", "help", "`gencls --help`", "s", "lower", 0.25),
    Bar("bf16_argmax_agreement_agnews", "agreement",
        "texts of AG News that bf16 and fp32 put into the same class", "%", "higher", 99.5),
    Bar("bf16_argmax_agreement_imdb", "agreement",
        "texts of IMDB that bf16 and fp32 put into the same class", "%", "higher", 99.5),
    Bar("bf16_ratio_error_agnews", "agreement",
        "AG News: mean absolute error of the log-likelihood ratio between classes in bf16",
        "nats", "lower"),
    Bar("bf16_ratio_error_imdb", "agreement",
        "IMDB: mean absolute error of the log-likelihood ratio between classes in bf16",
        "nats", "lower"),
)  # fmt: skip


def bar_of(key: str) -> Bar:
    """Give a bar by its name in results.json.

    Raises:
        KeyError: when there is none.
    """
    return {bar.key: bar for bar in BARS}[key]


def measurer(group: str) -> Callable[[Options], Iterator[BarResult]]:
    """Give the function that measures a group's bars; its module is imported here."""
    module = import_module(GROUPS[group])
    found: Callable[[Options], Iterator[BarResult]] = (
        getattr(module, f"measure_{group}", None) or module.measure
    )
    return found
