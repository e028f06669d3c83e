"""Settings of refinement, denoiser and corruption: ranges, defaults, help; presets.

This table is the only description of a setting: checks, the command line, the notebooks' controls
and the documentation are made from it (`lad.utils.describe`).

Sources: LAD: LoRA-Adapted Diffusion (EMNLP 2025 demo) for the settings, their ranges and the preset
"demo"; for the other strategies see `lad.diffusion.remasking`.
"""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import suppress
from functools import partial
from typing import Literal

from lad.utils import InvalidInput, describe, setting, settings

# The names in `remasking.STRATEGIES`, and `lad.diffusion.verified`, where two models take turns.
REMASKING = ("none", "random", "guided", "threshold", "entropy", "editing", "verified")
KINDS = ("swap", "duplicate", "replace", "shift")  # of structural noise
REPEATS = ("allow", "remask", "replace")
ATTENTIONS = ("bidirectional", "prompt-causal", "mask-blind")
TARGETS = ("same", "next")
LINEAR_LAYERS = ("q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj")
SCHEDULED = ("random", "guided")  # strategies that mask as many positions as the schedule says
THRESHOLDS = ("threshold", "editing")

basic = partial(setting, group="Basics")
noise = partial(setting, group="Noise")
sampling = partial(setting, group="Sampling")
length = partial(setting, group="Length")


@settings
class RefineConfig:
    """Settings of one refinement; the ranges are those of the authors' demo.

    The defaults are LAD's confidence-guided re-masking with the noise that the small default model
    needs (docs/differences.md has the authors'). `lad refine` starts from `PRESETS["default"]`.
    A value outside its range is InvalidInput, here and below.
    """

    iterations: int = basic(32, "forward passes at most", 1, 512, label="Iterations")
    remasking: Literal[REMASKING] = noise(
        "guided",
        "which positions are masked again: none (noiseless), random, guided (low confidence is "
        "likelier), threshold (all below a confidence), entropy (all but the surest together), "
        "editing (as threshold, but visible tokens are edited, not masked) or verified (all from "
        "where the backbone would go on otherwise)",
        label="Re-masking",
    )
    noise_start: float = noise(
        0.9, "share of the answer masked after the first iteration", 0, 1,
        label="Noise start", step=0.05, used_by=SCHEDULED,
    )  # fmt: skip
    sharpness: float = noise(
        1.0, "how fast that share falls; near 0 it falls linearly", 0.01, 20,
        label="Sharpness", step=0.1, used_by=SCHEDULED,
    )  # fmt: skip
    noise_clipping: float = noise(
        0.01, "least weight of a confident token; lower guides more", 0.01, 1,
        label="Noise clipping", step=0.01, used_by=("guided",),
    )  # fmt: skip
    clustering: float = noise(
        0.0, "0 masks positions singly, 1 masks one run of them", 0, 1,
        label="Clustering of masks", step=0.05, used_by=SCHEDULED,
    )  # fmt: skip
    confidence_threshold: float = noise(
        0.9, "confidence from which a token is shown", 0, 1,
        label="Confidence threshold", step=0.01, used_by=THRESHOLDS,
    )  # fmt: skip
    isolated_threshold: float = noise(
        0.0, "confidence required right of a position still masked", 0, 1,
        label="Threshold next to a gap", step=0.01, used_by=THRESHOLDS,
    )  # fmt: skip
    window: int | None = noise(
        None, "positions from the leftmost MASK on where tokens may be shown; none is all",
        1, 2048, label="Window from the leftmost MASK",
        used_by=(*THRESHOLDS, "entropy", "verified"),
    )  # fmt: skip
    lookahead: int | None = noise(
        None, "positions from the leftmost MASK on that a pass computes, as if the answer region "
        "ended behind them; none is all",
        1, 2048, label="Lookahead", used_by=("threshold", "verified"),
    )  # fmt: skip
    entropy_bound: float = noise(
        0.1, "most nats that the entropies of tokens shown together sum to, without the largest",
        0, 10, label="Entropy bound", step=0.1, used_by=("entropy",),
    )  # fmt: skip
    editing_threshold: float = noise(
        0.5, "confidence from which a visible token is edited: another takes its place", 0, 1,
        label="Editing threshold", step=0.01, used_by=("editing",),
    )  # fmt: skip
    variants: int = noise(
        1, "drafts that the backbone reads in one pass: the draft, and with one token replaced",
        1, 16, label="Variants of a draft", used_by=("verified",),
    )  # fmt: skip
    repeats: Literal[REPEATS] = noise(
        "allow",
        "of two equal neighbours the less confident is left (allow), masked again (remask; not "
        "if noiseless) or drawn as another token (replace)",
        label="Repeated tokens",
    )
    permanent: bool = noise(
        False, "a position once shown is never MASK again; its token may still change",
        label="Permanent unmasking", used_by=REMASKING[1:-1],
    )  # fmt: skip
    temperature: float = sampling(
        0.0, "0 is greedy, 1 the model's own probabilities", 0, 5,
        label="Temperature", step=0.05,
    )  # fmt: skip
    top_k: int = sampling(3, "sample among the k likeliest tokens", 1, 1000, label="Top-k")
    top_p: float = sampling(
        1.0, "sample among the fewest tokens that hold this probability", 0.01, 1,
        label="Top-p", step=0.01,
    )  # fmt: skip
    seed: int = sampling(0, "of this run's generator", 0, 2**63 - 1, label="Seed")
    answer_length: int = length(
        64, "positions of the answer region", 1, 2048, label="Answer length"
    )
    context: int | None = length(
        None, "most tokens of prompt and answer; none is what the adapter was trained on",
        16, 2048, label="Context window",
    )  # fmt: skip
    eos_bias: float = length(
        0.0, "added to the logit of EOS; negative gives longer answers", -5, 5,
        label="EOS bias", step=0.1,
    )  # fmt: skip
    added_tokens: int | None = length(
        None, "positions that may be shown more each iteration; none is all at once",
        1, 256, label="Added tokens an iteration",
    )  # fmt: skip
    patience: int = length(
        3, "stop after this many identical drafts in a row; 0 never stops early", 0, 512,
        label="Identical drafts to stop after",
    )  # fmt: skip

    @property
    def greedy(self) -> bool:
        """True when sampling is deterministic."""
        return self.temperature == 0 or self.top_k == 1


