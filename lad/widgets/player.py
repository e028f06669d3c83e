"""What an explorer shows of a run: its drafts while it goes on, then the player of a page."""

from __future__ import annotations

import ipywidgets as widgets

from lad.diffusion.trace import Trace
from lad.viz import html
from lad.widgets.controls import WIDE, labelled, width


def show_page(output: widgets.Output, page: str = "", words: str = "") -> None:
    """Show HTML in an Output, where its scripts run, unlike in other widgets; none empties it."""
    data = {"text/html": page, "text/plain": words}
    shown = {"output_type": "display_data", "data": data, "metadata": {}}
    output.outputs = (shown,) * bool(page)


class Screen:
    """A run that goes on, frame by frame, each for the `pause`; then `trace` under a player."""

    def __init__(self, pause: float) -> None:
        self.trace: Trace | None = None
        traits = {"value": pause, "max": 5, "step": 0.05, "tooltip": "seconds between two steps"}
        self.pause = labelled(widgets.FloatSlider, "Pause (s)", 22, **traits)
        self.by_confidence = widgets.Checkbox(
            description="colour by confidence", indent=False, layout=width(13)
        )
        self.draft, self.player = widgets.HTML(layout=WIDE), widgets.Output(layout=WIDE)
        self.live = widgets.VBox([self.by_confidence, self.draft])
        self.widget = widgets.VBox([self.live, self.player])
        self.load(None)

    def load(self, trace: Trace | None) -> None:
        """Show a trace under a player, at its last frame; None empties the screen."""
        self.trace = trace
        self.live.layout.display, self.draft.value = "none", ""
        page = () if trace is None else (html.replay_html(trace), trace.answer)
        show_page(self.player, *page)

    def show_live(self, trace: Trace, phase: str) -> None:
        """Show the last draft of an unfinished trace."""
        if self.trace is not None or self.live.layout.display:
            self.load(None)
            self.live.layout.display = ""
        step = len(trace.steps) - 1
        parts = html.prompt_html(trace), html.caption_html(trace, step, phase, live=True)
        draft = html.draft_html(trace, step, phase) + html.legend_html(trace)
        kind = "lad-frames" + " lad-by-confidence" * self.by_confidence.value
        self.draft.value = html.page_html(*parts, f'<div class="{kind}">{draft}</div>')
