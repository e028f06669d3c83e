"""What a run of a benchmark says, and what two say about each other.

An accuracy carries Wilson's interval over questions. Beside it stand what it is to be held against:
chance (1 by the number of options, averaged), and the share of the letter that is right most often,
which whoever always answers that letter would get. Two runs over the same questions are compared in
pairs: the difference with an interval over questions, and McNemar's exact test, which asks of the
questions that one got right and the other wrong whether they divide evenly.

References: Wilson (1927), McNemar (1947), both through statsmodels.
"""

from __future__ import annotations

import json
from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from lad.evaluation import metrics
from lad.evaluation.questions import LETTERS
from lad.evaluation.tasks import TASKS
from lad.utils import DamagedFile, InvalidInput, cache_errors, write_whole

__all__ = [
    "Run",
    "compare",
    "compare_all",
    "find_runs",
    "how",
    "read_rows",
    "read_run",
    "summarise",
    "title_of",
    "who",
]

NEEDED = {"key", "task", "id", "rotation", "options", "gold", "choice", "correct", "parsable"}


@dataclass(frozen=True)
class Run:
    """A finished run.

    Attributes:
        summary: see `summarise`.
        rows: see `lad.evaluation.run`; in any order.
    """

    summary: dict
    rows: list[dict]


def summarise(rows: Sequence[Mapping], header: Mapping) -> dict:
    """A run in numbers, as plain values for JSON.

    Args:
        rows: of every question.
        header: what was asked of whom, as `run.json` holds it.

    Returns:
        task, split, n (questions), seed, scoring, target, accuracy, interval (95 %), parsable,
        chance, majority (share of the commonest right letter), letters (share of each that was
        chosen, and that is right), seconds, model, adapter_sha256, asked, items_sha256, origin.
        By likelihood also accuracy_normalised with its interval, and close: the share of questions
        whose two best options are no further apart than two standard errors. By generation also
        forwards (an answer), and exact: the share of answers that are one of the lines, word for
        word. Rotated also steady: the share of questions whose choice was the same option wherever
        it stood. Of MMLU also subjects.
    """
    asked, origin = header["asked"], header["origin"]
    accuracy = share_of(rows, "correct")
    by_question = defaultdict(list)
    for row in rows:
        by_question[row["id"]].append(row)
    likelihood = asked["scoring"] == "likelihood"
    golds = Counter(LETTERS[row["gold"]] for row in rows)
    chosen = Counter("none" if row["choice"] is None else LETTERS[row["choice"]] for row in rows)
    names = sorted({*golds, *chosen})
    summary = {
        "task": asked["task"],
        "split": asked["split"],
        "n": len(by_question),
        "seed": asked["seed"],
        "scoring": asked["scoring"],
        "target": asked["target"] if likelihood else "line",
        "accuracy": accuracy["value"],
        "interval": [accuracy["low"], accuracy["high"]],
        "parsable": share_of(rows, "parsable")["value"],
        "chance": sum(1 / row["options"] for row in rows) / len(rows),
        "majority": max(golds.values()) / len(rows),
        "letters": {
            name: {"chosen": chosen[name] / len(rows), "right": golds[name] / len(rows)}
            for name in names
        },
        "seconds": round(sum(row.get("seconds", 0.0) for row in rows), 2),
        "model": origin.get("model"),
        "adapter_sha256": origin.get("adapter_sha256"),
    }
    if likelihood:
        normalised = share_of(rows, "correct_normalised")
        summary |= {
            "accuracy_normalised": normalised["value"],
            "interval_normalised": [normalised["low"], normalised["high"]],
            "close": sum(map(is_close, rows)) / len(rows),
        }
    else:
        summary |= {
            "forwards": metrics.mean([row["forwards"] for row in rows]).to_dict(),
            "exact": share_of(rows, "exact")["value"],
        }
    if asked["rotate"]:
        steady = sum(
            len({None if r["choice"] is None else _option(r) for r in own}) == 1
            and own[0]["choice"] is not None
            for own in by_question.values()
        )
        summary["steady"] = metrics.wilson(steady, len(by_question)).to_dict()
    if asked["task"] == "mmlu":
        subjects = defaultdict(list)
        for row in rows:
            subjects[row["id"].rpartition("-")[0]].append(row)
        summary["subjects"] = {name: share_of(own, "correct") for name, own in subjects.items()}
    return summary | {
        "asked": dict(asked),
        "items_sha256": header["items_sha256"],
        "origin": dict(origin),
    }


