"""A race of `lad.evaluation.race` as HTML that plays by itself: two runs under one clock."""

from __future__ import annotations

from collections.abc import Mapping
from itertools import accumulate

from lad.diffusion.trace import Trace
from lad.viz.html import (
    PASSES,
    VIEWS,
    draft_html,
    escape,
    legend_html,
    player_html,
    prompt_html,
)
from lad.viz.tokens import count, visible


def race_html(traces: Mapping[str, Trace]) -> str:
    """Timed runs of one prompt by name: play, step and scrub by passes or seconds; no kernel."""
    lanes = [
        {"name": name, "frames": _frames(trace), "standing": _standing(trace)}
        for name, trace in traces.items()
    ]
    *_, last = traces.values()  # which masks
    lanes[-1]["legend"] = legend_html(last)
    notes = race_sentence(traces), _conditions(last.provenance)
    foot = "".join(f"<p>{escape(note)}</p>" for note in notes)
    return player_html(prompt_html(last), lanes, PASSES, foot)


def race_sentence(traces: Mapping[str, Trace]) -> str:
    """Who needed what, in words."""
    runs = "; ".join(f"{name}: {_standing(trace)}" for name, trace in traces.items())
    fewest = min(traces, key=lambda name: traces[name].nfe)
    soonest = min(traces, key=lambda name: traces[name].seconds)
    time = "and less time" if fewest == soonest else f"and {soonest} less time"
    return f"{runs[0].upper()}{runs[1:]}. Here {fewest} needs fewer passes {time}."


def _standing(trace: Trace) -> str:
    cut = ", cut off," * (trace.tokens == trace.drafts.shape[1])
    cost = f"{count(trace.nfe, 'pass')}, {trace.seconds:.2f} s"
    return f"{count(trace.tokens, 'token')}{cut} in {cost}"


def _conditions(provenance: Mapping) -> str:
    where = [provenance[key] for key in ("model", "processor", "dtype") if key in provenance]
    return (
        f"Measured in one run on one device, one after the other ({', '.join(map(str, where))}). "
        "Seconds include reading the prompt: from left to right the first pass does it, a "
        "refinement reads it before its first one. Both keep the prompt's keys and values; "
        "neither is compiled. At normal pace a second of the clock takes a second."
    )


def _frames(trace: Trace) -> list[tuple[str, str]]:
    """What stands after each pass, with the passes and the seconds until then."""
    drawn, before = ["…"], ""
    for step, remask in enumerate(trace.remask):
        if trace.provenance.get("decoding") == "left to right":
            text = trace.text(step)
            kept = len(before) if text.startswith(before) else 0  # or a character is not whole yet
            drawn.append(VIEWS.written(visible(text[:kept]), visible(text[kept:])))
            before = text
        else:
            drawn.append(draft_html(trace, step, "remasked" if remask.any() else "denoised"))
    seconds = accumulate((step.seconds for step in trace.steps), initial=0)
    return [(f"{n} {at:.4f}", one) for n, (at, one) in enumerate(zip(seconds, drawn, strict=True))]
