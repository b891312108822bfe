"""`gencls report`."""

from __future__ import annotations

from pathlib import Path

import click

__all__ = ["report_command"]


@click.command(name="report")
@click.argument("run", type=click.Path(path_type=Path))
@click.option("--prior", help="`train`, `uniform` or `World=0.4,Sports=0.6`; default: the run's.")
def report_command(run: Path, prior: str | None) -> None:
    """Rebuild a run's report from its Parquet scores alone; no text is scored again.

    \b
      gencls report runs/agnews
      gencls report runs/agnews --prior uniform
    """
    from gencls_core.report import build_report
    from gencls_core.run import RunDirectory
    from jobs.summary import print_summary

    directory = RunDirectory(run)
    build_report(directory, prior=prior)
    print_summary(directory.report_path)
