"""Benchmarks as figures, tables and a browser: they say what the numbers say, and nothing else."""

import copy
import re

import pytest
from scripted import line_of, oracle, scripted, some_items

from lad.diffusion.config import RefineConfig
from lad.evaluation import tables
from lad.evaluation.benchmark import BenchmarkConfig, ScoredModel, join_runs, refine_traces, run
from lad.evaluation.tasks import Item, format_question
from lad.utils import DamagedFile, InvalidInput
from lad.viz.benchmarks import accuracies, compute_curve
from lad.widgets.benchmark import Answered, ItemBrowser, answered_html

QUIET = RefineConfig(iterations=4, remasking="none")
ITEMS = some_items(40)


@pytest.fixture(scope="module")
def joined(tmp_path_factory) -> dict:
    """An oracle as the denoiser and a model that always says A as the backbone, collected."""
    folder = tmp_path_factory.mktemp("runs")
    for digest, say in (("a" * 64, oracle(ITEMS)), (None, line_of("A"))):
        model = ScoredModel(scripted(say), QUIET, samples=2)
        for scoring in ("generation", "likelihood"):
            config = BenchmarkConfig("arc-easy", "test", scoring=scoring)
            origin = {"model": "scripted", "adapter_sha256": digest}
            run(model, ITEMS, config, origin, folder / str(digest)[:4] / config.name)
    return join_runs([folder / "aaaa", folder / "None"], ["lad benchmark"])


# -- figures ---------------------------------------------------------------------------------------


def test_every_way_of_scoring_has_its_panel(joined):
    figure = accuracies(joined)
    names = [axes.get_title(loc="left") for axes in figure.axes]
    assert names == ["likelihood of the line", "generation"]
    assert all(axes.get_xlabel() == "accuracy (%)" for axes in figure.axes)
    by_text = [one | {"target": "text"} for one in joined["runs"] if "accuracy_normalised" in one]
    names = [axes.get_title(loc="left") for axes in accuracies(joined | {"runs": by_text}).axes]
    assert names == ["likelihood of the text", "the same by characters"]
    words = {text.get_text() for text in figure.legends[0].get_texts()}
    assert words == {"chance", "backbone, 95 % interval", "denoiser, 95 % interval"}
    title = "The denoiser is better than its backbone in 2 of 2 comparisons, worse in 0"
    assert figure.get_suptitle() == title
    more = {"runs": [*joined["runs"], joined["runs"][0] | {"task": "mmlu"}], "comparisons": []}
    said = [[text.get_text() for text in axes.texts] for axes in accuracies(more).axes]
    assert sorted(said) == [[], ["not measured"]]


def test_no_run_is_said(joined):
    rotated = copy.deepcopy(joined["runs"])
    for one in rotated:
        one["asked"]["rotate"] = True
    for runs in ([], rotated):
        with pytest.raises(DamagedFile, match="no run among these"):
            accuracies({"runs": runs, "comparisons": []})
    with pytest.raises(DamagedFile, match="no points"):
        compute_curve({"points": []})


def point(preset: str, iterations: int, value: float, exact: float) -> dict:
    accuracy = {"value": value, "low": value - 0.05, "high": value + 0.05, "n": 50}
    one = {"task": "arc-easy", "preset": preset, "iterations": iterations, "chance": 0.25}
    return one | {"accuracy": accuracy, "parsable": 1.0, "exact": exact}


def test_a_curve_says_what_iterations_change():
    points = [point("noiseless", 8, 0.6, 0.9), point("noiseless", 1, 0.3, 0.1)]
    points += [point("noiseless", 2, 0.5, 0.5), point("default", 1, 0.4, 0.5)]
    points += [point("default", 8, 0.41, 0.5)]
    figure = compute_curve({"points": points})
    named = [text.get_text() for text in figure.legends[0].get_texts()]
    assert named == ["chance", "preset noiseless", "preset default"]
    assert "default: a token once shown is never" in figure.legends[0].get_title().get_text()
    assert figure.get_suptitle() == (
        "From 1 to 8 iterations accuracy rises on 1 of 2 curves, whole lines on 1"
    )
    letter, whole = figure.axes
    assert letter.get_title(loc="left") == "ARC-Easy: the leading letter is right"
    for axes, values in ((letter, [30, 50, 60]), (whole, [10, 50, 90])):
        assert axes.get_xscale() == "log" and "iterations" in axes.get_xlabel()
        line = axes.containers[0].lines[0]
        assert line.get_xdata() == pytest.approx([1, 2, 8], rel=0.1)  # lines stand side by side
        assert line.get_ydata() == pytest.approx(values)


# -- tables ----------------------------------------------------------------------------------------


def test_the_results_table_has_both_and_their_difference(joined):
    shares, tasks = (table.to_string() for table in tables.results_tables(joined))
    lines = shares.split("\n")
    scorings = ["line  ", "line, by characters", "generation"]
    assert all(name in line for name, line in zip(scorings, lines[2:5], strict=True))
    assert all("100.0 (91.2–100.0)" in line for line in lines[2:5])
    assert lines[2].startswith("ARC-Easy") and lines[3].startswith(" ")
    assert re.search(r"ARC-Easy +40 +26.3", tasks)
    assert "ARC-Easy       88.5 (83.3–92.2)" in tables.authors_table().to_string()
    assert "–" in tables.results_tables({"runs": joined["runs"][:1], "comparisons": []})[0].values
    share = f"{100 * sum(item.gold == 0 for item in ITEMS) / len(ITEMS):.0f}"
    lines = tables.bias_table(joined).to_string().split("\n")
    [generated] = [line for line in lines if "generation" in line and "backbone" in line]
    assert f"100/{share}" in generated  # it always says A


def test_letters_are_read_as_they_were_written():
    chosen = [(0, True, 2, False), (1, False, 0, True), (None, False, 4, True)]
    columns = ["choice", "correct", "choice_normalised", "correct_normalised"]
    rows = [dict(zip(columns, chosen[n], strict=True)) | {"key": f"a/{n}/0"} for n in (2, 0, 1)]
    letters = [tables.write_letters(rows, suffix) for suffix in ("", "_normalised")]
    assert letters == ["Ab-", "cAE"]
    assert tables.read_letters("Ab-") == [(0, True), (1, False), (None, False)]


# -- the browser -----------------------------------------------------------------------------------


def answered(say, items) -> list[Answered]:
    questions = [format_question(item) for item in items]
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
    for _ in range(5):
        browser.forth.click()
    assert browser.slider.value == 4 and "wrong" in browser.caption.value
    assert browser.player.trace.answer == "A: k"
    assert " s, " not in browser.player.answer.value  # a batch's time is no question's
    assert browser.player.head.layout.display == "none"  # the question is above
    assert dict(browser.shown.options) == {"all": "all", "right (2)": "right", "wrong (2)": "wrong"}
    browser.shown.value = "wrong"
    assert "Question 1 of 2" in browser.caption.value and "i1" in browser.caption.value
    browser.back.click()
    assert browser.slider.value == 1
    with pytest.raises(InvalidInput, match="no answered question"):
        ItemBrowser([])
