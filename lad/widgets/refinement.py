"""Refine an answer live, then play what happened, and compare it with another run.

The model runs only when Run or Compare is pressed. Moving a control or scrubbing the player never
starts an inference.
"""

from __future__ import annotations

import base64
from collections.abc import Callable, Mapping
from dataclasses import replace

import ipywidgets as widgets

from lad.diffusion.config import PRESETS, RefineConfig
from lad.diffusion.trace import Trace
from lad.diffusion.trace_file import from_lines
from lad.models.chat import Prompt
from lad.utils import InvalidInput, damaged_file
from lad.viz.export import as_text
from lad.viz.html import answer_html, escape, page_html, prompt_html
from lad.widgets.branching import EDIT, BranchingExplorer
from lad.widgets.controls import (
    PURPOSES,
    SHORT,
    SPACED,
    WIDE,
    Controls,
    Limits,
    examples,
    labelled,
)
from lad.widgets.recorded import PROMPTS
from lad.widgets.runner import Job, Source
from lad.widgets.sharing import DEFAULT_MODEL, DEMO, Sharing
from lad.widgets.sweep import Sweep, differences

MOST_BYTES = 20_000_000  # of a trace that is loaded
SHOWN = "the run on show"
FILES = {  # what a run is saved as: suffix and type
    "a trace": (".jsonl", "application/jsonl"),
    "a page": (".html", "text/html"),
    "an animation": (".svg", "image/svg+xml"),
}
VARIATIONS = {
    "with or without re-masking": "remasking",
    "the next seed": "seed",
    SHOWN: SHOWN,
    **PURPOSES,
}


def variation(config: RefineConfig, kind: str) -> tuple[str, RefineConfig]:
    """A name for, and the settings of, a run to compare one of these settings with.

    `kind` is "remasking" (noiseless for a run that masks again, and the other way round), "seed"
    (the next one, at temperature 1 if the run was greedy) or a preset's name.
    """
    if kind == "remasking":
        if config.remasking != "none":
            return "without re-masking", replace(config, remasking="none")
        start = RefineConfig()
        noise = {"noise_start": start.noise_start, "sharpness": start.sharpness}
        return "with re-masking", replace(config, remasking=start.remasking, **noise)
    if kind == "seed":
        temperature = config.temperature or 1.0
        changed = replace(config, seed=config.seed + 1, temperature=temperature)
        return f"seed {changed.seed}, temperature {temperature:g}", changed
    return f"preset {kind}", replace(PRESETS[kind], seed=config.seed)


