"""The generative classifier as scikit-learn knows classifiers: it trains in this process.

    classifier = GenerativeClassifier(model="gpt2").fit(texts, labels)
    classifier.predict(["…"])

`fit` makes a run directory, and `gencls_core.ClassifierRun` answers from it. Nothing of Ray starts.

Shapes: N texts, K classes.
"""

from __future__ import annotations

import os
import shutil
import tempfile
import time
import weakref
from collections.abc import Iterable
from pathlib import Path
from typing import Any, Self

import numpy as np
from sklearn.base import BaseEstimator, ClassifierMixin
from sklearn.utils.multiclass import check_classification_targets
from sklearn.utils.validation import check_consistent_length, check_is_fitted, column_or_1d

from gencls_core.classifier_run import ClassifierRun
from gencls_core.config_parsing import parse_run_config
from gencls_core.datasets.given import Given
from gencls_core.errors import UsageError
from gencls_core.events import TrainingProgress
from gencls_core.given_texts import checked_texts
from gencls_core.local_training import train_here
from gencls_core.score_matrix import FloatArray

__all__ = ["GenerativeClassifier"]

PRINTED_SECONDS = 5.0


class GenerativeClassifier(ClassifierMixin, BaseEstimator):  # type: ignore[misc]
    """A language model per class, or one for all, that labels texts by Bayes' rule.

    The settings are those of `gencls train`, under the same names and with the same defaults; None
    leaves a setting to the recipe.

    Args:
        model: the base model: a hub id, a folder, a pulled model, or `scratch:tiny`.
        recipe: `independent`, a language model per class; `conditional`, one model for all, which
            reads the class before the text; `joint`, the same, tuned to tell the classes apart.
        epochs: passes over the train texts, at the most.
        learning_rate: its peak.
        batch_size: texts of an optimiser batch.
        max_length: tokens that a text is cut after; None: never.
        lora_rank: train an adapter of this rank instead of all weights.
        prior: `train`, `uniform`, `a=0.4,b=0.6`, or `unlabelled`, estimated from the texts of each
            call.
        calibrate: take probabilities by scale and biases that were fitted to held-out texts, where
            there are any; False: as the run stands, by the likelihoods as they are.
        validation_fraction: part of each class that is held out, for the best epoch and the
            calibration.
        precision: `auto`, `fp32`, `bf16` or `fp16`.
        seed: of weights, order of texts, and what is held out.
        output_dir: where the run is kept: one for each fit, since another fit there replaces it.
            None: a temporary folder, which goes with this object; a pickle holds its files.
        verbose: print a line every few seconds of training, as scikit-learn's estimators do.

    Attributes:
        classes_: [K] the labels, sorted, of their own type.
        run_: the `ClassifierRun` that answers.
    """

    def __init__(
        self,
        model: str = "gpt2",
        *,
        recipe: str = "independent",
        epochs: float | None = None,
        learning_rate: float | None = None,
        batch_size: int = 8,
        max_length: int | None = None,
        lora_rank: int | None = None,
        prior: str = "train",
        calibrate: bool = True,
        validation_fraction: float = 0.1,
        precision: str = "auto",
        seed: int = 0,
        output_dir: str | Path | None = None,
        verbose: bool | int = False,
    ) -> None:
        self.model = model
        self.recipe = recipe
        self.epochs = epochs
        self.learning_rate = learning_rate
        self.batch_size = batch_size
        self.max_length = max_length
        self.lora_rank = lora_rank
        self.prior = prior
        self.calibrate = calibrate
        self.validation_fraction = validation_fraction
        self.precision = precision
        self.seed = seed
        self.output_dir = output_dir
        self.verbose = verbose

    def fit(self, X: Iterable[str], y: Any) -> Self:
        """Train on texts.

        Args:
            X: [N] texts, at least one of each class.
            y: [N] labels of at least two classes: str, int or bool.

        Raises:
            UsageError: when a text is none (it is named by its index), or a setting is wrong.
            ValueError: when `y` is no label per text, or all are of one class.
            DataError: when a text is empty.
            ModelError: when the base model cannot be had.
            TrainingError: when the loss is no longer a number.
        """
        if y is None:
            raise ValueError(
                "GenerativeClassifier requires y to be passed, but the target y is None"
            )
        texts = checked_texts(X)
        labels_N = column_or_1d(y, warn=True)
        check_consistent_length(texts, labels_N)
        if not texts:
            raise ValueError(
                "Found array with 0 sample(s): fit needs texts of two classes at least"
            )
        _refuse_missing(labels_N)
        check_classification_targets(labels_N)
        classes_K, codes_N = np.unique(labels_N, return_inverse=True)
        if len(classes_K) < 2:
            raise ValueError(
                f"y has one class only, {classes_K[0]!r}: there is nothing to tell apart"
            )
        names = _names_of(classes_K)
        self._forget()
        folder = self.output_dir
        if folder is None:
            folder = self._temporary_folder()
        config = parse_run_config(self._settings(folder), place=type(self).__name__)
        given = Given(texts, [names[code] for code in codes_N], names)
        run = train_here(config, given, _Printed() if self.verbose else None)
        self.classes_ = classes_K
        self.run_ = ClassifierRun.open(run.path)
        return self

    def predict(self, X: Iterable[str]) -> Any:
        """Give the likeliest label of each text, [N] of the type that `fit` was given."""
        best_N = self.predict_log_proba(X).argmax(axis=1)
        return self.classes_[best_N]

    def predict_proba(self, X: Iterable[str]) -> FloatArray:
        """Give P(class | text), [N, K] in the order of `classes_`."""
        return np.minimum(np.exp(self.predict_log_proba(X)), 1.0)

    def predict_log_proba(self, X: Iterable[str]) -> FloatArray:
        """Give log P(class | text) in nats, [N, K] in the order of `classes_`.

        Raises:
            NotFittedError: before `fit`.
            UsageError: when a text is none; it is named by its index.
        """
        check_is_fitted(self, "run_")
        return self.run_.predict_log_proba(X, calibrated=self.calibrate)

    def _settings(self, folder: str | Path) -> dict[str, Any]:
        """Give the settings as a run file has them."""
        return {
            "output_dir": folder,
            "baseline": False,
            "data": {
                "validation_fraction": self.validation_fraction,
                "split_seed": self.seed,
            },
            "model": {"model": str(self.model), "lora_rank": self.lora_rank},
            "sequence": {"max_length": self.max_length},
            "training": {
                "epochs": self.epochs,
                "learning_rate": self.learning_rate,
                "batch_size": self.batch_size,
                "seed": self.seed,
            },
            "recipe": {"recipe": self.recipe},
            "posterior": {"prior": self.prior},
            "compute": {"precision": self.precision},
        }

    def __sklearn_tags__(self) -> Any:
        tags = super().__sklearn_tags__()
        tags.input_tags.string = True
        tags.input_tags.one_d_array = True
        tags.input_tags.two_d_array = False
        return tags

    def _temporary_folder(self) -> Path:
        folder = Path(tempfile.mkdtemp(prefix="gencls-"))
        self._remove = weakref.finalize(self, _remove, folder, os.getpid())
        self._folder = folder
        return folder

    def _forget(self) -> None:
        """Let go of what was trained before."""
        if hasattr(self, "_remove"):
            self._remove()
        for name in ("_remove", "_folder", "run_", "classes_"):
            self.__dict__.pop(name, None)

    def __getstate__(self) -> dict[str, Any]:
        state: dict[str, Any] = dict(super().__getstate__())
        state.pop("_remove", None)
        folder: Path | None = state.pop("_folder", None)
        if folder is not None:
            state.pop("run_", None)
            state["_files"] = {
                str(path.relative_to(folder)): path.read_bytes()
                for path in sorted(folder.rglob("*"))
                if path.is_file() and ".owners" not in path.parts
            }
        return state

    def __setstate__(self, state: dict[str, Any]) -> None:
        state = dict(state)
        files: dict[str, bytes] | None = state.pop("_files", None)
        super().__setstate__(state)
        if files is None:
            return
        folder = self._temporary_folder()
        for name, content in files.items():
            (folder / name).parent.mkdir(parents=True, exist_ok=True)
            (folder / name).write_bytes(content)
        if (folder / "run.json").exists():
            self.run_ = ClassifierRun.open(folder)


