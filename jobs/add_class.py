"""`gencls add-class` and `gencls drop-class`."""

from __future__ import annotations

import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from gencls_core.remote_path import Location
from jobs.options import LocationType, SectionedCommand, given_values, section_options

if TYPE_CHECKING:
    from gencls_core.run import RunDirectory

__all__ = ["add_class_command", "drop_class_command"]

NAME = click.option("--name", required=True, help="The class.")
PRIOR = click.option("--prior", help="Of the classes as they are then; default: the run's.")
COLUMNS = ("text_column", "id_column", "encoding")
"""How the run read its texts is how those of the class are read, unless flags say otherwise."""


@click.command(name="add-class", cls=SectionedCommand)
@click.argument("run", type=LocationType())
@click.argument("texts", type=click.Path(path_type=Path))
@NAME
@click.option(
    "--test",
    type=click.Path(path_type=Path),
    help="Test texts of the class; default: a seeded part of TEXTS, as the run's settings say; "
    "none where the run has no test texts.",
)
@PRIOR
@click.option("--text-column", help="Column that holds the text; default: the run's.")
@click.option(
    "--id-column",
    help="Column with the example's own id; default: the run's, where the file has it.",
)
@click.option(
    "--no-id-column", is_flag=True, help="Read no ids: each text gets one, as train-Weather-17."
)
@click.option("--encoding", help="Text encoding; default: the run's.")
@section_options("compute", leave_out=("precision",))
def add_class_command(
    run: Location, texts: Path, name: str, test: Path | None, no_id_column: bool, **flags: Any
) -> None:
    """Add a class to a finished run: its model is trained, its scores are made, the rest is kept.

    TEXTS is a CSV, JSONL, Parquet or .txt file with texts of the class; no labels needed.

    \b
      gencls add-class runs/agnews --name Weather weather_texts.jsonl
      gencls add-class runs/agnews --name Weather weather.csv --test weather_test.csv
    """
    from cluster.add_class import add_class
    from gencls_core.config import DataConfig
    from gencls_core.config_parsing import parse_section
    from gencls_core.datasets.growth import NewClass, with_ids_if_there
    from gencls_core.report.class_change import class_change
    from gencls_core.run import RunDirectory
    from jobs.progress import draw
    from jobs.summary import print_class_change

    if no_id_column and flags["id_column"]:
        raise click.UsageError("--no-id-column contradicts --id-column " + flags["id_column"])
    began = time.perf_counter()
    directory = RunDirectory(run)
    made = directory.manifest()["config"]["data"]
    given = {column: flags.pop(column) for column in COLUMNS}
    columns = {column: given[column] or made[column] for column in COLUMNS}
    if no_id_column:
        columns["id_column"] = None
    prior = flags.pop("prior")
    changes = given_values(flags) | ({"posterior": {"prior": prior}} if prior else {})

    def read(path: Path) -> DataConfig:
        config = parse_section(DataConfig, {**columns, "data": str(path.absolute())})
        return config if given["id_column"] else with_ids_if_there(config)

    asked = NewClass(name, read(texts), None if test is None else read(test))
    draw(add_class(run, asked, changes))
    if not _summary(directory):
        return
    change = class_change(directory, " ".join(name.split()))
    if change is not None:
        print_class_change(change, time.perf_counter() - began)


def _summary(run: RunDirectory) -> bool:
    """Print a run's figures, or where its models are; give whether there are figures: a run that
    was only trained has none."""
    from jobs.summary import print_summary

    if (run.report_path / "report.json").exists():
        print_summary(run.report_path)
        return True
    click.echo(f"Models: {run.models_of(run.system)}")
    return False


@click.command(name="drop-class")
@click.argument("run", type=LocationType())
@NAME
@PRIOR
@click.option(
    "--baseline/--no-baseline",
    default=True,
    help="Let bags of words learn the classes that are left; all else takes no time.",
)
def drop_class_command(run: Location, name: str, prior: str | None, baseline: bool) -> None:
    """Take a class out of a run: its model, its scores and its texts; nothing is scored again.

    \b
      gencls drop-class runs/agnews --name Weather
      gencls drop-class runs/agnews --name Weather --no-baseline
    """
    from cluster.drop_class import drop_class
    from gencls_core.run import RunDirectory
    from jobs.progress import draw

    changes = {"posterior": {"prior": prior}} if prior else {}
    draw(drop_class(run, name, changes, baseline=baseline))
    _summary(RunDirectory(run))
