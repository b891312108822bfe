"""The questions of the original experiment, answered from the figures and in words."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

from gencls_core.comparison.schema import Answer, Comparison, PairReport
from gencls_core.significance import format_p

__all__ = ["answers"]

Verdict = Literal["yes", "no", "not shown", "not asked"]

CLASS_LM = "class-lm"
RIVALS = {
    "zero-shot": "Does training a language model per class beat zero-shot?",
    "discriminative": "Are the generative class models better than the discriminative model?",
    "masked-lm": "Are the causal class models better than masked ones?",
    "tfidf": "Are the class models better than TF-IDF with logistic regression?",
}
ALPHA = 0.05


def answers(pairs: Sequence[PairReport], others: Sequence[Comparison]) -> list[Answer]:
    """Answer each question: yes or no where the interval leaves out zero and the test agrees.

    Args:
        pairs: every two systems on these test texts.
        others: comparisons on other test texts.
    """
    found = [_against(rival, question, pairs) for rival, question in RIVALS.items()]
    return [*found, _pattern(found, others)]


def _against(rival: str, question: str, pairs: Sequence[PairReport]) -> Answer:
    pair = next((p for p in pairs if {p.a, p.b} == {CLASS_LM, rival}), None)
    if pair is None:
        words = f"Not asked: {CLASS_LM} and {rival} were not both scored."
        return Answer(question=question, verdict="not asked", words=words)
    sign = 1 if pair.a == CLASS_LM else -1
    low, high = sorted((sign * pair.low, sign * pair.high))
    verdict = _verdict(low, high, pair.holm_p)
    figures = (
        f"{CLASS_LM} minus {rival}: {100 * sign * pair.difference:+.1f} points "
        f"({100 * low:+.1f} to {100 * high:+.1f}; corrected {format_p(pair.holm_p)})."
    )
    lead = {
        "yes": "Yes.",
        "no": f"No, {rival} is better.",
        "not shown": "Not shown: the difference may be chance.",
    }[verdict]
    return Answer(question=question, verdict=verdict, words=f"{lead} {figures}")


def _verdict(low: float, high: float, p: float) -> Literal["yes", "no", "not shown"]:
    if p >= ALPHA or low <= 0 <= high:
        return "not shown"
    return "yes" if low > 0 else "no"


def _pattern(here: Sequence[Answer], others: Sequence[Comparison]) -> Answer:
    question = "Does the pattern hold on the other data sets?"
    asked = [answer for answer in here if answer.verdict != "not asked"]
    if not others or not asked:
        words = "Not asked: no comparison on another data set was given."
        return Answer(question=question, verdict="not asked", words=words)
    lines, verdicts = [], []
    for answer in asked:
        there = {
            other.test.name: given.verdict
            for other in others
            for given in other.questions
            if given.question == answer.question and given.verdict != "not asked"
        }
        if not there:
            continue
        verdicts += [(answer.verdict, verdict) for verdict in there.values()]
        said = ", ".join(f"{verdict} on {name}" for name, verdict in there.items())
        lines.append(f"{answer.question} {answer.verdict.capitalize()} here; {said}.")
    return Answer(question=question, verdict=_agreement(verdicts), words=" ".join(lines))


def _agreement(verdicts: Sequence[tuple[Verdict, Verdict]]) -> Verdict:
    """Say yes where all that is shown agrees, no where something shown is contradicted."""
    if not verdicts:
        return "not asked"
    shown = [(here, there) for here, there in verdicts if "not shown" not in (here, there)]
    if any(here != there for here, there in shown):
        return "no"
    return "yes" if len(shown) == len(verdicts) else "not shown"
