"""Explorers of the noise: the schedule between iterations, and the damage of training.

Neither needs a model, and both redraw within a tenth of a second or so, so they follow a slider.

    ScheduleExplorer     sharpness, noise start, iterations, answer length -> masks an iteration
    CorruptionExplorer   your own sentence under any mixture of the five kinds of noise
"""

from __future__ import annotations

import ipywidgets as widgets

from lad.diffusion.config import KINDS, CorruptionConfig
from lad.diffusion.corruption import expected_rates
from lad.diffusion.schedule import mask_counts
from lad.utils import LADError
from lad.viz.html import escape
from lad.viz.noise import EXPLANATIONS, schedule_curve, schedule_sentence
from lad.viz.style import COLORS, show, tint
from lad.viz.word_corruption import ALL_KINDS, Corrupted, Rate, Sentence, corrupt, drawn_rates
from lad.widgets.fields import FIELD, FULL, MEDIUM, ROW, error_html

__all__ = ["CorruptionExplorer", "ScheduleExplorer", "counts_html", "damage_html", "rates_html"]

DRAWS = 400  # for the table's averages
ENDS = 3  # END tokens after the sentence: training damages them too


class ScheduleExplorer:
    """The noising schedule under its four controls.

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
        def slider(kind: type, value: float, low: float, high: float, step: float, text: str):
            return kind(
                value=value, min=low, max=high, step=step, description=text, style=MEDIUM,
                layout=FIELD,
            )  # fmt: skip

        floats, whole = widgets.FloatSlider, widgets.IntSlider
        self.sharpness = slider(floats, sharpness, 0.5, 20, 0.5, "Sharpness")
        self.noise_start = slider(floats, noise_start, 0, 1, 0.05, "Noise start")
        self.iterations = slider(whole, iterations, 1, 128, 1, "Iterations")
        self.answer_length = slider(whole, answer_length, 1, 256, 1, "Answer (tokens)")
        controls = [self.sharpness, self.noise_start, self.iterations, self.answer_length]
        self.image = widgets.HTML(layout=FULL)  # an Image widget would have no room for words
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
    """Your own sentence under the noise of training, and how often each kind ought to strike.

    Words stand in for tokens, see `lad.viz.word_corruption`. One answer in ten is masked whole in training; that
    is left out here, since there is nothing to see.

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
        """The noise that the checkboxes describe: training's, less what is not ticked."""
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


_STYLE = """
.lad-noise { line-height: 1.2; }
.lad-noise .lad-tokens { display: flex; flex-wrap: wrap; gap: 3px; margin: 0.4em 0; }
.lad-noise .lad-token { display: inline-flex; flex-direction: column; align-items: center;
  border: 1px solid #8a8a8a; border-radius: 3px; padding: 2px 5px; font-family: monospace;
  white-space: pre-wrap; overflow-wrap: anywhere; }
.lad-noise .lad-token small { font-size: 0.75em; min-height: 1.2em; font-family: sans-serif; }
.lad-noise .lad-mask bdi { text-decoration: line-through; }
.lad-noise table { border-collapse: collapse; }
.lad-noise caption { text-align: left; font-weight: bold; padding: 0.3em 0; }
.lad-noise th, .lad-noise td { padding: 0.15em 1em 0.15em 0; text-align: right;
  border-top: 1px solid #8a8a8a; }
.lad-noise th[scope=row] { text-align: left; }
"""


def _kind_style(kind: str) -> str:
    color = COLORS["masked" if kind == "mask" else kind]
    red, green, blue = (round(255 * channel) for channel in tint(color, 0.35))
    return (
        f".lad-noise .lad-{kind} {{ color: #000; border: 2px solid {color}; "
        f"background: rgb({red}, {green}, {blue}); }}\n"
    )


_STYLE += "".join(map(_kind_style, ALL_KINDS))


def _page(*fragments: str) -> str:
    return f'<div class="lad-noise"><style>{_STYLE}</style>{"".join(fragments)}</div>'


def damage_html(damage: Corrupted) -> str:
    """Both rows of a damaged sentence; under each touched token the kind of noise that shows."""

    def tokens(pieces: tuple[str, ...], kinds: tuple[str, ...], name: str) -> str:
        cells = "".join(
            f'<span class="lad-token{f" lad-{kind}" if kind else ""}">'
            f"<bdi>{escape(piece)}</bdi><small>{kind}</small></span>"
            for piece, kind in zip(pieces, kinds, strict=True)
        )
        return f'<div class="lad-tokens" role="group" aria-label="{name}">{cells}</div>'

    t = len(damage.before)
    words = (
        f"{damage.changed} of {t} tokens differ from the original, {sum(damage.masked)} of them "
        f"hidden behind MASK."
    )
    return _page(
        "<div>before</div>",
        tokens(damage.before, ("",) * t, "the sentence before"),
        "<div>after</div>",
        tokens(damage.after, damage.shown, "the sentence after"),
        f"<div>{words}</div>",
    )


def rates_html(damage: Corrupted, rates: list[Rate], config: CorruptionConfig) -> str:
    """A table: how much each kind of noise is expected to touch, touched now, and on average."""
    if not rates:
        return ""
    expected = expected_rates(rates[0].severity, config)
    rows = []
    for rate in rates:
        now = damage.shares[rate.kind]
        if rate.kind == "shift":
            here = "yes" if now else "no"
            name = "shift (share of sentences)"
        else:
            here, name = f"{100 * now:.0f} %", rate.kind
        rows.append(
            f'<tr><th scope="row">{name}</th><td>{100 * expected[rate.kind]:.1f} %</td>'
            f"<td>{here}</td><td>{100 * rate.mean:.1f} % "
            f"({100 * max(rate.low, 0):.1f} to {100 * rate.high:.1f})</td></tr>"
        )
    return _page(
        f"<table><caption>Tokens touched at p = {rates[0].severity:g}</caption><thead><tr>"
        '<th scope="col"></th><th scope="col">expected</th><th scope="col">this draw</th>'
        f'<th scope="col">mean of {DRAWS} draws (95 % interval)</th></tr></thead>'
        f"<tbody>{''.join(rows)}</tbody></table>"
        "<div>Expected is for long answers. In a short one the first and the last token have one "
        "neighbour only, and the number of masks is rounded down, so its means lie a little lower."
        "</div>"
    )
