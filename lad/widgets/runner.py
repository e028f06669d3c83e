"""A run to watch and to stop: the thread, its buttons, its progress, and the player it ends in.

Every error is shown in the widget, because a traceback of a thread would not reach the page.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace

import ipywidgets as widgets
import torch
from torch import Tensor

from lad.diffusion.adapter import load_denoiser
from lad.diffusion.config import RefineConfig
from lad.diffusion.denoiser import Denoiser
from lad.diffusion.resume import resume
from lad.diffusion.sampler import refine
from lad.diffusion.trace import Trace, make_trace
from lad.models.chat import Prompt
from lad.utils import LADError
from lad.widgets.controls import SPACED, WIDE, Limits, error_html
from lad.widgets.player import Screen
from lad.widgets.recorded import placeholder

# A denoiser, a function that loads it at the first run, or None: the default one.
Source = Denoiser | Callable[[], Denoiser] | None


@dataclass(frozen=True, eq=False)
class Job:
    """One refinement to run: what `lad.diffusion.sampler.refine` takes.

    With `after`, a trace, it goes on where that ends, see `lad.diffusion.resume`.
    """

    prompt: Prompt
    config: RefineConfig
    draft: Tensor | None = None
    fixed: Tensor | None = None
    after: Trace | None = None


class Loader:
    """A denoiser, or how to get one; `denoiser` is None until the first run that needs it."""

    def __init__(self, denoiser: Denoiser | Callable[[], Denoiser]) -> None:
        self.denoiser = None if callable(denoiser) else denoiser
        self._load = denoiser
        self._lock = threading.Lock()

    def get(self) -> Denoiser:
        """The denoiser; a second caller waits for the first one's loading."""
        with self._lock:
            if self.denoiser is None:
                self.denoiser = self._load()
            return self.denoiser


TURN = threading.Lock()  # of all explorers' runs, because a race switches the adapter off


