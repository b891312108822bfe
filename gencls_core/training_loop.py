"""Hugging Face's Trainer with our batches and the loss of an objective."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.utils.data import DataLoader
from transformers import (
    EarlyStoppingCallback,
    Trainer,
    TrainerCallback,
    TrainingArguments,
)
from transformers.trainer_callback import PrinterCallback

from gencls_core.averaging import WeightAverage
from gencls_core.class_models import EpochRecord
from gencls_core.compilation import compile_layers
from gencls_core.config import MIN_HELD_OUT, ResolvedTraining
from gencls_core.events import TrainingProgress
from gencls_core.objectives import Objective
from gencls_core.precision import Precision
from gencls_core.training_batches import Batches, Loader, TextNumbers
from gencls_core.training_callbacks import Averager, Meter, Saver, not_finite
from gencls_core.training_task import TrainingTask
from gencls_core.working_copy import WorkingCopy

__all__ = ["ObjectiveTrainer", "chosen_by_held_out", "count_steps", "trainer_arguments"]

CHECKED_STEPS = 32
"""On a GPU the loss is looked at once in so many steps, before each checkpoint and each epoch."""


def trainer_arguments(
    config: ResolvedTraining,
    *,
    output_dir: Path,
    precision: Precision,
    use_cpu: bool,
    evaluate: bool,
    keep_best: bool,
    total_steps: int,
) -> TrainingArguments:
    """Translate our settings into Trainer's."""
    schedules = {"linear": "linear", "cosine": "cosine", "constant": "constant_with_warmup"}
    return TrainingArguments(
        output_dir=str(output_dir),
        num_train_epochs=config.epochs,
        gradient_accumulation_steps=config.gradient_accumulation,
        learning_rate=config.learning_rate,
        lr_scheduler_type=schedules[config.schedule],
        # Trainer would round a fraction up: the one step of a short run would be all warm-up, at
        # a learning rate of zero.
        warmup_steps=round(config.warmup * total_steps),
        weight_decay=config.weight_decay,
        max_grad_norm=config.max_grad_norm,
        seed=config.seed,
        bf16=precision == "bf16",
        fp16=precision == "fp16",
        use_cpu=use_cpu,
        eval_strategy="epoch" if evaluate else "no",
        save_strategy="epoch",
        # Patience goes on counting where it was.
        restore_callback_states_from_checkpoint=True,
        save_total_limit=1,
        load_best_model_at_end=keep_best,
        metric_for_best_model="nll" if keep_best else None,
        greater_is_better=False if keep_best else None,
        logging_strategy="epoch",
        logging_nan_inf_filter=False,
        report_to="none",
        disable_tqdm=True,
        log_level="error",
        remove_unused_columns=False,
        dataloader_pin_memory=not use_cpu,
    )


def chosen_by_held_out(
    objective: Objective[Any], config: ResolvedTraining, *, judged: bool = False
) -> bool:
    """Say whether held-out texts choose the weights that are kept.

    A few labels cannot tell one epoch from another; then the mean of epochs is kept, where there
    are two to average. A text's own likelihood says more: it is a sum over its tokens. Labels that
    are to judge the model afterwards choose nothing, nor do texts under them.
    """
    if judged:
        return False
    averaged = math.ceil(config.epochs) - math.floor(config.epochs / 2)
    if config.average_weights and averaged > 1 and objective.loss_per == "text":
        return objective.held_out >= MIN_HELD_OUT
    return objective.held_out > 0


def count_steps(lengths: list[int], config: ResolvedTraining) -> int:
    """Give the optimiser steps of a whole training, counted as Trainer counts them."""
    per_epoch = math.ceil(len(Batches(lengths, config)) / config.gradient_accumulation)
    return math.ceil(per_epoch * config.epochs)


@dataclass(frozen=True)
class Kept:
    """The weights that a training ends with."""

    epoch: float
    """After which they were taken."""
    nll: float | None
    """Of the held-out texts, nats per unit."""
    averaged: int
    """Ends of epochs that they are the mean of; 0 for one epoch's own."""


