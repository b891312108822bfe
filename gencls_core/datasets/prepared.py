"""A prepared dataset as a source: its ids, classes, splits and prior are kept."""

from __future__ import annotations

from collections.abc import Iterator
from typing import cast

from gencls_core.config import DataConfig
from gencls_core.datasets.dataset import EXAMPLE_SCHEMA, Dataset, SplitName
from gencls_core.datasets.source import Example, Source
from gencls_core.remote_path import Location
from gencls_core.storage import digest_of, file_sha256

__all__ = ["Prepared"]


class Prepared(Source):
    """A folder that `ingest` wrote.

    Raises:
        DataError: when it is of another format.
    """

    final = True

    def __init__(self, folder: Location, config: DataConfig, *, labelled: bool = True) -> None:
        self._dataset = Dataset.open(folder)
        self._labelled = labelled
        self.name = self._dataset.name
        self.description = f"prepared dataset {folder}"
        self.splits = tuple(self._dataset.splits)
        self.classes = config.classes or self._dataset.classes
        self.prior_counts = self._dataset.prior_counts
        self.warnings = self._dataset.warnings

    def _digests(self, split: str) -> str | list[str]:
        """Give the SHA-256 of a split's file, or of each where there are several."""
        found = [file_sha256(path) for path in self._dataset.split_paths(cast(SplitName, split))]
        return found if len(found) > 1 else found[0]

    def digest(self) -> str:
        return digest_of(
            {
                "layout": "prepared",
                "fingerprint": self._dataset.fingerprint,
                "prior_counts": self.prior_counts,
                "files": {split: self._digests(split) for split in self.splits},
            }
        )

    def examples(self, split: str) -> Iterator[Example]:
        row, file = 0, str(self._dataset.split_path(cast(SplitName, split)))
        for batch in self._dataset.iter_batches(cast(SplitName, split), EXAMPLE_SCHEMA.names):
            for cells in batch.to_pylist():
                label = cells["label"] if self._labelled else None
                yield Example(cells["text"], label, cells["example_id"], row, file, None)
                row += 1
