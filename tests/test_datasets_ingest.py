"""Splits, samples, seeds, fingerprints, leaks, idempotence and memory of `ingest`."""

from __future__ import annotations

import json
import random
import subprocess
import sys
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from dataset_files import contents, labelled_texts, rows_of, write_csv, write_jsonl

from gencls_core.config import DataConfig
from gencls_core.datasets import Dataset, ingest
from gencls_core.datasets.dataset import EXAMPLE_SCHEMA, ROW_GROUP_ROWS
from gencls_core.errors import DataError, UsageError

UNEVEN = [
    (f"{name} {n}", name) for name, count in (("a", 100), ("b", 30), ("c", 3)) for n in range(count)
]


def _config(path: Path, **options: object) -> DataConfig:
    return DataConfig(data=str(path), **options)  # type: ignore[arg-type]


def test_cut_splits_are_stratified_disjoint_and_in_order(tmp_path):
    dataset = ingest(_config(write_csv(tmp_path / "d.csv", UNEVEN)), tmp_path / "out")
    counts = {name: info.class_counts for name, info in dataset.splits.items()}
    assert counts == {
        "train": {"a": 72, "b": 22, "c": 2},
        "validation": {"a": 8, "b": 2, "c": 0},
        "test": {"a": 20, "b": 6, "c": 1},
    }
    assert dataset.prior_counts == {"a": 80, "b": 24, "c": 2}
    assert any("no validation texts for c" in warning for warning in dataset.warnings)
    assert labelled_texts(dataset, "train", "validation", "test") == sorted(UNEVEN)
    for split in ("train", "validation", "test"):
        rows = contents(dataset, split)
        numbers = [int(example_id.removeprefix(f"{split}-")) for example_id, _, _ in rows]
        assert numbers == sorted(numbers)
        assert [UNEVEN[number] for number in numbers] == [(text, label) for _, text, label in rows]


def test_seeds(tmp_path):
    path = write_csv(tmp_path / "d.csv", UNEVEN)
    one = ingest(_config(path), tmp_path / "a")
    assert ingest(_config(path), tmp_path / "b").fingerprint == one.fingerprint
    other = ingest(_config(path, split_seed=1), tmp_path / "c")
    assert contents(other, "test") != contents(one, "test")
    assert other.splits["test"].class_counts == one.splits["test"].class_counts


def test_samples_are_random_and_not_prefixes(tmp_path):
    write_jsonl(tmp_path / "d/train.jsonl", UNEVEN)
    write_jsonl(tmp_path / "d/test.jsonl", [(f"test {t}", k) for t, k in UNEVEN])
    config = _config(tmp_path / "d", max_samples=10, max_test_samples=40)
    dataset = ingest(config, tmp_path / "out")
    assert dataset.prior_counts == {"a": 100, "b": 30, "c": 3}
    assert dataset.splits["train"].class_counts == {"a": 9, "b": 9, "c": 2}
    assert dataset.splits["validation"].class_counts == {"a": 1, "b": 1, "c": 1}
    assert dataset.splits["test"].class_counts == {"a": 30, "b": 9, "c": 1}
    chosen = {
        text for text, label in labelled_texts(dataset, "train", "validation") if label == "a"
    }
    assert chosen != {f"a {n}" for n in range(10)}
    with pytest.raises(UsageError, match="at least 3"):
        ingest(_config(tmp_path / "d", max_test_samples=2), tmp_path / "few")


def test_own_validation_is_kept(tmp_path):
    for name in ("train", "dev", "test"):
        write_jsonl(tmp_path / f"d/{name}.jsonl", rows_of(5, tag=name))
    dataset = ingest(_config(tmp_path / "d"), tmp_path / "out")
    assert labelled_texts(dataset, "validation") == sorted(rows_of(5, tag="dev"))
    assert contents(dataset, "validation")[0][0] == "validation-0"
    assert dataset.warnings == ()


def test_validation_becomes_test_where_there_is_none(tmp_path):
    write_jsonl(tmp_path / "d/train.jsonl", rows_of(10, tag="train"))
    write_jsonl(tmp_path / "d/validation.jsonl", rows_of(4, tag="held"))
    dataset = ingest(_config(tmp_path / "d"), tmp_path / "out")
    assert labelled_texts(dataset, "test") == sorted(rows_of(4, tag="held"))
    assert [row[0] for row in contents(dataset, "test")] == [f"validation-{n}" for n in range(8)]
    assert dataset.splits["validation"].rows == 2
    assert "no test split" in dataset.warnings[0]
    only = ingest(_config(tmp_path / "d"), tmp_path / "test", splits=("test",))
    assert only.splits["test"] == dataset.splits["test"]
    assert only.classes == dataset.classes


