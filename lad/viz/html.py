"""Traces as HTML and plain text, in pure functions of tokens and values as in CircuitsVis.

The HTML functions return fragments; `page_html` puts them under one root element with the style
sheet they need. The markup is `lad/assets/view.html`, a Jinja2 template that escapes all text. What
changed is `<ins>` (green, underlined), what was masked is `<del>` (vermillion, hatched, struck).
"""

from __future__ import annotations

import base64
import gzip
import html
import json
import math
import zlib
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
import pandas as pd
from jinja2 import Environment, FileSystemLoader, StrictUndefined

from lad.diffusion.trace import Trace
from lad.models.chat import decode_pieces
from lad.viz import tokens
from lad.viz.tokens import PHASES, TokenSpan, count, sentence, summary, token_spans, visible

ASSETS = Path(__file__).parents[1] / "assets"
_FILES = ("view.css", "inside.js", "player.js", "chooser.js")
STYLE, INSIDE, PLAYER, CHOOSER = ((ASSETS / name).read_text(encoding="utf-8") for name in _FILES)
ENVIRONMENT = Environment(
    loader=FileSystemLoader(ASSETS), autoescape=True, undefined=StrictUndefined
)
VIEWS = ENVIRONMENT.get_template("view.html").module  # its macros
PACES = {"slow": 0.25, "normal": 1, "fast": 4}  # times the rate of the clock
# Clocks of a player: name -> moves a second at normal pace, and the slider's step
STEPS = {"steps": (1.5, 1)}
ITERATIONS = {"iterations": (1.5, 1)}
PASSES = {"forward passes": (10, 1), "seconds": (1, "any")}
COSTS = ["run", "tokens", "NFE (*: stopped early)", "TPF", "seconds"]
COSTS += ["half settled after", "repeats"]


class Page(str):
    """HTML that a notebook cell shows when it is the cell's last line."""

    def _repr_html_(self) -> str:
        return str(self)


def escape(text: str) -> str:
    """Text as HTML that shows exactly that text, in quotes of an attribute too."""
    return html.escape(visible(text), quote=True)


def page_html(*fragments: str) -> str:
    """Fragments under one root element, with the style sheet that is scoped to it."""
    return str(VIEWS.page(STYLE, fragments))


def draft_html(trace: Trace, step: int, phase: str = "denoised") -> str:
    """One step of a trace in one phase, see `token_spans`, as one line of HTML.

    Green is changed, red is masked. Inside an element of class `lad-by-confidence` the colour is
    that of the confidence; underline and hatch stay.
    """
    spans = [_span(span) for span in token_spans(trace, step, phase)]
    name = {"input": "Input of", "denoised": "Draft after", "remasked": "Draft re-masked after"}
    label = f"{name[phase]} iteration {trace.steps[step].iteration}"
    return str(VIEWS.draft(spans, label, step % len(trace.steps)))


def _span(span: TokenSpan) -> dict:
    classes = ["lad-token"] + [f"lad-{span.kind}"] * (span.kind != "text")
    style = ""
    if span.state != "masked" and not math.isnan(span.confidence):
        classes.append("lad-confidence")
        style = f"--lad-confidence:{tokens.confidence_color(span.confidence)}"
    classes += ["lad-after-eos"] * span.after_eos
    several = span.kind in ("eos", "mask") and span.count > 1
    text = f"{span.text} × {span.count}" if several else span.text
    tag = {"plain": "span", "changed": "ins", "masked": "del"}[span.state]
    shown = {"tag": tag, "classes": " ".join(classes), "style": style, "title": _describe(span)}
    shown["at"] = _ranges(span.positions)
    return shown | {"lines": visible(text).split("\n"), "is_name": span.kind != "text"}


def _ranges(positions: Sequence[int]) -> str:
    """Ascending numbers as "3", "3-5" or "3-5,8"."""
    if len(positions) == 1:  # nearly always
        return str(positions[0])
    runs = np.split(positions, np.flatnonzero(np.diff(positions) > 1) + 1)
    return ",".join(str(run[0]) if len(run) == 1 else f"{run[0]}-{run[-1]}" for run in runs)


