"""Figures that are drawn again from recorded runs, without a model.

`figures/data/` holds what is behind the committed figures; each file names the model, the adapter's
digest, settings, seed, versions, device and command that made it. `lad figures` draws them.

    filmstrips   traces, recorded by notebook 03 in the full profile
    ablation     numbers, written by `lad ablate`
"""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from matplotlib.figure import Figure

from lad.errors import DamagedFile, InvalidInput
from lad.figures.ablation import ablation
from lad.figures.refinement import filmstrip_figure
from lad.figures.style import save
from lad.settings import figures_folder, profile
from lad.trace import Trace

__all__ = ["DRAWN", "FIGURES", "Drawing", "read_numbers", "redraw", "save_trace"]

CHECKOUT = Path(__file__).resolve().parents[2]

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


def read_numbers(name: str) -> dict:
    """What a command wrote to `figures/data/NAME.json`.

    A notebook may be told to put its figures elsewhere (`LAD_FIGURES`); numbers that are not there
    are those of the checkout.

    Raises:
        InvalidInput: no such file.
        DamagedFile: one that is not JSON.
    """
    path = figures_folder() / "data" / f"{name}.json"
    if not path.is_file():
        path = CHECKOUT / "figures" / "data" / path.name
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError as error:
        raise InvalidInput(
            f"no numbers at {path}: expected a file that `lad` wrote; check it out again"
        ) from error
    except (OSError, ValueError) as error:
        raise DamagedFile(
            f"{path} cannot be read ({error}): expected JSON; check it out again"
        ) from error


@dataclass(frozen=True)
class Drawing:
    """How a figure is drawn again.

    Attributes:
        data: its file in `figures/data/`.
        draw: makes the figure from that file.
    """

    data: str
    draw: Callable[[], Figure]


def _filmstrip(trace: str, iterations: Sequence[int]) -> Drawing:
    path = f"{trace}.jsonl"
    return Drawing(
        path,
        lambda: filmstrip_figure(Trace.load(figures_folder() / "data" / path), iterations),
    )


DRAWN: dict[str, Drawing] = {
    **{name: _filmstrip(trace, iterations) for name, (trace, iterations) in FIGURES.items()},
    "ablation": Drawing("ablation.json", lambda: ablation(read_numbers("ablation"))),
}


def redraw(names: Sequence[str] = ()) -> list[Path]:
    """Draw figures from `figures/data/`; all of them by default. Returns what was written.

    Raises:
        InvalidInput: an unknown name, or a run that has not been recorded.
        DamagedFile: a recorded run that cannot be read.
    """
    unknown = [name for name in names if name not in DRAWN]
    if unknown:
        raise InvalidInput(
            f"unknown figure {', '.join(map(repr, unknown))}: expected any of {', '.join(DRAWN)}"
        )
    return [save(DRAWN[name].draw(), name, svg=True) for name in names or DRAWN]
