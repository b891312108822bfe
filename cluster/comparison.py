"""A comparison: runs that are there, or that are made for it; what they lack; then the figures."""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from contextlib import ExitStack
from typing import Any

from cluster.cells import Cell, OpenCell, cells_of, check_systems
from cluster.connection import Workplace
from cluster.job_context import refuse_temporary
from cluster.light_systems import light_stage
from cluster.turn import in_turn
from gencls_core.comparison.same_texts import require_same_texts
from gencls_core.config import ComputeConfig, RunConfig
from gencls_core.config_parsing import parse_run_config
from gencls_core.errors import UsageError, counted
from gencls_core.events import Event, StageFinished, StageStarted
from gencls_core.remote_path import Location, uri_of
from gencls_core.run import RunDirectory
from gencls_core.storage import children
from gencls_core.systems.registry import check_names

__all__ = ["compare", "compare_systems"]


def compare_systems(
    config: RunConfig,
    systems: Sequence[str],
    sizes: Sequence[int | None],
    seeds: Sequence[int],
    others: Sequence[Location],
) -> Iterator[Event]:
    """Run systems on the same data at several numbers of train texts and seeds, and compare them.

    The last event's message is the folder of the report: the output folder of `config`.

    Args:
        config: settings of every run.
        systems: names of the systems.
        sizes: numbers of train texts per class; None for all.
        seeds: of the sample of train texts and of the training.
        others: folders of comparisons on other test texts.

    Raises:
        DataError: when the data cannot be used, or its test texts cannot tell systems apart.
        ModelError: when a base model cannot be had or used.
        OwnershipError: when another process works on one of the runs.
        UsageError: when a system is not known, or settings contradict each other.
    """
    check_names(systems)
    check_systems(config, systems)
    cells = cells_of(config, systems, sizes, seeds)
    chosen = [cell.systems for cell in cells]
    yield from _compare(cells, chosen, others, config.output_dir, config.compute)


def compare(
    runs: Sequence[Location],
    systems: Sequence[str],
    others: Sequence[Location],
    output: Location,
    compute: ComputeConfig,
    *,
    only: bool = False,
) -> Iterator[Event]:
    """Compare systems in some runs; the last event's message is the folder of the report.

    Args:
        runs: run directories with the same test texts.
        systems: systems that every run is to have; those that are missing are made.
        others: folders of comparisons on other test texts.
        output: where the report goes.
        compute: what Ray may use.
        only: whether nothing but `systems` is compared; else all that the runs hold.

    Raises:
        DataError: when the test texts cannot tell systems apart.
        StoreError: when a directory is no run or no comparison, or its scores are not whole.
        UsageError: when a system is not known, or runs were not scored on the same texts.
    """
    check_names(systems)
    if len({uri_of(path) for path in runs}) < len(runs):
        raise UsageError.of("the same run twice", found=", ".join(uri_of(path) for path in runs))
    refuse_temporary(output)
    for path in runs:
        if children(path / "cells"):
            raise UsageError.of(
                "the folder of a comparison, not a run",
                place=path,
                expected="run directories",
                remedy=f"name its cells: {uri_of(path)}/cells/*/*",
            )
    manifests = [RunDirectory(path).manifest() for path in runs]
    require_same_texts([RunDirectory(path) for path in runs])
    cells = []
    for path, manifest in zip(runs, manifests, strict=True):
        config = parse_run_config(manifest["config"], place=uri_of(path / "run.json"))
        values: dict[str, Any] = {"output_dir": path, "compute": _as_made(compute, manifest)}
        if manifest.get("selection", {}).get("rate_chosen"):
            # What was chosen for its recipe is none that other systems of the run were given.
            values["training"] = config.training.model_copy(update={"learning_rate": None})
        config = config.model_copy(update=values)
        cells.append(Cell(uri_of(path), config, tuple(systems), found=True))
    chosen = [systems if only else None] * len(cells)
    yield from _compare(cells, chosen, others, output, compute)


def _as_made(compute: ComputeConfig, manifest: dict[str, Any]) -> ComputeConfig:
    """Let what is added to a run be computed in the precision that the run was made in."""
    precision = manifest.get("precision", compute.precision)
    return compute.model_copy(update={"precision": precision})


def _compare(
    cells: Sequence[Cell],
    chosen: Sequence[Sequence[str] | None],
    others: Sequence[Location],
    output: Location,
    compute: ComputeConfig,
) -> Iterator[Event]:
    from gencls_core.comparison import compare_runs, publish_comparison, read_comparison

    elsewhere = [read_comparison(path) for path in others]
    with ExitStack() as stack:
        yield from _complete(stack, cells, compute)
    began = time.perf_counter()
    yield StageStarted("compare", "drawing texts and seeds again, thousands of times")
    comparison = compare_runs([cell.run for cell in cells], elsewhere, chosen)
    publish_comparison(comparison, output)
    yield StageFinished("compare", uri_of(output), time.perf_counter() - began)


def _complete(stack: ExitStack, cells: Sequence[Cell], compute: ComputeConfig) -> Iterator[Event]:
    """Make what the cells lack: the light systems of all of them first, side by side."""
    began = time.perf_counter()
    yield StageStarted("prepare", f"{counted(len(cells), 'run')}: reading data and scores")
    (place, opened), waited = yield from in_turn(
        stack,
        [cell.run.path for cell in cells],
        lambda holding: _open(stack, holding, cells, compute),
        lambda entered: any(cell.lacking for cell in entered[1]),
    )
    lacking = sum(cell.lacking for cell in opened)
    yield StageFinished(
        "prepare",
        f"{counted(len(cells), 'run')}, {counted(lacking, 'score set')} to be made",
        time.perf_counter() - began - waited,
    )
    for cell in opened:
        # What is still to come may be stopped before it has begun.
        cell.write_manifest("stopped" if cell.lacking else "finished")
    yield from light_stage([work for cell in opened for work in cell.light_work()], place)
    for number, cell in enumerate(opened, 1):
        if cell.lacking:
            yield from cell.complete(place, f"run {number} of {len(opened)}")


def _open(
    stack: ExitStack, holding: ExitStack, cells: Sequence[Cell], compute: ComputeConfig
) -> tuple[Workplace, list[OpenCell]]:
    """Own the cells until `holding` ends, and plan for the nodes that are there now."""
    place = Workplace(stack, compute)
    return place, [cell.open(holding, place) for cell in cells]
