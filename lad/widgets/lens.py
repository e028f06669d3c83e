"""The logit lens on a run: choose a token, see what every layer would predict in its place.

The states of all layers are computed once for a run; a token takes the backbone's head alone.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import ipywidgets as widgets
from torch import Tensor

from lad.diffusion.denoiser import Denoiser
from lad.diffusion.trace import Trace
from lad.evaluation.lens import layer_states, lens, spread
from lad.viz.lens import lens_heatmap
from lad.viz.style import show
from lad.viz.tokens import visible
from lad.widgets.controls import SHORT, WIDE, Limits
from lad.widgets.race import PromptExplorer

MOST_ITERATIONS = 10  # columns whose tokens can be read


class LensExplorer(PromptExplorer):
    """A prompt to run, a token of its answer to choose, and the lens there.

    It begins with `trace`, a run of this denoiser, if it is given; that takes some seconds.
    """

    def __init__(
        self,
        denoiser: Denoiser | Callable[[], Denoiser] | None = None,
        trace: Trace | None = None,
        limits: Limits | None = None,
    ) -> None:
        super().__init__(denoiser, limits=limits)
        self._states: Tensor | None = None
        self.token = widgets.SelectionSlider(options=["–"], description="Token", disabled=True)
        self.token.layout, self.token.style = WIDE, SHORT
        self.token.continuous_update = False  # a picture takes half a second
        self.image = widgets.HTML(layout=WIDE)
        self.token.observe(self._draw, "value")
        self.widget = widgets.VBox([*self.controls, self.token, self.image])
        if trace is not None:
            self.prompt.value = trace.prompt
            self._done([trace], True)

    def _done(self, traces: Sequence[Trace], _whole: bool) -> None:
        self.trace, self._states = traces[0], None  # so that nothing is drawn meanwhile
        self._iterations = spread(self.trace, MOST_ITERATIONS)
        states = layer_states(self._loader.get(), self.trace, self._iterations)
        names = [self.trace.decode([token]) for token in self.trace.drafts[-1, : states.shape[2]]]
        self.token.options = [(f"{n}: {visible(name, '↵')}", n) for n, name in enumerate(names)]
        self.token.disabled, self._states = False, states
        self._draw()

    def _draw(self, _change: object = None) -> None:
        if self._states is None:
            return
        with self._errors_shown():
            given = self.trace, self._states, self._iterations, self.token.value
            found = lens(self._loader.get(), *given)
            last = zip(found.iterations, found.texts[-1], strict=True)
            last = ", ".join(f"{i} {text!r}" for i, text in last)
            words = f"The likeliest token after the last layer, by iteration: {last}"
            self.image.value = show(lens_heatmap(found), words).html
