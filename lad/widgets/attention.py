"""Explorer of the attention: pick a mask, hide a token, see which states move.

Dragging never runs a model. For one mask the effect of hiding each token in turn is measured once,
in a thread, and kept; the slider over the hidden token then only picks a row of what was measured.
"""

from __future__ import annotations

import contextlib
import threading

import ipywidgets as widgets
import numpy as np
import torch

from lad.diffusion.config import TARGETS
from lad.diffusion.denoiser import Denoiser
from lad.evaluation.probes import KINDS_OF_ATTENTION, effects, visible
from lad.models.registry import load_backbone
from lad.utils import InvalidInput, LADError
from lad.viz.attention import attention_explorer, effect_sentence
from lad.viz.html import escape
from lad.viz.style import show
from lad.widgets.controls import FIELD, FULL, MEDIUM, ROW, error_html

INDIFFERENT = ("causal", "bidirectional")  # to where the prompt ends, and to the target
MOST_TOKENS = 24  # more squares than this cannot be told apart
TARGET_WORDS = {
    "same": "same: a state predicts its own token",
    "next": "next: a state predicts the token after it",
}


class AttentionExplorer:
    """The attention masks at work on a short text.

    Attributes:
        widget: what a notebook cell shows.
        kind, target, prompt_length, hidden: the controls.
        image, caption, message, progress: what is shown.
        tokens: the text's tokens, as text.
    """

    def __init__(
        self, denoiser: Denoiser | None = None, text: str | None = None, prompt_length: int = 4
    ) -> None:
        """Measures two masks before it returns: causal and the denoiser's.

        Args:
            denoiser: whose states to measure; by default a random model of two layers, in which
                masks act as in any other. While a mask is being measured nothing else may switch
                its adapter off.
            text: of 3 to 24 tokens, without a chat template.
            prompt_length: how many of its tokens count as the prompt at first.
        """
        self._denoiser = denoiser or Denoiser.create(load_backbone("tiny"))
        tokenizer = self._denoiser.tokenizer
        if text is None:  # the random model reads bytes: a short text is then long enough
            text = "ask:reply" if denoiser is None else "What is the capital? It is Paris."
        ids = tokenizer(text, add_special_tokens=False)["input_ids"]
        if not 3 <= len(ids) <= MOST_TOKENS:
            raise InvalidInput(f"text of {len(ids)} tokens: expected 3 to {MOST_TOKENS}")
        self._ids = torch.tensor(ids, device=self._denoiser.device)
        self.tokens = [tokenizer.decode([i]) for i in ids]
        self._measured: dict[tuple, np.ndarray] = {}
        self._lock = threading.Lock()
        self._wanted: tuple | None = None  # what the thread measures next
        self._busy = False
        self._thread: threading.Thread | None = None
        self._build(min(prompt_length, len(ids) - 1))
        for kind in ("causal", self.kind.value):
            self._measure(self._key(kind))
        self._draw()

    def _build(self, prompt_length: int) -> None:
        last = len(self.tokens) - 1
        config = self._denoiser.config
        self.kind = widgets.ToggleButtons(
            options=KINDS_OF_ATTENTION, value=config.attention, description="Attention",
            style={**MEDIUM, "button_width": "9em"},
        )  # fmt: skip
        self.target = widgets.Dropdown(
            options=[(TARGET_WORDS[target], target) for target in TARGETS], value=config.target,
            description="Target", style=MEDIUM, layout={"width": "34em"},
        )  # fmt: skip
        # This starts a measurement: only when the slider is let go.
        self.prompt_length = widgets.IntSlider(
            value=prompt_length, min=1, max=last, description="Prompt (tokens)",
            continuous_update=False, style=MEDIUM, layout=FIELD,
        )  # fmt: skip
        self.hidden = widgets.IntSlider(
            value=last, min=0, max=last, description="Hide token", style=MEDIUM, layout=FIELD
        )
        self.image = widgets.HTML(layout=FULL)  # an Image widget has no alternative text
        self.caption = widgets.HTML(layout=FULL)
        self.message = widgets.HTML(layout=FULL)
        self.progress = widgets.IntProgress(
            value=last + 1, min=0, max=last + 1, description="Measured", style=MEDIUM
        )
        for control in (self.kind, self.target, self.prompt_length):
            control.observe(self._choose, "value")
        self.hidden.observe(self._draw, "value")
        first = widgets.HBox([self.target, self.prompt_length], layout=ROW)
        second = widgets.HBox([self.hidden, self.progress], layout=ROW)
        self.widget = widgets.VBox(
            [self.kind, first, second, self.message, self.image, self.caption], layout=FULL
        )
        self.target.disabled = self.kind.value in INDIFFERENT

    def _key(self, kind: str | None = None) -> tuple:
        """What the effect depends on: mask, and for some the prompt length and the target."""
        kind = kind or self.kind.value
        if kind in INDIFFERENT:
            return (kind, 1, "next")
        return (kind, self.prompt_length.value, self.target.value)

    def _measure(self, key: tuple) -> None:
        def progress(done: int) -> None:
            self.progress.value = done
            if self._wanted not in (None, key):
                raise _Outdated

        self._measured[key] = effects(self._denoiser, self._ids, *key, progress=progress)
        self.progress.value = self.progress.max

    def _choose(self, _change: object = None) -> None:
        """Show the mask that was picked, or start to measure it."""
        self.target.disabled = self.kind.value in INDIFFERENT
        self.message.value = ""
        with self._lock:
            self._wanted = key = self._key()
            if key not in self._measured and not self._busy:
                self._busy = True
                self._thread = threading.Thread(target=self._work, daemon=True)
                self._thread.start()
        self._draw()

    def _work(self) -> None:
        """Measure what is wanted until it is there; another choice ends what was begun."""
        try:
            while (key := self._next()) is not None:
                with contextlib.suppress(_Outdated):
                    self._measure(key)
            self._draw()
        except Exception as error:  # a traceback of a thread would not reach the page
            self._busy = False
            name = "" if isinstance(error, LADError) else f"{type(error).__name__}: "
            self.caption.value = ""
            self.message.value = error_html(name + str(error))

    def _next(self) -> tuple | None:
        with self._lock:
            if self._wanted in self._measured:
                self._busy = False
                return None
            return self._wanted

    def wait(self, timeout: float | None = None) -> bool:
        """Wait until the chosen mask is measured; False if not within `timeout` seconds."""
        if self._thread is not None:
            self._thread.join(timeout)
        return not self._busy

    def _draw(self, _change: object = None) -> None:
        moves = self._measured.get(self._key())
        if moves is None:
            self.caption.value = "Measuring …"
            return
        kind, p, hidden = self.kind.value, self.prompt_length.value, self.hidden.value
        mask = visible(kind, p, len(self.tokens), self.target.value, [hidden])
        words = effect_sentence(kind, moves[hidden], self.tokens, p, hidden)
        figure = attention_explorer(mask, moves[hidden], self.tokens, p, hidden)
        self.image.value = show(figure, words).html
        self.caption.value = f"<p>{escape(words)}</p>"


class _Outdated(Exception):
    """Another mask was picked while this one was being measured."""
