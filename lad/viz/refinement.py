"""Figures of one refinement, or of a few side by side: Trace in, matplotlib Figure out.

    filmstrip_figure     the draft at chosen iterations, every token coloured by confidence
    confidence_heatmap   confidence by position and iteration
    settling_heatmap     masked, changed, unchanged or settled, by position and iteration
    settled_curve        share of the answer that has its final tokens, against iteration
    confidence_curve     mean confidence of the draft, against iteration

Iterations count from 0, as in the trace. Heatmaps leave out positions that were EOS in every draft.
Confidence has the colour scale of `lad.viz.tokens` everywhere.

The filmstrip follows the figure on the authors' project page (LAD, EMNLP 2025 demo).
"""

from __future__ import annotations

import functools
import unicodedata
from collections.abc import Mapping, Sequence
from dataclasses import replace

import numpy as np
from matplotlib import font_manager
from matplotlib.axes import Axes
from matplotlib.cm import ScalarMappable
from matplotlib.colors import Colormap, LinearSegmentedColormap, ListedColormap
from matplotlib.figure import Figure
from matplotlib.ft2font import FT2Font
from matplotlib.image import AxesImage
from matplotlib.patches import Patch, Rectangle
from matplotlib.ticker import MaxNLocator, PercentFormatter

from lad.diffusion.trace import Trace
from lad.utils import InvalidInput
from lad.viz.style import (
    COLORS,
    HATCHES,
    MONOSPACE,
    TITLE_LENGTH,
    WIDTH,
    label,
    new_figure,
    series,
    set_title,
    styled,
)
from lad.viz.tokens import (
    CONFIDENCE_STOPS,
    TokenSpan,
    choose_steps,
    confidence_color,
    count,
    half_settled,
    remasking_words,
    token_spans,
    visible,
)

CONFIDENCE_MAP = LinearSegmentedColormap.from_list(
    "confidence", [(stop, [c / 255 for c in color]) for stop, color in CONFIDENCE_STOPS]
)

POINT = 1 / 72  # inch
TOKEN_SIZE = 8.0  # points
ADVANCE = 0.602 * TOKEN_SIZE * POINT  # inches a character: the font is monospaced
LINE = 1.5 * TOKEN_SIZE * POINT  # inches a line
MASK_WIDTH = 3  # characters
ROW_LABEL = 0.75  # inches
GAP = 0.25  # inches, between the columns and around everything
HEAD = 0.75  # inches: title and column names


# -- filmstrip -----------------------------------------------------------------------------------


@styled
def filmstrip_figure(trace: Trace, iterations: Sequence[int] | None = None) -> Figure:
    """The draft at chosen iterations, every token on the colour of its confidence.

    A run with re-masking has two columns, what the denoiser saw and what it drew; a noiseless one
    needs only the second. MASK is black.

    Args:
        iterations: see `lad.viz.tokens.choose_steps`; by default 0, 4, 8, 16, ... and the last.
    """
    steps = choose_steps(trace, iterations)
    columns = {"input": "what the denoiser saw", "denoised": "the draft it drew"}
    if not trace.remask.any():
        del columns["input"]
    width = (WIDTH - ROW_LABEL - GAP * len(columns)) / len(columns)  # inches a column
    strips = [
        [_wrap(_spans(trace, step, phase), int(width / ADVANCE)) for phase in columns]
        for step in steps
    ]
    heights = [max(map(len, strip)) * LINE + 0.16 for strip in strips]
    height = HEAD + sum(heights) + 0.45  # and the colour scale
    # Everything is placed by hand, in inches from the top left.
    figure = new_figure(rows=0, height=height, layout=None)
    set_title(figure, _filmstrip_title(trace), y=1 - 0.1 / height)
    axes = figure.add_axes((0, 0, 1, 1))
    axes.set(xlim=(0, WIDTH), ylim=(height, 0))
    axes.set_axis_off()

    left = [ROW_LABEL + column * (width + GAP) for column in range(len(columns))]
    for x, name in zip([GAP / 2, *left], ["iteration", *columns.values()], strict=True):
        axes.text(x, HEAD - 0.14, name, color=COLORS["muted"], size=9)
    rule = {"color": COLORS["grid"], "linewidth": 0.8}
    y = HEAD
    for step, strip, tall in zip(steps, strips, heights, strict=True):
        axes.plot([GAP / 2, WIDTH - GAP / 2], [y, y], **rule)
        axes.text(GAP / 2, y + 0.08 + LINE / 2, str(trace.steps[step].iteration), va="center")
        for x, lines in zip(left, strip, strict=True):
            _draw_lines(axes, lines, x, y + 0.08)
        y += tall
    axes.plot([GAP / 2, WIDTH - GAP / 2], [y, y], **rule)
    _filmstrip_key(figure, axes, y + 0.22, len(columns) == 2)
    return figure


