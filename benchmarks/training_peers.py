"""What trains a model on one class's texts: gencls, and what a user would pick in its place.

    ours                    `train_class` in bf16, with the passes that `gencls plan` gives
    trainer_padded          Trainer as the original used it: fp32, padded to 256 tokens
    trainer_fp32            the same with dynamic padding
    trainer_bf16            Trainer at its best: bf16, dynamic padding, texts grouped by length
    trainer_bf16_compiled   the same with `torch_compile`
    trainer_bf16_weights    the same, not compiled, with weights in bf16: no float32 masters
    trainer_bf16_our_order  not compiled and not grouped: the very texts of our steps
    roof                    the matrix products alone: no peer, but what the hardware gives

What they have in common is in `benchmarks.training_work`. Memory is that above the imports. Values:
`train_loss`, the mean over all steps, and `held_out_loss` after them, both in nats per token.
"""

from __future__ import annotations

import functools
import os
import random
import tempfile
from collections import Counter
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from benchmarks.cases import Case, Measurement, Stopwatch, median_seconds
from benchmarks.training_work import (
    PADDED_LENGTH,
    SEQUENCE,
    StepClock,
    Work,
    with_held_out_loss,
)
from gencls_core.config import ComputeConfig
from gencls_core.model_source import ResolvedModel

__all__ = [
    "PADDED_STEPS",
    "ours",
    "roof",
    "trainer_bf16",
    "trainer_bf16_compiled",
    "trainer_bf16_our_order",
    "trainer_bf16_weights",
    "trainer_fp32",
    "trainer_padded",
]

PADDED_STEPS = 4
"""Padding makes a step of short texts so slow that few have to do; their loss is not compared."""

ROOF_REPEATS = 5


def ours(case: Case) -> Measurement:
    """Train and commit with gencls in bf16: memory has saving in it, which the others leave out."""
    from gencls_core import training_callbacks
    from gencls_core.training import TrainingTask, train_class

    # Progress is otherwise told once a second, whatever the number of steps.
    training_callbacks.PROGRESS_SECONDS = 0.0
    work, watch = Work.of(case), Stopwatch()
    base = ResolvedModel.of_folder(case.model, Path(case.model))
    passes = _tokens_per_pass(case, base, work)
    watch.ready()
    clock = StepClock(watch)
    with tempfile.TemporaryDirectory() as folder:
        destination = Path(folder) / "model"
        task = TrainingTask(
            class_name="benchmark",
            class_id=0,
            digest="0" * 64,
            base=base,
            texts=work.texts,
            validation_texts=[],
            destination=destination,
            sequence=SEQUENCE,
            training=work.config,
            lora_rank=None,
            lora_alpha=None,
            precision="bf16",
            device="cpu",
            threads=case.threads,
            tokens_per_pass=passes,
        )
        trained = train_class(task, lambda progress: clock.tick(progress.step))
        tokens = [sum(work.lengths[number] for number in batch) for batch in work.batches()]
        measured = clock.measurement(tokens, trained.training.train_loss)
        if trained.training.tokens != sum(tokens) or trained.training.steps != len(tokens):
            raise RuntimeError(f"not the texts' tokens, step by step: {tokens}; {trained.training}")
        return with_held_out_loss(measured, destination, work)


def _tokens_per_pass(case: Case, base: ResolvedModel, work: Work) -> int:
    """Give the padded tokens of a training pass as the plan for this machine has them."""
    from cluster.resources import ModelSize, Workload, local_budget, make_plan

    compute = ComputeConfig(precision="bf16", device="cpu", num_cpus=case.threads)
    workload = Workload(
        models=1,
        trainings=1,
        shards=0,
        batch_size=work.config.batch_size,
        longest_text_bytes=max(len(text.encode()) for text in work.texts),
        window=SEQUENCE.window,
        max_length=SEQUENCE.max_length,
        tokens_per_batch=0,
        precision="bf16",
        lora_rank=None,
        gradient_checkpointing=False,
    )
    size = ModelSize.of(base.config, base.parameters)
    return make_plan(local_budget(compute), size, workload, compute).tokens_per_pass


@dataclass(frozen=True)
class Recipe:
    """How Trainer is used."""

    bf16: bool = False
    """Autocast to bf16 over float32 weights."""
    weights: str = "float32"
    pad_to: int | None = None
    """Pad every text to this many tokens; None pads each batch to its longest."""
    group_by_length: bool = False
    compiled: bool = False
    steps: int | None = None
    """Steps after which to stop; None takes all."""


def trainer_padded(case: Case) -> Measurement:
    """Train as the original did; only the first PADDED_STEPS steps."""
    return _trainer(case, Recipe(pad_to=PADDED_LENGTH, steps=PADDED_STEPS))


def trainer_fp32(case: Case) -> Measurement:
    """Train as the original did, but for the padding."""
    return _trainer(case, Recipe())


def trainer_bf16(case: Case) -> Measurement:
    """Train with Trainer at its best, without compiling."""
    return _trainer(case, Recipe(bf16=True, group_by_length=True))


def trainer_bf16_compiled(case: Case) -> Measurement:
    """Train with Trainer at its best, compiled once for all lengths."""
    os.environ["ACCELERATE_DYNAMO_USE_DYNAMIC"] = "1"
    return _trainer(case, Recipe(bf16=True, group_by_length=True, compiled=True))


def trainer_bf16_our_order(case: Case) -> Measurement:
    """Train with the texts of our steps, for memory at the same tokens a step."""
    return _trainer(case, Recipe(bf16=True))


def trainer_bf16_weights(case: Case) -> Measurement:
    """Train weights that are bf16 themselves: small updates are rounded away."""
    return _trainer(case, Recipe(weights="bfloat16", group_by_length=True))


