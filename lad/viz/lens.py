"""The logit lens of `lad.evaluation.lens`: one position, one draft, many answers."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

import numpy as np
from matplotlib.figure import Figure

from lad.evaluation.statistics import Estimate
from lad.viz import style
from lad.viz.html import ASSETS, ENVIRONMENT, page_html, prompt_html
from lad.viz.refinement import drawable
from lad.viz.style import label, new_figure, styled, titled
from lad.viz.tokens import confidence_color, visible

if TYPE_CHECKING:  # it needs torch
    from lad.diffusion.trace import Trace
    from lad.evaluation.lens import Lens

LENS = ENVIRONMENT.get_template("lens.html").module
SCRIPT = (ASSETS / "lens.js").read_text(encoding="utf-8")
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
    texts = {token: text for one in lenses for token, text in one.texts.items()}
    number = {token: n for n, token in enumerate(texts)}
    positions = [
        {
            "tokens": [[number[token] for token in row] for row in one.tokens.tolist()],
            "percent": (100 * one.probability).round().astype(int).tolist(),
            "masked": one.is_masked.tolist(),
            "final": number[one.final],
            "words": lens_sentence(one),
        }
        for one in lenses
    ]
    data = {"positions": positions, "iterations": lenses[0].iterations}
    data["texts"] = [_named(text) for text in texts.values()]
    data["colors"] = [confidence_color(n / 10) for n in range(11)]
    safe = json.dumps(data, separators=(",", ":")).replace("<", r"\u003c")  # it is in a script
    return page_html(LENS.lens(SCRIPT, prompt_html(trace), safe, len(lenses) - 1))


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
