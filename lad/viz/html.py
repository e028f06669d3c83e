"""Traces as HTML and as plain text: pure functions, no widgets, no state.

Every function returns a string. The HTML ones return fragments, and `page_html` puts fragments
under one root element with the style sheet they need:

    page_html(legend_html(trace), draft_html(trace, 3), filmstrip_html(trace))

Text is data. Whatever a prompt or a token holds is escaped, control characters and newlines are
shown as signs, and each cell is isolated (`<bdi>`), so right-to-left text stays in its own cell and
cells always stand in the order of their positions.

No meaning hangs on colour alone: what changed is `<ins>` (green, underlined), what was masked is
`<del>` (vermillion, hatched, struck), and both survive where style sheets are stripped. Coloured
cells carry black text, which reads on a light page and on a dark one.
"""

from __future__ import annotations

import html
import math
import textwrap
from collections.abc import Mapping, Sequence

from lad.diffusion.trace import Trace
from lad.utils import InvalidInput
from lad.viz.tokens import (
    CHANGED,
    CONFIDENCE_STOPS,
    MASKED,
    Cell,
    choose_rows,
    complete,
    confidence_color,
    draft_cells,
    half_settled,
    repeated_share,
    sentence,
    summary,
    visible,
)

__all__ = [
    "COLORINGS",
    "answer_html",
    "caption_html",
    "costs_html",
    "costs_text",
    "draft_html",
    "draft_text",
    "escape",
    "filmstrip_html",
    "filmstrip_text",
    "legend_html",
    "page_html",
]

COLORINGS = ("state", "confidence", "either")

_GRADIENT = ", ".join(confidence_color(stop) for stop, _ in CONFIDENCE_STOPS)

STYLE = f"""
.lad-view {{ line-height: 1.9; }}
.lad-view .lad-draft {{ margin: 0.3em 0; overflow-wrap: anywhere; }}
.lad-view .lad-cell {{ white-space: pre-wrap; text-decoration: none; color: inherit;
  border-radius: 2px; padding: 1px 0; -webkit-print-color-adjust: exact;
  print-color-adjust: exact; }}
.lad-view ins.lad-cell {{ background: {CHANGED}; color: #000; text-decoration: underline 2px; }}
.lad-view del.lad-cell {{ color: #000; text-decoration: line-through;
  background: repeating-linear-gradient(45deg, transparent 0 3px, rgba(255,255,255,.4) 3px 5px)
  {MASKED}; }}
.lad-view del.lad-mask {{ display: inline-block; font-size: 0.7em; line-height: 1.3; margin: 0 1px;
  padding: 0 2px; text-decoration: none; white-space: nowrap; }}
.lad-view .lad-sure {{ color: #000; }}
.lad-view .lad-by-confidence .lad-either {{ color: #000; background: var(--lad-sure); }}
.lad-view .lad-end, .lad-view .lad-special {{ font-size: 0.8em; border: 1px solid #8a8a8a;
  padding: 0 3px; margin-left: 3px; }}
.lad-view .lad-beyond {{ font-style: italic; border-bottom: 1px dotted currentColor; }}
.lad-view table {{ border-collapse: collapse; width: 100%; table-layout: fixed; }}
.lad-view caption {{ text-align: left; font-weight: bold; padding: 0.3em 0; }}
.lad-view th, .lad-view td {{ text-align: left; vertical-align: top; padding: 0.2em 0.8em 0.2em 0;
  border-top: 1px solid #8a8a8a; background: none; }}
.lad-view th[scope=row], .lad-view th.lad-corner {{ width: 4.5em; }}
.lad-view table.lad-costs {{ table-layout: auto; width: auto; }}
.lad-view .lad-costs th[scope=row] {{ width: auto; white-space: nowrap; }}
.lad-view .lad-legend > span {{ margin-right: 1.2em; white-space: nowrap; }}
.lad-view .lad-ramp {{ display: inline-block; width: 8em; height: 0.9em; vertical-align: middle;
  border: 1px solid #8a8a8a; background: linear-gradient(to right, {_GRADIENT}); }}
.lad-view .lad-answer {{ white-space: pre-wrap; border-left: 4px solid {CHANGED};
  padding-left: 0.8em; margin: 0.3em 0; overflow-wrap: anywhere; }}
"""


def escape(text: str) -> str:
    """Text as HTML that shows exactly that text, in quotes of an attribute too."""
    return html.escape(visible(text), quote=True)


def page_html(*fragments: str) -> str:
    """Fragments under one root element, with the style sheet that is scoped to it."""
    return f'<div class="lad-view"><style>{STYLE}</style>{"".join(fragments)}</div>'


