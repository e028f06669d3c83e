"""A run to watch and to stop: the thread, its buttons, its progress, and the player it ends in.

The model runs only when Run is pressed, in a thread of its own that looks at an event between two
iterations. While one run is at work another Run does nothing. Whatever goes wrong is said in the
widget, for a thread's traceback would be seen by nobody.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import ipywidgets as widgets
from torch import Tensor

from lad.diffusion.config import RefineConfig
from lad.diffusion.denoiser import Denoiser
from lad.diffusion.sampler import refine
from lad.diffusion.trace import Step, Trace, make_trace
from lad.models.chat import Prompt
from lad.utils import LADError
from lad.widgets.controls import Limits
from lad.widgets.fields import SPACED, WIDE, error_html
from lad.widgets.player import TracePlayer

__all__ = ["Explorer", "Job", "Loader", "Runner"]


@dataclass(frozen=True, eq=False)
class Job:
    """One refinement to run: what `lad.diffusion.sampler.refine` takes."""

    prompt: Prompt
    config: RefineConfig
    draft: Tensor | None = None
    fixed: Tensor | None = None


class Loader:
    """A denoiser, or how to get one; loaded once, at the first run that needs it."""

    def __init__(self, denoiser: Denoiser | Callable[[], Denoiser]) -> None:
        self._denoiser = None if callable(denoiser) else denoiser
        self._load = denoiser if callable(denoiser) else None
        self._lock = threading.Lock()

    @property
    def loaded(self) -> bool:
        """False when the next `get` has to load."""
        return self._denoiser is not None

    def get(self) -> Denoiser:
        """The denoiser; a second caller waits for the first one's loading."""
        with self._lock:
            if self._denoiser is None:
                self._denoiser = self._load()
            return self._denoiser


