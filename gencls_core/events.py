"""What happens in a run, as values: the command line draws them and `events.jsonl` keeps them."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from pathlib import Path
from types import TracebackType
from typing import Any, Self

__all__ = [
    "ClassReused",
    "ClassTrained",
    "Event",
    "EventLog",
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
    """A class model has come to `step` of `total_steps`; losses in nats per token."""

    class_name: str
    step: int
    total_steps: int
    epoch: float
    loss: float | None
    validation_nll: float | None
    learning_rate: float
    tokens_per_second: float


@dataclass(frozen=True)
class ClassTrained(Event):
    """A class model was committed."""

    class_name: str
    seconds: float
    tokens_per_second: float
    validation_perplexity: float | None
    peak_memory_bytes: int
    best_epoch: float


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


class EventLog:
    """Appends events to a file, one JSON object a line, with times."""

    def __init__(self, path: Path) -> None:
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
        self._stream.close()

    def append(self, event: Event) -> None:
        """Write one event."""
        line = {"time": datetime.now(UTC).isoformat(timespec="milliseconds"), **event.to_json()}
        self._stream.write(json.dumps(line, ensure_ascii=False) + "\n")
        self._stream.flush()
