"""Choice pairs: asked in one format, shuffled fairly, and never what is tested."""

from collections import Counter

import pytest

from lad.evaluation import tasks
from lad.evaluation.tasks import TASKS, Item, fetch_benchmarks, load_items
from lad.training.contamination import Passages, normalised
from lad.training.multiple_choice import benchmark_passages, choice_items, choice_pair
from lad.utils import AssetUnavailable

OPTIONS = ("sand", "water", "glass", "wood")


def test_the_right_letter_is_uniform_and_the_seed_gives_the_order():
    # Equal ids, as in two splits of MMLU, are no equal order.
    items = [Item("mmlu", "same-0", f"Which is wet, {n}?", OPTIONS, 1) for n in range(2000)]
    pairs, again, other = ([choice_pair(tasks, item, seed) for item in items] for seed in (0, 0, 1))
    assert pairs == again != other
    for pair in pairs:
        assert pair.answer.endswith(": water") and pair.answer in pair.prompt.splitlines()
        assert sorted(line[3:] for line in pair.prompt.splitlines()[2:]) == sorted(OPTIONS)
    letters = Counter(pair.answer[0] for pair in pairs)
    # 500 each, give or take four standard errors.
    assert set(letters) == set("ABCD") and all(abs(n - 500) < 78 for n in letters.values())


@pytest.mark.parametrize("odd", ["All of the above", "Both A and C", "Neither B nor D", "A, or B"])
def test_options_that_speak_of_others_stay_where_they_are(odd):
    items = [Item("mmlu", "", f"Why {n}?", ("one", "two", "three", odd), 3) for n in range(20)]
    assert {choice_pair(tasks, item).answer for item in items} == {f"D: {odd}"}


def passages():
    return Passages(benchmark_passages(tasks))


@pytest.fixture
def small(monkeypatch):
    """Benchmarks of a few items: HellaSwag has more than the rest, one train item is tested."""
    tested = Item("arc-easy", "t", "Which is tested?", OPTIONS, 0)

    def load(task, split, progress=True):
        if split == TASKS[task].tested_on:
            return [tested] if task == "openbookqa" else []
        n = 40 if task == "hellaswag" else 5
        return [Item(task, str(i), f"{task} {split} {i}?", OPTIONS, 0) for i in range(n)] + [tested]

    monkeypatch.setattr("lad.evaluation.tasks.load_items", load)
    return tested


def test_tested_questions_are_left_out_and_hellaswag_is_capped(small):
    items, left_out = choice_items(tasks, passages(), hellaswag=8)
    numbers = Counter(item.task for item in items)
    assert numbers == dict.fromkeys(numbers, 5) | {"hellaswag": 8, "mmlu": 10} and len(numbers) == 5
    assert small not in items and left_out["arc-easy"] == 1 and left_out["mmlu"] == 2
    assert choice_items(tasks, passages(), hellaswag=8)[0] == items
    assert choice_items(tasks, passages(), 1, hellaswag=8)[0] != items


def test_real_pairs_are_many_and_clean():
    """Leaving some out is not for nothing: some of ARC's questions stand in both parts."""
    try:
        fetch_benchmarks(progress=False)
    except AssetUnavailable as error:
        pytest.skip(f"the benchmarks are not in the cache and cannot be had: {error}")
    items, left_out = choice_items(tasks, passages())
    assert left_out["arc-easy"] >= 10 and left_out["arc-challenge"] >= 6
    real_pairs = {choice_pair(tasks, item) for item in items}
    assert 17_000 < len(real_pairs) == len(items)
    stems = {
        " ".join(normalised(item.question))
        for task in TASKS.values()
        for item in load_items(task.name, task.tested_on)
    }
    asked = [pair.prompt.split("\nWhich of the options")[0] for pair in real_pairs]
    assert not stems & {" ".join(normalised(stem)) for stem in asked}
