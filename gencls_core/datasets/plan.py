"""Which row goes to which split: decided from class numbers and hashes, before anything is written.

    source split   all ─► train + test (cut)      train ─► train, test where it is given
    test           the source's own, else its validation split, else cut from train
    validation     the source's own, else cut from what train is left after `max_samples`

The order matters: test is fixed first, leaks are found against it, then the prior is counted,
then train is sampled, then validation is cut from the sample.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from gencls_core.config import DataConfig
from gencls_core.datasets import checks
from gencls_core.datasets.dataset import SplitName
from gencls_core.datasets.labels import sorted_classes
from gencls_core.datasets.sampling import (
    Codes,
    Mask,
    choose,
    class_counts,
    group_numbers,
    part_for_test,
    part_for_validation,
    proportional,
)
from gencls_core.datasets.source import ALL, Source
from gencls_core.datasets.survey import CodeBook, Survey, survey
from gencls_core.errors import DataError, UsageError

__all__ = [
    "FINAL_SPLITS",
    "TEST_CUT",
    "TEST_SAMPLE",
    "TRAIN_SAMPLE",
    "UNUSED",
    "VALIDATION_CUT",
    "Plan",
    "make_plan",
]

FINAL_SPLITS: tuple[SplitName, ...] = ("train", "validation", "test")
_TRAIN, _VALIDATION, _TEST = range(3)
UNUSED = -1

# Each seeded choice has its own random stream.
TEST_CUT, TEST_SAMPLE, TRAIN_SAMPLE, VALIDATION_SAMPLE, VALIDATION_CUT = range(5)


@dataclass(frozen=True)
class Plan:
    """Where each row of the source goes."""

    classes: tuple[str, ...]
    surveys: tuple[Survey, ...]
    final: tuple[NDArray[np.int8], ...]
    """For each survey and row: the index in FINAL_SPLITS, or UNUSED."""
    prior_counts: dict[str, int]
    warnings: tuple[str, ...]


def make_plan(
    source: Source, config: DataConfig, *, test_only: bool = False, labelled: bool = True
) -> Plan:
    """Read the source once and decide on every row.

    Raises:
        DataError: anything that makes the texts unusable: see `survey` and `checks`.
        UsageError: `max_test_samples` less than the classes.
    """
    warnings: list[str] = []
    wanted = source.splits
    if labelled and test_only:
        wanted = (_test_split(source, warnings),)
    elif labelled:
        checks.require_train(source)
    book = CodeBook(source.classes)
    surveys = tuple(survey(source, split, book, labelled=labelled) for split in wanted)
    checks.unique_ids(source, surveys)
    rows = _Rows(surveys)
    if not labelled:
        classes = source.classes or ()
        test = rows.everything
        if config.max_test_samples is not None:
            codes = np.zeros_like(rows.codes)
            test = choose(codes, test, [config.max_test_samples], config.split_seed, TEST_SAMPLE)
        return Plan(classes, surveys, rows.parted({_TEST: test}), {}, ())
    if test_only:
        classes = source.classes or sorted_classes(book.names)
        rows.recode(book, classes)
        checks.enough_classes(source, classes)
        test = _sampled_test(rows, rows.everything, classes, config)
        checks.classes_in_test(source, rows.codes, test, classes)
        return Plan(classes, surveys, rows.parted({_TEST: test}), {}, tuple(warnings))

    classes = source.classes or sorted_classes([book.names[code] for code in surveys[0].first])
    checks.labels_in_train(surveys, book, classes, declared=source.classes is not None)
    rows.recode(book, classes)
    checks.enough_classes(source, classes)
    train, validation, test = (
        rows.of("train") | rows.of(ALL),
        rows.of("validation"),
        rows.of("test"),
    )
    checks.classes_in_train(source, rows.codes, train, classes)
    if not test.any() and not source.untested:
        train, validation, test = _made_test(
            rows, train, validation, classes, config, source, warnings
        )
    if not source.untested:
        test = _sampled_test(rows, test, classes, config)
        checks.classes_in_test(source, rows.codes, test, classes)

    groups = group_numbers(np.concatenate([found.texts for found in surveys]))
    in_test = np.zeros(groups.max() + 1, dtype=np.bool_)
    in_test[groups[test]] = True
    leaked: Mask = in_test[groups] & (train | validation)
    counts = class_counts(rows.codes, train, len(classes))
    prior_counts = source.prior_counts or dict(zip(classes, counts, strict=True))
    if config.drop_leaks:
        train, validation = train & ~leaked, validation & ~leaked
        if leaked.any():
            warnings.append(f"{leaked.sum()} train texts that stand in the test split were dropped")
            checks.classes_in_train(source, rows.codes, train, classes, after="dropping leaks")
    train, validation = _sampled_train(rows, train, validation, classes, config, source, warnings)

    if not config.drop_leaks and (leaks := int((leaked & (train | validation)).sum())):
        warnings.append(
            f"{leaks} train texts (validation part included) also stand in the test split; "
            "`--drop-leaks` leaves them out"
        )
    if conflicts := _conflicting(groups, rows.codes, train | validation):
        warnings.append(f"{conflicts} train texts occur more than once, with different labels")
    final = rows.parted({_TRAIN: train, _VALIDATION: validation, _TEST: test})
    return Plan(classes, surveys, final, prior_counts, tuple(warnings))


class _Rows:
    """The rows of all surveys, one after the other."""

    def __init__(self, surveys: tuple[Survey, ...]) -> None:
        self._surveys = surveys
        self.codes: Codes = np.concatenate([found.codes for found in surveys])
        self.everything: Mask = np.ones(len(self.codes), dtype=np.bool_)

    def recode(self, book: CodeBook, classes: tuple[str, ...]) -> None:
        """Number classes by their order in `classes`, no longer by appearance."""
        table = np.array([classes.index(name) for name in book.names], dtype=np.int32)
        self.codes = table[self.codes]

    def of(self, split: str) -> Mask:
        return np.concatenate(
            [np.full(len(found), found.split == split, dtype=np.bool_) for found in self._surveys]
        )

    def parted(self, masks: dict[int, Mask]) -> tuple[NDArray[np.int8], ...]:
        """Give each survey's rows the number of the mask that holds them."""
        final = np.full(len(self.codes), UNUSED, dtype=np.int8)
        for number, mask in masks.items():
            final[mask] = number
        ends = np.cumsum([len(found) for found in self._surveys])
        return tuple(np.split(final, ends[:-1]))


