"""Many examples, many shards: what the stages around the models cost in time and memory.

    python -m benchmarks.scale report     2,000,000 texts × 4 classes: from JSONL to the report
    python -m benchmarks.scale cluster    the same, scored by actors on three raylets
    python -m benchmarks.scale resume     100,000 committed shards: finding out what is there

A stub stands in the place of the class models (benchmarks/synthetic.py), so that gencls is measured
and not a GPU. Every stage runs in a process of its own: its wall time counts start and imports, CPU
time is summed over its threads, the peak is its resident memory. docs/scale.md quotes the figures.
"""

from __future__ import annotations

import argparse
import contextlib
import cProfile
import json
import pstats
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

__all__ = [
    "Measured",
    "main",
    "measure_cluster",
    "measure_report",
    "measure_resume",
    "measured",
]

QUERIES = {
    "scores by class": "select class, count(*) n, avg(score) mean from scores group by class",
    "confusion": "select label, predicted, count(*) n from predictions group by all",
    "likelihoods, a row per text": (
        "select label, count(*) n, avg(lamps - noise) ratio from likelihoods group by label"
    ),
    "worst mistakes with texts": "from errors order by margin desc limit 20",
}

REPORT_PARTS = (
    "records",
    "read_likelihoods",
    "fit_calibration",
    "log_posterior",
    "evaluate",
    "perplexities",
    "write_predictions",
    "details_of",
    "shown_texts",
    "render_html",
)
"""Functions of a report whose share of the time is shown; some call others of them."""


RESUME_STEPS = (
    "listing",
    "stat",
    "parse",
    "records",
    "digests",
    "torn",
    "shard_work",
    "nothing_yet",
    "retire",
)
"""The first three are the least that any resume has to do: names, sizes, the records' content.

`shard_work` is `records`, `digests`, `torn` and the list of what is missing; `nothing_yet` is the
same for a run of which no shard is committed."""


@dataclass(frozen=True)
class Measured:
    """What a stage took in a process of its own, and what it says of itself."""

    seconds: float
    cpu_seconds: float
    peak_memory_bytes: int
    values: dict[str, Any]

    def line(self, what: str, remark: str = "") -> str:
        """Give one line of a table."""
        times = f"{self.seconds:7.1f} s {self.cpu_seconds:7.1f} s CPU"
        return f"{what:38} {times} {self.peak_memory_bytes / 1e6:6,.0f} MB  {remark}".rstrip()


def measured(stage: str, *arguments: object) -> Measured:
    """Run one of the stages in a fresh process."""
    command = [sys.executable, "-m", "benchmarks.scale", "stage", stage, *map(str, arguments)]
    began = time.perf_counter()
    output = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True).stdout
    seconds = time.perf_counter() - began
    values = json.loads(output.splitlines()[-1])
    return Measured(seconds, values.pop("cpu_seconds"), values.pop("peak_memory_bytes"), values)


def measure_report(folder: Path, examples: int, validation: int) -> Iterator[str]:
    """Make a run of `examples` test texts and report on it; yields lines of a table."""
    yield f"{examples:,} test and {validation:,} validation texts × 4 classes"
    yield measured("source", folder, examples, validation).line("write the source as JSONL")
    yield measured("ingest", folder).line("ingest")
    scored = measured("score", folder)
    yield scored.line("commit stub scores", f"{scored.values['shards']:,} shards")
    read = measured("read", folder)
    yield read.line("read ranges of 4,096 texts", f"{1e3 * read.values['each']:.1f} ms each")
    yield measured("nothing", folder).line("import what a report needs, nothing more")
    report = measured("report", folder)
    yield report.line("build_report", f"{report.values['rows']:,} score rows")
    for name, seconds in report.values["parts"].items():
        yield f"    {name:34} {seconds:7.1f} s"
    yield measured("predict", folder).line("predict, a shard at a time")
    for name, sql in QUERIES.items():
        yield measured("query", folder, sql).line(f"query: {name}")


