"""What is compared: every system in some run directories, its repetitions put together.

A run directory holds the scores of one or more systems. Scores of the same system made with the
same settings but other seeds are repetitions of it; made with other settings they are another
system, named after the settings that differ; made from other numbers of train texts they are
another point of its learning curve.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from gencls_core.class_models import ClassModel
from gencls_core.config import RunConfig, Section, SystemsConfig
from gencls_core.datasets.dataset import Dataset
from gencls_core.errors import DataError, StoreError, UsageError
from gencls_core.outcomes import Outcomes
from gencls_core.remote_path import uri_of
from gencls_core.report.inference import Inference, infer, origin_of
from gencls_core.run import CLASS_LM, RunDirectory
from gencls_core.score_matrix import FloatArray
from gencls_core.scoring_job import ModelSystem
from gencls_core.storage import digest_of
from gencls_core.systems.registry import MODEL_SYSTEMS

__all__ = ["Condition", "Results", "SystemRun", "read_results"]

_NOT_A_SETTING = {
    "split_seed", "sample_seed", "seed", "max_samples", "shard_size", "tokens_per_batch",
    "per_token", "gradient_checkpointing", "data_dir", "data",
}  # fmt: skip
"""Seeds and sizes make repetitions and points of a curve; the others change no result."""


@dataclass(frozen=True)
class SystemRun:
    """One system as one run scored it."""

    run: RunDirectory
    system: str
    quantity: str
    seeds: tuple[int, int]
    """Of the sample of train texts, and of the training."""
    sample: int | None
    """Train texts per class that were asked for; None for all."""
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
    """None where training is part of the scoring."""
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


def read_results(runs: Sequence[RunDirectory]) -> Results:
    """Read the committed scores of every system in some runs.

    Raises:
        DataError: when the test texts have no label or all the same one.
        StoreError: when a directory is no run, or has no scores.
        UsageError: when the runs were not scored on the same texts, or the same scores of the same
            system stand in two runs with different meanings.
    """
    first: Inference | None = None
    found: list[SystemRun] = []
    notes: dict[str, list[str]] = {}
    for run in runs:
        manifest = run.manifest()
        systems = [name for name in run.scores.systems() if run.scores.records(name)]
        if not systems:
            raise StoreError.of(
                "a run without scores",
                place=run.path,
                expected="a finished `gencls run`",
                remedy="run its command again: it goes on where it was",
            )
        for system in systems:
            inference = infer(run, system=system)
            if first is None:
                first = inference
                _require_labels(run, inference)
            _require_same_texts(runs[0], first, run, inference)
            found.append(_system_run(run, system, inference))
        told = set(run.dataset().warnings)
        for note in manifest.get("notes", []):
            if note not in told:
                notes.setdefault(note, []).append(uri_of(run.path))
    assert first is not None
    dataset = runs[0].dataset()
    conditions = tuple(_conditions(_without_copies(found), first))
    labelled = int((first.matrix.label_codes >= 0).sum())
    told_once = tuple(
        note if len(of) == len(runs) else f"{', '.join(of)}: {note}" for note, of in notes.items()
    )
    return Results(dataset, first.matrix.classes, labelled, conditions, told_once)


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
        and _test_fingerprint(run) == _test_fingerprint(other)
    )
    if not same:
        raise UsageError.of(
            "these runs were not scored on the same test texts",
            place=other.path,
            found=f"{len(found.matrix):,} texts, test split {_test_fingerprint(other)[:12]}",
            expected=f"{len(expected.matrix):,} texts, test split {_test_fingerprint(run)[:12]}, "
            f"as in {uri_of(run.path)}",
            remedy="compare runs with the same test set; the same --split-seed where it is cut "
            "from the data",
        )


def _test_fingerprint(run: RunDirectory) -> str:
    return run.dataset().split("test").fingerprint


def _system_run(run: RunDirectory, system: str, inference: Inference) -> SystemRun:
    manifest = run.manifest()
    config, dataset = RunConfig.model_validate(manifest["config"]), run.dataset()
    records = run.scores.records(system)
    trained = [split for split in ("train", "validation") if split in dataset.splits]
    rows = sum(dataset.splits[split].rows for split in trained)
    calibrated = inference.calibrated is not None
    chosen = inference.calibrated if inference.calibrated is not None else inference.log_posterior
    return SystemRun(
        run=run,
        system=system,
        quantity=inference.matrix.quantity,
        seeds=(config.data.seed_of_sample, config.training.seed),
        sample=config.data.max_samples,
        train_texts=rows / len(inference.matrix.classes),
        settings=_settings(config, system, inference),
        score_digest=digest_of([[r.class_name, r.index, r.count, r.sha256] for r in records]),
        log_posterior=chosen,
        uncalibrated_accuracy=_accuracy(inference) if calibrated else None,
        train_seconds=_train_seconds(run, manifest, system),
        scoring_seconds=sum(record.seconds for record in records),
    )


def _settings(config: RunConfig, system: str, inference: Inference) -> dict[str, Any]:
    """Give every setting that a system's scores and posteriors depend on."""
    sections: list[Section] = [config.data]
    settings: dict[str, Any] = {}
    known = MODEL_SYSTEMS.get(system)
    if known is not None:
        sections += [config.model, config.sequence]
        if known.objective is not None:
            sections.append(config.training)
        if system == CLASS_LM:
            sections.append(config.scoring)
        settings["precision"] = config.compute.precision
        settings |= _settings_of_systems(config.systems, known)
    if system == "setfit":
        settings["setfit_model"] = config.systems.setfit_model
    if inference.matrix.is_likelihood:
        sections.append(config.posterior)
    for section in sections:
        values = section.model_dump(mode="json")
        settings |= {name: v for name, v in values.items() if name not in _NOT_A_SETTING}
    if known is not None and known.base == "masked":
        del settings["model"], settings["revision"]
    return settings


def _settings_of_systems(systems: SystemsConfig, known: ModelSystem) -> dict[str, Any]:
    names: list[str] = []
    if known.base == "masked":
        names += ["masked_model", "masked_likelihood"]
        names += ["mask_samples"] if systems.masked_likelihood == "sampled" else []
    if known.objective is None:
        names += ["prompts", "class_words"]
    return systems.model_dump(mode="json", include=set(names))


def _accuracy(inference: Inference) -> float:
    codes = inference.matrix.label_codes
    right = inference.log_posterior.argmax(axis=1) == codes
    return float(right[codes >= 0].mean())


def _train_seconds(run: RunDirectory, manifest: dict[str, Any], system: str) -> float | None:
    """Give the training of all models of a system; None where it is part of scoring, or none is."""
    known = MODEL_SYSTEMS.get(system)
    if known is None or known.objective is None:
        return None
    origin = origin_of(run, manifest)
    names = manifest["classes"] if known.model_per_class else [""]
    models = [ClassModel.find(origin.model_path(name, system)) for name in names]
    return sum(model.training.seconds for model in models if model is not None) or None


def _without_copies(found: list[SystemRun]) -> Iterator[SystemRun]:
    """Leave out scores that stand in several runs: a baseline of the same texts, for example."""
    seen: set[tuple[str, str]] = set()
    for run in found:
        if (run.system, run.score_digest) not in seen:
            seen.add((run.system, run.score_digest))
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
                f"--split-seed {run.seeds[0]} and --seed {run.seeds[1]}",
                remedy="leave one of them out",
            )
