"""The command line: help, usage errors and exit codes; whole commands, some as real processes."""

from __future__ import annotations

import csv
import json
import os
import signal
import subprocess
import sys
import time
import tomllib
from collections.abc import Callable
from pathlib import Path

import psutil
import pyarrow.parquet as pq
import pytest
from click.testing import CliRunner
from run_fixtures import CLASSES, make_data, sentences, write_jsonl

from gencls_core.config import SECTIONS
from gencls_core.config_parsing import parse_run_config
from gencls_core.errors import UsageError
from jobs.main import COMMANDS, cli, main
from jobs.options import build_config

ROOT = Path(__file__).parent.parent


Command = Callable[..., subprocess.CompletedProcess[str]]


def gencls_process(*arguments: str | Path) -> subprocess.CompletedProcess[str]:
    """Run a command as a user does, in a process of its own."""
    return subprocess.run(
        [sys.executable, "-m", "jobs", *map(str, arguments)],
        capture_output=True,
        text=True,
        timeout=300,
        cwd=ROOT,
    )


@pytest.fixture
def gencls(monkeypatch, capsys) -> Command:
    """Give a command's whole way, from `sys.argv` to the exit code, in this process.

    A process of its own takes seconds for imports; where it is the point, see `gencls_process`.
    """

    def run(*arguments: str | Path) -> subprocess.CompletedProcess[str]:
        command = ["gencls", *map(str, arguments)]
        monkeypatch.setattr(sys, "argv", command)
        on_sigterm = signal.getsignal(signal.SIGTERM)
        capsys.readouterr()
        try:
            with pytest.raises(SystemExit) as finished:
                main()
        finally:
            signal.signal(signal.SIGTERM, on_sigterm)
        return subprocess.CompletedProcess(command, finished.value.code, *capsys.readouterr())

    return run


@pytest.mark.parametrize("name", COMMANDS)
def test_every_command_has_help_with_an_example(name):
    result = CliRunner().invoke(cli, [name, "--help"])
    assert result.exit_code == 0
    assert f"gencls {name}" in result.output
    assert COMMANDS[name][1] in CliRunner().invoke(cli, ["--help"]).output


def test_every_setting_has_a_flag_and_a_line_in_the_run_file(tmp_path):
    help_text = CliRunner().invoke(cli, ["run", "--help"]).output
    # What other systems need, a comparison alone asks for.
    help_text += CliRunner().invoke(cli, ["compare", "--help"]).output
    flags = {"prompts": "prompt"}
    path = tmp_path / "experiment.toml"
    assert CliRunner().invoke(cli, ["init", str(path)]).exit_code == 0
    written = path.read_text()
    for section in SECTIONS.values():
        for name in section.model_fields:
            assert "--" + flags.get(name, name).replace("_", "-") in help_text
            assert f"{name} = " in written
    config = parse_run_config(tomllib.loads(written))
    assert config.data.data == "demo"
    # Every commented default is the default: uncommenting them changes nothing.
    uncommented = "\n".join(
        line.removeprefix("# ") if line.startswith("# ") and " = " in line and "…" not in line
        else line
        for line in written.splitlines()
        if not (line.startswith("# ") and " = " in line and " " in line.split(" = ")[0][2:])
    )  # fmt: skip
    assert parse_run_config(tomllib.loads(uncommented)) == config


def test_flags_override_the_run_file(tmp_path):
    path = tmp_path / "a.toml"
    path.write_text(
        'output_dir = "out"\n[data]\ndata_dir = "d"\n[training]\nepochs = 7\nbatch_size = 3\n'
    )
    config = build_config(path, {"epochs": 2.0, "data": "demo"})
    assert (config.training.epochs, config.training.batch_size) == (2, 3)
    assert (config.data.data, config.data.data_dir) == ("demo", None)
    assert config.output_dir == tmp_path / "out"
    assert build_config(path, {}).data.data_dir == tmp_path / "d"


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("[training]\nepoch = 3", "did you mean `epochs`"),
        ("[training]\nepochs = -1", "training.epochs"),
        ("[data\n", "not a TOML file"),
        ("[training]\nlearning_rate = nan", "training.learning_rate"),
        ('[data]\ndata = "a"\ndata_dir = "b"', "not both"),
    ],
)
def test_bad_run_files_name_the_field(tmp_path, text, message):
    path = tmp_path / "bad.toml"
    path.write_text(text)
    with pytest.raises(UsageError, match=message) as error:
        build_config(path, {})
    assert "bad.toml" in str(error.value)


@pytest.mark.parametrize(
    ("arguments", "code", "message"),
    [
        (["rnu"], 2, "Did you mean 'run'"),
        (["run", "--epohcs", "3"], 2, "--epochs"),
        (["run", "--epochs", "0"], 2, "training.epochs"),
        (["run", "no-such.toml"], 2, "no such run file"),
        (["run", "--data", "x.csv", "--data-dir", "y"], 2, "either --data or --data-dir"),
        (["run", "--fp16", "--precision", "bf16", "--data", "demo"], 2, "--fp16 contradicts"),
        (["run"], 2, "--data"),
        (["run", "--data", "./no-such.csv", "--output-dir", "{tmp}/r"], 1, "no-such.csv"),
        (["report", "{tmp}"], 1, "not a run directory"),
        (["query", "{tmp}", "select 1"], 1, "not a run directory"),
        (["evaluate", "--model-dir", "{tmp}"], 1, "not a run directory"),
        (["classify", "--model-dir", "{tmp}", "x.jsonl", "--output", "a.xls"], 2, ".parquet"),
        (["pull", "no-such-model"], 2, "smollm2-135m"),
        (["plan", "--data", "demo", "--model", "scratch:huge", "--output-dir", "{tmp}/p"], 1,
         "scratch:tiny"),
    ],
)  # fmt: skip
def test_exit_codes_and_messages(gencls, arguments, code, message, tmp_path):
    result = gencls(*[a.replace("{tmp}", str(tmp_path)) for a in arguments])
    assert result.returncode == code, result.stderr
    assert message in result.stderr
    assert "Traceback" not in result.stderr
    assert not (tmp_path / "r").exists() or not (tmp_path / "r" / "dataset").exists()


