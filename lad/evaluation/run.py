"""One benchmark, one way of scoring, one model: question after question, to a folder that a killed
run goes on from.

    run.json       what was asked of whom; a run with other settings is refused
    rows.jsonl     a line a question, in the order in which they were answered
    summary.json   accuracy with its interval and everything beside it, once all are answered

A row says which option was chosen, not what the question was: no benchmark text but the model's own
answer is kept.
"""

from __future__ import annotations

import hashlib
import json
import random
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
from filelock import FileLock, Timeout

from lad.evaluation.generation import Generated, parse_letter
from lad.evaluation.likelihood import Score
from lad.evaluation.questions import TARGETS, Question, put
from lad.evaluation.respondents import Respondent
from lad.evaluation.results import Run, read_rows, summarise
from lad.evaluation.tasks import Item
from lad.utils import InvalidInput, cache_errors, write_json

__all__ = ["SCORINGS", "Asked", "choose", "questions_of", "run"]

SCORINGS = ("likelihood", "generation")

# Called with what is being done, how many questions are answered, and of how many.
Progress = Callable[[str, int, int], object]


@dataclass(frozen=True)
class Asked:
    """What is asked, of which part of which benchmark.

    Attributes:
        task, split: names in `TASKS`.
        n: questions drawn; None is all.
        seed: of the draw, of masks, and of the choice between options that score the same.
        scoring: one of `SCORINGS`.
        target: what is scored of an option, one of `TARGETS`; likelihood only.
        rotate: ask every question once for each place the options can be moved by.
        source: where the questions come from, as `lad.evaluation.sources` names it.
    """

    task: str
    split: str
    n: int | None = None
    seed: int = 0
    scoring: str = "generation"
    target: str = "line"
    rotate: bool = False
    source: str = "wheel"

    def __post_init__(self) -> None:
        if self.scoring not in SCORINGS:
            raise InvalidInput(f"scoring = {self.scoring!r}: expected {' or '.join(SCORINGS)}")
        if self.target not in TARGETS:
            raise InvalidInput(f"target = {self.target!r}: expected one of {', '.join(TARGETS)}")
        if self.rotate and self.scoring == "likelihood" and self.target == "text":
            raise InvalidInput(
                "rotate with target = 'text': the options are not listed, so they have no order; "
                "expected target line or letter"
            )
        if self.n is not None and self.n < 1:
            raise InvalidInput(f"n = {self.n}: expected at least 1")

    @property
    def name(self) -> str:
        """A file name for it: "arc-easy-likelihood-line"."""
        parts = [self.task, self.scoring]
        parts += [self.target] * (self.scoring == "likelihood") + ["rotated"] * self.rotate
        return "-".join(parts)


def choose(items: Sequence[Item], n: int | None, seed: int) -> list[Item]:
    """n of the items in their own order, drawn by the seed; all of them for None.

    Raises:
        InvalidInput: there are not as many.
    """
    if n is None:
        return list(items)
    if not 1 <= n <= len(items):
        raise InvalidInput(f"n = {n}: expected 1 to {len(items):,}, what this split has")
    drawn = random.Random(f"lad-{seed}").sample(range(len(items)), n)
    return [items[index] for index in sorted(drawn)]


def questions_of(items: Sequence[Item], asked: Asked) -> list[Question]:
    """The drawn items as questions: one each, or with `rotate` as many as each has options."""
    target = asked.target if asked.scoring == "likelihood" else "line"
    return [
        put(item, target, rotation)
        for item in choose(items, asked.n, asked.seed)
        for rotation in range(len(item.options) if asked.rotate else 1)
    ]


def run(
    respondent: Respondent,
    items: Sequence[Item],
    asked: Asked,
    origin: Mapping,
    folder: Path | None = None,
    on_progress: Progress = lambda stage, done, total: None,
) -> Run:
    """Ask every question once and sum up.

    Args:
        items: of the split, all of them.
        origin: who is asked and how, as plain values: model, adapter, versions, settings.
        folder: keep rows and summary here, and go on from the rows that are there.

    Returns:
        The rows in the order of the questions, and their summary.

    Raises:
        InvalidInput: settings that do not fit, or a folder with rows of another run.
        DamagedFile: rows in the folder that cannot be read.
        CacheError: the folder cannot be written.
    """
    questions = questions_of(items, asked)
    by_key = {question.key: question for question in questions}
    if len(by_key) < len(questions):
        raise InvalidInput(f"{asked.task}: two questions share an id; expected each to differ")
    header = {"asked": asdict(asked), "items_sha256": digest(questions), "origin": dict(origin)}
    with _kept(folder, header, by_key) as (rows, keep):
        done = {row["key"] for row in rows}
        left = [question for question in questions if question.key not in done]
        on_progress(asked.name, len(rows), len(questions))
        for row in _rows(respondent, left, asked):
            keep(row)
            rows.append(row)
            on_progress(asked.name, len(rows), len(questions))
        place = {key: n for n, key in enumerate(by_key)}
        rows.sort(key=lambda row: place[row["key"]])
        summary = summarise(rows, header)
        if folder is not None:
            with cache_errors(folder):
                write_json(folder / "summary.json", summary)
    return Run(summary, rows)


