"""Submitting: what travels, what a job is called, and what its log tells."""

from __future__ import annotations

import io
import json
import os
import re
import subprocess
import sys
import time
import zipfile
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner
from rich.console import Console

from cluster.job_client import Job, JobClient
from cluster.job_context import JOB_FILE, LIMIT, PRIORITY, SECRETS_FILE, environment_of
from cluster.job_package import Shipment, own_files, write_package
from cluster.job_view import view_of
from gencls_core.errors import ResourceError, UsageError
from gencls_core.events import ShardCommitted, StageFinished, StageStarted, TrainingProgress
from gencls_core.storage import file_sha256
from jobs.job_lines import JobLines
from jobs.main import cli
from jobs.progress import draw

ROOT = Path(__file__).parent.parent
SECRET = "hush-0f3c9a-not-to-be-seen"

RUN_FILE = """
output_dir = "runs/{name}"
baseline = false
[data]
data_dir = "data"
validation_fraction = 0.2
[model]
model = "base"
[recipe]
recipe = "independent"
[training]
epochs = {epochs}
batch_size = 8
learning_rate = 5e-3
[scoring]
shard_size = 64
[compute]
device = "cpu"
concurrent_trainings = 2
actors = 1
"""


@pytest.fixture
def folder(tmp_path, monkeypatch):
    """A folder to submit from, in which git ignores everything."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("GENCLS_HOME", str(tmp_path / "home"))
    (tmp_path / ".gitignore").write_text("*\n")
    (tmp_path / "a.toml").write_text(RUN_FILE.format(name="a", epochs=1))
    (tmp_path / "texts").mkdir()
    (tmp_path / "texts/one.csv").write_text("text,label\n")
    return tmp_path


def package(shipment: Shipment, folder: Path, environment: dict[str, str] | None = None) -> Path:
    path = folder / "package.zip"
    write_package(shipment, "job-1", environment or {}, folder / "proof", path)
    return path


def unpacked(archive: Path, folder: Path) -> Path:
    with zipfile.ZipFile(archive) as stream:
        stream.extractall(folder)
    return folder


def test_the_package_holds_everything_whatever_git_ignores(folder, tmp_path_factory):
    (folder / "venv").mkdir()
    (folder / "venv/x.bin").write_bytes(b"\0\1")
    shipment = Shipment.of(["run", "a.toml", "--data", "texts/one.csv"], ["texts", "venv"], folder)
    archive = package(shipment, folder)
    assert archive.stat().st_mode & 0o777 == 0o600
    there = unpacked(archive, tmp_path_factory.mktemp("there"))
    expected = {name: file_sha256(path) for name, path in own_files().items()}
    for name in ("a.toml", "texts/one.csv", "venv/x.bin"):
        expected[name] = file_sha256(folder / name)
    found = {
        str(path.relative_to(there)): file_sha256(path)
        for path in there.rglob("*")
        if path.is_file() and path.name != JOB_FILE
    }
    assert found == expected
    # What is no Python is easily forgotten.
    assert {Path(name).suffix for name in own_files()} >= {".py", ".j2", ".jsonl", ".typed"}
    assert shipment.unshipped_paths() == []
    assert Shipment.of(["run", "a.toml", "--data=texts"], [], folder).unshipped_paths() == ["texts"]


def test_the_package_alone_runs_elsewhere(folder, tmp_path_factory):
    """Where the submitter's disk is not seen, from the package and with its secrets."""
    shipment = Shipment.of(["plan", "a.toml"], [], folder)
    archive = package(shipment, folder, {"HUSH": SECRET})
    (folder / "proof").unlink()
    there = unpacked(archive, tmp_path_factory.mktemp("there"))
    code = (
        "import os, sys; from cluster.job_context import enter_job, worker_setup; "
        "print(enter_job(sys.argv[1:]), os.environ['HUSH'], os.getcwd()); "
        "del os.environ['HUSH']; worker_setup()(); print(os.environ['HUSH']); "
        "import cluster; print(cluster.__file__)"
    )
    done = subprocess.run(
        [sys.executable, "-c", code, "plan", "a.toml"],
        cwd=there, capture_output=True, text=True, check=True,
        env={n: v for n, v in os.environ.items() if n != "PYTHONPATH"},
    )  # fmt: skip
    assert done.stdout.splitlines() == [
        f"['plan', 'a.toml'] {SECRET} {there}",
        SECRET,
        str(there / "cluster/__init__.py"),
    ]
    assert not (there / SECRETS_FILE).exists()


