"""Recorded benchmark runs in words: labels, the letters of a run, and tables.

Of a run, `lad benchmark collect` records numbers, and one letter a question. That is enough to
compute every accuracy and comparison again, and it holds nothing of a benchmark's text.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import pandas as pd

from lad.evaluation.statistics import Estimate, wilson
from lad.evaluation.tasks import LETTERS, title_of

# What the authors of LAD report of LLaMA 3.1 8B Instruct: percent right of 200 questions each. They
# trained on the train splits of ARC-Easy and HellaSwag, and on MMLU's auxiliary set, too.
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
    """The letter chosen for each question: a capital if it was right, else small, "-" for none."""
    letters = []
    for row in sorted(rows, key=lambda row: row["key"]):  # the same order on every machine
        choice = row[f"choice{suffix}"]
        letter = "-" if choice is None else LETTERS[choice]
        letters.append(letter if row[f"correct{suffix}"] else letter.lower())
    return "".join(letters)


def read_letters(letters: str) -> list[tuple[int | None, bool]]:
    """For each question the place chosen, or None, and whether it was right."""
    return [
        (None if letter == "-" else LETTERS.index(letter.upper()), letter.isupper())
        for letter in letters
    ]


# -- tables ----------------------------------------------------------------------------------------


def authors_table() -> pd.DataFrame:
    """The authors' table, with the intervals that 200 questions give."""
    shares = [wilson(round(x / 100 * AUTHORS_N), AUTHORS_N) for x in AUTHORS.values()]
    columns = {"task": map(title_of, AUTHORS), "accuracy, %": [x.text(100) for x in shares]}
    return pd.DataFrame(columns).set_index("task")


def results_tables(data: Mapping) -> tuple[pd.DataFrame, pd.DataFrame]:
    """Recorded runs by task and scoring (backbone, denoiser, and their difference); the tasks."""
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
        shares = {name: percent(run[name]) for name in ("chance", "majority")}
        tasks[task] = {"task": task, "questions": f"{run['n']:,}"} | shares
        likelihood = run["scoring"] == "likelihood"
        for suffix in ["", "_normalised"][: 1 + likelihood]:
            line = {"percent right": task, "scoring": run["target" if likelihood else "scoring"]}
            line["scoring"] += ", by characters" * bool(suffix)
            line |= {by: with_interval(runs.get(by), suffix) for by in ("backbone", "denoiser")}
            difference = differences.get(key, {}).get(f"difference{suffix}")
            lines.append(line | {"difference, points": points(difference)})
    order = list(tasks)
    lines.sort(key=lambda x: (order.index(x["percent right"]), x["scoring"] == "generation"))
    return frame(lines, ["percent right", "scoring"]), frame([*tasks.values()], ["task"])


def bias_table(data: Mapping) -> pd.DataFrame:
    """How often each letter was chosen, and how often it was right, in runs over four options."""
    lines = []
    for run in data["runs"]:
        line = {"percent chosen/right": title_of(run["task"]), "by": run["by"]}
        line["scoring"] = scoring_label(run)
        for name in (*"ABCD", "none"):
            share = run["letters"].get(name, {"chosen": 0, "right": 0})
            line[name] = f"{100 * share['chosen']:.0f}/{100 * share['right']:.0f}"
        lines.append(line)
    return frame(lines, ["percent chosen/right", "by", "scoring"])


def percent(share: float) -> str:
    """A share as text, in percent."""
    return f"{100 * share:.1f}"


def with_interval(run: Mapping | None, suffix: str = "") -> str:
    """A run's accuracy with its interval, or a dash; `suffix` is "_normalised" by characters."""
    if run is None or f"accuracy{suffix}" not in run:
        return "–"
    return Estimate(run[f"accuracy{suffix}"], *run[f"interval{suffix}"], run["n"]).text(100)


def points(difference: Mapping | None) -> str:
    """A difference with its interval in points, or a dash."""
    if difference is None:
        return "–"
    # Adding 0 makes -0.0 of a small loss 0.0.
    value, low, high = (round(100 * difference[key], 1) + 0.0 for key in ("value", "low", "high"))
    return f"{value:+.1f} ({low:+.1f} to {high:+.1f})"


def frame(lines: Sequence[Mapping], index: list[str]) -> pd.DataFrame:
    """Lines in columns; those of `index` come first, to the left, and a task is written once."""
    return pd.DataFrame(lines).set_index(index)


def table(lines: Sequence[Mapping], index: list[str]) -> str:
    """The same as text."""
    return frame(lines, index).to_string()
