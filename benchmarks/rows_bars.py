"""Bars of what comes after scoring: report and queries on 10,000,000 score rows; `gencls --help`.

Every command is a process of its own, as a user starts it; start and imports count. The rows are
those of `benchmarks.scale`: a stub stands in the place of the class models.
"""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from benchmarks.bars import BarResult, Options
from benchmarks.pairs import PeerError, Ratio
from benchmarks.scale import QUERIES, measured

__all__ = ["measure", "measure_help"]

EXAMPLES = 2_500_000
"""Test texts; with 4 classes, 10,000,000 score rows."""
QUICK_EXAMPLES = 5_000
VALIDATION_EXAMPLES = 20_000
HELP_PROCESSES = 5


@dataclass(frozen=True)
class _Cost:
    """What a process took."""

    seconds: float
    """Wall time from start to end."""
    peak_memory_mb: float
    """Largest resident memory, in 10⁶ bytes."""


def measure(options: Options) -> Iterator[BarResult]:
    """Make a run, report on it and query it, `options.pairs` times in turn."""
    commands = {"report": ["report"]}
    commands |= {f"query: {name}": ["query", sql] for name, sql in QUERIES.items()}
    costs: dict[str, list[_Cost]] = {name: [] for name in commands}
    with tempfile.TemporaryDirectory(prefix="gencls-rows-") as folder:
        examples = QUICK_EXAMPLES if options.quick else EXAMPLES
        measured("source", folder, examples, VALIDATION_EXAMPLES)
        measured("ingest", folder)
        measured("score", folder)
        for _ in range(options.pairs):
            for name, (command, *arguments) in commands.items():
                costs[name].append(_gencls(command, str(Path(folder, "run")), *arguments))
    yield BarResult(
        "report_query_10m_rows_seconds",
        tuple(Ratio.of_values(name, (c.seconds for c in found)) for name, found in costs.items()),
    )
    yield BarResult(
        "report_query_10m_rows_memory_mb",
        tuple(
            Ratio.of_values(name, (c.peak_memory_mb for c in found))
            for name, found in costs.items()
        ),
    )


def measure_help(options: Options) -> Iterator[BarResult]:
    """Ask for help in fresh processes."""
    seconds = [_gencls("--help").seconds for _ in range(HELP_PROCESSES)]
    yield BarResult("gencls_help_seconds", (Ratio.of_values("gencls --help", seconds),))


def _gencls(*arguments: str) -> _Cost:
    """Run the command line in a process of its own.

    Raises:
        PeerError: when it fails.
    """
    with tempfile.TemporaryFile("w+", encoding="utf-8") as output:
        began = time.perf_counter()
        process = subprocess.Popen(
            [sys.executable, "-m", "jobs", *arguments], stdout=output, stderr=output
        )
        _, status, used = os.wait4(process.pid, 0)
        seconds = time.perf_counter() - began
        process.returncode = os.waitstatus_to_exitcode(status)
        if process.returncode:
            output.seek(0)
            raise PeerError(f"gencls {' '.join(arguments)}:\n{output.read()[-4000:]}")
    unit = 1 if sys.platform == "darwin" else 1024
    return _Cost(seconds, used.ru_maxrss * unit / 1e6)
