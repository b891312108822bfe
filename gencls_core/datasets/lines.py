"""A .txt file with one text per line: texts to classify, without labels."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from gencls_core.config import DataConfig
from gencls_core.datasets.reading import file_digest, open_text, reading
from gencls_core.datasets.source import ALL, Example, Source
from gencls_core.storage import digest_of

__all__ = ["Lines"]


class Lines(Source):
    """One text per line, its newline left away."""

    def __init__(self, path: Path, config: DataConfig) -> None:
        self._path = path
        self._encoding = config.encoding
        self.name = path.stem
        self.description = f"{path}, one text per line"
        self.splits = (ALL,)
        self.classes = config.classes

    def digest(self) -> str:
        return digest_of(
            {"layout": "lines", "file": file_digest(self._path), "encoding": self._encoding}
        )

    def examples(self, split: str) -> Iterator[Example]:
        with reading(self._path, self._encoding), open_text(self._path, self._encoding) as stream:
            for row, line in enumerate(stream):
                yield Example(line.rstrip("\r\n"), None, None, row, str(self._path), row + 1)