class Explorer:
    """Run and Stop, and what a run shows; a subclass has `_start_run`, which calls `_start`.

    `trace` is that of the last run, or None; `running` is True while a run's thread is at work. As
    the last line of a notebook cell an explorer shows itself; `RECORDED` names the runs that stand
    for it in a page without a kernel, instead of what it shows.
    """

    RECORDED: str | None = None

    def __init__(self, denoiser: Source, limits: Limits | None, pause: float) -> None:
        self._loader = Loader(denoiser or load_denoiser)
        self.trace: Trace | None = None
        self.running = False
        self._limits = limits or Limits()
        self._cancel = threading.Event()
        self._thread: threading.Thread | None = None
        self.run_button = widgets.Button(description="Run", button_style="primary", icon="play")
        self.stop_button = widgets.Button(description="Stop", icon="stop", disabled=True)
        self.progress = widgets.IntProgress(value=0, min=0, max=1, layout={"width": "12em"})
        self.status = widgets.HTML()
        self.message = widgets.HTML(layout=WIDE)
        self.screen = Screen(pause)
        self.pause = self.screen.pause
        self._waiting = [self.run_button]  # what is switched off during a run
        self.run_button.on_click(self.run)
        self.stop_button.on_click(self.stop)
        parts = [self.run_button, self.stop_button, self.progress, self.status]
        self.bar = widgets.HBox(parts, layout=SPACED)

    def _repr_mimebundle_(self, **kwargs: object) -> dict:
        """The widget, and for a page without a kernel recorded runs or the one on show."""
        shown = [one["data"] for one in self.screen.player.outputs]
        if self.RECORDED and (menus := placeholder(self.RECORDED)):
            shown = [{"text/html": menus}]
        return self.widget._repr_mimebundle_(**kwargs) | dict(*shown)

    def run(self, _button: object = None) -> None:
        """Start a run and return at once; while one is at work this does nothing."""
        self._unless_running(self._start_run)

    def _unless_running(self, start: Callable[[], object]) -> None:
        if not self.running:
            with self._errors_shown():
                start()

    def stop(self, _button: object = None) -> None:
        """End the run after the iteration it is in; what it has done stays on show."""
        if self.running:
            self.stop_button.disabled = True
            self._cancel.set()

    def wait(self, timeout: float | None = None) -> bool:
        """Wait for the run to end; False if it has not within `timeout` seconds."""
        if self._thread is not None:
            self._thread.join(timeout)
        return not self.running

    @contextmanager
    def _errors_shown(self) -> Iterator[None]:
        """Show an error in the widget."""
        try:
            yield
        except Exception as error:
            kind = "" if isinstance(error, LADError) else f"Unexpected {type(error).__name__}: "
            self.progress.bar_style = "danger"
            self.message.value = error_html(f"{kind}{error}")

    def _start(
        self,
        make_jobs: Callable[[Denoiser], Sequence[Job]],
        done: Callable[[list[Trace], bool], object],
    ) -> None:
        """Run jobs in turn in a thread, then call `done` there with traces and "all are whole"."""
        self._cancel.clear()
        self._switch(running=True)
        self.message.value = self.status.value = ""
        self.progress.value, self.progress.bar_style = 0, ""
        given = (self._loader, make_jobs, done)
        self._thread = threading.Thread(target=self._work, args=given, daemon=True)
        self._thread.start()

    def _work(self, *given: object) -> None:
        if TURN.locked():
            self.status.value = "Waiting for another run to end …"
        with TURN:
            self._run_jobs(*given)

    def _run_jobs(self, loader: Loader, make_jobs: Callable, done: Callable) -> None:
        traces: list[Trace] = []
        whole = False
        with self._errors_shown():
            if loader.denoiser is None:
                self.status.value = "Loading the model …"
            denoiser = loader.get()
            for number, job in enumerate(jobs := make_jobs(denoiser), start=1):
                label = f"run {number} of {len(jobs)}, " if len(jobs) > 1 else ""
                whole = self._run_job(denoiser, job, label, traces)
                if not whole:
                    break
        with self._errors_shown():
            if traces:
                done(traces, whole)
                if not self.message.value:
                    self.progress.bar_style = "success" if whole else "warning"
        self._switch(running=False)

    def _switch(self, running: bool) -> None:
        self.running, self.stop_button.disabled = running, not running
        for control in self._waiting:
            control.disabled = running

    def _run_job(self, denoiser: Denoiser, job: Job, label: str, traces: list[Trace]) -> bool:
        """Run one job and add its trace, whole or cut off; return whether it is whole."""
        # Here, because what a control may be set to is decided in the browser too.
        steps, config, whole = [], self._limits.apply(job.config), False
        most, started = self._limits.seconds, time.monotonic()
        if job.after is None:
            prompt_ids = denoiser.encode(job.prompt)
            run = refine(denoiser, prompt_ids, config, draft=job.draft, fixed=job.fixed)
        else:
            prompt_ids, steps = torch.from_numpy(job.after.prompt_ids), [*job.after.steps]
            run = resume(denoiser, job.after, draft=job.draft, fixed=job.fixed)
        before = len(steps)
        self.progress.max, self.progress.value = config.iterations, before
        try:
            for step in run:
                steps.append(step)
                seconds = sum(step.seconds for step in steps[before:])
                rate = f", {(len(steps) - before) / seconds:.1f} a second" if seconds else ""
                self.progress.value = len(steps)
                self.status.value = f"{label}{len(steps)} of {config.iterations} iterations{rate}"
                self._show(make_trace(denoiser, job.prompt, prompt_ids, config, steps[-2:]))
                if self._cancel.is_set():
                    break
                if most is not None and time.monotonic() - started > most:
                    self.status.value = f"ended after {most:g} s, the most that a run may take here"
                    break
            else:
                whole = True
        finally:  # an error too leaves what was done before it
            whole = whole or len(steps) == config.iterations
            if steps:
                trace = make_trace(denoiser, job.prompt, prompt_ids, config, steps)
                traces.append(trace if whole else replace(trace, stopped_early=False))
        return whole

    def _show(self, recent: Trace) -> None:
        """The live view of the last iteration: its phases, each for the length of the pause."""
        for phase in ("denoised", "remasked") if recent.steps[-1].remask.any() else ("denoised",):
            self.screen.show_live(recent, phase)
            if self._cancel.wait(self.pause.value):
                return
