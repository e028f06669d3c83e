"""The race: one backbone from left to right and by refinement, measured here and then played."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping

import ipywidgets as widgets

from lad.diffusion.adapter import load_denoiser
from lad.diffusion.config import PRESETS
from lad.diffusion.denoiser import Denoiser
from lad.diffusion.trace import Trace
from lad.evaluation.race import race
from lad.viz.race import race_html, race_sentence
from lad.widgets.controls import PURPOSES, SHORT, WIDE, Limits, labelled
from lad.widgets.player import _bundle
from lad.widgets.runner import Explorer, Job, Loader


class _Ended(Exception):
    """A race that was stopped: half a race is no result."""


class RaceExplorer(Explorer):
    """A prompt and a preset to race with; it plays the last race, which is in `traces` by name."""

    def __init__(
        self,
        denoiser: Denoiser | Callable[[], Denoiser] | None = None,
        traces: Mapping[str, Trace] | None = None,
        prompt: str = "What do you know about Amsterdam?",
        limits: Limits | None = None,
    ) -> None:
        """At first it plays `traces`, a race of `lad.evaluation.race`, if they are given."""
        super().__init__(limits, pause=0)
        self._loader = Loader(denoiser or load_denoiser)
        self.prompt = widgets.Textarea(
            value=prompt, description="Prompt", rows=2, layout=WIDE, style=SHORT
        )
        self.preset = labelled(widgets.Dropdown, "Preset", 29, options=PURPOSES)
        self.screen = widgets.Output(layout=WIDE)  # it runs the player's script
        self.widget = widgets.VBox([self.prompt, self.preset, self.bar, self.message, self.screen])
        self.traces: dict[str, Trace] = {}
        if traces:
            self.load(traces)

    def load(self, traces: Mapping[str, Trace]) -> None:
        """Show a race."""
        self.traces = dict(traces)
        data = {"text/html": race_html(traces), "text/plain": race_sentence(traces)}
        shown = {"output_type": "display_data", "data": data, "metadata": {}}
        self.screen.outputs = (shown,)

    def _start_run(self) -> None:
        prompt, config = self._limits.check(self.prompt.value), PRESETS[self.preset.value]

        def done(_traces: list[Trace], _whole: bool) -> None:
            self.load(self.traces)

        self._start(self._loader, lambda _denoiser: [Job(prompt, config)], done)

    def _run_job(self, denoiser: Denoiser, job: Job, label: str, traces: list[Trace]) -> bool:
        started = time.monotonic()

        def on_pass(name: str, done: int, most: int) -> None:
            self.progress.max, self.progress.value = most, done
            self.status.value = f"{name}: {done} of at most {most} passes"
            over = time.monotonic() - started > (self._limits.seconds or float("inf"))
            if over or self._cancel.is_set():
                why = f"after {self._limits.seconds:g} s, the most" if over else "before the end"
                self.status.value = f"ended {why}: half a race is not shown"
                raise _Ended

        try:
            self.traces = race(denoiser, job.prompt, self._limits.apply(job.config), on_pass)
        except _Ended:
            return False
        traces += self.traces.values()
        return True

    def _repr_mimebundle_(self, **kwargs: object) -> dict:
        """The widget, and the race as HTML for a page without a kernel."""
        return _bundle(self.widget, race_html(self.traces) if self.traces else None, kwargs)
