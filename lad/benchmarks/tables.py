"""Tables of results as plain text: the authors' figures, and the recorded ones of this project."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from lad import metrics
from lad.benchmarks.results import how, title_of

__all__ = ["AUTHORS", "AUTHORS_N", "authors_text", "bias_text", "results_text"]

# What the authors of LAD report of their adapter on LLaMA 3.1 8B Instruct: percent right of 200
# questions each. Their training mix had the train splits of ARC-Easy and HellaSwag and MMLU's
# auxiliary set in it.
AUTHORS = {"arc-easy": 88.5, "arc-challenge": 81.0, "mmlu": 60.5, "hellaswag": 70.0}
AUTHORS_N = 200


def authors_text() -> str:
    """The authors' table, with the intervals that 200 questions give."""
    rows = [("task", "accuracy, %", "95 % interval")]
    for task, percent in AUTHORS.items():
        estimate = metrics.wilson(round(percent / 100 * AUTHORS_N), AUTHORS_N)
        ends = f"{100 * estimate.low:.1f} to {100 * estimate.high:.1f}"
        rows.append((title_of(task), f"{percent:.1f}", ends))
    return _table(rows)


def results_text(data: Mapping) -> str:
    """Recorded runs, a line a task and way of scoring: backbone, denoiser, and their difference.

    Args:
        data: what `lad benchmark collect` wrote.
    """
    head = ("task", "scoring", "n", "chance", "majority", "backbone, %", "denoiser, %")
    rows = [(*head, "difference, points", "parsable, %")]
    found = {_kind(run): {} for run in data["runs"]}
    for run in data["runs"]:
        found[_kind(run)][run["by"]] = run
    differences = {
        (one["task"], one["scoring"], one["target"], one["rotated"]): one["difference"]
        for one in data["comparisons"]
    }
    for kind, runs in found.items():
        one = next(iter(runs.values()))
        accuracies = [_with_ends(runs.get(by)) for by in ("backbone", "denoiser")]
        parsable = "/".join(
            f"{100 * runs[by]['parsable']:.0f}" for by in ("backbone", "denoiser") if by in runs
        )
        rows.append(
            (
                title_of(one["task"]),
                how(one) + ", rotated" * one["asked"]["rotate"],
                f"{one['n']:,}",
                f"{100 * one['chance']:.1f}",
                f"{100 * one['majority']:.1f}",
                *accuracies,
                _difference(differences.get(kind)),
                parsable if one["scoring"] == "generation" else "–",
            )
        )
    return _table(rows)


def bias_text(data: Mapping) -> str:
    """How often each letter was chosen, and how often it was right, in runs over four options."""
    rows = [("task", "by", "scoring", *(f"{x} chosen/right, %" for x in "ABCD"), "none, %")]
    for run in data["runs"]:
        letters = run["letters"]
        shares = [
            f"{100 * letters[x]['chosen']:.0f}/{100 * letters[x]['right']:.0f}"
            if x in letters
            else "–"
            for x in "ABCD"
        ]
        none = f"{100 * letters['none']['chosen']:.0f}" if "none" in letters else "0"
        scored = run["scoring"] + (f", {run['target']}" * (run["scoring"] == "likelihood"))
        rows.append((title_of(run["task"]), run["by"], scored, *shares, none))
    return _table(rows)


def _kind(run: Mapping) -> tuple:
    return (run["task"], run["scoring"], run["target"], run["asked"]["rotate"])


def _with_ends(run: Mapping | None) -> str:
    if run is None:
        return "–"
    low, high = run["interval"]
    return f"{100 * run['accuracy']:.1f} ({100 * low:.1f}–{100 * high:.1f})"


def _difference(estimate: Mapping | None) -> str:
    if estimate is None:
        return "–"
    value, low, high = (100 * estimate[key] for key in ("value", "low", "high"))
    return f"{value:+.1f} ({low:+.1f} to {high:+.1f})"


def _table(rows: Sequence[Sequence[str]]) -> str:
    """Rows of text in columns; the first row is the heading."""
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    lines = ["  ".join(c.ljust(w) for c, w in zip(r, widths, strict=True)).rstrip() for r in rows]
    return "\n".join([lines[0], "-" * max(map(len, lines)), *lines[1:]])
