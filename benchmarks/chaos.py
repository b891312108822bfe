"""A seeded campaign of kills over one run, and the count of what is left.

    python -m benchmarks.chaos --seed 1 --faults 30 --json chaos.json

One run is made undisturbed, as the reference. Then the same command runs again in another
directory: its processes are killed, paused and stopped while it prepares, trains, scores and
reports, its files are harmed between two starts, and it is started again each time. In the end its
rows, values and weights must be those of the reference. docs/reliability.md quotes the result.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import signal
import statistics
import sys
import tempfile
import time
from collections import Counter, deque
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

from benchmarks.chaos_count import Audit, audit, commit_of, read_events, when
from benchmarks.chaos_faults import (
    PHASES,
    Commit,
    Fault,
    Invocation,
    draw_plan,
    harm_files,
    members,
)
from benchmarks.chaos_run import (
    LONG,
    LONGEST_INVOCATION,
    Injected,
    Size,
    Watch,
    start,
    write_texts,
)
from gencls_core.run import RunDirectory

__all__ = ["Campaign", "main", "render", "run_campaign"]

AGENTS_SECONDS = 120.0
"""Ray's agents notice after some 75 s that the driver is dead."""


@dataclass
class Campaign:
    """What was done and what came of it."""

    seed: int
    size: Size
    injected: list[Injected] = field(default_factory=list)
    invocations: list[dict[str, Any]] = field(default_factory=list)
    reference_seconds: float = 0.0
    seconds: float = 0.0
    destroyed: Counter[Commit] = field(default_factory=Counter)
    audit: Audit = field(default_factory=Audit)
    problems: list[str] = field(default_factory=list)

    @property
    def kills(self) -> int:
        """How many faults ended processes; pauses and harm to files are not counted."""
        return sum(
            fault.phase != "at rest" and not fault.kind.startswith("SIGSTOP")
            for fault in self.injected
        )

    def to_json(self) -> dict[str, Any]:
        """Give everything as JSON values."""
        return asdict(replace(self, destroyed=Counter())) | {
            "destroyed": [[*commit, count] for commit, count in self.destroyed.items()]
        }


def run_campaign(
    folder: Path, seed: int, faults: int, size: Size = LONG, minutes: float = 60
) -> Campaign:
    """Disturb a run in `folder` until `faults` faults have ended processes of it, then count.

    Args:
        folder: a new folder for both runs and what they print.
        seed: decides kind, phase and trigger of every fault.
        faults: that end processes; pauses and harm to files come on top.
        size: how long the run is.
        minutes: after which no invocation is disturbed any more.
    """
    began = time.monotonic()
    # A shell that put this into the background has its children ignore Ctrl-C.
    signal.signal(signal.SIGINT, signal.default_int_handler)
    write_texts(folder / "data", size)
    campaign = Campaign(seed, size)
    reference = start(folder, "reference", size, folder / "reference.txt")
    if reference.wait(LONGEST_INVOCATION) != 0:
        raise RuntimeError(_tail(folder / "reference.txt"))
    campaign.reference_seconds = round(time.monotonic() - began, 1)
    sessions = [reference.pid]
    late: deque[Fault] = deque()
    plan = draw_plan(seed, 10**6)
    while campaign.kills < faults and time.monotonic() - began < 60 * minutes:
        invocation = next(plan)
        left = faults - campaign.kills
        during = sorted([*late, *invocation.during][:left], key=_order)
        at_rest = invocation.at_rest
        if campaign.invocations and campaign.invocations[-1]["exit"] == 0 and not at_rest:
            at_rest = (Fault("class model: file deleted", "at rest", choice=seed),)
        late.clear()
        late.extend(_invoke(campaign, folder, Invocation(at_rest, tuple(during)), sessions))
    for _ in range(2):
        # Once to the end, and once more, when nothing may be left to do.
        done, _ = read_events(RunDirectory(folder / "run"))
        _invoke(campaign, folder, Invocation((), ()), sessions)
    again, _ = read_events(RunDirectory(folder / "run"))
    repeated = sum(commit_of(event) is not None for event in again[len(done) :])
    if repeated:
        campaign.problems.append(f"the finished run did {repeated} pieces of work again")
    _recoveries(campaign, again)
    campaign.audit = audit(
        RunDirectory(folder / "reference"), RunDirectory(folder / "run"), campaign.destroyed
    )
    campaign.problems += campaign.audit.problems
    _wait_until_gone(campaign, sessions)
    campaign.seconds = round(time.monotonic() - began, 1)
    return campaign


def _order(fault: Fault) -> tuple[bool, int, int]:
    return fault.ends, PHASES.index(fault.phase), fault.after


