"""Training an adapter: pairs, settings, objective, loop."""

from lad.training.config import DEFAULT_CORRUPTION, TrainConfig, read_config
from lad.training.loop import train
from lad.training.objective import MASKED_FRACTIONS, validate
from lad.training.pairs import (
    Pair,
    everyday_prompts,
    held_out_prompts,
    hold_out,
    pack,
    read_pairs,
    self_distil,
)

__all__ = [
    "DEFAULT_CORRUPTION",
    "MASKED_FRACTIONS",
    "Pair",
    "TrainConfig",
    "everyday_prompts",
    "held_out_prompts",
    "hold_out",
    "pack",
    "read_config",
    "read_pairs",
    "self_distil",
    "train",
    "validate",
]
