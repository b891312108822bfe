"""A Ray to work on: a private one on this machine, or a cluster that is already there."""

from __future__ import annotations

import contextlib
import logging
import os
import signal
import threading
import warnings
from collections.abc import Iterator
from typing import Any

from cluster.resources import Budget
from gencls_core.errors import ResourceError, UsageError

__all__ = ["ray_session"]

OBJECT_STORE_BYTES = 200 * 10**6
"""Only paths, records and events travel through the object store; Ray would take 30 % of memory."""


@contextlib.contextmanager
def ray_session(budget: Budget, address: str | None = None) -> Iterator[None]:
    """Connect to Ray for the duration of a block, and leave nothing of ours running after it.

    Without an address a private Ray starts on this machine, with the budget's CPUs and GPUs, a
    capped object store and no dashboard, whatever `RAY_ADDRESS` says.

    Raises:
        UsageError: when `--address` and `RAY_ADDRESS` name different clusters.
        ResourceError: when Ray cannot be started or reached.
    """
    # Ray decides about these at import.
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    os.environ.setdefault("RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO", "0")
    os.environ.setdefault("RAY_DEDUP_LOGS", "0")
    import ray

    if ray.is_initialized():
        # Somebody else's session, for example a notebook's: theirs to end.
        yield
        return
    named = os.environ.get("RAY_ADDRESS")
    if address not in (None, "auto", named) and named is not None:
        raise UsageError.of(
            "two Ray clusters are named",
            found=f"--address {address} and RAY_ADDRESS={named}",
            remedy="unset RAY_ADDRESS, or give the same address",
        )
    options: dict[str, Any] = {
        "log_to_driver": False,
        "logging_level": logging.ERROR,
        "namespace": "gencls",
    }
    if address is None:
        options |= {
            "address": "local",
            "num_cpus": budget.cpus,
            "num_gpus": budget.gpus,
            "include_dashboard": False,
            "object_store_memory": OBJECT_STORE_BYTES,
        }
    else:
        options["address"] = address
    on_sigterm = signal.getsignal(signal.SIGTERM)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            ray.init(**options)
    except (ConnectionError, RuntimeError, ValueError) as error:
        raise ResourceError.of(
            "Ray cannot be started" if address is None else "the Ray cluster cannot be reached",
            place=address,
            found=str(error).strip().splitlines()[0],
            remedy="free memory or CPUs" if address is None else "check address and network",
        ) from error
    if threading.current_thread() is threading.main_thread():
        # Ray puts its own handler in the place of the caller's.
        signal.signal(signal.SIGTERM, on_sigterm)
    try:
        yield
    finally:
        ray.shutdown()
