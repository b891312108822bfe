"""The mean of weights: what it is, when it is kept, and that it survives a kill."""

from __future__ import annotations

import random
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from fault_fixtures import kill_at_step
from model_fixtures import make_model_folder
from safetensors.torch import load_file
from scipy.special import log_softmax
from task_fixtures import job_of, labelled_task
from test_joint import scores_of
from torch import nn

from gencls_core.averaging import WeightAverage
from gencls_core.config import RecipeConfig, TrainingConfig
from gencls_core.model_source import ResolvedModel
from gencls_core.objectives import load_objective
from gencls_core.systems.conditional_lm import JointLm
from gencls_core.training import train_class
from gencls_core.training_loop import ObjectiveTrainer
from gencls_core.training_task import TrainingTask

WEIGHTS = "model.safetensors"


def texts(count: int, seed: int, noise: float = 0.0) -> list[tuple[str, int]]:
    """Words of noise with `p` or `q` among them; some labels are wrong."""
    draw = random.Random(seed)
    found = []
    for number in range(count):
        label = number % 2
        words = draw.choices("aeionds", k=6)
        words[draw.randrange(6)] = "pq"[label]
        wrong = draw.random() < noise
        found.append((" " + " ".join(words), 1 - label if wrong else label))
    return found


@pytest.fixture(scope="module")
def base(tmp_path_factory) -> ResolvedModel:
    folder = make_model_folder(tmp_path_factory.mktemp("base"), "llama", context=64)
    return ResolvedModel.of_folder("llama", folder)


def task_of(
    base: ResolvedModel, destination: Path, *, held_out: int = 8, train: int = 24, **changes: object
) -> TrainingTask:
    training: dict[str, object] = {"epochs": 6, "batch_size": 8, "learning_rate": 5e-3}
    training |= changes.pop("training", {})  # type: ignore[arg-type]
    return labelled_task(
        base,
        destination,
        texts(train, 1),
        texts(held_out, 2),
        system="joint-lm",
        objective="joint",
        classes=("first", "second"),
        prefixes=("A:", "B:"),
        training=TrainingConfig(**training),
        recipe=RecipeConfig(),
        **changes,
    )


def ends_of_epochs(task: TrainingTask, monkeypatch) -> list[dict[str, torch.Tensor]]:
    """Train; give the weights that went into the mean."""
    ends = []
    add = WeightAverage.add

    def noted(self) -> None:
        ends.append({name: weight.detach().clone() for name, weight in self._weights.items()})
        add(self)

    monkeypatch.setattr(WeightAverage, "add", noted)
    train_class(task)
    return ends


def test_the_running_mean_is_the_mean(tmp_path):
    model = nn.Linear(3, 2)
    model.bias.requires_grad_(False)
    average = WeightAverage(model)
    seen = []
    for _ in range(5):
        with torch.no_grad():
            model.weight.normal_()
        seen.append(model.weight.detach().double().clone())
        average.add()
    own, mean = model.weight.detach().clone(), torch.stack(seen).mean(dim=0)
    average.save(tmp_path)
    with average.in_place():
        torch.testing.assert_close(model.weight.detach().double(), mean, atol=1e-6, rtol=0)
    assert torch.equal(model.weight.detach(), own)
    again = WeightAverage(model)
    again.load(tmp_path)
    assert again.count == 5
    again.swap()
    torch.testing.assert_close(model.weight.detach().double(), mean, atol=1e-6, rtol=0)
    again.load(tmp_path / "elsewhere")
    assert again.count == 0


@pytest.mark.parametrize("lora_rank", [None, 2])
@pytest.mark.parametrize("held_out", [0, 8])
def test_few_held_out_texts_choose_nothing(base, tmp_path, monkeypatch, held_out, lora_rank):
    """The mean over the second half of the epochs is kept: here of the fourth, fifth and sixth."""
    task = task_of(base, tmp_path / "m", held_out=held_out, lora_rank=lora_rank)
    ends = ends_of_epochs(task, monkeypatch)
    assert len(ends) == 3
    record = train_class(replace(task, destination=tmp_path / "again")).training
    assert (record.best_epoch, record.epochs, record.averaged_epochs) == (6, 6, 3)
    assert record.validation_nll == record.history[-1].averaged_nll
    assert (record.validation_nll is None) == (held_out == 0)
    file = WEIGHTS if lora_rank is None else "adapter_model.safetensors"
    kept = load_file(tmp_path / "m" / file)
    for name, weight in kept.items():
        key = name if lora_rank is None else name.replace(".weight", ".default.weight")
        mean = torch.stack([end[key] for end in ends]).double().mean(dim=0)
        torch.testing.assert_close(weight.double(), mean, atol=1e-6, rtol=1e-5)
        assert not torch.equal(weight, ends[-1][key])


