"""Generative text classification: exact log-likelihoods under one language model per class.

The library under gencls, usable from a notebook without Ray. Importing it loads nothing heavy:

    ClassifierRun           a finished run: classify texts, read scores, explain (docs/python.md)
    Classification          what it says of a text
    GenerativeClassifier    the same as a scikit-learn classifier, trained here
"""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from gencls_core.classifier_run import Classification, ClassifierRun
    from gencls_core.sklearn_classifier import GenerativeClassifier

__all__ = ["Classification", "ClassifierRun", "GenerativeClassifier"]


def __getattr__(name: str) -> object:
    # What is heavy is imported when it is first asked for.
    if name in ("Classification", "ClassifierRun"):
        from gencls_core import classifier_run

        return getattr(classifier_run, name)
    if name == "GenerativeClassifier":
        from gencls_core.sklearn_classifier import GenerativeClassifier

        return GenerativeClassifier
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted([*globals(), *__all__])
