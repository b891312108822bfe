"""Command-line options made from the fields of `gencls_core.config`: declared once, there."""

from __future__ import annotations

import types
from collections.abc import Callable
from pathlib import Path
from typing import Any, Literal, TypeVar, Union, get_args, get_origin

import click

from gencls_core.config import SECTIONS, RunConfig, load_run_config, parse_run_config

__all__ = ["build_config", "given_values", "section_options"]

Command = TypeVar("Command", bound=Callable[..., Any])

ALIASES = {"model": ["--model-size"]}
"""Names that the original experiment's scripts used."""


def section_options(
    *sections: str, leave_out: tuple[str, ...] = ()
) -> Callable[[Command], Command]:
    """Give a decorator that adds an option for every field of the named sections."""

    def decorate(command: Command) -> Command:
        for section in reversed(sections):
            for name, field in reversed(list(SECTIONS[section].model_fields.items())):
                if name not in leave_out:
                    command = _option(name, field)(command)
        return command

    return decorate


def _option(name: str, field: Any) -> Callable[[Command], Command]:
    flag = "--" + name.replace("_", "-")
    kind, is_flag = _click_type(field.annotation)
    text = field.description or ""
    default = field.default
    if default not in (None, False) and not is_flag:
        text += f"  [default: {default}]"
    if is_flag:
        return click.option(f"{flag}/--no-{flag[2:]}", name, default=None, help=text)
    return click.option(flag, *ALIASES.get(name, []), name, type=kind, default=None, help=text)


def _click_type(annotation: Any) -> tuple[Any, bool]:
    """Give the click type of a field's annotation, and whether it is a switch."""
    origin = get_origin(annotation)
    if origin in (Union, types.UnionType):
        inner = [part for part in get_args(annotation) if part is not type(None)]
        return _click_type(inner[0])
    if origin is Literal:
        return click.Choice(get_args(annotation)), False
    if hasattr(annotation, "__metadata__"):
        return _click_type(get_args(annotation)[0])
    if origin is tuple:
        return _Names(), False
    if annotation is bool:
        return None, True
    if annotation is Path:
        return click.Path(path_type=Path), False
    return {int: int, float: float, str: str}[annotation], False


class _Names(click.ParamType):  # type: ignore[type-arg]
    """A comma-separated list of names."""

    name = "names"

    def convert(self, value: Any, param: Any, ctx: Any) -> Any:
        return tuple(part.strip() for part in value.split(",")) if isinstance(value, str) else value


def given_values(flags: dict[str, Any]) -> dict[str, Any]:
    """Sort the flags that were given (not None) into sections, as a run file has them."""
    values: dict[str, Any] = {}
    for section, model in SECTIONS.items():
        found = {name: flags[name] for name in model.model_fields if flags.get(name) is not None}
        if found:
            values[section] = found
    for name in ("output_dir", "class_id", "baseline"):
        if flags.get(name) is not None:
            values[name] = flags[name]
    return values


def build_config(run_file: Path | None, flags: dict[str, Any]) -> RunConfig:
    """Put a run file and the flags together; flags override the file."""
    values: dict[str, Any] = load_run_config(run_file) if run_file is not None else {}
    given = given_values(flags)
    if {"data", "data_dir"} & given.get("data", {}).keys():
        # A source given as a flag replaces the file's, of whichever kind that is.
        for name in ("data", "data_dir"):
            values.get("data", {}).pop(name, None)
    for key, value in given.items():
        if isinstance(value, dict):
            values[key] = {**values.get(key, {}), **value}
        else:
            values[key] = value
    return parse_run_config(values)
