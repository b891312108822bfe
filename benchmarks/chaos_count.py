"""Counting after a campaign: a disturbed run against one that nothing happened to."""

from __future__ import annotations

import json
from collections import Counter
from dataclasses import asdict, dataclass, field
from datetime import datetime
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from benchmarks.chaos_faults import Commit
from gencls_core.class_models import ClassModel
from gencls_core.run import RunDirectory
from gencls_core.scores import ScoreStore, read_scores
from gencls_core.storage import file_sha256
from gencls_core.verify import verify

__all__ = ["Audit", "audit", "commit_of", "commits", "read_events", "when"]

_KEYS = ("system", "class", "example_id")


@dataclass
class Audit:
    """What was counted; `faults` says in words what is not as it must be."""

    rows_expected: int = 0
    rows_found: int = 0
    """Score rows of all systems, of test and validation texts."""
    pairs_found: int = 0
    """Different (system, class, example) among them."""
    values_that_differ: int = 0
    """Rows whose score or token count is not that of the undisturbed run."""
    models_that_differ: int = 0
    """Class models whose weights are not those of the undisturbed run, bit by bit."""
    predictions_that_differ: int = 0
    commits_expected: int = 0
    """Shards and class models, and again each time that a fault destroyed one."""
    commits_logged: int = 0
    recomputed: int = 0
    """Commits of what was committed and whole."""
    commits_without_line: int = 0
    """Committed, but the driver was killed before it could write the line."""
    not_whole: list[str] = field(default_factory=list)
    """What `gencls verify` finds."""

    @property
    def problems(self) -> list[str]:
        """Say what is not as it must be."""
        found = [
            f"{name.replace('_', ' ')}: {value}"
            for name, value in asdict(self).items()
            if name.endswith("differ") or name == "recomputed"
            if value
        ]
        if not self.rows_expected == self.rows_found == self.pairs_found:
            found.append(
                f"rows: {self.rows_expected:,} expected, {self.rows_found:,} found, "
                f"{self.pairs_found:,} different ones"
            )
        return found + self.not_whole


def audit(reference: RunDirectory, run: RunDirectory, destroyed: Counter[Commit]) -> Audit:
    """Compare a run that has come to its end with one that was not disturbed.

    Args:
        reference: the undisturbed run, with the same settings.
        run: the disturbed one.
        destroyed: how often a fault destroyed committed work that was whole.
    """
    result = Audit()
    rows = {name: info.rows for name, info in reference.dataset().splits.items()}
    for split, theirs, ours in (
        ("test", reference.scores, run.scores),
        ("validation", reference.validation_scores, run.validation_scores),
    ):
        _compare_rows(result, theirs, ours, rows[split])
    for name in run.dataset().classes:
        weights = [
            ClassModel.open(place.model_path(name)).path / "model.safetensors"
            for place in (reference, run)
        ]
        result.models_that_differ += file_sha256(weights[0]) != file_sha256(weights[1])
    before, after = (_predictions(place) for place in (reference, run))
    result.predictions_that_differ = sum((before - after).values())
    _count_commits(result, commits(reference), commits(run), destroyed)
    result.not_whole = [
        f"{finding.kind} {finding.place}: {finding.problem}"
        for finding in verify(run).findings
        if finding.kind != "note"
    ]
    return result


def _compare_rows(result: Audit, theirs: ScoreStore, ours: ScoreStore, texts: int) -> None:
    """Count the rows of one split, and those whose values differ."""
    expected, found = _rows(read_scores(theirs.path)), _rows(read_scores(ours.path))
    systems = {key[0] for key in expected}
    classes = {key[1] for key in expected}
    result.rows_expected += texts * len(classes) * len(systems)
    result.rows_found += found.total()
    different = {row[: len(_KEYS)] for row in found}
    result.pairs_found += len(different)
    missing = expected - found
    # A row that is not there at all is told by the counts.
    result.values_that_differ += sum(row[: len(_KEYS)] in different for row in missing)


def _rows(table: pa.Table) -> Counter[tuple[Any, ...]]:
    columns = [*_KEYS, "label", "score", "num_tokens", "truncated"]
    return Counter(zip(*(table[name].to_pylist() for name in columns), strict=True))


def _predictions(run: RunDirectory) -> Counter[tuple[Any, ...]]:
    table = pq.read_table(str(run.predictions_path))
    return Counter(tuple(map(repr, row.values())) for row in table.to_pylist())


def _count_commits(
    result: Audit, undisturbed: Counter[Commit], logged: Counter[Commit], destroyed: Counter[Commit]
) -> None:
    expected = Counter(undisturbed.keys()) + destroyed
    result.commits_expected = expected.total()
    result.commits_logged = logged.total()
    result.recomputed = (logged - expected).total()
    result.commits_without_line = (expected - logged).total()


def read_events(run: RunDirectory, offset: int = 0) -> tuple[list[dict[str, Any]], int]:
    """Give the whole lines of the event log from a byte on, and the byte after them."""
    path = Path(str(run.events_path))
    if not path.exists():
        return [], offset
    with path.open("rb") as stream:
        stream.seek(offset)
        lines = stream.read().splitlines(keepends=True)
    if lines and not lines[-1].endswith(b"\n"):
        lines.pop()
    events = []
    for line in lines:
        events.append(json.loads(line))
    return events, offset + sum(map(len, lines))


def commits(run: RunDirectory) -> Counter[Commit]:
    """Count the commits of each piece of work over all processes, from the event log."""
    events, _ = read_events(run)
    return Counter(commit for event in events if (commit := commit_of(event)) is not None)


def commit_of(event: dict[str, Any]) -> Commit | None:
    """Say which work an event says is committed; None for other events."""
    match event["event"]:
        case "ShardCommitted":
            return event["split"], event["class_name"], event["shard"]
        case "ClassTrained":
            return "model", event["class_name"], 0
    return None


def when(event: dict[str, Any]) -> float:
    """Give the time of an event in seconds."""
    return datetime.fromisoformat(event["time"]).timestamp()
