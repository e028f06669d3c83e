"""Benchmarks as figures, tables and a browser: they say what the numbers say, and nothing else."""

import base64
import copy
import gzip
import json
import re

import pytest
from scripted import line_of, oracle, scripted, some_items

from lad.diffusion.config import RefineConfig
from lad.evaluation import tables
from lad.evaluation.benchmark import BenchmarkConfig, ScoredModel, join_runs, refine_traces, run
from lad.evaluation.statistics import wilson
from lad.evaluation.tasks import Item, format_question
from lad.utils import DamagedFile
from lad.viz.benchmarks import (
    accuracies,
    against_authors,
    against_backbone,
    against_chance,
    compute_curve,
    iterations_help,
)
from lad.widgets.benchmark import Answered, answered_html, browse

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


def share(value: float) -> dict:
    return wilson(round(value * 50), 50).to_dict()


def point(preset: str, iterations: int, letter: float, line: float, text: float = 0.2) -> dict:
    one = {"task": "arc-easy", "preset": preset, "iterations": iterations, "chance": 0.25}
    one |= {"accuracy": share(letter), "text": share(text), "line": share(line)}
    return one | {"parsable": 1.0, "forwards": share(1)}


POINTS = [point("noiseless", 8, 0.6, 0.9, 0.7), point("noiseless", 1, 0.3, 0.1)]
POINTS += [point("noiseless", 2, 0.5, 0.5), point("default", 1, 0.4, 0.5)]
POINTS += [point("default", 8, 0.42, 0.5)]


def test_a_curve_says_what_iterations_change():
    figure = compute_curve({"points": POINTS})
    named = [text.get_text() for text in figure.legends[0].get_texts()]
    assert named == ["chance", "preset noiseless", "preset default"]
    assert "default: a token once shown is never" in figure.legends[0].get_title().get_text()
    assert figure.get_suptitle() == (
        "Of 2 curves from 1 to 8 iterations rise: letter right 1, text right 1, a whole line 1"
    )
    names = [axes.get_title(loc="left") for axes in figure.axes]
    assert names == ["ARC-Easy: letter right", "text right", "a whole line"]
    values = ([30, 50, 60], [20, 20, 70], [10, 50, 90])
    for axes, expected in zip(figure.axes, values, strict=True):
        assert axes.get_xscale() == "log" and "iterations" in axes.get_xlabel()
        line = axes.containers[0].lines[0]
        assert line.get_xdata() == pytest.approx([1, 2, 8], rel=0.1)  # lines stand side by side
        assert line.get_ydata() == pytest.approx(expected)


def test_a_curve_recorded_without_texts_says_so():
    old = [{k: v for k, v in x.items() if k not in ("text", "line")} for x in POINTS]
    old = [x | {"exact": one["line"]["value"]} for x, one in zip(old, POINTS, strict=True)]
    figure = compute_curve({"points": old})
    assert [text.get_text() for text in figure.axes[1].texts] == ["not recorded"]
    assert figure.get_suptitle().endswith("rise: letter right 1, a whole line 1")
    assert figure.axes[2].containers[0].lines[0].get_ydata() == pytest.approx([10, 50, 90])
    row = tables.curve_table({"points": old}).to_string().split("\n")[2]
    assert row.split()[:3] == ["ARC-Easy", "noiseless", "8"] and "not recorded" in row
    assert tables.share_of(old[0], "line").to_dict() == POINTS[0]["line"]
    assert "text right: not recorded with noiseless and default" in iterations_help({"points": old})


# -- what the data show, in sentences --------------------------------------------------------------


def test_what_iterations_change_in_words():
    assert iterations_help({"points": POINTS}) == (
        "From 1 to 8 iterations, letter right: more with noiseless, no clear change with default; "
        "text right: more with noiseless, no clear change with default; "
        "a whole line: more with noiseless, no clear change with default."
    )
    two = [*POINTS, *(x | {"task": "mmlu"} for x in POINTS[:2])]
    assert "more with noiseless (ARC-Easy) and noiseless (MMLU)" in iterations_help({"points": two})


def test_the_comparison_with_the_authors_in_words(joined):
    assert against_authors(joined) == (
        "The authors' 8B model is clearly better on 0 of 1 tasks; its accuracy minus ours is "
        "-11.5 points."
    )
    weak = {"runs": [one | {"accuracy": 0.25, "interval": [0.2, 0.3]} for one in joined["runs"]]}
    said = against_authors(weak)
    assert "clearly better on 1 of 1 tasks" in said and "is 63.5 points" in said
    assert (
        against_chance(weak, "denoiser") == "By generation the denoiser is at chance on ARC-Easy."
    )