def _describe(span: TokenSpan) -> str:
    words = [f"{span.count} positions"] * (span.count > 1)
    words += [span.state] * (span.state != "plain")
    words += [f"confidence {span.confidence:.2f}"] * (not math.isnan(span.confidence))
    words += ["after the end of the answer"] * span.after_eos
    return ", ".join(words)


def legend_html(trace: Trace, phases: Sequence[str] = PHASES) -> str:
    """The key to the spans, with only what can occur in these phases of this trace's frames."""
    gaps = any(name == "input" and trace.is_masked[i].any() for i, name in tokens.frames(trace))
    masked = ("input" in phases and gaps) or ("remasked" in phases and trace.remask.any())
    return str(VIEWS.legend(masked))


def caption_html(trace: Trace, step: int, phase: str, live: bool = False) -> str:
    """One sentence on a frame of `lad.viz.tokens.frames`; `live`: the run goes on."""
    if phase == "input" and step:
        by_hand = tokens.edited(trace, step)
        masked = int((by_hand & trace.is_masked[step]).sum())
        words = f"Input of iteration {trace.steps[step].iteration}"
        if not by_hand.any():
            return str(VIEWS.caption("Next", f"{words}."))
        changed = count(int(by_hand.sum()) - masked, "token")
        return str(VIEWS.caption("Edited", f"{words}: {changed} changed by hand, {masked} masked."))
    if phase == "input":
        masked = trace.is_masked[step].sum()
        words = f"{masked} of its positions masked" if masked else "nothing of it masked"
        return str(VIEWS.caption("Before", f"What the run starts from, {words}."))
    head = {"denoised": "After denoising", "remasked": "After re-masking"}[phase]
    if trace.config.get("remasking") == "verified" and trace.steps[step].iteration % 2:
        head = head.replace("denoising", "the backbone's pass")
    settled = tokens.is_whole(trace) and not live
    return str(VIEWS.caption(head, sentence(trace, step, [phase], settled)))


def prompt_html(trace: Trace) -> str:
    """Whose run it is: the prompt."""
    return str(VIEWS.prompt(visible(trace.prompt)))


def inside_html(trace: Trace) -> str:
    """The box in which a player shows what stands inside a token that the reader chooses.

    It holds the numbers of all positions and iterations, compressed, and each token's text once;
    `lad/assets/inside.js` reads them. A trace without alternatives has the history alone.
    """
    places, numbers = [trace.drafts[..., None]], [trace.confidence[..., None]]
    if trace.alternatives is not None:
        places += [trace.alternatives]
        numbers += [trace.probabilities, trace.entropy[..., None]]
    ids, index = np.unique(np.concatenate(places, axis=-1), return_inverse=True)
    index = index.reshape(*trace.drafts.shape, -1)
    mille = np.rint(1000 * np.concatenate(numbers, axis=-1, dtype=np.float32))
    table = np.moveaxis(np.concatenate([index, mille], axis=-1), -1, 0).astype("<u4")  # (n, i, a)
    values = {
        "tokens": [_name(trace, token) for token in ids.tolist()],
        "alternatives": index.shape[-1] - 1,
        "steps": len(trace.steps),
        "length": trace.drafts.shape[1],
        "first": trace.steps[0].iteration,
        "settled": trace.settled_at.tolist() if tokens.is_whole(trace) else None,
        "numbers": base64.b64encode(zlib.compress(table.tobytes(), 9)).decode(),
    }
    return str(VIEWS.inside(json.dumps(values, ensure_ascii=False, separators=(",", ":"))))


def _name(trace: Trace, token: int) -> str:
    """A token alone as text: its space in front stays, and halves of characters are bytes."""
    if token in (trace.mask_token_id, trace.eos_token_id):
        return "MASK" if token == trace.mask_token_id else "EOS"
    scheme = trace.prepend_scheme and "never"
    (piece,) = decode_pieces([trace.vocabulary[token]], scheme)
    return visible(piece.decode(errors="backslashreplace"), newline="↵")


def answer_html(trace: Trace) -> str:
    """The final answer and how the run ended."""
    return str(VIEWS.answer(visible(trace.answer, newline="\n"), summary(trace)))


