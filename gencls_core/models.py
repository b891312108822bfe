"""From a model's name to a causal language model that is ready to score or to train.

A name is a preset made from scratch (`scratch:tiny`), a model that `gencls pull` brought, a local
folder or a Hugging Face hub id. All of them resolve to a folder first (`resolve_model`), so tasks
and actors load from a path. Loading checks what the exactness rests on: that the model is causal,
and that its trunk and head, called apart, give the logits that it gives as a whole.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar, Protocol, TypeVar

import torch
from torch import Tensor, nn
from transformers import AutoModelForCausalLM
from transformers.pytorch_utils import Conv1D

from gencls_core.attention import use_causal_attention
from gencls_core.config import SequenceConfig
from gencls_core.errors import ModelError
from gencls_core.likelihood import Head, LinearHead
from gencls_core.model_loading import load_tokenizer, load_weights, read_config, tokenizer_state
from gencls_core.model_source import ResolvedModel
from gencls_core.products import FastLinear
from gencls_core.tokenization import SequencePolicy

__all__ = [
    "CausalLM",
    "LanguageModel",
    "attach_lora",
    "context_of",
    "document_separator",
    "load_adapters",
    "load_causal_config",
    "load_causal_lm",
    "plain_model",
    "refuse_foreign_tokenizer",
    "tokenize",
    "tokenizer_digest",
]


class LanguageModel(Protocol):
    """A model with its tokenizer, as a frozen dataclass: causal or masked."""

    __dataclass_fields__: ClassVar[dict[str, Any]]

    @property
    def model(self) -> nn.Module:
        """Made by transformers, plain or inside a LoRA wrapper."""

    @property
    def tokenizer(self) -> Any:
        """A fast tokenizer."""


LM = TypeVar("LM", bound=LanguageModel)


@dataclass(frozen=True)
class CausalLM:
    """A causal language model taken apart into trunk and head, with its tokenizer.

    `trunk(input_ids [B, T])` gives the last hidden states [B, T, D]; `head` turns [N, D] into
    logits [N, V].
    """

    model: nn.Module
    tokenizer: Any
    bos_id: int
    eos_id: int
    context: int
    """Tokens that the model reads at once."""
    vocabulary: int

    @property
    def device(self) -> torch.device:
        """Where the weights are."""
        return next(self.model.parameters()).device

    def policy(self, sequence: SequenceConfig) -> SequencePolicy:
        """Bind sequence settings to this model."""
        return SequencePolicy.resolve(
            sequence, bos_id=self.bos_id, eos_id=self.eos_id, context=self.context
        )

    def hidden(self, input_ids_BT: Tensor) -> Tensor:
        """Give the last hidden states [B, T, D] of right-padded inputs."""
        trunk, _ = _parts(self.model)
        states: Tensor = trunk(input_ids=input_ids_BT, use_cache=False).last_hidden_state
        return states

    @property
    def head(self) -> Head:
        """The map from hidden states [N, D] to logits [N, V]."""
        _, head = _parts(self.model)
        cap = getattr(plain_model(self.model).config, "final_logit_softcapping", None)
        scale = getattr(plain_model(self.model).config, "logit_scale", None)
        if cap is None and scale is None:
            if type(head) in (nn.Linear, FastLinear):
                return LinearHead(head.weight, head.bias)
            plain: Head = head
            return plain

        def scaled(hidden_ND: Tensor) -> Tensor:
            logits_NV: Tensor = head(hidden_ND)
            if scale is not None:
                logits_NV = logits_NV * scale
            return logits_NV if cap is None else torch.tanh(logits_NV / cap) * cap

        return scaled

    def encode(self, texts: list[str]) -> list[list[int]]:
        """Give each text's own token ids, without BOS, EOS or any other special token."""
        return tokenize(self.tokenizer, texts)


def tokenize(tokenizer: Any, texts: list[str]) -> list[list[int]]:
    """Give each text's own token ids, without BOS, EOS or any other special token."""
    ids: list[list[int]] = tokenizer(
        texts,
        add_special_tokens=False,
        # `<|endoftext|>` written in a text is text, not the end of it.
        split_special_tokens=True,
        return_attention_mask=False,
        verbose=False,
    )["input_ids"]
    return ids


