"""The campaign of kills: its plan comes from the seed alone, and its count misses nothing."""

from __future__ import annotations

import json
import shutil
from collections import Counter
from pathlib import Path

import pyarrow.parquet as pq
import pytest

from benchmarks.chaos import run_campaign
from benchmarks.chaos_count import audit
from benchmarks.chaos_faults import (
    ENDING,
    MODELS,
    OTHERS,
    PHASES,
    SURVIVED,
    Fault,
    draw_plan,
    harm_files,
)
from benchmarks.chaos_run import QUICK
from benchmarks.synthetic import (
    CLASSES,
    class_models,
    commit_scores,
    make_dataset,
    run_config,
    write_manifest,
    write_source,
)
from gencls_core.events import ClassTrained, EventLog, ShardCommitted
from gencls_core.report.build import build_report
from gencls_core.run import RunDirectory
from gencls_core.run_folder import owned
from gencls_core.scores import ScoreStore
from gencls_core.storage import file_sha256, write_json
from gencls_core.verify import verify

ROWS = 40 * 4 + 12 * 4


def test_the_seed_decides_the_plan():
    plan = list(draw_plan(1, 30))
    assert plan == list(draw_plan(1, 30))
    assert plan != list(draw_plan(2, 30))
    during = [fault for invocation in plan for fault in invocation.during]
    assert len(during) >= 30
    assert {fault.kind for fault in during} == {*ENDING, *SURVIVED}
    assert {fault.phase for fault in during} == {*PHASES} - {"at rest"}
    at_rest = {fault.kind for invocation in plan for fault in invocation.at_rest}
    assert at_rest <= {*MODELS, *OTHERS}
    assert plan[0].at_rest == ()
    for invocation in plan:
        order = [PHASES.index(fault.phase) for fault in invocation.during]
        assert order == sorted(order)
        assert [fault.ends for fault in invocation.during].count(True) == 1
        assert invocation.during[-1].ends


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A finished run of stub models, whose every committed file is as a real run's."""
    folder = tmp_path_factory.mktemp("chaos")
    write_source(folder / "source", test_rows=40, validation_rows=12)
    run = RunDirectory(folder / "run")
    config = run_config(run, shard_size=10)
    write_manifest(run, config)
    dataset = make_dataset(folder / "source", run)
    models = class_models(run)
    for model in models:
        _add_weights(Path(str(model.path)))
    commit_scores(run, config, dataset, models)
    with EventLog(run.events_path) as log:
        for name in CLASSES:
            log.append(ClassTrained(name, 1.0, 1.0, None, 0, 1.0))
            for split, shards in (("test", 4), ("validation", 2)):
                for shard in range(shards):
                    log.append(ShardCommitted(split, name, shard, shards, 10, 90, 0.1))
    build_report(run)
    return folder / "run"


def _add_weights(folder: Path) -> None:
    weights = folder / "model.safetensors"
    weights.write_bytes(b"weights of " + folder.name.encode())
    record = json.loads((folder / "committed.json").read_text())
    record["files"] = {weights.name: file_sha256(weights)}
    record["sizes"] = {weights.name: weights.stat().st_size}
    write_json(folder / "committed.json", record)


@pytest.fixture
def run(finished: Path, tmp_path: Path) -> RunDirectory:
    shutil.copytree(finished, tmp_path / "run")
    return RunDirectory(tmp_path / "run")


def test_a_run_like_the_reference_has_no_problems(finished, run):
    counted = audit(RunDirectory(finished), run, Counter())
    assert counted.problems == []
    assert counted.rows_expected == counted.rows_found == counted.pairs_found == ROWS
    assert counted.commits_expected == counted.commits_logged == 4 * (1 + 4 + 2)


