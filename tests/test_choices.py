"""Choice pairs: asked in one format, shuffled fairly, and never what is tested."""

from collections import Counter

import pytest
from conftest import OPTIONS

from lad.evaluation import tasks
from lad.evaluation.tasks import TASKS, Item, fetch_benchmarks, load_items
from lad.models.registry import load_backbone
from lad.training.contamination import Passages, normalised
from lad.training.distillation import DistilConfig
from lad.training.multiple_choice import (
    benchmark_passages,
    choice_items,
    choice_pair,
    choices_for,
    trained_on,
)
from lad.utils import AssetUnavailable


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


def test_tested_questions_are_left_out_and_small_tasks_come_more_often(few_questions):
    config = DistilConfig(choice_context=500, shuffles=2)
    pairs, card = choices_for(tasks, load_backbone("tiny"), passages(), config)
    assert not any(few_questions.question in pair.prompt for pair in pairs)
    trained = trained_on(tasks)
    assert card["left out, tested elsewhere"] == {name: len(trained[name]) for name in trained}
    for name, task in ((name, TASKS[name]) for name in trained):
        mine = [pair for pair in pairs if pair.prompt.startswith(f"{name} ")]
        bare = [pair for pair in mine if "\n" not in pair.prompt]
        n = {"hellaswag": 40, "mmlu": 10}.get(name, 5)
        assert len(bare) == n and {pair.answer for pair in bare} == {"sand"}
        assert len(set(mine)) == len(mine) == card["tasks"][name]["pairs"]
        shown = (len(mine) - n) / n
        assert shown <= 2 if name == "hellaswag" else 4 < shown <= 6, "of these all orders differ"
        assert card["tasks"][name]["licence"] == task.licence
    assert choices_for(tasks, load_backbone("tiny"), passages(), config)[0] == pairs
    short, card = choices_for(
        tasks, load_backbone("tiny"), passages(), DistilConfig(choice_context=60)
    )
    assert short and all("\n" not in pair.prompt for pair in short)
    assert card["tasks"]["hellaswag"]["too long"] > 40


def test_real_pairs_are_many_and_clean():
    """Leaving some out is not for nothing: some of ARC's questions stand in both parts."""
    try:
        fetch_benchmarks()
    except AssetUnavailable as error:
        pytest.skip(f"the benchmarks are not in the cache and cannot be had: {error}")
    items, left_out = choice_items(tasks, passages())
    assert left_out["arc-easy"] >= 10 and left_out["arc-challenge"] >= 6
    assert sum(map(len, items.values())) > 140_000
    stems = {
        " ".join(normalised(item.question))
        for task in TASKS.values()
        for item in load_items(task.name, task.tested_on)
    }
    asked = {" ".join(normalised(i.question)) for part in items.values() for i in part}
    assert not stems & asked
