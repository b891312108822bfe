"""Peers in turn, A B A B, each in a fresh process; and what comes of their measurements.

The machine's speed drifts by a third within minutes, so only figures of neighbours are compared: a
ratio is taken within each round, and the median of the rounds is what counts.
"""

from __future__ import annotations

import json
import os
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

from benchmarks.cases import SPAWNED, Case, Measurement

__all__ = ["Pair", "PeerError", "Ratio", "answer", "run_peer", "run_rounds"]

Pair = tuple[Measurement, Measurement]
"""Ours and the peer's, of one round."""


class PeerError(RuntimeError):
    """A peer's process failed; the message ends with what it wrote."""


@dataclass(frozen=True)
class Ratio:
    """A figure over several rounds: mostly a ratio of two measurements, else seconds or bytes."""

    case: str
    median: float
    min: float
    max: float
    pairs: int
    details: dict[str, float] = field(default_factory=dict)
    """Figures that explain it, such as each side's tokens a second."""

    @classmethod
    def of_values(
        cls, case: str, values: Iterable[float], details: dict[str, float] | None = None
    ) -> Ratio:
        """Summarise one value per round."""
        found = list(values)
        return cls(
            case, statistics.median(found), min(found), max(found), len(found), details or {}
        )

    @classmethod
    def of(
        cls,
        case: str,
        pairs: Sequence[Pair],
        figure: Callable[[Measurement, Measurement], float],
        details: dict[str, float] | None = None,
    ) -> Ratio:
        """Summarise `figure(ours, peer)` of each pair."""
        return cls.of_values(case, (figure(ours, peer) for ours, peer in pairs), details)

    def to_json(self) -> dict[str, Any]:
        """Give the values that JSON holds."""
        return asdict(self)


def run_peer(peer: str, cases: Sequence[Case]) -> list[Measurement]:
    """Have a peer measure cases of one model in one fresh process, so that it loads once.

    Args:
        peer: `module:function`, of a function `(case) -> Measurement`.
        cases: of the same number of threads.

    Raises:
        PeerError: when the process fails.
    """
    threads = str(cases[0].threads)
    environment = {
        **os.environ,
        "OMP_NUM_THREADS": threads,
        "MKL_NUM_THREADS": threads,
        # Nobody waits for a hub: all models are folders.
        "HF_HUB_OFFLINE": "1",
        "HF_DATASETS_OFFLINE": "1",
        "TOKENIZERS_PARALLELISM": "true",
        SPAWNED: repr(time.monotonic()),
    }
    asked = json.dumps([case.to_json() for case in cases])
    done = subprocess.run(
        [sys.executable, "-m", "benchmarks", "peer", peer, asked],
        env=environment,
        capture_output=True,
        text=True,
        check=False,
    )
    if done.returncode:
        raise PeerError(f"{peer}, {cases[0].name}:\n{done.stderr[-4000:]}")
    return [Measurement(**json.loads(line)) for line in done.stdout.splitlines()]


def answer(peer: str, asked: str) -> None:
    """Be a peer's process: measure the cases and print one JSON line for each.

    What a peer prints itself goes to stderr, so that stdout holds nothing else.
    """
    from importlib import import_module

    with os.fdopen(os.dup(1), "w", encoding="utf-8") as out:
        os.dup2(2, 1)
        cases = [Case(**values) for values in json.loads(asked)]
        module, _, function = peer.partition(":")
        measure: Callable[[Case], Measurement] = getattr(import_module(module), function)
        for case in cases:
            print(json.dumps(measure(case).to_json()), file=out, flush=True)


def run_rounds(
    peers: Sequence[str], cases: Sequence[Case], rounds: int
) -> list[list[tuple[Measurement, ...]]]:
    """Run peers in turn, round by round; give per case, per round, each peer's measurement."""
    by_case: list[list[tuple[Measurement, ...]]] = [[] for _ in cases]
    for _ in range(rounds):
        of_peers = [run_peer(peer, cases) for peer in peers]
        for number in range(len(cases)):
            by_case[number].append(tuple(measured[number] for measured in of_peers))
    return by_case
