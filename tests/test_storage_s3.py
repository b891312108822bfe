"""Runs in an object store: a whole one with faults, what a commit costs, checkpoints, queries."""

from __future__ import annotations

import json
import os
import pickle
import shutil
import signal
import subprocess
import sys
from collections import Counter
from dataclasses import replace
from pathlib import Path

import duckdb
import pyarrow as pa
import pytest
from fault_fixtures import make_run
from run_fixtures import CLASSES, make_config, write_jsonl
from s3_fixtures import Fault, S3Server, local_run, s3

from benchmarks.synthetic import StubModels, class_models, stub_job
from cluster.pipeline import run_all
from gencls_core import ownership
from gencls_core.checkpoints import LAST_FILE
from gencls_core.config import ScoringConfig, SequenceConfig
from gencls_core.config_parsing import parse_run_config
from gencls_core.errors import StoreError, UsageError
from gencls_core.ownership import own
from gencls_core.query import open_query, run_query
from gencls_core.remote_path import as_location
from gencls_core.run import RunDirectory
from gencls_core.scores import ScoreStore, ShardKey, read_scores
from gencls_core.shard_work import shard_work
from jobs.main import main

__all__ = ["s3"]

IMPATIENT = "max_attempts=3&request_timeout=10"


@pytest.fixture
def gencls(monkeypatch, capsys):
    """Run the command line in this process; gives exit code, output and errors."""

    def run(*arguments: object) -> tuple[int, str, str]:
        monkeypatch.setattr(sys, "argv", ["gencls", *map(str, arguments)])
        handlers = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}
        try:
            with pytest.raises(SystemExit) as ended:
                main()
        finally:
            for number, handler in handlers.items():
                signal.signal(number, handler)
        said = capsys.readouterr()
        return int(ended.value.code or 0), said.out, said.err

    return run


def rows_of(run: RunDirectory, store: str) -> list[dict]:
    rows = read_scores(run.path / store).to_pylist()
    return sorted(rows, key=lambda row: (row["system"], row["class"], row["example_id"]))


def events_of(run: RunDirectory) -> Counter[str]:
    lines = run.events_path.read_text().splitlines()
    return Counter(json.loads(line)["event"] for line in lines)


