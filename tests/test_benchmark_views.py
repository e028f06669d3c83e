"""Benchmarks as figures, tables and a browser: they say what the numbers say, and nothing else."""

import copy

import pytest
from lad.evaluation.curve import join_curve, join_runs
from lad.evaluation.generation import refine_traces
from lad.evaluation.questions import put
from lad.evaluation.respondents import Denoising
from lad.evaluation.run import Asked, run
from scripted import line_of, oracle, scripted, some_items

from lad.diffusion.config import RefineConfig
from lad.evaluation import examples, tables
from lad.evaluation.benchmark import Item
from lad.utils import DamagedFile, InvalidInput
from lad.viz.benchmarks import (
    accuracies,
    compute_curve,
)
from lad.viz.style import to_png
from lad.widgets.benchmark import Answered, ItemBrowser, answered_html

QUIET = RefineConfig(iterations=4, remasking="none")
ITEMS = some_items(40)


@pytest.fixture(scope="module")
def joined(tmp_path_factory) -> dict:
    """An oracle as the denoiser and a model that always says A as the backbone, collected."""
    folder = tmp_path_factory.mktemp("runs")
    for digest, say in (("a" * 64, oracle(ITEMS)), (None, line_of("A"))):
        who = Denoising(scripted(say), QUIET, samples=2)
        for asked in (
            Asked("arc-easy", "test"),
            Asked("arc-easy", "test", scoring="likelihood"),
        ):
            origin = {"model": "scripted", "adapter_sha256": digest}
            run(who, ITEMS, asked, origin, folder / str(digest)[:4] / asked.name)
    return join_runs([folder / "aaaa", folder / "None"], ["lad benchmark"])


def title(figure) -> str:
    return " ".join(figure.get_suptitle().split())


# -- figures ---------------------------------------------------------------------------------------


def test_the_title_counts_what_is_clearly_apart(joined):
    found = title(accuracies(joined))
    assert found == "The denoiser is better than its backbone in 2 of 2 comparisons, worse in 0"
    turned = copy.deepcopy(joined)
    for one in turned["comparisons"]:
        one["difference"] |= {"value": -0.02, "low": -0.03, "high": -0.01}
    assert title(accuracies(turned)).endswith("in 0 of 2 comparisons, worse in 2")
    for one in turned["comparisons"]:
        one["difference"] |= {"value": 0.01, "low": -0.5, "high": 0.5}
    assert title(accuracies(turned)).endswith("in 0 of 2 comparisons, worse in 0")


def test_every_way_of_scoring_has_its_panel(joined):
    figure = accuracies(joined)
    names = [axes.get_title(loc="left") for axes in figure.axes]
    assert names == ["likelihood of the line", "generation"]
    assert all(axes.get_xlabel() == "accuracy (%)" for axes in figure.axes)
    words = [text.get_text() for text in figure.legends[0].get_texts()]
    assert words == ["chance", "backbone, 95 % interval", "denoiser, 95 % interval"]
    ends = [100 * end for run in joined["runs"] for end in run["interval"]]
    low, high = figure.axes[0].get_xlim()
    assert low <= min(ends) and max(ends) <= high  # no bar leaves the panel
    assert to_png(figure) == to_png(accuracies(joined))
    more = copy.deepcopy(joined)
    more["runs"] += [more["runs"][0] | {"task": "mmlu"}]
    panels = accuracies(more).axes
    labels = [tick.get_text() for tick in panels[0].get_yticklabels()]
    assert labels == ["ARC-Easy", "MMLU"]
    said = [[text.get_text() for text in axes.texts] for axes in panels]
    assert sorted(said) == [[], ["not measured"]]


def test_a_run_without_a_counterpart_is_compared_with_chance(joined):
    alone = {
        "runs": [run for run in joined["runs"] if run["by"] == "denoiser"],
        "comparisons": [],
    }
    points = 100 * (1 - joined["runs"][0]["chance"])
    assert title(accuracies(alone)) == f"The denoiser is at most {points:+.1f} points from chance"


