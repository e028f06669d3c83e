"""Multiple-choice questions as training pairs, so that a denoiser knows the form of benchmarks.

Only what results are not reported on is used: the train splits of ARC, HellaSwag and OpenBookQA,
and the dev and validation splits of MMLU, which has no other. Questions that overlap with any test
split of any benchmark are left out: some recur word for word in a train split of another.

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

# task -> splits
TRAINED_ON = dict.fromkeys(("arc-easy", "arc-challenge", "hellaswag", "openbookqa"), ("train",))
TRAINED_ON["mmlu"] = ("dev", "validation")
HELLASWAG = 8000  # most of its questions; it alone has more than all others together
# Options that refer to others by letter or place mean something in their own order only.
REFERS = re.compile(r"\b(?:[A-E],? (?:and|or|nor) [A-E]|of the (?:above|below|preceding))\b")


def benchmark_passages(tasks: ModuleType) -> Iterator[str]:
    """What no pair may share text with: every test question, alone and followed by its answer."""
    for task in tasks.TASKS.values():
        for item in tasks.load_items(task.name, task.tested_on):
            yield item.question
            yield f"{item.question} {item.options[item.gold]}"


def choice_items(
    tasks: ModuleType, passages: Passages, seed: int = 0, hellaswag: int = HELLASWAG
) -> tuple[list, Counter]:
    """Questions in random order, `hellaswag` of HellaSwag at most, without those that overlap.

    Returned too is how many of each task overlap with `passages`.
    """
    kept, left_out = {}, Counter()  # without what occurs twice
    for task, splits in TRAINED_ON.items():
        items = [item for split in splits for item in tasks.load_items(task, split)]
        random.Random(f"{seed}-{task}").shuffle(items)
        before = len(kept)
        for item in items:
            if task == "hellaswag" and len(kept) - before == hellaswag:
                break
            if passages.overlap(item.question, *(f"{item.question} {o}" for o in item.options)):
                left_out[task] += 1
            else:
                kept.setdefault((item.question, frozenset(item.options)), item)
    kept = list(kept.values())
    random.Random(f"{seed}").shuffle(kept)
    return kept, left_out


def choice_pair(tasks: ModuleType, item, seed: int = 0) -> Pair:
    """A question in LAD's format, its options shuffled unless they refer to each other."""
    order = [*range(len(item.options))]
    if not any(REFERS.search(option) for option in item.options):
        # The question is part of the seed, since MMLU's splits use the same ids.
        random.Random(f"{seed}-{item.task}-{item.id}-{item.question}").shuffle(order)
    return Pair(*tasks.format_choices(item, order))


def choices_for(
    tasks: ModuleType, backbone: LoadedBackbone, passages: Passages, config, others: int
) -> tuple[list[Pair], dict]:
    """Choice pairs, `config.choices` of all pairs with `others` others, and their data card."""
    # Half of HellaSwag does not fit 256 tokens: more is read, so that as much is left.
    items, left_out = choice_items(tasks, passages, config.seed, hellaswag=5 * HELLASWAG // 2)
    pairs = [choice_pair(tasks, item, config.seed) for item in items]
    fits = [len(p) + len(a) < config.context for p, a in encode_pairs(backbone.tokenizer, pairs)]
    most = round(others * config.choices / (1 - config.choices))
    taken, numbers = [], Counter()
    for item, pair, fit in zip(items, pairs, fits, strict=True):
        full = item.task == "hellaswag" and numbers["hellaswag"] == HELLASWAG
        if fit and not full and len(taken) < most:
            numbers[item.task] += 1
            taken.append(pair)
    card = {
        "share": round(len(taken) / max(len(taken) + others, 1), 4),
        "tasks": {},
        "left out, tested elsewhere": dict(left_out),
        "left out, too long": fits.count(False),
    }
    for name, splits in TRAINED_ON.items():
        task = tasks.TASKS[name]
        origin = {"licence": task.licence, "source": task.attribution}
        card["tasks"][name] = {"pairs": numbers[name], "splits": list(splits), **origin}
    return taken, card
