"""Training a class model: the loss is the likelihood, and what is committed is what was best."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from model_fixtures import ARCHITECTURES, CORPUS, make_model_folder

from gencls_core.checkpoints import Checkpoints
from gencls_core.class_models import ClassModel
from gencls_core.config import SequenceConfig, TrainingConfig
from gencls_core.errors import TrainingError
from gencls_core.model_source import ResolvedModel
from gencls_core.models import load_causal_lm
from gencls_core.scoring import ClassModelSet, score_texts
from gencls_core.tokenization import SequencePolicy, TokenizedText
from gencls_core.training import TrainingTask, train_class

TEXTS = [text for text in CORPUS if text] * 2
HELD_OUT = CORPUS[:2]


@pytest.fixture
def task(tmp_path) -> TrainingTask:
    return make_task(tmp_path, "gpt2")


def make_task(tmp_path: Path, architecture: str) -> TrainingTask:
    folder = make_model_folder(tmp_path / "base", architecture, context=32)
    return TrainingTask(
        class_name="Sci/Tech",
        class_id=1,
        digest="d" * 64,
        base=ResolvedModel.of_folder("base", folder),
        texts=TEXTS,
        validation_texts=HELD_OUT,
        destination=tmp_path / "models" / "Sci%2FTech",
        sequence=SequenceConfig(),
        training=TrainingConfig(epochs=3, batch_size=4, learning_rate=1e-2),
        lora_rank=None,
        lora_alpha=None,
        precision="fp32",
        device="cpu",
        threads=1,
        tokens_per_pass=256,
    )


def nll_per_token(folder: Path, texts: list[str]) -> float:
    lm = load_causal_lm(ResolvedModel.of_folder("x", folder))
    policy = SequencePolicy.resolve(
        SequenceConfig(), bos_id=lm.bos_id, eos_id=lm.eos_id, context=lm.context
    )
    tokenized = [TokenizedText.of(ids, policy) for ids in lm.encode(texts)]
    scores = score_texts(lm, tokenized, window=policy.window, tokens_per_batch=512)
    return -scores.log_likelihoods.sum() / sum(map(len, tokenized))


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_trains_and_commits_the_best_weights(tmp_path, architecture):
    task = make_task(tmp_path, architecture)
    events = []
    model = train_class(task, events.append)
    record = json.loads((task.destination / "committed.json").read_text())
    assert record["class"] == "Sci/Tech"
    assert ClassModel.open(task.destination) == model
    assert nll_per_token(task.destination, TEXTS) < nll_per_token(task.base.path, TEXTS) - 0.5
    # The kept weights are those whose held-out figure was recorded as the best.
    assert model.training.validation_nll == pytest.approx(
        nll_per_token(task.destination, HELD_OUT), abs=1e-5
    )
    assert model.training.validation_nll == min(e.validation_nll for e in model.training.history)
    assert [e.epoch for e in model.training.history] == [1, 2, 3]
    assert events[-1].step == events[-1].total_steps == model.training.steps
    assert model.training.peak_memory_bytes > 2**26
    assert not Checkpoints(task.destination, task.digest).shared.exists()


def test_first_loss_is_the_likelihood_of_the_untrained_model(task):
    one_step = replace(
        task,
        validation_texts=[],
        training=TrainingConfig(epochs=1, batch_size=100, learning_rate=1e-9),
    )
    # Dropout would make the loss differ from the likelihood.
    config = json.loads((task.base.path / "config.json").read_text())
    config.update(embd_pdrop=0.0, attn_pdrop=0.0, resid_pdrop=0.0)
    (task.base.path / "config.json").write_text(json.dumps(config))
    model = train_class(one_step)
    assert model.training.train_loss == pytest.approx(
        nll_per_token(task.base.path, TEXTS), abs=1e-4
    )


@pytest.mark.parametrize("change", [{"tokens_per_pass": 40}, {"accumulate": True}])
def test_passes_and_accumulation_change_no_gradient(tmp_path, change):
    config = {"epochs": 1, "batch_size": 10, "learning_rate": 1e-3, "warmup": 0.0}
    weights = []
    for variant in ({}, change):
        task = make_task(tmp_path / str(len(weights)), "llama")
        settings = dict(config)
        if variant.get("accumulate"):
            settings.update(batch_size=5, gradient_accumulation=2)
        task = replace(
            task,
            validation_texts=[],
            training=TrainingConfig(**settings),
            tokens_per_pass=variant.get("tokens_per_pass", 4096),
        )
        assert train_class(task).training.steps == 1
        lm = load_causal_lm(ResolvedModel.of_folder("x", task.destination))
        weights.append(torch.cat([p.flatten() for p in lm.model.parameters()]))
    # Adam's first step is learning rate × sign(gradient): a wrong scale would not show, a wrong
    # direction does; so nearly every weight must have gone the same way.
    assert (weights[0] - weights[1]).abs().max() < 2.1e-3
    assert ((weights[0] - weights[1]).abs() > 1e-4).float().mean() < 0.002


@pytest.mark.parametrize("architecture", ["gpt2", "llama"])
def test_the_16_bit_copy_follows_its_model_from_step_to_step(tmp_path, architecture):
    """Two batches a step, an evaluation after each epoch: the losses stay those of float32."""
    histories = []
    for precision in ("fp32", "bf16"):
        task = make_task(tmp_path / precision, architecture)
        training = task.training.model_copy(
            update={"gradient_accumulation": 2, "batch_size": 2, "patience": 0, "epochs": 4.0}
        )
        model = train_class(replace(task, precision=precision, training=training))
        histories.append([(e.train_loss, e.validation_nll) for e in model.training.history])
        assert model.training.validation_nll == pytest.approx(
            nll_per_token(task.destination, HELD_OUT), rel=1e-2
        )
    assert histories[0][-1][0] < 0.9 * histories[0][0][0]
    np.testing.assert_allclose(histories[1], histories[0], rtol=3e-2)


def test_a_single_step_is_not_all_warm_up(task):
    """Trainer's own rounding would give the one step a learning rate of zero."""
    one = replace(task, training=TrainingConfig(epochs=1, batch_size=100, learning_rate=1e-2))
    model = train_class(one)
    assert model.training.steps == 1
    assert nll_per_token(one.destination, TEXTS) < nll_per_token(one.base.path, TEXTS) - 0.01