def _trainer(case: Case, recipe: Recipe) -> Measurement:
    import torch
    from torch._dynamo.utils import counters
    from transformers import (
        AutoModelForCausalLM,
        DataCollatorForLanguageModeling,
        Trainer,
        TrainerCallback,
        TrainingArguments,
    )

    work, watch = Work.of(case), Stopwatch()
    rows = _rows(work, recipe)
    watch.ready()
    clock = StepClock(watch)
    collate = DataCollatorForLanguageModeling(work.tokenizer, mlm=False)
    tokens: list[int] = []

    def counted(features: list[Any]) -> Any:
        batch = collate(features)
        tokens.append(int(batch["labels"][:, 1:].ne(-100).sum()))
        return batch

    class Ticker(TrainerCallback):  # type: ignore[misc]
        graphs = 0

        def on_step_end(self, args: Any, state: Any, control: Any, **_kwargs: Any) -> None:
            graphs = counters["stats"]["unique_graphs"]
            clock.tick(state.global_step, compiled=graphs > self.graphs)
            self.graphs = graphs

    with tempfile.TemporaryDirectory() as folder:
        config = work.config
        arguments = TrainingArguments(
            output_dir=folder,
            num_train_epochs=config.epochs,
            per_device_train_batch_size=config.batch_size,
            learning_rate=config.learning_rate,
            lr_scheduler_type=config.schedule,
            warmup_steps=round(config.warmup * len(work.batches())),
            weight_decay=config.weight_decay,
            max_grad_norm=config.max_grad_norm,
            seed=config.seed,
            bf16=recipe.bf16,
            torch_compile=recipe.compiled,
            train_sampling_strategy="sequential",
            use_cpu=True,
            dataloader_pin_memory=False,
            save_strategy="no",
            logging_strategy="epoch",
            report_to="none",
            disable_tqdm=True,
        )
        trainer = Trainer(
            AutoModelForCausalLM.from_pretrained(case.model, dtype=getattr(torch, recipe.weights)),
            arguments,
            data_collator=counted,
            train_dataset=rows,
            callbacks=[Ticker()],
        )
        measured = clock.measurement(tokens, trainer.train().training_loss)
        trainer.save_model()
        return with_held_out_loss(measured, Path(folder), work)


def _rows(work: Work, recipe: Recipe) -> list[dict[str, list[int]]]:
    """Give the sequences batch by batch, padded where the recipe says so.

    Grouped by length they are as Trainer would have them in a large set: its own sampler groups
    among 50 batches, or a quarter of them where there are fewer, and begins with the longest.
    """
    batches = work.batches()
    if recipe.group_by_length:
        by_length = sorted((n for batch in batches for n in batch), key=work.lengths.__getitem__)
        size = work.config.batch_size
        batches = [by_length[start : start + size] for start in range(0, len(by_length), size)]
        random.Random(work.config.seed).shuffle(batches)
    batches = batches[: recipe.steps]
    ordered = [work.sequences[number] for batch in batches for number in batch]
    rows = [{"input_ids": [*text.inputs.tolist(), int(text.targets[-1])]} for text in ordered]
    # The collator masks padding by token id, so it must be one that no text has; EOS is trained.
    found = {token for row in rows for token in row["input_ids"]}
    free = max(set(range(len(work.tokenizer))) - found)
    work.tokenizer.pad_token = work.tokenizer.convert_ids_to_tokens(free)
    if recipe.pad_to is None:
        return rows
    padded = work.tokenizer.pad(rows, padding="max_length", max_length=recipe.pad_to)
    return [dict(zip(padded, values, strict=True)) for values in zip(*padded.values(), strict=True)]


def roof(case: Case) -> Measurement:
    """Measure a step's matrix products, forward and backward, head included.

    Of each linear layer, at the tokens of a mean step: x Wᵀ, dy W and dyᵀ x, into memory that is
    there already. `seconds` are those of one step in bf16; the speed in fp32 is among the values.
    """
    import torch
    from torch import nn
    from transformers import AutoConfig, AutoModelForCausalLM
    from transformers.pytorch_utils import Conv1D

    work, watch = Work.of(case), Stopwatch()
    rows = round(sum(work.lengths) / len(work.batches()))
    with torch.device("meta"):
        model = AutoModelForCausalLM.from_config(AutoConfig.from_pretrained(case.model))
    shapes = Counter(
        (m.nx, m.nf) if isinstance(m, Conv1D) else (m.in_features, m.out_features)
        for m in model.modules()
        if isinstance(m, nn.Linear | Conv1D)
    )
    watch.ready()
    watch.first_batch()
    with torch.inference_mode():
        bf16, fp32 = (
            sum(n * _layer_seconds(rows, *shape, dtype) for shape, n in shapes.items())
            for dtype in (torch.bfloat16, torch.float32)
        )
    measured = watch.measurement(rows, {"fp32_tokens_per_second": rows / fp32})
    return replace(measured, seconds=bf16)


def _layer_seconds(rows: int, inputs: int, outputs: int, dtype: Any) -> float:
    """Time a layer's three products, each the median of ROOF_REPEATS."""
    import torch

    x = torch.randn(rows, inputs, dtype=dtype)
    dy = torch.randn(rows, outputs, dtype=dtype)
    weight = torch.randn(outputs, inputs, dtype=dtype)
    total = 0.0
    for left, right in ((x, weight.t()), (dy, weight), (dy.t(), x)):
        product = functools.partial(torch.mm, left, right, out=left @ right)
        total += median_seconds(product, ROOF_REPEATS)
    return total