def document_separator(tokenizer: Any) -> tuple[int, int]:
    """Give the ids (BOS, EOS) that stood before and after a document in pretraining.

    GPT-2 and its kin use `<|endoftext|>` for both, also where a chat model's `bos_token` says
    something else. Otherwise the tokenizer's own BOS and EOS; one of them serves for both where
    only one is set.

    Raises:
        ModelError: when the tokenizer has neither.
    """
    separator: int | None = tokenizer.backend_tokenizer.token_to_id("<|endoftext|>")
    if separator is not None:
        return separator, separator
    bos, eos = tokenizer.bos_token_id, tokenizer.eos_token_id
    if bos is None and eos is None:
        raise ModelError.of(
            "the tokenizer has neither a BOS nor an EOS token",
            place=tokenizer.name_or_path,
            expected="a token that separates documents; the first token is conditioned on it",
            remedy="set `bos_token` and `eos_token` in tokenizer_config.json",
        )
    return (eos if bos is None else bos), (bos if eos is None else eos)


def tokenizer_digest(tokenizer: Any) -> str:
    """Name a tokenizer by what it does to a text: its whole state and its document separator."""
    from gencls_core.storage import digest_of

    return digest_of(
        {"tokenizer": tokenizer_state(tokenizer), "separator": document_separator(tokenizer)}
    )


def load_causal_lm(resolved: ResolvedModel, dtype: torch.dtype = torch.float32) -> CausalLM:
    """Load weights and tokenizer, and check that the model can be scored exactly.

    Raises:
        ModelError: when the model is not a causal LM, lacks safetensors weights, has no
            tokenizer, or has a tokenizer that does not fit its vocabulary.
    """
    config = load_causal_config(resolved)
    tokenizer = load_tokenizer(resolved)
    model, drawn = load_weights(
        AutoModelForCausalLM, resolved, config, dtype, expected="a causal language model"
    )
    if drawn:
        raise ModelError.of(
            "weights are missing, and would be drawn at random",
            place=resolved.path,
            found=f"no {', '.join(drawn[:4])}",
            expected="all weights of a causal language model, its head included",
            remedy="save it with `AutoModelForCausalLM` and `model.save_pretrained(folder)`",
        )
    use_causal_attention(model)
    return wrap(model, tokenizer, place=resolved.name)


def wrap(model: nn.Module, tokenizer: Any, *, place: str) -> CausalLM:
    """Take a loaded model apart, checking vocabulary, causality and that the parts are the whole.

    Raises:
        ModelError: when a check fails.
    """
    bos_id, eos_id = document_separator(tokenizer)
    config: Any = plain_model(model).config
    rows = plain_model(model).get_input_embeddings().weight.shape[0]
    refuse_foreign_tokenizer(tokenizer, rows, place)
    wrapped = CausalLM(
        model=model,
        tokenizer=tokenizer,
        bos_id=bos_id,
        eos_id=eos_id,
        context=context_of(config),
        vocabulary=rows,
    )
    _probe(wrapped, place)
    return wrapped


def context_of(config: Any) -> int:
    """Give the tokens that a causal model reads at once."""
    limit = getattr(config, "max_position_embeddings", None) or getattr(config, "n_positions", None)
    return int(limit or 2048)


def attach_lora(
    lm: LM, rank: int, alpha: float | None, *, task_type: str | None = "CAUSAL_LM"
) -> LM:
    """Freeze the weights and add trainable LoRA adapters to every linear layer but the last.

    `task_type` is PEFT's; it has none for masked models.
    """
    from dataclasses import replace

    from peft import LoraConfig, get_peft_model

    config = LoraConfig(
        task_type=task_type,
        r=rank,
        lora_alpha=alpha if alpha is not None else 2 * rank,
        target_modules="all-linear",
        fan_in_fan_out=_uses_conv1d(lm.model),
    )
    model: Any = get_peft_model(lm.model, config)
    # peft collects the layers in a set, and would write them in an order that no seed decides.
    for found in model.peft_config.values():
        found.target_modules = sorted(found.target_modules)
    return replace(lm, model=model)


