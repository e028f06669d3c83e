"""The race: one backbone from left to right and by refinement, measured here and then played."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence

import ipywidgets as widgets

from lad.diffusion.config import PRESETS
from lad.diffusion.denoiser import Denoiser
from lad.diffusion.trace import Trace
from lad.evaluation.race import race
from lad.viz.race import race_html, race_sentence
from lad.widgets.controls import PURPOSES, SHORT, WIDE, Limits, labelled
from lad.widgets.player import show_page
from lad.widgets.runner import Explorer, Job, Source


class PromptExplorer(Explorer):
    """A prompt, a preset, Run, and a page of HTML with a script.

    A subclass has `_done`, which gets the traces of a run and calls `_show_page`.
    """

    def __init__(self, denoiser: Source, limits: Limits | None) -> None:
        super().__init__(denoiser, limits, pause=0)
        prompt = "What do you know about Amsterdam?"
        self.prompt = widgets.Textarea(
            value=prompt, description="Prompt", rows=2, layout=WIDE, style=SHORT
        )
        self.preset = labelled(widgets.Dropdown, "Preset", 29, options=PURPOSES)
        parts = [self.prompt, self.preset, self.bar, self.message, self.screen.widget]
        self.widget = widgets.VBox(parts)

    def _show_page(self, prompt: str, page: str, words: str) -> None:
        self.prompt.value = prompt
        show_page(self.screen.player, page, words)

    def _start_run(self) -> None:
        job = Job(self._limits.check(self.prompt.value), PRESETS[self.preset.value])
        self._start(lambda _denoiser: [job], self._done)


class RaceExplorer(PromptExplorer):
    """A prompt and a preset to race with; it plays the last race, which is in `traces` by name.

    It begins with `traces`, a race of `lad.evaluation.race`, if they are given.
    """

    def __init__(
        self,
        denoiser: Source = None,
        traces: Mapping[str, Trace] | None = None,
        limits: Limits | None = None,
    ) -> None:
        super().__init__(denoiser, limits)
        self.traces: dict[str, Trace] = {}
        if traces:
            self.load(traces)

    def load(self, traces: Mapping[str, Trace]) -> None:
        """Show a race."""
        self.traces = dict(traces)
        prompt = next(iter(traces.values())).prompt
        self._show_page(prompt, race_html(traces), race_sentence(traces))

    def _run_job(self, denoiser: Denoiser, job: Job, label: str, traces: list[Trace]) -> bool:
        most, started = self._limits.seconds or float("inf"), time.monotonic()

        def on_pass(name: str, done: int, passes: int) -> None:
            self.progress.max, self.progress.value = passes, done
            self.status.value = f"{name}: {done} of at most {passes} passes"
            if self._cancel.is_set() or time.monotonic() - started > most:
                raise InterruptedError

        try:
            self._found = race(denoiser, job.prompt, self._limits.apply(job.config), on_pass)
        except InterruptedError:
            why = "" if self._cancel.is_set() else f" after {most:g} s, the most a race may take"
            self.status.value = f"stopped{why}; half a race is not shown"
            return False
        traces += self._found.values()
        return True

    def _done(self, _traces: Sequence[Trace], _whole: bool) -> None:
        self.load(self._found)
