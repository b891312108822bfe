"""The bars of agreement: does bf16 put texts into the classes that fp32 puts them into?

Class models are trained first (once, see `benchmarks.agreement`); each scores the test texts in
both precisions, in a fresh process. The scores depend on no clock, so there is one round.
"""

from __future__ import annotations

import random
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from benchmarks.agreement import Agreement, trained_folder
from benchmarks.bars import BarResult, Options
from benchmarks.cases import Case, write_texts
from benchmarks.models import model_folder
from benchmarks.pairs import Ratio, run_peer
from benchmarks.texts import test_texts, train_texts

__all__ = ["Size", "agreement_of", "measure"]


@dataclass(frozen=True)
class Size:
    """How much of a data set is used."""

    dataset: str
    classes: int
    train_texts: int
    """Of each class."""
    test_texts: int

    @property
    def name(self) -> str:
        """Name the case in the results."""
        return f"{self.dataset}, {self.classes} classes, {self.test_texts:,} texts"


SIZES = (Size("agnews", 4, 200, 1000), Size("imdb", 2, 60, 300))
QUICK = (Size("agnews", 2, 16, 40), Size("imdb", 2, 4, 4))


def measure(options: Options) -> Iterator[BarResult]:
    """Give both bars of AG News, then of IMDB."""
    for size in QUICK if options.quick else SIZES:
        found = agreement_of(options, size)
        agreement = Ratio.of_values(size.name, [found.percent], found.details())
        mean_error = float(found.ratio_errors.mean())
        error = Ratio.of_values(size.name, [mean_error], found.error_details())
        yield BarResult(f"bf16_argmax_agreement_{size.dataset}", (agreement,))
        yield BarResult(f"bf16_ratio_error_{size.dataset}", (error,))


def agreement_of(options: Options, size: Size) -> Agreement:
    """Train what is not there, and score the test texts under all class models."""
    with tempfile.TemporaryDirectory() as folder:
        models = [str(path) for path in _class_models(options, size, Path(folder))]
        tested = _sample(test_texts(options, size.dataset), size.test_texts)
        file = write_texts(Path(folder) / "test.json", tested)

        def scores(precision: str) -> NDArray[np.float64]:
            columns = []
            for model in models:
                case = Case(size.name, model, precision, file, options.threads)
                (measured,) = run_peer("benchmarks.agreement:score", [case])
                columns.append([measured.values[f"text {i}"] for i in range(len(tested))])
            return np.array(columns, dtype=np.float64).T

        return Agreement(fp32=scores("fp32"), bf16=scores("bf16"))


def _class_models(options: Options, size: Size, folder: Path) -> Iterator[Path]:
    base = str(model_folder(options.model, options.model))
    for number in range(size.classes):
        chosen = _sample(train_texts(options, size.dataset, number), size.train_texts)
        file = write_texts(folder / f"train-{number}.json", chosen)
        case = Case(f"{size.dataset} {number}", base, "bf16", file, options.threads)
        run_peer("benchmarks.agreement:train", [case])
        yield trained_folder(case)


def _sample(texts: list[str], count: int) -> list[str]:
    return random.Random(0).sample(texts, min(count, len(texts)))