def test_same_seed_same_weights_other_seed_other(tmp_path):
    digests = []
    for number, seed in enumerate((0, 0, 1)):
        task = make_task(tmp_path / str(number), "gpt2")
        training = task.training.model_copy(update={"seed": seed, "epochs": 1})
        digests.append(train_class(replace(task, training=training)).files["model.safetensors"])
    assert digests[0] == digests[1]
    assert digests[0] != digests[2]


def test_early_stopping_keeps_the_best_epoch(task):
    overfit = replace(
        task,
        texts=["wholly other words"] * 20,
        training=TrainingConfig(epochs=12, batch_size=2, learning_rate=3e-2, patience=2),
    )
    model = train_class(overfit)
    assert model.training.epochs < 12
    assert model.training.best_epoch < model.training.epochs


def test_batches_by_tokens(task):
    training = TrainingConfig(epochs=1, batch_tokens=60, learning_rate=1e-3)
    model = train_class(replace(task, training=training))
    tokens = model.training.tokens
    assert tokens / 60 <= model.training.steps <= 2 * tokens / 60 + 1


def test_lora_trains_an_adapter_that_scoring_uses(tmp_path):
    import pyarrow as pa

    from gencls_core.config import ScoringConfig
    from gencls_core.datasets.dataset import EXAMPLE_SCHEMA

    task = replace(make_task(tmp_path, "gpt2"), lora_rank=4)
    first = train_class(task)
    second = train_class(
        replace(task, class_name="b", texts=["zzz qqq"] * 8, destination=tmp_path / "models" / "b")
    )
    assert first.kind == "lora"
    assert (first.path / "adapter_model.safetensors").exists()
    assert not (first.path / "model.safetensors").exists()
    models = ClassModelSet([first, second], task.base)
    examples = pa.table(
        {"example_id": ["0", "1"], "text": [CORPUS[0], "zzz qqq"], "label": [None, None]},
        schema=EXAMPLE_SCHEMA,
    )
    scores = [
        models.score(examples, name, SequenceConfig(), ScoringConfig())["score"].to_pylist()
        for name in ("Sci/Tech", "b")
    ]
    assert scores[0][0] > scores[1][0]
    assert scores[0][1] < scores[1][1]


def test_a_loss_that_is_no_number_stops_with_class_and_step(task):
    from safetensors.torch import load_file, save_file

    weights = load_file(task.base.path / "model.safetensors")
    broken = replace(task, training=TrainingConfig(epochs=1, learning_rate=1e30, warmup=0.0))
    assert weights
    save_file(weights, task.base.path / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(TrainingError, match=r"'Sci/Tech', step \d+"):
        train_class(broken)
    assert not task.destination.exists()
