"""Write docs/report-schema.md from the models of the schema:

python -m gencls_core.report.schema_docs docs/report-schema.md
"""

from __future__ import annotations

import sys
import types
from pathlib import Path
from typing import Any, get_args, get_origin

from pydantic import BaseModel

from gencls_core.report.schema import Both, Report

__all__ = ["schema_markdown"]

_INTRODUCTION = """\
# report.json

<!-- Written by `python -m gencls_core.report.schema_docs docs/report-schema.md`; do not edit. -->

Every `gencls run` and `gencls report` writes `report/report.json` in the run directory. Times are
seconds, log-probabilities are nats, memory is bytes. The file holds no text of the data set.

"""


def schema_markdown() -> str:
    """Give the schema as Markdown: one table per object, `Report` first."""
    sections: list[str] = []
    seen: set[type[BaseModel]] = set()
    waiting: list[type[BaseModel]] = [Report]
    while waiting:
        model = waiting.pop(0)
        if model in seen:
            continue
        seen.add(model)
        rows = []
        for name, field in model.model_fields.items():
            meaning = (field.description or "").replace("|", "\\|")
            rows.append(f"| `{name}` | {_type_name(field.annotation)} | {meaning} |")
            waiting.extend(_models_in(field.annotation))
        title = _title(model)
        summary = (model.__doc__ or "").strip()
        table = "\n".join(["| field | type | meaning |", "| --- | --- | --- |", *rows])
        sections.append(f"## {title}\n\n{summary}\n\n{table}\n")
    return _INTRODUCTION + "\n".join(sections)


def _title(model: type[BaseModel]) -> str:
    return "Both" if issubclass(model, Both) else model.__name__


def _models_in(annotation: Any) -> list[type[BaseModel]]:
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        if issubclass(annotation, Both):
            inner = annotation.model_fields["uncalibrated"].annotation
            return [Both, *_models_in(inner)]
        return [annotation]
    return [model for part in get_args(annotation) for model in _models_in(part)]


def _type_name(annotation: Any) -> str:
    if isinstance(annotation, type) and issubclass(annotation, Both) and annotation is not Both:
        return f"[Both](#both) of {_type_name(annotation.model_fields['uncalibrated'].annotation)}"
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return f"[{annotation.__name__}](#{annotation.__name__.lower()})"
    origin, parts = get_origin(annotation), get_args(annotation)
    if origin is types.UnionType or str(origin) == "typing.Union":
        return " or ".join(_type_name(part) for part in parts)
    if origin is list:
        return f"list of {_type_name(parts[0])}"
    if origin is tuple:
        return "[" + ", ".join(_type_name(part) for part in parts) + "]"
    if origin is dict:
        return f"object: class or name → {_type_name(parts[1])}"
    if origin is not None:  # Literal
        return " or ".join(repr(part) for part in parts)
    names = {str: "string", int: "integer", float: "number", type(None): "null", Any: "any"}
    return names.get(annotation, "value")


if __name__ == "__main__":
    Path(sys.argv[1]).write_text(schema_markdown(), encoding="utf-8")
