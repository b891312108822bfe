"""Masked class models: what is trained is the bound that scoring estimates."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest
import torch
from masked_fixtures import LONG, cut, make_masked_folder, planted, task_of
from model_fixtures import CORPUS

from gencls_core.config import SequenceConfig, TrainingConfig
from gencls_core.errors import TrainingError
from gencls_core.masked_likelihood import score_masked
from gencls_core.masked_loading import load_masked_lm
from gencls_core.model_source import ResolvedModel
from gencls_core.objectives.masked import MaskedObjective
from gencls_core.training import train_class
from gencls_core.training_loop import ObjectiveTrainer

TEXTS = [CORPUS[0], "", LONG, "so it is", "rose"]


@pytest.fixture(scope="module")
def base(tmp_path_factory) -> ResolvedModel:
    return make_masked_folder(tmp_path_factory.mktemp("bert"))


def nats_per_token(place: ResolvedModel, texts: list[str], draws: int = 64) -> float:
    lm = load_masked_lm(place)
    own = cut(lm, texts)
    names = [str(i) for i in range(len(own))]
    found = score_masked(lm, own, names, samples=draws, seed=9, tokens_per_batch=4096)
    return float(-found.log_likelihoods.sum() / sum(map(len, own)))


def test_training_raises_the_bound_on_its_own_texts(base, tmp_path):
    task = task_of(base, tmp_path, training=TrainingConfig(epochs=6, learning_rate=1e-2))
    model = train_class(task)
    committed = ResolvedModel.of_folder("x", model.path)
    assert nats_per_token(committed, task.texts) < nats_per_token(base, task.texts) - 1.0
    # The kept weights are those whose held-out figure was recorded as the best.
    again = MaskedObjective.of(dataclasses.replace(task, base=committed))
    assert again.held_out_nll(512) == pytest.approx(model.training.validation_nll, abs=1e-5)
    history = [epoch.validation_nll for epoch in model.training.history]
    assert model.training.validation_nll == min(history)
    assert model.training.validation_nll == pytest.approx(
        nats_per_token(committed, task.validation_texts), abs=0.3
    )


@pytest.mark.parametrize("architecture", ["bert", "roberta"])
def test_expected_loss_over_epochs_is_minus_the_bound(tmp_path, architecture):
    texts = [text for text in TEXTS if text]
    task = task_of(make_masked_folder(tmp_path, architecture), tmp_path, texts=texts)
    objective = MaskedObjective.of(task)
    numbers, epochs = range(len(texts)), 300
    losses = []
    with torch.no_grad():
        for epoch in range(epochs):
            parts = objective.passes(numbers, 4096, epoch)
            losses.append(sum(objective.loss(part).item() for part in parts))
    lm = objective._lm
    found = score_masked(lm, cut(lm, texts), texts, samples=300, seed=0, tokens_per_batch=4096)
    assert found.standard_errors is not None
    error = np.hypot(np.std(losses, ddof=1) / epochs**0.5, np.linalg.norm(found.standard_errors))
    assert abs(np.mean(losses) + found.log_likelihoods.sum()) < 4 * error
    assert error < 0.03 * np.mean(losses)


def test_passes_hold_every_token_once_within_the_budget(base, tmp_path):
    sequence = SequenceConfig(max_length=30, window=12)
    task = task_of(base, tmp_path, texts=TEXTS, validation_texts=["", ""], sequence=sequence)
    objective = MaskedObjective.of(task)
    lm = objective._lm
    lengths = [min(30, len(ids)) for ids in lm.encode(TEXTS) if ids]
    assert objective.lengths == lengths
    assert objective.held_out == 0
    numbers = list(range(len(lengths)))
    assert objective.units(numbers) == sum(lengths)
    parts = list(objective.passes(numbers, 40, epoch=1))
    assert len(parts) > 2
    shapes = [lm.batch(part).input_ids_BT.shape for part in parts]
    assert all(rows * length <= 40 and length <= 12 for rows, length in shapes)
    assert sum(len(ids) for part in parts for ids, _ in part) == sum(lengths)
    flat = [(ids.tolist(), mask.tolist()) for part in parts for ids, mask in part]
    whole = [(i.tolist(), m.tolist()) for p in objective.passes(numbers, 4096, 1) for i, m in p]
    later = [(i.tolist(), m.tolist()) for p in objective.passes(numbers, 4096, 2) for i, m in p]
    assert flat == whole
    assert [ids for ids, _ in flat] == [ids for ids, _ in later]
    assert flat != later


def test_nothing_to_train_on(base, tmp_path):
    with pytest.raises(TrainingError, match="no tokens to train on"):
        MaskedObjective.of(task_of(base, tmp_path, texts=["", "  "]))


def test_a_training_gives_the_same_bits_again_and_after_an_interruption(
    base, tmp_path, monkeypatch
):
    short = TrainingConfig(epochs=3, learning_rate=1e-3)
    tasks = [
        task_of(base, tmp_path / name, training=short, texts=planted(20, 1), checkpoint_seconds=0.0)
        for name in ("alone", "again", "disturbed")
    ]
    weights = [train_class(task).files["model.safetensors"] for task in tasks[:2]]
    stepping, steps = ObjectiveTrainer.training_step, []

    def interrupted(self, *arguments, **options):
        steps.append(self.state.global_step + 1)
        if steps == [1, 2, 3, 4, 5]:
            raise KeyboardInterrupt
        return stepping(self, *arguments, **options)

    monkeypatch.setattr(ObjectiveTrainer, "training_step", interrupted)
    with pytest.raises(KeyboardInterrupt):
        train_class(tasks[2])
    weights.append(train_class(tasks[2]).files["model.safetensors"])
    # Of nine steps, the fifth is in the middle of the second epoch.
    assert steps == [1, 2, 3, 4, 5, *range(5, 10)]
    assert len(set(weights)) == 1
