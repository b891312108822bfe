"""A run's trained models: which they are, and opened in this process, without Ray."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Self

import pyarrow as pa

from gencls_core.class_models import ClassModel
from gencls_core.config import ResolvedTraining, RunConfig
from gencls_core.config_training import RECIPES
from gencls_core.datasets.dataset import EXAMPLE_SCHEMA, Dataset
from gencls_core.digests import training_digest
from gencls_core.errors import ModelError, StoreError
from gencls_core.model_source import ResolvedModel, resolve_model
from gencls_core.prompts import prefixes_for
from gencls_core.run import CLASS_LM, RunDirectory, recorded_training
from gencls_core.score_matrix import LikelihoodMatrix
from gencls_core.scores import SCORE_SCHEMA
from gencls_core.scoring_job import Models, ModelSystem, ScoringJob, model_names
from gencls_core.systems.registry import MODEL_SYSTEMS

__all__ = [
    "LocalModels",
    "base_of",
    "committed_models",
    "examples_of",
    "main_system",
    "model_digest",
    "models_of_run",
    "training_of",
]


_AT_ONCE = 4096
"""Texts whose token scores are in memory at the same time: as many as a shard has at the most."""

_REMEDIES = {
    name: f"train {'them' if name == CLASS_LM else 'it'} with `gencls train --recipe {recipe}`"
    for recipe, name in RECIPES.items()
}


def main_system(config: RunConfig) -> ModelSystem:
    """Give the system that a run trains and reports."""
    return MODEL_SYSTEMS[config.recipe.system]


def training_of(config: RunConfig, dataset: Dataset, system: ModelSystem) -> ResolvedTraining:
    """Give how a system's models are trained, with nothing left open."""
    return config.training.resolved(
        system.objective,
        adapter=config.model.lora_rank is not None,
        texts=dataset.splits["train"].rows if "train" in dataset.splits else 0,
    )


def model_digest(
    config: RunConfig,
    dataset: Dataset,
    system: ModelSystem,
    base_digest: str,
    precision: str,
    name: str,
) -> str:
    """Name the model of a class, or without a name of all classes, that a run wants."""
    return training_digest(
        class_name=name,
        dataset=dataset,
        base_digest=base_digest,
        model=config.model,
        sequence=config.sequence,
        training=training_of(config, dataset, system),
        precision=precision,
        objective=system.objective or "causal",
        prefixes=prefixes_for(config.recipe, config.systems, dataset.classes),
        recipe=config.recipe,
    )


def committed_models(
    run: RunDirectory,
    classes: Sequence[str],
    digests: dict[str, str] | None = None,
    system: str = CLASS_LM,
) -> tuple[ClassModel, ...]:
    """Give a run's models of a system, in class order.

    Args:
        run: the run that trained them.
        classes: in the order of their numbers; one empty name for a model of all classes.
        digests: the digest that each class's model must have; None takes what is committed.
        system: whose models.

    Raises:
        StoreError: when a class has none.
    """
    models, missing = [], []
    for number, name in enumerate(classes):
        model = ClassModel.find(run.model_path(name, system))
        if model is None or (digests is not None and model.digest != digests[name]):
            missing.append(f"{name} (--class-id {number})" if name else system)
        else:
            models.append(model)
    if missing:
        raise StoreError.of(
            "classes without a class model" if system == CLASS_LM else f"no model of {system}",
            place=run.models_of(system),
            found="none for " + ", ".join(missing),
            expected=f"a committed model for each of the {len(classes)} classes"
            if system == CLASS_LM
            else "one committed model for all classes",
            remedy=_REMEDIES.get(system, "run the same command again"),
        )
    return tuple(models)


def models_of_run(
    source: RunDirectory, manifest: Mapping[str, Any], system: ModelSystem | None = None
) -> tuple[ClassModel, ...]:
    """Give the models of a run, all trained as its manifest says; default: those of its recipe.

    Raises:
        StoreError: when one is missing, or was trained with other settings than the others.
    """
    config, dataset = RunConfig.model_validate(manifest["config"]), source.dataset()
    system = system or main_system(config)
    if (trained := recorded_training(manifest, system.name)) is not None:
        config = config.model_copy(update={"training": trained})
    names = model_names(system, manifest["classes"])
    base = manifest.get("model", {}).get("digest")
    if base is None:
        raise StoreError.of(
            "this run names no base model",
            place=source.path / "run.json",
            expected="the model of a trained recipe",
            remedy="train one with `gencls run`",
        )
    digests = {
        name: model_digest(config, dataset, system, base, manifest["precision"], name)
        for name in names
    }
    return committed_models(source, names, digests, system.name)


