"""Figures of the denoiser: what its attention mask lets through, and what its adapter changes.

Shapes: t = positions, p of them prompt; a mask is `(t, t)` bool, rows attend to columns.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
from matplotlib.axes import Axes
from matplotlib.colors import ListedColormap, to_hex
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle

from lad.diffusion.trace import Trace
from lad.viz import style
from lad.viz.html import VIEWS
from lad.viz.style import COLORS, FONT_SIZE, label, listed, new_figure, styled, tint, titled
from lad.viz.tokens import token_spans, visible

SMALLEST = 1e-3  # moves below this are drawn as this: the axis is logarithmic
VISIBLE = tint(COLORS["swap"], 0.55)
BORDER = {"color": COLORS["masked"], "linewidth": 1.6, "linestyle": "--"}  # prompt | answer


@styled
def attention_masks(masks: Mapping[str, np.ndarray], prompt_length: int, masked=()) -> Figure:
    """The attention masks as small matrices; an M marks positions where the draft is MASK."""
    figure, _ = new_figure(1, len(masks), height=3.4 if len(masks) > 3 else 3.9)
    for axes, (name, mask) in zip(figure.axes, masks.items(), strict=True):
        _matrix(axes, mask, prompt_length)
        label(axes, f"attended to\n({mask.sum()} of {mask.size} pairs)", "attends")
        axes.set_title(name, loc="left", pad=16 if masked else None)
        letter = {"color": COLORS["masked"], "fontweight": "bold", "size": FONT_SIZE - 1}
        for at in masked:
            axes.text(at, -0.7, "M", ha="center", va="bottom", **letter)
            axes.text(len(mask) - 0.4, at, "M", ha="left", va="center", **letter)
    parts = {name: mask[prompt_length:, prompt_length:] for name, mask in masks.items()}
    names = [name for name, part in parts.items() if np.triu(part, 1).any()]
    text = f"{listed(names)} let{'s' * (len(names) == 1)} the answer attend to its right"
    text = text[0].upper() + text[1:] if names else "No answer position attends to its right"
    return titled(figure, text)


def _matrix(axes: Axes, mask: np.ndarray, prompt_length: int, column: int | None = None) -> None:
    """One mask: filled with a dot where a row attends; `column` in a frame."""
    t = len(mask)
    axes.imshow(mask, cmap=ListedColormap(["white", VISIBLE]), vmin=0, vmax=1, origin="upper")
    rows, columns = np.nonzero(mask)
    axes.plot(columns, rows, ".", color=COLORS["text"], markersize=min(60 / t, 5))
    axes.grid(which="major", visible=False)
    axes.grid(which="minor", color=COLORS["grid"], linewidth=0.6)
    axes.tick_params(which="both", length=0)
    middle = [(prompt_length - 1) / 2, (prompt_length + t - 1) / 2]
    axes.set_xticks(middle, ["prompt", "answer"])
    axes.set_yticks(middle, ["prompt", "answer"], rotation=90, va="center")
    for axis, line in ((axes.xaxis, axes.axvline), (axes.yaxis, axes.axhline)):
        axis.set_ticks(np.arange(t + 1) - 0.5, minor=True)
        line(prompt_length - 0.5, **BORDER)
    if column is not None:
        frame = {"fill": False, "edgecolor": COLORS["masked"], "linewidth": 2.2}
        axes.add_patch(Rectangle((column - 0.5, -0.5), 1, t, **frame))


@styled
def attention_effects(
    effects: Mapping[str, np.ndarray], tokens: Sequence[str], prompt_length: int, hidden: int
) -> Figure:
    """How far every position's final state moves, `(t,)`, when the token at `hidden` is MASK."""
    height = 1.0 + 1.35 * len(effects)
    figure, _ = new_figure(len(effects), 1, height=height, sharex=True, sharey=True)
    for number, (name, moves) in enumerate(effects.items()):
        axes = figure.axes[number]
        _bars(axes, moves, prompt_length, style.series(number)["color"])
        axes.set_title(name, loc="left")
        axes.set_ylabel("move (%)")
    _token_ticks(axes, tokens, hidden)
    axes.set_xlabel("position, with its token (the hidden one in brackets)")
    moved = [name for name, moves in effects.items() if moves[0] > 0]
    which = "the last token" if hidden == len(tokens) - 1 else f"token {hidden}"
    where = f"{listed(moved)} only" if moved else "none of these masks"
    return titled(figure, f"Hiding {which} moves position 0's state under {where}")


