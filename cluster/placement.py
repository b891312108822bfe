"""How many processes of one kind fit onto nodes, and which share of a node each should ask for.

Ray places a task by what it *asks for*: CPUs, GPUs, and `memory`, a number in Ray's books. So a
plan is only as good as what its tasks ask for, and everything here counts as Ray counts: on every
node by itself, whole CPUs, fractions of one GPU to four decimals, several GPUs only whole.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from cluster.capacity import Node

__all__ = [
    "GPU_USABLE",
    "Demand",
    "Placement",
    "floor_share",
    "memory_share",
    "nth_of_a_gpu",
    "place",
    "room",
    "room_on",
    "usable_share",
]

GPU_USABLE = 0.92
"""Part of a GPU's memory that is planned with; fragmentation takes the rest."""
SPEED_UP = 0.8
"""A process with n CPUs is taken to work n^0.8 times as fast as with one: less than n times."""


@dataclass(frozen=True)
class Demand:
    """What one process asks of a node besides CPUs."""

    memory_bytes: int = 0
    """Main memory; 0 where the model lives on a GPU."""
    gpus: float = 0.0
    """A fraction of one GPU, or a whole number of them."""
    gpu_memory_bytes: int = 0
    """That must fit into its share of one GPU, CUDA context included."""


@dataclass(frozen=True)
class Placement:
    """The share of a node that each process asks for, and how many run at once."""

    at_once: int
    cpus: int
    demand: Demand


def floor_share(gpus: float) -> float:
    """Round a fraction of a GPU down to what Ray counts: four decimals."""
    return math.floor(gpus * 10_000 + 1e-6) / 10_000


def nth_of_a_gpu(parts: int) -> float:
    """Give 1 / parts as Ray counts, so that all parts fit."""
    return 1.0 if parts <= 1 else floor_share(1 / parts)


def usable_share(node: Node, gpus: float) -> int:
    """Give the bytes of one GPU that a process with this share may plan with."""
    return int(node.gpu_memory_bytes * GPU_USABLE * min(gpus, 1.0))


def gpu_places(node: Node, gpus: float) -> int:
    """Count the processes that a node's GPUs take: a fraction is of one GPU, never of two."""
    if gpus > 1:
        return int(node.gpus // gpus)
    return node.gpus * (10_000 // round(gpus * 10_000))


def room_on(node: Node, demand: Demand, cpus: int, split: int | None = None) -> int:
    """Count the processes that fit onto a node, each with `cpus` CPUs.

    Args:
        node: the node.
        demand: what each asks for besides.
        cpus: CPUs of each.
        split: CPUs that a process should have before a further one starts on the same node.
    """
    limits = [node.cpus // cpus]
    if split is not None:
        limits.append(max(1, node.cpus // split))
    if demand.memory_bytes:
        limits.append(node.memory_bytes // demand.memory_bytes)
    if demand.gpus:
        if demand.gpu_memory_bytes > usable_share(node, demand.gpus):
            return 0
        limits.append(gpu_places(node, demand.gpus))
    return min(limits)


def room(nodes: Sequence[Node], demand: Demand, cpus: int = 1, split: int | None = None) -> int:
    """Count the processes that fit onto all nodes."""
    return sum(room_on(node, demand, cpus, split) for node in nodes)


def place(
    nodes: Sequence[Node],
    demands: Iterable[Demand],
    wanted: int,
    *,
    models_on_gpu: bool,
    exactly: bool = False,
    split: int | None = None,
) -> Placement:
    """Choose between demands (shares of a GPU) and numbers of CPUs.

    Of the demands, the first that lets the most of the `wanted` processes run at once. Then CPUs:
    on GPUs, each process takes the part of its node's CPUs that it takes of its GPUs. On CPUs, as
    many CPUs each as get the most done at once: at_once × cpus^SPEED_UP, more at once on a tie. A
    node too small for that number gets no process. With `exactly`, as many CPUs each as still
    let all `wanted` run at once.

    At least one process must fit under one of the demands.
    """
    best = max(demands, key=lambda demand: min(wanted, room(nodes, demand, 1, split)))
    hosts = [node for node in nodes if room_on(node, best, 1)]

    def at_once(cpus: int) -> int:
        return min(wanted, room(hosts, best, cpus, split))

    if models_on_gpu:
        cpus = min(max(1, node.cpus // gpu_places(node, best.gpus)) for node in hosts)
    else:
        choices = range(1, max(node.cpus for node in hosts) + 1)
        if exactly:
            cpus = max(n for n in choices if at_once(n) == at_once(1))
        else:
            cpus = max(choices, key=lambda n: (at_once(n) * n**SPEED_UP, at_once(n)))
    return Placement(at_once(cpus), cpus, best)


def memory_share(nodes: Sequence[Node], at_once: int, cpus: int, reserved: int) -> int:
    """Give the bytes of main memory after which a process is ended: its share of its node.

    Args:
        nodes: the nodes.
        at_once: processes of its kind in all.
        cpus: CPUs of each.
        reserved: bytes that each has reserved in Ray's books; 0 where it has not.
    """
    shares = [
        node.memory_bytes // max(1, min(at_once, node.cpus // max(cpus, 1)))
        for node in nodes
        if node.cpus >= cpus and node.memory_bytes >= reserved
    ]
    return max(min(shares, default=0), reserved)
