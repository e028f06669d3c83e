"""Explorer of the attention: pick a mask, hide a token, see which states move.

Dragging never runs a model. For each mask the effect of hiding each token in turn is measured once
and kept; the slider over the hidden token picks a row of that.
"""

from __future__ import annotations

import ipywidgets as widgets
import numpy as np
import torch

from lad.diffusion.denoiser import Denoiser
from lad.evaluation.probes import KINDS_OF_ATTENTION, effects, visible
from lad.models.chat import encode_text
from lad.utils import InvalidInput
from lad.viz.attention import attention_explorer, effect_sentence
from lad.viz.html import escape
from lad.viz.style import show
from lad.widgets.controls import FIELD, MEDIUM, ROW, WIDE, error_html, labelled

INDIFFERENT = ("causal", "bidirectional")  # to where the prompt ends, and to the target
MOST_TOKENS = 24  # more squares than this cannot be told apart
TARGETS = [
    ("same: a state predicts its own token", "same"),
    ("next: a state predicts the token after it", "next"),
]


class AttentionExplorer:
    """The attention masks at work on a short text, whose tokens are in `tokens`, as text."""

    def __init__(self, denoiser: Denoiser, text: str, prompt_length: int = 4) -> None:
        """The text has 3 to 24 tokens, of which `prompt_length` count as the prompt at first."""
        self._denoiser = denoiser
        tokenizer, config = denoiser.tokenizer, denoiser.config
        ids = encode_text(tokenizer, text)
        if not 3 <= len(ids) <= MOST_TOKENS:
            raise InvalidInput(f"text of {len(ids)} tokens: expected 3 to {MOST_TOKENS}")
        self._ids = torch.tensor(ids, device=denoiser.device)
        self.tokens = [tokenizer.decode([i]) for i in ids]
        self._measured: dict[tuple, np.ndarray] = {}
        last = len(ids) - 1
        self.kind = widgets.ToggleButtons(
            options=KINDS_OF_ATTENTION, value=config.attention, description="Attention"
        )
        self.kind.style = MEDIUM | {"button_width": "9em"}
        traits = {"options": TARGETS, "value": config.target}
        self.target = labelled(widgets.Dropdown, "Target", 34, MEDIUM, **traits)
        p = min(prompt_length, last)
        self.prompt_length = widgets.IntSlider(p, 1, last, description="Prompt (tokens)", **FIELD)
        self.prompt_length.continuous_update = False  # it starts a measurement
        self.hidden = widgets.IntSlider(last, 0, last, description="Hide token", **FIELD)
        self.image, self.caption, self.message = (widgets.HTML(layout=WIDE) for _ in range(3))
        for control in (self.kind, self.target, self.prompt_length, self.hidden):
            control.observe(self._draw, "value")
        bar = widgets.HBox([self.target, self.prompt_length, self.hidden], layout=ROW)
        parts = [self.kind, bar, self.message, self.image, self.caption]
        self.widget = widgets.VBox(parts)
        self._draw()

    def _repr_mimebundle_(self, **kwargs: object) -> dict:
        """The widget, and for a page without a kernel what it shows."""
        static = {"text/html": self.image.value + self.caption.value}
        return self.widget._repr_mimebundle_(**kwargs) | static

    def _draw(self, _change: object = None) -> None:
        kind, p, hidden = self.kind.value, self.prompt_length.value, self.hidden.value
        self.target.disabled = kind in INDIFFERENT
        # What the effect depends on.
        key = (kind, 1, "next") if kind in INDIFFERENT else (kind, p, self.target.value)
        self.message.value = ""
        if key not in self._measured:
            self.caption.value = "Measuring …"
            try:
                self._measured[key] = effects(self._denoiser, self._ids, *key)
            except Exception as error:
                self.caption.value = ""
                self.message.value = error_html(f"{type(error).__name__}: {error}")
                return
        moves = self._measured[key][hidden]
        mask = visible(kind, p, len(self.tokens), self.target.value, [hidden])
        words = effect_sentence(kind, moves, self.tokens, p, hidden)
        figure = attention_explorer(mask, moves, self.tokens, p, hidden)
        self.image.value = show(figure, words).html
        self.caption.value = f"<p>{escape(words)}</p>"
