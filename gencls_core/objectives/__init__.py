"""What a model learns: objectives behind one Protocol, so that one loop trains them all.

    causal            log P(text) of one class's texts             causal.py
    conditional       log P(text | class) of all classes' texts    conditional.py
    joint             the same, and log P(class | text) by it      joint.py
    masked            the any-order bound on log P(text)          masked.py
    classification    log P(class | text) of all classes' texts  classification.py

The loop (`gencls_core.training_loop`) chooses texts by their numbers; what a text is, how it goes
through the model and what it costs is the objective's.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import TYPE_CHECKING, Any, Literal, Protocol, TypeVar

if TYPE_CHECKING:
    from pathlib import Path

    from torch import Tensor, nn

    from gencls_core.training_task import TrainingTask

__all__ = ["Objective", "load_objective"]

Part = TypeVar("Part")


class Objective(Protocol[Part]):
    """A model with the texts that it learns from."""

    @property
    def model(self) -> nn.Module:
        """What is trained."""

    def compute_with(self, copied: nn.Module) -> None:
        """Let texts go through a copy of the model from now on."""

    @property
    def lengths(self) -> list[int]:
        """Tokens of each train text that has any, in order."""

    @property
    def held_out(self) -> int:
        """Number of held-out texts; 0 trains all epochs and keeps the last weights."""

    @property
    def loss_per(self) -> Literal["token", "text"]:
        """The unit of the loss; a text where it compares classes."""

    def units(self, numbers: Sequence[int]) -> int:
        """Give what the loss of these texts is divided by: tokens, or texts."""

    def passes(self, numbers: Sequence[int], tokens: int, epoch: int) -> Iterator[Part]:
        """Cut texts into passes of at most `tokens` padded tokens, longest first."""

    def loss(self, part: Part) -> Tensor:
        """Sum −log P over one pass, in nats, with gradients."""

    def held_out_nll(self, tokens: int) -> float:
        """Give −log P of the held-out texts in nats per unit, `tokens` at a time, in eval mode."""

    def save(self, folder: Path) -> str:
        """Write model and tokenizer in Hugging Face form; give the tokenizer's digest."""


def load_objective(task: TrainingTask) -> Objective[Any]:
    """Load the base model and tokenise the texts of a training.

    Raises:
        ModelError: when the base model cannot be loaded, or is none for this objective.
        TrainingError: when there is nothing to train on.
    """
    return _LOADERS[task.objective](task)


def _causal(task: TrainingTask) -> Objective[Any]:
    from gencls_core.objectives.causal import CausalObjective

    return CausalObjective.of(task)


def _conditional(task: TrainingTask) -> Objective[Any]:
    from gencls_core.objectives.conditional import ConditionalObjective

    return ConditionalObjective.of(task)


def _joint(task: TrainingTask) -> Objective[Any]:
    from gencls_core.objectives.joint import JointObjective

    return JointObjective.of(task)


def _masked(task: TrainingTask) -> Objective[Any]:
    from gencls_core.objectives.masked import MaskedObjective

    return MaskedObjective.of(task)


def _classification(task: TrainingTask) -> Objective[Any]:
    from gencls_core.objectives.classification import ClassificationObjective

    return ClassificationObjective.of(task)


_LOADERS: dict[str, Callable[[TrainingTask], Objective[Any]]] = {
    "causal": _causal,
    "conditional": _conditional,
    "joint": _joint,
    "masked": _masked,
    "classification": _classification,
}
