"""Runs joined: accuracy against iterations, and the file of numbers that figures are drawn from.

What is kept of a run is numbers, and one letter a question, a capital where it was right. That is
enough to compute every accuracy and every comparison again, to see whether the same command gives
the same answers again, and nothing of a benchmark's text.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

from lad.evaluation.questions import LETTERS
from lad.evaluation.results import Run, compare, find_runs, how, read_run, who
from lad.utils import DamagedFile, InvalidInput

__all__ = ["join_curve", "join_runs", "letters_of", "read_letters"]


def join_curve(found: Mapping[tuple[str, int], Sequence[Mapping]], command: str) -> dict:
    """Summaries of runs that differ in how long answers were refined.

    Args:
        found: preset and iterations -> a summary for every task.

    Returns:
        command, n, seed, origin, and points: task, preset, iterations, accuracy and forwards as
        `Estimate.to_dict`, parsable, exact, chance.
    """
    points = []
    for (preset, iterations), summaries in found.items():
        for one in summaries:
            low, high = one["interval"]
            accuracy = {"value": one["accuracy"], "low": low, "high": high, "n": one["n"]}
            points.append(
                {
                    "task": one["task"],
                    "preset": preset,
                    "iterations": iterations,
                    "accuracy": accuracy,
                    "forwards": one["forwards"],
                    "parsable": one["parsable"],
                    "exact": one["exact"],
                    "chance": one["chance"],
                }
            )
    first = next(iter(found.values()))[0]
    hidden = ("preset", "config", "samples")
    origin = {key: value for key, value in first["origin"].items() if key not in hidden}
    return {
        "command": command,
        "n": first["n"],
        "seed": first["seed"],
        "origin": origin,
        "points": points,
    }


def join_runs(folders: Sequence[Path], commands: Sequence[str] = ()) -> dict:
    """Finished runs as one object, and each pair of a denoiser's and a backbone's compared.

    Returns:
        commands, runs (summaries with `by`: "denoiser" or "backbone", `choices`, and by likelihood
        `choices_normalised`, see `letters_of`), comparisons (backbone to denoiser).

    Raises:
        InvalidInput: no runs, or two of the same kind.
        DamagedFile: a run that cannot be read.
    """
    found: dict[tuple, Run] = {}
    for folder in folders:
        for path in find_runs(folder).values():
            run = read_run(path)
            by = "denoiser" if run.summary["adapter_sha256"] else "backbone"
            asked = run.summary["asked"]
            target = asked["target"] if asked["scoring"] == "likelihood" else "line"
            kind = (asked["task"], asked["scoring"], target, asked["rotate"], by)
            if kind in found:
                raise InvalidInput(
                    f"{path}: there is another run of the {by} on {asked['task']} by "
                    f"{how(run.summary)} ({who(run.summary)}); expected each kind once"
                )
            found[kind] = run
    comparisons = [
        compare(found[(*kind[:-1], "backbone")], run)
        | {"scoring": kind[1], "target": kind[2], "rotated": kind[3]}
        for kind, run in found.items()
        if kind[-1] == "denoiser" and (*kind[:-1], "backbone") in found
    ]
    return {
        "commands": list(commands),
        "runs": [run.summary | {"by": kind[-1]} | _choices(run) for kind, run in found.items()],
        "comparisons": comparisons,
    }


def _choices(run: Run) -> dict[str, str]:
    """The letters of a run, and by likelihood also those by the number of characters."""
    ways = ("", "_normalised") if run.summary["scoring"] == "likelihood" else ("",)
    return {f"choices{way}": letters_of(run, way) for way in ways}


def letters_of(run: Run, way: str = "") -> str:
    """The letter chosen for each question: a capital if it was right, else small, "-" for none.

    Questions stand in the order of their keys: a run keeps its rows in the order in which they
    were answered, which is another on another machine.

    Args:
        way: "_normalised" for the choices by the number of characters.
    """
    letters = []
    for row in sorted(run.rows, key=lambda row: row["key"]):
        choice = row[f"choice{way}"]
        letter = "-" if choice is None else LETTERS[choice]
        letters.append(letter if row[f"correct{way}"] else letter.lower())
    return "".join(letters)


def read_letters(letters: str) -> list[tuple[int | None, bool]]:
    """What `letters_of` wrote: the place chosen for each question, or None, and if it was right.

    Raises:
        DamagedFile: a character that is no letter of an option.
    """
    known = LETTERS + LETTERS.lower() + "-"
    strange = next((letter for letter in letters if letter not in known), None)
    if strange is not None:
        raise DamagedFile(
            f"recorded choices have {strange!r} among them: expected letters from A to "
            f"{LETTERS[-1]} and -; run `lad benchmark collect` again"
        )
    return [
        (None if letter == "-" else LETTERS.index(letter.upper()), letter.isupper())
        for letter in letters
    ]
