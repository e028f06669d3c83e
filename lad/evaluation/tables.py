"""Tables of results as plain text: the authors' figures, and the recorded ones of this project.

`results_text` has accuracies and differences, `bias_text` what was chosen and what was right, and
`places_text` how often a chosen letter was right, and how often a right one was found.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from lad.evaluation import metrics
from lad.evaluation.curve import read_letters
from lad.evaluation.questions import LETTERS
from lad.evaluation.results import how, title_of

__all__ = ["AUTHORS", "AUTHORS_N", "authors_text", "bias_text", "places_text", "results_text"]

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
    """Recorded runs, a line a way of scoring, by task: backbone, denoiser, and their difference.

    What is scored by likelihood is named by its target: line, text or letter.

    Args:
        data: what `lad benchmark collect` wrote.
    """
    found: dict[tuple, dict[str, Mapping]] = {}
    for run in data["runs"]:
        found.setdefault(_kind(run), {})[run["by"]] = run
    told = {
        (one["task"], one["scoring"], one["target"], one["rotated"]): one
        for one in data["comparisons"]
    }
    parts: dict[str, list[tuple]] = {}
    for kind, runs in found.items():
        one = next(iter(runs.values()))
        own = parts.setdefault(_asked(one), [])
        for way in ("", "_normalised") if one["scoring"] == "likelihood" else ("",):
            name = how(one).removeprefix("likelihood of the ") + ", by characters" * bool(way)
            ends = [_with_ends(runs.get(by), way) for by in ("backbone", "denoiser")]
            own.append((name, *ends, _difference(told.get(kind, {}).get(f"difference{way}"))))
    rows = [("percent right", "backbone", "denoiser", "difference, points")]
    for part, own in parts.items():  # generation last, as it says least
        rows += [(part,), *sorted(own, key=lambda row: row[0] == "generation")]
    return _table(rows)


def _asked(run: Mapping) -> str:
    """The heading of a task's lines; what is rotated is another task."""
    order = ", every order" * run["asked"]["rotate"]
    return (
        f"{title_of(run['task'])}{order}: {run['n']:,} questions, "
        f"chance {100 * run['chance']:.1f}, the commonest letter {100 * run['majority']:.1f}"
    )


def bias_text(data: Mapping) -> str:
    """How often each letter was chosen, and how often it was right, in runs over four options."""
    rows = [("percent chosen/right", "by", "scoring", *"ABCD", "none")]
    for run in data["runs"]:
        letters = run["letters"]
        shares = [
            f"{100 * letters[x]['chosen']:.0f}/{100 * letters[x]['right']:.0f}"
            if x in letters
            else "–"
            for x in "ABCD"
        ]
        none = f"{100 * letters['none']['chosen']:.0f}" if "none" in letters else "0"
        rows.append((title_of(run["task"]), run["by"], how(run), *shares, none))
    return _table(rows)


def places_text(data: Mapping, scoring: str = "generation") -> str:
    """By letter: of the times it was chosen, the share that was right; of the times it was right,
    the share that was found. Who knows nothing has the same first share whatever the letter, the
    share of questions where that letter is right, and finds a letter as often as it is chosen.
    """
    rows = [("percent right/found", "by", "scoring", *"ABCD")]
    for run in data["runs"]:
        if run["scoring"] != scoring or run["asked"]["rotate"]:
            continue
        chosen = read_letters(run["choices"])
        shares = []
        for letter in "ABCD":
            own = [right for place, right in chosen if place == LETTERS.index(letter)]
            golds = run["letters"].get(letter, {"right": 0})["right"] * len(chosen)
            shares.append(f"{_percent(sum(own), len(own))}/{_percent(sum(own), golds)}")
        rows.append((title_of(run["task"]), run["by"], how(run), *shares))
    return _table(rows)


def _percent(part: float, whole: float) -> str:
    return f"{100 * part / whole:.0f}" if whole else "–"


def _kind(run: Mapping) -> tuple:
    return (run["task"], run["scoring"], run["target"], run["asked"]["rotate"])


def _with_ends(run: Mapping | None, way: str) -> str:
    if run is None:
        return "–"
    low, high = run[f"interval{way}"]
    return f"{100 * run[f'accuracy{way}']:.1f} ({100 * low:.1f}–{100 * high:.1f})"


def _difference(estimate: Mapping | None) -> str:
    if estimate is None:
        return "–"
    # Adding 0 makes -0.0 of a small loss 0.0.
    value, low, high = (round(100 * estimate[key], 1) + 0.0 for key in ("value", "low", "high"))
    return f"{value:+.1f} ({low:+.1f} to {high:+.1f})"


def _table(rows: Sequence[Sequence[str]]) -> str:
    """Rows of text in columns; the first is the heading, and one of a single text heads a part.

    Kept below 98 characters: a page breaks longer lines, and a table with them.
    """
    widths = [max(map(len, column)) for column in zip(*(r for r in rows if r[1:]), strict=True)]
    lines = [
        "  ".join(map(str.ljust, row, widths)).rstrip() if row[1:] else f"\n{row[0]}"
        for row in rows
    ]
    return "\n".join([lines[0], "-" * max(map(len, lines)), *lines[1:]])
