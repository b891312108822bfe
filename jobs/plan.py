"""`gencls plan`."""

from __future__ import annotations

import tempfile
from pathlib import Path
from typing import Any

import click

from jobs.options import SectionedCommand, build_config, section_options
from jobs.run import baseline_option, resolve_shorthands, run_options

__all__ = ["plan_command"]


@click.command(name="plan", cls=SectionedCommand)
@run_options
@section_options("scoring", "posterior", "compute")
@baseline_option
def plan_command(run_file: Path | None, **flags: Any) -> None:
    """Show what `gencls run` would do with the same options; trains and scores nothing.

    Reads the data and the base model's sizes; leaves nothing behind.

    \b
      gencls plan --data-dir data/imdb-classifier --model gpt2 --num-gpus 1 --gpu-memory-gb 16
    """
    config = build_config(run_file, resolve_shorthands(flags))
    from rich.console import Console
    from rich.table import Table

    from cluster.pipeline import prepare
    from cluster.preparation import SYSTEM
    from cluster.resources import GB
    from gencls_core.digests import shard_ranges

    with tempfile.TemporaryDirectory(prefix="gencls-plan-") as folder:
        preparation = prepare(config, Path(folder))
    plan, budget = preparation.plan, preparation.budget
    classes = preparation.dataset.classes
    todo = {task.class_name for task in preparation.training_tasks()}
    table = Table(show_header=False, box=None, pad_edge=False)
    table.add_column(style="bold")
    table.add_column()
    where = f"{budget.memory_bytes / GB:.1f} GB free main memory, {budget.cpus} CPUs"
    if budget.gpus:
        where += f", {budget.gpus} GPU of {budget.gpu_memory_bytes / GB:.1f} GB"
    table.add_row("machine", where)
    table.add_row(
        "data",
        f"{preparation.dataset.name}: {len(classes)} classes; "
        + ", ".join(f"{info.rows:,} {n}" for n, info in preparation.dataset.splits.items()),
    )
    table.add_row(
        "base model",
        f"{preparation.base.name}, {preparation.size.parameters / 1e6:.1f} M parameters, "
        f"{preparation.precision} on {plan.device}",
    )
    table.add_row(
        "training",
        f"{plan.concurrent_trainings} at once, {plan.bytes_per_training / GB:.1f} GB, "
        f"{plan.cpus_per_training} CPUs and {plan.gpus_per_training:g} GPU each; "
        f"{plan.tokens_per_pass:,} tokens a pass",
    )
    table.add_row(
        "scoring",
        f"{plan.actors} actor{'s' * (plan.actors > 1)} holding {len(classes)} class models, "
        f"{plan.bytes_per_actor / GB:.1f} GB, {plan.cpus_per_actor} CPUs and "
        f"{plan.gpus_per_actor:g} GPU each",
    )
    for name in classes:
        state = "to be trained" if name in todo else "committed"
        table.add_row(f"class {name}", state)
    for split in ("validation", "test"):
        if split in preparation.dataset.splits:
            info = preparation.dataset.splits[split]
            shards = len(shard_ranges(info.rows, config.scoring.shard_size)) * len(classes)
            records = preparation.run.scores_of(split).records(SYSTEM)
            # The scores of a model that is to be replaced go with it.
            done = sum(record.class_name not in todo for record in records)
            table.add_row(f"{split} scores", f"{shards} shards; {done} committed")
    Console(highlight=False).print(table)
    for note in preparation.notes:
        click.echo(f"! {note}")
