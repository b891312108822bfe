"""Which settings of a run a system's result depends on: what is alike in them is repeated."""

from __future__ import annotations

from typing import Any

from gencls_core.config import (
    COMPARING,
    RecipeConfig,
    ResolvedTraining,
    RunConfig,
    Section,
    SystemsConfig,
    TrainingConfig,
)
from gencls_core.run import CLASS_LM
from gencls_core.score_matrix import LikelihoodMatrix
from gencls_core.scoring_job import ModelSystem, names_classes
from gencls_core.systems.registry import MODEL_SYSTEMS

__all__ = ["settings_of"]

_NOT_A_SETTING = {
    "split_seed", "sample_seed", "seed", "max_samples", "shard_size", "tokens_per_batch",
    "per_token", "gradient_checkpointing", "data_dir", "data", "ensemble",
}  # fmt: skip
"""Seeds and sizes make repetitions and points of a curve; the others change no
result, or none that is compared."""


def settings_of(
    config: RunConfig, system: str, scores: LikelihoodMatrix, train_rows: int
) -> dict[str, Any]:
    """Give every setting that a system's scores and posteriors depend on.

    Args:
        config: the settings.
        system: the system.
        scores: its scores.
        train_rows: number of texts that it learned from.
    """
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
        settings |= _settings_of_recipe(config.recipe, known)
    if system == "setfit":
        settings["setfit_model"] = config.systems.setfit_model
    if scores.is_likelihood:
        sections.append(config.posterior)
    for section in sections:
        values = section.model_dump(mode="json")
        settings |= {name: v for name, v in values.items() if name not in _NOT_A_SETTING}
    if known is not None and known.objective is not None:
        settings |= _what_training_leaves_open(config, known, train_rows)
    if known is not None and known.base == "masked":
        del settings["model"], settings["revision"]
    return settings


def _what_training_leaves_open(
    config: RunConfig, known: ModelSystem, train_rows: int
) -> dict[str, Any]:
    """Give rate, epochs and warm-up as they are taken: asked for or not, the same is the same.

    What follows from the number of texts stays open: it makes no other system of a point of a
    learning curve.
    """

    def resolved(training: TrainingConfig) -> ResolvedTraining:
        return training.resolved(
            known.objective,
            adapter=config.model.lora_rank is not None,
            texts=train_rows,
        )

    taken = resolved(config.training)
    found: dict[str, Any] = {
        "learning_rate": taken.learning_rate,
        "average_weights": taken.average_weights,
        "head_rate": taken.head_rate,
    }
    for name in ("epochs", "warmup"):
        by_itself = getattr(resolved(config.training.model_copy(update={name: None})), name)
        follows = known.objective in COMPARING and getattr(taken, name) == by_itself
        found[name] = "as few texts need" if follows else getattr(taken, name)
    return found


def _settings_of_systems(systems: SystemsConfig, known: ModelSystem) -> dict[str, Any]:
    names: list[str] = []
    if known.base == "masked":
        names += ["masked_model", "masked_likelihood"]
        names += ["mask_samples"] if systems.masked_likelihood == "sampled" else []
    if known.objective is None:
        names += ["prompts"]
    if names_classes(known):
        names += ["class_words"]
    return systems.model_dump(mode="json", include=set(names))


def _settings_of_recipe(recipe: RecipeConfig, known: ModelSystem) -> dict[str, Any]:
    if known.objective == "joint":
        return recipe.model_dump(mode="json", exclude={"recipe", "budget", "folds"})
    return {"prefix": recipe.prefix} if known.objective == "conditional" else {}
