"""What systems are called where a person reads of them; files and flags have their names."""

from __future__ import annotations

__all__ = ["BASELINE", "NBSVM", "about_system", "system_title"]

BASELINE = "tfidf"
"""What a run trains beside its models."""
NBSVM = "nbsvm"

_TITLES = {
    "class-lm": "class models",
    "conditional-lm": "one conditional model",
    "joint-lm": "the tuned conditional model",
    "zero-shot": "the untrained language model",
    "background": "the untrained base, which knows no class",
    "discriminative": "the discriminative fine-tune",
    "masked-lm": "masked class models",
    "masked-lm-untrained": "the untrained masked model",
    "setfit": "SetFit",
    "tfidf": "TF-IDF with logistic regression",
    "nbsvm": "NBSVM",
    "naive-bayes": "naive Bayes",
    "majority": "always the largest class",
}

_ABOUT = {
    "class-lm": "a language model per class",
    "conditional-lm": "a language model that reads the class before the text",
    "joint-lm": "a language model that reads the class before the text, tuned to tell them apart",
    "zero-shot": "the language model, asked with a prompt",
    "discriminative": "the language model, fine-tuned with a classification head",
    "masked-lm": "a masked language model per class",
    "masked-lm-untrained": "the masked language model, asked with a prompt",
    "setfit": "fine-tuned sentence embeddings",
    "tfidf": "TF-IDF with logistic regression",
    "nbsvm": "support vectors over naive Bayes features",
    "naive-bayes": "multinomial naive Bayes",
    "majority": "always the largest class",
}


def system_title(system: str) -> str:
    """Give a system's name in words; an unknown one keeps its own."""
    return _TITLES.get(system, system)


def about_system(system: str) -> str | None:
    """Say what a system is, in a few words; None for an unknown one."""
    return _ABOUT.get(system)