def _filmstrip_title(trace: Trace) -> str:
    tokens, ran = count(trace.tokens, "token"), count(trace.nfe, "iteration")
    cost = f"”: {tokens} in {ran} {remasking_words(trace)}"
    prompt = " ".join(trace.prompt.split())
    most = TITLE_LENGTH - len(cost) - 1
    prompt = prompt if len(prompt) <= most else prompt[: most - 1] + "…"
    return f"“{_drawable(prompt)}{cost}"


def _spans(trace: Trace, step: int, phase: str) -> list[TokenSpan]:
    """The spans, but neighbouring EOS in one, since this figure does not tell their states."""
    spans: list[TokenSpan] = []
    for span in token_spans(trace, step, phase):
        if spans and spans[-1].kind == span.kind == "eos":
            span = replace(span, positions=spans.pop().positions + span.positions)
        spans.append(span)
    return spans


def _wrap(spans: list[TokenSpan], columns: int) -> list[list[tuple[str, TokenSpan]]]:
    """Break spans into lines of at most `columns` characters; a newline ends a line, too."""
    lines: list[list[tuple[str, TokenSpan]]] = [[]]
    used = 0
    for span in spans:
        for piece in _pieces(span):
            text = piece.rstrip("\n")
            while text:
                space = columns - used
                if _width(text) > space and used and (_width(text) <= columns or space < 8):
                    lines.append([])
                    used, space = 0, columns
                taken = _take(text, space)
                lines[-1].append((text[:taken], span))
                used += _width(text[:taken])
                text = text[taken:]
            if piece.endswith("\n"):
                lines.append([])
                used = 0
    return lines if lines[-1] or len(lines) == 1 else lines[:-1]


def _pieces(span: TokenSpan) -> list[str]:
    if span.kind == "mask" and span.count == 1:
        return ["\0" * MASK_WIDTH]
    if span.kind in ("mask", "eos"):
        return [f" {span.text} × {span.count} " if span.count > 1 else f" {span.text} "]
    return _drawable(visible(span.text)).splitlines(keepends=True) or [""]


def _take(text: str, space: int) -> int:
    """How many characters of `text` fit into `space`, at least one."""
    width = 0
    for number, character in enumerate(text):
        width += _width(character)
        if width > space:
            return max(number, 1)
    return len(text)


def _width(text: str) -> int:
    return sum(2 if unicodedata.east_asian_width(c) in "WF" else 1 for c in text)


@functools.cache
def _font_characters() -> frozenset[int]:
    font = font_manager.findfont(MONOSPACE)
    return frozenset(FT2Font(font).get_charmap())


def _drawable(text: str) -> str:
    """A box for every character the font lacks: matplotlib would warn and draw its own."""
    there = _font_characters()
    return "".join(c if c == "\n" or ord(c) in there else "□" for c in text)


