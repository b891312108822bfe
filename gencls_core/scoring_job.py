"""What scores texts under classes: a system of models, and one job for it, as light values.

    ModelSystem     what the system is: its base, what it trains, how its models are loaded
    ScoringJob      a system with its trained models, base and settings: all that an actor needs
    Models          what the system has loaded: texts in, score rows out

Whoever plans work reads these and loads neither torch nor Ray.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal, Protocol

import pyarrow as pa

from gencls_core.class_models import ClassModel
from gencls_core.config import ObjectiveName, ScoringConfig, SequenceConfig, SystemsConfig
from gencls_core.model_source import ResolvedModel
from gencls_core.precision import Precision
from gencls_core.scores import Quantity

__all__ = [
    "ANY_CLASS",
    "BACKGROUND",
    "BaseKind",
    "ModelSystem",
    "Models",
    "ScoringJob",
    "classes_scored",
    "model_names",
    "names_classes",
]

BaseKind = Literal["causal", "masked"]


BACKGROUND = "background"
"""The system that knows no class (systems/background.py)."""
ANY_CLASS = "any"
"""What its rows are stored under."""


class Models(Protocol):
    """The loaded models of some classes."""

    def encode(self, examples: pa.Table) -> Any:
        """Tokenise the examples' texts, once for all classes; for `score` only."""

    def score(
        self,
        examples: pa.Table,
        class_name: str,
        sequence: SequenceConfig,
        scoring: ScoringConfig,
        *,
        encoded: Any = None,
        on_batch: Callable[[int], None] | None = None,
    ) -> pa.Table:
        """Score examples (EXAMPLE_SCHEMA) under one class; rows in SCORE_SCHEMA, in order.

        Args:
            examples: the texts.
            class_name: one of the classes that were loaded.
            sequence: what is scored of a text.
            scoring: how it is scored.
            encoded: what `encode` gave for these examples.
            on_batch: called with the number of tokens scored so far in this call.
        """


class ModelSystem(Protocol):
    """A system made of language models, which actors hold while they score."""

    @property
    def name(self) -> str:
        """Name under which its rows are stored (`system=<name>`)."""

    @property
    def quantity(self) -> Quantity:
        """What its scores are, in nats."""

    @property
    def base(self) -> BaseKind:
        """What it starts from: the causal model of `--model`, or that of `--masked-model`."""

    @property
    def objective(self) -> ObjectiveName | None:
        """What its models learn; None where the base is used as it is."""

    @property
    def model_per_class(self) -> bool:
        """Whether each class has a model of its own; else one model serves all classes."""

    def depends_on(self, job: ScoringJob, class_name: str) -> dict[str, Any]:
        """Give what a class's rows depend on beside weights, texts, sequence and precision."""

    def load(self, job: ScoringJob, classes: frozenset[str]) -> Models:
        """Load the models of some classes onto the job's device."""


def names_classes(system: ModelSystem) -> bool:
    """Say whether a system's models read the name of a class before a text."""
    return system.name != BACKGROUND and system.objective in (None, "conditional", "joint")


def classes_scored(system: str, classes: Sequence[str]) -> tuple[str, ...]:
    """Give the classes that a system of that name scores texts under."""
    return (ANY_CLASS,) if system == BACKGROUND else tuple(classes)


def model_names(system: ModelSystem, classes: Sequence[str]) -> tuple[str, ...]:
    """Give the class of each model that a system trains; one of all classes has an empty name."""
    if system.objective is None:
        return ()
    return tuple(classes) if system.model_per_class else ("",)


@dataclass(frozen=True)
class ScoringJob:
    """What every actor needs: the models, and how texts are scored."""

    system: ModelSystem
    classes: tuple[str, ...]
    """All classes that texts are scored under, in the order of the dataset."""
    models: tuple[ClassModel, ...]
    """What was trained: a model per class in the order of `classes`, one for all, or none."""
    base: ResolvedModel
    sequence: SequenceConfig
    scoring: ScoringConfig
    precision: Precision
    device: str
    compiled: bool = False
    """Whether the models' layers are compiled (`gencls_core.compilation`)."""
    systems: SystemsConfig = field(default_factory=SystemsConfig)
    seed: int = 0
    """Of random masks."""
    load: Callable[[ScoringJob, frozenset[str]], Models] | None = None
    """Gives the models of some classes; None: the system's own way."""

    @property
    def units(self) -> tuple[frozenset[str], ...]:
        """The classes that go together because one model serves them."""
        if self.system.model_per_class:
            return tuple(frozenset({name}) for name in self.classes)
        return (frozenset(self.classes),)

    def weights_of(self, class_name: str) -> ClassModel | ResolvedModel:
        """Give the model that scores a class; its `digest` and `files` name the weights."""
        for model in self.models:
            if model.class_name in (class_name, ""):
                return model
        return self.base
