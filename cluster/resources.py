"""The plan: how many class models train at once, how many actors score, and what cannot fit.

Pure arithmetic over nodes (`capacity.py`), memory (`memory.py`) and places (`placement.py`), so
`gencls plan` can print it and tests can check it without a GPU. Tasks and actors ask Ray for
exactly what the plan says, main memory included, so that Ray keeps to the plan on every node; and
what could never be placed is refused here, where Ray would leave it pending.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, TypeVar

from cluster.capacity import (
    GB,
    Budget,
    Device,
    Node,
    cluster_budget,
    device_of,
    local_budget,
    precision_of,
)
from cluster.memory import (
    ModelSize,
    Workload,
    process_bytes,
    scoring_bytes,
    tokens_per_pass,
    training_bytes,
)
from cluster.placement import (
    GPU_USABLE,
    Demand,
    Placement,
    floor_share,
    nth_of_a_gpu,
    place,
    room,
    room_on,
    usable_share,
)
from gencls_core.config import ComputeConfig
from gencls_core.errors import ResourceError

__all__ = [
    "GB",
    "Budget",
    "Device",
    "ModelSize",
    "Node",
    "Plan",
    "Workload",
    "cluster_budget",
    "device_of",
    "local_budget",
    "make_plan",
    "precision_of",
    "scoring_bytes",
    "training_bytes",
]

COMPILE_FROM_TEXTS = 50_000
"""Texts that one process reads, from which on half a minute of compiling pays on a GPU: estimated,
not measured."""
CPUS_PER_ACTOR = 4
"""An actor holds models that a second one would hold again: more threads first."""

Item = TypeVar("Item")


@dataclass(frozen=True)
class Plan:
    """Who runs where. What is not to be done (no training, no scoring) has zeros.

    `memory_per_*` is main memory to reserve in Ray's books, 0 where the model lives on a GPU;
    `gpu_memory_fraction_per_*` is what torch may allocate of one GPU, None where the process has
    it alone or there is none; `avoid_nodes_*` are ids of nodes whose GPUs are too small.
    """

    device: Device
    concurrent_trainings: int
    """Also the most to be handed to Ray at once: CPUs alone might let more run."""
    cpus_per_training: int
    gpus_per_training: float
    bytes_per_training: int
    tokens_per_pass: int
    """Padded tokens of one training pass."""
    actors: int
    """Scoring actors at once, over all groups of classes."""
    cpus_per_actor: int
    gpus_per_actor: float
    bytes_per_actor: int
    memory_per_training: int
    memory_per_actor: int
    models_per_actor: int
    """Models that one actor holds: all, or one group where all do not fit."""
    gpu_memory_fraction_per_training: float | None
    gpu_memory_fraction_per_actor: float | None
    avoid_nodes_for_training: tuple[str, ...]
    avoid_nodes_for_actors: tuple[str, ...]
    compiles_training: bool
    """Whether the layers of the models that are trained are compiled."""
    compiles_scoring: bool

    def training_options(self) -> dict[str, Any]:
        """Give what a training asks Ray for, as `.options(...)` takes it."""
        return _options(
            self.cpus_per_training,
            self.gpus_per_training,
            self.memory_per_training,
            self.avoid_nodes_for_training,
        )

    def actor_options(self) -> dict[str, Any]:
        """Give what a scoring actor asks Ray for, as `.options(...)` takes it."""
        return _options(
            self.cpus_per_actor,
            self.gpus_per_actor,
            self.memory_per_actor,
            self.avoid_nodes_for_actors,
        )

    def groups(self, models: Sequence[Item]) -> list[tuple[Item, ...]]:
        """Cut class models into the groups that actors hold, in order."""
        size = self.models_per_actor or len(models) or 1
        return [tuple(models[i : i + size]) for i in range(0, len(models), size)]


def _options(cpus: int, gpus: float, memory: int, avoid: tuple[str, ...]) -> dict[str, Any]:
    options: dict[str, Any] = {"num_cpus": cpus, "num_gpus": gpus}
    if memory:
        options["memory"] = memory
    if avoid:
        options["label_selector"] = {"ray.io/node-id": f"!in({','.join(avoid)})"}
    return options


@dataclass(frozen=True)
class _Kind:
    """One kind of process, its flags, and what helps when it does not fit."""

    task: str
    share_flag: str
    share: float | None
    count_flag: str
    count: int | None
    remedies: str


def make_plan(budget: Budget, size: ModelSize, work: Workload, compute: ComputeConfig) -> Plan:
    """Decide how many trainings and actors run at once, and what each asks for.

    Raises:
        ResourceError: when one training or one class model cannot be placed on any node, or a
            flag asks for more than can ever be; says by how much.
    """
    device = device_of(budget, compute)
    nodes = budget.nodes
    if not any(node.cpus for node in nodes):
        raise ResourceError.of(
            "no CPU to run on",
            found=f"no CPUs on {', '.join(node.name for node in nodes) or 'any node'}",
            expected="1 CPU for each process",
            remedy="start worker nodes first",
        )
    tokens, training_size, training = 0, 0, _NOTHING
    if work.trainings:
        tokens, training_size, training = _plan_training(nodes, device, size, work, compute)
    classes_each, scoring_size, scoring = 0, 0, _NOTHING
    if work.shards:
        classes_each, scoring_size, scoring = _plan_scoring(nodes, device, size, work, compute)
    return Plan(
        device=device,
        concurrent_trainings=training.at_once,
        cpus_per_training=training.cpus,
        gpus_per_training=training.demand.gpus,
        bytes_per_training=training_size,
        tokens_per_pass=tokens,
        actors=scoring.at_once,
        cpus_per_actor=scoring.cpus,
        gpus_per_actor=scoring.demand.gpus,
        bytes_per_actor=scoring_size,
        memory_per_training=training.demand.memory_bytes,
        memory_per_actor=scoring.demand.memory_bytes,
        models_per_actor=classes_each,
        gpu_memory_fraction_per_training=_memory_fraction(nodes, training.demand),
        gpu_memory_fraction_per_actor=_memory_fraction(nodes, scoring.demand),
        avoid_nodes_for_training=_too_small(nodes, training.demand),
        avoid_nodes_for_actors=_too_small(nodes, scoring.demand),
        compiles_training=_compiles(device, compute, work.texts_to_train, work.trainings),
        # Several adapters on one base are not compiled (gencls_core.compilation).
        compiles_scoring=(work.lora_rank is None or classes_each == 1)
        and _compiles(device, compute, work.texts_to_score, scoring.at_once),
    )


def _compiles(device: Device, compute: ComputeConfig, texts: int, processes: int) -> bool:
    if device == "cpu" or not processes or compute.compile == "off":
        return False
    return compute.compile == "on" or texts / processes >= COMPILE_FROM_TEXTS


_NOTHING = Placement(0, 0, Demand())


def _plan_training(
    nodes: Sequence[Node], device: Device, size: ModelSize, work: Workload, compute: ComputeConfig
) -> tuple[int, int, Placement]:
    """Give tokens a pass, bytes of one training, and the placement."""
    kind = _Kind(
        task="training one model",
        share_flag="--gpus-per-class",
        share=compute.gpus_per_class,
        count_flag="--concurrent-trainings",
        count=compute.concurrent_trainings,
        remedies="a smaller --model, --lora-rank 8, --gradient-checkpointing, or a shorter "
        "--window",
    )

    def places(needed: int) -> int:
        # Room for two on each unit is room enough: smaller passes are slower.
        if device == "cpu":
            (demand,) = _demands(nodes, device, needed, kind, parts=1)
            return min(work.trainings, sum(min(2, room_on(n, demand, 1)) for n in nodes))
        demands = _demands(nodes, device, needed, kind, parts=2)
        return min(work.trainings, max(room(nodes, demand) for demand in demands))

    tokens = tokens_per_pass(device, size, work, places)
    needed = process_bytes(device) + training_bytes(size, work, tokens)
    most_cpus = max(node.cpus for node in nodes)
    demands = _demands(nodes, device, needed, kind, parts=most_cpus)
    return tokens, needed, _place(nodes, device, demands, needed, kind, wanted=work.trainings)


def _plan_scoring(
    nodes: Sequence[Node], device: Device, size: ModelSize, work: Workload, compute: ComputeConfig
) -> tuple[int, int, Placement]:
    """Give classes per actor, bytes of one actor, and the placement."""
    kind = _Kind(
        task="a scoring actor with one model",
        share_flag="--gpus-per-actor",
        share=compute.gpus_per_actor,
        count_flag="--actors",
        count=compute.actors,
        remedies="--precision bf16, a smaller --tokens-per-batch, or a smaller --model",
    )
    # One actor keeps a GPU busy; more share it only where that was asked for.
    parts = 1 if compute.actors is None else max(node.cpus for node in nodes)
    for groups in range(1, work.models + 1):
        each = math.ceil(work.models / groups)
        needed = process_bytes(device) + scoring_bytes(size, work, each)
        demands = _demands(nodes, device, needed, kind, parts=parts)
        if any(room(nodes, demand) for demand in demands):
            break
    groups = math.ceil(work.models / each)
    split = CPUS_PER_ACTOR if device == "cpu" else None
    placement = _place(
        nodes, device, demands, needed, kind, wanted=work.shards * groups, split=split
    )
    return each, needed, placement


def _demands(
    nodes: Sequence[Node], device: Device, needed: int, kind: _Kind, *, parts: int
) -> list[Demand]:
    """Give what one process could ask for: on GPUs, a whole one, a half, down to 1 / `parts`.

    Raises:
        ResourceError: when more GPUs are asked for than any node has.
    """
    if kind.share is not None:
        share = floor_share(kind.share)
        most = max(node.gpus for node in nodes)
        if share > most:
            raise ResourceError.of(
                f"{kind.share_flag} {kind.share:g} can never be met",
                found=f"at most {most} GPU{'' if most == 1 else 's'} on one node",
                expected=f"{share:g} on one node",
                remedy=f"{kind.share_flag} {most}, or leave it out"
                if most
                else f"leave {kind.share_flag} out, or start nodes with GPUs",
            )
        if device == "cpu":
            return [Demand(memory_bytes=needed, gpus=share)]
        return [Demand(gpus=share, gpu_memory_bytes=needed)]
    if device == "cpu":
        return [Demand(memory_bytes=needed)]
    shares = [nth_of_a_gpu(n) for n in range(1, parts + 1)]
    return [Demand(gpus=share, gpu_memory_bytes=needed) for share in shares]


def _place(
    nodes: Sequence[Node],
    device: Device,
    demands: list[Demand],
    needed: int,
    kind: _Kind,
    *,
    wanted: int,
    split: int | None = None,
) -> Placement:
    """Place as many as are wanted or asked for.

    Raises:
        ResourceError: when not one fits, or fewer than were asked for.
    """
    possible = max(room(nodes, demand) for demand in demands)
    if not possible:
        raise _does_not_fit(nodes, device, demands[0], needed, kind)
    if kind.count is not None and kind.count > possible:
        raise ResourceError.of(
            f"{kind.count_flag} {kind.count} does not fit",
            found=f"room for {possible}, at {needed / GB:.1f} GB each",
            remedy=f"{kind.count_flag} {possible}, or leave it out",
        )
    return place(
        nodes,
        demands,
        min(wanted, kind.count or wanted),
        models_on_gpu=device == "cuda",
        exactly=kind.count is not None,
        split=None if kind.count else split,
    )


def _does_not_fit(
    nodes: Sequence[Node], device: Device, demand: Demand, needed: int, kind: _Kind
) -> ResourceError:
    """Say how much there is, how much it takes, and what helps."""
    hosts = [node for node in nodes if node.cpus and node.gpus >= demand.gpus] or nodes
    if device == "cpu":
        where, best = "main memory", max(hosts, key=lambda node: node.memory_bytes)
        there = best.memory_bytes
    else:
        where = "one GPU" if demand.gpus >= 1 else f"{demand.gpus:g} of a GPU"
        best = max(hosts, key=lambda node: node.gpu_memory_bytes)
        there = usable_share(best, demand.gpus)
    of_node = f" on {best.name}, the largest" if len(nodes) > 1 else ""
    whole = usable_share(best, 1.0)
    remedies = kind.remedies
    if demand.gpus < 1 and device == "cuda" and needed <= whole:
        enough = math.ceil(needed / whole * 100) / 100
        remedies = f"{kind.share_flag} {enough:g}, or leave it out"
    return ResourceError.of(
        f"{kind.task} does not fit into {where}",
        found=f"{there / GB:.1f} GB to plan with{of_node}",
        expected=f"{needed / GB:.1f} GB",
        remedy=remedies,
    )


def _memory_fraction(nodes: Sequence[Node], demand: Demand) -> float | None:
    """Give the part of a GPU's memory that torch may allocate in a process that shares it.

    A CUDA context lies outside of torch's count: every process on the GPU leaves room for its own.
    """
    sizes = [node.gpu_memory_bytes for node in nodes if room_on(node, demand, 1)]
    if not demand.gpu_memory_bytes or demand.gpus >= 1 or not sizes:
        return None
    # On the smallest GPU a context weighs the most.
    return GPU_USABLE * demand.gpus - process_bytes("cuda") / min(sizes)


def _too_small(nodes: Sequence[Node], demand: Demand) -> tuple[str, ...]:
    """Give the ids of nodes with GPUs enough by number but too small: Ray counts only numbers."""
    if not demand.gpu_memory_bytes:
        return ()
    return tuple(
        node.identity
        for node in nodes
        if node.identity and node.gpus and demand.gpu_memory_bytes > usable_share(node, demand.gpus)
    )
