"""Figures of one refinement, or of a few side by side: Trace in, matplotlib Figure out.

Iterations count from 0, as in the trace. Confidence has the colour scale of `lad.viz.tokens`.
The filmstrip follows the figure on the authors' project page (LAD, EMNLP 2025 demo). matplotlib
does not order text that runs from right to left, such as Hebrew: its tokens stand in their order
from left to right; `lad.viz.html` shows it as it reads.
"""

from __future__ import annotations

import functools
import itertools
import unicodedata
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace

import numpy as np
from matplotlib import font_manager
from matplotlib.axes import Axes
from matplotlib.cm import ScalarMappable
from matplotlib.colors import Colormap, LinearSegmentedColormap, ListedColormap
from matplotlib.figure import Figure
from matplotlib.font_manager import FontProperties
from matplotlib.ft2font import FT2Font
from matplotlib.patches import Patch, Rectangle
from matplotlib.ticker import PercentFormatter

from lad.diffusion.trace import Trace
from lad.viz import style, tokens
from lad.viz.style import COLORS, WIDTH, label, new_figure, styled, titled
from lad.viz.tokens import CONFIDENCE_STOPS, TokenSpan, count, ran, token_spans

CONFIDENCE_MAP = LinearSegmentedColormap.from_list(
    "confidence", [(stop, [c / 255 for c in color]) for stop, color in CONFIDENCE_STOPS]
)

TITLE_FONT, LABEL_FONT = "DejaVu Sans:bold", "DejaVu Sans"
TOKEN_SIZE = 8.0  # points, 72 an inch
ADVANCE = 0.602 * TOKEN_SIZE / 72  # inches a character: the font is monospaced
LINE = 1.5 * TOKEN_SIZE / 72  # inches a line
MASK_WIDTH = 3  # characters
ROW_LABEL = 0.75  # inches
GAP = 0.25  # inches, between the columns and around everything
HEAD = 0.75  # inches: title and column names


@styled
def filmstrip_figure(trace: Trace, iterations: Sequence[int] | None = None) -> Figure:
    """The draft at iterations of `choose_steps`, tokens on the colour of their confidence.

    A run with re-masking has two columns, what the denoiser saw and what it drew.
    """
    steps = tokens.choose_steps(trace, iterations)
    columns = {"input": "what the denoiser saw"} if trace.remask.any() else {}
    columns["denoised"] = "the draft it drew"
    width = (WIDTH - ROW_LABEL - GAP * len(columns)) / len(columns)  # inches a column
    fits = int(width / ADVANCE)  # characters
    strips = [[wrap_spans(_spans(trace, step, phase), fits) for phase in columns] for step in steps]
    heights = [max(map(len, strip)) * LINE + 0.16 for strip in strips]
    height = HEAD + sum(heights) + 0.45  # and the colour scale
    # Everything is placed by hand, in inches from the top left.
    figure, axes = new_figure(height=height, layout="none")
    titled(figure, _filmstrip_title(trace), y=1 - 0.1 / height)
    axes.set(position=(0, 0, 1, 1), xlim=(0, WIDTH), ylim=(height, 0))
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
    cost = f"”: {count(trace.tokens, 'token')} in {ran(trace)}"
    prompt, most = " ".join(trace.prompt.split()), style.TITLE_LENGTH - len(cost) - 1
    return f"“{drawable(prompt if len(prompt) <= most else prompt[: most - 1] + '…')}{cost}"


def _spans(trace: Trace, step: int, phase: str) -> list[TokenSpan]:
    """The spans, with neighbouring EOS in one: this figure does not show their states."""
    spans = []
    for span in token_spans(trace, step, phase):
        if spans and spans[-1].kind == span.kind == "eos":
            span = replace(span, positions=spans.pop().positions + span.positions)
        spans.append(span)
    return spans


def wrap_spans(
    spans: list[TokenSpan], columns: int, replace: Callable[[str], str] | None = None
) -> list[list[tuple[str, TokenSpan]]]:
    """Break spans into lines of at most `columns` characters; a newline ends a line.

    `replace` replaces what cannot be drawn, by default what the font of the token lacks. A single
    MASK is NUL characters.
    """
    lines = [[]]
    for span in spans:
        font = f"{style.MONOSPACE}:italic" if span.after_eos else style.MONOSPACE
        for piece in _pieces(span, replace or functools.partial(drawable, font=font)):
            text = piece.rstrip("\n")
            while text:
                space = columns - sum(text_width(before) for before, _ in lines[-1])
                wide = text_width(text)
                if lines[-1] and wide > space and (wide <= columns or space < 8):
                    lines.append([])
                    continue
                ends = itertools.accumulate(map(text_width, text))
                taken = max(sum(end <= space for end in ends), 1)
                lines[-1].append((text[:taken], span))
                text = text[taken:]
            if piece.endswith("\n"):
                lines.append([])
    return lines if lines[-1] or len(lines) == 1 else lines[:-1]


