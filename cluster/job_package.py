"""What travels to a cluster with a job: gencls itself, the run file, what is shipped beside it.

It is a zip file made here and uploaded as it is. Ray's own packing of a folder leaves out what
`.gitignore` names and what is called `venv`; this one leaves out nothing. Files are packed with
mode 0600 under the paths that they have below the current folder, so that a relative path means
the same there as here.

The job's id is made of what was asked, so that asking twice gives one job.
"""

from __future__ import annotations

import json
import os
import secrets
import shlex
import zipfile
from collections.abc import Sequence
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path

from cluster.job_client import UPLOAD_LIMIT_BYTES
from cluster.job_context import JOB_FILE, SECRETS_FILE
from gencls_core.errors import ResourceError, UsageError
from gencls_core.storage import digest_of, file_sha256

__all__ = ["PACKAGES", "Shipment", "ShippedFile", "entrypoint_of", "own_files", "write_package"]

PACKAGES = ("gencls_core", "cluster", "jobs")

HOPELESS_BYTES = 20 * UPLOAD_LIMIT_BYTES
"""Text shrinks to a quarter or less; what is larger than this is not even packed."""


@dataclass(frozen=True)
class ShippedFile:
    """A file that goes along: as the command names it, where it lies in the package."""

    given: str
    path: str
    sha256: str


@dataclass(frozen=True)
class Shipment:
    """A command with the files that go along, before it has got a number."""

    command: tuple[str, ...]
    folder: Path
    """Where the command was given; relative paths start here."""
    files: tuple[ShippedFile, ...]
    ship: tuple[str, ...]
    """What `--ship` named."""

    @classmethod
    def of(cls, command: Sequence[str], ship: Sequence[str], folder: Path) -> Shipment:
        """Find the files that belong to a command: its run files, and what is to be shipped.

        Raises:
            UsageError: when a path to ship is missing or lies outside `folder`.
        """
        found: dict[str, Path] = {}
        for argument in command[1:]:
            if argument.endswith(".toml") and (folder / argument).is_file():
                found[argument] = folder / argument
        for name in ship:
            path = folder / name
            if not path.exists():
                raise UsageError.of("nothing to ship", place=path)
            if not path.resolve().is_relative_to(folder.resolve()):
                raise UsageError.of(
                    "only what lies below the current folder can be shipped",
                    place=path,
                    remedy="call gencls from a folder that holds it",
                )
            inner = path.resolve().relative_to(folder.resolve())
            for file in [path] if path.is_file() else sorted(path.rglob("*")):
                if file.is_file():
                    found[str(inner / file.relative_to(path)).removesuffix("/.")] = file
        return cls(
            command=tuple(command),
            folder=folder,
            files=tuple(_shipped(given, path, folder) for given, path in found.items()),
            ship=tuple(ship),
        )

    @property
    def job_id(self) -> str:
        """Name the job: the same command in the same folder on the same files is the same job."""
        digest = digest_of(
            {
                "command": self.command,
                "folder": str(self.folder),
                "files": {file.given: file.sha256 for file in self.files},
            }
        )
        return f"gencls-{self.command[0]}-{digest[:12]}"

    def unshipped_paths(self) -> list[str]:
        """Give the arguments that are paths here and do not go along."""
        packed = {file.given for file in self.files}
        shipped = [self.folder / name for name in self.ship]
        left = []
        for argument in self.command[1:]:
            value = argument.partition("=")[2] if argument.startswith("--") else argument
            path = self.folder / value
            if not value or value.startswith("-") or value in packed or not path.exists():
                continue
            if not any(path.is_relative_to(one) for one in shipped):
                left.append(value)
        return left


def own_files() -> dict[str, Path]:
    """Give the files of gencls itself by their paths in the package; data files included."""
    found = {}
    for package in PACKAGES:
        spec = find_spec(package)
        assert spec is not None
        assert spec.submodule_search_locations is not None
        root = Path(spec.submodule_search_locations[0])
        for path in sorted(root.rglob("*")):
            inner = path.relative_to(root)
            hidden = any(part.startswith(".") or part == "__pycache__" for part in inner.parts)
            if path.is_file() and not hidden and path.suffix != ".pyc":
                found[f"{package}/{inner.as_posix()}"] = path
    return found


def write_package(
    shipment: Shipment, job_id: str, environment: dict[str, str], proof: Path, package: Path
) -> None:
    """Write the zip file of one attempt.

    Args:
        shipment: the command and its files.
        job_id: makes the package this attempt's own: Ray shares equal packages between jobs.
        environment: variables for the job and its workers; they may be secrets.
        proof: a small file that stays here; a job that can read it sees this disk.
        package: where the zip file goes; it gets mode 0600.

    Raises:
        ResourceError: when it is larger than a Ray dashboard takes.
        UsageError: when a shipped file would stand in for one of gencls.
    """
    members = own_files()
    for file in shipment.files:
        if file.path in members or file.path in (JOB_FILE, SECRETS_FILE):
            raise UsageError.of(
                "a shipped file has the path of one of gencls's own",
                place=file.given,
                remedy="rename it, or its folder",
            )
    members |= {file.path: shipment.folder / file.given for file in shipment.files}
    raw = sum(path.stat().st_size for path in members.values())
    if raw > HOPELESS_BYTES:
        raise _too_large(f"{raw / 1e6:,.0f} MB before packing")
    # Not guessed by anyone: whoever can read it there, reads this disk.
    content = secrets.token_hex(16)
    proof.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
    _write_private(proof, content)
    description = {
        "id": job_id,
        "command": list(shipment.command),
        "folder": str(shipment.folder),
        "proof": {"path": str(proof), "content": content},
        "files": [vars(file) for file in shipment.files],
    }
    _write_private(package, "")
    with zipfile.ZipFile(package, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, path in sorted(members.items()):
            _add(archive, name, path.read_bytes())
        _add(archive, JOB_FILE, json.dumps(description).encode())
        if environment:
            _add(archive, SECRETS_FILE, json.dumps(environment).encode())
    size = package.stat().st_size
    if size > UPLOAD_LIMIT_BYTES:
        raise _too_large(f"{size / 1e6:,.1f} MB packed")


def entrypoint_of(shipment: Shipment) -> str:
    """Give the shell command that starts the job; `exec`, so that a stop reaches it directly."""
    return "exec python -m jobs " + shlex.join(shipment.command)


def _shipped(given: str, path: Path, folder: Path) -> ShippedFile:
    digest = file_sha256(path)
    resolved, root = path.resolve(), folder.resolve()
    inside = resolved.is_relative_to(root) and not Path(given).is_absolute()
    # From elsewhere: a folder of its own, so that it cannot meet another file of its name.
    where = resolved.relative_to(root) if inside else Path("shipped", digest[:16], path.name)
    return ShippedFile(given=given, path=where.as_posix(), sha256=digest)


def _too_large(found: str) -> ResourceError:
    return ResourceError.of(
        "too much to ship with a job",
        found=found,
        expected=f"at most {UPLOAD_LIMIT_BYTES / 1e6:,.1f} MB packed",
        remedy="put the data where the cluster's nodes can read it, and give its path there",
    )


def _add(archive: zipfile.ZipFile, name: str, content: bytes) -> None:
    entry = zipfile.ZipInfo(name)
    entry.compress_type = zipfile.ZIP_DEFLATED
    entry.external_attr = 0o600 << 16
    archive.writestr(entry, content)


def _write_private(path: Path, content: str) -> None:
    path.unlink(missing_ok=True)
    descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
    with os.fdopen(descriptor, "w", encoding="ascii") as stream:
        stream.write(content)
