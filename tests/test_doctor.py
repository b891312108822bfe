"""`gencls doctor`: planted problems are found, each with its remedy; no check harms another."""

from __future__ import annotations

import contextlib
import http.server
import json
import os
import signal
import socket
import subprocess
import sys
import threading
import time
from collections import namedtuple
from pathlib import Path

import psutil
import pytest
from click.testing import CliRunner
from test_architecture import loaded_by

from cluster.doctor import every_check
from cluster.errors import UnreachableError
from cluster.machine_checks import cgroup_limits, check_machine
from cluster.ray_checks import check_cluster, check_jobs, check_ray_folder
from gencls_core import package_checks, place_checks, torch_checks
from gencls_core.checks import Check, Finding, examine, failure, without_secrets
from gencls_core.errors import UsageError
from jobs.main import cli

ROOT = Path(__file__).parent.parent
SECRET = "tok-3f9a7c55e1"


def finds() -> list[Finding]:
    """Stand for a check that finds something, and reads what it should not tell."""
    print("noise", flush=True)
    found = f"token {os.environ['RAY_AUTH_TOKEN']}\x1b[31m red"
    return [Finding("one", "ok", found), Finding("two", "warning", "low", "raise it")]


def raises():
    """Stand for a check that fails after it has found something."""
    yield Finding("before", "ok", "fine")
    raise RuntimeError(f"no good: s3://user:{SECRET}@bucket")


def hangs() -> list[Finding]:
    """Stand for a check on a dead network folder."""
    time.sleep(600)
    return []


def dies() -> list[Finding]:
    """Stand for a library that was built for another processor."""
    os.kill(os.getpid(), signal.SIGILL)
    return []


def test_a_check_that_fails_takes_no_other_along(monkeypatch, capfd):
    monkeypatch.setenv("RAY_AUTH_TOKEN", SECRET)
    me = "test_doctor"
    checks = [
        Check("hanging", f"{me}:hangs", seconds=3.0),
        Check("raising", f"{me}:raises"),
        Check("dying", f"{me}:dies"),
        Check("gone", "no_such_package.of_ours:check"),
        Check("good", f"{me}:finds"),
    ]
    found = list(examine(checks))
    assert [(one.name, one.state) for one in found] == [
        ("hanging", "problem"),
        ("before", "ok"),
        ("raising", "problem"),
        ("dying", "problem"),
        ("gone", "problem"),
        ("one", "ok"),
        ("two", "warning"),
    ]
    said = [one.found for one in found]
    assert said[0] == "no answer within 3 s"
    assert said[2] == "RuntimeError: no good: s3://…@bucket"
    assert "SIGILL" in said[3]
    assert "no_such_package" in said[4]
    assert said[5] == "token … [31m red"
    assert all(one.remedy for one in found if one.state != "ok")
    assert capfd.readouterr() == ("", "")


def test_our_errors_bring_their_remedy():
    error = UnreachableError.of("nobody answers", place="a:1", found="silence", remedy="wake it")
    assert failure("x", error) == Finding(
        "x", "problem", "a:1: nobody answers; found: silence", "wake it"
    )
    assert failure("x", ValueError()).found == "ValueError"


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("https://me:pw@host/x and http://tok@host", "https://…@host/x and http://…@host"),
        ("s3://b/k?access_key=A&secret_key=BC&region=x", "s3://b/k?access_key=…&secret_key=…&region=x"),
        ("key wJalrXUtn, token hf_abcdefg", "key …, token …"),
        ("mode token, file /home/a/token", "mode token, file /home/a/token"),
        ("true and false", "true and false"),
    ],
)  # fmt: skip
def test_secrets_are_taken_out(monkeypatch, text, shown):
    for name, value in {
        "AWS_SECRET_ACCESS_KEY": "wJalrXUtn",
        "HF_TOKEN": "hf_abcdefg",
        "RAY_AUTH_MODE": "token",
        "RAY_AUTH_TOKEN_PATH": "/home/a/token",
        "TOKENIZERS_PARALLELISM": "false",
    }.items():
        monkeypatch.setenv(name, value)
    assert without_secrets(text) == shown


def plant_package(folder: Path, name: str, version: str, *requires: str) -> None:
    """Lay down the metadata of a package that would be found before the real one."""
    info = folder / f"{name.replace('-', '_')}-{version}.dist-info"
    info.mkdir(parents=True)
    lines = [f"Requires-Dist: {one}\n" for one in requires]
    (info / "METADATA").write_text(
        f"Metadata-Version: 2.1\nName: {name}\nVersion: {version}\n{''.join(lines)}"
    )


