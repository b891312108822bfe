"""A training that is killed at any point goes on from its last whole checkpoint, and ends with the
same weights, bit for bit, as one that was left alone (one thread, CPU)."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import torch
from fault_fixtures import die, kill_at_step, killed
from test_training import make_task

from gencls_core.checkpoints import Checkpoints
from gencls_core.errors import TrainingError
from gencls_core.objectives.causal import CausalObjective
from gencls_core.ownership import OwnershipError, own
from gencls_core.training import train_class
from gencls_core.training_loop import ObjectiveTrainer
from gencls_core.training_task import TrainingTask

pytestmark = pytest.mark.fault


@pytest.fixture
def task(tmp_path) -> TrainingTask:
    """Nine steps in three epochs, a checkpoint after every step."""
    task = replace(make_task(tmp_path, "gpt2"), checkpoint_seconds=0.0)
    return replace(task, destination=tmp_path / "models" / "disturbed")


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory) -> str:
    """The SHA-256 of the weights of a training that was left alone."""
    task = replace(make_task(tmp_path_factory.mktemp("alone"), "gpt2"), checkpoint_seconds=0.0)
    return train_class(task).files["model.safetensors"]


def steps_of(folder: Path) -> list[int]:
    return sorted(int(path.name.split("-")[1]) for path in folder.glob("checkpoint-*"))


def resumed_from(task: TrainingTask) -> tuple[str, int]:
    """Train to the end; give the weights' SHA-256 and the first step that was done again."""
    steps: list[int] = []
    original = ObjectiveTrainer.training_step

    def counted(self, *args, **options):
        steps.append(self.state.global_step + 1)
        return original(self, *args, **options)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(ObjectiveTrainer, "training_step", counted)
        digest = train_class(task).files["model.safetensors"]
    return digest, min(steps)


@pytest.mark.parametrize("step", [2, 5, 8])
def test_killed_at_a_step(task, undisturbed, step):
    kill_at_step(task, step)
    digest, first = resumed_from(task)
    assert first == step
    assert digest == undisturbed
    assert not Checkpoints(task.destination, task.digest).shared.exists()


@pytest.mark.parametrize("written", ["model.safetensors", "optimizer.pt", "rng_state.pth", "state"])
def test_killed_while_a_checkpoint_is_saved(task, undisturbed, written):
    """Killed as soon as a file of checkpoint 5 is there, the state cut in the middle."""

    def train_and_die() -> None:
        save = torch.save
        whole = ObjectiveTrainer._save

        def model_saved(self, output_dir=None, **options):
            whole(self, output_dir, **options)
            if written == "model.safetensors" and self.state.global_step == 5:
                die()

        def saved(value, place, *args, **options):
            save(value, place, *args, **options)
            if "checkpoint-5" in str(place) and written in str(place):
                die()

        def state_cut(self, path):
            if "checkpoint-5" in str(path):
                Path(path).write_text('{"epoch": 1.')
                die()
            return state_saved(self, path)

        from transformers.trainer_callback import TrainerState

        state_saved = TrainerState.save_to_json
        torch.save, ObjectiveTrainer._save = saved, model_saved
        TrainerState.save_to_json = state_cut
        train_class(task)

    killed(train_and_die)
    folder = Checkpoints(task.destination, task.digest).shared
    assert 5 in steps_of(folder)
    digest, first = resumed_from(task)
    assert first == 5, "from checkpoint 4: the torn one was put aside"
    assert digest == undisturbed


def test_killed_before_the_commit(task, undisturbed):
    def train_and_die() -> None:
        Path.rename = lambda *_args: die()
        train_class(task)

    killed(train_and_die)
    assert not task.destination.exists()
    assert train_class(task).files["model.safetensors"] == undisturbed


@pytest.mark.parametrize("step", [1, 6])
def test_a_loss_that_is_nan_stops_at_its_step(task, step, monkeypatch):
    loss_of, stepping, steps = CausalObjective.loss, ObjectiveTrainer.training_step, []

    def counted(self, *args, **options):
        steps.append(self.state.global_step + 1)
        return stepping(self, *args, **options)

    def poisoned(self, part):
        return loss_of(self, part) * (float("nan") if steps[-1] == step else 1.0)

    monkeypatch.setattr(ObjectiveTrainer, "training_step", counted)
    monkeypatch.setattr(CausalObjective, "loss", poisoned)
    with pytest.raises(TrainingError, match=f"'Sci/Tech', step {step}") as error:
        train_class(task)
    assert "nan" in str(error.value)
    assert "--learning-rate" in str(error.value)
    assert not task.destination.exists()


def test_an_attempt_that_was_given_up_saves_and_commits_nothing(task, tmp_path, monkeypatch):
    """Its node was unreachable, and the class was given to another worker."""
    original = ObjectiveTrainer.training_step
    with own(tmp_path / "run", "test") as lease:
        fence = lease.fence("train-1")

        def stepping(self, *args, **options):
            if self.state.global_step == 3:
                lease.retire(fence)
            return original(self, *args, **options)

        monkeypatch.setattr(ObjectiveTrainer, "training_step", stepping)
        with pytest.raises(OwnershipError, match="late attempt"):
            train_class(replace(task, fence=fence))
    assert not task.destination.exists()
    assert max(steps_of(Checkpoints(task.destination, task.digest).shared)) == 3
