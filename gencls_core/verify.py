"""Whether a run is whole: everything committed against its digest, and what does not belong there.

    missing    promised by a commit record or needed by what is there, and gone
    torn       there, and not as it was committed
    orphan     left by a killed writer: temporary files, a shard that no record vouches for
    foreign    nothing that gencls writes there: named, never removed
    note       of no harm: an owner at work, an unfinished training, a file beside the run's folders

A run is whole when nothing but notes is found. Repairing removes what is torn or an orphan, and the
records of what is missing, so that the next run makes that again and nothing else.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import asdict, dataclass, replace
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from gencls_core.datasets.dataset import EXAMPLE_SCHEMA, Dataset
from gencls_core.datasets.writing import row_frame
from gencls_core.dropping import CHANGE
from gencls_core.errors import DataError, StoreError
from gencls_core.ownership import _Other, own
from gencls_core.remote_path import Location, store_failure
from gencls_core.run import CLASS_LM, RunDirectory, system_of
from gencls_core.scoring_job import model_names
from gencls_core.selection import RECORD, part_name
from gencls_core.storage import (
    TEMPORARY_NAME,
    children,
    files_below,
    read_json,
    remove_tree,
)
from gencls_core.systems.registry import MODEL_SYSTEMS
from gencls_core.verify_findings import Checked, Finding
from gencls_core.verify_models import check_bases, check_models
from gencls_core.verify_scores import check_scores

__all__ = ["Verification", "repair", "verify"]

_TEMPORARY = re.compile(rf"{TEMPORARY_NAME.pattern}|\.shared-[0-9a-f]{{8}}|\.incoming-dataset")
_ADDED = re.compile(r"(train|validation|test)-[0-9a-f]{16}\.parquet")
_REPORT = ("report.json", "report.md", "report.html", "predictions.parquet")
_OWN_FILES = ("run.json", "events.jsonl")
_FOLDERS = (
    "dataset", "base", "models", "systems", "scores", "validation-scores", "report",
    "evaluations", "candidates", ".owners",
)  # fmt: skip


@dataclass(frozen=True)
class Verification:
    """What was looked at and what was found."""

    models: int
    shards: int
    datasets: int
    """How many of each were checked against their digests."""
    findings: tuple[Finding, ...]
    removed: tuple[str, ...] = ()
    """What repairing took away."""

    @property
    def whole(self) -> bool:
        """Say whether nothing but notes was found."""
        return all(finding.kind == "note" for finding in self.findings)

    def to_json(self) -> dict[str, Any]:
        """Give everything as JSON values."""
        values = asdict(self)
        for finding in values["findings"]:
            del finding["remove"]
        return {"whole": self.whole, **values}


def verify(run: RunDirectory) -> Verification:
    """Check a run and its evaluations; changes nothing.

    Every byte that is committed is read once. What is being written meanwhile may be found as an
    orphan: check a run at rest.

    Raises:
        StoreError: when it is not a run directory, or the object store does not answer.
    """
    manifest = run.manifest()
    classes: tuple[str, ...] = tuple(manifest["classes"])
    files = files_below(run.path)
    dataset, found = _dataset(run)
    total = Checked(datasets=1, findings=[*_strangers(files), *_owners(run), *found])
    total.add(check_bases(run, files))
    asked = manifest.get("systems", [CLASS_LM])
    for system in _trained_systems(files, asked):
        names = model_names(MODEL_SYSTEMS[system], classes)
        total.add(check_models(run, files, names, system, wanted=system in asked))
    total.add(_scores_of(run, files, classes, dataset, dataset))
    for name, part in _parts(files, "candidates"):
        found_there = _candidate(run.path / "candidates" / name, part, classes, dataset)
        total.add(found_there, f"candidates/{name}/")
    total.findings += _lost_parts(run, manifest, files)
    for name, part in _parts(files, "evaluations"):
        prefix = f"evaluations/{name}/"
        if not part:
            total.findings.append(Finding("foreign", prefix.rstrip("/"), "no evaluation"))
            continue
        evaluation = RunDirectory(run.path / "evaluations" / name)
        texts, found = _dataset(evaluation)
        checked = Checked(datasets=1, findings=[*_strangers(part), *_owners(evaluation), *found])
        if "run.json" not in part:
            problem = "the evaluation has not come to its end"
            checked.findings.append(Finding("missing", "run.json", problem))
        checked.add(_scores_of(evaluation, part, _classes_of(evaluation, classes), texts, dataset))
        total.add(checked, prefix)
    return Verification(
        models=total.models,
        shards=total.shards,
        datasets=total.datasets,
        findings=tuple(sorted(set(total.findings), key=lambda f: (f.place, f.kind, f.problem))),
    )


def _parts(files: Mapping[str, int], folder: str) -> Iterator[tuple[str, dict[str, int]]]:
    """Give each subfolder of a folder with its files, named from it on, and their sizes."""
    for name in sorted({name.split("/")[1] for name in files if name.startswith(f"{folder}/")}):
        prefix = f"{folder}/{name}/"
        yield name, {p.removeprefix(prefix): n for p, n in files.items() if p.startswith(prefix)}


def _classes_of(evaluation: RunDirectory, classes: tuple[str, ...]) -> tuple[str, ...]:
    """Give the classes of an evaluation: the run may have others by now."""
    try:
        return tuple(evaluation.manifest()["classes"])
    except (StoreError, KeyError):
        return classes


def _candidate(
    path: Location, files: dict[str, int], classes: Sequence[str], dataset: Dataset | None
) -> Checked:
    """Check what a recipe was judged by, and its models where they are still there."""
    checked, candidate = Checked(), RunDirectory(path)
    if "dataset/dataset.json" in files:
        part, found = _dataset(candidate)
        checked.datasets += 1
        checked.findings += found
        dataset = part or dataset
    elif "-part-" in path.name:
        dataset = None  # judged by a part of the train texts
    for system in _trained_systems(files, ()):
        names = model_names(MODEL_SYSTEMS[system], classes)
        checked.add(check_models(candidate, files, names, system, wanted=False))
    checked.add(_scores_of(candidate, files, classes, None, dataset))
    return checked


def _lost_parts(
    run: RunDirectory, manifest: Mapping[str, Any], files: Mapping[str, int]
) -> Iterator[Finding]:
    """Find what a cross-validated calibration rests on and that is not there any more."""
    made = manifest.get("selection") or {}
    for number in range(made.get("parts", 0)):
        place = f"candidates/{part_name(number)}/dataset/dataset.json"
        if place not in files:
            yield Finding("missing", place, "a part of the cross-validation")
    for folder, models in made.get("part_models", {}).items():
        place = f"candidates/{folder}/{RECORD}"
        try:
            there = read_json(run.path / place)["models"] if place in files else None
        except (ValueError, KeyError, TypeError):
            there = None
        if there != models:
            problem = "what a part of the cross-validation came to is lost, or of another choice"
            yield Finding("missing", place, problem)


def _trained_systems(files: Iterable[str], wanted: Sequence[str]) -> list[str]:
    """Give the systems that have models, or should: those asked for, and those that are there."""
    there = {name.split("/")[1] for name in files if name.startswith("systems/")}
    if any(name.startswith("models/") for name in files):
        there.add(CLASS_LM)
    trained = [name for name, system in MODEL_SYSTEMS.items() if system.objective is not None]
    return [name for name in trained if name in there or name in wanted]


def repair(run: RunDirectory) -> Verification:
    """Check a run while owning it, and remove what is torn or an orphan.

    Raises:
        OwnershipError: when somebody is at work on the run or on one of its evaluations.
        StoreError: as `verify`.
    """
    run.manifest()
    with ExitStack() as stack:
        for folder in (run.path, *children(run.path / "evaluations")):
            stack.enter_context(own(folder, "verify --repair"))
        found = verify(run)
        removed = [name for finding in found.findings for name in finding.remove]
        for name in removed:
            if name.endswith("/"):
                remove_tree(run.path / name.rstrip("/"))
            else:
                (run.path / name).unlink(missing_ok=True)
    return replace(found, removed=tuple(dict.fromkeys(removed)))


def _strangers(files: Iterable[str]) -> Iterator[Finding]:
    """Find temporary files anywhere but among scores, and what is no part of a run."""
    told = set()
    for name in files:
        parts = name.split("/")
        depth = next((n for n, part in enumerate(parts) if _TEMPORARY.fullmatch(part)), None)
        if parts[0] == "evaluations" and len(parts) > 2:
            continue
        if depth is not None and parts[0] != ".owners":
            place = "/".join(parts[: depth + 1])
            if place not in told:
                told.add(place)
                remove = place if depth == len(parts) - 1 else f"{place}/"
                yield Finding("orphan", place, "left by a writer that was killed", (remove,))
        elif parts[0] in _FOLDERS and len(parts) > 1:
            known = {
                "dataset": r"(dataset\.json|(train|validation|test)(-[0-9a-f]{16})?\.parquet)",
                "report": "|".join(map(re.escape, _REPORT)),
                "base": r"[0-9a-f]{16}/.+",
                "models": r"[^/]+/.+",
                "systems": rf"({'|'.join(MODEL_SYSTEMS)})/[^/]+/.+",
                "evaluations": r"[0-9a-f]{16}/.+",
                "candidates": r"[^/]+/(candidate\.json"
                r"|(dataset|models|systems|validation-scores)/.+)",
            }.get(parts[0], ".+")
            if not re.fullmatch(known, "/".join(parts[1:])):
                yield Finding("foreign", name, "nothing that gencls writes there")
        elif parts[0] == CHANGE:
            problem = "a class that is being taken out: the run's next owner brings it to its end"
            yield Finding("note", CHANGE, problem)
        elif name not in _OWN_FILES:
            yield Finding("note", parts[0], "beside the run's own files; not looked at")


def _owners(run: RunDirectory) -> Iterator[Finding]:
    """Name who owns the run, or died owning it: the next owner clears that away itself."""
    for name in files_below(run.path / ".owners"):
        if not name.endswith(".owner"):
            continue
        try:
            words = read_json(run.path / ".owners" / name)
            who = f"{words['what']}, process {words['pid']} on {words['host']}"
            # How long it has been silent only its storage's clock tells, for which one must write.
            dead = _Other(name, words, silent=0.0).dead
        except (FileNotFoundError, ValueError, KeyError, TypeError):
            who, dead = "unreadable", False
        # Repairing owns the run itself while it looks.
        if not who.startswith("verify"):
            state = "is at work, or died and will be replaced"
            if dead:
                state = "has died; the next run takes its place"
            problem = f"a lease ({who}): that process {state}"
            yield Finding("note", f".owners/{name}", problem)


def _dataset(run: RunDirectory) -> tuple[Dataset | None, list[Finding]]:
    """Compute the fingerprints of a dataset anew; gives it where it could be opened."""
    remove = ("dataset/",)
    try:
        dataset = run.dataset()
    except DataError as error:
        problem = str(error).splitlines()[0].removeprefix(f"{run.dataset_path}: ")
        return None, [Finding("missing", "dataset/dataset.json", problem, remove)]
    except (ValueError, KeyError, TypeError) as error:
        return None, [Finding("torn", "dataset/dataset.json", f"unreadable: {error}", remove)]
    findings = []
    named = {part.file for split in dataset.splits for part in dataset.parts(split)}  # type: ignore[arg-type]
    for child in children(run.dataset_path):
        if _ADDED.fullmatch(child.name) and child.name not in named:
            place = f"dataset/{child.name}"
            problem = "left by a class that came or went"
            findings.append(Finding("orphan", place, problem, (place,)))
    for split, info in dataset.splits.items():
        place = f"dataset/{split}.parquet"
        rows, digest = 0, hashlib.sha256()
        try:
            for batch in dataset.iter_batches(split, EXAMPLE_SCHEMA.names):  # type: ignore[arg-type]
                rows += batch.num_rows
                columns = (batch.column(name).to_pylist() for name in EXAMPLE_SCHEMA.names)
                for example_id, text, label in zip(*columns, strict=True):
                    digest.update(row_frame(example_id, text, label))
        except FileNotFoundError:
            findings.append(Finding("missing", place, "the split's file is gone", remove))
        except (OSError, pa.ArrowException) as error:
            findings.append(Finding("torn", place, _first_line(error), remove))
        else:
            if rows != info.rows or digest.hexdigest() != info.fingerprint:
                problem = f"{rows:,} rows that are not the {info.rows:,} of dataset.json"
                findings.append(Finding("torn", place, problem, remove))
    return dataset, findings


def _scores_of(
    run: RunDirectory,
    files: dict[str, int],
    classes: Sequence[str],
    dataset: Dataset | None,
    calibration: Dataset | None,
) -> Checked:
    """Check both score stores and the report; `calibration` has the validation texts."""
    checked = Checked()
    reported = any(name.startswith("report/") for name in files)
    main, abandoned = _recipes(run)
    for folder, texts, split in (
        ("scores", dataset, "test"),
        ("validation-scores", calibration, "validation"),
    ):
        rows = None if texts is None or split not in texts.splits else texts.splits[split].rows
        below = {n[len(folder) + 1 :]: s for n, s in files.items() if n.startswith(f"{folder}/")}
        found = check_scores(
            run.path / folder,
            {name: size for name, size in below.items() if not _is_temporary(name)},
            classes,
            rows,
            expected=main if reported and folder == "scores" else None,
            abandoned=abandoned,
        )
        checked.add(found, f"{folder}/")
    if reported:
        checked.findings += _report(run, files)
    return checked


def _recipes(run: RunDirectory) -> tuple[str | None, frozenset[str]]:
    """Give the system that the run's report is of, and those of recipes that it has left.

    Where its `run.json` is gone or torn, nothing is expected of it.
    """
    try:
        manifest = run.manifest()
    except StoreError:
        return None, frozenset()
    asked = manifest.get("systems", [CLASS_LM])
    return system_of(manifest), frozenset(MODEL_SYSTEMS).difference(asked)


def _report(run: RunDirectory, files: dict[str, int]) -> Iterator[Finding]:
    """Check that the report can be read: what it says follows from the scores."""
    for name in _REPORT:
        place = f"report/{name}"
        if place not in files:
            yield Finding("missing", place, "gone: `gencls report` writes it anew")
    for name, read in (("report.json", json.loads), ("predictions.parquet", _parquet_rows)):
        if f"report/{name}" in files:
            try:
                read((run.report_path / name).read_bytes())
            except (ValueError, OSError, pa.ArrowException) as error:
                failure = store_failure(run.path, error)
                if failure is not None:
                    raise failure from error
                yield Finding("torn", f"report/{name}", _first_line(error), (f"report/{name}",))


def _parquet_rows(content: bytes) -> int:
    return int(pq.read_table(pa.BufferReader(content)).num_rows)


def _is_temporary(name: str) -> bool:
    return any(_TEMPORARY.fullmatch(part) for part in name.split("/"))


def _first_line(error: Exception) -> str:
    if isinstance(error, StoreError):
        raise error
    return f"unreadable: {str(error).strip().splitlines()[0]}"
