"""Models of the true LLaMA shapes with random weights, to measure time and memory.

They take as long and as much memory as the real ones and need no download and no licence. Their
text is meaningless, their tokenizer the tiny model's.

Source of the numbers: the published configurations, see https://arxiv.org/abs/2407.21783.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from lad.models.loading import SPREAD
from lad.utils import InvalidInput

if TYPE_CHECKING:
    import torch
    from transformers import LlamaForCausalLM


def _llama_3(
    hidden: int, intermediate: int, layers: int, heads: int, rope_factor: float, **changes: object
) -> dict:
    """Values of a LlamaConfig."""
    rope = {"rope_type": "llama3", "rope_theta": 500_000.0, "factor": rope_factor}
    rope |= {"low_freq_factor": 1.0, "high_freq_factor": 4.0}
    rope["original_max_position_embeddings"] = 64 if layers == 2 else 8192
    values = {"hidden_size": hidden, "intermediate_size": intermediate, "num_hidden_layers": layers}
    values |= {"num_attention_heads": heads, "num_key_value_heads": 8, "rope_parameters": rope}
    values |= {"vocab_size": 128_256, "max_position_embeddings": 131_072}
    return values | {"tie_word_embeddings": True, "rms_norm_eps": 1e-5} | changes


TINY = {"vocab_size": 320, "num_key_value_heads": 2, "max_position_embeddings": 512}
SHAPES = {
    "llama-3.1-8b": _llama_3(4096, 14_336, 32, 32, 8.0, tie_word_embeddings=False),
    "llama-3.2-3b": _llama_3(3072, 8192, 28, 24, 32.0),
    "llama-3.2-1b": _llama_3(2048, 8192, 16, 32, 32.0),
    # LLaMA 3's parts at a size for tests: four queries a key, stretched rotary positions.
    "tiny": _llama_3(128, 192, 2, 8, 8.0, **TINY),
}


def random_model(shape: dict, dtype: torch.dtype, device: torch.device | str) -> LlamaForCausalLM:
    """A model of a shape whose weights are drawn on the device, the same on each kind of device.

    A CPU takes over a minute for 8 billion numbers. Raises InvalidInput for `SPREAD`.
    """
    import torch
    from transformers import LlamaConfig, LlamaForCausalLM

    if device == SPREAD:
        raise InvalidInput(f"random weights on device {SPREAD!r}: expected one device")
    gpus = range(torch.cuda.device_count())  # manual_seed sets all of them
    with torch.random.fork_rng(devices=gpus), torch.device(device):
        torch.manual_seed(0)
        return LlamaForCausalLM._from_config(LlamaConfig(**shape), dtype=dtype)
