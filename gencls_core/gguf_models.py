"""Turn a GGUF file into an ordinary Hugging Face model folder in float32.

Transformers reads GGUF but refuses to save what it read ("quantized with gguf"), and it keeps the
special tokens of the chat format. What comes out here is a plain causal language model whose
BOS, EOS and padding are the separator between documents in pretraining.
"""

from __future__ import annotations

import contextlib
import io
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from gencls_core.errors import ModelError

__all__ = ["convert_gguf", "load_gguf"]


def load_gguf(gguf: Path) -> Any:
    """Load a GGUF file's causal language model, its weights dequantised to float32."""
    import torch
    from transformers import AutoModelForCausalLM

    with _no_progress_bars():
        return AutoModelForCausalLM.from_pretrained(
            gguf.parent, gguf_file=gguf.name, dtype=torch.float32
        )


def convert_gguf(gguf: Path, destination: Path, *, separator: str) -> None:
    """Write config, tokenizer and float32 safetensors of `gguf` into the folder `destination`.

    Args:
        gguf: the GGUF file.
        destination: an existing folder.
        separator: the token between documents in pretraining, for example `<|endoftext|>`.

    Raises:
        ModelError: when the file cannot be read, or its vocabulary lacks the separator.
    """
    from transformers import GenerationConfig

    try:
        quantized = load_gguf(gguf)
        tokenizer = _tokenizer(gguf)
    except (OSError, ValueError, KeyError, ImportError) as error:
        raise ModelError.of("cannot read the GGUF file", place=gguf, found=str(error)) from error
    if separator not in tokenizer.get_vocab():
        raise ModelError.of(
            "the model's vocabulary lacks the document separator", place=gguf, expected=separator
        )
    separator_id = tokenizer.convert_tokens_to_ids(separator)
    special = dict.fromkeys(("bos_token_id", "eos_token_id", "pad_token_id"), separator_id)

    values = quantized.config.to_dict()
    for name in ("quantization_config", "_model_name_or_path"):
        values.pop(name, None)
    config = type(quantized.config).from_dict({**values, **special})
    # A fresh model of the same shape: only the one that was read from GGUF refuses to be saved.
    model = type(quantized)(config)
    model.load_state_dict(quantized.state_dict())
    model.tie_weights()
    model.generation_config = GenerationConfig(**special)

    tokenizer.bos_token = tokenizer.eos_token = tokenizer.pad_token = separator
    tokenizer.chat_template = None
    tokenizer.model_max_length = config.max_position_embeddings
    with _no_progress_bars():
        model.save_pretrained(destination, safe_serialization=True)
    tokenizer.save_pretrained(destination)
    for path in destination.iterdir():  # safetensors come as 0600, which no colleague could read
        path.chmod((destination / "config.json").stat().st_mode)


def _tokenizer(gguf: Path) -> Any:
    from gguf import GGUFReader
    from tokenizers import pre_tokenizers
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(gguf.parent, gguf_file=gguf.name)
    kind = GGUFReader(gguf).fields.get("tokenizer.ggml.pre")
    if kind is not None and kind.contents() == "smollm":
        # Transformers drops what `tokenizer.ggml.pre` says. SmolLM splits each digit off before
        # the GPT-2 pattern, which changes how spaces before a number are cut.
        tokenizer.backend_tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
            [
                pre_tokenizers.Digits(individual_digits=True),
                pre_tokenizers.ByteLevel(add_prefix_space=False),
            ]
        )
    return tokenizer


@contextlib.contextmanager
def _no_progress_bars() -> Iterator[None]:
    """Keep transformers' own bars off the terminal: progress is ours to show.

    The GGUF reader's bar has no switch and writes to whatever `sys.stderr` is.
    """
    from transformers.utils import logging

    shown = logging.is_progress_bar_enabled()
    logging.disable_progress_bar()
    try:
        with contextlib.redirect_stderr(io.StringIO()):
            yield
    finally:
        if shown:
            logging.enable_progress_bar()
