"""What there is to work with: this machine, or the nodes of a cluster that was joined.

A plan for this machine rests on what is measured here. A plan for a cluster must not: the driver
may be a laptop or a head node without a GPU. There, CPUs, GPUs and main memory are what each node
told Ray, and the memory of a GPU is measured by a small task on the node that has it.
All sizes are bytes; 1 GB is 10^9 bytes.
"""

from __future__ import annotations

import json
import os
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal

from cluster.job_context import ADDRESS
from gencls_core.config import ComputeConfig
from gencls_core.errors import ResourceError
from gencls_core.precision import Precision, cpu_multiplies_bf16, resolve_precision

__all__ = [
    "GB",
    "Budget",
    "Device",
    "Node",
    "cluster_budget",
    "cpus_multiply_bf16",
    "device_of",
    "joined_address",
    "local_budget",
    "precision_of",
]

GB = 10**9

RAY_BYTES = 1_000 * 10**6
"""Ray's own processes and its object store, where a private Ray starts on this machine."""
PROBE_SECONDS = 120.0
"""A worker that imports torch from a cold disk needs most of a minute."""

Device = Literal["cpu", "cuda"]


@dataclass(frozen=True)
class Node:
    """One machine. `memory_bytes` is what workers may use: Ray's own part is off already."""

    cpus: int
    gpus: int
    memory_bytes: int
    gpu_memory_bytes: int = 0
    """Of each of its GPUs; 0 where it is not known because no model goes there."""
    bf16: bool | None = None
    """Whether its GPUs compute in bf16; None where that was not looked up."""
    name: str = "this machine"
    identity: str = ""
    """Ray's id of the node; empty for this machine."""


@dataclass(frozen=True)
class Budget:
    """The nodes that a run may use."""

    nodes: tuple[Node, ...]

    @classmethod
    def of(
        cls,
        *,
        cpus: int,
        gpus: int = 0,
        memory_bytes: int,
        gpu_memory_bytes: int = 0,
        bf16: bool | None = None,
    ) -> Budget:
        """Give the budget of one machine."""
        return cls((Node(cpus, gpus, memory_bytes, gpu_memory_bytes, bf16),))

    @property
    def cpus(self) -> int:
        """CPUs of all nodes."""
        return sum(node.cpus for node in self.nodes)

    @property
    def gpus(self) -> int:
        """GPUs of all nodes."""
        return sum(node.gpus for node in self.nodes)

    @property
    def memory_bytes(self) -> int:
        """Main memory of all nodes that workers may use."""
        return sum(node.memory_bytes for node in self.nodes)

    @property
    def gpu_memory_bytes(self) -> int:
        """Memory of the smallest GPU; 0 without one."""
        return min((node.gpu_memory_bytes for node in self.nodes if node.gpus), default=0)

    @property
    def bf16(self) -> bool | None:
        """Whether every GPU computes in bf16; None where that was not looked up."""
        known = {node.bf16 for node in self.nodes if node.gpus}
        return False if False in known else None if None in known or not known else True


def device_of(budget: Budget, compute: ComputeConfig) -> Device:
    """Say where models run: on GPUs where there are any, unless `--device` says otherwise.

    Raises:
        ResourceError: when GPUs are asked for and no node has one.
    """
    if compute.device == "cpu" or (compute.device == "auto" and not budget.gpus):
        return "cpu"
    if not budget.gpus:
        raise ResourceError.of(
            "no GPU to run on",
            found=f"--device cuda, and no GPU on {', '.join(n.name for n in budget.nodes)}",
            remedy="leave --device out, or start nodes with GPUs",
        )
    return "cuda"


def joined_address(compute: ComputeConfig) -> str | None:
    """Give the address of the cluster to join; None for a private Ray.

    `GENCLS_ADDRESS` is set in submitted jobs: the command that runs at home runs there unchanged.
    """
    return compute.address or os.environ.get(ADDRESS)


def cpus_multiply_bf16(compute: ComputeConfig) -> bool | None:
    """Say whether the CPUs that models run on have products in bf16; None for a cluster's."""
    return cpu_multiplies_bf16() if joined_address(compute) is None else None


def precision_of(
    budget: Budget, compute: ComputeConfig, device: Device
) -> tuple[Precision, str | None]:
    """Give the precision in which models run, and a note where that needs one."""
    bf16 = cpus_multiply_bf16(compute) if device == "cpu" else budget.bf16
    return resolve_precision(compute.precision, device, bf16=bf16)


def local_budget(compute: ComputeConfig) -> Budget:
    """Measure this machine; what the settings give overrides what is measured.

    Raises:
        ResourceError: when GPUs are asked for that this machine does not show.
    """
    import psutil

    usable = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    memory = compute.memory_gb
    total = int(memory * GB) if memory else int(psutil.virtual_memory().available * 0.9)
    gpus, gpu_memory, bf16 = compute.num_gpus, compute.gpu_memory_gb, None
    if compute.device == "cpu":
        # Nothing to look up: no model goes there. A number that is given can be reserved all the
        # same.
        gpus, gpu_memory = gpus or 0, None
    elif gpus is None or (gpus and gpu_memory is None):
        present, gpu_bytes, bf16 = _gpus_seen()
        gpus = present if gpus is None else gpus
        if gpus and gpu_memory is None and not present:
            raise ResourceError.of(
                "GPUs are asked for, and this machine shows none",
                found=f"--num-gpus {gpus}",
                remedy="leave --num-gpus out, or say --gpu-memory-gb to plan for another machine",
            )
        gpu_memory = gpu_memory or gpu_bytes / GB
    return Budget.of(
        cpus=compute.num_cpus or usable or 1,
        gpus=gpus or 0,
        memory_bytes=max(0, total - RAY_BYTES),
        gpu_memory_bytes=int((gpu_memory or 0) * GB),
        bf16=bf16,
    )


