"""Recorded runs under a player: one, one out of several, or two side by side.

As the last line of a notebook cell a `TracePlayer` or a `Gallery` shows itself, and a page made
from that notebook gets the player of `lad.viz.html`, which works without a kernel.
"""

from __future__ import annotations

from collections.abc import Mapping

import ipywidgets as widgets

from lad.diffusion.trace import Trace
from lad.utils import InvalidInput
from lad.viz import html
from lad.viz.tokens import PHASES, frames
from lad.widgets.controls import COLUMNS, ROW, SHORT, WIDE, labelled, width

SHORTEST_PAUSE = 0.05  # seconds between two frames of the player: faster than that flickers
SCREEN = {"width": "auto", "min_height": "9em"}  # or the page below would jump


class _Player:
    """Play button, step buttons, slider, pause and colouring; a subclass says what is shown."""

    PHASES = PHASES  # of an iteration, that it shows

    def __init__(self, pause: float) -> None:
        button = {"width": "2.6em", "flex": "0 0 auto"}
        wide = {"width": "auto", "flex": "1 1 12em"}
        self.play = widgets.Play(value=0, min=0, max=0, tooltip="Play, pause, back to the start")
        self.back = widgets.Button(icon="step-backward", tooltip="one step back", layout=button)
        self.forward = widgets.Button(icon="step-forward", tooltip="one step on", layout=button)
        self.slider = widgets.IntSlider(
            min=0, max=0, description="Step", readout=False, style=SHORT, layout=wide
        )
        self.by_confidence = widgets.Checkbox(
            description="colour by confidence", indent=False, layout=button | width(13)
        )
        traits = {"value": pause, "max": 5, "step": 0.05, "tooltip": "seconds between two steps"}
        self.pause = labelled(widgets.FloatSlider, "Pause (s)", 18, **traits)
        # The browser moves slider and player together, without a way through the kernel.
        self.link = widgets.jslink((self.play, "value"), (self.slider, "value"))
        self.back.on_click(lambda _button: self.step(-1))
        self.forward.on_click(lambda _button: self.step(1))
        self.slider.observe(self._draw, "value")
        self.by_confidence.observe(self._draw, "value")
        self.pause.observe(self._set_pace, "value")
        self._switches = [self.play, self.back, self.forward, self.slider]
        self.bar = widgets.HBox([*self._switches, self.by_confidence], layout=ROW)
        self._set_pace()

    def step(self, by: int) -> None:
        """Move by some frames; at either end nothing happens."""
        self.slider.value = min(max(self.slider.value + by, 0), self.slider.max)

    def _set_pace(self, _change: object = None) -> None:
        self.play.interval = round(1000 * max(self.pause.value, SHORTEST_PAUSE))

    def _enable(self, on: bool) -> None:
        for part in self._switches:
            part.disabled = not on

    def _move_to_last(self, last: int) -> None:
        self.play.playing = False
        for part in (self.slider, self.play):
            part.max = part.value = last

    def _draft(self, trace: Trace, step: int, phase: str) -> str:
        coloring = "confidence" if self.by_confidence.value else "state"
        draft = html.draft_html(trace, step, phase, coloring)
        return html.page_html(draft, html.legend_html(trace, coloring, self.PHASES))


class TracePlayer(_Player):
    """Play, step and scrub a recorded `trace` (None: nothing is on show) below its prompt.

    `widget` is all but the pause; a cell that ends in the `TracePlayer` itself shows both.
    """

    def __init__(self, trace: Trace | None = None, pause: float = 0.5) -> None:
        super().__init__(pause)
        self.trace: Trace | None = None
        self.head, self.caption = widgets.HTML(), widgets.HTML()
        self.screen, self.answer = widgets.HTML(layout=SCREEN), widgets.HTML(layout=WIDE)
        self.inside = widgets.HTML(layout=WIDE)
        self._shown = [self.head, self.caption, self.screen, self.inside, self.answer]
        self.widget = widgets.VBox([self.head, self.bar, *self._shown[1:]]).add_class("lad-player")
        self.load(trace)

    def load(self, trace: Trace | None) -> None:
        """Show a trace, at its last frame; None empties the player."""
        self.trace = trace
        self._enable(trace is not None)
        if trace is None:
            for part in self._shown:
                part.value = ""
            return
        self._move_to_last(len(frames(trace)) - 1)
        self.inside.value = html.page_html(html.inside_html(trace))
        self.answer.value = html.page_html(html.answer_html(trace))
        self._draw()

    def show_live(self, trace: Trace, phase: str) -> None:
        """Show the last draft of an unfinished trace, with the player switched off."""
        self.trace = None
        self._enable(False)
        self.answer.value = self.inside.value = ""
        self._show(trace, len(trace.steps) - 1, phase, live=True)

    def _draw(self, _change: object = None) -> None:
        if self.trace is not None:
            self._show(self.trace, *frames(self.trace)[self.slider.value])

    def _show(self, trace: Trace, step: int, phase: str, live: bool = False) -> None:
        self.head.value = html.page_html(html.prompt_html(trace))
        self.caption.value = html.caption_html(trace, step, phase, live)
        self.screen.value = self._draft(trace, step, phase)

    def _repr_mimebundle_(self, **kwargs: object) -> dict:
        """The widget with its pause, and the same as HTML for a page without a kernel."""
        static = None if self.trace is None else html.replay_html(self.trace)
        widget = widgets.VBox([self.pause, self.widget])
        return _bundle(widget, static, kwargs)


