"""Real jobs on one development cluster of two nodes: who gets in, who waits, what cancel frees, and
that nothing of them remains."""

from __future__ import annotations

import json
import os
import re
import signal
import stat
import subprocess
import sys
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from unittest import mock

import psutil
import pytest
from click.testing import CliRunner
from cluster_fixtures import cluster_up, drivers_of, files_with, gencls, succeed, wait_for
from model_fixtures import make_model_folder
from run_fixtures import CLASSES, make_data

from cluster.dev_cluster import DevCluster, processes
from cluster.errors import AddressConflictError, NotARayHeadError, UnauthorisedError
from cluster.job_client import JobClient
from cluster.job_context import JOB_FILE
from cluster.job_package import own_files
from gencls_core.errors import UsageError
from gencls_core.run import RunDirectory
from gencls_core.scores import read_scores
from gencls_core.storage import file_sha256
from jobs.main import cli

pytestmark = pytest.mark.ray

ROOT = Path(__file__).parent.parent
SECRET = "hush-0f3c9a-not-to-be-seen"
TEXTS, SHARD_SIZE = 600, 10

RUN_FILE = f"""
output_dir = "runs/a"
baseline = false
[data]
data_dir = "data"
validation_fraction = 0.2
[model]
model = "base"
[recipe]
recipe = "independent"
[training]
epochs = 1
batch_size = 8
learning_rate = 5e-3
[scoring]
shard_size = {SHARD_SIZE}
[compute]
device = "cpu"
gpus_per_class = 0.5
gpus_per_actor = 1.0
actors = 2
"""

HOLDER = """
import signal, sys
from cluster.connection import ray_session
from cluster.queue import Admission
with ray_session(None, sys.argv[1]), Admission(sys.argv[2], 10) as place:
    print("joined", flush=True)
    list(place.wait())
    print("admitted", flush=True)
    sys.stdin.read()
"""


