"""Choice pairs: asked in one format, shuffled fairly, and never what is tested."""

from collections import Counter

import pytest

from lad.evaluation import tasks
from lad.evaluation.tasks import TASKS, Item, fetch_benchmarks, load_items
from lad.training.contamination import Passages, normalised
from lad.training.multiple_choice import (
    TRAINED_ON,
    benchmark_passages,
    choice_items,
    choice_pair,
    overlaps,
)
from lad.utils import AssetUnavailable

OPTIONS = ("sand", "water", "glass", "wood")


def test_the_right_letter_is_uniform_and_the_right_text_stays():
    letters = Counter()
    for number in range(2000):
        pair = choice_pair(
            tasks, Item("arc-easy", str(number), f"Which is wet, {number}?", OPTIONS, 1)
        )
        letters[pair.answer[0]] += 1
        assert pair.answer.endswith(": water") and f"\n{pair.answer}\n" in pair.prompt + "\n"
        assert sorted(line[3:] for line in pair.prompt.splitlines()[2:]) == sorted(OPTIONS)
    # 500 each, give or take four standard errors.
    assert set(letters) == set("ABCD") and all(abs(n - 500) < 78 for n in letters.values())


def test_the_order_is_that_of_the_seed():
    items = [Item("mmlu", "same-0", f"Which is wet, {n}?", OPTIONS, 1) for n in range(50)]
    first, again, other = (
        [choice_pair(tasks, item, seed).answer for item in items] for seed in (0, 0, 1)
    )
    assert first == again != other
    assert len(set(first)) == 4  # equal ids, as in two splits of MMLU, are no equal order


@pytest.mark.parametrize("odd", ["All of the above", "Both A and C", "Neither B nor D", "A, or B"])
def test_options_that_speak_of_others_stay_where_they_are(odd):
    items = [Item("mmlu", "", f"Why {n}?", ("one", "two", "three", odd), 3) for n in range(20)]
    assert {choice_pair(tasks, item).answer for item in items} == {f"D: {odd}"}
    free = [
        Item("mmlu", "", f"Why {n}?", ("one", "two", "three", "Above it"), 3) for n in range(20)
    ]
    assert len({choice_pair(tasks, item).answer for item in free}) == 4


def test_what_overlaps_with_a_test():
    words = " ".join(f"w{n}" for n in range(12))
    away = Passages(["Which gas do plants take in?", f"{words} end."])
    fine = Item("arc-easy", "1", "Which gas do people take in?", OPTIONS, 0)
    stem = Item("arc-easy", "2", "which gas do PLANTS take in", OPTIONS, 0)
    across = Item("arc-easy", "3", words, ("start", "end"), 0)
    assert not overlaps(fine, away)
    assert overlaps(stem, away) and overlaps(across, away)


def passages():
    return Passages(
        benchmark_passages(
            tasks,
        )
    )


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


def test_questions_that_are_tested_are_left_out_and_counted(small):
    items, left_out = choice_items(tasks, passages(), hellaswag=100)
    assert small not in items
    assert Counter(item.task for item in items) == {
        "arc-easy": 5,
        "arc-challenge": 5,
        "hellaswag": 40,
        "openbookqa": 5,
        "mmlu": 10,
    }
    assert left_out == {task: len(splits) for task, splits in TRAINED_ON.items()}


def test_hellaswag_is_capped_and_the_seed_chooses(small):
    taken = [
        {
            item.id
            for item in choice_items(tasks, passages(), seed, hellaswag=8)[0]
            if item.task == "hellaswag"
        }
        for seed in (0, 0, 1)
    ]
    assert [len(ids) for ids in taken] == [8, 8, 8]
    assert taken[0] == taken[1] != taken[2]


# -- the real ones -------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def real_pairs():
    try:
        fetch_benchmarks(progress=False)
    except AssetUnavailable as error:
        pytest.skip(f"the benchmarks are not in the cache and cannot be had: {error}")
    items, left_out = choice_items(tasks, passages())
    return [choice_pair(tasks, item) for item in items], left_out


def test_real_pairs_are_many_and_clean(real_pairs):
    """Leaving some out is not for nothing: some of ARC's questions stand in both parts."""
    real_pairs, left_out = real_pairs
    assert left_out["arc-easy"] >= 10 and left_out["arc-challenge"] >= 6
    assert 17_000 < len(real_pairs) == len(set(real_pairs))
    letters = Counter(pair.answer[0] for pair in real_pairs)
    assert all(0.24 < letters[letter] / len(real_pairs) < 0.26 for letter in "ABCD")
    stems = {
        " ".join(normalised(item.question))
        for task in TASKS.values()
        for item in load_items(task.name, task.tested_on)
    }
    asked = [pair.prompt.split("\nWhich of the options")[0] for pair in real_pairs]
    assert not stems & {" ".join(normalised(stem)) for stem in asked}
