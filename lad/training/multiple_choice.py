"""Multiple-choice questions as training pairs, so that a denoiser knows the form of benchmarks.

Only what results are not reported on is used: the train splits of ARC, HellaSwag and OpenBookQA,
and the dev and validation splits of MMLU, which has no other. Questions that overlap with any test
split of any benchmark are left out: some recur word for word in a train split of another.

Options are shuffled, each question by its own seed: the right letter is uniform, and there is no
order to be learnt. Evaluation imports training, so the benchmarks are an argument here: the module
`lad.evaluation.tasks`, of which `TASKS`, `load_items` and `format_choices` are used.
"""

from __future__ import annotations

import random
import re
from collections import Counter
from collections.abc import Iterator
from types import ModuleType

from lad.models.chat import encode_prompts
from lad.models.registry import LoadedBackbone
from lad.training.contamination import Passages
from lad.training.data import Pair

# task -> splits
TRAINED_ON = {
    "arc-easy": ("train",),
    "arc-challenge": ("train",),
    "hellaswag": ("train",),
    "openbookqa": ("train",),
    "mmlu": ("dev", "validation"),
}
HELLASWAG = 8000  # most of its questions; it alone has more than all others together
# Options that speak of others by letter or place mean something in their own order only.
REFERS = re.compile(r"\b(?:[A-E],? (?:and|or|nor) [A-E]|of the (?:above|below|preceding))\b")


def benchmark_passages(tasks: ModuleType, progress: bool = True) -> Iterator[str]:
    """What no pair may share text with: every test question, alone and followed by its answer."""
    for task in tasks.TASKS.values():
        for item in tasks.load_items(task.name, task.tested_on, progress):
            yield item.question
            yield f"{item.question} {item.options[item.gold]}"


def choice_items(
    tasks: ModuleType,
    away: Passages,
    seed: int = 0,
    hellaswag: int = HELLASWAG,
    progress: bool = True,
) -> tuple[list, Counter]:
    """Questions that may be trained on, and how many of each task overlap and are left out.

    Args:
        away: what they must not overlap with, see `benchmark_passages`.
        seed: of the order, and of which questions of HellaSwag are taken.
        hellaswag: questions of HellaSwag at most.
        progress: draw a progress bar when stderr is a terminal.

    Raises:
        AssetUnavailable: the benchmarks are not in the cache, and cannot be had.
    """
    kept, left_out, seen = [], Counter(), set()
    for task, splits in TRAINED_ON.items():
        items = [item for split in splits for item in tasks.load_items(task, split, progress)]
        random.Random(f"{seed}-{task}").shuffle(items)
        clean = []
        for item in items:
            if task == "hellaswag" and len(clean) == hellaswag:
                break
            same = (item.question, frozenset(item.options))
            if overlaps(item, away):
                left_out[task] += 1
            elif same not in seen:  # a few occur twice
                seen.add(same)
                clean.append(item)
        kept += clean
    random.Random(f"{seed}").shuffle(kept)
    return kept, left_out


def overlaps(item, away: Passages) -> bool:
    """True when a question, alone or with one of its options, shares text with `away`."""
    return away.are(item.question) or any(
        away.share(f"{item.question} {option}") for option in item.options
    )


def choice_pair(tasks: ModuleType, item, seed: int = 0) -> Pair:
    """A question in LAD's format, its options shuffled unless they speak of each other."""
    order = list(range(len(item.options)))
    if not any(REFERS.search(option) for option in item.options):
        # The question is part of the seed, since MMLU's splits use the same ids.
        random.Random(f"{seed}-{item.task}-{item.id}-{item.question}").shuffle(order)
    return Pair(*tasks.format_choices(item, order))


def choices_for(
    tasks: ModuleType,
    backbone: LoadedBackbone,
    others: int,
    share: float,
    context: int,
    away: Passages,
    seed: int = 0,
) -> tuple[list[Pair], dict]:
    """Choice pairs that are `share` of all pairs with `others` other ones, and their data card.

    Args:
        backbone: its tokenizer decides which pairs fit.
        share: 0 to below 1; fewer are returned where there are no more.
        context: tokens of prompt, answer and EOS at most.
        away, seed: as in `choice_items`.
    """
    # Half of HellaSwag does not fit 256 tokens: more is read, so that as much is left.
    items, left_out = choice_items(tasks, away, seed, hellaswag=5 * HELLASWAG // 2)
    pairs = [choice_pair(tasks, item, seed) for item in items]
    prompts = encode_prompts(backbone.tokenizer, [pair.prompt for pair in pairs])
    answers = backbone.tokenizer([p.answer for p in pairs], add_special_tokens=False)["input_ids"]
    fits = [len(p) + len(a) < context for p, a in zip(prompts, answers, strict=True)]
    most = round(others * share / (1 - share))
    taken, numbers = [], Counter()
    for item, pair, fit in zip(items, pairs, fits, strict=True):
        full = item.task == "hellaswag" and numbers["hellaswag"] == HELLASWAG
        if fit and not full and len(taken) < most:
            numbers[item.task] += 1
            taken.append(pair)
    return taken, {
        "share": round(len(taken) / max(len(taken) + others, 1), 4),
        "tasks": {
            task: {
                "pairs": numbers[task],
                "splits": list(splits),
                "licence": tasks.TASKS[task].licence,
                "source": tasks.TASKS[task].attribution,
            }
            for task, splits in TRAINED_ON.items()
        },
        "left out, tested elsewhere": dict(left_out),
        "left out, too long": fits.count(False),
    }
