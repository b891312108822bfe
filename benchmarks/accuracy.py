"""Measure docs/accuracy.md: systems on the same splits, and what `gencls run` chooses by itself.

    python -m benchmarks.accuracy --data DIR --output DIR            cells that are not there yet
    python -m benchmarks.accuracy --data DIR --output DIR sst2-16    these, also once more

A cell's figures go into benchmarks/accuracy.json when it is done, and into the table; killed, the
same command goes on where it was.
"""

from __future__ import annotations

import argparse
import shlex
import subprocess
import sys
from dataclasses import asdict
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from benchmarks.accuracy_cells import CELLS, Cell, figures_of
from benchmarks.table import Machine, put_between, read_results, write_json
from gencls_core.precision import cpu_multiplies_bf16

__all__ = ["DOCUMENT", "RESULTS", "main", "measure", "render"]

RESULTS = Path(__file__).parent / "accuracy.json"
DOCUMENT = Path(__file__).parent.parent / "docs" / "accuracy.md"
BEGIN = "<!-- accuracy: written by `python -m benchmarks.accuracy` -->"
END = "<!-- end of accuracy -->"

_COLUMNS = {
    "run": "`gencls run`",
    "joint-lm": "`joint-lm`",
    "discriminative": "`discriminative`",
    "conditional-lm": "`conditional-lm`",
    "class-lm": "`class-lm`",
    "tfidf": "`tfidf`",
    "nbsvm": "`nbsvm`",
    "setfit": "`setfit`",
}


def main(arguments: list[str] | None = None, cells: tuple[Cell, ...] = CELLS) -> int:
    """Measure what was asked; 1 where a command failed."""
    parser = argparse.ArgumentParser(prog="benchmarks.accuracy", description=__doc__)
    parser.formatter_class = argparse.RawDescriptionHelpFormatter
    parser.add_argument("cells", nargs="*", metavar="CELL", help="as in the table of results")
    parser.add_argument("--data", type=Path, required=True, help="folder of the data sets")
    parser.add_argument("--output", type=Path, required=True, help="folder of the runs")
    parser.add_argument("--model", default="smollm2-135m", help="pulled model or folder")
    parser.add_argument("--results", type=Path, default=RESULTS, help="the JSON file to update")
    asked = parser.parse_args(arguments)
    known = {cell.name: cell for cell in cells}
    if unknown := set(asked.cells) - set(known):
        parser.error(f"no cell {', '.join(sorted(unknown))}; there are {', '.join(known)}")
    done = read_results(asked.results)
    failed = False
    for name in asked.cells or [name for name in known if name not in done]:
        found = measure(known[name], asked.data, asked.output / name, asked.model)
        failed |= found is None
        if found is not None:
            results = read_results(asked.results) | {name: found}
            write_json(asked.results, {key: results[key] for key in known if key in results})
    table = render(read_results(asked.results), cells)
    if asked.results != RESULTS:
        print(table)
    elif not put_between(DOCUMENT, BEGIN, END, table):
        print(f"{DOCUMENT} has no marks for the table, which is:\n\n{table}")
    return int(failed)


def measure(cell: Cell, data: Path, output: Path, model: str) -> dict[str, Any] | None:
    """Run a cell's command, and give its figures; None where it failed."""
    command = cell.command(model, "bf16" if cpu_multiplies_bf16() else "fp32")
    here = [f"{data}{part[4:]}" if part.startswith("data/") else part for part in command]
    print(f"{cell.name}: {shlex.join(command)}", flush=True)
    output.parent.mkdir(parents=True, exist_ok=True)
    with output.with_suffix(".log").open("a", encoding="utf-8") as log:
        done = subprocess.run(
            [sys.executable, "-m", "jobs", *here[1:], "--output-dir", str(output)],
            stdout=log,
            stderr=subprocess.STDOUT,
            check=False,
        )
    if done.returncode:
        print(f"{cell.name}: exit code {done.returncode}, see {log.name}", file=sys.stderr)
        return None
    figures, pairs = figures_of(cell, output)
    machine = Machine.here()
    return {
        "seeds": len(cell.seeds),
        "test_texts": cell.test_texts,
        "systems": {name: asdict(found) for name, found in figures.items()},
        "pairs": pairs,
        "date": datetime.now(UTC).strftime("%Y-%m-%d"),
        "command": shlex.join(command),
        "machine": asdict(machine),
    }


