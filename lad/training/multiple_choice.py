"""Multiple-choice questions as training pairs, so that a denoiser knows the form benchmarks ask in.

Only what results are not reported on is used: the train splits of ARC, HellaSwag and OpenBookQA,
and the dev and validation splits of MMLU, which has no other. Questions that overlap with any test
split of any benchmark are left out: some recur word for word in a train split of another.

Options are shuffled, each question by its own seed: the right letter is uniform, and no order is
there to be learnt.
"""

from __future__ import annotations

import random
import re
from collections import Counter
from collections.abc import Iterator

from lad.evaluation.tasks import TASKS, Item, format_choices, load_items
from lad.models.chat import encode_prompts
from lad.models.registry import LoadedBackbone
from lad.training.contamination import Passages
from lad.training.data import Pair

__all__ = [
    "TRAINED_ON",
    "benchmark_passages",
    "choice_items",
    "choice_pair",
    "choice_pairs",
    "choices_for",
]

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


def benchmark_passages(progress: bool = True) -> Iterator[str]:
    """What no pair may share text with: every test question, alone and followed by its answer."""
    for task in TASKS.values():
        for item in load_items(task.name, task.tested_on, progress):
            yield item.question
            yield f"{item.question} {item.options[item.gold]}"


def choice_items(
    seed: int = 0, hellaswag: int = HELLASWAG, away: Passages | None = None, progress: bool = True
) -> tuple[list[Item], Counter]:
    """Questions that may be trained on, in an order of their own for each seed.

    Args:
        seed: of the order, and of which questions of HellaSwag are taken.
        hellaswag: most questions of HellaSwag.
        away: what they must not overlap with; by default every test split of every benchmark.
        progress: draw a progress bar when stderr is a terminal.

    Returns:
        The questions, and how many of each task were left out because they overlap.

    Raises:
        AssetUnavailable: the benchmarks are not in the cache, and cannot be had.
    """
    away = Passages(benchmark_passages(progress)) if away is None else away
    kept, left_out, seen = [], Counter(), set()
    for task, splits in TRAINED_ON.items():
        items = [item for split in splits for item in load_items(task, split, progress)]
        random.Random(f"{seed}-{task}").shuffle(items)
        clean = []
        for item in items:
            if task == "hellaswag" and len(clean) == hellaswag:
                break
            same = (item.question, frozenset(item.options))
            if overlaps(item, away):
                left_out[task] += 1
            elif same not in seen:  # a few stand there twice
                seen.add(same)
                clean.append(item)
        kept += clean
    random.Random(f"{seed}").shuffle(kept)
    return kept, left_out


def overlaps(item: Item, away: Passages) -> bool:
    """True when a question, alone or with one of its options, shares text with `away`."""
    return away.are(item.question) or any(
        away.share(f"{item.question} {option}") for option in item.options
    )


def choice_pair(item: Item, seed: int = 0) -> Pair:
    """A question in LAD's format, its options shuffled unless they speak of each other."""
    order = list(range(len(item.options)))
    if not any(REFERS.search(option) for option in item.options):
        # The question is part of the seed, since MMLU's splits use the same ids.
        random.Random(f"{seed}-{item.task}-{item.id}-{item.question}").shuffle(order)
    return Pair(*format_choices(item, order))


def choice_pairs(
    seed: int = 0, most: int | None = None, hellaswag: int = HELLASWAG, progress: bool = True
) -> list[Pair]:
    """Training pairs out of the benchmarks' train splits; `most` of them, or all.

    Raises:
        AssetUnavailable: the benchmarks are not in the cache, and cannot be had.
    """
    items, _ = choice_items(seed, hellaswag, progress=progress)
    return [choice_pair(item, seed) for item in items[:most]]


def choices_for(
    backbone: LoadedBackbone,
    others: int,
    share: float,
    context: int,
    seed: int = 0,
    away: Passages | None = None,
) -> tuple[list[Pair], dict]:
    """Choice pairs to go with `others` other pairs, so that they are `share` of all.

    Args:
        backbone: its tokenizer says which pairs fit.
        others: how many pairs there are already.
        share: 0 to below 1; fewer are given where there are no more.
        context: most tokens of prompt, answer and EOS.
        seed, away: as in `choice_items`.

    Returns:
        The pairs, and what a data card says of them.
    """
    # Half of HellaSwag does not fit 256 tokens: more is looked at, so that as much is left.
    items, left_out = choice_items(seed, hellaswag=5 * HELLASWAG // 2, away=away)
    pairs = [choice_pair(item, seed) for item in items]
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
                "licence": TASKS[task].licence,
                "source": TASKS[task].attribution,
            }
            for task, splits in TRAINED_ON.items()
        },
        "left out, tested elsewhere": dict(left_out),
        "left out, too long": fits.count(False),
    }
