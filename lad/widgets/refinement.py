"""Refine an answer live, then play what happened, forwards, backwards and step by step.

    TracePlayer          a recorded trace under a player; needs neither model nor thread
    RefinementExplorer   every control of `RefineConfig`, a run that can be stopped, and a player

The model runs only when Run is pressed, in a thread of its own that looks at an event between two
iterations. Moving a control or scrubbing the player never starts an inference: the trace holds
everything there is to show. All text reaches the page through `lad.view`, which escapes it.
"""

from __future__ import annotations

import threading
from collections.abc import Callable
from dataclasses import replace

import ipywidgets as widgets

from lad.cells import sentence
from lad.denoiser import Denoiser, load_denoiser
from lad.errors import LADError
from lad.sampler import RefineConfig, make_trace, refine
from lad.trace import Step, Trace
from lad.view import answer_html, draft_html, escape, legend_html, page_html
from lad.widgets.fields import LONG, choice, number, slider

__all__ = ["RefinementExplorer", "TracePlayer", "frames"]

SHORTEST_PAUSE = 0.05  # seconds between two frames of the player: faster than that flickers
# Steps of the iterations slider: even ones would crowd the useful numbers at its left end.
ITERATIONS = (1, 2, 3, 4, 6, 8, 12, 16, 24, 32, 48, 64, 96, 128, 192, 256, 384, 512)
WINDOWS = (1, 4, 8, 16, 32, 64, 128, 256, 512, 1024, 2048)
ADDED = (1, 2, 4, 8, 16, 32, 64, 128, 256)
STRATEGIES = (
    ("confidence-guided", "confidence"),
    ("uniform", "uniform"),
    ("below a threshold", "threshold"),
)
# Controls that only some strategies look at.
USED_BY = {
    "noise_start": ("uniform", "confidence"),
    "sharpness": ("uniform", "confidence"),
    "clustering": ("uniform", "confidence"),
    "noise_clipping": ("confidence",),
    "threshold": ("threshold",),
    "window": ("threshold",),
    "permanent": ("uniform", "confidence", "threshold"),
    "redraw": ("uniform", "confidence", "threshold"),
    "repeats": ("uniform", "confidence", "threshold"),
}

_WIDE = {"width": "auto"}
_CENTRED = {"align_items": "center", "grid_gap": "0 12px"}
_ROW = {"flex_flow": "row wrap", "align_items": "center", "grid_gap": "0 16px"}
_SHORT = {"description_width": "5em"}


def frames(trace: Trace) -> list[tuple[int, str]]:
    """What the player steps through: (row, phase); two phases where tokens were masked again."""
    shown = []
    for row in range(len(trace.steps)):
        shown.append((row, "denoised"))
        if trace.renoised[row].any():
            shown.append((row, "renoised"))
    return shown


