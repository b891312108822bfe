"""Scoring: shards are given out to actors, and given out again when an actor dies."""

from __future__ import annotations

import functools
import time
from collections import deque
from collections.abc import Iterator
from typing import Any

import ray
from ray.exceptions import RayTaskError

from cluster.channel import CRASHES, failure_of
from cluster.crew import Crew, Member
from cluster.poison import isolate
from cluster.stopping import STOP
from gencls_core.errors import GenclsError, IncompleteError, counted
from gencls_core.events import Event, ExampleIsolated, Note, ShardCommitted
from gencls_core.ownership import Fence, Lease
from gencls_core.scores import ShardRecord
from gencls_core.shard_work import ShardWork

__all__ = ["score_shards"]

DEATHS_PER_SHARD = 3
"""Then the shard itself is under suspicion, and is searched for the example that kills."""
LEASE_CHECK_SECONDS = 1.0
PLACING_SECONDS = 10.0
"""An actor that has not been placed after so long waits for room."""


def score_shards(crew: Crew, work: list[ShardWork], lease: Lease) -> Iterator[Event]:
    """Score all shards; yields progress as it comes. The crew's actors live on, idle.

    An actor that dies is replaced and its shard given out again, under a new fence: a shard may be
    scored more than once, and takes effect exactly once. A shard that keeps killing its actors is
    searched for the one example that does; all other shards are scored first.

    Where a stop was asked for (`cluster.stopping`), the shards in hand are committed and no other
    is begun.

    Args:
        crew: the actors; whoever made it ends it, whatever is raised here.
        work: the shards to score.
        lease: the ownership of the run.

    Raises:
        IncompleteError: when a shard could not be scored; all that could be is committed.
        GenclsError: when scoring refuses, for example a score that is not a finite number.
        KeyboardInterrupt: when a stop was asked for.
    """
    distribution = _Distribution(crew, work, lease)
    with STOP.shielded():
        yield from distribution.run()
    if distribution.suspects:
        crew.dismiss_all()
        # Commits nothing, so a stop need not wait for anything.
        yield from _search(crew, distribution.suspects, distribution.missing)
    yield from crew.channel.drain()


