"""The numbers of `lad study`, against traces made by hand and against the sampler itself."""

import json
import re
from dataclasses import replace

import numpy as np
import pytest
from conftest import run, tiny_denoiser
from traces import EOS, make_trace, words

from lad.diffusion.config import RefineConfig
from lad.diffusion.sampler import record
from lad.evaluation.convergence import WAYS, calibration_bins, run_study, settling
from lad.evaluation.generation import Answers
from lad.training import Pair, held_out_prompts
from lad.viz import convergence as figures
from lad.viz.lens import first_layer

ITERATIONS = (1, 2, 4)


@pytest.fixture(scope="module")
def data():
    pairs = [Pair(prompt, "A short answer.") for prompt in held_out_prompts()[:5]]
    return run_study(tiny_denoiser(), held_out_prompts()[:3], pairs, ITERATIONS, batch_size=2)


def test_every_number_is_there_with_its_interval_and_can_be_written(data):
    json.loads(json.dumps(data, allow_nan=False))
    assert set(data["quality"]) == set(data["runs"]) == set(data["settled"]) == set(WAYS)
    for way, points in data["quality"].items():
        expected = [ITERATIONS[-1]] if way == "quality" else list(ITERATIONS)
        assert [point["iterations"] for point in points] == expected
        expected = {"relative_perplexity_with_end", "repeated_4grams", "whole_sentences", "ended"}
        assert all(expected < set(point) for point in points)
    assert data["prompts"] == 3 and data["pairs"] == 5 and data["layers"]["answers"] == 3
    assert {"adapter_sha256", "device", "torch", "seed"} <= set(data["provenance"])
    assert all(len(settled) == ITERATIONS[-1] for settled in data["settled"].values())


def test_a_noiseless_answer_cut_short_is_that_of_a_shorter_run():
    config = RefineConfig(remasking="none", answer_length=12, patience=0, iterations=6)
    long = record(tiny_denoiser(), "hello", config)
    for number in (1, 3, 9):
        short = record(tiny_denoiser(), "hello", replace(config, iterations=min(number, 6)))
        cut = Answers.from_traces([long], number)
        assert cut.tokens == [short.drafts[-1][: short.tokens].tolist()]
        assert cut.forwards == [short.nfe]


def test_what_settles_when_is_counted_from_one():
    trace = make_trace(
        words("a b c", 6), words("a d c", 6), words("a d e", 6), words("a d e", 6), iterations=8
    )
    ended_late = make_trace(words("a", 3), words("a", 3), [b"a", b"b", EOS], [b"a", EOS, EOS])
    found = settling({"way": [trace, ended_late]}, 8)
    assert found["runs"]["way"] == [
        {"tokens": 3, "stood": 3, "ran": 4},
        {"tokens": 1, "stood": 4, "ran": 4},  # its EOS moved last
    ]
    # a and EOS are settled at once, b after two iterations, c after three; the other's EOS at last
    means = [one["value"] for one in found["settled"]["way"]]
    assert means == pytest.approx([(2 / 4 + 1 / 2) / 2, (3 / 4 + 1 / 2) / 2, 3 / 4, 1, 1, 1, 1, 1])
    assert all(one["value"] is None for one in found["order"]["way"])  # too short for tenths


def test_the_tenths_of_an_answer_are_in_order():
    first = words(" ".join(f"x{i}" for i in range(20)), 21)
    later = [*first[:10], *words(" ".join(f"y{i}" for i in range(10)), 11)]
    found = settling({"way": [make_trace(first, later, later)]}, 3)
    assert [one["value"] for one in found["order"]["way"]] == [1.0] * 5 + [2.0] * 5


def test_a_calibrated_guesser_is_found_to_be_calibrated():
    random = np.random.default_rng(0)
    confidence = random.random(40_000)
    right = random.random(40_000) < confidence
    found = calibration_bins(confidence, right, np.arange(40_000) % 500)
    assert found["gap"] < 0.02
    for one in found["bins"]:
        assert one["low"] <= one["confidence"] < one["high"]
        assert one["right"]["low"] - 0.02 <= one["confidence"] <= one["right"]["high"] + 0.02
    indices = np.arange(1000)
    overconfident = calibration_bins(np.full(1000, 0.95), indices % 2 == 0, indices % 50)
    assert overconfident["gap"] == pytest.approx(0.45)
    assert overconfident["bins"][9]["right"]["value"] == pytest.approx(0.5)
    assert overconfident["bins"][0]["confidence"] is None


def test_the_command_writes_a_whole_file_and_says_where(adapter, tmp_path, monkeypatch, capsys):
    monkeypatch.setenv("LAD_FIGURES", str(tmp_path / "figures"))
    few = ["--n-prompts", "2", "--n-pairs", "6", "--iterations", "1,2", "--device", "cpu"]
    study = ["study", "--model", "tiny", "--adapter", adapter, *few]
    status, out, _ = run(capsys, *study)
    path = tmp_path / "figures" / "data" / "study.json"
    assert (status, out.strip()) == (0, str(path))
    written = json.loads(path.read_text())
    assert (written["prompts"], written["iterations"]) == (2, [1, 2])
    assert 1 <= written["pairs"] <= 6  # bytes are long: some do not fit
    assert written["command"] == "lad study --iterations 1,2 --n-prompts 2 --n-pairs 6 --seed 0"


def test_the_quality_s_title_tells_a_rise_on_the_way():
    quality = {}
    for way, values in (("falls", (9, 7, 5)), ("re-masks", (9, 24, 4.8)), ("once", (2,))):
        scores = [dict.fromkeys(("value", "low", "high"), float(value)) for value in values]
        quality[way] = [
            {"relative_perplexity": one, "repeats": one, "nfe": one, "iterations": n}
            for n, one in zip((1, 2, 4)[-len(values) :], scores, strict=True)
        ]
    figure = figures.quality_curve({"quality": quality, "iterations": [1, 2, 4]})
    expected = "Perplexity, 1 to 4 iterations: 9.0 to 5.0 falls, 9.0 via 24.0 to 4.8 re-masks"
    assert figure.get_suptitle() == expected
    once = figure.axes[0].containers[-1].lines[0]
    assert once.get_xdata().tolist() == [4]  # allowed, as the axis says, and not spent


def test_every_figure_is_drawn_and_only_noiseless_answers_test_the_claim(data):
    figure = figures.convergence(data)
    assert re.search(r": noiseless, \d of 3$", figure.get_suptitle())
    said = [axes.texts[-1].get_text().replace("\n", " ") for axes in figure.axes]
    assert [one.startswith("bounded by the method") for one in said] == [False, True, True]
    panels = [axes.get_title(loc="left") for axes in figures.quality_curve(data).axes]
    assert panels == ["perplexity, EOS counted", "stutter", "loops", "ends", "cost", ""]
    for name in ("quality_curve", "convergence", "calibration_curve", "settled_shares"):
        assert getattr(figures, name)(data).get_suptitle()
    assert figures.settling_order(data).get_suptitle() and first_layer(data).get_suptitle()
