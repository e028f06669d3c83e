"""Every control of a refinement, with its range, as one frozen object; named presets.

Source: LAD: LoRA-Adapted Diffusion (EMNLP 2025 demo) for the controls, their ranges and the preset
"demo"; LLaDA and Fast-dLLM for the confidence threshold.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields

from lad.errors import InvalidInput
from lad.strategies import STRATEGIES

__all__ = [
    "ADVANCE",
    "CHOICES",
    "PRESETS",
    "RANGES",
    "RENOISING",
    "REPEATS",
    "RefineConfig",
    "preset",
]

RENOISING = tuple(STRATEGIES)
REPEATS = ("allow", "remask", "replace")
ADVANCE = ("surest", "leftmost", "run")

RANGES = {
    "iterations": (1, 512),
    "noise_start": (0, 1),
    "sharpness": (0.01, 20),
    "noise_clipping": (0.01, 1),
    "clustering": (0, 1),
    "threshold": (0, 1),
    "apart": (0, 1),
    "window": (1, 2048),
    "added_tokens": (1, 256),
    "tail": (1, 2048),
    "temperature": (0, 5),
    "top_k": (1, 1000),
    "top_p": (0.01, 1),
    "eos_bias": (-5, 5),
    "answer_length": (1, 2048),
    "context": (16, 2048),
    "patience": (0, 512),
    "seed": (0, 2**63 - 1),
}

CHOICES = {"renoising": RENOISING, "repeats": REPEATS, "advance": ADVANCE}


@dataclass(frozen=True)
class RefineConfig:
    """Every control of one refinement. Ranges are the authors' demo's.

    The defaults are LAD's confidence-guided re-noising, with the noise that the small default model
    needs (the authors' library starts at noise 0.5 with sharpness 5). What `lad refine` starts from
    is `PRESETS["default"]`.

    Attributes:
        iterations: most refinement steps, 1 to 512.
        renoising: which positions are masked again: "none" (noiseless), "uniform", "confidence"
            (where the denoiser doubts itself) or "threshold" (all it is not sure enough of).
        noise_start: fraction masked after the first iteration, 0 to 1; uniform and confidence.
        sharpness: how fast that fraction decays, above 0 and up to 20; uniform and confidence.
        noise_clipping: least weight of a sure token in confidence-guided noising, 0.01 to 1.
        clustering: 0 masks positions singly, 1 masks one run of them; uniform and confidence.
        threshold: confidence from which a token is shown, 0 to 1; threshold only.
        window: positions from the leftmost MASK on of which tokens may be shown, 1 to 2048; None
            is the whole answer region; threshold only.
        advance: which MASK becomes a token in every iteration, however unsure: the "surest", only
            where none reaches the threshold; the "leftmost", to whose left all is known; or a "run"
            that begins there and goes on while all of it so far is together as sure as the
            threshold, and nothing else; threshold only.
        apart: confidence that a token needs beside it where its left neighbour is neither visible
            nor as sure as this itself, 0 to 1; 0 asks nothing more; threshold only.
        permanent: a position once shown is never MASK again; its token may still change.
        redraw: True draws every position anew in each iteration, which is how LAD repairs visible
            tokens; False leaves a token as it was drawn for as long as it is shown, as LLaDA-like
            samplers do.
        added_tokens: semi-autoregressive growth: after iteration i, from 0, only the first
            `added_tokens * (i + 1)` positions may be shown, 1 to 256; None is all at once.
        repeats: what becomes of the less sure of two equal neighbours. "replace" gives it the
            likeliest token that no neighbour holds; "remask" masks it again, which the noiseless
            strategy never does; "allow" leaves it.
        tail: EOS positions that are kept behind an answer; once two successive drafts agree that
            all behind them is EOS, that is dropped and not computed any more, 1 to 2048. None
            drops nothing. Faster, and not exact: an answer cannot grow into what was dropped.
        temperature: 0 is greedy; 1 draws from the denoiser's own probabilities; up to 5.
        top_k: draw among the k likeliest tokens, 1 to 1000.
        top_p: and among those, the fewest that hold this much probability, above 0 and up to 1.
        eos_bias: added to EOS's logit, -5 to 5: negative for longer answers.
        answer_length: positions of the answer region, 1 to 2048.
        context: most tokens that prompt and answer region may have together, 16 to 2048; None is
            the longest the adapter was trained on.
        patience: stop when this many successive drafts are identical; 0 never stops early. A draft
            that shows positions for the first time (threshold, growth) does not stand still.
        seed: of the run's own generator; the global one is not touched.
    """

    iterations: int = 32
    renoising: str = "confidence"
    noise_start: float = 0.9
    sharpness: float = 1.0
    noise_clipping: float = 0.01
    clustering: float = 0.0
    threshold: float = 0.9
    window: int | None = None
    advance: str = "surest"
    apart: float = 0.0
    permanent: bool = False
    redraw: bool = True
    added_tokens: int | None = None
    repeats: str = "allow"
    tail: int | None = None
    temperature: float = 0.0
    top_k: int = 3
    top_p: float = 1.0
    eos_bias: float = 0.0
    answer_length: int = 64
    context: int | None = None
    patience: int = 3
    seed: int = 0

    def __post_init__(self) -> None:
        for field in fields(self):
            check(field.name, field.type, getattr(self, field.name))

    @property
    def greedy(self) -> bool:
        """True when nothing is left to chance in the draw."""
        return self.temperature == 0 or self.top_k == 1

    def to_dict(self) -> dict:
        """Plain values, for JSON; `from_dict` reads them back."""
        return asdict(self)

    @classmethod
    def from_dict(cls, values: Mapping) -> RefineConfig:
        """Settings from plain values; what is not named keeps its default.

        Raises:
            InvalidInput: a name that is no control, or a value outside its range.
        """
        if not isinstance(values, Mapping):
            raise InvalidInput(
                f"settings of type {type(values).__name__}: expected names with values, as "
                "`RefineConfig.to_dict` gives them"
            )
        known = [field.name for field in fields(cls)]
        unknown = [name for name in values if name not in known]
        if unknown:
            raise InvalidInput(
                f"unknown setting {unknown[0]!r}: expected one of {', '.join(known)}"
            )
        return cls(**values)


def check(name: str, kind: str, value: object) -> None:
    """Refuse a value that a control of this name and type cannot have."""
    if name in CHOICES:
        if not (isinstance(value, str) and value in CHOICES[name]):
            raise InvalidInput(f"{name} = {value!r}: expected one of {', '.join(CHOICES[name])}")
        return
    if kind == "bool":
        if not isinstance(value, bool):
            raise InvalidInput(f"{name} = {value!r}: expected True or False")
        return
    if value is None and "None" in kind:
        return
    low, high = RANGES[name]
    real = "float" in kind
    number = isinstance(value, int | float if real else int) and not isinstance(value, bool)
    if not (number and math.isfinite(value) and low <= value <= high):
        expected = "a number" if real else "a whole number"
        raise InvalidInput(f"{name} = {value!r}: expected {expected} from {low} to {high}")


PRESETS = {
    # About two tokens a forward pass: right of a known token nearly any, elsewhere a sure one.
    "default": RefineConfig(
        iterations=64,
        renoising="threshold",
        threshold=0.1,
        apart=0.65,
        window=16,
        advance="leftmost",
        permanent=True,
        repeats="remask",
    ),
    # LAD's own re-noising, where the denoiser doubts itself.
    "guided": RefineConfig(),
    # The authors' demo, as it starts.
    "demo": RefineConfig(
        iterations=64,
        renoising="uniform",
        noise_start=0.5,
        sharpness=1.0,
        temperature=1.0,
        top_k=3,
        answer_length=128,
        context=256,
    ),
    # Fewer at a time, and only very sure ones apart from what is known.
    "quality": RefineConfig(
        iterations=64,
        renoising="threshold",
        threshold=0.5,
        apart=0.95,
        window=16,
        advance="leftmost",
        permanent=True,
        repeats="remask",
    ),
    # LAD's own claim: what was drawn is never masked again. The answer is let in four positions an
    # iteration: all at once, far positions may settle on a stutter before what precedes them is
    # known. Short answers stand sooner without that (`added_tokens` None).
    "noiseless": RefineConfig(iterations=16, renoising="none", added_tokens=4),
}


def preset(name: str) -> RefineConfig:
    """The settings of a preset.

    Raises:
        InvalidInput: there is none of this name.
    """
    if name not in PRESETS:
        raise InvalidInput(f"unknown preset {name!r}: expected one of {', '.join(PRESETS)}")
    return PRESETS[name]