def test_the_comparison_with_chance_and_backbone_in_words(joined):
    found = against_chance(joined, "denoiser", "likelihood")
    assert found == "By likelihood of the line the denoiser is above chance on ARC-Easy."
    assert "is not recorded" in against_chance(joined, "denoiser", "likelihood", "text")
    assert against_backbone(joined).startswith("better on ARC-Easy (+")
    assert against_backbone(joined, "likelihood", "text") == "not recorded"
    one = {"scoring": "generation", "target": "line", "rotated": False, "task": "mmlu"}
    one |= {"difference": {"value": -0.05, "low": -0.08, "high": -0.02}}
    other = one | {"difference": one["difference"] | {"high": 0.01}, "task": "piqa"}
    said = against_backbone({"comparisons": [other, one]})
    assert said == "worse on MMLU (-5.0), not clearly different on PIQA (-5.0)"


# -- tables ----------------------------------------------------------------------------------------


def test_the_authors_scores_stand_beside_ours(joined):
    found = tables.authors_table(joined).to_string()
    assert re.search(r"ARC-Easy +88.5 \(83.3–92.2\)( +100.0 \(91.2–100.0\)){3} +40 .*26.3", found)
    alone = {"runs": [one for one in joined["runs"] if one["by"] == "denoiser"]}
    assert tables.authors_table(alone)["backbone: letter right"].tolist() == ["–"]
    other = {"runs": [one | {"task": "openbookqa"} for one in joined["runs"]]}
    assert tables.authors_table(other)["authors, 8B"].tolist() == ["–"]


def test_likelihoods_have_both_and_their_difference(joined):
    lines = tables.likelihood_table(joined, "line").to_string().split("\n")[2:]
    assert lines[0].startswith("ARC-Easy") and "by the sum" in lines[0]
    assert lines[1].startswith(" ") and "by characters" in lines[1]
    assert all("100.0 (91.2–100.0)" in line and " +7" in line for line in lines)


def test_a_rotated_run_is_a_check_and_not_a_result(joined):
    rotated = copy.deepcopy(joined["runs"])
    for one in rotated:
        one["asked"]["rotate"] = True
    assert tables.select({"runs": rotated}, by="denoiser") == {}


def test_a_letter_stands_for_a_question():
    chosen = [(0, True, 2, False), (1, False, 0, True), (None, False, 4, True)]
    columns = ["choice", "correct", "choice_normalised", "correct_normalised"]
    rows = [dict(zip(columns, chosen[n], strict=True)) | {"key": f"a/{n}/0"} for n in (2, 0, 1)]
    letters = [tables.write_letters(rows, suffix) for suffix in ("", "_normalised")]
    assert letters == ["Ab-", "cAE"]


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
    assert "The leading letter is wrong" in page and "The text behind the letter is another" in page
    [other] = answered(oracle(ITEMS), ITEMS[:1])
    assert "(right answer, chosen)" in answered_html(other)


def test_markup_is_shown_and_never_run():
    item = Item("arc-easy", "<i>", "<script>alert(1)</script>", ("<b>x</b>", "y"), 0)
    [one] = answered(lambda text: "<u>?", [item])
    for shown in (answered_html(one), browse([one])):
        assert "<script>alert" not in shown and "<b>x" not in shown and "<i>:" not in shown
        assert "&lt;script&gt;" in shown and "&lt;u&gt;?" in shown


def test_the_browser_has_the_questions_by_outcome():
    four = [Item("arc-easy", f"i{n}", f"Q{n}?", ("k", "l"), n % 2) for n in range(4)]
    page = browse(answered(line_of("A"), four))
    menu = re.search(r"<select>(.*?)</select>", page)[1]
    groups = re.findall(r'<optgroup label="(.*?)">(.*?)</optgroup>', menu)
    named = [(name, re.findall("i[0-9]: (Q[0-9])", found)) for name, found in groups]
    assert named == [("right (2)", ["Q0", "Q2"]), ("wrong (2)", ["Q1", "Q3"])]
    first, *others = json.loads(re.search(r'data-part="runs">(.*?)</script>', page)[1]).values()
    assert len(others) == 3 and gzip.decompress(base64.b64decode(first)).decode() in page
    assert "A: k" in page and " s, " not in page.partition("lad-answer")[2].partition("<script")[0]
