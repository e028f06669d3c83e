"""Multiple-choice questions as training pairs, as LAD's authors train on benchmarks' own splits.

Only splits that no result is reported on are used: train, and dev and validation of MMLU, which has
no other. Questions that overlap with any test split of any benchmark are left out: some recur word
for word in a train split of another.

Evaluation imports training, so `tasks` is an argument: the module `lad.evaluation.tasks`.
"""

from __future__ import annotations

import random
import re
from collections import Counter
from collections.abc import Iterator
from types import ModuleType

from lad.models.registry import LoadedBackbone
from lad.training.contamination import Passages
from lad.training.data import Pair, encode_pairs

SMALL = 10_000  # a task of fewer questions is seen three times as often
# Options that refer to others by letter or place mean something in their own order only.
REFERS = re.compile(r"\b(?:[A-E],? (?:and|or|nor) [A-E]|of the (?:above|below|preceding))\b")


def benchmark_passages(tasks: ModuleType) -> Iterator[str]:
    """What no pair may share text with: every test question, alone and followed by its answer."""
    for task in tasks.TASKS.values():
        for item in tasks.load_items(task.name, task.tested_on):
            yield item.question
            yield f"{item.question} {item.options[item.gold]}"


def trained_on(tasks: ModuleType) -> dict[str, tuple[str, ...]]:
    """Task -> splits whose questions become pairs: "train", or else all that are not tested on."""
    found = {}
    for name, task in tasks.TASKS.items():
        others = [split for split in task.splits if split != task.tested_on]
        if others:
            found[name] = ("train",) if "train" in others else tuple(others)
    return found


def choice_items(tasks: ModuleType, passages: Passages) -> tuple[dict[str, list], Counter]:
    """The questions of each task, each once, without those that overlap with `passages`.

    Returned too is how many of each task overlap.
    """
    kept, left_out = {}, Counter()
    for name, splits in trained_on(tasks).items():
        items = {}
        for item in (item for split in splits for item in tasks.load_items(name, split)):
            if passages.overlap(item.question, *(f"{item.question} {o}" for o in item.options)):
                left_out[name] += 1
            else:
                items.setdefault((item.question, frozenset(item.options)), item)
        kept[name] = list(items.values())
    return kept, left_out


def choice_pair(tasks: ModuleType, item, seed: int | str = 0) -> Pair:
    """A question in LAD's format, its options shuffled unless they refer to each other."""
    order = [*range(len(item.options))]
    if not any(REFERS.search(option) for option in item.options):
        # The question is part of the seed, since MMLU's splits use the same ids.
        random.Random(f"{seed}-{item.task}-{item.id}-{item.question}").shuffle(order)
    return Pair(*tasks.format_choices(item, order))


def choices_for(
    tasks: ModuleType, backbone: LoadedBackbone, passages: Passages, config
) -> tuple[list[Pair], dict]:
    """Choice pairs that fit `config.choice_context`, and their data card.

    A question comes `config.shuffles` times, of a small task three times as often, each time with
    its options in another order; and once, of four options or more, as a bare text: the question,
    then the right option alone, which is what the likelihood of the text is measured on.
    """
    kept, left_out = choice_items(tasks, passages)
    pairs, card = [], {"tasks": {}, "left out, tested elsewhere": dict(left_out)}
    for name, items in kept.items():
        copies = config.shuffles * (3 if len(items) < SMALL else 1)
        seeds = [f"{config.seed}-{n}" for n in range(copies)]
        found = [choice_pair(tasks, item, seed) for item in items for seed in seeds]
        if copies:
            found += [
                Pair(item.question, item.options[item.gold])
                for item in items
                if len(item.options) >= 4
            ]
        found = list(dict.fromkeys(found))  # two options have two orders
        encoded = encode_pairs(backbone.tokenizer, found)
        fits = [len(p) + len(a) < config.choice_context for p, a in encoded]
        pairs += [pair for pair, fit in zip(found, fits, strict=True) if fit]
        task = tasks.TASKS[name]
        card["tasks"][name] = {
            "questions": len(items),
            "pairs": sum(fits),
            "too long": fits.count(False),
            "splits": list(trained_on(tasks)[name]),
            "licence": task.licence,
            "source": task.attribution,
        }
    return pairs, card
