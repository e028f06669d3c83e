"""Every control of a refinement, in plain groups, with presets and with limits.

The three of the authors' demo come first: iterations, disable intermediate noising, and (with the
player) the pause. All the others are folded away under "All controls". A preset sets them all;
moving one afterwards says "custom".
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace

import ipywidgets as widgets

from lad.diffusion.config import PRESETS, RANGES, RefineConfig
from lad.utils import InvalidInput
from lad.widgets.fields import LONG, WIDE, choice, number, slider

__all__ = ["CUSTOM", "ControlPanel", "Limits"]

CUSTOM = "custom"

# Steps of the iterations slider: even ones would crowd the useful numbers at its left end.
ITERATIONS = (1, 2, 3, 4, 6, 8, 12, 16, 24, 32, 48, 64, 96, 128, 192, 256, 384, 512)
SIZES = (1, 4, 8, 16, 32, 64, 128, 256, 512, 1024, 2048)
ADDED = (1, 2, 4, 8, 16, 32, 64, 128, 256)
CONTEXTS = (16, 32, 64, 128, 256, 512, 1024, 2048)
STRATEGIES = (
    ("confidence-guided", "guided"),
    ("random", "random"),
    ("below a threshold", "threshold"),
)
GROUPS = {
    "Noise between iterations": (
        "remasking",
        "noise_start",
        "sharpness",
        "noise_clipping",
        "clustering",
        "confidence_threshold",
        "isolated_threshold",
        "window",
        "repeats",
        "permanent",
    ),
    "Drawing a token": ("temperature", "top_k", "top_p", "seed"),
    "Length and end": ("answer_length", "context", "eos_bias", "added_tokens", "patience"),
}
# Controls that only some strategies look at.
USED_BY = {
    "noise_start": ("random", "guided"),
    "sharpness": ("random", "guided"),
    "clustering": ("random", "guided"),
    "noise_clipping": ("guided",),
    "confidence_threshold": ("threshold",),
    "isolated_threshold": ("threshold",),
    "window": ("threshold",),
    "permanent": ("random", "guided", "threshold"),
    "repeats": ("none", "random", "guided", "threshold"),
}

_SHORT = {"description_width": "5em"}
_COLUMNS = {
    "grid_template_columns": "repeat(auto-fit, minmax(min(22em, 100%), 1fr))",
    "grid_gap": "2px 24px",
}


@dataclass(frozen=True)
class Limits:
    """How much one run may take, where strangers press Run.

    Attributes:
        iterations, answer_length, context: most of each; at most the ranges of `RefineConfig`.
        seconds: wall time of one run; None is no limit.
        characters: of one prompt or text.
    """

    iterations: int = RANGES["iterations"][1]
    answer_length: int = RANGES["answer_length"][1]
    context: int = RANGES["context"][1]
    seconds: float | None = None
    characters: int = 20_000

    def apply(self, config: RefineConfig) -> RefineConfig:
        """The nearest settings within the limits."""
        context = config.context
        return replace(
            config,
            iterations=min(config.iterations, self.iterations),
            answer_length=min(config.answer_length, self.answer_length),
            context=None if context is None else min(context, self.context),
        )

    def check(self, text: str) -> str:
        """The text, if it is short enough.

        Raises:
            InvalidInput: it is not.
        """
        if len(text) > self.characters:
            raise InvalidInput(
                f"a text of {len(text):,} characters: expected at most {self.characters:,}; "
                "shorten it"
            )
        return text


class ControlPanel:
    """The controls of `RefineConfig`.

    Attributes:
        preset: name of the preset that the controls stand at, or "custom".
        noiseless: the box "disable intermediate noising".
        controls: name of a `RefineConfig` field -> its widget; `remasking` is "none" while
            `noiseless` is ticked and else what the dropdown says.
        every: the folded part, with all but `preset`, `noiseless` and the iterations.
    """

    def __init__(self, config: RefineConfig | None = None, limits: Limits | None = None) -> None:
        self.limits = limits or Limits()
        self._loading = False
        self._build(self.limits.apply(config or RefineConfig()))

    def _build(self, config: RefineConfig) -> None:
        most = self.limits
        self.preset = widgets.Dropdown(
            options=[*PRESETS, CUSTOM], value=CUSTOM, description="Preset", style=_SHORT,
            layout={"width": "16em"},
        )  # fmt: skip
        self.noiseless = widgets.Checkbox(
            value=config.remasking == "none", description="disable intermediate noising",
            indent=False, layout={"width": "17em"},
        )  # fmt: skip
        steps = {*ITERATIONS, config.iterations, most.iterations}
        steps |= {preset.iterations for preset in PRESETS.values()}
        self.controls = {
            "iterations": widgets.SelectionSlider(
                options=sorted(n for n in steps if n <= most.iterations),
                value=config.iterations, description="Iterations", style=_SHORT,
                layout={"width": "20em"},
            ),
            "remasking": widgets.Dropdown(
                options=STRATEGIES,
                value="guided" if config.remasking == "none" else config.remasking,
                description="Positions to mask", style=LONG, layout=WIDE,
            ),
            "noise_start": slider(config, "noise_start", "Noise start", 0.05),
            "sharpness": slider(config, "sharpness", "Sharpness", 0.1, low=0.1),
            "noise_clipping": slider(config, "noise_clipping", "Noise clipping", 0.01),
            "clustering": slider(config, "clustering", "Clustering", 0.05),
            "confidence_threshold": slider(config, "confidence_threshold", "Threshold", 0.01),
            "isolated_threshold": slider(config, "isolated_threshold", "Beside an unknown", 0.01),
            "window": choice(config, "window", "Window", SIZES),
            "repeats": widgets.Dropdown(
                options=[("leave them", "allow"), ("mask one again", "remask"),
                         ("put another there", "replace")],
                value=config.repeats, description="Repeated tokens", style=LONG, layout=WIDE,
            ),
            "permanent": _box("permanent unmasking", config.permanent),
            "temperature": slider(config, "temperature", "Temperature", 0.05),
            "top_k": number(config, "top_k", "Top-k"),
            "top_p": slider(config, "top_p", "Top-p", 0.01),
            "seed": number(config, "seed", "Seed"),
            "answer_length": number(config, "answer_length", "Answer length", most.answer_length),
            "context": choice(
                config, "context", "Context window",
                tuple(n for n in CONTEXTS if n <= most.context), "the adapter's own",
            ),
            "eos_bias": slider(config, "eos_bias", "EOS bias", 0.1),
            "added_tokens": choice(config, "added_tokens", "Added tokens", ADDED),
            "patience": number(config, "patience", "Patience (0: go on)"),
        }  # fmt: skip
        self.preset.observe(self._choose, "value")
        for control in (self.noiseless, *self.controls.values()):
            control.observe(self._changed, "value")
        parts = []
        for title, names in GROUPS.items():
            grid = widgets.GridBox([self.controls[name] for name in names], layout=_COLUMNS)
            parts += [widgets.HTML(f"<strong>{title}</strong>"), grid]
        self.every = widgets.Accordion(
            children=[widgets.VBox(parts)], titles=["All controls"], selected_index=None
        )
        self._changed()

    def observe(self, handler: Callable[[object], object]) -> None:
        """Call `handler` whenever a control was moved."""
        for control in (self.noiseless, *self.controls.values()):
            control.observe(handler, "value")

    @property
    def config(self) -> RefineConfig:
        """What the controls say.

        Raises:
            InvalidInput: a value outside its range.
        """
        values = {name: control.value for name, control in self.controls.items()}
        if self.noiseless.value:
            values["remasking"] = "none"
        return RefineConfig(**values)

    def load(self, config: RefineConfig) -> None:
        """Move every control to where these settings say, as far as the limits allow."""
        values = self.limits.apply(config).to_dict()
        self._loading = True
        try:
            self.noiseless.value = values["remasking"] == "none"
            if self.noiseless.value:
                del values["remasking"]
            for name, value in values.items():
                control = self.controls[name]
                if isinstance(control, widgets.SelectionSlider):
                    _include(control, value)
                    control.value = value
                elif name in ("window", "added_tokens", "context"):
                    _include(control, value)
                    control.index = [option for _, option in control.options].index(value)
                else:
                    control.value = value
        finally:
            self._loading = False
        self._changed()

    def _choose(self, _change: object = None) -> None:
        if not self._loading and self.preset.value != CUSTOM:
            self.load(PRESETS[self.preset.value])

    def _changed(self, _change: object = None) -> None:
        """Name the preset that the controls stand at, and switch off what would have no effect."""
        if self._loading:
            return
        try:
            config = self.config
        except InvalidInput:  # said when Run is pressed
            config = None
        names = [name for name, own in PRESETS.items() if self._same(own, config)]
        self._loading = True
        self.preset.value = names[0] if names else CUSTOM
        self._loading = False
        remasking = "none" if self.noiseless.value else self.controls["remasking"].value
        self.controls["remasking"].disabled = self.noiseless.value
        for name, strategies in USED_BY.items():
            self.controls[name].disabled = remasking not in strategies
        for name in ("top_k", "top_p"):
            self.controls[name].disabled = self.controls["temperature"].value == 0

    def _same(self, preset: RefineConfig, config: RefineConfig | None) -> bool:
        """Whether the controls can be told from the preset; the seed is anybody's."""
        if config is None:
            return False
        return self.limits.apply(replace(preset, seed=config.seed)) == config


def _box(text: str, value: bool) -> widgets.Checkbox:
    return widgets.Checkbox(value=value, description=text, indent=False, layout=WIDE)


def _include(control: widgets.Dropdown | widgets.SelectionSlider, value: int | None) -> None:
    """Add a value to the options of a control, at its place in their order."""
    pairs = [o if isinstance(o, tuple) else (str(o), o) for o in control.options]
    if value in [option for _, option in pairs]:
        return
    plain = not isinstance(control.options[0], tuple)
    numbers = sorted([option for _, option in pairs if option is not None] + [value])
    if plain:
        control.options = numbers
    else:
        control.options = [pair for pair in pairs if pair[1] is None] + [
            (str(n), n) for n in numbers
        ]