def test_what_is_missing_changed_or_done_twice_is_counted(finished, run):
    reference = RunDirectory(finished)
    record = run.scores.records()[2]
    shard = Path(str(run.scores.shard_path(record.key)))
    table = pq.read_table(shard)

    # Another value in one row, committed as scoring commits.
    values = table["score"].to_pylist()
    changed = table.set_column(
        table.schema.get_field_index("score"), "score", [[values[0] + 1e-9, *values[1:]]]
    )
    run.scores.commit(record.key, changed, start=record.start, digest=record.digest)
    counted = audit(reference, run, Counter())
    assert (counted.values_that_differ, counted.rows_found) == (1, ROWS)
    assert "values that differ: 1" in counted.problems

    # A shard that is gone.
    shard.unlink()
    counted = audit(reference, run, Counter())
    assert (counted.rows_found, counted.values_that_differ) == (ROWS - 10, 0)
    assert any(problem.startswith("missing") for problem in counted.problems)

    # Weights, and a left-over of a killed writer.
    weights = Path(str(run.model_path("noise"))) / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-1] + b"!")
    (run.path / ".run.json.4000000-0123abcd.tmp").write_text("half")
    counted = audit(reference, run, Counter())
    assert counted.models_that_differ == 1
    assert sum("run.json.4000000" in problem for problem in counted.problems) == 1

    # Work that was done twice, unless a fault destroyed it.
    with EventLog(run.events_path) as log:
        log.append(ClassTrained("noise", 1.0, 1.0, None, 0, 1.0))
    assert audit(reference, run, Counter()).recomputed == 1
    assert audit(reference, run, Counter({("model", "noise", 0): 1})).recomputed == 0


@pytest.mark.parametrize("kind", [*MODELS, *OTHERS])
@pytest.mark.parametrize("choice", [7, 2**17 + 40_000])
def test_harmed_files_are_found_and_what_was_lost_is_known(run, kind, choice):
    fault = Fault(kind, "at rest", choice=choice)
    harmed = harm_files(fault, run)
    assert harmed is not None
    where, lost = harmed
    whole = {(r.class_name, r.index) for r in _whole(run.scores)}
    if kind.startswith("class model"):
        name = where.split("/")[1]
        assert lost == Counter(
            {
                ("model", name, 0): 1,
                **{("test", name, shard): 1 for shard in range(4)},
                **{("validation", name, shard): 1 for shard in range(2)},
            }
        )
    elif kind.startswith("shard"):
        ((split, name, shard),) = lost
        assert (split == "validation") or (name, shard) not in whole
    else:
        assert not lost
    assert [f for f in verify(run).findings if f.kind != "note"]


def _whole(store: ScoreStore) -> list:
    records = store.records()
    torn = store.torn(records)
    return [record for record in records if record not in torn]


def test_an_owner_collects_what_killed_writers_left(run):
    """A report or manifest that was half-written stayed until it was repaired by hand."""
    assert harm_files(Fault("left-overs planted", "at rest", choice=5), run) is not None
    # Somebody asks for the lease meanwhile, and an evaluation has an owner of its own.
    asked = Path(str(run.path / "evaluations" / "1" / ".run.json.4000000-0123abcd.tmp"))
    asked.parent.mkdir(parents=True)
    asked.write_text("half")
    left = {f.place for f in verify(run).findings if f.kind == "orphan"}
    assert len(left) >= 5
    with owned(run, "test"):
        during = Path(str(run.path)) / "report" / ".report.md.4000000-0123abcd.tmp"
        during.write_text("a worker that is killed now")
    assert asked.exists()
    assert not during.exists()
    left = {f.place for f in verify(run).findings if f.kind == "orphan"}
    # A shard without a record goes when scoring begins, which knows the wanted ones; incoming data
    # when data comes.
    assert {place.rpartition("/")[2] for place in left} <= {
        "shard-00000-of-00001.parquet",
        ".incoming-dataset",
        asked.name,
    }


@pytest.mark.ray
@pytest.mark.slow
def test_two_faults_over_one_run(tmp_path):
    """A small campaign; `make chaos` is the long one."""
    campaign = run_campaign(tmp_path, seed=3, faults=2, size=QUICK)
    assert campaign.problems == []
    assert campaign.kills == 2
    assert campaign.audit.rows_found == 4 * (160 + 32) + 4 * 160
