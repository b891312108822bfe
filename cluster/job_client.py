"""The REST side of Ray's Jobs API: all that is known of a cluster from far away.

Written on the documented HTTP routes rather than on Ray's `JobSubmissionClient`: that one has no
timeouts, reads one token per process, tells refusals apart only by their text, and takes seconds to
import, which `gencls jobs` would pay each time.
"""

from __future__ import annotations

import asyncio
import http.client
import json
import ssl
import urllib.error
import urllib.parse
import urllib.request
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from cluster.errors import (
    ClusterError,
    NotARayHeadError,
    UnauthorisedError,
    UnknownJobError,
    UnreachableError,
    VersionError,
)

__all__ = ["UPLOAD_LIMIT_BYTES", "Job", "JobClient", "JobExistsError", "Usage"]

OLDEST_RAY = (2, 55)
"""The oldest Ray that gencls runs on; the same bound as in pyproject.toml."""

UPLOAD_LIMIT_BYTES = 100 * 1024**2
"""What a Ray dashboard takes in one request (`DASHBOARD_CLIENT_MAX_SIZE`)."""

ANSWER_SECONDS = 20.0
UPLOAD_SECONDS = 600.0

RayStatus = Literal["PENDING", "RUNNING", "SUCCEEDED", "FAILED", "STOPPED"]


class JobExistsError(ClusterError):
    """The cluster has a job of this id already."""


@dataclass(frozen=True)
class Job:
    """One submitted job as Ray knows it; times in seconds since the epoch."""

    id: str
    status: RayStatus
    message: str
    entrypoint: str
    started: float | None
    ended: float | None
    metadata: dict[str, str]
    exit_code: int | None
    ray_job: str | None
    """Ray's hexadecimal number of the job's driver, once that has connected."""

    @property
    def over(self) -> bool:
        """Say whether the job has come to its end."""
        return self.status in ("SUCCEEDED", "FAILED", "STOPPED")


@dataclass(frozen=True)
class Usage:
    """Resources of a cluster: in use and in all."""

    used: dict[str, float]
    total: dict[str, float]
    counted: float | None = None
    """When Ray counted, in seconds since the epoch by the head's clock."""

    def __str__(self) -> str:
        names = [name for name in ("CPU", "GPU") if self.total.get(name)]
        return ", ".join(f"{self.used[n]:g} of {self.total[n]:g} {n}s in use" for n in names)


class _NoRedirect(urllib.request.HTTPRedirectHandler):
    """The token goes to the address that was given, and nowhere else."""

    def redirect_request(self, *arguments: Any, **options: Any) -> None:
        return None


