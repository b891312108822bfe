"""`gencls init`."""

from __future__ import annotations

import json
import textwrap
from pathlib import Path
from typing import Any

import click

__all__ = ["init_command"]


@click.command(name="init")
@click.argument(
    "run_file", type=click.Path(path_type=Path, dir_okay=False), default=Path("experiment.toml")
)
@click.option("--force", is_flag=True, help="Replace a file that is there.")
def init_command(run_file: Path, force: bool) -> None:
    """Write a commented run file with every setting and its default.

    \b
      gencls init experiment.toml
      gencls run experiment.toml
    """
    from gencls_core.errors import UsageError
    from gencls_core.storage import publish_file

    if run_file.exists() and not force:
        raise UsageError.of(
            "the file is there already", place=run_file, remedy="another name, or --force"
        )
    with publish_file(run_file) as temporary:
        temporary.write_text(render_run_file(), encoding="utf-8")
    click.echo(f"{run_file}: edit it, then `gencls run {run_file}`")


def render_run_file() -> str:
    """Give a run file whose every line but the example's data and model is a comment."""
    from gencls_core.config import SECTIONS, RunConfig

    lines = [
        "# A run of gencls. Every key is optional; commented ones show their default.",
        "# Flags of the same name override this file. Paths are relative to it.",
        "",
        'output_dir = "runs/example"',
        "",
        *_commented("baseline", RunConfig.model_fields["baseline"]),
        "",
    ]
    chosen = {
        "data": '"demo"',
        "model": '"scratch:tiny"',
        "epochs": "10",
        "learning_rate": "1e-3",
        "recipe": '"auto"',
    }
    for section, model in SECTIONS.items():
        lines.append(f"[{section}]")
        for name, field in model.model_fields.items():
            value = chosen.get(name)
            lines += _commented(name, field, value)
        lines.append("")
    return "\n".join(lines)


def _commented(name: str, field: Any, value: str | None = None) -> list[str]:
    text = " ".join((field.description or "").split())
    lines = [f"# {line}" for line in textwrap.wrap(text, 90)]
    if value is not None:
        return [*lines, f"{name} = {value}"]
    return [*lines, f"# {name} = {_toml(field.default)}"]


def _toml(value: Any) -> str:
    """Give a default as a run file has it; `…` where there is none."""
    if value is None:
        return "…"
    if isinstance(value, tuple):
        return f"[{', '.join(map(_toml, value))}]"
    if isinstance(value, dict):
        return f"{{{', '.join(f'{_toml(key)} = {_toml(part)}' for key, part in value.items())}}}"
    if isinstance(value, bool | str):
        # JSON escapes as TOML does.
        return json.dumps(value, ensure_ascii=False)
    return str(value)
