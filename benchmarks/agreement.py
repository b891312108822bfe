"""What the agreement of bf16 and fp32 is measured with: class models, and their scores.

The class models are trained by the product's own code, once: they stay in `$GENCLS_HOME/bench`
under a digest of all that they depend on but the code.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from benchmarks.cases import Case, Measurement, Stopwatch, read_texts, torch_dtype
from gencls_core.class_models import ClassModel
from gencls_core.config import ScoringConfig, SequenceConfig, TrainingConfig
from gencls_core.errors import StoreError
from gencls_core.model_source import ResolvedModel
from gencls_core.storage import digest_of, gencls_home

__all__ = ["Agreement", "score", "train", "trained_folder"]

TRAINING = TrainingConfig(epochs=1, learning_rate=1e-4)
TOKENS_PER_PASS = 2048


def trained_folder(case: Case) -> Path:
    """Give where the class model of a training case is kept."""
    base = ResolvedModel.of_folder(case.model, Path(case.model))
    settings = TRAINING.model_dump(mode="json")
    digest = digest_of([base.digest, read_texts(case), settings, case.precision])
    return gencls_home() / "bench" / f"class-model-{digest[:16]}"


def train(case: Case) -> Measurement:
    """Train the class model of a case, unless it is there. Value: `train_loss`, nats per token."""
    from gencls_core.training import TrainingTask, train_class

    watch, destination, texts = Stopwatch(), trained_folder(case), read_texts(case)
    watch.ready()
    watch.first_batch()
    with watch:
        try:
            model = ClassModel.open(destination)
        except StoreError:
            task = TrainingTask(
                class_name=case.name,
                class_id=0,
                digest=destination.name,
                base=ResolvedModel.of_folder(case.model, Path(case.model)),
                texts=texts,
                validation_texts=[],
                destination=destination,
                sequence=SequenceConfig(),
                training=TRAINING,
                lora_rank=None,
                lora_alpha=None,
                precision="bf16" if case.precision == "bf16" else "fp32",
                device="cpu",
                threads=case.threads,
                tokens_per_pass=TOKENS_PER_PASS,
            )
            model = train_class(task)
    record = model.training
    return watch.measurement(record.tokens, {"train_loss": record.train_loss})


def score(case: Case) -> Measurement:
    """Score texts under one class model at the defaults. Values: nats, as `text 0`, `text 1`, …"""
    from benchmarks.models import class_model_set, examples_of, tokenizer_digest_of
    from benchmarks.scoring_peers import named

    digest = tokenizer_digest_of(Path(case.model))
    models, watch = class_model_set(case.model, torch_dtype(case), digest, ("one",)), Stopwatch()
    watch.ready()
    watch.first_batch()
    with watch:
        table = models.score(
            examples_of(read_texts(case)), "one", SequenceConfig(), ScoringConfig()
        )
    tokens = sum(table.column("num_tokens").to_pylist())
    return watch.measurement(tokens, named(table.column("score").to_pylist()))


@dataclass(frozen=True)
class Agreement:
    """How far scores in bf16 are from those in fp32; both are nats, [texts, classes]."""

    fp32: NDArray[np.float64]
    bf16: NDArray[np.float64]

    def _ratio(self, scores: NDArray[np.float64]) -> NDArray[np.float64]:
        """Give the log-likelihood ratio of the two classes that are the best in fp32, per text."""
        order = np.argsort(-self.fp32, axis=1, kind="stable")[:, :2]
        best, second = np.take_along_axis(scores, order, axis=1).T
        result: NDArray[np.float64] = best - second
        return result

    @property
    def _differs(self) -> NDArray[np.bool_]:
        result: NDArray[np.bool_] = self.fp32.argmax(axis=1) != self.bf16.argmax(axis=1)
        return result

    @property
    def percent(self) -> float:
        """Texts that both put into the same class, in per cent."""
        return float(100 * (1 - self._differs.mean()))

    @property
    def ratio_errors(self) -> NDArray[np.float64]:
        """Absolute error of the log-likelihood ratio of fp32's two best classes, nats per text."""
        result: NDArray[np.float64] = np.abs(self._ratio(self.bf16) - self._ratio(self.fp32))
        return result

    def details(self) -> dict[str, float]:
        """Say how near to a tie the texts are that fall into another class."""
        differs, ratio = self._differs, self._ratio(self.fp32)
        return {
            "texts_that_differ": float(differs.sum()),
            "largest_ratio_among_them_nats": float(ratio[differs].max(initial=0.0)),
            "median_ratio_nats": float(np.median(ratio)),
        }

    def error_details(self) -> dict[str, float]:
        """Set the mean error of a ratio beside other errors."""
        return {
            "median_nats": float(np.median(self.ratio_errors)),
            "largest_nats": float(self.ratio_errors.max()),
            "of_one_log_likelihood_nats": float(np.abs(self.bf16 - self.fp32).mean()),
        }
