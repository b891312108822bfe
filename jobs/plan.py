"""`gencls plan`."""

from __future__ import annotations

import tempfile
from collections.abc import Iterator, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from gencls_core.errors import counted
from jobs.options import SectionedCommand, section_options
from jobs.run import baseline_option, run_config, run_options

if TYPE_CHECKING:
    from cluster.preparation import Preparation
    from cluster.resources import Budget, Plan

__all__ = ["plan_command"]


@click.command(name="plan", cls=SectionedCommand)
@run_options
@section_options("scoring", "posterior", "compute")
@baseline_option
def plan_command(run_file: Path | None, **flags: Any) -> None:
    """Show what `gencls run` would do with the same options; trains and scores nothing.

    Reads the data and the base model's sizes; leaves nothing behind. With --address, plans for the
    nodes of that cluster.

    \b
      gencls plan --data-dir data/imdb-classifier --model gpt2 --num-gpus 1 --gpu-memory-gb 16
    """
    config = run_config(run_file, flags, recipe="auto")
    from rich.console import Console
    from rich.table import Table

    from cluster.companions import model_beside
    from cluster.connection import Workplace
    from cluster.pipeline import prepare
    from gencls_core.digests import shards_of
    from gencls_core.systems.names import about_system, system_title

    with tempfile.TemporaryDirectory(prefix="gencls-plan-") as folder, ExitStack() as stack:
        budget = Workplace(stack, config.compute).budget
        preparation = prepare(config, Path(folder), budget=budget)
    plan = preparation.plan
    classes = preparation.dataset.classes
    todo = {task.class_name for task in preparation.training_tasks()}
    table = Table(show_header=False, box=None, pad_edge=False)
    table.add_column(style="bold")
    table.add_column()
    for what in _machines(preparation.budget):
        table.add_row("nodes", what)
    table.add_row(
        "data",
        f"{preparation.dataset.name}: {len(classes)} classes; "
        + ", ".join(f"{info.rows:,} {n}" for n, info in preparation.dataset.splits.items()),
    )
    table.add_row(
        "base model",
        f"{preparation.base.name}, {preparation.size.parameters / 1e6:.1f} M parameters, "
        f"{preparation.precision} on {plan.device}{_faster(preparation)}",
    )
    table.add_row("training", _training(plan))
    recipe = preparation.config.recipe.recipe
    for number, line in enumerate(_choice(preparation)):
        table.add_row("" if number else "choice", line)
    table.add_row("recipe", f"{recipe}: {about_system(preparation.system.name)}")
    table.add_row("scoring", _scoring(plan, classes, preparation.system.model_per_class))
    for _, name in preparation.wanted_models():
        state = "to be trained" if name in todo else "committed"
        table.add_row(f"class {name}" if name else "the model", state)
    beside, lacking = model_beside(preparation)
    if beside is not None:
        state = "to be trained" if beside.training_tasks() else "committed"
        table.add_row("beside it", f"{system_title(beside.system.name)}: {state}")
    elif lacking is not None:
        table.add_row("beside it", f"no fine-tune: {lacking}")
    for split in ("validation", "test"):
        if split in preparation.dataset.splits:
            cut = shards_of(preparation.dataset, split, config.scoring.shard_size)
            shards = len(cut) * len(classes)
            records = preparation.run.scores_of(split).records(preparation.system.name)
            # The scores of a model that is to be replaced go with it.
            done = sum(record.class_name not in todo and "" not in todo for record in records)
            table.add_row(f"{split} scores", f"{shards} shards; {done} committed")
    Console(highlight=False).print(table)
    for note in preparation.notes:
        click.echo(f"! {note}")