def _test_split(source: Source, warnings: list[str]) -> str:
    """Choose the source split that stands for test when nothing else is asked for."""
    if "test" in source.splits:
        return "test"
    if ALL in source.splits:
        return ALL
    if "validation" in source.splits and not source.final:
        warnings.append(_VALIDATION_AS_TEST)
        return "validation"
    raise DataError.of(
        "no test split",
        place=source.description,
        found=", ".join(source.splits) or "no split",
        remedy="give one file with `--data` to use all of its texts",
    )


_VALIDATION_AS_TEST = "there is no test split: the validation split is used as the test split"


def _made_test(
    rows: _Rows,
    train: Mask,
    validation: Mask,
    classes: tuple[str, ...],
    config: DataConfig,
    source: Source,
    warnings: list[str],
) -> tuple[Mask, Mask, Mask]:
    """Make the test split that the source lacks; gives train, validation and test."""
    if source.final:
        raise DataError.of(
            "no test split",
            place=source.description,
            found=", ".join(source.splits),
            remedy="prepare it from its source again, with all splits",
        )
    if validation.any():
        warnings.append(_VALIDATION_AS_TEST)
        return train, np.zeros_like(validation), validation
    if ALL not in source.splits:
        warnings.append(
            f"there is only a train split: {config.test_fraction:g} of it is the test split"
        )
    counts = class_counts(rows.codes, train, len(classes))
    wanted = [part_for_test(count, config.test_fraction) for count in counts]
    test = choose(rows.codes, train, wanted, config.split_seed, TEST_CUT)
    return train & ~test, validation, test


def _sampled_test(rows: _Rows, test: Mask, classes: tuple[str, ...], config: DataConfig) -> Mask:
    if config.max_test_samples is None:
        return test
    counts = class_counts(rows.codes, test, len(classes))
    present = sum(count > 0 for count in counts)
    if config.max_test_samples < present:
        raise UsageError.of(
            "`--max-test-samples` is less than the classes of the test split",
            found=str(config.max_test_samples),
            expected=f"at least {present}, one text per class",
        )
    wanted = proportional(counts, config.max_test_samples)
    return choose(rows.codes, test, wanted, config.split_seed, TEST_SAMPLE)


def _sampled_train(
    rows: _Rows,
    train: Mask,
    validation: Mask,
    classes: tuple[str, ...],
    config: DataConfig,
    source: Source,
    warnings: list[str],
) -> tuple[Mask, Mask]:
    """Sample train (and the source's own validation) and cut validation where there is none."""
    codes, seed = rows.codes, config.seed_of_sample

    def sampled(mask: Mask, purpose: int) -> Mask:
        if config.max_samples is None:
            return mask
        counts = class_counts(codes, mask, len(classes))
        wanted = [min(count, config.max_samples) for count in counts]
        return choose(codes, mask, wanted, seed, purpose)

    train, validation = sampled(train, TRAIN_SAMPLE), sampled(validation, VALIDATION_SAMPLE)
    if validation.any() or source.final or config.validation_fraction == 0:
        return train, validation
    counts = class_counts(codes, train, len(classes))
    wanted = [part_for_validation(count, config.validation_fraction) for count in counts]
    validation = choose(codes, train, wanted, seed, VALIDATION_CUT)
    if not all(wanted):
        few = [name for name, count in zip(classes, wanted, strict=True) if not count]
        warnings.append(f"no validation texts for {', '.join(few[:10])}: fewer than 3 train texts")
    return train & ~validation, validation


def _conflicting(groups: NDArray[np.int64], codes: Codes, mask: Mask) -> int:
    """Count the distinct texts among the masked rows that have more than one label."""
    lowest = np.full(groups.max() + 1, np.iinfo(np.int32).max, dtype=np.int32)
    highest = np.full(groups.max() + 1, -1, dtype=np.int32)
    np.minimum.at(lowest, groups[mask], codes[mask])
    np.maximum.at(highest, groups[mask], codes[mask])
    return int((highest > lowest).sum())
