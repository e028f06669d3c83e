"""What a left-to-right model cannot do, live: repair a corrupted text, fill the gaps of a text.

A hidden word is typed `___`. The model runs only when Run is pressed.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import ipywidgets as widgets
from ipywidgets import Widget

from lad.diffusion import drafts
from lad.diffusion.config import PRESETS, RefineConfig
from lad.diffusion.denoiser import Denoiser
from lad.diffusion.drafts import GAP, Draft, gapped, visible_text
from lad.diffusion.trace import Trace
from lad.utils import InvalidInput
from lad.viz.word_corruption import corrupt_text
from lad.widgets.branching import EDIT, BranchingExplorer
from lad.widgets.controls import (
    PURPOSES,
    SHORT,
    SPACED,
    WIDE,
    Limits,
    labelled,
    make_control,
    width,
)
from lad.widgets.runner import Job, Source

PLACEHOLDER = "the question that the text answers, if there is one"
Plan = tuple[Callable[[Denoiser], Draft], RefineConfig]
EXPLANATIONS = {
    "mask": "hide a word behind ___",
    "swap": "exchange two neighbouring words",
    "duplicate": "write a word over its neighbour",
    "replace": "put another word in a word's place",
    "shift": "copy one to three words to somewhere near, over what stood there",
}


class _TextExplorer(BranchingExplorer):
    """A text, perhaps the question it answers, and a run that starts from it.

    A subclass has `_make_controls`, which returns them in bars, and `_plan`: for a text the
    function that makes the draft to start from, and the settings.
    """

    TEXT = QUESTION = ""  # what the controls hold at first
    PROMPT = ""  # without a question

    def __init__(
        self,
        denoiser: Source = None,
        text: str | None = None,
        question: str | None = None,
        pause: float = 0.3,
        limits: Limits | None = None,
        recorded: Trace | None = None,
    ) -> None:
        """`recorded` is a run that is on show at first."""
        super().__init__(denoiser, limits, pause)
        if recorded:
            self._keep(recorded)
            self.status.value = "a recorded run"
        traits = {"layout": WIDE, "style": SHORT}
        text = self.TEXT if text is None else text
        self.text = widgets.Textarea(text, description="Text", rows=2, **traits)
        traits |= {"tooltip": PLACEHOLDER, "placeholder": PLACEHOLDER}
        question = self.QUESTION if question is None else question
        traits["style"] = {"description_width": "initial"}
        self.question = widgets.Text(question, description="It answers the question", **traits)
        bars = [widgets.HBox(bar, layout=SPACED) for bar in self._make_controls()]
        shown = [self.bar, self.message, self.screen.widget, self.comparison]
        folded = widgets.Accordion([self.editor.widget], titles=[EDIT])
        self.widget = widgets.VBox([self.text, self.question, *bars, *shown, folded])

    def _start_run(self) -> None:
        text, question = (self._limits.check(one.value) for one in (self.text, self.question))
        prompt, (draft, config) = question.strip() or self.PROMPT, self._plan(text)

        def jobs(denoiser: Denoiser) -> list[Job]:
            start = draft(denoiser)
            length, most = len(start.tokens), self._limits.answer_length
            if length > most:
                got = f"a text of {length} tokens, its end included"
                raise InvalidInput(f"{got}: expected at most {most}; shorten it")
            settings = replace(config, answer_length=length)
            return [Job(prompt, settings, start.tokens, start.fixed)]

        def keep(traces: list[Trace], whole: bool) -> None:
            self._keep(traces[-1])
            if whole and (self.trace.drafts[-1] == self.trace.steps[0].inputs).all():
                self.status.value = drafts.UNCHANGED

        self._clear()
        self._start(jobs, keep)


class RepairExplorer(_TextExplorer):
    """Corrupt a text, and watch it being repaired; nothing is masked between iterations."""

    RECORDED = "repair"
    TEXT = "The capital of of France Paris is."
    QUESTION = "What is the capital of France?"
    PROMPT = drafts.REPAIR_PROMPT

    def _make_controls(self) -> list[list[Widget]]:
        self._seed = 0
        self._original = self.text.value  # before it was corrupted by button
        self._corrupted: str | None = None  # and after, until somebody types
        self.buttons = {}
        for kind, words in EXPLANATIONS.items():
            self.buttons[kind] = widgets.Button(description=kind, tooltip=words, layout=width(7))
            self.buttons[kind].on_click(self._corrupt)
        traits = {"tooltip": "the text before it was corrupted", "layout": width(8)}
        self.undo = widgets.Button(description="undo", icon="undo", disabled=True, **traits)
        self.undo.on_click(self._restore)
        traits = {"style": SHORT, "layout": width(22), "most": self._limits.iterations}
        self.iterations = make_control("iterations", min(16, self._limits.iterations), **traits)
        label = widgets.HTML("<strong>Corrupt it:</strong>")
        return [[label, *self.buttons.values(), self.undo], [self.iterations, self.pause]]

    def _corrupt(self, button: widgets.Button) -> None:
        self.message.value = ""
        text = self.text.value
        if text != self._corrupted:  # somebody typed, so undo comes back to this
            self._original = text
        with self._errors_shown():
            corrupted = corrupt_text(self._limits.check(text), button.description, self._seed)
            self._seed += 1
            self._corrupted = self.text.value = corrupted
            self.undo.disabled = False

    def _restore(self, _button: object = None) -> None:
        self.text.value = self._original
        self._corrupted, self.undo.disabled = None, True

    def _plan(self, text: str) -> Plan:
        def draft(denoiser: Denoiser) -> Draft:
            if GAP.search(text):
                return Draft(gapped(denoiser, text).tokens)  # its words may change too
            return visible_text(denoiser, text)

        return draft, RefineConfig(iterations=self.iterations.value, remasking="none")


class InfillExplorer(_TextExplorer):
    """A text with gaps: the words around them are fixed, and those to the right are seen too."""

    RECORDED = "infill"
    TEXT = "The capital of ___ is Paris, and the capital of ___ is Berlin."
    PROMPT = drafts.INFILL_PROMPT

    def _make_controls(self) -> list[list[Widget]]:
        traits = {"min": 1, "max": min(64, self._limits.answer_length)}
        traits["tooltip"] = r"for ___; [3] is a gap of three tokens, \[3] is text"
        self.gap = labelled(widgets.BoundedIntText, "Gap size", 18, value=1, **traits)
        presets = {"options": PURPOSES, "value": "quality"}
        self.preset = labelled(widgets.Dropdown, "Preset", 29, **presets)
        self.seed = make_control("seed", 0, style=SHORT, layout=width(18))
        return [[self.gap, self.preset, self.seed, self.pause]]

    def _plan(self, text: str) -> Plan:
        gap, config = self.gap.value, replace(PRESETS[self.preset.value], seed=self.seed.value)
        return lambda denoiser: gapped(denoiser, text, gap), config
