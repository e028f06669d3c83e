"""A refinement in a terminal: the draft as it changes, then the answer and what it cost.

Text goes to the terminal as text: markup in a prompt or an answer is shown, never interpreted.
"""

from __future__ import annotations

from rich.console import Console, Group
from rich.live import Live
from rich.text import Text
from torch import Tensor

from lad.diffusion.config import RefineConfig
from lad.diffusion.denoiser import Denoiser
from lad.diffusion.sampler import record
from lad.diffusion.trace import Step, Trace, make_trace
from lad.models.chat import Prompt
from lad.viz.tokens import draft_cells

__all__ = ["watch"]


def watch(
    denoiser: Denoiser,
    prompt: Prompt,
    config: RefineConfig,
    *,
    draft: Tensor | None = None,
    fixed: Tensor | None = None,
) -> Trace:
    """Refine with a live view: green and underlined what changed, red and struck what is masked.

    `draft` and `fixed` are as in `lad.diffusion.sampler.refine`.
    """
    console = Console()
    prompt_ids = denoiser.encode(prompt)
    steps: list[Step] = []

    def view(step: Step) -> Group:
        steps.append(step)
        so_far = make_trace(denoiser, prompt, prompt_ids, config, steps)
        line = Text()
        for cell in draft_cells(so_far, -1):
            masked = any(step.remask[position] for position in cell.positions)
            style = "red strike" if masked else "green underline" if cell.state == "changed" else ""
            if cell.kind != "end" and not cell.beyond:
                line.append(cell.text, style=style)
        done = f"iteration {step.iteration + 1} of at most {config.iterations}"
        return Group(line, Text(done, style="dim"))

    with Live(console=console, auto_refresh=False, transient=True) as live:
        run = record(
            denoiser,
            prompt,
            config,
            on_step=lambda step: live.update(view(step), refresh=True),
            draft=draft,
            fixed=fixed,
        )
    console.print(Text(run.answer))
    stopped = ", stopped early" if run.stopped_early else ""
    console.print(
        Text(
            f"{run.tokens} tokens in {run.nfe} iterations{stopped}, {run.seconds:.1f} s "
            f"({run.tpf:.2f} tokens per forward pass)",
            style="dim",
        )
    )
    return run
