"""The committed results hang together: whoever edits a number by hand is contradicted by another.

Everything is computed again from the recorded letters, which stand for one question each, and where
the benchmarks are on this disk, the letters are held against the questions themselves.
"""

from collections import Counter

import pytest
from scipy.stats import binomtest
from statsmodels.stats.proportion import proportion_confint

from lad.evaluation.benchmark import BenchmarkConfig, digest, questions_of
from lad.evaluation.tables import AUTHORS, PARTS, share_of
from lad.evaluation.tasks import LETTERS, get_task, is_cached, load_items
from lad.viz.gallery import read_numbers

DATA = read_numbers("benchmarks")
ASKED = [(one, BenchmarkConfig(**one["asked"])) for one in DATA["runs"]]
RUNS = {f"{one['by']}-{asked.name}": (one, asked) for one, asked in ASKED}


def read_letters(letters: str) -> list[tuple[int | None, bool]]:
    """For each question the place chosen, or None, and whether it was right."""
    return [(None if x == "-" else LETTERS.index(x.upper()), x.isupper()) for x in letters]


def interval(hits: int, n: int) -> list[float]:
    """Wilson's at 95 %."""
    return [*proportion_confint(hits, n, method="wilson")]


def test_what_is_recorded_is_what_is_recorded():
    """Full sets, by generation and by the likelihood of the text."""
    tasks = sorted({asked.task for _, asked in RUNS.values()})
    assert {*AUTHORS} <= {*tasks}
    ways = ("generation", "likelihood-text")
    expected = [f"{task}-{way}" for task in tasks for way in ways]
    for by in ("backbone", "denoiser"):
        assert sorted(expected) == sorted(x.name for one, x in RUNS.values() if one["by"] == by)
    for one, asked in RUNS.values():
        task = get_task(asked.task)
        assert (asked.split, asked.n) == (task.tested_on, None)
        assert one["n"] == task.splits[asked.split].items == len(one["choices"])
        assert (one["adapter_sha256"] is None) == (one["by"] == "backbone")
    # One backbone, one adapter, one machine and the same versions.
    for part in ("backbone_digest", "processor", "dtype", "torch", "transformers", "lad"):
        assert len({one["origin"][part] for one, _ in RUNS.values()}) == 1, part
    assert len({one["adapter_sha256"] for one, _ in RUNS.values()}) == 2
    assert all("benchmark" in command for command in DATA["commands"])


@pytest.mark.parametrize("name", RUNS)
def test_accuracies_and_shares_are_those_of_the_letters(name):
    one, asked = RUNS[name]
    for way in ["", "_normalised"][: 1 + (asked.scoring == "likelihood")]:
        letters = read_letters(one[f"choices{way}"])
        hits = sum(right for _, right in letters)
        assert one[f"accuracy{way}"] == pytest.approx(hits / len(letters), abs=1e-12)
        if not asked.rotate:  # else a question's rows are not independent
            assert one["n"] == len(letters)
            assert one[f"interval{way}"] == pytest.approx(interval(hits, len(letters)), abs=1e-9)
    for key in ("text", "line") if asked.name.endswith("generation") else ():  # not rotated
        share = share_of(one, key)
        hits = share.value * len(letters) if share else 0
        assert hits == pytest.approx(round(hits), abs=1e-6)
    if "choices_text" in one:
        hits = sum(right for _, right in read_letters(one["choices_text"]))
        assert one["text"]["value"] == pytest.approx(hits / len(letters), abs=1e-12)
    letters = read_letters(one["choices"])
    chosen = Counter("none" if place is None else LETTERS[place] for place, _ in letters)
    for letter, share in one["letters"].items():
        assert share["chosen"] == pytest.approx(chosen.pop(letter, 0) / len(letters), abs=1e-12)
    assert not chosen
    assert one["majority"] == max(share["right"] for share in one["letters"].values())
    for x in one.get("subjects", {}).values():
        ends = interval(round(x["value"] * x["n"]), x["n"])
        assert [x["low"], x["high"]] == pytest.approx(ends, abs=1e-9)


@pytest.mark.parametrize(
    "recorded", DATA["comparisons"], ids=lambda x: f"{x['task']}-{x['scoring']}"
)
def test_comparisons_are_those_of_the_letters(recorded):
    kind = (recorded["task"], recorded["scoring"], recorded["target"])
    pair = {
        one["by"]: one for one, x in RUNS.values() if (x.task, x.scoring, one["target"]) == kind
    }
    a, b = (read_letters(pair[by]["choices"]) for by in ("backbone", "denoiser"))
    found = Counter((x, y) for (_, x), (_, y) in zip(a, b, strict=True))
    counts = [recorded[key] for key in ("both", "only_a", "only_b", "neither")]
    pairs = [(True, True), (True, False), (False, True), (False, False)]
    assert counts == [found[one] for one in pairs]
    assert recorded["p"] == pytest.approx(binomtest(recorded["only_a"], sum(counts[1:3])).pvalue)
    gained = (recorded["only_b"] - recorded["only_a"]) / recorded["n"]
    assert recorded["difference"]["value"] == pytest.approx(gained, abs=1e-12)
    assert recorded["difference"]["low"] <= gained <= recorded["difference"]["high"]


@pytest.mark.skipif(not is_cached(), reason="the benchmarks are not on this disk: lad benchmark")
@pytest.mark.parametrize("task", sorted({asked.task for _, asked in RUNS.values()}))
def test_the_letters_are_answers_to_the_questions_of_the_pinned_data(task):
    items = load_items(task)
    for kind in ("line", "text"):
        runs = [pair for pair in RUNS.values() if (pair[1].task, pair[0]["target"]) == (task, kind)]
        questions = questions_of(items, runs[0][1])
        assert {one["items_sha256"] for one, _ in runs} == {digest(questions)}
        questions.sort(key=lambda question: question.key)
        options = [len(question.lines) for question in questions]
        golds = Counter(LETTERS[question.gold] for question in questions)
        for one, _ in runs:
            assert one["chance"] == pytest.approx(sum(1 / many for many in options) / len(options))
            for letter, share in one["letters"].items():
                assert share["right"] == pytest.approx(golds[letter] / len(questions))
            letters = read_letters(one["choices"])
            for question, (choice, right) in zip(questions, letters, strict=True):
                same = choice == question.gold
                if kind == "text":  # two options may be the same text
                    same = question.answers[choice] == question.answers[question.gold]
                assert right == same, question.key


def test_the_curve_hangs_together():
    curve = read_numbers("benchmark_curve")
    for point in curve["points"]:
        shares = {key: share_of(point, key) for key in PARTS}
        for x in filter(None, shares.values()):
            assert x.n == curve["n"] == point["forwards"]["n"]
            ends = interval(round(x.value * x.n), x.n)
            assert [x.low, x.high] == pytest.approx(ends, abs=1e-9)
        assert 1 <= point["forwards"]["low"] <= point["forwards"]["high"] <= point["iterations"]
        assert 0 <= shares["line"].value <= point["parsable"] <= 1
