"""Recorded benchmark runs as plain text: labels, the letters of a run, and tables.

The data are those that `lad benchmark collect` wrote. Of a run they hold numbers, and one letter a
question, a capital where it was right. That is enough to compute every accuracy and comparison
again, and it holds nothing of a benchmark's text.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import pandas as pd

from lad.evaluation.statistics import wilson
from lad.evaluation.tasks import LETTERS, title_of
from lad.utils import DamagedFile

# What the authors of LAD report of their adapter on LLaMA 3.1 8B Instruct: percent right of 200
# questions each. Their training mix had the train splits of ARC-Easy and HellaSwag and MMLU's
# auxiliary set in it.
AUTHORS = {"arc-easy": 88.5, "arc-challenge": 81.0, "mmlu": 60.5, "hellaswag": 70.0}
AUTHORS_N = 200


def model_label(summary: Mapping) -> str:
    """The model of a run: an adapter by the beginning of its digest, or "backbone"."""
    digest = summary["adapter_sha256"]
    return f"adapter {digest[:8]}" if digest else "backbone"


def scoring_label(summary: Mapping) -> str:
    """The scoring of a run: "generation", "likelihood of the line"."""
    scoring = summary["scoring"]
    return f"likelihood of the {summary['target']}" if scoring == "likelihood" else scoring


def write_letters(rows: Sequence[Mapping], suffix: str = "") -> str:
    """The letter chosen for each question: a capital if it was right, else small, "-" for none.

    Questions stand in the order of their keys, because a run keeps its rows in the order in which
    they were scored, which differs between machines.

    Args:
        suffix: "_normalised" for the choices by the number of characters.
    """
    letters = []
    for row in sorted(rows, key=lambda row: row["key"]):
        choice = row[f"choice{suffix}"]
        letter = "-" if choice is None else LETTERS[choice]
        letters.append(letter if row[f"correct{suffix}"] else letter.lower())
    return "".join(letters)


def read_letters(letters: str) -> list[tuple[int | None, bool]]:
    """For each question the place chosen, or None, and whether it was right.

    Raises:
        DamagedFile: a character that `write_letters` does not write.
    """
    if unknown := set(letters) - set(LETTERS + LETTERS.lower() + "-"):
        raise DamagedFile(
            f"recorded choices have {min(unknown)!r} among them: expected letters from A to "
            f"{LETTERS[-1]} and -; run `lad benchmark collect` again"
        )
    return [
        (None if letter == "-" else LETTERS.index(letter.upper()), letter.isupper())
        for letter in letters
    ]


# -- tables ----------------------------------------------------------------------------------------


def authors_text() -> str:
    """The authors' table, with the intervals that 200 questions give."""
    lines = []
    for task, percent in AUTHORS.items():
        share = wilson(round(percent / 100 * AUTHORS_N), AUTHORS_N)
        interval = f"{100 * share.low:.1f} to {100 * share.high:.1f}"
        lines.append({"task": title_of(task), "accuracy, %": percent, "95 % interval": interval})
    return table(lines, ["task"])


def results_text(data: Mapping) -> str:
    """Recorded runs, a line a way of scoring, by task: backbone, denoiser, and their difference.

    A likelihood is named by its target: line, text or letter.
    """
    kind = ["task", "scoring", "target"]
    differences = {(*(x[key] for key in kind), x["rotated"]): x for x in data["comparisons"]}
    found: dict[tuple, dict[str, Mapping]] = {}
    for run in data["runs"]:
        key = (*(run[key] for key in kind), run["asked"]["rotate"])
        found.setdefault(key, {})[run["by"]] = run
    tasks, lines = {}, []
    for key, runs in found.items():
        run = next(iter(runs.values()))
        task = title_of(run["task"]) + ", every order" * run["asked"]["rotate"]
        tasks[task] = {"task": task, "questions": f"{run['n']:,}"}
        tasks[task] |= {"chance": percent(run["chance"]), "majority": percent(run["majority"])}
        likelihood = run["scoring"] == "likelihood"
        for suffix in ("", "_normalised") if likelihood else ("",):
            name = run["target"] if likelihood else run["scoring"]
            difference = differences.get(key, {}).get(f"difference{suffix}")
            lines.append(
                {
                    "percent right": task,
                    "scoring": name + ", by characters" * bool(suffix),
                    "backbone": with_interval(runs.get("backbone"), suffix),
                    "denoiser": with_interval(runs.get("denoiser"), suffix),
                    "difference, points": points(difference),
                }
            )
    lines.sort(
        key=lambda line: (list(tasks).index(line["percent right"]), line["scoring"] == "generation")
    )
    return table(lines, ["percent right", "scoring"]) + "\n\n" + table([*tasks.values()], ["task"])


def bias_text(data: Mapping) -> str:
    """How often each letter was chosen, and how often it was right, in runs over four options."""
    lines = []
    for run in data["runs"]:
        letters = run["letters"]
        shares = {
            x: f"{100 * letters[x]['chosen']:.0f}/{100 * letters[x]['right']:.0f}"
            if x in letters
            else "–"
            for x in "ABCD"
        }
        none = f"{100 * letters['none']['chosen']:.0f}" if "none" in letters else "0"
        lines.append(_names(run, "percent chosen/right") | shares | {"none": none})
    return table(lines, ["percent chosen/right", "by", "scoring"])


def places_text(data: Mapping, scoring: str = "generation") -> str:
    """By letter: the share that was right of the times it was chosen, and the share that was found
    of the times it was right.

    Of a model that knows nothing the first share is that of the questions where the letter is
    right, and the second is how often it chooses the letter.
    """
    lines = []
    for run in data["runs"]:
        if run["scoring"] != scoring or run["asked"]["rotate"]:
            continue
        choices = read_letters(run["choices"])
        line = _names(run, "percent right/found")
        for letter in "ABCD":
            hits = [right for place, right in choices if place == LETTERS.index(letter)]
            golds = run["letters"].get(letter, {"right": 0})["right"] * len(choices)
            shares = [f"{100 * sum(hits) / n:.0f}" if n else "–" for n in (len(hits), golds)]
            line[letter] = "/".join(shares)
        lines.append(line)
    return table(lines, ["percent right/found", "by", "scoring"])


def _names(run: Mapping, heading: str) -> dict[str, str]:
    return {heading: title_of(run["task"]), "by": run["by"], "scoring": scoring_label(run)}


def percent(share: float) -> str:
    """A share as text, in percent."""
    return f"{100 * share:.1f}"


def with_interval(run: Mapping | None, suffix: str = "") -> str:
    """A run's accuracy with its interval, or a dash; `suffix` is "_normalised" by characters."""
    if run is None or f"accuracy{suffix}" not in run:
        return "–"
    low, high = run[f"interval{suffix}"]
    return f"{percent(run[f'accuracy{suffix}'])} ({percent(low)}–{percent(high)})"


def points(difference: Mapping | None) -> str:
    """A difference with its interval in points, or a dash."""
    if difference is None:
        return "–"
    # Adding 0 makes -0.0 of a small loss 0.0.
    value, low, high = (round(100 * difference[key], 1) + 0.0 for key in ("value", "low", "high"))
    return f"{value:+.1f} ({low:+.1f} to {high:+.1f})"


def table(lines: Sequence[Mapping], index: list[str]) -> str:
    """Lines in columns; those of `index` come first, to the left, and a task is written once."""
    return pd.DataFrame(lines).set_index(index).to_string()
