"""Completion: what a shell asks, as it asks it, and a real bash."""

from __future__ import annotations

import os
import pty
import shutil
import subprocess
import sys
import threading
from pathlib import Path

import click
import pytest
from click.shell_completion import BashComplete
from click.testing import CliRunner

from jobs.completion import COMPLETE_VARIABLE
from jobs.main import COMMANDS, cli

ROOT = Path(__file__).parent.parent


def asked(line: str, *options: str) -> subprocess.CompletedProcess[str]:
    """Ask, as bash does, what the last word of a line could become."""
    return subprocess.run(
        [sys.executable, *options, "-m", "jobs"],
        env={
            **os.environ,
            "PYTHONPATH": str(ROOT),
            COMPLETE_VARIABLE: "bash_complete",
            "COMP_WORDS": line,
            "COMP_CWORD": str(len(line.split(" ")) - 1),
        },
        capture_output=True,
        text=True,
        timeout=300,
    )


@pytest.mark.parametrize(
    ("line", "answers"),
    [
        ("gencls co", ["plain,compare", "plain,completion"]),
        ("gencls --d", ["plain,--debug"]),
        ("gencls run --pre", ["plain,--precision", "plain,--prefix"]),
        ("gencls run --precision b", ["plain,bf16"]),
        ("gencls cluster ", ["plain,down", "plain,status", "plain,up"]),
        ("gencls report ru", ["dir,ru"]),
        ("gencls run --output-dir ru", ["dir,ru"]),
        ("gencls run --data re", ["file,re"]),
        ("gencls rnu --pre", [""]),
    ],
)
def test_answers(line, answers):
    result = asked(line)
    assert (result.returncode, result.stderr) == (0, "")
    assert sorted(result.stdout.removesuffix("\n").split("\n")) == answers


@pytest.mark.parametrize("line", ["gencls ", "gencls run --", "gencls compare --systems t"])
def test_an_answer_loads_nothing_heavy(line):
    loaded = {
        row.rpartition("|")[2].strip()
        for row in asked(line, "-X", "importtime").stderr.splitlines()
    }
    assert "click" in loaded
    assert not loaded & {"torch", "ray", "transformers", "pyarrow", "numpy", "rich"}


def test_commands_are_named_without_importing_them():
    loaded = asked("gencls ", "-X", "importtime").stderr
    assert not [
        name for name, _ in COMMANDS.values() if name in loaded and "completion" not in name
    ]


@pytest.mark.parametrize("name", COMMANDS)
def test_every_option_is_completed(name):
    command = cli.get_command(click.Context(cli), name)
    complete = BashComplete(cli, {}, "gencls", COMPLETE_VARIABLE)
    found = {item.value for item in complete.get_completions([name], "--")}
    options = [one for one in command.params if isinstance(one, click.Option)]
    assert {flag for one in options for flag in one.opts if flag.startswith("--")} <= found


@pytest.mark.parametrize("shell", ["bash", "zsh", "fish"])
def test_the_script_is_for_gencls(shell):
    result = CliRunner().invoke(cli, ["completion", shell], prog_name="python -m jobs")
    assert result.exit_code == 0
    assert f"{COMPLETE_VARIABLE}={shell}_complete" in result.output
    assert "python -m" not in result.output
    if shutil.which(shell):
        checked = subprocess.run([shell, "-n"], input=result.output, text=True, timeout=60)
        assert checked.returncode == 0


@pytest.mark.skipif(shutil.which("bash") is None, reason="no bash here")
def test_bash_completes_what_is_typed(tmp_path):
    (tmp_path / "runs" / "first").mkdir(parents=True)
    command = tmp_path / "gencls"
    # What is completed is the command itself; what is then entered is only written down.
    command.write_text(
        f'#!/bin/sh\ncase "${COMPLETE_VARIABLE}$1" in bash_complete*|completion)\n'
        f'exec "{sys.executable}" -m jobs "$@";;\nesac\necho "$@" >> "{tmp_path}/entered"\n'
    )
    command.chmod(0o755)
    ours, theirs = pty.openpty()
    environment = {
        **os.environ,
        "PATH": f"{tmp_path}:{os.environ['PATH']}",
        "PYTHONPATH": str(ROOT),
        "HOME": str(tmp_path),
        "TERM": "dumb",
    }
    bash = subprocess.Popen(
        ["bash", "--norc", "--noprofile", "-i"],
        stdin=theirs,
        stdout=theirs,
        stderr=theirs,
        cwd=tmp_path,
        env=environment,
        start_new_session=True,
    )
    os.close(theirs)
    shown: list[bytes] = []

    def read() -> None:
        try:
            while piece := os.read(ours, 4096):
                shown.append(piece)
        except OSError:  # the other end is closed
            pass

    reader = threading.Thread(target=read)
    reader.start()
    try:
        os.write(ours, b"source <(gencls completion bash)\n")
        os.write(ours, b"complete -p gencls > registered\n")
        os.write(ours, b"gencls verif\t--rep\truns/f\t\nexit\n")
        assert bash.wait(timeout=300) == 0, b"".join(shown)
    finally:
        bash.kill()
        reader.join(timeout=60)
        os.close(ours)
    assert "-F _gencls_completion gencls" in (tmp_path / "registered").read_text()
    assert (tmp_path / "entered").read_text() == "verify --repair runs/first/\n"