@pytest.fixture(scope="module")
def development(tmp_path_factory) -> Iterator[tuple[DevCluster, Path]]:
    """A cluster of two nodes with a GPU each in Ray's books, and a folder with data and a model."""
    work = tmp_path_factory.mktemp("work")
    make_data(work / "data", train=12, test=TEXTS // len(CLASSES))
    make_model_folder(work / "base", context=64)
    (work / ".gitignore").write_text("*\n")
    (work / "run.toml").write_text(RUN_FILE)
    before = Path.cwd()
    home = tmp_path_factory.mktemp("home")
    options = ("--nodes", "2", "--cpus-per-node", "2", "--gpus-per-node", "1")
    with cluster_up(home, *options) as cluster:
        os.chdir(work)
        try:
            yield cluster, work
        finally:
            os.chdir(before)


@pytest.mark.fault
def test_a_cluster_is_ours_alone(development):
    cluster, _ = development
    home = Path(os.environ["GENCLS_HOME"])
    assert "2 nodes, 2 CPUs and 1 GPU each" in succeed("cluster", "status")
    # Ray gathers what its nodes have every few seconds.
    in_all = "0 of 4 CPUs in use, 0 of 2 GPUs in use"
    wait_for(lambda: in_all in succeed("cluster", "status"), 60)
    said = succeed("cluster", "up")
    assert "up already" in said
    assert "not as asked" not in said
    # The nodes share the machine's memory; each by itself would count all of it.
    usage = JobClient(cluster.url, cluster.token).usage()
    assert usage is not None
    assert 0 < usage.total["memory"] < psutil.virtual_memory().total

    ours = processes(cluster)
    sockets = [
        connection.laddr.ip.removeprefix("::ffff:")
        for process in ours
        for connection in process.net_connections("inet")
        if connection.status == psutil.CONN_LISTEN
    ]
    # Head, two raylets and their agents at least.
    assert len(sockets) >= 8
    assert set(sockets) == {"127.0.0.1"}

    token = Path(cluster.token_path)
    assert stat.S_IMODE(token.stat().st_mode) == 0o600
    assert stat.S_IMODE(Path(cluster.folder).stat().st_mode) == 0o700
    assert files_with(cluster.token, home, Path(cluster.folder)) == [token]
    assert not any(cluster.token in " ".join(process.cmdline()) for process in ours)

    with pytest.raises(UnauthorisedError, match="no token"):
        JobClient(cluster.url).check()
    with pytest.raises(UnauthorisedError, match="does not know") as refused:
        JobClient(cluster.url, "0" * 64).jobs()
    assert cluster.token not in str(refused.value)
    with pytest.raises(NotARayHeadError):
        JobClient(f"http://{cluster.gcs_address}", cluster.token).check()
    with mock.patch.dict(os.environ, {"RAY_ADDRESS": "10.1.2.3:6379"}):
        assert gencls("jobs")[0] == AddressConflictError.exit_code


def submitted(*arguments: str) -> str:
    said = succeed("submit", *arguments)
    found = re.match(r"Submitted (\S+)\.", said)
    assert found, said
    return found[1]


def status(job_id: str) -> dict[str, object]:
    values: dict[str, object] = json.loads(succeed("status", job_id, "--json"))
    assert values["state"] != "FAILED", succeed("logs", job_id)
    return values


def ended(job_id: str) -> dict[str, object]:
    """Follow a job to its end, which must be good."""
    code, log = gencls("logs", job_id, "-f")
    assert code == 0, log
    assert "#gencls" not in log
    values = status(job_id)
    assert values["state"] == "SUCCEEDED"
    return values


@contextmanager
def holder(cluster: DevCluster, name: str) -> Iterator[subprocess.Popen[str]]:
    """Give a process that stands in the line with the highest priority, and then does nothing."""
    process = subprocess.Popen(
        [sys.executable, "-c", HOLDER, cluster.gcs_address, name],
        cwd=ROOT, text=True, stdin=subprocess.PIPE, stdout=subprocess.PIPE,
    )  # fmt: skip
    try:
        assert process.stdout is not None
        assert process.stdout.readline() == "joined\n"
        yield process
    finally:
        process.kill()
        process.communicate()


def admitted(process: subprocess.Popen[str]) -> bool:
    assert process.stdout is not None
    return process.stdout.readline() == "admitted\n"


def workers_of(cluster: DevCluster, job: str) -> list[psutil.Process]:
    """Give Ray's workers of a job: they are told by the logs that they hold open."""
    number = JobClient(cluster.url, cluster.token).job(job).ray_job
    assert number
    found = []
    for process in processes(cluster):
        try:
            if any(f"-{number}-{process.pid}" in file.path for file in process.open_files()):
                found.append(process)
        except psutil.NoSuchProcess:
            continue
    return found


def commits(work: Path) -> Counter[tuple[str, str, int]]:
    log = work / "runs/a/events.jsonl"
    # The last line may be in the making.
    lines = log.read_text(encoding="utf-8").split("\n")[:-1] if log.exists() else []
    return Counter(
        (line["split"], line["class_name"], line["shard"])
        for line in map(json.loads, lines)
        if line["event"] == "ShardCommitted"
    )


def holding(value: str, process: psutil.Process) -> bool:
    """Say whether a value stands in a process's environment or memory."""
    needle = value.encode()
    try:
        if needle in Path(f"/proc/{process.pid}/environ").read_bytes():
            return True
        with Path(f"/proc/{process.pid}/mem").open("rb", buffering=0) as memory:
            for line in Path(f"/proc/{process.pid}/maps").read_text().splitlines():
                span, rights, *_ = line.split()
                if not rights.startswith("rw"):
                    continue
                start, stop = (int(part, 16) for part in span.split("-"))
                try:
                    memory.seek(start)
                    if needle in memory.read(stop - start):
                        return True
                except (OSError, OverflowError, ValueError):
                    continue
    except (FileNotFoundError, PermissionError, ProcessLookupError):
        return False
    return False


@pytest.mark.slow
@pytest.mark.fault
def test_jobs_wait_work_stop_and_go_on_and_nothing_of_them_remains(development):
    cluster, work = development
    client = JobClient(cluster.url, cluster.token)
    own = {name: file_sha256(path) for name, path in own_files().items()}

    # The first job of the cluster, with a secret: it starts the line, and has nobody before it.
    with mock.patch.dict(os.environ, {"HUSH": SECRET}):
        train = submitted("--env", "HUSH", "--", "train", "run.toml")
    said = succeed("submit", "--", "train", "run.toml")
    assert said.startswith(f"{train} is there already ("), "submitting twice is one job"
    assert len(client.jobs()) == 1
    wait_for(lambda: str(status(train)["progress"]).startswith("train"))
    with holder(cluster, "holder") as first:
        ended(train)
        assert admitted(first)

        # Both wait, the later one first in the line, and say behind whom. Nobody owns the run.
        urgent_command = ("--priority", "5", "--grace", "90", "--", "run", "run.toml")
        patient = submitted("--", "train", "run.toml", "--output-dir", "runs/b")
        urgent = submitted(*urgent_command)
        wait_for(lambda: status(patient)["progress"] == "place 2 of 2")
        found = status(patient)
        assert found["state"] == "WAITING"
        assert "behind holder, which has held the cluster since" in str(found["why"])
        wait_for(lambda: status(urgent)["progress"] == "place 1 of 2")
        assert "waiting: place 2 of 2" in succeed("logs", patient)
        assert "WAITING" in succeed("jobs")
        assert list(work.glob("runs/*/.owners")) == []
        # Who follows the log goes away without the job.
        follower = subprocess.Popen(
            [sys.executable, "-m", "jobs", "logs", patient, "-f"],
            cwd=ROOT, text=True, stdout=subprocess.PIPE, stderr=subprocess.PIPE,
        )  # fmt: skip
        while "waiting: place 2 of 2" not in (line := follower.stdout.readline()):
            assert line, "the log has ended"
        follower.send_signal(signal.SIGINT)
        _, said = follower.communicate(timeout=60)
        assert follower.returncode == 130
        assert said.strip() == f"The job goes on: gencls logs {patient} -f"
        said = succeed("cancel", patient)
        assert f"{patient}: STOPPED" in said
        wait_for(lambda: drivers_of(patient) == [], 30)
        wait_for(lambda: status(urgent)["progress"] == "place 1 of 1")
        first.communicate(timeout=60)

    everywhere = Path(cluster.folder).glob("*/session_2*/runtime_resources/working_dir_files/*/")
    shipped = [place for place in everywhere if (place / JOB_FILE).exists()]
    assert shipped, "what is unpacked over there is the whole of it"
    for place in shipped:
        assert {name: file_sha256(place / name) for name in own} == own

    # Cancelled in the middle of a shard: what is in hand is committed, and all of it is free again.
    # Not in the validation texts: actors may come and go between the two.
    wait_for(lambda: any(split == "test" for split, *_ in commits(work)), every=0.01)
    paused = workers_of(cluster, urgent)
    assert any("IDLE" not in " ".join(process.cmdline()) for process in paused)
    for process in paused:
        process.send_signal(signal.SIGSTOP)
    canceller = subprocess.Popen(
        [sys.executable, "-m", "jobs", "cancel", urgent],
        cwd=ROOT, text=True, stdout=subprocess.PIPE,
    )  # fmt: skip
    wait_for(lambda: "the shards in hand are being committed" in succeed("logs", urgent), 60)
    before = commits(work)
    for process in paused:
        process.send_signal(signal.SIGCONT)
    told, _ = canceller.communicate(timeout=150)
    assert canceller.returncode == 0
    assert "has 90 s to end" in told
    assert f"{urgent}: STOPPED" in told
    assert "its resources are free: 0 of 4 CPUs in use, 0 of 2 GPUs in use" in told
    assert available(cluster) == {"CPU": 4.0, "GPU": 2.0}
    wait_for(lambda: drivers_of(urgent) == [] == workers_of(cluster, urgent), 30)
    assert not any(process.is_running() for process in paused)
    assert succeed("cancel", urgent).strip() == f"{urgent} was over already: STOPPED"
    run = RunDirectory(work / "runs/a")
    assert run.manifest()["status"] == "stopped"
    assert not (run.path / ".owners").exists()
    stopped = commits(work)
    in_all = TEXTS // SHARD_SIZE * len(CLASSES)
    of_test = sum(split == "test" for split, *_ in stopped)
    assert of_test < in_all, "it was stopped before its end"
    assert set(stopped) > set(before), "the shards in hand were committed"
    recorded = 0
    for store in (run.scores, run.validation_scores):
        assert store.orphans() == []
        assert store.torn(store.records()) == []
        recorded += len(store.records())
    assert recorded == len(stopped)

    # It goes on from there, to the end; every row is there once, and was computed once.
    again = f"{urgent}-2"
    assert f"Submitted {again}." in succeed("resubmit", urgent)
    found = ended(again)
    assert "nothing to train" in succeed("logs", again)
    assert found["run"] == str(run.path)
    report = json.loads((run.report_path / "report.json").read_text())["accuracy"]
    assert found["accuracy"] == report["uncalibrated"]
    assert found["accuracy_calibrated"] == report["calibrated"]
    accuracy = f"{100 * report['uncalibrated']:.1f} %"
    assert f"accuracy   {accuracy}" in succeed("status", again)
    assert accuracy in succeed("jobs")
    assert "has succeeded already" in succeed("submit", *urgent_command)
    assert set(commits(work).values()) == {1}
    rows = read_scores(run.scores.path)
    pairs = Counter(zip(rows["example_id"].to_pylist(), rows["class"].to_pylist(), strict=True))
    assert len(pairs) == TEXTS * len(CLASSES)
    assert set(pairs.values()) == {1}

    # What the first job was trusted with stands nowhere: no file, no log, nothing that Ray shows,
    # and no worker that has outlived it.
    folders = [Path(cluster.folder), Path(os.environ["GENCLS_HOME"]), work]
    assert files_with(SECRET, *folders) == []
    assert files_with(cluster.token, *folders) == [Path(cluster.token_path)]
    shown = client._request("GET", "/api/jobs/", None, seconds=20).decode()
    assert train in shown
    assert SECRET not in shown
    alive = processes(cluster)
    assert any("LineActor" in " ".join(process.cmdline()) for process in alive)
    with_secret = {process.name() for process in alive if holding(SECRET, process)}
    # Ray's own services have handled the upload, and may hold remains of it.
    assert [name for name in with_secret if "::" in name and not name.endswith("Agent")] == []
    with pytest.raises(UsageError, match="HUSH"):
        raise_error("resubmit", train)


def raise_error(*arguments: str) -> None:
    raised = CliRunner().invoke(cli, list(arguments)).exception
    assert raised is not None
    raise raised


def available(cluster: DevCluster) -> dict[str, float]:
    """Ask Ray itself, as a driver, which CPUs and GPUs are free."""
    code = (
        "import json, sys; from cluster.connection import ray_session\n"
        "with ray_session(None, sys.argv[1]):\n"
        "    import ray; print('free', json.dumps(ray.available_resources()))"
    )
    done = subprocess.run(
        [sys.executable, "-c", code, cluster.gcs_address],
        cwd=ROOT, capture_output=True, text=True, check=True,
    )  # fmt: skip
    found = json.loads(done.stdout.rpartition("free ")[2])
    return {name: found.get(name, 0.0) for name in ("CPU", "GPU")}


@pytest.mark.slow
def test_a_driver_that_is_killed_loses_its_place(development):
    cluster, _ = development
    with holder(cluster, "killed") as first:
        assert admitted(first)
        with holder(cluster, "next") as second:
            first.kill()
            assert admitted(second)


@pytest.mark.fault
@pytest.mark.parametrize("shown", [{}, {"RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN": "0" * 64}])
def test_a_driver_without_the_token_is_refused(development, shown):
    cluster, _ = development
    done = subprocess.run(
        [
            sys.executable, "-m", "jobs", "run", "run.toml", "--output-dir", "runs/refused",
            "--address", cluster.gcs_address,
        ],
        capture_output=True, text=True, env={**os.environ, "GENCLS_HOME": "/nowhere", **shown},
        timeout=120,
    )  # fmt: skip
    assert done.returncode == UnauthorisedError.exit_code
    assert f"gencls: {cluster.gcs_address}: the cluster refuses us" in done.stderr
    assert "Traceback" not in done.stderr
    assert cluster.token not in done.stdout + done.stderr


def test_a_cluster_leaves_nothing(development):
    cluster, _ = development
    ours = processes(cluster)
    assert ours
    assert "nothing of it is left" in succeed("cluster", "down")
    assert processes(cluster) == []
    assert not any(process.is_running() for process in ours)
    assert not Path(cluster.folder).exists()
    assert list((Path(os.environ["GENCLS_HOME"]) / "cluster").iterdir()) == []
    assert gencls("cluster", "down")[1].startswith("No development cluster")
