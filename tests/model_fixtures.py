"""Small models of real architectures, made on the spot: a hub is not needed to test exactness."""

from __future__ import annotations

from pathlib import Path

import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import (
    BertConfig,
    BertForMaskedLM,
    GPT2Config,
    GPT2LMHeadModel,
    LlamaConfig,
    LlamaForCausalLM,
    PreTrainedTokenizerFast,
)

CORPUS = [
    "The council repaired the road by the river before the winter came.",
    "A small orchestra played in the square, and nobody went home early.",
    "Prices rose again in spring, said the bank, though wages did not.",
    "Ein Satz auf Deutsch, with ünïcödé and 数字 in between.",
    "def add(a, b):\n    return a + b\n",
    "",
]

ARCHITECTURES = ("gpt2", "llama")


def make_tokenizer(vocabulary: int = 400) -> PreTrainedTokenizerFast:
    bpe = Tokenizer(models.BPE())
    bpe.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    bpe.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocabulary,
        special_tokens=["<|endoftext|>"],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    bpe.train_from_iterator(CORPUS * 3, trainer)
    return PreTrainedTokenizerFast(
        tokenizer_object=bpe,
        bos_token="<|endoftext|>",
        eos_token="<|endoftext|>",
        pad_token="<|endoftext|>",
    )


def make_model_folder(
    folder: Path, architecture: str = "gpt2", *, context: int = 64, seed: int = 0
) -> Path:
    """Write a small random causal LM (or a BERT) with its tokenizer."""
    tokenizer = make_tokenizer()
    torch.manual_seed(seed)
    vocabulary = len(tokenizer)
    if architecture == "gpt2":
        model = GPT2LMHeadModel(
            GPT2Config(
                vocab_size=vocabulary, n_positions=context, n_embd=32, n_layer=2, n_head=4,
                bos_token_id=0, eos_token_id=0, initializer_range=0.2,
            )
        )  # fmt: skip
    elif architecture == "llama":
        model = LlamaForCausalLM(
            LlamaConfig(
                vocab_size=vocabulary, max_position_embeddings=context, hidden_size=32,
                intermediate_size=64, num_hidden_layers=2, num_attention_heads=4,
                num_key_value_heads=2, bos_token_id=0, eos_token_id=0, initializer_range=0.2,
                tie_word_embeddings=False,
            )
        )  # fmt: skip
    else:
        model = BertForMaskedLM(
            BertConfig(
                vocab_size=vocabulary, hidden_size=32, num_hidden_layers=1,
                num_attention_heads=2, intermediate_size=64,
            )
        )  # fmt: skip
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder
