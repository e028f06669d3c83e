"""What an iteration cannot take less than on a machine, from two rates measured on it.

The larger of two times that no program gets below: reading the weights once, at the machine's
memory bandwidth, and doing the multiplications once, at its matrix rate.
"""

from __future__ import annotations

import time
from collections.abc import Callable

import torch

from lad.diffusion.denoiser import Denoiser

__all__ = ["floor", "machine_rates"]


def machine_rates(device: torch.device, dtype: torch.dtype) -> dict:
    """Bytes a second read from memory and floating-point operations a second, the best of a few.

    Operations are counted on squares of ones, and on squares of normally distributed numbers, like
    weights: those switch more transistors, and a GPU at its limit of power multiplies them slower.
    """
    big = device.type == "cuda"
    values = torch.ones((2**31 if big else 2**28) // dtype.itemsize, dtype=dtype, device=device)
    n = 8192 if big else 1536
    squares = {"ones": torch.ones(n, n, dtype=dtype, device=device)}
    squares["normals"] = torch.randn(n, n, device=device).to(dtype)

    def best(work: Callable[[], object]) -> float:
        taken = []
        for _ in range(5):
            if big:
                torch.cuda.synchronize(device)
            started = time.perf_counter()
            work()
            if big:
                torch.cuda.synchronize(device)
            taken.append(time.perf_counter() - started)
        return min(taken)

    read = best(values.sum)
    multiplied = {
        name: best(lambda square=square: square @ square) for name, square in squares.items()
    }
    return {
        "bytes_per_second": values.numel() * dtype.itemsize / read,
        "flops_per_second": 2 * n**3 / multiplied["ones"],
        "flops_per_second_of_normals": 2 * n**3 / multiplied["normals"],
    }


def floor(denoiser: Denoiser, rates: dict, batch: int, prompt: int, window: int) -> dict:
    """The least an iteration can take on a machine of these rates.

    Args:
        rates: from `machine_rates`.
        prompt: p, positions of the prompt.

    Returns:
        `weight_bytes` read once, `flops` done once, and `seconds`, the larger of their times; in
        `seconds_of_normals` the operations are done at the rate of normally distributed numbers.
    """
    config = denoiser.causal_lm.config
    matrices = sum(
        weight.numel()
        for name, weight in denoiser.causal_lm.model.layers.named_parameters()
        if weight.dim() == 2 and "lora_" not in name
    )
    head = denoiser.causal_lm.lm_head.weight.numel()
    cached = denoiser.config.attention != "bidirectional"
    queries = window + (min(denoiser.config.shift, prompt) if cached else prompt)
    heads = config.num_attention_heads * (
        getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads
    )
    attention = 4 * config.num_hidden_layers * heads * queries * (prompt + window)
    flops = batch * (2 * matrices * queries + 2 * head * window + attention)
    weight_bytes = (matrices + head) * denoiser.causal_lm.dtype.itemsize
    by_memory = weight_bytes / rates["bytes_per_second"]
    by_arithmetic = flops / rates["flops_per_second"]
    return {
        "weight_bytes": weight_bytes,
        "flops": flops,
        "memory_seconds": by_memory,
        "arithmetic_seconds": by_arithmetic,
        "seconds": max(by_memory, by_arithmetic),
        "seconds_of_normals": max(by_memory, flops / rates["flops_per_second_of_normals"]),
    }
