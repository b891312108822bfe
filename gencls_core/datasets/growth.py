"""A class that comes later: its texts are checked, split and appended; what is there stays.

    test.parquet                    the rows that were there, not touched
    test-<fingerprint>.parquet      those of the new class: a part of its own
    dataset.json                    names both; writing it is the change

Old rows keep their numbers, ids and fingerprint, so what was scored of them stays valid by digest.
The new class's rows are cut as `plan.py` would have cut them, with the run's own settings.
"""

from __future__ import annotations

import hashlib
import unicodedata
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from gencls_core.config import DataConfig
from gencls_core.datasets.dataset import Dataset, Part, SplitInfo, SplitName
from gencls_core.datasets.new_texts import KnownTexts, NewTexts, cut_texts
from gencls_core.datasets.open_source import open_source
from gencls_core.datasets.reading import ColumnError
from gencls_core.datasets.source import ALL, Source
from gencls_core.datasets.writing import SplitWriter, row_frame
from gencls_core.errors import DataError, UsageError
from gencls_core.storage import class_directory_name, digest_of

__all__ = [
    "ChangedDataset",
    "NewClass",
    "added_digest",
    "grown",
    "new_class_name",
    "with_ids_if_there",
]


@dataclass(frozen=True)
class NewClass:
    """A class that is to be added."""

    name: str
    texts: DataConfig
    """Where its texts are, and how they are read."""
    test: DataConfig | None = None
    """Where its test texts are; None: some of `texts` are held out."""

    def source(self, *, test: bool = False) -> Source:
        """Open the file of its texts, or of its test texts.

        Raises:
            DataError: when it cannot be read, or is not one file of texts.
        """
        config = self.test if test else self.texts
        assert config is not None
        return _opened(config)


def _opened(config: DataConfig) -> Source:
    source = open_source(config, labelled=False)
    if source.splits != (ALL,):
        raise DataError.of(
            "not one file of texts",
            place=source.description,
            found=", ".join(source.splits),
            expected="one CSV, JSONL, Parquet or .txt file",
            remedy="give the texts of the new class as one file, its test texts with --test",
        )
    return source


def with_ids_if_there(config: DataConfig) -> DataConfig:
    """Read no ids where the file lacks their column: each text then gets one of its own.

    Raises:
        DataError: when the file cannot be read, or is not one file of texts.
    """
    if config.id_column is None:
        return config
    try:
        next(_opened(config).examples(ALL), None)
    except ColumnError:
        # Where it is the column of the texts that is missing, whoever reads them says so.
        return config.model_copy(update={"id_column": None})
    return config


@dataclass(frozen=True)
class ChangedDataset:
    """A dataset as it is to be: files that come are written, and lie elsewhere yet."""

    dataset: Dataset
    files: dict[str, Path]
    """Name in the dataset's folder → where the file is."""


def new_class_name(name: str, classes: tuple[str, ...]) -> str:
    """Give the name as it is kept, runs of white space made one space.

    Raises:
        UsageError: when it is empty, or names a class that is there: case, accents written in two
            ways and white space tell no class from another.
    """
    kept = " ".join(name.split())
    if not kept or not kept.isprintable():
        raise UsageError.of(
            "a class needs a name", place="--name", found=repr(name), expected="visible characters"
        )
    class_directory_name(kept)  # refuses what is too long
    for known in classes:
        if _normal(known) == _normal(kept):
            raise UsageError.of(
                "the run has a class of this name",
                place=f"--name {name!r}",
                found=f"{known!r}",
                expected=f"a name other than {', '.join(map(repr, classes[:20]))}",
                remedy="give another name, or take that class out with `gencls drop-class` first",
            )
    return kept


def _normal(name: str) -> str:
    return " ".join(unicodedata.normalize("NFKC", name).casefold().split())


def added_digest(asked: NewClass) -> str:
    """Name what is asked for by its bytes: the same command again is known by it."""
    test = None if asked.test is None else asked.source(test=True).digest()
    return digest_of({"name": asked.name, "texts": asked.source().digest(), "test": test})


def grown(dataset: Dataset, settings: DataConfig, asked: NewClass, folder: Path) -> ChangedDataset:
    """Check and split the texts of a new class; give the dataset with them.

    Args:
        dataset: the texts that are there; nothing of it is changed.
        settings: how the run cut its texts.
        asked: the new class; its name is one of `new_class_name`.
        folder: an empty folder for the new files.

    Raises:
        DataError: when a text cannot be read or used, stands among the test texts that are there,
            or there are too few.
    """
    source = asked.source()
    rows = NewTexts.read(source)
    held_back = None if asked.test is None else NewTexts.read(asked.source(test=True))
    cut = cut_texts(dataset, settings, rows, held_back)
    known = KnownTexts(asked.name, [rows] if held_back is None else [rows, held_back])
    digests = {split: known.digest(dataset, split) for split in _splits(dataset)}
    warnings = list(known.warnings(cut, drop_leaks=settings.drop_leaks))
    infos: dict[str, SplitInfo] = {}
    files: dict[str, Path] = {}
    for split, (of_split, taken) in cut.rows.items():
        writer = SplitWriter(folder / f"{split}.parquet", (asked.name,))
        with writer:
            for example in of_split.examples(taken):
                known.refuse_leak(example)
                example_id = known.id_of(example, split)
                writer.add(example_id, example.text, asked.name)
                digests[split].update(row_frame(example_id, example.text, asked.name))
        infos[split] = writer.info()
    splits: dict[str, SplitInfo] = {}
    for split in _splits(dataset):
        found = infos.get(split)
        splits[split] = _joined(dataset, split, asked.name, found, digests[split].hexdigest())
        if found is not None:
            files[_file_of(split, found)] = folder / f"{split}.parquet"
    entry: dict[str, Any] = {
        "name": asked.name,
        "digest": added_digest(asked),
        "description": source.description,
        "warnings": warnings,
    }
    origin = dataset.source
    return ChangedDataset(
        replace(
            dataset,
            classes=(*dataset.classes, asked.name),
            splits=splits,
            source={
                **origin,
                "base_texts": origin.get("base_texts") or dataset.split("train").fingerprint,
                "added": [*origin.get("added", ()), entry],
            },
            prior_counts={**dataset.prior_counts, asked.name: cut.learned},
            warnings=(*dataset.warnings, *warnings),
        ),
        files,
    )


def _splits(dataset: Dataset) -> list[SplitName]:
    order: tuple[SplitName, ...] = ("train", "validation", "test")
    return [name for name in order if name in dataset.splits]


def _file_of(split: str, info: SplitInfo) -> str:
    return f"{split}-{info.fingerprint[:16]}.parquet"


def _joined(
    dataset: Dataset, split: SplitName, name: str, found: SplitInfo | None, fingerprint: str
) -> SplitInfo:
    """Append a class's rows to a split; where it has none there, the split knows of the class."""
    info = dataset.split(split)
    if found is None:
        empty = hashlib.sha256().hexdigest()
        return replace(
            info,
            class_counts={**info.class_counts, name: 0},
            class_fingerprints={**info.class_fingerprints, name: empty},
        )
    return SplitInfo(
        rows=info.rows + found.rows,
        fingerprint=fingerprint,
        class_counts={**info.class_counts, **found.class_counts},
        class_fingerprints={**info.class_fingerprints, **found.class_fingerprints},
        longest_text_bytes=max(info.longest_text_bytes, found.longest_text_bytes),
        parts=(*dataset.parts(split), Part(_file_of(split, found), found.rows, found.fingerprint)),
    )
