"""A loaded model's layers in the place of which fewer and faster operations do the same.

`fuse`    after loading, for training and scoring alike: the weights stay as they are, and so do
          their names
`pack`    for scoring on a CPU: the weights are laid out anew and can no longer be trained or saved

What a layer's class and children promise is checked by number before it is replaced.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import nn
from transformers.activations import NewGELUActivation, SiLUActivation
from transformers.pytorch_utils import Conv1D

from gencls_core.layers import GatedMLP, PackedGatedMLP, RMSNorm, SummingEmbedding
from gencls_core.products import FastConv1D, FastLinear, PackedLinear, has_onednn

__all__ = ["fuse", "pack"]

_LINEAR: dict[type[nn.Module], type[nn.Module]] = {nn.Linear: FastLinear, Conv1D: FastConv1D}
_SAME_WEIGHTS = {**_LINEAR, nn.Embedding: SummingEmbedding}


def fuse(model: nn.Module) -> None:
    """Put faster layers where transformers writes the same function as many operations.

    Besides those of `gencls_core.layers`: GPT-2's GELU (Hendrycks and Gimpel 2016, the tanh form)
    takes a quarter of the time, a linear layer in float32 on a CPU less than half; an embedding
    adds up its gradients in float32.
    """
    child: Any
    for name, child in list(model.named_children()):
        # The very object stays: heads and embeddings are tied by it, and adapters wrap it.
        if type(child) in _SAME_WEIGHTS:
            child.__class__ = _SAME_WEIGHTS[type(child)]
        fuse(child)
        if isinstance(child, NewGELUActivation):
            setattr(model, name, nn.GELU(approximate="tanh"))
        elif _looks_like_rms_norm(child):
            _replace(model, name, RMSNorm(child.weight, child.variance_epsilon))
        elif _looks_like_gated_mlp(child):
            _replace(model, name, GatedMLP(child))


def pack(model: Any) -> None:
    """Lay the weights out for products alone; only on a CPU, and where oneDNN has the precision.

    The embedding is left as it is, and with it a head that it is tied to.
    """
    weight = next(model.parameters())
    if weight.device.type != "cpu" or not has_onednn(weight.dtype):
        return
    _pack(model, {id(model.get_output_embeddings()), id(model.get_input_embeddings())})


def _pack(module: nn.Module, kept: set[int]) -> None:
    child: Any
    if _looks_like_gelu_mlp(module):
        _pack_gelu(module)
    for name, child in list(module.named_children()):
        if id(child) in kept:
            continue
        if isinstance(child, GatedMLP) and child.is_plain:
            setattr(module, name, PackedGatedMLP(child))
        elif type(child) in _LINEAR.values():
            setattr(module, name, PackedLinear.of(child))
        else:
            _pack(child, kept)


def _pack_gelu(mlp: Any) -> None:
    """Let the GELU of an MLP be applied within the product before it."""
    mlp.c_fc = PackedLinear.of(mlp.c_fc, "gelu", mlp.act.approximate)
    mlp.act = nn.Identity()


@torch.no_grad()
def _replace(parent: nn.Module, name: str, ours: nn.Module) -> None:
    """Put our layer in the place of `parent.name`, if it does the same to some numbers."""
    theirs = getattr(parent, name)
    # Of a norm its only one, of an MLP the gate's: its last dimension is that of the inputs.
    weight = next(ours.parameters())
    probe = torch.linspace(-3, 5, 2 * weight.shape[-1], device=weight.device)
    probe = probe.to(weight.dtype).view(2, -1)
    expected, found = theirs(probe).float(), ours(probe).float()
    tolerance = 1e-5 if weight.dtype == torch.float32 else 2e-2
    if (found - expected).abs().max().item() <= tolerance * max(1.0, expected.abs().max().item()):
        setattr(parent, name, ours)


def _looks_like_rms_norm(module: Any) -> bool:
    """Say whether a module may be one; Gemma's, for one, adds 1 to the weight."""
    names = [name for name, _ in module.named_parameters()]
    if not type(module).__name__.endswith("RMSNorm") or names != ["weight"]:
        return False
    return module.weight.ndim == 1 and hasattr(module, "variance_epsilon")


def _looks_like_gated_mlp(module: Any) -> bool:
    """Say whether a module may be one; Gemma's, for one, has another activation."""
    children = dict(module.named_children())
    return (
        set(children) == {"gate_proj", "up_proj", "down_proj", "act_fn"}
        and isinstance(children["act_fn"], nn.SiLU | SiLUActivation)
        and all(
            type(children[name]) is FastLinear and children[name].bias is None
            for name in ("gate_proj", "up_proj", "down_proj")
        )
    )


def _looks_like_gelu_mlp(module: nn.Module) -> bool:
    """Say whether a module is GPT-2's MLP, or one of its kin."""
    children = dict(module.named_children())
    return (
        type(module).__name__.endswith("MLP")
        and list(children) == ["c_fc", "c_proj", "act", "dropout"]
        and isinstance(children["act"], nn.GELU)
        and all(type(children[name]) in _LINEAR.values() for name in ("c_fc", "c_proj"))
    )
