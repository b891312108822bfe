"""What `gencls doctor` is made of: checks, each in a process of its own, and what they find.

A check may hang (a dead network folder), raise, or end its process (a library built for another
processor), and what it imports may be missing. None of that may take the others along, so each is
imported and run in a fresh process with a time-out, all of them at the same time. Secrets are taken
out of what a check found before it leaves its process, since some are known there alone.
"""

from __future__ import annotations

import multiprocessing
import os
import re
import signal
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, replace
from importlib import import_module
from multiprocessing.connection import Connection
from typing import Literal

from gencls_core.errors import GenclsError

__all__ = ["Check", "Finding", "State", "examine", "failure", "without_secrets"]

State = Literal["ok", "warning", "problem"]

_END_SECONDS = 5.0
"""For a process to end, that has said everything or was killed."""


@dataclass(frozen=True)
class Finding:
    """What a check found. A `problem` keeps gencls from working; a `warning` is less than that."""

    name: str
    state: State
    found: str
    remedy: str = ""
    """A command or what else would mend it; empty where nothing is to be mended."""


@dataclass(frozen=True)
class Check:
    """Something to look at."""

    name: str
    function: str
    """`module:name` of what gives the findings; only the check's own process imports it."""
    arguments: tuple[object, ...] = ()
    seconds: float = 60.0
    """Time-out, from the start of its process on."""

    def load(self) -> Callable[..., Iterable[Finding]]:
        """Import the function."""
        module, _, name = self.function.partition(":")
        function: Callable[..., Iterable[Finding]] = getattr(import_module(module), name)
        return function


def examine(checks: Sequence[Check]) -> Iterator[Finding]:
    """Run checks side by side; give what they found in their order, each as soon as it can be.

    Nothing that they started is left running.
    """
    context = multiprocessing.get_context("spawn")
    with ExitStack() as stack:
        started = []
        for check in checks:
            receiver, sender = context.Pipe(duplex=False)
            process = context.Process(target=_find, args=(check, sender), daemon=True)
            process.start()
            stack.callback(_end, process)
            # Ours is a copy: the receiver sees the end when the process has closed its own.
            sender.close()
            started.append((check, process, receiver, time.monotonic() + check.seconds))
        for check, process, receiver, deadline in started:
            yield from _received(check, process, receiver, deadline)


def _received(
    check: Check,
    process: multiprocessing.process.BaseProcess,
    receiver: Connection,
    deadline: float,
) -> Iterator[Finding]:
    while receiver.poll(max(0.0, deadline - time.monotonic())):
        try:
            yield receiver.recv()
        except (EOFError, OSError):
            process.join(_END_SECONDS)
            if process.exitcode:
                yield Finding(
                    check.name,
                    "problem",
                    f"its process ended with {_exit(process.exitcode)}",
                    "free memory, or install packages that are built for this processor",
                )
            return
    yield Finding(
        check.name,
        "problem",
        f"no answer within {check.seconds:g} s",
        "see whether disk, network or machine is overloaded, and try again",
    )


def _exit(code: int) -> str:
    if code > 0:
        return f"exit code {code}"
    try:
        return signal.Signals(-code).name
    except ValueError:
        return f"signal {-code}"


def _end(process: multiprocessing.process.BaseProcess) -> None:
    process.kill()
    # One that the system itself holds ends when that lets go of it.
    process.join(_END_SECONDS)


def _find(check: Check, sender: Connection) -> None:
    """Run a check, in its process. Libraries print what nobody can place, so nothing is shown."""
    nowhere = os.open(os.devnull, os.O_WRONLY)
    for stream in (1, 2):
        os.dup2(nowhere, stream)
    try:
        for finding in check.load()(*check.arguments):
            sender.send(_harmless(finding))
    except Exception as error:  # a check can fail in any way, and that is what it found
        sender.send(_harmless(failure(check.name, error)))
    sender.close()


def failure(name: str, error: Exception) -> Finding:
    """Make a finding of an error; one of ours brings its remedy along."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    if not isinstance(error, GenclsError):
        found = ": ".join([type(error).__name__, *lines[:1]])
        missing = isinstance(error, ImportError)
        remedy = "see `packages`" if missing else "not foreseen; see first what other lines say"
        return Finding(name, "problem", found, remedy)
    said = [line for line in lines if not line.startswith("remedy: ")]
    remedies = [line.removeprefix("remedy: ") for line in lines if line.startswith("remedy: ")]
    return Finding(name, "problem", "; ".join(said), " ".join(remedies))


_SECRET_NAME = re.compile(r"(^|_)(TOKEN|SECRET|KEY|PASSWORD|PASSWD|PASS|CREDENTIALS?)(_|$)", re.I)
_NO_SECRET_NAME = re.compile(r"_(PATH|FILE|DIR|MODE)$", re.I)
_USER_IN_URL = re.compile(r"(?<=://)[^/\s]*@")
_SECRET_IN_QUERY = re.compile(
    r"([?&](?:[a-z_]*(?:key|token|secret|password)[a-z_]*)=)[^&\s]+", re.I
)
_SHORTEST_SECRET = 6
"""A shorter value is a switch, or would be found within common words."""


def without_secrets(text: str) -> str:
    """Give a text without passwords in URLs, and without the values of secret variables."""
    values = [
        value.strip()
        for name, value in os.environ.items()
        if _SECRET_NAME.search(name) and not _NO_SECRET_NAME.search(name)
    ]
    # Of two, one may begin with the other.
    for value in sorted(values, key=len, reverse=True):
        if len(value) >= _SHORTEST_SECRET:
            text = text.replace(value, "…")
    return _SECRET_IN_QUERY.sub(r"\1…", _USER_IN_URL.sub("…@", text))


def _harmless(finding: Finding) -> Finding:
    """Take out secrets, and what would act on a terminal: others have written some of it."""
    found, remedy = (
        "".join(sign if sign.isprintable() else " " for sign in without_secrets(text))
        for text in (finding.found, finding.remedy)
    )
    return replace(finding, found=found, remedy=remedy)
