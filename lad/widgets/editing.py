"""What a left-to-right model cannot do, live: repair a corrupted text, fill the gaps of a text.

    RepairExplorer   corrupt a text by hand or by button, and watch noiseless refinement repair it
    InfillExplorer   words stay where they are, gaps are filled from both sides

A hidden word is typed `___`, by hand or by button. The model runs only when Run is pressed.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import ipywidgets as widgets
from ipywidgets import Widget

from lad.diffusion.adapter import load_denoiser
from lad.diffusion.config import PRESETS, RefineConfig
from lad.diffusion.denoiser import Denoiser
from lad.diffusion.drafts import GAP, INFILL_PROMPT, REPAIR_PROMPT, Draft, gapped, visible_text
from lad.diffusion.trace import Trace
from lad.utils import InvalidInput, LADError
from lad.viz.word_corruption import ALL_KINDS, corrupt_text
from lad.widgets.controls import ROW, SETTINGS, SHORT, WIDE, Limits, make_control
from lad.widgets.runner import Explorer, Job, Loader

SPACED = ROW | {"grid_gap": "4px 16px"}
NARROW = {"width": "18em"}
QUESTION = "the question that the text answers, if there is one"
EXPLANATIONS = {
    "mask": "hide a word behind ___",
    "swap": "exchange two neighbouring words",
    "duplicate": "write a word over its neighbour",
    "replace": "put another word in a word's place",
    "shift": "copy one to three words to somewhere near, over what stood there",
}


class _TextExplorer(Explorer):
    """A text, perhaps the question it answers, and a run that starts from it.

    Attributes (and those of `lad.widgets.runner.Explorer`):
        text, question: the controls that both explorers have.
    """

    def __init__(
        self,
        denoiser: Denoiser | Callable[[], Denoiser] | None,
        text: str,
        question: str,
        pause: float,
        limits: Limits | None,
    ) -> None:
        super().__init__(limits, pause)
        self._loader = Loader(denoiser or load_denoiser)
        self.text = widgets.Textarea(
            value=text, description="Text", rows=2, layout=WIDE, style=SHORT
        )
        self.question = widgets.Text(
            value=question, description="Answers", layout=WIDE, style=SHORT,
            placeholder=QUESTION, tooltip=QUESTION,
        )  # fmt: skip

    def _lay_out(self, *bars: list[Widget]) -> None:
        boxes = [widgets.HBox(bar, layout=SPACED) for bar in bars]
        self.widget = widgets.VBox(
            [self.text, self.question, *boxes, self.bar, self.message, self.player.widget]
        )

    def _start_from(
        self, prompt: str, draft: Callable[[Denoiser], Draft], config: RefineConfig
    ) -> None:
        def jobs(denoiser: Denoiser) -> list[Job]:
            start = draft(denoiser)
            length, most = len(start.tokens), self._limits.answer_length
            if length > most:
                raise InvalidInput(
                    f"a text of {length} tokens, its end included: expected at most {most}; "
                    "shorten it"
                )
            settings = self._limits.apply(replace(config, answer_length=length))
            return [Job(prompt, settings, start.tokens, start.fixed)]

        def keep(traces: list[Trace], _whole: bool) -> None:
            self.trace = traces[-1]

        self._start(self._loader, jobs, keep)


class RepairExplorer(_TextExplorer):
    """Corrupt a text, and watch it being repaired; nothing is masked between iterations.

    Attributes (and those of `lad.widgets.runner.Explorer`):
        text, question, iterations: the controls.
        buttons: kind of corruption -> its button; `undo` restores the text from before them.
    """

    def __init__(
        self,
        denoiser: Denoiser | Callable[[], Denoiser] | None = None,
        text: str = "The capital of of France Paris is.",
        question: str = "What is the capital of France?",
        pause: float = 0.3,
        limits: Limits | None = None,
    ) -> None:
        """Nothing is loaded or run yet; see `RefinementExplorer` for the arguments."""
        super().__init__(denoiser, text, question, pause, limits)
        self._seed = 0
        self._original: str | None = None  # the text before it was corrupted by button
        self._corrupted: str | None = None  # and after, until somebody types
        self.buttons = {
            kind: widgets.Button(
                description=kind, tooltip=EXPLANATIONS[kind], layout={"width": "7em"}
            )
            for kind in ALL_KINDS
        }
        for kind, button in self.buttons.items():
            button.on_click(lambda _button, kind=kind: self._corrupt(kind))
        self.undo = widgets.Button(
            description="undo", icon="undo", tooltip="the text before it was corrupted",
            disabled=True, layout={"width": "8em"},
        )  # fmt: skip
        self.undo.on_click(self._restore)
        most = self._limits.iterations
        self.iterations = make_control(
            SETTINGS["iterations"], min(16, most), most, style=SHORT, layout={"width": "22em"}
        )
        label = widgets.HTML("<strong>Corrupt it:</strong>")
        self._lay_out([label, *self.buttons.values(), self.undo], [self.iterations, self.pause])

    def _corrupt(self, kind: str) -> None:
        self.message.value = ""
        text = self.text.value
        if text != self._corrupted:  # somebody typed, so undo comes back to this
            self._original = text
        try:
            corrupted = corrupt_text(self._limits.check(text), kind, self._seed)
        except LADError as error:
            self.show_error(error)
            return
        self._seed += 1
        self._corrupted = self.text.value = corrupted
        self.undo.disabled = False

    def _restore(self, _button: object = None) -> None:
        if self._original is not None:
            self.text.value = self._original
        self._corrupted, self.undo.disabled = None, True

    def _start_run(self) -> None:
        text = self._limits.check(self.text.value)
        words = " ".join(GAP.sub(" ", text).split())
        question = self._limits.check(self.question.value).strip()
        prompt = question or REPAIR_PROMPT.replace("{text}", words or INFILL_PROMPT)

        def draft(denoiser: Denoiser) -> Draft:
            if GAP.search(text):
                return Draft(gapped(denoiser, text).tokens)  # its words may change too
            return visible_text(denoiser, text)

        config = RefineConfig(iterations=self.iterations.value, remasking="none")
        self._start_from(prompt, draft, config)


class InfillExplorer(_TextExplorer):
    """A text with gaps: the words around them are fixed, and those to the right are seen too.

    Attributes (and those of `lad.widgets.runner.Explorer`):
        text, question, gap, preset, seed: the controls; `gap` is the tokens of a gap written ___.
    """

    def __init__(
        self,
        denoiser: Denoiser | Callable[[], Denoiser] | None = None,
        text: str = "The capital of ___ is Paris, and the capital of ___ is Berlin.",
        question: str = "",
        pause: float = 0.3,
        limits: Limits | None = None,
    ) -> None:
        """Nothing is loaded or run yet; see `RefinementExplorer` for the arguments."""
        super().__init__(denoiser, text, question, pause, limits)
        self.gap = widgets.BoundedIntText(
            value=1, min=1, max=min(64, self._limits.answer_length), description="Tokens a gap",
            style=SHORT, layout=NARROW, tooltip="for ___; [3] is a gap of three tokens",
        )  # fmt: skip
        self.preset = widgets.Dropdown(
            options=list(PRESETS), value="quality", description="Preset", style=SHORT,
            layout=NARROW,
        )  # fmt: skip
        self.seed = make_control(SETTINGS["seed"], 0, style=SHORT, layout=NARROW)
        self._lay_out([self.gap, self.preset, self.seed, self.pause])

    def _start_run(self) -> None:
        text, gap = self._limits.check(self.text.value), self.gap.value
        prompt = self._limits.check(self.question.value).strip() or INFILL_PROMPT
        config = replace(PRESETS[self.preset.value], seed=self.seed.value)
        self._start_from(prompt, lambda denoiser: gapped(denoiser, text, gap), config)
