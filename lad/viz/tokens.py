"""A draft as token spans, plain data: pieces of text, each in one state, with a confidence.

A step of a trace has three phases, in the order in which they happen:

    input      what the denoiser saw: MASK, and the tokens kept from the draft before, or edited
    denoised   the draft it drew; a token that differs from the draft before is "changed"
    remasked   the same draft after re-masking; a token that was masked again is "masked"
"""

from __future__ import annotations

import codecs
import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np

from lad.diffusion.trace import Trace
from lad.models.chat import decode_pieces

PHASES = ("input", "denoised", "remasked")
# strategies that mask only what was never shown -> what they show it by
SHOWN_BY = {
    "threshold": "with a confidence threshold",
    "entropy": "with an entropy bound",
    "editing": "with token editing",
    "verified": "of drafts that the backbone verifies",
}
SIGNS = {code: chr(0x2400 + code) for code in range(32)} | {0x7F: "␡", ord("\t"): "⇥"}
SOLID = ("text", "special")  # kinds of span that can stand in an answer

# Dark red, olive, pale green, as in the authors' figure, except that the lightness rises evenly
# (CIELAB 51, 70, 90): it reads the same in grey, and black text stands on all of it.
CONFIDENCE_STOPS = ((0.0, (200, 86, 64)), (0.5, (190, 170, 62)), (1.0, (199, 238, 195)))


@dataclass(frozen=True)
class TokenSpan:
    """A piece of a draft that is drawn as a unit.

    A token is bytes: a character split over several tokens is one span. The EOS tokens that fill
    the region after the answer are one span with a count.
    """

    positions: tuple[int, ...]  # of the answer region, at least one
    text: str  # as decoded, not escaped; "EOS" and "MASK" by name
    kind: str  # "text", "special" (a markup token by name), "mask" or "eos"
    state: str  # "plain", "changed" or "masked"
    confidence: float  # mean probability of its tokens when they were drawn; NaN if never drawn
    after_eos: bool  # after the draft's first EOS, and so no part of the answer

    @property
    def count(self) -> int:
        """Number of positions covered."""
        return len(self.positions)


def token_spans(trace: Trace, step: int, phase: str = "denoised") -> list[TokenSpan]:
    """The spans of one step of a trace, left to right; every position is in exactly one.

    `step` is an index into `trace.steps`, negative from the end; `phase` is one of `PHASES`.
    """
    step %= len(trace.steps)
    tokens, confidence = trace.drafts[step], trace.confidence[step]
    states = np.full(len(tokens), "plain", dtype=object)
    if phase == "input":
        # The confidence of a kept token is that of its draw, one iteration ago.
        tokens = trace.inputs[step]
        confidence = trace.confidence[step - 1] if step else np.full(len(tokens), np.nan)
        states[edited(trace, step)] = "changed"
        states[tokens == trace.mask_token_id] = "masked"
    elif phase == "denoised":
        states[changed(trace, step)] = "changed"
    else:
        states[trace.remask[step]] = "masked"
    end = [*tokens.tolist(), trace.eos_token_id].index(trace.eos_token_id)
    kinds = [_kind(trace, token) for token in tokens.tolist()]
    names = [trace.vocabulary[token] for token in tokens.tolist()]
    groups, pieces = [], decode_pieces(names, trace.prepend_scheme)
    for kind, group in _groups(kinds, pieces):
        # EOS is split by state, so that what changed or was masked is not lost in the others.
        parts = dict.fromkeys(states[group]) if kind == "eos" else [None]
        groups += [(kind, [p for p in group if s in (None, states[p])]) for s in parts]
    spans = []
    for kind, positions in groups:
        state = next((states[p] for p in positions if states[p] != "plain"), "plain")
        text = b"".join(pieces[p] for p in positions).decode(errors="replace")
        text = {"mask": "MASK", "eos": "EOS"}.get(kind, text)
        mean = math.nan if kind == "mask" else float(confidence[positions].mean())
        after_eos = kind in SOLID and positions[0] > end
        spans.append(TokenSpan(tuple(positions), text, kind, state, mean, after_eos))
    return spans


