"""A Ray to work on: a private one on this machine, or a cluster that is already there."""

from __future__ import annotations

import contextlib
import logging
import os
import signal
import sys
import threading
import warnings
from collections.abc import Iterator
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path
from typing import Any

from cluster.capacity import Budget, cluster_budget, joined_address, local_budget
from cluster.dev_cluster import join_dev_cluster
from cluster.errors import (
    AddressConflictError,
    UnauthorisedError,
    UnreachableError,
    VersionError,
)
from cluster.job_context import worker_setup
from cluster.shared_path import nodes_without
from gencls_core.config import ComputeConfig
from gencls_core.errors import GenclsError, ResourceError
from gencls_core.model_source import ResolvedModel
from gencls_core.run import RunDirectory

__all__ = ["Workplace", "ray_session"]

OBJECT_STORE_BYTES = 200 * 10**6
"""Only paths, records and events travel through the object store; Ray would take 30 % of memory."""


@contextlib.contextmanager
def ray_session(budget: Budget | None, address: str | None = None) -> Iterator[None]:
    """Connect to Ray for the duration of a block, and leave nothing of ours running after it.

    Without an address a private Ray starts on this machine, with the budget's CPUs and GPUs, a
    capped object store and no dashboard, whatever `RAY_ADDRESS` says.

    Raises:
        AddressConflictError: when `--address` and `RAY_ADDRESS` name different clusters.
        ResourceError: when Ray cannot be started.
        UnauthorisedError: when the cluster does not know our token.
        UnreachableError: when the cluster cannot be reached.
        VersionError: when the cluster runs another Ray or Python than this process.
    """
    # Ray decides about these at import.
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    os.environ.setdefault("RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO", "0")
    os.environ.setdefault("RAY_DEDUP_LOGS", "0")
    if address is not None:
        join_dev_cluster(address)
    import ray

    if ray.is_initialized():
        # Somebody else's session, for example a notebook's: theirs to end.
        yield
        return
    named = os.environ.get("RAY_ADDRESS")
    if address not in (None, "auto", named) and named is not None:
        raise AddressConflictError.of(
            "two Ray clusters are named",
            found=f"--address {address} and RAY_ADDRESS={named}",
            remedy="unset RAY_ADDRESS, or give the same address",
        )
    options: dict[str, Any] = {
        "log_to_driver": False,
        "logging_level": logging.ERROR,
        "namespace": "gencls",
    }
    if address is None and budget is not None:
        options |= {
            "address": "local",
            "num_cpus": budget.cpus,
            "num_gpus": budget.gpus,
            "include_dashboard": False,
            "object_store_memory": OBJECT_STORE_BYTES,
            # What the plan reserves is counted in Ray's books.
            "_memory": budget.memory_bytes,
        }
    else:
        options["address"] = address
        if setup := worker_setup():
            options["runtime_env"] = {"worker_process_setup_hook": setup}
    if address is not None:
        _require_admission(address)
    on_sigterm = signal.getsignal(signal.SIGTERM)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            ray.init(**options)
    except (ConnectionError, RuntimeError, ValueError) as error:
        raise _refusal(error, address) from error
    except OSError as error:
        if "AF_UNIX" not in str(error):
            raise
        raise ResourceError.of(
            "Ray cannot be started: the paths of its sockets would be too long",
            found=str(error).rpartition(": ")[2],
            expected="a path that the system takes for a socket, of 107 bytes on Linux",
            remedy="export RAY_TMPDIR=/tmp, or another short path",
        ) from error
    if threading.current_thread() is threading.main_thread():
        # Ray puts its own handler in the place of the caller's.
        signal.signal(signal.SIGTERM, on_sigterm)
    try:
        yield
    finally:
        ray.shutdown()


def _require_admission(address: str) -> None:
    """Refuse at once where the cluster does not know our token; `ray.init` would try for minutes.

    Raises:
        UnauthorisedError: when the token is missing or wrong.
    """
    if ":" not in address or "://" in address:
        # `auto`: Ray finds the cluster that it is part of. `ray://`: another protocol.
        return
    from ray._raylet import GcsClient  # type: ignore[attr-defined]
    from ray.exceptions import AuthenticationError, RayError

    try:
        GcsClient(address=address)
    except AuthenticationError:
        raise UnauthorisedError.of(
            "the cluster refuses us",
            place=address,
            found="no token, or one that the cluster does not know",
            remedy="RAY_AUTH_MODE=token and the cluster's token in RAY_AUTH_TOKEN, or its file in "
            "RAY_AUTH_TOKEN_PATH",
        ) from None
    except RayError as error:
        raise _refusal(error, address) from error


def _refusal(error: Exception, address: str | None) -> GenclsError:
    """Say in our words why Ray could not be started or joined."""
    lines = str(error).strip().splitlines() or [type(error).__name__]
    if "Version mismatch" in lines[0]:
        return VersionError.of(
            "the cluster runs another Ray or Python than this process",
            place=address,
            found="; ".join(" ".join(line.split()) for line in lines[1:6]),
            remedy="use the same versions, or `gencls submit`, which runs on the cluster's own",
        )
    if address is None:
        return ResourceError.of(
            "Ray cannot be started", found=lines[0], remedy="free memory or CPUs"
        )
    return UnreachableError.of(
        "the Ray cluster cannot be reached",
        place=address,
        found=lines[0],
        remedy="check address and network, and the token (RAY_AUTH_MODE=token, RAY_AUTH_TOKEN)",
    )


class Workplace:
    """The Ray of one run: joined before the plan is made, or started when it is first needed."""

    def __init__(self, stack: ExitStack, compute: ComputeConfig) -> None:
        """Find out where work will run.

        Args:
            stack: ends Ray, or the connection to it, with the run.
            compute: the settings.

        Raises:
            ClusterError: when two clusters are named, or one cannot be joined.
            ResourceError: when the GPUs of the cluster cannot be measured.
        """
        self._stack = stack
        address = joined_address(compute)
        running = "ray" in sys.modules and sys.modules["ray"].is_initialized()
        self._started = address is not None or running
        if self._started:
            stack.enter_context(ray_session(None, address))
            self.budget = cluster_budget(compute)
        else:
            self.budget = local_budget(compute)

    def need(self) -> None:
        """Start Ray unless it runs."""
        if not self._started:
            self._stack.enter_context(ray_session(self.budget))
            self._started = True

    def reachable(self, base: ResolvedModel, run: RunDirectory) -> ResolvedModel:
        """Give the base model where every worker can read it: copied into the run if it must be."""
        path = run.base_path / base.digest[:16]
        staged = ResolvedModel.of_staged(base.name, path)
        if staged is not None:
            return replace(staged, digest=base.digest)
        if isinstance(run.path, Path):
            self.need()
            if not isinstance(base.path, Path) or not nodes_without(base.path, self.budget.nodes):
                return base
        return base.stage(path)
