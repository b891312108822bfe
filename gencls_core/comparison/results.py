"""What is compared: every system in some run directories, its repetitions put together.

A run directory holds the scores of one or more systems. Scores of the same system made with the
same settings but other seeds are repetitions of it; made with other settings they are another
system, named after the settings that differ; made from other numbers of train texts they are
another point of its learning curve.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from gencls_core.class_models import ClassModel
from gencls_core.comparison.same_texts import require_same_texts, with_other_texts
from gencls_core.comparison.settings import settings_of
from gencls_core.config import RunConfig
from gencls_core.config_parsing import parse_run_config
from gencls_core.datasets.dataset import Dataset
from gencls_core.errors import DataError, StoreError, UsageError
from gencls_core.outcomes import Outcomes
from gencls_core.remote_path import uri_of
from gencls_core.report.inference import Inference, infer, origin_of
from gencls_core.run import RunDirectory, recorded_training
from gencls_core.score_matrix import FloatArray
from gencls_core.scores import ShardRecord
from gencls_core.scoring_job import BACKGROUND, model_names
from gencls_core.storage import digest_of
from gencls_core.systems.registry import MODEL_SYSTEMS, UNTRAINED

__all__ = ["Condition", "Results", "SystemRun", "read_results"]


@dataclass(frozen=True)
class SystemRun:
    """One system as one run scored it."""

    run: RunDirectory
    system: str
    quantity: str
    seeds: tuple[int, int]
    """Of the sample of train texts, and of the training."""
    sample: int | None
    """Train texts per class that were asked for; None for all, and where none are learned from."""
    train_texts: float
    """Mean number of train texts per class, those held out of training included."""
    settings: dict[str, Any]
    """Every setting that makes it another system, by its name."""
    score_digest: str
    """Names the scores: equal where they are the same files' content."""
    log_posterior: FloatArray
    """[N, C] nats; calibrated where the run held texts out for that."""
    uncalibrated_accuracy: float | None
    train_seconds: float | None
    """None where nothing is trained."""
    scoring_seconds: float
    """For all test texts under all classes."""


@dataclass(frozen=True)
class Condition:
    """A system with certain settings, trained on so many texts: one or more repetitions."""

    name: str
    system: str
    sample: int | None
    runs: tuple[SystemRun, ...]
    outcomes: Outcomes

    @property
    def train_texts(self) -> float:
        """Mean train texts per class over the repetitions."""
        return sum(run.train_texts for run in self.runs) / len(self.runs)


@dataclass(frozen=True)
class Results:
    """Everything to compare, on one set of test texts."""

    dataset: Dataset
    classes: tuple[str, ...]
    num_texts: int
    """Labelled test texts."""
    conditions: tuple[Condition, ...]
    notes: tuple[str, ...]


def read_results(
    runs: Sequence[RunDirectory], systems: Sequence[Collection[str] | None] = ()
) -> Results:
    """Read the committed scores of systems in some runs.

    Args:
        runs: run directories.
        systems: for each run the systems that are compared; None for all that it has whole.
            Default: all of all.

    Raises:
        DataError: when the test texts have no label or all the same one.
        StoreError: when a directory is no run, or has no scores.
        UsageError: when the runs were not scored on the same texts, or the same scores of the same
            system stand in two runs with different meanings.
    """
    first: Inference | None = None
    found: list[SystemRun] = []
    notes = _Notes(runs)
    for run, chosen in zip(runs, systems or [None] * len(runs), strict=True):
        wanted = _systems_of(run, chosen)
        require_same_texts([runs[0], run])
        for system in wanted:
            try:
                # Systems are compared as they are alone, also where a run's report has another.
                inference = infer(run, system=system, ensemble="none")
            except StoreError:
                if chosen is not None or system == run.system:
                    raise
                # Begun once, and not asked for now: no reason to refuse the rest.
                notes.add(run, f"{system} is left out: not every text was scored.")
                continue
            if first is None:
                first = inference
                _require_labels(run, inference)
            _require_same_texts(runs[0], first, run, inference)
            found.append(_system_run(run, system, inference))
        told = runs[0].dataset().warnings
        for note in run.manifest().get("notes", []):
            if note not in told:
                notes.add(run, note)
    assert first is not None
    conditions = tuple(_conditions(_without_copies(found), first))
    return Results(
        dataset=runs[0].dataset(),
        classes=first.matrix.classes,
        num_texts=int((first.matrix.label_codes >= 0).sum()),
        conditions=conditions,
        notes=notes.told(),
    )


def _systems_of(run: RunDirectory, chosen: Collection[str] | None) -> list[str]:
    run.manifest()
    names = [name for name in run.scores.systems() if chosen is None or name in chosen]
    names = [name for name in names if name != BACKGROUND and run.scores.records(name)]
    if not names:
        raise StoreError.of(
            "a run without scores",
            place=run.path,
            expected="a finished `gencls run`",
            remedy="run its command again: it goes on where it was",
        )
    return names


class _Notes:
    """What runs say of themselves; what all of them say is told once."""

    def __init__(self, runs: Sequence[RunDirectory]) -> None:
        self._count = len(runs)
        self._runs: dict[str, list[str]] = {}

    def add(self, run: RunDirectory, note: str) -> None:
        """Take a note of a run."""
        of_note = self._runs.setdefault(note, [])
        if uri_of(run.path) not in of_note:
            of_note.append(uri_of(run.path))

    def told(self) -> tuple[str, ...]:
        """Give all notes, with the runs that they concern where these are not all."""
        return tuple(
            note if len(of_note) == self._count else f"{', '.join(of_note)}: {note}"
            for note, of_note in self._runs.items()
        )


