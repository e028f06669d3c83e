"""Figures that are drawn again from recorded runs, without a model.

`figures/data/` holds the traces behind the committed figures; each names the model, the adapter's
digest, settings, seed, versions, device and command that made it. Notebook 03 records them in the
full profile; `lad figures` draws them.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from lad.errors import InvalidInput
from lad.figures.refinement import filmstrip_figure
from lad.figures.style import save
from lad.settings import figures_folder, profile
from lad.trace import Trace

__all__ = ["FIGURES", "redraw", "save_trace"]

# figure -> the trace it shows, and the iterations, which are those of the authors' page
FIGURES: dict[str, tuple[str, list[int]]] = {
    "filmstrip_renoised": ("amsterdam_renoised", [0, 4, 8, 16, 32]),
    "filmstrip_noiseless": ("amsterdam_noiseless", [0, 4, 8, 16]),
}


def save_trace(trace: Trace, name: str, command: str = "make report") -> Path:
    """Record a run as `figures/data/NAME.jsonl`, with the command and profile that made it.

    Wall times are left out, so that a rerun on the same kind of machine gives the same file.

    Raises:
        CacheError: the folder cannot be written.
    """
    made_by = {"command": command, "profile": profile()}
    path = figures_folder() / "data" / f"{name}.jsonl"
    steps = [replace(step, seconds=0.0) for step in trace.steps]
    return replace(trace, steps=steps, provenance=trace.provenance | made_by).save(path)


def redraw(names: Sequence[str] = ()) -> list[Path]:
    """Draw figures from `figures/data/`; all of them by default. Returns what was written.

    Raises:
        InvalidInput: an unknown name, or a run that has not been recorded.
        DamagedFile: a recorded run that cannot be read.
    """
    unknown = [name for name in names if name not in FIGURES]
    if unknown:
        raise InvalidInput(
            f"unknown figure {', '.join(map(repr, unknown))}: expected any of {', '.join(FIGURES)}"
        )
    written = []
    for name in names or FIGURES:
        trace, iterations = FIGURES[name]
        figure = filmstrip_figure(
            Trace.load(figures_folder() / "data" / f"{trace}.jsonl"), iterations
        )
        written.append(save(figure, name, svg=True))
    return written
