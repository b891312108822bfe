"""Hugging Face `datasets`: hub ids and `save_to_disk` folders.

The hub's client retries a failed request for 23 seconds and more. Where the hub cannot be reached
at all, we look once, then let `datasets` work from its cache as HF_HUB_OFFLINE=1 would.
"""

from __future__ import annotations

import contextlib
import os
import socket
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from gencls_core.config import DataConfig
from gencls_core.datasets.cells import example_of_cells, wanted_columns
from gencls_core.datasets.reading import closest, column_error, file_digest
from gencls_core.datasets.source import ALL, Example, Source, canonical_split
from gencls_core.errors import DataError
from gencls_core.storage import digest_of

__all__ = ["Hub", "hub_source", "is_saved_to_disk", "saved_source"]

_BATCH_ROWS = 256
_CONNECT_SECONDS = 5.0
_NO_LABEL = -1
_ORDER = (ALL, "train", "validation", "test")


def is_saved_to_disk(folder: Path) -> bool:
    """Tell whether `datasets.save_to_disk` wrote a folder."""
    return (folder / "dataset_dict.json").is_file() or (
        (folder / "dataset_info.json").is_file() and (folder / "state.json").is_file()
    )


def saved_source(folder: Path, config: DataConfig, *, labelled: bool = True) -> Source:
    """Open a `save_to_disk` folder.

    Raises:
        DataError: when it cannot be read, or lacks a column.
    """
    import datasets

    try:
        found = datasets.load_from_disk(str(folder), keep_in_memory=False)
    except Exception as error:  # whatever the library meets in a damaged folder
        raise DataError.of(
            "not a whole `save_to_disk` folder",
            place=folder,
            found=f"{type(error).__name__}: {error}",
            remedy="save it again with `Dataset.save_to_disk`",
        ) from error
    files = sorted(path for path in folder.rglob("*") if path.suffix in (".arrow", ".json"))
    # The library's own fingerprint depends on how the dataset was made: the bytes say more.
    key = {"files": [[str(p.relative_to(folder)), file_digest(p)] for p in files]}
    return Hub(found, folder.name, f"`save_to_disk` folder {folder}", key, config, labelled)


def hub_source(identifier: str, config: DataConfig, *, labelled: bool = True) -> Source:
    """Load a dataset of the hub, or of the local cache where the hub is out of reach.

    Raises:
        DataError: when there is no such dataset or it cannot be fetched.
    """
    import datasets

    with _offline_if_unreachable() as unreachable:
        try:
            found = datasets.load_dataset(identifier, config.data_config)
        except Exception as error:  # the hub's client, its parsers and the network fail in any way
            raise _hub_error(identifier, error, unreachable) from error
    wanted = config.data_config
    title = f"hub dataset {identifier}" + (f", configuration {wanted}" if wanted else "")
    tables = dict(found) if hasattr(found, "keys") else {ALL: found}
    key = {
        "hub": identifier,
        "config": wanted,
        "fingerprints": {str(split): table._fingerprint for split, table in tables.items()},
    }
    return Hub(found, identifier, title, key, config, labelled)


