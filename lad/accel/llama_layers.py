"""The decoder layers of a LLaMA in few kernels: for models too fast for Python to keep up with.

`transformers` runs a layer as some forty kernels, most of which do next to nothing. The same
function is written here once more, so that `torch.compile` sees a whole layer with its weights as
arguments: it is compiled once and serves all layers, which leaves the matrix products, attention,
and a handful of kernels between them. Queries, keys and values come out of one product, and what
one layer adds to its input is added where the next one reads it.

It is exact up to rounding, and it is for inference: weights are read where they are, so the adapter
must be folded into them, and nothing may be quantised. The tests hold it to `transformers`.

Shapes: b = batch, n = positions computed, t = positions attended to, h = hidden size, q = heads,
kv = heads of keys and values, d = features of a head.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import cache
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor
from transformers import Cache

__all__ = [
    "Given",
    "Graphs",
    "Layers",
    "Weights",
    "compiled",
    "finish_layer",
    "heads_of",
    "normed",
    "rotary",
    "turned_heads",
    "weights_of",
]

PRODUCTS = ("q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj")
ALIGNED = 8  # attention wants rows of its bias to begin at multiples of this many numbers


class Weights(NamedTuple):
    """What a layer multiplies by; `qkv` `((q + 2 kv) d, h)` is a copy, the rest is the model's."""

    first_norm: Tensor
    qkv: Tensor
    qkv_bias: Tensor | None
    out: Tensor
    second_norm: Tensor
    gate: Tensor
    up: Tensor
    down: Tensor


class Given(NamedTuple):
    """What all layers of a pass share; made by `Layers.given`.

    Attributes:
        cos, sin: `(b, n, 1, d)`, of the positions that are computed.
        bias: `(b, 1, n, t)`, or `(b, 1, 1, t)` where all of them see the same.
    """

    cos: Tensor
    sin: Tensor
    bias: Tensor


class Heads(NamedTuple):
    """Numbers that fix a layer: q, kv, d, and the epsilon of its norms."""

    query: int
    shared: int
    features: int
    epsilon: float


@dataclass
class Graphs:
    """What is kept between passes on a GPU: captured ones by shape, and the layers they run.

    Attributes:
        passes: see `lad.accel.cuda_graphs.captured`.
        layers: None until the first pass is captured, and for models that `Layers` cannot run.
    """

    passes: dict = field(default_factory=dict)
    layers: Layers | None = None


# -- one layer -------------------------------------------------------------------------------------


def normed(x: Tensor, weight: Tensor, epsilon: float) -> Tensor:
    """Root-mean-square norm over the last axis, in one kernel where the module takes six."""
    return F.rms_norm(x, weight.shape, weight, epsilon)