def _invoke(
    campaign: Campaign, folder: Path, invocation: Invocation, sessions: list[int]
) -> list[Fault]:
    """Harm files, start the run, harm its processes; gives the faults whose chance never came."""
    run, number = RunDirectory(folder / "run"), len(campaign.invocations) + 1
    for fault in invocation.at_rest:
        harmed = harm_files(fault, run)
        if harmed is not None:
            campaign.destroyed += harmed[1]
            fault_at_rest = Injected(fault.kind, "at rest", number, time.time(), harmed[0])
            campaign.injected.append(fault_at_rest)
    output = folder / f"invocation-{number:02}.txt"
    watch = Watch(run, number)
    began = time.monotonic()
    process = start(folder, "run", campaign.size, output)
    sessions.append(process.pid)
    late = watch.disturb(process, list(invocation.during))
    campaign.injected += watch.injected
    campaign.problems += watch.problems
    kinds = [fault.kind for fault in watch.injected]
    code = process.returncode
    status = run.manifest().get("status") if Path(str(run.manifest_path)).exists() else None
    campaign.invocations.append(
        {
            "seconds": round(time.monotonic() - began, 1),
            "exit": code,
            "status": status,
            "faults": kinds,
            "end": _tail(output, 3),
        }
    )
    print(f"{number:3} exit {code} in {campaign.invocations[-1]['seconds']:.0f} s: {kinds}")
    campaign.problems += [
        f"invocation {number}: {problem}" for problem in _surprises(kinds, code, status, output)
    ]
    return late


def _surprises(kinds: list[str], code: int | None, status: str | None, output: Path) -> list[str]:
    """Say what of an invocation's end is not explained by what was done to it."""
    found = []
    if "SIGKILL of the driver" in kinds:
        expected = -signal.SIGKILL
    elif "SIGTERM" in kinds or "SIGINT" in kinds:
        expected = 130
        if "Traceback" in output.read_text(errors="replace"):
            found.append(f"a traceback: {_tail(output)}")
    elif "SIGKILL of the raylet" in kinds:
        return found
    else:
        expected = 0
    # A Ctrl-C that meets a module's own `exec` while it is imported has Python end itself by SIGINT
    # after the last word was said: a shell shows 130 for both.
    if code != expected and not (code == -signal.SIGINT and expected == 130):
        found.append(f"exit code {code}, {expected} expected: {_tail(output)}")
    elif code == 0 and status != "finished":
        found.append(f"status {status!r} after exit code 0")
    return found


def _recoveries(campaign: Campaign, events: list[dict[str, Any]]) -> None:
    """Note how long it took after each fault until work was committed again."""
    done = [
        when(event)
        for event in events
        if commit_of(event) is not None
        or (event["event"], event.get("stage")) == ("StageFinished", "report")
    ]
    for fault in campaign.injected:
        after = [moment - fault.at for moment in done if moment > fault.at]
        fault.recovery_seconds = round(min(after), 2) if after else None


def _wait_until_gone(campaign: Campaign, sessions: list[int]) -> None:
    deadline = time.monotonic() + AGENTS_SECONDS
    while alive := [process for session in sessions for process in members(session)]:
        if time.monotonic() > deadline:
            campaign.problems.append(f"processes left alive: {alive}")
            return
        time.sleep(1.0)


def _tail(output: Path, lines: int = 15) -> str:
    return "\n".join(output.read_text(errors="replace").strip().splitlines()[-lines:])


def render(campaign: Campaign) -> str:
    """Give the result as Markdown."""
    counts = Counter((fault.kind, fault.phase) for fault in campaign.injected)
    kinds = sorted({kind for kind, _ in counts})
    lines = [f"| fault | {' | '.join(PHASES)} |", f"| --- |{' ---: |' * len(PHASES)}"]
    for kind in kinds:
        cells = [str(counts[kind, phase] or "") for phase in PHASES]
        lines.append(f"| {kind} | {' | '.join(cells)} |")
    found = campaign.audit
    took = [f.recovery_seconds for f in campaign.injected if f.recovery_seconds is not None]
    facts = {
        "faults injected": f"{len(campaign.injected)}, {campaign.kills} of them ended processes",
        "invocations": len(campaign.invocations),
        "score rows expected": f"{found.rows_expected:,}",
        "score rows found, all different": f"{found.rows_found:,}",
        "values that differ": found.values_that_differ,
        "class models whose weights differ": found.models_that_differ,
        "predictions that differ": found.predictions_that_differ,
        "commits: one each, and one for each destroyed": f"{found.commits_expected:,}",
        "commits in the event log": f"{found.commits_logged:,}",
        "committed work recomputed": found.recomputed,
        "seconds from a fault to the next commit": f"median {statistics.median(took):.0f}, "
        f"at most {max(took):.0f}",
        "seconds in all": f"{campaign.seconds:.0f}; undisturbed {campaign.reference_seconds:.0f}",
    }
    lines += ["", "| counted | |", "| --- | ---: |"]
    lines += [f"| {name} | {value} |" for name, value in facts.items()]
    return "\n".join([*lines, "", *(f"PROBLEM {problem}" for problem in campaign.problems)])


def main(arguments: list[str] | None = None) -> None:
    """Run a campaign; the exit code is 1 when anything is not as it must be."""
    parser = argparse.ArgumentParser(description="Disturb a run at random, and count.")
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--faults", type=int, default=30, help="faults that end processes; 30")
    parser.add_argument("--minutes", type=float, default=60, help="then no more faults; 60")
    parser.add_argument("--folder", type=Path, help="a new folder for the runs; a temporary one")
    parser.add_argument("--json", type=Path, help="also write everything there")
    given = parser.parse_args(arguments)
    with contextlib.ExitStack() as stack:
        folder = given.folder or Path(stack.enter_context(tempfile.TemporaryDirectory()))
        campaign = run_campaign(folder.absolute(), given.seed, given.faults, minutes=given.minutes)
        print(render(campaign))
        if given.json:
            given.json.write_text(json.dumps(campaign.to_json(), indent=2) + "\n")
    sys.exit(1 if campaign.problems else 0)


if __name__ == "__main__":
    main()
