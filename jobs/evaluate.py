"""`gencls evaluate` and `gencls classify`."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from gencls_core.remote_path import Location, as_location
from jobs.options import (
    LocationType,
    SectionedCommand,
    given_values,
    reject_options,
    section_options,
)
from jobs.run import QUICK_TEST, resolve_fp16

__all__ = ["classify_command", "evaluate_command"]

MODEL_DIR = click.option(
    "--model-dir",
    required=True,
    type=LocationType(),
    help="A run directory: the --output-dir of `gencls train` or `gencls run`.",
)
NOT_FOR_TEST_TEXTS = ("max_samples", "validation_fraction", "drop_leaks", "classes")


@click.command(name="evaluate", cls=SectionedCommand)
@MODEL_DIR
@click.option(
    "--output", type=click.Path(path_type=Path), help="Also write the report's JSON here."
)
@section_options("data", leave_out=NOT_FOR_TEST_TEXTS)
@click.option("--max-samples", type=click.IntRange(1), help="Another name of --max-test-samples.")
@section_options("scoring", "posterior", "compute")
@click.option("--model-size", help="The base model; checked against the one that was trained.")
@click.option("--batch-size", type=click.IntRange(1), help="Texts scored at once, at the most.")
@click.option("--fp16", is_flag=True, help="Short for --precision fp16.")
@click.option("--quick-test", is_flag=True, help="100 test texts.")
def evaluate_command(model_dir: Location, output: Path | None, **flags: Any) -> None:
    """Score labelled texts under trained class models, and report.

    Without --data-dir or --data, the test split that the models' run was given.

    \b
      gencls evaluate --model-dir results --data-dir data/imdb-classifier \\
                      --output results/eval_results.json
    """
    _check_model(model_dir, flags.pop("model_size"))
    resolve_fp16(flags)
    limit = flags.pop("max_samples") or flags["max_test_samples"]
    if flags.pop("quick_test") and limit is None:
        limit = QUICK_TEST["max_test_samples"]
    flags["max_test_samples"] = limit
    batch_size = flags.pop("batch_size")
    if batch_size and flags["tokens_per_batch"] is None:
        flags["tokens_per_batch"] = batch_size * TOKENS_PER_TEXT
    values = given_values(flags)
    data = _data_config(model_dir, values.pop("data", None))

    from cluster.evaluation import evaluate_models
    from gencls_core.events import StageFinished
    from gencls_core.storage import read_json, write_json
    from jobs.progress import draw
    from jobs.summary import print_summary

    events = draw(evaluate_models(model_dir, data, values))
    finished = [event for event in events if isinstance(event, StageFinished)][-1]
    report = as_location(finished.message)
    if output is not None:
        write_json(output, read_json(report / "report.json"))
    print_summary(report)


TOKENS_PER_TEXT = 512
"""What the original's --batch-size meant: texts cut at 512 tokens."""


@click.command(name="classify", cls=SectionedCommand)
@MODEL_DIR
@click.argument("texts", type=click.Path(path_type=Path))
@click.option(
    "--output",
    type=click.Path(path_type=Path),
    default=Path("predictions.parquet"),
    show_default=True,
    help="Where the predictions go: .parquet, .csv or .jsonl.",
)
@reject_options
@section_options(
    "data",
    leave_out=(
        *NOT_FOR_TEST_TEXTS,
        "data_dir",
        "data",
        "data_config",
        "label_column",
        "test_fraction",
        "max_test_samples",
    ),
)
@section_options("scoring", "posterior", "compute")
def classify_command(
    model_dir: Location,
    texts: Path,
    output: Path,
    reject: str | None,
    coverage: float | None,
    error_rate: float | None,
    **flags: Any,
) -> None:
    """Label new texts with trained class models.

    TEXTS is a CSV, JSONL or Parquet file, or a .txt file with one text a line; no labels needed.

    \b
      gencls classify --model-dir results new_texts.jsonl --output predictions.parquet
      gencls classify --model-dir results new_texts.jsonl --reject posterior --coverage 0.9
    """
    from gencls_core.config import DataConfig
    from gencls_core.config_parsing import parse_section
    from gencls_core.errors import UsageError

    if output.suffix not in (".parquet", ".csv", ".jsonl"):
        raise UsageError.of(
            "unknown form of output",
            place=output,
            found=output.suffix or "no suffix",
            expected=".parquet, .csv or .jsonl",
        )
    values = given_values(flags)
    data = parse_section(DataConfig, {"data": str(texts), **values.pop("data", {})})

    from cluster.evaluation import classify_texts
    from gencls_core.events import StageFinished
    from gencls_core.report.predictions import predict
    from gencls_core.report.rejections import Wanted
    from gencls_core.run import RunDirectory
    from jobs.progress import draw

    wanted = Wanted.of(reject, coverage, error_rate)
    if wanted is not None and wanted.method != "posterior":
        values["scoring"] = {**values.get("scoring", {}), "background": True}
    events = draw(classify_texts(model_dir, data, values))
    finished = [event for event in events if isinstance(event, StageFinished)][-1]
    run = RunDirectory(as_location(finished.message))
    rows = predict(
        run,
        output,
        reject=wanted,
        prior=flags["prior"],
        ensemble=flags["ensemble"],
        models_of=RunDirectory(model_dir),
    )
    click.echo(f"{rows:,} predictions: {output}")


def _data_config(model_dir: Location, values: dict[str, Any] | None) -> Any:
    """Give the texts that the flags name; None where they name none."""
    from gencls_core.config import DataConfig
    from gencls_core.config_parsing import parse_section
    from gencls_core.run import RunDirectory

    if values is None:
        return None
    if not {"data", "data_dir"} & values.keys():
        # A sample of the test texts that the models' run was given.
        values = {"data_dir": RunDirectory(model_dir).dataset_path, **values}
    return parse_section(DataConfig, values)


def _check_model(model_dir: Location, named: str | None) -> None:
    from gencls_core.errors import UsageError
    from gencls_core.run import RunDirectory

    trained = RunDirectory(model_dir).manifest()["model"]["name"]
    if named is not None and named != trained:
        raise UsageError.of(
            "another base model",
            place=model_dir,
            found=f"class models trained from {trained}",
            expected=f"--model-size {named}",
            remedy="leave --model-size out",
        )
