"""What a run says of itself in `run.json`, and which of its class models stand."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import UTC, datetime
from typing import Any

from cluster.preparation import Preparation
from gencls_core.class_models import ClassModel
from gencls_core.errors import StoreError
from gencls_core.run import RunDirectory, environment

__all__ = ["committed_models", "manifest_of", "previous_manifest"]


def committed_models(
    run: RunDirectory, classes: Sequence[str], digests: dict[str, str] | None = None
) -> tuple[ClassModel, ...]:
    """Give a run's class models, in class order.

    Args:
        run: the run that trained them.
        classes: in the order of their numbers.
        digests: the digest that each class's model must have; None takes what is committed.

    Raises:
        StoreError: when a class has none.
    """
    models, missing = [], []
    for number, name in enumerate(classes):
        model = ClassModel.find(run.model_path(name))
        if model is None or (digests is not None and model.digest != digests[name]):
            missing.append(f"{name} (--class-id {number})")
        else:
            models.append(model)
    if missing:
        raise StoreError.of(
            "classes without a class model",
            place=run.models_path,
            found="none for " + ", ".join(missing),
            expected=f"a committed model for each of the {len(classes)} classes",
            remedy="train them with `gencls train`",
        )
    return tuple(models)


def previous_manifest(run: RunDirectory) -> dict[str, Any]:
    """Give the manifest of an earlier invocation, or nothing."""
    try:
        return run.manifest()
    except StoreError:
        return {}


def manifest_of(preparation: Preparation, previous: dict[str, Any]) -> dict[str, Any]:
    """Give the content of `run.json` but for status and time."""
    config = preparation.config
    return {
        "config": config.model_dump(mode="json"),
        "classes": list(preparation.dataset.classes),
        "dataset": {
            "name": preparation.dataset.name,
            "fingerprint": preparation.dataset.fingerprint,
        },
        "model": {
            "name": preparation.base.name,
            "architecture": preparation.base.config.get("model_type", "gpt2"),
            "parameters": preparation.base.parameters,
            "digest": preparation.base.digest,
            "kind": "full" if config.model.lora_rank is None else "lora",
        },
        "precision": preparation.precision,
        "environment": environment(),
        "started": previous.get("started") or datetime.now(UTC).isoformat(),
        "seconds": previous.get("seconds"),
        "notes": list(preparation.notes),
    }