def draft_html(trace: Trace, row: int, phase: str = "denoised", coloring: str = "state") -> str:
    """One row of a trace in one phase, as a line of cells.

    Args:
        row: index into `trace.steps`; negative counts from the end.
        phase: one of `lad.viz.tokens.PHASES`.
        coloring: "state" (green = changed, red = masked) or "confidence" (by probability; the
            underline of what changed and the hatch of what is masked stay); with "either" it is
            by state, and by confidence inside an element of class `lad-by-confidence`.

    Raises:
        InvalidInput: no such row, phase or colouring.
    """
    _check_coloring(coloring)
    cells = "".join(_cell_html(cell, coloring) for cell in draft_cells(trace, row, phase))
    name = {"input": "Input of", "denoised": "Draft after", "remask": "Draft after noising in"}
    label = f"{name[phase]} iteration {trace.steps[row].iteration}"
    return f'<div class="lad-draft" role="group" aria-label="{label}">{cells}</div>'


def _cell_html(cell: Cell, coloring: str) -> str:
    tag = {"plain": "span", "changed": "ins", "masked": "del"}[cell.state]
    classes = ["lad-cell"] + [f"lad-{cell.kind}"] * (cell.kind != "text")
    style = ""
    if coloring != "state" and cell.state != "masked" and not math.isnan(cell.confidence):
        by_state = coloring == "either"
        classes.append("lad-either" if by_state else "lad-sure")
        name = "--lad-sure" if by_state else "background"
        style = f' style="{name}:{confidence_color(cell.confidence)}"'
    if cell.beyond:
        classes.append("lad-beyond")
    text = escape(_label(cell)).replace("\n", "<br>")
    return (
        f'<{tag} class="{" ".join(classes)}"{style} title="{_describe(cell)}">'
        f"<bdi>{text}</bdi></{tag}>"
    )


def _label(cell: Cell) -> str:
    several = cell.kind in ("end", "mask") and cell.count > 1
    return f"{cell.text} × {cell.count}" if several else cell.text


def _describe(cell: Cell) -> str:
    """What hovering over a cell tells: position, state, confidence."""
    first, last = cell.positions[0], cell.positions[-1]
    where = f"position {first}" if cell.count == 1 else f"{cell.count} positions, {first} to {last}"
    words = [where]
    if cell.state != "plain":
        words.append("masked" if cell.state == "masked" else "changed")
    if not math.isnan(cell.confidence):
        words.append(f"confidence {cell.confidence:.2f}")
    if cell.beyond:
        words.append("after the end of the answer")
    return ", ".join(words)


def legend_html(trace: Trace, coloring: str = "state") -> str:
    """The key to the cells, showing only what can occur in this trace."""
    _check_coloring(coloring)
    parts = []
    if coloring == "confidence":
        parts.append('confidence 0 <span class="lad-ramp" role="img" aria-label="colour scale">'
                     "</span> 1, <u>underlined</u>: changed")  # fmt: skip
    else:
        parts.append('<ins class="lad-cell">changed</ins> in this iteration')
    if trace.remask.any():
        parts.append('<del class="lad-cell">masked</del> again after it')
    parts.append('<span class="lad-cell lad-end">EOS × n</span> unused end of the answer region')
    parts.append("↵ newline")
    return '<div class="lad-legend">' + "".join(f"<span>{part}</span>" for part in parts) + "</div>"


def caption_html(trace: Trace, row: int, phase: str, live: bool = False) -> str:
    """One plain sentence on what a frame shows; see `lad.viz.tokens.frames`.

    Args:
        live: the run is still going on, so nobody can know what has settled.
    """
    if phase == "input":
        given = int((trace.inputs[row] == trace.mask_token_id).sum())
        hidden = f"{given} of its positions masked" if given else "nothing of it masked"
        return f"<div><b>Before.</b> What the run starts from, {hidden}.</div>"
    after = {"denoised": "After denoising", "remask": "After noising"}[phase]
    words = escape(sentence(trace, row, complete(trace) and not live))
    return f"<div><b>{after}.</b> {words}</div>"


def answer_html(trace: Trace) -> str:
    """The final answer and how the run ended."""
    answer = html.escape(visible(trace.answer, newline="\n")) or "<em>(empty)</em>"
    return f'<div class="lad-answer" dir="auto">{answer}</div><div>{escape(summary(trace))}</div>'


