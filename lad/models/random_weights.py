"""The shapes of LLaMA models, and models of such a shape with random weights.

A random model of the true shape takes as long and as much memory as the real one, and nobody has
to download it or hold a licence: `llama-3.1-8b:random` is for measuring and for dry runs. What it
says means nothing. Its tokenizer is the tiny model's, one token a byte.

Source of the numbers: the models' published configurations, described in The Llama 3 herd of
models, https://arxiv.org/abs/2407.21783.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from lad.models.loading import SPREAD, quantization
from lad.utils import InvalidInput

if TYPE_CHECKING:
    import torch
    from transformers import LlamaConfig, LlamaForCausalLM

__all__ = ["SHAPES", "Shape", "random_model", "shape_config"]


@dataclass(frozen=True)
class Shape:
    """What fixes the tensors of a LLaMA 3 model.

    Attributes:
        hidden, intermediate: features of a state, and inside the feed-forward part.
        layers, heads, key_value_heads: numbers of each.
        tied: embeddings and head are one matrix.
        rope_factor: how far the rotary positions are stretched beyond `rope_original`.
        vocabulary: number of tokens.
        context: longest sequence, in tokens.
    """

    hidden: int
    intermediate: int
    layers: int
    heads: int
    key_value_heads: int
    tied: bool
    rope_factor: float
    rope_original: int = 8192
    vocabulary: int = 128_256
    context: int = 131_072


BLOCK = 2**22  # numbers drawn for a matrix on a CPU

SHAPES = {
    "llama-3.1-8b": Shape(4096, 14_336, 32, 32, 8, tied=False, rope_factor=8.0),
    "llama-3.2-3b": Shape(3072, 8192, 28, 24, 8, tied=True, rope_factor=32.0),
    "llama-3.2-1b": Shape(2048, 8192, 16, 32, 8, tied=True, rope_factor=32.0),
    # LLaMA 3's parts at a size for tests: four queries a key, stretched rotary positions.
    "tiny": Shape(128, 192, 2, 8, 2, True, 8.0, rope_original=64, vocabulary=320, context=512),
}


def shape_config(shape: Shape) -> LlamaConfig:
    """The transformers configuration of a shape."""
    from transformers import LlamaConfig

    return LlamaConfig(
        vocab_size=shape.vocabulary,
        hidden_size=shape.hidden,
        intermediate_size=shape.intermediate,
        num_hidden_layers=shape.layers,
        num_attention_heads=shape.heads,
        num_key_value_heads=shape.key_value_heads,
        max_position_embeddings=shape.context,
        tie_word_embeddings=shape.tied,
        rms_norm_eps=1e-5,
        rope_parameters={
            "rope_type": "llama3",
            "rope_theta": 500_000.0,
            "factor": shape.rope_factor,
            "low_freq_factor": 1.0,
            "high_freq_factor": 4.0,
            "original_max_position_embeddings": shape.rope_original,
        },
    )


def random_model(
    shape: Shape, dtype: torch.dtype, device: torch.device | str, bits: int | None = None
) -> LlamaForCausalLM:
    """A model of that shape whose weights are drawn on the device: nothing is read or copied.

    On a CPU, where 8 billion numbers take over a minute, a large matrix repeats its first `BLOCK`.
    The same seed gives the same weights on the same kind of device; the global random state is
    left as it was.

    Args:
        bits: 4 or 8 to quantise the decoder's linear layers one by one, so that the whole never
            stands there in 16 bit; None to keep `dtype`.

    Raises:
        InvalidInput: bitsandbytes is not installed, or the device is `SPREAD`.
    """
    import torch
    from torch import nn
    from transformers import LlamaForCausalLM
    from transformers.models.llama.modeling_llama import LlamaRotaryEmbedding

    if device == SPREAD:
        raise InvalidInput(f"random weights on device {SPREAD!r}: expected one device")
    if bits:
        quantization(bits, dtype)  # is it installed?
    device = torch.device(device)
    config = shape_config(shape)
    with torch.device("meta"):
        model = LlamaForCausalLM(config)
    generator = torch.Generator(device).manual_seed(0)
    for name, module in list(model.named_modules()):
        if isinstance(module, nn.Linear | nn.Embedding):
            weight = torch.empty(module.weight.shape, dtype=dtype, device=device)
            parts = weight.view(-1).split(BLOCK if device.type == "cpu" else weight.numel())
            parts[0].normal_(0.0, config.initializer_range, generator=generator)
            for part in parts[1:]:
                part.copy_(parts[0][: len(part)])
            if bits and isinstance(module, nn.Linear) and name != "lm_head":
                model.set_submodule(name, quantized_linear(weight, bits, dtype))
            else:
                module.weight = nn.Parameter(weight, requires_grad=False)
        elif "weight" in module._parameters:  # a norm
            module.weight = nn.Parameter(
                torch.ones(module.weight.shape, dtype=dtype, device=device)
            )
    model.tie_weights()
    # Computed where they are used, in float32 whatever the weights are.
    with device:
        model.model.rotary_emb = LlamaRotaryEmbedding(config)
    if bits:  # what peft asks before it puts LoRA on such layers
        model.is_loaded_in_4bit, model.is_loaded_in_8bit = bits == 4, bits == 8
    return model


def quantized_linear(weight: torch.Tensor, bits: int, dtype: torch.dtype):
    """A bias-free layer of bitsandbytes with the `(out, in)` weight quantised on its device."""
    import bitsandbytes
    import torch

    out, into = weight.shape
    with torch.device("meta"):
        if bits == 4:
            layer = bitsandbytes.nn.Linear4bit(
                into, out, bias=False, compute_dtype=dtype, quant_type="nf4"
            )
        else:
            layer = bitsandbytes.nn.Linear8bitLt(into, out, bias=False, has_fp16_weights=False)
    if bits == 4:
        quantized = bitsandbytes.nn.Params4bit(
            weight, requires_grad=False, quant_type="nf4", compress_statistics=True
        )
    else:  # quantised on its way from the CPU to the device, and only there
        quantized = bitsandbytes.nn.Int8Params(
            weight.cpu(), requires_grad=False, has_fp16_weights=False
        )
    layer.weight = quantized.to(weight.device)
    return layer
