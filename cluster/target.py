"""Which cluster is meant, and what it is shown as proof of who we are."""

from __future__ import annotations

import os
import urllib.parse
from dataclasses import dataclass
from pathlib import Path

from cluster.dev_cluster import DevCluster, dev_cluster
from cluster.errors import AddressConflictError, UnauthorisedError, UnreachableError
from cluster.job_client import JobClient
from gencls_core.errors import UsageError

__all__ = ["VARIABLE", "Target", "find_target"]

VARIABLE = "RAY_API_SERVER_ADDRESS"
"""Names the dashboard where no flag does."""


@dataclass(frozen=True)
class Target:
    """A cluster to talk to."""

    url: str
    token: str | None
    development: bool
    """Whether it is the development cluster of this machine."""
    source: str | None = None
    """The variable that names it, where no flag does."""

    def client(self) -> JobClient:
        """Give the way to talk to it."""
        return JobClient(self.url, self.token, self.source)


def find_target(address: str | None) -> Target:
    """Find the cluster: `--address`, else RAY_API_SERVER_ADDRESS, else the development cluster.

    A token goes only where it belongs: the development cluster's to that cluster, the user's own
    (RAY_AUTH_TOKEN, RAY_AUTH_TOKEN_PATH, with RAY_AUTH_MODE=token also ~/.ray/auth_token) to a
    cluster that the user named.

    Raises:
        AddressConflictError: when RAY_ADDRESS names another cluster.
        UnauthorisedError: when the file of the token cannot be read.
        UnreachableError: when no cluster is named and none is up here.
        UsageError: when the address is not one of a dashboard.
    """
    named = address or os.environ.get(VARIABLE)
    source = VARIABLE if named and not address else None
    local = dev_cluster()
    if named is None:
        if local is None or not local.alive:
            ended = "" if local is None else f"the one that was up here ({local.url}) has ended"
            raise UnreachableError.of(
                "no cluster is named, and no development cluster is up",
                found=ended or None,
                remedy="--address http://HEAD:8265 or RAY_API_SERVER_ADDRESS; for one on this "
                "machine: gencls cluster up",
            )
        named = local.url
    url = _dashboard(named, source)
    _refuse_conflict(url, local)
    if local is not None and url == local.url:
        token = _read_token(Path(local.token_path))
        return Target(url, token, development=True, source=source)
    return Target(url, _own_token(), development=False, source=source)


def _dashboard(named: str, source: str | None) -> str:
    parts, port = _split(named if "://" in named else f"http://{named}")
    if parts is None or parts.scheme not in ("http", "https") or not parts.hostname:
        raise UsageError.of(
            "not the address of a Ray dashboard",
            place=source,
            found=named,
            expected="http://HEAD:8265, the dashboard's address (not ray:// nor the port of GCS)",
        )
    host = parts.netloc.rpartition(":")[0] if port is not None else parts.netloc.rstrip(":")
    if parts.hostname == "localhost":
        host = "127.0.0.1"
    port = port or _default_port(parts.scheme)
    return f"{parts.scheme}://{host}:{port}{parts.path.rstrip('/')}"


def _default_port(scheme: str) -> int:
    return 443 if scheme == "https" else 8265


def _split(address: str) -> tuple[urllib.parse.SplitResult | None, int | None]:
    """Take an address apart; gives its port too, and None for what is no address."""
    try:
        parts = urllib.parse.urlsplit(address)
        return parts, parts.port
    except ValueError:
        return None, None


def _refuse_conflict(url: str, local: DevCluster | None) -> None:
    """RAY_ADDRESS would win over what is said here in everything else that Ray does.

    Where drivers connect to a cluster that others brought up is not known from its dashboard's
    address: there the host alone is compared. Of the development cluster the port is known, too.
    """
    other = os.environ.get("RAY_ADDRESS")
    if not other or other in ("auto", "local"):
        return
    parts, port = _split(other if "://" in other else f"//{other}")
    ours = urllib.parse.urlsplit(url)
    same = False
    if parts is not None:
        host = {"localhost": "127.0.0.1"}.get(parts.hostname or "", parts.hostname)
        same = host == ours.hostname
        if parts.scheme in ("http", "https"):
            same = same and (port or _default_port(parts.scheme)) == ours.port
        elif local is not None:
            same = same and (f"{host}:{port}" == local.gcs_address) == (url == local.url)
    if not same:
        raise AddressConflictError.of(
            "two Ray clusters are named",
            found=f"{url} and RAY_ADDRESS={other}",
            remedy="unset RAY_ADDRESS, or name its cluster",
        )


def _own_token() -> str | None:
    token = os.environ.get("RAY_AUTH_TOKEN")
    if token:
        return token.strip()
    path = os.environ.get("RAY_AUTH_TOKEN_PATH")
    if path:
        return _read_token(Path(path).expanduser())
    default = Path("~/.ray/auth_token").expanduser()
    if os.environ.get("RAY_AUTH_MODE", "").lower() == "token" and default.is_file():
        return _read_token(default)
    return None


def _read_token(path: Path) -> str:
    try:
        return path.read_text(encoding="ascii").strip()
    except (OSError, UnicodeError) as error:
        raise UnauthorisedError.of(
            "the file of the cluster's token cannot be read", place=path, found=str(error)
        ) from None
