"""A control for every setting of a refinement, made from its description; presets and limits.

The three controls of the authors' demo come first: iterations, noiseless (there "disable
intermediate noising"), and, with the player, the pause. The others are folded away under "All
controls". A preset sets them all; moving one afterwards shows "custom".
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from typing import get_args

import ipywidgets as widgets
from traitlets import observe

from lad.diffusion.config import PRESETS, PURPOSES, RANGES, SETTINGS, RefineConfig
from lad.utils import InvalidInput, check_text
from lad.viz.html import escape

# Layouts
WIDE = {"width": "auto"}  # 100 % would be too wide by the margins
TALL = WIDE | {"flex_flow": "row wrap", "height": "auto"}  # room for a label above the control
ROW = {"flex_flow": "row wrap", "align_items": "center"}
SPACED = ROW | {"grid_gap": "2px 16px"}
COLUMNS = {
    "grid_template_columns": "repeat(auto-fit, minmax(min(24em, 100%), 1fr))",
    "grid_gap": "2px 24px",
}
# Styles: the width of a control's label
SHORT = {"description_width": "6em"}
MEDIUM = {"description_width": "9em"}
ABOVE = {"description_width": "100%"}  # in a line of its own

CUSTOM = "custom"
# Whole numbers that a list or a slider offers: 1, 2, 3, 4, 6, 8, 12, ...; all would be too many.
SIZES = sorted({n << k for n in (1, 2, 3) for k in range(11)} | {2048})


def width(em: float) -> dict[str, str]:
    """The layout of a widget of this width; on a narrow page it is narrower, with its margins."""
    return {"width": f"{em}em", "max_width": "calc(100% - 4px)"}


FIELD = {"style": MEDIUM, "layout": width(26)}
SETTINGS_CLASS = "lad-settings"  # of a box of controls with their labels above them


def labelled(
    kind: type, label: str, em: float, style: Mapping = SHORT, **traits: object
) -> widgets.ValueWidget:
    """A widget of this kind and width with its label in front."""
    return kind(description=label, layout=width(em), style=style, **traits)


class Dropdown(widgets.Dropdown):
    """A list in which None is a choice like others; that of ipywidgets shows a blank for it."""

    @observe("value")
    def _propagate_value(self, change: Mapping) -> None:
        self.index = self._options_values.index(change["new"])


def examples(field: widgets.ValueWidget, texts: Iterable[str]) -> widgets.HBox:
    """Buttons that put a text into a field."""
    buttons = [widgets.Button(description=text, layout=WIDE) for text in texts]
    for button in buttons:
        button.on_click(lambda button: field.set_trait("value", button.description))
    return widgets.HBox([widgets.HTML("<strong>Try:</strong>"), *buttons], layout=SPACED)


def error_html(text: str) -> str:
    """An error as an explorer shows it; `lad.report` searches for this mark."""
    return f'<div role="alert"><b>Error:</b> {escape(text)}</div>'


@dataclass(frozen=True)
class Limits:
    """The most that one run may take; `characters` are of one prompt or text."""

    iterations: int = RANGES["iterations"][1]
    answer_length: int = RANGES["answer_length"][1]
    context: int = RANGES["context"][1]
    seconds: float | None = None  # of wall time
    characters: int = 20_000

    def apply(self, config: RefineConfig) -> RefineConfig:
        """The nearest settings within the limits."""
        names = ("iterations", "answer_length", "context")
        given = {name: getattr(config, name) for name in names}
        least = {n: min(v, getattr(self, n)) for n, v in given.items() if v is not None}
        return replace(config, **least)

    def check(self, text: str) -> str:
        """The text, if it is Unicode and short enough; raises InvalidInput if not."""
        if len(text) > self.characters:
            got, most = f"{len(text):,}", f"{self.characters:,}"
            raise InvalidInput(f"a text of {got} characters: expected at most {most}; shorten it")
        return check_text(text)


def make_control(
    name: str, value: object, most: int | None = None, **traits: object
) -> widgets.ValueWidget:
    """The widget of one setting of `RefineConfig`, which shows `value` at first.

    The group "Basics" has a slider over a few numbers, an optional number a list that begins with
    "none", a Literal a list of its values; `most` is a limit below that of the setting.
    """
    field = SETTINGS[name]
    look = {"layout": TALL, "style": ABOVE, "tooltip": field["help"]}
    traits = {"description": field["label"]} | look | traits
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
    kind = widgets.SelectionSlider if field["group"] == "Basics" else Dropdown
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
    control.value = value


class Controls:
    """The controls of `RefineConfig`, by its fields' names in `controls`.

    `folded` holds all but `preset`, `noiseless` (ticked while `remasking` is "none") and "Basics".
    """

    def __init__(self, config: RefineConfig | None, limits: Limits) -> None:
        self.limits = limits
        self._loading = False
        self.controls = {}
        groups = {}  # of controls, for the folded part
        values = self.limits.apply(config or RefineConfig()).to_dict()
        for name, field in SETTINGS.items():
            basic = field["group"] == "Basics"  # in a row with the preset
            traits = {"style": SHORT, "layout": width(20)} if basic else {}
            most = getattr(self.limits, name, None)
            self.controls[name] = make_control(name, values[name], most, **traits)
            if not basic:
                groups.setdefault(field["group"], []).append(self.controls[name])
        options = PURPOSES | {CUSTOM: CUSTOM}
        self.preset = labelled(widgets.Dropdown, "Preset", 29, options=options)
        self.noiseless = widgets.Checkbox(
            description="noiseless: mask nothing again", indent=False, layout=width(17)
        )
        self.noiseless.tooltip = SETTINGS["remasking"]["help"]
        self._strategy = "guided"  # to go back to when the box is unticked
        self.preset.observe(self._choose_preset, "value")
        self.noiseless.observe(self._switch_noise, "value")
        for control in self.controls.values():
            control.observe(self._changed, "value")
        parts = []
        for group, members in groups.items():
            title = widgets.HTML(f"<strong>{group}</strong>")
            parts += [title, widgets.GridBox(members, layout=COLUMNS)]
        self.folded = widgets.Accordion(
            [widgets.VBox(parts).add_class(SETTINGS_CLASS)], titles=["All controls"]
        )
        self._changed()

    @property
    def config(self) -> RefineConfig:
        """What the controls are set to; raises InvalidInput for a value outside its range."""
        return RefineConfig(**{name: control.value for name, control in self.controls.items()})

    def _choose_preset(self, _change: object = None) -> None:
        if self._loading or self.preset.value == CUSTOM:
            return
        self.load(PRESETS[self.preset.value])

    def load(self, config: RefineConfig) -> None:
        """Move every control to these settings, as near as the limits let it."""
        self._loading = True
        for name, value in self.limits.apply(config).to_dict().items():
            set_value(self.controls[name], value)
        self._loading = False
        self._changed()

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
        same = [
            name
            for name, preset in PRESETS.items()  # any seed is the preset's
            if config and self.limits.apply(replace(preset, seed=config.seed)) == config
        ]
        self.preset.value = same[0] if same else CUSTOM
        self._loading = False
        for name, field in SETTINGS.items():
            self.controls[name].disabled = remasking not in field.get("used_by", (remasking,))
        for name in ("top_k", "top_p"):
            self.controls[name].disabled = self.controls["temperature"].value == 0
