"""Base models made from scratch: a GPT-2 of small size and a byte-level BPE of the user's texts.

Nothing is downloaded, so a demo or a test runs anywhere. The tokenizer is trained on the train
texts of all classes (one tokenizer for all, as exact comparison needs); the weights are drawn once
from a seed, and every class starts from them.
"""

from __future__ import annotations

import tempfile
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from gencls_core.errors import ModelError
from gencls_core.model_source import ResolvedModel
from gencls_core.remote_path import Location

__all__ = ["PRESETS", "SCRATCH_FORMAT", "ScratchPreset", "build_scratch_model", "scratch_preset"]


SCRATCH_FORMAT = 1


@dataclass(frozen=True)
class ScratchPreset:
    """Size of a model made from scratch."""

    layers: int
    heads: int
    width: int
    context: int
    vocabulary: int
    """At most this many tokens; a small corpus gives fewer."""


PRESETS = {
    "tiny": ScratchPreset(layers=2, heads=4, width=128, context=256, vocabulary=1024),
    "small": ScratchPreset(layers=4, heads=4, width=256, context=512, vocabulary=4096),
    "gpt2": ScratchPreset(layers=12, heads=12, width=768, context=1024, vocabulary=50257),
}


def scratch_preset(name: str) -> ScratchPreset:
    """Look up `scratch:NAME`.

    Raises:
        ModelError: when there is no such preset.
    """
    try:
        return PRESETS[name.removeprefix("scratch:")]
    except KeyError:
        raise ModelError.of(
            "no such preset",
            place=name,
            expected=", ".join(f"scratch:{preset}" for preset in PRESETS),
        ) from None


def build_scratch_model(name: str, texts: Iterable[str], seed: int, destination: Location) -> None:
    """Train the tokenizer on `texts`, draw the weights, and publish both as a model folder.

    Args:
        name: `scratch:tiny` and so on.
        texts: train texts of all classes; read once.
        seed: of the weights.
        destination: folder that is replaced as a whole.
    """
    import torch
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
    from transformers import GPT2Config, GPT2LMHeadModel, PreTrainedTokenizerFast

    preset = scratch_preset(name)
    separator = "<|endoftext|>"
    bpe = Tokenizer(models.BPE())
    bpe.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    bpe.decoder = decoders.ByteLevel()
    bpe.train_from_iterator(
        texts,
        trainers.BpeTrainer(
            vocab_size=preset.vocabulary,
            special_tokens=[separator],
            initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
            show_progress=False,
        ),
    )
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=bpe, bos_token=separator, eos_token=separator, pad_token=separator
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
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = GPT2LMHeadModel(config)
    with tempfile.TemporaryDirectory(prefix="gencls-") as folder:
        model.save_pretrained(folder)
        tokenizer.save_pretrained(folder)
        ResolvedModel.of_folder(name, Path(folder)).stage(destination)