def test_no_run_is_said(joined):
    rotated = copy.deepcopy(joined["runs"])
    for one in rotated:
        one["asked"]["rotate"] = True
    for runs in ([], rotated):
        with pytest.raises(DamagedFile, match="no run among these"):
            accuracies({"runs": runs, "comparisons": []})
    with pytest.raises(DamagedFile, match="no points"):
        compute_curve({"points": []})


def point(preset: str, iterations: int, value: float, exact: float = 0.5) -> dict:
    accuracy = {"value": value, "low": value - 0.05, "high": value + 0.05, "n": 50}
    one = {"task": "arc-easy", "preset": preset, "iterations": iterations, "chance": 0.25}
    return one | {"accuracy": accuracy, "parsable": 1.0, "exact": exact}


def test_a_curve_says_what_iterations_change():
    points = [point("noiseless", 8, 0.6, 0.9), point("noiseless", 1, 0.3, 0.1)]
    points += [point("noiseless", 2, 0.5), point("default", 1, 0.4), point("default", 8, 0.41)]
    points += [point("quality", 1, 0.5, 0.9), point("quality", 8, 0.3, 0.2)]
    figure = compute_curve({"points": points})
    assert title(figure) == (
        "From 1 to 8 iterations accuracy rises on 1 of 3 curves, whole lines on 1"
    )
    letter, whole = figure.axes
    assert letter.get_title(loc="left") == "ARC-Easy: the leading letter is right"
    for axes, values in ((letter, [30, 50, 60]), (whole, [10, 50, 90])):
        assert axes.get_xscale() == "log" and "iterations" in axes.get_xlabel()
        assert [tick.get_text() for tick in axes.get_xticklabels()] == ["1", "2", "8"]
        line = axes.containers[0].lines[0]
        assert line.get_xdata() == pytest.approx([1, 2, 8], rel=0.1)  # lines stand side by side
        assert line.get_ydata() == pytest.approx(values)
    two = compute_curve({"points": points + [p | {"task": "mmlu"} for p in points]})
    names = [axes.get_title(loc="left").split(":")[0] for axes in two.axes]
    assert names == ["ARC-Easy", "ARC-Easy", "MMLU", "MMLU"]
    assert "rises on 2 of 6 curves" in title(two)


def test_a_curve_of_real_runs_has_every_point():
    found = {}
    for iterations in (1, 2):
        who = Denoising(scripted(line_of("B")), RefineConfig(iterations=iterations))
        told = run(who, ITEMS, Asked("arc-easy", "test", n=5), {"model": "x", "preset": "y"})
        found["noiseless", iterations] = [told.summary]
    data = join_curve(found, "lad benchmark curve")
    assert "preset" not in data["origin"] and data["command"] == "lad benchmark curve"
    assert [p["iterations"] for p in data["points"]] == [1, 2]
    assert "rises on 0 of 1 curves" in title(compute_curve(data))


# -- tables ----------------------------------------------------------------------------------------


def test_the_authors_table_has_intervals():
    text = tables.authors_text()
    assert "ARC-Easy       88.5         83.3 to 92.2" in text
    assert all(name in text for name in ("ARC-Challenge", "MMLU", "HellaSwag"))


def test_the_results_table_has_both_and_their_difference(joined):
    lines = tables.results_text(joined).split("\n")
    assert lines[2] == "" and lines[3].startswith("ARC-Easy: 40 questions, chance 26.3, ")
    assert [line.split("  ")[0] for line in lines[4:]] == [
        "line",
        "line, by characters",
        "generation",
    ]
    assert all("100.0 (91.2–100.0)" in line for line in lines[4:])
    assert max(map(len, lines)) < 98
    alone = {"runs": joined["runs"][:1], "comparisons": []}
    assert "–" in tables.results_text(alone)