def test_a_job_is_named_by_what_is_asked(folder):
    def name(*command: str, ship: tuple[str, ...] = ()) -> str:
        return Shipment.of(command, ship, folder).job_id

    first = name("run", "a.toml")
    assert re.fullmatch(r"gencls-run-[0-9a-f]{12}", first)
    assert name("run", "a.toml") == first
    assert name("run", "a.toml", "--epochs", "2") != first
    assert name("run", "a.toml", ship=("texts",)) != first
    (folder / "a.toml").write_text(RUN_FILE.format(name="a", epochs=2))
    assert name("run", "a.toml") != first


def test_what_cannot_be_shipped_is_refused_before_it_is_sent(folder, monkeypatch):
    with pytest.raises(UsageError, match="nothing to ship"):
        Shipment.of(["run"], ["missing"], folder)
    with pytest.raises(UsageError, match="below the current folder"):
        Shipment.of(["run"], ["/etc/hostname"], folder)
    (folder / "jobs").mkdir()
    (folder / "jobs/main.py").write_text("")
    with pytest.raises(UsageError, match="one of gencls's own"):
        package(Shipment.of(["run"], ["jobs"], folder), folder)
    for name in (JOB_FILE, SECRETS_FILE):
        # In the place of ours it would say who the job is, or keep its secrets from it.
        (folder / name).write_text("{}")
        with pytest.raises(UsageError, match="one of gencls's own"):
            package(Shipment.of(["run"], [name], folder), folder, {"A": "b"})
    monkeypatch.setattr("cluster.job_package.UPLOAD_LIMIT_BYTES", 2_000_000)
    (folder / "large").write_bytes(os.urandom(2_000_000))
    with pytest.raises(ResourceError, match=r"found: 2\.\d MB packed") as refused:
        package(Shipment.of(["run"], ["large"], folder), folder)
    assert "remedy:" in str(refused.value)


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["--", "cluster", "down"], "cannot be submitted"),
        (["--", "run", "--address", "auto"], "before `--`"),
        (["--", "run", "--epochs", "many"], "not a valid"),
        (["--env", "A-B=1", "--", "run"], "not the name of a variable"),
        (["--env", "NOT_SET_HERE", "--", "run"], "not set here"),
        (["--env", "RAY_ADDRESS=x", "--", "run"], "set by the cluster"),
    ],
)
def test_what_the_cluster_would_refuse_is_refused_here(folder, arguments, said):
    result = CliRunner().invoke(cli, ["submit", *arguments])
    assert result.exit_code == 2
    assert said in result.output


def job(status: str = "RUNNING", **changes: object) -> Job:
    made = Job("gencls-run-0", "PENDING", "", "exec …", 0.0, None, {}, None, None)
    return replace(made, status=status, **changes)


def test_a_log_tells_how_far_a_job_is(capsys, monkeypatch):
    monkeypatch.setattr("jobs.job_lines.EVERY_SECONDS", 0.0)
    client = JobClient("http://127.0.0.1:9")
    lines = JobLines()

    def progress() -> str:
        log = "something else\n" + capsys.readouterr().err + "#gencls {half"
        return view_of(client, job(), log).progress

    lines.event(StageStarted("train", "", 4, 1))
    assert progress() == "train 1/4"
    lines.event(TrainingProgress("a", 5, 10, 0.5, None, None, 0.1, 1.0))
    assert progress() == "train 1/4 (12 %)"
    lines.event(StageStarted("score test", "", 400, 100))
    lines.event(ShardCommitted("test", "a", 0, 4, 20, 1, 0.1))
    assert progress() == "score test 120/400"


def test_the_last_state_is_told_however_a_run_ends(capsys, monkeypatch):
    monkeypatch.setenv("GENCLS_JOB_ID", "a")

    def events():
        yield StageStarted("score test", "", 400, 100)
        for shard in range(3):
            yield ShardCommitted("test", "a", shard, 4, 20, 1, 0.1)
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        draw(events(), Console(file=io.StringIO()))
    client = JobClient("http://127.0.0.1:9")
    assert view_of(client, job("STOPPED"), capsys.readouterr().err).progress == "score test 160/400"


