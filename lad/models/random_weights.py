"""Models of the true LLaMA shapes with random weights, to measure time and memory.

They take as long and as much memory as the real ones, and need no download and no licence:
`llama-3.1-8b:random` is for timing and for dry runs. Their text is meaningless. Their tokenizer is
the tiny model's, one token a byte.

Source of the numbers: the models' published configurations, described in The Llama 3 herd of
models, https://arxiv.org/abs/2407.21783.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from lad.models.loading import SPREAD
from lad.utils import InvalidInput

if TYPE_CHECKING:
    import torch
    from transformers import LlamaConfig, LlamaForCausalLM


@dataclass(frozen=True)
class Shape:
    """The numbers that fix the tensors of a LLaMA 3 model."""

    hidden: int  # features of a state
    intermediate: int  # features inside the feed-forward part
    layers: int
    heads: int
    key_value_heads: int
    tied: bool  # embeddings and head are one matrix
    rope_factor: float  # how far the rotary positions are stretched beyond `rope_original`
    rope_original: int = 8192
    vocabulary: int = 128_256
    context: int = 131_072  # longest sequence, in tokens


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


def random_model(shape: Shape, dtype: torch.dtype, device: torch.device | str) -> LlamaForCausalLM:
    """A model of a shape whose weights are drawn on the device; nothing is read or copied.

    The same kind of device gives the same weights; the global random state is unchanged. A CPU
    takes over a minute for 8 billion numbers.

    Raises:
        InvalidInput: the device is `SPREAD`.
    """
    import torch
    from transformers import LlamaForCausalLM

    if device == SPREAD:
        raise InvalidInput(f"random weights on device {SPREAD!r}: expected one device")
    gpus = range(torch.cuda.device_count())  # manual_seed sets all of them
    with torch.random.fork_rng(devices=gpus), torch.device(device):
        torch.manual_seed(0)
        return LlamaForCausalLM._from_config(shape_config(shape), dtype=dtype)
