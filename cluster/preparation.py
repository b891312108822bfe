"""All that is known before any work starts: data, base model, memory plan, what is committed.

`gencls plan` prints it; the pipeline acts on it.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path

from cluster.resources import Budget, ModelSize, Plan, Workload, local_budget, make_plan
from cluster.scoring import ShardWork
from gencls_core.class_models import ClassModel
from gencls_core.config import RunConfig
from gencls_core.datasets.dataset import Dataset, SplitName
from gencls_core.digests import scoring_digest, scratch_digest, shard_ranges, training_digest
from gencls_core.errors import UsageError
from gencls_core.model_source import ResolvedModel, is_scratch, resolve_model
from gencls_core.posterior import resolve_prior
from gencls_core.precision import Precision, resolve_precision
from gencls_core.run import RunDirectory
from gencls_core.scores import ShardKey
from gencls_core.scratch import scratch_preset
from gencls_core.training import TrainingTask

__all__ = ["SYSTEM", "Preparation", "check_base", "prepare_run", "shard_work", "workload_of"]

SYSTEM = "class-lm"


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

    @property
    def must_build_base(self) -> bool:
        """Say whether the base is made from scratch and has not been made yet."""
        return is_scratch(self.base.name) and not (self.base.path / "config.json").exists()

    def digest_of_class(self, class_name: str) -> str:
        """Name the class model that this run wants."""
        return training_digest(
            class_name=class_name,
            dataset=self.dataset,
            base_digest=self.base.digest,
            model=self.config.model,
            sequence=self.config.sequence,
            training=self.config.training,
            precision=self.precision,
        )

    def wanted_classes(self) -> list[tuple[int, str]]:
        """Give number and name of every class to train.

        Raises:
            UsageError: when `--class-id` names no class.
        """
        numbered = list(enumerate(self.dataset.classes))
        wanted = self.config.class_id
        if wanted is None:
            return numbered
        if wanted >= len(numbered):
            raise UsageError.of(
                f"--class-id {wanted} names no class",
                place=self.dataset.path,
                expected=", ".join(f"{i} ({name})" for i, name in numbered),
            )
        return [numbered[wanted]]

    def committed(self, class_name: str) -> ClassModel | None:
        """Give the committed class model with the wanted digest, if there is one."""
        model = ClassModel.find(self.run.model_path(class_name))
        return model if model and model.digest == self.digest_of_class(class_name) else None

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


def prepare_run(config: RunConfig, dataset: Dataset, run: RunDirectory) -> Preparation:
    """Resolve the base model and plan the work.

    Raises:
        UsageError: when the prior or `--class-id` does not fit the classes.
        ModelError: when the base model cannot be found.
        ResourceError: when something cannot fit.
    """
    resolve_prior(config.posterior.prior, dataset.classes, dataset.prior_counts)
    base, size = _resolve_base(config, dataset, run.base_path)
    budget = local_budget(config.compute)
    device = budget.device
    precision, note = resolve_precision(config.compute.precision, device)
    work = workload_of(config, dataset, precision)
    preparation = Preparation(
        config=config,
        run=run,
        dataset=dataset,
        base=base,
        size=size,
        budget=budget,
        plan=make_plan(budget, size, work, config.compute),
        precision=precision,
        notes=tuple(n for n in (note, *dataset.warnings) if n),
    )
    preparation.wanted_classes()
    return preparation


def workload_of(
    config: RunConfig, dataset: Dataset, precision: Precision, *, trains: bool = True
) -> Workload:
    """Give what memory depends on of the work that `config` asks for on `dataset`."""
    shards = sum(
        len(shard_ranges(info.rows, config.scoring.shard_size))
        for name, info in dataset.splits.items()
        if name != "train"
    )
    return Workload(
        classes=len(dataset.classes),
        shards=shards,
        batch_size=config.training.batch_size,
        longest_text_bytes=max(info.longest_text_bytes for info in dataset.splits.values()),
        window=config.sequence.window,
        max_length=config.sequence.max_length,
        tokens_per_batch=config.scoring.tokens_per_batch,
        precision=precision,
        lora_rank=config.model.lora_rank,
        gradient_checkpointing=config.training.gradient_checkpointing,
        trains=trains,
    )


def _resolve_base(
    config: RunConfig, dataset: Dataset, scratch_path: Path
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
    base = ResolvedModel(name=name, path=path, digest=digest, parameters=parameters, config={})
    if (path / "config.json").exists():
        base = replace(ResolvedModel.of_folder(name, path), digest=digest)
        size = ModelSize.of(base.config, base.parameters)
    return base, size


def shard_work(
    *,
    config: RunConfig,
    precision: Precision,
    models: tuple[ClassModel, ...],
    dataset: Dataset,
    split: SplitName,
    run: RunDirectory,
) -> tuple[list[ShardWork], dict[ShardKey, str], int]:
    """Give the shards still to be scored, every wanted shard's digest, and how many are there."""
    store = run.scores_of(split)
    ranges = shard_ranges(dataset.split(split).rows, config.scoring.shard_size)
    work: list[ShardWork] = []
    wanted: dict[ShardKey, str] = {}
    committed = 0
    for index, (start, stop) in enumerate(ranges):
        keys, digests = [], []
        for model in models:
            key = ShardKey(SYSTEM, model.class_name, index, len(ranges))
            digest = scoring_digest(
                model=model,
                dataset=dataset,
                split=split,
                start=start,
                stop=stop,
                sequence=config.sequence,
                scoring=config.scoring,
                precision=precision,
            )
            wanted[key] = digest
            record = store.record(key)
            if record is not None and record.digest == digest:
                committed += 1
            else:
                keys.append(key)
                digests.append(digest)
        if keys:
            work.append(
                ShardWork(
                    dataset=dataset.path,
                    split=split,
                    store=store.path,
                    start=start,
                    stop=stop,
                    keys=tuple(keys),
                    digests=tuple(digests),
                )
            )
    return work, wanted, committed
