"""`gencls query`."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from gencls_core.remote_path import Location
from jobs.options import LocationType

__all__ = ["query_command"]


@click.command(name="query")
@click.argument("run", type=LocationType())
@click.argument("sql")
@click.option(
    "--format",
    "output_format",
    type=click.Choice(["table", "csv", "json", "parquet"]),
    help="Default: by the suffix of --output, else a table.",
)
@click.option("--output", type=click.Path(path_type=Path), help="Write here, not to the terminal.")
@click.option("--max-rows", type=click.IntRange(1), default=50, show_default=True)
def query_command(
    run: Location, sql: str, output_format: Any, output: Path | None, max_rows: int
) -> None:
    """Ask a run's scores and predictions questions in SQL (DuckDB, read-only).

    \b
    Views: scores        one row per text and class: example_id, label, class, system, score …
           likelihoods   one row per text, one column per class (nats)
           predictions   predicted class, probability and margin per text
           examples      the texts, with split and label
           errors        wrong predictions with their texts

    \b
      gencls query runs/agnews "select label, answer, count(*) from predictions group by all"
      gencls query runs/agnews "from errors order by margin desc" --output errors.csv
    """
    from gencls_core.query import run_query
    from gencls_core.query_output import OUTPUT_FORMATS, write_result
    from gencls_core.run import RunDirectory

    if output_format is None:
        output_format = output.suffix.lstrip(".") if output else "table"
        if output_format not in OUTPUT_FORMATS:
            raise click.UsageError(
                f"{output}: say --format, or use the suffix .csv, .json or .parquet"
            )
    records = RunDirectory(run).scores.records()
    parts = {(r.system, r.class_name, r.count) for r in records}
    missing = sum(count for _, _, count in parts) - len(records)
    if missing:
        click.echo(f"! {missing} score shards are missing: run the same command again", err=True)
    write_result(run_query(RunDirectory(run), sql), output_format, output, max_rows=max_rows)