def _draw_lines(
    axes: Axes, lines: list[list[tuple[str, TokenSpan]]], left: float, top: float
) -> None:
    for number, line in enumerate(lines):
        x, y = left, top + number * LINE
        for text, span in line:
            width = _width(text) * ADVANCE
            masked = span.kind == "mask"
            box = Rectangle((x, y + 0.01), width - 0.012 * masked, LINE - 0.02, linewidth=0)
            box.set_facecolor("black" if masked else confidence_color(span.confidence))
            if span.kind == "eos":
                box.set(facecolor="#EEEEEE")
            axes.add_patch(box)
            if text.strip("\0"):
                axes.text(
                    x, y + LINE / 2, text, parse_math=False, va="center_baseline",
                    family="monospace", size=TOKEN_SIZE,
                    color="white" if masked else COLORS["text"],
                    style="italic" if span.after_eos else "normal",
                )  # fmt: skip
            x += width


def _filmstrip_key(figure: Figure, axes: Axes, y: float, masks: bool) -> None:
    height = figure.get_figheight()
    box = (ROW_LABEL / WIDTH + 0.115, 1 - (y + 0.1) / height, 0.2, 0.13 / height)
    scale = ScalarMappable(cmap=CONFIDENCE_MAP)
    bar = figure.colorbar(scale, cax=figure.add_axes(box), orientation="horizontal")
    bar.set_ticks([])
    bar.outline.set_linewidth(0.5)
    after = ROW_LABEL + (0.115 + 0.2) * WIDTH + 0.06
    words = {ROW_LABEL: "confidence 0", after: "1"}
    if masks:
        mask = after + 0.45
        axes.add_patch(Rectangle((mask, y - 0.03), MASK_WIDTH * ADVANCE, 0.13, color="k"))
        words[mask + MASK_WIDTH * ADVANCE + 0.08] = "MASK"
    for x, text in words.items():
        axes.text(x, y + 0.035, text, va="center", size=9)


# -- heatmaps ------------------------------------------------------------------------------------


@styled
def confidence_heatmap(trace: Trace) -> Figure:
    """Confidence of the token drawn, by position (across) and iteration (downwards)."""
    figure, image = _heatmap(trace, trace.confidence, CONFIDENCE_MAP, 1)
    words = {"label": "confidence (probability)"}
    figure.colorbar(image, ax=figure.axes[0], fraction=0.04, pad=0.02, **words)
    means = _mean_confidence(trace)
    ran = f"{count(trace.nfe, 'iteration')} {remasking_words(trace)}"
    set_title(figure, f"Mean confidence goes from {means[0]:.2f} to {means[-1]:.2f} in {ran}")
    return figure


@styled
def settling_heatmap(trace: Trace) -> Figure:
    """What happened to each position (across) in each iteration (downwards).

    Three fills, dark to light: changed, unchanged for now, settled (its final token, kept to the
    end). A hatch lies over the positions that were MASK in that iteration's input.
    """
    rows = np.arange(len(trace.steps))[:, None]
    state = np.where(trace.changed, 0, 1)
    state[rows >= trace.settled_at[None, :]] = 2  # the change that brings the final token settles
    fills = (COLORS["changed"], "#C4C4C4", "#E8F3FB")
    figure, image = _heatmap(trace, state, ListedColormap(fills), 2)
    hatch = {"hatch": HATCHES["masked"] * 2, "facecolor": "none", "linewidth": 0}
    hatch["edgecolor"] = "#8A3D00"
    for row, masked in enumerate(trace.is_masked[:, : image.get_array().shape[1]]):
        edges = np.flatnonzero(np.diff(masked.astype(np.int8), prepend=0, append=0))
        for start, stop in edges.reshape(-1, 2):
            box = Rectangle((start - 0.5, row - 0.5), stop - start, 1, **hatch)
            figure.axes[0].add_patch(box)
    keys = [
        Patch(facecolor=fills[0], label="changed, not final"),
        Patch(facecolor=fills[1], label="unchanged, not final"),
        Patch(facecolor=fills[2], edgecolor=COLORS["muted"], linewidth=0.5, label="settled"),
        Patch(label="was MASK in the input", **hatch),
    ]
    figure.legend(handles=keys, loc="outside lower left", ncols=4)
    final = trace.settled_at[: max(trace.tokens, 1)]
    late = int(np.sum(final > (len(trace.steps) - 1) / 2))
    ran = f"{count(trace.nfe, 'iteration')} {remasking_words(trace)}"
    share = f"{late} of {count(len(final), 'answer token')}"
    set_title(figure, f"{share} settle in the second half of {ran}")
    return figure


