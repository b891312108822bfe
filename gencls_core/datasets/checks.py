"""What a dataset must fulfil as a whole; each check raises one DataError."""

from __future__ import annotations

import numpy as np

from gencls_core.datasets.reading import shown
from gencls_core.datasets.sampling import Codes, Mask, class_counts, group_numbers
from gencls_core.datasets.source import ALL, Example, Source
from gencls_core.datasets.survey import CodeBook, Survey, outside_error
from gencls_core.errors import DataError

__all__ = [
    "classes_in_test",
    "classes_in_train",
    "enough_classes",
    "labels_in_train",
    "require_train",
    "unique_ids",
]


def require_train(source: Source) -> None:
    """Refuse a source without train texts."""
    if "train" not in source.splits and ALL not in source.splits:
        raise DataError.of(
            "no train split",
            place=source.description,
            found=", ".join(source.splits) or "no split",
            expected="a train split, or one file that is cut into splits",
        )


def enough_classes(source: Source, classes: tuple[str, ...]) -> None:
    """Refuse fewer than two classes, or one class declared twice."""
    if len(set(classes)) < max(2, len(classes)):
        raise DataError.of(
            "at least two different classes are needed",
            place=source.description,
            found=", ".join(f"`{name}`" for name in classes) or "none",
            remedy="is `--label-column` the column of the classes?",
        )


def classes_in_train(
    source: Source, codes: Codes, train: Mask, classes: tuple[str, ...], *, after: str = ""
) -> None:
    """Refuse a class without train texts."""
    counts = class_counts(codes, train, len(classes))
    empty = [f"`{name}`" for name, count in zip(classes, counts, strict=True) if count == 0]
    if empty:
        raise DataError.of(
            f"no train texts for {', '.join(empty)}" + (f" after {after}" if after else ""),
            place=source.description,
            expected="at least one train text for each class",
            remedy="add texts, or leave the class out of `--classes`",
        )


def classes_in_test(source: Source, codes: Codes, test: Mask, classes: tuple[str, ...]) -> None:
    """Refuse a test split of one class only: any accuracy measured on it means nothing."""
    present = np.unique(codes[test])
    if len(present) < 2:
        name = classes[int(present[0])] if len(present) else "none"
        raise DataError.of(
            "the test split holds one class only",
            place=source.description,
            found=f"{int(test.sum())} texts, all of class `{name}`",
            expected="test texts of at least two classes",
            remedy="was a file that is sorted by label cut off? Take a random sample instead",
        )


def labels_in_train(
    surveys: tuple[Survey, ...], book: CodeBook, classes: tuple[str, ...], *, declared: bool
) -> None:
    """Refuse a label that the train split does not have, where no classes were declared."""
    if declared:
        return
    for found in surveys[1:]:
        for code, example in found.first.items():
            if book.names[code] not in classes:
                raise outside_error(
                    example, classes, "correct it, or add train texts of this class"
                )


def unique_ids(source: Source, surveys: tuple[Survey, ...]) -> None:
    """Refuse two rows with one id, naming both places."""
    ids = [found.ids for found in surveys if found.ids is not None]
    if not ids:
        return
    groups = group_numbers(np.concatenate(ids))
    if groups.max() + 1 == len(groups):
        return
    repeated = np.flatnonzero(np.bincount(groups) > 1)
    rows = np.flatnonzero(np.isin(groups, repeated))
    second = next(row for k, row in enumerate(rows) if groups[row] in groups[rows[:k]])
    first = next(row for row in rows if groups[row] == groups[second])
    # Only ids' hashes are kept, so the two rows are read again.
    one, two = _examples_at(source, surveys, (int(first), int(second)))
    place = one.file if one.line is None else f"{one.file}:{one.line}"
    raise DataError.of(
        f"the id {shown(two.example_id)} stands twice",
        place=two.file,
        line=two.line,
        found=f"first at {place} (row {one.row} of {source.name}), again at row {two.row} (from 0)",
        expected="an id of its own for each row, over all splits",
        remedy="correct the ids, or leave `--id-column` away",
    )


def _examples_at(
    source: Source, surveys: tuple[Survey, ...], rows: tuple[int, int]
) -> tuple[Example, Example]:
    found: list[Example] = []
    start = 0
    for part in surveys:
        for example in source.examples(part.split):
            if start + example.row in rows:
                found.append(example)
                if len(found) == 2:
                    return found[0], found[1]
        start += len(part)
    raise changed_error(source)


def changed_error(source: Source) -> DataError:
    """Build the error about a source that gave other examples the second time."""
    return DataError.of(
        "the data changed while it was read",
        place=source.description,
        remedy="run the command again when nothing writes to it",
    )