class _Distribution:
    """Shards that wait, shards in hand, and what became of the others."""

    def __init__(self, crew: Crew, work: list[ShardWork], lease: Lease) -> None:
        self._crew = crew
        self._lease = lease
        self._asked = time.monotonic()
        self._waiting = [
            deque(part for shard in work if (part := shard.of(group)) is not None)
            for group in crew.groups
        ]
        self._size = min(crew.plan.actors, sum(map(len, self._waiting)))
        self._running: dict[Any, tuple[Member, ShardWork, Fence]] = {}
        self._deaths: dict[ShardWork, int] = {}
        self._failure: GenclsError | None = None
        self._succeeded = self._hopeless = self._told = False
        self.suspects: list[tuple[ShardWork, GenclsError]] = []
        """Shards that killed DEATHS_PER_SHARD actors, with the last reason."""
        self.missing = sum((shard.stop - shard.start) * len(shard.keys) for shard in work)
        """Score rows that are not committed."""

    def run(self) -> Iterator[Event]:
        """Have every shard scored, but for suspects."""
        while any(self._waiting) or self._running:
            self._give_out()
            if self._take_over():
                continue
            if self._stopping and (not self._running or STOP.overdue):
                break
            done, _ = ray.wait(list(self._running), num_returns=1, timeout=0.3)
            yield from self._crew.channel.drain()
            yield from self._tell_of_waiting()
            self._check_lease()
            for reference in done:
                yield from self._settle(reference)
        if self._failure is not None:
            raise self._failure
        if STOP.requested:
            raise KeyboardInterrupt

    @property
    def _stopping(self) -> bool:
        return STOP.requested or self._failure is not None or self._hopeless

    def _give_out(self) -> None:
        crew = self._crew
        while not self._stopping and any(self._waiting) and (crew.idle or len(crew) < self._size):
            member = crew.take([len(queue) for queue in self._waiting])
            shard = self._waiting[member.group].popleft()
            fence = self._lease.fence(f"{shard.split}-{shard.keys[0].index}-g{member.group}")
            self._running[member.handle.score.remote(crew.job, shard, fence)] = (
                member, shard, fence,
            )  # fmt: skip

    def _take_over(self) -> bool:
        """Take back the shards of actors that wait for a place, where others have nothing to do.

        Where a node was lost, they may never find one. Idle actors of the same classes take over;
        those of other classes make room. Gives whether there is something to give out again.
        """
        crew = self._crew
        for reference in [r for r, (member, _, _) in self._running.items() if member.waits]:
            member, shard, fence = self._running[reference]
            if self._stopping or any(other.group == member.group for other in crew.idle):
                del self._running[reference]
                crew.dismiss(member)
                self._lease.retire(fence)
                self._waiting[member.group].append(shard)
            elif crew.idle and member.age > PLACING_SECONDS:
                crew.dismiss(crew.idle[0])
        return any(self._waiting) and bool(crew.idle) and not self._stopping

    def _tell_of_waiting(self) -> Iterator[Event]:
        """Say once that the cluster has no room for any actor."""
        members = [member for member, _, _ in self._running.values()]
        if self._told or not members:
            return
        if all(member.age > PLACING_SECONDS and member.waits for member in members):
            self._told = True
            cpus = counted(self._crew.plan.cpus_per_actor, "CPU")
            yield Note(f"waiting for the cluster to have room: {cpus} for a scoring actor")

    def _settle(self, reference: Any) -> Iterator[Event]:
        """See what became of a shard that was in hand."""
        member, shard, fence = self._running.pop(reference)
        what = f"scoring of {shard.name}"
        try:
            records: list[ShardRecord] = ray.get(reference)
        except CRASHES as error:
            self._lease.retire(fence)
            self._crew.forget(member)
            reason = self._crew.channel.why(member.name, what) or failure_of(error, what)
            yield self._died(shard, reason)
        except Exception as error:
            self._failure = self._failure or failure_of(error, what)
            self._crew.idle.append(member)
        else:
            self._succeeded = True
            self._crew.idle.append(member)
            for record in records:
                self.missing -= record.rows
                yield _committed(shard, record)

    def _died(self, shard: ShardWork, reason: GenclsError) -> Note:
        deaths = self._deaths[shard] = self._deaths.get(shard, 0) + 1
        # Where actors die of one shard after the other and none ever succeeds, it is not the texts.
        self._hopeless = not self._succeeded and sum(self._deaths.values()) >= 2 * DEATHS_PER_SHARD
        if deaths >= DEATHS_PER_SHARD or self._hopeless:
            self.suspects.append((shard, reason))
            return Note(
                f"scoring of {shard.name}: {counted(deaths, 'actor')} died of it; left for the end"
            )
        self._waiting[self._crew.group_of(shard.keys[0].class_name)].append(shard)
        return Note(f"scoring of {shard.name}: its actor died; trying again")

    def _check_lease(self) -> None:
        if time.monotonic() - self._asked >= LEASE_CHECK_SECONDS:
            self._lease.check()
            self._asked = time.monotonic()


def _search(
    crew: Crew, suspects: list[tuple[ShardWork, GenclsError]], missing: int
) -> Iterator[Event]:
    """Find the example that ends its workers, shard by shard, and say what is missing."""
    lines = []
    for shard, reason in suspects:
        yield Note(f"searching {shard.name} for the example that ends its workers")
        start = functools.partial(crew.start, crew.group_of(shard.keys[0].class_name))
        try:
            row = yield from isolate(crew.job, shard, start, crew.dismiss)
        except RayTaskError as error:
            raise failure_of(error, f"the search of {shard.name}") from error
        if row is not None:
            example_id = _example_id(shard, row)
            yield ExampleIsolated(shard.split, shard.keys[0].index, row, example_id)
            lines.append(
                f"{shard.name}: example {example_id!r} (row {row:,} of the {shard.split} texts) "
                "ends every worker that scores it"
            )
        lines += str(reason).splitlines()[: 3 if row is None else 2]
    raise IncompleteError.of(
        f"the run is incomplete: {missing:,} score rows could not be made",
        found="\n    ".join(lines),
        remedy="remove or shorten the example (--max-length), or give the workers more memory "
        "(--actors 1, a smaller --tokens-per-batch); then run the same command again: all other "
        "shards are committed",
    )


def _example_id(shard: ShardWork, row: int) -> str:
    from gencls_core.datasets.dataset import Dataset

    table = Dataset.open(shard.dataset).read(shard.split, row, row + 1)
    return str(table.column("example_id")[0].as_py())


def _committed(shard: ShardWork, record: ShardRecord) -> ShardCommitted:
    return ShardCommitted(
        split=shard.split,
        class_name=record.class_name,
        shard=record.index,
        shards=record.count,
        rows=record.rows,
        tokens=record.tokens,
        seconds=record.seconds,
    )
