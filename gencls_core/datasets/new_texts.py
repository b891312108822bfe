"""The texts of a new class: hashed, cut into splits as `plan.py` would, compared with those there.

Of a text only its hash is kept, so the file may be larger than memory.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np

from gencls_core.config import DataConfig
from gencls_core.datasets.checks import changed_error
from gencls_core.datasets.dataset import Dataset, SplitName
from gencls_core.datasets.plan import TEST_CUT, TEST_SAMPLE, TRAIN_SAMPLE, VALIDATION_CUT
from gencls_core.datasets.reading import shown
from gencls_core.datasets.sampling import Mask, choose, part_for_test, part_for_validation
from gencls_core.datasets.source import ALL, Example, Source, example_error
from gencls_core.datasets.survey import CodeBook, survey, text_hash
from gencls_core.datasets.writing import row_frame
from gencls_core.errors import DataError
from gencls_core.storage import class_directory_name

__all__ = ["Cut", "KnownTexts", "NewTexts", "cut_texts"]

_COLUMNS = ["example_id", "text", "label"]


@dataclass(frozen=True)
class NewTexts:
    """The rows of one file: hashes of texts and the user's ids, no texts."""

    source: Source
    by_row: list[bytes]
    ids: frozenset[str]

    @classmethod
    def read(cls, source: Source) -> NewTexts:
        """Read a file once.

        Raises:
            DataError: at the first row that is no text, or where there is none at all.
        """
        found = survey(source, ALL, CodeBook(None), labelled=False)
        ids = frozenset[str]()
        if found.ids is not None:
            given = (example.example_id for example in source.examples(ALL))
            ids = frozenset(name for name in given if name is not None)
        return cls(source, [row.tobytes() for row in found.texts], ids)

    def __len__(self) -> int:
        return len(self.by_row)

    def examples(self, taken: Mask) -> Iterator[Example]:
        """Read the file again and give the examples of some rows."""
        count = 0
        for example in self.source.examples(ALL):
            count += 1
            if count > len(self) or text_hash(example) != self.by_row[example.row]:
                raise changed_error(self.source)
            if taken[example.row]:
                yield example
        if count != len(self):
            raise changed_error(self.source)


class KnownTexts:
    """Which texts and ids of a new class stand in the dataset already."""

    def __init__(self, name: str, files: list[NewTexts]) -> None:
        self._name = name
        self._texts = {key for rows in files for key in rows.by_row}
        self._ids = {name for rows in files for name in rows.ids}
        self._numbered = tuple(f"{split}-{class_directory_name(name)}-" for split in _SPLITS)
        self.labels: dict[str, dict[bytes, str | None]] = {}
        """Split → hash of a new text that stands there → its label."""
        self._places: dict[str, str] = {}
        """Id that is taken → where."""

    def digest(self, dataset: Dataset, split: SplitName) -> hashlib._Hash:
        """Read a split; give the running digest of its rows, which are those of dataset.json.

        Raises:
            DataError: when they are not.
        """
        digest, labels, row = hashlib.sha256(), self.labels.setdefault(split, {}), 0
        for batch in dataset.iter_batches(split, _COLUMNS):
            columns = (batch.column(name).to_pylist() for name in _COLUMNS)
            for example_id, text, label in zip(*columns, strict=True):
                digest.update(row_frame(example_id, text, label))
                if example_id in self._ids or example_id.startswith(self._numbered):
                    self._places[example_id] = f"in the run's {split} texts"
                key = text_hash(Example(text, label, None, row, split, None))
                if key in self._texts:
                    labels[key] = label
                row += 1
        if digest.hexdigest() != dataset.split(split).fingerprint:
            raise DataError.of(
                f"the {split} texts are not those that were committed",
                place=dataset.path,
                remedy="`gencls verify` says more",
            )
        return digest

    def id_of(self, example: Example, split: SplitName) -> str:
        """Give the id of a new text in a split; refuse one that is taken."""
        made = f"{split}-{class_directory_name(self._name)}-{example.row}"
        found = made if example.example_id is None else example.example_id
        if found in self._places:
            raise example_error(
                example,
                f"the id {shown(found)} stands twice",
                found=f"first {self._places[found]}",
                expected="an id of its own for each row, over all splits of the run",
                remedy="name a column with the texts' own ids by `--id-column`"
                if example.example_id is None
                else f"correct the ids, or give `--no-id-column`: then it is {made}",
            )
        line = "" if example.line is None else f":{example.line}"
        self._places[found] = f"at {example.file}{line}"
        return found

    def refuse_leak(self, example: Example) -> None:
        """Refuse a text that is a test text of another class."""
        tested = self.labels.get("test", {})
        if (key := text_hash(example)) not in tested:
            return
        raise example_error(
            example,
            "a text that stands in the run's test split under another class",
            found=f"{shown(example.text, 40)}, there {shown(tested[key])}",
            expected=f"texts of {shown(self._name)} that no test text repeats",
            remedy="remove the row, or correct the test texts and run anew: figures would mislead",
        )

    def warnings(self, cut: Cut, *, drop_leaks: bool) -> Iterator[str]:
        """Say how many texts stand in more than one place."""
        name = self._name
        learned = {**self.labels.get("train", {}), **self.labels.get("validation", {})}
        tested, trained = set(cut.keys("test")), cut.keys("train")
        if shared := sum(key in learned for key in cut.keys("test")):
            yield f"{shared} test texts of {name} also stand in the train texts of other classes"
        if shared := sum(key in learned for key in trained):
            yield f"{shared} train texts of {name} also stand in the train texts of other classes"
        own = [*trained, *cut.keys("validation")]
        if not drop_leaks and (leaks := sum(key in tested for key in own)):
            yield (
                f"{leaks} train texts of {name} (validation part included) also stand in its test "
                "texts"
            )


