"""Recorded runs under a player: one, one out of several, or two side by side.

    TracePlayer   play, pause, step and scrub a trace
    Gallery       a player with a list of traces to choose from
    Comparison    two traces under one player, iteration by iteration

They need neither a model nor a thread: the trace holds everything there is to show. Nothing moves
before Play is pressed. All text reaches the page through `lad.viz.html`, which escapes it.

As the last line of a notebook cell a `TracePlayer` or a `Gallery` shows itself, and a page that is
made from that notebook gets the player of `lad.viz.html`, which works without a kernel.
"""

from __future__ import annotations

from collections.abc import Mapping

import ipywidgets as widgets

from lad.diffusion.trace import Trace
from lad.utils import InvalidInput
from lad.viz.html import (
    answer_html,
    caption_html,
    costs_html,
    draft_html,
    escape,
    legend_html,
    page_html,
    replay_html,
    replays_html,
)
from lad.viz.tokens import frames
from lad.widgets.controls import COLUMNS, ROW, SHORT, WIDE

SHORTEST_PAUSE = 0.05  # seconds between two frames of the player: faster than that flickers
SCREEN = {"width": "auto", "min_height": "9em"}  # or the page below would jump


class _Player:
    """Play button, step buttons, slider, pause and colouring; a subclass says what is shown."""

    def __init__(self, pause: float) -> None:
        button = {"width": "2.6em", "flex": "0 0 auto"}
        self.play = widgets.Play(value=0, min=0, max=0, tooltip="Play, pause, back to the start")
        self.back = widgets.Button(icon="step-backward", tooltip="one step back", layout=button)
        self.forward = widgets.Button(icon="step-forward", tooltip="one step on", layout=button)
        self.slider = widgets.IntSlider(
            value=0, min=0, max=0, description="Step", readout=False, style=SHORT,
            layout={"width": "auto", "flex": "1 1 12em"},
        )  # fmt: skip
        self.by_confidence = widgets.Checkbox(
            value=False, description="colour by confidence", indent=False,
            layout={"width": "13em", "flex": "0 0 auto"},
        )  # fmt: skip
        self.pause = widgets.FloatSlider(
            value=pause, min=0, max=5, step=0.05, description="Pause (s)", style=SHORT,
            tooltip="seconds between two steps", layout={"width": "18em"},
        )  # fmt: skip
        # The browser moves slider and player together, without a way through the kernel.
        self.link = widgets.jslink((self.play, "value"), (self.slider, "value"))
        self.back.on_click(lambda _button: self.step(-1))
        self.forward.on_click(lambda _button: self.step(1))
        self.slider.observe(self._draw, "value")
        self.by_confidence.observe(self._draw, "value")
        self.pause.observe(self._set_pace, "value")
        self.bar = widgets.HBox(
            [self.play, self.back, self.forward, self.slider, self.by_confidence], layout=ROW
        )
        self._set_pace()

    def step(self, by: int) -> None:
        """Move by some frames; at either end nothing happens."""
        self.slider.value = min(max(self.slider.value + by, 0), self.slider.max)

    @property
    def coloring(self) -> str:
        """One of `lad.viz.html.COLORINGS`, as the box says."""
        return "confidence" if self.by_confidence.value else "state"

    def _set_pace(self, _change: object = None) -> None:
        self.play.interval = round(1000 * max(self.pause.value, SHORTEST_PAUSE))

    def _enable(self, on: bool) -> None:
        for part in (self.play, self.slider, self.back, self.forward):
            part.disabled = not on

    def _move_to_last(self, last: int) -> None:
        for part in (self.slider, self.play):
            part.max = last
            part.value = last

    def _draft(self, trace: Trace, row: int, phase: str) -> str:
        return page_html(
            draft_html(trace, row, phase, self.coloring), legend_html(trace, self.coloring)
        )

    def _draw(self, _change: object = None) -> None:
        raise NotImplementedError


class TracePlayer(_Player):
    """Play, step and scrub a recorded trace.

    Attributes:
        widget: what a notebook cell shows, all but the pause; the cell shows a `TracePlayer` too.
        trace: the trace on show, or None.
        slider, play, back, forward, pause, by_confidence, caption, screen, answer: the parts.
    """

    def __init__(self, trace: Trace | None = None, pause: float = 0.5) -> None:
        """`pause`: seconds between two frames while playing."""
        super().__init__(pause)
        self.trace: Trace | None = None
        self.caption = widgets.HTML()
        self.screen = widgets.HTML(layout=SCREEN)
        self.answer = widgets.HTML(layout=WIDE)
        self.widget = widgets.VBox([self.bar, self.caption, self.screen, self.answer])
        self.load(trace)

    def load(self, trace: Trace | None) -> None:
        """Show a trace, at its last frame; None empties the player."""
        self.trace = trace
        self.play.playing = False
        self._enable(trace is not None)
        if trace is None:
            self.caption.value = self.screen.value = self.answer.value = ""
            return
        self._move_to_last(len(frames(trace)) - 1)
        self.answer.value = page_html(answer_html(trace))
        self._draw()

    def show_live(self, trace: Trace, phase: str) -> None:
        """Show the last draft of an unfinished trace, with the player switched off."""
        self.trace = None
        self._enable(False)
        self.answer.value = ""
        self._show(trace, len(trace.steps) - 1, phase, live=True)

    def _draw(self, _change: object = None) -> None:
        if self.trace is not None:
            self._show(self.trace, *frames(self.trace)[self.slider.value])

    def _show(self, trace: Trace, row: int, phase: str, live: bool = False) -> None:
        self.caption.value = caption_html(trace, row, phase, live)
        self.screen.value = self._draft(trace, row, phase)

    def _repr_mimebundle_(self, **kwargs: object) -> dict:
        """The widget with its pause, and the same as HTML for a page without a kernel."""
        static = None if self.trace is None else replay_html(self.trace)
        return _bundle(widgets.VBox([self.pause, self.widget]), static, kwargs)


