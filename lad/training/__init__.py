"""Training an adapter: `config` (settings), `data` (pairs), `loss`, `trainer` (the loop).

Beside them: `distillation` (the backbone writes pairs), `multiple_choice` (questions as pairs) and
`contamination` (overlap with test questions).
"""

from lad.training.config import TrainConfig, read_config
from lad.training.data import (
    Pair,
    fact_questions,
    held_out_prompts,
    hold_out,
    pack,
    read_pairs,
    sentences_to_repair,
)
from lad.training.distillation import self_distil
from lad.training.loss import validate
from lad.training.trainer import train

__all__ = [
    "Pair",
    "TrainConfig",
    "fact_questions",
    "held_out_prompts",
    "hold_out",
    "pack",
    "read_config",
    "read_pairs",
    "self_distil",
    "sentences_to_repair",
    "train",
    "validate",
]
