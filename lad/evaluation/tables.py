"""Recorded benchmark runs in words: labels, the letters of a run, and tables.

Of a run, `lad benchmark collect` records numbers, and one letter a question. That is enough to
compute every accuracy and comparison again, and it holds nothing of a benchmark's text.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import pandas as pd

from lad.evaluation.statistics import Estimate, wilson
from lad.evaluation.tasks import LETTERS, TASKS, title_of

# What the authors of LAD report of LLaMA 3.1 8B Instruct: percent right of 200 questions each. They
# trained on the train splits of ARC-Easy and HellaSwag, and on MMLU's auxiliary set, too.
AUTHORS = {"arc-easy": 88.5, "arc-challenge": 81.0, "mmlu": 60.5, "hellaswag": 70.0}
AUTHORS_N = 200
# What is right of an answer by generation: `share_of` finds it by the key.
PARTS = {"accuracy": "letter right", "text": "text right", "line": "a whole line"}


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


def share_of(run: Mapping, name: str) -> Estimate | None:
    """A share of a run's summary, or of a point of a curve; None where it was not recorded.

    `name` is "accuracy", which by generation is of the letters, "accuracy_normalised", "text" or
    "line".
    """
    if name == "line" and "exact" in run:  # recorded without its interval
        n = run.get("n") or run["accuracy"]["n"]
        return wilson(round(run["exact"] * n), n)
    found = run.get(name)
    if isinstance(found, float):
        return Estimate(found, *run["interval" + name.removeprefix("accuracy")], run["n"])
    return None if found is None else Estimate.from_dict(found)


def select(data: Mapping, part: str = "runs", **wanted) -> dict[str, Mapping]:
    """Recorded runs or comparisons with these values, by task; what was asked rotated is not one.

    By generation of the denoiser: `select(data, by="denoiser", scoring="generation")`.
    """
    return {
        one["task"]: one
        for one in sorted(data[part], key=lambda one: [*TASKS].index(one["task"]))
        if not one.get("rotated", one.get("asked", {}).get("rotate"))
        and all(one[key] == value for key, value in wanted.items())
    }


# -- tables ----------------------------------------------------------------------------------------


def authors_share(task: str) -> Estimate | None:
    """The authors' accuracy, with the interval of 200 questions; None where they have none."""
    hits = round(AUTHORS.get(task, 0) / 100 * AUTHORS_N)
    return wilson(hits, AUTHORS_N) if hits else None


def authors_table(data: Mapping) -> pd.DataFrame:
    """By generation, in percent: the authors' accuracies beside recorded ones."""
    ours, backbone = (select(data, by=by, scoring="generation") for by in ("denoiser", "backbone"))
    lines = []
    for task, run in ours.items():
        authors = authors_share(task)
        line = {"task": title_of(task), "authors, 8B": authors.text(100) if authors else "–"}
        line |= {f"ours: {name}": with_interval(run, key) for key, name in PARTS.items()}
        line |= {"n": f"{run['n']:,}", "backbone: letter right": "–"}
        if task in backbone:
            line["backbone: letter right"] = with_interval(backbone[task])
        lines.append(line | {name: percent(run[name]) for name in ("chance", "majority")})
    return frame(lines, ["task"])


def likelihood_table(data: Mapping, target: str = "text") -> pd.DataFrame:
    """Recorded accuracy by the likelihood of a target: backbone, denoiser, difference."""
    wanted = {"scoring": "likelihood", "target": target}
    differences = select(data, "comparisons", **wanted)
    runs = {by: select(data, by=by, **wanted) for by in ("backbone", "denoiser")}
    lines = []
    for task, one in differences.items():
        for suffix, name in (("", "by the sum"), ("_normalised", "by characters")):
            line = {"percent right": title_of(task), "scoring": name}
            line |= {by: with_interval(runs[by][task], f"accuracy{suffix}") for by in runs}
            lines.append(line | {"difference, points": points(one.get(f"difference{suffix}"))})
    return frame(lines, ["percent right", "scoring"])


def curve_table(data: Mapping) -> pd.DataFrame:
    """The points of a curve: shares in percent, and the forward passes of an answer."""
    lines = []
    for point in data["points"]:
        line = {"task": title_of(point["task"]), "preset": point["preset"]}
        line |= {"iterations": point["iterations"]}
        line |= {name: with_interval(point, key) for key, name in PARTS.items()}
        lines.append(line | {"passes": Estimate.from_dict(point["forwards"]).text()})
    return frame(lines, ["task", "preset", "iterations"])


def percent(share: float) -> str:
    """A share as text, in percent."""
    return f"{100 * share:.1f}"


def with_interval(run: Mapping, name: str = "accuracy") -> str:
    """What `share_of` finds, in percent with its interval."""
    found = share_of(run, name)
    return "not recorded" if found is None else found.text(100)


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
    """The same as text, with a dash where a line has no such column."""
    return frame(lines, index).fillna("–").to_string()