def is_close(row: Mapping) -> bool:
    """More samples could change this choice by likelihood."""
    return row["margin"] <= 2 * row["margin_error"]


def share_of(rows: Sequence[Mapping], key: str) -> dict:
    """Share of rows where `key` holds, as `Estimate.to_dict`; a question is the unit, not a row."""
    hits, counts = Counter(), Counter()
    for row in rows:
        hits[row["id"]] += bool(row[key])
        counts[row["id"]] += 1
    if max(counts.values(), default=1) == 1:
        return metrics.wilson(sum(hits.values()), len(counts)).to_dict()
    return metrics.pooled_share([hits[q] for q in counts], list(counts.values())).to_dict()


def _option(row: Mapping) -> int:
    """Which of the item's own options was chosen, wherever it stood."""
    return (row["choice"] + row["rotation"]) % row["options"]


# -- two runs --------------------------------------------------------------------------------------


def compare(a: Run, b: Run) -> dict:
    """Two runs over the same questions, question by question.

    Returns:
        task, n (questions that both answered), a and b (each who, how, and accuracy over these
        questions), difference (b - a, with its 95 % interval over questions), only_a and only_b
        (right in one alone), both, neither, p (McNemar, exact, two-sided), same (share of questions
        with the same choice). Both by likelihood: also difference_normalised, and difference_clear
        over the questions where neither's two best options are within two standard errors.

    Raises:
        InvalidInput: no question in common, or what is right differs: not the same benchmark.
    """
    first, second = ({row["key"]: row for row in run.rows} for run in (a, b))
    # In one order, whatever that of the rows: an interval is drawn by a seed.
    keys = sorted(key for key in first if key in second)
    if not keys:
        raise InvalidInput(
            f"the runs have no question in common ({a.summary['task']} and {b.summary['task']}): "
            "expected two runs of one task; give both the same --task, --n and --seed"
        )
    for key in keys:
        if any(first[key][part] != second[key][part] for part in ("gold", "options")):
            raise InvalidInput(
                f"{key} has another right answer in the second run: expected the same questions "
                "from the same --source"
            )
    # Rotations of a question are no independent trials: the test takes it as it came.
    pairs = [(first[k]["correct"], second[k]["correct"]) for k in keys if not first[k]["rotation"]]
    table = Counter(pairs)
    from statsmodels.stats.contingency_tables import mcnemar

    cells = [[table[True, True], table[True, False]], [table[False, True], table[False, False]]]
    both = [rows[key] for rows in (first, second) for key in keys]
    ways = [way for way in ("", "_normalised") if all(f"correct{way}" in row for row in both)]
    clear = {}
    if all("margin" in row for row in both):
        own = [key for key in keys if not (is_close(first[key]) or is_close(second[key]))]
        clear = {"difference_clear": _difference(first, second, own, "correct")}
    return {
        "task": a.summary["task"],
        "n": len({first[key]["id"] for key in keys}),
        "a": {"who": who(a.summary), "how": how(a.summary)}
        | {"accuracy": share_of([first[key] for key in keys], "correct")},
        "b": {"who": who(b.summary), "how": how(b.summary)}
        | {"accuracy": share_of([second[key] for key in keys], "correct")},
        **{f"difference{way}": _difference(first, second, keys, f"correct{way}") for way in ways},
        **clear,
        "both": table[True, True],
        "only_a": table[True, False],
        "only_b": table[False, True],
        "neither": table[False, False],
        "p": float(mcnemar(cells, exact=True).pvalue),
        "same": sum(first[k]["choice"] == second[k]["choice"] for k in keys) / len(keys),
    }


def _difference(a: Mapping, b: Mapping, keys: Sequence[str], which: str) -> dict:
    """Mean over questions of b - a, as `Estimate.to_dict`; rotations of a question are averaged."""
    differences = defaultdict(list)
    for key in keys:
        differences[a[key]["id"]].append(b[key][which] - a[key][which])
    return metrics.mean([sum(d) / len(d) for d in differences.values()]).to_dict()


