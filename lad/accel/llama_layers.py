"""The decoder layers of a LLaMA in few kernels.

`transformers` runs a layer as some forty kernels, most of which do next to nothing. Here the same
function is written so that `torch.compile` sees a whole layer with its weights as arguments: it is
compiled once and serves all layers. Queries, keys and values come out of one matrix product, and
what one layer adds to its input is added where the next one reads it.

It is exact up to rounding and for inference: weights are read in place, so the adapter must be
merged into them, and none may be quantised. The tests compare it with `transformers`.

Shapes: b = batch, n = positions computed, t = positions attended to, h = hidden size, q = heads,
kv = heads of keys and values, d = features of a head.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable
from functools import cache
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers import Cache

PROJECTIONS = ("q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj")
ALIGNMENT = 8  # attention wants rows of its bias to begin at multiples of this many numbers


class Weights(NamedTuple):
    """The weights of a layer; `qkv` `((q + 2 kv) d, h)` is a copy, the others are the model's."""

    first_norm: Tensor
    qkv: Tensor
    qkv_bias: Tensor | None
    out: Tensor
    second_norm: Tensor
    gate: Tensor
    up: Tensor
    down: Tensor


class RotaryAndBias(NamedTuple):
    """What all layers of a pass share: `cos`, `sin` `(b, n, 1, d)`, `bias` `(b, 1, n or 1, t)`."""

    cos: Tensor
    sin: Tensor
    bias: Tensor


class LayerShape(NamedTuple):
    """q, kv, d, and the epsilon of the norms."""

    query_heads: int
    kv_heads: int
    head_dim: int
    epsilon: float


# -- one layer -------------------------------------------------------------------------------------


