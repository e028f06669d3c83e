"""Benchmarks as figures, tables and a browser: they say what the numbers say, and nothing else."""

import copy

import pytest
from scripted import line_of, oracle, scripted, some_items

from lad.benchmarks import Item, examples, tables
from lad.benchmarks.curve import join_curve, join_runs
from lad.benchmarks.generation import refine_traces
from lad.benchmarks.prompts import put
from lad.benchmarks.respondents import Denoising
from lad.benchmarks.run import Asked, run
from lad.controls import RefineConfig
from lad.errors import DamagedFile, InvalidInput
from lad.figures.benchmarks import (
    accuracies,
    compute_curve,
    curve_finding,
    recorded,
    results_finding,
)
from lad.figures.style import to_png
from lad.widgets.benchmark import Answered, ItemBrowser, answered_html

QUIET = RefineConfig(iterations=4, renoising="none")
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


def test_the_title_says_who_is_better_and_by_how_much(joined):
    figure = accuracies(joined)
    share = 100 * (1 - sum(item.gold == 0 for item in ITEMS) / len(ITEMS))
    expected = (
        "Scored by likelihood of the line, the denoiser is above its backbone on ARC-Easy "
        f"({share:+.1f} points)"
    )
    assert title(figure) == expected
    turned = copy.deepcopy(joined)
    for one in turned["comparisons"]:
        low, high = one["difference"]["low"], one["difference"]["high"]
        one["difference"] |= {"value": -one["difference"]["value"], "low": -high, "high": -low}
    assert "below its backbone on ARC-Easy (-" in results_finding(turned, "likelihood", "line")
    for one in turned["comparisons"]:
        one["difference"] |= {"low": -0.5, "high": 0.5}
    assert results_finding(turned, "generation", "line") == (
        "Scored by generation, the denoiser cannot be told from its backbone on ARC-Easy"
    )
    assert figure.axes[0].get_xlabel().startswith("accuracy (%")
    words = [text.get_text() for text in figure.axes[0].get_legend().get_texts()]
    assert sorted(words) == ["backbone", "chance", "denoiser"]
    assert to_png(figure) == to_png(accuracies(joined))


def test_a_run_without_a_counterpart_is_held_against_chance(joined):
    alone = {
        "runs": [run for run in joined["runs"] if run["by"] == "denoiser"],
        "comparisons": [],
    }
    assert "the denoiser is furthest from chance on ARC-Easy: +" in title(accuracies(alone))


@pytest.mark.parametrize("broken", [{}, [], {"runs": [{}], "comparisons": []}])
def test_other_numbers_are_refused(broken):
    with pytest.raises(DamagedFile, match="not the numbers of benchmarks"):
        accuracies(broken)
    with pytest.raises(DamagedFile, match="not the numbers of a curve"):
        compute_curve(broken)


def test_no_run_of_the_kind_is_said(joined):
    with pytest.raises(DamagedFile, match="no run by likelihood of the letter"):
        accuracies(joined, "likelihood", "letter")
    with pytest.raises(DamagedFile, match="no points"):
        compute_curve({"points": []})


def point(preset: str, iterations: int, value: float, half: float = 0.05) -> dict:
    accuracy = {"value": value, "low": value - half, "high": value + half, "n": 50}
    one = {"task": "arc-easy", "preset": preset, "iterations": iterations, "chance": 0.25}
    return one | {"accuracy": accuracy, "parsable": 1.0}


def test_a_curve_says_what_iterations_change():
    points = [point("noiseless", 8, 0.6), point("noiseless", 1, 0.3), point("noiseless", 2, 0.5)]
    points += [point("default", 1, 0.4), point("default", 8, 0.41)]
    points += [point("quality", 1, 0.5), point("quality", 8, 0.3)]
    figure = compute_curve({"points": points})
    assert title(figure) == (
        "From 1 to 8 iterations, accuracy rises without re-noising (30 to 60 %), does not clearly "
        "change with re-noising (40 to 41 %), falls with “quality” (50 to 30 %)"
    )
    axes = figure.axes[0]
    assert axes.get_xscale() == "log" and "iterations" in axes.get_xlabel()
    assert [tick.get_text() for tick in axes.get_xticklabels()] == ["1", "2", "8"]
    line = axes.containers[0].lines[0]
    assert line.get_xdata() == pytest.approx([1, 2, 8], rel=0.1)  # lines stand side by side
    assert line.get_ydata().tolist() == [30, 50, 60]
    two = compute_curve({"points": points + [p | {"task": "mmlu"} for p in points]})
    assert [axes.get_title(loc="left") for axes in two.axes] == ["ARC-Easy", "MMLU"]
    assert "rises on MMLU without re-noising" in title(two)


def test_a_curve_of_real_runs_has_every_point():
    found = {}
    for iterations in (1, 2):
        who = Denoising(scripted(line_of("B")), RefineConfig(iterations=iterations))
        told = run(who, ITEMS, Asked("arc-easy", "test", n=5), {"model": "x", "preset": "y"})
        found["noiseless", iterations] = [told.summary]
    data = join_curve(found, "lad benchmark curve")
    assert "preset" not in data["origin"] and data["command"] == "lad benchmark curve"
    assert [p["iterations"] for p in data["points"]] == [1, 2]
    assert "does not clearly change" in curve_finding(data)


def test_what_is_not_recorded_is_none(monkeypatch, tmp_path):
    monkeypatch.setenv("LAD_FIGURES", str(tmp_path))
    monkeypatch.setattr("lad.figures.recorded.CHECKOUT", tmp_path)
    assert recorded("benchmarks") is None
    (tmp_path / "data").mkdir()
    (tmp_path / "data" / "benchmarks.json").write_text('{"runs": []}')
    assert recorded("benchmarks") == {"runs": []}
    (tmp_path / "data" / "benchmarks.json").write_text("{")
    with pytest.raises(DamagedFile, match=r"benchmarks.json cannot be read"):
        recorded("benchmarks")


# -- tables ----------------------------------------------------------------------------------------


def test_the_authors_table_has_intervals():
    text = tables.authors_text()
    assert "ARC-Easy       88.5         83.3 to 92.2" in text
    assert all(name in text for name in ("ARC-Challenge", "MMLU", "HellaSwag"))


def test_the_results_table_has_both_and_their_difference(joined):
    lines = tables.results_text(joined).split("\n")
    assert len(lines) == 4  # heading, rule, two ways of scoring
    assert all("100.0 (91.2–100.0)" in line for line in lines[2:])
    assert "likelihood of the line" in "".join(lines) and "100/100" in "".join(lines)
    alone = {"runs": joined["runs"][:1], "comparisons": []}
    assert "–" in tables.results_text(alone)
    assert "none, %" in tables.bias_text(joined)
    assert "100/" in tables.bias_text(joined)  # the backbone always says A


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