def test_packages_out_of_range(monkeypatch, tmp_path):
    by_name = {one.name: one for one in package_checks.check_packages()}
    assert by_name["python"].state == "ok"
    assert {"extra gpu", "extra setfit"} <= by_name.keys()
    assert "torch 2" in by_name["packages"].found

    plant_package(tmp_path, "duckdb", "0.3.1")
    plant_package(
        tmp_path, "ijson", "9.0", "jinja2<1.0", "no-such-package-of-ours>=2; python_version>'3'"
    )
    monkeypatch.syspath_prepend(tmp_path)
    by_name = {one.name: one for one in package_checks.check_packages()}
    wrong, below = by_name["packages"], by_name["packages of packages"]
    assert (wrong.state, below.state) == ("problem", "warning")
    assert "duckdb 0.3.1 is not >=" in wrong.found
    assert "pip install 'duckdb>=" in wrong.remedy
    assert "which ijson asks for" in below.found
    assert "no-such-package-of-ours>=2 is not installed" in below.found


def test_an_extra_that_is_too_old(monkeypatch, tmp_path):
    plant_package(tmp_path, "liger-kernel", "0.1")
    monkeypatch.syspath_prepend(tmp_path)
    old = {one.name: one for one in package_checks.check_packages()}["extra gpu"]
    assert old.state == "warning"
    assert "liger-kernel 0.1 is not >=0.8" in old.found


def test_folders(monkeypatch, tmp_path):
    file = tmp_path / "file"
    file.touch()
    monkeypatch.setenv("GENCLS_HOME", str(file / "home"))
    (home,) = place_checks.check_home()
    assert home.state == "problem"
    assert f"{file} is no folder" in home.found
    assert "GENCLS_HOME" in home.remedy

    monkeypatch.setenv("GENCLS_HOME", str(tmp_path / "not" / "there"))
    (home,) = place_checks.check_home()
    assert home.state == "ok"
    assert not (tmp_path / "not").exists(), "a check makes nothing"

    usage = namedtuple("usage", "total used free")
    monkeypatch.setattr(place_checks.shutil, "disk_usage", lambda path: usage(10**12, 0, 10**9))
    (home,) = place_checks.check_home()
    assert home.state == "warning"
    assert "1.0 GB free" in home.found


def test_a_broken_pulled_model(monkeypatch, tmp_path):
    monkeypatch.setenv("GENCLS_HOME", str(tmp_path))
    (none,) = place_checks.check_pulled()
    assert none.state == "ok"
    (tmp_path / "models" / "smollm2-135m").mkdir(parents=True)
    (broken,) = place_checks.check_pulled()
    assert (broken.state, broken.remedy) == ("warning", "gencls pull smollm2-135m")


class Answer(http.server.BaseHTTPRequestHandler):
    """A hub that has a bad day, or a good one."""

    code = 200

    def do_HEAD(self) -> None:
        self.send_response(self.code)
        self.end_headers()

    def log_message(self, *arguments: object) -> None:
        pass


@pytest.mark.parametrize(("code", "state"), [(200, "ok"), (401, "ok"), (503, "warning")])
def test_the_hub_answers(monkeypatch, code, state):
    monkeypatch.setattr(Answer, "code", code)
    monkeypatch.delenv("HF_HUB_OFFLINE", raising=False)
    for name in ("http_proxy", "HTTP_PROXY", "all_proxy", "ALL_PROXY"):
        monkeypatch.delenv(name, raising=False)
    with http.server.HTTPServer(("127.0.0.1", 0), Answer) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        monkeypatch.setenv("HF_ENDPOINT", f"http://127.0.0.1:{server.server_port}")
        (hub,) = examine([Check("hub", "gencls_core.place_checks:check_hub")])
        server.shutdown()
    assert hub.state == state, hub


def test_the_hub_is_switched_off(monkeypatch):
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    (hub,) = place_checks.check_hub()
    assert (hub.state, hub.remedy) == ("warning", "unset HF_HUB_OFFLINE")


def test_limits_of_a_container(monkeypatch, tmp_path):
    own = tmp_path / "own"
    own.write_text("0::/a/b\n")
    two = tmp_path / "two"
    (two / "a" / "b").mkdir(parents=True)
    (two / "a" / "cpu.max").write_text("150000 100000\n")
    (two / "a" / "b" / "cpu.max").write_text("max 100000\n")
    (two / "a" / "b" / "memory.max").write_text("3000000000\n")
    assert cgroup_limits(two, own) == (1.5, 3_000_000_000)

    own.write_text("4:memory:/x\n3:cpu,cpuacct:/host/path\n2:pids:/\n")
    one = tmp_path / "one"
    (one / "memory" / "x").mkdir(parents=True)
    (one / "memory" / "x" / "memory.limit_in_bytes").write_text("2000000000\n")
    (one / "memory" / "memory.limit_in_bytes").write_text("9223372036854771712\n")
    (one / "cpu").mkdir()
    (one / "cpu" / "cpu.cfs_quota_us").write_text("50000\n")
    (one / "cpu" / "cpu.cfs_period_us").write_text("100000\n")
    assert cgroup_limits(one, own) == (0.5, 2_000_000_000)
    assert cgroup_limits(tmp_path / "no", own) == (None, None)

    monkeypatch.setattr("cluster.machine_checks.cgroup_limits", lambda: (0.5, 10**9))
    cpu, memory = check_machine()
    assert (cpu.state, cpu.remedy) == ("warning", "give runs --num-cpus 1")
    assert (memory.state, memory.remedy) == ("warning", "give runs --memory-gb 1.0")


