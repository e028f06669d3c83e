"""What lets a step of a large model fit: which tensors are kept, and which are made again.

    thin LoRA        two narrow products beside the frozen weight, where `folded` would make a
                     second copy of every weight, and the gradient of it
    checkpointing    a layer's inputs are kept, everything inside it is computed twice
    chunked loss     logits of a few positions at a time: 2,048 positions of LLaMA 3's vocabulary
                     take 1 GB in float32, and as much again for their gradient

The chunked loss computes its gradient by the states on its way forward, when the logits are there;
the head is frozen, so that is all there is to compute (Liger kernels do the same, in Triton).

References: LoRA (Hu et al., 2021); training deep nets with sublinear memory cost (Chen et al.,
2016); Liger kernel (Hsu et al., 2024), https://arxiv.org/abs/2410.10989
Shapes: m = positions that are predicted, d = hidden size, v = vocabulary.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from contextlib import AbstractContextManager

import torch
import torch.nn.functional as F
from peft.tuners.lora import LoraLayer
from torch import Tensor, nn

from lad.accel.merged_lora import computing, folded
from lad.diffusion.denoiser import Denoiser
from lad.training.config import TrainConfig
from lad.training.parallel import here
from lad.training.sharding import is_sharded
from lad.utils import InvalidInput, one_line

__all__ = ["chunked_head", "chunked_loss", "enough_memory", "thin", "training_mode"]


@contextlib.contextmanager
def training_mode(denoiser: Denoiser, config: TrainConfig) -> Iterator[None]:
    """The model as `config` wants it computed while it trains; eval mode afterwards."""
    model, layers = denoiser.causal_lm, denoiser.causal_lm.model.layers
    if config.gradient_checkpointing:
        # Renamed in transformers 5.2x; the old name still works, and warns.
        enable = getattr(model, "activation_checkpointing_enable", None)
        (enable or model.gradient_checkpointing_enable)({"use_reentrant": False})
        model.train()  # the layers ask for it; nothing here drops out or keeps statistics
    if config.compile_layers:
        torch._dynamo.config.cache_size_limit = 64  # widths times kinds of pass
        for layer in layers:
            # Not the module, whose hooks gather and drop its weights when they are sharded.
            layer.forward = torch.compile(layer.forward, dynamic=False)
    # No sum with a quantised weight, and none with a gathered one, which would outlive it.
    fold = config.fold_lora and not denoiser.backbone.spec.bits and not is_sharded(denoiser)
    try:
        with folded(denoiser.model) if fold else thin(denoiser.model):
            yield
    finally:
        denoiser.model.eval().requires_grad_(False)
        if config.gradient_checkpointing:
            disable = getattr(model, "activation_checkpointing_disable", None)
            (disable or model.gradient_checkpointing_disable)()
        if config.compile_layers:
            # Back to plain calls: what comes after has other shapes, and each would compile.
            for layer in layers:
                del layer.forward


def thin(model: nn.Module) -> AbstractContextManager[None]:
    """Every LoRA layer of a peft model computes in the dtype of its input, for a while.

    peft would widen the input to the adapter's float32 first, which keeps a copy of it for the
    backward pass. Only layers of one active adapter without dropout, as `Denoiser.create` makes.
    """
    layers = (module for module in model.modules() if isinstance(module, LoraLayer))
    return computing(layers, _thin_forward)


def _thin_forward(layer: LoraLayer, x: Tensor) -> Tensor:
    """`(..., in)` to `(..., out)`."""
    (name,) = layer.active_adapters
    out = layer.base_layer(x)
    a, b = (part[name].weight.to(out.dtype) for part in (layer.lora_A, layer.lora_B))
    inner = F.linear(x.to(out.dtype), a)  # (..., r)
    wide = torch.addmm(
        out.flatten(0, -2), inner.flatten(0, -2), b.t(), alpha=layer.scaling[name]
    )  # sums while it multiplies: one pass over the output less
    return wide.view_as(out)


def chunked_head(
    denoiser: Denoiser, targets: Tensor, weights: Tensor, chunk: int
) -> AbstractContextManager[None]:
    """For a while the head answers with the loss of the states it is given, and which are right.

    Computed within the head's own turn, because a sharded weight is whole at no other time. The
    arguments are those of `chunked_loss`.
    """

    def loss_of(head: nn.Module, states: Tensor) -> tuple[Tensor, Tensor]:
        return chunked_loss(states, head.weight, targets, weights, chunk)

    return computing([denoiser.causal_lm.lm_head], loss_of)


def chunked_loss(
    states: Tensor, head: Tensor, targets: Tensor, weights: Tensor, chunk: int
) -> tuple[Tensor, Tensor]:
    """Weighted sum of cross-entropies, in nats, and which positions are right.

    The same numbers as from all logits at once, up to rounding.

    Args:
        states: `(m, d)` final hidden states.
        head: `(v, d)`, frozen.
        targets: `(m,)` int64, and `weights` `(m,)` float32.
        chunk: positions whose logits are held at once.

    Returns:
        A scalar with a gradient by `states` alone, and `(m,)` bool.
    """
    return _ChunkedLoss.apply(states, head, targets, weights, chunk)


class _ChunkedLoss(torch.autograd.Function):
    @staticmethod
    def forward(ctx, states, head, targets, weights, chunk):
        gradient = torch.empty_like(states)
        right = torch.empty_like(targets, dtype=torch.bool)
        loss = torch.zeros((), device=states.device)
        for first in range(0, len(states), chunk):
            part = slice(first, first + chunk)
            target, weight = targets[part, None], weights[part, None]
            logits = (states[part].to(head.dtype) @ head.t()).float()  # (c, v)
            right[part] = logits.argmax(-1) == targets[part]
            log_sum = logits.logsumexp(-1, keepdim=True)
            loss += ((log_sum - logits.gather(1, target)) * weight).sum()
            # From here on `logits` holds their own gradient: probability less target, weighed.
            logits.sub_(log_sum).exp_()
            logits.scatter_add_(1, target, logits.new_full((1, 1), -1.0).expand_as(target))
            gradient[part] = logits.mul_(weight).to(head.dtype) @ head
        ctx.save_for_backward(gradient)
        ctx.mark_non_differentiable(right)
        return loss, right

    @staticmethod
    def backward(ctx, by_loss, _):
        (gradient,) = ctx.saved_tensors
        return gradient * by_loss.to(gradient.dtype), None, None, None, None


@contextlib.contextmanager
def enough_memory(denoiser: Denoiser, config: TrainConfig) -> Iterator[None]:
    """A GPU that is too small becomes a message that names the knobs.

    Raises:
        InvalidInput: in place of the library's own error.
    """
    try:
        yield
    except torch.OutOfMemoryError as error:
        knobs = [f"halve batch_tokens ({config.batch_tokens:,}) and double accumulate"]
        if not config.gradient_checkpointing:
            knobs.append("set gradient_checkpointing: true")
        if not config.loss_chunk:
            knobs.append("set loss_chunk: 1024")
        plain = not denoiser.backbone.spec.bits and not is_sharded(denoiser)
        if config.fold_lora and plain:
            knobs.append("set fold_lora: false")
        if plain and here()[1] > 1:
            knobs.append("set shard: true")
        if plain:
            knobs.append(f"load the backbone in 4 bit (--model {denoiser.backbone.spec.name}:4bit)")
        raise InvalidInput(
            f"a step of {config.batch_tokens:,} positions does not fit the memory of "
            f"{denoiser.device} ({one_line(error)[:120]}): {'; or '.join(knobs)}"
        ) from error
