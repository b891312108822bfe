"""Each source gives the same dataset for the same texts."""

from __future__ import annotations

import json
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from dataset_files import (
    contents,
    labelled_texts,
    rows_of,
    write_csv,
    write_jsonl,
    write_per_class,
)

from gencls_core.config import DataConfig
from gencls_core.datasets import Dataset, export_per_class_json, ingest, open_source
from gencls_core.datasets.demo import demo_folder
from gencls_core.errors import DataError, UsageError

CLASSES = ("cats", "dogs")
TRAIN = rows_of(20, tag="train")
TEST = rows_of(5, tag="test")


def _csv_folder(folder: Path) -> Path:
    write_csv(folder / "train.csv", TRAIN)
    write_csv(folder / "test.csv", TEST)
    return folder


def _tsv_folder(folder: Path) -> Path:
    write_csv(folder / "train.tsv", TRAIN)
    write_csv(folder / "test.tsv", TEST)
    return folder


def _jsonl_folder(folder: Path) -> Path:
    write_jsonl(folder / "train.jsonl", TRAIN)
    write_jsonl(folder / "test.jsonl", TEST)
    return folder


def _json_list_folder(folder: Path) -> Path:
    folder.mkdir()
    for split, rows in (("train", TRAIN), ("test", TEST)):
        values = [{"text": text, "label": label, "length": 1.5} for text, label in rows]
        (folder / f"{split}.json").write_text(json.dumps(values, indent=1), encoding="utf-8")
    return folder


def _parquet_parts_folder(folder: Path) -> Path:
    for split, rows in (("train", TRAIN), ("test", TEST)):
        (folder / split).mkdir(parents=True)
        for part, piece in enumerate((rows[:7], rows[7:])):
            table = pa.table({"text": [t for t, _ in piece], "label": [k for _, k in piece]})
            pq.write_table(table, folder / split / f"part-{part}.parquet")
    return folder


def _named_parts_folder(folder: Path) -> Path:
    write_jsonl(folder / "train-00000-of-00002.jsonl", TRAIN[:9])
    write_jsonl(folder / "train-00001-of-00002.jsonl", TRAIN[9:])
    write_jsonl(folder / "test.jsonl", TEST)
    return folder


@pytest.mark.parametrize(
    "make",
    [
        _csv_folder,
        _tsv_folder,
        _jsonl_folder,
        _json_list_folder,
        _parquet_parts_folder,
        _named_parts_folder,
    ],
)
def test_every_table_format_gives_the_same_dataset(tmp_path, make):
    expected = ingest(DataConfig(data_dir=_csv_folder(tmp_path / "expected")), tmp_path / "a")
    found = ingest(DataConfig(data_dir=make(tmp_path / "data")), tmp_path / "b")
    assert found.fingerprint == expected.fingerprint
    assert found.classes == CLASSES
    assert found.prior_counts == {"cats": 20, "dogs": 20}
    assert {name: info.rows for name, info in found.splits.items()} == {
        "train": 36,
        "validation": 4,
        "test": 10,
    }
    assert contents(found, "test") == [(f"test-{n}", t, k) for n, (t, k) in enumerate(TEST)]
    moved = {example_id for example_id, _, _ in contents(found, "validation")}
    assert moved == {f"train-{n}" for n in range(40)} - {i for i, *_ in contents(found, "train")}


def test_per_class_json_and_text_folder_hold_the_same_texts(tmp_path):
    per_class = write_per_class(tmp_path / "json", TRAIN, TEST, CLASSES)
    for split, rows in (("train", TRAIN), ("test", TEST)):
        for number, (text, label) in enumerate(rows):
            path = tmp_path / "txt" / split / label / f"{number:03}.txt"
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(text + "\n", encoding="utf-8")
    (tmp_path / "txt/train/unsup").mkdir()
    (tmp_path / "txt/train/unsup/0.txt").write_text("no label", encoding="utf-8")
    (tmp_path / "txt/train/urls_pos.txt").write_text("http://…", encoding="utf-8")
    one = ingest(DataConfig(data_dir=per_class), tmp_path / "a")
    two = ingest(DataConfig(data=str(tmp_path / "txt")), tmp_path / "b")
    assert one.name == "pets"
    assert one.classes == two.classes == CLASSES
    for splits in (("train", "validation"), ("test",)):
        assert labelled_texts(one, *splits) == labelled_texts(two, *splits)
    assert labelled_texts(one, "test") == sorted(TEST)
    assert two.warnings == ("left out, not in a class: train/urls_pos.txt, train/unsup/",)


