"""From the cells of a table's row to an example; shared by every source that has columns."""

from __future__ import annotations

from typing import Any

from gencls_core.config import DataConfig
from gencls_core.datasets.labels import label_name
from gencls_core.datasets.reading import shown
from gencls_core.datasets.source import Example, example_error
from gencls_core.errors import DataError

__all__ = ["Columns", "example_of_cells", "wanted_columns"]

Columns = dict[str, str]
"""Column → the option that names it, for the columns that must be there."""


def wanted_columns(config: DataConfig, place: str, *, labelled: bool) -> Columns:
    """Give the columns to read.

    Raises:
        DataError: when one column is to be two things.
    """
    asked = [(config.text_column, "--text-column")]
    if labelled:
        asked.append((config.label_column, "--label-column"))
    if config.id_column is not None:
        asked.append((config.id_column, "--id-column"))
    columns = dict(asked)
    if len(columns) < len(asked):
        raise DataError.of(
            "one column is asked for twice",
            place=place,
            found=", ".join(f"`{option} {column}`" for column, option in asked),
        )
    return columns


def example_of_cells(
    cells: dict[str, Any],
    config: DataConfig,
    *,
    row: int,
    file: str,
    line: int | None,
    labelled: bool,
    names: tuple[str, ...] | None = None,
) -> Example:
    """Build an example; `names` are the class names where the column itself declares them.

    Raises:
        DataError: a text that is not a string, a label that is not one value, a missing id.
    """
    text = cells[config.text_column]
    label = cells[config.label_column] if labelled else None
    user_id = None if config.id_column is None else cells[config.id_column]
    name: str | None = None
    if names is not None and isinstance(label, int):
        name = names[label] if 0 <= label < len(names) else None
    elif not isinstance(label, (list, dict)):
        name = label_name(label, config.classes)
    example = Example(
        text="" if text is None else text,
        label=name,
        example_id=None if user_id is None else str(user_id),
        row=row,
        file=file,
        line=line,
    )
    if not isinstance(example.text, str):
        raise example_error(
            example, "the text is not a string", found=shown(text), expected="a string"
        )
    if isinstance(label, (list, dict)):
        raise example_error(
            example,
            "the label is not one value",
            found=shown(label),
            expected="one class per text, as a string or an integer",
        )
    if config.id_column is not None and not example.example_id:
        raise example_error(
            example,
            f"no id in the column `{config.id_column}`",
            remedy="give each row its own id, or leave `--id-column` away (in `gencls add-class`: "
            "give `--no-id-column`)",
        )
    return example
