"""Hugging Face `datasets`: saved folders, hidden labels, and a hub that is out of reach."""

from __future__ import annotations

import subprocess
import sys
import time
from pathlib import Path

import pytest
from dataset_files import labelled_texts, rows_of

from gencls_core.config import DataConfig
from gencls_core.datasets import ingest
from gencls_core.errors import DataError

datasets = pytest.importorskip("datasets")

NAMES = ["cats", "dogs"]


def _table(rows: list[tuple[str, str]], *, hidden: bool = False) -> object:
    features = datasets.Features(
        {"text": datasets.Value("string"), "label": datasets.ClassLabel(names=NAMES)}
    )
    labels = [-1 if hidden else NAMES.index(label) for _, label in rows]
    return datasets.Dataset.from_dict({"text": [t for t, _ in rows], "label": labels}, features)


def test_saved_folder_with_class_labels_and_an_unlabelled_split(tmp_path):
    saved = datasets.DatasetDict(
        {
            "train": _table(rows_of(10)),
            "validation": _table(rows_of(3, tag="held")),
            "test": _table(rows_of(3, tag="test"), hidden=True),
            "unsupervised": _table(rows_of(3, tag="free"), hidden=True),
        }
    )
    saved.save_to_disk(str(tmp_path / "saved"))
    dataset = ingest(DataConfig(data_dir=tmp_path / "saved"), tmp_path / "out")
    assert dataset.classes == ("cats", "dogs")
    assert labelled_texts(dataset, "test") == sorted(rows_of(3, tag="held"))
    assert labelled_texts(dataset, "train", "validation") == sorted(rows_of(10))
    assert "`test` (no labels)" in dataset.warnings[0]
    assert ingest(DataConfig(data_dir=tmp_path / "saved"), tmp_path / "out") == dataset
    free = ingest(DataConfig(data_dir=tmp_path / "saved"), tmp_path / "free", labelled=False)
    assert free.splits["test"].rows == 20 + 6 + 6


def test_saved_single_table_is_cut(tmp_path):
    _table(rows_of(10)).save_to_disk(str(tmp_path / "saved"))  # type: ignore[attr-defined]
    dataset = ingest(DataConfig(data=str(tmp_path / "saved")), tmp_path / "out")
    assert labelled_texts(dataset, "train", "validation", "test") == sorted(rows_of(10))
    with pytest.raises(DataError, match="did you mean `text`"):
        ingest(DataConfig(data_dir=tmp_path / "saved", text_column="texts"), tmp_path / "no")
    (tmp_path / "saved/state.json").write_text("{")
    with pytest.raises(DataError, match="save it again"):
        ingest(DataConfig(data_dir=tmp_path / "saved"), tmp_path / "no")
    assert not (tmp_path / "no").exists()


def test_hub_id_through_load_dataset(tmp_path, monkeypatch):
    asked = []

    def load_dataset(*arguments: object) -> object:
        asked.append(arguments)
        return datasets.DatasetDict({"train": _table(rows_of(10)), "test": _table(rows_of(3))})

    monkeypatch.setattr(datasets, "load_dataset", load_dataset)
    config = DataConfig(data="glue", data_config="sst2")
    dataset = ingest(config, tmp_path / "out")
    assert asked == [("glue", "sst2")]
    assert dataset.name == "glue"
    assert dataset.source["description"] == "hub dataset glue, configuration sst2"


@pytest.mark.parametrize("offline", ["1", ""])
def test_unreachable_hub_says_what_to_do(tmp_path, offline):
    program = (
        "import sys\nfrom pathlib import Path\nfrom gencls_core.config import DataConfig\n"
        "from gencls_core.datasets import ingest\nfrom gencls_core.errors import DataError\n"
        "assert 'datasets' not in sys.modules\n"
        "try:\n    ingest(DataConfig(data='nobody/nothing'), Path(sys.argv[1]))\n"
        "except DataError as error:\n    print(error)\n"
        "assert 'torch' not in sys.modules\n"
    )
    started = time.monotonic()
    done = subprocess.run(
        [sys.executable, "-c", program, str(tmp_path / "out")],
        capture_output=True,
        text=True,
        check=True,
        cwd=Path(__file__).parent.parent,
        env={
            "HF_HUB_OFFLINE": offline,
            "HF_HOME": str(tmp_path / "home"),
            # A port that nobody listens at: the network's absence, on any machine.
            "HF_ENDPOINT": "http://127.0.0.1:9",
            "PATH": "/usr/bin:/bin",
        },
    )
    assert "nobody/nothing: the hub cannot be reached" in done.stdout
    assert "save_to_disk" in done.stdout
    assert "Retrying" not in done.stderr
    assert not (tmp_path / "out").exists()
    assert time.monotonic() - started < 15
