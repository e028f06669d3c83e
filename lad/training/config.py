"""Settings of a training run: checked when made, read from YAML, written into every checkpoint."""

from __future__ import annotations

import re
from dataclasses import replace
from pathlib import Path

import yaml

from lad.diffusion.config import CorruptionConfig
from lad.utils import InvalidInput, one_line, setting, settings

# Less structural noise than in the paper, and masks in blocks or to the end: a small model must
# learn the plain task too, and the states that the sampler brings it into.
DEFAULT_CORRUPTION = CorruptionConfig(
    all_masked=0.05,
    mask_probability=0.8,
    mask_fraction=(0.0, 1.0),
    block_share=0.1,
    suffix_share=0.4,
    structural_probability=0.5,
)

SECTIONS = ("denoiser", "training")  # of a configuration file

# Of texts to correct: nothing is masked, and 4 in 10 are left sound.
REPAIR_CORRUPTION = CorruptionConfig(
    all_masked=0.0, mask_probability=0.0, structural_probability=0.6, rate=0.25
)
# Of answers that are a line of their prompt: mostly from nothing, as they are chosen.
CHOICE_CORRUPTION = replace(DEFAULT_CORRUPTION, all_masked=0.6)

MOST_REPEATS = 100  # of one pair in an epoch; each is an entry of a list in memory
# These change how a step is computed and not its result: a resumed run may have other values.
COMPUTATION = ("compile_layers", "fold_lora", "gradient_checkpointing", "loss_chunk", "shard")


@settings
class TrainConfig:
    """Settings of one training run; InvalidInput for a value outside its range."""

    steps: int = setting(2000, "optimiser steps", ge=1)
    learning_rate: float = setting(8e-4, "its peak; falls along a cosine to 0 at the end", gt=0)
    warmup_steps: int = setting(100, "steps of a linear rise to the peak", ge=0)
    weight_decay: float = setting(0.01, "of AdamW", ge=0)
    gradient_clip: float = setting(1.0, "the gradient's global norm at most", gt=0)
    batch_tokens: int = setting(57_344, "positions per process and forward pass", ge=1)
    accumulate: int = setting(1, "forward passes per process and step", ge=1)
    widths: tuple[int, ...] = setting(
        (96, 128, 192, 256), "lengths of batches; the longest is the context window"
    )
    widen: float = setting(0.2, "fraction of pairs batched one width longer than needed", 0, 1)
    corruption: CorruptionConfig = setting(DEFAULT_CORRUPTION, "the forward process")
    repair_corruption: CorruptionConfig = setting(
        REPAIR_CORRUPTION, "the same where a text is to be corrected (`REPAIR_PROMPT`)"
    )
    choice_corruption: CorruptionConfig = setting(
        CHOICE_CORRUPTION, "the same where the answer is a line of the prompt"
    )
    # A line is short, and its letter one token: beside long answers it would hardly count.
    choice_weight: float = setting(1.0, "weight of its tokens in the loss", gt=0)
    repeats: tuple[int, int, int] = setting(
        (1, 1, 1), "times an epoch: a usual pair, a text to correct, a line to choose"
    )
    cut_share: float = setting(
        0.0, "fraction of pairs whose answer region ends 8 to 64 positions behind the leftmost "
        "MASK, for refinement with lookahead", 0, 1,
    )  # fmt: skip
    # More of them pass a threshold at once: for a second stage, from a trained adapter.
    certainty: float = setting(
        0.0, "weight of the entropy of masked tokens that are predicted right", ge=0
    )
    soft_targets: float = setting(
        0.0, "share of the backbone's distribution in the targets behind all that is visible", 0, 1
    )
    clean_share: float = setting(0.5, "fraction of intact answer tokens that enter the loss", 0, 1)
    # Far from any token nothing can be predicted, and that loss drowns the rest.
    distance_decay: float = setting(
        8.0, "a masked position n from the nearest token weighs exp(-n / this); 0: all alike", ge=0
    )
    # It keeps the backbone's next-token prediction; with target same it must be 0.
    causal_lm_fraction: float = setting(
        0.0, "fraction of pairs left clean and predicted left to right from a random token on", 0, 1
    )
    eos_tail_share: float = setting(
        0.1, "fraction of EOS after the first that enter the loss", 0, 1
    )
    ema: float = setting(0.999, "decay per step of the weights' average; 0: the last weights", 0, 1)
    log_every: int = setting(20, "steps between log rows", ge=1)
    validate_every: int = setting(500, "steps between validations", ge=1)
    checkpoint_minutes: float = setting(3.0, "minutes between checkpoints", gt=0)
    compile_layers: bool = setting(False, "torch.compile each layer; pays on a GPU in long runs")
    # Faster with many more positions than features. No effect with shard or quantised weights.
    fold_lora: bool = setting(True, "compute with W + s B A; false keeps no second copy of W")
    gradient_checkpointing: bool = setting(False, "compute each layer again in the backward pass")
    loss_chunk: int = setting(0, "positions whose logits are in memory at once; 0 for all", ge=0)
    # For GPUs that cannot hold the backbone; at least two processes, no quantised weights.
    shard: bool = setting(False, "split the decoder layers over the processes (FSDP2)")
    seed: int = setting(0, "of order, noise and initial weights", ge=0)

    def __post_init__(self) -> None:
        object.__setattr__(self, "widths", tuple(sorted(self.widths)))
        if not self.widths or self.widths[0] < 2:
            raise InvalidInput(f"widths = {self.widths}: expected lengths of at least 2")
        if not all(1 <= times <= MOST_REPEATS for times in self.repeats):
            expected = f"three whole numbers from 1 to {MOST_REPEATS}"
            raise InvalidInput(f"repeats = {self.repeats}: expected {expected}")

    @property
    def context(self) -> int:
        """The context window: the longest width."""
        return self.widths[-1]

    @property
    def corruptions(self) -> tuple[CorruptionConfig, ...]:
        """By the kind of pair: the usual, a text to correct, a line to choose."""
        return self.corruption, self.repair_corruption, self.choice_corruption

    def outcome(self) -> dict:
        """`to_dict` without what changes only how a step is computed."""
        return {name: v for name, v in self.to_dict().items() if name not in COMPUTATION}


