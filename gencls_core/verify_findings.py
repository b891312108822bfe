"""What `gencls verify` finds, and what it looked at."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field, replace
from typing import Literal

__all__ = ["Checked", "Finding", "Kind", "folders_below"]

Kind = Literal["missing", "torn", "orphan", "foreign", "note"]


@dataclass(frozen=True)
class Finding:
    """One thing that is not as it should be."""

    kind: Kind
    place: str
    """Named from the folder that was checked on."""
    problem: str
    remove: tuple[str, ...] = ()
    """What repairing removes, in order: files, and folders that end in `/`."""


@dataclass
class Checked:
    """What one part of a run came to: how many of each were checked, and what was found."""

    findings: list[Finding] = field(default_factory=list)
    models: int = 0
    shards: int = 0
    datasets: int = 0

    def add(self, other: Checked, below: str = "") -> None:
        """Take up another part, whose places are named below `below` (empty, or with a `/`)."""
        self.models += other.models
        self.shards += other.shards
        self.datasets += other.datasets
        self.findings += [
            replace(
                finding,
                place=below + finding.place,
                remove=tuple(below + name for name in finding.remove),
            )
            for finding in other.findings
        ]


def folders_below(files: Iterable[str], folder: str) -> set[str]:
    """Give the folders directly below a folder, from the names of files."""
    prefix = f"{folder}/"
    below = (name[len(prefix) :].split("/") for name in files if name.startswith(prefix))
    return {parts[0] for parts in below if len(parts) > 1}