def player_html(
    head: str, lanes: Sequence[Mapping], clocks: Mapping[str, tuple], foot: str = ""
) -> str:
    """Runs under one player that works in a page: play, step, scrub, pace, colour by confidence.

    A lane has `frames`, each with its times by every clock and its HTML, and perhaps a `name`, a
    `legend`, the box of `inside_html`, the frame to `start` with, the last by default, and
    `standing`, what the run needed in passes and seconds.
    """
    rest = dict.fromkeys(("name", "legend", "inside", "standing"), "")
    lanes = [rest | {"start": len(lane["frames"]) - 1} | lane for lane in lanes]
    return page_html(VIEWS.player(head, lanes, clocks, PACES, foot, INSIDE + PLAYER))


def replay_html(trace: Trace, head: str | None = None) -> str:
    """A trace as a player, frame by frame; `head` stands above it, by default the prompt."""
    frames = [
        (number, caption_html(trace, *frame) + draft_html(trace, *frame))
        for number, frame in enumerate(tokens.frames(trace))
    ]
    lane = {"frames": frames, "legend": legend_html(trace), "inside": inside_html(trace)}
    head = prompt_html(trace) if head is None else head
    return player_html(head, [lane], STEPS, answer_html(trace))


def comparison_html(traces: Mapping[str, Trace]) -> str:
    """Runs by name side by side, iteration by iteration, with what each cost.

    A run that has ended shows its answer from then on.
    """
    lanes = []
    for name, trace in traces.items():
        shown = [(step, "denoised") for step in range(len(trace.steps))]
        frames = [(n, caption_html(trace, n, p) + draft_html(trace, n, p)) for n, p in shown]
        parts = {"legend": legend_html(trace, ["denoised"]), "inside": inside_html(trace)}
        lanes.append({"name": visible(name), "frames": frames} | parts)
    return player_html("", lanes, ITERATIONS, costs_html(traces))


def chooser_html(
    menus: Mapping[str, Mapping[str, Sequence[str]]], pages: Mapping[str, str], note: str = ""
) -> str:
    """Menus over pages of HTML that are packed until they are chosen; the first is on show.

    A menu has its values by group, "" for none. A page stands at its places in the menus: "0 2".
    """
    packed = {key: gzip.compress(page.encode(), mtime=0) for key, page in pages.items()}
    packed = {key: base64.b64encode(data).decode() for key, data in packed.items()}
    first = next(iter(pages.values()))
    return page_html(VIEWS.chooser(menus, first, packed, note, CHOOSER))


def gallery_html(traces: Mapping[str, Trace]) -> Page:
    """Several runs, at least one, by name: a menu, and the player of the run that is chosen."""
    names = [visible(name) for name in traces]
    players = {str(number): replay_html(trace) for number, trace in enumerate(traces.values())}
    return Page(chooser_html({"Run": {"": names}}, players))


def costs_html(traces: Mapping[str, Trace]) -> str:
    """The table of `costs_table` as HTML, with each run's answer below."""
    table = costs_table(traces).to_html(classes="lad-costs", border=0)
    answers = [VIEWS.named(visible(name), answer_html(trace)) for name, trace in traces.items()]
    return "".join([table, *answers])


def costs_table(traces: Mapping[str, Trace]) -> pd.DataFrame:
    """A run a line, see `COSTS`; repeats are tokens equal to the one before."""
    rows = []
    for name, trace in traces.items():
        passes = f"{trace.nfe}{'*' * trace.stopped_early}"
        seconds = f"{trace.seconds:.1f}" if trace.seconds else "–"
        half = str(tokens.half_settled(trace)) if tokens.is_whole(trace) else "–"
        cost = str(trace.tokens), passes, f"{trace.tpf:.2f}", seconds
        ends = half, f"{tokens.repeated_share(trace):.0%}"
        rows.append((visible(name), *cost, *ends))
    table = pd.DataFrame(rows, columns=COSTS).set_index(COSTS[0])
    return table.rename_axis(index=None, columns=COSTS[0])  # one line of names, not two
