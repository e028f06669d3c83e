"""Every setting of a refinement with its range, default and help, as one frozen object; presets.

This table is the only description of a setting: checks, the command line, the notebooks' controls
and the documentation are made from it (`lad.utils.describe`).

Sources: LAD: LoRA-Adapted Diffusion (EMNLP 2025 demo) for the settings, their ranges and the preset
"demo"; LLaDA (Nie et al., 2025) and Fast-dLLM (Wu et al., 2025) for the confidence threshold.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Literal

from lad.diffusion.remasking import STRATEGIES
from lad.utils import InvalidInput, describe, setting, settings

REMASKING = tuple(STRATEGIES)
SCHEDULED = ("random", "guided")  # strategies that mask as many positions as the schedule says
BASICS, NOISE, SAMPLING, LENGTH = "Basics", "Noise between iterations", "Sampling", "Length"


@settings
class RefineConfig:
    """Settings of one refinement; the ranges are those of the authors' demo.

    The defaults are LAD's confidence-guided re-masking with the noise that the small default model
    needs (the authors' library starts at noise 0.5 with sharpness 5). `lad refine` starts from
    `PRESETS["default"]`.

    Raises:
        InvalidInput: a value outside its range.
    """

    iterations: int = setting(
        32, "forward passes at most", 1, 512, group=BASICS, label="Iterations"
    )
    remasking: Literal[REMASKING] = setting(
        "guided",
        "which positions are masked again: none (noiseless), random, guided (low confidence is "
        "likelier) or threshold (all below a confidence)",
        group=NOISE,
        label="Positions to mask",
    )
    noise_start: float = setting(
        0.9,
        "fraction of the answer masked after the first iteration",
        0,
        1,
        group=NOISE,
        label="Noise start",
        step=0.05,
        used_by=SCHEDULED,
    )
    sharpness: float = setting(
        1.0,
        "how fast that fraction falls; near 0 it falls linearly",
        0.01,
        20,
        group=NOISE,
        label="Sharpness",
        step=0.1,
        used_by=SCHEDULED,
    )
    noise_clipping: float = setting(
        0.01,
        "least weight of a confident token in guided re-masking; lower guides more",
        0.01,
        1,
        group=NOISE,
        label="Noise clipping",
        step=0.01,
        used_by=("guided",),
    )
    clustering: float = setting(
        0.0,
        "0 masks positions singly, 1 masks one run of them",
        0,
        1,
        group=NOISE,
        label="Clustering",
        step=0.05,
        used_by=SCHEDULED,
    )
    confidence_threshold: float = setting(
        0.9,
        "confidence from which a token is shown",
        0,
        1,
        group=NOISE,
        label="Confidence threshold",
        step=0.01,
        used_by=("threshold",),
    )
    isolated_threshold: float = setting(
        0.0,
        "confidence required when the left neighbour is still masked",
        0,
        1,
        group=NOISE,
        label="Threshold next to a gap",
        step=0.01,
        used_by=("threshold",),
    )
    window: int | None = setting(
        None,
        "positions, from the leftmost MASK on, where tokens may be shown; none is all",
        1,
        2048,
        group=NOISE,
        label="Window",
        used_by=("threshold",),
    )
    repeats: Literal["allow", "remask", "replace"] = setting(
        "allow",
        "of two equal neighbours the less confident is left (allow), masked again (remask; not "
        "when noiseless) or drawn as another token (replace)",
        group=NOISE,
        label="Repeated tokens",
    )
    permanent: bool = setting(
        False,
        "a position once shown is never MASK again; its token may still change",
        group=NOISE,
        label="permanent unmasking",
        used_by=("random", "guided", "threshold"),
    )
    temperature: float = setting(
        0.0,
        "0 is greedy; 1 samples from the model's own probabilities",
        0,
        5,
        group=SAMPLING,
        label="Temperature",
        step=0.05,
    )
    top_k: int = setting(
        3, "sample among the k likeliest tokens", 1, 1000, group=SAMPLING, label="Top-k"
    )
    top_p: float = setting(
        1.0,
        "sample among the fewest tokens that hold this probability",
        0.01,
        1,
        group=SAMPLING,
        label="Top-p",
        step=0.01,
    )
    seed: int = setting(0, "of this run's generator", 0, 2**63 - 1, group=SAMPLING, label="Seed")
    answer_length: int = setting(
        64, "positions of the answer region", 1, 2048, group=LENGTH, label="Answer length"
    )
    context: int | None = setting(
        None,
        "most tokens of prompt and answer region; none is what the adapter was trained on",
        16,
        2048,
        group=LENGTH,
        label="Context window",
    )
    eos_bias: float = setting(
        0.0,
        "added to the logit of EOS; negative gives longer answers",
        -5,
        5,
        group=LENGTH,
        label="EOS bias",
        step=0.1,
    )
    added_tokens: int | None = setting(
        None,
        "semi-autoregressive growth: positions that may be shown more each iteration; none is all "
        "at once",
        1,
        256,
        group=LENGTH,
        label="Added tokens",
    )
    patience: int = setting(
        3,
        "stop after this many identical drafts in a row; 0 never stops early",
        0,
        512,
        group=LENGTH,
        label="Patience (0: go on)",
    )

    @property
    def greedy(self) -> bool:
        """True when sampling is deterministic."""
        return self.temperature == 0 or self.top_k == 1


RANGES = {name: (field["low"], field["high"]) for name, field in describe(RefineConfig).items()}

PRESETS = {
    # About two tokens a forward pass: nearly any token right of a visible one, elsewhere only
    # confident ones.
    "default": RefineConfig(
        iterations=64,
        remasking="threshold",
        confidence_threshold=0.1,
        isolated_threshold=0.65,
        window=16,
        permanent=True,
        repeats="remask",
    ),
    # LAD's own re-masking: low confidence is likelier to be masked again.
    "guided": RefineConfig(),
    # The authors' demo, as it starts.
    "demo": RefineConfig(
        iterations=64,
        remasking="random",
        noise_start=0.5,
        sharpness=1.0,
        temperature=1.0,
        top_k=3,
        answer_length=128,
        context=256,
    ),
    # Fewer tokens at a time, isolated ones only at high confidence.
    "quality": RefineConfig(
        iterations=64,
        remasking="threshold",
        confidence_threshold=0.5,
        isolated_threshold=0.95,
        window=16,
        permanent=True,
        repeats="remask",
    ),
    # LAD's own claim: nothing is masked after the first draft. The answer grows four positions an
    # iteration, because far positions drafted at once may settle on a repeated token. Short answers
    # settle sooner without growth (`added_tokens` None).
    "noiseless": RefineConfig(iterations=16, remasking="none", added_tokens=4),
}


def preset(name: str) -> RefineConfig:
    """The settings of a preset.

    Raises:
        InvalidInput: there is none of this name.
    """
    if name not in PRESETS:
        raise InvalidInput(f"unknown preset {name!r}: expected one of {', '.join(PRESETS)}")
    return PRESETS[name]


# Names and values that files written before the present ones hold.
_RENAMED = {
    "renoising": "remasking",
    "threshold": "confidence_threshold",
    "apart": "isolated_threshold",
}
_REMOVED = ("advance", "redraw", "tail")
_VALUES = {("remasking", "uniform"): "random", ("remasking", "confidence"): "guided"}


def upgrade(values: Mapping) -> dict:
    """Settings as an earlier file names them, under today's names; others are left as they are."""
    new = {
        _RENAMED.get(name, name): value for name, value in values.items() if name not in _REMOVED
    }
    return {name: _VALUES.get((name, str(value)), value) for name, value in new.items()}
