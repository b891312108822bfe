"""Write a table as something to read (`table`) or to work on (`csv`, `json`, `parquet`)."""

from __future__ import annotations

import io
import json
import math
import sys
from pathlib import Path
from typing import IO, Any, Literal, get_args

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.csv
import pyarrow.parquet as pq

from gencls_core.errors import UsageError
from gencls_core.storage import publish_file

__all__ = ["OUTPUT_FORMATS", "OutputFormat", "write_result"]

OutputFormat = Literal["table", "csv", "json", "parquet"]
OUTPUT_FORMATS: tuple[str, ...] = get_args(OutputFormat)

_CELL_CHARACTERS = 60
_NO_TERMINAL_WIDTH = 10_000


def write_result(
    table: pa.Table,
    format: OutputFormat,
    destination: Path | None = None,
    *,
    max_rows: int = 50,
) -> None:
    """Write `table` to a file, or to standard output.

    Args:
        table: what to write.
        format: `table` for eyes (at most `max_rows` rows, and it says how many there are); `csv`
            (null is empty, an empty text is `""`; lists as JSON); `json` (an array with one
            object a line; NaN and infinity are null); `parquet`.
        destination: a file, which is published whole; None for standard output.
        max_rows: rows shown by `table`.

    Raises:
        UsageError: for Parquet on a terminal, or a destination that cannot be written.
    """
    if destination is None:
        if format == "parquet" and sys.stdout.isatty():
            raise UsageError.of(
                "Parquet is not for a terminal", remedy="give a file with --output, or a pipe"
            )
        sys.stdout.flush()
        _write(table, format, sys.stdout.buffer, max_rows)
        sys.stdout.buffer.flush()
        return
    try:
        with publish_file(destination) as temporary, temporary.open("wb") as stream:
            _write(table, format, stream, max_rows)
    except OSError as error:
        raise UsageError.of(
            "cannot write the result", place=destination, found=str(error.strerror or error)
        ) from None


def _write(table: pa.Table, format: OutputFormat, stream: IO[bytes], max_rows: int) -> None:
    match format:
        case "table":
            stream.write(_drawn(table, max_rows).encode("utf-8"))
        case "csv":
            pyarrow.csv.write_csv(_lists_as_json(table), stream)
        case "json":
            _write_json(table, stream)
        case "parquet":
            pq.write_table(table, stream, compression="zstd")


def _write_json(table: pa.Table, stream: IO[bytes]) -> None:
    separator = "["
    for batch in table.to_batches(max_chunksize=4096):
        for row in batch.to_pylist():
            text = json.dumps(_plain(row), ensure_ascii=False, allow_nan=False, default=str)
            stream.write(f"{separator}\n{text}".encode())
            separator = ","
    stream.write(b"[]\n" if separator == "[" else b"\n]\n")


def _plain(value: Any) -> Any:
    """Replace what JSON cannot say: NaN and infinity."""
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if isinstance(value, dict):
        return {str(name): _plain(item) for name, item in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(item) for item in value]
    return value


def _lists_as_json(table: pa.Table) -> pa.Table:
    for index, field in enumerate(table.schema):
        if pa.types.is_nested(field.type):
            texts = [
                None if value is None else json.dumps(_plain(value), default=str)
                for value in table.column(index).to_pylist()
            ]
            table = table.set_column(index, field.name, pa.array(texts, pa.string()))
        elif pa.types.is_dictionary(field.type):
            column = pc.cast(table.column(index), field.type.value_type)
            table = table.set_column(index, field.name, column)
    return table


def _drawn(table: pa.Table, max_rows: int) -> str:
    from rich.box import SIMPLE_HEAD
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    if table.column_names == ["explain_key", "explain_value"]:  # DuckDB has drawn it already
        return "\n".join(table.column("explain_value").to_pylist()) + "\n"
    drawn = Table(box=SIMPLE_HEAD, pad_edge=False)
    for field in table.schema:
        number = pa.types.is_integer(field.type) or pa.types.is_floating(field.type)
        drawn.add_column(
            Text(field.name), justify="right" if number else "left", overflow="ellipsis"
        )
    for row in table.slice(0, max_rows).to_batches():
        for cells in zip(*(column.to_pylist() for column in row.columns), strict=True):
            drawn.add_row(*(Text(_cell(cell), no_wrap=True) for cell in cells))
    # A pipe has no width: nothing is cut there but long texts.
    width = None if sys.stdout.isatty() else _NO_TERMINAL_WIDTH
    target = io.StringIO()
    console = Console(file=target, width=width, color_system=None, emoji=False, highlight=False)
    console.print(drawn)
    rows = f"{table.num_rows:,} row{'' if table.num_rows == 1 else 's'}"
    if table.num_rows > max_rows:
        rows += f"; the first {max_rows:,} are shown (--format csv, json or parquet gives all)"
    lines = [line.rstrip() for line in target.getvalue().splitlines()]
    return "\n".join([*lines, rows]) + "\n"


def _cell(value: Any) -> str:
    if value is None:
        return "null"
    if isinstance(value, float):
        return f"{value:.6g}"
    text = " ".join(str(value).split()) if isinstance(value, str) else str(_plain(value))
    return text if len(text) <= _CELL_CHARACTERS else text[: _CELL_CHARACTERS - 1] + "…"
