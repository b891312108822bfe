"""Base models made from scratch: a small GPT-2 or RoBERTa and a byte-level BPE of the user's texts.

Nothing is downloaded, so a demo or a test runs anywhere. The tokenizer is trained on the train
texts of all classes (one tokenizer for all, as exact comparison needs); the weights are drawn once
from a seed, and every class starts from them.
"""

from __future__ import annotations

import tempfile
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from gencls_core.datasets.dataset import Dataset
from gencls_core.errors import ModelError
from gencls_core.model_source import ResolvedModel
from gencls_core.remote_path import Location

if TYPE_CHECKING:
    from tokenizers import Tokenizer

__all__ = [
    "PRESETS",
    "SCRATCH_FORMAT",
    "ScratchPreset",
    "build_scratch_base",
    "build_scratch_model",
    "scratch_preset",
]


SCRATCH_FORMAT = 1

ScratchKind = Literal["causal", "masked"]


@dataclass(frozen=True)
class ScratchPreset:
    """Kind and size of a model made from scratch."""

    layers: int
    heads: int
    width: int
    context: int
    """Tokens read at once; of a masked model, special ones included."""
    vocabulary: int
    """At most this many tokens; a small corpus gives fewer."""
    kind: ScratchKind = "causal"


PRESETS = {
    "tiny": ScratchPreset(layers=2, heads=4, width=128, context=256, vocabulary=1024),
    "small": ScratchPreset(layers=4, heads=4, width=256, context=512, vocabulary=4096),
    "gpt2": ScratchPreset(layers=12, heads=12, width=768, context=1024, vocabulary=50257),
    "masked-tiny": ScratchPreset(2, 4, width=128, context=256, vocabulary=1024, kind="masked"),
    "masked-small": ScratchPreset(4, 4, width=256, context=512, vocabulary=4096, kind="masked"),
}


def scratch_preset(name: str, kind: ScratchKind | None = None) -> ScratchPreset:
    """Look up `scratch:NAME`.

    Args:
        name: `scratch:tiny` and so on.
        kind: what it is wanted as; None takes either.

    Raises:
        ModelError: when there is no such preset, or it is of the other kind.
    """
    preset = PRESETS.get(name.removeprefix("scratch:"))
    if preset is None or kind not in (None, preset.kind):
        fitting = [other for other, size in PRESETS.items() if kind in (None, size.kind)]
        raise ModelError.of(
            "no such preset" if preset is None else f"not a {kind} language model",
            place=name,
            found=None if preset is None else f"a {preset.kind} one",
            expected=", ".join(f"scratch:{other}" for other in fitting),
            remedy=None
            if preset is None
            else "causal models go with --model, masked ones with --masked-model",
        )
    return preset


def build_scratch_model(name: str, texts: Iterable[str], seed: int, destination: Location) -> None:
    """Train the tokenizer on `texts`, draw the weights, and publish both as a model folder.

    Args:
        name: `scratch:tiny` and so on.
        texts: train texts of all classes; read once.
        seed: of the weights.
        destination: folder that is replaced as a whole.

    Raises:
        ModelError: when there is no such preset.
    """
    import torch

    preset = scratch_preset(name)
    make = _masked if preset.kind == "masked" else _causal
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model, tokenizer = make(preset, texts)
    with tempfile.TemporaryDirectory(prefix="gencls-") as folder:
        model.save_pretrained(folder)
        tokenizer.save_pretrained(folder)
        ResolvedModel.of_folder(name, Path(folder)).stage(destination)


def build_scratch_base(name: str, dataset: Location, seed: int, destination: Location) -> None:
    """Do so with the train texts of a prepared dataset."""
    build_scratch_model(name, Dataset.open(dataset).base_texts(), seed, destination)


def _causal(preset: ScratchPreset, texts: Iterable[str]) -> tuple[Any, Any]:
    from transformers import GPT2Config, GPT2LMHeadModel, PreTrainedTokenizerFast

    separator = "<|endoftext|>"
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=_byte_level_bpe(texts, preset.vocabulary, [separator]),
        bos_token=separator,
        eos_token=separator,
        pad_token=separator,
    )
    ends = tokenizer.convert_tokens_to_ids(separator)
    config = GPT2Config(
        vocab_size=len(tokenizer),
        n_positions=preset.context,
        n_embd=preset.width,
        n_layer=preset.layers,
        n_head=preset.heads,
        bos_token_id=ends,
        eos_token_id=ends,
    )
    return GPT2LMHeadModel(config), tokenizer


def _masked(preset: ScratchPreset, texts: Iterable[str]) -> tuple[Any, Any]:
    from tokenizers import processors
    from transformers import PreTrainedTokenizerFast, RobertaConfig, RobertaForMaskedLM

    # Numbered as in RoBERTa, which counts positions from the padding id + 1.
    begin, padding, end, mask = special = ["<s>", "<pad>", "</s>", "<mask>"]
    bpe = _byte_level_bpe(texts, preset.vocabulary, special)
    bpe.post_processor = processors.TemplateProcessing(
        single=f"{begin} $A {end}",
        pair=f"{begin} $A {end} {end} $B {end}",
        special_tokens=[(name, bpe.token_to_id(name)) for name in (begin, end)],
    )
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=bpe,
        bos_token=begin,
        cls_token=begin,
        eos_token=end,
        sep_token=end,
        pad_token=padding,
        mask_token=mask,
    )
    config = RobertaConfig(
        vocab_size=len(tokenizer),
        max_position_embeddings=preset.context + tokenizer.pad_token_id + 1,
        type_vocab_size=1,
        hidden_size=preset.width,
        intermediate_size=4 * preset.width,
        num_hidden_layers=preset.layers,
        num_attention_heads=preset.heads,
        bos_token_id=tokenizer.bos_token_id,
        pad_token_id=tokenizer.pad_token_id,
        eos_token_id=tokenizer.eos_token_id,
    )
    return RobertaForMaskedLM(config), tokenizer


def _byte_level_bpe(texts: Iterable[str], vocabulary: int, special: list[str]) -> Tokenizer:
    """Train a byte-level BPE; the special tokens get the first ids, in their order."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers

    bpe = Tokenizer(models.BPE())
    bpe.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    bpe.decoder = decoders.ByteLevel()
    bpe.train_from_iterator(
        texts,
        trainers.BpeTrainer(
            vocab_size=vocabulary,
            special_tokens=special,
            initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
            show_progress=False,
        ),
    )
    return bpe
