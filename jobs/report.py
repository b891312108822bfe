"""`gencls report`."""

from __future__ import annotations

from pathlib import Path

import click

from gencls_core.remote_path import Location
from jobs.options import LocationType, reject_options

__all__ = ["report_command"]


@click.command(name="report")
@click.argument("run", type=LocationType())
@click.option(
    "--prior",
    help="`train`, `uniform`, `unlabelled` or `World=0.4,Sports=0.6`; default: the run's.",
)
@click.option(
    "--prior-from",
    type=click.Choice(["unlabelled"]),
    help="Estimate the prior from the test texts' likelihoods; their labels are not read.",
)
@click.option(
    "--costs",
    type=click.Path(path_type=Path, dir_okay=False),
    help="CSV (label,decided,cost): decide by the lowest expected cost, beside the likeliest; "
    "default: the run's.",
)
@click.option(
    "--ensemble",
    type=click.Choice(["none", "auto", "tfidf", "nbsvm", "discriminative"]),
    help="Which scored system stands beside the likelihoods; default: the run's.",
)
@reject_options
def report_command(
    run: Location,
    prior: str | None,
    prior_from: str | None,
    costs: Path | None,
    ensemble: str | None,
    reject: str | None,
    coverage: float | None,
    error_rate: float | None,
) -> None:
    """Rebuild a run's report from its Parquet scores alone; no text is scored again.

    \b
      gencls report runs/agnews
      gencls report runs/agnews --prior uniform
      gencls report runs/agnews --prior-from unlabelled
      gencls report runs/agnews --costs costs.csv
      gencls report runs/agnews --ensemble none
      gencls report runs/agnews --reject posterior --coverage 0.9
    """
    from gencls_core.cost_file import read_cost_pairs
    from gencls_core.report.build import build_report
    from gencls_core.report.rejections import Wanted
    from gencls_core.run import RunDirectory
    from jobs.summary import print_summary

    if prior and prior_from:
        raise click.UsageError("give --prior or --prior-from, not both: each is the whole prior")
    wanted = Wanted.of(reject, coverage, error_rate)
    directory = RunDirectory(run)
    pairs = None
    if costs is not None:
        pairs = read_cost_pairs(costs, directory.manifest()["classes"])
    build_report(
        directory, prior=prior_from or prior, ensemble=ensemble, costs=pairs, reject=wanted
    )
    print_summary(directory.report_path)