def _pieces(span: TokenSpan, replace: Callable[[str], str]) -> list[str]:
    if span.kind == "mask" and span.count == 1:
        return ["\0" * MASK_WIDTH]
    if span.kind in ("mask", "eos"):
        return [f" {span.text} × {span.count} " if span.count > 1 else f" {span.text} "]
    return replace(tokens.visible(span.text)).splitlines(keepends=True) or [""]


def text_width(text: str) -> int:
    """Columns that a text takes in a monospaced font: wide characters take two."""
    return sum(2 if unicodedata.east_asian_width(c) in "WF" else 1 for c in text)


@functools.cache
def _font(pattern: str) -> FT2Font:
    return FT2Font(font_manager.findfont(FontProperties(pattern)))


def drawable(text: str, font: str = TITLE_FONT) -> str:
    """A box for every character the font lacks: matplotlib would warn and draw its own."""
    return "".join(c if c == "\n" or _font(font).get_char_index(ord(c)) else "□" for c in text)


def _draw_lines(axes: Axes, lines: list, left: float, top: float) -> None:
    font = {"family": "monospace", "size": TOKEN_SIZE, "va": "center_baseline"}
    for number, line in enumerate(lines):
        x, y = left, top + number * LINE
        for text, span in line:
            width = text_width(text) * ADVANCE
            masked = span.kind == "mask"
            fills = {"mask": "black", "eos": "#EEEEEE"}
            fill = fills.get(span.kind) or tokens.confidence_color(span.confidence)
            box = (x, y + 0.01), width - 0.012 * masked, LINE - 0.02
            axes.add_patch(Rectangle(*box, linewidth=0, facecolor=fill))
            if text.strip("\0"):
                look = {"color": "white" if masked else COLORS["text"]}
                look["style"] = "italic" if span.after_eos else "normal"
                axes.text(x, y + LINE / 2, text, parse_math=False, **font, **look)
            x += width


def _filmstrip_key(figure: Figure, axes: Axes, y: float, masks: bool) -> None:
    height = figure.get_figheight()
    box = (ROW_LABEL / WIDTH + 0.115, 1 - (y + 0.1) / height, 0.2, 0.13 / height)
    scale = ScalarMappable(cmap=CONFIDENCE_MAP)
    bar = figure.colorbar(scale, cax=figure.add_axes(box), orientation="horizontal", ticks=[])
    bar.outline.set_linewidth(0.5)
    after = ROW_LABEL + (0.115 + 0.2) * WIDTH + 0.06
    words = {ROW_LABEL: "confidence 0", after: "1"}
    if masks:
        left, width = after + 0.45, MASK_WIDTH * ADVANCE
        axes.add_patch(Rectangle((left, y - 0.03), width, 0.13, color="k"))
        words[left + width + 0.08] = "MASK"
    for x, text in words.items():
        axes.text(x, y + 0.035, text, va="center", size=9)


@styled
def confidence_heatmap(trace: Trace) -> Figure:
    """Confidence of the token drawn, by position (across) and iteration (downwards)."""
    figure, image = _heatmap(trace, trace.confidence, CONFIDENCE_MAP, 1)
    bar = figure.colorbar(image, ax=figure.axes[0], fraction=0.04, pad=0.02)
    bar.set_label("confidence (probability)")
    ends = "{:.2f} to {:.2f}".format(*_mean_confidence(trace)[[0, -1]])
    return titled(figure, f"Mean confidence goes from {ends} in {ran(trace)}")


@styled
def confidence_maps(traces: Sequence[Trace]) -> list[Figure]:
    """A small `confidence_heatmap` of each run, without a title, all with the same axes."""
    drawn = [_heatmap(trace, trace.confidence, CONFIDENCE_MAP, 1)[0] for trace in traces]
    right = max(figure.axes[0].get_xlim()[1] for figure in drawn)
    bottom = max(len(trace.steps) for trace in traces) - 0.5
    for figure in drawn:
        figure.set_size_inches(WIDTH / 2.3, 2.2)
        figure.axes[0].set(xlim=(-0.5, right), ylim=(bottom, -0.5), xlabel="position")
    return drawn


