"""A folder per class with one text per .txt file.

train/positive/0_9.txt      <split>/<class>/*.txt
positive/0_9.txt            <class>/*.txt: the split `all`
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from gencls_core.config import DataConfig
from gencls_core.datasets.labels import label_name
from gencls_core.datasets.reading import file_digest, open_text, reading
from gencls_core.datasets.source import ALL, Example, Source, canonical_split
from gencls_core.errors import DataError
from gencls_core.storage import digest_of

__all__ = ["TextFolder", "is_text_folder"]

_UNLABELLED_FOLDERS = ("unsup", "unlabelled", "unlabeled")
_ORDER = (ALL, "train", "validation", "test")


def is_text_folder(folder: Path) -> bool:
    """Tell whether a folder holds .txt files in class folders."""
    return any(True for _ in folder.glob("*/*.txt")) or any(True for _ in folder.glob("*/*/*.txt"))


class TextFolder(Source):
    """A folder of class folders, perhaps below split folders.

    A text is a file without its last newlines; newlines are read as `\\n`.

    Raises:
        DataError: when two folders stand for one split.
    """

    def __init__(self, folder: Path, config: DataConfig, *, labelled: bool = True) -> None:
        self._folder = folder
        self._encoding = config.encoding
        self.name = folder.name
        self.description = f"folder {folder} of .txt files, a folder per class"
        self.classes = config.classes
        self._labels: dict[str, list[tuple[str | None, Path]]] = {}
        left_out: list[str] = []
        roots: dict[str, Path] = {}
        for child in _folders(folder):
            split = canonical_split(child.name)
            # A class may be called `test`: a split folder is one that has folders of texts.
            if split is not None and any(_has_texts(below) for below in _folders(child)):
                if split in roots:
                    raise DataError.of(
                        f"two folders stand for the {split} split",
                        place=folder,
                        found=f"{roots[split].name} and {child.name}",
                        remedy="remove or rename one",
                    )
                roots[split] = child
        for split, root in (roots or {ALL: folder}).items():
            left_out.extend(str(p.relative_to(folder)) for p in sorted(root.glob("*.txt")))
            classes = self._labels.setdefault(split, [])
            for child in _folders(root):
                unlabelled = child.name.lower() in _UNLABELLED_FOLDERS
                if (labelled and unlabelled) or not _has_texts(child):
                    left_out.append(f"{child.relative_to(folder)}/")
                else:
                    classes.append((label_name(child.name, config.classes), child))
        self.splits = tuple(split for split in _ORDER if split in self._labels)
        if left_out:
            more = ", …" if len(left_out) > 10 else ""
            self.warnings = (f"left out, not in a class: {', '.join(left_out[:10])}{more}",)

    def _files(self, split: str) -> Iterator[tuple[str | None, Path]]:
        for label, folder in self._labels[split]:
            for path in sorted(folder.glob("*.txt")):
                yield label, path

    def digest(self) -> str:
        return digest_of(
            {
                "layout": "text folder",
                "files": {
                    split: [
                        [label, path.name, file_digest(path)] for label, path in self._files(split)
                    ]
                    for split in self.splits
                },
                "encoding": self._encoding,
            }
        )

    def examples(self, split: str) -> Iterator[Example]:
        for row, (label, path) in enumerate(self._files(split)):
            with reading(path, self._encoding), open_text(path, self._encoding) as stream:
                text = stream.read()
            text = text.replace("\r\n", "\n").replace("\r", "\n").rstrip("\n")
            yield Example(text, label, None, row, str(path), None)


def _folders(folder: Path) -> list[Path]:
    return sorted(p for p in folder.iterdir() if p.is_dir() and not p.name.startswith("."))


def _has_texts(folder: Path) -> bool:
    return any(True for _ in folder.glob("*.txt"))