def test_no_validation_when_the_fraction_is_zero(tmp_path):
    path = write_csv(tmp_path / "d.csv", UNEVEN)
    dataset = ingest(_config(path, validation_fraction=0), tmp_path / "out")
    assert set(dataset.splits) == {"train", "test"}
    assert dataset.warnings == ()


def test_train_only_folder_is_cut_and_keeps_its_ids(tmp_path):
    write_jsonl(tmp_path / "d/train.jsonl", rows_of(10))
    dataset = ingest(_config(tmp_path / "d"), tmp_path / "out")
    assert dataset.splits["test"].rows == 4
    assert all(row[0].startswith("train-") for row in contents(dataset, "test"))
    assert "only a train split" in dataset.warnings[0]
    with pytest.raises(DataError, match="no test split"):
        ingest(_config(tmp_path / "d"), tmp_path / "test", splits=("test",))


def test_one_file_as_test_split(tmp_path):
    path = write_csv(tmp_path / "d.csv", rows_of(5))
    dataset = ingest(_config(path), tmp_path / "out", splits=("test",))
    assert [(text, label) for _, text, label in contents(dataset, "test")] == rows_of(5)
    assert set(dataset.splits) == {"test"}


def test_leaks_are_counted_or_dropped(tmp_path):
    train = [*rows_of(20), ("Leaked  text\n one", "cats"), ("leaked two", "dogs")]
    test = [*rows_of(5, tag="test"), ("Leaked text one", "cats"), (" leaked two", "dogs")]
    write_jsonl(tmp_path / "d/train.jsonl", train)
    write_jsonl(tmp_path / "d/test.jsonl", test)
    warned = ingest(_config(tmp_path / "d"), tmp_path / "a")
    assert warned.warnings[0].startswith("2 train texts (validation part included) also stand")
    assert warned.splits["train"].rows + warned.splits["validation"].rows == 42
    dropped = ingest(_config(tmp_path / "d", drop_leaks=True), tmp_path / "b")
    assert dropped.warnings == ("2 train texts that stand in the test split were dropped",)
    assert labelled_texts(dropped, "train", "validation") == sorted(rows_of(20))
    assert dropped.prior_counts == {"cats": 21, "dogs": 21}


def test_conflicting_duplicates_are_warned_about(tmp_path):
    write_jsonl(tmp_path / "d/test.jsonl", rows_of(5, tag="test"))
    train = [*rows_of(10), ("same", "cats"), ("same", "cats")]
    write_jsonl(tmp_path / "d/train.jsonl", train)
    assert ingest(_config(tmp_path / "d"), tmp_path / "a").warnings == ()
    write_jsonl(tmp_path / "d/train.jsonl", [*train, ("same ", "dogs")])
    warnings = ingest(_config(tmp_path / "d"), tmp_path / "b").warnings
    assert warnings == ("1 train texts occur more than once, with different labels",)


def test_fingerprints_name_what_changed(tmp_path):
    def prepared(name: str, train: list[tuple[str, str]]) -> Dataset:
        write_jsonl(tmp_path / name / "train.jsonl", train)
        write_jsonl(tmp_path / name / "test.jsonl", rows_of(5, tag="test"))
        return ingest(_config(tmp_path / name, validation_fraction=0), tmp_path / f"{name}-out")

    train = rows_of(5)
    one, two = prepared("one", train), prepared("two", [*train, ("another", "dogs")])
    assert one.splits["test"].fingerprint == two.splits["test"].fingerprint
    assert one.splits["train"].fingerprint != two.splits["train"].fingerprint
    before, after = (d.splits["train"].class_fingerprints for d in (one, two))
    assert before["cats"] == after["cats"]
    assert before["dogs"] != after["dogs"]


def test_ingesting_again_writes_nothing(tmp_path):
    path, out = write_csv(tmp_path / "d.csv", rows_of(10)), tmp_path / "out"

    def state() -> list[tuple[str, int]]:
        return [(file.name, file.stat().st_ino) for file in sorted(out.iterdir())]

    first = ingest(_config(path), out)
    before = state()
    again = ingest(_config(path), out)
    assert again == first == Dataset.open(out)
    assert state() == before
    other = ingest(_config(path, split_seed=3), out)
    assert other.fingerprint != first.fingerprint
    assert ingest(_config(path), out).fingerprint == first.fingerprint
    (out / "train.parquet").unlink()
    ingest(_config(path), out)
    assert (out / "train.parquet").is_file()
    assert sorted(p.name for p in tmp_path.iterdir()) == ["d.csv", "out"]


