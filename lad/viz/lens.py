"""The logit lens of `lad.evaluation.lens`: one position, one draft, many answers."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

import numpy as np
from matplotlib.figure import Figure

from lad.evaluation.statistics import Estimate
from lad.viz import style
from lad.viz.html import ENVIRONMENT, player_html, prompt_html
from lad.viz.refinement import drawable
from lad.viz.style import label, new_figure, styled, titled
from lad.viz.tokens import confidence_color, visible

if TYPE_CHECKING:  # it needs torch
    from lad.diffusion.trace import Trace
    from lad.evaluation.lens import Lens

LENS = ENVIRONMENT.get_template("lens.html").module
MOST = 10  # characters of a token in a square


def lens_sentence(lens: Lens) -> str:
    """The first layer at which the final token is the likeliest, in the first and last column."""
    where = []
    for column in dict.fromkeys((0, len(lens.iterations) - 1)):
        hits = np.flatnonzero(lens.is_final[:, column])
        layer = f"layer {hits[0] + 1}" if len(hits) else "no layer"
        where.append(f"after {layer} at iteration {lens.iterations[column]}")
    return f"“{_short(lens.texts[lens.final])}” first leads {', '.join(where)}"


def _named(text: str) -> str:
    return visible(text, newline="↵").replace(" ", "␣")


def _short(text: str) -> str:
    text = drawable(_named(text))
    return text if len(text) <= MOST else text[: MOST - 1] + "…"


def lens_html(lenses: Sequence[Lens], trace: Trace) -> str:
    """The lens at every position of a run, one at a time, chosen with a slider; no kernel."""
    frames = [(number, _table(one)) for number, one in enumerate(lenses)]
    lane = {"frames": frames, "start": len(frames) // 2}
    return player_html(prompt_html(trace), [lane], {"tokens": (1.5, 1)}, str(LENS.key()))


def _table(lens: Lens) -> str:
    texts = {token: _named(text) for token, text in lens.texts.items()}
    rows = [
        (layer, [(texts[t], f"{p:.0%}", confidence_color(p), t == lens.final) for t, p in cells])
        for layer, cells in enumerate(map(zip, lens.tokens.tolist(), lens.probability.tolist()), 1)
    ]
    label = f"{lens.position}: {texts[lens.final]}"
    heads = zip(lens.iterations, lens.is_masked.tolist(), strict=True)
    return str(LENS.position(label, lens_sentence(lens), heads, rows[::-1]))


@styled
def first_layer(data: Mapping) -> Figure:
    """Share of positions whose final token is the likeliest after each layer; `lad study`."""
    figure, axes = new_figure(height=3.7)
    groups = {name: one for name, one in data["layers"]["groups"].items() if one["positions"]}
    half = []
    for number, (name, one) in enumerate(groups.items()):
        value, low, high = style.intervals(one["likeliest"], 100)
        x, line = np.arange(1, len(value) + 1), style.series(number)
        axes.fill_between(x, low, high, color=line["color"], alpha=0.18, linewidth=0)
        first = f"first after {Estimate.from_dict(one['first']).text()}"
        never = f"never: {100 * one['never']['value']:.0f} %"
        axes.plot(x, value, label=f"{name}\n{first}\n{never}", **line)
        half.append(f"{x[value >= 50].min(initial=len(x) + 1)} ({name})")
    axes.set(xlim=(0.5, len(x) + 0.5), ylim=(-2, 104))
    style.whole_numbers(axes.xaxis)
    label(axes, "after layer", "final token is the likeliest (%)")
    style.shared_legend(figure)
    text = f"Half of final tokens lead after layer {', '.join(half)}"
    return titled(figure, text.replace(f"{len(x) + 1} (", "none ("))