class Gallery:
    """A player with a list of traces to choose from.

    Attributes:
        widget: what a notebook cell shows; the cell shows a `Gallery` too.
        traces: the traces by name.
        choice: the list.
        player: the player.
    """

    def __init__(self, traces: Mapping[str, Trace], player: TracePlayer | None = None) -> None:
        """
        Args:
            traces: from name to trace; may be empty.
            player: one that shows other things too, and nothing of the gallery at first. By default
                the gallery makes one, which begins with the first trace.
        """
        self.traces = dict(traces)
        names = [(name, name) for name in self.traces]
        self.choice = widgets.Dropdown(
            options=names if player is None else [("choose a recorded run", ""), *names],
            description="Gallery", style=SHORT, layout={"width": "34em", "max_width": "100%"},
            disabled=not names,
        )  # fmt: skip
        self.choice.observe(self._choose, "value")
        if player is not None:
            self.player = player
            self.widget = self.choice
            return
        self.player = TracePlayer()
        bar = widgets.HBox([self.choice, self.player.pause], layout=ROW)
        self.widget = widgets.VBox([bar, self.player.widget])
        self._choose()

    def _choose(self, _change: object = None) -> None:
        if self.choice.value:
            self.player.load(self.traces[self.choice.value])

    def _repr_mimebundle_(self, **kwargs: object) -> dict:
        return _bundle(self.widget, replays_html(self.traces) if self.traces else None, kwargs)


def _bundle(widget: widgets.Widget, static: str | None, kwargs: dict) -> dict:
    shown = widget._repr_mimebundle_(**kwargs)
    data = shown[0] if isinstance(shown, tuple) else shown
    return data if static is None else {**data, "text/html": static}


class Comparison(_Player):
    """Two traces side by side under one player; on a narrow page, one below the other.

    A step is an iteration of both. A run that has ended shows its answer from then on.

    Attributes:
        widget: what a notebook cell shows.
        names, traces: of the two runs; empty when nothing is compared.
        slider, play, back, forward, pause, by_confidence, heads, screens, costs: the parts.
    """

    def __init__(self, traces: Mapping[str, Trace] | None = None, pause: float = 0.5) -> None:
        """`traces`: two of them, from name to trace; `load` takes them later, too."""
        super().__init__(pause)
        self.names: tuple[str, ...] = ()
        self.traces: tuple[Trace, ...] = ()
        self.heads = [widgets.HTML(), widgets.HTML()]
        self.screens = [widgets.HTML(layout=SCREEN), widgets.HTML(layout=SCREEN)]
        self.costs = widgets.HTML(layout=WIDE)
        sides = [
            widgets.VBox(parts, layout={"min_width": "0"})
            for parts in zip(self.heads, self.screens, strict=True)
        ]
        self.widget = widgets.VBox([self.bar, widgets.GridBox(sides, layout=COLUMNS), self.costs])
        self.load(traces or {})

    def load(self, traces: Mapping[str, Trace]) -> None:
        """Show two runs, at their last iterations; nothing empties and hides the comparison.

        Raises:
            InvalidInput: one trace, or more than two.
        """
        if len(traces) not in (0, 2):
            raise InvalidInput(f"{len(traces)} traces to compare: expected two, by name")
        self.names, self.traces = tuple(traces), tuple(traces.values())
        self.play.playing = False
        self.widget.layout.display = "" if traces else "none"
        if traces:
            self._move_to_last(max(len(trace.steps) for trace in self.traces) - 1)
            self.costs.value = page_html(costs_html(traces))
            self._draw()

    def _draw(self, _change: object = None) -> None:
        for name, trace, head, screen in zip(
            self.names, self.traces, self.heads, self.screens, strict=bool(self.traces)
        ):
            row = min(self.slider.value, len(trace.steps) - 1)
            title = f"<div><strong>{escape(name)}</strong></div>"
            head.value = page_html(title, caption_html(trace, row, "denoised"))
            screen.value = self._draft(trace, row, "denoised")
