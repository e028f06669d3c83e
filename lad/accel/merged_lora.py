"""LoRA layers that add the adapter to the weight before they multiply.

With many more tokens than features it is cheaper to make `W + s B A` once a step and multiply once
than to add the product with the thin A and B to that with W, which moves memory more than it
computes. The same function and gradients, up to rounding.

Source: LoRA (Hu et al., 2021), section 4.1, which merges for inference; here at every step.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from types import MethodType

import torch
import torch.nn.functional as F
from peft.tuners.lora import Linear
from torch import Tensor, nn


@contextlib.contextmanager
def merged_lora(model: nn.Module) -> Iterator[None]:
    """Within the context, every LoRA layer of a peft model computes with its merged weight.

    Only layers of one active adapter without dropout or bias, as `Denoiser.create` makes them.
    """
    layers = [module for module in model.modules() if isinstance(module, Linear)]
    for layer in layers:
        layer.forward = MethodType(_forward, layer)
    try:
        yield
    finally:
        for layer in layers:
            del layer.forward


def _forward(layer: Linear, x: Tensor) -> Tensor:
    """`(..., in)` to `(..., out)`."""
    (name,) = layer.active_adapters
    a, b = layer.lora_A[name].weight, layer.lora_B[name].weight  # (r, in), (out, r)
    weight = layer.base_layer.weight
    weight = torch.addmm(weight.to(a.dtype), b, a, alpha=layer.scaling[name])
    return F.linear(x, weight)