def _bars(axes: Axes, moves: np.ndarray, prompt_length: int, color: str) -> None:
    """Moves in percent on a logarithmic axis; an exact zero is written out."""
    position = np.arange(len(moves))
    height = 100 * np.maximum(moves, SMALLEST)
    bar = {"width": 0.8, "facecolor": tint(color, 0.6), "edgecolor": color}
    for at in position[moves > 0]:
        axes.bar(at, height[at], hatch="//" if at >= prompt_length else "", **bar)
    axes.set_yscale("log")
    axes.set_ylim(100 * SMALLEST, 400)
    axes.set_yticks([0.1, 1, 10, 100], ["≤0.1", "1", "10", "100"])
    axes.minorticks_off()
    for at in position[moves == 0]:
        axes.text(at, 0.13, "0", ha="center", va="bottom", size=FONT_SIZE - 1, fontweight="bold")
    axes.axvline(prompt_length - 0.5, **BORDER)
    axes.set_xlim(-0.6, len(moves) - 0.4)
    axes.grid(axis="x", visible=False)
    words = {"va": "top", "size": FONT_SIZE - 1, "color": COLORS["muted"]}
    axes.text(prompt_length - 0.6, 380, "prompt ", ha="right", **words)
    axes.text(prompt_length - 0.4, 380, " answer", ha="left", **words)


def _token_ticks(axes: Axes, tokens: Sequence[str], hidden: int) -> None:
    names = [_printable(token.strip() or token) for token in tokens]
    names[hidden] = f"[{names[hidden]}]"
    turned = {"rotation": 45, "ha": "right", "rotation_mode": "anchor"}
    axes.set_xticks(range(len(names)), names, **(turned if max(map(len, names)) > 3 else {}))


def effect_sentence(
    name: str, moves: np.ndarray, tokens: Sequence[str], prompt_length: int, hidden: int
) -> str:
    """What hiding one token does, in words."""
    prompt, answer = (int((part > 0).sum()) for part in np.split(moves, [prompt_length]))
    states = f"{prompt} of {prompt_length} states of the prompt and {answer} of "
    token = f"hiding token {hidden} ({tokens[hidden]!r}) moves {states}"
    return f"Under {name} attention, {token}{len(tokens) - prompt_length} of the answer."


@styled
def attention_explorer(
    mask: np.ndarray, moves: np.ndarray, tokens: Sequence[str], prompt_length: int, hidden: int
) -> Figure:
    """One mask and the effect of hiding one token, side by side. Laid out by hand, to be quick."""
    figure, (left, right) = new_figure(1, 2, 3.3, layout="none", width_ratios=(1, 1.9))
    figure.subplots_adjust(left=0.06, right=0.99, top=0.91, bottom=0.27, wspace=0.2)
    _matrix(left, mask, prompt_length, hidden)
    label(left, "attended to (framed: the hidden token)", "attends", "the mask")
    _bars(right, moves, prompt_length, style.series(0)["color"])
    _token_ticks(right, tokens, hidden)
    label(right, "position, with its token", "move of its final state (%)", "what moves")
    return figure


def moves_html(trace: Trace, moves: np.ndarray, hidden: int) -> str:
    """The one draft of a trace; the darker a token, the further hiding one moves its state.

    `moves` are those of the first positions, as shares of the states' lengths, on a scale from
    0.1 % to 100 %; the hidden token is struck.
    """
    spans = []
    for span in token_spans(trace, 0):
        first = span.positions[0]
        if first >= len(moves):
            break
        tag, style, words = "del", "", "hidden"
        if hidden not in span.positions:
            move = max(moves[n] for n in span.positions if n < len(moves))
            share = 1 + np.log10(np.clip(move, SMALLEST, 1)) / 3
            color = to_hex(tint(COLORS["swap"], 0.75 * share))
            tag, style, words = "span", f"--lad-confidence:{color}", f"moves {100 * move:.1f} %"
        one = {"tag": tag, "classes": "lad-token lad-confidence", "style": style}
        one |= {"title": f"position {first}, {words}", "is_name": span.kind != "text", "at": first}
        spans.append(one | {"lines": visible(span.text).split("\n")})
    label = f"how far states move when position {hidden} is hidden"
    return f'<div class="lad-by-confidence">{VIEWS.draft(spans, label, 0)}</div>'