def measure_cluster(folder: Path, examples: int, validation: int) -> Iterator[str]:
    """Have actors on three raylets score a run, check every row and report; yields lines."""
    yield f"{examples:,} test and {validation:,} validation texts × 4 classes"
    yield measured("source", folder, examples, validation).line("write the source as JSONL")
    yield measured("ingest", folder).line("ingest")
    driver = measured("cluster", folder)
    found = driver.values
    yield driver.line("driver, Ray's start included")
    rate = f"{found['shards'] / found['seconds']:.0f} a second"
    cost = f"{1e3 * found['cpu_per_shard']:.1f} ms of the driver's CPU each"
    for line in (
        f"{found['actors']} actors on {found['nodes']} raylets, {found['seconds']:.1f} s",
        f"{found['shards']:,} shards committed, {rate}, {cost}",
        f"{found['rows']:,} rows; events: {found['events']}",
        f"driver before scoring: {found['peak_before'] / 1e6:,.0f} MB",
        f"largest actor: {found['peak_actor'] / 1e6:,.0f} MB",
        f"object store: {found['object_store'] / 1e6:.2f} MB",
    ):
        yield f"    {line}"
    checked = measured("check", folder)
    yield checked.line("compare every test row", f"{checked.values['rows']:,} rows as expected")
    report = measured("report", folder)
    yield report.line("build_report", f"{report.values['rows']:,} score rows")


def measure_resume(folder: Path, shards: int) -> Iterator[str]:
    """Make `shards` committed shards and find out what is there; yields lines of a table."""
    made = measured("make_shards", folder, shards)
    yield made.line(f"write {shards:,} shards and records", f"{made.values['bytes'] / 1e6:,.0f} MB")
    for step in RESUME_STEPS:
        found = measured("step", folder, step, shards)
        seconds = found.values["seconds"]
        remark = f"{seconds:.1f} s without imports, {1e6 * seconds / shards:.0f} µs a shard"
        yield found.line(step, remark)


def _source(folder: Path, examples: str, validation: str) -> dict[str, Any]:
    from benchmarks.synthetic import write_source

    write_source(folder / "source", test_rows=int(examples), validation_rows=int(validation))
    return {}


def _ingest(folder: Path) -> dict[str, Any]:
    from benchmarks.synthetic import make_dataset
    from gencls_core.run import RunDirectory

    dataset = make_dataset(folder / "source", RunDirectory(folder / "run"))
    return {"rows": sum(split.rows for split in dataset.splits.values())}


def _score(folder: Path) -> dict[str, Any]:
    from benchmarks.synthetic import class_models, commit_scores, run_config, write_manifest
    from gencls_core.run import RunDirectory

    run = RunDirectory(folder / "run")
    config = run_config(run)
    write_manifest(run, config)
    return {"shards": commit_scores(run, config, run.dataset(), class_models(run))}


def _read(folder: Path) -> dict[str, Any]:
    """Read ranges as actors do, each opening the split's file anew."""
    from gencls_core.run import RunDirectory

    dataset, size, times = RunDirectory(folder / "run").dataset(), 4096, 50
    rows = dataset.split("test").rows
    began = time.perf_counter()
    for number in range(times):
        start = max(0, rows - size) * number // times
        if dataset.read("test", start, start + size).num_rows != min(size, rows):
            raise RuntimeError("a range is not whole")
    return {"each": (time.perf_counter() - began) / times}


def _predict(folder: Path) -> dict[str, Any]:
    from gencls_core.report.predictions import predict
    from gencls_core.run import RunDirectory

    return {"rows": predict(RunDirectory(folder / "run"), folder / "predictions.parquet")}


def _report(folder: Path) -> dict[str, Any]:
    from gencls_core.report.build import build_report
    from gencls_core.run import RunDirectory

    profile = cProfile.Profile()
    report = profile.runcall(build_report, RunDirectory(folder / "run"))
    rows = sum(task.scoring.rows for task in report.tasks.values())
    return {"rows": rows, "parts": _parts(profile)}