def cluster_budget(compute: ComputeConfig) -> Budget:
    """Give the nodes of the cluster that Ray is connected to, in a fixed order.

    Memory is Ray's own figure per node, or `--memory-gb` where that is less. What the job that this
    process runs in holds for itself is taken off.

    Raises:
        ResourceError: when the memory of a node's GPUs cannot be measured.
    """
    import ray

    held_on, held = _held_by_this_job()
    nodes = []
    for entry in ray.nodes():
        if not entry["alive"]:
            continue
        has = dict(entry["Resources"])
        if entry["NodeID"] == held_on:
            has = {name: amount - held.get(name, 0) for name, amount in has.items()}
        memory = int(has.get("memory", 0))
        if compute.memory_gb:
            memory = min(memory, int(compute.memory_gb * GB))
        nodes.append(
            Node(
                cpus=max(0, int(has.get("CPU", 0))),
                gpus=max(0, int(has.get("GPU", 0))),
                memory_bytes=max(0, memory),
                gpu_memory_bytes=int((compute.gpu_memory_gb or 0) * GB),
                name=f"{entry['NodeManagerHostname']} ({entry['NodeID'][:8]})",
                identity=entry["NodeID"],
            )
        )
    nodes.sort(key=lambda node: node.identity)
    if compute.device != "cpu" and compute.gpu_memory_gb is None:
        nodes = _with_measured_gpus(nodes)
    return Budget(tuple(nodes))


def _gpus_seen() -> tuple[int, int, bool | None]:
    """Give the number of GPUs that torch sees, the smallest one's memory, and whether all do bf16.

    bf16 is in hardware from compute capability 8.0 (Ampere) on.
    """
    import torch

    count = torch.cuda.device_count()
    if not count:
        return 0, 0, None
    memory = min(torch.cuda.get_device_properties(i).total_memory for i in range(count))
    return count, memory, all(torch.cuda.get_device_capability(i)[0] >= 8 for i in range(count))


def _gpus_seen_by_a_worker() -> tuple[int, int, bool | None]:
    """Run in a Ray worker that holds no GPU, so that it need not wait for a busy one."""
    # Ray hides all GPUs from a task that reserves none.
    os.environ.pop("CUDA_VISIBLE_DEVICES", None)
    return _gpus_seen()


def _with_measured_gpus(nodes: Sequence[Node]) -> list[Node]:
    """Ask torch on every node that has GPUs how large they are."""
    import ray
    from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

    # The worker has opened a CUDA context on every GPU: it must not serve another task.
    probe = ray.remote(max_calls=1)(_gpus_seen_by_a_worker)
    pending = {
        node.identity: probe.options(
            num_cpus=0,
            max_retries=0,
            scheduling_strategy=NodeAffinitySchedulingStrategy(node.identity, soft=False),
        ).remote()
        for node in nodes
        if node.gpus
    }
    measured = []
    for node in nodes:
        if not node.gpus:
            measured.append(node)
            continue
        try:
            count, memory, bf16 = ray.get(pending[node.identity], timeout=PROBE_SECONDS)
        except ray.exceptions.RayError as error:
            raise ResourceError.of(
                "the memory of a GPU could not be measured",
                place=node.name,
                found=str(error).strip().splitlines()[-1],
                remedy="say --gpu-memory-gb, or --device cpu to run on CPUs",
            ) from error
        if not count:
            raise ResourceError.of(
                "Ray counts GPUs where torch sees none",
                place=node.name,
                found=f"{node.gpus} GPU in Ray's books, 0 in torch.cuda.device_count()",
                remedy="install torch with CUDA and the driver there; --device cpu runs on CPUs, "
                "--gpu-memory-gb plans without looking",
            )
        measured.append(replace(node, gpu_memory_bytes=memory, bf16=bf16))
    return measured


def _held_by_this_job() -> tuple[str, dict[str, float]]:
    """Give the node and the amounts that the Ray job of this process reserved for its entrypoint.

    A plan that counted them would ask for more than can ever be free.
    """
    settings = json.loads(os.environ.get("RAY_JOB_CONFIG_JSON_ENV_VAR", "{}"))
    submission = (settings.get("metadata") or {}).get("job_submission_id")
    if submission is None:
        return "", {}
    import ray
    from ray.experimental.internal_kv import _internal_kv_get

    # The Jobs API keeps its records here; its own client needs the dashboard's port.
    record = _internal_kv_get(f"_ray_internal_job_info_{submission}", namespace=b"job")
    info: dict[str, Any] = json.loads(record or b"{}")
    held = {
        "CPU": info.get("entrypoint_num_cpus") or 0,
        "GPU": info.get("entrypoint_num_gpus") or 0,
        "memory": info.get("entrypoint_memory") or 0,
    }
    return ray.get_runtime_context().get_node_id(), held
