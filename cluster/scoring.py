"""Scoring: shards are given out to actors, and given out again when an actor dies."""

from __future__ import annotations

import functools
import itertools
import time
from collections import deque
from collections.abc import Generator, Iterator
from dataclasses import dataclass, field
from typing import Any

import ray

from cluster.channel import CRASHES, Channel, failure_of
from cluster.poison import isolate
from cluster.resources import Plan
from cluster.scoring_actor import ScoringActor
from cluster.stopping import STOP
from cluster.work import ScoringJob, ShardWork
from gencls_core.errors import GenclsError, IncompleteError
from gencls_core.events import Event, ExampleIsolated, Note, ShardCommitted
from gencls_core.ownership import Fence, Lease
from gencls_core.scores import ShardRecord

__all__ = ["score_shards"]

DEATHS_PER_SHARD = 3
"""Then the shard itself is under suspicion, and is searched for the example that kills."""
LEASE_CHECK_SECONDS = 1.0


@dataclass(eq=False)
class _Actor:
    """An actor that runs, and the group of classes whose models it holds."""

    handle: Any
    name: str
    group: int
    ready: Any
    """A reference that is there when the actor runs: it may wait for a node to have room."""

    @property
    def waits(self) -> bool:
        """Whether it has not been placed yet."""
        return not ray.wait([self.ready], timeout=0)[0]


@dataclass
class _Crew:
    """Starts actors, at most `size` at once over all groups."""

    plan: Plan
    groups: list[frozenset[str]]
    channel: Channel
    memory_limit: int
    actors: set[_Actor] = field(default_factory=set)
    _numbers: Iterator[int] = field(default_factory=itertools.count)

    def start(self, group: int) -> _Actor:
        # A new actor in the place of a dead one, rather than Ray's restart: calls that reach an
        # actor while it restarts fail at once, and would use up the shard's attempts.
        name = f"actor-{next(self._numbers)}"
        handle = (
            ray.remote(ScoringActor)
            .options(**self.plan.actor_options(), max_restarts=0)
            .remote(
                self.groups[group],
                self.plan.cpus_per_actor,
                self.plan.gpu_memory_fraction_per_actor,
                self.memory_limit,
                self.channel.queue,
                name,
            )
        )
        actor = _Actor(handle, name, group, handle.__ray_ready__.remote())
        self.actors.add(actor)
        return actor

    def dismiss(self, actor: _Actor) -> None:
        ray.kill(actor.handle)
        self.actors.discard(actor)

    def dismiss_all(self) -> None:
        for actor in list(self.actors):
            self.dismiss(actor)


def score_shards(
    job: ScoringJob, work: list[ShardWork], plan: Plan, lease: Lease, memory_limit: int
) -> Iterator[Event]:
    """Score all shards; yields progress as it comes.

    An actor that dies is replaced and its shard given out again, under a new fence: a shard may be
    scored more than once, and takes effect exactly once. A shard that keeps killing its actors is
    searched for the one example that does; all other shards are scored first.

    Where a stop was asked for (`cluster.stopping`), the shards in hand are committed and no other
    is begun.

    Args:
        job: the models, and how texts are scored.
        work: the shards to score.
        plan: what actors there are, and what each reserves.
        lease: the ownership of the run.
        memory_limit: resident bytes after which an actor is ended.

    Raises:
        IncompleteError: when a shard could not be scored; all that could be is committed.
        GenclsError: when scoring refuses, for example a score that is not a finite number.
        KeyboardInterrupt: when a stop was asked for.
    """
    channel = Channel()
    groups = [frozenset(m.class_name for m in group) for group in plan.groups(job.models)]
    crew = _Crew(plan, groups, channel, memory_limit)
    reference = ray.put(job)
    try:
        with STOP.shielded():
            suspects, missing = yield from _give_out(reference, work, crew, lease)
            crew.dismiss_all()
            if suspects:
                yield from _search(reference, suspects, missing, crew)
        yield from channel.drain()
    finally:
        crew.dismiss_all()
        channel.close()