def test_tables_of_letters_say_what_was_chosen_and_what_was_right(joined):
    text = tables.bias_text(joined)
    golds = [item.gold for item in ITEMS]
    share = f"{100 * golds.count(0) / len(ITEMS):.0f}"
    assert "none" in text and f"100/{share}" in text  # the backbone always says A
    oracle_line, other = sorted(tables.places_text(joined).split("\n")[2:], reverse=True)
    assert oracle_line.split()[3:] == ["100/100"] * 4
    assert other.split()[3:] == [f"{share}/100", "–/0", "–/0", "–/0"]
    assert "likelihood of the line" in tables.places_text(joined, "likelihood")


# -- what a notebook asks --------------------------------------------------------------------------


def test_examples_are_sound_questions():
    assert len({item.id for item in examples.EXAMPLES}) == len(examples.EXAMPLES)
    for item in examples.EXAMPLES:
        assert 0 <= item.gold < len(item.options) == len(set(item.options))


def test_without_the_benchmarks_own_questions_are_asked(monkeypatch):
    monkeypatch.setattr(examples, "is_cached", lambda: False)
    items, told = examples.live_items("arc-easy", 3)
    assert items == list(examples.EXAMPLES[:3])
    assert "3 questions written for this notebook" in told and "145 MB" in told
    monkeypatch.setattr(examples, "is_cached", lambda: True)
    monkeypatch.setattr(examples, "read_source", lambda *_, **__: ITEMS)
    items, told = examples.live_items("arc-easy", 5, seed=2)
    assert len(items) == 5 and told == "5 questions of ARC-Easy (test), seed 2."


# -- the browser -----------------------------------------------------------------------------------


def answered(say, items) -> list[Answered]:
    questions = [put(item) for item in items]
    found = dict(refine_traces(scripted(say), questions, QUIET, 4))
    return [Answered(question, found[n]) for n, question in enumerate(questions)]


def test_a_question_is_shown_with_what_is_right_and_what_was_said():
    [one] = answered(line_of("B"), ITEMS[:1])
    page = answered_html(one)
    right, chosen = one.question.lines[one.question.gold], one.question.lines[1]
    assert one.question.gold != 1
    assert f"<strong>{right}</strong> (right answer)" in page
    assert f"<u>{chosen}</u> (chosen)" in page
    assert "The leading letter is wrong" in page
    [other] = answered(oracle(ITEMS), ITEMS[:1])
    assert "(right answer, chosen)" in answered_html(other)


def test_markup_is_shown_and_never_run():
    item = Item("arc-easy", "<i>", "<script>alert(1)</script>", ("<b>x</b>", "y"), 0)
    browser = ItemBrowser(answered(lambda text: "<u>?", [item]))
    shown = browser.page.value + browser.caption.value
    assert "<script>" not in shown and "<b>" not in shown and "<i>" not in shown
    assert "&lt;script&gt;" in shown and "&lt;u&gt;?" in shown


def test_the_browser_goes_from_question_to_question():
    four = [Item("arc-easy", f"i{n}", f"Q{n}?", ("k", "l"), n % 2) for n in range(4)]
    browser = ItemBrowser(answered(line_of("A"), four))
    assert "Question 1 of 4" in browser.caption.value and "i0" in browser.caption.value
    browser.forth.click()
    assert "Question 2 of 4" in browser.caption.value and "wrong" in browser.caption.value
    assert browser.player.trace.answer == "A: k"
    for _ in range(5):
        browser.forth.click()
    assert browser.slider.value == 4
    assert dict(browser.shown.options) == {"all": "all", "right (2)": "right", "wrong (2)": "wrong"}
    browser.shown.value = "wrong"
    assert "Question 1 of 2" in browser.caption.value and "i1" in browser.caption.value
    browser.back.click()
    assert browser.slider.value == 1
    browser.shown.value = "all"
    assert browser.slider.max == 4
    with pytest.raises(InvalidInput, match="no answered question"):
        ItemBrowser([])
