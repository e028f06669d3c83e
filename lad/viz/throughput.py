"""How fast answers are made: the figures of `lad bench`.

Recorded numbers call the roofline, the time that memory and arithmetic allow at best, `floor`.
"""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from lad.utils import DamagedFile
from lad.viz.style import COLORS, label, log2_axis, new_figure, series, span, styled, titled
from lad.viz.tokens import count

# ways of `lad bench` -> words
LEFT_TO_RIGHT = {
    "generate": "dynamic cache",
    "static": "static cache, compiled",
    "lookup": "prompt lookup",
}
DOTTED = {"color": COLORS["muted"], "linestyle": ":", "linewidth": 1.2}


@styled
def speed(data: Mapping) -> Figure:
    """Seconds of an answer, and milliseconds of an iteration, from what `lad bench` wrote."""
    batches = {}
    for cell in sorted(data["cells"], key=lambda cell: (cell["batch"], cell["window"])):
        batches.setdefault(cell["batch"], []).append(cell)
    if not batches:
        raise DamagedFile("no timings among these: expected some; run `lad bench` again")
    smallest = min(batches)
    # `generate` of transformers has neither graphs nor compiled layers.
    plain = "uncompiled generate" if data.get("graphs") else "generate"
    fair = all(cell.get("static") for cell in data["cells"])  # which is compiled, as refinement is
    baseline, named = ("static", "left to right, compiled") if fair else ("generate", plain)
    figure, (answers, iterations, progress) = new_figure(1, 3, height=3.6)
    at_once = {batch: f"{count(batch, 'prompt')} at once" for batch in batches}

    engines = {"reference": "plain loops", "generate": plain, "sampler": "refinement"}
    engines["static"] = "compiled, static cache"
    for number, (engine, words) in enumerate(engines.items()):
        timed = [cell for cell in batches[smallest] if cell.get(engine) is not None]
        if timed:
            points = [(cell["window"], cell[engine]["seconds_per_answer"]) for cell in timed]
            answers.plot(*zip(*points, strict=True), **series(number), label=words)
    _log_panel(answers, [cell["window"] for cell in batches[smallest]])
    label(answers, "window (positions)", "seconds an answer", at_once[smallest])

    for number, (batch, cells) in enumerate(batches.items()):
        x = [cell["window"] for cell in cells]
        y = [1000 * cell["sampler"]["iteration_seconds"] for cell in cells]
        iterations.plot(x, y, **series(number), label=at_once[batch])
        iterations.plot(x, [1000 * cell["floor"]["seconds"] for cell in cells], **DOTTED)
    _log_panel(iterations, sorted({cell["window"] for cell in data["cells"]}))
    label(iterations, "window (dotted: roofline)", "milliseconds an iteration", "one iteration")

    for number, cell in enumerate(batches[smallest]):
        elapsed = 1000 * np.cumsum(cell["sampler"]["step_seconds"])
        line = series(number) | {"marker": "none", "label": f"window {cell['window']}"}
        progress.plot(range(1, len(elapsed) + 1), elapsed, **line)
    progress.set_ylim(bottom=0)
    label(progress, "iterations", "milliseconds elapsed", at_once[smallest])
    progress.legend()

    parts = []
    for batch in dict.fromkeys((smallest, max(batches))):
        ratios = [cell[f"speedup_vs_{baseline}"]["value"] for cell in batches[batch]]
        parts.append(f"{span(ratios)} at batch {batch}")
    nearest = min(cell["sampler"]["iteration_by_floor"] for cell in data["cells"])
    machine = f"{data['provenance']['model']} on {data['provenance']['processor']}"
    details = f"{machine}; an iteration takes {nearest:.1f} times its roofline at best"
    if data.get("graphs") and not fair:
        details += "; refinement has CUDA graphs and compiled layers, generate neither"
    return titled(figure, f"Times as fast as {named}: {', '.join(parts)}", details)


def _log_panel(axes: Axes, ticks: list[int]) -> None:
    """Logarithmic axes, with a third of the height left to a legend above all lines."""
    log2_axis(axes, ticks)
    axes.set_yscale("log")
    low, high = axes.get_ylim()
    axes.set_ylim(low, high * (high / low) ** 0.5)
    axes.legend(loc="upper left")


