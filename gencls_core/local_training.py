"""A run made in this process, without Ray: trained, its held-out texts scored.

What it leaves is a run directory as `gencls train` leaves it, with the same digests: `gencls
classify` takes it, and training the same again trains nothing. One model is trained after the
other, and memory is not planned: what does not fit fails.
"""

from __future__ import annotations

import contextlib
import random
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path

from gencls_core.class_models import ClassModel
from gencls_core.config import ResolvedTraining, RunConfig
from gencls_core.datasets.dataset import Dataset
from gencls_core.datasets.ingest import ingest
from gencls_core.datasets.source import Source
from gencls_core.digests import scratch_digest
from gencls_core.errors import ResourceError, StoreError, UsageError
from gencls_core.events import TrainingProgress
from gencls_core.model_source import ResolvedModel, is_scratch, resolve_model
from gencls_core.ownership import Lease, OwnershipError
from gencls_core.posterior import check_posterior
from gencls_core.precision import Precision, cpu_multiplies_bf16, resolve_precision
from gencls_core.prompts import check_prompts, prefixes_for
from gencls_core.run import RunDirectory
from gencls_core.run_folder import incoming_folder, owned
from gencls_core.run_manifest import manifest_of, previous_manifest
from gencls_core.scoring_job import ModelSystem, model_names, names_classes
from gencls_core.scratch import build_scratch_base, scratch_preset
from gencls_core.selection_report import SelectionReport
from gencls_core.shard_work import shard_work
from gencls_core.trained_run import LocalModels, main_system, model_digest, training_of
from gencls_core.training_task import TOKENS_PER_PASS, TrainingTask

__all__ = ["train_here"]


def train_here(
    config: RunConfig,
    source: Source,
    on_progress: Callable[[TrainingProgress], None] | None = None,
) -> RunDirectory:
    """Train the models of a recipe on texts, score those held out, and leave a run directory.

    What is committed there with the same texts and settings is not made again. Python's, NumPy's
    and torch's own random numbers go on as if nothing had happened.

    Args:
        config: where the run goes, and all settings; its data only says how many are held out.
        source: the texts.
        on_progress: called now and then while a model is trained.

    Raises:
        UsageError: when the recipe is still to be chosen, or prior or class words do not fit.
        DataError: when the texts cannot be used.
        ModelError: when the base model cannot be had.
        OwnershipError: when another process works in the run directory.
        TrainingError: when training cannot go on.
        ResourceError: when the GPU's memory does not suffice.
    """
    if config.recipe.recipe == "auto":
        raise UsageError.of(
            "a recipe is chosen by `gencls run` alone",
            found="recipe 'auto'",
            expected="'independent', 'conditional' or 'joint'",
            remedy="let `gencls run` choose one, and open the run with ClassifierRun",
        )
    run, began = RunDirectory(config.output_dir), time.perf_counter()
    with owned(run, "fit") as lease:
        prepared = _prepare(config, source, run)
        previous = previous_manifest(run)
        manifest, status = manifest_of(prepared, previous), "failed"
        run.write_manifest({**manifest, "status": "running"})
        try:
            with _randomness_kept():
                prepared.train(lease, on_progress)
            _score_held_out(prepared, lease)
            status = "finished"
        except OwnershipError:
            status = ""  # run.json is the new owner's
            raise
        except KeyboardInterrupt:
            status = "stopped"
            raise
        finally:
            seconds = round(time.perf_counter() - began, 2)
            if status:
                with contextlib.suppress(StoreError):
                    run.write_manifest({**manifest, "status": status, "seconds": seconds})
    return run


