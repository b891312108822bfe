"""All that is known before any work starts: data, base model, memory plan, what is committed.

`gencls plan` prints it; the pipeline acts on it.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path

from cluster.capacity import Device
from cluster.resources import (
    Budget,
    ModelSize,
    Plan,
    device_of,
    local_budget,
    make_plan,
    precision_of,
)
from cluster.workload import workload_of
from gencls_core.class_models import ClassModel
from gencls_core.config import ModelConfig, ResolvedTraining, RunConfig
from gencls_core.datasets.dataset import Dataset, SplitName
from gencls_core.digests import scratch_digest
from gencls_core.errors import UsageError
from gencls_core.model_source import ResolvedModel, is_scratch, resolve_model
from gencls_core.posterior import check_posterior
from gencls_core.precision import Precision
from gencls_core.prompts import check_prompts, prefixes_for
from gencls_core.remote_path import Location
from gencls_core.run import CLASS_LM, RunDirectory
from gencls_core.scoring_job import (
    ModelSystem,
    ScoringJob,
    classes_scored,
    model_names,
    names_classes,
)
from gencls_core.scratch import scratch_preset
from gencls_core.selection_report import SelectionReport
from gencls_core.trained_run import committed_models, main_system, model_digest, training_of
from gencls_core.training_task import TrainingTask

__all__ = ["Preparation", "check_base", "prepare_run"]


@dataclass(frozen=True)
class Preparation:
    """A run, ready to start."""

    config: RunConfig
    run: RunDirectory
    dataset: Dataset
    system: ModelSystem
    base: ResolvedModel
    """For a model made from scratch: what it will be; its folder may not exist yet."""
    size: ModelSize
    budget: Budget
    plan: Plan
    precision: Precision
    notes: tuple[str, ...]
    asked: RunConfig | None = None
    """What was asked for, where that leaves the recipe open."""
    selection: SelectionReport | None = None
    """How the recipe was chosen, once it is."""
    judged: bool = False
    """Whether the labels of the held-out texts judge what is trained, and choose no epoch."""
    unscored: frozenset[SplitName] = frozenset()
    """Splits that are left without scores, in a run that was only trained."""
    torn: frozenset[str] = frozenset()
    """Classes whose committed model has other bytes by now: to be trained again."""

    @property
    def must_build_base(self) -> bool:
        """Say whether the base is made from scratch and has not been made yet."""
        return is_scratch(self.base.name) and not self.base.files

    @property
    def must_choose(self) -> bool:
        """Say whether the recipe is still to be chosen."""
        return self.asked is not None and self.selection is None

    @property
    def is_main(self) -> bool:
        """Say whether the run's report is of this system."""
        return self.system.name == self.config.recipe.system

    @property
    def training(self) -> ResolvedTraining:
        """How the models are trained, with nothing left open."""
        return training_of(self.config, self.dataset, self.system)

    @property
    def splits(self) -> tuple[SplitName, ...]:
        """The splits that are scored; held-out texts only where something was trained."""
        wanted: tuple[SplitName, ...] = ("validation", "test")
        if self.system.objective is None:
            wanted = ("test",)
        there = self.dataset.splits.keys() - self.unscored
        return tuple(split for split in wanted if split in there)

    @property
    def reports(self) -> bool:
        """Say whether test texts are scored: without, there is nothing to report."""
        return "test" in self.splits

    def digest_of(self, class_name: str) -> str:
        """Name the model of a class, or of all classes, that this run wants."""
        return model_digest(
            self.config, self.dataset, self.system, self.base.digest, self.precision, class_name
        )

    def wanted_models(self) -> list[tuple[int, str]]:
        """Give number and name of every model to train; one of all classes has no name."""
        return _models_to_train(self.config, self.dataset, self.system)

    def committed(self, class_name: str) -> ClassModel | None:
        """Give the committed model with the wanted digest, if there is one."""
        if class_name in self.torn:
            return None
        path = self.run.model_path(class_name, self.system.name)
        return _committed(path, self.digest_of(class_name))

    def trained_models(self) -> tuple[ClassModel, ...]:
        """Give the models that scoring needs, trained as the settings say.

        Raises:
            StoreError: when one is missing.
        """
        names = model_names(self.system, self.dataset.classes)
        digests = {name: self.digest_of(name) for name in names}
        return committed_models(self.run, names, digests, self.system.name)

    def training_tasks(self) -> list[TrainingTask]:
        """Give the trainings that are still to be done; each task reads its texts itself."""
        objective = self.system.objective
        if objective is None:
            return []
        return [
            TrainingTask(
                class_name=name,
                class_id=number,
                digest=self.digest_of(name),
                base=self.base,
                texts=[],
                validation_texts=[],
                destination=self.run.model_path(name, self.system.name),
                sequence=self.config.sequence,
                training=self.training,
                lora_rank=self.config.model.lora_rank,
                lora_alpha=self.config.model.lora_alpha,
                precision=self.precision,
                device=self.plan.device,
                threads=self.plan.cpus_per_training,
                tokens_per_pass=self.plan.tokens_per_pass,
                compiled=self.plan.compiles_training,
                system=self.system.name,
                objective=objective,
                classes=self.dataset.classes,
                prefixes=prefixes_for(
                    self.config.recipe, self.config.systems, self.dataset.classes
                ),
                recipe=self.config.recipe,
                judged=self.judged,
            )
            for number, name in self.wanted_models()
            if self.committed(name) is None
        ]

    def scoring_job(self, models: tuple[ClassModel, ...]) -> ScoringJob:
        """Give what actors need to score texts under the trained models."""
        return ScoringJob(
            system=self.system,
            classes=classes_scored(self.system.name, self.dataset.classes),
            models=models,
            base=self.base,
            sequence=self.config.sequence,
            scoring=self.config.scoring,
            precision=self.precision,
            device=self.plan.device,
            compiled=self.plan.compiles_scoring,
            systems=self.config.systems,
            seed=self.config.training.seed,
        )


