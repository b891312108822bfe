"""CSV, TSV, JSONL, JSON and Parquet: one file, or a folder of files named after their splits.

reviews.csv                     one file: the split `all`
train.csv  dev.csv  test.csv    a folder: a file per split, parts like train-00000-of-00002
train/part-0.parquet  test/…    a folder of a split's part files
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from gencls_core.config import DataConfig
from gencls_core.datasets.cells import example_of_cells, wanted_columns
from gencls_core.datasets.reading import file_digest
from gencls_core.datasets.source import ALL, Example, Source, canonical_split
from gencls_core.datasets.table_readers import TABLE_SUFFIXES, table_rows
from gencls_core.errors import DataError
from gencls_core.storage import digest_of

__all__ = ["Table", "find_tables"]

_ORDER = (ALL, "train", "validation", "test")


class Table(Source):
    """One table file, or a folder of them.

    Raises:
        DataError: when it is not clear which file is which split.
    """

    def __init__(self, path: Path, config: DataConfig, *, labelled: bool = True) -> None:
        if path.is_dir():
            self._files, self.warnings = find_tables(path)
        else:
            self._files, self.warnings = {ALL: [path]}, ()
        self._columns = wanted_columns(config, str(path), labelled=labelled)
        self._config = config
        self._labelled = labelled
        self.name = path.name if path.is_dir() else path.stem
        columns = ", ".join(f"`{column}`" for column in self._columns)
        self.description = f"{path} (columns {columns})"
        self.splits = tuple(split for split in _ORDER if split in self._files)
        self.classes = config.classes

    def digest(self) -> str:
        return digest_of(
            {
                "layout": "table",
                # Names only tell the format: a renamed file holds the same examples.
                "files": {
                    split: [[path.suffix.lower(), file_digest(path)] for path in paths]
                    for split, paths in self._files.items()
                },
                "columns": list(self._columns),
                "encoding": self._config.encoding,
            }
        )

    def examples(self, split: str) -> Iterator[Example]:
        config, row = self._config, 0
        for path in self._files[split]:
            for line, cells in table_rows(path, self._columns, config.encoding):
                yield example_of_cells(
                    cells, config, row=row, file=str(path), line=line, labelled=self._labelled
                )
                row += 1


def find_tables(folder: Path) -> tuple[dict[str, list[Path]], tuple[str, ...]]:
    """Find the table files of each split of a folder, and say which files are left out.

    Raises:
        DataError: when several files stand for one split, or none is named after one.
    """
    tables = _tables_in(folder)
    files: dict[str, list[Path]] = {}
    for path in tables:
        split = canonical_split(path.stem)
        if split is not None:
            files.setdefault(split, []).append(path)
    for child in sorted(folder.iterdir()):
        split = canonical_split(child.name) if child.is_dir() else None
        if split is not None and (parts := _tables_in(child)):
            files.setdefault(split, []).extend(parts)
    if not files and len(tables) == 1:
        return {ALL: tables}, ()
    if tables and not files:
        raise DataError.of(
            "no file is named after a split",
            place=folder,
            found=", ".join(path.name for path in tables[:10]),
            expected="files such as train.csv, validation.csv and test.csv",
            remedy="rename them, or give one file with `--data`",
        )
    for split, paths in files.items():
        if len({path.suffix.lower() for path in paths}) > 1 or len({p.parent for p in paths}) > 1:
            raise DataError.of(
                f"more than one form of the {split} split",
                place=folder,
                found=", ".join(str(path.relative_to(folder)) for path in paths[:10]),
                expected="files of one format in one place",
                remedy="remove all but one form",
            )
    used = {path for paths in files.values() for path in paths}
    left_out = [path.name for path in tables if path not in used]
    if not left_out:
        return files, ()
    return files, (f"files not named after a split were left out: {', '.join(left_out[:10])}",)


def _tables_in(folder: Path) -> list[Path]:
    return sorted(
        path
        for path in folder.iterdir()
        if path.suffix.lower() in TABLE_SUFFIXES
        and path.is_file()
        and not path.name.startswith((".", "_"))
    )
