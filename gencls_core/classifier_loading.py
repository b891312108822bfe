"""From a causal language model, or from a committed classifier, to a `Classifier` that was checked.

What is checked: that the folder holds all weights and the classes asked for, that padding does not
change the logits, and that trunk and head, called apart, give what transformers' model gives.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from torch import nn
from transformers import AutoModelForSequenceClassification

from gencls_core.attention import use_causal_attention
from gencls_core.class_models import ClassModel
from gencls_core.classifiers import HEAD, Classifier, ReadText
from gencls_core.errors import ModelError
from gencls_core.loaded_models import LoadedClassModels
from gencls_core.model_loading import load_tokenizer, load_weights
from gencls_core.model_source import ResolvedModel
from gencls_core.models import (
    attach_lora,
    context_of,
    document_separator,
    load_causal_config,
    plain_model,
    refuse_foreign_tokenizer,
    tokenizer_digest,
)

__all__ = ["add_adapter", "load_classifier", "load_trained", "wrap_classifier"]

_PROBE_TOKENS = 6
_WITHOUT = "choose another --model, or leave `discriminative` out of --systems"
_AGAIN = "run the training command again"


def load_classifier(
    resolved: ResolvedModel,
    classes: Sequence[str],
    dtype: torch.dtype = torch.float32,
    *,
    new_head: bool = False,
) -> Classifier:
    """Load a classifier of exactly these classes.

    Args:
        resolved: a folder that a classifier was saved to, or with `new_head` a language model.
        classes: in the order of the head's outputs.
        dtype: of the weights.
        new_head: draw the head from torch's generator.

    Raises:
        ModelError: when transformers has no classifier of this architecture, when the folder's
            weights or classes are others, or when a check of `wrap_classifier` fails.
    """
    config = load_causal_config(resolved)
    if type(config) not in AutoModelForSequenceClassification._model_mapping:
        raise ModelError.of(
            "transformers has no sequence classifier of this architecture",
            place=resolved.name,
            found=str(config.model_type),
            expected="an architecture such as gpt2 or llama",
            remedy=_WITHOUT,
        )
    if not new_head:
        _refuse_other_classes(config, classes, resolved)
    config.id2label = dict(enumerate(classes))
    config.label2id = {name: number for number, name in enumerate(classes)}
    tokenizer = load_tokenizer(resolved)
    kind = "a causal language model" if new_head else "a sequence classifier"
    model, drawn = load_weights(
        AutoModelForSequenceClassification, resolved, config, dtype, expected=kind
    )
    of_head = [name for name in drawn if name.startswith(f"{HEAD}.")]
    if of_head != drawn or bool(of_head) != new_head:
        raise ModelError.of(
            f"the folder's weights are not those of {kind}",
            place=resolved.path,
            found=f"no {', '.join(drawn[:4])}" if drawn else "a classification head",
            expected="a language model without a classification head"
            if new_head
            else "weights of trunk and head",
            remedy=_WITHOUT if new_head else _AGAIN,
        )
    use_causal_attention(model)
    return wrap_classifier(model, tokenizer, classes, place=resolved.name)


def add_adapter(classifier: Classifier, rank: int, alpha: float | None) -> Classifier:
    """Freeze the trunk and add LoRA adapters to it; the head is trained and saved whole."""
    return attach_lora(classifier, rank, alpha, task_type="SEQ_CLS")


def load_trained(
    trained: ClassModel,
    base: ResolvedModel,
    classes: Sequence[str],
    *,
    dtype: torch.dtype = torch.float32,
    device: str = "cpu",
    compiled: bool = False,
) -> Classifier:
    """Load a committed classifier; an adapter and its head are put on the base.

    Raises:
        ModelError: as `load_classifier` does, and when the tokenizer is not the one it was
            committed with.
    """
    is_adapter = trained.kind == "lora"
    if is_adapter:
        folder = ResolvedModel("", trained.path, trained.digest, 0, {}, trained.files)
        _refuse_other_classes(load_causal_config(folder), classes, folder)
    classifier: Classifier = LoadedClassModels(
        [trained],
        base,
        load=lambda resolved: load_classifier(resolved, classes, dtype, new_head=is_adapter),
        tokenizer_of=lambda loaded: tokenizer_digest(loaded.tokenizer),
        device=device,
        setting="--model",
        compiled=compiled,
    ).any
    if is_adapter:
        _probe(classifier, base.name)
    return classifier


def _refuse_other_classes(config: Any, classes: Sequence[str], resolved: ResolvedModel) -> None:
    found = [config.id2label[number] for number in sorted(config.id2label)]
    if found != list(classes):
        raise ModelError.of(
            "the classifier was trained for other classes",
            place=resolved.path,
            found=", ".join(found),
            expected=", ".join(classes),
            remedy=_AGAIN,
        )


def wrap_classifier(
    model: nn.Module, tokenizer: Any, classes: Sequence[str], *, place: str
) -> Classifier:
    """Take a loaded model apart, checking vocabulary, padding and that the parts are the whole.

    Raises:
        ModelError: when a check fails.
    """
    inner: Any = plain_model(model)
    if not isinstance(getattr(inner, HEAD, None), nn.Module):
        raise ModelError.of(
            "the classifier of this architecture has a head of another kind",
            place=place,
            found=type(inner).__name__,
            expected=f"one that is called `{HEAD}`, as that of gpt2 or llama",
            remedy=_WITHOUT,
        )
    refuse_foreign_tokenizer(tokenizer, inner.get_input_embeddings().weight.shape[0], place)
    bos_id, eos_id = document_separator(tokenizer)
    # A text may end with what no vocabulary holds, and that is not its padding.
    if tokenizer.pad_token_id in (None, tokenizer.unk_token_id):
        tokenizer.pad_token = tokenizer.convert_ids_to_tokens(eos_id)
    # Else some models look for padding in every batch and warn of it: they find BOS.
    inner.config.get_text_config().pad_token_id = None
    classifier = Classifier(
        model=model,
        tokenizer=tokenizer,
        classes=tuple(classes),
        bos_id=bos_id,
        padding_id=tokenizer.pad_token_id,
        context=context_of(inner.config),
    )
    _probe(classifier, place)
    return classifier


@torch.no_grad()
def _probe(classifier: Classifier, place: str) -> None:
    """Check on a few tokens that padding changes nothing, and that head(trunk(x)) is model(x)."""
    inner: Any = plain_model(classifier.model)
    training = classifier.model.training
    classifier.model.eval()
    special = {*classifier.tokenizer.all_special_ids, classifier.bos_id, classifier.padding_id}
    rows = inner.get_input_embeddings().weight.shape[0]
    ordinary = [i for i in range(rows) if i not in special][:_PROBE_TOKENS] or [0]
    long = np.resize(np.array(ordinary, dtype=np.int32), min(_PROBE_TOKENS, classifier.context))
    # One of each length, so that a class is unlikely to have logits near 0 only.
    texts = [ReadText(long[: stop + 1], truncated=False) for stop in range(len(long))]
    # What is compared has the same shape: another one may be rounded otherwise, in bf16 by much.
    padded_BC = classifier.logits(texts)
    another = next(i for i in (ordinary[-1], 0, 1) if i != classifier.padding_id)
    otherwise_BC = classifier.logits(texts, padding_id=another)
    apart_C = classifier.logits(texts[-1:])[0]
    whole_C = inner(input_ids=classifier.pad(texts[-1:])).logits[0].float()
    classifier.model.train(training)
    scale = padded_BC.abs().max().item() or 1.0
    exact = next(classifier.model.parameters()).dtype == torch.float32
    tolerance = scale * (1e-4 if exact else 1e-2)
    if (padded_BC - otherwise_BC).abs().max().item() > tolerance:
        raise ModelError.of(
            "padding changes what the classifier says of a text",
            place=place,
            found=type(inner).__name__,
            expected="a causal model, where nothing reads what follows it",
            remedy=_WITHOUT,
        )
    if whole_C.shape != apart_C.shape or (whole_C - apart_C).abs().max().item() > tolerance:
        raise ModelError.of(
            "the classifier does more than a head on the hidden state of the last token",
            place=place,
            found=type(inner).__name__,
            expected="logits = head(last hidden state of the last token)",
            remedy=_WITHOUT,
        )