def compare_all(a: Path, b: Path) -> list[dict]:
    """Every run below `a` with the one below `b` that asked in the same way.

    Two folders with one run each are compared whatever their scoring.

    Raises:
        InvalidInput: no runs, or none that go together.
        DamagedFile: a run that cannot be read.
    """
    first, second = find_runs(a), find_runs(b)
    if len(first) == len(second) == 1:
        pairs = [(*first.values(), *second.values())]
    else:
        pairs = [(first[name], second[name]) for name in first if name in second]
    if not pairs:
        raise InvalidInput(
            f"{a} has {', '.join(first)} and {b} has {', '.join(second)}: expected runs of the "
            "same name in both"
        )
    return [compare(read_run(x), read_run(y)) for x, y in pairs]


def who(summary: Mapping) -> str:
    """Who was asked: an adapter by the beginning of its digest, or the backbone."""
    digest = summary["adapter_sha256"]
    return f"adapter {digest[:8]}" if digest else "backbone"


def how(summary: Mapping) -> str:
    """How it was scored: "generation", "likelihood of the line"."""
    scoring = summary["scoring"]
    return f"likelihood of the {summary['target']}" if scoring == "likelihood" else scoring


# -- files -----------------------------------------------------------------------------------------


def find_runs(folder: Path) -> dict[str, Path]:
    """Finished runs at or just below a folder, by name.

    Raises:
        InvalidInput: there are none.
    """
    if (folder / "summary.json").is_file():
        return {folder.name: folder}
    found = {path.parent.name: path.parent for path in sorted(folder.glob("*/summary.json"))}
    if not found:
        raise InvalidInput(
            f"no finished run at {folder}: expected a folder that `lad benchmark --out` filled; "
            "run it again to let it finish"
        )
    return found


def read_run(folder: Path) -> Run:
    """A finished run.

    Raises:
        DamagedFile: a file of it is missing, damaged or short.
    """
    path = folder / "summary.json"
    try:
        summary = json.loads(path.read_text(encoding="utf-8"))
        summary["task"], summary["n"], summary["scoring"]
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise DamagedFile(
            f"{path} is unusable ({error!r}): delete it and run `lad benchmark` again"
        ) from error
    rows = read_rows(folder / "rows.jsonl")
    if len({row["id"] for row in rows}) != summary["n"]:
        raise DamagedFile(
            f"{folder / 'rows.jsonl'} has {len({row['id'] for row in rows})} questions, expected "
            f"{summary['n']}: delete {path} and run `lad benchmark` again"
        )
    return Run(summary, rows)


def read_rows(path: Path, repair: bool = False) -> list[dict]:
    """Rows of a run.

    Args:
        repair: cut off a last line that is not whole, as a killed process leaves it.

    Raises:
        DamagedFile: a line that is no row, or a question that stands there twice.
    """
    try:
        text = path.read_bytes()
    except OSError as error:
        raise DamagedFile(f"{path} cannot be read ({error}): run it again") from error
    if repair and not text.endswith(b"\n") and text:
        text = text[: text.rfind(b"\n") + 1]
        with cache_errors(path.parent):
            write_whole(path, text)
    rows = [_row(path, number, line) for number, line in enumerate(text.splitlines(), start=1)]
    _check_once(path, rows)
    return rows


def _row(path: Path, number: int, line: bytes) -> dict:
    try:
        row = json.loads(line)
        missing = NEEDED - set(row)
    except (ValueError, TypeError) as error:
        raise DamagedFile(
            f"{path}, line {number}, is no row ({error}): delete that line and run it again"
        ) from error
    if missing:
        raise DamagedFile(
            f"{path}, line {number}, lacks {', '.join(sorted(missing))}: delete that line and run "
            "it again"
        )
    return row


def _check_once(path: Path, rows: Iterable[Mapping]) -> None:
    twice = [key for key, many in Counter(row["key"] for row in rows).items() if many > 1]
    if twice:
        raise DamagedFile(f"{path} has {twice[0]} twice: delete the folder and run it again")


def title_of(task: str) -> str:
    """A task's name for people."""
    return TASKS[task].title if task in TASKS else task