@pytest.mark.parametrize(("bf16", "words"), [(True, "--precision bf16 gains"), (False, "is right")])
def test_precision_on_a_cpu(monkeypatch, bf16, words):
    monkeypatch.setattr("torch.cuda.device_count", lambda: 0)
    monkeypatch.setattr(torch_checks, "cpu_multiplies_bf16", lambda: bf16)
    precision = list(torch_checks.check_torch())[-1]
    assert precision.name == "precision"
    assert words in precision.found


def test_a_gpu_as_it_would_show(monkeypatch):
    for name, value in {
        "device_count": lambda: 1,
        "is_available": lambda: True,
        "get_device_capability": lambda *number: (9, 0),
        "get_device_name": lambda number: "Big GPU",
        "mem_get_info": lambda number: (4 * 10**9, 10**11),
    }.items():
        monkeypatch.setattr(f"torch.cuda.{name}", value)
    monkeypatch.setattr(
        "gencls_core.compilation.why_not_compiled", lambda device: "no C compiler found"
    )
    _, gpu, precision, compiles = torch_checks.check_torch()
    assert gpu.state == "warning"
    assert "4.0 of 100.0 GB free" in gpu.found
    assert precision.found.startswith("bf16")
    assert compiles.state == "warning"
    assert "no C compiler found" in compiles.found


