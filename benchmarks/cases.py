"""What a peer is asked and what it measured, as values that travel between processes as JSON.

Case           one piece of work: a model, a precision, a file of texts
Measurement    what a peer took for it, and what it computed
Stopwatch      seconds of steady state, told apart from the set-up that went before
"""

from __future__ import annotations

import json
import os
import statistics
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass, field
from pathlib import Path
from types import TracebackType
from typing import Any, Self

__all__ = [
    "SPAWNED",
    "Case",
    "Measurement",
    "Stopwatch",
    "median_seconds",
    "read_texts",
    "torch_dtype",
    "write_texts",
]

SPAWNED = "GENCLS_BENCH_SPAWNED"
"""Environment variable: the parent's monotonic clock, in seconds, when it started this process."""


@dataclass(frozen=True)
class Case:
    """One piece of work that every peer does."""

    name: str
    model: str
    """A model folder."""
    precision: str
    """`fp32` or `bf16`."""
    texts_file: str
    """A JSON list of strings; empty where a case needs no texts."""
    threads: int
    options: dict[str, str] = field(default_factory=dict)
    """Settings of one peer, such as its batch size."""

    def to_json(self) -> dict[str, Any]:
        """Give the values that JSON holds."""
        return asdict(self)


@dataclass(frozen=True)
class Measurement:
    """What one peer took for one case, in a process of its own."""

    setup_seconds: float
    """Process start to the end of the first batch: imports, loading, compiling."""
    seconds: float
    """Steady state, after that."""
    tokens: int
    """Tokens processed in `seconds`: the texts' own, no padding and no overlap of windows."""
    peak_memory_bytes: int
    """Largest resident memory from the loaded model on."""
    memory_before_bytes: int
    """Resident memory with the model loaded."""
    values: dict[str, float] = field(default_factory=dict)
    """What was computed: log-likelihoods, a final loss, the batch size that was used."""

    @property
    def tokens_per_second(self) -> float:
        """Give the speed in steady state."""
        return self.tokens / self.seconds

    def to_json(self) -> dict[str, Any]:
        """Give the values that JSON holds."""
        return asdict(self)


class Stopwatch:
    """Measures one case inside a peer's process.

    Loading comes first. `ready` is called with the model in memory, `first_batch` after one batch,
    and the steady state is the body of `with watch:`.
    """

    def __init__(self) -> None:
        self._setup_seconds = 0.0
        self._seconds = 0.0
        self._before = 0
        self._began = 0.0

    def ready(self) -> None:
        """Start a new peak of memory: the model is loaded."""
        from gencls_core.measure import peak_memory_bytes, reset_peak_memory

        reset_peak_memory()
        self._before = peak_memory_bytes()

    def first_batch(self) -> None:
        """Note the end of the set-up."""
        self._setup_seconds = time.monotonic() - float(os.environ[SPAWNED])

    def __enter__(self) -> Self:
        self._began = time.perf_counter()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._seconds = time.perf_counter() - self._began

    def measurement(self, tokens: int, values: dict[str, float] | None = None) -> Measurement:
        """Give what was measured."""
        from gencls_core.measure import peak_memory_bytes

        return Measurement(
            setup_seconds=self._setup_seconds,
            seconds=self._seconds,
            tokens=tokens,
            peak_memory_bytes=peak_memory_bytes(),
            memory_before_bytes=self._before,
            values=values or {},
        )


def median_seconds(work: Callable[[], object], repeats: int) -> float:
    """Time a piece of work again and again; give the median."""
    seconds = []
    for _ in range(repeats):
        began = time.perf_counter()
        work()
        seconds.append(time.perf_counter() - began)
    return statistics.median(seconds)


def write_texts(path: Path, texts: list[str]) -> str:
    """Write the texts of a case; give the path for `Case.texts_file`."""
    path.write_text(json.dumps(texts), encoding="utf-8")
    return str(path)


def read_texts(case: Case) -> list[str]:
    """Read the texts of a case."""
    texts: list[str] = json.loads(Path(case.texts_file).read_text(encoding="utf-8"))
    return texts


def torch_dtype(case: Case) -> Any:
    """Give the dtype in which the weights are held."""
    import torch

    return {"fp32": torch.float32, "bf16": torch.bfloat16}[case.precision]