def moves_sentence(trace: Trace, moves: np.ndarray, hidden: int, most: int = 5) -> str:
    """Which states move when one token of the draft is hidden, in words."""
    others = [n for n in np.argsort(-moves, kind="stable").tolist() if n != hidden and moves[n] > 0]
    names = [trace.decode([token]).strip() for token in trace.drafts[0][: len(moves)]]
    far = [f"{n} “{names[n]}” by {100 * moves[n]:.1f} %" for n in others[:most]]
    count = f"{len(others)} of {len(moves) - 1} other positions"
    start = f"Hiding position {hidden} “{names[hidden]}” moves the states of {count}"
    return f"{start}, most {listed(far)} of their length. Darker: further."


@styled
def parameter_bars(counts: Mapping[str, int]) -> Figure:
    """Sizes of backbone and adapter, the two keys of `Denoiser.parameter_counts()`."""
    figure, axes = new_figure(height=1.9)
    backbone, adapter = counts["backbone"] / 1e6, counts["adapter"] / 1e6
    _bar(axes, 0, backbone, f"{backbone:.3g} million", COLORS["grid"], "")
    _bar(axes, 1, adapter, f"{adapter:.3g} million", tint(COLORS["masked"], 0.6), "//")
    axes.set_yticks([0, 1], ["backbone (frozen)", "adapter (trained)"])
    axes.invert_yaxis()
    axes.margins(x=0.16)
    axes.set_xlabel("parameters (millions)")
    share = f"{100 * counts['adapter'] / counts['backbone']:.3g} %"
    return titled(figure, f"The trained adapter has {share} of the frozen backbone's parameters")


def _bar(axes: Axes, row: int, length: float, words: str, color: object, hatch: str) -> None:
    axes.barh(row, length, facecolor=color, edgecolor=COLORS["text"], hatch=hatch)
    axes.annotate(words, (length, row), (5, 0), textcoords="offset points", va="center")
    axes.grid(axis="y", visible=False)


@styled
def adapter_update(updates: Sequence) -> Figure:
    """How large the updates of `lad.evaluation.probes.update_sizes` are, by layer and module."""
    modules = list(dict.fromkeys(update.module for update in updates))
    layers = 1 + max(update.layer for update in updates)
    sizes = np.full((len(modules), layers), np.nan)
    for update in updates:
        sizes[modules.index(update.module), update.layer] = 100 * update.size
    figure, axes = new_figure(height=0.9 + 0.34 * len(modules))
    # From 0, so that a small update does not look like a large one.
    scale = {"vmin": 0, "vmax": max(np.nanmax(sizes), 1e-9), "cmap": style.SEQUENTIAL}
    image = axes.imshow(sizes, aspect="auto", **scale)
    figure.colorbar(image, ax=axes, pad=0.01).set_label("‖update‖ / ‖weight‖ (%)")
    axes.grid(visible=False)
    axes.set_yticks(range(len(modules)), modules)
    axes.set_xlabel("decoder layer (0 reads the tokens)")
    by_module = np.nanmedian(sizes, axis=1)
    which = f"{modules[by_module.argmax()]} most, {modules[by_module.argmin()]} least"
    median = f"{np.nanmedian(sizes):.3g} % (median)"
    return titled(figure, f"The adapter moves weights by {median}: {which}")


@styled
def predictions(answers: Mapping[str, Sequence], wanted: str) -> Figure:
    """Candidates of `lad.evaluation.probes.fill_mask` for one MASK, for several models or inputs.

    `wanted` is the token a reader would fill in: it is marked, and its shares are the title.
    """
    figure, _ = new_figure(1, len(answers), height=2.7, sharex=True)
    found = []
    for axes, (name, candidates) in zip(figure.axes, answers.items(), strict=True):
        shares = []
        for row, one in enumerate(candidates):
            right = one.text.strip() == wanted.strip()
            color = tint(COLORS["changed"], 0.6) if right else COLORS["grid"]
            percent = 100 * one.probability
            shares += [f"{percent:.3g} %"] * right
            _bar(axes, row, percent, f"{percent:.1f} %", color, "//" if right else "")
        least = f"< {100 * candidates[-1].probability:.2g} %"  # of those that are drawn
        found.append(f"{shares[0] if shares else least} ({name})")
        axes.set_yticks(range(len(candidates)), [_printable(c.text) for c in candidates])
        axes.invert_yaxis()
        axes.set(xlim=(0, 128), xticks=[0, 50, 100])
        label(axes, "probability (%)", "", name)
    return titled(figure, f"“{wanted.strip()}” has {', '.join(found)}")


def _printable(text: str) -> str:
    """A token's text with its spaces and line breaks visible, safe from formula markup."""
    return text.replace(" ", "␣").replace("\n", "↵").replace("$", r"\$")