@styled
def settling_heatmap(trace: Trace) -> Figure:
    """What happened to each position (across) in each iteration (downwards)."""
    rows = np.arange(len(trace.steps))[:, None]
    state = np.where(trace.changed, 0, 1)
    state[rows >= trace.settled_at] = 2  # the change that brings the final token settles
    fills = (COLORS["changed"], "#C4C4C4", "#E8F3FB")
    figure, image = _heatmap(trace, state, ListedColormap(fills), 2)
    hatch = {"facecolor": "none", "edgecolor": "#8A3D00", "linewidth": 0}
    hatch["hatch"] = style.HATCHES["masked"] * 2
    for row, masked in enumerate(trace.is_masked[:, : image.get_array().shape[1]]):
        edges = np.flatnonzero(np.diff(masked.astype(np.int8), prepend=0, append=0))
        for start, stop in edges.reshape(-1, 2):
            box = Rectangle((start - 0.5, row - 0.5), stop - start, 1, **hatch)
            figure.axes[0].add_patch(box)
    names = ("changed, not settled", "unchanged, not settled", "settled")
    keys = [Patch(facecolor=fill, label=name) for fill, name in zip(fills, names, strict=True)]
    keys[-1].set(edgecolor=COLORS["muted"], linewidth=0.5)
    keys.append(Patch(label="was MASK in the input", **hatch))
    figure.legend(handles=keys, loc="outside lower left", ncols=4)
    final = trace.settled_at[: max(trace.tokens, 1)]
    late = int(np.sum(final > (len(trace.steps) - 1) / 2))
    share = f"{late} of {count(len(final), 'answer token')}"
    return titled(figure, f"{share} settle in the second half of {ran(trace)}")


def _heatmap(trace: Trace, values: np.ndarray, colors: Colormap, high: int):
    """`(i, a)` values as figure and image, without positions that are EOS in every draft."""
    text = (trace.drafts != trace.eos_token_id).any(axis=0)
    used = max(np.flatnonzero(text), default=0) + 1
    figure, axes = new_figure(height=float(np.clip(1.3 + 0.045 * len(trace.steps), 2.2, 4.5)))
    axes.grid(False)
    shown = {"vmin": 0, "vmax": high, "aspect": "auto", "interpolation": "nearest"}
    image = axes.imshow(values[:, :used], cmap=colors, **shown)
    style.whole_numbers(axes.xaxis, axes.yaxis)
    label(axes, "position in the answer region (tokens)", "iteration")
    if 0 < trace.tokens < used:
        axes.axvline(trace.tokens - 0.5, color="black", linestyle="--", linewidth=1.2)
        end = {"xycoords": ("data", "axes fraction"), "va": "bottom", "size": 8}
        axes.annotate("final EOS", (trace.tokens - 0.4, 1), **end)
    return figure, image


@styled
def settled_curve(traces: Mapping[str, Trace]) -> Figure:
    """Share of each final answer's tokens, its EOS included, that are settled, by iteration."""
    figure = _curves({n: t.settled_share for n, t in traces.items()}, "settled tokens (%)")
    figure.axes[0].yaxis.set_major_formatter(PercentFormatter(1.0, symbol=""))
    half = [f"{tokens.half_settled(trace)} ({drawable(name)})" for name, trace in traces.items()]
    return titled(figure, f"Iterations until half is settled: {', '.join(half)}")


def _curves(lines: Mapping[str, np.ndarray], y: str) -> Figure:
    figure, axes = new_figure(height=2.9)
    for number, (name, values) in enumerate(lines.items()):
        shown = drawable(name, LABEL_FONT).replace("$", r"\$")
        shown = f" {shown}" if shown.startswith("_") else shown  # or legends leave it out
        line = style.series(number) | {"label": shown}
        axes.plot(values, markevery=max(len(values) // 16, 1), **line)
    axes.set_ylim(-0.02, 1.04)
    style.whole_numbers(axes.xaxis)
    label(axes, "iteration", y)
    figure.legend(loc="outside lower left", ncols=3)
    return figure


def _mean_confidence(trace: Trace) -> np.ndarray:
    """`(i,)`: over the tokens before EOS; of an empty draft the confidence of its EOS."""
    lengths = [max(trace.answer_length(step), 1) for step in range(len(trace.steps))]
    return np.array([trace.confidence[step, :n].mean() for step, n in enumerate(lengths)])