class Hub(Source):
    """A loaded `datasets.Dataset` or `datasets.DatasetDict`, memory-mapped from disk."""

    def __init__(
        self,
        found: Any,
        name: str,
        description: str,
        key: dict[str, Any],
        config: DataConfig,
        labelled: bool,
    ) -> None:
        self._place = name
        self._key = key
        self._config = config
        self._labelled = labelled
        self._columns = wanted_columns(config, name, labelled=labelled)
        self._names: tuple[str, ...] | None = None
        self.name = name
        self.description = description
        named = dict(found) if hasattr(found, "keys") else {ALL: found}
        self._tables: dict[str, Any] = {}
        left_out = []
        for original, table in named.items():
            split = ALL if original == ALL else canonical_split(str(original).split("_")[0])
            if split is None or split in self._tables:
                left_out.append(f"`{original}` (no known split)")
            elif labelled and self._unlabelled(table):
                left_out.append(f"`{original}` (no labels)")
            else:
                self._check_columns(table)
                self._tables[split] = table
        if not self._tables and len(named) == 1:
            ((_, table),) = named.items()
            self._check_columns(table)
            self._tables, left_out = {ALL: table}, []
        if left_out:
            self.warnings = (f"splits left out: {', '.join(left_out)}",)
        self.splits = tuple(split for split in _ORDER if split in self._tables)
        self.classes = config.classes or self._names

    def _check_columns(self, table: Any) -> None:
        for column, option in self._columns.items():
            if column not in table.column_names:
                raise column_error(Path(self._place), None, column, option, table.column_names)
        names = getattr(table.features.get(self._config.label_column), "names", None)
        if names:
            self._names = tuple(names)

    def _unlabelled(self, table: Any) -> bool:
        """Tell whether a split has -1 for every label: how the hub marks hidden labels."""
        if self._config.label_column not in table.column_names or not len(table):
            return False
        column = table.with_format("arrow").select_columns([self._config.label_column])
        seen: set[Any] = set()
        for batch in column.iter(batch_size=4096):
            seen.update(batch.column(0).unique().to_pylist())
            if seen - {_NO_LABEL}:
                return False
        return True

    def digest(self) -> str:
        return digest_of({"layout": "hub", "columns": list(self._columns), **self._key})

    def examples(self, split: str) -> Iterator[Example]:
        table = self._tables[split].select_columns(list(self._columns)).with_format("arrow")
        row, file = 0, f"{self._place}[{split}]"
        for batch in table.iter(batch_size=_BATCH_ROWS):
            for cells in batch.to_pylist():
                yield example_of_cells(
                    cells,
                    self._config,
                    row=row,
                    file=file,
                    line=None,
                    labelled=self._labelled,
                    names=self._names,
                )
                row += 1


def _hub_error(identifier: str, error: Exception, unreachable: bool) -> DataError:
    remedy = (
        "where there is a network: "
        f'`datasets.load_dataset("{identifier}").save_to_disk("folder")`; copy the folder here '
        "and give it with `--data-dir`; or give a CSV, JSONL or Parquet file with `--data`"
    )
    reached = not unreachable and not isinstance(error, ConnectionError)
    problem = "cannot be loaded from the hub" if reached else "the hub cannot be reached"
    hint = closest(identifier, ["demo"])
    return DataError.of(
        problem,
        place=identifier,
        found=f"no such file or folder here; {type(error).__name__}: {str(error).splitlines()[0]}"
        if str(error)
        else type(error).__name__,
        expected="a dataset of the Hugging Face hub, a file or a folder",
        remedy=f"{hint} {remedy}" if hint else remedy,
    )


@contextlib.contextmanager
def _offline_if_unreachable() -> Iterator[bool]:
    """Switch the hub's client to its offline mode while the hub cannot be connected to."""
    import datasets.config
    import huggingface_hub.constants as constants

    if constants.is_offline_mode() or _connects(constants.ENDPOINT):
        yield constants.is_offline_mode()
        return
    before = (constants.HF_HUB_OFFLINE, datasets.config.HF_HUB_OFFLINE)
    constants.HF_HUB_OFFLINE = datasets.config.HF_HUB_OFFLINE = True
    try:
        yield True
    finally:
        constants.HF_HUB_OFFLINE, datasets.config.HF_HUB_OFFLINE = before


def _connects(endpoint: str) -> bool:
    """Tell whether the hub's host answers; behind a proxy only a real request can tell."""
    names = ("https_proxy", "http_proxy", "all_proxy")
    if any(os.environ.get(name) or os.environ.get(name.upper()) for name in names):
        return True
    address = urlsplit(endpoint)
    port = address.port or (80 if address.scheme == "http" else 443)
    try:
        with socket.create_connection((address.hostname or "", port), timeout=_CONNECT_SECONDS):
            return True
    except OSError:
        return False
