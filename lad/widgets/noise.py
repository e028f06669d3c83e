"""Explorers of the noise: the schedule between iterations, and the corruption of training.

Neither needs a model; both redraw within a tenth of a second or so, and so follow a slider. As the
last line of a notebook cell an explorer shows itself, and a page made from that notebook gets the
same explorer as a script, `lad/assets/noise.js`.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict

import ipywidgets as widgets

from lad.diffusion.config import KINDS, CorruptionConfig
from lad.diffusion.schedule import mask_counts
from lad.utils import LADError
from lad.viz.html import ASSETS, ENVIRONMENT
from lad.viz.noise import EXPLANATIONS, schedule_curve, schedule_sentence
from lad.viz.style import COLORS, show, tint
from lad.viz.word_corruption import (
    ALL_KINDS,
    EVERYDAY,
    Corrupted,
    Sentence,
    corrupt,
    drawn_rates,
)
from lad.widgets.controls import (
    MEDIUM,
    ROW,
    SETTING,
    SETTINGS_CLASS,
    SPACED,
    WIDE,
    described,
    error_html,
    make_control,
)
from lad.widgets.player import bundle

DRAWS = 400  # for the table's averages
ENDS = 3  # END tokens after the sentence: training corrupts them too
NOTE = (
    "Expected is for long answers. In a short one the first and the last token have one neighbour "
    "only, and the number of masks is rounded down, so its means lie a little lower."
)
SCRIPT = (ASSETS / "noise.js").read_text(encoding="utf-8")
INPUTS = {widgets.Checkbox: "checkbox", widgets.Text: "text", widgets.BoundedIntText: "number"}


class ScheduleExplorer:
    """The noise schedule under its four controls: a curve, and the same in words and numbers."""

    def __init__(self) -> None:
        self.sharpness = make_control("sharpness", 5.0, **SETTING)
        self.noise_start = make_control("noise_start", 0.5, **SETTING)
        self.iterations = widgets.IntSlider(16, 1, 128, **described("iterations"), **SETTING)
        self.answer_length = widgets.IntSlider(64, 1, 256, **described("answer_length"), **SETTING)
        names = ("iterations", "answer_length", "sharpness", "noise_start")
        self._controls = {name: getattr(self, name) for name in names}
        self.image = widgets.HTML(layout=WIDE)  # an Image widget has no alternative text
        self.text = widgets.HTML(layout=WIDE)
        for control in self._controls.values():
            control.observe(self._draw, "value")
        bar = widgets.HBox([*self._controls.values()], layout=SPACED).add_class(SETTINGS_CLASS)
        self.widget = widgets.VBox([bar, self.image, self.text])
        self._draw()

    def _draw(self, _change: object = None) -> None:
        settings = {name: control.value for name, control in self._controls.items()}
        masks, length = mask_counts(**settings), self.answer_length.value
        sentence = schedule_sentence(masks, length)
        self.image.value = show(schedule_curve(masks, length), sentence).html
        self.text.value = f"<p>{sentence}</p>{counts_html(masks)}"

    def _repr_mimebundle_(self, **kwargs: object) -> dict:
        static = _static_html(self._controls, None, {"explorer": "schedule"})
        return bundle(self.widget, static, kwargs)


def counts_html(counts: list[int]) -> str:
    """Masks after each iteration as a line of numbers; the zeros at the end as words."""
    shown = 1 + max((i for i, count in enumerate(counts) if count), default=-1)
    parts = [str(count) for count in counts[:shown]]
    if shown < len(counts):
        parts.append(f"none from iteration {shown} on")
    return f"<p>Masks after each iteration: {', '.join(parts)}.</p>"


class CorruptionExplorer:
    """A sentence under the noise of training, and how often each kind is expected to strike.

    Words stand for tokens, see `lad.viz.word_corruption`. That training masks one answer in ten
    whole is left out. `damage` is the draw on show, or None if the text holds no word.
    """

    def __init__(self) -> None:
        self.damage: Corrupted | None = None
        sentence = "The river flows past the old town and ends in the sea."
        self.sentence = widgets.Text(
            value=sentence, description="Your sentence", style=MEDIUM, layout=WIDE
        )
        self.severity = widgets.FloatSlider(0.6, max=1, description="Severity p", **SETTING)
        self.severity.step = 0.05
        self.kinds = {}
        for kind in ALL_KINDS:
            traits = {"tooltip": EXPLANATIONS[kind], "indent": False, "layout": {"width": "8em"}}
            self.kinds[kind] = widgets.Checkbox(value=True, description=kind, **traits)
        self.seed = make_control("seed", 0, **SETTING)
        self.again = widgets.Button(description="Draw again", icon="refresh")
        self.again.on_click(self._draw_again)
        self.screen, self.table, self.message = (widgets.HTML(layout=WIDE) for _ in range(3))
        boxes = list(self.kinds.values())
        for control in (self.sentence, self.severity, self.seed, *boxes):
            control.observe(self._draw, "value")
        first = [self.severity, self.seed, self.again]
        first = widgets.HBox(first, layout=SPACED).add_class(SETTINGS_CLASS)
        second = widgets.HBox(boxes, layout=ROW)
        parts = [self.sentence, first, second, self.message, self.screen, self.table]
        self.widget = widgets.VBox(parts)
        self._draw()

    @property
    def config(self) -> CorruptionConfig:
        """The noise of training without the kinds that are not ticked."""
        return CorruptionConfig(
            all_masked=0.0,
            mask_probability=CorruptionConfig.mask_probability * self.kinds["mask"].value,
            kinds=tuple(kind for kind in KINDS if self.kinds[kind].value),
        )

    def _draw_again(self, _button: object = None) -> None:
        self.seed.value = (self.seed.value + 1) % 2**31

    def _draw(self, _change: object = None) -> None:
        p, config = self.severity.value, self.config
        try:
            sentence = Sentence.of(self.sentence.value, ENDS)
            self.damage = corrupt(sentence, p, config, self.seed.value)
            rates = drawn_rates([p], config, len(sentence.pieces), DRAWS, self.seed.value)
        except LADError as error:
            self.damage = None
            self.screen.value = self.table.value = ""
            self.message.value = error_html(str(error))
            return
        self.message.value = ""
        self.screen.value = str(_VIEWS.corruption(self.damage))
        expected, shares = config.expected_rates(p), self.damage.shares
        self.table.value = str(_VIEWS.rates(f"{p:g}", rates, expected, shares, DRAWS, NOTE))

    def _repr_mimebundle_(self, **kwargs: object) -> dict:
        controls = {"sentence": self.sentence, "severity": self.severity, "seed": self.seed}
        config = asdict(CorruptionConfig(all_masked=0.0))
        data = {"explorer": "corruption", "config": config, "everyday": EVERYDAY, "ends": ENDS}
        data |= {"draws": DRAWS, "note": NOTE}
        static = _static_html(controls | self.kinds, self.again.description, data)
        return bundle(self.widget, static, kwargs)


def _static_html(controls: Mapping[str, widgets.Widget], button: str | None, data: dict) -> str:
    """An explorer as a script, under what its controls are in HTML."""
    fields = []
    for name, control in controls.items():
        kind = INPUTS.get(type(control), "range")
        attributes = {"type": kind, "value": control.value}
        if kind == "checkbox":
            attributes = {"type": kind, "checked": control.value or None}
        for limit in ("min", "max", "step"):
            if control.has_trait(limit):
                attributes[limit] = getattr(control, limit)
        field = {"name": name, "type": kind, "label": control.description}
        fields.append(field | {"title": control.tooltip, "attributes": attributes})
    return str(_VIEWS.explorer(fields, button, data, SCRIPT))


def _colors(kind: str) -> tuple[str, str]:
    light = ", ".join(str(round(255 * part)) for part in tint(COLORS[kind], 0.35))
    return COLORS[kind], f"rgb({light})"


_VIEWS = ENVIRONMENT.get_template(
    "corruption.html", globals={"zip": zip, "colors": {kind: _colors(kind) for kind in ALL_KINDS}}
).module