def render(results: dict[str, dict[str, Any]], cells: tuple[Cell, ...] = CELLS) -> str:
    """Give the tables: accuracies, losses, costs, and the commands that made them."""
    rows = _rows(results, cells)
    columns = [name for name in _COLUMNS if any(name in row for _, row in rows)]
    head = ["texts per class", *(_COLUMNS[name] for name in columns)]
    lines = ["Accuracy in percent, with its 95 % interval over test texts and seeds:", ""]
    lines += _table(head, rows, columns, _accuracy)
    lines += ["", "Negative log-likelihood of the labels in nats; expected calibration error:", ""]
    lines += _table(head, rows, columns, _loss)
    lines += ["", "Seconds of training, and of scoring 1,000 texts (`gencls run`: all it did):", ""]
    lines += _table(head, rows, columns, _cost)
    if compared := _differences(results, cells):
        lines += ["", "`joint-lm` minus `discriminative`, in points:", "", *compared]
    lines += ["", *_commands(results, cells)]
    return "\n".join(lines)


def _rows(
    results: dict[str, dict[str, Any]], cells: tuple[Cell, ...]
) -> list[tuple[str, dict[str, Any]]]:
    """Put the systems of all cells of the same texts into one row, first of many seeds."""
    rows: dict[tuple[str, int], dict[str, Any]] = {}
    for cell in cells:
        if (found := results.get(cell.name)) is None:
            continue
        row = rows.setdefault((cell.title, cell.test_texts), {})
        for name, figures in found["systems"].items():
            row[name] = figures | {"seeds": found["seeds"]}
    return [(f"{title} ({texts:,} test texts)", row) for (title, texts), row in rows.items()]


def _table(head: list[str], rows: list[Any], columns: list[str], show: Any) -> list[str]:
    lines = [f"| {' | '.join(head)} |", "|" + " --- |" * len(head)]
    for title, row in rows:
        shown = [show(row[name]) if name in row else "" for name in columns]
        lines.append(f"| {title} | {' | '.join(shown)} |")
    return lines


def _accuracy(figures: dict[str, Any]) -> str:
    low, high = (100 * figures[end] for end in ("low", "high"))
    seeds = f", {figures['seeds']} seeds" if figures["seeds"] > 1 else ""
    found = f"; {figures['found']}" if figures["found"] else ""
    return f"{100 * figures['accuracy']:.1f} ({low:.1f}–{high:.1f}{seeds}{found})"


def _loss(figures: dict[str, Any]) -> str:
    chance = figures["ece_by_chance"]
    by_chance = "" if chance is None else f" ({chance:.3f} by chance)"
    return f"{figures['nll']:.3f}; {figures['ece']:.3f}{by_chance}"


def _cost(figures: dict[str, Any]) -> str:
    costs = (figures["train_seconds"], figures["seconds_per_1000_texts"])
    return "; ".join(f"{seconds:.0f}" for seconds in costs if seconds is not None)


def _differences(results: dict[str, dict[str, Any]], cells: tuple[Cell, ...]) -> list[str]:
    lines = []
    for cell in cells:
        for pair in results.get(cell.name, {}).get("pairs", []):
            if {pair["a"], pair["b"]} != {"joint-lm", "discriminative"}:
                continue
            sign = 1 if pair["a"] == "joint-lm" else -1
            ends = sorted(sign * pair[end] for end in ("low", "high"))
            lines.append(
                f"- {cell.title}: {_points(sign * pair['difference'])} ({_points(ends[0])} to "
                f"{_points(ends[1])}; p = {pair['bootstrap_p']:.2g}, {pair['holm_p']:.2g} "
                "corrected over all pairs)"
            )
    return lines


def _points(share: float) -> str:
    return f"{100 * share:+.1f}".replace("-", "−")


def _commands(results: dict[str, dict[str, Any]], cells: tuple[Cell, ...]) -> list[str]:
    """Give one line for each cell: when, with what and on which machine it was made."""
    lines = ["```sh", *(results[cell.name]["command"] for cell in cells if cell.name in results)]
    machines = {
        f"{found['machine']['cpu']}; {found['machine']['cores']} cores, "
        f"{found['machine']['memory_gb']} GB, no GPU; "
        + ", ".join(f"{name} {v}" for name, v in found["machine"]["versions"].items())
        for found in results.values()
    }
    return [*lines, "```", "", *(f"Made on {machine}." for machine in sorted(machines))]


if __name__ == "__main__":
    sys.exit(main())
