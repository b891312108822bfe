"""Measure the bars: peers and us in turn, on the same texts, in fresh processes.

    python -m benchmarks                         all groups
    python -m benchmarks scoring memory          two of them
    python -m benchmarks peer MODULE:FUNCTION …  what a peer's process runs

A bar's figures go into benchmarks/results.json when all its cases are there, and into the table of
docs/performance.md; those of bars that were not asked for stay.
"""

from __future__ import annotations

import argparse
import os
import shlex
import sys
from pathlib import Path

from benchmarks.bars import GROUPS, NEED_BF16, BarResult, Options, bar_of, measurer
from benchmarks.pairs import PeerError, answer
from benchmarks.table import (
    DOCUMENT,
    RESULTS,
    Machine,
    read_results,
    render,
    update_results,
    write_table,
)
from benchmarks.texts import DATA_VARIABLE, MissingDataError
from benchmarks.training_bars import sizes_of
from gencls_core.precision import cpu_multiplies_bf16


def main() -> int:
    """Measure what was asked; 1 where something could not be measured."""
    if sys.argv[1:2] == ["peer"]:
        answer(*sys.argv[2:4])
        return 0
    parser = argparse.ArgumentParser(prog="benchmarks", description=__doc__)
    parser.formatter_class = argparse.RawDescriptionHelpFormatter
    parser.add_argument("groups", nargs="*", metavar="GROUP", help=", ".join(GROUPS))
    parser.add_argument("--pairs", type=int, default=5, help="rounds of A B (default: 5)")
    parser.add_argument("--data", type=Path, help=f"folder of data sets (or {DATA_VARIABLE})")
    parser.add_argument("--model", default="smollm2-135m", help="pulled model or folder")
    parser.add_argument("--threads", type=int, default=os.cpu_count() or 1)
    parser.add_argument("--case", default="", help="of training: only cases with this in the name")
    parser.add_argument("--quick", action="store_true", help="see that everything runs")
    parser.add_argument("--results", type=Path, default=RESULTS, help="the JSON file to update")
    asked = parser.parse_args()
    unknown = set(asked.groups) - set(GROUPS)
    if unknown:
        parser.error(f"no group {', '.join(sorted(unknown))}; there are {', '.join(GROUPS)}")
    if asked.quick and asked.results == RESULTS:
        parser.error("--quick measures too little to be published: give --results FILE")
    if asked.case and asked.groups != ["training"]:
        parser.error("--case chooses among the cases of the group training alone")
    precisions = ("bf16", "fp32") if cpu_multiplies_bf16() else ("fp32",)
    options = Options(
        asked.pairs, asked.quick, asked.model, asked.data, asked.threads, precisions, asked.case
    )
    if not sizes_of(options):
        parser.error(f"no case of training has {asked.case!r} in its name")
    command = shlex.join(["python", "-m", "benchmarks", *_without_places(sys.argv[1:])])
    load = os.getloadavg()[0]
    if load > 0.5:
        print(f"this machine is busy (load {load:.1f}): figures will scatter", file=sys.stderr)
    failed = False
    for group in asked.groups or GROUPS:
        if group in NEED_BF16 and not options.has_bf16:
            print(f"{group}: left out, as this CPU has no products in bf16", file=sys.stderr)
            failed |= bool(asked.groups)
            continue
        try:
            for result in measurer(group)(options):
                print(_line(result), flush=True)
                if result.whole:
                    update_results(
                        asked.results, result, command, Machine.here(), keep=bool(asked.case)
                    )
        except (MissingDataError, PeerError) as error:
            print(f"{group}: {error}", file=sys.stderr, flush=True)
            failed = True
    results = read_results(asked.results)
    if asked.results != RESULTS:
        print(render(results))
    elif not write_table(DOCUMENT, results):
        print(f"{DOCUMENT} has no marks for the table, which is:\n\n{render(results)}")
    return int(failed)


def _without_places(arguments: list[str]) -> list[str]:
    """Give the arguments without folders, which say nothing on another machine."""
    kept, skip = [], False
    for argument in arguments:
        if not skip and not argument.startswith(("--data=", "--results=")):
            skip = argument in ("--data", "--results")
            kept += [] if skip else [argument]
        else:
            skip = False
    return kept


def _line(result: BarResult) -> str:
    bar = bar_of(result.key)
    worst = bar.worst(result.cases)
    met = {True: "reached", False: "MISSED", None: "shown"}[bar.met(worst.median)]
    spread = f"{worst.median:.3f} ({worst.min:.3f}–{worst.max:.3f})"
    return f"{bar.key:34} {spread} {bar.unit}; {met}; worst case: {worst.case}"


if __name__ == "__main__":
    sys.exit(main())
