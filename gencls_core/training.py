"""One class's texts → one committed class model.

The loop is Hugging Face's `Trainer`; ours are the batches (texts as scoring will see them, windows
included), the loss (the kernel of `gencls_core.likelihood`), and the commit. A batch goes through
the model in passes of at most `tokens_per_pass` padded tokens, sorted by length, whose gradients
add up to exactly the batch's: memory is bounded by the pass, and little is spent on padding.

The loss is the negative log-likelihood in nats per scored token.
"""

from __future__ import annotations

import shutil
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch

from gencls_core.class_models import (
    COMMIT_NAME,
    ClassModel,
    TrainingRecord,
    files_of,
)
from gencls_core.errors import TrainingError
from gencls_core.events import TrainingProgress
from gencls_core.measure import peak_memory_bytes, reset_peak_memory
from gencls_core.models import CausalLM, attach_lora, load_causal_lm, tokenizer_digest
from gencls_core.storage import publish_directory, write_json
from gencls_core.tokenization import SequencePolicy, TokenizedText
from gencls_core.training_loop import ClassTrainer, count_steps, trainer_arguments
from gencls_core.training_task import TrainingTask

__all__ = ["TrainingTask", "train_class"]


def train_class(
    task: TrainingTask, on_progress: Callable[[TrainingProgress], None] | None = None
) -> ClassModel:
    """Train one class model and commit it.

    An interrupted training of the same digest goes on from its last whole checkpoint.

    Raises:
        ModelError: when the base model cannot be loaded.
        TrainingError: when the loss is no longer a finite number, or there is nothing to train on.
    """
    torch.set_num_threads(task.threads)
    reset_peak_memory()
    if task.device == "cuda":
        torch.cuda.reset_peak_memory_stats()
    started = time.perf_counter()
    lm = load_causal_lm(task.base)
    _seed(task.training.seed)
    if task.lora_rank is not None:
        lm = attach_lora(lm, task.lora_rank, task.lora_alpha)
    if task.training.gradient_checkpointing:
        enable: Any = lm.model.gradient_checkpointing_enable
        enable(gradient_checkpointing_kwargs={"use_reentrant": False})
    policy = SequencePolicy.resolve(
        task.sequence, bos_id=lm.bos_id, eos_id=lm.eos_id, context=lm.context
    )
    texts = _tokenize(lm, task.texts, policy)
    held_out = _tokenize(lm, task.validation_texts, policy)
    if not texts:
        raise TrainingError.of("no tokens to train on", place=f"class {task.class_name!r}")

    trainer = ClassTrainer(
        lm=lm,
        class_name=task.class_name,
        texts=texts,
        held_out=held_out,
        window=policy.window,
        config=task.training,
        tokens_per_pass=task.tokens_per_pass,
        precision=task.precision,
        on_progress=on_progress,
        args=trainer_arguments(
            task.training,
            output_dir=task.checkpoints,
            precision=task.precision,
            use_cpu=task.device == "cpu",
            evaluate=bool(held_out),
            total_steps=count_steps([len(text) for text in texts], task.training),
        ),
    )
    trainer.train(resume_from_checkpoint=_last_whole_checkpoint(task.checkpoints))
    nll = trainer.best_validation_nll
    record = TrainingRecord(
        texts=len(task.texts),
        tokens=trainer.tokens_seen,
        steps=trainer.state.global_step,
        epochs=round(trainer.state.epoch or 0.0, 3),
        best_epoch=trainer.best_epoch,
        train_loss=trainer.history[-1].train_loss,
        validation_nll=nll,
        validation_perplexity=None if nll is None else float(np.exp(nll)),
        seconds=round(time.perf_counter() - started, 3),
        tokens_per_second=round(trainer.tokens_per_second, 1),
        peak_memory_bytes=peak_memory_bytes(),
        peak_gpu_memory_bytes=(torch.cuda.max_memory_allocated() if task.device == "cuda" else 0),
        device=task.device,
        precision=task.precision,
        threads=task.threads,
        history=tuple(trainer.history),
    )
    return _commit(task, trainer.model, lm, record)


def _tokenize(lm: CausalLM, texts: list[str], policy: SequencePolicy) -> list[TokenizedText]:
    encoded = [TokenizedText.of(ids, policy) for ids in lm.encode(texts)] if texts else []
    return [text for text in encoded if len(text)]


def _commit(task: TrainingTask, model: Any, lm: CausalLM, record: TrainingRecord) -> ClassModel:
    with publish_directory(task.destination, COMMIT_NAME) as folder:
        model.save_pretrained(folder)
        lm.tokenizer.save_pretrained(folder)
        files = files_of(folder)
        committed = ClassModel(
            path=folder,
            class_name=task.class_name,
            class_id=task.class_id,
            digest=task.digest,
            base=task.base.name,
            base_digest=task.base.digest,
            tokenizer_digest=tokenizer_digest(lm.tokenizer),
            kind="full" if task.lora_rank is None else "lora",
            files=files,
            sizes={name: (folder / name).stat().st_size for name in files},
            training=record,
        )
        write_json(folder / COMMIT_NAME, committed.to_json())
    shutil.rmtree(task.checkpoints, ignore_errors=True)
    return ClassModel.open(task.destination)


def _last_whole_checkpoint(folder: Path) -> str | None:
    """Give the newest checkpoint that was written to its end; remove those that were not.

    Trainer writes `trainer_state.json` last.
    """
    whole = []
    for path in folder.glob("checkpoint-*"):
        if (path / "trainer_state.json").exists():
            whole.append(path)
        else:
            shutil.rmtree(path)
    return str(max(whole, key=lambda p: int(p.name.split("-")[1]))) if whole else None


def _seed(seed: int) -> None:
    from transformers import set_seed

    set_seed(seed)
