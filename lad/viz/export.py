"""A run to take away: as a page that plays it, as an animation, or as a trace.

The page is the player of `lad.viz.html`. The animation is SVG, the film strip of
`lad.viz.refinement` in time: it moves in a slide or a README, without a script, and where nothing
moves (paper, reduced motion) it shows the last draft.
"""

from __future__ import annotations

import textwrap
from pathlib import Path

from lad.diffusion.trace import Trace
from lad.diffusion.trace_file import to_lines
from lad.utils import write_whole
from lad.viz import tokens
from lad.viz.html import ENVIRONMENT, replay_html
from lad.viz.refinement import text_width, wrap_spans
from lad.viz.tokens import TokenSpan, token_spans, visible

COLUMNS = 72  # characters a line
ADVANCE, LINE, MARGIN = 8.4, 22, 16  # pixels: a character at size 14, a line, around everything
PHASES = {"input": "before", "denoised": "after denoising", "remasked": "after re-masking"}
NO_XML = dict.fromkeys((0xFFFE, 0xFFFF), "□")


def page(trace: Trace) -> str:
    """The run under a player, as one HTML document that needs nothing else."""
    return str(
        ENVIRONMENT.get_template("run.html.j2").render(title=trace.prompt, run=replay_html(trace))
    )


def animation(trace: Trace, seconds: float = 0.7, hold: float = 3.0) -> str:
    """The run as an animated SVG that starts again and again.

    Every draft is on show for `seconds` (above 0), the last for `hold` more.
    """
    frames = tokens.frames(trace)
    drafts = [wrap_spans(token_spans(trace, *frame), COLUMNS, str) for frame in frames]
    prompt = textwrap.wrap(visible(trace.prompt, " ").translate(NO_XML), COLUMNS) or [""]
    top = MARGIN + (len(prompt) + 1) * LINE  # of the first line of a draft
    shown = []
    for (step, phase), lines in zip(frames, drafts, strict=True):
        caption = f"iteration {trace.steps[step].iteration}, {PHASES[phase]}"
        shown.append({"caption": caption, "boxes": [*_boxes(lines, top)]})
    return ENVIRONMENT.get_template("run.svg.j2").render(
        prompt=prompt,
        answer=visible(trace.answer).translate(NO_XML),
        frames=shown,
        seconds=seconds,
        total=seconds * len(frames) + hold,
        width=round(COLUMNS * ADVANCE + 2 * MARGIN),
        bottom=top + max(map(len, drafts)) * LINE,
        line=LINE,
        margin=MARGIN,
    )


def _boxes(lines: list[list[tuple[str, TokenSpan]]], top: int):
    for number, line in enumerate(lines):
        x = MARGIN
        for text, span in line:
            width = text_width(text) * ADVANCE
            fill = {"mask": "#000", "eos": "#eee"}.get(span.kind)
            fill = "url(#masked)" if span.state == "masked" and span.kind != "mask" else fill
            yield {
                "x": round(x, 1),
                "y": top + number * LINE,
                "width": round(width - (span.kind == "mask"), 1),
                "fill": fill or tokens.confidence_color(span.confidence),
                "state": "mask" if span.kind == "mask" else span.state,
                "text": text.strip("\0").translate(NO_XML),
            }
            x += width


def as_text(trace: Trace, suffix: str) -> str:
    """A run as the file of this suffix holds it: .html a page, .svg an animation, else a trace."""
    makers = {".html": page, ".svg": animation}
    if suffix in makers:
        return makers[suffix](trace)
    return "".join(line + "\n" for line in to_lines(trace))


def save_run(trace: Trace, path: Path) -> Path:
    """Write a run as its file's name says, see `as_text`; CacheError where the disk refuses."""
    write_whole(path, as_text(trace, path.suffix.lower()).encode())
    return path