class RefinementExplorer(BranchingExplorer):
    """Every control of a refinement, a run to watch or stop, and a player over its trace.

    `earlier` are the turns so far, as chat messages: part of the prompt while `turns` is ticked.
    """

    RECORDED = "refine"

    def __init__(
        self,
        denoiser: Source = None,
        prompt: str = "What is the capital of France?",
        config: RefineConfig | None = None,
        pause: float = 0.0,
        *,
        model: str = DEFAULT_MODEL,
        gallery: Mapping[str, Trace] | None = None,
        limits: Limits | None = None,
        demo: str = DEMO,
    ) -> None:
        """Nothing is loaded or run yet; what is given is what the controls say at first.

        Args:
            denoiser: see `Source`.
            pause: seconds a frame.
            model: its name, of a denoiser that is not loaded yet.
            gallery: recorded runs; the first, of this prompt if there is one, is on show.
            limits: of a run, for pages that strangers visit.
            demo: the address of the demo page, for links to it.
        """
        super().__init__(denoiser, limits, pause)
        if loaded := self._loader.denoiser:
            model = loaded.backbone.spec.name
        self.earlier: list[dict[str, str]] = []
        self.settings = Controls(config, self._limits)
        self.controls, self.noiseless = self.settings.controls, self.settings.noiseless
        self.preset = self.settings.preset
        self.prompt = widgets.Textarea(
            value=prompt, description="Prompt", rows=2, layout=WIDE, style=SHORT
        )
        self.model = labelled(widgets.Text, "Model", 18, value=model, disabled=True)
        words = "multi-turn: remember questions and answers"
        self.turns = labelled(widgets.Checkbox, words, 30, indent=False)
        self.talk = widgets.HTML(layout=WIDE)
        self.compare_with = labelled(widgets.Dropdown, "Beside it", 29, options=VARIATIONS)
        words = "run this prompt with the settings above and with others, side by side"
        self.compare_button = widgets.Button(description="Compare", icon="columns", tooltip=words)
        words = "a .jsonl file that was saved here or by lad refine --trace"
        self.upload = widgets.FileUpload(accept=".jsonl", description="Load a trace", tooltip=words)
        self.save_as = labelled(widgets.Dropdown, "Save as", 20, options=FILES)
        self.save_as.observe(self._offer, "value")
        self.download = widgets.HTML()
        self.gallery = dict(gallery or {})
        names = [("choose a recorded run", ""), *((name, name) for name in self.gallery)]
        self.recorded = labelled(widgets.Dropdown, "Gallery", 34, options=names)
        self.recorded.disabled = not gallery
        self.sweep = Sweep(lambda: self.settings.config, self.sweep_setting)
        self._waiting += [self.compare_button, self.upload, self.sweep.button]
        self._waiting += [self.recorded] if gallery else []
        self.compare_button.on_click(self.compare)
        self.upload.observe(self._load_file, "value")
        self.recorded.observe(self._load_recorded, "value")
        self.turns.observe(lambda _change: self._remember([]), "value")
        self.sharing = Sharing(self.prompt, self.settings, self.model, demo)
        own = [name for name, run in self.gallery.items() if run.prompt == prompt]
        self.recorded.value = next(iter([*own, *self.gallery]), "")
        first = [self.preset, self.controls["iterations"], self.noiseless, self.pause]
        files = [self.recorded, self.upload, self.save_as, self.download]
        bars = (first, [self.model, self.turns], [self.compare_with, self.compare_button], files)
        basics, model, compare, files = (widgets.HBox(bar, layout=SPACED) for bar in bars)
        self.examples = examples(self.prompt, PROMPTS)
        question = [self.prompt, self.examples, basics, self.settings.folded, model, self.talk]
        folded = [self.editor.widget, self.sweep.widget]
        folded = widgets.Accordion(folded, titles=[EDIT, "Sweep one setting"])
        answer = [self.bar, self.message, self.screen.widget]
        more = [compare, self.comparison, folded, files, self.sharing.widget]
        self.widget = widgets.VBox(question + answer + more)

    def _chat(self) -> Prompt:
        text = self._limits.check(self.prompt.value)
        if not (self.turns.value and self.earlier):
            return text
        return [*self.earlier, {"role": "user", "content": text}]

    def _start_run(
        self,
        runs: Mapping[str, RefineConfig] | None = None,
        show: Callable[[dict[str, Trace]], object] | None = None,
    ) -> None:
        """Run the prompt with the settings shown, or with those given, by name, and `show` them."""
        prompt, text = self._chat(), self.prompt.value
        runs = runs or {"": self.settings.config}
        jobs = [Job(prompt, config) for config in runs.values()]

        def done(traces: list[Trace], whole: bool) -> None:
            self._keep(traces[0])
            if show:
                show(dict(zip(runs, traces, strict=False)))
            elif self.turns.value and whole:
                question = {"role": "user", "content": text}
                answer = {"role": "assistant", "content": traces[0].answer or "…"}
                self._remember([*self.earlier, question, answer])

        self._clear()
        self._start(lambda _denoiser: jobs, done)

    def _clear(self) -> None:
        super()._clear()
        self.recorded.value = ""
        self.sweep.clear()

    def _remember(self, earlier: list[dict[str, str]]) -> None:
        self.earlier = earlier
        words = f"{len(earlier) // 2} earlier turn(s) remembered; untick to forget."
        self.talk.value = words if earlier else ""

    def compare(self, _button: object = None) -> None:
        """Run the prompt with the settings shown and with a variation, side by side.

        The run on show may be the other one; it answers the same prompt.
        """
        self._unless_running(self._compare)

    def _compare(self) -> None:
        here, shown, text = self.settings.config, self.trace, self.prompt.value
        if self.compare_with.value != SHOWN:
            name, other = variation(here, self.compare_with.value)
            self._start_run({"these settings": here, name: other}, self._show_both)
            return
        if shown is None or shown.prompt != text:
            got = "there is no run on show" if shown is None else "the run on show answers another"
            raise InvalidInput(f"{got}: expected one of this prompt; press Run first")
        then = RefineConfig.from_dict(shown.config)
        names = f"before: {differences(then, here)}", f"now: {differences(here, then)}"
        both = dict.fromkeys(names, shown)
        self._start_run({names[1]: here}, lambda run: self._show_both(both | run))

    def sweep_setting(self) -> None:
        """Run the prompt once for each value of one setting, and show the runs together."""

        def start() -> None:
            runs = self.sweep.runs()
            self._check_limits(*runs.values())
            self._start_run(runs, self.sweep.show)

        self._unless_running(start)

    def _keep(self, trace: Trace) -> None:
        super()._keep(trace)
        self._offer()  # as a file that the browser saves

    def _offer(self, _change: object = None) -> None:
        if self.trace is None:
            return
        suffix, kind = self.save_as.value
        data = as_text(self.trace, suffix).encode()
        link = base64.b64encode(data).decode("ascii")
        self.download.value = (
            f'<a download="lad-run{suffix}" style="text-decoration: underline" href="data:{kind};'
            f'base64,{link}">Save this run</a> ({len(data) / 1000:,.0f} kB)'
        )

    def _load(self, trace: Trace, words: str) -> None:
        """Show a run that was not made here."""
        self._show_both({})
        self._keep(trace)
        self.message.value, self.status.value = "", words
        self.progress.value, self.progress.bar_style = 0, ""

    def _load_recorded(self, _change: object = None) -> None:
        if self.recorded.value:
            self._load(self.gallery[self.recorded.value], "a recorded run")

    def _load_file(self, _change: object = None) -> None:
        if not self.upload.value:
            return
        file = self.upload.value[0]
        with self._errors_shown():
            trace = read_trace(file["name"], bytes(file["content"]))
            self.recorded.value = ""
            self._load(trace, f"the run in {escape(file['name'])}")
        self.upload.value = ()  # so that the same file can be chosen again


def read_trace(name: str, data: bytes) -> Trace:
    """A trace from the bytes of a file; raises InvalidInput (too large) or DamagedFile."""
    if len(data) > MOST_BYTES:
        expected = f"expected a trace of at most {MOST_BYTES:,}"
        raise InvalidInput(f"{name} has {len(data):,} bytes: {expected}")
    with damaged_file(name, "expected a trace that was saved here or by `lad refine --trace`"):
        trace = from_lines(data.decode("utf-8").removesuffix("\n").split("\n"))
        # Drawing it once finds what reading does not check.
        page_html(prompt_html(trace), answer_html(trace))
    return trace
