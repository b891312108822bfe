"""Settings read from a run file (TOML) and from flags, and what is wrong with them."""

from __future__ import annotations

import tomllib
from pathlib import Path
from typing import Any, TypeVar

from pydantic import ValidationError

from gencls_core.config import SECTIONS, RunConfig, Section
from gencls_core.errors import UsageError

__all__ = ["load_run_config", "parse_run_config", "parse_section"]

AnySection = TypeVar("AnySection", bound=Section)


def parse_run_config(values: dict[str, Any], *, place: str = "command line") -> RunConfig:
    """Validate nested `values` (as a run file has them).

    Raises:
        UsageError: naming each wrong field, what was found and what is allowed.
    """
    return parse_section(RunConfig, values, place=place)


def parse_section(
    section: type[AnySection], values: dict[str, Any], *, place: str = "command line"
) -> AnySection:
    """Validate the values of one section, or of a whole run.

    Raises:
        UsageError: naming each wrong field, what was found and what is allowed.
    """
    try:
        return section.model_validate(values)
    except ValidationError as error:
        lines = []
        for problem in error.errors():
            where = ".".join(str(part) for part in problem["loc"]) or "options"
            message = problem["msg"].removeprefix("Value error, ")
            # A rule over several fields has no one value to show.
            shown = f", found {_shown(problem.get('input'))}" if problem["loc"] else ""
            lines.append(f"{where}: {message}{shown}")
        unknown = [p["loc"] for p in error.errors() if p["type"] == "extra_forbidden"]
        raise UsageError.of(
            "not valid",
            place=place,
            found="; ".join(lines),
            remedy=_closest_fields(unknown) or "see `gencls init` for every key and its meaning",
        ) from None


def load_run_config(path: Path) -> dict[str, Any]:
    """Read a run file (TOML) as nested values, relative paths taken from the file's folder.

    Raises:
        UsageError: when the file is missing, is not TOML, or is not valid.
    """
    try:
        values = tomllib.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise UsageError.of(
            "no such run file", place=path, remedy="`gencls init` writes a commented one"
        ) from None
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise UsageError.of("not a TOML file", place=path, found=str(error)) from None
    base = path.absolute().parent
    posterior = values.get("posterior")
    if isinstance(posterior, dict) and isinstance(posterior.get("costs"), str):
        # Before anything is checked: reading it is how it is checked.
        posterior["costs"] = str(base / Path(posterior["costs"]).expanduser())
    parse_run_config(values, place=str(path))
    data = values.get("data", {})
    for section, key in ((values, "output_dir"), (data, "data_dir")):
        if section.get(key) and "://" not in section[key]:
            section[key] = str(base / Path(section[key]).expanduser())
    if data.get("data") and (base / data["data"]).exists():
        data["data"] = str(base / data["data"])
    model = values.get("model", {})
    if model.get("model") and (base / model["model"]).is_dir():
        model["model"] = str(base / model["model"])
    return values


def _shown(value: object) -> str:
    text = repr(value)
    return text if len(text) <= 60 else text[:57] + "..."


def _closest_fields(unknown: list[tuple[int | str, ...]]) -> str | None:
    """Suggest known keys for unknown ones."""
    import difflib

    names = [*RunConfig.model_fields, *SECTIONS]
    for section in SECTIONS.values():
        names.extend(section.model_fields)
    hints = []
    for location in unknown:
        close = difflib.get_close_matches(str(location[-1]), names, n=1)
        if close:
            hints.append(f"did you mean `{close[0]}` instead of `{location[-1]}`?")
    return " ".join(hints) or None
