"""The logit lens on a run: choose a token, see what every layer would predict in its place."""

from __future__ import annotations

from collections.abc import Sequence

from lad.diffusion.trace import Trace
from lad.evaluation.lens import lens
from lad.viz.lens import lens_html, lens_sentence
from lad.widgets.controls import Limits
from lad.widgets.race import PromptExplorer
from lad.widgets.runner import Source


class LensExplorer(PromptExplorer):
    """A prompt to run, a token of its answer to choose, and the lens there.

    It begins with `trace`, a run of this denoiser, if it is given; that takes half a minute.
    """

    def __init__(
        self,
        denoiser: Source = None,
        trace: Trace | None = None,
        limits: Limits | None = None,
    ) -> None:
        super().__init__(denoiser, limits)
        if trace is not None:
            self._done([trace], True)

    def _done(self, traces: Sequence[Trace], _whole: bool) -> None:
        def on_done(_stage: str, done: int, total: int) -> None:
            self.status.value = f"reading the layers at position {done} of {total}"

        self.trace = traces[0]
        found = lens(self._loader.get(), self.trace, on_done=on_done)
        self.status.value = ""
        words = lens_sentence(found[len(found) // 2])
        self._show_page(self.trace.prompt, lens_html(found, self.trace), words)
