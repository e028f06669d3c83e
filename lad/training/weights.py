"""The adapter's weights while they are trained: in float32, with their optimiser and average.

Whole on every process, whether the backbone is sharded or not, so what is written of them is read
by any number of processes.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator

import torch

from lad.diffusion.denoiser import Denoiser
from lad.training.config import TrainConfig
from lad.training.parallel import average_gradients

__all__ = ["AdapterWeights"]


class AdapterWeights:
    """LoRA, AdamW, and the running average of the former.

    Attributes:
        names, parameters: of the adapter's tensors; they require gradients from here on.
        average: as `parameters`; None where none is kept.
    """

    def __init__(self, denoiser: Denoiser, config: TrainConfig) -> None:
        self.config = config
        named = [(n, p) for n, p in denoiser.model.named_parameters() if "lora_" in n]
        self.names = [name for name, _ in named]
        self.parameters = [parameter.requires_grad_(True) for _, parameter in named]
        for parameter in self.parameters:
            parameter.data = parameter.data.float()  # small steps vanish in bfloat16
        self.optimizer = torch.optim.AdamW(
            self.parameters,
            lr=config.learning_rate,
            betas=(0.9, 0.98),
            weight_decay=config.weight_decay,
            fused=denoiser.device.type == "cuda",
        )
        self.average = [p.data.clone() for p in self.parameters] if config.ema else None

    def move(self, learning_rate: float, step: int) -> None:
        """One optimiser step along the gradients of all processes.

        Args:
            step: how many were taken before.
        """
        average_gradients(self.parameters)
        torch.nn.utils.clip_grad_norm_(self.parameters, self.config.gradient_clip)
        for group in self.optimizer.param_groups:
            group["lr"] = learning_rate
        self.optimizer.step()
        self.optimizer.zero_grad(set_to_none=True)
        if self.average is not None:
            # Early on the average follows closely: the first weights are worth nothing.
            decay = min(self.config.ema, (1 + step) / (10 + step))
            torch._foreach_lerp_(self.average, [p.data for p in self.parameters], 1 - decay)

    @contextlib.contextmanager
    def averaged(self) -> Iterator[None]:
        """The running average in place of the weights, for a while."""
        if self.average is None:
            yield
            return
        own = [p.data.clone() for p in self.parameters]
        self.keep_average()
        try:
            yield
        finally:
            torch._foreach_copy_([p.data for p in self.parameters], own)

    def keep_average(self) -> None:
        """The running average in place of the weights, for good."""
        if self.average is not None:
            torch._foreach_copy_([p.data for p in self.parameters], self.average)

    def state(self) -> dict:
        """What a checkpoint holds of them: `adapter` by name, `average`, `optimizer`."""
        return {
            "adapter": dict(zip(self.names, (p.data for p in self.parameters), strict=True)),
            "average": self.average,
            "optimizer": self.optimizer.state_dict(),
        }

    def restore(self, state: dict) -> None:
        """Inverse of `state`."""
        with torch.no_grad():
            for name, parameter in zip(self.names, self.parameters, strict=True):
                parameter.copy_(state["adapter"][name])
        self.optimizer.load_state_dict(state["optimizer"])
        self.average = state["average"]
