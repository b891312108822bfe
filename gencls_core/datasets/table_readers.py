"""Rows of one CSV, JSONL, JSON or Parquet file, streamed as (line, cells)."""

from __future__ import annotations

import csv
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from gencls_core.datasets.cells import Columns
from gencls_core.datasets.json_stream import json_items
from gencls_core.datasets.reading import column_error, open_text, reading, shown
from gencls_core.errors import DataError

__all__ = ["TABLE_SUFFIXES", "Row", "table_rows"]

TABLE_SUFFIXES = (".csv", ".tsv", ".jsonl", ".ndjson", ".json", ".parquet", ".pq")

Row = tuple[int | None, dict[str, Any]]
# A closing quote that is missing makes the rest of the file one field: stop before it fills memory.
_LONGEST_FIELD_CHARACTERS = 1 << 26
_BATCH_ROWS = 256
_READ_BUFFER_BYTES = 1 << 20


def table_rows(path: Path, columns: Columns, encoding: str) -> Iterator[Row]:
    """Stream the rows of a file, its format taken from its name.

    Raises:
        DataError: file and line of the first row that cannot be read; a missing column.
    """
    suffix = path.suffix.lower()
    if suffix in (".csv", ".tsv"):
        return _csv_rows(path, columns, encoding, "\t" if suffix == ".tsv" else ",")
    if suffix in (".parquet", ".pq"):
        return _parquet_rows(path, columns)
    if suffix == ".json" and _starts_as_list(path):
        return _objects(path, json_items(path, "item"), columns)
    return _objects(path, _json_lines(path, encoding), columns)


def _csv_rows(path: Path, columns: Columns, encoding: str, delimiter: str) -> Iterator[Row]:
    csv.field_size_limit(_LONGEST_FIELD_CHARACTERS)
    with reading(path, encoding), open_text(path, encoding) as stream:
        reader = csv.reader(stream, delimiter=delimiter, strict=True)
        line = 1
        try:
            header = next(reader, [])
            for column, option in columns.items():
                if column not in header:
                    raise column_error(path, 1, column, option, header)
                if header.count(column) > 1:
                    raise DataError.of(
                        f"the column `{column}` stands twice in the header", place=path, line=1
                    )
            places = {column: header.index(column) for column in columns}
            line = reader.line_num + 1
            for cells in reader:
                if cells:
                    if len(cells) != len(header):
                        raise DataError.of(
                            "the row does not fit the header",
                            place=path,
                            line=line,
                            found=f"{len(cells)} fields",
                            expected=f"{len(header)} fields",
                            remedy="put fields that hold commas, quotes or newlines in double "
                            "quotes, inner quotes doubled",
                        )
                    yield line, {column: cells[place] for column, place in places.items()}
                line = reader.line_num + 1
        except csv.Error as error:
            raise DataError.of(
                "broken CSV",
                place=path,
                line=line,
                found=str(error),
                expected='fields like plain or "quoted, with ""inner"" quotes"',
                remedy="close or double the quotes of the row that starts on this line",
            ) from None


def _json_lines(path: Path, encoding: str) -> Iterator[tuple[int, Any]]:
    with reading(path, encoding), open_text(path, encoding) as stream:
        for number, line in enumerate(stream, start=1):
            if line.strip():
                try:
                    yield number, json.loads(line)
                except (json.JSONDecodeError, RecursionError) as error:
                    raise DataError.of(
                        "broken JSON",
                        place=path,
                        line=number,
                        found=f"{error} in {shown(line.strip())}",
                        expected="one JSON object on each line",
                        remedy="mend this line, or export the file again",
                    ) from None


def _objects(path: Path, values: Iterator[tuple[int, Any]], columns: Columns) -> Iterator[Row]:
    """Check that values are objects; the first must have every column, later ones may lack one."""
    first = True
    for line, value in values:
        if not isinstance(value, dict):
            raise DataError.of(
                "not a JSON object",
                place=path,
                line=line,
                found=shown(value),
                expected="an object such as " + json.dumps(dict.fromkeys(columns, "…")),
            )
        if first:
            for column, option in columns.items():
                if column not in value:
                    raise column_error(path, line, column, option, value)
            first = False
        yield line, {column: value.get(column) for column in columns}


def _parquet_rows(path: Path, columns: Columns) -> Iterator[Row]:
    try:
        # By default pyarrow fetches whole row groups ahead: often the whole file.
        with (
            reading(path, "utf-8"),
            pq.ParquetFile(path, buffer_size=_READ_BUFFER_BYTES, pre_buffer=False) as parquet,
        ):
            names = parquet.schema_arrow.names
            for column, option in columns.items():
                if column not in names:
                    raise column_error(path, None, column, option, names)
            for batch in parquet.iter_batches(batch_size=_BATCH_ROWS, columns=list(columns)):
                for row in batch.to_pylist():
                    yield None, row
    except pa.ArrowException as error:
        raise DataError.of(
            "not a whole Parquet file",
            place=path,
            found=str(error).splitlines()[0],
            remedy="copy or export the file again",
        ) from None


def _starts_as_list(path: Path) -> bool:
    """Tell a JSON list of objects from JSON lines that are called `.json`."""
    with reading(path, "utf-8"), path.open("rb") as stream:
        while chunk := stream.read(4096):
            text = chunk.removeprefix(b"\xef\xbb\xbf").lstrip()
            if text:
                return text.startswith(b"[")
    return False
