"""`gencls compare`."""

from __future__ import annotations

from typing import Any

import click

from gencls_core.remote_path import Location, as_location
from jobs.options import LocationType, SectionedCommand, given_values, section_options

__all__ = ["compare_command"]

DEFAULT_SYSTEMS = "tfidf,nbsvm,naive-bayes,majority"


@click.command(name="compare", cls=SectionedCommand)
@click.argument("runs", nargs=-1, required=True, type=LocationType(), metavar="RUN...")
@click.option(
    "--systems",
    default=DEFAULT_SYSTEMS,
    show_default=True,
    help="Light systems that every run is to have; those that are missing are trained on its "
    "train texts. Everything else in the runs is compared, too.",
)
@click.option(
    "--also",
    multiple=True,
    type=LocationType(),
    help="Folder of a comparison on other texts: does the pattern hold there? May be repeated.",
)
@click.option(
    "--output-dir",
    type=LocationType(),
    default="runs/comparison",
    show_default=True,
    help="Where the report of the comparison goes.",
)
@section_options("compute")
def compare_command(
    runs: tuple[Location, ...],
    systems: str,
    also: tuple[Location, ...],
    output_dir: Location,
    **flags: Any,
) -> None:
    """Compare all systems of some runs on the same test texts, with intervals and significance.

    Runs that differ in seeds alone are repetitions of one system; in `--max-samples`, points of its
    learning curve; in other settings, other systems, named after them.

    \b
      gencls compare runs/agnews-seed0 runs/agnews-seed1 runs/agnews-seed2
      gencls compare runs/agnews-8 runs/agnews-64 runs/agnews-300 --output-dir runs/agnews-curve
    """
    from cluster.comparison import compare
    from gencls_core.config_parsing import parse_run_config
    from jobs.progress import draw
    from jobs.summary import print_comparison

    compute = parse_run_config(given_values(flags)).compute
    names = tuple(name.strip() for name in systems.split(",") if name.strip())
    folder = as_location(str(output_dir))
    draw(compare([run.absolute() for run in runs], names, also, folder, compute))
    print_comparison(folder)
