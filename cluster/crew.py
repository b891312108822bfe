"""The actors that score: started where work is, replaced when they die, kept between splits."""

from __future__ import annotations

import itertools
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, Self

import ray

from cluster.channel import Channel
from cluster.resources import Plan
from cluster.scoring_actor import ScoringActor
from gencls_core.scoring_job import ScoringJob

__all__ = ["Crew", "Member"]


@dataclass(eq=False)
class Member:
    """An actor that runs, and the group of classes whose models it holds."""

    handle: Any
    name: str
    group: int
    ready: Any
    """A reference that is there when the actor runs: it may wait for a node to have room."""
    started: float = field(default_factory=time.monotonic)

    @property
    def waits(self) -> bool:
        """Whether it has not been placed yet."""
        return not ray.wait([self.ready], timeout=0)[0]

    @property
    def age(self) -> float:
        """Seconds since it was asked for."""
        return time.monotonic() - self.started


class Crew:
    """The actors of one scoring job, ended with the block; who is idle keeps its models."""

    def __init__(self, job: ScoringJob, plan: Plan, memory_limit: int) -> None:
        """Start nothing but the channel; actors come with the work.

        Args:
            job: the models, and how texts are scored.
            plan: what actors there are, and what each reserves.
            memory_limit: resident bytes after which an actor is ended.
        """
        self.plan = plan
        self.groups = [frozenset().union(*units) for units in plan.groups(job.units)]
        self.job = ray.put(job)
        self.channel = Channel()
        self.idle: list[Member] = []
        self._memory_limit = memory_limit
        self._members: set[Member] = set()
        self._numbers = itertools.count()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.dismiss_all()
        self.channel.close()

    def __len__(self) -> int:
        return len(self._members)

    def take(self, todo: list[int]) -> Member:
        """Give an idle actor whose group has work, or start one where there is none.

        It is started for the group with the most to do for each of its actors, in the place of an
        idle actor whose group has nothing to do.

        Args:
            todo: pieces of work that wait, by group.
        """
        for member in self.idle:
            if todo[member.group]:
                self.idle.remove(member)
                return member
        if self.idle:
            self.dismiss(self.idle[0])
        return self.start(max(range(len(todo)), key=self._need(todo)))

    def start(self, group: int) -> Member:
        """Start an actor for a group of classes."""
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
                self._memory_limit,
                self.channel.queue,
                name,
            )
        )
        member = Member(handle, name, group, handle.__ray_ready__.remote())
        self._members.add(member)
        return member

    def group_of(self, class_name: str) -> int:
        """Give the number of the group that a class belongs to."""
        return next(n for n, group in enumerate(self.groups) if class_name in group)

    def forget(self, member: Member) -> None:
        """Take note that an actor is gone."""
        self._members.discard(member)
        if member in self.idle:
            self.idle.remove(member)

    def dismiss(self, member: Member) -> None:
        """End an actor."""
        ray.kill(member.handle)
        self.forget(member)

    def dismiss_all(self) -> None:
        """End all actors."""
        for member in list(self._members):
            self.dismiss(member)

    def _need(self, todo: list[int]) -> Callable[[int], float]:
        def need(group: int) -> float:
            held = sum(member.group == group for member in self._members)
            return todo[group] / (held + 1)

        return need
