"""Single test texts on the page: the mistakes first, each with the words that decided.

A page that people open must stay small, however many texts there are: the most telling ones are
taken, as many as fit, each as far as it fits. All others are in predictions.parquet.

Shapes: N test texts, C classes.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import pairwise
from typing import Any

import numpy as np
import pyarrow as pa

from gencls_core.datasets.dataset import Dataset
from gencls_core.errors import GenclsError
from gencls_core.evidence import Evidence, strengths_of
from gencls_core.explanations import explain_kept
from gencls_core.report.inference import Inference
from gencls_core.run import RunDirectory
from gencls_core.score_matrix import FloatArray, IntArray, blocks_of

__all__ = ["SHOWN_MISTAKES", "Coloured", "ShownText", "Texts", "as_json", "shown_texts"]

SHOWN_TEXTS = 10_000
SHOWN_MISTAKES = 20
"""Of them, those that the page spells out."""
EXPLAINED_TEXTS = 1_000
"""Texts whose words are coloured; half a second or so."""
_TEXT_BYTES = 2_000_000
_EVIDENCE_BYTES = 1_200_000
"""Of all texts together; with their figures, and all else, the page stays under 5 MB."""
_LONGEST_BYTES = 4_000
_LONGEST_MISTAKE_BYTES = 20_000
"""A page with twenty whole books in it would be of no use."""
_LIKELIEST = 3
"""Classes whose probabilities a text shows."""


@dataclass(frozen=True)
class Coloured:
    """A word, with what stands before it, and what it says."""

    text: str
    nats: float
    """Above 0 for the answer."""
    strength: int
    """Of its colour, in percent; 0 where it says next to nothing."""


@dataclass(frozen=True)
class ShownText:
    """A test text and what was answered."""

    row: int
    example_id: str
    text: str | None
    """As far as it is shown; None where the dataset no longer holds it under this id."""
    left_out: int
    """Characters that are not shown."""
    label: str | None
    answer: str | None
    """None where it is not answered."""
    reason: str | None
    """Why it is not answered; None where it is."""
    probability: float
    """Of the likeliest class."""
    margin: float
    """log-odds of the likeliest class against the second, in nats."""
    ahead: float
    """The same against the true class; 0 unless the answer is wrong."""
    num_tokens: int
    likeliest: tuple[tuple[str, float], ...]
    """The first classes and their probabilities; the true one in any case."""
    evidence: Evidence | None = field(default=None, compare=False)

    @property
    def is_wrong(self) -> bool:
        """Whether there is an answer, and it is not the label."""
        return None not in (self.label, self.answer) and self.label != self.answer

    @property
    def coloured(self) -> tuple[Coloured, ...]:
        """Give the shown text word by word, coloured as its evidence says; empty without any."""
        if self.evidence is None or self.text is None:
            return ()
        words = [word for word in self.evidence.words if word.start < len(self.text)]
        ends = [0, *(min(word.stop, len(self.text)) for word in words)]
        found = [
            Coloured(self.text[start:stop], word.nats, _percent(strength))
            for word, strength, (start, stop) in zip(
                words, strengths_of(words), pairwise(ends), strict=True
            )
        ]
        if rest := self.text[ends[-1] :]:
            found.append(Coloured(rest, 0.0, 0))
        return tuple(found)

    @property
    def items(self) -> tuple[tuple[str, float], ...]:
        """Give what adds up to the log-odds, by name; empty without evidence."""
        found = self.evidence
        if found is None:
            return ()
        shown = sum(word.nats for word in self.coloured)
        items = (
            ("the words", shown),
            ("the words that are not shown", sum(t.nats for t in found.tokens) - shown),
            *found.beside_words,
        )
        # What the last bits of a sum come to is no item.
        return tuple((name, nats) for name, nats in items if abs(nats) > 1e-9)


@dataclass(frozen=True)
class Texts:
    """What a page shows of single texts."""

    shown: tuple[ShownText, ...]
    """The wrong ones first, the surest of them first; then the others, the least sure first."""
    in_all: int
    wrong_in_all: int
    unanswered_in_all: int
    note: str
    """Why no words are coloured, where none are."""

    @property
    def mistakes(self) -> tuple[ShownText, ...]:
        """Give the most confident mistakes."""
        return tuple(text for text in self.shown[:SHOWN_MISTAKES] if text.is_wrong)


def shown_texts(
    run: RunDirectory, inference: Inference, dataset: Dataset, reasons: pa.Array | None = None
) -> Texts:
    """Choose the texts that a page shows, by the answer that the run stands by.

    A text that there is a reason not to answer (`Rejecter.reasons`) is neither right nor wrong.
    Where the texts' token scores were kept, the first are explained word by word; what stands in
    the way of that (a tokenizer that is gone or cannot be read) takes no report away.
    """
    matrix = inference.matrix
    if reasons is None:
        reasons = pa.nulls(len(matrix), pa.string())
    refused_N = reasons.is_valid().to_numpy(zero_copy_only=False)
    ahead_N, margin_N = _distances(inference)
    ahead_N[refused_N] = 0.0
    wrong_N = ahead_N > 0
    # Stable: equal texts keep the order of the test split, and the page its bytes.
    order = np.lexsort((np.where(wrong_N, -ahead_N, margin_N), ~wrong_N))[:SHOWN_TEXTS]
    wholes = _texts_of(inference, dataset, order)
    evidence, note = _evidence(run, inference, order[:EXPLAINED_TEXTS], wholes)
    room = max(120, min(_LONGEST_BYTES, _TEXT_BYTES // max(1, len(order))))
    shown = []
    for place, row in enumerate(order.tolist()):
        log_p_C = inference.answer[row]
        best = np.argsort(-log_p_C, kind="stable")[:_LIKELIEST].tolist()
        if (truth := int(matrix.label_codes[row])) >= 0 and truth not in best:
            best.append(truth)
        whole = wholes.get(row)
        is_spelt_out = place < SHOWN_MISTAKES and wrong_N[row]
        text = _cut(whole, _LONGEST_MISTAKE_BYTES if is_spelt_out else room)
        shown.append(
            ShownText(
                row=row,
                example_id=matrix.example_id(row),
                text=text,
                left_out=len(whole or "") - len(text or ""),
                label=matrix.label(row),
                answer=None if refused_N[row] else matrix.classes[best[0]],
                reason=reasons[row].as_py(),
                probability=float(np.exp(log_p_C[best[0]])),
                margin=float(margin_N[row]),
                ahead=float(ahead_N[row]),
                num_tokens=int(matrix.num_tokens[row]),
                likeliest=tuple((matrix.classes[c], float(np.exp(log_p_C[c]))) for c in best),
                evidence=evidence.get(row),
            )
        )
    return Texts(tuple(shown), len(matrix), int(wrong_N.sum()), int(refused_N.sum()), note)


def as_json(texts: Texts, classes: Sequence[str]) -> str:
    """Pack texts for the page's script: columns, and evidence where there is some.

    It is safe inside of a script element, whatever the texts hold.
    """
    number = {name: code for code, name in enumerate(classes)}
    shown = texts.shown
    packed: dict[str, Any] = {
        "classes": list(classes),
        "id": [text.example_id for text in shown],
        "label": [-1 if text.label is None else number[text.label] for text in shown],
        "answer": [-1 if text.answer is None else number[text.answer] for text in shown],
        "reasons": {place: text.reason for place, text in enumerate(shown) if text.reason},
        "probability": [round(text.probability, 4) for text in shown],
        "margin": [round(text.margin, 2) for text in shown],
        "tokens": [text.num_tokens for text in shown],
        "text": [text.text for text in shown],
        "leftOut": [text.left_out for text in shown],
        "likeliest": [
            [part for name, p in text.likeliest for part in (number[name], round(p, 4))]
            for text in shown
        ],
    }
    packed["evidence"], room = {}, _EVIDENCE_BYTES
    for place, text in enumerate(shown):
        if text.evidence is not None and room > 0:
            found = _packed(text, text.evidence, number)
            packed["evidence"][place] = found
            room -= len(_written(found))
    return _written(packed)


def _packed(text: ShownText, evidence: Evidence, number: Mapping[str, int]) -> dict[str, Any]:
    words = text.coloured
    return {
        "against": number[evidence.against],
        # As the script counts them.
        "lengths": [len(word.text.encode("utf-16-le")) // 2 for word in words],
        "hundredths": [round(100 * word.nats) for word in words],
        "items": [[name, round(nats, 3)] for name, nats in text.items],
        "odds": round(evidence.log_odds, 3),
        "cut": evidence.truncated,
    }


def _written(value: Any) -> str:
    written = json.dumps(value, ensure_ascii=False, separators=(",", ":"))
    # Neither an end tag nor a comment can begin.
    return written.replace("<", "\\u003c")


def _distances(inference: Inference) -> tuple[FloatArray, FloatArray]:
    """Give how far the answer is ahead of the true class, and of the second likeliest, [N]."""
    answer_NC, label_N = inference.answer, inference.matrix.label_codes
    ahead_N, margin_N = np.zeros(len(label_N)), np.zeros(len(label_N))
    for block in blocks_of(len(label_N)):
        log_p_BC, truth_B = answer_NC[block], label_N[block]
        ordered_BC = np.sort(log_p_BC, axis=1)
        margin_N[block] = ordered_BC[:, -1] - ordered_BC[:, -2]
        predicted_B, each_B = log_p_BC.argmax(axis=1), np.arange(len(truth_B))
        ahead_B = ordered_BC[:, -1] - log_p_BC[each_B, np.maximum(truth_B, 0)]
        wrong_B = (truth_B >= 0) & (predicted_B != truth_B)
        # As likely as the true class, and yet another.
        tiny = np.finfo(np.float64).tiny
        ahead_N[block] = np.where(wrong_B, np.maximum(ahead_B, tiny), 0.0)
    return ahead_N, margin_N


def _texts_of(inference: Inference, dataset: Dataset, rows: IntArray) -> dict[int, str]:
    """Read texts by row; scores are in the order of the test split."""
    wanted, found, start = np.sort(rows), {}, 0
    for batch in dataset.iter_batches("test", ["example_id", "text"]):
        inside = wanted[(wanted >= start) & (wanted < start + batch.num_rows)]
        part = batch.take(inside - start)
        for row, example_id, text in zip(
            inside.tolist(), part["example_id"].to_pylist(), part["text"].to_pylist(), strict=True
        ):
            if example_id == inference.matrix.example_id(row):
                found[row] = text
        start += batch.num_rows
    return found


def _evidence(
    run: RunDirectory, inference: Inference, rows: IntArray, texts: Mapping[int, str]
) -> tuple[dict[int, Evidence], str]:
    """Explain texts; and say why none is, where that is so."""
    asked = {row: texts[row] for row in rows.tolist() if row in texts}
    try:
        found = dict(_explained(run, inference, asked))
    except (GenclsError, OSError) as error:
        return {}, f"Words are not coloured: {str(error).splitlines()[0]}"
    if found or not asked:
        return found, ""
    return {}, (
        "Labels were decided by mean losses, which are no sum over words."
        if inference.by_loss
        else "Words are not coloured, for no token scores were kept (--per-token); "
        "`gencls explain RUN --example ID` scores a text once more."
    )


def _explained(
    run: RunDirectory, inference: Inference, texts: Mapping[int, str]
) -> Iterator[tuple[int, Evidence]]:
    if inference.matrix.is_likelihood and len(inference.matrix.classes) > 1:
        yield from explain_kept(run, inference, texts)


def _cut(text: str | None, size: int) -> str | None:
    """Give the start of a text that `size` bytes of the page hold, by words if it has any."""
    if text is None or len(text) <= size // 6:
        return text
    start = text[:size]
    while (bytes_of := len(_written(start).encode())) > size:
        start = start[: int(len(start) * min(0.98, size / bytes_of))]
    if len(start) < len(text) and " " in start[len(start) // 2 :]:
        start = start[: start.rindex(" ")]
    return start


def _percent(strength: float) -> int:
    return round(8 + 47 * strength) if strength else 0