def turned_heads(
    x: Tensor, cos: Tensor, sin: Tensor, weights: Weights, heads: Heads
) -> tuple[Tensor, Tensor, Tensor]:
    """Queries `(b, n, q, d)`, keys and values `(b, kv, n, d)`; the first two know their positions.

    Args:
        x: `(b, n, h)`, the input of a layer.
        cos, sin: `(b, n, 1, d)` or broadcast to it, as `rotary` gives them.
    """
    q, kv, d, epsilon = heads
    mixed = F.linear(normed(x, weights.first_norm, epsilon), weights.qkv, weights.qkv_bias)
    mixed = mixed.view(*x.shape[:2], q + 2 * kv, d)
    turned, value = mixed[:, :, : q + kv], mixed[:, :, q + kv :]
    turned = torch.addcmul(turned * cos, turned.roll(d // 2, dims=-1), sin)
    return turned[:, :, :q], turned[:, :, q:].transpose(1, 2), value.transpose(1, 2)


def finish_layer(x: Tensor, read: Tensor, weights: Weights, heads: Heads) -> tuple[Tensor, Tensor]:
    """What follows attention: two tensors `(b, n, h)` whose sum is the output of the layer.

    Args:
        x: `(b, n, h)`, the layer's input; read `(b, n, q d)`, what attention read.
    """
    x = x + F.linear(read, weights.out)
    inner = normed(x, weights.second_norm, heads.epsilon)
    inner = F.silu(F.linear(inner, weights.gate)) * F.linear(inner, weights.up)
    return x, F.linear(inner, weights.down)


def layer(
    x: Tensor,
    added: Tensor,
    cos: Tensor,
    sin: Tensor,
    bias: Tensor,
    past_keys: Tensor | None,
    past_values: Tensor | None,
    weights: Weights,
    heads: Heads,
) -> tuple[Tensor, Tensor]:
    """A whole layer, after `(b, kv, t - n, d)` keys and values that are known.

    Input and output are two tensors each, to be added up: `x + added`.
    """
    x = x + added
    query, keys, values = turned_heads(x, cos, sin, weights, heads)
    if past_keys is not None:
        keys = torch.cat([past_keys, keys], dim=2)
        values = torch.cat([past_values, values], dim=2)
    bias = bias.expand(-1, -1, query.shape[1], -1)
    read = F.scaled_dot_product_attention(
        query.transpose(1, 2), keys, values, attn_mask=bias, enable_gqa=True
    )
    return finish_layer(x, read.transpose(1, 2).flatten(2), weights, heads)


@cache
def compiled(function: Callable) -> Callable:
    """The function under `torch.compile`; compiled at its first call, and kept.

    Where that fails (no compiler on this machine) it says so once and goes on as it is.
    """
    # Shapes and settings each have it compiled again, 8 times by default and then not any more.
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


def heads_of(model: torch.nn.Module) -> Heads:
    """The numbers of a `LlamaModel`."""
    c = model.config
    d = getattr(c, "head_dim", None) or c.hidden_size // c.num_attention_heads
    return Heads(c.num_attention_heads, c.num_key_value_heads, d, c.rms_norm_eps)


def rotary(model: torch.nn.Module, positions: Tensor, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
    """Cosine and sine `(b, n, 1, d)` of `(b, n)` positions, as `turned_heads` takes them.

    Rotating by half a head swaps its halves, and the first then changes sign: the sign is put into
    the sine, once.
    """
    like = torch.zeros((), dtype=dtype, device=positions.device)
    cos, sin = model.rotary_emb(like, positions)
    half = sin.shape[-1] // 2
    sin = torch.cat((-sin[..., :half], sin[..., half:]), dim=-1)
    return cos[:, :, None], sin[:, :, None]


def bias_of(mask: Tensor, dtype: torch.dtype) -> Tensor:
    """A bool mask as numbers of the same shape to be added to what the softmax is of."""
    t = mask.shape[-1]
    room = mask.new_zeros((*mask.shape[:-1], -(-t // ALIGNED) * ALIGNED), dtype=dtype)[..., :t]
    return room.masked_fill_(~mask, float("-inf"))


def weights_of(layer: torch.nn.Module) -> Weights:
    """The weights of a decoder layer; what an adapter wraps is read below it."""

    def part(where: torch.nn.Module, name: str) -> torch.nn.Module:
        module = getattr(where, name)
        return getattr(module, "base_layer", module)

    attention, feed = layer.self_attn, layer.mlp
    parts = [part(attention, name) for name in PRODUCTS[:3]]
    biases = [p.bias for p in parts if p.bias is not None]
    return Weights(
        layer.input_layernorm.weight.detach(),
        torch.cat([p.weight.detach() for p in parts]),
        torch.cat([bias.detach() for bias in biases]) if biases else None,
        part(attention, "o_proj").weight.detach(),
        layer.post_attention_layernorm.weight.detach(),
        part(feed, "gate_proj").weight.detach(),
        part(feed, "up_proj").weight.detach(),
        part(feed, "down_proj").weight.detach(),
    )


class Layers:
    """All layers of a `LlamaModel`, run as `layer`; make one with `Layers.of`.

    Args:
        compile: use `torch.compile`, which takes a C compiler and some seconds.
    """

    def __init__(self, model: torch.nn.Module, compile: bool) -> None:
        self.model = model
        self.heads = heads_of(model)
        self.weights = [weights_of(each) for each in model.layers]
        self.run = compiled(layer) if compile else layer

    @classmethod
    def of(cls, model: torch.nn.Module, compile: bool) -> Layers | None:
        """None for a model that is not of this kind, is quantised, or has an unfolded adapter."""
        for each in model.layers:
            for name in PRODUCTS:
                where = each.self_attn if hasattr(each.self_attn, name) else each.mlp
                module = getattr(where, name, None)
                if module is None or not getattr(module, "merged", True):
                    return None
                plain = getattr(module, "base_layer", module)
                has_bias = getattr(plain, "bias", None) is not None
                if type(plain) is not torch.nn.Linear or (has_bias and name not in PRODUCTS[:3]):
                    return None
            gate = type(each.mlp.act_fn).__name__
            if hasattr(each.self_attn, "q_norm") or gate not in ("SiLUActivation", "SiLU"):
                return None
        return cls(model, compile)

    def given(self, positions: Tensor, mask: Tensor) -> Given:
        """What does not hang on the tokens.

        Args:
            positions: `(b, n)` or `(1, n)` int64, of the tokens that are computed.
            mask: `(b, 1, n, t)` or `(b, 1, 1, t)` bool, True where a query may see a key.
        """
        dtype = self.model.embed_tokens.weight.dtype
        return Given(*rotary(self.model, positions, dtype), bias_of(mask, dtype))

    def __call__(self, tokens: Tensor, given: Given, cache: Cache | None = None) -> Tensor:
        """`(b, n, h)` final hidden states of `(b, n)` tokens.

        Args:
            cache: keys and values of the t - n positions before; nothing is added to it.
        """
        x = self.model.embed_tokens(tokens)
        added = torch.zeros_like(x)  # and not None, with which the layer would be compiled twice
        for number, weights in enumerate(self.weights):
            keys = values = None
            if cache is not None:
                keys, values = cache.layers[number].keys, cache.layers[number].values
            x, added = self.run(x, added, *given, keys, values, weights, self.heads)
        return normed(x + added, self.model.norm.weight, self.heads.epsilon)
