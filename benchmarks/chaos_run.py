"""The run that a campaign disturbs: its texts and its command, and how far it is."""

from __future__ import annotations

import contextlib
import json
import os
import random
import signal
import subprocess
import sys
import time
from collections import deque
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import psutil

from benchmarks.chaos_count import read_events
from benchmarks.chaos_faults import PHASES, Fault, harm_process
from gencls_core.run import RunDirectory

__all__ = [
    "LONG",
    "LONGEST_INVOCATION",
    "QUICK",
    "Injected",
    "Size",
    "Watch",
    "start",
    "write_texts",
]

LOOK_SECONDS = 0.03
SEARCH_SECONDS = 0.3
"""Until a victim is looked for again, where there was none."""
LONGEST_INVOCATION = 600.0
"""Seconds after which an invocation counts as stuck."""

_WORDS = {
    "lamps": "lamp light bulb dark pole flicker street bright",
    "noise": "loud music drill bark party hum night horn",
    "roads": "hole asphalt kerb crack lane gravel bump tar",
    "waste": "bin rubbish glass paper bag smell lorry compost",
}
_COMMON = "the a by near our and of at in on again since nobody came still"


@dataclass(frozen=True)
class Size:
    """How long the run is that is disturbed."""

    train: int = 60
    test: int = 80
    """Texts of each of the four classes."""
    epochs: int = 5
    shard_size: int = 4


LONG = Size()
QUICK = Size(train=40, test=40, epochs=3, shard_size=8)


def write_texts(folder: Path, size: Size) -> None:
    """Write train and test texts of four classes, the same each time."""
    folder.mkdir(parents=True)
    for number, (split, count) in enumerate((("train", size.train), ("test", size.test))):
        rows = []
        for label, words in _WORDS.items():
            generator = random.Random(f"{label} {split}")
            for row in range(count):
                chosen = [
                    generator.choice((words if generator.random() < 0.3 else _COMMON).split())
                    for _ in range(generator.randint(15, 50))
                ]
                rows.append({"text": " ".join([*chosen, f"{row}."]), "label": label})
        random.Random(number).shuffle(rows)
        text = "".join(json.dumps(row) + "\n" for row in rows)
        (folder / f"{split}.jsonl").write_text(text, encoding="utf-8")


def start(folder: Path, name: str, size: Size, output: Path) -> subprocess.Popen[bytes]:
    """Start the run called `name`, in a session of its own, as a terminal gives it."""
    command = [
        sys.executable, "-m", "jobs", "run", "--data-dir", str(folder / "data"),
        "--validation-fraction", "0.2", "--model", "scratch:tiny", "--epochs", str(size.epochs),
        "--patience", "0", "--learning-rate", "2e-3", "--shard-size", str(size.shard_size),
        "--num-cpus", "2", "--actors", "2", "--memory-gb", "8",
        "--recipe", "independent", "--output-dir", str(folder / name),
    ]  # fmt: skip
    # Threads that spin while they wait for each other stand still on a busy machine.
    environment = {**os.environ, "OMP_WAIT_POLICY": "PASSIVE"}
    with output.open("ab") as stream:
        return subprocess.Popen(
            command, stdout=stream, stderr=stream, start_new_session=True, env=environment
        )


@dataclass
class Injected:
    """A fault that was inflicted."""

    kind: str
    phase: str
    """Where the run was when it struck."""
    invocation: int
    at: float
    """Seconds since the epoch."""
    what: str
    recovery_seconds: float | None = None
    """Until the next work was committed; None where all was."""


class Watch:
    """Follows one invocation through its event log, and inflicts faults on it."""

    def __init__(self, run: RunDirectory, number: int) -> None:
        """Begin before the start of invocation `number`, counted from 1."""
        self.injected: list[Injected] = []
        self.problems: list[str] = []
        self._run = run
        self._number = number
        _, self._offset = read_events(run)
        self._phase = ""
        self._count = 0
        self._asleep: list[tuple[float, psutil.Process]] = []

    def disturb(self, process: subprocess.Popen[bytes], faults: list[Fault]) -> list[Fault]:
        """Inflict each fault, in order, when its trigger comes; gives those that found no victim.

        What ends a run strikes later than planned where its phase had nothing to do.
        """
        deadline = time.monotonic() + LONGEST_INVOCATION
        waiting, late = deque(faults), []
        due: float | None = None
        while process.poll() is None:
            if time.monotonic() > deadline:
                self.problems.append(f"invocation {self._number} did not end")
                process.kill()
            self._wake(time.monotonic())
            self._look(process.pid)
            if waiting and self._phase:
                fault = waiting[0]
                behind = PHASES.index(self._phase) - PHASES.index(fault.phase)
                if behind > 0 and not fault.ends:
                    late.append(waiting.popleft())
                    due = None
                    continue
                if behind > 0 or (behind == 0 and self._count >= fault.after):
                    due = due or time.monotonic() + fault.delay
                if due is not None and time.monotonic() >= due:
                    if self._inflict(fault, process):
                        waiting.popleft()
                        due = None
                    else:
                        due = time.monotonic() + SEARCH_SECONDS
            time.sleep(LOOK_SECONDS)
        self._wake(float("inf"))
        return [*late, *waiting]

    def _inflict(self, fault: Fault, process: subprocess.Popen[bytes]) -> bool:
        at = time.time()
        victims = harm_process(fault, process.pid)
        if victims is None:
            return False
        what = ", ".join(str(victim.pid) for victim in victims)
        self.injected.append(Injected(fault.kind, self._phase, self._number, at, what))
        if fault.kind.startswith("SIGSTOP"):
            until = time.monotonic() + 2.0 + fault.choice % 4
            self._asleep += [(until, victim) for victim in victims]
        return True

    def _wake(self, now: float) -> None:
        """Let the paused go on whose time has come."""
        for _, sleeper in [entry for entry in self._asleep if entry[0] <= now]:
            with contextlib.suppress(psutil.Error):
                sleeper.send_signal(signal.SIGCONT)
        self._asleep = [entry for entry in self._asleep if entry[0] > now]

    def _look(self, driver: int) -> None:
        """Find out how far the run is."""
        if not self._phase:
            for path in Path(str(self._run.path)).glob(".owners/*.owner"):
                with contextlib.suppress(OSError, ValueError, KeyError):
                    if json.loads(path.read_text())["pid"] == driver:
                        self._phase, self._count = "prepare", 0
        events, self._offset = read_events(self._run, self._offset)
        for event in events:
            phase = _phase_of(event) or self._phase
            if phase != self._phase:
                self._phase, self._count = phase, 0
            elif event["event"] in ("TrainingProgress", "ClassTrained", "ShardCommitted"):
                self._count += 1


def _phase_of(event: dict[str, Any]) -> str | None:
    """Give the phase that an event begins, None for others."""
    kind, stage = event["event"], event.get("stage", "")
    if kind == "StageFinished" and stage == "prepare":
        return "train"
    if stage.startswith("score"):
        idle = event.get("message", "").startswith("nothing")
        done = (kind == "StageFinished" or idle) and stage != "score validation"
        return "report" if done else "score"
    return None
