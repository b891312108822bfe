"""Which source the user means: decided from what lies at the path, else from the name."""

from __future__ import annotations

from pathlib import Path

from gencls_core.config import DataConfig
from gencls_core.datasets import hub
from gencls_core.datasets.demo import DEMO_NAME, demo_folder
from gencls_core.datasets.lines import Lines
from gencls_core.datasets.per_class_json import PerClassJson, is_per_class_json
from gencls_core.datasets.prepared import Prepared
from gencls_core.datasets.reading import closest
from gencls_core.datasets.source import Source
from gencls_core.datasets.table import Table, find_tables
from gencls_core.datasets.table_readers import TABLE_SUFFIXES
from gencls_core.datasets.text_folder import TextFolder, is_text_folder
from gencls_core.errors import DataError, UsageError
from gencls_core.remote_path import RemotePath

__all__ = ["open_source"]

_LAYOUTS = (
    "train_class_N.json files with metadata.json; files named after splits (train.csv, "
    "test.jsonl, …); <split>/<class>/*.txt or <class>/*.txt; a `save_to_disk` folder; or a "
    "prepared dataset (dataset.json)"
)


def open_source(config: DataConfig, *, labelled: bool = True) -> Source:
    """Open what `data_dir` or `data` names; without `labelled`, no label column is needed.

    Raises:
        UsageError: when neither or both are given.
        DataError: when nothing usable is there.
    """
    if config.data_dir is not None and config.data is not None:
        raise UsageError.of("give either --data or --data-dir, not both")
    if config.data_dir is not None:
        if isinstance(config.data_dir, RemotePath):
            return Prepared(config.data_dir, config, labelled=labelled)
        return _open_path(config.data_dir.expanduser(), config, labelled)
    if config.data is None:
        raise UsageError.of(
            "no data given",
            expected="`--data-dir FOLDER` or `--data FILE`",
            remedy="`--data demo` tries everything on an embedded example",
        )
    if config.data == "demo":
        demo = Table(demo_folder(), config, labelled=labelled)
        demo.name = DEMO_NAME
        return demo
    path = Path(config.data).expanduser()
    if path.exists() or _looks_like_path(config.data):
        return _open_path(path, config, labelled)
    return hub.hub_source(config.data, config, labelled=labelled)


def _looks_like_path(name: str) -> bool:
    """Tell a path from a hub id (`name` or `owner/name`)."""
    path = Path(name)
    return (
        name.startswith(("/", "./", "../", "~"))
        or "\\" in name
        or name.endswith("/")
        or name.count("/") > 1
        or path.suffix.lower() in (*TABLE_SUFFIXES, ".txt")
        or (name.count("/") == 1 and path.parent.is_dir())
    )


def _open_path(path: Path, config: DataConfig, labelled: bool) -> Source:
    if not path.exists():
        raise _missing(path)
    if path.is_dir():
        return _open_folder(path, config, labelled)
    suffix = path.suffix.lower()
    if suffix in TABLE_SUFFIXES:
        return Table(path, config, labelled=labelled)
    if suffix == ".txt" and not labelled:
        return Lines(path, config)
    raise DataError.of(
        "a file of this kind has no labelled texts" if suffix == ".txt" else "unknown kind of file",
        place=path,
        found=f"the suffix `{suffix}`" if suffix else "no suffix",
        expected=", ".join(TABLE_SUFFIXES),
        remedy="put the texts and their labels into a CSV or JSONL file",
    )


def _open_folder(folder: Path, config: DataConfig, labelled: bool) -> Source:
    if (folder / "dataset.json").is_file():
        return Prepared(folder, config, labelled=labelled)
    if is_per_class_json(folder):
        return PerClassJson(folder, config, labelled=labelled)
    if hub.is_saved_to_disk(folder):
        return hub.saved_source(folder, config, labelled=labelled)
    if find_tables(folder)[0]:
        return Table(folder, config, labelled=labelled)
    if is_text_folder(folder):
        return TextFolder(folder, config, labelled=labelled)
    names = sorted(path.name for path in folder.iterdir())
    raise DataError.of(
        "no dataset in this folder",
        place=folder,
        found=", ".join(names[:10]) + (", …" if len(names) > 10 else "") or "an empty folder",
        expected=_LAYOUTS,
    )


def _missing(path: Path) -> DataError:
    parent = path.absolute().parent
    if not parent.is_dir():
        found = f"the folder {parent} does not exist either"
        return DataError.of("no such file or folder", place=path, found=found)
    names = sorted(child.name for child in parent.iterdir())
    return DataError.of(
        "no such file or folder",
        place=path,
        found=f"in {parent}: {', '.join(names[:10]) or 'nothing'}",
        remedy=closest(path.name, names),
    )
