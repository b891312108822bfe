"""A model folder → its configuration, tokenizer and weights, whatever kind of model it holds."""

from __future__ import annotations

import contextlib
import json
import logging
from typing import Any

import torch
from safetensors import SafetensorError
from torch import Tensor, nn
from transformers import AutoConfig, AutoTokenizer
from transformers.activations import NewGELUActivation
from transformers.utils.logging import disable_progress_bar

from gencls_core.errors import ModelError
from gencls_core.model_source import ResolvedModel

__all__ = ["load_tokenizer", "load_weights", "read_config", "tokenizer_state"]


# Progress is the caller's to show; a bar per loaded file would tear its display.
disable_progress_bar()


def read_config(resolved: ResolvedModel) -> Any:
    """Read a model folder's configuration.

    Raises:
        ModelError: when transformers cannot read it.
    """
    try:
        return AutoConfig.from_pretrained(resolved.local())
    except (OSError, ValueError, KeyError) as error:
        raise ModelError.of(
            "the model's configuration cannot be read",
            place=resolved.path,
            found=_first_line(error),
            expected="config.json of a model that transformers knows",
        ) from None


def load_tokenizer(resolved: ResolvedModel) -> Any:
    """Load a model folder's tokenizer.

    Raises:
        ModelError: when the folder has none.
    """
    try:
        tokenizer = AutoTokenizer.from_pretrained(resolved.local(), use_fast=True)
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise ModelError.of(
            "the model has no tokenizer that can be loaded",
            place=resolved.path,
            found=_first_line(error),
            expected="tokenizer.json (or vocab.json and merges.txt) beside config.json",
            remedy="save it there with `tokenizer.save_pretrained(folder)`",
        ) from None
    if not getattr(tokenizer, "is_fast", False) or len(tokenizer) == 0:
        raise ModelError.of(
            "the model has no fast tokenizer",
            place=resolved.path,
            expected="tokenizer.json beside config.json",
            remedy="save it there with `tokenizer.save_pretrained(folder)`",
        )
    return tokenizer


def tokenizer_state(tokenizer: Any) -> dict[str, Any]:
    """Give all that decides how a tokenizer cuts a text."""
    state: dict[str, Any] = json.loads(tokenizer.backend_tokenizer.to_str())
    # Padding and truncation are the caller's, and loading may set them.
    state.pop("padding", None)
    state.pop("truncation", None)
    return state


def load_weights(
    kind: Any, resolved: ResolvedModel, config: Any, dtype: torch.dtype, *, expected: str
) -> tuple[Any, list[str]]:
    """Load a folder's weights into a model in eval mode.

    Args:
        kind: the class of transformers that makes the model.
        resolved: the folder.
        config: what `read_config` gave for it.
        dtype: of the weights.
        expected: what messages say should lie there.

    Returns:
        The model, and the names of the weights that the folder lacks and that were drawn at random.

    Raises:
        ModelError: when the weights cannot be loaded, or are not in safetensors.
    """
    try:
        with _quiet_transformers():
            model, report = kind.from_pretrained(
                resolved.local(),
                config=config,
                dtype=dtype,
                use_safetensors=True,
                output_loading_info=True,
            )
    except (OSError, ValueError, RuntimeError, SafetensorError) as error:
        raise ModelError.of(
            "the model's weights cannot be loaded",
            place=resolved.path,
            found=_first_line(error),
            expected=f"{expected} with weights in model.safetensors",
        ) from None
    model.eval()
    _fuse(model)
    return model, sorted(report["missing_keys"])


class _RMSNorm(nn.Module):
    """torch's one kernel in the place of transformers' six operations."""

    def __init__(self, weight: nn.Parameter, epsilon: float) -> None:
        super().__init__()
        self.weight = weight
        self.variance_epsilon = epsilon

    def forward(self, hidden: Tensor) -> Tensor:
        """Scale vectors to a mean square of one, then by the weight; float32 in between."""
        shape = (hidden.shape[-1],)
        return nn.functional.rms_norm(hidden, shape, self.weight, self.variance_epsilon)


def _fuse(model: nn.Module) -> None:
    """Put torch's kernels where transformers writes the same function as many operations.

    GPT-2's GELU (Hendrycks and Gimpel 2016, the tanh form) takes a quarter of the time, an RMSNorm
    (Zhang and Sennrich 2019) half. Names of weights stay.
    """
    for module in list(model.modules()):
        child: Any
        for name, child in list(module.named_children()):
            if isinstance(child, NewGELUActivation):
                setattr(module, name, nn.GELU(approximate="tanh"))
            elif _is_plain_rms_norm(child):
                setattr(module, name, _RMSNorm(child.weight, child.variance_epsilon))


@torch.no_grad()
def _is_plain_rms_norm(module: Any) -> bool:
    """Say whether a module is what its name says: Gemma's, for one, adds 1 to the weight."""
    names = [name for name, _ in module.named_parameters()]
    if not type(module).__name__.endswith("RMSNorm") or names != ["weight"]:
        return False
    weight = module.weight
    if weight.ndim != 1 or not hasattr(module, "variance_epsilon"):
        return False
    probe = torch.linspace(-3, 5, 2 * len(weight), dtype=weight.dtype).view(2, -1)
    expected, found = module(probe), _RMSNorm(weight, module.variance_epsilon)(probe)
    tolerance = 1e-5 if weight.dtype == torch.float32 else 2e-2
    return torch.allclose(found.float(), expected.float(), atol=tolerance, rtol=tolerance)


@contextlib.contextmanager
def _quiet_transformers() -> Any:
    """Keep transformers' loading table out of the user's terminal; errors still raise."""
    logger = logging.getLogger("transformers")
    level = logger.level
    logger.setLevel(logging.ERROR)
    try:
        yield
    finally:
        logger.setLevel(level)


def _first_line(error: BaseException) -> str:
    return (str(error).strip() or type(error).__name__).splitlines()[0]