@pytest.mark.ray
def test_a_run_in_a_store(s3: S3Server, shared_ray, tmp_path, gencls):
    """With LoRA, so that the base is copied into the store; under failures; to the end."""
    local = local_run(4)
    place = s3.path("run", IMPATIENT)
    run = RunDirectory(place)
    settings = make_config(local, output_dir=place.uri, model={"lora_rank": 4})
    options = [
        "run", "--output-dir", place.uri, "--data-dir", local / "data", "--model", local / "base",
        "--validation-fraction", "0.2", "--epochs", "2", "--batch-size", "8",
        "--learning-rate", "5e-3", "--shard-size", "16", "--num-cpus", "2", "--memory-gb", "8",
        "--lora-rank", "4", "--actors", "1", "--recipe", "independent",
    ]  # fmt: skip
    # The store refuses every shard of one class: the run ends, says so, and has committed the rest.
    refused = "scores/system=class-lm/class=a%20b/shard-"
    slow_down = Fault(503, times=2, kinds=("PUT", "GET"), matching="models/")
    with s3.failing(slow_down), s3.failing(Fault(500, kinds=("PUT",), matching=refused)):
        code, _, error = gencls(*options)
    assert code == 1
    assert "cannot be written: the object store refused or did not answer" in error
    assert f"s3://bucket/run/validation-{refused}" in error
    assert "Traceback" not in error
    assert slow_down.suffered == 2
    assert run.manifest()["status"] == "failed"
    assert not [key for key in s3.keys(place) if "a%20b/" in key and key.startswith("val")]
    assert not [key for key in s3.keys(place) if key.endswith((".tmp", ".owner", ".claim"))]
    assert events_of(run)["ClassTrained"] == 3

    # The same command goes on: no class is trained again.
    code, said, error = gencls(*options)
    assert code == 0, error
    assert "s3://bucket/run/report/report.html" in said
    assert events_of(run)["ClassTrained"] == 3
    for store in ("scores", "validation-scores"):
        ours, theirs = rows_of(run, store), rows_of(RunDirectory(local / "run"), store)
        assert len(ours) == len(theirs) > 0
        assert ours == theirs, "values are those of a local run"

    # And again: nothing is trained or scored, and no shard is written.
    first = len(s3.requests)
    events = Counter(type(event).__name__ for event in run_all(settings))
    assert events["ClassTrained"] == events["ShardCommitted"] == 0
    assert not [r for r in s3.requests[first:] if r.kind == "PUT" and "shard-" in r.key]

    # One shard is deleted: that one is scored again.
    before = rows_of(run, "scores")
    s3.delete(run.scores.shard_path(ShardKey("class-lm", "Sci/Tech", 1, 3)))
    code, said, _ = gencls("verify", place.uri)
    assert code == 1
    assert "missing  scores/system=class-lm/class=Sci%2FTech/shard-00001-of-00003.parquet" in said
    events = list(run_all(settings))
    committed = [event for event in events if type(event).__name__ == "ShardCommitted"]
    assert [(event.class_name, event.shard) for event in committed] == [("Sci/Tech", 1)]
    assert rows_of(run, "scores") == before
    assert gencls("verify", place.uri)[0] == 0

    # Nothing was ever written but whole: no multipart step, no object renamed into place.
    assert {r.kind for r in s3.requests} <= {"PUT", "GET", "HEAD", "LIST", "DELETE"}

    # What reads a run reads this one.
    code, said, _ = gencls("report", place.uri, "--prior", "uniform")
    assert code == 0
    assert "test texts. Report: s3://bucket/run/report/report.html" in said
    sql = "select count(*) as n from scores"
    code, said, _ = gencls("query", place.uri, sql, "--format", "csv")
    assert (code, said.split()[-1]) == (0, str(len(before)))
    output = tmp_path / "report.json"
    code, said, error = gencls("evaluate", "--model-dir", place.uri, "--output", output)
    assert code == 0, error
    assert json.loads(output.read_text())["num_examples"] == 42
    texts = write_jsonl(tmp_path / "new.jsonl", [{"text": "laser orbit kernel"}] * 3)
    labels = tmp_path / "labels.csv"
    code, _, error = gencls("classify", "--model-dir", place.uri, texts, "--output", labels)
    assert code == 0, error
    assert len(labels.read_text().splitlines()) == 4
    code, said, _ = gencls("verify", place.uri, "--json")
    assert code == 0, said
    assert json.loads(said)["datasets"] == 2


def remote_run(s3: S3Server, prefix: str, folder: Path, *, rows: int = 64) -> RunDirectory:
    """Prepare a dataset in the store, with no models: shards are scored by stubs."""
    made = make_run(folder, rows=rows)
    run = RunDirectory(s3.path(prefix))
    for file in Path(str(made.dataset_path)).iterdir():
        s3.put(run.dataset_path / file.name, file.read_bytes())
    return run


def plan_of(run: RunDirectory, folder: Path):
    config = parse_run_config({"output_dir": run.path.uri, "scoring": {"shard_size": 8}})
    job = stub_job(class_models(RunDirectory(folder / "models-of")), config)
    return shard_work(job, run.dataset(), "test", run)


def commit_all(run: RunDirectory, work, fence=None) -> None:
    for shard in work:
        texts = run.dataset().read("test", shard.start, shard.stop)
        for key, digest in zip(shard.keys, shard.digests, strict=True):
            table = StubModels().score(texts, key.class_name, SequenceConfig(), ScoringConfig())
            run.scores.commit(key, table, start=shard.start, digest=digest, fence=fence)


