"""A few questions written for this project: they are what a notebook asks where no benchmark is.

They are easy, they are few, and nothing is measured with them.
"""

from __future__ import annotations

from lad.evaluation.benchmark_data import is_cached
from lad.evaluation.run import choose
from lad.evaluation.sources import read_source
from lad.evaluation.tasks import Item, get_task

__all__ = ["EXAMPLES", "live_items"]

_ASKED = (
    ("What do bees make?", ("honey", "milk", "bread", "glass"), 0),
    ("Which of these is a colour?", ("seven", "table", "blue", "quickly"), 2),
    ("What is frozen water called?", ("steam", "ice", "sand"), 1),
    ("Which animal can fly?", ("a dog", "a horse", "a snail", "an eagle"), 3),
    ("How many legs does a cat have?", ("two", "three", "four", "six", "eight"), 2),
    ("What do plants need to grow?", ("light", "music", "paint", "plastic"), 0),
    ("Where does the sun rise?", ("in the west", "in the east", "in the north"), 1),
    ("Which of these is a tool?", ("a cloud", "a song", "a river", "a hammer"), 3),
)
EXAMPLES = tuple(
    Item("examples", str(number), *asked) for number, asked in enumerate(_ASKED, start=1)
)


def live_items(task: str, n: int, seed: int = 0) -> tuple[list[Item], str]:
    """Questions of a benchmark if it is on this disk, else `EXAMPLES`; nothing is downloaded.

    Returns:
        The questions, and one sentence that says where they come from.
    """
    if is_cached():
        spec = get_task(task)
        items = choose(read_source("wheel", task, progress=False), n, seed)
        return items, f"{len(items)} questions of {spec.title} ({spec.tested_on}), seed {seed}."
    return list(EXAMPLES[:n]), (
        f"{min(n, len(EXAMPLES))} questions written for this notebook, because the benchmarks are "
        f"not on this disk: run `lad benchmark --task {task} --n 1` once, which fetches 145 MB."
    )
