"""The lines by which `gencls jobs` tells how far a submitted job is.

One JSON object after `#gencls `, in the driver's log: when the stage changes, then at most every
2 s and only when there is something new to tell, and at the end, however that comes about.
`cluster/job_view.py` reads the last one.
"""

from __future__ import annotations

import json
import os
import sys
import time
from typing import Any

from gencls_core.events import (
    ClassReused,
    ClassTrained,
    Event,
    ShardCommitted,
    StageFinished,
    StageStarted,
    TrainingProgress,
)

__all__ = ["JobLines", "job_lines"]

EVERY_SECONDS = 2.0


def job_lines() -> JobLines | None:
    """Give the writer of such lines, or None where this process is no submitted job."""
    return JobLines() if os.environ.get("GENCLS_JOB_ID") else None


class JobLines:
    """Follows a run's events and tells its state."""

    def __init__(self) -> None:
        self._state: dict[str, Any] = {}
        self._told: dict[str, Any] = {}
        self._told_at = 0.0
        self._training: dict[str, float] = {}
        """How much of each class's training is done, from 0 to 1."""

    def event(self, event: Event) -> None:
        """Take one event in, and tell of it when it is time."""
        # By name, not by class: the queue belongs to the room that needs Ray.
        values = event.to_json()
        if values["event"] == "Waiting":
            self._state = {
                "stage": "waiting",
                "done": values["place"],
                "total": values["of"],
                "message": values["message"],
            }
            self._tell()
            return
        match event:
            case StageStarted():
                self._state = {"stage": event.stage}
                if event.stage == "train":
                    self._training.clear()
                if event.total:
                    self._state |= {"done": event.reused, "total": event.total}
                self._tell()
                return
            case StageFinished(stage="report"):
                self._state = {"stage": "report", **_result(event.message)}
                self._tell()
                return
            case StageFinished():
                self._tell()
                return
            case TrainingProgress():
                self._training[event.class_name] = event.step / max(event.total_steps, 1)
            case ClassTrained() | ClassReused():
                self._training[event.class_name] = 1.0
            case ShardCommitted():
                if self._state.get("stage") == f"score {event.split}":
                    self._state["done"] = self._state.get("done", 0) + event.rows
            case _:
                return
        if self._state.get("stage") == "train":
            finished = sum(part >= 1.0 for part in self._training.values())
            total = self._state.get("total") or len(self._training)
            self._state |= {
                "done": max(finished, self._state.get("done", 0)),
                "percent": int(100 * sum(self._training.values()) / max(total, 1)),
            }
        if time.monotonic() - self._told_at >= EVERY_SECONDS:
            self._tell()

    def close(self) -> None:
        """Tell what has not been told yet."""
        self._tell()

    def _tell(self) -> None:
        if self._state == self._told:
            return
        self._told, self._told_at = dict(self._state), time.monotonic()
        text = json.dumps(self._state, ensure_ascii=False)
        print(f"#gencls {text}", file=sys.stderr, flush=True)


def _result(folder: str) -> dict[str, Any]:
    """Give the accuracies that a report states, and the run directory it is in."""
    from gencls_core.remote_path import as_location
    from gencls_core.storage import read_json

    report = as_location(folder)
    accuracy = read_json(report / "report.json")["accuracy"]
    return {
        "accuracy": accuracy["uncalibrated"],
        "accuracy_calibrated": accuracy.get("calibrated"),
        "run": str(report.parent),
    }
