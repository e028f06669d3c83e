"""What a viewer sees of a draft, as plain data: cells of text, each in one state, with a colour.

A page, a terminal and a figure must show the same thing, so what to show is decided here and how to
draw it in `lad/viz/html.py` (HTML and plain text) and `lad/viz/refinement.py` (matplotlib).

A row of a trace can be looked at in three phases, in the order in which they happen:

    input      what the denoiser saw: MASK, and the tokens kept from the draft before
    denoised   the draft it drew; a token that differs from the draft before is "changed", and in
               the first row one that differs from what the run started from, MASK or a text
    remask   the same draft after noising; a token that was masked again is "masked"

Tokens are bytes, not characters. A character split over several tokens becomes one cell, since its
halves mean nothing alone, and the EOS tokens that fill the region after the answer become one cell
with a count, since nobody wants to read fifty of them.

Colours: Okabe and Ito (2008), "Color universal design", https://jfly.uni-koeln.de/color/
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np

from lad.diffusion.trace import Trace
from lad.utils import InvalidInput

__all__ = [
    "CHANGED",
    "MASKED",
    "PHASES",
    "Cell",
    "changed",
    "choose_rows",
    "complete",
    "confidence_color",
    "draft_cells",
    "frames",
    "half_settled",
    "repeated_share",
    "sentence",
    "summary",
    "visible",
]

PHASES = ("input", "denoised", "remask")

MASKED = "#D55E00"  # vermillion; drawn with a hatch and a strike
CHANGED = "#009E73"  # bluish green; drawn with an underline

# Confidence from 0 to 1: dark red, olive, pale green, as in the authors' figure, except that the
# lightness rises evenly (CIELAB 51, 70, 90). So it reads the same in grey and for colour-blind
# eyes, and black text stands on all of it.
CONFIDENCE_STOPS = ((0.0, (200, 86, 64)), (0.5, (190, 170, 62)), (1.0, (199, 238, 195)))


@dataclass(frozen=True)
class Cell:
    """One piece of a draft that is drawn as a unit.

    Attributes:
        positions: positions of the answer region it covers, at least one.
        text: its characters as decoded, not escaped; "EOS" and "MASK" by name.
        kind: "text", "special" (a markup token by name), "mask" (unknown) or "end" (EOS).
        state: "plain", "changed" or "masked".
        confidence: mean probability of its tokens when they were drawn; NaN if never drawn.
        beyond: True for a token that stands after the draft's first EOS and so is no answer.
    """

    positions: tuple[int, ...]
    text: str
    kind: str
    state: str
    confidence: float
    beyond: bool

    @property
    def count(self) -> int:
        """Number of positions covered."""
        return len(self.positions)


def draft_cells(trace: Trace, row: int, phase: str = "denoised") -> list[Cell]:
    """The cells of one row of a trace, left to right; every position is in exactly one.

    Args:
        row: index into `trace.steps`; negative counts from the end.
        phase: one of `PHASES`.

    Raises:
        InvalidInput: no such row or phase.
    """
    row = _check_row(trace, row)
    if phase not in PHASES:
        raise InvalidInput(f"phase = {phase!r}: expected one of {', '.join(PHASES)}")
    tokens, confidence = trace.drafts[row], trace.confidence[row]
    states = np.full(len(tokens), "plain", dtype=object)
    if phase == "input":
        # A token that was kept is as sure as it was when it was drawn, one iteration ago.
        tokens = trace.inputs[row]
        confidence = trace.confidence[row - 1] if row else np.full(len(tokens), np.nan)
        states[tokens == trace.mask_token_id] = "masked"
    elif phase == "denoised":
        states[changed(trace, row)] = "changed"
    else:
        states[trace.remask[row]] = "masked"
    ends = np.flatnonzero(tokens == trace.eos_token_id)
    end = int(ends[0]) if len(ends) else len(tokens)

    cells = []
    for kind, group in _groups(trace, tokens):
        group_states = states[group]
        if kind == "end":  # one cell a state: what changed or was masked must not be lost
            parts = [(s, [p for p in group if states[p] == s]) for s in dict.fromkeys(group_states)]
        else:  # a character of which one token was masked is no longer known
            marked = [s for s in group_states if s != "plain"]
            parts = [(marked[0] if marked else "plain", group)]
        for state, positions in parts:
            unknown = tokens[positions[0]] == trace.mask_token_id
            sure = confidence[positions]
            cells.append(
                Cell(
                    positions=tuple(positions),
                    text=_name(trace, tokens[positions], kind, unknown),
                    kind="mask" if unknown else kind,
                    state=state,
                    confidence=float("nan") if unknown else float(sure.mean()),
                    beyond=kind != "end" and positions[0] > end,
                )
            )
    return cells


def changed(trace: Trace, row: int) -> np.ndarray:
    """`(a,)` bool: tokens that differ from the draft before, or from what the run started from."""
    return trace.changed[row] if row else trace.drafts[0] != trace.inputs[0]


def _name(trace: Trace, tokens: np.ndarray, kind: str, unknown: bool) -> str:
    if unknown:
        return "MASK"
    return "EOS" if kind == "end" else trace.decode(tokens)


def _groups(trace: Trace, tokens: np.ndarray) -> Iterator[tuple[str, list[int]]]:
    """Split positions into (kind, positions) that belong together."""
    empty = (tokens == trace.eos_token_id) | (tokens == trace.mask_token_id)
    solid = np.flatnonzero(~empty)
    after_text = int(solid[-1]) + 1 if len(solid) else 0
    tail = np.flatnonzero(tokens[after_text:] == trace.eos_token_id)
    tail_start = after_text + int(tail[0]) if len(tail) else len(tokens)

    position = 0
    while position < tail_start:
        token = int(tokens[position])
        group = [position]
        if token == trace.mask_token_id:
            kind = "mask"
        elif token == trace.eos_token_id:
            kind = "end"
            while tokens[group[-1] + 1] == token:  # text follows, or it would be the tail
                group.append(group[-1] + 1)
        elif token in trace.special_ids:
            kind = "special"
        else:
            kind = "text"
            expected = _missing_bytes(trace.vocabulary[token])
            while expected and group[-1] + 1 < len(tokens):
                following = int(tokens[group[-1] + 1])
                piece = b"" if following in trace.special_ids else trace.vocabulary[following]
                if not piece or not 0x80 <= piece[0] < 0xC0:  # the character is never finished
                    break
                group.append(group[-1] + 1)
                expected = _missing_bytes(b"".join(trace.vocabulary[int(tokens[p])] for p in group))
        yield kind, group
        position = group[-1] + 1
    if tail_start < len(tokens):
        yield "end", list(range(tail_start, len(tokens)))


def _missing_bytes(data: bytes) -> int:
    """How many bytes the last character of a UTF-8 string lacks; 0 when it is whole or no UTF-8."""
    for back in range(1, min(4, len(data)) + 1):
        byte = data[-back]
        if byte < 0x80:
            return 0
        if byte >= 0xC0:  # the first byte says how many there are
            length = 2 if byte < 0xE0 else 3 if byte < 0xF0 else 4 if byte < 0xF8 else 0
            return max(length - back, 0)
    return 0


def visible(text: str, newline: str = "↵\n") -> str:
    """Text with a sign for what cannot be seen: `↵` and a break, `⇥`, `␛` and its like."""
    signs = {code: chr(0x2400 + code) for code in range(32)} | {0x7F: "␡"}
    return text.translate(signs | {ord("\n"): newline, ord("\t"): "⇥"})


def confidence_color(confidence: float) -> str:
    """`#rrggbb` for a confidence in [0, 1], to be written on in black; NaN is white."""
    if math.isnan(confidence):
        return "#ffffff"
    at = [stop for stop, _ in CONFIDENCE_STOPS]
    channels = zip(*(color for _, color in CONFIDENCE_STOPS), strict=True)
    return "#" + "".join(f"{round(float(np.interp(confidence, at, c))):02x}" for c in channels)


def choose_rows(trace: Trace, iterations: Sequence[int] | None = None) -> list[int]:
    """Rows of a filmstrip: the ones asked for, or 0, 4, 8, 16, 32, ... and the last.

    A run may end sooner than expected, so an iteration beyond the last one means the last one.

    Raises:
        InvalidInput: none asked for, or one that is not a whole number from 0.
    """
    last = len(trace.steps) - 1
    if iterations is None:
        doubling = [0, *(4 * 2**n for n in range(10))]
        iterations = range(last + 1) if last < 6 else [n for n in doubling if n < last - 1] + [last]
    for number in iterations:
        if not isinstance(number, int | np.integer) or isinstance(number, bool) or number < 0:
            raise InvalidInput(f"iteration {number!r}: expected a whole number from 0")
    rows = sorted({min(int(number), last) for number in iterations})
    if not rows:
        raise InvalidInput("no iterations to show: expected at least one")
    return rows


def frames(trace: Trace) -> list[tuple[int, str]]:
    """What a player steps through: (row, phase); two phases where tokens were masked again.

    A run that started from a text, and not from MASK alone, begins with that text.
    """
    started = trace.inputs[0] != trace.mask_token_id
    shown = [(0, "input")] if started.any() else []
    for row in range(len(trace.steps)):
        shown.append((row, "denoised"))
        if trace.remask[row].any():
            shown.append((row, "remask"))
    return shown


def complete(trace: Trace) -> bool:
    """Whether the run came to its own end; of one that was cut off nobody knows what would stay."""
    return trace.stopped_early or len(trace.steps) >= trace.config.get("iterations", 1)


def sentence(trace: Trace, row: int, settled: bool = True) -> str:
    """What happened in one iteration, in words; the numbers concern the tokens before EOS.

    Args:
        row: index into `trace.steps`.
        settled: say which share of the final answer stands already. Only a finished run knows.
    """
    row = _check_row(trace, row)
    length = trace.answer_length(row)
    iteration = trace.steps[row].iteration
    again, tail = (int(part.sum()) for part in np.split(trace.remask[row], [length]))
    parts = []
    if length == 0:
        parts.append("the draft is empty")
    elif row == 0 and changed(trace, 0)[:length].all():
        parts.append(f"all {length} tokens are new" if length > 1 else "the one token is new")
    else:
        parts.append(f"{int(changed(trace, row)[:length].sum())} of {_tokens(length)} changed")
    if again or tail:
        beside = f" (and {tail} EOS after the end)" if tail else ""
        parts.append(f"{again} masked again{beside}")
    if length:
        parts.append(f"mean confidence {trace.confidence[row][:length].mean():.2f}")
    text = f"Iteration {iteration}: " + ", ".join(parts)
    return text + (f"; settled {100 * trace.settled_share[row]:.0f} %." if settled else ".")


def summary(trace: Trace) -> str:
    """How a run ended and what it cost, in words."""
    ran, planned = len(trace.steps), trace.config.get("iterations", len(trace.steps))
    if trace.stopped_early:
        whole = trace.config.get("remasking") == "threshold"
        why = "no MASK was left in the answer" if whole else "the draft stood still"
        end = f"Stopped early after {ran} of {planned} iterations: {why}."
    elif ran < planned:
        end = f"Cut off after {ran} of {planned} iterations."
    else:
        end = f"Ran all {ran} iterations." if ran > 1 else "Ran its one iteration."
    cost = f"{_tokens(trace.tokens)} from {_count(trace.nfe, 'forward pass')}"
    took = ""  # a recorded run may come without its wall times
    if trace.seconds:
        rate = trace.nfe / trace.seconds
        took = f" in {trace.seconds:.1f} s, {rate:.1f} iterations a second"
    return f"{end} {cost} ({trace.tpf:.2f} tokens a pass){took}."


def half_settled(trace: Trace) -> int:
    """Number of iterations after which at least half of the final answer's tokens stand."""
    return int(np.argmax(trace.settled_share >= 0.5)) + 1


def repeated_share(trace: Trace) -> float:
    """Share of the final answer's tokens that equal the token before: how much it stutters."""
    answer = trace.drafts[-1][: trace.tokens]
    return float((answer[1:] == answer[:-1]).mean()) if len(answer) > 1 else 0.0


def _tokens(number: int) -> str:
    return _count(number, "token")


def _count(number: int, thing: str) -> str:
    ending = "" if number == 1 else "es" if thing.endswith("ss") else "s"
    return f"{number} {thing}{ending}"


def _check_row(trace: Trace, row: int) -> int:
    rows = len(trace.steps)
    if not -rows <= row < rows:
        raise InvalidInput(f"row {row}: the trace has {rows}, expected 0 to {rows - 1}")
    return row % rows