def test_per_class_json_takes_class_names_as_labels(tmp_path):
    folder = write_per_class(tmp_path / "data", TRAIN, TEST, CLASSES)
    value = json.loads((folder / "test.json").read_text())
    value["labels"] = [CLASSES[label] for label in value["labels"]]
    (folder / "test.json").write_text(json.dumps(value))
    dataset = ingest(DataConfig(data_dir=folder), tmp_path / "out")
    assert labelled_texts(dataset, "test") == sorted(TEST)


def test_text_folder_without_splits_is_cut(tmp_path):
    for number, (text, label) in enumerate(rows_of(10)):
        path = tmp_path / "data" / label / f"{number}.txt"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(f"{text}\r\nsecond line\r\n".encode("utf-8-sig"))
    dataset = ingest(DataConfig(data_dir=tmp_path / "data"), tmp_path / "out")
    assert {name: info.rows for name, info in dataset.splits.items()} == {
        "train": 14,
        "validation": 2,
        "test": 4,
    }
    text = contents(dataset, "train")[0][1]
    assert text.startswith("text ")
    assert text.endswith(" about cats\nsecond line")


def test_csv_quoting_unicode_byte_order_mark_and_crlf(tmp_path):
    path = tmp_path / "data.csv"
    texts = ["line one\r\nline two", 'a "quoted", word', "żółw 🐢 亀", "  kept spaces  "]
    rows = [(texts[n % 4] + f" {n}", ("a", "b")[n % 2]) for n in range(8)]
    write_csv(path, [("", *row) for row in rows], header="n,text,label")
    path.write_bytes(b"\xef\xbb\xbf" + path.read_bytes().replace(b"n,text", b"text2,text"))
    dataset = ingest(DataConfig(data=str(path)), tmp_path / "out")
    assert labelled_texts(dataset, "train", "validation", "test") == sorted(rows)


def test_encodings(tmp_path):
    path = tmp_path / "data.jsonl"
    for encoding in ("utf-8-sig", "latin-1", "utf-16"):
        lines = [json.dumps({"text": t + " é", "label": k}, ensure_ascii=False) for t, k in TRAIN]
        path.write_bytes("\r\n".join(lines).encode(encoding))
        config = DataConfig(data=str(path), encoding=encoding.removesuffix("-sig"))
        dataset = ingest(config, tmp_path / encoding)
        assert sorted(t for t, _ in TRAIN) == sorted(
            text.removesuffix(" é") for text, _ in labelled_texts(dataset, *dataset.splits)
        )


def test_labels_by_number_and_name(tmp_path):
    numbers = [(text, CLASSES.index(label)) for text, label in TRAIN]
    config = DataConfig(data=str(write_jsonl(tmp_path / "n.jsonl", numbers)))
    plain = ingest(config, tmp_path / "plain")
    assert plain.classes == ("0", "1")
    declared = ingest(config.model_copy(update={"classes": CLASSES}), tmp_path / "declared")
    assert declared.classes == CLASSES
    every = ("train", "validation", "test")
    assert labelled_texts(declared, *every) == sorted(TRAIN)
    in_csv = DataConfig(data=str(write_csv(tmp_path / "n.csv", numbers)), classes=CLASSES)
    assert labelled_texts(ingest(in_csv, tmp_path / "csv"), *every) == sorted(TRAIN)
    floats = DataConfig(
        data=str(write_jsonl(tmp_path / "f.jsonl", [(t, float(k)) for t, k in numbers]))
    )
    assert ingest(floats, tmp_path / "floats").classes == ("0", "1")


def test_integer_classes_sort_as_numbers_and_names_win(tmp_path):
    rows = [(f"text {n} {k}", k) for n in range(4) for k in (10, 9, 2)]
    config = DataConfig(data=str(write_jsonl(tmp_path / "n.jsonl", rows)))
    assert ingest(config, tmp_path / "a").classes == ("2", "9", "10")
    declared = config.model_copy(update={"classes": ("10", "9", "2")})
    dataset = ingest(declared, tmp_path / "b")
    assert dataset.classes == ("10", "9", "2")
    assert all(text.endswith(f" {k}") for text, k in labelled_texts(dataset, "train"))