@styled
def seconds_per_token(data: Mapping) -> Figure:
    """Milliseconds a token, one prompt at a time: refinement beside left to right, by device.

    `data` is what `lad bench` with `--record FILE` added to one file on each; of two runs with the
    same settings the later counts.
    """
    devices: dict[str, dict[str, Mapping]] = {}
    for run in data["runs"]:
        devices.setdefault(run["device"], {})[run["setting"]] = run
    if not devices:
        raise DamagedFile("no runs among these: expected some; run `lad bench --record` again")
    figure, _ = new_figure(1, len(devices), height=2.9)
    found = []
    for axes, (device, runs) in zip(figure.axes, devices.items(), strict=True):
        cells = {name: min(run["cells"], key=_size) for name, run in runs.items()}
        ours = {
            f"refinement, {n}": cell["sampler"]["seconds_per_token"] for n, cell in cells.items()
        }
        timed = next(iter(cells.values()))
        others = {
            f"left to right, {words}": timed[way]["seconds_per_token"]
            for way, words in LEFT_TO_RIGHT.items()
            if timed[way] is not None
        }
        for place, (name, one) in enumerate((others | ours).items()):
            value, low, high = 1000 * np.array([one[k] for k in ("value", "low", "high")])
            look = series(name in ours) | {"linestyle": "", "capsize": 2.5}
            axes.errorbar([value], [place], xerr=[[value - low], [high - value]], **look)
        axes.set_yticks(range(place + 1), [*others, *ours])
        axes.set_ylim(-0.5, place + 0.5)
        axes.set_xlim(left=0)
        processor = next(iter(runs.values()))["provenance"]["processor"]
        label(axes, "milliseconds a token", "", processor)
        best, fastest = (min(one["value"] for one in d.values()) for d in (others, ours))
        times = [f"{1000 * t:,.1f}" if t < 0.01 else f"{1000 * t:,.0f}" for t in (fastest, best)]
        words = "{} and {}" if found else "{} ms refined, {} left to right"
        found.append(f"{words.format(*times)} on a {'CPU' if device == 'cpu' else 'GPU'}")
    note = f"window {timed['window']}, one prompt at a time; bars: 95 % intervals over answers"
    return titled(figure, f"A token takes {'; '.join(found)}", note)


def _size(cell: Mapping) -> tuple[int, int]:
    return cell["batch"], cell["window"]


@styled
def true_shape(data: Mapping) -> Figure:
    """An iteration's time by its roofline, against the batch; training's rate, against GPUs.

    `data` is what `lad bench` and `lad train --dry-run` with `--record FILE` added to one file.
    """
    iterations = [run for run in data["runs"] if run["kind"] == "iteration"]
    training = [run for run in data["runs"] if run["kind"] == "training"]
    panels = [(_iteration_panel, iterations)] if iterations else []
    # A rate on one number of GPUs is no curve: beside iterations it stands in the details alone.
    if training and (not iterations or len({run["processes"] for run in training}) > 1):
        panels.append((_training_panel, training))
    if not panels:
        raise DamagedFile("no runs among these: expected some; run `lad bench --record` again")
    figure, _ = new_figure(1, len(panels), height=3.8)
    for axes, (draw, runs) in zip(figure.axes, panels, strict=True):
        draw(axes, runs)
    parts = []
    for run in iterations:
        ratios = [cell["sampler"]["iteration_by_floor"] for cell in run["cells"]]
        parts.append(f"{span(ratios)} ({run['bits']} bit)")
    details = []
    for runs in _by_settings(training)[:1]:
        first, last = runs[0], runs[-1]
        tokens = f"{first['aim_tokens'] / 1e6:.0f} million tokens"
        details.append(
            f"{tokens} take {first['hours']:.1f} h on {count(first['processes'], 'GPU')}"
        )
        if len(runs) > 1:
            gain = last["tokens_per_second"] / first["tokens_per_second"]
            details.append(f"{count(last['processes'], 'GPU')} are {gain:.1f} times as fast")
    model = data["runs"][0]["provenance"]["model"].split(":")[0]
    finding = f"An iteration takes {', '.join(parts)} times its roofline"
    below = f"{model}: " + "; ".join(details) if details else model
    return titled(figure, finding if parts else f"Training: {details[0]}", below)


def _iteration_panel(axes: Axes, runs: list[Mapping]) -> None:
    for number, run in enumerate(runs):
        cells = sorted(run["cells"], key=lambda cell: cell["batch"])
        y = [cell["sampler"]["iteration_by_floor"] for cell in cells]
        x = [cell["batch"] for cell in cells]
        axes.plot(x, y, **series(number), label=f"{run['bits']} bit")
    axes.axhline(1, color=COLORS["text"], linestyle=":", linewidth=1.2, label="roofline")
    log2_axis(axes, sorted({cell["batch"] for run in runs for cell in run["cells"]}))
    axes.set_ylim(bottom=0)
    label(axes, "prompts at once", "time of an iteration\nby its roofline (ratio)", "refining")
    axes.legend()


def _training_panel(axes: Axes, runs: list[Mapping]) -> None:
    for number, group in enumerate(_by_settings(runs)):
        x = [run["processes"] for run in group]
        y = [run["tokens_per_second"] / 1000 for run in group]
        axes.plot(x, y, **series(number), label=_settings(group[0]))
        if x[0] == 1 and len(x) > 1:
            axes.plot(x, [y[0] * n for n in x], **DOTTED)
    ticks = sorted({run["processes"] for run in runs})
    axes.set_xticks(ticks, [str(tick) for tick in ticks])
    axes.set_ylim(bottom=0)
    label(axes, "GPUs (dotted: in proportion)", "thousand tokens a second", "training")
    axes.legend()


def _settings(run: Mapping) -> str:
    settings = run["denoiser"]
    return f"{run['bits']} bit, rank {settings['rank']} on {len(settings['layers'])} layers"


def _by_settings(runs: list[Mapping]) -> list[list[Mapping]]:
    """Runs that differ in the number of GPUs alone; of two alike the later."""
    groups = {}
    for run in runs:
        groups.setdefault(_settings(run), {})[run["processes"]] = run
    return [[group[n] for n in sorted(group)] for group in groups.values()]
