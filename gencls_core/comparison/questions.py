"""The questions of the original experiment, and of its successors, answered from the figures."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

from gencls_core.comparison.schema import Answer, Comparison, PairReport
from gencls_core.comparison.words import points, significant, turned
from gencls_core.config_training import RECIPES
from gencls_core.run import CLASS_LM
from gencls_core.significance import format_p

__all__ = ["answers"]

Verdict = Literal["yes", "no", "not shown", "not asked"]

JOINT_LM = RECIPES["joint"]

RIVALS = {
    "zero-shot": "Does training a language model per class beat zero-shot?",
    "discriminative": "Are the generative class models better than the discriminative model?",
    "masked-lm": "Are the causal class models better than masked ones?",
    "tfidf": "Are the class models better than TF-IDF with logistic regression?",
}
"""Of the class models."""
RIVALS_OF_TUNED = {
    CLASS_LM: "Does one model, tuned to tell the classes apart, beat a model per class?",
    "discriminative": "Is the tuned generative model better than the discriminative model?",
    "tfidf": "Is the tuned generative model better than TF-IDF with logistic regression?",
}
"""Asked only where they were scored."""


def answers(pairs: Sequence[PairReport], others: Sequence[Comparison]) -> list[Answer]:
    """Answer each question: yes or no where the interval leaves out zero and the test agrees.

    Args:
        pairs: every two systems on these test texts.
        others: comparisons on other test texts.
    """
    found = [_against(CLASS_LM, rival, question, pairs) for rival, question in RIVALS.items()]
    tuned = (_against(JOINT_LM, rival, asked, pairs) for rival, asked in RIVALS_OF_TUNED.items())
    found += [answer for answer in tuned if answer.verdict != "not asked"]
    return [*found, _pattern(found, others)]


def _against(system: str, rival: str, question: str, pairs: Sequence[PairReport]) -> Answer:
    found = [pair for pair in pairs if _is(pair.a, system) and _is(pair.b, rival)]
    found += [turned(p) for p in pairs if _is(p.b, system) and _is(p.a, rival)]
    if not found:
        words = f"Not asked: {system} and {rival} were not both scored."
        return Answer(question=question, verdict="not asked", words=words)
    verdicts = {_verdict(pair) for pair in found}
    verdict: Verdict = verdicts.pop() if len(verdicts) == 1 else "not shown"
    lead = {
        "yes": "Yes.",
        "no": f"No, {rival} is better.",
        "not shown": "Not shown: the difference may be chance.",
    }[verdict]
    if verdicts:
        lead = "Not shown: variants differ."
    figures = "; ".join(
        f"{pair.a} minus {pair.b}: {points(pair.difference)} points "
        f"({points(pair.low)} to {points(pair.high)}; corrected {format_p(pair.holm_p)})"
        for pair in found
    )
    return Answer(question=question, verdict=verdict, words=f"{lead} {figures}.")


def _is(name: str, system: str) -> bool:
    """Say whether a name is that of a system, or of a variant of it."""
    return name == system or name.startswith(f"{system} (")


def _verdict(pair: PairReport) -> Verdict:
    if not significant(pair):
        return "not shown"
    return "yes" if pair.difference > 0 else "no"


def _pattern(here: Sequence[Answer], others: Sequence[Comparison]) -> Answer:
    question = "Does the pattern hold on the other data sets?"
    asked = [answer for answer in here if answer.verdict != "not asked"]
    if not others or not asked:
        why = "no comparison on another data set was given"
        words = f"Not asked: {why if asked else 'none of the questions was asked here'}."
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
    if not lines:
        words = "Not asked: the other comparisons did not ask these questions."
        return Answer(question=question, verdict="not asked", words=words)
    return Answer(question=question, verdict=_agreement(verdicts), words=" ".join(lines))


def _agreement(verdicts: Sequence[tuple[Verdict, Verdict]]) -> Verdict:
    """Say yes where all that is shown agrees, no where something shown is contradicted."""
    if not verdicts:
        return "not asked"
    shown = [(here, there) for here, there in verdicts if "not shown" not in (here, there)]
    if any(here != there for here, there in shown):
        return "no"
    return "yes" if len(shown) == len(verdicts) else "not shown"
