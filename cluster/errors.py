"""What can go wrong between this machine and a Ray cluster; each kind has its own exit code.

    GenclsError
    └── ClusterError
        ├── UnreachableError        3   no answer comes from the address, or no address is known
        ├── UnauthorisedError       4   the cluster wants a token, or another one
        ├── NotARayHeadError        5   something answers that is not a Ray head
        ├── VersionError            6   the cluster runs a Ray that gencls cannot use
        ├── UnknownJobError         7   the cluster has no such job
        └── AddressConflictError    8   two different clusters are named

A job that failed gives its own exit code to whoever waits for it; one that was stopped, 130.
"""

from __future__ import annotations

from gencls_core.errors import GenclsError

__all__ = [
    "STOPPED_EXIT_CODE",
    "AddressConflictError",
    "ClusterError",
    "NotARayHeadError",
    "UnauthorisedError",
    "UnknownJobError",
    "UnreachableError",
    "VersionError",
]

STOPPED_EXIT_CODE = 130
"""What waiting for a job gives when the job was stopped; Ctrl-C in a run gives the same."""


class ClusterError(GenclsError):
    """A cluster, or a job on it, that cannot be used as asked."""


class UnreachableError(ClusterError):
    """Nobody answers at the address, or no address is known."""

    exit_code = 3


class UnauthorisedError(ClusterError):
    """The cluster wants a token, or another one."""

    exit_code = 4


class NotARayHeadError(ClusterError):
    """Something answers at the address, but it is not the head of a Ray cluster."""

    exit_code = 5


class VersionError(ClusterError):
    """The cluster runs a Ray that gencls cannot use, or this process another than the cluster."""

    exit_code = 6


class UnknownJobError(ClusterError):
    """The cluster has no job of this id."""

    exit_code = 7


class AddressConflictError(ClusterError):
    """Two different clusters are named."""

    exit_code = 8
