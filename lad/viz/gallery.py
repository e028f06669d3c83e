"""Figures and runs that are drawn from recorded data, without a model and without torch.

`figures/data/` holds what is behind the committed figures: traces recorded by notebook 3, examples
by notebooks 1 and 2, numbers by `lad study` and others, see `DRAWN`. Each file names the model, the
adapter's digest, settings, seed, versions, device and command that made it.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import NamedTuple

import numpy as np
from matplotlib.figure import Figure

from lad.diffusion.trace import Trace
from lad.utils import (
    InvalidInput,
    checked,
    damaged_file,
    disk_errors,
    figures_folder,
    profile,
    write_json,
)
from lad.viz import attention, benchmarks, convergence, lens, noise, refinement, throughput
from lad.viz.ablation import ablation
from lad.viz.frontier import frontier
from lad.viz.style import Picture, save, show

CHECKOUT = Path(__file__).resolve().parents[2]
COMMAND = "make report"  # runs the notebooks, which record traces and examples

# figure -> the trace it shows, and the iterations, which are those of the authors' page
FIGURES: dict[str, tuple[str, list[int]]] = {
    "filmstrip_renoised": ("amsterdam_renoised", [0, 4, 8, 16, 32]),
    "filmstrip_noiseless": ("amsterdam_noiseless", [0, 4, 8, 16]),
}
# trace in figures/data -> what it shows; the gallery of the explorer and of notebook 3
GALLERY = {
    "paris_noiseless": "a short answer, without re-masking",
    "amsterdam_renoised": "a longer answer, with re-masking",
    "amsterdam_noiseless": "the same question, without re-masking",
    "amsterdam_quality": "the same question, a few confident tokens at a time",
    "paris_repair": "a corrupted sentence, repaired",
    "capitals_infill": "gaps in a sentence, filled",
}


def save_trace(trace: Trace, name: str, timed: bool = False) -> Path:
    """Record a run as `figures/data/NAME.jsonl`; its wall times vary by run: only if `timed`."""
    made_by = {"command": COMMAND, "profile": profile()}
    steps = trace.steps if timed else [replace(step, seconds=0.0) for step in trace.steps]
    recorded = replace(trace, steps=steps, provenance=trace.provenance | made_by)
    return recorded.save(figures_folder() / "data" / f"{name}.jsonl")


def save_numbers(name: str, numbers: Mapping) -> Path:
    """Record plain values as `figures/data/NAME.json`, with the command that made them."""
    path = figures_folder() / "data" / f"{name}.json"
    with disk_errors(path, "set LAD_FIGURES to another folder"):
        path.parent.mkdir(exist_ok=True)
        write_json(path, {"command": COMMAND, **numbers})
    return path


def recorded_file(file: str) -> Path:
    """A file of `figures/data/`; `LAD_FIGURES` may name a folder that holds figures only."""
    own, recorded = figures_folder() / "data" / file, CHECKOUT / "figures" / "data" / file
    return recorded if recorded.is_file() and not own.is_file() else own


def read_numbers(name: str) -> dict:
    """What a command wrote to `figures/data/NAME.json`; InvalidInput if there is no such file."""
    path = recorded_file(f"{name}.json")
    if not path.exists():
        raise InvalidInput(f"no numbers at {path}: expected what `lad` wrote; check it out")
    with damaged_file(path, "expected JSON; restore it"):
        return checked(path.read_bytes(), object)


def recorded_runs() -> dict[str, Trace]:
    """The runs of `GALLERY` that there are, by name."""
    paths = {name: recorded_file(f"{name}.jsonl") for name in GALLERY}
    return {name: Trace.load(path) for name, path in paths.items() if path.is_file()}


def gallery(runs: Mapping[str, Trace] | None = None) -> dict[str, Trace]:
    """Recorded runs, by default all, under names that say what they show."""
    runs = recorded_runs() if runs is None else runs
    return {f"{' '.join(t.prompt.split())[:60]} ({GALLERY[n]})": t for n, t in runs.items()}


def save_race(traces: dict[str, Trace]) -> dict[str, Trace]:
    """Record a race, with its wall times, a file for each run; returns the race."""
    for name, trace in traces.items():
        save_trace(trace, f"race_{name.replace(' ', '_')}", timed=True)
    return traces


def recorded_race(adapter_sha256: str | None = None) -> dict[str, Trace]:
    """The recorded race, left to right first; empty if there is none, or of another adapter."""
    paths = [recorded_file(f"race_{name}.jsonl") for name in ("left_to_right", "refinement")]
    traces = [Trace.load(path) for path in paths if path.is_file()]
    digest = traces[-1].provenance["adapter_sha256"] if len(traces) == 2 else ""
    fits = adapter_sha256 in (None, digest)
    return {t.provenance["decoding"]: t for t in traces} if digest and fits else {}


class Drawing(NamedTuple):
    """How a figure is drawn: a function of its file in `figures/data/`, if it needs one."""

    data: str | None
    draw: Callable[..., Figure]
    by: str = COMMAND  # which records the file


def _kinds_of_noise(data: Mapping) -> Figure:
    examples = {kind: noise.Corrupted(**one) for kind, one in data["examples"].items()}
    return noise.kinds_of_noise(examples, data["severity"])


def _attention_masks(data: Mapping) -> Figure:
    masks = {name: np.array(mask, dtype=bool) for name, mask in data["masks"].items()}
    return attention.attention_masks(masks, data["prompt_length"], data["masked"])


_LARGE = "lad bench --model llama-3.1-8b:random --record"
DRAWN: dict[str, Drawing] = {
    **{
        name: Drawing(f"{trace}.jsonl", partial(refinement.filmstrip_figure, iterations=iterations))
        for name, (trace, iterations) in FIGURES.items()
    },
    "settling_renoised": Drawing("amsterdam_renoised.jsonl", refinement.settling_heatmap),
    "settling_noiseless": Drawing("amsterdam_noiseless.jsonl", refinement.settling_heatmap),
    "quality_against_iterations": Drawing("study.json", convergence.quality_curve, "lad study"),
    "convergence": Drawing("study.json", convergence.convergence, "lad study"),
    "calibration": Drawing("study.json", convergence.calibration_curve, "lad study"),
    "settled_share": Drawing("study.json", convergence.settled_shares, "lad study"),
    "settling_order": Drawing("study.json", convergence.settling_order, "lad study"),
    "first_layer": Drawing("study.json", lens.first_layer, "lad study"),
    "frontier": Drawing("frontier.json", frontier, "lad frontier"),
    "speed": Drawing("bench.json", throughput.speed, "lad bench"),
    "seconds_per_token": Drawing(
        "seconds_per_token.json", throughput.seconds_per_token, "lad bench --record"
    ),
    "true_shape": Drawing("llama-3.1-8b.json", throughput.true_shape, _LARGE),
    "ablation": Drawing("ablation.json", ablation, "lad ablate"),
    "benchmarks": Drawing("benchmarks.json", benchmarks.accuracies, "lad benchmark collect"),
    "benchmark_curve": Drawing(
        "benchmark_curve.json", benchmarks.compute_curve, "lad benchmark curve"
    ),
    "schedule_by_sharpness": Drawing(None, noise.schedule_by_sharpness),
    "schedule_by_noise_start": Drawing(None, noise.schedule_by_noise_start),
    "kinds_of_noise": Drawing("kinds_of_noise.json", _kinds_of_noise),
    "attention_masks": Drawing("attention_masks.json", _attention_masks),
}


def draw(name: str) -> Figure:
    """A figure of `DRAWN` from its recorded data (DamagedFile if that holds something else)."""
    _check([name])
    file, make, command = DRAWN[name]
    if file is None:
        return make()
    if file.endswith(".jsonl"):
        return make(Trace.load(recorded_file(file)))
    numbers = read_numbers(Path(file).stem)
    with damaged_file(f"figures/data/{file}", f"expected what `{command}` writes; run it again"):
        return make(numbers)


def unrecorded() -> dict[str, str]:
    """Figures whose data is not in `figures/data/` yet -> the command that records it."""
    wanted = {name: one for name, one in DRAWN.items() if one.data}
    return {n: one.by for n, one in wanted.items() if not recorded_file(one.data).is_file()}


def show_recorded(name: str, alt: str) -> Picture | None:
    """A recorded figure as the last line of a cell; without its data, a line on how to get it."""
    missing = unrecorded()
    if name in missing:
        print(f"{name}: nothing to show yet, its numbers come with `{missing[name]}`.")
        return None
    return show(draw(name), alt, name)


def redraw(names: Sequence[str] = ()) -> list[Path]:
    """Draw figures from `figures/data/`, by default all whose data is there; the files written."""
    _check(names)
    missing = unrecorded()
    chosen = names or [name for name in DRAWN if name not in missing]
    return [save(draw(name), name, svg=True) for name in chosen]


def _check(names: Sequence[str]) -> None:
    for name in names:
        if name not in DRAWN:
            raise InvalidInput(f"unknown figure {name!r}: expected any of {', '.join(DRAWN)}")