class Runner:
    """Run and Stop, and what a run shows.

    Attributes:
        run_button, stop_button, progress, status, message, player: the parts.
        bar: the two buttons, progress and status in a row.
        running: True while a run's thread is at work.
    """

    def __init__(
        self, on_run: Callable[[], object], limits: Limits | None = None, pause: float = 0.0
    ) -> None:
        """`on_run` is called when Run is pressed; it reads its controls and calls `start`."""
        self._on_run = on_run
        self._limits = limits or Limits()
        self._lock = threading.Lock()
        self._cancel = threading.Event()
        self._thread: threading.Thread | None = None
        self.running = False
        self.run_button = widgets.Button(description="Run", button_style="primary", icon="play")
        self.stop_button = widgets.Button(description="Stop", icon="stop", disabled=True)
        self.progress = widgets.IntProgress(
            value=0, min=0, max=1, description="", layout={"width": "12em"}
        )
        self.status = widgets.HTML()
        self.message = widgets.HTML(layout=WIDE)
        self.player = TracePlayer(pause=pause)
        self.run_button.on_click(self.run)
        self.stop_button.on_click(self.stop)
        parts = [self.run_button, self.stop_button, self.progress, self.status]
        self.bar = widgets.HBox(parts, layout=SPACED)

    def run(self, _button: object = None) -> None:
        """What the Run button does; bad values in the controls are said."""
        if self.running:
            return
        try:
            self._on_run()
        except LADError as error:
            self.say(str(error))

    def start(
        self,
        loader: Loader,
        jobs: Callable[[Denoiser], Sequence[Job]],
        done: Callable[[list[Trace], bool], object],
    ) -> None:
        """Run some jobs one after the other, and return at once; nothing while one is at work.

        Args:
            loader: of the denoiser; a model that has to be loaded is loaded in the thread.
            jobs: makes them, in the thread too; may raise a `LADError`.
            done: given the traces that there are, and whether that is all of them; in the thread.
        """
        with self._lock:
            if self.running:
                return
            self.running = True
            self._cancel = threading.Event()
        self.run_button.disabled, self.stop_button.disabled = True, False
        self.message.value = self.status.value = ""
        self.progress.value, self.progress.bar_style = 0, ""
        self._thread = threading.Thread(
            target=self._work, args=(loader, jobs, done, self._cancel), daemon=True
        )
        self._thread.start()

    def stop(self, _button: object = None) -> None:
        """Ask the run to end after the iteration it is in; what it has done stays on show."""
        if self.running:
            self.stop_button.disabled = True
            self._cancel.set()

    def wait(self, timeout: float | None = None) -> bool:
        """Wait for the run to end; False if it has not within `timeout` seconds."""
        if self._thread is not None:
            self._thread.join(timeout)
        return not self.running

    def say(self, text: str) -> None:
        """Show an error."""
        self.progress.bar_style = "danger"
        self.message.value = error_html(text)

    def _work(
        self,
        loader: Loader,
        jobs: Callable[[Denoiser], Sequence[Job]],
        done: Callable[[list[Trace], bool], object],
        cancel: threading.Event,
    ) -> None:
        traces: list[Trace] = []
        planned = 1
        try:
            if not loader.loaded:
                self.status.value = "Loading the model …"
            denoiser = loader.get()
            todo = jobs(denoiser)
            planned = len(todo)
            for number, job in enumerate(todo):
                name = f"run {number + 1} of {planned}, " if planned > 1 else ""
                if not self._one(denoiser, job, name, traces, cancel):
                    break
        except LADError as error:
            self.say(str(error))
        except Exception as error:
            self.say(f"Unexpected {type(error).__name__}: {error}")
        finally:
            self._end(traces, planned, done)

    def _one(
        self,
        denoiser: Denoiser,
        job: Job,
        name: str,
        traces: list[Trace],
        cancel: threading.Event,
    ) -> bool:
        """Run one job and add its trace, whole or cut off; whether the next may follow."""
        steps: list[Step] = []
        config, began, whole = job.config, time.monotonic(), False
        prompt_ids = denoiser.encode(job.prompt)

        def trace(some: list[Step]) -> Trace:
            return make_trace(denoiser, job.prompt, prompt_ids, config, some)

        self.progress.max, self.progress.value = config.iterations, 0
        try:
            for step in refine(denoiser, prompt_ids, config, draft=job.draft, fixed=job.fixed):
                steps.append(step)
                self._show_step(trace(steps[-2:]), steps, config, name, cancel)
                if cancel.is_set():
                    break
                most = self._limits.seconds
                if most is not None and time.monotonic() - began > most:
                    self.status.value = f"ended after {most:g} s, the most that a run may take here"
                    break
            else:
                whole = True
        finally:
            if steps:
                kept = trace(steps)
                if not whole and len(steps) < config.iterations:
                    # Cut off from outside: the draft did not stand still, as that would claim.
                    kept = replace(kept, stopped_early=False)
                traces.append(kept)
        return whole

    def _show_step(
        self,
        recent: Trace,
        steps: list[Step],
        config: RefineConfig,
        name: str,
        cancel: threading.Event,
    ) -> None:
        """The live view of one iteration: its phases, each for the length of the pause."""
        self.progress.value = len(steps)
        seconds = sum(step.seconds for step in steps)
        rate = f", {len(steps) / seconds:.1f} iterations a second" if seconds else ""
        self.status.value = f"{name}iteration {len(steps)} of {config.iterations}{rate}"
        phases = ("denoised", "remasked") if steps[-1].remask.any() else ("denoised",)
        for phase in phases:
            self.player.show_live(recent, phase)
            if cancel.wait(self.player.pause.value):
                return

    def _end(
        self, traces: list[Trace], planned: int, done: Callable[[list[Trace], bool], object]
    ) -> None:
        try:
            if traces:
                last = traces[-1]
                cut = len(last.steps) < last.config["iterations"] and not last.stopped_early
                whole = len(traces) == planned and not cut and not self.message.value
                self.player.load(last)
                done(traces, whole)
                if not self.message.value:
                    self.progress.bar_style = "success" if whole else "warning"
        except Exception as error:
            self.say(f"Unexpected {type(error).__name__}: {error}")
        self.run_button.disabled, self.stop_button.disabled = False, True
        with self._lock:
            self.running = False


class Explorer:
    """What every explorer with a run can be told to do.

    Attributes:
        widget: what a notebook cell shows.
        runner: its `Runner`.
    """

    widget: widgets.Widget
    runner: Runner

    def run(self, _button: object = None) -> None:
        """Start a run and return at once; while one is at work this does nothing."""
        self.runner.run()

    def stop(self, _button: object = None) -> None:
        """Ask the run to end after the iteration it is in; what it has done stays on show."""
        self.runner.stop()

    def wait(self, timeout: float | None = None) -> bool:
        """Wait for the run to end; False if it has not within `timeout` seconds."""
        return self.runner.wait(timeout)

    def close(self) -> None:
        """End the run, if any, and take the widgets off the page."""
        self.stop()
        self.wait()
        self.widget.close()
