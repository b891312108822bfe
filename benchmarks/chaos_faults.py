"""The faults of a campaign: which there are, how a seed draws them, and how each is inflicted.

What is drawn is a plan: kind, phase and trigger of every fault. The seed decides it, though the
moment at which a trigger comes differs from time to time.
"""

from __future__ import annotations

import contextlib
import os
import random
import signal
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import psutil

from gencls_core.class_models import COMMIT_NAME, ClassModel
from gencls_core.run import CLASS_LM, RunDirectory
from gencls_core.scores import ScoreStore, ShardRecord

__all__ = [
    "PHASES",
    "Commit",
    "Fault",
    "Invocation",
    "draw_plan",
    "harm_files",
    "harm_process",
    "members",
]

PHASES = ("at rest", "prepare", "train", "score", "report")
"""In the order in which a run comes to them; `at rest`: between two invocations."""

ENDING: dict[str, tuple[str, ...]] = {
    "SIGKILL of the driver": ("prepare", "train", "score", "report"),
    "SIGKILL of the raylet": ("train", "score"),
    "SIGTERM": ("train", "score", "report"),
    "SIGINT": ("prepare", "train", "score"),
}
"""What a run does not survive, and the phases in which it strikes."""
SURVIVED: dict[str, tuple[str, ...]] = {
    "SIGKILL of a training worker": ("train",),
    "SIGKILL of a scoring actor": ("score",),
    "SIGKILL of two scoring actors": ("score",),
    "SIGSTOP of a worker, SIGCONT later": ("train", "score"),
}
MODELS = (
    "class model: file deleted",
    "class model: file cut short",
    "class model: byte flipped",
)
OTHERS = (
    "shard: file deleted",
    "shard: file cut short",
    "shard: byte flipped",
    "left-overs planted",
)
"""What is done to files between two invocations."""

_LATEST_EVENT = {"prepare": 0, "train": 4, "score": 60, "report": 0}
_LONGEST_DELAY = {"prepare": 1.0, "train": 1.0, "score": 1.0, "report": 3.0}
_TRAINS, _SCORES = "ray::_train", "ray::ScoringActor.score"

Commit = tuple[str, str, int]
"""A piece of committed work: split (or `model`), class, shard (or 0)."""


@dataclass(frozen=True)
class Fault:
    """One fault of the plan."""

    kind: str
    phase: str
    after: int = 0
    """Events of the phase, within the invocation, that are waited for."""
    delay: float = 0.0
    """Seconds after them."""
    choice: int = 0
    """Decides which worker, which file, which byte, how long."""

    @property
    def ends(self) -> bool:
        """Whether the run ends of it."""
        return self.kind in ENDING


@dataclass(frozen=True)
class Invocation:
    """What happens to files before one start of the run, and to processes after it."""

    at_rest: tuple[Fault, ...]
    during: tuple[Fault, ...]


def draw_plan(seed: int, faults: int) -> Iterator[Invocation]:
    """Draw invocations until `faults` processes are harmed; files are harmed besides.

    Kinds and phases come off shuffled decks, so that each has its turn before one comes again. An
    invocation that is to be harmed while it trains finds a class model harmed beforehand: else
    there might be nothing to train.
    """
    generator = random.Random(seed)
    ending, survived = _Deck(ENDING, generator), _Deck(SURVIVED, generator)
    models, others = (
        _Deck(dict.fromkeys(kinds, ("at rest",)), generator) for kinds in (MODELS, OTHERS)
    )
    drawn, first = 0, True
    while drawn < faults:
        last = ending.draw(PHASES)
        phases = PHASES[: PHASES.index(last.phase) + 1]
        wanted = generator.choice((1, 2, 2, 3)) if last.phase != "prepare" else 0
        during = [survived.draw(phases) for _ in range(min(wanted, faults - drawn - 1))]
        during.sort(key=lambda fault: (PHASES.index(fault.phase), fault.after))
        during.append(last)
        drawn += len(during)
        trains = any(fault.phase == "train" for fault in during)
        decks = [models] if trains else []
        decks += [others] if generator.random() < 0.6 or not trains else []
        before = () if first else tuple(deck.draw(PHASES) for deck in decks)
        yield Invocation(before, tuple(during))
        first = False


class _Deck:
    """Cards of kind and phase, dealt in random order, and shuffled anew when all are dealt."""

    def __init__(self, kinds: dict[str, tuple[str, ...]], generator: random.Random) -> None:
        self._all = [(kind, phase) for kind, phases in kinds.items() for phase in phases]
        self._left: list[tuple[str, str]] = []
        self._generator = generator

    def draw(self, phases: Sequence[str]) -> Fault:
        """Take the first card of one of these phases."""
        while (card := next((c for c in self._left if c[1] in phases), None)) is None:
            self._left += self._generator.sample(self._all, len(self._all))
        self._left.remove(card)
        kind, phase = card
        return Fault(
            kind=kind,
            phase=phase,
            after=self._generator.randint(0, _LATEST_EVENT.get(phase, 0)),
            delay=round(self._generator.uniform(0, _LONGEST_DELAY.get(phase, 0.0)), 3),
            choice=self._generator.getrandbits(32),
        )


def members(session: int) -> list[psutil.Process]:
    """Give the living processes of the session that a driver was started in, its Ray included."""
    found = []
    for number in psutil.pids():
        with contextlib.suppress(ProcessLookupError, psutil.Error):
            if os.getsid(number) != session:
                continue
            process = psutil.Process(number)
            if process.status() != psutil.STATUS_ZOMBIE:
                found.append(process)
    return found