def test_a_foreign_destination_is_refused(tmp_path):
    path, out = write_csv(tmp_path / "d.csv", rows_of(10)), tmp_path / "out"
    out.mkdir()
    ingest(_config(path), out)
    thesis = write_jsonl(tmp_path / "mine/thesis.jsonl", rows_of(1))
    with pytest.raises(UsageError, match="choose another folder"):
        ingest(_config(path), thesis.parent)
    assert thesis.is_file()


def test_files_are_as_the_contract_says(tmp_path):
    rows = rows_of(1600)
    dataset = ingest(_config(write_jsonl(tmp_path / "d.jsonl", rows)), tmp_path / "out")
    with pq.ParquetFile(dataset.split_path("train")) as parquet:
        assert parquet.schema_arrow.equals(EXAMPLE_SCHEMA)
        groups = parquet.metadata
        assert groups.row_group(0).num_rows == ROW_GROUP_ROWS
        assert groups.row_group(0).column(1).compression == "ZSTD"
    assert dataset.splits["train"].longest_text_bytes == len("text 1599 about cats")
    assert dataset.read("train", 1020, 1030).num_rows == 10
    values = json.loads((tmp_path / "out/dataset.json").read_text())
    assert values["fingerprint"] == dataset.fingerprint


def test_a_source_that_changes_meanwhile_is_noticed(tmp_path, monkeypatch):
    from gencls_core.datasets import ingest as ingest_function
    from gencls_core.datasets import writing

    path = write_jsonl(tmp_path / "d.jsonl", rows_of(10))
    module = sys.modules["gencls_core.datasets.ingest"]

    def write_later(*arguments: object, **options: object) -> object:
        write_jsonl(path, [*rows_of(9), ("changed", "cats"), ("also", "dogs")])
        return writing.write_splits(*arguments, **options)  # type: ignore[arg-type]

    monkeypatch.setattr(module, "write_splits", write_later)
    with pytest.raises(DataError, match="changed while it was read"):
        ingest_function(_config(path), tmp_path / "out")
    assert sorted(p.name for p in tmp_path.iterdir()) == ["d.jsonl"]


# Not `getrusage`: its peak starts at the parent's, which hides the growth behind a large pytest.
_MEASURE = """
import sys
from pathlib import Path
from gencls_core.config import DataConfig
from gencls_core.datasets import ingest

def peak_mib():
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith("VmHWM")) / 1024

folder = Path(sys.argv[1])
ingest(DataConfig(data=str(folder / "small.jsonl")), folder / "small")
before = peak_mib()
dataset = ingest(DataConfig(data=str(folder / ("large." + sys.argv[2]))), folder / "out")
print(sum(info.rows for info in dataset.splits.values()), peak_mib() - before)
"""


@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="reads Linux's /proc")
# The Parquet reader has a larger fixed cost: 49 MiB for this file, 57 for one four times as large.
@pytest.mark.parametrize(("suffix", "most_mib"), [("jsonl", 40), ("csv", 40), ("parquet", 60)])
def test_memory_does_not_grow_with_the_file(tmp_path, suffix, most_mib):
    write_jsonl(tmp_path / "small.jsonl", rows_of(10))
    # Random digits: words would compress a Parquet file to nothing.
    generator = random.Random(0)
    rows = [(f"{n} {generator.randbytes(900).hex()}", ("a", "b")[n % 2]) for n in range(32_000)]
    path = tmp_path / f"large.{suffix}"
    if suffix == "parquet":
        columns = {"text": [text for text, _ in rows], "label": [label for _, label in rows]}
        pq.write_table(pa.table(columns), path)
    else:
        (write_csv if suffix == "csv" else write_jsonl)(path, rows)
    assert path.stat().st_size > 55e6
    done = subprocess.run(
        [sys.executable, "-c", _MEASURE, str(tmp_path), suffix],
        capture_output=True,
        text=True,
        check=True,
        cwd=Path(__file__).parent.parent,
    )
    count, grown_mib = done.stdout.split()
    assert int(count) == 32_000
    assert float(grown_mib) < most_mib
