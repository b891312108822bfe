"""Hugging Face's Trainer with our batches and our loss.

Shapes: B windows of one pass, T padded length, N scored positions, D hidden size.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset
from transformers import (
    EarlyStoppingCallback,
    Trainer,
    TrainerCallback,
    TrainingArguments,
)
from transformers.trainer_callback import PrinterCallback

from gencls_core.class_models import EpochRecord
from gencls_core.config import TrainingConfig
from gencls_core.errors import TrainingError
from gencls_core.events import TrainingProgress
from gencls_core.likelihood import pad_windows, token_log_probs
from gencls_core.models import CausalLM
from gencls_core.precision import Precision
from gencls_core.scoring import score_texts
from gencls_core.tokenization import TokenizedText, batches_by_token_budget, windows_of

__all__ = ["ClassTrainer", "count_steps", "trainer_arguments"]

PROGRESS_SECONDS = 1.0


def trainer_arguments(
    config: TrainingConfig,
    *,
    output_dir: Path,
    precision: Precision,
    use_cpu: bool,
    evaluate: bool,
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
        load_best_model_at_end=evaluate,
        metric_for_best_model="nll" if evaluate else None,
        greater_is_better=False if evaluate else None,
        logging_strategy="epoch",
        logging_nan_inf_filter=False,
        report_to="none",
        disable_tqdm=True,
        log_level="error",
        remove_unused_columns=False,
        dataloader_pin_memory=not use_cpu,
    )


def count_steps(lengths: list[int], config: TrainingConfig) -> int:
    """Give the optimiser steps of a whole training, counted as Trainer counts them."""
    per_epoch = math.ceil(len(_Batches(lengths, config)) / config.gradient_accumulation)
    return math.ceil(per_epoch * config.epochs)


class _Texts(Dataset[int]):
    """Numbers of texts: the trainer itself holds the tokens."""

    def __init__(self, count: int) -> None:
        self._count = count

    def __len__(self) -> int:
        return self._count

    def __getitem__(self, number: int) -> int:
        return number


class _Batches:
    """Numbers of texts, batch by batch, in an order that depends on seed and epoch alone."""

    def __init__(self, lengths: list[int], config: TrainingConfig) -> None:
        self._lengths = lengths
        self._config = config
        self.epoch = 0
        self._by_tokens = None if config.batch_tokens is None else self._group()

    def set_epoch(self, epoch: int) -> None:
        """Choose the order of an epoch; Trainer calls it through the sampler that skips what a
        resumed epoch has done."""
        self.epoch = epoch

    def _generator(self, epoch: int) -> np.random.Generator:
        return np.random.default_rng([self._config.seed, epoch])

    def _group(self) -> list[list[int]]:
        """Group texts by the token budget once, so that every epoch has as many steps."""
        budget = self._config.batch_tokens or 0
        groups: list[list[int]] = []
        tokens = budget
        for number in self._generator(0).permutation(len(self._lengths)).tolist():
            if tokens + self._lengths[number] > budget:
                groups.append([])
                tokens = 0
            groups[-1].append(number)
            tokens += self._lengths[number]
        return groups

    def __len__(self) -> int:
        if self._by_tokens is not None:
            return len(self._by_tokens)
        return math.ceil(len(self._lengths) / self._config.batch_size)

    def __iter__(self) -> Iterator[list[int]]:
        generator = self._generator(self.epoch + 1)
        if self._by_tokens is not None:
            for group in generator.permutation(len(self._by_tokens)).tolist():
                yield self._by_tokens[group]
            return
        order = generator.permutation(len(self._lengths)).tolist()
        size = self._config.batch_size
        for start in range(0, len(order), size):
            yield order[start : start + size]


class _Loader(DataLoader[int]):
    """A loader that Trainer tells the epoch, so that a resumed epoch has the same order."""

    def set_epoch(self, epoch: int) -> None:
        set_epoch = getattr(self.batch_sampler, "set_epoch", None)
        if set_epoch is not None:
            set_epoch(epoch)


class ClassTrainer(Trainer):  # type: ignore[misc]
    """Trains one class model; `history` and the other public attributes say how it went."""

    def __init__(
        self,
        *,
        lm: CausalLM,
        class_name: str,
        texts: list[TokenizedText],
        held_out: list[TokenizedText],
        window: int,
        config: TrainingConfig,
        tokens_per_pass: int,
        precision: Precision,
        on_progress: Callable[[TrainingProgress], None] | None,
        checkpoint_seconds: float,
        before_save: Callable[[], None],
        after_save: Callable[[], None],
        args: TrainingArguments,
    ) -> None:
        self._lm = lm
        self._class_name = class_name
        self._texts = texts
        self._held_out = held_out
        self._window = window
        self._tokens_per_pass = max(tokens_per_pass, 1)
        self._precision = precision
        self._batches = _Batches([len(text) for text in texts], config)
        self._meter = _Meter(self, on_progress)
        self._before_save = before_save
        callbacks: list[TrainerCallback] = [self._meter, _Saver(checkpoint_seconds, after_save)]
        if held_out and config.patience:
            callbacks.append(EarlyStoppingCallback(config.patience))
        super().__init__(
            model=lm.model,
            args=args,
            callbacks=callbacks,
            eval_dataset=_Texts(len(held_out)) if held_out else None,
        )
        # The meter shows progress; Trainer would also print raw dictionaries.
        self.remove_callback(PrinterCallback)
        # Our loss is divided by the tokens of the whole optimiser step, not per batch.
        self.model_accepts_loss_kwargs = True

    @property
    def history(self) -> list[EpochRecord]:
        """One record per epoch; survives a resume, since it is read from Trainer's log."""
        records = []
        losses = {row["step"]: row for row in self.state.log_history if "loss" in row}
        held_out = {
            row["step"]: row["eval_nll"] for row in self.state.log_history if "eval_nll" in row
        }
        for step, row in sorted(losses.items()):
            records.append(
                EpochRecord(
                    epoch=round(row["epoch"], 3),
                    step=step,
                    train_loss=row["loss"],
                    validation_nll=held_out.get(step),
                    learning_rate=row["learning_rate"],
                )
            )
        return records

    @property
    def best_epoch(self) -> float:
        """The epoch whose weights were kept."""
        scored = [r for r in self.history if r.validation_nll is not None]
        if not scored:
            return self.history[-1].epoch
        return min(scored, key=lambda r: (r.validation_nll, r.step)).epoch

    @property
    def best_validation_nll(self) -> float | None:
        """Held-out negative log-likelihood of the kept weights, nats per token."""
        scored = [r.validation_nll for r in self.history if r.validation_nll is not None]
        return min(scored) if scored else None

    @property
    def tokens_seen(self) -> int:
        """Tokens trained on, over all epochs, those before a resume included."""
        per_epoch = sum(map(len, self._texts))
        return round(per_epoch * (self.state.epoch or 0.0))

    @property
    def tokens_per_second(self) -> float:
        """Trained tokens over the time spent in training steps of this process."""
        return self._meter.tokens_per_second

    def get_train_dataloader(self) -> DataLoader[int]:
        """Give batches of text numbers."""
        return _Loader(
            _Texts(len(self._texts)),
            batch_sampler=self._batches,
            collate_fn=lambda numbers: {"numbers": torch.tensor(numbers)},
        )

    def get_batch_samples(
        self, epoch_iterator: Iterator[Any], num_batches: int, device: torch.device
    ) -> tuple[list[Any], int]:
        """Give the batches of one optimiser step, and how many tokens they score."""
        samples, _ = super().get_batch_samples(epoch_iterator, num_batches, device)
        return samples, sum(
            len(self._texts[number]) for batch in samples for number in batch["numbers"].tolist()
        )

    def training_step(
        self,
        model: torch.nn.Module,
        inputs: dict[str, Tensor],
        num_items_in_batch: int | None = None,
    ) -> Tensor:
        """Add one batch's gradients pass by pass; gives its share of the step's loss."""
        model.train()
        texts = [self._texts[number] for number in inputs["numbers"].tolist()]
        tokens = num_items_in_batch or sum(map(len, texts))
        total = torch.zeros((), device=self.args.device)
        for windows in batches_by_token_budget(
            windows_of(texts, self._window), self._tokens_per_pass
        ):
            loss = self._negative_log_likelihood(texts, windows) / tokens
            self.accelerator.backward(loss)
            total += loss.detach()
        if not math.isfinite(total.item()):
            raise not_finite(self._class_name, self.state.global_step + 1, "loss", total.item())
        self._meter.count(sum(map(len, texts)))
        return total

    def _save_checkpoint(self, *arguments: Any, **options: Any) -> None:
        self._before_save()
        super()._save_checkpoint(*arguments, **options)

    def _negative_log_likelihood(self, texts: list[TokenizedText], windows: list[Any]) -> Tensor:
        """Sum −log P over the scored positions of one padded pass, in nats."""
        device = self.args.device
        rows = [torch.from_numpy(texts[w.text].inputs[w.start : w.stop]).long() for w in windows]
        targets_N = torch.from_numpy(
            np.concatenate([texts[w.text].targets[w.score_from : w.stop] for w in windows])
        ).long()
        with self._autocast():
            hidden_BTD = self._lm.hidden(pad_windows(rows, self._lm.eos_id).to(device))
            hidden_ND = torch.cat(
                [hidden_BTD[i, w.score_from - w.start : len(w)] for i, w in enumerate(windows)]
            )
            scores_N = token_log_probs(
                hidden_ND, self._lm.head, targets_N.to(device), self._lm.vocabulary
            )
        return -scores_N.sum()

    def _autocast(self) -> torch.autocast:
        # accelerate wraps model.forward only, and we call trunk and head apart.
        dtype = torch.float16 if self._precision == "fp16" else torch.bfloat16
        return torch.autocast(self.args.device.type, dtype=dtype, enabled=self._precision != "fp32")

    def evaluate(self, *_args: Any, **_kwargs: Any) -> dict[str, float]:
        """Measure the held-out negative log-likelihood, nats per token."""
        self._lm.model.eval()
        with self._autocast():
            scores = score_texts(
                self._lm,
                self._held_out,
                window=self._window,
                tokens_per_batch=self._tokens_per_pass,
            )
        nll = float(-scores.log_likelihoods.sum() / sum(map(len, self._held_out)))
        metrics = {"eval_nll": nll}
        self.log(dict(metrics))
        self.control: Any = self.callback_handler.on_evaluate(
            self.args, self.state, self.control, metrics
        )
        return metrics