def harm_process(fault: Fault, driver: int) -> list[psutil.Process] | None:
    """Send the fault's signal; None where nobody is there whom it would hit.

    Args:
        fault: of a kind that harms processes.
        driver: process id of the driver, which leads its session.

    Returns:
        The processes that got the signal.
    """
    titles = {process: _title(process) for process in members(driver)}
    by_driver = [process for process in titles if process.pid == driver]
    trains = [process for process, title in titles.items() if title.startswith(_TRAINS)]
    scores = [process for process, title in titles.items() if title.startswith(_SCORES)]
    match fault.kind:
        case "SIGKILL of the driver":
            victims, number = by_driver, signal.SIGKILL
        case "SIGTERM":
            victims, number = by_driver, signal.SIGTERM
        case "SIGINT":
            victims, number = by_driver, signal.SIGINT
        case "SIGKILL of the raylet":
            victims = [process for process, title in titles.items() if title.endswith("/raylet")]
            number = signal.SIGKILL
        case "SIGKILL of a training worker":
            victims, number = _one(trains, fault), signal.SIGKILL
        case "SIGKILL of a scoring actor":
            victims, number = _one(scores, fault), signal.SIGKILL
        case "SIGKILL of two scoring actors":
            victims, number = scores[:2] if len(scores) > 1 else [], signal.SIGKILL
        case _:
            victims, number = _one([*trains, *scores], fault), signal.SIGSTOP
    for victim in victims:
        with contextlib.suppress(psutil.NoSuchProcess):
            victim.send_signal(number)
    return victims or None


def _title(process: psutil.Process) -> str:
    with contextlib.suppress(psutil.Error):
        return (process.cmdline() or [""])[0]
    return ""


def _one(processes: Sequence[psutil.Process], fault: Fault) -> list[psutil.Process]:
    return [processes[fault.choice % len(processes)]] if processes else []


def harm_files(fault: Fault, run: RunDirectory) -> tuple[str, Counter[Commit]] | None:
    """Harm what is committed and whole; None where nothing of the kind is there.

    Returns:
        The file that was harmed, and the committed work that must be done once more.
    """
    models = [
        model
        for path in sorted(Path(str(run.models_path)).glob("[!.]*"))
        if (model := ClassModel.find(path)) is not None and not model.torn_files()
    ]
    standing = {model.class_name for model in models}
    shards = [
        (store, split, record)
        for split, store in (("test", run.scores), ("validation", run.validation_scores))
        for record in _whole(store)
        # The shards of a model that is lost are lost already.
        if record.class_name in standing
    ]
    if fault.kind == "left-overs planted":
        return _plant(fault, run, shards)
    if fault.kind.startswith("shard"):
        if not shards:
            return None
        store, split, record = shards[fault.choice % len(shards)]
        file = Path(str(store.shard_path(record.key)))
        if fault.choice >> 16 & 1 and not fault.kind.endswith("flipped"):
            file = Path(str(store.record_path(record.key)))
        _spoil(file, fault)
        # The baseline is no part of the event log.
        lost = [(split, record.class_name, record.index)] if record.system == CLASS_LM else []
        return str(file.relative_to(str(run.path))), Counter(lost)
    if not models:
        return None
    model = models[fault.choice % len(models)]
    names = ["model.safetensors", "model.safetensors", *sorted(model.files)]
    if not fault.kind.endswith("flipped"):
        names.append(COMMIT_NAME)
    file = Path(str(model.path)) / names[(fault.choice >> 8) % len(names)]
    _spoil(file, fault)
    lost = [
        ("model", model.class_name, 0),
        *(
            (split, record.class_name, record.index)
            for _, split, record in shards
            if record.class_name == model.class_name and record.system == CLASS_LM
        ),
    ]
    return str(file.relative_to(str(run.path))), Counter(lost)


def _whole(store: ScoreStore) -> list[ShardRecord]:
    records = store.records()
    torn = {record.key for record in store.torn(records)}
    return [record for record in records if record.key not in torn]


def _spoil(file: Path, fault: Fault) -> None:
    if fault.kind.endswith("deleted"):
        file.unlink()
        return
    content = file.read_bytes()
    place = fault.choice % len(content)
    if fault.kind.endswith("cut short"):
        file.write_bytes(content[:place])
    else:
        file.write_bytes(content[:place] + bytes([content[place] ^ 1]) + content[place + 1 :])


def _plant(
    fault: Fault, run: RunDirectory, shards: Sequence[tuple[ScoreStore, str, ShardRecord]]
) -> tuple[str, Counter[Commit]] | None:
    """Leave what writers leave that were killed at the places where gencls writes."""
    root, mark = Path(str(run.path)), f"4000000-{fault.choice:08x}.tmp"
    if not shards:
        return None
    store, _, record = shards[fault.choice % len(shards)]
    shard = Path(str(store.shard_path(record.key)))
    model = Path(str(run.model_path(record.class_name)))
    digest = ClassModel.open(model).digest[:16]
    planted = [
        shard.with_name(f".{shard.name}.{mark}"),
        # A shard of another cut, whose record was not written any more.
        shard.with_name("shard-00000-of-00001.parquet")
        if record.count > 1
        else shard.with_name(f"._{shard.stem}.json.{mark}"),
        model.with_name(f".{model.name}.{mark}") / "model.safetensors",
        model.with_name(f".training-{model.name}-{digest}") / "checkpoint-1" / "optimizer.pt",
        root / f".run.json.{mark}",
        root / "report" / f".report.html.{mark}",
        root / ".incoming-dataset" / "train.parquet",
    ]
    for path in planted:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(b"half of it")
    return f"{len(planted)} places", Counter()
