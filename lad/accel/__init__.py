"""The GPU fast path: a denoiser's forward passes as CUDA graphs of compiled layers.

    llama_layers   a LLaMA decoder layer in few kernels
    cuda_graphs    forward passes of fixed shapes, captured once and replayed; `capture`
    merged_lora    LoRA folded into the weights while training

Off by default and exact up to rounding; the tests compare it with `lad.diffusion`.
"""

from lad.accel.cuda_graphs import capture

__all__ = ["capture"]
