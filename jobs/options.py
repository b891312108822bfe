"""Command-line options made from the fields of `gencls_core.config`: declared once, there."""

from __future__ import annotations

import json
import types
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, TypeVar, Union, get_args, get_origin

import click

from gencls_core.config import SECTIONS, Place, RunConfig
from gencls_core.config_parsing import load_run_config, parse_run_config
from gencls_core.remote_path import as_location

if TYPE_CHECKING:
    from click.shell_completion import CompletionItem

__all__ = [
    "LocationType",
    "SectionedCommand",
    "build_config",
    "class_words_option",
    "given_values",
    "section_options",
]

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
                    command = _option(section, name, field)(command)
        return command

    return decorate


def class_words_option() -> Callable[[Command], Command]:
    """Give a decorator that adds `--class-words` to a command without the other systems."""
    others = tuple(name for name in SECTIONS["systems"].model_fields if name != "class_words")
    return section_options("systems", leave_out=others)


class SectionedCommand(click.Command):
    """A command whose help lists its options section by section, as a run file has them."""

    def format_options(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        """Write the options: the command's own first, then each section's."""
        groups: dict[str, list[tuple[str, str]]] = {}
        for parameter in self.get_params(ctx):
            record = parameter.get_help_record(ctx)
            if record is not None and isinstance(parameter, click.Option):
                section = getattr(parameter, "section", "Options")
                groups.setdefault(section, []).append(record)
        for section in sorted(groups, key=lambda name: name != "Options"):
            with formatter.section(section):
                formatter.write_dl(groups[section])


class _SectionOption(click.Option):
    """An option that belongs to a section of the run file."""

    def __init__(self, *arguments: Any, section: str, **settings: Any) -> None:
        super().__init__(*arguments, **settings)
        self.section = section.capitalize()


def _option(section: str, name: str, field: Any) -> Callable[[Command], Command]:
    flag = "--" + name.replace("_", "-")
    text = field.description or ""
    repeated = _REPEATED.get(name)
    kind, is_flag = (repeated.type, False) if repeated else _click_type(field.annotation)
    if name in _PROMPTS:
        kind = _Prompt()
    if name in _PATHS_OR_NAMES:
        kind = _PathOrName()
    if name in _FILES:
        kind = click.Path(path_type=Path, dir_okay=False)
    settings: dict[str, Any]
    if is_flag:
        names, settings = [f"{flag}/--no-{flag[2:]}", name], {}
    elif repeated:
        names = [repeated.flag, name]
        settings = {"type": kind, "multiple": True, "callback": repeated.collect}
        text += f" {repeated.help}"
    else:
        names, settings = [flag, *ALIASES.get(name, []), name], {"type": kind}
    # Each command has a recipe of its own where none is given, which the text says.
    if field.default not in _NOTHING and not is_flag and name != "recipe":
        text += f"  [default: {_shown(field.default)}]"
    return click.option(
        *names, default=None, help=text, cls=_SectionOption, section=section, **settings
    )


def _click_type(annotation: Any) -> tuple[Any, bool]:
    """Give the click type of a field's annotation, and whether it is a switch."""
    if annotation is Place:
        return LocationType(), False
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


class LocationType(click.ParamType):  # type: ignore[type-arg]
    """A folder, or a place in an object store; `click.Path` would make one slash of two."""

    name = "path or uri"

    def convert(self, value: Any, param: Any, ctx: Any) -> Any:
        return as_location(value)

    def shell_complete(self, ctx: Any, param: Any, incomplete: str) -> list[CompletionItem]:
        """Let the shell complete folders; what lies in an object store it cannot know."""
        return _completed_by_shell("dir", incomplete)


class _PathOrName(click.ParamType):  # type: ignore[type-arg]
    """A file or folder, or a name that gencls or the hub knows."""

    name = "text"

    def shell_complete(self, ctx: Any, param: Any, incomplete: str) -> list[CompletionItem]:
        """Let the shell complete paths."""
        return _completed_by_shell("file", incomplete)


def _completed_by_shell(kind: str, incomplete: str) -> list[CompletionItem]:
    from click.shell_completion import CompletionItem

    return [CompletionItem(incomplete, type=kind)]


class _Names(click.ParamType):  # type: ignore[type-arg]
    """A comma-separated list of names."""

    name = "names"

    def convert(self, value: Any, param: Any, ctx: Any) -> Any:
        return tuple(part.strip() for part in value.split(",")) if isinstance(value, str) else value


class _Prompt(click.ParamType):  # type: ignore[type-arg]
    """A prompt; few shells let a new line be typed."""

    name = "text"

    def convert(self, value: Any, param: Any, ctx: Any) -> Any:
        return value.replace(r"\n", "\n")


class _ClassWords(click.ParamType):  # type: ignore[type-arg]
    """What stands for a class in a prompt."""

    name = "class=words"

    def convert(self, value: Any, param: Any, ctx: Any) -> Any:
        name, separator, words = value.partition("=")
        if not separator:
            self.fail(f'{value!r} is not CLASS=WORDS, such as World="world news"', param, ctx)
        return name, words


def _by_class(ctx: Any, param: Any, pairs: tuple[tuple[str, str], ...]) -> dict[str, str]:
    words: dict[str, str] = {}
    for name, of_class in pairs:
        if name in words:
            raise click.BadParameter(f"a class is given twice: {name!r}", ctx, param)
        words[name] = of_class
    return words


@dataclass(frozen=True)
class _Repeated:
    """A flag that is given once for each of a field's values."""

    flag: str
    type: click.ParamType  # type: ignore[type-arg]
    help: str
    collect: Callable[[Any, Any, Any], Any] | None = None


_REPEATED = {
    "prompts": _Repeated(
        "--prompt", _Prompt(), r"One for each `--prompt`; `\n` in it is a new line."
    ),
    "class_words": _Repeated(
        "--class-words",
        _ClassWords(),
        "One class for each `--class-words`, named before the first `=`.",
        _by_class,
    ),
}

_PROMPTS = ("prefix",)
"""Fields that are a prompt."""

_PATHS_OR_NAMES = ("data", "model", "masked_model", "setfit_model")
"""Fields that are a path, or something else's name."""

_FILES = ("costs",)
"""Fields that are read from a file."""

_NOTHING: tuple[Any, ...] = (None, (), {})
"""What an option is when it was not given."""


def _shown(default: Any) -> str:
    """Give a default as the help shows it."""
    if isinstance(default, tuple):
        return ", ".join(json.dumps(part, ensure_ascii=False) for part in default)
    return str(default).replace("\n", r"\n")


def reject_options(command: Any) -> Any:
    """Add the options that leave unsure texts without an answer."""
    for option in (
        click.option(
            "--error-rate",
            type=float,
            help="Refuse until no more than this part of the answers is wrong, as far as held-out "
            "texts can promise it.",
        ),
        click.option(
            "--coverage",
            type=float,
            help="Part of the texts to answer, above 0 up to 1.  [default: 0.9]",
        ),
        click.option(
            "--reject",
            type=click.Choice(["posterior", "background", "both"]),
            help="Leave texts without an answer: `posterior`, where it is not sure; `background`, "
            "where the untrained base finds the text as likely as the classes do (--background "
            "scores that); or `both`. The threshold is chosen on held-out texts.",
        ),
    ):
        command = option(command)
    return command


def given_values(flags: dict[str, Any]) -> dict[str, Any]:
    """Sort the flags that were given into sections, as a run file has them."""
    values: dict[str, Any] = {}
    for section, model in SECTIONS.items():
        found = {
            name: flags[name]
            for name in model.model_fields
            if name in flags and flags[name] not in _NOTHING
        }
        if found:
            values[section] = found
    for name in ("output_dir", "class_id", "baseline"):
        if flags.get(name) is not None:
            values[name] = flags[name]
    return values


def build_config(
    run_file: Path | None, flags: dict[str, Any], *, recipe: str | None = None
) -> RunConfig:
    """Put a run file and the flags together; flags override the file.

    Args:
        run_file: the file, if there is one.
        flags: values by the names of their fields; None where a flag was not given.
        recipe: the command's own default, where neither says which.
    """
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
    if recipe is not None:
        values["recipe"] = {"recipe": recipe, **values.get("recipe", {})}
    return parse_run_config(values)
