"""Every check of `gencls doctor`, in the order in which they are told.

Only their names stand here: what they import may be what is missing.
"""

from __future__ import annotations

from gencls_core.checks import Check
from gencls_core.errors import UsageError

__all__ = ["every_check"]

SLOW_SECONDS = 180.0
"""For what loads torch or Ray, which takes minutes from a cold disk or beside other work."""


def every_check(address: str | None = None, *, network: bool = True) -> list[Check]:
    """List what there is to check here.

    Args:
        address: a cluster, as `run` or as `submit` takes it; without it the ones that the
            environment names, and the development cluster, if one is up.
        network: whether the hub and clusters may be asked.

    Raises:
        UsageError: when a cluster is named that may not be asked.
    """
    if address and not network:
        raise UsageError.of(
            "a cluster cannot be asked without the network",
            found="--no-network and --address",
            remedy="leave one of them out",
        )
    here, ray = "gencls_core.place_checks", "cluster.ray_checks"
    asked = [
        Check("cluster", f"{ray}:check_cluster", (address,), SLOW_SECONDS),
        Check("jobs", f"{ray}:check_jobs", (address,)),
        Check("hub", f"{here}:check_hub"),
    ]
    return [
        Check("packages", "gencls_core.package_checks:check_packages"),
        Check("machine", "cluster.machine_checks:check_machine"),
        Check("torch", "gencls_core.torch_checks:check_torch", (), SLOW_SECONDS),
        Check("gencls's folder", f"{here}:check_home"),
        Check("hub's cache", f"{here}:check_hub_cache"),
        Check("current folder", f"{here}:check_runs_folder"),
        Check("Ray's folder", f"{ray}:check_ray_folder"),
        Check("ray", f"{ray}:check_private_ray", (address,), SLOW_SECONDS),
        *(asked if network else []),
        Check("pulled models", f"{here}:check_pulled"),
    ]
