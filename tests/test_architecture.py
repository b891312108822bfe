"""The house's rules that a machine can check: import arrows, file sizes, what --help loads."""

from __future__ import annotations

import ast
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
ALLOWED = {"gencls_core": set(), "cluster": {"gencls_core"}, "jobs": {"gencls_core", "cluster"}}
FORBIDDEN = {
    "gencls_core": {"ray", "click", "rich.progress"},
    "cluster": {"click", "rich"},
    "jobs": {"ray", "torch", "transformers"},
}
FILES = [path for package in ALLOWED for path in sorted((ROOT / package).rglob("*.py"))]


def imports_of(path: Path) -> set[str]:
    found = set()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module and node.level == 0:
            found.add(node.module)
    return found


@pytest.mark.parametrize("path", FILES, ids=lambda path: str(path.relative_to(ROOT)))
def test_imports_go_one_way(path):
    package = path.relative_to(ROOT).parts[0]
    for name in imports_of(path):
        top = name.split(".")[0]
        if top in ALLOWED and top != package:
            assert top in ALLOWED[package], f"{path} imports {name}"
        assert top not in FORBIDDEN[package], f"{path} imports {name}"


@pytest.mark.parametrize("path", FILES, ids=lambda path: str(path.relative_to(ROOT)))
def test_one_idea_a_file(path):
    # 300 is the house's measure; a formatter's wrapped lines are not a second idea.
    assert len(path.read_text(encoding="utf-8").splitlines()) <= 380


def loaded_by(code: str) -> set[str]:
    """Run code in a fresh interpreter; give the top-level modules that it loaded."""
    result = subprocess.run(
        [sys.executable, "-c", f"{code}\nimport sys\nprint(*sys.modules, file=sys.stderr)"],
        capture_output=True,
        text=True,
        check=True,
    )
    return {name.split(".")[0] for name in result.stderr.split()}


@pytest.mark.parametrize("arguments", [["--help"], ["run", "--help"], ["train", "-h"]])
def test_help_loads_nothing_heavy(arguments):
    code = (
        "from click.testing import CliRunner; from jobs.main import cli; "
        f"assert CliRunner().invoke(cli, {arguments!r}).exit_code == 0"
    )
    heavy = {"torch", "ray", "transformers", "pyarrow", "duckdb", "datasets", "sklearn", "numpy"}
    assert not loaded_by(code) & heavy


def test_the_library_is_light_to_import():
    assert not loaded_by("import gencls_core") & {"torch", "ray", "transformers"}


@pytest.mark.parametrize(
    ("module", "unneeded"),
    [
        # A run that has nothing left to do starts without them.
        ("cluster.pipeline", {"torch", "transformers", "sklearn", "matplotlib", "datasets"}),
        ("cluster.evaluation", {"torch", "transformers", "sklearn", "matplotlib", "datasets"}),
        # Training runs in workers: the driver hands out paths.
        ("cluster.training", {"torch", "transformers"}),
        ("gencls_core.report", {"torch", "transformers", "sklearn", "ray"}),
        # What a notebook imports before it has asked anything.
        (
            "gencls_core",
            {"torch", "transformers", "sklearn", "ray", "pyarrow", "numpy", "pydantic"},
        ),
        ("gencls_core.classifier_run", {"torch", "transformers", "sklearn", "ray"}),
        ("gencls_core.sklearn_classifier", {"torch", "transformers", "ray"}),
        # Each scoring actor is a process that starts anew.
        ("gencls_core.scoring", {"peft", "datasets", "sklearn", "pandas", "matplotlib", "duckdb"}),
    ],
)
def test_modules_load_what_they_need(module, unneeded):
    assert not loaded_by(f"import {module}") & unneeded