class Gallery:
    """A player with a list of traces to choose from; a cell that ends in it shows its `widget`."""

    def __init__(self, traces: Mapping[str, Trace], player: TracePlayer | None = None) -> None:
        """A `player` given may show other things too, and nothing of the gallery at first."""
        self.traces = dict(traces)
        names = [(name, name) for name in self.traces]
        first = [] if player is None else [("choose a recorded run", "")]
        self.choice = labelled(widgets.Dropdown, "Gallery", 34, options=first + names)
        self.choice.disabled = not names
        self.choice.observe(self._choose, "value")
        self.player = player or TracePlayer()
        self.widget = self.choice
        if player is None:
            bar = widgets.HBox([self.choice, self.player.pause], layout=ROW)
            self.widget = widgets.VBox([bar, self.player.widget])
            self._choose()

    def _choose(self, _change: object = None) -> None:
        if self.choice.value:
            self.player.load(self.traces[self.choice.value])

    def _repr_mimebundle_(self, **kwargs: object) -> dict:
        return _bundle(self.widget, html.replays_html(self.traces) if self.traces else None, kwargs)


def _bundle(widget: widgets.Widget, static: str | None, kwargs: dict) -> dict:
    data = widget._repr_mimebundle_(**kwargs)
    return data if static is None else data | {"text/html": static}


class Comparison(_Player):
    """Two traces side by side under one player; on a narrow page, one below the other.

    A step is an iteration of both. A run that has ended shows its answer from then on. `traces` are
    the two runs by name, or none.
    """

    PHASES = ("denoised",)

    def __init__(self, traces: Mapping[str, Trace] | None = None, pause: float = 0.5) -> None:
        super().__init__(pause)
        self.traces: dict[str, Trace] = {}
        self.heads = [widgets.HTML(), widgets.HTML()]
        self.screens = [widgets.HTML(layout=SCREEN), widgets.HTML(layout=SCREEN)]
        self.insides = [widgets.HTML(), widgets.HTML()]
        self.costs = widgets.HTML(layout=WIDE)
        sides = [
            widgets.VBox(parts, layout={"min_width": "0"}).add_class("lad-player")
            for parts in zip(self.heads, self.screens, self.insides, strict=True)
        ]
        self.widget = widgets.VBox([self.bar, widgets.GridBox(sides, layout=COLUMNS), self.costs])
        self.load(traces or {})

    def load(self, traces: Mapping[str, Trace]) -> None:
        """Show two runs, at their last iterations; an empty mapping hides the comparison."""
        if len(traces) not in (0, 2):
            raise InvalidInput(f"{len(traces)} traces to compare: expected two, by name")
        self.traces = dict(traces)
        self.widget.layout.display = "" if traces else "none"
        if traces:
            self._move_to_last(max(len(trace.steps) for trace in traces.values()) - 1)
            self.costs.value = html.page_html(html.costs_html(traces))
            for inside, trace in zip(self.insides, traces.values(), strict=True):
                inside.value = html.page_html(html.inside_html(trace))
            self._draw()

    def _draw(self, _change: object = None) -> None:
        sides = zip(self.traces.items(), self.heads, self.screens, strict=False)
        for (name, trace), head, screen in sides:
            step = min(self.slider.value, len(trace.steps) - 1)
            title = f"<div><strong>{html.escape(name)}</strong></div>"
            head.value = html.page_html(title, html.caption_html(trace, step, "denoised"))
            screen.value = self._draft(trace, step, "denoised")
