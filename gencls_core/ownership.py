"""Who may write into a run: one owner at a time, and of each piece of work its latest attempt.

    <run>/.owners/<token>.claim          somebody wants the run
    <run>/.owners/<token>.owner          the owner; written anew every few seconds
    <run>/.owners/<token>.retired/<n>    an attempt of the owner's that must not commit any more

Neither a shared folder nor an object store gives a lock that its holder's death opens, and not
all stores can write "only if absent". So: put a claim, then list; whoever sees another's claim or a
living owner withdraws. Then put the owner's file, and list again: of two that got so far, the later
one sees the earlier one's file, so two never both go on. A listing is no snapshot: a file that goes
while others are looked at means that something moved, and all is listed again. An owner that has
been silent for LEASE_SECONDS, by the clock of the storage, or whose process is gone from this
machine, is dead, and its place is taken. Listing after writing must show what was written: that
holds for local and network file systems and for S3 (since 2020), GCS and Azure.

A process that was only paused may wake after its place was taken. It finds its `.owner` file gone:
its heartbeat says so, and every commit asks before it writes (`Fence`). The same question refuses
an attempt that its owner gave up, for example because its node was unreachable.
"""

from __future__ import annotations

import contextlib
import json
import os
import random
import secrets
import socket
import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import psutil

from gencls_core.errors import StoreError
from gencls_core.remote_path import Location, RemotePath
from gencls_core.storage import children, remove_tree

__all__ = [
    "HEARTBEAT_SECONDS",
    "LEASE_SECONDS",
    "Fence",
    "Lease",
    "OwnershipError",
    "await_silent_owner",
    "own",
]

HEARTBEAT_SECONDS = 5.0
SETTLE_SECONDS = 1.0
"""Time in which one that came second has withdrawn."""
LEASE_SECONDS = 60.0
"""Silence after which an owner on another machine counts as dead."""
LISTINGS = 100
ATTEMPTS_TO_CLAIM = 8
"""Two that claim at the same time both withdraw; each tries again after a random while."""


class OwnershipError(StoreError):
    """The run, or the piece of work, belongs to somebody else."""


@dataclass(frozen=True)
class Fence:
    """The right of one attempt to commit; small, and travels to the worker that makes it."""

    owners: Location
    token: str
    attempt: str

    def check(self) -> None:
        """Refuse where the owner lost the run, or gave this attempt up.

        Raises:
            OwnershipError: when nothing must be written.
        """
        if not (self.owners / f"{self.token}.owner").exists():
            raise OwnershipError.of(
                "the run has another owner by now: this process stops writing",
                place=str(self.owners.parent),
                found="its lease was taken over while it was paused or unreachable",
                remedy="nothing is lost: run the same command again when the other has ended",
            )
        if (self.owners / f"{self.token}.retired" / self.attempt).exists():
            raise OwnershipError.of(
                "a late attempt: the work was given to another worker meanwhile",
                place=str(self.owners.parent),
                found=f"attempt {self.attempt}",
            )


class Lease:
    """Ownership of one run; made by `own`."""

    def __init__(self, run: Location, token: str) -> None:
        self._owners = run / ".owners"
        self._token = token
        self._counter = 0

    def fence(self, work: str) -> Fence:
        """Begin a new attempt at a piece of work, named without slashes."""
        self._counter += 1
        return Fence(self._owners, self._token, f"{work}-{self._counter}")

    def retire(self, fence: Fence) -> None:
        """Give an attempt up: it can commit no more."""
        mark = self._owners / f"{self._token}.retired" / fence.attempt
        mark.parent.mkdir(parents=True, exist_ok=True)
        mark.write_text("")

    def check(self) -> None:
        """Refuse where the run was taken over; raises OwnershipError."""
        Fence(self._owners, self._token, "owner").check()


def await_silent_owner(run: Location) -> Iterator[str]:
    """Wait for an owner that seems dead until it counts as dead, or shows that it lives.

    An owner that beats is not waited for: `own` refuses it at once. Yields what is waited for.
    """
    owners = run / ".owners"
    if not owners.exists():
        return
    told = False
    for _ in range(int(LEASE_SECONDS / HEARTBEAT_SECONDS) + 2):
        claim = owners / f"{_new_token()}.claim"
        _put(claim, json.dumps({**_who(), "what": "asking"}))
        try:
            others = [other for other in _others(owners, claim) if other.is_owner]
        finally:
            claim.unlink(missing_ok=True)
        holder = next((other for other in others if not other.dead), None)
        if holder is None or holder.silent < 2 * HEARTBEAT_SECONDS:
            return
        if not told:
            yield (
                f"the run's owner ({holder.says()}) has been silent for {holder.silent:.0f} s; "
                f"it counts as dead after {LEASE_SECONDS:.0f} s: waiting"
            )
            told = True
        time.sleep(HEARTBEAT_SECONDS)


@contextlib.contextmanager
def own(run: Location, what: str) -> Iterator[Lease]:
    """Own a run for the duration of a block.

    Args:
        run: the run directory; made where it does not exist.
        what: what the owner does, for the message that another one reads.

    Raises:
        OwnershipError: when a living process owns the run; says which and since when.
    """
    owners = run / ".owners"
    token = _new_token()
    words = json.dumps({**_who(), "what": what})
    _claim(owners, token, words)
    stop = threading.Event()
    thread = threading.Thread(
        target=_beat, args=(owners, token, words, stop), daemon=True, name="gencls-lease"
    )
    thread.start()
    try:
        yield Lease(run, token)
    finally:
        stop.set()
        thread.join()
        # A disk that is full or a store that is gone must not hide why the block ended.
        with contextlib.suppress(OSError, StoreError):
            (owners / f"{token}.owner").unlink(missing_ok=True)
            remove_tree(owners / f"{token}.retired")
            if isinstance(owners, Path):
                owners.rmdir()


