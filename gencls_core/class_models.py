"""A trained class model on disk: what was committed, and whether it still stands.

`committed.json` is written last, with the SHA-256 of every file beside it, inside a folder that is
renamed into place: presence means complete.
"""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Self

from gencls_core.errors import StoreError
from gencls_core.local_copies import local_folder
from gencls_core.remote_path import Location
from gencls_core.storage import file_sha256, read_json, size_of

__all__ = ["CLASS_MODEL_FORMAT", "ClassModel", "EpochRecord", "TrainingRecord"]

CLASS_MODEL_FORMAT = 1
COMMIT_NAME = "committed.json"


@dataclass(frozen=True)
class EpochRecord:
    """One evaluation point of a training curve; losses in nats per unit."""

    epoch: float
    step: int
    train_loss: float
    validation_nll: float | None
    learning_rate: float
    averaged_nll: float | None = None
    """The held-out loss of the mean of weights, where one is made of two epochs or more."""


@dataclass(frozen=True)
class TrainingRecord:
    """What training a class model took and gave."""

    texts: int
    tokens: int
    """Tokens trained on, over all epochs."""
    steps: int
    epochs: float
    best_epoch: float
    """After which the kept weights were taken."""
    train_loss: float
    """Nats per unit; last epoch."""
    validation_nll: float | None
    """The same on the held-out texts, of the weights that were kept."""
    validation_perplexity: float | None
    seconds: float
    tokens_per_second: float
    peak_memory_bytes: int
    peak_gpu_memory_bytes: int
    device: str
    precision: str
    threads: int
    history: tuple[EpochRecord, ...]
    loss_per: str = "token"
    """The unit: `token`, or `text` where the loss compares classes."""
    averaged_epochs: int = 0
    """Ends of epochs whose mean was kept; 0 where the weights of one epoch were."""


@dataclass(frozen=True)
class ClassModel:
    """A committed class model."""

    path: Location
    class_name: str
    """Empty for a model of all classes."""
    class_id: int
    digest: str
    """Names everything the weights depend on: texts, settings, base model, format."""
    base: str
    """The base model as it was asked for."""
    base_digest: str
    tokenizer_digest: str
    kind: str
    """`full` (own weights) or `lora` (an adapter on the base)."""
    files: dict[str, str]
    """SHA-256 of every file in the folder."""
    sizes: dict[str, int]
    """Bytes of every file: cheap to check at each start, where the SHA-256 is not."""
    training: TrainingRecord
    system: str = "class-lm"

    @classmethod
    def open(cls, path: Location) -> Self:
        """Read a class model's commit record.

        Raises:
            StoreError: when there is none, it is broken, or a file it names is missing.
        """
        place = path / COMMIT_NAME
        try:
            values: dict[str, Any] = read_json(place)
            if values.pop("format") != CLASS_MODEL_FORMAT:
                raise KeyError("format")
            training = dict(values.pop("training"))
            history = tuple(EpochRecord(**epoch) for epoch in training.pop("history"))
            model = cls(
                path=path,
                class_name=values.pop("class"),
                training=TrainingRecord(**training, history=history),
                **values,
            )
        except FileNotFoundError:
            raise StoreError.of(
                "no committed class model", place=path, remedy="run the training command again"
            ) from None
        except (json.JSONDecodeError, KeyError, TypeError) as error:
            raise StoreError.of(
                "broken commit record of a class model",
                place=place,
                found=str(error),
                remedy="delete the folder and run the training command again",
            ) from None
        torn = [name for name, size in model.sizes.items() if size_of(path / name) != size]
        if torn:
            found = size_of(path / torn[0])
            raise StoreError.of(
                "a class model's file is not as it was committed",
                place=path / torn[0],
                found="no file" if found is None else f"{found} bytes",
                expected=f"{model.sizes[torn[0]]} bytes",
                remedy="run the training command again: it trains this class anew",
            )
        return model

    @classmethod
    def find(cls, path: Location) -> Self | None:
        """Read a class model's commit record, or give None where there is no whole one."""
        try:
            return cls.open(path)
        except StoreError:
            return None

    def torn_files(self) -> list[str]:
        """Give the names of the files whose bytes are not those that were committed."""
        return [
            name
            for name, sha256 in self.files.items()
            if size_of(self.path / name) is None or file_sha256(self.path / name) != sha256
        ]

    def local(self) -> Path:
        """Give a folder on this machine with the model's files, checked where they were fetched."""
        return local_folder(self.path, self.files)

    def to_json(self) -> dict[str, Any]:
        """Give the content of `committed.json`."""
        values = asdict(self)
        del values["path"]
        return {
            "format": CLASS_MODEL_FORMAT,
            "class": values.pop("class_name"),
            **values,
        }


def files_of(folder: Path) -> dict[str, str]:
    """Give the SHA-256 of every file under a model folder but its commit record."""
    return {
        str(path.relative_to(folder)): file_sha256(path)
        for path in sorted(folder.rglob("*"))
        if path.is_file() and path.name != COMMIT_NAME
    }