def load_adapters(lm: LM, folders: dict[str, Path]) -> LM:
    """Load several LoRA adapters onto one base; `model.set_adapter(name)` chooses one."""
    from dataclasses import replace

    from peft import PeftModel

    model: Any = None
    for name, folder in folders.items():
        if model is None:
            model = PeftModel.from_pretrained(lm.model, str(folder), adapter_name=name)
        else:
            model.load_adapter(str(folder), adapter_name=name)
    model.eval()
    return replace(lm, model=model)


def load_causal_config(resolved: ResolvedModel) -> Any:
    """Read a folder's configuration, and refuse a model that is not causal.

    Raises:
        ModelError: when it is not, or the configuration cannot be read.
    """
    config = read_config(resolved)
    architectures = list(getattr(config, "architectures", None) or [])
    masked = any(
        "MaskedLM" in name or (name.endswith("ForPreTraining") and "GPT" not in name)
        for name in architectures
    )
    if (
        type(config) not in AutoModelForCausalLM._model_mapping
        or getattr(config, "is_encoder_decoder", False)
        or masked
        or _is_bidirectional(config)
    ):
        raise ModelError.of(
            "not a causal language model",
            place=resolved.name,
            found=f"{config.model_type} ({', '.join(architectures) or 'no architecture named'})",
            expected="a model that predicts each token from those before it, such as GPT-2",
            remedy="choose a causal one (--model gpt2); a masked model gives no exact likelihood",
        )
    return config


def _is_bidirectional(config: Any) -> bool:
    """Say whether transformers would build an encoder that merely has a causal-LM class."""
    from transformers import AutoModelForMaskedLM

    return type(config) in AutoModelForMaskedLM._model_mapping and not getattr(
        config, "is_decoder", False
    )


def plain_model(model: Any) -> Any:
    """Give the plain model inside a LoRA wrapper."""
    return model.get_base_model() if hasattr(model, "peft_config") else model


def _parts(model: Any) -> tuple[Any, Any]:
    inner = plain_model(model)
    return getattr(inner, inner.base_model_prefix), inner.get_output_embeddings()


@torch.no_grad()
def _probe(lm: CausalLM, place: str) -> None:
    """Check on a few tokens that nothing looks ahead, and that head(trunk(x)) is model(x)."""
    weight = next(lm.model.parameters())
    training = lm.model.training
    lm.model.eval()
    ids = torch.arange(8, device=weight.device).repeat(2, 1) % lm.vocabulary
    ids[1, -1] = (ids[1, -1] + 1) % lm.vocabulary
    whole, changed = lm.model(input_ids=ids, use_cache=False).logits.float()
    apart = lm.head(lm.hidden(ids)[0]).float()
    lm.model.train(training)
    scale = whole.abs().max().item() or 1.0
    tolerance = scale * (1e-4 if weight.dtype == torch.float32 else 5e-2)
    if (whole[:-1] - changed[:-1]).abs().max().item() > tolerance:
        raise ModelError.of(
            "the model looks ahead: it is not a causal language model",
            place=place,
            found="logits of earlier positions that change with a later token",
            remedy="choose a causal one, such as --model gpt2",
        )
    if (whole - apart).abs().max().item() > tolerance:
        raise ModelError.of(
            "the model does more to its logits than trunk and head",
            place=place,
            found=f"{type(plain_model(lm.model)).__name__}",
            expected="logits = head(last hidden state), scaled or soft-capped at most",
            remedy="choose another architecture, or open an issue that names this one",
        )


def _uses_conv1d(model: nn.Module) -> bool:
    return any(isinstance(module, Conv1D) for module in model.modules())


def refuse_foreign_tokenizer(tokenizer: Any, rows: int, place: Any) -> None:
    """Raise a ModelError when a token id has no row among the `rows` of the model's embedding."""
    highest = max(tokenizer.get_vocab().values())
    if highest >= rows:
        raise ModelError.of(
            "the tokenizer does not fit the model's vocabulary",
            place=place,
            found=f"token ids up to {highest}",
            expected=f"ids below {rows}, the rows of the embedding",
            remedy="use the tokenizer that the model was trained with",
        )
