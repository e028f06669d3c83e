"""A control for every setting of a refinement, made from its description; presets and limits.

`make_control` turns one row of `lad.utils.describe` into a widget: label, range, step, choices and
help. `Controls` holds one for each field of `RefineConfig`. The three controls of the authors' demo
come first: iterations, disable intermediate noising, and (with the player) the pause. The others
are folded away under "All controls". A preset sets them all; moving one afterwards shows "custom".

Layouts, styles and the error message that the explorers share are here too.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import get_args

import ipywidgets as widgets

from lad.diffusion.config import PRESETS, RANGES, RefineConfig
from lad.utils import InvalidInput, describe
from lad.viz.html import escape

# Layouts
WIDE = {"width": "auto"}
FULL = {"width": "100%"}
FIELD = {"width": "26em"}
ROW = {"flex_flow": "row wrap", "align_items": "center"}
SPACED = ROW | {"grid_gap": "0 16px"}
COLUMNS = {
    "grid_template_columns": "repeat(auto-fit, minmax(min(22em, 100%), 1fr))",
    "grid_gap": "2px 24px",
}
# Styles: the width of a control's label
SHORT = {"description_width": "6em"}
MEDIUM = {"description_width": "9em"}
LONG = {"description_width": "11em"}

CUSTOM = "custom"
SETTINGS = describe(RefineConfig)
# Whole numbers that a list or a slider offers: 1, 2, 3, 4, 6, 8, 12, ...; all would be too many.
SIZES = sorted({n << k for n in (1, 2, 3) for k in range(11)} | {2048})


def error_html(text: str) -> str:
    """An error as an explorer shows it; `lad.report` searches for this mark."""
    return f'<div role="alert"><b>Error:</b> {escape(text)}</div>'


@dataclass(frozen=True)
class Limits:
    """How much one run may take, for pages that strangers visit.

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
        """The text, if it is short enough; raises InvalidInput if not."""
        if len(text) > self.characters:
            raise InvalidInput(
                f"a text of {len(text):,} characters: expected at most {self.characters:,}; "
                "shorten it"
            )
        return text


def make_control(
    field: Mapping, value: object, most: int | None = None, **traits: object
) -> widgets.ValueWidget:
    """The widget of one setting, as `lad.utils.describe` describes it.

    Args:
        field: the description. The group "Basics" has a slider over a few numbers, an optional
            number a list that begins with "none", a Literal a list of its values.
        value: what it shows at first.
        most: upper limit, where it is lower than that of the setting.
        traits: of the widget, such as `layout`.
    """
    words = {"description": field["label"], "tooltip": field["help"]}
    traits = words | {"layout": WIDE, "style": LONG} | traits
    kinds = (field["type"], *get_args(field["type"]))
    low, high = field["low"], field["high"]
    if high is not None:
        high = min(high, most or 2**31 - 1)
    if bool in kinds:
        return widgets.Checkbox(value=value, indent=False, **traits)
    if float in kinds:
        step = field["step"]
        low = step * math.ceil(low / step)  # steps are counted from here
        return widgets.FloatSlider(value=value, min=low, max=high, step=step, **traits)
    if field["choices"]:
        options = [(choice, choice) for choice in field["choices"]]
    elif type(None) in kinds or field["group"] == "Basics":
        options = [("none", None)] * (type(None) in kinds)
        options += [(str(n), n) for n in sorted({*SIZES, high}) if low <= n <= high]
    else:
        return widgets.BoundedIntText(value=value, min=low, max=high, **traits)
    kind = widgets.SelectionSlider if field["group"] == "Basics" else widgets.Dropdown
    control = kind(options=options, **traits)
    set_value(control, value)
    return control


def set_value(control: widgets.ValueWidget, value: object) -> None:
    """Move a control to a value; a number that a list lacks is added in its place."""
    if not isinstance(control, widgets.Dropdown | widgets.SelectionSlider):
        control.value = value
        return
    if value not in [option for _, option in control.options]:
        more = [*control.options, (str(value), value)]
        control.options = sorted(more, key=lambda pair: -1 if pair[1] is None else pair[1])
    # By index: ipywidgets takes the value None for "nothing chosen" and would show a blank.
    control.index = [option for _, option in control.options].index(value)