_SPLITS: tuple[SplitName, ...] = ("train", "validation", "test")


@dataclass(frozen=True)
class Cut:
    """Which rows of which file go to which split."""

    rows: dict[SplitName, tuple[NewTexts, Mask]]
    learned: int
    """Train texts before any was left out: the class's part in the prior."""

    def keys(self, split: SplitName) -> list[bytes]:
        """Give the hashes of a split's texts."""
        if split not in self.rows:
            return []
        found, mask = self.rows[split]
        return [found.by_row[row] for row in np.flatnonzero(mask)]


def cut_texts(
    dataset: Dataset, settings: DataConfig, rows: NewTexts, held_back: NewTexts | None
) -> Cut:
    """Say which rows of which file go to which split.

    Args:
        dataset: what is there.
        settings: how the run cut its texts.
        rows: texts of the new class.
        held_back: its test texts; None: some of `rows`.

    Raises:
        DataError: when there are too few, or test texts for a run that has none.
    """
    if "test" not in dataset.splits and held_back is not None:
        raise DataError.of(
            "test texts for a run without a test split",
            place=held_back.source.description,
            found=f"a run of {', '.join(dataset.splits)} texts",
            expected="texts to learn from alone",
            remedy="leave `--test` away, and score them with `gencls evaluate`",
        )
    number = len(dataset.classes)
    fraction = settings.validation_fraction
    # Some samples are too small to hold any text out of them.
    validates = "validation" in dataset.splits and bool(
        part_for_validation(settings.max_samples or 3, fraction)
    )
    tests_some = "test" in dataset.splits and held_back is None

    def chosen(mask: Mask, count: int, seed: int, purpose: int) -> Mask:
        # As the class of this number: another run with all classes would draw the same.
        codes = np.full(len(mask), number, dtype=np.int32)
        return choose(codes, mask, [0] * number + [count], seed, purpose)

    def parts(count: int) -> tuple[int, int, int]:
        """Give how many of `count` texts would train, be held out, test."""
        tests = part_for_test(count, settings.test_fraction) if tests_some else 0
        train = min(count - tests, settings.max_samples or count)
        held = part_for_validation(train, fraction) if validates else 0
        return train - held, held, tests

    def enough(count: int) -> bool:
        train, held, tests = parts(count)
        return train > 0 and (held > 0 or not validates) and (tests > 0 or not tests_some)

    def too_few() -> DataError:
        needed = next((count for count in range(1, 1000) if enough(count)), 1000)
        return DataError.of(
            "too few texts for a class",
            place=rows.source.description,
            found=f"{len(rows)}" + (", some of them test texts" if settings.drop_leaks else ""),
            expected=f"at least {needed}: to train on"
            + (", to hold out" if validates else "")
            + (", to test on" if tests_some else ""),
            remedy="add texts" + (", or give the test texts with --test" if tests_some else ""),
        )

    if not enough(len(rows)):
        raise too_few()
    everything = np.ones(len(rows), dtype=np.bool_)
    _, _, tests = parts(len(rows))
    test = chosen(everything, tests, settings.split_seed, TEST_CUT)
    train = everything & ~test
    learned = int(train.sum())
    tested, tested_mask = (rows, test)
    if held_back is not None:
        tested, tested_mask = held_back, np.ones(len(held_back), dtype=np.bool_)
    if settings.max_test_samples is not None and "test" in dataset.splits:
        # The test texts are a sample: the new class has no more of them than the largest one.
        most = max(dataset.split("test").class_counts.values())
        tested_mask = chosen(tested_mask, most, settings.split_seed, TEST_SAMPLE)
    if settings.drop_leaks:
        leaked = {tested.by_row[row] for row in np.flatnonzero(tested_mask)}
        train &= np.array([key not in leaked for key in rows.by_row])
    if settings.max_samples is not None:
        train = chosen(train, settings.max_samples, settings.seed_of_sample, TRAIN_SAMPLE)
    if not train.any():
        raise too_few()
    cut: dict[SplitName, tuple[NewTexts, Mask]] = {"train": (rows, train)}
    if validates:
        count = part_for_validation(int(train.sum()), fraction)
        validation = chosen(train, count, settings.seed_of_sample, VALIDATION_CUT)
        cut = {"train": (rows, train & ~validation), "validation": (rows, validation)}
    if "test" in dataset.splits:
        cut["test"] = (tested, tested_mask)
    return Cut(cut, learned)