def base_of(source: RunDirectory, models: tuple[ClassModel, ...]) -> ResolvedModel:
    """Find the base that LoRA adapters sit on; any class model's folder where there are none."""
    first = models[0]
    if all(model.kind == "full" for model in models):
        found = ResolvedModel.of_folder(first.base, first.local())
        return replace(found, digest=first.base_digest)
    config = RunConfig.model_validate(source.manifest()["config"])
    staged = ResolvedModel.of_staged(first.base, source.base_path / first.base_digest[:16])
    if staged is not None:
        return replace(staged, digest=first.base_digest)
    base = resolve_model(config.model)
    if base.digest != first.base_digest:
        raise ModelError.of(
            "the base model is not the one that the LoRA adapters were trained on",
            place=base.path,
            found=base.digest[:12],
            expected=first.base_digest[:12],
            remedy="bring that model back, or train the adapters again",
        )
    return base


@dataclass(frozen=True)
class LocalModels:
    """What a run has trained, loaded into this process."""

    job: ScoringJob
    models: Models

    @classmethod
    def open(
        cls,
        run: RunDirectory,
        classes: Sequence[str] | None = None,
        *,
        scored: RunDirectory | None = None,
        system: ModelSystem | None = None,
    ) -> Self:
        """Load the models of a run onto the GPU, if there is one.

        Args:
            run: a run whose models are trained.
            classes: whose models are wanted; default: all.
            scored: the run or evaluation whose scores are to come out again: its precision and
                settings are taken. Default: the run itself.
            system: whose models; default: those of the run's recipe.

        Raises:
            StoreError: when a model is missing.
            ModelError: when one cannot be loaded.
        """
        import torch

        manifest = run.manifest()
        config = RunConfig.model_validate(manifest["config"])
        system = system or main_system(config)
        models = models_of_run(run, manifest, system)
        as_scored = manifest if scored is None else scored.manifest()
        settings = RunConfig.model_validate(as_scored["config"])
        job = ScoringJob(
            system=system,
            classes=tuple(manifest["classes"]),
            models=models,
            base=base_of(run, models),
            sequence=settings.sequence,
            scoring=settings.scoring,
            precision=as_scored["precision"],
            device="cuda" if torch.cuda.is_available() else "cpu",
            systems=config.systems,
            seed=config.training.seed,
        )
        wanted = frozenset(job.classes if classes is None else classes)
        return cls(job, system.load(job, wanted))

    def score(
        self, texts: Sequence[str], classes: Sequence[str] | None = None, *, per_token: bool = False
    ) -> dict[str, pa.Table]:
        """Score texts; gives rows of SCORE_SCHEMA for each class, in the order of the texts.

        Args:
            texts: any texts.
            classes: under which; default: all.
            per_token: whether each token's score is wanted, too.
        """
        return self.score_examples(examples_of(texts), classes, per_token=per_token)

    def score_examples(
        self,
        examples: pa.Table,
        classes: Sequence[str] | None = None,
        *,
        per_token: bool | None = None,
    ) -> dict[str, pa.Table]:
        """Do so with rows of EXAMPLE_SCHEMA; by default token scores as the run keeps them."""
        encoded = self.models.encode(examples)
        scoring = self.job.scoring
        if per_token is not None:
            scoring = scoring.model_copy(update={"per_token": per_token})
        return {
            name: self.models.score(examples, name, self.job.sequence, scoring, encoded=encoded)
            for name in (self.job.classes if classes is None else classes)
        }

    def matrix(self, texts: Sequence[str]) -> LikelihoodMatrix:
        """Score any number of texts under all classes; they are numbered from 0."""
        parts = [
            LikelihoodMatrix.of_tables(self.score(texts[first : first + _AT_ONCE]))
            for first in range(0, len(texts), _AT_ONCE)
        ]
        if not parts:
            nothing = dict.fromkeys(self.job.classes, SCORE_SCHEMA.empty_table())
            return LikelihoodMatrix.of_tables(nothing)
        ids = pa.array(map(str, range(len(texts))), pa.string())
        return replace(
            LikelihoodMatrix.concatenated(parts), example_ids=pa.chunked_array([ids], pa.string())
        )


def examples_of(texts: Sequence[str]) -> pa.Table:
    """Give texts as unlabelled rows of EXAMPLE_SCHEMA, numbered from 0."""
    names = {
        "example_id": [str(number) for number in range(len(texts))],
        "text": list(texts),
        "label": [None] * len(texts),
    }
    arrays = [
        pa.array(names[field.name], field.type)
        if field.name in names
        else pa.nulls(len(texts), field.type)
        for field in EXAMPLE_SCHEMA
    ]
    return pa.table(arrays, schema=EXAMPLE_SCHEMA)
