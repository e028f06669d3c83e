"""A refinement in a terminal: the draft as it changes, then the answer and what it cost.

Text goes to the terminal as text: markup in a prompt or an answer is shown, never interpreted.
"""

from __future__ import annotations

from rich.console import Console, Group
from rich.live import Live
from rich.text import Text

from lad.diffusion.config import RefineConfig
from lad.diffusion.denoiser import Denoiser
from lad.diffusion.sampler import record
from lad.diffusion.trace import Step, Trace, make_trace
from lad.models.chat import Prompt
from lad.viz.tokens import summary, token_spans


def watch(denoiser: Denoiser, prompt: Prompt, config: RefineConfig, **start) -> Trace:
    """Refine with a live view: green and underlined what changed, red and struck what is masked.

    `start` has the `draft` and `fixed` of `lad.diffusion.sampler.refine`.
    """
    console = Console()
    prompt_ids = denoiser.encode(prompt)
    steps: list[Step] = []

    def update(step: Step) -> None:
        steps.append(step)
        trace = make_trace(denoiser, prompt, prompt_ids, config, steps)
        line = Text()
        for span in token_spans(trace, -1):
            masked = step.remask[list(span.positions)].any()
            style = "red strike" if masked else "green underline" if span.state == "changed" else ""
            if span.kind != "eos" and not span.after_eos:
                line.append(span.text, style=style)
        done = f"iteration {step.iteration + 1} of at most {config.iterations}"
        live.update(Group(line, Text(done, style="dim")), refresh=True)

    with Live(console=console, auto_refresh=False, transient=True) as live:
        try:
            trace = record(denoiser, prompt, config, on_step=update, **start)
        except BaseException:
            live.transient = False  # the last draft stays
            raise
    console.print(Text(trace.answer))
    console.print(Text(summary(trace), style="dim"))
    return trace