@pytest.mark.parametrize("calibrated", [None, 0.5])
def test_both_accuracies_are_told_by_their_names(capsys, tmp_path, calibrated):
    (tmp_path / "report").mkdir()
    said = {"accuracy": {"uncalibrated": 0.75, "calibrated": calibrated}}
    (tmp_path / "report/report.json").write_text(json.dumps(said))
    JobLines().event(StageFinished("report", str(tmp_path / "report"), 1.0))
    view = view_of(JobClient("http://127.0.0.1:9"), job("SUCCEEDED"), capsys.readouterr().err)
    values = view.to_json()
    assert (values["accuracy"], values["accuracy_calibrated"]) == (0.75, calibrated)
    assert values["run"] == str(tmp_path)


class Cluster(JobClient):
    """The cluster's side of the Jobs API, as far as submitting needs it; runs nothing."""

    def __init__(self) -> None:
        super().__init__("http://127.0.0.1:9")
        self.requests: list[dict[str, Any]] = []
        self.status = "PENDING"

    def check(self) -> str:
        return "2.60.0"

    def upload(self, package: Path) -> str:
        return "gcs://package.zip"

    def submit(self, request: dict[str, Any]) -> None:
        self.requests.append(request)

    def jobs(self) -> list[Job]:
        return [
            job(self.status, id=request["submission_id"], metadata=request["metadata"])
            for request in self.requests
        ]

    def job(self, job_id: str) -> Job:
        return next(job for job in self.jobs() if job.id == job_id)


def test_how_many_may_work_at_once_is_set_by_who_asks_for_it_and_by_nobody_else(
    folder, monkeypatch
):
    cluster = Cluster()
    monkeypatch.setattr("cluster.target.Target.client", lambda _: cluster)

    def ask(*arguments: str) -> str:
        name, *rest = arguments
        result = CliRunner().invoke(cli, [name, "--address", cluster.url, *rest])
        assert result.exit_code == 0, result.output
        return result.output

    def limits() -> list[str | None]:
        return [request["runtime_env"]["env_vars"].get(LIMIT) for request in cluster.requests]

    def submitted(*options: str) -> str:
        return ask("submit", *options, "--", "run", "a.toml")

    submitted("--max-concurrent", "3", "--priority", "2")
    assert limits() == ["3"]
    assert "--max-concurrent" not in submitted()
    unheeded = "--max-concurrent 4 changed nothing"
    said = submitted("--max-concurrent", "4")
    assert "is there already (PENDING)" in said
    assert unheeded in said
    cluster.status = "SUCCEEDED"
    said = submitted("--max-concurrent", "4")
    assert "has succeeded already" in said
    assert unheeded in said
    ask("resubmit", cluster.requests[0]["submission_id"])
    assert limits() == ["3", None]
    assert cluster.requests[1]["runtime_env"]["env_vars"][PRIORITY] == "2"


@pytest.mark.parametrize(
    ("log", "why"),
    [
        (
            "…\nModuleNotFoundError: No module named 'pyarrow'\n",
            "the cluster's Python lacks pyarrow",
        ),
        ("gencls: a.csv: no such file\n  remedy: …\n", "a.csv: no such file"),
        (
            "gencls: b: bad\n  found: it\ngencls: a: another gencls owns this run\n"
            "  expected: …\n  found: run, process 7 on head\n  remedy: …\n  found: no\n",
            "a: another gencls owns this run; found: run, process 7 on head",
        ),
        ("gencls: a: no\nnot indented\n  found: else\n", "a: no"),
        ("#gencls {}\nKilled\n", "Killed"),
    ],
)
def test_a_failed_job_says_why(log, why):
    client = JobClient("http://127.0.0.1:9")
    found = view_of(client, job("FAILED", exit_code=1), log).why
    # What to install is said after the name of what is missing.
    assert found == why or found.startswith(f"{why}: install")


def test_a_job_that_starts_waits_for_nothing_yet():
    client = JobClient("http://127.0.0.1:9")
    message = "Job has not started yet. It may be waiting for resources."
    assert view_of(client, job("PENDING", message=message, started=time.time()), "").why == ""
    assert view_of(client, job("PENDING", message=message, started=1.0), "").why == message


def test_the_grace_leaves_time_to_commit():
    values = environment_of("a", priority=0, max_concurrent=None, submitted=0.0, grace_seconds=60)
    assert float(values["GENCLS_STOP_SECONDS"]) < float(values["RAY_JOB_STOP_WAIT_TIME_S"]) == 60
