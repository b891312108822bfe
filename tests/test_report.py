"""The report of a made-up run: complete, reproducible, and safe against what texts hold."""

from __future__ import annotations

import base64
import hashlib
import json
import re
from pathlib import Path

import numpy as np
import pyarrow.csv
import pyarrow.parquet as pq
import pytest
from page_fixtures import parsed
from report_fixtures import CLASSES, make_run, write_scores

from gencls_core.errors import DataError, GenclsError, StoreError, UsageError
from gencls_core.metrics import evaluate
from gencls_core.query import run_query
from gencls_core.report.build import build_report
from gencls_core.report.inference import infer
from gencls_core.report.predictions import predict, write_predictions
from gencls_core.report.schema import Report
from gencls_core.report.schema_docs import schema_markdown
from gencls_core.run import RunDirectory
from gencls_core.scores import ShardKey
from gencls_core.storage import file_sha256


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> RunDirectory:
    run = make_run(tmp_path_factory.mktemp("report") / "run", unlabelled=4)
    build_report(run)
    return run


def read(run: RunDirectory, name: str) -> str:
    return (run.report_path / name).read_text(encoding="utf-8")


def test_every_file_is_there(run: RunDirectory) -> None:
    found = sorted(path.name for path in run.report_path.iterdir())
    assert found == ["predictions.parquet", "report.html", "report.json", "report.md"]


def test_json_says_what_it_promises(run: RunDirectory) -> None:
    report = Report.model_validate_json(read(run, "report.json"))
    assert report.classes == list(CLASSES)
    assert (report.num_examples, report.num_unlabelled) == (240, 4)
    assert sum(map(sum, report.confusion.uncalibrated)) == 236
    for figure in ("accuracy", "accuracy_ci95", "confusion", "per_class", "reliability", "nll"):
        values = json.loads(read(run, "report.json"))[figure]
        assert set(values) == {"uncalibrated", "calibrated"}
        assert values["calibrated"] is not None
    assert set(report.baselines) == {"tfidf", "majority"}
    counts = {name: of.support for name, of in report.per_class.uncalibrated.items()}
    train = report.dataset.counts["train"]
    assert report.baselines["majority"].accuracy == counts[max(train, key=train.__getitem__)] / 236
    assert report.likelihood_check is not None
    assert report.likelihood_check.max_abs_difference == pytest.approx(1e-4)
    assert report.likelihood_check.argmax_disagreements == 0
    assert (report.truncated, report.windowed) == (6, 6)
    assert report.timing.scoring_seconds == 75.0
    training = report.tasks["01"].training
    assert training is not None
    assert len(training.history) == 4
    assert any("bf16" in note for note in report.notes)
    assert report.calibration is not None
    assert report.calibration.nll_after < report.calibration.nll_before


def test_majority_labels_every_text_with_the_largest_class(run: RunDirectory) -> None:
    report, matrix = Report.model_validate_json(read(run, "report.json")), infer(run).matrix
    train = report.dataset.counts["train"]
    certain = [0.0 if name == max(train, key=train.__getitem__) else -np.inf for name in CLASSES]
    expected = evaluate(np.tile(certain, (len(matrix), 1)), matrix.label_codes, CLASSES)
    found = report.baselines["majority"]
    for figure in ("accuracy", "accuracy_ci95", "macro_f1"):
        assert getattr(found, figure) == getattr(expected, figure)
    assert found.num_examples == expected.num_labelled


def test_predictions(run: RunDirectory) -> None:
    table = pq.read_table(run.predictions_path)
    assert table.column_names == [
        "example_id",
        "label",
        "answer",
        "predicted",
        "probability",
        "margin",
        "calibrated_predicted",
        "calibrated_probability",
        "num_tokens",
        "truncated",
        "num_windows",
        "decided",
        "expected_cost",
        "reason",
    ]
    rows = table.to_pylist()
    report = Report.model_validate_json(read(run, "report.json"))
    for column, accuracy in (
        ("predicted", report.accuracy.uncalibrated),
        ("calibrated_predicted", report.accuracy.calibrated),
    ):
        right = sum(row[column] == row["label"] for row in rows)
        assert right / 236 == accuracy
    assert min(row["margin"] for row in rows) >= 0
    assert rows[0]["label"] is None


