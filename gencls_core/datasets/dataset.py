"""A prepared dataset: Parquet files on disk that are read range by range, never as a whole.

    <folder>/dataset.json        classes, counts, fingerprints, where it came from
    <folder>/train.parquet       columns: example_id, text, label (all strings; label may be null)
    <folder>/validation.parquet
    <folder>/test.parquet
    <folder>/test-<fingerprint>.parquet     texts of a class that came later (growth.py)

Every source (CSV, JSON layout, hub, …) is turned into this form once, by `ingest`, so training
tasks and scoring actors know one format and can read their own part of it.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from dataclasses import asdict, dataclass, field
from typing import Any, Literal, Self

import pyarrow as pa
import pyarrow.parquet as pq

from gencls_core.errors import DataError
from gencls_core.remote_path import Location, store_failure
from gencls_core.storage import digest_of, filesystem_of, read_json

__all__ = [
    "DATASET_FORMAT",
    "EXAMPLE_SCHEMA",
    "ROW_GROUP_ROWS",
    "Dataset",
    "Part",
    "SplitInfo",
    "SplitName",
]

DATASET_FORMAT = 1
ROW_GROUP_ROWS = 1024

SplitName = Literal["train", "validation", "test"]

EXAMPLE_SCHEMA = pa.schema(
    [
        pa.field("example_id", pa.string(), nullable=False),
        pa.field("text", pa.string(), nullable=False),
        pa.field("label", pa.string()),
    ]
)


@dataclass(frozen=True)
class Part:
    """Consecutive rows of a split that lie in a file of their own.

    Shards are cut within parts, and a shard's digest names its part alone: so the scores of a part
    stay as they are when another is appended.
    """

    file: str
    rows: int
    fingerprint: str


@dataclass(frozen=True)
class SplitInfo:
    """Counts and fingerprints of one split.

    `fingerprint` is the SHA-256 over the split's rows (id, text, label) in order;
    `class_fingerprints` the same over the rows of one class, so that a class model's inputs can be
    named without the other classes. `parts` is empty where the split is one file.
    """

    rows: int
    fingerprint: str
    class_counts: dict[str, int]
    class_fingerprints: dict[str, str]
    longest_text_bytes: int
    parts: tuple[Part, ...] = ()

    @classmethod
    def of_json(cls, values: dict[str, Any]) -> Self:
        """Read what `to_json` gave."""
        parts = tuple(Part(**part) for part in values.get("parts", ()))
        return cls(**{**values, "parts": parts})

    def to_json(self) -> dict[str, Any]:
        """Give the fields; `parts` only where there are some."""
        values = asdict(self)
        if not self.parts:
            del values["parts"]
        return values


@dataclass(frozen=True)
class Dataset:
    """A prepared dataset; open one with `Dataset.open`."""

    path: Location
    name: str
    classes: tuple[str, ...]
    splits: dict[str, SplitInfo]
    source: dict[str, Any]
    """Where it came from: `description`, `digest` of the source's bytes and options."""
    prior_counts: dict[str, int]
    """Texts per class in the train split before sampling: the empirical prior."""
    warnings: tuple[str, ...] = field(default=())

    @classmethod
    def open(cls, path: Location) -> Self:
        """Open a prepared dataset.

        Raises:
            DataError: when the folder is not a prepared dataset of this format.
        """
        try:
            values = read_json(path / "dataset.json")
        except FileNotFoundError:
            raise DataError.of(
                "not a prepared dataset",
                place=path,
                found="no dataset.json",
                remedy="prepare one with `gencls prepare`",
            ) from None
        if values.get("format") != DATASET_FORMAT:
            raise DataError.of(
                "prepared dataset of another format",
                place=path / "dataset.json",
                found=repr(values.get("format")),
                expected=str(DATASET_FORMAT),
                remedy="prepare it again with this version of gencls",
            )
        return cls(
            path=path,
            name=values["name"],
            classes=tuple(values["classes"]),
            splits={name: SplitInfo.of_json(info) for name, info in values["splits"].items()},
            source=values["source"],
            prior_counts=values["prior_counts"],
            warnings=tuple(values["warnings"]),
        )

    def to_json(self) -> dict[str, Any]:
        """Give the content of `dataset.json`."""
        return {
            "format": DATASET_FORMAT,
            "name": self.name,
            "classes": list(self.classes),
            "fingerprint": self.fingerprint,
            "splits": {name: info.to_json() for name, info in self.splits.items()},
            "source": self.source,
            "prior_counts": self.prior_counts,
            "warnings": list(self.warnings),
        }

    @property
    def fingerprint(self) -> str:
        """SHA-256 over the classes and the rows of all splits."""
        rows = {name: info.fingerprint for name, info in self.splits.items()}
        return digest_of({"classes": self.classes, "splits": rows})

    @property
    def held_out(self) -> int:
        """Number of validation texts; 0 where there is no such split."""
        return self.splits["validation"].rows if "validation" in self.splits else 0

    def split(self, name: SplitName) -> SplitInfo:
        """Give a split's counts.

        Raises:
            DataError: when the dataset has no such split.
        """
        if name not in self.splits:
            raise DataError.of(
                f"the dataset has no {name} split",
                place=self.path,
                found=", ".join(self.splits) or "no split",
            )
        return self.splits[name]

    def parts(self, name: SplitName) -> tuple[Part, ...]:
        """Give the files that hold a split's rows, in order."""
        info = self.split(name)
        return info.parts or (Part(f"{name}.parquet", info.rows, info.fingerprint),)

    def split_path(self, name: SplitName) -> Location:
        """Give the Parquet file of a split, the first one where there are several."""
        return self.split_paths(name)[0]

    def split_paths(self, name: SplitName) -> tuple[Location, ...]:
        """Give the Parquet files of a split, in the order of their rows."""
        return tuple(self.path / part.file for part in self.parts(name))

    @property
    def is_whole(self) -> bool:
        """Say whether every file is there."""
        names: list[SplitName] = list(self.splits)  # type: ignore[arg-type]
        return all(path.is_file() for name in names for path in self.split_paths(name))

    @contextlib.contextmanager
    def _reading(self, path: Location) -> Iterator[pq.ParquetFile]:
        filesystem, name = filesystem_of(path)
        try:
            with pq.ParquetFile(name, filesystem=filesystem, pre_buffer=True) as parquet:
                yield parquet
        except (OSError, pa.ArrowException) as error:
            failure = store_failure(path, error)
            if failure is None:
                raise
            raise failure from error

    def read(self, split: SplitName, start: int = 0, stop: int | None = None) -> pa.Table:
        """Read rows [start, stop) of a split; only the row groups that hold them are loaded."""
        found, first = [], 0
        for path, part in zip(self.split_paths(split), self.parts(split), strict=True):
            end = part.rows if stop is None else stop - first
            if start < first + part.rows and end > 0:
                found.append(self._read(path, max(0, start - first), end))
            first += part.rows
        return pa.concat_tables(found) if found else EXAMPLE_SCHEMA.empty_table()

    def _read(self, path: Location, start: int, stop: int) -> pa.Table:
        with self._reading(path) as parquet:
            metadata = parquet.metadata
            stop = min(stop, metadata.num_rows)
            groups, first, skipped = [], 0, 0
            for group in range(metadata.num_row_groups):
                rows = metadata.row_group(group).num_rows
                if first + rows <= start:
                    skipped += rows
                elif first < stop:
                    groups.append(group)
                first += rows
            table = parquet.read_row_groups(groups)
        return table.slice(start - skipped, max(0, stop - start))

    def iter_batches(self, split: SplitName, columns: list[str]) -> Iterator[pa.RecordBatch]:
        """Go through a split in batches of at most ROW_GROUP_ROWS rows."""
        for path in self.split_paths(split):
            with self._reading(path) as parquet:
                yield from parquet.iter_batches(batch_size=ROW_GROUP_ROWS, columns=columns)

    def base_texts(self) -> Iterator[str]:
        """Go through the texts that a base from scratch is made of: the train texts, those of a
        class that came later left out.

        Raises:
            DataError: when some of them are gone with their class.
        """
        first, wanted = self.parts("train")[0], self.source.get("base_texts")
        if wanted not in (None, first.fingerprint):
            raise DataError.of(
                "the texts that the base model was made of are not there any more",
                place=self.path,
                found=f"train texts {first.fingerprint[:12]}",
                expected=f"{wanted[:12]}, before a class was dropped",
                remedy="bring the run's `base` folder back, or run anew in another folder",
            )
        for start in range(0, first.rows, ROW_GROUP_ROWS):
            stop = min(start + ROW_GROUP_ROWS, first.rows)
            yield from self.read("train", start, stop).column("text").to_pylist()

    def texts_of(self, split: SplitName, label: str) -> list[str]:
        """Give the texts of one class, in order; empty where the split does not exist."""
        if split not in self.splits:
            return []
        texts: list[str] = []
        for batch in self.iter_batches(split, ["text", "label"]):
            labels = batch.column("label").to_pylist()
            column = batch.column("text").to_pylist()
            texts.extend(text for text, found in zip(column, labels, strict=True) if found == label)
        return texts
