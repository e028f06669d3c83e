"""What a left-to-right model cannot do, live: mend a damaged text, fill the gaps of a text.

    RepairExplorer   damage a text by hand or by button, and watch noiseless refinement mend it
    InfillExplorer   words stay where they are, gaps are filled from both sides

The text box is all there is to know: a hidden word is typed `___`, by hand or by button. The model
runs only when Run is pressed.
"""

from __future__ import annotations

from collections.abc import Callable

import ipywidgets as widgets
from ipywidgets import Widget

from lad.diffusion.adapter import load_denoiser
from lad.diffusion.config import PRESETS, RANGES, RefineConfig
from lad.diffusion.denoiser import Denoiser
from lad.diffusion.drafts import GAP, INFILL_PROMPT, REPAIR_PROMPT, Draft, gapped, visible_text
from lad.diffusion.trace import Trace
from lad.utils import InvalidInput, LADError
from lad.viz.word_corruption import ALL_KINDS, corrupt_text
from lad.widgets.controls import ITERATIONS, Limits
from lad.widgets.fields import ROW, WIDE
from lad.widgets.runner import Explorer, Job, Loader, Runner

__all__ = ["InfillExplorer", "RepairExplorer"]

_ROW = ROW | {"grid_gap": "4px 16px"}
_NAMES = {"description_width": "6em"}

EXPLANATIONS = {
    "mask": "hide a word behind ___",
    "swap": "exchange two neighbouring words",
    "duplicate": "write a word over its neighbour",
    "replace": "put another word in a word's place",
    "shift": "copy one to three words to somewhere near, over what stood there",
}


class _TextExplorer(Explorer):
    """A text, perhaps the question it answers, and a run that starts from it."""

    def __init__(
        self,
        denoiser: Denoiser | Callable[[], Denoiser] | None,
        text: str,
        question: str,
        pause: float,
        limits: Limits | None,
    ) -> None:
        self._loader = Loader(denoiser or load_denoiser)
        self._limits = limits or Limits()
        self.trace: Trace | None = None
        self.text = widgets.Textarea(
            value=text, description="Text", rows=2, layout=WIDE, style=_NAMES
        )
        self.question = widgets.Text(
            value=question, description="Answers", layout=WIDE, style=_NAMES,
            placeholder="the question that the text answers, if there is one",
            tooltip="the question that the text answers, if there is one",
        )  # fmt: skip
        self.runner = Runner(self._run, self._limits, pause)
        self.player = self.runner.player
        self.message = self.runner.message

    def _lay_out(self, *rows: Widget) -> widgets.VBox:
        return widgets.VBox(
            [
                self.text,
                self.question,
                *rows,
                self.runner.bar,
                self.message,
                self.player.widget,
            ]
        )

    def _run(self) -> None:
        raise NotImplementedError

    def _start(self, prompt: str, make: Callable[[Denoiser], Draft], config: RefineConfig) -> None:
        def jobs(denoiser: Denoiser) -> list[Job]:
            draft = make(denoiser)
            length, most = len(draft.tokens), self._limits.answer_length
            if length > most:
                raise InvalidInput(
                    f"a text of {length} tokens, its end included: expected at most {most}; "
                    "shorten it"
                )
            own = RefineConfig.from_dict(config.to_dict() | {"answer_length": length})
            return [Job(prompt, self._limits.apply(own), draft.tokens, draft.fixed)]

        def keep(traces: list[Trace], _whole: bool) -> None:
            self.trace = traces[-1]

        self.runner.start(self._loader, jobs, keep)


