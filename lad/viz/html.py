"""Traces as HTML and as plain text: pure functions, no widgets, no state.

The HTML functions return fragments, and `page_html` puts fragments under one root element with the
style sheet they need:

    page_html(legend_html(trace), draft_html(trace, 3), answer_html(trace))

`replay_html` is a player for a page without a kernel: all frames are in the page, a script selects
the visible one, and nothing is loaded. Without scripts, as on GitHub, the last frame and the answer
remain. Nothing moves before Play is pressed; Tab reaches each part, arrows move the slider.

The markup is in `lad/assets/view.html`, a Jinja2 template that escapes all text. Control characters
and newlines are shown as signs, and each span is isolated (`<bdi>`), so right-to-left text stays in
its span and spans stand in the order of their positions.

No meaning depends on colour alone: what changed is `<ins>` (green, underlined), what was masked is
`<del>` (vermillion, hatched, struck). Coloured spans have black text, on light and dark pages.

The idea of views as pure functions of tokens and values: CircuitsVis, `colored_tokens`.
"""

from __future__ import annotations

import functools
import html
import math
import textwrap
from collections.abc import Mapping, Sequence
from pathlib import Path

from jinja2 import Environment, FileSystemLoader, StrictUndefined

from lad.diffusion.trace import Trace
from lad.utils import InvalidInput
from lad.viz.tokens import (
    TokenSpan,
    choose_steps,
    confidence_color,
    count,
    frames,
    half_settled,
    remasking_words,
    repeated_share,
    sentence,
    summary,
    token_spans,
    visible,
)

ASSETS = Path(__file__).parents[1] / "assets"
COLORINGS = ("state", "confidence", "either")
PACES = {"slow": 2.0, "normal": 0.7, "fast": 0.2}  # seconds between two frames
COSTS = ("run", "tokens", "NFE", "TPF", "seconds", "half settled after", "repeats")


@functools.cache
def _views():
    """The macros of `view.html`."""
    loader = FileSystemLoader(ASSETS)
    return (
        Environment(loader=loader, autoescape=True, undefined=StrictUndefined)
        .get_template("view.html")
        .module
    )


@functools.cache
def _asset(name: str) -> str:
    return (ASSETS / name).read_text(encoding="utf-8")


def escape(text: str) -> str:
    """Text as HTML that shows exactly that text, in quotes of an attribute too."""
    return html.escape(visible(text), quote=True)


def page_html(*fragments: str) -> str:
    """Fragments of HTML under one root element, with the style sheet that is scoped to it."""
    return str(_views().page(_asset("view.css"), fragments))


def colored_tokens(spans: Sequence[TokenSpan], label: str, coloring: str = "state") -> str:
    """Token spans as one line of HTML.

    Args:
        label: what the line is, for a screen reader.
        coloring: "state" (green = changed, red = masked) or "confidence" (by probability; the
            underline of what changed and the hatch of what is masked stay); with "either" it is
            by state, and by confidence inside an element of class `lad-by-confidence`.
    """
    _check_coloring(coloring)
    return str(_views().draft([_span(span, coloring) for span in spans], label))


def _span(span: TokenSpan, coloring: str) -> dict:
    """What the template fills in for one span."""
    classes = ["lad-token"] + [f"lad-{span.kind}"] * (span.kind != "text")
    style = ""
    if coloring != "state" and span.state != "masked" and not math.isnan(span.confidence):
        classes.append("lad-either" if coloring == "either" else "lad-confidence")
        name = "--lad-confidence" if coloring == "either" else "background"
        style = f"{name}:{confidence_color(span.confidence)}"
    if span.after_eos:
        classes.append("lad-after-eos")
    several = span.kind in ("eos", "mask") and span.count > 1
    text = f"{span.text} × {span.count}" if several else span.text
    return {
        "tag": {"plain": "span", "changed": "ins", "masked": "del"}[span.state],
        "classes": " ".join(classes),
        "style": style,
        "title": _describe(span),
        "lines": visible(text).split("\n"),
    }


def _describe(span: TokenSpan) -> str:
    """A span's tooltip: position, state, confidence."""
    first, last = span.positions[0], span.positions[-1]
    words = [
        f"position {first}" if span.count == 1 else f"{span.count} positions, {first} to {last}"
    ]
    if span.state != "plain":
        words.append(span.state)
    if not math.isnan(span.confidence):
        words.append(f"confidence {span.confidence:.2f}")
    if span.after_eos:
        words.append("after the end of the answer")
    return ", ".join(words)


def draft_html(trace: Trace, step: int, phase: str = "denoised", coloring: str = "state") -> str:
    """One step of a trace in one phase, as a line of `colored_tokens`.

    Args:
        step: index into `trace.steps`; negative counts from the end.
        phase: one of `lad.viz.tokens.PHASES`.
        coloring: see `colored_tokens`.
    """
    spans = token_spans(trace, step, phase)
    name = {"input": "Input of", "denoised": "Draft after", "remasked": "Draft re-masked after"}
    return colored_tokens(spans, f"{name[phase]} iteration {trace.steps[step].iteration}", coloring)


def legend_html(trace: Trace, coloring: str = "state") -> str:
    """The key to the spans, with only what can occur in this trace."""
    _check_coloring(coloring)
    return str(_views().legend(coloring == "confidence", bool(trace.remask.any())))