@pytest.mark.parametrize("lora_rank", [None, 2])
@pytest.mark.parametrize(
    ("train", "training", "mean_wins"),
    [
        # Learning goes on: the last epoch is ahead of the mean.
        (24, {"learning_rate": 8e-3}, False),
        # All is learned at half-time, and what follows is noise.
        (120, {"learning_rate": 2e-2, "schedule": "constant", "epochs": 8}, True),
    ],
)
def test_many_held_out_texts_choose(base, tmp_path, train, training, mean_wins, lora_rank):
    if lora_rank is not None:
        training = training | {"learning_rate": 3 * training["learning_rate"]}
    task = task_of(
        base, tmp_path / "m", held_out=60, train=train, training=training, lora_rank=lora_rank
    )
    model = train_class(task)
    record = model.training
    found = [e.validation_nll for e in record.history] + [
        e.averaged_nll for e in record.history if e.averaged_nll is not None
    ]
    assert record.validation_nll == min(found)
    assert (record.averaged_epochs > 0) == mean_wins
    # What was committed is what was measured.
    job = job_of(model, base, JointLm(), task.classes)
    again = load_objective(task)
    scores = scores_of(job, task.validation_texts)
    scale, prior = again._scale, again._log_prior
    log_posterior = log_softmax(scale * scores + prior, axis=1)
    rows, labels = np.arange(60), np.array(task.validation_labels)
    loss = -log_posterior[rows, labels] - again._lm_weight * scores[rows, labels]
    assert loss.mean() == pytest.approx(record.validation_nll, abs=1e-4)


def test_two_epochs_have_no_mean_and_the_better_is_kept(base, tmp_path):
    training = {"epochs": 2, "learning_rate": 5e-2, "schedule": "constant"}
    record = train_class(task_of(base, tmp_path / "m", held_out=30, training=training)).training
    assert record.averaged_epochs == 0
    assert record.validation_nll == min(e.validation_nll for e in record.history)


def test_a_log_of_before_there_was_a_mean(base, tmp_path):
    """A training that an earlier version began knows one held-out loss an epoch."""
    task = replace(task_of(base, tmp_path / "m"), objective="conditional")
    seen = []
    evaluate = ObjectiveTrainer.evaluate

    def as_before(self, *args, **options):
        metrics = evaluate(self, *args, **options)
        for row in self.state.log_history:
            row.pop("eval_epoch_nll", None)
        seen.append(self)
        return metrics

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(ObjectiveTrainer, "evaluate", as_before)
        record = train_class(task).training
    assert len(seen) == 6
    assert record.validation_nll == min(e.validation_nll for e in record.history)


def test_no_mean_unless_classes_are_compared(base, tmp_path):
    """Class models and the conditional model are trained as ever, and asked for it they obey."""
    task = task_of(base, tmp_path / "m")
    task = replace(task, objective="conditional", system="conditional-lm")
    record = train_class(task).training
    assert record.averaged_epochs == 0
    assert record.validation_nll == min(e.validation_nll for e in record.history)
    assert all(e.averaged_nll is None for e in record.history)
    asked = replace(
        task,
        destination=tmp_path / "asked",
        training=task.training.model_copy(update={"average_weights": True}),
    )
    history = train_class(asked).training.history
    assert [e.averaged_nll is None for e in history] == [True] * 4 + [False] * 2


@pytest.mark.fault
@pytest.mark.parametrize("step", [11, 13, 17])
def test_killed_with_a_mean_under_way(base, tmp_path, step):
    """18 steps in six epochs; the mean begins with step 12."""
    undisturbed = train_class(task_of(base, tmp_path / "alone", checkpoint_seconds=0.0))
    task = task_of(base, tmp_path / "disturbed", checkpoint_seconds=0.0)
    kill_at_step(task, step)
    model = train_class(task)
    assert model.files[WEIGHTS] == undisturbed.files[WEIGHTS]
    held_out = [
        [(epoch.validation_nll, epoch.averaged_nll) for epoch in found.training.history]
        for found in (model, undisturbed)
    ]
    assert held_out[0] == held_out[1]


def test_it_helps_where_labels_are_noisy(base, tmp_path):
    """Three of ten labels are wrong: each epoch ends with those by heart that came last."""
    gains = []
    for seed in range(5):
        nll = {}
        for average in (False, True):
            train, held_out = texts(48, 10 + seed, noise=0.3), texts(200, 100 + seed)
            task = labelled_task(
                base,
                tmp_path / f"{seed}-{average}",
                train,
                [],
                system="joint-lm",
                objective="joint",
                classes=("first", "second"),
                prefixes=("A:", "B:"),
                training=TrainingConfig(
                    epochs=10,
                    batch_size=4,
                    learning_rate=1e-2,
                    schedule="constant",
                    seed=seed,
                    average_weights=average,
                ),
                recipe=RecipeConfig(),
            )
            model = train_class(task)
            judged = load_objective(
                replace(
                    task,
                    base=ResolvedModel.of_folder("m", model.path),
                    validation_texts=[text for text, _ in held_out],
                    validation_labels=tuple(label for _, label in held_out),
                )
            )
            judged.model.eval()
            nll[average] = judged.held_out_nll(2048)
        gains.append(nll[False] - nll[True])
    assert np.mean(gains) > 0
    assert sum(gain > 0 for gain in gains) >= 4