def rotated_qkv(
    x: Tensor, cos: Tensor, sin: Tensor, weights: Weights, shape: LayerShape
) -> tuple[Tensor, Tensor, Tensor]:
    """Queries `(b, n, q, d)`, keys and values `(b, kv, n, d)` of a layer's input `(b, n, h)`."""
    q, kv, d, epsilon = shape
    normed = F.rms_norm(x, x.shape[-1:], weights.first_norm, epsilon)
    qkv = F.linear(normed, weights.qkv, weights.qkv_bias)
    qkv = qkv.view(*x.shape[:2], q + 2 * kv, d)
    qk, value = qkv[:, :, : q + kv], qkv[:, :, q + kv :]
    qk = torch.addcmul(qk * cos, qk.roll(d // 2, dims=-1), sin)
    return qk[:, :, :q], qk[:, :, q:].transpose(1, 2), value.transpose(1, 2)


def decoder_layer(
    x: Tensor,
    added: Tensor,
    cos: Tensor,
    sin: Tensor,
    bias: Tensor,
    past_keys: Tensor | None,
    past_values: Tensor | None,
    weights: Weights,
    shape: LayerShape,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """A whole layer, with `(b, kv, t - n, d)` keys and values that are known already.

    Input and first output are two `(b, n, h)` tensors each, whose sum is the state: `x + added`.
    Then come the keys and values of all t positions.
    """
    x = x + added
    query, keys, values = rotated_qkv(x, cos, sin, weights, shape)
    if past_keys is not None:
        keys = torch.cat([past_keys, keys], dim=2)
        values = torch.cat([past_values, values], dim=2)
    bias = bias.expand(-1, -1, query.shape[1], -1)
    attended = F.scaled_dot_product_attention(
        query.transpose(1, 2), keys, values, attn_mask=bias, enable_gqa=True
    )
    x = x + F.linear(attended.transpose(1, 2).flatten(2), weights.out)
    inner = F.rms_norm(x, x.shape[-1:], weights.second_norm, shape.epsilon)
    inner = F.silu(F.linear(inner, weights.gate)) * F.linear(inner, weights.up)
    return x, F.linear(inner, weights.down), keys, values


@cache
def compiled(function: Callable) -> Callable:
    """The function under `torch.compile`, compiled at its first call.

    Where that fails (no compiler on this machine) it warns once and runs the function as it is.
    """
    # Shapes and settings are each compiled anew; the default limit of 8 would stop that.
    torch._dynamo.config.recompile_limit = max(64, torch._dynamo.config.recompile_limit)
    fast = torch.compile(function)
    failed = False

    def run(*args):
        nonlocal failed
        if not failed:
            try:
                return fast(*args)
            except torch._dynamo.exc.TorchDynamoException as error:
                failed = True
                first = str(error).strip().splitlines()[0]
                warnings.warn(
                    f"torch.compile failed ({first}): going on without it, slower", stacklevel=2
                )
        return function(*args)

    return run


# -- all of them -----------------------------------------------------------------------------------


class LlamaLayers:
    """All layers of a `LlamaModel`; make one with `LlamaLayers.of`."""

    def __init__(self, model: nn.Module, weights: list[Weights], run: Callable) -> None:
        c = model.config
        d = getattr(c, "head_dim", None) or c.hidden_size // c.num_attention_heads
        self.shape = LayerShape(c.num_attention_heads, c.num_key_value_heads, d, c.rms_norm_eps)
        self.model, self.weights, self.run = model, weights, run

    @classmethod
    def of(cls, model: nn.Module, compile: bool) -> LlamaLayers | None:
        """None for a model that is no plain LLaMA, is quantised, or has an unmerged adapter.

        `compile` uses `torch.compile`, which needs a C compiler and some seconds.
        """
        weights = [weights_of(layer) for layer in model.layers]
        run = compiled(decoder_layer) if compile else decoder_layer
        return None if None in weights else cls(model, weights, run)

    def prepare(self, positions: Tensor, mask: Tensor) -> RotaryAndBias:
        """What does not depend on the tokens.

        Rotating by half a head swaps its halves, and the first then changes sign; the sign is put
        into the sine here, once.

        Args:
            positions: `(b, n)` or `(1, n)` int64, of the tokens that are computed.
            mask: `(b, 1, n, t)` or `(b, 1, 1, t)` bool, True where a query may attend to a key.
        """
        dtype = self.model.embed_tokens.weight.dtype
        like = torch.zeros((), dtype=dtype, device=positions.device)
        cos, sin = self.model.rotary_emb(like, positions)
        half = sin.shape[-1] // 2
        sin = torch.cat((-sin[..., :half], sin[..., half:]), dim=-1)
        t = mask.shape[-1]
        aligned = mask.new_zeros((*mask.shape[:-1], -(-t // ALIGNMENT) * ALIGNMENT), dtype=dtype)
        bias = aligned[..., :t].masked_fill_(~mask, float("-inf"))
        return RotaryAndBias(cos[:, :, None], sin[:, :, None], bias)

    def __call__(
        self,
        tokens: Tensor,
        inputs: RotaryAndBias,
        cache: Cache | None = None,
        into: Cache | None = None,
    ) -> Tensor:
        """`(b, n, h)` final hidden states of `(b, n)` tokens.

        Args:
            cache: keys and values of the t - n positions before; left unchanged.
            into: where the keys and values of all t are written.
        """
        x = self.model.embed_tokens(tokens)
        added = torch.zeros_like(x)  # not None, with which the layer would be compiled twice
        for number, weights in enumerate(self.weights):
            keys = values = None
            if cache is not None:
                keys, values = cache.layers[number].keys, cache.layers[number].values
            given = *inputs, keys, values, weights, self.shape
            x, added, keys, values = self.run(x, added, *given)
            if into is not None:
                into.layers[number].keys.copy_(keys)
                into.layers[number].values.copy_(values)
        x = x + added
        return F.rms_norm(x, x.shape[-1:], self.model.norm.weight, self.shape.epsilon)


def weights_of(layer: nn.Module) -> Weights | None:
    """The weights of a decoder layer, those that an adapter wraps read beneath it.

    None where `decoder_layer` does not compute this layer.
    """
    linear = []
    for name in PROJECTIONS:
        module = getattr(layer.self_attn, name, None) or getattr(layer.mlp, name, None)
        linear.append(getattr(module, "base_layer", module))
        if type(linear[-1]) is not nn.Linear or not getattr(module, "merged", True):
            return None
    is_silu = type(layer.mlp.act_fn).__name__ in ("SiLUActivation", "SiLU")
    biases = [one.bias is not None for one in linear]
    if not is_silu or hasattr(layer.self_attn, "q_norm") or any(biases[3:]):
        return None
    out, gate, up, down = (one.weight.detach() for one in linear[3:])
    return Weights(
        layer.input_layernorm.weight.detach(),
        torch.cat([one.weight.detach() for one in linear[:3]]),
        torch.cat([one.bias.detach() for one in linear[:3]]) if any(biases) else None,
        out,
        layer.post_attention_layernorm.weight.detach(),
        gate,
        up,
        down,
    )