class _Printed:
    """Prints how training goes: every few seconds, and where a model ends."""

    def __init__(self) -> None:
        self._last = 0.0

    def __call__(self, found: TrainingProgress) -> None:
        now, ended = time.monotonic(), found.step == found.total_steps
        if ended or now - self._last >= PRINTED_SECONDS:
            self._last = now
            steps = f"step {found.step}/{found.total_steps}"
            print(f"{found.class_name}: {steps}, {found.figures}", flush=True)


def _refuse_missing(labels_N: Any) -> None:
    """Refuse None and NaN, which no class is called."""
    for index, label in enumerate(labels_N.tolist()):
        if label is None or label != label:
            raise ValueError(f"y[{index}]: no label, found {label!r}; leave such texts out")


def _names_of(classes_K: Any) -> tuple[str, ...]:
    """Give each label the name of a class; a model of all classes reads it.

    Raises:
        UsageError: when two labels look alike, or one has no name.
    """
    names = tuple(str(label) for label in classes_K.tolist())
    if len(set(names)) < len(names) or not all(name.strip() for name in names):
        raise UsageError.of(
            "labels that cannot be told apart by their names",
            place="y",
            found=", ".join(map(repr, classes_K.tolist()[:10])),
            expected="labels whose str() differ, and are not empty",
        )
    return names


def _remove(folder: Path, process: int) -> None:
    # A process that was forked off has the folder from its parent.
    if os.getpid() == process:
        shutil.rmtree(folder, ignore_errors=True)