class YamlLoader(yaml.SafeLoader):
    """YAML as PyYAML reads it, and 1e-4 is a number, as it is in YAML 1.2."""


YamlLoader.add_implicit_resolver(
    "tag:yaml.org,2002:float",
    re.compile(r"[-+]?(\d+\.?\d*|\.\d+)[eE][-+]?\d+"),
    list("-+.0123456789"),
)


def read_yaml(path: str | Path) -> object:
    """The values of a YAML file; InvalidInput where it is none."""
    try:
        return yaml.load(Path(path).read_bytes(), YamlLoader)
    except (OSError, ValueError, RecursionError, yaml.YAMLError) as error:
        raise InvalidInput(f"{path} is no readable YAML ({one_line(error)})") from error


def read_sections(values: object, where: object) -> dict[str, dict]:
    """The settings named under `denoiser` and under `training`; InvalidInput for other shapes."""
    values = {} if values is None else values
    if not isinstance(values, dict) or not set(values) <= set(SECTIONS):
        raise InvalidInput(f"{where}: expected the sections denoiser and training and no others")
    found = {name: {} if values.get(name) is None else values[name] for name in SECTIONS}
    for name, section in found.items():
        if not isinstance(section, dict):
            kind = type(section).__name__
            raise InvalidInput(f"{where}: {name} is a {kind}, expected names with values")
    return found


def read_config(path: str | Path) -> dict[str, dict]:
    """The sections `denoiser` and `training` of a YAML file; InvalidInput where it has others."""
    return read_sections(read_yaml(path), path)
