"""Figures of the logit lens, from `lad.evaluation.lens`: one draft, and many answers."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING

import numpy as np
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle

from lad.evaluation.statistics import Estimate
from lad.viz import style
from lad.viz.refinement import CONFIDENCE_MAP, drawable
from lad.viz.style import COLORS, MONOSPACE, label, new_figure, styled, titled
from lad.viz.tokens import visible

if TYPE_CHECKING:  # it needs torch
    from lad.evaluation.lens import Lens

MOST = 10  # characters of a token in a square


@styled
def lens_heatmap(lens: Lens) -> Figure:
    """The likeliest token after every layer, by iteration, on the colour of its probability."""
    layers, steps = lens.probability.shape
    figure, axes = new_figure(height=1.5 + 0.17 * layers)
    scale = {"cmap": CONFIDENCE_MAP, "vmin": 0, "vmax": 1}
    image = axes.imshow(lens.probability, aspect="auto", origin="lower", **scale)
    figure.colorbar(image, ax=axes, pad=0.01, aspect=40).set_label("probability of that token")
    axes.grid(visible=False)
    for layer, texts in enumerate(lens.texts):
        for step, text in enumerate(texts):
            final = lens.is_final[layer, step]
            font = {"family": MONOSPACE, "size": 6.5, "weight": "bold" if final else "normal"}
            middle = {"ha": "center", "va": "center_baseline", "parse_math": False}
            axes.text(step, layer, _short(text), color=COLORS["text"], **font, **middle)
            if final:
                frame = {"fill": False, "edgecolor": COLORS["text"], "linewidth": 1}
                axes.add_patch(Rectangle((step - 0.5, layer - 0.5), 1, 1, **frame))
    seen = ["MASK" if masked else "visible" for masked in lens.is_masked]
    ticks = [f"{i}\n{state}" for i, state in zip(lens.iterations, seen, strict=True)]
    axes.set_xticks(range(steps), ticks, size=8)
    numbers = sorted({*range(4, layers, 5), layers - 1})
    axes.set_yticks(numbers, [str(n + 1) for n in numbers])
    label(axes, f"iteration, and what the denoiser saw at position {lens.position}", "after layer")
    return titled(figure, lens_sentence(lens), "framed and bold: the final token")


def lens_sentence(lens: Lens) -> str:
    """The first layer at which the final token is the likeliest, in the first and last column."""
    where = []
    for column in dict.fromkeys((0, len(lens.iterations) - 1)):
        hits = np.flatnonzero(lens.is_final[:, column])
        layer = f"layer {hits[0] + 1}" if len(hits) else "no layer"
        where.append(f"after {layer} at iteration {lens.iterations[column]}")
    return f"“{_short(lens.final)}” first leads {', '.join(where)}"


def _short(text: str) -> str:
    text = drawable(visible(text, newline="↵").replace(" ", "␣"))
    return text if len(text) <= MOST else text[: MOST - 1] + "…"


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
        never = f"never: {100 * one['never']['value']:.0f} %"
        first = f"first after {Estimate.from_dict(one['first']).text()}, {never}"
        axes.plot(x, value, label=f"{name}\n({first})", **line)
        half.append(f"{x[value >= 50].min(initial=len(x) + 1)} ({name})")
    axes.set(xlim=(0.5, len(x) + 0.5), ylim=(-2, 104))
    style.whole_numbers(axes.xaxis)
    label(axes, "after layer", "final token is the likeliest (%)")
    style.shared_legend(figure)
    text = f"Half of the final tokens lead after layer {', '.join(half)}"
    return titled(figure, text.replace(f"{len(x) + 1} (", "none ("))