def _new_token() -> str:
    return f"{datetime.now(UTC):%Y%m%dT%H%M%S}-{secrets.token_hex(4)}"


def _claim(owners: Location, token: str, words: str) -> None:
    claim, mine = owners / f"{token}.claim", owners / f"{token}.owner"
    for attempt in range(ATTEMPTS_TO_CLAIM):
        _put(claim, words)
        try:
            others = _others(owners, claim)
            living = [other for other in others if not other.dead]
            if living:
                holder = next((o for o in living if o.is_owner), living[0])
                if holder.is_owner:
                    raise _owned(owners.parent, holder)
            else:
                for other in others:
                    (owners / other.name).unlink(missing_ok=True)
                    remove_tree(owners / other.name.replace(".owner", ".retired"))
                _put(mine, words)
                rivals = [o for o in _others(owners, claim) if o.is_owner and not o.dead]
                if not rivals:
                    return
                holder = rivals[0]
                mine.unlink(missing_ok=True)
        finally:
            claim.unlink(missing_ok=True)
        # Both withdraw, and try again after a while that is not the same for both.
        time.sleep(random.uniform(0.05, 0.2) * (attempt + 1))
    raise _owned(owners.parent, holder)


@dataclass(frozen=True)
class _Other:
    """A claim or an owner that was found."""

    name: str
    words: dict[str, Any]
    silent: float
    """Seconds since it was last written, by the storage's clock."""

    @property
    def is_owner(self) -> bool:
        return self.name.endswith(".owner")

    @property
    def dead(self) -> bool:
        if self.silent > LEASE_SECONDS:
            return True
        here = _who()
        if any(self.words.get(key) != here[key] for key in ("host", "processes")):
            return False
        try:
            began = float(psutil.Process(self.words["pid"]).create_time())
        except (psutil.NoSuchProcess, KeyError):
            return True
        return bool(abs(began - self.words["began"]) > 1.0)

    def says(self) -> str:
        what, pid, host = (self.words.get(key) for key in ("what", "pid", "host"))
        return f"{what}, process {pid} on {host}"


def _others(owners: Location, claim: Location) -> list[_Other]:
    """List everybody else, with how long they have been silent."""
    now = claim.stat().st_mtime
    own = (claim.name, claim.name.replace(".claim", ".owner"))
    found: list[_Other] = []
    for _ in range(LISTINGS):
        found.clear()
        try:
            for path in children(owners):
                if path.name in own or not path.name.endswith((".claim", ".owner")):
                    continue
                silent = now - path.stat().st_mtime
                try:
                    words = json.loads(path.read_text(encoding="utf-8"))
                except ValueError:
                    words = {}
                found.append(_Other(path.name, words, silent))
        except FileNotFoundError:
            # A claim that went may have become an owner, whose file is not in this listing.
            continue
        break
    return found


def _owned(run: Location, holder: _Other) -> OwnershipError:
    return OwnershipError.of(
        "another gencls owns this run",
        place=str(run),
        found=f"{holder.says()}, since {holder.words.get('since')}, last sign of life "
        f"{max(holder.silent, 0):.0f} s ago",
        remedy="wait for it or stop it; an owner that dies is replaced by running this again "
        f"(at once on its machine, after {LEASE_SECONDS:.0f} s elsewhere); or another --output-dir",
    )


def _beat(owners: Location, token: str, words: str, stop: threading.Event) -> None:
    """Write the owner's file anew, as long as it is there and nobody else's is."""
    mine = owners / f"{token}.owner"
    while not stop.wait(HEARTBEAT_SECONDS):
        # A store that does not answer for a moment: silence grows, and the next beat may succeed.
        with contextlib.suppress(OSError, StoreError):
            if not mine.exists():
                return
            _put(mine, words)
            if not _sees_another(owners, mine) or stop.wait(SETTLE_SECONDS):
                continue
            if _sees_another(owners, mine):
                # Not one that came later and withdrew again: the place was taken between the two
                # steps above, and this write brought the file back.
                mine.unlink(missing_ok=True)
                return


def _sees_another(owners: Location, mine: Location) -> bool:
    return any(p.name.endswith(".owner") and p.name != mine.name for p in children(owners))


def _put(path: Location, words: str) -> None:
    if isinstance(path, RemotePath):
        path.write_text(words)
        return
    temporary = path.parent / f".{path.name}.{os.getpid()}.tmp"
    for last in (False, True):
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            temporary.write_text(words, encoding="utf-8")
            temporary.replace(path)
        except FileNotFoundError:
            # An owner that ended just then took the empty folder along.
            if last:
                raise
        else:
            return


def _who() -> dict[str, Any]:
    """Name this process so that another one on the same machine can ask whether it lives."""
    try:
        processes = str(Path("/proc/self/ns/pid").readlink())
    except OSError:
        processes = ""
    return {
        "host": socket.gethostname(),
        "processes": processes,
        "pid": os.getpid(),
        "began": psutil.Process().create_time(),
        "since": datetime.now().astimezone().isoformat(timespec="seconds"),
    }
