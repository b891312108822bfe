"""Small masked models of real architectures, made on the spot."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import numpy as np
import torch
from model_fixtures import CORPUS
from tokenizers import Tokenizer, models, normalizers, pre_tokenizers, processors
from transformers import (
    BertConfig,
    BertForMaskedLM,
    DistilBertConfig,
    DistilBertForMaskedLM,
    PreTrainedTokenizerFast,
    RobertaConfig,
    RobertaForMaskedLM,
)

from gencls_core.config import SequenceConfig, TrainingConfig
from gencls_core.masked_likelihood import MaskedText
from gencls_core.masked_models import MaskedLM
from gencls_core.model_source import ResolvedModel
from gencls_core.training_task import TrainingTask

ARCHITECTURES = ("roberta", "bert", "distilbert")
POSITIONS = 26
CLASSES = ("river", "road")
WORDS = sorted({"a", "again", "and", "bank", "by", "home", "in", "river", "road", "rose", "the"})
LONG = " ".join(CORPUS[:2])


def make_tokenizer(architecture: str) -> PreTrainedTokenizerFast:
    """Byte-level BPE with `<s> … </s>` for RoBERTa, WordPiece with `[CLS] … [SEP]` for the rest.

    Their vocabularies are written down: trained ones differ from run to run where counts are equal.
    """
    if architecture == "roberta":
        special = ["<s>", "<pad>", "</s>", "<unk>", "<mask>"]
        names = {"cls": "<s>", "pad": "<pad>", "sep": "</s>", "unk": "<unk>", "mask": "<mask>"}
        merges = [("t", "h"), ("e", "r"), ("th", "e"), ("Ġ", "the"), ("i", "n"), ("Ġ", "a")]
        pieces = [*sorted(pre_tokenizers.ByteLevel.alphabet()), *(a + b for a, b in merges)]
        vocabulary = {piece: number for number, piece in enumerate([*special, *pieces])}
        tokenizer = Tokenizer(models.BPE(vocabulary, merges))
        tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    else:
        special = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]
        names = {name.strip("[]").lower(): name for name in special}
        letters = sorted({letter for text in CORPUS for letter in text.lower() if letter.strip()})
        words = sorted({word for text in CORPUS for word in text.lower().split() if len(word) < 6})
        pieces = [*letters, *(f"##{letter}" for letter in letters), *words]
        vocabulary = {piece: i for i, piece in enumerate(dict.fromkeys([*special, *pieces]))}
        tokenizer = Tokenizer(models.WordPiece(vocabulary, unk_token="[UNK]"))
        tokenizer.normalizer = normalizers.BertNormalizer()
        tokenizer.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    tokenizer.add_special_tokens(special)
    before, after = names["cls"], names["sep"]
    tokenizer.post_processor = processors.TemplateProcessing(
        single=f"{before} $A {after}",
        special_tokens=[(name, tokenizer.token_to_id(name)) for name in (before, after)],
    )
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, **{f"{name}_token": token for name, token in names.items()}
    )


def make_model(architecture: str, tokenizer: PreTrainedTokenizerFast, seed: int = 0, **changes):
    torch.manual_seed(seed)
    common = {
        "vocab_size": len(tokenizer),
        "max_position_embeddings": POSITIONS,
        "pad_token_id": tokenizer.pad_token_id,
        "initializer_range": 0.2,
    }
    if architecture == "distilbert":
        small = DistilBertConfig(**common, dim=32, n_layers=2, n_heads=4, hidden_dim=64, **changes)
        return DistilBertForMaskedLM(small).eval()
    sizes = {
        "hidden_size": 32,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "intermediate_size": 64,
    }
    if architecture == "roberta":
        return RobertaForMaskedLM(RobertaConfig(**common, **sizes, type_vocab_size=1)).eval()
    return BertForMaskedLM(BertConfig(**common, **sizes, **changes)).eval()


def make_masked_folder(folder: Path, architecture: str = "bert", seed: int = 0) -> ResolvedModel:
    """Write a small random masked LM with its tokenizer."""
    tokenizer = make_tokenizer(architecture)
    make_model(architecture, tokenizer, seed).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return ResolvedModel.of_folder(architecture, folder)


def cut(lm: MaskedLM, texts: list[str]) -> list[MaskedText]:
    return [MaskedText.of(ids, window=lm.window) for ids in lm.encode(texts)]


def planted(count: int, seed: int) -> list[str]:
    """Give texts whose words are in alphabetical order."""
    generator = np.random.default_rng(seed)
    chosen = [
        sorted(generator.choice(len(WORDS), size=generator.integers(4, 7), replace=False).tolist())
        for _ in range(count)
    ]
    return [" ".join(WORDS[i] for i in numbers) for numbers in chosen]


def backwards(texts: list[str]) -> list[str]:
    return [" ".join(reversed(text.split())) for text in texts]


def task_of(base: ResolvedModel, destination: Path, class_id: int = 0, **changes) -> TrainingTask:
    """Train on texts in alphabetical order, or for the other class on the same ones backwards."""
    turn = backwards if class_id else list
    task = TrainingTask(
        class_name=CLASSES[class_id],
        class_id=class_id,
        digest="d" * 64,
        base=base,
        texts=turn(planted(40, seed=1)),
        validation_texts=turn(planted(10, seed=2)),
        destination=destination / CLASSES[class_id],
        sequence=SequenceConfig(),
        training=TrainingConfig(epochs=16, learning_rate=8e-3, patience=0),
        lora_rank=None,
        lora_alpha=None,
        precision="fp32",
        device="cpu",
        threads=1,
        tokens_per_pass=1024,
        system="masked-lm",
        objective="masked",
    )
    return dataclasses.replace(task, **changes)