def filmstrip_html(
    trace: Trace, iterations: Sequence[int] | None = None, coloring: str = "state"
) -> str:
    """Chosen iterations as a table, first to last; with re-noising the input stands beside it.

    Args:
        iterations: see `lad.viz.tokens.choose_rows`.
        coloring: see `draft_html`.
    """
    noisy = bool(trace.remask.any())
    head = "<th scope='col'>input</th>" * noisy + "<th scope='col'>draft</th>"
    body = []
    for row in choose_rows(trace, iterations):
        drafts = [draft_html(trace, row, phase, coloring) for phase in _columns(noisy)]
        columns = "".join(f"<td>{draft}</td>" for draft in drafts)
        body.append(f"<tr><th scope='row'>{trace.steps[row].iteration}</th>{columns}</tr>")
    return (
        f"<table><caption>{escape(_caption(trace))}</caption><thead><tr>"
        f"<th scope='col' class='lad-corner'>iteration</th>{head}</tr></thead>"
        f"<tbody>{''.join(body)}</tbody></table>"
    )


def draft_text(trace: Trace, row: int, phase: str = "denoised") -> str:
    """One row of a trace on one line of plain text: `[changed]`, `░` masked, `↵` newline."""
    pieces, changing = [], False
    for cell in draft_cells(trace, row, phase):
        changed = cell.state == "changed"
        if changed != changing:
            pieces.append("[" if changed else "]")
        changing = changed
        text = visible(cell.text).replace("\n", "")
        if cell.kind == "end":
            text = f" <EOS × {cell.count}>" if cell.count > 1 else " <EOS>"
            text = text.replace("EOS", "masked EOS") if cell.state == "masked" else text
        elif cell.kind == "mask":
            text = "░" if cell.count == 1 else f" <MASK × {cell.count}>"
        elif cell.state == "masked":
            text = "".join(c if c.isspace() else "░" for c in text)
        pieces.append(text)
    return "".join(pieces) + "]" * changing


def filmstrip_text(trace: Trace, iterations: Sequence[int] | None = None, width: int = 96) -> str:
    """The filmstrip for whoever has no browser: a block of lines for each chosen iteration.

    Args:
        iterations: see `lad.viz.tokens.choose_rows`.
        width: of a line, in characters, at least 40.
    """
    if width < 40:
        raise InvalidInput(f"width = {width}: expected at least 40 characters")
    noisy = bool(trace.remask.any())
    lines = [_caption(trace), "[changed]" + "  ░ masked" * noisy]
    for row in choose_rows(trace, iterations):
        lines += ["", *textwrap.wrap(sentence(trace, row), width)]
        for phase in _columns(noisy):
            margin = f"  {'input' if phase == 'input' else 'draft'}  " if noisy else "  "
            text = draft_text(trace, row, phase)
            lines += textwrap.wrap(
                text, width, initial_indent=margin, subsequent_indent=" " * len(margin)
            )
    return "\n".join([*lines, "", *textwrap.wrap(summary(trace), width)])


COSTS = ("run", "tokens", "NFE", "TPF", "seconds", "half settled after", "repeats")


def costs_text(traces: Mapping[str, Trace]) -> str:
    """A table of runs: label, answer tokens, forward passes, tokens a pass, seconds, and how it
    went: iterations until half of the answer stood, and share of tokens equal to the one before.
    """
    rows = [COSTS, *_costs(traces)]
    widths = [max(len(cell) for cell in column) for column in zip(*rows, strict=True)]
    lines = [
        "  ".join([cells[0].ljust(widths[0]), *map(str.rjust, cells[1:], widths[1:])])
        for cells in rows
    ]
    return "\n".join([lines[0], "-" * len(lines[0]), *lines[1:], "* stopped early"])


def costs_html(traces: Mapping[str, Trace]) -> str:
    """The same table as HTML, with each run's answer below."""
    head = "".join(f"<th scope='col'>{name}</th>" for name in COSTS)
    body = "".join(
        f"<tr><th scope='row'>{escape(first)}</th>"
        + "".join(f"<td>{escape(cell)}</td>" for cell in rest)
        + "</tr>"
        for first, *rest in _costs(traces)
    )
    answers = "".join(
        f"<div><strong>{escape(name)}</strong></div>{answer_html(trace)}"
        for name, trace in traces.items()
    )
    return (
        f'<table class="lad-costs"><thead><tr>{head}</tr></thead><tbody>{body}</tbody></table>'
        f"<div>* stopped early</div>{answers}"
    )


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


def _columns(noisy: bool) -> tuple[str, ...]:
    return ("input", "denoised") if noisy else ("denoised",)


def _caption(trace: Trace) -> str:
    kind = "with" if trace.remask.any() else "without"
    tokens = f"{trace.tokens} token" + "s" * (trace.tokens != 1)
    ran = f"{trace.nfe} iteration" + "s" * (trace.nfe != 1)
    prompt = " ".join(trace.prompt.split())
    return f"{prompt} ({tokens} in {ran}, {kind} re-noising)"


def _check_coloring(coloring: str) -> None:
    if coloring not in COLORINGS:
        raise InvalidInput(f"coloring = {coloring!r}: expected one of {', '.join(COLORINGS)}")