class Controls:
    """The controls of `RefineConfig`.

    Attributes:
        controls: name of a `RefineConfig` field -> its widget.
        preset: name of the preset that the controls stand at, or "custom".
        noiseless: the box "disable intermediate noising"; ticked while `remasking` is "none".
        folded: all but `preset`, `noiseless` and the group "Basics", under "All controls".
    """

    def __init__(self, config: RefineConfig | None = None, limits: Limits | None = None) -> None:
        self.limits = limits or Limits()
        self._loading = False
        config = self.limits.apply(config or RefineConfig())
        values = config.to_dict()
        self.controls = {
            name: make_control(field, values[name], getattr(self.limits, name, None))
            for name, field in SETTINGS.items()
        }
        for name, field in SETTINGS.items():
            if field["group"] == "Basics":  # these stand in a row with the preset
                self.controls[name].style, self.controls[name].layout = SHORT, {"width": "20em"}
        self.preset = widgets.Dropdown(
            options=[*PRESETS, CUSTOM], value=CUSTOM, description="Preset", style=SHORT,
            layout={"width": "16em"},
        )  # fmt: skip
        self.noiseless = widgets.Checkbox(
            description="disable intermediate noising", indent=False, layout={"width": "17em"},
            tooltip=SETTINGS["remasking"]["help"],
        )  # fmt: skip
        self._strategy = "guided"  # to go back to when the box is unticked
        self.preset.observe(self._choose_preset, "value")
        self.noiseless.observe(self._switch_noise, "value")
        self.observe(self._changed)
        parts = []
        for group in dict.fromkeys(field["group"] for field in SETTINGS.values()):
            if group != "Basics":
                members = [self.controls[n] for n, f in SETTINGS.items() if f["group"] == group]
                grid = widgets.GridBox(members, layout=COLUMNS)
                parts += [widgets.HTML(f"<strong>{group}</strong>"), grid]
        self.folded = widgets.Accordion(
            children=[widgets.VBox(parts)], titles=["All controls"], selected_index=None
        )
        self._changed()

    def observe(self, handler: Callable[[object], object]) -> None:
        """Call `handler` whenever a control was moved."""
        for control in self.controls.values():
            control.observe(handler, "value")

    @property
    def config(self) -> RefineConfig:
        """What the controls are set to; raises InvalidInput for a value outside its range."""
        return RefineConfig(**{name: control.value for name, control in self.controls.items()})

    def load(self, config: RefineConfig) -> None:
        """Move every control to where these settings say, as far as the limits allow."""
        self._loading = True
        try:
            for name, value in self.limits.apply(config).to_dict().items():
                set_value(self.controls[name], value)
        finally:
            self._loading = False
        self._changed()

    def _choose_preset(self, _change: object = None) -> None:
        if not self._loading and self.preset.value != CUSTOM:
            self.load(PRESETS[self.preset.value])

    def _switch_noise(self, _change: object = None) -> None:
        if not self._loading:
            self.controls["remasking"].value = "none" if self.noiseless.value else self._strategy

    def _changed(self, _change: object = None) -> None:
        """Name the preset that the controls stand at; switch off what would have no effect."""
        if self._loading:
            return
        remasking = self.controls["remasking"].value
        if remasking != "none":
            self._strategy = remasking
        try:
            config = self.config
        except InvalidInput:  # shown when Run is pressed
            config = None
        self._loading = True
        self.noiseless.value = remasking == "none"
        same = (name for name, preset in PRESETS.items() if self._is_at(preset, config))
        self.preset.value = next(same, CUSTOM)
        self._loading = False
        for name, field in SETTINGS.items():
            self.controls[name].disabled = remasking not in field.get("used_by", (remasking,))
        for name in ("top_k", "top_p"):
            self.controls[name].disabled = self.controls["temperature"].value == 0

    def _is_at(self, preset: RefineConfig, config: RefineConfig | None) -> bool:
        """Whether these are the preset's settings, whatever the seed."""
        if config is None:
            return False
        return self.limits.apply(replace(preset, seed=config.seed)) == config
