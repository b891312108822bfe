"""What happens beside the steps of a training: checkpoints, progress, and a stop at a NaN loss."""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from typing import Any, Protocol

from transformers import TrainerCallback

from gencls_core.averaging import WeightAverage
from gencls_core.errors import TrainingError
from gencls_core.events import TrainingProgress

__all__ = ["Averager", "Meter", "Saver", "not_finite"]

PROGRESS_SECONDS = 1.0
EPOCH_SECONDS = 60.0
"""An epoch that took less is not worth a checkpoint: it is as quickly made again."""


class _Training(Protocol):
    label: str
    title: str

    def _get_learning_rate(self) -> float: ...


def not_finite(title: str, step: int, key: str, value: float) -> TrainingError:
    """Say that training stopped because its loss is NaN or infinite."""
    return TrainingError.of(
        "training stopped: the loss is not a finite number",
        place=f"{title}, step {step}",
        found=f"{key} {value}",
        remedy="a lower --learning-rate, or --precision fp32",
    )


class Saver(TrainerCallback):  # type: ignore[misc]
    """Saves a checkpoint now and then within a long epoch and after each that was not short, and
    passes each one on. The best epoch is saved anyway (`ObjectiveTrainer`)."""

    def __init__(self, seconds: float, after_save: Callable[[], None]) -> None:
        self._seconds = seconds
        self._after_save = after_save
        self._saved_at = time.monotonic()

    def on_step_end(self, args: Any, state: Any, control: Any, **_kwargs: Any) -> Any:
        # An epoch's last step is saved with what its end brings: held-out loss and mean weights.
        ends = state.epoch % 1 == 0 or state.global_step >= state.max_steps
        if time.monotonic() - self._saved_at >= self._seconds and not ends:
            control.should_save = True
        return control

    def on_epoch_end(self, args: Any, state: Any, control: Any, **_kwargs: Any) -> Any:
        elapsed = time.monotonic() - self._saved_at
        control.should_save = elapsed >= min(self._seconds, EPOCH_SECONDS)
        return control

    def on_save(self, args: Any, state: Any, control: Any, **_kwargs: Any) -> None:
        self._saved_at = time.monotonic()
        self._after_save()


class Averager(TrainerCallback):  # type: ignore[misc]
    """Takes the weights at the ends of the second half of the epochs into a mean."""

    def __init__(self, average: WeightAverage) -> None:
        self._average = average

    def on_epoch_end(self, args: Any, state: Any, control: Any, **_kwargs: Any) -> None:
        if state.epoch > args.num_train_epochs / 2:
            self._average.add()


class Meter(TrainerCallback):  # type: ignore[misc]
    """Measures speed, reports progress about once a second, and stops at a NaN loss."""

    def __init__(
        self, trainer: _Training, on_progress: Callable[[TrainingProgress], None] | None
    ) -> None:
        self._trainer = trainer
        self._on_progress = on_progress
        self._tokens = 0
        self._busy = 0.0
        self._step_began = 0.0
        self._reported = 0.0
        self._loss: float | None = None
        self._validation_nll: float | None = None

    @property
    def tokens_per_second(self) -> float:
        return self._tokens / self._busy if self._busy else 0.0

    def count(self, tokens: int) -> None:
        self._tokens += tokens

    def on_step_begin(self, *_args: Any, **_kwargs: Any) -> None:
        self._step_began = time.perf_counter()

    def on_step_end(self, args: Any, state: Any, control: Any, **_kwargs: Any) -> None:
        now = time.perf_counter()
        self._busy += now - self._step_began
        if now - self._reported >= PROGRESS_SECONDS or state.global_step == state.max_steps:
            self._report(state, now)

    def on_log(
        self, args: Any, state: Any, control: Any, logs: dict[str, float], **_kwargs: Any
    ) -> None:
        for key in ("loss", "eval_nll"):
            if key in logs and not math.isfinite(logs[key]):
                raise not_finite(self._trainer.title, state.global_step, key, logs[key])
        self._loss = logs.get("loss", self._loss)
        self._validation_nll = logs.get("eval_nll", self._validation_nll)
        if "eval_nll" in logs:
            self._report(state, time.perf_counter())

    def _report(self, state: Any, now: float) -> None:
        self._reported = now
        if self._on_progress is None:
            return
        self._on_progress(
            TrainingProgress(
                class_name=self._trainer.label,
                step=state.global_step,
                total_steps=state.max_steps,
                epoch=round(state.epoch or 0.0, 3),
                loss=self._loss,
                validation_nll=self._validation_nll,
                learning_rate=self._trainer._get_learning_rate(),
                tokens_per_second=round(self.tokens_per_second, 1),
            )
        )