class ObjectiveTrainer(Trainer):  # type: ignore[misc]
    """Trains one model; `history` and the other public attributes say how it went."""

    def __init__(
        self,
        *,
        objective: Objective[Any],
        task: TrainingTask,
        on_progress: Callable[[TrainingProgress], None] | None,
        before_save: Callable[[], None],
        after_save: Callable[[], None],
        args: TrainingArguments,
    ) -> None:
        self._objective = objective
        self.label, self.title = task.label, task.title
        self._lengths = objective.lengths
        self._tokens_per_pass = max(task.tokens_per_pass, 1)
        self._precision = task.precision
        self._working_copy = None
        if task.precision == "bf16" and task.device == "cpu":
            self._working_copy = WorkingCopy(objective.model, torch.bfloat16)
            objective.compute_with(self._working_copy.model)
        if task.compiled:
            compile_layers(objective.model)
        self._batches = Batches(self._lengths, task.training)
        self._average = WeightAverage(objective.model)
        self._meter = Meter(self, on_progress)
        self._before_save = before_save
        self._step_loss = torch.zeros(())
        callbacks: list[TrainerCallback] = [self._meter, Saver(task.checkpoint_seconds, after_save)]
        if task.resolved_training.average_weights:
            callbacks.append(Averager(self._average))
        if args.load_best_model_at_end and task.training.patience:
            callbacks.append(EarlyStoppingCallback(task.training.patience))
        super().__init__(
            model=objective.model,
            args=args,
            callbacks=callbacks,
            eval_dataset=TextNumbers(objective.held_out) if objective.held_out else None,
        )
        # The meter shows progress; Trainer would also print raw dictionaries.
        self.remove_callback(PrinterCallback)
        # Our loss is divided by the units of the whole optimiser step, not per batch.
        self.model_accepts_loss_kwargs = True

    @property
    def history(self) -> list[EpochRecord]:
        """One record per epoch; survives a resume, since it is read from Trainer's log."""

        def logged(key: str) -> dict[int, float]:
            return {row["step"]: row[key] for row in self.state.log_history if key in row}

        # Before there was a mean, a checkpoint's log knew `eval_nll` alone.
        held_out = logged("eval_nll") | logged("eval_epoch_nll")
        averaged = logged("eval_averaged_nll")
        losses = [row for row in self.state.log_history if "loss" in row]
        return [
            EpochRecord(
                epoch=round(row["epoch"], 3),
                step=step,
                train_loss=row["loss"],
                validation_nll=held_out.get(step),
                learning_rate=row["learning_rate"],
                averaged_nll=averaged.get(step),
            )
            for step, row in sorted({row["step"]: row for row in losses}.items())
        ]

    @property
    def kept(self) -> Kept:
        """Which weights the model has after training."""
        history = self.history
        last = history[-1]
        if not self.args.load_best_model_at_end:
            if self._average.count > 1:
                return Kept(last.epoch, last.averaged_nll, self._average.count)
            return Kept(last.epoch, last.validation_nll, 0)
        found = [Kept(at.epoch, at.validation_nll, 0) for at in history]
        averaged = [at for at in history if at.averaged_nll is not None]
        # The first mean is of two.
        found += [Kept(at.epoch, at.averaged_nll, n) for n, at in enumerate(averaged, start=2)]
        found = [kept for kept in found if kept.nll is not None]
        return min(found, key=lambda kept: (kept.nll, kept.epoch))

    @property
    def tokens_seen(self) -> int:
        """Tokens trained on, over all epochs, those before a resume included."""
        per_epoch = sum(self._lengths)
        return round(per_epoch * (self.state.epoch or 0.0))

    @property
    def tokens_per_second(self) -> float:
        """Trained tokens over the time spent in training steps of this process."""
        return self._meter.tokens_per_second

    def train(self, **options: Any) -> Any:
        """Train, and leave the model with the weights that `kept` describes."""
        output = super().train(**options)
        if not self.args.load_best_model_at_end and self._average.count > 1:
            self._average.swap()
        return output

    def get_train_dataloader(self) -> DataLoader[int]:
        """Give batches of text numbers."""
        return Loader(
            TextNumbers(len(self._lengths)),
            batch_sampler=self._batches,
            collate_fn=lambda numbers: {"numbers": torch.tensor(numbers)},
        )

    def get_batch_samples(
        self, epoch_iterator: Iterator[Any], num_batches: int, device: torch.device
    ) -> tuple[list[Any], int]:
        """Give the batches of one optimiser step, and what their loss is divided by."""
        self._prepare(training=True)
        self._step_loss = torch.zeros((), device=self.args.device)
        samples, _ = super().get_batch_samples(epoch_iterator, num_batches, device)
        return samples, sum(self._objective.units(batch["numbers"].tolist()) for batch in samples)

    def training_step(
        self,
        model: torch.nn.Module,
        inputs: dict[str, Tensor],
        num_items_in_batch: int | None = None,
    ) -> Tensor:
        """Add one batch's gradients pass by pass; gives its share of the step's loss."""
        numbers = inputs["numbers"].tolist()
        units = num_items_in_batch or self._objective.units(numbers)
        total = torch.zeros((), device=self.args.device)
        with self._autocast():  # an objective may ask the model which texts count
            parts = list(
                self._objective.passes(numbers, self._tokens_per_pass, self._batches.epoch)
            )
        for part in parts:
            with self._autocast():
                loss = self._objective.loss(part) / units
            self.accelerator.backward(loss)
            total += loss.detach()
        self._step_loss += total
        # Asking a GPU for the loss makes the processor wait for it.
        if self.args.use_cpu or self.state.global_step % CHECKED_STEPS == 0:
            self._check_loss(self.state.global_step + 1)
        self._meter.count(sum(self._lengths[number] for number in numbers))
        return total

    def _check_loss(self, step: int) -> None:
        if not math.isfinite(loss := self._step_loss.item()):
            raise not_finite(self.title, step, "loss", loss)

    def _save_checkpoint(self, *arguments: Any, **options: Any) -> None:
        self._check_loss(self.state.global_step)
        self._before_save()
        super()._save_checkpoint(*arguments, **options)

    def _prepare(self, *, training: bool) -> None:
        """Set the mode, and bring the working copy up to date."""
        self._objective.model.train(training)
        if self._working_copy is not None:
            self._working_copy.model.train(training)
            self._working_copy.refresh()

    def _autocast(self) -> torch.autocast:
        # accelerate wraps model.forward only, and we call trunk and head apart.
        dtype = torch.float16 if self._precision == "fp16" else torch.bfloat16
        enabled = self._precision != "fp32" and self._working_copy is None
        return torch.autocast(self.args.device.type, dtype=dtype, enabled=enabled)

    def evaluate(self, *_args: Any, **_kwargs: Any) -> dict[str, float]:
        """Measure the held-out negative log-likelihood, nats per unit.

        That of the mean of weights, too, where there is one; `eval_nll` is the lower of the two,
        or the mean's where nothing is chosen.
        """
        metrics = {"eval_epoch_nll": self._held_out_nll()}
        kept = metrics["eval_epoch_nll"]
        if self._average.count > 1:
            with self._average.in_place():
                averaged = metrics["eval_averaged_nll"] = self._held_out_nll()
            kept = min(kept, averaged) if self.args.load_best_model_at_end else averaged
        metrics["eval_nll"] = kept
        self.log(dict(metrics))
        self.control: Any = self.callback_handler.on_evaluate(
            self.args, self.state, self.control, metrics
        )
        return metrics

    def _held_out_nll(self) -> float:
        self._prepare(training=False)
        with self._autocast():
            return self._objective.held_out_nll(self._tokens_per_pass)

    def _determine_best_metric(self, metrics: dict[str, float], trial: Any) -> bool:
        best: bool = super()._determine_best_metric(metrics, trial)
        if best:
            self.control.should_save = True
        return best

    def _save(self, output_dir: str | None = None, state_dict: Any = None) -> None:
        super()._save(output_dir, state_dict)
        if output_dir is not None:
            self._average.save(Path(output_dir))

    def _load_from_checkpoint(self, resume_from_checkpoint: str, model: Any = None) -> None:
        super()._load_from_checkpoint(resume_from_checkpoint, model)
        self._average.load(Path(resume_from_checkpoint))

    def _load_best_model(self) -> None:
        super()._load_best_model()
        if self.kept.averaged:
            self._average.load(Path(self.state.best_model_checkpoint))
            self._average.swap()
