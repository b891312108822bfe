"""All that is known before any work starts: data, base model, memory plan, what is committed.

`gencls plan` prints it; the pipeline acts on it.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path

from cluster.resources import (
    Budget,
    ModelSize,
    Plan,
    Workload,
    device_of,
    local_budget,
    make_plan,
)
from gencls_core.class_models import ClassModel
from gencls_core.config import RunConfig
from gencls_core.datasets.dataset import Dataset
from gencls_core.digests import scratch_digest, shard_ranges, training_digest
from gencls_core.errors import UsageError
from gencls_core.model_source import ResolvedModel, is_scratch, resolve_model
from gencls_core.posterior import resolve_prior
from gencls_core.precision import Precision, resolve_precision
from gencls_core.remote_path import Location
from gencls_core.run import RunDirectory
from gencls_core.scratch import scratch_preset
from gencls_core.training_task import TrainingTask

__all__ = ["Preparation", "check_base", "prepare_run", "workload_of"]


@dataclass(frozen=True)
class Preparation:
    """A run, ready to start."""

    config: RunConfig
    run: RunDirectory
    dataset: Dataset
    base: ResolvedModel
    """For a model made from scratch: what it will be; its folder may not exist yet."""
    size: ModelSize
    budget: Budget
    plan: Plan
    precision: Precision
    notes: tuple[str, ...]
    torn: frozenset[str] = frozenset()
    """Classes whose committed model has other bytes by now: to be trained again."""

    @property
    def must_build_base(self) -> bool:
        """Say whether the base is made from scratch and has not been made yet."""
        return is_scratch(self.base.name) and not self.base.files

    def digest_of_class(self, class_name: str) -> str:
        """Name the class model that this run wants."""
        return _class_digest(self.config, self.dataset, self.base, self.precision, class_name)

    def wanted_classes(self) -> list[tuple[int, str]]:
        """Give number and name of every class to train."""
        return _classes_to_train(self.config, self.dataset)

    def committed(self, class_name: str) -> ClassModel | None:
        """Give the committed class model with the wanted digest, if there is one."""
        if class_name in self.torn:
            return None
        return _committed(self.run, class_name, self.digest_of_class(class_name))

    def training_tasks(self) -> list[TrainingTask]:
        """Give the trainings that are still to be done; each task reads its texts itself."""
        return [
            TrainingTask(
                class_name=name,
                class_id=number,
                digest=self.digest_of_class(name),
                base=self.base,
                texts=[],
                validation_texts=[],
                destination=self.run.model_path(name),
                sequence=self.config.sequence,
                training=self.config.training,
                lora_rank=self.config.model.lora_rank,
                lora_alpha=self.config.model.lora_alpha,
                precision=self.precision,
                device=self.plan.device,
                threads=self.plan.cpus_per_training,
                tokens_per_pass=self.plan.tokens_per_pass,
            )
            for number, name in self.wanted_classes()
            if self.committed(name) is None
        ]


def check_base(config: RunConfig) -> None:
    """Refuse a base model that cannot be had, before anything else is done.

    Raises:
        ModelError: when the preset, folder or hub id is not to be had.
    """
    name = config.model.model
    if is_scratch(name):
        scratch_preset(name)
    else:
        resolve_model(config.model)


def prepare_run(
    config: RunConfig,
    dataset: Dataset,
    run: RunDirectory,
    *,
    budget: Budget | None = None,
    scores: bool = True,
) -> Preparation:
    """Resolve the base model and plan the work that is not committed yet.

    Args:
        config: what is asked for.
        dataset: the prepared texts.
        run: where the results go.
        budget: the nodes to plan for; None measures this machine.
        scores: whether texts are scored, too; where not, scoring actors need not fit.

    Raises:
        UsageError: when the prior or `--class-id` does not fit the classes.
        ModelError: when the base model cannot be found.
        ResourceError: when something cannot fit.
    """
    resolve_prior(config.posterior.prior, dataset.classes, dataset.prior_counts)
    wanted = _classes_to_train(config, dataset)
    base, size = _resolve_base(config, dataset, run.base_path)
    if budget is None:
        budget = local_budget(config.compute)
    device = device_of(budget, config.compute)
    precision, note = resolve_precision(config.compute.precision, device, bf16=budget.bf16)
    found = {
        name: _committed(run, name, _class_digest(config, dataset, base, precision, name))
        for _, name in wanted
    }
    torn = {name for name, model in found.items() if model and _is_torn(config, model)}
    # For all classes, though some may be committed: with other numbers of threads, or other passes,
    # the rest would be rounded otherwise than in a run that nothing disturbed.
    done = all(found.values()) and not torn
    trainings = 0 if done else len(wanted)
    work = workload_of(config, dataset, precision, trainings=trainings, scores=scores)
    return Preparation(
        config=config,
        run=run,
        dataset=dataset,
        base=base,
        size=size,
        budget=budget,
        plan=make_plan(budget, size, work, config.compute),
        precision=precision,
        notes=(
            *(n for n in (note, *dataset.warnings) if n),
            *(f"class model {n!r} is not as it was committed; training it again" for n in torn),
        ),
        torn=frozenset(torn),
    )


def workload_of(
    config: RunConfig, dataset: Dataset, precision: Precision, *, trainings: int, scores: bool
) -> Workload:
    """Give what the plan depends on of the work that `config` asks for on `dataset`."""
    shards = sum(
        len(shard_ranges(info.rows, config.scoring.shard_size))
        for name, info in dataset.splits.items()
        if name != "train"
    )
    return Workload(
        classes=len(dataset.classes),
        trainings=trainings,
        shards=shards if scores else 0,
        batch_size=config.training.batch_size,
        longest_text_bytes=max(info.longest_text_bytes for info in dataset.splits.values()),
        window=config.sequence.window,
        max_length=config.sequence.max_length,
        tokens_per_batch=config.scoring.tokens_per_batch,
        precision=precision,
        lora_rank=config.model.lora_rank,
        gradient_checkpointing=config.training.gradient_checkpointing,
    )


def _classes_to_train(config: RunConfig, dataset: Dataset) -> list[tuple[int, str]]:
    """Give number and name of every class to train.

    Raises:
        UsageError: when `--class-id` names no class.
    """
    numbered = list(enumerate(dataset.classes))
    wanted = config.class_id
    if wanted is None:
        return numbered
    if wanted >= len(numbered):
        raise UsageError.of(
            f"--class-id {wanted} names no class",
            place=dataset.path,
            expected=", ".join(f"{i} ({name})" for i, name in numbered),
        )
    return [numbered[wanted]]


def _class_digest(
    config: RunConfig, dataset: Dataset, base: ResolvedModel, precision: Precision, name: str
) -> str:
    return training_digest(
        class_name=name,
        dataset=dataset,
        base_digest=base.digest,
        model=config.model,
        sequence=config.sequence,
        training=config.training,
        precision=precision,
    )


def _committed(run: RunDirectory, class_name: str, digest: str) -> ClassModel | None:
    model = ClassModel.find(run.model_path(class_name))
    return model if model and model.digest == digest else None


def _is_torn(config: RunConfig, model: ClassModel) -> bool:
    """Say whether a model's bytes have changed; one in an object store is checked when fetched."""
    return config.compute.check_scores and isinstance(model.path, Path) and bool(model.torn_files())


def _resolve_base(
    config: RunConfig, dataset: Dataset, scratch_path: Location
) -> tuple[ResolvedModel, ModelSize]:
    name = config.model.model
    if not is_scratch(name):
        base = resolve_model(config.model)
        return base, ModelSize.of(base.config, base.parameters)
    preset = scratch_preset(name)
    digest = scratch_digest(config.model, config.training, dataset)
    embeddings = (preset.vocabulary + preset.context) * preset.width
    parameters = embeddings + 12 * preset.layers * preset.width**2
    size = ModelSize(
        parameters=parameters,
        layers=preset.layers,
        width=preset.width,
        vocabulary=preset.vocabulary,
        context=preset.context,
    )
    # The digest is part of the path: another seed or other texts never meet an old base.
    path = scratch_path / digest[:16]
    staged = ResolvedModel.of_staged(name, path)
    if staged is None:
        unmade = ResolvedModel(
            name=name, path=path, digest=digest, parameters=parameters, config={}
        )
        return unmade, size
    return replace(staged, digest=digest), ModelSize.of(staged.config, staged.parameters)