def _require_labels(run: RunDirectory, inference: Inference) -> None:
    codes = inference.matrix.label_codes
    present = sorted(set(codes[codes >= 0].tolist()))
    if len(present) < 2:
        names = [inference.matrix.classes[code] for code in present]
        raise DataError.of(
            "the test texts cannot tell systems apart",
            place=run.dataset_path,
            found=f"labels of {', '.join(names) or 'no class'} only",
            expected="labelled texts of two classes or more",
            remedy="a test set that holds all classes",
        )


def _require_same_texts(
    run: RunDirectory, expected: Inference, other: RunDirectory, found: Inference
) -> None:
    same = (
        found.matrix.classes == expected.matrix.classes
        and found.matrix.example_ids.equals(expected.matrix.example_ids)
        and (found.matrix.label_codes == expected.matrix.label_codes).all()
    )
    if not same:
        raise with_other_texts(run, other)


def _system_run(run: RunDirectory, system: str, inference: Inference) -> SystemRun:
    manifest = run.manifest()
    config, dataset = _config_of(run, manifest, system), run.dataset()
    records = run.scores.records(system)
    calibrated = inference.calibrated is not None
    chosen = inference.calibrated if inference.calibrated is not None else inference.log_posterior
    return SystemRun(
        run=run,
        system=system,
        quantity=inference.matrix.quantity,
        seeds=(config.data.seed_of_sample, config.training.seed),
        sample=None if system in UNTRAINED else config.data.max_samples,
        train_texts=_train_texts(dataset, config.data.max_samples),
        settings=settings_of(
            config,
            system,
            inference.matrix,
            dataset.split("train").rows,
            recorded_training(manifest, system),
        ),
        score_digest=digest_of([[r.class_name, r.index, r.count, r.sha256] for r in records]),
        log_posterior=chosen,
        uncalibrated_accuracy=_accuracy(inference) if calibrated else None,
        train_seconds=_train_seconds(run, manifest, system, records),
        scoring_seconds=sum(record.seconds for record in records),
    )


def _config_of(run: RunDirectory, manifest: dict[str, Any], system: str) -> RunConfig:
    """Give the settings that a system's scores were made with; mostly those of the run."""
    values = manifest.get("settings", {}).get(system, manifest["config"])
    return parse_run_config(values, place=uri_of(run.manifest_path))


def _train_texts(dataset: Dataset, sample: int | None) -> float:
    """Give the mean number of train texts per class, those held out of them included.

    Held-out texts that the data brings itself are not among those that were asked for.
    """
    rows = dataset.split("train").rows
    brought = sample is not None and rows >= sample * len(dataset.classes)
    if "validation" in dataset.splits and not brought:
        rows += dataset.split("validation").rows
    return rows / len(dataset.classes)


def _accuracy(inference: Inference) -> float:
    codes = inference.matrix.label_codes
    right = inference.log_posterior.argmax(axis=1) == codes
    return float(right[codes >= 0].mean())


def _train_seconds(
    run: RunDirectory, manifest: dict[str, Any], system: str, records: Sequence[ShardRecord]
) -> float | None:
    """Give the training of all models of a system; None where nothing is trained."""
    known = MODEL_SYSTEMS.get(system)
    if known is None:
        return sum(record.train_seconds for record in records)
    if known.objective is None:
        return None
    origin = origin_of(run, manifest)
    names = model_names(known, manifest["classes"])
    models = [ClassModel.find(origin.model_path(name, system)) for name in names]
    return sum(model.training.seconds for model in models if model is not None) or None


def _without_copies(found: list[SystemRun]) -> Iterator[SystemRun]:
    """Leave out repetitions with the same scores: a baseline that draws nothing, for example."""
    seen: set[tuple[str, int | None, str]] = set()
    for run in found:
        name = (run.system, run.sample, run.score_digest)
        if name not in seen:
            seen.add(name)
            yield run


def _conditions(found: Iterable[SystemRun], first: Inference) -> Iterator[Condition]:
    by_system: dict[str, dict[str, list[SystemRun]]] = {}
    for run in found:
        by_settings = by_system.setdefault(run.system, {})
        by_settings.setdefault(digest_of(run.settings), []).append(run)
    for system, by_settings in by_system.items():
        names = _names(system, [runs[0].settings for runs in by_settings.values()])
        for name, runs in zip(names, by_settings.values(), strict=True):
            by_sample: dict[int | None, list[SystemRun]] = {}
            for run in runs:
                by_sample.setdefault(run.sample, []).append(run)
            for sample, repeated in sorted(by_sample.items(), key=lambda item: item[0] or 10**12):
                _refuse_same_seeds(name, repeated)
                repeated.sort(key=lambda run: run.seeds)
                posteriors = [run.log_posterior for run in repeated]
                outcomes = Outcomes.of(posteriors, first.matrix.label_codes)
                yield Condition(name, system, sample, tuple(repeated), outcomes)


def _names(system: str, settings: list[dict[str, Any]]) -> list[str]:
    """Name variants of a system after the settings in which they differ."""
    keys = {key for one in settings for key in one}
    differing = [key for key in sorted(keys) if len({repr(one.get(key)) for one in settings}) > 1]
    if not differing:
        return [system] * len(settings)
    return [
        f"{system} ({', '.join(f'{key}={one.get(key)}' for key in differing)})" for one in settings
    ]


def _refuse_same_seeds(name: str, runs: list[SystemRun]) -> None:
    seen: dict[tuple[int, int], SystemRun] = {}
    for run in runs:
        other = seen.setdefault(run.seeds, run)
        if other is not run:
            raise UsageError.of(
                "two runs of the same system with the same settings and seeds",
                place=run.run.path,
                found=f"other scores of {name} than in {uri_of(other.run.path)}, with the same "
                f"--sample-seed {run.seeds[0]} and --seed {run.seeds[1]}",
                remedy="leave one of them out",
            )
