"""The bars of training: gencls in bf16 against Trainer in several dresses, and against the roof.

Every round runs all that is held to a number, so each ratio is of neighbours. Whether Trainer is
faster compiled is found out once per case, before the rounds: compiling takes minutes and is
set-up, not steady state.
A speed that comes with another loss is none: beyond LOSS_TOLERANCE nothing is reported.
"""

from __future__ import annotations

import contextlib
import random
import statistics
import tempfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

from benchmarks.bars import BarResult, Options
from benchmarks.cases import Case, Measurement, write_texts
from benchmarks.models import model_folder
from benchmarks.pairs import Pair, PeerError, Ratio, run_peer, run_rounds
from benchmarks.texts import train_texts

__all__ = [
    "FIGURES",
    "LOSS_TOLERANCE",
    "LossError",
    "check_loss",
    "loss_difference",
    "measure",
    "sizes_of",
]

LOSS_TOLERANCE = 5.0
"""Per cent between our held-out loss and that of Trainer in fp32."""

_PEERS = "benchmarks.training_peers:"
_PLAIN, _COMPILED = "trainer_bf16", "trainer_bf16_compiled"
_PADDED = "trainer_padded"
_SAME_STEPS = "trainer_bf16_our_order"
_ROUND = ("ours", "roof", "trainer_fp32", _PLAIN)
_SHOWN_ROUNDS = 2
"""Rounds with the peers that are held to nothing, or whose memory is the same each time."""
_SHOWN = ("train_loss", "held_out_loss", "fp32_tokens_per_second")
"""Values that are shown beside a ratio."""

_Figure = Callable[[Measurement, Measurement], float]


class LossError(PeerError):
    """Ours and Trainer do not come to the same loss."""


@dataclass(frozen=True)
class Size:
    """How much one case trains."""

    dataset: str
    batch_size: int
    """Texts per step: the original's, or four times as many."""
    padded: bool
    """Whether padding to 256 is measured: with many short texts it would take the memory of all."""
    steps: int
    held_out: int

    @property
    def name(self) -> str:
        """Name the case in the results."""
        return f"{self.dataset}, {self.batch_size} texts a step"


@dataclass(frozen=True)
class Rounds:
    """What was measured of one case."""

    rounds: list[dict[str, Measurement]]
    """Of each round what each peer measured; `best` is Trainer at its best."""
    trial: dict[str, float]
    """What decided whether Trainer is at its best compiled or not; empty without a trial."""


SIZES = (
    Size("agnews", 8, padded=True, steps=20, held_out=40),
    Size("agnews", 32, padded=False, steps=5, held_out=40),
    Size("imdb", 8, padded=True, steps=6, held_out=10),
)
QUICK = (Size("agnews", 8, padded=True, steps=4, held_out=4),)


def sizes_of(options: Options) -> list[Size]:
    """Give the cases that are asked for."""
    return [size for size in (QUICK if options.quick else SIZES) if options.case in size.name]


def measure(options: Options) -> Iterator[BarResult]:
    """Measure case by case; a bar is given again as soon as it has one more.

    Raises:
        LossError: when ours and Trainer train to different losses.
    """
    sizes = sizes_of(options)
    measured: dict[str, list[Ratio]] = {}
    for size in sizes:
        found = _rounds(options, size)
        for key, (peer, figure) in FIGURES.items():
            if peer in found.rounds[0]:
                measured.setdefault(key, []).append(_ratio(size.name, found, peer, figure))
                yield BarResult(key, tuple(measured[key]), size == sizes[-1])


def _rounds(options: Options, size: Size) -> Rounds:
    texts = train_texts(options, size.dataset, 0)
    chosen = random.Random(0).sample(texts, size.batch_size * size.steps + size.held_out)
    with tempfile.TemporaryDirectory() as folder:
        case = Case(
            name=size.name,
            model=str(model_folder(options.model, options.model)),
            precision="bf16",
            texts_file=write_texts(Path(folder) / "texts.json", chosen),
            threads=options.threads,
            options={"batch_size": str(size.batch_size), "held_out": str(size.held_out)},
        )
        trial = {} if options.quick else _try_compiled(case)
        plain = trial.get("plain_tokens_per_second", 0.0)
        faster = trial.get("compiled_tokens_per_second", 0.0) > plain
        always = [*_ROUND, *[_COMPILED] * faster]
        shown = ["trainer_bf16_weights", _SAME_STEPS, *[_PADDED] * size.padded]
        rounds = []
        for number in range(options.pairs):
            names = always + shown * (number < _SHOWN_ROUNDS)
            [[measured]] = run_rounds([_PEERS + name for name in names], [case], 1)
            rounds.append(dict(zip(names, measured, strict=True)))
    check_loss(size.name, [(one["ours"], one["trainer_fp32"]) for one in rounds])
    return Rounds([{**one, "best": one[_COMPILED if faster else _PLAIN]} for one in rounds], trial)


