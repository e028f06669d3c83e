"""Settings of a training run: checked when made, read from YAML, written into every checkpoint."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from dataclasses import asdict, dataclass, field, fields
from pathlib import Path

import yaml

from lad.diffusion.config import CorruptionConfig
from lad.utils import CacheError, InvalidInput

__all__ = ["DEFAULT_CORRUPTION", "TrainConfig", "read_config", "writing"]

# The paper's noise, but half the rows keep their visible tokens clean, masks reach the whole
# answer, and some stand in blocks or cover what is yet to be written: a small model must learn the
# plain task as well as the damaged one, and the states that the sampler brings it into.
DEFAULT_CORRUPTION = CorruptionConfig(
    all_masked=0.05,
    mask_probability=0.8,
    mask_fraction=(0.0, 1.0),
    block_share=0.1,
    suffix_share=0.4,
    structural_probability=0.5,
)

# How a step is computed: another machine may do it another way, to the same numbers.
HOW = ("compile_layers", "fold_lora", "gradient_checkpointing", "loss_chunk", "shard")


@dataclass(frozen=True)
class TrainConfig:
    """One run. It ends at `steps` or after `minutes`, whichever comes first; the learning rate
    falls along a cosine to that end.

    Attributes:
        steps: optimiser steps; None for no such bound.
        minutes: wall time, compilation included; None for no such bound.
        learning_rate: its peak, after a linear rise over `warmup_steps`.
        weight_decay, gradient_clip: of AdamW, and of the gradient's global norm.
        batch_tokens: positions per process and pass.
        accumulate: passes per process and step, for batches that do not fit at once.
        widths: lengths that batches come in; the longest is the context window.
        widen: share of rows put in batches one width longer than they need.
        corruption: the structural noise.
        draft_probability: share of steps that train on the model's own drafts, see
            `lad.training.loss.redraw`.
        draft_start: fraction of the run after which drafts begin.
        draft_length: successive drafts of one batch, a step each.
        clean_share: share of the undamaged, visible answer positions that enter the loss; 1 is
            every position, 0 only what has to be repaired or filled in.
        reach: how fast a masked position's say in the loss falls with its distance from the
            nearest visible token: by a factor e every so many positions; 0 lets all count alike.
            What stands thirty masks away from anything cannot be known, and its loss drowns what
            can.
        anchor: share of the rows under noise that are instead read on, clean, from left to right
            from a random position of the answer, see `lad.training.loss.anchor`; 0 with
            target "same".
        eos_tail_share: share of the EOS positions after the first that enter the loss.
        ema: decay per step of the running average of weights that is validated and saved; 0 saves
            the last weights themselves.
        log_every, validate_every: in steps.
        checkpoint_minutes: wall time between checkpoints.
        compile_layers: torch.compile each decoder layer; pays on a GPU, in runs of minutes.
        fold_lora: compute with `W + s B A`, made once a step, see `lad.accel.merged_lora`: faster
            when a batch has many more positions than the model features. False computes LoRA
            beside the frozen weight, which keeps no second copy of it.
        gradient_checkpointing: keep each layer's input alone and compute the layer again on the
            way back: a fraction of the memory, a third more time.
        loss_chunk: positions whose logits are held at once; 0 for all. A step that is followed by
            a draft needs them all and takes no notice.
        shard: share the frozen weights out over the processes of `torchrun` (at least two), each of
            which gathers a layer's just before it computes: for a GPU that does not hold them
            whole. The same numbers, and more traffic: all weights travel twice a pass. LoRA is
            never folded then, since a sum with W would be as large as W, on every GPU. Not for
            quantised weights. See `lad.training.sharding`.
        seed: of order, noise and drafts.
    """

    steps: int | None = 2000
    minutes: float | None = None
    learning_rate: float = 8e-4
    warmup_steps: int = 100
    weight_decay: float = 0.01
    gradient_clip: float = 1.0
    batch_tokens: int = 57_344
    accumulate: int = 1
    widths: tuple[int, ...] = (96, 128, 192, 256)
    widen: float = 0.2
    corruption: CorruptionConfig = field(default_factory=lambda: DEFAULT_CORRUPTION)
    draft_probability: float = 0.25
    draft_start: float = 0.3
    draft_length: int = 6
    clean_share: float = 0.5
    reach: float = 8.0
    anchor: float = 0.0
    eos_tail_share: float = 0.1
    ema: float = 0.999
    log_every: int = 20
    validate_every: int = 500
    checkpoint_minutes: float = 3.0
    compile_layers: bool = False
    fold_lora: bool = True
    gradient_checkpointing: bool = False
    loss_chunk: int = 0
    shard: bool = False
    seed: int = 0

    def __post_init__(self) -> None:
        if self.steps is None and self.minutes is None:
            raise InvalidInput("neither steps nor minutes is set: expected at least one, to end by")
        object.__setattr__(self, "widths", tuple(sorted(self.widths)))
        positive = ("learning_rate", "gradient_clip", "batch_tokens", "log_every", "validate_every")
        for name in (*positive, "accumulate", "checkpoint_minutes", "draft_length"):
            if not getattr(self, name) > 0:
                raise InvalidInput(f"{name} = {getattr(self, name)!r}: expected more than 0")
        for name in ("steps", "minutes"):
            if getattr(self, name) is not None and not getattr(self, name) > 0:
                raise InvalidInput(f"{name} = {getattr(self, name)!r}: expected more than 0")
        shares = (
            "widen",
            "draft_probability",
            "draft_start",
            "clean_share",
            "anchor",
            "eos_tail_share",
        )
        for name in (*shares, "ema"):
            if not 0 <= getattr(self, name) <= 1:
                raise InvalidInput(f"{name} = {getattr(self, name)!r}: expected between 0 and 1")
        for name in ("warmup_steps", "weight_decay", "reach", "loss_chunk", "seed"):
            if not getattr(self, name) >= 0:
                raise InvalidInput(f"{name} = {getattr(self, name)!r}: expected 0 or more")
        for name in ("compile_layers", "fold_lora", "gradient_checkpointing", "shard"):
            if not isinstance(getattr(self, name), bool):
                raise InvalidInput(f"{name} = {getattr(self, name)!r}: expected true or false")
        if not self.widths or self.widths[0] < 2:
            raise InvalidInput(f"widths = {self.widths}: expected lengths of at least 2")

    @property
    def context(self) -> int:
        """The context window: the longest width."""
        return self.widths[-1]

    def outcome(self) -> dict:
        """`to_dict` of what decides what is learnt: a run may go on with the rest changed."""
        return {k: v for k, v in self.to_dict().items() if k not in HOW}

    def to_dict(self) -> dict:
        """Plain values, for YAML, logs and cards."""
        values = asdict(self)
        for part in (values, values["corruption"]):
            part.update({k: list(v) for k, v in part.items() if isinstance(v, tuple)})
        return values

    @classmethod
    def from_dict(cls, values: dict) -> TrainConfig:
        """Inverse of `to_dict`; raises InvalidInput for unknown names and wrong types."""
        values = dict(values)
        try:
            if isinstance(values.get("corruption"), dict):
                check_names("corruption", values["corruption"], CorruptionConfig)
                values["corruption"] = CorruptionConfig(**values["corruption"])
            check_names("training", values, cls)
            return cls(**values)
        except TypeError as error:
            raise InvalidInput(
                f"a setting has the wrong type ({error}): expected numbers"
            ) from error


def check_names(what: str, values: dict, kind: type) -> None:
    """Refuse settings that do not exist: a misspelt knob silently ignored costs a run."""
    known = [f.name for f in fields(kind)]
    unknown = sorted(set(values) - set(known))
    if unknown:
        raise InvalidInput(
            f"unknown {what} setting {', '.join(map(repr, unknown))}: expected any of "
            f"{', '.join(known)}"
        )


def read_config(path: str | Path) -> dict:
    """A YAML file with the sections `denoiser` and `training`, as nested plain values.

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


@contextlib.contextmanager
def writing(folder: Path) -> Iterator[None]:
    """Name the folder and the remedy when a disk refuses."""
    try:
        yield
    except OSError as error:
        raise CacheError(
            f"cannot write to {folder} ({error}): expected a writable folder with room; "
            "choose another --out or free some space"
        ) from error