def digest(questions: Sequence[Question]) -> str:
    """Hex sha256 of what is asked, so that two runs can be told to have asked the same."""
    told = [[q.key, q.prompt, q.answers, q.lines, q.gold] for q in questions]
    return hashlib.sha256(json.dumps(told).encode()).hexdigest()


@contextmanager
def _kept(folder: Path | None, header: Mapping, known: Mapping) -> Iterator[tuple[list, Callable]]:
    """The rows there are, and what keeps another one; the folder is this process's meanwhile."""
    if folder is None:
        yield [], lambda row: None
        return
    with cache_errors(folder):
        folder.mkdir(parents=True, exist_ok=True)
        lock = FileLock(folder / ".lock")
    try:
        with cache_errors(folder):
            lock.acquire(timeout=0)
    except Timeout as error:
        raise InvalidInput(
            f"another process is writing to {folder}: wait for it, or choose another --out"
        ) from error
    try:
        _check_header(folder / "run.json", header)
        path = folder / "rows.jsonl"
        rows = read_rows(path, repair=True) if path.exists() else []
        strangers = [row["key"] for row in rows if row["key"] not in known]
        if strangers:
            raise InvalidInput(
                f"{path} has a row of {strangers[0]}, which is not asked: delete {folder} or "
                "choose another --out"
            )
        with cache_errors(folder), open(path, "a", encoding="utf-8") as file:

            def keep(row: Mapping) -> None:
                file.write(json.dumps(row) + "\n")
                file.flush()

            yield rows, keep
    finally:
        lock.release()


def _check_header(path: Path, header: Mapping) -> None:
    """Write what is asked, or refuse to go on with answers to something else."""
    if not path.exists():
        with cache_errors(path.parent):
            write_json(path, header)
        return
    try:
        there = json.loads(path.read_text(encoding="utf-8"))
        differing = [part for part in header if _lasting(there, part) != _lasting(header, part)]
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        differing = list(header)
    if differing:
        raise InvalidInput(
            f"{path} is of a run with another {differing[0]}: expected the settings, questions, "
            f"model and versions of now; delete {path.parent} or choose another --out"
        )


def _lasting(header: Mapping, part: str):
    """A part of a header as JSON reads it back; how many threads a processor lends may change."""
    value = json.loads(json.dumps(header[part]))
    return {k: v for k, v in value.items() if k != "processor"} if part == "origin" else value


def _rows(respondent: Respondent, questions: Sequence[Question], asked: Asked) -> Iterator[dict]:
    """A row a question, as the answers come."""
    if not questions:
        return
    by_likelihood = asked.scoring == "likelihood"
    told = (
        respondent.scores(questions, asked.target)
        if by_likelihood
        else respondent.answers(questions)
    )
    before = time.perf_counter()
    for index, answer in told:
        question = questions[index]
        row = {
            "key": question.key,
            "task": question.item.task,
            "id": question.item.id,
            "rotation": question.rotation,
            "options": len(question.lines),
            "gold": question.gold,
        }
        if by_likelihood:
            row |= _by_likelihood(question, answer, asked)
        else:
            row |= _by_generation(question, answer)
        now = time.perf_counter()
        yield row | {"seconds": round(now - before, 4)}
        before = now


def _by_generation(question: Question, answer: Generated) -> dict:
    choice = parse_letter(answer.text, len(question.lines))
    return {
        "choice": choice,
        "correct": choice == question.gold,
        "parsable": choice is not None,
        # The whole line, word for word: the answer names an option and says what it says.
        "exact": answer.text.strip() in question.lines,
        "answer": answer.text,
        "forwards": answer.forwards,
    }


def _by_likelihood(question: Question, scores: Sequence[Score], asked: Asked) -> dict:
    """By the sum over tokens, and by the sum over the number of characters."""
    sums = [score.log_likelihood for score in scores]
    lengths = [max(len(answer), 1) for answer in question.answers]
    shares = [x / length for x, length in zip(sums, lengths, strict=True)]
    choice, by_length = (_largest(x, f"{asked.seed}/{question.key}") for x in (sums, shares))
    row = {
        "choice": choice,
        "correct": _right(question, choice, asked.target),
        "parsable": True,
        "choice_normalised": by_length,
        "correct_normalised": _right(question, by_length, asked.target),
        "log_likelihoods": [round(x, 4) for x in sums],
        "standard_errors": [round(score.standard_error, 4) for score in scores],
    }
    # How surely the best is better than the second, from samples that are paired.
    second = max((n for n in range(len(sums)) if n != choice), key=sums.__getitem__)
    differences = scores[choice].samples - scores[second].samples
    error = differences.std(ddof=1) / len(differences) ** 0.5 if len(differences) > 1 else 0.0
    return row | {
        "margin": round(float(differences.mean()), 4),
        "margin_error": round(float(error), 4),
    }


def _largest(values: Sequence[float], key: str) -> int:
    """Place of the largest; between equals chance decides, by the question's own seed.

    Taking the first would favour A: a model that knows nothing must score at chance.
    """
    best = np.flatnonzero(np.array(values) == max(values)).tolist()
    return best[0] if len(best) == 1 else random.Random(key).choice(best)


def _right(question: Question, choice: int, target: str) -> bool:
    """Without letters, two options of the same text are one answer."""
    if target == "text":
        return question.answers[choice] == question.answers[question.gold]
    return choice == question.gold