def test_requests_of_a_commit_and_of_a_resume(s3: S3Server, tmp_path, monkeypatch):
    """The figures of docs/storage.md."""
    monkeypatch.setattr(ownership, "HEARTBEAT_SECONDS", 600)
    run = remote_run(s3, "requests", tmp_path)
    work = plan_of(run, tmp_path).work
    with own(run.path, "test") as lease:
        shard = work[0]
        texts = run.dataset().read("test", shard.start, shard.stop)
        key = shard.keys[0]
        table = StubModels().score(texts, key.class_name, SequenceConfig(), ScoringConfig())
        fence = lease.fence("work")
        with s3.counting() as commit:
            run.scores.commit(key, table, start=0, digest=shard.digests[0], fence=fence)
    assert commit == {"PUT": 2, "HEAD": 5, "LIST": 2}
    commit_all(run, plan_of(run, tmp_path).work)
    counts = {}
    for shards in (32, 16):
        with s3.counting() as counts[shards]:
            plan = plan_of(run, tmp_path)
        assert len(plan.committed) == shards
        for key in sorted(plan.committed, key=lambda key: key.index)[16:]:
            s3.delete(run.scores.record_path(key))
    assert counts[32]["LIST"] == 1
    for kind in ("GET", "HEAD"):
        assert counts[32][kind] - counts[16][kind] == 16 * 2
    assert counts[32]["PUT"] == counts[32]["DELETE"] == 0


@pytest.mark.fault
def test_a_shard_is_there_whole_or_not_at_all(s3: S3Server, tmp_path):
    """Whatever is seen before any request of a commit: no record without its whole shard."""
    run = remote_run(s3, "whole", tmp_path, rows=8)
    seen = []

    def look(_request) -> None:
        if not busy:
            busy.append(1)
            keys = {key for key in s3.keys(run.scores.path) if "/_shard-" in key}
            shards = {k.replace("/_shard", "/shard").replace(".json", ".parquet") for k in keys}
            seen.append((len(keys), shards <= s3.keys(run.scores.path)))
            busy.clear()

    busy: list[int] = []
    s3.before = look
    try:
        commit_all(run, plan_of(run, tmp_path).work)
    finally:
        s3.before = lambda request: None
    assert all(whole for _, whole in seen)
    assert max(count for count, _ in seen) >= 3
    store = ScoreStore(run.scores.path)
    assert store.torn(store.records()) == []
    assert store.orphans() == []


@pytest.mark.fault
@pytest.mark.parametrize("how", [500, 503, "cut"])
def test_a_commit_that_fails_is_made_again(s3: S3Server, tmp_path, how):
    run = remote_run(s3, f"again-{how}", tmp_path, rows=8)
    impatient = RunDirectory(replace(run.path, options=run.path.options + "&max_attempts=1"))
    work = plan_of(run, tmp_path).work
    for suffix in (".parquet", ".json"):
        with (
            s3.failing(Fault(how, kinds=("PUT",), matching=suffix)),
            pytest.raises(StoreError, match="cannot be written"),
        ):
            commit_all(impatient, work)
        assert run.scores.records() == []
    commit_all(run, plan_of(run, tmp_path).work)
    assert plan_of(run, tmp_path).work == []
    assert run.scores.orphans() == []


FORBIDDEN = [
    "COPY (FROM scores) TO '{run}/out.csv'",
    "COPY (FROM scores) TO '{tmp}/out.csv'",
    "SELECT * FROM read_csv('{run}/run.json')",
    "SELECT * FROM read_parquet('{run}/dataset/test.parquet')",
    "SELECT * FROM read_text('/etc/passwd')",
    "SELECT * FROM '{run}/dataset/test.parquet'",
    "ATTACH '{run}/out.db'",
    "INSTALL httpfs",
    "LOAD httpfs",
    "SET enable_external_access = true",
    "CREATE SECRET (TYPE s3, KEY_ID 'x', SECRET 'y')",
]


def test_a_query_stays_inside_the_run(s3: S3Server, tmp_path):
    run = remote_run(s3, "query", tmp_path, rows=8)
    commit_all(run, plan_of(run, tmp_path).work)
    keys = s3.keys(run.path)
    assert run_query(run, "FROM scores").num_rows == 8 * 4
    assert run_query(run, "FROM likelihoods").num_rows == 8
    assert run_query(run, "SELECT text FROM examples WHERE split = 'test'").num_rows == 8
    for statement in FORBIDDEN:
        sql = statement.replace("{run}", str(run.path)).replace("{tmp}", str(tmp_path))
        with pytest.raises(UsageError):
            run_query(run, sql)
        # The connection by itself holds, too.
        with open_query(run) as connection, pytest.raises(duckdb.Error):
            connection.execute(sql)
    assert s3.keys(run.path) == keys
    assert not (tmp_path / "out.csv").exists()