def check_base(config: RunConfig, system: ModelSystem | None = None) -> None:
    """Refuse a base model that cannot be had, before anything else is done.

    Raises:
        ModelError: when the preset, folder or hub id is not to be had, or the preset is none for
            the system.
    """
    system = system or main_system(config)
    name = _base_name(config, system)
    if is_scratch(name):
        scratch_preset(name, system.base)
    else:
        resolve_model(_base_config(config, system))


def prepare_run(
    config: RunConfig,
    dataset: Dataset,
    run: RunDirectory,
    *,
    system: ModelSystem | None = None,
    budget: Budget | None = None,
    scores: bool = True,
) -> Preparation:
    """Resolve the base model and plan the work that is not committed yet.

    Args:
        config: what is asked for.
        dataset: the prepared texts.
        run: where the results go.
        system: what is trained and scores; None: what the recipe makes.
        budget: the nodes to plan for; None measures this machine.
        scores: whether texts are scored, too; where not, scoring actors need not fit.

    Raises:
        UsageError: when the prior, the costs, `--class-id` or `--class-words` do not fit the
            classes.
        ModelError: when the base model cannot be found.
        ResourceError: when something cannot fit.
    """
    system = system or main_system(config)
    check_posterior(config.posterior, dataset.classes, dataset.prior_counts)
    if names_classes(system):
        check_prompts(config.systems, dataset.classes)
    wanted = _models_to_train(config, dataset, system)
    base, size = _resolve_base(config, dataset, system, run.base_path)
    if budget is None:
        budget = local_budget(config.compute)
    device = device_of(budget, config.compute)
    precision, note = precision_of(budget, config.compute, device)
    found = {
        name: _committed(
            run.model_path(name, system.name),
            model_digest(config, dataset, system, base.digest, precision, name),
        )
        for _, name in wanted
    }
    torn = {name for name, model in found.items() if model and _is_torn(config, model)}
    # For all classes, though some may be committed: with other numbers of threads, or other passes,
    # the rest would be rounded otherwise than in a run that nothing disturbed.
    done = all(found.values()) and not torn
    trainings = 0 if done else len(wanted)
    held = len(dataset.classes) if system.model_per_class else 1
    work = workload_of(
        config, dataset, system, precision, device, models=held, trainings=trainings, scores=scores
    )
    return Preparation(
        config=config,
        run=run,
        dataset=dataset,
        system=system,
        base=base,
        size=size,
        budget=budget,
        plan=make_plan(budget, size, work, config.compute),
        precision=precision,
        notes=(
            *(n for n in (note, *dataset.warnings) if n),
            *_note_on_compiling(config, device),
            *(f"{_called(system, n)} is not as it was committed; training it again" for n in torn),
        ),
        torn=frozenset(torn),
    )


def _called(system: ModelSystem, class_name: str) -> str:
    what = "class model" if system.name == CLASS_LM else system.name
    return f"{what} {class_name!r}" if class_name else f"the model of {what}"


def _note_on_compiling(config: RunConfig, device: Device) -> list[str]:
    if config.compute.compile != "on" or device != "cpu":
        return []
    return ["--compile on is for GPUs; on a CPU nothing is compiled"]


def _models_to_train(
    config: RunConfig, dataset: Dataset, system: ModelSystem
) -> list[tuple[int, str]]:
    """Give number and name of every model to train; one of all classes has no name.

    Raises:
        UsageError: when `--class-id` names no class.
    """
    numbered = list(enumerate(model_names(system, dataset.classes)))
    wanted = config.class_id
    if wanted is None or not system.model_per_class:
        return numbered
    if wanted >= len(numbered):
        raise UsageError.of(
            f"--class-id {wanted} names no class",
            place=dataset.path,
            expected=", ".join(f"{i} ({name})" for i, name in numbered),
        )
    return [numbered[wanted]]


def _committed(path: Location, digest: str) -> ClassModel | None:
    model = ClassModel.find(path)
    return model if model and model.digest == digest else None


def _is_torn(config: RunConfig, model: ClassModel) -> bool:
    """Say whether a model's bytes have changed; one in an object store is checked when fetched."""
    return config.compute.check_scores and isinstance(model.path, Path) and bool(model.torn_files())


def _base_name(config: RunConfig, system: ModelSystem) -> str:
    return config.model.model if system.base == "causal" else config.systems.masked_model


def _base_config(config: RunConfig, system: ModelSystem) -> ModelConfig:
    if system.base == "causal":
        return config.model
    return config.model.model_copy(update={"model": config.systems.masked_model, "revision": None})


def _resolve_base(
    config: RunConfig, dataset: Dataset, system: ModelSystem, scratch_path: Location
) -> tuple[ResolvedModel, ModelSize]:
    model = _base_config(config, system)
    name = model.model
    if not is_scratch(name):
        base = resolve_model(model)
        return base, ModelSize.of(base.config, base.parameters)
    preset = scratch_preset(name, system.base)
    digest = scratch_digest(model, config.training, dataset)
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