def _give_out(
    job: Any, work: list[ShardWork], crew: _Crew, lease: Lease
) -> Generator[Event, None, tuple[list[tuple[ShardWork, GenclsError]], int]]:
    """Have every shard scored; gives those that killed DEATHS_PER_SHARD actors, with the reason,
    and how many score rows are missing.

    Where actors die of one shard after the other and none ever succeeds, it is not the texts.
    """
    waiting = [
        deque(part for shard in work if (part := shard.of(group)) is not None)
        for group in crew.groups
    ]
    size = min(crew.plan.actors, sum(map(len, waiting)))
    idle: deque[_Actor] = deque()
    running: dict[Any, tuple[_Actor, ShardWork, Fence]] = {}
    deaths: dict[ShardWork, int] = {}
    suspects: list[tuple[ShardWork, GenclsError]] = []
    failure: GenclsError | None = None
    missing = sum((shard.stop - shard.start) * len(shard.keys) for shard in work)
    succeeded = hopeless = False
    asked = time.monotonic()
    while any(waiting) or running:
        stopping = STOP.requested or failure is not None or hopeless
        while not stopping and any(waiting) and (idle or len(crew.actors) < size):
            actor = _next_actor(crew, idle, waiting)
            shard = waiting[actor.group].popleft()
            fence = lease.fence(f"{shard.split}-{shard.keys[0].index}-g{actor.group}")
            running[actor.handle.score.remote(job, shard, fence)] = (actor, shard, fence)
        if idle or stopping:
            # Where a node was lost, its actors' replacements may never find a place: who is idle
            # takes over their shards.
            for reference in [r for r, (actor, _, _) in running.items() if actor.waits]:
                actor, shard, fence = running.pop(reference)
                crew.dismiss(actor)
                lease.retire(fence)
                waiting[actor.group].append(shard)
            if any(waiting) and not stopping:
                continue
        if stopping and (not running or STOP.overdue):
            break
        done, _ = ray.wait(list(running), num_returns=1, timeout=0.3)
        yield from crew.channel.drain()
        if time.monotonic() - asked >= LEASE_CHECK_SECONDS:
            lease.check()
            asked = time.monotonic()
        for reference in done:
            actor, shard, fence = running.pop(reference)
            try:
                records: list[ShardRecord] = ray.get(reference)
            except CRASHES as error:
                lease.retire(fence)
                crew.actors.discard(actor)
                deaths[shard] = deaths.get(shard, 0) + 1
                what = f"scoring of {shard.name}"
                reason = crew.channel.why(actor.name, what) or failure_of(error, what)
                hopeless = not succeeded and sum(deaths.values()) >= 2 * DEATHS_PER_SHARD
                if deaths[shard] >= DEATHS_PER_SHARD or hopeless:
                    suspects.append((shard, reason))
                    yield Note(f"{what}: {deaths[shard]} actors died of it; left for the end")
                else:
                    yield Note(f"{what}: its actor died; trying again")
                    waiting[actor.group].append(shard)
            except Exception as error:
                failure = failure or failure_of(error, f"scoring of {shard.name}")
                idle.append(actor)
            else:
                succeeded = True
                idle.append(actor)
                for record in records:
                    missing -= record.rows
                    yield _committed(shard, record)
    if failure is not None:
        raise failure
    if STOP.requested:
        raise KeyboardInterrupt
    return suspects, missing


def _next_actor(crew: _Crew, idle: deque[_Actor], waiting: list[deque[ShardWork]]) -> _Actor:
    """Take an idle actor whose group has work; else start one for the group with the most to do
    for each of its actors, in the place of one that has nothing to do."""
    for actor in idle:
        if waiting[actor.group]:
            idle.remove(actor)
            return actor
    if idle:
        crew.dismiss(idle.popleft())

    def need(group: int) -> float:
        held = sum(actor.group == group for actor in crew.actors)
        return len(waiting[group]) / (held + 1)

    return crew.start(max(range(len(waiting)), key=need))


def _search(
    job: Any, suspects: list[tuple[ShardWork, GenclsError]], missing: int, crew: _Crew
) -> Iterator[Event]:
    """Find the example that ends its workers, shard by shard, and say what is missing."""
    lines = []
    for shard, reason in suspects:
        yield Note(f"searching {shard.name} for the example that ends its workers")
        group = next(
            number
            for number, classes in enumerate(crew.groups)
            if shard.keys[0].class_name in classes
        )
        row = yield from isolate(job, shard, functools.partial(crew.start, group), crew.dismiss)
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