@dataclass(frozen=True)
class _Prepared:
    """A run, ready to be trained in this process."""

    config: RunConfig
    run: RunDirectory
    dataset: Dataset
    system: ModelSystem
    base: ResolvedModel
    device: str
    precision: Precision
    notes: tuple[str, ...]
    selection: SelectionReport | None = None

    @property
    def training(self) -> ResolvedTraining:
        return training_of(self.config, self.dataset, self.system)

    def train(self, lease: Lease, on_progress: Callable[[TrainingProgress], None] | None) -> None:
        """Train every model that is not committed with the wanted digest."""
        names = list(enumerate(model_names(self.system, self.dataset.classes)))
        tasks = [task for number, name in names if (task := self._task(number, name)) is not None]
        if not tasks:
            return
        import torch

        from gencls_core.training import train_class

        self.run.drop_report()
        for task in tasks:
            # Scores of a model that is about to be replaced must not outlive it.
            for store in (self.run.scores, self.run.validation_scores):
                for name in (task.class_name,) if task.class_name else task.classes:
                    store.drop(self.system.name, name)
            fence = lease.fence(f"train-{task.system}-{task.class_id}")
            try:
                train_class(replace(task.with_texts(self.dataset), fence=fence), on_progress)
            except torch.OutOfMemoryError as error:
                raise ResourceError.of(
                    f"training of {task.title} does not fit into the GPU",
                    found=str(error).splitlines()[0],
                    remedy="a smaller batch_size, lora_rank=8, or `gencls run`, which plans memory",
                ) from None

    def _task(self, number: int, name: str) -> TrainingTask | None:
        """Say what is to be trained for a class; None where that is committed."""
        import torch

        config, system = self.config, self.system
        digest = model_digest(config, self.dataset, system, self.base.digest, self.precision, name)
        destination = self.run.model_path(name, system.name)
        found = ClassModel.find(destination)
        if found is not None and found.digest == digest and not _is_torn(found):
            return None
        assert system.objective is not None, "every recipe trains something"
        return TrainingTask(
            class_name=name,
            class_id=number,
            digest=digest,
            base=self.base,
            texts=[],
            validation_texts=[],
            destination=destination,
            sequence=config.sequence,
            training=self.training,
            lora_rank=config.model.lora_rank,
            lora_alpha=config.model.lora_alpha,
            precision=self.precision,
            device=self.device,
            threads=torch.get_num_threads(),
            tokens_per_pass=TOKENS_PER_PASS[self.device],
            system=system.name,
            objective=system.objective,
            classes=self.dataset.classes,
            prefixes=prefixes_for(config.recipe, config.systems, self.dataset.classes),
            recipe=config.recipe,
        )


def _is_torn(model: ClassModel) -> bool:
    """Say whether a model's bytes have changed; one in an object store is checked when fetched."""
    return isinstance(model.path, Path) and bool(model.torn_files())


def _prepare(config: RunConfig, source: Source, run: RunDirectory) -> _Prepared:
    """Bring the texts into the run, when all that can be checked has been."""
    import torch

    system, name = main_system(config), config.model.model
    if is_scratch(name):
        scratch_preset(name, "causal")
    else:
        resolve_model(config.model)
    device = "cuda" if torch.cuda.is_available() else "cpu"
    bf16 = cpu_multiplies_bf16() if device == "cpu" else None
    precision, note = resolve_precision(config.compute.precision, device, bf16=bf16)
    with incoming_folder(run) as incoming:
        dataset = ingest(config.data, incoming, reuse=run.dataset_path, source=source)
        if source.classes is not None and dataset.classes != source.classes:
            # A class came or went since: whoever fits wants the classes of these texts.
            dataset = ingest(config.data, incoming, source=source)
        check_posterior(config.posterior, dataset.classes, dataset.prior_counts)
        if names_classes(system):
            check_prompts(config.systems, dataset.classes)
        if dataset.path != run.dataset_path:
            run.adopt_dataset(incoming)
            dataset = replace(dataset, path=run.dataset_path)
    return _Prepared(
        config=config,
        run=run,
        dataset=dataset,
        system=system,
        base=_base(config, dataset, run),
        device=device,
        precision=precision,
        notes=(*((note,) if note else ()), *dataset.warnings),
    )


def _base(config: RunConfig, dataset: Dataset, run: RunDirectory) -> ResolvedModel:
    """Find the base model, or make it from scratch."""
    name = config.model.model
    if not is_scratch(name):
        return resolve_model(config.model)
    digest = scratch_digest(config.model, config.training, dataset)
    path = run.base_path / digest[:16]
    if ResolvedModel.of_staged(name, path) is None:
        build_scratch_base(name, dataset.path, config.training.seed, path)
    made = ResolvedModel.of_staged(name, path)
    assert made is not None, "it was published, or making it raised"
    return replace(made, digest=digest)


def _score_held_out(prepared: _Prepared, lease: Lease) -> None:
    """Score the held-out texts, which the calibration is fitted on."""
    run, dataset, system = prepared.run, prepared.dataset, prepared.system
    store = run.validation_scores
    if "validation" not in dataset.splits:
        store.retire(system.name, ())
        return
    loaded = LocalModels.open(run)
    shards = shard_work(loaded.job, dataset, "validation", run)
    store.retire(system.name, shards.committed)
    for work in shards.work:
        fence = lease.fence(f"validation-{work.keys[0].index}")
        began = time.perf_counter()
        tables = loaded.score_examples(dataset.read("validation", work.start, work.stop))
        seconds = round((time.perf_counter() - began) / len(tables), 3)
        for key, digest in zip(work.keys, work.digests, strict=True):
            store.commit(
                key,
                tables[key.class_name],
                start=work.start,
                digest=digest,
                seconds=seconds,
                fence=fence,
            )


@contextlib.contextmanager
def _randomness_kept() -> Iterator[None]:
    """Let whoever trains here go on with the random numbers that were next."""
    import numpy as np
    import torch

    python, numbers = random.getstate(), np.random.get_state()
    with torch.random.fork_rng():
        try:
            yield
        finally:
            random.setstate(python)
            np.random.set_state(numbers)
