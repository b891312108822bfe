"""Every bad input names its file and line and the remedy, and leaves nothing behind."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from dataset_files import rows_of, write_csv, write_jsonl, write_per_class

from gencls_core.config import DataConfig
from gencls_core.datasets import ingest
from gencls_core.errors import DataError, GenclsError

CLASSES = ("cats", "dogs")
ROWS = rows_of(10)
TEST = rows_of(3, tag="test")


def _refused(tmp_path: Path, path: Path, *parts: str, **options: object) -> str:
    """Ingest, expect a DataError with all `parts`, and nothing left behind."""
    before = sorted(tmp_path.rglob("*"))
    labelled = bool(options.pop("labelled", True))
    with pytest.raises(DataError) as caught:
        ingest(
            DataConfig(data=str(path), **options),  # type: ignore[arg-type]
            tmp_path / "out",
            labelled=labelled,
        )
    message = str(caught.value)
    for part in parts:
        assert part in message, message
    assert sorted(tmp_path.rglob("*")) == before
    assert not (tmp_path / "out").exists()
    return message


def _lines(path: Path, change: Callable[[list[bytes]], None]) -> Path:
    lines = path.read_bytes().splitlines(keepends=True)
    change(lines)
    path.write_bytes(b"".join(lines))
    return path


def _set(number: int, content: bytes) -> Callable[[list[bytes]], None]:
    def change(lines: list[bytes]) -> None:
        lines[number - 1] = content

    return change


def test_missing_file_and_folder(tmp_path):
    write_csv(tmp_path / "reviews.csv", ROWS)
    _refused(tmp_path, tmp_path / "review.csv", "no such file", "did you mean `reviews.csv`?")
    _refused(tmp_path, tmp_path / "no" / "where.csv", "no such file", "does not exist either")
    with pytest.raises(DataError, match="no such file or folder"):
        ingest(DataConfig(data_dir=tmp_path / "nowhere"), tmp_path / "out")


def test_folder_without_a_dataset(tmp_path):
    (tmp_path / "d").mkdir()
    _refused(tmp_path, tmp_path / "d", "an empty folder", "train_class_N.json")
    (tmp_path / "d/notes.md").write_text("x")
    _refused(tmp_path, tmp_path / "d", "notes.md", "train.csv")
    write_csv(tmp_path / "d/a.csv", ROWS)
    write_csv(tmp_path / "d/b.csv", ROWS)
    _refused(tmp_path, tmp_path / "d", "a.csv, b.csv", "`--data`")
    write_csv(tmp_path / "d/train.csv", ROWS)
    write_jsonl(tmp_path / "d/train.jsonl", ROWS)
    _refused(tmp_path, tmp_path / "d", "more than one form of the train split", "train.jsonl")
    _refused(tmp_path, tmp_path / "d/notes.md", "unknown kind of file", ".parquet")


def test_wrong_column(tmp_path):
    path = write_csv(tmp_path / "d.csv", ROWS, header="Text,label")
    _refused(
        tmp_path, path, f"{path}:1: no column `text`", "`Text`, `label`", "did you mean `Text`"
    )
    path = write_jsonl(tmp_path / "d.jsonl", ROWS)
    message = _refused(tmp_path, path, f"{path}:1: no column `labels`", label_column="labels")
    assert "did you mean `label`? name the column with `--label-column`" in message
    path = tmp_path / "d.parquet"
    pq.write_table(pa.table({"review": ["x"], "label": ["y"]}), path)
    _refused(tmp_path, path, "no column `text`", "`review`", "`--text-column`")
    _refused(tmp_path, path, "asked for twice", text_column="label")


def test_broken_json_line(tmp_path):
    path = _lines(write_jsonl(tmp_path / "d.jsonl", ROWS), _set(4, b'{"text": "x", "label": \n'))
    _refused(tmp_path, path, f"{path}:4: broken JSON", "one JSON object", "mend this line")
    path = _lines(path, _set(4, b"[1]\n"))
    _refused(tmp_path, path, f"{path}:4: not a JSON object", "[1]")
    path = _lines(path, _set(4, b'{"text": 5, "label": "cats"}\n'))
    _refused(tmp_path, path, f"{path}:4: the text is not a string", "found: 5")
    path = _lines(path, _set(4, b'{"text": "a \\ud83d", "label": "cats"}\n'))
    _refused(tmp_path, path, f"{path}:4: the text is not valid Unicode")
    path = _lines(path, _set(4, b'{"text": "a", "label": ["cats", "dogs"]}\n'))
    _refused(tmp_path, path, f"{path}:4: the label is not one value")


def test_broken_json_list(tmp_path):
    path = tmp_path / "d.json"
    path.write_text(json.dumps([{"text": t, "label": k} for t, k in ROWS], indent=0))
    broken = path.read_text().splitlines(keepends=True)
    path.write_text("".join([*broken[:6], "oops", *broken[6:]]))
    _refused(tmp_path, path, f"{path}:7: broken JSON")
    path.write_text("".join(broken[:9]))
    _refused(tmp_path, path, f"{path}:9: broken JSON", "EOF")


def test_broken_csv(tmp_path):
    path = write_csv(tmp_path / "d.csv", [("two\nlines", "cats"), *ROWS])
    _lines(path, _set(4, b'"a "bad" quote,cats\r\n'))
    _refused(tmp_path, path, f"{path}:4: broken CSV", "double the quotes")
    _lines(path, _set(4, b'"never closed,cats\r\n'))
    _refused(tmp_path, path, f"{path}:4: broken CSV", "close or double the quotes")
    _lines(path, _set(4, b"one, two,cats\r\n"))
    _refused(tmp_path, path, f"{path}:4: the row does not fit", "3 fields", "2 fields", "quotes")


def test_wrong_encoding(tmp_path):
    path = _lines(write_csv(tmp_path / "d.csv", ROWS), _set(3, b"caf\xe9,cats\r\n"))
    offset = path.read_bytes().index(b"\xe9")
    _refused(tmp_path, path, f"{path}:3: ", "0xe9", f"byte {offset}", "--encoding latin-1")
    path = tmp_path / "d.jsonl"
    path.write_bytes(b'{"text": "a", "label": "b"}\n\n{"text": "\xe9", "label": "b"}\n')
    _refused(tmp_path, path, f"{path}:3: ", "0xe9", "--encoding latin-1")
    _refused(tmp_path, path, "unknown encoding", "utf-9", encoding="utf-9")
    lines = tmp_path / "lines.txt"
    lines.write_bytes(b"fine\n\xff\n")
    _refused(tmp_path, lines, f"{lines}:2: ", "--encoding", labelled=False)
    text = tmp_path / "txt" / "cats" / "0.txt"
    text.parent.mkdir(parents=True)
    text.write_bytes(b"fine\n\xff\n")
    _refused(tmp_path, tmp_path / "txt", f"{text}:2: ", "--encoding")


@pytest.mark.parametrize("text", ["", " \t\u00a0 "])
def test_empty_text(tmp_path, text):
    path = write_csv(tmp_path / "d.csv", [*ROWS, (text, "cats")])
    _refused(tmp_path, path, f"{path}:22: empty text", "remove the row")
    path = write_jsonl(tmp_path / "d.jsonl", [*ROWS, (text, "cats")])
    _refused(tmp_path, path, f"{path}:21: empty text")
    path = tmp_path / "d.parquet"
    pq.write_table(pa.table({"text": ["a", text or None], "label": ["y", "z"]}), path)
    _refused(tmp_path, path, f"{path}: row 1 (from 0): empty text")


def test_missing_label(tmp_path):
    path = write_csv(tmp_path / "d.csv", [*ROWS, ("text", " ")])
    _refused(tmp_path, path, f"{path}:22: no label", "label the row or remove it")
    path = _lines(write_jsonl(tmp_path / "d.jsonl", ROWS), _set(5, b'{"text": "no label"}\n'))
    _refused(tmp_path, path, f"{path}:5: no label")


def test_label_outside_the_classes(tmp_path):
    path = write_csv(tmp_path / "d.csv", [*ROWS, ("text", "catz")])
    message = _refused(tmp_path, path, f"{path}:22: label outside the classes", classes=CLASSES)
    assert "did you mean `cats`?" in message
    assert "`cats`, `dogs`, or 0 to 1" in message
    path = write_csv(tmp_path / "n.csv", [(text, 2) for text, _ in ROWS])
    _refused(tmp_path, path, f"{path}:2: label outside the classes", classes=CLASSES)
    write_csv(tmp_path / "d/train.csv", ROWS)
    path = write_csv(tmp_path / "d/test.csv", [*TEST, ("text", "birds")])
    _refused(tmp_path, path.parent, f"{path}:8: label outside", "add train texts of this class")


def test_class_without_train_texts(tmp_path):
    path = write_csv(tmp_path / "d.csv", ROWS)
    classes = (*CLASSES, "birds")
    _refused(tmp_path, path, "no train texts for `birds`", "add texts", classes=classes)
    write_csv(tmp_path / "d/train.csv", [("leak", "cats"), ("b", "dogs"), ("c", "dogs")])
    write_csv(tmp_path / "d/test.csv", [*TEST, ("leak", "cats")])
    _refused(tmp_path, tmp_path / "d", "`cats` after dropping leaks", drop_leaks=True)


def test_one_class_only(tmp_path):
    path = write_csv(tmp_path / "d.csv", [(text, "cats") for text, _ in ROWS])
    _refused(tmp_path, path, "at least two different classes", "`--label-column`")
    path = write_csv(tmp_path / "d/train.csv", ROWS)
    write_csv(tmp_path / "d/test.csv", [(text, "cats") for text, _ in TEST])
    _refused(tmp_path, tmp_path / "d", "one class only", "6 texts", "`cats`", "random sample")
    with pytest.raises(DataError, match="one class only"):
        ingest(
            DataConfig(data=str(tmp_path / "d"), classes=CLASSES),
            tmp_path / "out",
            splits=("test",),
        )


def test_too_many_labels_is_probably_the_wrong_column(tmp_path):
    path = write_csv(tmp_path / "d.csv", [(f"text {n}", f"label {n}") for n in range(1001)])
    _refused(tmp_path, path, f"{path}:1002: more than 1000", "`--label-column`")


def test_duplicate_ids_name_both_places(tmp_path):
    rows = [(text, label, f"id{n}") for n, (text, label) in enumerate(ROWS)]
    write_csv(tmp_path / "d/train.csv", rows, header="text,label,id")
    test = [(text, label, f"id{n + 17}") for n, (text, label) in enumerate(TEST)]
    write_csv(tmp_path / "d/test.csv", test, header="text,label,id")
    message = _refused(tmp_path, tmp_path / "d", "'id17' stands twice", id_column="id")
    assert f"{tmp_path / 'd/test.csv'}:2: " in message
    assert f"first at {tmp_path / 'd/train.csv'}:19" in message
    path = write_csv(tmp_path / "e.csv", [("a", "b", "x"), ("c", "d", "")], "text,label,id")
    _refused(tmp_path, path, f"{path}:3: no id in the column `id`", id_column="id")


def test_empty_split(tmp_path):
    path = write_csv(tmp_path / "d.csv", [])
    _refused(tmp_path, path, "no texts", str(path))
    write_csv(tmp_path / "d/train.csv", ROWS)
    write_csv(tmp_path / "d/test.csv", [])
    _refused(tmp_path, tmp_path / "d", "the test split is empty")
    (tmp_path / "d/train.csv").unlink()
    _refused(tmp_path, tmp_path / "d", "no train split", "found: test")
    (tmp_path / "d/test.csv").write_bytes(b"")
    (tmp_path / "d/train.csv").write_bytes(b"")
    _refused(tmp_path, tmp_path / "d", "no column `text`")


def test_torn_parquet(tmp_path):
    path = tmp_path / "d.parquet"
    pq.write_table(pa.table({"text": ["a"], "label": ["b"]}), path)
    path.write_bytes(path.read_bytes()[:-9])
    _refused(tmp_path, path, "not a whole Parquet file", "export the file again")


def _edited(folder: Path, name: str, **values: object) -> Path:
    path = folder / name
    path.write_text(json.dumps({**json.loads(path.read_text()), **values}, indent=0))
    return path


def test_per_class_json_errors(tmp_path):
    folder = write_per_class(tmp_path / "d", ROWS, TEST, CLASSES)
    test = _edited(folder, "test.json", labels=[0, 1, 0, 1, 0])
    _refused(tmp_path, folder, f"{test}:", "counts do not agree", "5 labels", "export")
    test = _edited(folder, "test.json", labels=[0, 1, 0, 1, 0, 1, 1])
    _refused(tmp_path, folder, f"{test}:", "6 texts and 7 labels")
    test = _edited(folder, "test.json", labels=[0, 1, 0, 1, 0, 7])
    _refused(tmp_path, folder, f"{test}:17: label outside the classes", "7 (label 5", "0 to 1")
    test = _edited(folder, "test.json", labels=[0, 1, 0, 1, 0, 1], num_examples=9)
    _refused(tmp_path, folder, f"{test}:", "`num_examples` 9")
    lines = test.read_text().splitlines()
    test.write_text("\n".join([*lines[:5], lines[5].rstrip(","), *lines[6:]]))
    _refused(tmp_path, folder, f"{test}:7: broken JSON")
    write_per_class(folder, ROWS, TEST, CLASSES)
    train = folder / "train_class_1.json"
    whole = train.read_bytes()
    train.write_bytes(whole.replace(b"text 3", b"caf\xe9"))
    line = train.read_bytes()[: train.read_bytes().index(b"\xe9")].count(b"\n") + 1
    _refused(tmp_path, folder, f"{train}:{line}: the text is not utf-8", "UTF-8")
    train.write_bytes(whole.replace(b'"dogs"', b'"cats"'))
    _refused(tmp_path, folder, f"{train}:3: `class_name` contradicts metadata.json", "'dogs'")
    train.unlink()
    _refused(tmp_path, folder, f"{train}: no train texts for class `dogs`")
    (folder / "metadata.json").write_text('{\n"dataset": "x",\n}')
    _refused(tmp_path, folder, f"{folder / 'metadata.json'}:3: broken JSON")
    (folder / "metadata.json").write_text('{"class_names": ["a", "b"], "num_classes": 3}')
    _refused(tmp_path, folder, "the classes are not clear")
    (folder / "metadata.json").unlink()
    _refused(tmp_path, folder, f"{folder / 'metadata.json'}: no such file", "class_names")


def test_every_error_is_one_of_ours(tmp_path):
    (tmp_path / "d.csv").mkdir()
    with pytest.raises(GenclsError):
        ingest(DataConfig(data=str(tmp_path / "d.csv")), tmp_path / "out")