@settings
class DenoiserConfig:
    """What an adapter is trained to be; `lad.diffusion.denoiser` explains attention and target."""

    attention: Literal[ATTENTIONS] = setting("prompt-causal", "which position attends to which")
    target: Literal[TARGETS] = setting(
        "next", "the token that the state at position i predicts: i (same) or i + 1 (next)"
    )
    rank: int = setting(64, "LoRA's rank", 1, 65_536)
    alpha: int = setting(128, "LoRA's scale: the update is multiplied by alpha / rank", 1)
    layers: tuple[Literal[LINEAR_LAYERS], ...] = setting(
        LINEAR_LAYERS, "names of the linear layers with LoRA", min_length=1
    )
    context: int = setting(256, "longest prompt and answer in training, in tokens", 1)

    @property
    def shift(self) -> int:
        """How many positions left of a token the state is that predicts it: 0 or 1."""
        return TARGETS.index(self.target)


@settings
class CorruptionConfig:
    """How much of each noise. The defaults are the paper's, and *replace*, which the authors' post
    names and their code never applies: docs/differences.md.
    """

    all_masked: float = setting(
        0.1, "probability that the whole answer becomes MASK, and nothing else happens", 0, 1
    )
    mask_probability: float = setting(
        0.5, "otherwise, probability that some positions are masked", 0, 1
    )
    mask_fraction: tuple[float, float] = setting(
        (0.0, 0.5), "the share of positions masked is then drawn from U(low, high)"
    )
    block_share: float = setting(
        0.0, "of those answers, the share whose masks form one block, as in infilling", 0, 1
    )
    suffix_share: float = setting(
        0.0,
        "of those answers, the share masked as in left-to-right decoding: clean up to a random "
        "point, then up to 64 positions partly masked, then all masked; ignores mask_fraction",
        0, 1,
    )  # fmt: skip
    structural_probability: float = setting(
        1.0, "otherwise, probability that the structural kinds act at all", 0, 1
    )
    rate: float = setting(
        0.25, "a kind acts on a position with probability severity * rate (the paper's p/4)", 0, 1
    )
    kinds: tuple[Literal[KINDS], ...] = setting(
        KINDS, "structural kinds that act; the authors: no replace"
    )

    def __post_init__(self) -> None:
        together, (low, high) = self.block_share + self.suffix_share, self.mask_fraction
        if together > 1:
            raise InvalidInput(f"block_share + suffix_share = {together}: expected at most 1")
        if not 0 <= low <= high <= 1:
            raise InvalidInput(f"mask_fraction = {(low, high)}: expected 0 <= low <= high <= 1")

    def expected_rates(self, severity: float) -> dict[str, float]:
        """Share of answer positions that each kind touches on average at a severity, by kind.

        It holds for long answers that are not masked as a suffix. A swap moves two tokens and runs
        of swaps overlap: a position is touched unless neither of its two pairs is swapped. A shift
        copies at most 3 tokens whatever the length, so its rate is per answer, not per position.
        """
        q = severity * self.rate
        rates = {"swap": 1 - (1 - q) ** 2, "duplicate": q, "replace": q, "shift": q}
        return {kind: rate for kind, rate in rates.items() if kind in self.kinds} | {
            "mask": self.mask_probability * sum(self.mask_fraction) / 2
        }