def _parts(profile: cProfile.Profile) -> dict[str, float]:
    """Give the seconds spent in each of REPORT_PARTS, what they call included."""
    seconds = dict.fromkeys(REPORT_PARTS, 0.0)
    for (file, _, name), (_, _, _, total, _) in pstats.Stats(profile).stats.items():  # type: ignore[attr-defined]
        if name in seconds and "gencls_core" in file:
            seconds[name] += total
    return {name: round(taken, 2) for name, taken in seconds.items()}


def _query(folder: Path, sql: str) -> dict[str, Any]:
    from jobs.main import main as gencls

    sys.argv = ["gencls", "query", str(folder / "run"), sql, "--format", "json"]
    try:
        gencls()
    except SystemExit as exit:
        if exit.code:
            raise
    return {}


def _nothing(folder: Path) -> dict[str, Any]:
    from gencls_core.report.build import build_report
    from gencls_core.run import RunDirectory

    return {"imported": [build_report.__name__, RunDirectory.__name__]}


def _cluster(folder: Path) -> dict[str, Any]:
    from benchmarks.on_raylets import score_on_raylets
    from benchmarks.synthetic import run_config, write_manifest
    from gencls_core.run import RunDirectory

    run = RunDirectory(folder / "run")
    write_manifest(run, run_config(run))
    return score_on_raylets(folder)


def _check(folder: Path) -> dict[str, Any]:
    from benchmarks.on_raylets import check_rows

    return check_rows(folder)


def _make_shards(folder: Path, shards: str) -> dict[str, Any]:
    from benchmarks.many_shards import make_shards

    return make_shards(folder, int(shards))


def _step(folder: Path, step: str, shards: str) -> dict[str, Any]:
    from benchmarks.many_shards import run_step

    return run_step(folder, step, int(shards))


_STAGES: dict[str, Callable[..., dict[str, Any]]] = {
    "source": _source,
    "ingest": _ingest,
    "score": _score,
    "read": _read,
    "nothing": _nothing,
    "report": _report,
    "predict": _predict,
    "query": _query,
    "cluster": _cluster,
    "check": _check,
    "make_shards": _make_shards,
    "step": _step,
}


def _stage(name: str, folder: Path, arguments: list[str]) -> None:
    """Run a stage in this process; its last line of output says what it took."""
    from gencls_core.measure import peak_memory_bytes

    values = _STAGES[name](folder, *arguments)
    cpu_seconds = round(time.process_time(), 2)
    print(
        json.dumps({**values, "cpu_seconds": cpu_seconds, "peak_memory_bytes": peak_memory_bytes()})
    )


def main() -> None:
    """Print the figures."""
    if sys.argv[1:2] == ["stage"]:
        _stage(sys.argv[2], Path(sys.argv[3]), sys.argv[4:])
        return
    parser = argparse.ArgumentParser(prog="benchmarks.scale", description=__doc__)
    parser.add_argument("part", choices=["report", "cluster", "resume"])
    parser.add_argument("--examples", type=int, default=2_000_000, help="test texts")
    parser.add_argument("--validation", type=int, default=20_000, help="held-out texts")
    parser.add_argument("--shards", type=int, default=100_000, help="committed shards (resume)")
    parser.add_argument("--folder", type=Path, help="a new folder, which is kept")
    options = parser.parse_args()
    with contextlib.ExitStack() as stack:
        if options.folder is None:
            folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="gencls-scale-")))
        else:
            folder = options.folder.absolute()
            folder.mkdir(parents=True)
        if options.part == "report":
            lines = measure_report(folder, options.examples, options.validation)
        elif options.part == "cluster":
            lines = measure_cluster(folder, options.examples, options.validation)
        else:
            lines = measure_resume(folder, options.shards)
        for line in lines:
            print(line, flush=True)


if __name__ == "__main__":
    main()
