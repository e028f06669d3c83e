"""Stop a run after an iteration, edit its draft, and go on from there.

A token is changed, masked, or pinned, which keeps it to the end. Before, a reader may see which
other states hang on it. The model runs only when a button is pressed.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import ipywidgets as widgets
import numpy as np
import torch

from lad.diffusion.config import RefineConfig
from lad.diffusion.denoiser import Denoiser
from lad.diffusion.resume import check_same_denoiser, next_input
from lad.diffusion.trace import Trace
from lad.evaluation.probes import effects
from lad.models.chat import encode_text, read_vocabulary
from lad.utils import InvalidInput
from lad.viz import html
from lad.viz.attention import moves_html, moves_sentence
from lad.viz.html import escape
from lad.viz.tokens import is_whole, visible
from lad.widgets.controls import COLUMNS, FIELD, SPACED, WIDE, Limits, error_html
from lad.widgets.player import show_page
from lad.widgets.runner import TURN, Explorer, Job, Source
from lad.widgets.sweep import differences

EDIT = "Edit a draft and go on"
BUTTONS = {
    "Change": "write the text over the chosen token and, if it is longer, those after it",
    "Mask": "let the denoiser draw the chosen tokens anew",
    "Pin": "keep the chosen tokens to the end; pressed again, let them change",
    "Undo all": "back to the draft as it was",
    "Which others move?": "hide the chosen token from the denoiser, and compare all states",
}


class DraftEditor:
    """The tokens of a run after one of its iterations, to be changed, masked or pinned.

    `paused` is the run up to there (None: no run), `draft` the next input and `fixed` what is
    pinned in it, `(a,)` each.
    """

    def __init__(self, get: Callable[[], Denoiser], go_on: Callable[[], object]) -> None:
        """`get` returns the denoiser, `go_on` is called when that button is pressed."""
        self._get = get
        self.trace = self.paused = None
        self.after = widgets.IntSlider(0, 0, 0, description="Stop after", **FIELD)
        self.after.tooltip = "the iteration whose draft is edited"
        self.after.continuous_update = False
        self.chosen = widgets.SelectMultiple(description="Tokens", rows=9, **FIELD)
        self.chosen.tooltip = "choose several with Shift or Ctrl"
        self.text = widgets.Text(description="Change to", **FIELD)
        self.buttons = {}
        for name, words in BUTTONS.items():
            self.buttons[name] = widgets.Button(description=name, tooltip=words, layout=WIDE)
            self.buttons[name].on_click(self._press)
        self.go = widgets.Button(description="Go on", icon="step-forward")
        self.go.tooltip = "the iterations that are left, from this draft"
        self.go.on_click(lambda _button: go_on())
        self.message, self.screen, self.moves = (widgets.HTML(layout=WIDE) for _ in range(3))
        self.after.observe(self._stop, "value")
        row = widgets.HBox([*self.buttons.values(), self.go], layout=SPACED)
        tools = widgets.VBox([self.after, self.text, row], layout={"min_width": "0"})
        parts = [widgets.GridBox([self.chosen, tools], layout=COLUMNS)]
        self.widget = widgets.VBox([*parts, self.message, self.screen, self.moves])

    @property
    def is_edited(self) -> bool:
        """Whether the next input or what is pinned is other than it would have been."""
        changed = self.draft != next_input(self.paused)
        return bool(changed.any() or (self.fixed != self._pinned).any())

    def load(self, trace: Trace) -> None:
        """Edit another run: its last draft, if iterations are left."""
        self.trace = replace(trace, vocabulary=dict(trace.vocabulary))  # which editing adds to
        last = len(trace.steps) - 1
        self.after.max = last
        left = trace.config.get("iterations", 0) - len(trace.steps)
        self.after.value = last if left > 0 else last // 2
        self._stop()

    def _stop(self, _change: object = None) -> None:
        """Take up the draft after the iteration of the slider."""
        steps = self.trace.steps[: self.after.value + 1]
        self.paused = replace(self.trace, steps=steps, stopped_early=False)
        self.draft = next_input(self.paused)
        before = steps[-1].fixed
        self._pinned = np.zeros_like(steps[-1].remask) if before is None else before
        self.fixed = self._pinned.copy()
        self.chosen.value = ()
        self._draw()

    def _press(self, button: widgets.Button) -> None:
        self.message.value = self.moves.value = ""
        try:
            if self.paused is None:
                raise InvalidInput("there is no run yet: expected one; press Run first")
            if button.description == "Undo all":
                self._stop()
                return
            chosen = list(self.chosen.value)
            if not chosen:
                raise InvalidInput("no token is chosen: expected at least one of the list")
            actions = [self._change, self._mask, self._pin, None, self._hide]
            dict(zip(BUTTONS, actions, strict=True))[button.description](chosen)
            self._draw()
        except Exception as error:
            self.message.value = error_html(str(error))

    def _change(self, chosen: list[int]) -> None:
        denoiser, first = self._get(), chosen[0]
        check_same_denoiser(denoiser, self.paused)
        token = next_input(self.paused)[first]
        before = self.trace.decode([token, token])[len(self.trace.decode([token])) :]
        space = " " if first and (token == self.trace.mask_token_id or before[:1] == " ") else ""
        typed = self.text.value.strip()
        ids = encode_text(denoiser.tokenizer, space + typed, True) if typed else []
        if not ids or first + len(ids) > len(self.draft):
            raise InvalidInput(
                f"a text of {len(ids)} tokens for position {first}: expected 1 to "
                f"{len(self.draft) - first}, the positions from there on"
            )
        self.draft[first : first + len(ids)] = ids
        known = read_vocabulary(denoiser.tokenizer, ids, ())["vocabulary"]
        self.trace.vocabulary.update(known)
        self._draw()  # the list may have grown
        self.chosen.value = tuple(range(first, first + len(ids)))

    def _mask(self, chosen: list[int]) -> None:
        self.draft[chosen], self.fixed[chosen] = self.trace.mask_token_id, False

    def _pin(self, chosen: list[int]) -> None:
        if (self.draft[chosen] == self.trace.mask_token_id).any():
            raise InvalidInput("a MASK is chosen: expected tokens to pin; change it to one first")
        self.fixed[chosen] = not self.fixed[chosen].all()

    def _hide(self, chosen: list[int]) -> None:
        denoiser, hidden = self._get(), chosen[0]
        check_same_denoiser(denoiser, self.paused)
        last = self.paused.steps[-1].draft
        shown = np.where(self.draft == self.trace.mask_token_id, last, self.draft)
        steps = [replace(self.paused.steps[-1], draft=shown)]
        trace = replace(self.paused, steps=steps)
        prompt, end = len(trace.prompt_ids), max(trace.answer_length(0), hidden) + 1
        tokens = torch.from_numpy(np.concatenate([trace.prompt_ids, shown[:end]]))
        kind, target = denoiser.config.attention, denoiser.config.target
        at = [prompt + hidden]
        if not TURN.acquire(blocking=False):
            raise InvalidInput(
                "another explorer runs: expected none; press again when it has ended"
            )
        try:
            moves = effects(denoiser, tokens.to(denoiser.device), kind, prompt, target, at)[0]
        finally:
            TURN.release()
        moves = moves[prompt:]
        words = f"<p>{escape(moves_sentence(trace, moves, hidden))}</p>"
        self.moves.value = html.page_html(words, moves_html(trace, moves, hidden))

    def _draw(self) -> None:
        """List the tokens with their states, and show the draft as the denoiser will see it."""
        base, chosen = next_input(self.paused), self.chosen.value
        text = np.flatnonzero((self.draft != self.trace.eos_token_id) | self.fixed)
        count = min(max(text, default=0) + 2, len(base))
        self.chosen.options = [(self._name(n, base), n) for n in range(count)]
        self.chosen.value = tuple(n for n in chosen if n < count)
        last = self.paused.steps[-1]
        nothing = np.zeros_like(last.remask)
        number = len(self.paused.steps)
        following = replace(last, iteration=number, inputs=self.draft.copy(), remask=nothing)
        shown = replace(self.paused, steps=[*self.paused.steps, following])
        pinned = int(self.fixed.sum())
        caption = html.caption_html(shown, number, "input")
        note = f"<div>{pinned} pinned.</div>" if pinned else ""
        draft = html.draft_html(shown, number, "input")
        self.screen.value = html.page_html(caption, note, draft, html.legend_html(shown))

    def _name(self, position: int, base: np.ndarray) -> str:
        token = self.draft[position]
        names = {self.trace.mask_token_id: "MASK", self.trace.eos_token_id: "EOS"}
        text = names.get(token) or self.trace.decode([token])
        states = ["changed"] * bool(token != base[position])
        states += ["pinned"] * bool(self.fixed[position])
        return f"{position}: {visible(text.strip() or text)}  {', '.join(states)}".rstrip()


class BranchingExplorer(Explorer):
    """An explorer whose run may be edited and gone on with; `comparison` shows both branches.

    `compared` are the two runs side by side, by name, or none.
    """

    def __init__(self, denoiser: Source, limits: Limits | None, pause: float) -> None:
        super().__init__(denoiser, limits, pause)
        self.comparison = widgets.Output(layout=WIDE)
        self.compared: dict[str, Trace] = {}
        self.editor = DraftEditor(lambda: self._loader.get(), self.go_on)
        self._waiting += [self.editor.go, *self.editor.buttons.values()]

    def _keep(self, trace: Trace) -> None:
        """Show a run that has ended, and let its drafts be edited."""
        self.trace = trace
        self.screen.load(trace)
        self.editor.load(trace)

    def _clear(self) -> None:
        """What belongs to the run that was on show goes."""
        self._show_both({})

    def _show_both(self, runs: dict[str, Trace]) -> None:
        """Show two runs side by side; fewer hide the comparison."""
        self.compared = runs if len(runs) == 2 else {}
        show_page(self.comparison, html.comparison_html(runs) if self.compared else "")

    def _check_limits(self, *configs: RefineConfig) -> None:
        for config in configs:
            if (most := self._limits.apply(config)) != config:
                got, allowed = differences(config, most), differences(most, config)
                raise InvalidInput(f"{got}: expected at most {allowed} on this page")

    def go_on(self) -> None:
        """Go on from the draft in the editor, and show the run beside the one without the edit."""
        self._unless_running(self._branch)

    def _branch(self) -> None:
        editor, old = self.editor, self.trace
        if editor.paused is None:
            raise InvalidInput("there is no run to go on from: expected one; press Run first")
        config, number = RefineConfig.from_dict(old.config), editor.paused.steps[-1].iteration
        self._check_limits(config)
        draft, fixed = torch.from_numpy(editor.draft), torch.from_numpy(editor.fixed)
        job = Job(old.prompt, config, draft, fixed, editor.paused)
        jobs, edited = [job], editor.is_edited
        if edited and not is_whole(old):  # the other branch goes on, too
            jobs.insert(0, Job(old.prompt, config, after=old))

        def done(traces: list[Trace], whole: bool) -> None:
            self._keep(traces[-1])
            if edited and len(traces) == len(jobs):
                runs = {"as it was": [old, *traces][-2]}
                self._show_both(runs | {f"edited after iteration {number}": traces[-1]})

        self._clear()
        self._start(lambda _denoiser: jobs, done)
