"""Settings of a training run: checked when made, read from YAML, written into every checkpoint."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import fields
from pathlib import Path
from typing import Annotated

import yaml
from pydantic import BeforeValidator

from lad.diffusion.corruption import CorruptionConfig
from lad.utils import InvalidInput, setting, settings

# The paper's noise, but half the answers keep their visible tokens clean, masks reach the whole
# answer, and some form blocks or cover the end of the answer: a small model must learn the plain
# task as well as the corrupted one, and the states that the sampler brings it into.
DEFAULT_CORRUPTION = CorruptionConfig(
    all_masked=0.05,
    mask_probability=0.8,
    mask_fraction=(0.0, 1.0),
    block_share=0.1,
    suffix_share=0.4,
    structural_probability=0.5,
)

# These change how a step is computed and not its result: a resumed run may have other values.
COMPUTATION = ("compile_layers", "fold_lora", "gradient_checkpointing", "loss_chunk", "shard")


def check_names(what: str, values: Mapping, cls: type) -> None:
    """Raise InvalidInput for a name in `values` that is no field of the dataclass `cls`."""
    names = [field.name for field in fields(cls)]
    unknown = sorted(set(values) - set(names))
    if unknown:
        raise InvalidInput(
            f"unknown {what} setting {', '.join(map(repr, unknown))}: expected any of "
            f"{', '.join(names)}"
        )


def _read_corruption(value: object) -> object:
    """`CorruptionConfig` from plain values; anything else is left to the field's own check."""
    if not isinstance(value, Mapping):
        return value
    check_names("corruption", value, CorruptionConfig)
    try:
        return CorruptionConfig(**value)
    except TypeError as error:
        raise InvalidInput(f"corruption has a wrong type ({error}): expected numbers") from error


@settings
class TrainConfig:
    """Settings of one training run.

    Raises:
        InvalidInput: a value outside its range.
    """

    steps: int = setting(2000, "optimiser steps", ge=1)
    learning_rate: float = setting(8e-4, "its peak; falls along a cosine to 0 at the end", gt=0)
    warmup_steps: int = setting(100, "steps of a linear rise to the peak", ge=0)
    weight_decay: float = setting(0.01, "of AdamW", ge=0)
    gradient_clip: float = setting(1.0, "the gradient's global norm at most", gt=0)
    batch_tokens: int = setting(57_344, "positions per process and forward pass", ge=1)
    accumulate: int = setting(1, "forward passes per process and step", ge=1)
    widths: tuple[int, ...] = setting(
        (96, 128, 192, 256), "lengths of batches in tokens; the longest is the context window"
    )
    widen: float = setting(0.2, "fraction of pairs batched one width longer than needed", 0, 1)
    corruption: Annotated[CorruptionConfig, BeforeValidator(_read_corruption)] = setting(
        DEFAULT_CORRUPTION, "the forward process"
    )
    clean_share: float = setting(
        0.5,
        "fraction of the uncorrupted answer positions that enter the loss; 1 is all, 0 only what "
        "has to be repaired or filled in",
        0,
        1,
    )
    distance_decay: float = setting(
        8.0,
        "positions over which the weight of a masked position falls by a factor e with its "
        "distance from the nearest visible token; 0 weights all alike. Far from any token "
        "nothing can be predicted, and that loss drowns the rest",
        ge=0,
    )
    causal_lm_fraction: float = setting(
        0.0,
        "fraction of pairs that are left clean and predicted left to right from a random position "
        "of the answer, which keeps the backbone's next-token prediction; 0 with target same",
        0,
        1,
    )
    eos_tail_share: float = setting(
        0.1, "fraction of the EOS positions after the first that enter the loss", 0, 1
    )
    ema: float = setting(
        0.999,
        "decay per step of the running average of the weights, which is validated and saved; "
        "0 saves the last weights",
        0,
        1,
    )
    log_every: int = setting(20, "steps between log rows", ge=1)
    validate_every: int = setting(500, "steps between validations", ge=1)
    checkpoint_minutes: float = setting(3.0, "minutes between checkpoints", gt=0)
    compile_layers: bool = setting(
        False, "torch.compile each decoder layer; pays on a GPU in runs of minutes"
    )
    fold_lora: bool = setting(
        True,
        "compute with W + s B A, made once a step: faster with many more positions than features; "
        "false keeps no second copy of W. No effect with shard or quantised weights",
    )
    gradient_checkpointing: bool = setting(
        False, "keep only each layer's input and compute the layer again in the backward pass"
    )
    loss_chunk: int = setting(0, "positions whose logits are in memory at once; 0 for all", ge=0)
    shard: bool = setting(
        False,
        "split the decoder layers over the processes (FSDP2), for GPUs that cannot hold the "
        "backbone; at least two processes, no quantised weights",
    )
    seed: int = setting(0, "of order, noise and initial weights", ge=0)

    def __post_init__(self) -> None:
        object.__setattr__(self, "widths", tuple(sorted(self.widths)))
        if not self.widths or self.widths[0] < 2:
            raise InvalidInput(f"widths = {self.widths}: expected lengths of at least 2")

    @property
    def context(self) -> int:
        """The context window: the longest width."""
        return self.widths[-1]

    def outcome(self) -> dict:
        """`to_dict` without what changes only how a step is computed."""
        return {name: v for name, v in self.to_dict().items() if name not in COMPUTATION}


def read_config(path: str | Path) -> dict:
    """The sections `denoiser` and `training` of a YAML file, as nested plain values.

    Raises:
        InvalidInput: no such file, not YAML, or a section that does not exist.
    """
    path = Path(path)
    try:
        values = yaml.safe_load(path.read_text(encoding="utf-8")) or {}
    except (OSError, UnicodeDecodeError, yaml.YAMLError) as error:
        raise InvalidInput(
            f"{path} is no readable configuration ({' '.join(str(error).split())})"
        ) from error
    if not isinstance(values, dict) or not set(values) <= {"denoiser", "training"}:
        raise InvalidInput(f"{path}: expected the sections denoiser and training and no others")
    return values
