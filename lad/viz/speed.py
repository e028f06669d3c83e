"""How fast answers are made, drawn from `lad bench`: three ways, windows, batches, iterations."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from lad.viz.numbers import numbers_of
from lad.viz.style import COLORS, label, log2_axis, new_figure, series, set_title, styled

__all__ = ["speed", "speed_finding"]

WAYS = {"reference": "plain loops", "generate": "left to right", "sampler": "refinement"}


@numbers_of("speeds", "lad bench")
@styled
def speed(data: Mapping) -> Figure:
    """Seconds of an answer by window; an iteration by window and batch; an answer as it goes on.

    Args:
        data: what `lad bench` wrote, with at least one cell.

    Raises:
        DamagedFile: other data, or no cells.
    """
    if not data["cells"]:
        raise ValueError("no cells")
    figure = new_figure(1, 3, height=3.4)
    _answers(figure.axes[0], data["cells"])
    _iterations(figure.axes[1], data["cells"])
    _progress(figure.axes[2], data["cells"])
    set_title(figure, speed_finding(data))
    return figure


def _batches(cells: list[Mapping]) -> dict[int, list[Mapping]]:
    """Cells of each batch, by rising window."""
    by_batch: dict[int, list[Mapping]] = {}
    for cell in sorted(cells, key=lambda cell: cell["window"]):
        by_batch.setdefault(cell["batch"], []).append(cell)
    return dict(sorted(by_batch.items()))


def _answers(axes: Axes, cells: list[Mapping]) -> None:
    """At the smallest batch, the ways side by side."""
    batch, own = next(iter(_batches(cells).items()))
    for number, (way, words) in enumerate(WAYS.items()):
        points = [(c["window"], c[way]["seconds_per_answer"]) for c in own if c[way] is not None]
        if points:
            axes.plot(*zip(*points, strict=True), **series(number), label=words)
    log2_axis(axes, [cell["window"] for cell in own])
    axes.set_yscale("log")
    label(axes, "window (positions)", "seconds an answer", f"{_prompts(batch)}")
    _legend_on_top(axes)


def _iterations(axes: Axes, cells: list[Mapping]) -> None:
    windows = set()
    for number, (batch, own) in enumerate(_batches(cells).items()):
        x = [cell["window"] for cell in own]
        windows |= set(x)
        y = [1000 * cell["sampler"]["iteration_seconds"] for cell in own]
        lowest = [1000 * cell["floor"]["seconds"] for cell in own]
        axes.plot(x, y, **series(number), label=_prompts(batch))
        axes.plot(x, lowest, color=COLORS["muted"], linestyle=":", linewidth=1.2)
    log2_axis(axes, sorted(windows))
    axes.set_yscale("log")
    label(axes, "window (positions; dotted: floor)", "milliseconds an iteration", "one iteration")
    _legend_on_top(axes)


def _progress(axes: Axes, cells: list[Mapping]) -> None:
    """Time that has gone by after each iteration; it is that of the batch."""
    batch, own = next(iter(_batches(cells).items()))
    for number, cell in enumerate(own):
        gone = 1000 * np.cumsum(cell["sampler"]["step_seconds"])
        axes.plot(
            range(1, len(gone) + 1),
            gone,
            **series(number) | {"marker": "none"},
            label=f"window {cell['window']}",
        )
    axes.set_ylim(bottom=0)
    label(axes, "iterations", "milliseconds gone by", _prompts(batch))
    axes.legend()


def _legend_on_top(axes: Axes) -> None:
    """Above all lines: a third of a logarithmic axis is left to the legend."""
    low, high = axes.get_ylim()
    axes.set_ylim(low, high * (high / low) ** 0.5)
    axes.legend(loc="upper left")


def _prompts(batch: int) -> str:
    return f"{batch} prompt{'s' if batch > 1 else ''} at once"


def speed_finding(data: Mapping) -> str:
    """How much faster than left to right, at the smallest and the largest batch; and the floor."""
    batches = _batches(data["cells"])
    parts, told = [], []
    for batch in dict.fromkeys((min(batches), max(batches))):
        ratios = [cell["speedup_vs_generate"]["value"] for cell in batches[batch]]
        low, high = min(ratios), max(ratios)
        told.append(f"{_span(low, high)} times with {_prompts(batch)}")
    parts.append(f"faster than left to right {', '.join(told)}")
    nearest = min(data["cells"], key=lambda cell: cell["sampler"]["iteration_by_floor"])
    by_floor = nearest["sampler"]["iteration_by_floor"]
    parts.append(f"an iteration takes {by_floor:.1f} times its floor at best")
    where = data["provenance"]["processor"]
    return f"{data['provenance']['model']} on {where}: {'; '.join(parts)}"


def _span(low: float, high: float) -> str:
    a, b = f"{low:.1f}", f"{high:.1f}"
    return a if a == b else f"{a} to {b}"
