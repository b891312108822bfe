"""The measurement of docs/accuracy.md: its cells, a real one of light systems, and its tables."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from report_fixtures import make_run
from run_fixtures import CLASSES, make_data

from benchmarks.accuracy import BEGIN, DOCUMENT, RESULTS, main, render
from benchmarks.accuracy_cells import CELLS, Cell, figures_of
from benchmarks.table import read_results
from gencls_core.report.build import build_report
from gencls_core.storage import write_json
from gencls_core.systems.registry import check_names
from jobs.main import cli

FOUND = {
    "seeds": 1,
    "systems": {},
    "pairs": [],
    "command": "gencls run",
    "date": "2026-01-01",
    "machine": {"cpu": "c", "cores": 2, "memory_gb": 8, "versions": {}},
}
LIGHT = Cell("sst2", 6, 12, seeds=(0, 1), systems=("tfidf", "majority"))


def test_cells_are_commands_that_there_are():
    names = [cell.name for cell in CELLS]
    assert len(set(names)) == len(names)
    for cell in CELLS:
        check_names(cell.systems)
        arguments = cell.arguments(Path("data"), "m", "bf16", Path("out"))
        command = cli.get_command(None, arguments[0])
        command.make_context("gencls", arguments[1:])  # refuses flags that there are not
    assert {"sst2-16", "sst2-16-run", "agnews-300"} <= set(names)


@pytest.mark.ray
def test_a_cell_is_measured_once_and_again_where_it_is_named(tmp_path, capsys):
    make_data(tmp_path / "data" / "sst2")
    results = tmp_path / "results.json"
    asked = [
        *("--data", str(tmp_path / "data"), "--output", str(tmp_path / "runs")),
        *("--model", "scratch:tiny", "--results", str(results)),
    ]
    assert main(asked, (LIGHT,)) == 0
    found = read_results(results)["sst2-6-tfidf"]
    report = json.loads((tmp_path / "runs" / "sst2-6-tfidf" / "report.json").read_text())
    accuracy = {system["system"]: system["accuracy"]["value"] for system in report["systems"]}
    assert {name: system["accuracy"] for name, system in found["systems"].items()} == accuracy
    assert accuracy["majority"] == pytest.approx(1 / len(CLASSES))
    assert found["command"].startswith("gencls compare --data-dir data/sst2 ")
    assert str(tmp_path) not in results.read_text()

    shown = capsys.readouterr().out
    row = next(line for line in shown.splitlines() if line.startswith("| SST-2, 6 (12 test texts)"))
    assert f"{100 * accuracy['tfidf']:.1f} (" in row
    assert "2 seeds" in row
    # It is not measured again, unless it is named; then anew.
    scores = tmp_path / "runs" / "sst2-6-tfidf" / "cells" / "6-texts" / "seed-0" / "scores"
    before = {path: path.stat().st_mtime_ns for path in scores.rglob("*.parquet")}
    assert main(asked, (LIGHT,)) == 0
    assert before == {path: path.stat().st_mtime_ns for path in scores.rglob("*.parquet")}
    assert main([*asked, "sst2-6-tfidf"], (LIGHT,)) == 0
    after = {path: path.stat().st_mtime_ns for path in scores.rglob("*.parquet")}
    assert before.keys() == after.keys()
    assert all(before[path] != after[path] for path in before)


def test_absent_data_is_named_before_anything_is_run(tmp_path, capsys):
    asked = ["--data", str(tmp_path), "--output", str(tmp_path / "runs")]
    with pytest.raises(SystemExit):
        main([*asked, "--results", str(tmp_path / "results.json")], (LIGHT,))
    assert "has no sst2" in capsys.readouterr().err
    assert not (tmp_path / "runs").exists()


def test_a_failed_cell_says_where_to_look_and_leaves_the_others(tmp_path, capsys):
    (tmp_path / "data" / "sst2").mkdir(parents=True)
    results = tmp_path / "results.json"
    write_json(results, {"of-another-version": {"systems": {}}})
    asked = ["--data", str(tmp_path / "data"), "--output", str(tmp_path / "runs")]
    assert main([*asked, "--model", "scratch:tiny", "--results", str(results)], (LIGHT,)) == 1
    assert "sst2-6-tfidf.log" in capsys.readouterr().err
    assert "train" in (tmp_path / "runs" / "sst2-6-tfidf.log").read_text()
    assert list(read_results(results)) == ["of-another-version"]


def test_figures_of_a_run_are_those_that_it_stands_by(tmp_path):
    run = make_run(tmp_path / "run")
    build_report(run)
    report = json.loads((run.report_path / "report.json").read_text())
    cell = Cell("sst2", 16, 300, systems=())
    assert cell.name == "sst2-16-run"
    found, pairs = figures_of(cell, tmp_path / "run")
    assert pairs == []
    assert found["run"].accuracy == report["accuracy"][report["answer"]]
    assert found["run"].ece_by_chance == report["ece_by_chance"][report["answer"]]
    shown = render({"sst2-16-run": {**FOUND, "systems": {"run": vars(found["run"])}}}, (cell,))
    assert "by chance)" in shown
    assert "`joint-lm` minus" not in shown


def test_a_lead_is_told_from_the_side_of_the_class_models():
    pair = {"a": "discriminative", "b": "joint-lm", "difference": -0.04, "low": -0.07, "high": 0.01}
    pair |= {"bootstrap_p": 0.013, "holm_p": 0.04}
    cell = Cell("sst2", 16, 300)
    shown = render({cell.name: {**FOUND, "pairs": [pair]}}, (cell,))
    assert "- SST-2, 16: +4.0 (−1.0 to +7.0; p = 0.013, 0.04 corrected over all pairs)" in shown


def test_the_document_shows_what_was_measured():
    text = DOCUMENT.read_text(encoding="utf-8")
    assert BEGIN in text
    assert render(read_results(RESULTS)) in text
