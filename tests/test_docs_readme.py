"""Every gencls command that the documentation shows is one that the command line accepts."""

from __future__ import annotations

import re
import shlex
from pathlib import Path

import pytest

from jobs.main import COMMANDS, cli

ROOT = Path(__file__).parent.parent
PAGES = (
    "README.md",
    *sorted(f"docs/{path.name}" for path in (ROOT / "docs").glob("*.md")),
    "CONTRIBUTING.md",
)


def commands(page: str) -> list[str]:
    text = (ROOT / page).read_text(encoding="utf-8")
    blocks = re.findall(r"```sh\n(.*?)```", text, flags=re.DOTALL)
    lines = "\n".join(blocks).replace("\\\n", " ").splitlines()
    return [line.strip() for line in lines if line.strip().startswith("gencls ")]


SHOWN = [(page, line) for page in PAGES if (ROOT / page).exists() for line in commands(page)]


@pytest.mark.parametrize(("page", "line"), SHOWN, ids=lambda value: value[:60])
def test_shown_commands_parse(page, line):
    _, name, *arguments = shlex.split(line, comments=True)
    command = cli.get_command(cli.make_context("gencls", ["--debug", "init"]), name)
    assert command is not None
    command.make_context(name, arguments)


def test_readme_shows_every_command():
    shown = {line.split()[1] for page, line in SHOWN if page == "README.md"}
    assert shown == set(COMMANDS)


def test_readme_has_no_unfilled_figure_and_its_links_lead_somewhere():
    text = (ROOT / "README.md").read_text(encoding="utf-8")
    assert "@@" not in text
    for target in re.findall(r"\]\(([^)#]+)\)", text):
        assert (ROOT / target).exists(), target


def test_make_targets_of_the_readme_exist():
    makefile = (ROOT / "Makefile").read_text(encoding="utf-8")
    for target in re.findall(r"`?make ([a-z-]+)", (ROOT / "README.md").read_text()):
        assert re.search(rf"^{target}:", makefile, flags=re.MULTILINE), target