class JobClient:
    """Talks to the head of one cluster.

    Args:
        url: the dashboard's address, `http://head:8265`.
        token: what the cluster knows its users by; None where it does not ask.
        source: the variable that the address was taken from, for messages; None where it was given.

    Raises (every method):
        UnreachableError: nobody answers in time.
        UnauthorisedError: the token is missing or wrong.
        NotARayHeadError: what answers does not speak the Jobs API.
    """

    def __init__(self, url: str, token: str | None = None, source: str | None = None) -> None:
        self.url = url.rstrip("/")
        self._place = self.url if source is None else f"{self.url} (from {source})"
        self._token = token
        # A proxy of the environment has no business between us and a cluster on loopback.
        host = urllib.parse.urlsplit(self.url).hostname or ""
        proxies: dict[str, str] | None = {} if host in ("127.0.0.1", "localhost", "::1") else None
        self._opener = urllib.request.build_opener(
            _NoRedirect(), urllib.request.ProxyHandler(proxies)
        )

    def check(self) -> str:
        """Make sure that a usable Ray head is there; give its Ray version.

        Raises:
            VersionError: when its Ray is older than gencls can use.
        """
        answer = self._json("GET", "/api/version")
        found = answer.get("ray_version") if isinstance(answer, dict) else None
        if not isinstance(found, str):
            raise self._not_ray("an answer without a Ray version")
        numbers = tuple(int(part) for part in found.split(".")[:2] if part.isdigit())
        if numbers < OLDEST_RAY:
            raise VersionError.of(
                "the cluster's Ray is too old",
                place=self._place,
                found=f"Ray {found}",
                expected=f"Ray {OLDEST_RAY[0]}.{OLDEST_RAY[1]} or newer",
                remedy="start the cluster with the Ray version that gencls is installed with",
            )
        return found

    def upload(self, package: Path) -> str:
        """Bring a zip file to the cluster under the name of its content; give its URI."""
        import hashlib

        content = package.read_bytes()
        name = f"_ray_pkg_{hashlib.sha1(content, usedforsecurity=False).hexdigest()}.zip"
        self._request("PUT", f"/api/packages/gcs/{name}", content, seconds=UPLOAD_SECONDS)
        return f"gcs://{name}"

    def submit(self, request: dict[str, Any]) -> None:
        """Start a job.

        Raises:
            JobExistsError: when there is a job of that id.
        """
        try:
            self._json("POST", "/api/jobs/", request, seconds=60.0)
        except ClusterError as error:
            if "already exists" in str(error):
                raise JobExistsError.of(
                    "there is a job of this id", place=self.url, found=request["submission_id"]
                ) from error
            raise

    def jobs(self) -> list[Job]:
        """Give the submitted jobs of the cluster, oldest first."""
        answer = self._json("GET", "/api/jobs/")
        if not isinstance(answer, list):
            raise self._not_ray("a list of jobs that is no list")
        found = [_job(entry) for entry in answer if entry.get("submission_id")]
        return sorted(found, key=lambda job: (job.started or 0.0, job.id))

    def job(self, job_id: str) -> Job:
        """Give one job; raises UnknownJobError."""
        return _job(self._json("GET", f"/api/jobs/{_quoted(job_id)}", job_id=job_id))

    def logs(self, job_id: str) -> str:
        """Give what the job's driver has printed so far."""
        answer = self._json("GET", f"/api/jobs/{_quoted(job_id)}/logs", job_id=job_id)
        return str(answer.get("logs") or "")

    def stop(self, job_id: str) -> bool:
        """Ask a job to end; gives False where it had ended before."""
        answer = self._json("POST", f"/api/jobs/{_quoted(job_id)}/stop", {}, job_id=job_id)
        return bool(answer.get("stopped"))

    def usage(self) -> Usage | None:
        """Give what of the cluster is in use, or None where it does not say."""
        answer = self._json("GET", "/api/cluster_status")
        status = ((answer or {}).get("data") or {}).get("clusterStatus") or {}
        pairs = (status.get("loadMetricsReport") or {}).get("usage")
        if not pairs:
            return None
        return Usage(
            used={name: pair[0] for name, pair in pairs.items()},
            total={name: pair[1] for name, pair in pairs.items()},
            counted=status.get("time"),
        )

    def live_actors(self, ray_job: str) -> int:
        """Count the actors of a job that hold resources and have not ended."""
        query = urllib.parse.urlencode(
            [
                ("detail", "1"),
                ("filter_keys", "job_id"),
                ("filter_predicates", "="),
                ("filter_values", ray_job),
            ]
        )
        answer = self._json("GET", f"/api/v0/actors?{query}")
        actors = answer["data"]["result"]["result"]
        return sum(a["state"] != "DEAD" and bool(a["required_resources"]) for a in actors)

    def follow(self, job_id: str) -> Iterator[str]:
        """Give the job's log piece by piece as it is written, until the job is over."""
        import aiohttp

        headers = self._headers()
        address = f"{self.url}/api/jobs/{_quoted(job_id)}/logs/tail"

        async def pieces() -> Any:
            async with (
                aiohttp.ClientSession(headers=headers) as session,
                session.ws_connect(address, heartbeat=30.0) as stream,
            ):
                async for message in stream:
                    if message.type is aiohttp.WSMsgType.TEXT:
                        yield message.data

        self.job(job_id)
        loop = asyncio.new_event_loop()
        reader = pieces()
        try:
            while True:
                try:
                    yield loop.run_until_complete(anext(reader))
                except StopAsyncIteration:
                    return
                except (aiohttp.ClientError, OSError) as error:
                    raise self._unreachable(str(error)) from error
        finally:
            # Ctrl-C comes while it reads: what reads must have ended before it can be closed.
            for task in asyncio.all_tasks(loop):
                task.cancel()
                loop.run_until_complete(asyncio.wait([task]))
            loop.run_until_complete(reader.aclose())
            loop.run_until_complete(loop.shutdown_asyncgens())
            loop.close()

    def _headers(self) -> dict[str, str]:
        return {"Authorization": f"Bearer {self._token}"} if self._token else {}

    def _json(
        self,
        method: str,
        path: str,
        value: Any = None,
        *,
        job_id: str | None = None,
        seconds: float = ANSWER_SECONDS,
    ) -> Any:
        body = None if value is None else json.dumps(value).encode()
        text = self._request(method, path, body, job_id=job_id, seconds=seconds)
        try:
            return json.loads(text)
        except ValueError:
            raise self._not_ray("an answer that is not JSON") from None

    def _request(
        self,
        method: str,
        path: str,
        body: bytes | None,
        *,
        job_id: str | None = None,
        seconds: float,
    ) -> bytes:
        headers = self._headers()
        if body is not None:
            headers["Content-Type"] = "application/json"
        request = urllib.request.Request(self.url + path, body, headers, method=method)
        try:
            with self._opener.open(request, timeout=seconds) as answer:
                content: bytes = answer.read()
                return content
        except urllib.error.HTTPError as error:
            with error:
                text = error.read(10_000).decode(errors="replace").strip()
            raise self._refusal(error.code, text, job_id) from None
        except (http.client.RemoteDisconnected, http.client.IncompleteRead) as error:
            # HTTPExceptions too, but what they tell of is a connection that has ended.
            raise self._unreachable(str(error)) from None
        except http.client.HTTPException as error:
            raise self._not_ray(f"no HTTP ({type(error).__name__})") from None
        except (TimeoutError, urllib.error.URLError, ssl.SSLError, OSError) as error:
            reason = getattr(error, "reason", error)
            if isinstance(reason, ssl.SSLError):
                raise self._not_ray(f"no valid TLS ({reason})") from None
            raise self._unreachable(str(reason)) from None

    def _refusal(self, code: int, text: str, job_id: str | None) -> ClusterError:
        if code in (401, 403):
            wrong = "a token that the cluster does not know" if self._token else "no token"
            return UnauthorisedError.of(
                "the cluster refuses us",
                place=self._place,
                found=wrong,
                expected="the cluster's token",
                remedy="put it into RAY_AUTH_TOKEN, or its file into RAY_AUTH_TOKEN_PATH",
            )
        if code == 404 and job_id is not None and "does not exist" in text:
            return UnknownJobError.of(
                "no such job",
                place=self.url,
                found=job_id,
                remedy="`gencls jobs` lists them; a cluster forgets its jobs when it ends",
            )
        last = text.splitlines()[-1] if text else "no explanation"
        if code >= 500 or code == 400:
            return ClusterError.of(
                "the cluster could not do it", place=self.url, found=f"HTTP {code}: {last}"
            )
        return self._not_ray(f"HTTP {code}")

    def _not_ray(self, found: str) -> NotARayHeadError:
        return NotARayHeadError.of(
            "this is not the head of a Ray cluster",
            place=self._place,
            found=found,
            expected="Ray's dashboard with its Jobs API",
            remedy="give the dashboard's address (port 8265 unless changed), not another service's",
        )

    def _unreachable(self, reason: str) -> UnreachableError:
        return UnreachableError.of(
            "the cluster cannot be reached",
            place=self._place,
            found=reason,
            remedy="check that it is up (`gencls cluster status`), the address, and the network; "
            "a head behind a firewall needs a tunnel, for example `ray dashboard cluster.yaml`",
        )


def _quoted(job_id: str) -> str:
    return urllib.parse.quote(job_id, safe="")


def _job(entry: dict[str, Any]) -> Job:
    return Job(
        id=entry["submission_id"],
        status=entry["status"],
        message=entry.get("message") or "",
        entrypoint=entry.get("entrypoint") or "",
        started=_seconds(entry.get("start_time")),
        ended=_seconds(entry.get("end_time")),
        metadata=entry.get("metadata") or {},
        exit_code=entry.get("driver_exit_code"),
        ray_job=entry.get("job_id"),
    )


def _seconds(milliseconds: int | None) -> float | None:
    return milliseconds / 1000 if milliseconds else None