def _heatmap(
    trace: Trace, values: np.ndarray, colors: Colormap, high: int
) -> tuple[Figure, AxesImage]:
    """`(i, a)` values as a picture, up to the last position that held text in some draft."""
    text = np.flatnonzero((trace.drafts != trace.eos_token_id).any(axis=0))
    used = int(text[-1]) + 1 if len(text) else 1
    figure = new_figure(height=float(np.clip(1.7 + 0.09 * len(trace.steps), 2.4, 5.0)))
    axes = figure.axes[0]
    axes.grid(False)
    shown = {"vmin": 0, "vmax": high, "aspect": "auto", "interpolation": "nearest"}
    image = axes.imshow(values[:, :used], cmap=colors, **shown)
    for axis in (axes.xaxis, axes.yaxis):
        axis.set_major_locator(MaxNLocator(integer=True))
    label(axes, "position in the answer region (tokens)", "iteration")
    if 0 < trace.tokens < used:
        axes.axvline(trace.tokens - 0.5, color="black", linestyle="--", linewidth=1.2)
        end = {"xycoords": ("data", "axes fraction"), "va": "bottom", "size": 8}
        axes.annotate("final EOS", (trace.tokens - 0.4, 1), **end)
    return figure, image


# -- curves --------------------------------------------------------------------------------------


@styled
def settled_curve(traces: Mapping[str, Trace]) -> Figure:
    """Share of each final answer's tokens that have their final value, against iteration."""
    figure = _curves(traces, {n: t.settled_share for n, t in traces.items()}, "settled tokens (%)")
    figure.axes[0].yaxis.set_major_formatter(PercentFormatter(1.0, symbol=""))
    half = [f"{half_settled(trace)} ({_drawable(name)})" for name, trace in traces.items()]
    set_title(figure, f"Half of the answer is final after iteration {', '.join(half)}")
    return figure


@styled
def confidence_curve(traces: Mapping[str, Trace]) -> Figure:
    """Mean confidence of each draft's tokens before EOS, against iteration."""
    means = {name: _mean_confidence(trace) for name, trace in traces.items()}
    figure = _curves(traces, means, "mean confidence (probability)")
    ends = [f"{m[0]:.2f} to {m[-1]:.2f} ({_drawable(name)})" for name, m in means.items()]
    set_title(figure, f"Mean confidence goes from {', '.join(ends)}")
    return figure


def _curves(traces: Mapping[str, Trace], lines: Mapping[str, np.ndarray], y: str) -> Figure:
    if not traces:
        raise InvalidInput("no traces: expected a dict of at least one, from label to Trace")
    figure = new_figure(height=3.6)
    axes = figure.axes[0]
    for number, (name, values) in enumerate(lines.items()):
        every = max(len(values) // 16, 1)
        axes.plot(values, label=_plain(name), markevery=every, **series(number))
    axes.set_ylim(-0.02, 1.04)
    axes.xaxis.set_major_locator(MaxNLocator(integer=True))
    label(axes, "iteration", y)
    figure.legend(loc="outside lower left", ncols=3)
    return figure


def _plain(text: str) -> str:
    """Text for a title or a label: no missing characters, no formulas."""
    return _drawable(text).replace("$", r"\$")


def _mean_confidence(trace: Trace) -> np.ndarray:
    """`(i,)`: over the tokens before EOS; for an empty draft the confidence of its EOS."""
    lengths = [max(trace.answer_length(step), 1) for step in range(len(trace.steps))]
    return np.array([trace.confidence[step, :n].mean() for step, n in enumerate(lengths)])