def test_user_ids_are_kept(tmp_path):
    rows = [(*row, f"id/{n}") for n, row in enumerate(TRAIN)]
    path = write_csv(tmp_path / "d.csv", rows, header="review,stars,key")
    config = DataConfig(data=str(path), text_column="review", label_column="stars", id_column="key")
    dataset = ingest(config, tmp_path / "out")
    every = [row for split in dataset.splits for row in contents(dataset, split)]
    assert sorted(every) == sorted((key, text, label) for text, label, key in rows)


def test_prepared_dataset_is_a_source(tmp_path):
    path = write_csv(tmp_path / "d.csv", rows_of(30))
    first = ingest(DataConfig(data=str(path), max_samples=20), tmp_path / "first")
    assert first.prior_counts == {"cats": 24, "dogs": 24}
    second = ingest(DataConfig(data_dir=tmp_path / "first"), tmp_path / "second")
    assert second.fingerprint == first.fingerprint
    assert second.splits == first.splits
    assert second.prior_counts == first.prior_counts
    assert second.name == first.name
    test = ingest(DataConfig(data_dir=tmp_path / "first"), tmp_path / "test", splits=("test",))
    assert test.splits == {"test": first.splits["test"]}
    no_validation = DataConfig(data=str(path), validation_fraction=0)
    ingest(no_validation, tmp_path / "third")
    kept = ingest(DataConfig(data_dir=tmp_path / "third"), tmp_path / "fourth")
    assert set(kept.splits) == {"train", "test"}


def test_export_round_trip(tmp_path):
    texts = [('new\nline\u2028 "quote" 🐢 \\ é', "cats"), *TRAIN]
    write_jsonl(tmp_path / "in/train.jsonl", texts)
    write_jsonl(tmp_path / "in/test.jsonl", TEST)
    first = ingest(DataConfig(data_dir=tmp_path / "in"), tmp_path / "a")
    export_per_class_json(first, tmp_path / "out")
    names = sorted(path.name for path in (tmp_path / "out").iterdir())
    assert names == [
        "metadata.json",
        "test.json",
        "train_class_0.json",
        "train_class_1.json",
        "validation.json",
    ]
    metadata = json.loads((tmp_path / "out/metadata.json").read_text())
    assert metadata["class_names"] == ["cats", "dogs"]
    assert metadata["splits"] == {
        "train": first.splits["train"].class_counts,
        "validation": 4,
        "test": 10,
    }
    second = ingest(DataConfig(data_dir=tmp_path / "out"), tmp_path / "b")
    for split in ("train", "validation", "test"):
        assert labelled_texts(second, split) == labelled_texts(first, split)
    export_per_class_json(second, tmp_path / "out")
    with pytest.raises(UsageError, match="not an exported dataset"):
        export_per_class_json(second, tmp_path / "in")


def test_demo_is_a_table_folder():
    config = DataConfig(data="demo")
    if not (demo_folder() / "train.jsonl").is_file():
        pytest.skip("the demo's data files are not written yet")
    source = open_source(config)
    assert source.name == "town-desk"
    assert source.splits == ("train", "test")


def test_nothing_or_both_given():
    with pytest.raises(UsageError, match="--data demo"):
        open_source(DataConfig())
    with pytest.raises(UsageError, match="not both"):
        open_source(DataConfig(data="x.csv", data_dir=Path("x")))


def test_texts_to_classify_need_no_label(tmp_path):
    (tmp_path / "lines.txt").write_bytes("one\r\ntwo é\nthree".encode())
    dataset = ingest(DataConfig(data=str(tmp_path / "lines.txt")), tmp_path / "a", labelled=False)
    assert contents(dataset, "test") == [
        ("test-0", "one", None),
        ("test-1", "two é", None),
        ("test-2", "three", None),
    ]
    assert set(dataset.splits) == {"test"}
    path = write_csv(tmp_path / "d.csv", [["only text"]], header="text")
    config = DataConfig(data=str(path), classes=CLASSES)
    dataset = ingest(config, tmp_path / "b", labelled=False)
    assert contents(dataset, "test") == [("test-0", "only text", None)]
    assert dataset.classes == CLASSES
    with pytest.raises(DataError, match="no labelled texts"):
        ingest(DataConfig(data=str(tmp_path / "lines.txt")), tmp_path / "c")
    assert Dataset.open(tmp_path / "b").splits["test"].rows == 1
