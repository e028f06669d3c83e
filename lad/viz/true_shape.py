"""A large model's speed at its true shape: how near to the floor, and what more GPUs add.

The numbers are those that `lad bench-shape --record` and `lad train --dry-run --record` added to
one file; the title is computed from them.
"""

from __future__ import annotations

from collections.abc import Mapping

from matplotlib.axes import Axes
from matplotlib.figure import Figure

from lad.viz.numbers import numbers_of
from lad.viz.style import COLORS, label, log2_axis, new_figure, series, set_title, styled

__all__ = ["speed_finding", "true_shape"]


@numbers_of("a shape's speed", "lad bench-shape --record")
@styled
def true_shape(data: Mapping) -> Figure:
    """An iteration's time by its floor, against the batch; training's rate, against GPUs.

    A rate on one number of GPUs is no curve: beside iterations it stands in the title alone.

    Args:
        data: what `lad.evaluation.true_shape.add_run` wrote, with runs of either kind or both.

    Raises:
        DamagedFile: other data, or no runs.
    """
    iterations = [run for run in data["runs"] if run["kind"] == "iteration"]
    training = [run for run in data["runs"] if run["kind"] == "training"]
    if not iterations and not training:
        raise ValueError("no runs")
    panels = [(_iterations, iterations), (_training, training)]
    if iterations and len({run["processes"] for run in training}) < 2:
        panels.pop()
    panels = [(draw, runs) for draw, runs in panels if runs]
    figure = new_figure(1, len(panels), height=3.6)
    for axes, (draw, runs) in zip(figure.axes, panels, strict=True):
        draw(axes, runs)
    set_title(figure, speed_finding(data))
    return figure


def _iterations(axes: Axes, runs: list[Mapping]) -> None:
    ticks = set()
    for number, run in enumerate(runs):
        cells = sorted(run["cells"], key=lambda cell: cell["batch"])
        x = [cell["batch"] for cell in cells]
        y = [cell["sampler"]["iteration_by_floor"] for cell in cells]
        ticks |= set(x)
        axes.plot(x, y, **series(number), label=f"{run['bits']} bit")
    axes.axhline(1, color=COLORS["text"], linestyle=":", linewidth=1.2, label="floor")
    log2_axis(axes, sorted(ticks))
    axes.set_ylim(bottom=0)
    label(axes, "prompts at once", "time of an iteration\nby its floor (ratio)", "refining")
    axes.legend()


def _training(axes: Axes, runs: list[Mapping]) -> None:
    groups = _by_settings(runs)
    ticks = sorted({run["processes"] for run in runs})
    for number, own in enumerate(groups):
        x = [run["processes"] for run in own]
        y = [run["tokens_per_second"] / 1000 for run in own]
        axes.plot(x, y, **series(number), label=_name(own[0]))
        if x[0] == 1 and len(x) > 1:
            axes.plot(x, [y[0] * n for n in x], color=COLORS["muted"], linestyle=":", linewidth=1.2)
    axes.set_xticks(ticks, [str(tick) for tick in ticks])
    axes.set_ylim(bottom=0)
    label(axes, "GPUs (dotted: in proportion)", "thousand tokens a second", "training")
    axes.legend()


def _name(run: Mapping) -> str:
    settings = run["denoiser"]
    return f"{run['bits']} bit, rank {settings['rank']} on {len(settings['layers'])} layers"


def _by_settings(runs: list[Mapping]) -> list[list[Mapping]]:
    """Runs that differ in the number of GPUs alone; of two alike the later."""
    groups: dict[str, dict[int, Mapping]] = {}
    for run in runs:
        groups.setdefault(_name(run), {})[run["processes"]] = run
    return [[own[n] for n in sorted(own)] for own in groups.values()]


def speed_finding(data: Mapping) -> str:
    """How near to the floor an iteration is, how long training takes, and how it scales."""
    parts = []
    iterations = [run for run in data["runs"] if run["kind"] == "iteration"]
    by_bits: dict[int, list[float]] = {}
    for run in iterations:
        ratios = [cell["sampler"]["iteration_by_floor"] for cell in run["cells"]]
        by_bits.setdefault(run["bits"], []).extend(ratios)
    told = []
    for bits, ratios in by_bits.items():
        low, high = f"{min(ratios):.1f}", f"{max(ratios):.1f}"
        spread = low if low == high else f"{low} to {high}"
        told.append(f"{spread} times its floor in {bits} bit")
    if told:
        parts.append(f"an iteration takes {', '.join(told)}")
    for own in _by_settings([run for run in data["runs"] if run["kind"] == "training"])[:1]:
        aim = f"{own[0]['aim_tokens'] / 1e6:.0f} million tokens"
        count = own[0]["processes"]
        parts.append(f"{aim} take {own[0]['hours']:.1f} h on {count} GPU{'s' if count > 1 else ''}")
        if len(own) > 1:
            gain = own[-1]["tokens_per_second"] / own[0]["tokens_per_second"]
            parts.append(f"{own[-1]['processes']} are {gain:.1f} times as fast as {count}")
    model = data["runs"][0]["provenance"]["model"].split(":")[0]
    return f"{model}: {'; '.join(parts)}"
