"""Explorers of the noise: the schedule between iterations, and the corruption of training.

Neither needs a model, and both redraw within a tenth of a second or so, so they follow a slider.

    ScheduleExplorer     sharpness, noise start, iterations, answer length -> masks an iteration
    CorruptionExplorer   a sentence under any mixture of the five kinds of noise
"""

from __future__ import annotations

from importlib.resources import files

import ipywidgets as widgets
from jinja2 import Environment

from lad.diffusion.config import KINDS, CorruptionConfig
from lad.diffusion.schedule import mask_counts
from lad.utils import LADError
from lad.viz.noise import EXPLANATIONS, schedule_curve, schedule_sentence
from lad.viz.style import COLORS, show, tint
from lad.viz.word_corruption import ALL_KINDS, Corrupted, Rate, Sentence, corrupt, drawn_rates
from lad.widgets.controls import FIELD, FULL, MEDIUM, ROW, SETTINGS, error_html, make_control

DRAWS = 400  # for the table's averages
ENDS = 3  # END tokens after the sentence: training corrupts them too


class ScheduleExplorer:
    """The noise schedule under its four controls.

    Attributes:
        widget: what a notebook cell shows.
        sharpness, noise_start, iterations, answer_length: the controls.
        image, text: the curve, and the same in words and numbers.
    """

    def __init__(
        self,
        sharpness: float = 5.0,
        noise_start: float = 0.5,
        iterations: int = 16,
        answer_length: int = 64,
    ) -> None:
        traits = {"style": MEDIUM, "layout": FIELD}
        self.sharpness = make_control(SETTINGS["sharpness"], sharpness, **traits)
        self.noise_start = make_control(SETTINGS["noise_start"], noise_start, **traits)
        self.iterations = widgets.IntSlider(
            value=iterations, min=1, max=128, description="Iterations", **traits
        )
        self.answer_length = widgets.IntSlider(
            value=answer_length, min=1, max=256, description="Answer (tokens)", **traits
        )
        controls = [self.sharpness, self.noise_start, self.iterations, self.answer_length]
        self.image = widgets.HTML(layout=FULL)  # an Image widget has no alternative text
        self.text = widgets.HTML(layout=FULL)
        for control in controls:
            control.observe(self._draw, "value")
        self.widget = widgets.VBox(
            [widgets.HBox(controls, layout=ROW), self.image, self.text], layout=FULL
        )
        self._draw()

    def _draw(self, _change: object = None) -> None:
        settings = {
            "iterations": self.iterations.value,
            "answer_length": self.answer_length.value,
            "sharpness": self.sharpness.value,
            "noise_start": self.noise_start.value,
        }
        sentence = schedule_sentence(**settings)
        self.image.value = show(schedule_curve(**settings), sentence).html
        self.text.value = f"<p>{sentence}</p>{counts_html(mask_counts(**settings))}"


def counts_html(counts: list[int]) -> str:
    """Masks after each iteration as a line of numbers; the zeros at the end as words."""
    shown = len(counts)
    while shown and counts[shown - 1] == 0:
        shown -= 1
    numbers = ", ".join(map(str, counts[:shown]))
    rest = "" if shown == len(counts) else f"none from iteration {shown} on"
    return f"<p>Masks after each iteration: {', '.join(filter(None, (numbers, rest)))}.</p>"


class CorruptionExplorer:
    """A sentence under the noise of training, and how often each kind is expected to strike.

    Words stand for tokens, see `lad.viz.word_corruption`. One answer in ten is masked whole in
    training; that is left out, since there is nothing to see.

    Attributes:
        widget: what a notebook cell shows.
        sentence, severity, seed, again: the text, p, the seed and the button that draws anew.
        kinds: kind of noise -> its checkbox.
        damage: the draw on show, or None if the text holds no word.
        screen, table, message: what is shown, as HTML.
    """

    def __init__(
        self,
        sentence: str = "The river flows past the old town and ends in the sea.",
        severity: float = 0.6,
        seed: int = 0,
    ) -> None:
        self.damage: Corrupted | None = None
        self.sentence = widgets.Text(
            value=sentence, description="Your sentence", style=MEDIUM, layout=FULL
        )
        self.severity = widgets.FloatSlider(
            value=severity, min=0, max=1, step=0.05, description="Severity p", style=MEDIUM,
            layout=FIELD,
        )  # fmt: skip
        self.kinds = {
            kind: widgets.Checkbox(
                value=True, description=kind, tooltip=EXPLANATIONS[kind], indent=False,
                layout={"width": "8em"},
            )
            for kind in ALL_KINDS
        }  # fmt: skip
        self.seed = widgets.BoundedIntText(
            value=seed, min=0, max=2**31 - 1, description="Seed", style=MEDIUM,
            layout={"width": "18em"},
        )  # fmt: skip
        self.again = widgets.Button(description="Draw again", icon="refresh")
        self.again.on_click(self._draw_again)
        self.screen = widgets.HTML(layout=FULL)
        self.table = widgets.HTML(layout=FULL)
        self.message = widgets.HTML(layout=FULL)
        boxes = list(self.kinds.values())
        for control in (self.sentence, self.severity, self.seed, *boxes):
            control.observe(self._draw, "value")
        self.widget = widgets.VBox(
            [
                self.sentence,
                widgets.HBox([self.severity, self.seed, self.again], layout=ROW),
                widgets.HBox(boxes, layout=ROW),
                self.message,
                self.screen,
                self.table,
            ],
            layout=FULL,
        )
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
        self.screen.value = damage_html(self.damage)
        self.table.value = rates_html(self.damage, rates, config)


def _colors(kind: str) -> tuple[str, str]:
    line = COLORS["masked" if kind == "mask" else kind]
    return line, f"rgb({', '.join(str(round(255 * part)) for part in tint(line, 0.35))})"


_ENVIRONMENT = Environment(autoescape=True)
_ENVIRONMENT.globals |= {"zip": zip, "colors": {kind: _colors(kind) for kind in ALL_KINDS}}
_VIEWS = _ENVIRONMENT.from_string(
    files("lad").joinpath("assets", "corruption.html").read_text(encoding="utf-8")
).module


def damage_html(damage: Corrupted) -> str:
    """Both rows of a corrupted sentence; under each touched token the kind of noise that shows."""
    return str(
        _VIEWS.corruption(
            damage.before, damage.after, damage.shown, damage.changed, sum(damage.masked)
        )
    )


def rates_html(damage: Corrupted, rates: list[Rate], config: CorruptionConfig) -> str:
    """A table: how much each kind of noise is expected to touch, touched now, and on average."""
    if not rates:
        return ""
    severity = rates[0].severity
    expected = config.expected_rates(severity)
    rows = []
    for rate in rates:
        name, drawn = rate.kind, f"{100 * damage.shares[rate.kind]:.0f} %"
        if rate.kind == "shift":
            name = "shift (share of sentences)"
            drawn = "yes" if damage.shares[rate.kind] else "no"
        interval = f"{100 * max(rate.low, 0):.1f} to {100 * rate.high:.1f}"
        mean = f"{100 * rate.mean:.1f} % ({interval})"
        rows.append((name, f"{100 * expected[rate.kind]:.1f} %", drawn, mean))
    return str(_VIEWS.rates(f"{severity:g}", rows, DRAWS))