def not_finite(class_name: str, step: int, key: str, value: float) -> TrainingError:
    """Say that training stopped because its loss is NaN or infinite."""
    return TrainingError.of(
        "training stopped: the loss is not a finite number",
        place=f"class {class_name!r}, step {step}",
        found=f"{key} {value}",
        remedy="a lower --learning-rate, or --precision fp32",
    )


class _Saver(TrainerCallback):  # type: ignore[misc]
    """Saves a checkpoint now and then within a long epoch, and passes each one on."""

    def __init__(self, seconds: float, after_save: Callable[[], None]) -> None:
        self._seconds = seconds
        self._after_save = after_save
        self._saved_at = time.monotonic()

    def on_step_end(self, args: Any, state: Any, control: Any, **_kwargs: Any) -> Any:
        if time.monotonic() - self._saved_at >= self._seconds:
            control.should_save = True
        return control

    def on_save(self, args: Any, state: Any, control: Any, **_kwargs: Any) -> None:
        self._saved_at = time.monotonic()
        self._after_save()


class _Meter(TrainerCallback):  # type: ignore[misc]
    """Measures speed, reports progress about once a second, and stops at a NaN loss."""

    def __init__(
        self, trainer: ClassTrainer, on_progress: Callable[[TrainingProgress], None] | None
    ) -> None:
        self._trainer = trainer
        self._on_progress = on_progress
        self._tokens = 0
        self._busy = 0.0
        self._step_began = 0.0
        self._reported = 0.0
        self._loss: float | None = None
        self._validation_nll: float | None = None

    @property
    def tokens_per_second(self) -> float:
        return self._tokens / self._busy if self._busy else 0.0

    def count(self, tokens: int) -> None:
        self._tokens += tokens

    def on_step_begin(self, *_args: Any, **_kwargs: Any) -> None:
        self._step_began = time.perf_counter()

    def on_step_end(self, args: Any, state: Any, control: Any, **_kwargs: Any) -> None:
        now = time.perf_counter()
        self._busy += now - self._step_began
        if now - self._reported >= PROGRESS_SECONDS or state.global_step == state.max_steps:
            self._report(state, now)

    def on_log(
        self, args: Any, state: Any, control: Any, logs: dict[str, float], **_kwargs: Any
    ) -> None:
        for key in ("loss", "eval_nll"):
            if key in logs and not math.isfinite(logs[key]):
                raise not_finite(self._trainer._class_name, state.global_step, key, logs[key])
        self._loss = logs.get("loss", self._loss)
        self._validation_nll = logs.get("eval_nll", self._validation_nll)
        if "eval_nll" in logs:
            self._report(state, time.perf_counter())

    def _report(self, state: Any, now: float) -> None:
        self._reported = now
        if self._on_progress is None:
            return
        self._on_progress(
            TrainingProgress(
                class_name=self._trainer._class_name,
                step=state.global_step,
                total_steps=state.max_steps,
                epoch=round(state.epoch or 0.0, 3),
                loss=self._loss,
                validation_nll=self._validation_nll,
                learning_rate=self._trainer._get_learning_rate(),
                tokens_per_second=round(self.tokens_per_second, 1),
            )
        )
