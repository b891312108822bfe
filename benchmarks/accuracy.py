"""Measure docs/accuracy.md: systems on the same splits, and what `gencls run` chooses by itself.

    python -m benchmarks.accuracy --data DIR --output DIR            what is not there yet
    python -m benchmarks.accuracy --data DIR --output DIR sst2-16    these, if there also anew

A cell's figures go into benchmarks/accuracy.json when it is done, and into the table; killed, the
same command goes on where it was.
"""

from __future__ import annotations

import argparse
import shlex
import shutil
import subprocess
import sys
from dataclasses import asdict
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, TextIO

from benchmarks.accuracy_cells import CELLS, Cell, figures_of
from benchmarks.table import Machine, put_between, read_results
from gencls_core.comparison.words import points
from gencls_core.precision import cpu_multiplies_bf16
from gencls_core.storage import write_json

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
}


def main(arguments: list[str] | None = None, cells: tuple[Cell, ...] = CELLS) -> int:
    """Measure what was asked; 1 where a command failed, 130 after an interruption."""
    parser = argparse.ArgumentParser(prog="benchmarks.accuracy", description=__doc__)
    parser.formatter_class = argparse.RawDescriptionHelpFormatter
    parser.add_argument("cells", nargs="*", metavar="CELL", help="such as sst2-16")
    parser.add_argument("--data", type=Path, required=True, help="folder of the data sets")
    parser.add_argument("--output", type=Path, required=True, help="folder of the runs")
    parser.add_argument("--model", default="smollm2-135m", help="pulled model or folder")
    parser.add_argument("--results", type=Path, default=RESULTS, help="the JSON file to update")
    asked = parser.parse_args(arguments)
    known = {cell.name: cell for cell in cells}
    if unknown := set(asked.cells) - set(known):
        parser.error(f"no cell {', '.join(sorted(unknown))}; there are {', '.join(known)}")
    done = read_results(asked.results)
    wanted = [known[name] for name in asked.cells or [name for name in known if name not in done]]
    folders = dict.fromkeys(cell.texts.folder for cell in wanted)
    if absent := [folder for folder in folders if not (asked.data / folder).is_dir()]:
        parser.error(
            f"{asked.data} has no {', '.join(absent)}: --data is the folder in which each data set "
            "has a folder of that name, as `gencls run --data-dir` reads it"
        )
    failed = False
    for cell in wanted:
        if cell.name in done:  # measured before, and to be measured again
            shutil.rmtree(asked.output / cell.name, ignore_errors=True)
        try:
            found = measure(cell, asked.data, asked.output, asked.model)
        except KeyboardInterrupt:
            print(f"{cell.name}: interrupted; the same command goes on", file=sys.stderr)
            return 130
        failed |= found is None
        if found is not None:
            results = read_results(asked.results) | {cell.name: found}
            order = dict.fromkeys([*known, *results])
            results = {name: results[name] for name in order if name in results}
            write_json(asked.results, results)
            if asked.results == RESULTS:
                put_between(DOCUMENT, BEGIN, END, render(results, cells))
    if asked.results != RESULTS:
        print(render(read_results(asked.results), cells))
    return int(failed)


def measure(cell: Cell, data: Path, output: Path, model: str) -> dict[str, Any] | None:
    """Run a cell's command, and give its figures; None where it failed."""
    precision = "bf16" if cpu_multiplies_bf16() else "auto"
    shown = cell.arguments(Path("data"), Path(model).name, precision, Path("runs/accuracy"))
    command = shlex.join(["gencls", *shown])
    print(f"{cell.name}: {command}", flush=True)
    output.mkdir(parents=True, exist_ok=True)
    with (output / f"{cell.name}.log").open("a", encoding="utf-8") as log:
        code = _ended(cell.arguments(data, model, precision, output), log)
    if code:
        print(f"{cell.name}: exit code {code}, see {log.name}", file=sys.stderr)
        return None
    try:
        figures, pairs = figures_of(cell, output / cell.name)
    except (OSError, KeyError) as error:
        print(f"{cell.name}: no figures in its report: {error!r}", file=sys.stderr)
        return None
    return {
        "seeds": len(cell.seeds),
        "test_texts": cell.test_texts,
        "systems": {name: asdict(found) for name, found in figures.items()},
        "pairs": pairs,
        "date": datetime.now(UTC).strftime("%Y-%m-%d"),
        "command": command,
        "machine": asdict(Machine.here()),
    }


def _ended(arguments: list[str], log: TextIO) -> int:
    """Run gencls to its end, an interrupted one, too: it commits what it has in hand."""
    process = subprocess.Popen(
        [sys.executable, "-m", "jobs", *arguments], stdout=log, stderr=subprocess.STDOUT
    )
    try:
        return process.wait()
    except KeyboardInterrupt:
        process.wait()  # the terminal has told it as well
        raise


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
    """Put the systems of all cells of the same texts into one row."""
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
                f"- {cell.title}: {points(sign * pair['difference'])} ({points(ends[0])} to "
                f"{points(ends[1])}; p = {pair['bootstrap_p']:.2g}, {pair['holm_p']:.2g} "
                "corrected over all pairs)"
            )
    return lines


def _commands(results: dict[str, dict[str, Any]], cells: tuple[Cell, ...]) -> list[str]:
    """Give each cell's command, and when and on which machine they were run."""
    found = [results[cell.name] for cell in cells if cell.name in results]
    made: dict[str, None] = {}
    for cell in found:
        machine = cell["machine"]
        versions = ", ".join(f"{name} {version}" for name, version in machine["versions"].items())
        made[
            f"- {cell['date']}: {machine['cpu']}; {machine['cores']} cores, "
            f"{machine['memory_gb']} GB; {versions}"
        ] = None
    return ["```sh", *(cell["command"] for cell in found), "```", "", *sorted(made)]


if __name__ == "__main__":
    sys.exit(main())