def changed(trace: Trace, step: int) -> np.ndarray:
    """`(a,)` bool: tokens that differ from the draft before, or from what the run started from."""
    return trace.changed[step] if step else trace.drafts[0] != trace.inputs[0]


def edited(trace: Trace, step: int) -> np.ndarray:
    """`(a,)` bool: where an input is not the draft before as it was re-masked: it was edited."""
    if step == 0:
        return np.zeros_like(trace.remask[0])
    before = np.where(trace.remask[step - 1], trace.mask_token_id, trace.drafts[step - 1])
    return trace.inputs[step] != before


def _groups(kinds: list[str], pieces: list[bytes]) -> Iterator[tuple[str, list[int]]]:
    """Kind and positions of what belongs together."""
    after_text = max((i + 1 for i, kind in enumerate(kinds) if kind in SOLID), default=0)
    end = after_text + [*kinds[after_text:], "eos"].index("eos")
    at = 0
    while at < end:
        stop = at + 1
        if kinds[at] == "eos":
            while kinds[stop] == "eos":  # text follows, or it would be the end
                stop += 1
        elif kinds[at] == "text":
            while _ends_early(b"".join(pieces[at:stop])) and kinds[stop : stop + 1] == ["text"]:
                if not b"\x80" <= pieces[stop][:1] < b"\xc0":  # the character is never finished
                    break
                stop += 1
        yield kinds[at], list(range(at, stop))
        at = stop
    # What follows the text: EOS, and MASK where EOS was masked again.
    for kind in ("eos", "mask"):
        positions = [i for i in range(end, len(kinds)) if kinds[i] == kind]
        if positions:
            yield kind, positions


def _kind(trace: Trace, token: int) -> str:
    if token in (trace.mask_token_id, trace.eos_token_id):
        return "mask" if token == trace.mask_token_id else "eos"
    return "special" if token in trace.special_ids else "text"


def _ends_early(data: bytes) -> bool:
    """Whether the last character of a UTF-8 string lacks bytes."""
    decoder = codecs.getincrementaldecoder("utf-8")("replace")
    decoder.decode(data)
    return bool(decoder.getstate()[0])


def visible(text: str, newline: str = "↵\n") -> str:
    """Text with a sign for what cannot be seen: `↵` and a break, `⇥`, `␛` and its like."""
    return text.translate(SIGNS | {ord("\n"): newline})


def confidence_color(confidence: float) -> str:
    """`#rrggbb` for a confidence in [0, 1], to be written on in black; NaN is white."""
    if math.isnan(confidence):
        return "#ffffff"
    at, colors = zip(*CONFIDENCE_STOPS, strict=True)
    channels = zip(*colors, strict=True)
    return "#" + "".join(f"{round(float(np.interp(confidence, at, c))):02x}" for c in channels)


def choose_steps(trace: Trace, iterations: Sequence[int] | None = None) -> list[int]:
    """Steps of a filmstrip: those of the given iterations, or 0, 4, 8, 16, 32, ... and the last.

    A run may end sooner than expected, so an iteration beyond the last one means the last one.
    """
    last = len(trace.steps) - 1
    if iterations is None:
        doubling = [0, *(4 * 2**n for n in range(10))]
        iterations = range(last + 1) if last < 6 else [n for n in doubling if n < last - 1] + [last]
    return sorted({min(number, last) for number in iterations})


def frames(trace: Trace) -> list[tuple[int, str]]:
    """What a player steps through: (step, phase); two phases where tokens were masked again.

    A run that started from a text, and not from MASK alone, begins with that text; an input that
    was edited is shown, too.
    """
    found = [] if trace.is_masked[0].all() else [(0, "input")]
    for step, remask in enumerate(trace.remask):
        found += [(step, "input")] * bool(edited(trace, step).any())
        found += [(step, "denoised")] + [(step, "remasked")] * bool(remask.any())
    return found