def caption_html(trace: Trace, step: int, phase: str, live: bool = False) -> str:
    """One sentence on a frame of `lad.viz.tokens.frames`.

    Args:
        live: the run goes on, so which tokens have settled is not certain yet.
    """
    if phase == "input":
        masked = int((trace.inputs[step] == trace.mask_token_id).sum())
        words = f"{masked} of its positions masked" if masked else "nothing of it masked"
        return str(_views().caption("Before", f"What the run starts from, {words}."))
    head = {"denoised": "After denoising", "remasked": "After re-masking"}[phase]
    # Which tokens are final is not certain in a run that was cut off either.
    complete = trace.stopped_early or len(trace.steps) >= trace.config.get("iterations", 1)
    return str(_views().caption(head, sentence(trace, step, complete and not live)))


def answer_html(trace: Trace) -> str:
    """The final answer and how the run ended."""
    return str(_views().answer(visible(trace.answer, newline="\n"), summary(trace)))


def replay_html(trace: Trace) -> str:
    """A trace as a player that works in a page: play, step, scrub, pace, colour by confidence."""
    drawn = [
        caption_html(trace, step, phase) + draft_html(trace, step, phase, "either")
        for step, phase in frames(trace)
    ]
    legends = [legend_html(trace, coloring) for coloring in ("state", "confidence")]
    answer = answer_html(trace)
    prompt = visible(trace.prompt)
    return page_html(_views().replay(prompt, drawn, legends, answer, PACES, _asset("replay.js")))


def replays_html(traces: Mapping[str, Trace]) -> str:
    """Several runs by name, each folded away behind its name; the first is open."""
    players = [(visible(name), replay_html(trace)) for name, trace in traces.items()]
    return str(_views().replays(players))


# -- plain text -----------------------------------------------------------------------------------


def draft_text(trace: Trace, step: int, phase: str = "denoised") -> str:
    """One step of a trace on one line of plain text: `[changed]`, `░` masked, `↵` newline."""
    pieces, changing = [], False
    for span in token_spans(trace, step, phase):
        changed = span.state == "changed"
        if changed != changing:
            pieces.append("[" if changed else "]")
        changing = changed
        text = visible(span.text).replace("\n", "")
        if span.kind == "eos":
            text = f" <EOS × {span.count}>" if span.count > 1 else " <EOS>"
            text = text.replace("EOS", "masked EOS") if span.state == "masked" else text
        elif span.kind == "mask":
            text = "░" if span.count == 1 else f" <MASK × {span.count}>"
        elif span.state == "masked":
            text = "".join(c if c.isspace() else "░" for c in text)
        pieces.append(text)
    return "".join(pieces) + "]" * changing


def filmstrip_text(trace: Trace, iterations: Sequence[int] | None = None, width: int = 96) -> str:
    """The drafts of chosen iterations as plain text; with re-masking the inputs as well.

    Args:
        iterations: see `lad.viz.tokens.choose_steps`.
        width: of a line, in characters.
    """
    remasked = bool(trace.remask.any())
    prompt = " ".join(trace.prompt.split())
    cost = f"{count(trace.tokens, 'token')} in {count(trace.nfe, 'iteration')}"
    lines = [f"{prompt} ({cost}, {remasking_words(trace)})", "[changed]" + "  ░ masked" * remasked]
    for step in choose_steps(trace, iterations):
        lines += ["", *textwrap.wrap(sentence(trace, step), width)]
        for phase in ("input", "denoised") if remasked else ("denoised",):
            margin = f"  {'input' if phase == 'input' else 'draft'}  " if remasked else "  "
            text = draft_text(trace, step, phase)
            lines += textwrap.wrap(
                text, width, initial_indent=margin, subsequent_indent=" " * len(margin)
            )
    return "\n".join([*lines, "", *textwrap.wrap(summary(trace), width)])


# -- costs ----------------------------------------------------------------------------------------


def costs_text(traces: Mapping[str, Trace]) -> str:
    """A table of runs: label, answer tokens, forward passes, tokens a pass, seconds, and how it
    went: iterations until half of the answer stood, and share of tokens equal to the one before.
    """
    table = [COSTS, *_costs(traces)]
    widths = [max(map(len, column)) for column in zip(*table, strict=True)]
    lines = [
        "  ".join([row[0].ljust(widths[0]), *map(str.rjust, row[1:], widths[1:])]) for row in table
    ]
    return "\n".join([lines[0], "-" * len(lines[0]), *lines[1:], "* stopped early"])


def costs_html(traces: Mapping[str, Trace]) -> str:
    """The same table as HTML, with each run's answer below."""
    rows = [[visible(row[0]), *row[1:]] for row in _costs(traces)]
    answers = [_views().named(visible(name), answer_html(trace)) for name, trace in traces.items()]
    return "".join([_views().costs(COSTS, rows), *answers])


def _costs(traces: Mapping[str, Trace]) -> list[tuple[str, ...]]:
    return [
        (
            name,
            str(trace.tokens),
            f"{trace.nfe}{'*' * trace.stopped_early}",
            f"{trace.tpf:.2f}",
            f"{trace.seconds:.1f}",
            str(half_settled(trace)),
            f"{repeated_share(trace):.0%}",
        )
        for name, trace in traces.items()
    ]


def _check_coloring(coloring: str) -> None:
    if coloring not in COLORINGS:
        raise InvalidInput(f"coloring = {coloring!r}: expected one of {', '.join(COLORINGS)}")
