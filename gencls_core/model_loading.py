"""A model folder → its configuration, tokenizer and weights, whatever kind of model it holds."""

from __future__ import annotations

import contextlib
import json
import logging
from typing import Any

import torch
from safetensors import SafetensorError
from transformers import AutoConfig, AutoTokenizer
from transformers.utils.logging import disable_progress_bar

from gencls_core.errors import ModelError
from gencls_core.fused_layers import fuse
from gencls_core.model_source import ResolvedModel
from gencls_core.process_memory import products_of_a_layer, settle_memory

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
    except Exception as error:  # that is what the library raises for a file that it cannot read
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
    settle_memory(products_of_a_layer(getattr(config, "max_position_embeddings", None)))
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
    fuse(model)
    return model, sorted(report["missing_keys"])


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