def _try_compiled(case: Case) -> dict[str, float]:
    """Train once plain and once compiled; only the plain figures where compiling fails."""
    plain = run_peer(_PEERS + _PLAIN, [case])[0]
    figures = {"plain_tokens_per_second": plain.tokens_per_second}
    with contextlib.suppress(PeerError):
        compiled = run_peer(_PEERS + _COMPILED, [case])[0]
        figures["compiled_tokens_per_second"] = compiled.tokens_per_second
        figures["compiled_setup_seconds"] = compiled.setup_seconds
    return figures


def loss_difference(ours: Measurement, peer: Measurement) -> float:
    """Give by how many per cent two held-out losses differ."""
    theirs = peer.values["held_out_loss"]
    return 100 * abs(ours.values["held_out_loss"] - theirs) / theirs


def check_loss(case: str, pairs: list[Pair]) -> None:
    """Refuse figures of trainings that differ in more than speed.

    Raises:
        LossError: when they do not train on the same tokens to the same loss.
    """
    for ours, peer in pairs:
        if ours.values["trained_tokens"] != peer.values["trained_tokens"]:
            raise LossError(
                f"{case}: ours trained on {ours.values['trained_tokens']:.0f} tokens, Trainer on "
                f"{peer.values['trained_tokens']:.0f}"
            )
        # A loss that is not a number is no loss below the tolerance either.
        if not loss_difference(ours, peer) <= LOSS_TOLERANCE:
            raise LossError(
                f"{case}: the held-out loss after training is {ours.values['held_out_loss']:.4f} "
                f"nats per token, with Trainer in fp32 {peer.values['held_out_loss']:.4f}; "
                f"at most {LOSS_TOLERANCE:g} % apart are noise"
            )


def _speed(ours: Measurement, peer: Measurement) -> float:
    return ours.tokens_per_second / peer.tokens_per_second


def _memory(ours: Measurement, peer: Measurement) -> float:
    return _above_imports(ours) / _above_imports(peer)


def _above_imports(measured: Measurement) -> int:
    return measured.peak_memory_bytes - measured.memory_before_bytes


FIGURES: dict[str, tuple[str, _Figure]] = {
    "training_bf16_vs_trainer_original": ("trainer_fp32", _speed),
    "training_bf16_vs_trainer_best": ("best", _speed),
    "training_bf16_vs_roof": ("roof", _speed),
    "training_memory_vs_trainer": (_SAME_STEPS, _memory),
    "training_bf16_vs_trainer_padded": (_PADDED, _speed),
    "training_bf16_vs_trainer_bf16_weights": ("trainer_bf16_weights", _speed),
    "training_memory_vs_trainer_fp32": ("trainer_fp32", _memory),
    "training_loss_vs_trainer_fp32": ("trainer_fp32", loss_difference),
}


def _ratio(case: str, found: Rounds, peer: str, figure: _Figure) -> Ratio:
    details: dict[str, float] = {}
    rounds = [one for one in found.rounds if peer in one]
    for side, name in (("ours", "ours"), ("peer", peer)):
        of_side = [one[name] for one in rounds]
        if figure is _memory:
            details[f"{side}_MB"] = statistics.median(_above_imports(m) / 1e6 for m in of_side)
            details[f"{side}_process_MB"] = statistics.median(
                m.peak_memory_bytes / 1e6 for m in of_side
            )
            continue
        speed = statistics.median(m.tokens_per_second for m in of_side)
        details[f"{side}_tokens_per_second"] = speed
        for value in _SHOWN:
            if value in of_side[0].values:
                details[f"{side}_{value}"] = statistics.median(m.values[value] for m in of_side)
    if peer == "best":
        details |= found.trial
    return Ratio.of(case, [(one["ours"], one[peer]) for one in rounds], figure, details)
