"""Where a base model comes from: a name becomes a folder on disk with a digest.

Order of look-up: `scratch:` preset, model brought by `gencls pull`, local folder, hub id. Loading
itself (and torch) is in `gencls_core.models`; this file stays light.
"""

from __future__ import annotations

import json
import shutil
import struct
from dataclasses import dataclass, field, replace
from functools import lru_cache
from pathlib import Path
from typing import Any

from gencls_core.config import ModelConfig
from gencls_core.errors import ModelError
from gencls_core.local_copies import local_folder
from gencls_core.remote_path import Location
from gencls_core.storage import (
    digest_of,
    file_sha256,
    publish_directory,
    read_json,
    size_of,
    write_json,
)

__all__ = ["ResolvedModel", "is_scratch", "resolve_model"]

_WANTED = ("*.json", "*.safetensors", "*.txt", "*.model")
STAGED_NAME = "base.json"


@dataclass(frozen=True)
class ResolvedModel:
    """A base model as a folder."""

    name: str
    """What the user asked for."""
    path: Location
    digest: str
    """SHA-256 over configuration, weights and tokenizer."""
    parameters: int
    config: dict[str, Any]
    """The folder's config.json."""
    files: dict[str, str] = field(default_factory=dict)
    """SHA-256 of every file that is needed."""

    def local(self) -> Path:
        """Give a folder on this machine with the model's files."""
        return local_folder(self.path, self.files)

    def stage(self, destination: Location) -> ResolvedModel:
        """Copy the model to where every worker can read it."""
        with publish_directory(destination, STAGED_NAME) as folder:
            for name in self.files:
                shutil.copyfile(self.local() / name, folder / name)
            record = {"digest": self.digest, "parameters": self.parameters, "files": self.files}
            write_json(folder / STAGED_NAME, record)
        return replace(self, path=destination)

    @classmethod
    def of_staged(cls, name: str, path: Location) -> ResolvedModel | None:
        """Describe a model that was staged; None where there is no whole one."""
        try:
            record = read_json(path / STAGED_NAME)
            config = read_json(path / "config.json")
        except (FileNotFoundError, ValueError):
            return None
        if any(size_of(path / file) is None for file in record["files"]):
            return None
        return cls(name=name, path=path, config=config, **record)

    @classmethod
    def of_folder(cls, name: str, path: Path) -> ResolvedModel:
        """Describe a model folder.

        Raises:
            ModelError: when it has no config.json or no safetensors weights.
        """
        try:
            config = read_json(path / "config.json")
        except (FileNotFoundError, ValueError):
            raise ModelError.of(
                "not a model folder",
                place=path,
                found=", ".join(sorted(p.name for p in path.iterdir())[:8]) or "an empty folder",
                expected="config.json, model.safetensors and a tokenizer",
                remedy="save the model there with `model.save_pretrained(folder)`",
            ) from None
        weights = sorted(path.glob("*.safetensors"))
        if not weights:
            other = [p.name for p in (*path.glob("*.bin"), *path.glob("*.pt"))]
            raise ModelError.of(
                "no safetensors weights",
                place=path,
                found=", ".join(other) or "no weights",
                expected="model.safetensors (pickled weights can run code and are not loaded)",
                remedy="save it with `model.save_pretrained(folder)`",
            )
        found = [p for pattern in _WANTED for p in sorted(path.glob(pattern))]
        files = {p.name: _sha256(p, p.stat().st_size, p.stat().st_mtime_ns) for p in found}
        for commit in ("committed.json", "pulled.json", STAGED_NAME):
            files.pop(commit, None)
        return cls(
            name=name,
            path=path,
            digest=digest_of(files),
            parameters=sum(_count_parameters(path) for path in weights),
            config=config,
            files=files,
        )


@lru_cache(maxsize=256)
def _sha256(path: Path, _size: int, _modified: int) -> str:
    """Hash a file once per process: many systems of many runs start from the same base."""
    return file_sha256(path)


def is_scratch(name: str) -> bool:
    """Say whether the name is a preset that is made from scratch."""
    return name.startswith("scratch:")


def resolve_model(config: ModelConfig) -> ResolvedModel:
    """Find (and where needed download) a base model that is not made from scratch.

    Raises:
        ModelError: when the name is unknown, the hub cannot be reached or the folder is no model.
    """
    from gencls_core.pull import pulled_model_path

    name = config.model
    pulled = pulled_model_path(name)
    if pulled is not None:
        return ResolvedModel.of_folder(name, pulled)
    folder = Path(name).expanduser()
    if folder.is_dir():
        return ResolvedModel.of_folder(name, folder.absolute())
    if folder.is_absolute() or name.startswith((".", "~")):
        raise ModelError.of("no such model folder", place=folder)
    return ResolvedModel.of_folder(name, _download(name, config.revision))


def _download(name: str, revision: str | None) -> Path:
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import (
        GatedRepoError,
        HFValidationError,
        RepositoryNotFoundError,
        RevisionNotFoundError,
    )

    from gencls_core.pull import PULLABLE

    instead = (
        f"what works without the hub: `gencls pull {next(iter(PULLABLE))}` and "
        f"`--model {next(iter(PULLABLE))}`, a folder (`--model ./my-model`), "
        "or `--model scratch:tiny`; with --masked-model a folder or `scratch:masked-tiny`"
    )
    try:
        return Path(
            snapshot_download(
                name,
                revision=revision,
                allow_patterns=list(_WANTED),
                ignore_patterns=["onnx/*", "coreml/*", "*/*"],
                etag_timeout=5,
            )
        )
    except (HFValidationError, RepositoryNotFoundError, RevisionNotFoundError) as error:
        gated = isinstance(error, GatedRepoError)
        raise ModelError.of(
            "a model that needs permission" if gated else "no such model",
            place=name,
            found=str(error).strip().splitlines()[0],
            expected="a hub id, a folder, a pulled model or a `scratch:` preset",
            remedy="log in with `hf auth login`" if gated else instead,
        ) from None
    except Exception as error:  # the hub client raises errors of several HTTP libraries
        raise ModelError.of(
            "the Hugging Face hub cannot be reached, and the model is not in its cache",
            place=name,
            found=f"{type(error).__name__}: {str(error).strip().splitlines()[0][:200]}",
            remedy=instead,
        ) from None


def _count_parameters(path: Path) -> int:
    """Count the parameters in a safetensors file from its header alone."""
    with path.open("rb") as stream:
        head = stream.read(8)
        length = struct.unpack("<Q", head)[0] if len(head) == 8 else -1
        if not 0 < length < path.stat().st_size:
            raise ModelError.of(
                "not a whole safetensors file",
                place=path,
                found=f"{path.stat().st_size:,} bytes that do not begin with a header",
                expected="weights written by `save_pretrained`",
                remedy="a Git LFS pointer or a broken download: fetch the file again",
            )
        header: dict[str, Any] = json.loads(stream.read(length))
    total = 0
    for name, tensor in header.items():
        if name != "__metadata__":
            count = 1
            for size in tensor["shape"]:
                count *= size
            total += count
    return total
