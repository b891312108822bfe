"""Which settings of a run a system's result depends on: what is alike in them is repeated."""

from __future__ import annotations

from typing import Any

from gencls_core.config import (
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
    "per_token", "gradient_checkpointing", "data_dir", "data", "ensemble", "background",
    "costs",
}  # fmt: skip
"""Seeds and sizes make repetitions and points of a curve; the others change no
result, or none that is compared."""


_LEFT_OPEN = ("learning_rate", "epochs", "warmup")
"""What follows from the kind of model where it is not given, and from the number of texts."""
_MANY_TEXTS = 10**9


def settings_of(
    config: RunConfig,
    system: str,
    scores: LikelihoodMatrix,
    train_rows: int,
    trained: ResolvedTraining | None = None,
) -> dict[str, Any]:
    """Give every setting that a system's scores and posteriors depend on.

    Args:
        config: the settings.
        system: the system.
        scores: its scores.
        train_rows: number of texts that it learned from.
        trained: how, as the run recorded it; default: as it would be today.
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
        settings |= _training_as_taken(config, known, train_rows, trained)
    if known is not None and known.base == "masked":
        del settings["model"], settings["revision"]
    return settings


def _training_as_taken(
    config: RunConfig, known: ModelSystem, train_rows: int, trained: ResolvedTraining | None
) -> dict[str, Any]:
    """Give rate, epochs and warm-up as they were taken: said or not, the same is the same.

    What was left to the number of texts is named so: it makes no other system of a point of a
    learning curve.
    """
    left_open = config.training.model_copy(update=dict.fromkeys(_LEFT_OPEN))

    def resolved(training: TrainingConfig, texts: int) -> ResolvedTraining:
        adapter = config.model.lora_rank is not None
        return training.resolved(known.objective, adapter=adapter, texts=texts)

    taken = trained or resolved(config.training, train_rows)
    few, these, many = (resolved(left_open, texts) for texts in (1, train_rows, _MANY_TEXTS))
    found: dict[str, Any] = {"average_weights": taken.average_weights}
    for name in _LEFT_OPEN:
        value = getattr(taken, name)
        follows = getattr(config.training, name) is None and value == getattr(these, name)
        depends = getattr(few, name) != getattr(many, name)
        found[name] = "by the number of texts" if follows and depends else value
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