@pytest.mark.parametrize(
    ("arguments", "code", "message"),
    [
        (["rnu"], 2, "Did you mean 'run'"),
        (["run", "--epochs", "0"], 2, "training.epochs"),
        (["run", "--data", "./no-such.csv", "--output-dir", "{tmp}/r"], 1, "no-such.csv"),
    ],
)
def test_exit_codes_of_processes(arguments, code, message, tmp_path):
    result = gencls_process(*[a.replace("{tmp}", str(tmp_path)) for a in arguments])
    assert result.returncode == code
    assert message in result.stderr
    assert "Traceback" not in result.stderr
    assert result.stdout == ""


def test_the_hub_out_of_reach_says_what_works_instead(gencls, tmp_path):
    data = make_data(tmp_path / "data")
    result = gencls("run", "--data-dir", data, "--output-dir", tmp_path / "run")
    assert result.returncode == 1
    assert "gpt2" in result.stderr
    assert "gencls pull smollm2-135m" in result.stderr
    assert "--model scratch:tiny" in result.stderr


@pytest.mark.ray
def test_the_original_scripts_commands(gencls, shared_ray, tmp_path):
    """Train, evaluate and classify as separate commands, with the original flags."""
    data = make_data(tmp_path / "data")
    prepared = gencls("prepare", data, "--output", tmp_path / "json", "--layout", "per-class-json")
    assert prepared.returncode == 0, prepared.stderr
    assert json.loads((tmp_path / "json" / "metadata.json").read_text())["num_classes"] == 3
    results = tmp_path / "results"
    trained = gencls(
        "train", "--data-dir", tmp_path / "json", "--output-dir", results,
        "--model-size", "scratch:tiny", "--epochs", "2", "--batch-size", "8", "--fp16",
        "--gradient-accumulation", "2", "--learning-rate", "1e-3", "--max-samples", "12",
        "--num-cpus", "2",
    )  # fmt: skip
    assert trained.returncode == 0, trained.stderr
    assert "fp16 needs a GPU" in trained.stderr
    assert sorted(p.name for p in (results / "models").iterdir()) == ["01", "Sci%2FTech", "a%20b"]

    output = results / "eval_results.json"
    evaluated = gencls(
        "evaluate", "--model-dir", results, "--data-dir", tmp_path / "json", "--output", output
    )
    assert evaluated.returncode == 0, evaluated.stderr
    assert "class language models" in evaluated.stdout
    report = json.loads(output.read_text())
    assert report["num_examples"] == 14 * 3
    shards = sorted((results / "scores" / "system=class-lm" / "class=01").glob("shard-*.parquet"))
    assert shards
    assert pq.read_table(shards[0], partitioning=None)["example_id"][0].as_py() == "test-0"

    # A process of its own: it starts a Ray, and ends it.
    texts = write_jsonl(tmp_path / "new.jsonl", [{"text": t} for t in sentences("01", 6, seed=5)])
    predictions = tmp_path / "predictions.parquet"
    classified = gencls_process("classify", "--model-dir", results, texts, "--output", predictions)
    assert classified.returncode == 0, classified.stderr
    table = pq.read_table(predictions)
    assert table.num_rows == 6
    assert set(table["predicted"].to_pylist()) <= set(CLASSES)

    asked = gencls("query", results, "select count(*) as n from predictions", "--format", "csv")
    assert list(csv.reader(asked.stdout.splitlines())) == [["n"], ["42"]]
    wrong = gencls("query", results, "select lable from predictions")
    assert wrong.returncode == 2
    assert "label" in wrong.stderr
    rebuilt = gencls("report", results, "--prior", "uniform")
    assert rebuilt.returncode == 0, rebuilt.stderr
    assert "42 test texts" in rebuilt.stdout


@pytest.mark.ray
def test_ctrl_c_ends_all_processes_and_the_run_goes_on(tmp_path):
    data = make_data(tmp_path / "data", train=40)
    command = [
        sys.executable, "-m", "jobs", "run", "--data-dir", str(data), "--output-dir",
        str(tmp_path / "run"), "--model", "scratch:tiny", "--epochs", "200", "--patience", "0",
        "--recipe", "independent",
    ]  # fmt: skip
    process = subprocess.Popen(
        command, cwd=ROOT, stderr=subprocess.PIPE, text=True, start_new_session=True
    )
    events = tmp_path / "run" / "events.jsonl"
    deadline = time.monotonic() + 120
    while not (events.exists() and "TrainingProgress" in events.read_text()):
        assert process.poll() is None, process.stderr.read()
        assert time.monotonic() < deadline
        time.sleep(0.2)
    children = psutil.Process(process.pid).children(recursive=True)
    assert len(children) > 3, "Ray and its workers run"
    os.kill(process.pid, signal.SIGINT)
    _, stderr = process.communicate(timeout=60)
    assert process.returncode == 130
    assert "run the same command again" in stderr
    assert "Traceback" not in stderr
    _, alive = psutil.wait_procs(children, timeout=20)
    assert not [p for p in alive if p.status() != psutil.STATUS_ZOMBIE]
    assert json.loads((tmp_path / "run" / "run.json").read_text())["status"] == "stopped"
    assert not list((tmp_path / "run" / "scores").rglob("*.parquet"))
