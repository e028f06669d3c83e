"""Figures of the noise: the schedule between iterations, and the corruption of training."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle

from lad.diffusion.config import KINDS, CorruptionConfig
from lad.diffusion.schedule import mask_counts, noise_level
from lad.viz import style
from lad.viz.style import COLORS, HATCHES, label, new_figure, series, styled, tint, titled

EXPLANATIONS = {
    "mask": "tokens disappear behind MASK",
    "swap": "neighbours change places",
    "duplicate": "a token is overwritten by its left or right neighbour",
    "replace": "a random token stands where another stood",
    "shift": "a run of 1-3 tokens is copied a few positions along, over what stood there",
}
ITERATIONS, ANSWER_LENGTH = 16, 64  # of the figures of the schedule
ITERATION = "iteration (0 is the first)"
REMASKED = "tokens masked again"
MASK_AREA = {"edgecolor": COLORS["masked"], "hatch": HATCHES["masked"]}
MASK_AREA["facecolor"] = tint(COLORS["masked"])


@dataclass(frozen=True)
class Corrupted:
    """One sentence of t pieces before and after the corruption, and what acted on each.

    `causes` are in the order in which they acted; `shares` is by kind, of the positions.
    """

    before: tuple[str, ...]
    after: tuple[str, ...]
    masked: tuple[bool, ...]
    causes: tuple[tuple[str, ...], ...]
    shares: dict[str, float]

    @property
    def changed(self) -> int:
        """Number of positions that show something else than before."""
        return sum(a != b for a, b in zip(self.before, self.after, strict=True))

    @property
    def shown(self) -> tuple[str, ...]:
        """For each position the kind that a view names: "mask", the last cause, or "".

        A token that is what it was has none, such as END after a swap of two END.
        """
        found = zip(self.before, self.after, self.masked, self.causes, strict=True)
        return tuple("mask" if m else c[-1] if a != b else "" for b, a, m, c in found)


class Rate(NamedTuple):
    """How often a kind acted at one severity, with a 95 % interval over the answers drawn."""

    kind: str
    severity: float
    mean: float
    low: float
    high: float


@styled
def schedule_by_sharpness() -> Figure:
    """How fast the noise falls: the noise level, and the tokens masked, for several sharpnesses."""
    figure, (left, right) = new_figure(1, 2, height=3.6)
    last = {}
    for number, sharpness in enumerate((1, 3, 5, 10, 20)):
        masks = mask_counts(ITERATIONS, ANSWER_LENGTH, sharpness, 0.5)
        levels = [noise_level(i, ITERATIONS, sharpness) for i in range(ITERATIONS)]
        last[sharpness] = _last_mask(masks)
        left.plot(levels, **series(number))
        right.plot(masks, label=f"sharpness {sharpness}", **series(number))
    label(left, ITERATION, "share of the starting noise", "the noise level")
    label(right, ITERATION, REMASKED, f"answer of {ANSWER_LENGTH} tokens, noise start 0.5")
    right.legend()
    text = f"The last masks come after iteration {last[1]} at sharpness 1, after {last[20]} at 20"
    return titled(figure, text)


@styled
def schedule_by_noise_start() -> Figure:
    """How much noise there is to begin with, and how often that masks a token in all."""
    figure, (left, right) = new_figure(1, 2, height=3.6, width_ratios=(3, 2))
    totals = {}
    for number, start in enumerate((0.25, 0.5, 0.75, 1)):
        masks = mask_counts(ITERATIONS, ANSWER_LENGTH, 5.0, start)
        totals[start] = total = sum(masks) / ANSWER_LENGTH
        line = series(number)
        left.plot(masks, **line, label=f"noise start {start:g}")
        right.bar(f"{start:g}", total, color=line["color"], edgecolor="white", hatch="/")
        right.annotate(f"{total:.2f}", (number, total), ha="center", va="bottom")
    label(left, ITERATION, REMASKED, f"answer of {ANSWER_LENGTH} tokens, sharpness 5")
    left.legend()
    label(right, "noise start (share of the answer)", "masks a token", "in the whole run")
    right.grid(axis="x", visible=False)
    right.margins(y=0.12)
    text = f"Noise start 0.25 masks a token {totals[0.25]:.1f} times in {ITERATIONS} iterations, "
    return titled(figure, f"{text}1 masks it {totals[1]:.1f} times")


def _last_mask(counts: Sequence[int]) -> int | None:
    """Index of the last iteration after which something is masked."""
    return max((i for i, masks in enumerate(counts) if masks), default=None)


@styled
def kinds_of_noise(examples: Mapping[str, Corrupted], severity: float) -> Figure:
    """One sentence under each kind of noise: what it does in words, and the tokens it changed.

    `severity` is the p they were drawn with; a key that is no kind stands for all together.
    """
    first = next(iter(examples.values()))
    blocks = len(examples) + 1
    height = 0.35 + 0.66 * blocks
    figure, axes = new_figure(height=height, layout="none")
    figure.subplots_adjust(left=0.01, right=0.99, bottom=0.01, top=1 - 0.42 / height)
    axes.set_axis_off()
    axes.set_ylim(blocks, 0)
    texts = [first.before, *(example.after for example in examples.values())]
    axes.set_xlim(0, max(96, *(sum(len(piece) + 1.7 for piece in text) for text in texts)))
    _token_row(axes, 0, "the sentence", "as it was", first.before, [""] * len(first.before))
    for block, (kind, example) in enumerate(examples.items(), start=1):
        note = EXPLANATIONS.get(kind, "masks and all four, colours as above")
        _token_row(axes, block, kind, note, example.after, example.shown)
    wrong = style.span([examples[kind].changed for kind in KINDS if kind in examples], digits=0)
    text = f"Structural noise hides nothing: {wrong} of {len(first.before)} tokens are wrong, "
    return titled(figure, f"{text}all are visible (p = {severity:g})")


def _token_row(
    axes: Axes, row: int, name: str, note: str, pieces: Sequence[str], kinds: Sequence[str]
) -> None:
    """A line of words over a line of token boxes; hatched colour under a token names its kind."""
    axes.text(0.4, row + 0.26, name, fontweight="bold", va="center")
    axes.text(15, row + 0.26, note, va="center", color=COLORS["muted"])
    word = {"family": style.MONOSPACE, "size": style.FONT_SIZE - 1.5, "ha": "center"}
    x = 0.3
    for piece, kind in zip(pieces, kinds, strict=True):
        width = len(piece) + 1.3
        color = COLORS[kind or "grid"]
        face = tint(color) if kind else "white"
        axes.add_patch(Rectangle((x, row + 0.42), width, 0.46, facecolor=face, edgecolor=color))
        if kind:
            strip = {"facecolor": "white", "edgecolor": color, "hatch": HATCHES[kind] * 2}
            axes.add_patch(Rectangle((x, row + 0.76), width, 0.12, **strip))
        axes.text(x + width / 2, row + 0.59, piece, va="center", **word)
        x += width + 0.4


@styled
def masked_share(shares: np.ndarray) -> Figure:
    """How much of an answer is masked in training: `shares` is `(rows,)`, one for each answer."""
    figure, axes = new_figure(height=2.9)
    none, whole = 100 * (shares == 0).mean(), 100 * (shares == 1).mean()
    edges = np.linspace(0, 1, 21)
    between = shares[(shares > 0) & (shares < 1)]
    heights = 100 * np.histogram(between, edges)[0] / len(shares)
    some = heights > 0
    axes.bar((edges[:-1] + 0.025)[some], heights[some], width=0.05, **MASK_AREA)
    for at, percent, words in ((0, none, "nothing masked"), (1, whole, "all masked")):
        axes.bar(at, percent, width=0.018, color=COLORS["black"])
        text, side = f"{words}: {percent:.0f} %", "right" if at else "left"
        place = {"textcoords": "offset points", "ha": side, "va": "top"}
        axes.annotate(text, (at, percent), (5 - 10 * at, -3), **place)
    label(axes, "share of the answer masked", f"training answers (% of {len(shares):,})")
    more = f"{100 * (shares > 0.5).mean():.0f} % more than half masked"
    return titled(figure, f"{none:.0f} % of the training answers have no mask, {more}")


@styled
def corruption_rates(rates: Sequence[Rate]) -> Figure:
    """Expected corruption (lines) against drawn (points with 95 % intervals), over p."""
    config = CorruptionConfig()
    kinds = list(dict.fromkeys(rate.kind for rate in rates))
    figure, _ = new_figure(1, len(kinds), height=3.2, sharey=True)
    p = np.linspace(0, 1, 51).tolist()
    expected = [config.expected_rates(severity) for severity in p]
    for axes, kind in zip(figure.axes, kinds, strict=True):
        of_kind = sorted((r for r in rates if r.kind == kind), key=lambda r: r.severity)
        lines = [100 * one[kind] for one in expected]
        axes.plot(p, lines, color=COLORS["black"], linestyle="--", linewidth=1.2)
        dots = {"fmt": "o", "color": COLORS[kind], "markeredgecolor": COLORS["black"]}
        drawn = [rate._asdict() | {"value": rate.mean} for rate in of_kind]
        x = [rate.severity for rate in of_kind]
        style.errorbars(axes, x, drawn, 100, markeredgewidth=0.5, capsize=3, **dots)
        label(axes, "severity p", "share of answers (%)" if kind == "shift" else "", kind)
        axes.set_xticks([0, 0.5, 1], ["0", "0.5", "1"])
    figure.axes[0].set_ylabel("tokens corrupted (%)")
    figure.axes[0].set_ylim(bottom=0)
    inside = sum(r.low <= config.expected_rates(r.severity)[r.kind] <= r.high for r in rates)
    # 19 of 20 intervals should hold it; below 17 of 20 something else than chance is at work.
    verb = "agree with" if inside >= 0.85 * len(rates) else "depart from"
    held = f"{inside} of {len(rates)} intervals hold it"
    return titled(figure, f"Drawn rates {verb} the expected ones: {held}")
