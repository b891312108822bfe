"""Events drawn: live bars on a terminal, plain lines elsewhere."""

from __future__ import annotations

import time
from collections.abc import Iterable, Iterator
from contextlib import ExitStack, contextmanager

from rich.console import Console
from rich.progress import BarColumn, Progress, TaskID, TextColumn, TimeRemainingColumn

from gencls_core.durations import duration
from gencls_core.events import (
    ClassReused,
    ClassTrained,
    Event,
    Note,
    ScoringProgress,
    ShardCommitted,
    StageFinished,
    StageStarted,
    TrainingProgress,
)
from jobs.job_lines import job_lines

__all__ = ["draw"]

PLAIN_SECONDS = 15.0
"""Without a terminal, progress of one class or split is told at most this often."""


def draw(events: Iterable[Event], console: Console | None = None) -> list[Event]:
    """Show events as they come; give the stages that finished and the notes.

    In a submitted job, `gencls jobs` learns of them, too.
    """
    console = console or Console(stderr=True, highlight=False)
    kept: list[Event] = []
    told = job_lines()
    with ExitStack() as stack:
        show = stack.enter_context(_display(console))
        if told is not None:
            stack.callback(told.close)
        for event in events:
            show.event(event)
            if told is not None:
                told.event(event)
            if isinstance(event, StageFinished | Note):
                kept.append(event)
    return kept


@contextmanager
def _display(console: Console) -> Iterator[_Lines]:
    if console.is_terminal:
        with Progress(
            TextColumn("{task.description}"),
            BarColumn(bar_width=28),
            TextColumn("{task.percentage:>3.0f} %"),
            TextColumn("{task.fields[detail]}"),
            TimeRemainingColumn(compact=True),
            console=console,
            transient=True,
        ) as progress:
            yield _Bars(console, progress)
    else:
        yield _Lines(console)


class _Lines:
    """Plain lines."""

    def __init__(self, console: Console) -> None:
        self._console = console
        self._told: dict[str, float] = {}
        self._rows: dict[str, tuple[int, int]] = {}
        self._first_steps: dict[str, tuple[int, float]] = {}

    def say(self, text: str) -> None:
        self._console.print(text, markup=False, soft_wrap=True)

    def event(self, event: Event) -> None:
        match event:
            case StageStarted():
                self.say(f"• {event.message}")
                self.stage_started(event)
            case StageFinished(stage="report"):
                pass
            case StageFinished():
                self.say(f"✓ {event.message} ({duration(event.seconds)})")
                self.stage_finished(event)
            case Note():
                self.say(f"! {event.message}")
            case ClassReused():
                pass
            case ClassTrained():
                held_out = event.validation_perplexity
                kept = f"best epoch {event.best_epoch:g}"
                if event.averaged_epochs:
                    kept = f"mean of {event.averaged_epochs} epochs"
                perplexity = "" if held_out is None else f"held-out perplexity {held_out:.1f}, "
                self.say(
                    f"  {event.class_name}: {perplexity}{kept}, "
                    f"{event.tokens_per_second:,.0f} tokens/s, "
                    f"peak {event.peak_memory_bytes / 1e9:.1f} GB, {duration(event.seconds)}"
                )
                self.class_trained(event)
            case TrainingProgress():
                self.training(event)
            case ShardCommitted():
                self.shard(event)
            case ScoringProgress():
                self.scoring(event)

    def stage_started(self, event: StageStarted) -> None:
        if event.stage == "train":
            self._first_steps.clear()  # another training's may have the same name
        if event.stage.startswith("score "):
            self._rows[event.stage.removeprefix("score ")] = (event.reused, event.total)

    def stage_finished(self, event: StageFinished) -> None:
        return

    def class_trained(self, event: ClassTrained) -> None:
        return

    def training(self, event: TrainingProgress) -> None:
        first, began = self._first_steps.setdefault(
            event.class_name, (event.step, time.monotonic())
        )
        if not self._due(event.class_name):
            return
        left = ""
        if first < event.step < event.total_steps:
            of_step = (time.monotonic() - began) / (event.step - first)
            left = f", about {duration(of_step * (event.total_steps - event.step))} left"
        self.say(
            f"  {event.class_name}: step {event.step}/{event.total_steps}, {event.figures}{left}"
        )

    def shard(self, event: ShardCommitted) -> None:
        done, total = self._rows.get(event.split, (0, event.rows))
        self._rows[event.split] = (done + event.rows, total)
        if self._due(event.split):
            self.say(f"  {event.split}: {done + event.rows:,} of {total:,} rows")

    def scoring(self, event: ScoringProgress) -> None:
        return

    def _due(self, key: str) -> bool:
        now = time.monotonic()
        if now - self._told.get(key, 0.0) < PLAIN_SECONDS:
            return False
        self._told[key] = now
        return True


class _Bars(_Lines):
    """One live bar per class while training, one per split while scoring."""

    def __init__(self, console: Console, progress: Progress) -> None:
        super().__init__(console)
        self._progress = progress
        self._bars: dict[str, TaskID] = {}
        self._trained: set[str] = set()
        self._tokens: dict[str, tuple[int, float]] = {}

    def _bar(self, key: str, description: str, total: int, done: int = 0) -> TaskID:
        if key not in self._bars:
            self._bars[key] = self._progress.add_task(
                description, total=total, completed=done, detail=""
            )
        return self._bars[key]

    def event(self, event: Event) -> None:
        # An event of a class may come after the one that ended it.
        if isinstance(event, TrainingProgress) and event.class_name in self._trained:
            return
        super().event(event)

    def _drop(self, key: str) -> None:
        bar = self._bars.pop(key, None)
        if bar is not None:
            self._progress.remove_task(bar)

    def stage_started(self, event: StageStarted) -> None:
        super().stage_started(event)
        if event.stage == "train":
            self._trained.clear()  # another run's classes may have the same names
        if event.stage.startswith("score ") and event.reused < event.total:
            self._bar(event.stage, event.stage, event.total, event.reused)
            self._tokens[event.stage] = (0, time.monotonic())

    def stage_finished(self, event: StageFinished) -> None:
        self._drop(event.stage)

    def class_trained(self, event: ClassTrained) -> None:
        self._trained.add(event.class_name)
        self._drop(event.class_name)

    def training(self, event: TrainingProgress) -> None:
        bar = self._bar(event.class_name, f"train {event.class_name}", event.total_steps)
        self._progress.update(
            bar,
            completed=event.step,
            total=event.total_steps,
            detail=f"{event.figures}, {event.tokens_per_second:,.0f} tokens/s",
        )

    def shard(self, event: ShardCommitted) -> None:
        self._progress.update(
            self._bar(f"score {event.split}", f"score {event.split}", event.rows),
            advance=event.rows,
        )

    def scoring(self, event: ScoringProgress) -> None:
        key = f"score {event.split}"
        tokens, since = self._tokens.get(key, (0, time.monotonic()))
        tokens += event.tokens
        self._tokens[key] = (tokens, since)
        elapsed = max(time.monotonic() - since, 1e-3)
        if key in self._bars:
            self._progress.update(self._bars[key], detail=f"{tokens / elapsed:,.0f} tokens/s")
