"""Submitting: what travels, what a job is called, and real jobs on a development cluster."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
import zipfile
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from unittest import mock

import pytest
from click.testing import CliRunner
from cluster_fixtures import cluster_up, drivers_of, files_with, gencls, succeed, wait_for
from model_fixtures import make_model_folder
from run_fixtures import make_data

from cluster.dev_cluster import DevCluster, processes
from cluster.errors import UnauthorisedError
from cluster.job_client import Job, JobClient
from cluster.job_context import JOB_FILE, SECRETS_FILE, environment_of
from cluster.job_package import Shipment, own_files, write_package
from cluster.job_view import view_of
from gencls_core.errors import ResourceError, UsageError
from gencls_core.events import ShardCommitted, StageStarted, TrainingProgress
from gencls_core.storage import file_sha256
from jobs.job_lines import JobLines
from jobs.main import cli

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


@pytest.mark.parametrize(
    ("log", "why"),
    [
        (
            "…\nModuleNotFoundError: No module named 'pyarrow'\n",
            "the cluster's Python lacks pyarrow",
        ),
        ("gencls: a.csv: no such file\n  remedy: …\n", "a.csv: no such file"),
        ("#gencls {}\nKilled\n", "Killed"),
    ],
)
def test_a_failed_job_says_why(log, why):
    client = JobClient("http://127.0.0.1:9")
    assert view_of(client, job("FAILED", exit_code=1), log).why.startswith(why)


def test_the_grace_leaves_time_to_commit():
    values = environment_of("a", priority=0, max_concurrent=None, submitted=0.0, grace_seconds=60)
    assert float(values["GENCLS_STOP_SECONDS"]) < float(values["RAY_JOB_STOP_WAIT_TIME_S"]) == 60


@pytest.fixture(scope="module")
def development(tmp_path_factory) -> Iterator[tuple[DevCluster, Path]]:
    """A cluster of two nodes, and a folder with data and a base model; both of this module."""
    work = tmp_path_factory.mktemp("work")
    make_data(work / "data")
    make_model_folder(work / "base", context=64)
    (work / ".gitignore").write_text("*\n")
    for name, epochs in (("held", 10**6), ("urgent", 10**6), ("short", 1)):
        text = RUN_FILE.format(name=name, epochs=epochs)
        (work / f"{name}.toml").write_text(text)
    before = Path.cwd()
    home = tmp_path_factory.mktemp("home")
    with cluster_up(home, "--nodes", "2", "--cpus-per-node", "2") as cluster:
        os.chdir(work)
        try:
            yield cluster, work
        finally:
            os.chdir(before)


def submitted(*arguments: str) -> str:
    said = succeed("submit", *arguments)
    found = re.match(r"Submitted (\S+)\.", said)
    assert found, said
    return found[1]


def status(job_id: str) -> dict[str, object]:
    values: dict[str, object] = json.loads(succeed("status", job_id, "--json"))
    return values


def state_is(job_id: str, state: str) -> bool:
    found = status(job_id)
    ended = found["state"] in ("FAILED", "STOPPED", "SUCCEEDED") and found["state"] != state
    assert not ended, succeed("logs", job_id)
    return found["state"] == state


def trains(job_id: str) -> bool:
    return state_is(job_id, "RUNNING") and str(status(job_id)["progress"]).startswith("train")


@pytest.mark.slow
@pytest.mark.ray
def test_jobs_wait_for_each_other_and_nothing_of_them_remains(development):
    cluster, work = development
    client = JobClient(cluster.url, cluster.token)

    own = {name: file_sha256(path) for name, path in own_files().items()}
    held = submitted("--", "train", "held.toml")
    wait_for(lambda: trains(held))
    with mock.patch.dict(os.environ, {"HUSH": SECRET}):
        short = submitted("--env", "HUSH", "--", "run", "short.toml")
    urgent = submitted("--priority", "5", "--grace", "20", "--", "train", "urgent.toml")

    # Submitting twice is one job.
    said = succeed("submit", "--", "run", "short.toml")
    assert said.startswith(f"{short} is there already (")
    assert len(client.jobs()) == 3

    # Both wait, the later one first in the line, and say behind whom.
    wait_for(lambda: status(short)["progress"] == "place 2 of 2")
    found = status(short)
    assert found["state"] == "WAITING"
    assert f"behind {held}, which has held the cluster since" in str(found["why"])
    wait_for(lambda: status(urgent)["progress"] == "place 1 of 2")
    assert "waiting: place 2 of 2" in succeed("logs", short)
    assert "WAITING" in succeed("jobs")

    # A driver that is killed frees the place; the priority decides who comes next.
    (driver,) = [p for p in drivers_of(held) if "jobs" in p.cmdline()]
    driver.kill()
    wait_for(lambda: trains(urgent))
    wait_for(lambda: status(held)["state"] == "FAILED")
    assert status(short)["state"] == "WAITING"

    # The package that is unpacked over there is the whole of it.
    places = Path(cluster.folder).glob("*/session_2*/runtime_resources/working_dir_files/*/")
    found = [
        {name: file_sha256(place / name) for name in own}
        for place in places
        if json.loads((place / JOB_FILE).read_text())["id"] == held
    ]
    assert found
    assert all(one == own for one in found)

    # Cancelling ends every process of the job, and the next one has the cluster.
    said = succeed("cancel", urgent)
    assert "has 20 s to commit" in said
    assert f"{urgent}: STOPPED" in said
    # Ray ends its own supervisor of the job a moment after the job.
    wait_for(lambda: drivers_of(urgent) == [], 30)
    assert succeed("cancel", urgent).strip() == f"{urgent} was over already: STOPPED"

    code, log = gencls("logs", short, "-f")
    assert code == 0, log
    assert "#gencls" not in log
    found = status(short)
    assert found["state"] == "SUCCEEDED"
    report = json.loads((work / "runs/short/report/report.json").read_text())
    assert found["accuracy"] in (
        report["accuracy"]["uncalibrated"],
        report["accuracy"].get("calibrated"),
    )
    assert found["run"] == str(work / "runs/short")
    assert f"{100 * found['accuracy']:.1f} %" in succeed("jobs")
    assert "has succeeded already" in succeed("submit", "--", "run", "short.toml")

    # What the job was trusted with stands nowhere: no file, no log, nothing that Ray shows.
    folders = [Path(cluster.folder), Path(os.environ["GENCLS_HOME"]), work]
    assert files_with(SECRET, *folders) == []
    assert files_with(cluster.token, *folders) == [Path(cluster.token_path)]
    shown = client._request("GET", "/api/jobs/", None, seconds=20).decode()
    assert short in shown
    assert SECRET not in shown
    with pytest.raises(UsageError, match="HUSH"):
        raise_error("resubmit", short)

    # A failed job is tried again under the next number; cancelled, it gives everything back.
    said = succeed("submit", "--", "train", "held.toml")
    assert f"Submitted {held}-2." in said
    assert f"{held} ended as FAILED" in said
    wait_for(lambda: trains(f"{held}-2"))
    wait_for(lambda: client.usage().used["CPU"] > 0, 60)
    assert "its resources are free: 0 of 4 CPUs in use" in succeed("cancel", f"{held}-2")
    assert available(cluster) == 4
    wait_for(lambda: drivers_of(f"{held}-2") == [], 30)
    left = [" ".join(process.cmdline()) for process in processes(cluster)]
    assert not [line for line in left if line.startswith("ray::") and "train" in line]


def raise_error(*arguments: str) -> None:
    raised = CliRunner().invoke(cli, list(arguments)).exception
    assert raised is not None
    raise raised


def available(cluster: DevCluster) -> float:
    """Ask Ray itself, as a driver, which CPUs are free."""
    code = (
        "import os, sys; from cluster.connection import ray_session\n"
        "with ray_session(None, sys.argv[1]):\n"
        "    import ray; print('free', ray.available_resources().get('CPU', 0.0))"
    )
    done = subprocess.run(
        [sys.executable, "-c", code, cluster.gcs_address],
        cwd=ROOT, capture_output=True, text=True, check=True,
    )  # fmt: skip
    return float(done.stdout.rpartition("free ")[2])


@pytest.mark.ray
@pytest.mark.parametrize("shown", [{}, {"RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN": "0" * 64}])
def test_a_driver_without_the_token_is_refused(development, shown):
    cluster, _ = development
    done = subprocess.run(
        [
            sys.executable, "-m", "jobs", "run", "short.toml", "--output-dir", "runs/refused",
            "--address", cluster.gcs_address,
        ],
        capture_output=True, text=True, env={**os.environ, "GENCLS_HOME": "/nowhere", **shown},
        timeout=120,
    )  # fmt: skip
    assert done.returncode == UnauthorisedError.exit_code
    assert f"gencls: {cluster.gcs_address}: the cluster refuses us" in done.stderr
    assert "Traceback" not in done.stderr
    assert cluster.token not in done.stdout + done.stderr