@pytest.fixture
def closed_port() -> int:
    """Give a port that nobody listens on."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        return free.getsockname()[1]


def test_clusters_that_are_not_there(monkeypatch, closed_port):
    for name in ("RAY_ADDRESS", "GENCLS_ADDRESS", "RAY_API_SERVER_ADDRESS"):
        monkeypatch.delenv(name, raising=False)
    assert not [*check_cluster(None), *check_jobs(None)], "none is named"
    assert not [*check_jobs("127.0.0.1:6379"), *check_cluster("http://127.0.0.1:8265")]
    with pytest.raises(UnreachableError, match="refused"):
        list(check_jobs(f"http://127.0.0.1:{closed_port}"))
    monkeypatch.setenv("GENCLS_ADDRESS", f"127.0.0.1:{closed_port}")
    with pytest.raises(UnreachableError, match="refused"):
        list(check_cluster(None))


@pytest.mark.parametrize("scheme", ["", "http://"])
def test_a_stale_ray_address_keeps_nothing_from_working(monkeypatch, closed_port, scheme):
    for name in ("GENCLS_ADDRESS", "RAY_API_SERVER_ADDRESS"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("RAY_ADDRESS", f"{scheme}127.0.0.1:{closed_port}")
    (cluster,) = check_cluster(None)
    assert cluster.state == "warning"
    assert "refused" in cluster.found
    assert cluster.remedy.startswith("unset RAY_ADDRESS; or check ")


class Dashboard(http.server.BaseHTTPRequestHandler):
    """The head of a cluster that has had no job."""

    def do_GET(self) -> None:
        body = b'{"ray_version": "2.60.0"}' if self.path == "/api/version" else b"[]"
        self.send_response(200)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *arguments: object) -> None:
        pass


def test_a_dashboard_takes_jobs(monkeypatch):
    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    with http.server.HTTPServer(("127.0.0.1", 0), Dashboard) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        address = f"http://127.0.0.1:{server.server_port}"
        (jobs,) = check_jobs(address)
        # As Ray's own jobs take it.
        monkeypatch.delenv("GENCLS_ADDRESS", raising=False)
        monkeypatch.setenv("RAY_ADDRESS", address)
        (cluster,) = check_cluster(None)
        server.shutdown()
    assert jobs.state == cluster.state == "ok"
    assert "Ray 2.60.0, 0 jobs" in jobs.found
    assert cluster.found.startswith(jobs.found)
    assert "`gencls submit` goes there with --address" in cluster.found


@pytest.mark.ray
def test_a_cluster_is_joined(monkeypatch, shared_ray):
    import ray

    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    address = ray.get_runtime_context().gcs_address
    (cluster,) = examine([Check("cluster", "cluster.ray_checks:check_cluster", (address,), 300.0)])
    assert cluster.state == "ok", cluster
    assert f"{address}: Ray {ray.__version__}, 1 node with 2 CPUs, 0 GPUs" in cluster.found


@pytest.mark.ray
def test_ray_in_a_folder_with_a_long_path(monkeypatch, tmp_path):
    monkeypatch.setenv("RAY_TMPDIR", str(tmp_path / ("x" * 80)))
    (folder,) = check_ray_folder()
    assert folder.state == "problem"
    assert "RAY_TMPDIR" in folder.remedy
    # A run is told the same, not shown a traceback.
    (ray,) = examine([Check("ray", "cluster.ray_checks:check_private_ray", (None,), 300.0)])
    assert ray.state == "problem"
    assert "RAY_TMPDIR" in ray.remedy, ray


def doctor(environment: dict[str, str], *arguments: str) -> subprocess.CompletedProcess[str]:
    """Run the command as a user does."""
    kept = {name: value for name, value in os.environ.items() if name != "HF_HUB_OFFLINE"}
    return subprocess.run(
        [sys.executable, "-m", "jobs", "doctor", *arguments],
        env={**kept, **environment},
        capture_output=True,
        text=True,
        timeout=500,
        cwd=ROOT,
    )


@pytest.mark.ray
def test_planted_problems_all_at_once(tmp_path, closed_port):
    plant_package(tmp_path / "packages", "duckdb", "0.3.1")
    (tmp_path / "file").touch()
    address = f"127.0.0.1:{closed_port}"
    result = doctor(
        {
            "PYTHONPATH": f"{tmp_path / 'packages'}:{ROOT}",
            "GENCLS_HOME": str(tmp_path / "file" / "home"),
            "HF_HOME": str(tmp_path / "file" / "hf"),
            "HF_ENDPOINT": f"http://me:{SECRET}@{address}",
            "RAY_AUTH_TOKEN": SECRET,
            "AWS_SECRET_ACCESS_KEY": SECRET,
        },
        "--json",
        "--address",
        f"http://me:{SECRET}@{address}",
    )
    assert (result.returncode, result.stderr) == (1, "")
    assert SECRET not in result.stdout
    told = json.loads(result.stdout)
    by_name = {one["name"]: one for one in told["findings"]}
    states = {name: one["state"] for name, one in by_name.items() if one["state"] == "problem"}
    assert states.keys() == {"packages", "gencls's folder", "jobs"}
    assert {by_name[name]["state"] for name in ("hub", "hub's cache")} == {"warning"}
    assert by_name["ray"]["state"] == "ok", "a private Ray is another thing"
    assert all(one["remedy"] for one in told["findings"] if one["state"] != "ok")
    assert (told["problems"], told["warnings"]) == (3, 2)


def marked(mark: Path) -> list[str]:
    """Give the commands of the processes that have a mark in their environment."""
    found = []
    for process in psutil.process_iter():
        with contextlib.suppress(psutil.Error):
            if process.environ().get("MARK") == str(mark):
                found.append(" ".join(process.cmdline()))
    return found


@pytest.mark.ray
def test_a_private_ray_starts_and_nothing_is_left(tmp_path):
    result = doctor({"MARK": str(tmp_path)}, "--no-network")
    assert (result.returncode, result.stderr) == (0, "")
    assert "ran a task" in result.stdout
    assert "0 problems" in result.stdout
    assert "huggingface.co" not in result.stdout
    deadline = time.monotonic() + 60
    while (left := marked(tmp_path)) and time.monotonic() < deadline:
        time.sleep(0.5)
    assert not left


@pytest.mark.parametrize(("state", "code"), [("ok", 0), ("warning", 0), ("problem", 1)])
def test_output_and_exit_code(monkeypatch, state, code):
    found = Finding("thing", state, "as found", "" if state == "ok" else "do that")
    monkeypatch.setattr("gencls_core.checks.examine", lambda checks: iter([found]))
    result = CliRunner().invoke(cli, ["doctor"])
    assert result.exit_code == code
    assert f"{state:<7}  thing: as found" in result.output
    assert ("→ do that" in result.output) == (state != "ok")
    told = json.loads(CliRunner().invoke(cli, ["doctor", "--json"]).output)
    assert told["findings"][0]["found"] == "as found"


def test_a_cluster_needs_the_network():
    result = CliRunner().invoke(cli, ["doctor", "--no-network", "--address", "a:1"])
    assert isinstance(result.exception, UsageError)
    assert result.exception.exit_code == 2


def test_every_check_is_there_and_nothing_is_loaded_for_the_list():
    assert all(callable(check.load()) for check in every_check())
    unasked = {check.name for check in every_check()} - {
        check.name for check in every_check(network=False)
    }
    assert unasked == {"cluster", "jobs", "hub"}
    loaded = loaded_by("from cluster.doctor import every_check; every_check()")
    assert not loaded & {"torch", "ray", "pydantic", "psutil", "packaging", "huggingface_hub"}
