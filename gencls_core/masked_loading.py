"""A folder → a masked language model that is ready to score or to train.

Whether texts can be scored with it is checked by `wrap_masked_lm`; here, whether the folder holds a
whole masked model. transformers would load the trunk of a classifier, or a model saved without its
head, and draw what is missing at random: such a model says nothing of a text.
"""

from __future__ import annotations

import torch
from transformers import AutoModelForMaskedLM

from gencls_core.errors import ModelError, counted
from gencls_core.masked_models import MaskedLM, wrap_masked_lm
from gencls_core.model_loading import load_tokenizer, load_weights, read_config, tokenizer_state
from gencls_core.model_source import ResolvedModel
from gencls_core.storage import digest_of

__all__ = ["load_masked_lm", "masked_tokenizer_digest"]


def load_masked_lm(resolved: ResolvedModel, dtype: torch.dtype = torch.float32) -> MaskedLM:
    """Load weights and tokenizer, in eval mode, and check that texts can be scored with them.

    Raises:
        ModelError: when the folder holds no masked model, or not all of one; when it has no
            safetensors weights or no fast tokenizer; and as `wrap_masked_lm`.
    """
    config = read_config(resolved)
    if (
        type(config) not in AutoModelForMaskedLM._model_mapping
        or getattr(config, "is_encoder_decoder", False)
        or getattr(config, "is_decoder", False)
    ):
        architectures = ", ".join(getattr(config, "architectures", None) or [])
        raise ModelError.of(
            "not a masked language model",
            place=resolved.name,
            found=f"{config.model_type} ({architectures or 'no architecture named'})",
            expected="a model that reads both sides of a masked token, such as RoBERTa or BERT",
            remedy="choose a masked one (--masked-model roberta-base)",
        )
    tokenizer = load_tokenizer(resolved)
    model, missing = load_weights(
        AutoModelForMaskedLM, resolved, config, dtype, expected="a masked language model"
    )
    if missing:
        raise ModelError.of(
            "the model is not whole: transformers would draw missing weights at random",
            place=resolved.path,
            found=f"{counted(len(missing), 'weight')} missing: {', '.join(missing[:4])}",
            expected=f"all weights of {type(model).__name__}, those of its head included",
            remedy="choose a model that was saved as a masked language model, such as roberta-base",
        )
    return wrap_masked_lm(model, tokenizer, place=resolved.name)


def masked_tokenizer_digest(lm: MaskedLM) -> str:
    """Name a tokenizer by what it does to a text: its whole state and what is read around a text.

    `models.tokenizer_digest` asks for the separator of documents, which a masked model need not
    have.
    """
    return digest_of(
        {
            "tokenizer": tokenizer_state(lm.tokenizer),
            "around": [lm.prefix, lm.suffix],
            "mask": lm.mask_id,
        }
    )
