"""Figures that are drawn again from recorded runs, without a model.

`figures/data/` holds what is behind the committed figures; each file names the model, the adapter's
digest, settings, seed, versions, device and command that made it. `lad figures` draws them.

    filmstrips, settling heatmaps    traces, recorded by notebook 03 in the full profile
    quality, convergence, ...        numbers, written by `lad study`
    ablation                         numbers, written by `lad ablate`
    schedule, noise, masks           nothing: they are computed as they are drawn
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path

from matplotlib.figure import Figure

from lad.diffusion.trace import Trace
from lad.evaluation.probes import KINDS_OF_ATTENTION, visible
from lad.utils import DamagedFile, InvalidInput, figures_folder, profile
from lad.viz import benchmarks, noise
from lad.viz import convergence as study
from lad.viz.ablation import ablation
from lad.viz.attention import attention_masks
from lad.viz.refinement import filmstrip_figure, settling_heatmap
from lad.viz.speed import speed
from lad.viz.style import Picture, save, show
from lad.viz.true_shape import true_shape
from lad.viz.word_corruption import Sentence, one_of_each

__all__ = [
    "DRAWN",
    "FIGURES",
    "GALLERY",
    "Drawing",
    "gallery",
    "read_numbers",
    "redraw",
    "save_trace",
    "show_recorded",
    "unrecorded",
]

CHECKOUT = Path(__file__).resolve().parents[2]

# figure -> the trace it shows, and the iterations, which are those of the authors' page
FIGURES: dict[str, tuple[str, list[int]]] = {
    "filmstrip_renoised": ("amsterdam_renoised", [0, 4, 8, 16, 32]),
    "filmstrip_noiseless": ("amsterdam_noiseless", [0, 4, 8, 16]),
}


def save_trace(trace: Trace, name: str, command: str = "make report") -> Path:
    """Record a run as `figures/data/NAME.jsonl`, with the command and profile that made it.

    Wall times are left out, so that a rerun on the same kind of machine gives the same file.

    Raises:
        CacheError: the folder cannot be written.
    """
    made_by = {"command": command, "profile": profile()}
    path = figures_folder() / "data" / f"{name}.jsonl"
    steps = [replace(step, seconds=0.0) for step in trace.steps]
    return replace(trace, steps=steps, provenance=trace.provenance | made_by).save(path)


# trace in figures/data -> what it shows; the gallery of the explorer and of notebook 03
GALLERY = {
    "paris_noiseless": "a short answer, without re-noising",
    "amsterdam_renoised": "a longer answer, with re-noising",
    "amsterdam_noiseless": "the same question, without re-noising",
    "amsterdam_quality": "the same question, a few sure tokens at a time",
    "paris_repair": "a damaged sentence, mended",
    "capitals_infill": "gaps in a sentence, filled",
}


def gallery() -> dict[str, Trace]:
    """The recorded runs that there are, by what they show; the same folders as `read_numbers`.

    Raises:
        DamagedFile: one that cannot be read.
    """
    folders = [figures_folder() / "data", CHECKOUT / "figures" / "data"]
    found = {}
    for name, words in GALLERY.items():
        paths = [folder / f"{name}.jsonl" for folder in folders]
        path = next((path for path in paths if path.is_file()), None)
        if path is not None:
            trace = Trace.load(path)
            found[f"{' '.join(trace.prompt.split())[:60]} ({words})"] = trace
    return found


def read_numbers(name: str) -> dict:
    """What a command wrote to `figures/data/NAME.json`.

    A notebook may be told to put its figures elsewhere (`LAD_FIGURES`); numbers that are not there
    are those of the checkout.

    Raises:
        InvalidInput: no such file.
        DamagedFile: one that is not JSON.
    """
    path = figures_folder() / "data" / f"{name}.json"
    if not path.is_file():
        path = CHECKOUT / "figures" / "data" / path.name
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError as error:
        raise InvalidInput(
            f"no numbers at {path}: expected a file that `lad` wrote; check it out again"
        ) from error
    except (OSError, ValueError) as error:
        raise DamagedFile(
            f"{path} cannot be read ({error}): expected JSON; check it out again"
        ) from error


@dataclass(frozen=True)
class Drawing:
    """How a figure is drawn again.

    Attributes:
        data: its file in `figures/data/`; None for one that needs no recorded numbers.
        draw: makes the figure from that file.
        by: the command that records the file.
    """

    data: str | None
    draw: Callable[[], Figure]
    by: str = "make report"


def _of_trace(trace: str, draw: Callable[[Trace], Figure]) -> Drawing:
    path = f"{trace}.jsonl"
    return Drawing(path, lambda: draw(Trace.load(figures_folder() / "data" / path)))


def _of_numbers(name: str, draw: Callable[[Mapping], Figure], by: str) -> Drawing:
    return Drawing(f"{name}.json", lambda: draw(read_numbers(name)), by)


def _kinds_of_noise() -> Figure:
    sentence = Sentence.of("The river flows past the old town and ends in the sea.", ends=3)
    return noise.kinds_of_noise(one_of_each(sentence, 0.8), 0.8)


def _attention_masks() -> Figure:
    hidden = [6, 8]
    masks = {kind: visible(kind, 4, 9, masked=hidden) for kind in KINDS_OF_ATTENTION}
    return attention_masks(masks, prompt_length=4, masked=hidden)


DRAWN: dict[str, Drawing] = {
    **{
        name: _of_trace(trace, partial(filmstrip_figure, iterations=iterations))
        for name, (trace, iterations) in FIGURES.items()
    },
    "settling_renoised": _of_trace("amsterdam_renoised", settling_heatmap),
    "settling_noiseless": _of_trace("amsterdam_noiseless", settling_heatmap),
    "quality_against_iterations": _of_numbers("study", study.quality_curve, "lad study"),
    "convergence": _of_numbers("study", study.convergence, "lad study"),
    "calibration": _of_numbers("study", study.calibration_curve, "lad study"),
    "settled_share": _of_numbers("study", study.settled_shares, "lad study"),
    "settling_order": _of_numbers("study", study.settling_order, "lad study"),
    "speed": _of_numbers("bench", speed, "lad bench"),
    "true_shape": _of_numbers("llama-3.1-8b", true_shape, "lad bench-shape --record"),
    "ablation": _of_numbers("ablation", ablation, "lad ablate"),
    "benchmarks": _of_numbers("benchmarks", benchmarks.accuracies, "lad benchmark collect"),
    "benchmark_curve": _of_numbers(
        "benchmark_curve", benchmarks.compute_curve, "lad benchmark curve"
    ),
    "schedule_by_sharpness": Drawing(None, noise.schedule_by_sharpness),
    "schedule_by_noise_start": Drawing(None, noise.schedule_by_noise_start),
    "kinds_of_noise": Drawing(None, _kinds_of_noise),
    "attention_masks": Drawing(None, _attention_masks),
}


def unrecorded() -> dict[str, str]:
    """Figures whose data is not in `figures/data/` yet -> the command that records it."""
    folders = [figures_folder() / "data", CHECKOUT / "figures" / "data"]
    missing = {}
    for name, drawing in DRAWN.items():
        # Traces are a folder's own; numbers may be the checkout's.
        places = folders[:1] if str(drawing.data).endswith(".jsonl") else folders
        if drawing.data and not any((place / drawing.data).is_file() for place in places):
            missing[name] = drawing.by
    return missing


def show_recorded(name: str, alt: str) -> Picture | None:
    """A figure from recorded numbers as the last line of a notebook cell.

    Numbers that have not been recorded are said to be missing, in a printed line.
    """
    missing = unrecorded()
    if name in missing:
        print(f"{name}: nothing to show yet, its numbers come with `{missing[name]}`.")
        return None
    return show(DRAWN[name].draw(), alt, name)


def redraw(names: Sequence[str] = ()) -> list[Path]:
    """Draw figures from `figures/data/`; by default all whose data is there.

    Returns:
        The files written.

    Raises:
        InvalidInput: an unknown name, or a figure asked for by name whose data is not recorded.
        DamagedFile: recorded data that cannot be read.
    """
    unknown = [name for name in names if name not in DRAWN]
    if unknown:
        raise InvalidInput(
            f"unknown figure {', '.join(map(repr, unknown))}: expected any of {', '.join(DRAWN)}"
        )
    missing = unrecorded()
    chosen = names or [name for name in DRAWN if name not in missing]
    return [save(DRAWN[name].draw(), name, svg=True) for name in chosen]