def test_rebuilt_from_files_byte_for_byte(run: RunDirectory) -> None:
    def snapshot() -> dict[str, object]:
        stamp = json.loads(read(run, "report.json"))["generated"]
        texts = {
            name: read(run, name).replace(stamp, "")
            for name in ("report.json", "report.md", "report.html")
        }
        return {**texts, "predictions": file_sha256(run.predictions_path)}

    before = snapshot()
    build_report(run)
    assert snapshot() == before


def test_another_prior_changes_no_score(tmp_path: Path) -> None:
    run = make_run(tmp_path / "run")

    def scores() -> dict[Path, tuple[str, int]]:
        files = [p for p in run.path.rglob("*scores/**/*") if p.is_file()]
        return {path: (file_sha256(path), path.stat().st_mtime_ns) for path in files}

    plain, files = build_report(run), scores()
    tilted = build_report(run, prior="Sci/Tech=0.98,01=0.01,a&b <x>=0.01")
    assert scores() == files
    assert tilted.score_digest == plain.score_digest
    assert tilted.prior.per_class["Sci/Tech"] == 0.98
    for figure in ("uncalibrated", "calibrated"):

        def labelled(report: Report, figure: str = figure) -> int:
            return sum(row[0] for row in getattr(report.confusion, figure))

        # The calibration is fitted beside the class frequencies of its own texts, so that a prior
        # that is put in later is not taken out again by the biases.
        assert labelled(tilted) > labelled(plain)
    assert tilted.calibration == plain.calibration
    with pytest.raises(UsageError):
        build_report(run, prior="Sci/Tech=1")


def test_page_escapes_what_texts_and_names_hold(run: RunDirectory) -> None:
    html = read(run, "report.html")
    page = parsed(html)
    assert not {"img", "x", "demo", "iframe", "link"} & set(page.tags)
    # Our data and our script, and no other runs.
    assert page.tags.count("script") == html.count("<script") == 2
    [digest] = re.findall(r"script-src 'sha256-([^']+)'\"", html)
    [script] = re.findall(r"<script>(.*?)</script>", html, flags=re.DOTALL)
    assert base64.b64encode(hashlib.sha256(script.encode()).digest()).decode() == digest
    shown = "".join(page.shown)
    assert '<script>alert("x")</script> & <img src=http://evil.example/a.png>' in shown
    assert "a&b <x>" in shown
    assert "news <demo>" in shown


def test_page_loads_nothing(run: RunDirectory) -> None:
    html = read(run, "report.html")
    page = parsed(html)
    assert page.loads
    assert all(target.startswith("#") for target in page.loads)
    assert all(inner.startswith("#") for inner in re.findall(r"url\(([^)]*)", html))
    assert "@import" not in html
    targets = {target[1:] for target in page.loads}
    assert targets <= set(page.ids)
    assert len(page.ids) == len(set(page.ids))
    assert "xmlns" not in html
    assert len(html) < 1_500_000


def test_page_is_accessible(run: RunDirectory) -> None:
    html = read(run, "report.html")
    assert '<html lang="en">' in html
    assert html.count("<h1") == 1
    assert html.count("<table") == html.count("<caption")
    assert "<th>" not in html
    assert html.count("<svg") == html.count("aria-label=", html.index("<main")) - html.count(
        'class="scroll"'
    )
    assert not re.search(r"#0a0b0\d", html), "a stand-in colour was left"


def test_markdown_keeps_its_tables(run: RunDirectory) -> None:
    text = read(run, "report.md")
    assert "a&b \\<x\\>" in text
    for block in re.findall(r"(?:^\|.*\|\n)+", text, flags=re.MULTILINE):
        assert len({line.count("|") for line in block.splitlines()}) == 1


