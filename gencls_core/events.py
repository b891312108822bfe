"""What happens in a run, as values: the command line draws them and `events.jsonl` keeps them."""

from __future__ import annotations

import contextlib
import io
import json
import time
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from types import TracebackType
from typing import IO, Any, Self

from gencls_core.errors import StoreError
from gencls_core.remote_path import Location, RemotePath
from gencls_core.storage import write_errors

__all__ = [
    "ClassReused",
    "ClassTrained",
    "Event",
    "EventLog",
    "ExampleIsolated",
    "MemoryExceeded",
    "Note",
    "ScoringProgress",
    "ShardCommitted",
    "StageFinished",
    "StageStarted",
    "TrainingProgress",
]


@dataclass(frozen=True)
class Event:
    """Something that happened."""

    def to_json(self) -> dict[str, Any]:
        """Give the event's fields with its kind."""
        return {"event": type(self).__name__, **asdict(self)}


@dataclass(frozen=True)
class Note(Event):
    """Something that the user should know; also put into the report."""

    message: str


@dataclass(frozen=True)
class StageStarted(Event):
    """A stage (prepare, train, score …) begins; `reused` of `total` units of work are done."""

    stage: str
    message: str
    total: int = 0
    reused: int = 0


@dataclass(frozen=True)
class StageFinished(Event):
    """A stage is done."""

    stage: str
    message: str
    seconds: float


@dataclass(frozen=True)
class TrainingProgress(Event):
    """A model has come to `step` of `total_steps`; losses in nats per token, or per text where it
    learns to tell classes apart."""

    class_name: str
    step: int
    total_steps: int
    epoch: float
    loss: float | None
    validation_nll: float | None
    learning_rate: float
    tokens_per_second: float

    @property
    def figures(self) -> str:
        """How far it has come, and its losses, as people read them."""
        parts = [f"epoch {self.epoch:.1f}"]
        if self.loss is not None:
            parts.append(f"loss {self.loss:.3f}")
        if self.validation_nll is not None:
            parts.append(f"held-out {self.validation_nll:.3f}")
        return ", ".join(parts)


@dataclass(frozen=True)
class ClassTrained(Event):
    """A class model was committed."""

    class_name: str
    seconds: float
    tokens_per_second: float
    validation_perplexity: float | None
    peak_memory_bytes: int
    best_epoch: float
    averaged_epochs: int = 0


@dataclass(frozen=True)
class ClassReused(Event):
    """A committed class model with the wanted digest was found and not trained again."""

    class_name: str
    digest: str


@dataclass(frozen=True)
class ScoringProgress(Event):
    """Tokens scored in one shard under one class since the last such event."""

    split: str
    tokens: int


@dataclass(frozen=True)
class ShardCommitted(Event):
    """A score shard was committed."""

    split: str
    class_name: str
    shard: int
    shards: int
    rows: int
    tokens: int
    seconds: float


@dataclass(frozen=True)
class ExampleIsolated(Event):
    """One example ends every worker that scores it; its shard cannot be committed."""

    split: str
    shard: int
    row: int
    """Number of the example in its split."""
    example_id: str


@dataclass(frozen=True)
class MemoryExceeded(Event):
    """A worker ended itself because it outgrew its share of main memory."""

    attempt: str
    resident_bytes: int
    limit_bytes: int


PUT_SECONDS = 10.0


class EventLog:
    """Appends events to a file, one JSON object a line, with times.

    An object store cannot append: there the file is put anew every PUT_SECONDS and at the end.
    """

    def __init__(self, path: Location) -> None:
        self._path = path
        self._put_at = time.monotonic()
        self._stream: IO[str]
        if isinstance(path, RemotePath):
            self._stream = io.StringIO()
            with contextlib.suppress(FileNotFoundError):
                self._stream.write(path.read_text())
            return
        with write_errors(path):
            path.parent.mkdir(parents=True, exist_ok=True)
            self._stream = path.open("a", encoding="utf-8")

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        # A full disk or a lost store must not hide why the run ended.
        with contextlib.suppress(OSError, StoreError):
            self._put()
            self._stream.close()

    def _put(self) -> None:
        if isinstance(self._path, RemotePath) and isinstance(self._stream, io.StringIO):
            self._path.write_text(self._stream.getvalue())
            self._put_at = time.monotonic()

    def append(self, event: Event) -> None:
        """Write one event."""
        line = {"time": datetime.now(UTC).isoformat(timespec="milliseconds"), **event.to_json()}
        with write_errors(self._path):
            self._stream.write(json.dumps(line, ensure_ascii=False) + "\n")
            self._stream.flush()
        if time.monotonic() - self._put_at >= PUT_SECONDS:
            self._put()
