"""Texts → one committed model: of one class, or a classifier of all.

The loop is Hugging Face's `Trainer`; ours are the batches, the loss (`gencls_core.objectives`) and
the commit. A batch goes through the model in passes of at most `tokens_per_pass` padded tokens,
sorted by length, whose gradients add up to exactly the batch's: memory is bounded by the pass, and
little is spent on padding.

The loss is in nats per unit: a scored token, for what compares classes a text.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any

import numpy as np
import torch

from gencls_core.checkpoints import Checkpoints
from gencls_core.class_models import (
    COMMIT_NAME,
    ClassModel,
    TrainingRecord,
    files_of,
)
from gencls_core.events import TrainingProgress
from gencls_core.measure import peak_memory_bytes, reset_peak_memory
from gencls_core.objectives import Objective, load_objective
from gencls_core.process_memory import MOST_PRODUCTS, settle_memory
from gencls_core.startup import collector_paused
from gencls_core.storage import publish_directory, write_errors, write_json
from gencls_core.training_loop import (
    ObjectiveTrainer,
    chosen_by_held_out,
    count_steps,
    trainer_arguments,
)
from gencls_core.training_task import TrainingTask

__all__ = ["TrainingTask", "train_class"]


def train_class(
    task: TrainingTask, on_progress: Callable[[TrainingProgress], None] | None = None
) -> ClassModel:
    """Train one model and commit it.

    An interrupted training of the same digest goes on from its last whole checkpoint.

    Raises:
        OwnershipError: when the run or the class was given to somebody else meanwhile.
        ResourceError: when the GPU's memory does not suffice.
        ModelError: when the base model cannot be loaded.
        TrainingError: when the loss is no longer a finite number, or there is nothing to train on.
    """
    torch.set_num_threads(task.threads)
    settle_memory(MOST_PRODUCTS)
    reset_peak_memory()
    if task.device == "cuda":
        torch.cuda.reset_peak_memory_stats()
    started = time.perf_counter()
    # Before loading: a classifier's head is drawn there.
    _seed(task.training.seed)
    with collector_paused():
        objective = load_objective(task)
    _seed(task.training.seed)
    if task.training.gradient_checkpointing:
        enable: Any = objective.model.gradient_checkpointing_enable
        enable(gradient_checkpointing_kwargs={"use_reentrant": False})
    with Checkpoints(task.destination, task.digest) as checkpoints, write_errors(task.destination):
        return _train(task, objective, checkpoints, on_progress, started)


def _train(
    task: TrainingTask,
    objective: Objective[Any],
    checkpoints: Checkpoints,
    on_progress: Callable[[TrainingProgress], None] | None,
    started: float,
) -> ClassModel:
    training = task.resolved_training

    def before_save() -> None:
        if task.fence is not None:
            task.fence.check()

    trainer = ObjectiveTrainer(
        objective=objective,
        task=task,
        on_progress=on_progress,
        before_save=before_save,
        after_save=checkpoints.keep,
        args=trainer_arguments(
            training,
            output_dir=checkpoints.folder,
            precision=task.precision,
            use_cpu=task.device == "cpu",
            evaluate=bool(objective.held_out),
            keep_best=chosen_by_held_out(objective, training, judged=task.judged),
            total_steps=count_steps(objective.lengths, training),
        ),
    )
    trainer.train(resume_from_checkpoint=checkpoints.last_whole())
    kept, per = trainer.kept, objective.loss_per
    nll = kept.nll
    record = TrainingRecord(
        texts=len(task.texts),
        tokens=trainer.tokens_seen,
        steps=trainer.state.global_step,
        epochs=round(trainer.state.epoch or 0.0, 3),
        best_epoch=kept.epoch,
        train_loss=trainer.history[-1].train_loss,
        validation_nll=nll,
        validation_perplexity=None if nll is None or per == "text" else float(np.exp(nll)),
        seconds=round(time.perf_counter() - started, 3),
        tokens_per_second=round(trainer.tokens_per_second, 1),
        peak_memory_bytes=peak_memory_bytes(),
        peak_gpu_memory_bytes=(torch.cuda.max_memory_allocated() if task.device == "cuda" else 0),
        device=task.device,
        precision=task.precision,
        threads=task.threads,
        history=tuple(trainer.history),
        loss_per=per,
        averaged_epochs=kept.averaged,
    )
    model = _commit(task, objective, record)
    checkpoints.remove()
    return model


def _commit(task: TrainingTask, objective: Objective[Any], record: TrainingRecord) -> ClassModel:
    with publish_directory(task.destination, COMMIT_NAME) as folder:
        tokenizer = objective.save(folder)
        files = files_of(folder)
        committed = ClassModel(
            path=folder,
            class_name=task.class_name,
            class_id=task.class_id,
            system=task.system,
            digest=task.digest,
            base=task.base.name,
            base_digest=task.base.digest,
            tokenizer_digest=tokenizer,
            kind="full" if task.lora_rank is None else "lora",
            files=files,
            sizes={name: (folder / name).stat().st_size for name in files},
            training=record,
        )
        write_json(folder / COMMIT_NAME, committed.to_json())
        if task.fence is not None:
            task.fence.check()
    return ClassModel.open(task.destination)


def _seed(seed: int) -> None:
    from transformers import set_seed

    set_seed(seed)