def test_a_query_over_a_store_that_fails(s3: S3Server, tmp_path):
    made = remote_run(s3, "query-fails", tmp_path, rows=8)
    commit_all(made, plan_of(made, tmp_path).work)
    run = RunDirectory(replace(made.path, options=made.path.options + "&max_attempts=1"))
    with open_query(run) as connection:
        assert isinstance(connection.sql("FROM scores").to_arrow_table(), pa.Table)
    with (
        s3.failing(Fault(503, kinds=("GET",), matching="/shard-")),
        pytest.raises(StoreError, match="the object store refused or did not answer"),
    ):
        run_query(run, "SELECT sum(score) FROM scores")
    key = run.scores.records()[0].key
    s3.put(run.scores.shard_path(key), b"x" * run.scores.record(key).bytes)
    with pytest.raises(StoreError, match="cannot read a file of the run"):
        run_query(run, "SELECT sum(score) FROM scores")


def test_a_base_from_scratch_lies_in_the_store(s3: S3Server):
    from gencls_core.model_source import ResolvedModel
    from gencls_core.models import load_causal_lm
    from gencls_core.scratch import build_scratch_model

    place = s3.path("scratch/base/0123456789abcdef")
    build_scratch_model("scratch:tiny", ["the lamp hums", "all night long"] * 20, 0, place)
    found = ResolvedModel.of_staged("scratch:tiny", place)
    assert found is not None
    lm = load_causal_lm(found)
    assert lm.encode(["the lamp"])[0]
    # Cut short: it does not count as made.
    s3.delete(place / "model.safetensors")
    assert ResolvedModel.of_staged("scratch:tiny", place) is None


KILLED_AFTER_AN_EPOCH = """
import os, pickle, signal, sys
sys.path[:0] = [{tests!r}]
from gencls_core import checkpoints
from gencls_core.training import train_class

keep = checkpoints.Checkpoints.keep

def keep_and_die(self):
    keep(self)
    os.kill(os.getpid(), signal.SIGKILL)

checkpoints.Checkpoints.keep = keep_and_die
with open({task!r}, "rb") as stream:
    train_class(pickle.load(stream))
"""


def test_a_killed_training_goes_on_elsewhere(s3: S3Server, tmp_path):
    """Killed after its first epoch; another process, with another temporary folder, goes on."""
    from test_training import make_task

    from gencls_core.training import train_class

    task = make_task(tmp_path, "gpt2")
    undisturbed = train_class(task)
    place = s3.path("training/models/Sci%2FTech")
    remote = replace(task, destination=place)
    (tmp_path / "task").write_bytes(pickle.dumps(remote))
    script = KILLED_AFTER_AN_EPOCH.format(
        tests=str(Path(__file__).parent), task=str(tmp_path / "task")
    )
    temporary = tmp_path / "first-machine"
    temporary.mkdir()
    environment = {**os.environ, "TMPDIR": str(temporary)}
    done = subprocess.run(
        [sys.executable, "-c", script], env=environment, capture_output=True, check=False
    )
    assert done.returncode == -signal.SIGKILL, done.stderr.decode()[-2000:]
    shutil.rmtree(temporary)  # that machine is gone
    saved = {key.rpartition("/")[2] for key in s3.keys(place.parent)}
    assert LAST_FILE in saved
    assert "committed.json" not in saved

    steps = []
    model = train_class(remote, lambda event: steps.append(event.step))
    per_epoch = undisturbed.training.steps // 3
    assert min(steps) > per_epoch, "the first epoch was not trained again"
    assert model.training.steps == undisturbed.training.steps
    assert model.files == undisturbed.files, "the weights are those of an undisturbed training"
    assert model.training.best_epoch == undisturbed.training.best_epoch
    assert s3.keys(place.parent) == {f"Sci%2FTech/{n}" for n in (*model.files, "committed.json")}


def test_locations_of_the_command_line(s3: S3Server, gencls):
    code, _, error = gencls("report", "s3://")
    assert (code, "not a place in an object store" in error) == (2, True)
    code, _, error = gencls("report", s3.path("nothing-there").uri)
    assert code == 1
    assert "s3://bucket/nothing-there: not a run directory" in error
    assert as_location("s3://bucket/x") != as_location("bucket/x")
    assert set(CLASSES) == {"Sci/Tech", "01", "a b"}