class TracePlayer:
    """Play, step and scrub a recorded trace.

    Attributes:
        widget: what a notebook cell shows.
        trace: the trace on show, or None.
        slider, play, by_confidence, caption, screen, answer: the parts, for tests and for layouts.
    """

    def __init__(self, trace: Trace | None = None, pause: float = 0.5) -> None:
        """`pause`: seconds between two frames while playing."""
        self.trace: Trace | None = None
        self.play = widgets.Play(value=0, min=0, max=0, tooltip="Play, pause, back to the start")
        self.slider = widgets.IntSlider(
            value=0, min=0, max=0, description="Step", readout=False, style=_SHORT,
            layout={"width": "auto", "flex": "1 1 auto"},
        )  # fmt: skip
        self.by_confidence = widgets.Checkbox(
            value=False, description="colour by confidence", indent=False,
            layout={"width": "13em", "flex": "0 0 auto"},
        )  # fmt: skip
        self.caption = widgets.HTML()
        # High enough for most drafts, or the page below would jump at every frame.
        self.screen = widgets.HTML(layout={"width": "auto", "min_height": "9em"})
        self.answer = widgets.HTML(layout=_WIDE)
        # The browser moves slider and player together, without a way through the kernel.
        self.link = widgets.jslink((self.play, "value"), (self.slider, "value"))
        self.slider.observe(self._draw, "value")
        self.by_confidence.observe(self._draw, "value")
        self.controls = widgets.HBox(
            [self.play, self.slider, self.by_confidence],
            layout=widgets.Layout(align_items="center"),
        )
        self.widget = widgets.VBox([self.controls, self.caption, self.screen, self.answer])
        self.set_pause(pause)
        self.load(trace)

    def set_pause(self, seconds: float) -> None:
        """Time between two frames while playing."""
        self.play.interval = round(1000 * max(seconds, SHORTEST_PAUSE))

    def load(self, trace: Trace | None) -> None:
        """Show a trace, at its last frame; None empties the player."""
        self.trace = trace
        self.play.playing = False
        self._enable(trace is not None)
        if trace is None:
            self.caption.value = self.screen.value = self.answer.value = ""
            return
        last = len(frames(trace)) - 1
        for part in (self.slider, self.play):
            part.max = last
            part.value = last
        self.answer.value = page_html(answer_html(trace))
        self._draw()

    def show_live(self, trace: Trace, phase: str) -> None:
        """Show the last row of an unfinished trace, with the player switched off."""
        self.trace = None
        self._enable(False)
        self.answer.value = ""
        self._show(trace, len(trace.steps) - 1, phase, settled=False)

    def _enable(self, on: bool) -> None:
        self.play.disabled = self.slider.disabled = not on

    def _draw(self, _change=None) -> None:
        trace = self.trace
        if trace is not None:
            row, phase = frames(trace)[self.slider.value]
            # Of a run that was cut off nobody can say what would have stayed.
            whole = len(trace.steps) >= trace.config.get("iterations", 1)
            self._show(trace, row, phase, settled=trace.stopped_early or whole)

    def _show(self, trace: Trace, row: int, phase: str, settled: bool) -> None:
        coloring = "confidence" if self.by_confidence.value else "state"
        after = {"denoised": "After denoising", "renoised": "After noising"}[phase]
        words = escape(sentence(trace, row, settled))
        self.caption.value = f"<div><b>{after}.</b> {words}</div>"
        self.screen.value = page_html(
            draft_html(trace, row, phase, coloring), legend_html(trace, coloring)
        )