@pytest.mark.parametrize("drawn", [False, True])
@pytest.mark.parametrize("answer", ["uncalibrated", "calibrated"])
def test_what_is_counted_is_the_answer(
    tmp_path: Path, answer: str, drawn: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("gencls_core.report.html._TABLE_CLASSES", 2 if drawn else 3)
    classes = ("one", "two", "three")
    run = make_run(tmp_path / "run", classes=classes)
    held_out = pq.read_table(run.dataset_path / "validation.parquet")
    random = np.random.default_rng(8)
    write_scores(random, run.validation_scores, classes, held_out, system="tfidf")
    report = build_report(run, ensemble="tfidf" if answer == "calibrated" else "none")
    assert report.answer == answer
    confusion = getattr(report.confusion, answer)
    assert report.confusion.calibrated != report.confusion.uncalibrated
    wrong = sum(map(sum, confusion)) - sum(confusion[c][c] for c in range(3))
    page, markdown = " ".join(read(run, "report.html").split()), read(run, "report.md")
    assert f"labelled as, by the {answer} answer." in page
    assert f"of {wrong} texts labelled wrongly" in page
    assert f"wrong: {wrong}<" in page  # of the bars
    if not drawn:
        cells = re.findall(r'<td class="[do]" [^>]*>(\d+)</td>', page)
        assert list(map(int, cells)) == [cell for row in confusion for cell in row]
    else:
        [first] = re.findall(r"The largest confusions.*?<tbody>.*?<td>(\d+)</td></tr>", page)
        assert int(first) == max(
            cell for r, row in enumerate(confusion) for cell in row[:r] + row[r + 1 :]
        )
    assert f"the predicted ones, by the {answer} answer." in markdown
    for name, row in zip(classes, confusion, strict=True):
        assert f"| **{name}** | {' | '.join(map(str, row))} |" in markdown
        of = getattr(report.per_class, answer)[name]
        figures = f"| {of.support} | {of.precision:.3f} | {of.recall:.3f} |"
        assert f"| {name} {figures}" in markdown
        assert f"<td>{of.precision:.3f}</td><td>{of.recall:.3f}</td>" in page
    # The same list without the script: the surest mistakes first.
    [hint] = re.findall(r'gencls query RUN "(.*?)"', page)
    column = "calibrated_probability" if answer == "calibrated" else "margin"
    sure = run_query(run, hint)[column].to_pylist()
    assert len(sure) == min(20, wrong)
    assert sure == sorted(sure, reverse=True)


def test_without_validation_scores(tmp_path: Path) -> None:
    run = make_run(tmp_path / "run", validation_rows=0, baseline=False)
    report = build_report(run)
    assert report.calibration is None
    assert report.accuracy.calibrated is None
    assert any("Calibrated figures are not available" in note for note in report.notes)
    assert set(report.baselines) == {"majority"}
    table = pq.read_table(run.predictions_path)
    assert table.column("calibrated_predicted").null_count == table.num_rows


def test_torn_validation_scores_do_not_take_the_result_away(tmp_path: Path) -> None:
    run = make_run(tmp_path / "run")
    run.validation_scores.shard_path(ShardKey("class-lm", "01", 1, 2)).unlink()
    report = build_report(run)
    assert report.calibration is None
    assert any("not whole" in note for note in report.notes)


def test_torn_test_scores_are_refused(tmp_path: Path) -> None:
    run = make_run(tmp_path / "run")
    run.scores.shard_path(ShardKey("class-lm", "01", 0, 2)).unlink()
    with pytest.raises(StoreError, match="'01'"):
        build_report(run)
    assert not run.report_path.exists()


def test_a_page_that_cannot_be_made_leaves_the_report_as_it_was(tmp_path: Path) -> None:
    run = make_run(tmp_path / "run")
    build_report(run)
    before = {path.name: path.read_bytes() for path in run.report_path.iterdir()}
    (run.dataset_path / "test.parquet").unlink()
    with pytest.raises((GenclsError, OSError)):
        build_report(run, prior="uniform")
    assert {path.name: path.read_bytes() for path in run.report_path.iterdir()} == before


def test_unfinished_baseline_is_left_out(tmp_path: Path) -> None:
    run = make_run(tmp_path / "run")
    run.scores.shard_path(ShardKey("tfidf", "01", 0, 2)).unlink()
    report = build_report(run)
    assert set(report.baselines) == {"majority"}
    assert any("tfidf is left out" in note for note in report.notes)


def test_another_system(tmp_path: Path) -> None:
    run = make_run(tmp_path / "run")
    plain = build_report(run)
    report = build_report(run, system="tfidf")
    assert report.quantity == "log_posterior"
    assert report.accuracy.uncalibrated == plain.baselines["tfidf"].accuracy
    assert report.baselines["class-lm"].accuracy == plain.accuracy.uncalibrated
    assert set(report.perplexity.values()) == {None}


def test_unlabelled_texts_can_be_predicted_not_reported(tmp_path: Path) -> None:
    run = make_run(tmp_path / "run", test_rows=30, unlabelled=30)
    with pytest.raises(DataError, match="no test text has a label"):
        build_report(run)
    inference = infer(run)
    write_predictions(inference, tmp_path / "p.csv")
    assert pyarrow.csv.read_csv(tmp_path / "p.csv").num_rows == 30
    write_predictions(inference, tmp_path / "p.jsonl")
    lines = (tmp_path / "p.jsonl").read_text(encoding="utf-8").splitlines()
    assert json.loads(lines[0])["predicted"] in CLASSES
    with pytest.raises(UsageError, match="suffix"):
        write_predictions(inference, tmp_path / "p.xlsx")


@pytest.mark.parametrize("suffix", [".parquet", ".csv", ".jsonl"])
@pytest.mark.parametrize("likelihood", ["exact", "loss"])
def test_predictions_shard_by_shard_are_the_same(
    tmp_path: Path, suffix: str, likelihood: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = make_run(tmp_path / "run", test_rows=50, unlabelled=3)
    values = run.manifest()
    values["config"]["scoring"]["likelihood"] = likelihood
    run.write_manifest(values)
    whole, parts = tmp_path / f"whole{suffix}", tmp_path / f"parts{suffix}"
    assert write_predictions(infer(run), whole) == 50
    monkeypatch.setattr("gencls_core.report.predictions._GROUP_ROWS", 20)
    assert predict(run, parts) == 50
    if suffix == ".parquet":
        assert pq.read_table(parts).equals(pq.read_table(whole))
        assert pq.ParquetFile(parts).num_row_groups > 1
    else:
        assert parts.read_bytes() == whole.read_bytes()


def test_nothing_is_published_when_a_range_is_torn(tmp_path: Path) -> None:
    run = make_run(tmp_path / "run")
    path = run.scores.shard_path(ShardKey("class-lm", "01", 1, 2))
    path.write_bytes(b"x" * path.stat().st_size)
    with pytest.raises(StoreError, match="cannot read a committed score shard"):
        predict(run, tmp_path / "p.parquet")
    assert [found.name for found in tmp_path.iterdir()] == ["run"]


def test_evaluation_takes_models_and_calibration_from_its_run(tmp_path: Path) -> None:
    origin = make_run(tmp_path / "run")
    evaluation = make_run(tmp_path / "other", validation_rows=0, seed=5)
    for name in CLASSES:
        (evaluation.model_path(name) / "committed.json").unlink()
    report = build_report(evaluation, models_of=origin)
    assert report.calibration == build_report(origin).calibration
    assert report.tasks["01"].training is not None
    values = evaluation.manifest()
    evaluation.write_manifest({**values, "calibration_run": "../run"})
    assert build_report(evaluation).calibration == report.calibration


def test_many_classes_with_odd_names(tmp_path: Path) -> None:
    classes = tuple(f"$x_{{{number}}}$ 漢 | {number}" for number in range(17))
    run = make_run(tmp_path / "run", classes=classes, validation_rows=5)
    report = build_report(run)
    assert any("nothing to go by for them" in note for note in report.notes)
    html = read(run, "report.html")
    assert "The largest confusions" in html
    # One cell, not two: the name's own bar is escaped.
    assert "漢 \\| 0" in read(run, "report.md")


def test_schema_document_is_current() -> None:
    document = Path(__file__).parent.parent / "docs" / "report-schema.md"
    assert document.read_text(encoding="utf-8") == schema_markdown(), (
        "write it anew: python -m gencls_core.report.schema_docs docs/report-schema.md"
    )
