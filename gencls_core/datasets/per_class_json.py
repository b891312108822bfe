"""The original experiment's layout: one JSON file of texts per class, one of test texts.

    metadata.json        {"dataset", "num_classes", "class_names", "splits"}
    train_class_N.json   {"class_id": N, "class_name", "num_examples", "texts": [...]}
    validation.json      {"num_examples", "texts": [...], "labels": [...]}   (optional)
    test.json            {"num_examples", "texts": [...], "labels": [...]}

Labels are class numbers or class names. They stand in an array after the texts, so a file is read
twice: the labels are held (as numbers), then the texts are streamed beside them.
"""

from __future__ import annotations

import json
from array import array
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from gencls_core.config import DataConfig
from gencls_core.datasets.json_stream import json_events
from gencls_core.datasets.labels import label_name
from gencls_core.datasets.reading import file_digest, reading, shown
from gencls_core.datasets.source import Example, Source
from gencls_core.errors import DataError
from gencls_core.storage import digest_of

__all__ = ["PerClassJson", "is_per_class_json"]

_SPLIT_FILES = ("validation", "test")


def is_per_class_json(folder: Path) -> bool:
    """Tell whether a folder has this layout, its metadata perhaps missing."""
    if (folder / "train_class_0.json").is_file():
        return True
    return (folder / "metadata.json").is_file() and (folder / "test.json").is_file()


class PerClassJson(Source):
    """A folder in the per-class JSON layout.

    Raises:
        DataError: when metadata.json or a class's file is missing or contradicts the other.
    """

    def __init__(self, folder: Path, config: DataConfig, *, labelled: bool = True) -> None:
        self._folder = folder
        self._labelled = labelled
        metadata = _read_metadata(folder / "metadata.json")
        self._names: tuple[str, ...] = tuple(metadata["class_names"])
        self.name = str(metadata.get("dataset") or folder.name)
        self.description = f"per-class JSON folder {folder}"
        self.classes = config.classes or self._names
        splits = [name for name in _SPLIT_FILES if (folder / f"{name}.json").is_file()]
        missing = [path for path in self._train_files() if not path.is_file()]
        if len(missing) < len(self._names):
            splits.insert(0, "train")
            if missing:
                name = self._names[self._train_files().index(missing[0])]
                raise DataError.of(
                    f"no train texts for class `{name}`",
                    place=missing[0],
                    found="no such file",
                    expected="one train_class_N.json for each of the classes in metadata.json",
                )
        self.splits = tuple(splits)

    def _train_files(self) -> list[Path]:
        return [self._folder / f"train_class_{number}.json" for number in range(len(self._names))]

    def _files(self, split: str) -> list[Path]:
        return self._train_files() if split == "train" else [self._folder / f"{split}.json"]

    def digest(self) -> str:
        files = [self._folder / "metadata.json"]
        for split in self.splits:
            files.extend(self._files(split))
        return digest_of(
            {"layout": "per-class JSON", "files": [[f.name, file_digest(f)] for f in files]}
        )

    def examples(self, split: str) -> Iterator[Example]:
        if split == "train":
            row = 0
            for number, path in enumerate(self._train_files()):
                for line, text in self._class_texts(path, number):
                    yield Example(text, self._names[number], None, row, str(path), line)
                    row += 1
        else:
            path = self._folder / f"{split}.json"
            labels = self._labels(path) if self._labelled else None
            for row, (line, text) in enumerate(_texts(path, labels)):
                name = None if labels is None else self._names[labels[row]]
                yield Example(text, name, None, row, str(path), line)

    def _class_texts(self, path: Path, number: int) -> Iterator[tuple[int, str]]:
        expected = {"class_id": number, "class_name": self._names[number]}
        yield from _texts(path, None, expected)

    def _class_of(self, event: str, value: Any) -> str | None:
        """Give a label's class: a number is its place in class_names, whatever those are called."""
        if event == "number":
            known = value == int(value) and 0 <= value < len(self._names)
            return self._names[int(value)] if known else None
        return label_name(value, self._names) if event == "string" else None

    def _labels(self, path: Path) -> array[int]:
        """Read the labels of a split file as class numbers."""
        numbers = {name: number for number, name in enumerate(self._names)}
        labels = array("i")
        for line, (prefix, event, value) in json_events(path):
            if prefix != "labels.item":
                continue
            found = self._class_of(event, value)
            if found not in numbers:
                raise DataError.of(
                    "label outside the classes",
                    place=path,
                    line=line,
                    found=f"{shown(value)} (label {len(labels)}, from 0)",
                    expected=f"0 to {len(numbers) - 1}, or one of {', '.join(numbers)}",
                    remedy="correct the label, or add the class to metadata.json",
                )
            labels.append(numbers[found])
        return labels


def _texts(
    path: Path, labels: array[int] | None, expected: dict[str, Any] | None = None
) -> Iterator[tuple[int, str]]:
    """Stream (line, text) of a file and check its counts and its head against the rest."""
    rows, line, num_examples = 0, 1, None
    for line, (prefix, event, value) in json_events(path):
        if prefix == "texts.item":
            if event != "string":
                raise DataError.of(
                    "a text is not a string", place=path, line=line, found=shown(value)
                )
            if labels is not None and rows == len(labels):
                break
            rows += 1
            yield line, value
        elif prefix == "num_examples" and event == "number":
            num_examples = value
        elif expected and prefix in expected and value != expected[prefix]:
            raise DataError.of(
                f"`{prefix}` contradicts metadata.json",
                place=path,
                line=line,
                found=shown(value),
                expected=shown(expected[prefix]),
            )
    else:
        if labels is not None and len(labels) != rows:
            raise _count_error(path, line, f"{rows} texts and {len(labels)} labels")
        if num_examples is not None and num_examples != rows:
            raise _count_error(path, line, f"{rows} texts and `num_examples` {num_examples}")
        return
    raise _count_error(path, line, f"more texts than the {len(labels or ())} labels")


def _count_error(path: Path, line: int, found: str) -> DataError:
    return DataError.of(
        "the counts do not agree",
        place=path,
        line=line,
        found=found,
        expected="one label for each text, and `num_examples` of them",
        remedy="export the file again",
    )


def _read_metadata(path: Path) -> dict[str, Any]:
    if not path.is_file():
        raise DataError.of(
            "no such file",
            place=path,
            expected='{"dataset": ..., "num_classes": 2, "class_names": [...]}',
            remedy="write it: it names the classes of the train_class_N.json files",
        )
    try:
        with reading(path, "utf-8"):
            values = json.loads(path.read_text(encoding="utf-8-sig"))
    except json.JSONDecodeError as error:
        raise DataError.of("broken JSON", place=path, line=error.lineno, found=error.msg) from None
    names = values.get("class_names") if isinstance(values, dict) else None
    if (
        not isinstance(names, list)
        or not names
        or not all(isinstance(name, str) and name.strip() == name and name for name in names)
        or len(set(names)) != len(names)
        or values.get("num_classes", len(names)) != len(names)
    ):
        raise DataError.of(
            "the classes are not clear",
            place=path,
            found=f"`class_names`: {shown(names)}",
            expected="`class_names`: a list of `num_classes` different names",
        )
    return dict(values)
