"""Committed class models in one process: own weights each, or LoRA adapters that share one base."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Generic

from torch import nn

from gencls_core.class_models import ClassModel
from gencls_core.compilation import compile_layers
from gencls_core.errors import ModelError
from gencls_core.fused_layers import pack
from gencls_core.model_source import ResolvedModel
from gencls_core.models import LM, load_adapters

__all__ = ["LoadedClassModels", "ready_to_score"]


def ready_to_score(model: nn.Module, device: str, *, compiled: bool = False) -> None:
    """Bring a loaded model to its device, laid out for speed; it can only be read from then on."""
    model.to(device)
    pack(model)
    if compiled:
        compile_layers(model)


class LoadedClassModels(Generic[LM]):
    """The models of some classes, which all read the same tokens."""

    def __init__(
        self,
        models: Sequence[ClassModel],
        base: ResolvedModel,
        *,
        load: Callable[[ResolvedModel], LM],
        tokenizer_of: Callable[[LM], str],
        device: str,
        setting: str,
        compiled: bool = False,
    ) -> None:
        """Load the models.

        Args:
            models: committed class models.
            base: the base model; read only for LoRA adapters.
            load: makes a model of a folder.
            tokenizer_of: gives the digest of a model's tokenizer.
            device: torch device.
            setting: the flag that names the base, for messages.
            compiled: whether their layers are compiled.

        Raises:
            ModelError: when the models do not share one tokenizer, or one cannot be loaded.
        """
        digests = {model.tokenizer_digest for model in models}
        if len(digests) != 1:
            raise ModelError.of(
                "the class models do not share one tokenizer",
                found=", ".join(f"{m.class_name}: {m.tokenizer_digest[:12]}" for m in models),
                expected="one tokenizer: likelihoods of different tokens cannot be compared",
                remedy=f"train all classes with the same {setting}",
            )
        self._adapters: dict[str, str] = {}
        self._models: dict[str, LM] = {}
        adapters = {m.class_name: m.local() for m in models if m.kind == "lora"}
        if adapters:
            # Adapter names become module names, where a dot is not allowed.
            self._adapters = {name: f"class_{i}" for i, name in enumerate(adapters)}
            shared = load_adapters(
                load(base), {self._adapters[name]: path for name, path in adapters.items()}
            )
            ready_to_score(shared.model, device, compiled=compiled)
            self._models.update(dict.fromkeys(adapters, shared))
        for model in models:
            if model.kind != "lora":
                resolved = ResolvedModel(
                    model.class_name, model.path, model.digest, 0, {}, model.files
                )
                self._models[model.class_name] = load(resolved)
                ready_to_score(self._models[model.class_name].model, device, compiled=compiled)
        self.any: LM = self._models[models[0].class_name]
        found = tokenizer_of(self.any)
        if digests != {found}:
            raise ModelError.of(
                "a class model's tokenizer is not the one it was committed with",
                place=models[0].path,
                found=found[:12],
                expected=next(iter(digests))[:12],
                remedy="run the training command again",
            )

    def model(self, class_name: str) -> LM:
        """Give one class's model, its adapter switched on."""
        lm = self._models[class_name]
        if class_name in self._adapters:
            lm.model.set_adapter(self._adapters[class_name])  # type: ignore[operator]
        return lm
