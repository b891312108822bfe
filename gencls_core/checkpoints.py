"""Checkpoints of a training that is under way, where the next attempt finds them.

They lie beside the class models, `models/.training-<class>-<digest>/checkpoint-<step>/`. The name
carries the digest, so that a training with other settings never goes on from them. Trainer writes
into a folder: where the run lies in an object store, that is one on this machine, copied after
each save.
"""

from __future__ import annotations

import contextlib
import json
import shutil
import tempfile
from pathlib import Path

from gencls_core.remote_path import Location, RemotePath
from gencls_core.storage import children, publish_directory, remove_tree

__all__ = ["Checkpoints"]

LAST_FILE = "trainer_state.json"
"""Trainer writes it last: a checkpoint that has it is whole."""


class Checkpoints:
    """Where one training saves and resumes; a context manager."""

    def __init__(self, destination: Location, digest: str) -> None:
        """Name the place.

        Args:
            destination: where the class model will be committed.
            digest: of the class model that is being trained.
        """
        self.shared = destination.parent / f".training-{destination.name}-{digest[:16]}"
        self.folder = Path()
        self._stack = contextlib.ExitStack()

    def __enter__(self) -> Checkpoints:
        if isinstance(self.shared, Path):
            self.folder = self.shared
        else:
            self.folder = Path(
                self._stack.enter_context(tempfile.TemporaryDirectory(prefix="gencls-training-"))
            )
        return self

    def __exit__(self, *exception: object) -> None:
        self._stack.close()

    def last_whole(self) -> str | None:
        """Give the newest checkpoint that was written to its end; remove those that were not."""
        if isinstance(self.shared, RemotePath):
            self._fetch(self.shared)
        whole = []
        for path in self.folder.glob("checkpoint-*"):
            if _is_whole(path):
                _move_best(path)
                whole.append(path)
            else:
                shutil.rmtree(path)
        return str(max(whole, key=_step)) if whole else None

    def keep(self) -> None:
        """Copy what was saved to where another machine finds it; drop what Trainer dropped."""
        if not isinstance(self.shared, RemotePath):
            return
        kept = [path for path in self.folder.glob("checkpoint-*") if _is_whole(path)]
        there = {child.name for child in children(self.shared)}
        for path in kept:
            # Its last file is the mark: one that was copied in part is copied again.
            if not (self.shared / path.name / LAST_FILE).exists():
                with publish_directory(self.shared / path.name, LAST_FILE) as folder:
                    shutil.copytree(path, folder, dirs_exist_ok=True)
        for name in there - {path.name for path in kept}:
            remove_tree(self.shared / name)

    def remove(self) -> None:
        """Remove them: the class model is committed."""
        remove_tree(self.shared)

    def _fetch(self, shared: RemotePath) -> None:
        for checkpoint in children(shared):
            if isinstance(checkpoint, RemotePath) and (checkpoint / LAST_FILE).exists():
                for file, _ in checkpoint.files():
                    target = self.folder / checkpoint.name / file.relative_to(checkpoint)
                    target.parent.mkdir(parents=True, exist_ok=True)
                    file.download(target)


def _move_best(checkpoint: Path) -> None:
    """Let Trainer find the best checkpoint here: it noted a folder of another machine, or one from
    which the run was moved."""
    place = checkpoint / LAST_FILE
    state = json.loads(place.read_text(encoding="utf-8"))
    best = state.get("best_model_checkpoint")
    if best and best != str(checkpoint.parent / Path(best).name):
        state["best_model_checkpoint"] = str(checkpoint.parent / Path(best).name)
        place.write_text(json.dumps(state, indent=2) + "\n", encoding="utf-8")


def _is_whole(path: Path) -> bool:
    try:
        json.loads((path / LAST_FILE).read_text(encoding="utf-8"))
    except (FileNotFoundError, ValueError):
        return False
    return True


def _step(path: Path) -> int:
    return int(path.name.split("-")[1])
