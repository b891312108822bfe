"""Labelled texts that a program gives: all of them are learned from, or held out."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Sequence

from gencls_core.datasets.source import Example, Source
from gencls_core.datasets.writing import row_frame
from gencls_core.storage import digest_of

__all__ = ["Given"]


class Given(Source):
    """Texts and their classes in memory; none becomes a test text."""

    splits: tuple[str, ...] = ("train",)
    untested = True

    def __init__(self, texts: Sequence[str], labels: Sequence[str], classes: Sequence[str]) -> None:
        """Take texts as they are.

        Args:
            texts: N of them.
            labels: the class of each.
            classes: all, in order.
        """
        self.name = "texts"
        self.description = "texts of fit"
        self.classes = tuple(classes)
        self._texts, self._labels = texts, labels

    def digest(self) -> str:
        rows = hashlib.sha256()
        for text, label in zip(self._texts, self._labels, strict=True):
            rows.update(row_frame("", text, label))
        return digest_of({"layout": "given", "classes": self.classes, "rows": rows.hexdigest()})

    def examples(self, split: str) -> Iterator[Example]:
        for row, (text, label) in enumerate(zip(self._texts, self._labels, strict=True)):
            yield Example(text, label, None, row, self.name, None)
