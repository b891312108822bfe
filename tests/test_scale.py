"""The scale benchmark at a small size: a fair stub, steps that see every shard, bounded memory."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from benchmarks import rows_bars
from benchmarks.bars import BARS, Options
from benchmarks.many_shards import make_shards, run_step
from benchmarks.on_raylets import RAYLETS
from benchmarks.scale import QUERIES, RESUME_STEPS, measured
from benchmarks.synthetic import (
    CLASSES,
    StubModels,
    class_models,
    commit_scores,
    make_dataset,
    run_config,
    stub_job,
    write_manifest,
    write_source,
)
from gencls_core.query import run_query
from gencls_core.report.build import build_report
from gencls_core.report.predictions import predict
from gencls_core.run import RunDirectory
from gencls_core.scores import ShardKey
from gencls_core.shard_work import shard_work

ROWS = 1500


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> RunDirectory:
    folder = tmp_path_factory.mktemp("scale")
    write_source(folder / "source", test_rows=ROWS, validation_rows=300)
    run = RunDirectory(folder / "run")
    config = run_config(run, shard_size=128)
    write_manifest(run, config)
    dataset = make_dataset(folder / "source", run)
    assert commit_scores(run, config, dataset, class_models(run)) == 4 * (12 + 3)
    return run


def test_stub_scores_do_not_depend_on_the_cut(run: RunDirectory) -> None:
    dataset, config, stub = run.dataset(), run_config(run), StubModels()

    def scored(start: int, stop: int, name: str) -> pa.Table:
        examples = dataset.read("test", start, stop)
        return stub.score(examples, name, config.sequence, config.scoring)

    for name in CLASSES:
        whole = scored(0, ROWS, name)
        parts = [scored(start, start + 37, name) for start in range(0, ROWS, 37)]
        assert pa.concat_tables(parts).equals(whole)
    by_class = [scored(0, ROWS, name).column("score").to_numpy() for name in CLASSES]
    assert len(np.unique(np.concatenate(by_class))) == 4 * ROWS


def test_report_and_predictions_cover_every_row(run: RunDirectory, tmp_path: Path) -> None:
    report = build_report(run)
    assert sum(task.scoring.rows for task in report.tasks.values()) == 4 * ROWS
    assert 0.6 < report.accuracy.uncalibrated < 0.95
    assert report.calibration is not None
    assert predict(run, tmp_path / "predictions.parquet") == ROWS
    by_range = pq.read_table(tmp_path / "predictions.parquet")
    assert by_range.equals(pq.read_table(run.predictions_path))
    for sql in QUERIES.values():
        assert run_query(run, sql).num_rows > 0


@pytest.mark.parametrize("step", RESUME_STEPS)
def test_resume_steps_see_every_shard(tmp_path: Path, step: str) -> None:
    made = make_shards(tmp_path, 40)
    assert made["bytes"] > 0
    assert run_step(tmp_path, step, 40)["seconds"] > 0
    # The steps must not find what is gone.
    (path,) = tmp_path.glob("run/scores/*/class=noise/shard-00003-*.parquet")
    path.unlink()
    if step in ("listing", "records", "torn", "shard_work", "retire"):
        with pytest.raises(RuntimeError, match=r"39 of 40 shards|plans 1 ranges"):
            run_step(tmp_path, step, 40)


def test_bytes_of_committed_shards_are_checked_unless_told_not_to(run: RunDirectory) -> None:
    record = run.scores.records()[7]
    path = Path(str(run.scores.shard_path(record.key)))
    whole = path.read_bytes()
    path.write_bytes(whole[:100] + bytes([whole[100] ^ 1]) + whole[101:])
    config = run_config(run, shard_size=128)

    def torn(check: bool) -> tuple[ShardKey, ...]:
        job = stub_job(class_models(run), config)
        plan = shard_work(job, run.dataset(), "test", run, check=check)
        assert sum(len(work.keys) for work in plan.work) == len(plan.torn)
        return plan.torn

    try:
        assert torn(check=True) == (record.key,)
        assert torn(check=False) == ()
    finally:
        path.write_bytes(whole)


@pytest.mark.slow
def test_bars_of_report_and_queries(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(rows_bars, "QUICK_EXAMPLES", 1000)
    options = Options(pairs=1, quick=True, model="", data=None, threads=1)
    results = [*rows_bars.measure(options), *rows_bars.measure_help(options)]
    assert {result.key for result in results} == {
        bar.key for bar in BARS if bar.group in ("rows", "help")
    }
    assert all(case.min > 0 for result in results for case in result.cases)
    assert [case.case for case in results[0].cases] == [
        "report",
        *(f"query: {name}" for name in QUERIES),
    ]


@pytest.mark.ray
@pytest.mark.slow
def test_three_raylets_score_every_row_and_the_driver_stays_small(tmp_path: Path) -> None:
    peaks = {}
    for rows in (2_000, 40_000):
        folder = tmp_path / str(rows)
        measured("source", folder, rows, 500)
        measured("ingest", folder)
        driver = measured("cluster", folder)
        assert driver.values["rows"] == 4 * (rows + 500)
        assert driver.values["nodes"] == RAYLETS
        assert measured("check", folder).values["rows"] == 4 * rows
        peaks[rows] = driver.peak_memory_bytes
    assert peaks[40_000] - peaks[2_000] < 30e6


@pytest.mark.slow
def test_memory_of_report_and_predictions(tmp_path: Path) -> None:
    """Four times the texts: a report may grow by 400 bytes a text, predictions by nothing."""
    peaks = {}
    for rows in (150_000, 600_000):
        folder = tmp_path / str(rows)
        measured("source", folder, rows, 500)
        for stage in ("ingest", "score"):
            measured(stage, folder)
        peaks[rows] = [measured(s, folder).peak_memory_bytes for s in ("report", "predict")]
    (report, predictions), (more_report, more_predictions) = peaks.values()
    assert more_report - report < 400 * 450_000
    assert more_predictions - predictions < 40e6