class RefinementExplorer:
    """Every control of a refinement, a run to watch or stop, and a player over its trace.

    Attributes:
        widget: what a notebook cell shows.
        trace: the trace of the last run, or None.
        controls: name of a `RefineConfig` field -> its widget; `renoising` is "none" while
            `noiseless` is ticked and else what the dropdown says.
        running: True while a run's thread is at work.
    """

    def __init__(
        self,
        denoiser: Denoiser | Callable[[], Denoiser] | None = None,
        prompt: str = "What is the capital of France?",
        config: RefineConfig | None = None,
        pause: float = 0.0,
    ) -> None:
        """Nothing is loaded or run yet.

        Args:
            denoiser: or a function that loads it at the first run; the default model when None.
            prompt, config, pause: what the controls say at first; pause in seconds a frame.
        """
        self._denoiser = None if callable(denoiser) else denoiser
        self._load = denoiser if callable(denoiser) else load_denoiser
        self._lock = threading.Lock()
        self._cancel = threading.Event()
        self._thread: threading.Thread | None = None
        self.running = False
        self.trace: Trace | None = None
        self._config = config or RefineConfig()  # for the fields that have no control
        self._build(prompt, self._config, pause)

    # -- controls ------------------------------------------------------------------------------

    def _build(self, prompt: str, config: RefineConfig, pause: float) -> None:
        self.prompt = widgets.Textarea(
            value=prompt, description="Prompt", rows=2, layout=_WIDE, style=_SHORT
        )
        self.noiseless = widgets.Checkbox(
            value=config.renoising == "none", description="disable intermediate noising",
            indent=False, layout={"width": "17em"},
        )  # fmt: skip
        self.pause = widgets.FloatSlider(
            value=pause, min=0, max=5, step=0.05, description="Pause (s)", style=_SHORT,
            layout={"width": "18em"},
        )  # fmt: skip
        self.controls = {
            "iterations": widgets.SelectionSlider(
                options=sorted({*ITERATIONS, config.iterations}), value=config.iterations,
                description="Iterations", style=_SHORT, layout={"width": "20em"},
            ),
            "renoising": widgets.Dropdown(
                options=STRATEGIES,
                value="confidence" if config.renoising == "none" else config.renoising,
                description="Positions to mask", style=LONG, layout=_WIDE,
            ),
            "noise_start": slider(config, "noise_start", "Noise start", 0.05),
            "sharpness": slider(config, "sharpness", "Sharpness", 0.1, low=0.1),
            "noise_clipping": slider(config, "noise_clipping", "Noise clipping", 0.01),
            "clustering": slider(config, "clustering", "Clustering", 0.05),
            "threshold": slider(config, "threshold", "Threshold", 0.01),
            "window": choice(config, "window", "Window", WINDOWS),
            "permanent": widgets.Checkbox(
                value=config.permanent, description="permanent unmasking", indent=False,
                layout=_WIDE,
            ),
            "redraw": widgets.Checkbox(
                value=config.redraw, description="draw shown tokens anew", indent=False,
                layout=_WIDE,
            ),
            "added_tokens": choice(config, "added_tokens", "Added tokens", ADDED),
            "tail": choice(config, "tail", "EOS tail kept", WINDOWS),
            "repeats": widgets.Dropdown(
                options=[("leave them", "allow"), ("mask one again", "remask")],
                value=config.repeats, description="Repeated tokens", style=LONG, layout=_WIDE,
            ),
            "temperature": slider(config, "temperature", "Temperature", 0.05),
            "top_k": number(config, "top_k", "Top-k"),
            "top_p": slider(config, "top_p", "Top-p", 0.01),
            "eos_bias": slider(config, "eos_bias", "EOS bias", 0.1),
            "answer_length": number(config, "answer_length", "Answer length"),
            "patience": number(config, "patience", "Patience (0: go on)"),
            "seed": number(config, "seed", "Seed"),
        }  # fmt: skip
        self.run_button = widgets.Button(description="Run", button_style="primary", icon="play")
        self.stop_button = widgets.Button(description="Stop", icon="stop", disabled=True)
        self.progress = widgets.IntProgress(
            value=0, min=0, max=1, description="", layout={"width": "12em"}
        )
        self.status = widgets.HTML()
        self.message = widgets.HTML(layout=_WIDE)
        self.player = TracePlayer(pause=pause)

        self.run_button.on_click(self.run)
        self.stop_button.on_click(self.stop)
        self.pause.observe(lambda change: self.player.set_pause(change["new"]), "value")
        for control in (self.noiseless, self.controls["renoising"], self.controls["temperature"]):
            control.observe(self._grey_out, "value")
        self._grey_out()

        rest = [control for name, control in self.controls.items() if name != "iterations"]
        grid = widgets.GridBox(
            rest,
            layout={
                "grid_template_columns": "repeat(auto-fit, minmax(22em, 1fr))",
                "grid_gap": "2px 24px",
            },
        )
        every = widgets.Accordion(children=[grid], titles=["All controls"], selected_index=None)
        first = widgets.HBox([self.controls["iterations"], self.noiseless, self.pause], layout=_ROW)
        buttons = [self.run_button, self.stop_button, self.progress, self.status]
        self.widget = widgets.VBox(
            [
                self.prompt,
                first,
                every,
                widgets.HBox(buttons, layout=_ROW),
                self.message,
                self.player.widget,
            ]
        )

    def _grey_out(self, _change=None) -> None:
        """Switch off what would have no effect."""
        renoising = "none" if self.noiseless.value else self.controls["renoising"].value
        self.controls["renoising"].disabled = self.noiseless.value
        for name, strategies in USED_BY.items():
            self.controls[name].disabled = renoising not in strategies
        for name in ("top_k", "top_p"):
            self.controls[name].disabled = self.controls["temperature"].value == 0

    @property
    def config(self) -> RefineConfig:
        """What the controls say.

        Raises:
            InvalidInput: a value outside its range.
        """
        values = {name: control.value for name, control in self.controls.items()}
        if self.noiseless.value:
            values["renoising"] = "none"
        return replace(self._config, **values)

    # -- running -------------------------------------------------------------------------------

    def run(self, _button=None) -> None:
        """Start a run and return at once; while one is at work this does nothing."""
        with self._lock:
            if self.running:
                return
            self.running = True
            self._cancel = threading.Event()
        self.run_button.disabled, self.stop_button.disabled = True, False
        self.message.value = self.status.value = ""
        self.progress.value, self.progress.bar_style = 0, ""
        try:
            work = (self.prompt.value, self.config, self._cancel)
        except LADError as error:
            self._fail(str(error))
            self._finish()
            return
        self._thread = threading.Thread(target=self._work, args=work, daemon=True)
        self._thread.start()

    def stop(self, _button=None) -> None:
        """Ask the run to end after the iteration it is in; what it has done stays on show."""
        if self.running:
            self.stop_button.disabled = True
            self._cancel.set()

    def wait(self, timeout: float | None = None) -> bool:
        """Wait for the run to end; False if it has not within `timeout` seconds."""
        if self._thread is not None:
            self._thread.join(timeout)
        return not self.running

    def close(self) -> None:
        """End the run, if any, and take the widgets off the page."""
        self.stop()
        self.wait()
        self.widget.close()

    def _work(self, prompt: str, config: RefineConfig, cancel: threading.Event) -> None:
        steps: list[Step] = []
        finish = None
        try:
            if self._denoiser is None:
                self.status.value = "Loading the model …"
                self._denoiser = self._load()
            denoiser = self._denoiser
            prompt_ids = denoiser.encode(prompt)
            finish = lambda some: make_trace(denoiser, prompt, prompt_ids, config, some)  # noqa: E731
            self.progress.max = config.iterations
            for step in refine(denoiser, prompt_ids, config):
                steps.append(step)
                self._show_step(finish(steps[-2:]), steps, config, cancel)
                if cancel.is_set():
                    break
        except LADError as error:
            self._fail(str(error))
        except Exception as error:
            self._fail(f"Unexpected {type(error).__name__}: {error}")
        finally:
            try:
                if steps and finish is not None:
                    self._keep(finish(steps), cancel)
            except Exception as error:  # a thread's traceback would be seen by nobody
                self._fail(f"Unexpected {type(error).__name__}: {error}")
            self._finish()

    def _show_step(
        self, recent: Trace, steps: list[Step], config: RefineConfig, cancel: threading.Event
    ) -> None:
        """The live view of one iteration: its phases, each for the length of the pause."""
        self.progress.value = len(steps)
        seconds = sum(step.seconds for step in steps)
        rate = f", {len(steps) / seconds:.1f} iterations a second" if seconds else ""
        self.status.value = f"iteration {len(steps)} of {config.iterations}{rate}"
        phases = ("denoised", "renoised") if steps[-1].renoised.any() else ("denoised",)
        for phase in phases:
            self.player.show_live(recent, phase)
            if cancel.wait(self.pause.value):
                return

    def _keep(self, trace: Trace, cancel: threading.Event) -> None:
        ran, planned = len(trace.steps), trace.config["iterations"]
        failed = bool(self.message.value)
        if failed or (cancel.is_set() and ran < planned):
            # Cut off from outside: the draft did not stand still, as "stopped early" would claim.
            trace = replace(trace, stopped_early=False)
        self.trace = trace
        self.player.load(trace)
        if not failed:
            self.progress.bar_style = "warning" if cancel.is_set() and ran < planned else "success"

    def _fail(self, text: str) -> None:
        self.progress.bar_style = "danger"
        self.message.value = f'<div role="alert"><b>Error:</b> {escape(text)}</div>'

    def _finish(self) -> None:
        self.run_button.disabled, self.stop_button.disabled = False, True
        with self._lock:
            self.running = False
