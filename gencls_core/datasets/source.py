"""What every source of texts gives: examples, streamed, each with the place it came from."""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Protocol

from gencls_core.errors import DataError

__all__ = ["ALL", "SPLIT_WORDS", "Example", "Source", "canonical_split", "example_error"]

ALL = "all"
"""The split of a source that knows no splits."""

SPLIT_WORDS: dict[str, str] = {
    "train": "train",
    "training": "train",
    "validation": "validation",
    "valid": "validation",
    "val": "validation",
    "dev": "validation",
    "test": "test",
    "testing": "test",
}

_PART = re.compile(r"[-_.]\d+(-of-\d+)?$")


@dataclass(frozen=True, slots=True)
class Example:
    """One text as the source holds it, not yet checked."""

    text: str
    label: str | None
    """The class name; None where the source has none."""
    example_id: str | None
    """The user's own id; None: `<split>-<row>`."""
    row: int
    """Number of the row in its source split, from 0, over all of the split's files."""
    file: str
    line: int | None
    """First line of the record, from 1; None where the format has no lines."""


class Source(Protocol):
    """Something that holds labelled texts; reading it twice gives the same examples."""

    name: str
    """A short name of the dataset."""
    description: str
    """One line that says what is read and how."""
    splits: tuple[str, ...]
    """Some of train, validation and test, in this order, or only `all`."""
    classes: tuple[str, ...] | None
    """The declared classes, in order; None: those of the labels."""
    warnings: tuple[str, ...] = ()
    """What is left out, and why."""
    prior_counts: dict[str, int] | None = None
    """Train texts per class before sampling, where the source is itself a sample."""
    untested: bool = False
    """Whether no test texts are wanted: none is cut, and all are learned from or held out."""
    final: bool = False
    """Whether the splits are to stay as they are: none is cut from another."""

    def examples(self, split: str) -> Iterator[Example]:
        """Stream the examples of a split.

        Raises:
            DataError: at the first example that cannot be read.
        """

    def digest(self) -> str:
        """Give the SHA-256 over the source's bytes and the options it is read with."""


def canonical_split(name: str) -> str | None:
    """Give the split that a file, folder or hub split is named after, or None.

    Part files count: `train-00000-of-00002` and `train_1` are parts of `train`.
    """
    return SPLIT_WORDS.get(_PART.sub("", name.lower()))


def example_error(example: Example, problem: str, **details: str | None) -> DataError:
    """Build the error about one example: its line, or its row where the format has no lines."""
    if example.line is None:
        problem = f"row {example.row} (from 0): {problem}"
    return DataError.of(problem, place=example.file, line=example.line, **details)