class RepairExplorer(_TextExplorer):
    """Damage a text, and watch it being mended; nothing is masked between iterations.

    Attributes:
        widget: what a notebook cell shows.
        trace: of the last run, or None.
        text, question, iterations: the controls.
        buttons: kind of damage -> its button; `undo` brings the text back as it was.
        runner, player, message: see `Runner`.
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
        self._before: str | None = None  # the text without the damage done by button
        self._done_to: str | None = None  # and with it, as long as nobody typed
        self.buttons = {
            kind: widgets.Button(
                description=kind, tooltip=EXPLANATIONS[kind], layout={"width": "7em"}
            )
            for kind in ALL_KINDS
        }
        for kind, button in self.buttons.items():
            button.on_click(lambda _button, kind=kind: self._damage(kind))
        self.undo = widgets.Button(
            description="as it was", icon="undo", tooltip="the text without the damage",
            disabled=True, layout={"width": "8em"},
        )  # fmt: skip
        self.undo.on_click(self._restore)
        most = self._limits.iterations
        self.iterations = widgets.SelectionSlider(
            options=[n for n in ITERATIONS if n <= most], value=min(16, most),
            description="Iterations", style=_NAMES, layout={"width": "22em"},
        )  # fmt: skip
        label = widgets.HTML("<strong>Damage it:</strong>")
        self.widget = self._lay_out(
            widgets.HBox([label, *self.buttons.values(), self.undo], layout=_ROW),
            widgets.HBox([self.iterations, self.player.pause], layout=_ROW),
        )

    def _damage(self, kind: str) -> None:
        self.message.value = ""
        text = self.text.value
        if text != self._done_to:  # somebody typed, so this is what to come back to
            self._before = text
        try:
            damaged = corrupt_text(self._limits.check(text), kind, self._seed)
        except LADError as error:
            self.runner.say(str(error))
            return
        self._seed += 1
        self._done_to = self.text.value = damaged
        self.undo.disabled = False

    def _restore(self, _button: object = None) -> None:
        if self._before is not None:
            self.text.value = self._before
        self._done_to, self.undo.disabled = None, True

    def _run(self) -> None:
        text = self._limits.check(self.text.value)
        bare = " ".join(GAP.sub(" ", text).split())
        question = self._limits.check(self.question.value).strip()
        prompt = question or REPAIR_PROMPT.replace("{text}", bare or INFILL_PROMPT)

        def make(denoiser: Denoiser) -> Draft:
            if GAP.search(text):
                return Draft(gapped(denoiser, text).tokens)
            return visible_text(denoiser, text)

        config = RefineConfig(iterations=self.iterations.value, remasking="none")
        self._start(prompt, make, config)


class InfillExplorer(_TextExplorer):
    """A text with gaps: the words around them are fixed, and those to the right are seen too.

    Attributes:
        widget: what a notebook cell shows.
        trace: of the last run, or None.
        text, question, gap, preset: the controls; `gap` is the tokens of a gap written ___.
        runner, player, message: see `Runner`.
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
            value=1,
            min=1,
            max=min(64, self._limits.answer_length),
            description="Tokens a gap",
            style={"description_width": "8em"},
            layout={"width": "16em"},
            tooltip="for ___; [3] is a gap of three tokens",
        )  # fmt: skip
        self.preset = widgets.Dropdown(
            options=list(PRESETS), value="quality", description="Preset", style=_NAMES,
            layout={"width": "18em"},
        )  # fmt: skip
        self.seed = widgets.BoundedIntText(
            value=0, min=RANGES["seed"][0], max=2**31 - 1, description="Seed", style=_NAMES,
            layout={"width": "14em"},
        )  # fmt: skip
        controls = [self.gap, self.preset, self.seed, self.player.pause]
        self.widget = self._lay_out(widgets.HBox(controls, layout=_ROW))

    def _run(self) -> None:
        text = self._limits.check(self.text.value)
        prompt = self._limits.check(self.question.value).strip() or INFILL_PROMPT
        gap = self.gap.value
        values = PRESETS[self.preset.value].to_dict() | {"seed": self.seed.value}
        config = RefineConfig.from_dict(values)
        self._start(prompt, lambda denoiser: gapped(denoiser, text, gap), config)