SETTINGS = describe(RefineConfig)
RANGES = {name: (field["low"], field["high"]) for name, field in SETTINGS.items()}


def _shown(confidence: float, isolated: float) -> RefineConfig:
    """Tokens are shown from left to right, as far as they are confident, and stay."""
    shown = {"remasking": "threshold", "window": 16, "lookahead": 16}
    thresholds = {"confidence_threshold": confidence, "isolated_threshold": isolated}
    return RefineConfig(64, permanent=True, repeats="remask", **shown, **thresholds)


_DEMO = {"iterations": 64, "remasking": "random", "noise_start": 0.5, "temperature": 1.0}
# The answer grows four positions an iteration, because far positions drafted at once may settle on
# a repeated token. Short answers settle sooner without growth (`added_tokens` None).
_NOISELESS = {"iterations": 16, "remasking": "none", "added_tokens": 4}
# Every second pass is the backbone's.
_VERIFIED = {"iterations": 128, "remasking": "verified", "window": 8}
_VERIFIED |= {"lookahead": 32, "variants": 4}
_PRESETS = {  # name: what it is for, and its settings
    "default": ("for most questions, in few passes", _shown(0.1, 0.7)),
    "guided": ("to watch LAD's own re-masking", RefineConfig()),
    "demo": (
        "what the authors' demo starts with",
        RefineConfig(**_DEMO, answer_length=128, context=256),
    ),
    "quality": ("fewer tokens a pass, slower", _shown(0.5, 0.92)),
    "verified": ("the backbone's own text, drafted by the denoiser", RefineConfig(**_VERIFIED)),
    "noiseless": ("to see it without re-masking", RefineConfig(**_NOISELESS)),
}
PRESETS = {name: config for name, (_, config) in _PRESETS.items()}
REPAIR = RefineConfig(iterations=16, remasking="none")  # of a text that is the first draft
PURPOSES = {f"{name}: {words}": name for name, (words, _) in _PRESETS.items()}  # for lists


def preset(name: str) -> RefineConfig:
    """The settings of a preset; raises InvalidInput for an unknown name."""
    if name not in PRESETS:
        raise InvalidInput(f"unknown preset {name!r}: expected one of {', '.join(PRESETS)}")
    return PRESETS[name]


_WORDS = {"none": None, "yes": True, "no": False}


def nearest_preset(config: RefineConfig) -> tuple[str, dict[str, object]]:
    """The preset that differs least, and those of these settings that it has not."""
    changes = {
        name: {k: v for k, v in config.to_dict().items() if v != getattr(start, k)}
        for name, start in PRESETS.items()
    }
    name = min(changes, key=lambda name: len(changes[name]))
    return name, changes[name]


def to_text(value: object) -> str:
    """A setting's value as a command line or an address holds it."""
    return next(
        (word for word, one in _WORDS.items() if one is value), f"{value}".removesuffix(".0")
    )


def from_texts(texts: Mapping[str, str]) -> dict[str, object]:
    """Settings by name from what `to_text` gives; a text that is no value stays as it is."""
    is_name = {name for name, field in SETTINGS.items() if field["choices"]}
    return {name: text if name in is_name else _value(text) for name, text in texts.items()}


def _value(text: str) -> object:
    for kind in (_WORDS.__getitem__, int, float):
        with suppress(LookupError, ValueError):
            return kind(text)
    return text


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
