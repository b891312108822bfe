"""Whether the models of a run are whole: every file against the SHA-256 of its commit record."""

from __future__ import annotations

import re
from collections.abc import Sequence

from gencls_core.class_models import COMMIT_NAME, ClassModel
from gencls_core.model_source import STAGED_NAME
from gencls_core.remote_path import Location
from gencls_core.run import CLASS_LM, RunDirectory
from gencls_core.storage import file_sha256, read_json
from gencls_core.verify_findings import Checked, Finding, Kind, folders_below

__all__ = ["check_bases", "check_models"]


def check_bases(run: RunDirectory, files: dict[str, int]) -> Checked:
    """Check every base model that was copied or made into the run, file by file."""
    checked = Checked()
    for folder in sorted(folders_below(files, "base")):
        place = f"base/{folder}"
        if re.fullmatch(r"[0-9a-f]{16}", folder) is None:
            continue  # a temporary folder, or a stranger: told already
        try:
            wanted: dict[str, str] = read_json(run.path / place / STAGED_NAME)["files"]
        except FileNotFoundError:
            problem = "a base model that was not copied to its end"
            checked.findings.append(Finding("orphan", place, problem, (f"{place}/",)))
            continue
        except (ValueError, KeyError, TypeError):
            checked.findings.append(
                Finding("torn", f"{place}/{STAGED_NAME}", "unreadable", (f"{place}/",))
            )
            continue
        checked.models += 1
        checked.findings += _weights(run.path, place, wanted, STAGED_NAME, files)
    return checked


def check_models(
    run: RunDirectory,
    files: dict[str, int],
    classes: Sequence[str],
    system: str = CLASS_LM,
    *,
    wanted: bool = True,
) -> Checked:
    """Check every model of a system, file by file.

    Args:
        run: the run that trained them.
        files: what lies in it, with sizes in bytes.
        classes: the classes that have a model each; one empty name for a model of all.
        system: whose models.
        wanted: whether the same command again would make what is absent; models of a recipe that
            the run has left may be incomplete.
    """
    checked = Checked()
    below = "models" if system == CLASS_LM else f"systems/{system}"
    folders = {run.model_path(name, system).name: name for name in classes}
    there = folders_below(files, below)
    whole = set()
    for folder, name in folders.items():
        place, commit = f"{below}/{folder}", f"{below}/{folder}/{COMMIT_NAME}"
        if commit not in files:
            cut_short = (f"{place}/",) if folder in there else ()
            problem = f"no committed model of {_whom(name)}"
            kind: Kind = "missing" if wanted or cut_short else "note"
            checked.findings.append(Finding(kind, place, problem, cut_short))
            continue
        try:
            record = read_json(run.path / commit)
            of_files, of_class = record["files"], record["class"]
        except (ValueError, KeyError, TypeError):
            checked.findings.append(Finding("torn", commit, "unreadable record", (f"{place}/",)))
            continue
        checked.models += 1
        found = _weights(run.path, place, of_files, COMMIT_NAME, files)
        broken = any(finding.kind != "foreign" for finding in found)
        if of_class != name:
            found.append(Finding("foreign", place, f"the model of {_whom(of_class)}"))
        elif not broken and ClassModel.find(run.path / place) is None:
            found.append(Finding("torn", commit, "a record that cannot be used", (f"{place}/",)))
        elif not broken:
            whole.add(folder)
        checked.findings += found
    for folder in sorted(there - folders.keys()):
        place, training = f"{below}/{folder}", re.fullmatch(r"\.training-(.+)-[0-9a-f]{16}", folder)
        if training is not None and training[1] in whole:
            problem = "checkpoints of a training that was committed"
            checked.findings.append(Finding("orphan", place, problem, (f"{place}/",)))
        elif training is not None:
            problem = "an unfinished training: the same run goes on from it"
            checked.findings.append(Finding("note", place, problem))
        elif not folder.startswith("."):
            checked.findings.append(Finding("foreign", place, "the model of no class of the run"))
    return checked


def _whom(class_name: str) -> str:
    return f"class {class_name!r}" if class_name else "all classes"


def _weights(
    run: Location, place: str, wanted: dict[str, str], mark: str, files: dict[str, int]
) -> list[Finding]:
    """Compare a model folder with the SHA-256 of each of its files."""
    found = []
    for name, sha256 in wanted.items():
        file = f"{place}/{name}"
        if file not in files:
            found.append(Finding("missing", file, "the file is gone", (f"{place}/",)))
        elif file_sha256(run / file) != sha256:
            problem = f"{files[file]:,} bytes that are not those that were committed"
            found.append(Finding("torn", file, problem, (f"{place}/",)))
    for file in sorted(name for name in files if name.startswith(f"{place}/")):
        if file[len(place) + 1 :] not in {mark, *wanted}:
            found.append(Finding("foreign", file, "not in the record of the folder"))
    return found