def sentence(trace: Trace, step: int, phases: Sequence[str], settled: bool = True) -> str:
    """One iteration in words: what can be seen in these of its `PHASES`.

    `settled` adds the share of the final answer, its EOS included, that keeps its tokens from here.
    """
    step %= len(trace.steps)
    length = trace.answer_length(step)
    parts = []
    if "input" in phases:
        parts.append(f"{count(int(trace.is_masked[step].sum()), 'MASK')} in its input")
    if "denoised" in phases:
        number, tail = _split(changed(trace, step), length)
        words = f"{number} of {count(length, 'token')} changed"
        if length == 0:
            words = "the draft is empty"
        elif step == 0 and number == length:
            words = f"all {length} tokens are new" if length > 1 else "the one token is new"
        parts.append(words + tail)
    if "remasked" in phases and trace.remask[step].any():
        number, tail = _split(trace.remask[step], length)
        parts.append(f"{number} masked again{tail}")
    if length:
        parts.append(f"mean confidence {trace.confidence[step][:length].mean():.2f}")
    text = f"Iteration {trace.steps[step].iteration}: " + ", ".join(parts)
    return text + (f"; settled {100 * trace.settled_share[step]:.0f} %." if settled else ".")


def _split(marked: np.ndarray, length: int) -> tuple[int, str]:
    """How many of the answer's positions are marked, and in words how many behind them."""
    inside, outside = (int(part.sum()) for part in np.split(marked, [length]))
    return inside, f" (and {outside} from EOS on)" * (outside > 0)


def is_whole(trace: Trace) -> bool:
    """Whether the run came to its end: only then it is certain which tokens are settled."""
    return trace.stopped_early or len(trace.steps) >= trace.config.get("iterations", 1)


def summary(trace: Trace) -> str:
    """How a run ended and what it cost, in words."""
    ran, planned = len(trace.steps), trace.config.get("iterations", len(trace.steps))
    if trace.stopped_early:
        whole = trace.config.get("remasking") in SHOWN_BY
        why = "no MASK was left in the answer" if whole else "the draft settled"
        end = f"Stopped early after {ran} of {planned} iterations: {why}."
    elif ran < planned:
        end = f"Cut off after {ran} of {planned} iterations."
    else:
        end = f"Ran all {ran} iterations." if ran > 1 else "Ran its one iteration."
    cost = f"{count(trace.tokens, 'token')} from {count(trace.nfe, 'forward pass')}"
    if trace.backbone_passes:
        cost += f", {trace.backbone_passes} of them by the backbone"
    took = ""
    if all(step.seconds for step in trace.steps):  # recorded runs and those of a batch have none
        rate = trace.nfe / trace.seconds
        took = f" in {trace.seconds:.1f} s, {rate:.1f} iterations a second"
    return f"{end} {cost} ({trace.tpf:.2f} tokens a pass){took}."


def count(number: int, thing: str) -> str:
    """A number with its noun: "1 token", "3 tokens", "2 forward passes"."""
    ending = "" if number == 1 else "es" if thing.endswith("ss") else "s"
    return f"{number} {thing}{ending}"


def ran(trace: Trace) -> str:
    """The length and the kind of a run: "4 iterations with re-masking"."""
    words = f"with{'' if trace.remask.any() else 'out'} re-masking"
    words = SHOWN_BY.get(trace.config.get("remasking"), words)
    return f"{count(trace.nfe, 'iteration')} {words}"


def half_settled(trace: Trace) -> int:
    """Number of iterations after which at least half of the final answer's tokens are settled."""
    return int(np.argmax(trace.settled_share >= 0.5)) + 1


def repeated_share(trace: Trace) -> float:
    """Share of the final answer's tokens that equal the token before: how much it stutters."""
    answer = trace.drafts[-1][: trace.tokens]
    return float((answer[1:] == answer[:-1]).mean()) if len(answer) > 1 else 0.0