def _choice(preparation: Preparation) -> Iterator[str]:
    """Say which recipes would be tried, or which was chosen."""
    from cluster.choice import why_not_chosen_by
    from cluster.choice_report import wants_fine_tune
    from cluster.cross_validation import judging_texts, parts_of
    from gencls_core.config import MIN_HELD_OUT
    from gencls_core.selection import candidates_of

    if preparation.asked is None:
        return
    if preparation.selection is not None:
        yield f"{preparation.selection.chosen}: {preparation.selection.reason}"
        return
    first, *others = (candidate.name for candidate in candidates_of(preparation.asked))
    asked, dataset = preparation.asked, preparation.dataset
    parts, budget = parts_of(asked, dataset), asked.recipe.budget_in_words
    count = judging_texts(dataset, parts)
    texts = f"{count:,} held-out texts"
    if parts:
        texts = f"{count:,} train texts, cross-validated in {parts} parts"
    if count < MIN_HELD_OUT:
        yield f"{first}: {why_not_chosen_by(dataset)}"
        if parts:
            yield f"its calibration is fitted on {texts}, if {budget} suffice"
        return
    beside = " a fine-tune beside it (--ensemble)," if wants_fine_tune(asked) else ""
    yield f"{first} is tried first, then, while {budget} last:{beside} {', '.join(others)}"
    yield f"judged by the calibrated NLL of {texts}"
    yield f"what is below is of {first}"


def _faster(preparation: Preparation) -> str:
    """Say where a flag would make the run nearly twice as fast."""
    from cluster.capacity import cpus_multiply_bf16

    if preparation.precision != "fp32" or preparation.plan.device != "cpu":
        return ""
    if not cpus_multiply_bf16(preparation.config.compute):
        return ""
    return " (--precision bf16 is nearly twice as fast on this CPU: docs/performance.md)"


def _machines(budget: Budget) -> list[str]:
    """Give one line for each kind of node."""
    from cluster.resources import GB

    kinds: dict[str, list[str]] = {}
    for node in budget.nodes:
        has = f"{counted(node.cpus, 'CPU')}, {node.memory_bytes / GB:.1f} GB for workers"
        if node.gpus:
            has += f", {counted(node.gpus, 'GPU')}"
            has += f" of {node.gpu_memory_bytes / GB:.1f} GB" if node.gpu_memory_bytes else ""
        kinds.setdefault(has, []).append(node.name)
    return [
        f"{', '.join(names[:3])}{', …' if len(names) > 3 else ''}: "
        f"{f'{len(names)} × ' if len(names) > 1 else ''}{has}"
        for has, names in kinds.items()
    ]


def _training(plan: Plan) -> str:
    if not plan.concurrent_trainings:
        return "nothing to train"
    return (
        f"{plan.concurrent_trainings} at once, each "
        + _share(
            plan.bytes_per_training,
            plan.cpus_per_training,
            plan.gpus_per_training,
            plan.memory_per_training,
            plan.gpu_memory_fraction_per_training,
        )
        + f"; {plan.tokens_per_pass:,} tokens a pass"
        + _compiled(plan.compiles_training)
    )


def _scoring(plan: Plan, classes: Sequence[str], model_per_class: bool) -> str:
    groups = plan.groups(classes) if model_per_class else []
    holding = f"all {len(classes)} class models" if model_per_class else "the model"
    if len(groups) > 1:
        holding = f"{plan.models_per_actor} class models ({len(groups)} groups)"
    each = "each with " if plan.actors > 1 else "with "
    return (
        f"{counted(plan.actors, 'actor')}, {each}{holding}: "
        + _share(
            plan.bytes_per_actor,
            plan.cpus_per_actor,
            plan.gpus_per_actor,
            plan.memory_per_actor,
            plan.gpu_memory_fraction_per_actor,
        )
        + _compiled(plan.compiles_scoring)
    )


def _compiled(compiles: bool) -> str:
    return "; layers compiled" if compiles else ""


def _share(needed: int, cpus: int, gpus: float, memory: int, fraction: float | None) -> str:
    """Say what one process takes, and what it reserves."""
    from cluster.resources import GB

    where = "reserved of main memory" if memory else "of GPU memory"
    limit = f", torch held to {fraction:.0%} of it" if fraction is not None else ""
    gpu = f", {gpus:g} GPU{limit}" if gpus else ""
    return f"{counted(cpus, 'CPU')}{gpu}, {needed / GB:.1f} GB {where}"
