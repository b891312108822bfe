"""`gencls run` and `gencls train`."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from gencls_core.config import RunConfig
from jobs.options import (
    LocationType,
    SectionedCommand,
    build_config,
    class_words_option,
    section_options,
)

__all__ = [
    "baseline_option",
    "resolve_fp16",
    "resolve_shorthands",
    "run_command",
    "run_config",
    "run_options",
    "train_command",
]

baseline_option = click.option(
    "--baseline/--no-baseline",
    default=None,
    help="Also train TF-IDF with logistic regression on the same split; without it, `--ensemble "
    "auto` tries no bag of words.",
)

OF_RECIPES = {
    ("auto", "conditional", "joint"): {"prefix", "class_words"},
    ("auto", "joint"): {"lm_weight", "tuned_tokens", "compared_classes", "learned_classes"},
    ("auto",): {"budget", "folds"},
}
"""Recipes, and the settings that only they read."""

QUICK_TEST = {"max_samples": 100, "epochs": 1.0, "max_test_samples": 100}


def run_options(command: Any) -> Any:
    """Add the options that run, train and plan have in common."""
    for option in reversed(
        [
            click.argument(
                "run_file", required=False, type=click.Path(path_type=Path, dir_okay=False)
            ),
            click.option(
                "--output-dir", type=LocationType(), help="The run directory: a folder, or s3://…"
            ),
            section_options("data", "model", "recipe", "training", "sequence"),
            class_words_option(),
            click.option("--fp16", is_flag=True, help="Short for --precision fp16."),
            click.option(
                "--quick-test",
                is_flag=True,
                help="100 texts per class, 1 epoch, 100 test texts.",
            ),
        ]
    ):
        command = option(command)
    return command


@click.command(name="run", cls=SectionedCommand)
@run_options
@section_options("scoring", "posterior", "compute")
@baseline_option
def run_command(run_file: Path | None, **flags: Any) -> None:
    """Train class models, score the test texts under them, and report.

    A language model per class, or one for all classes, as --recipe says; by default the first
    recipe that held-out texts cannot tell from the best. RUN_FILE is a TOML file (see `gencls
    init`); flags override it. The same command again goes on where it was interrupted, and does
    nothing that is done.

    \b
      gencls run --data-dir data/imdb-classifier --model gpt2 --epochs 3 --output-dir runs/imdb
      gencls run --data reviews.csv --text-column review --label-column sentiment
      gencls run experiment.toml --learning-rate 1e-4
    """
    config = run_config(run_file, flags, recipe="auto")
    from cluster.pipeline import run_all
    from gencls_core.run import RunDirectory
    from jobs.progress import draw
    from jobs.summary import print_summary

    draw(run_all(config))
    print_summary(RunDirectory(config.output_dir).report_path)


@click.command(name="train", cls=SectionedCommand)
@run_options
@section_options("compute")
@click.option("--class-id", type=int, default=None, help="Train only the class with this number.")
def train_command(run_file: Path | None, **flags: Any) -> None:
    """Train one language model per class; `gencls evaluate` scores and reports.

    \b
      gencls train --data-dir data/imdb-classifier --output-dir results --model-size gpt2 \\
                   --epochs 3 --batch-size 8 --fp16
    """
    config = run_config(run_file, flags)
    from cluster.pipeline import train_models
    from gencls_core.run import RunDirectory
    from jobs.progress import draw

    draw(train_models(config))
    run = RunDirectory(config.output_dir)
    click.echo(f"Models: {run.models_of(run.system)}")


def run_config(
    run_file: Path | None, flags: dict[str, Any], *, recipe: str | None = None
) -> RunConfig:
    """Put a run file and flags together; `recipe` is the command's default.

    Raises:
        UsageError: when a flag was given that the recipe does not read.
    """
    given = {name for name, value in flags.items() if value not in (None, (), {}, False)}
    config = build_config(run_file, resolve_shorthands(flags), recipe=recipe)
    taken = config.recipe.recipe
    for needed, names in OF_RECIPES.items():
        if taken not in needed and (unread := sorted(given & names)):
            flag = "--" + unread[0].replace("_", "-")
            raise click.UsageError(
                f"{flag} has no effect with --recipe {taken}: give --recipe {needed[-1]}, or leave "
                "it out"
            )
    return config


def resolve_shorthands(flags: dict[str, Any]) -> dict[str, Any]:
    """Turn `--fp16` and `--quick-test` into the settings that they stand for."""
    if flags.pop("quick_test"):
        for name, value in QUICK_TEST.items():
            if flags.get(name) is None:
                flags[name] = value
    resolve_fp16(flags)
    return flags


def resolve_fp16(flags: dict[str, Any]) -> None:
    """Turn `--fp16` into the precision that it stands for."""
    if flags.pop("fp16"):
        if flags.get("precision") not in (None, "fp16"):
            raise click.UsageError("--fp16 contradicts --precision " + flags["precision"])
        flags["precision"] = "fp16"
