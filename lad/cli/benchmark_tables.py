"""What `lad benchmark` says to people: its results as tables on stdout."""

from __future__ import annotations

import sys

from lad.evaluation.statistics import Estimate

__all__ = ["show", "show_comparisons", "show_curve"]


def table(*headings: str):
    """A table with these headings, and the console it goes to."""
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    made = Table()
    for heading in headings:
        made.add_column(Text(heading))
    return made, Console(width=None if sys.stdout.isatty() else 140)


def percent(share: float | None) -> str:
    """A share as text."""
    return "–" if share is None else f"{100 * share:.1f}"


def show(summaries: list[dict]) -> None:
    """Runs as a table on stdout."""
    rows, console = table(
        "task", "scoring", "n", "accuracy, %", "by characters, %", "parsable, %", "chance, %",
        "majority, %", "passes", "s",
    )  # fmt: skip
    for one in summaries:
        low, high = one["interval"]
        ends = one.get("interval_normalised")
        how = one["scoring"] + (f", {one['target']}" if one["scoring"] == "likelihood" else "")
        rows.add_row(
            one["task"],
            how,
            f"{one['n']:,}",
            f"{percent(one['accuracy'])} ({percent(low)}–{percent(high)})",
            f"{percent(one['accuracy_normalised'])} ({percent(ends[0])}–{percent(ends[1])})"
            if ends
            else "–",
            percent(one["parsable"]),
            percent(one["chance"]),
            percent(one["majority"]),
            written(one["forwards"], 1) if "forwards" in one else "–",
            f"{one['seconds']:.0f}",
        )
    origin = summaries[0]["origin"]
    digest = (origin["adapter_sha256"] or "none")[:12]
    where = f"{origin['device']} ({origin['processor']}), {origin['dtype']}"
    console.print(f"{origin['model']}, adapter {digest}, {where}", markup=False, highlight=False)
    console.print(rows)
    for one in summaries:
        letters = ", ".join(
            f"{name} {percent(x['chosen'])} (right {percent(x['right'])})"
            for name, x in one["letters"].items()
        )
        steady = ""
        if "steady" in one:
            steady = f"; the same option wherever it stood: {written(one['steady'])} %"
        console.print(f"{one['task']}, % chosen: {letters}{steady}", markup=False, highlight=False)


def show_comparisons(told: list[dict]) -> None:
    """Comparisons as a table on stdout."""
    rows, console = table(
        "task", "scoring", "n", "A, %", "B, %", "B - A, points", "only A", "only B", "p",
        "same choice, %",
    )  # fmt: skip
    for one in told:
        ways = dict.fromkeys((one["a"]["how"], one["b"]["how"]))
        difference, low, high = (100 * one["difference"][key] for key in ("value", "low", "high"))
        rows.add_row(
            one["task"],
            " and ".join(ways),
            f"{one['n']:,}",
            written(one["a"]["accuracy"]),
            written(one["b"]["accuracy"]),
            f"{difference:+.1f} ({low:+.1f} to {high:+.1f})",
            str(one["only_a"]),
            str(one["only_b"]),
            f"{one['p']:.2g}",
            percent(one["same"]),
        )
    for name in ("a", "b"):
        asked = ", ".join(dict.fromkeys(one[name]["who"] for one in told))
        console.print(f"{name.upper()}: {asked}", markup=False, highlight=False)
    console.print(rows)


def show_curve(result: dict) -> None:
    """A curve as a table on stdout."""
    rows, console = table("task", "preset", "iterations", "accuracy, %", "parsable, %", "passes")
    for one in result["points"]:
        rows.add_row(
            one["task"],
            one["preset"],
            str(one["iterations"]),
            written(one["accuracy"]),
            percent(one["parsable"]),
            written(one["forwards"], 1),
        )
    console.print(rows)


def written(estimate: dict, factor: float = 100) -> str:
    """An estimate as text; a share in percent."""
    return Estimate.from_dict(estimate).text(factor)
