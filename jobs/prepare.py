"""`gencls prepare`."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from jobs.options import SectionedCommand, given_values, section_options

__all__ = ["prepare_command"]


@click.command(name="prepare", cls=SectionedCommand)
@click.argument("source")
@click.option(
    "--output", required=True, type=click.Path(path_type=Path), help="The dataset's folder."
)
@click.option(
    "--layout",
    type=click.Choice(["parquet", "per-class-json"]),
    default="parquet",
    show_default=True,
    help="`parquet` is read fastest; `per-class-json` is the original experiment's form.",
)
@section_options("data", leave_out=("data", "data_dir"))
def prepare_command(source: str, output: Path, layout: str, **flags: Any) -> None:
    """Turn data of any form into a prepared dataset.

    SOURCE is a hub id, a CSV, JSONL or Parquet file, or a folder.

    \b
      gencls prepare imdb --output data/imdb-classifier
      gencls prepare reviews.csv --text-column review --label-column sentiment --output data/reviews
    """
    import tempfile

    from gencls_core.config import DataConfig
    from gencls_core.config_parsing import parse_section
    from gencls_core.datasets import export_per_class_json, ingest

    config = parse_section(DataConfig, {"data": source, **given_values(flags).get("data", {})})
    if layout == "parquet":
        dataset = ingest(config, output)
    else:
        with tempfile.TemporaryDirectory(prefix="gencls-prepare-") as folder:
            dataset = ingest(config, Path(folder) / "dataset")
            export_per_class_json(dataset, output)
    for warning in dataset.warnings:
        click.echo(f"! {warning}", err=True)
    counts = ", ".join(f"{info.rows:,} {name}" for name, info in dataset.splits.items())
    click.echo(f"{output}: {len(dataset.classes)} classes; {counts} texts")
