"""Figures: the same bytes twice, titles of one line that follow the data, axes with names."""

import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor

import matplotlib
import numpy as np
import pytest
from matplotlib.figure import Figure

from lad.evaluation.probes import Candidate, Update, visible
from lad.utils import CacheError, DamagedFile, InvalidInput
from lad.viz import attention, noise, throughput, training
from lad.viz.style import new_figure, save, show, to_png, to_svg
from lad.viz.word_corruption import Rate, Sentence, drawn_rates, one_of_each

SENTENCE = Sentence.of("The river flows past the old town.", ends=2)
BLIND = {kind: visible(kind, 3, 7, masked=[4, 6]) for kind in ("prompt-causal", "mask-blind")}
MASKS = {kind: visible(kind, 3, 7) for kind in ("causal", "bidirectional", "prompt-causal")}
MOVES = {"causal": np.array([0, 0, 0.5]), "bidirectional": np.array([0.02, 0.1, 0.6])}
ROWS = [{"step": s, "loss": 5 - s / 20, "seconds": s / 2} for s in range(1, 61)]
SCORES = {
    "0.25": {"ce": 1.0, "accuracy": 0.8, "n": 500},
    "0.5": {"ce": 1.6, "accuracy": 0.64, "n": 50},
}
UPDATES = [Update(layer, name, 0.1 + layer / 10) for layer in range(2) for name in ("q", "v")]
GUESSES = {
    "one": [Candidate(" Tokyo", 0.9), Candidate(" Rome", 0.05)],
    "two": [Candidate(" a$b$", 0.3), Candidate("\n", 0.2)],
}


def loss(values):
    return training.loss_curve([r | {"loss": float(v)} for r, v in zip(ROWS, values, strict=True)])


def validation(*accuracies):
    scores = [{k: s | {"accuracy": a} for k, s in SCORES.items()} for a in accuracies]
    rows = [{"step": 100 * n, "validation": score} for n, score in enumerate(scores, start=1)]
    return training.validation_curves(rows)


WRONG = [Rate("swap", p, 0.9, 0.85, 0.95) for p in (0.1, 0.5)]
AGREED = drawn_rates([0.3, 0.6, 0.9], rows=200)
STILL = {"causal": np.array([0, 0.2])}
NONE = "Hiding the last token moves position 0's state under none"

# How the title begins, and the figure; one has none.
FIGURES = {
    "attention_explorer": lambda: attention.attention_explorer(
        np.ones((3, 3), dtype=bool), MOVES["causal"], ["a", "b", "c"], 2, 2
    ),
    "The last masks come after iteration 14 at sharpness 1, after 2 at 20": (
        noise.schedule_by_sharpness
    ),
    "Noise start 0.25 masks a token 0.8 times in 16": noise.schedule_by_noise_start,
    "Structural noise hides nothing": lambda: noise.kinds_of_noise(one_of_each(SENTENCE, 0.8), 0.8),
    "50 % of the training answers have no mask, 33 % more than half masked": lambda: (
        noise.masked_share(np.array([0, 0, 0, 0.25, 0.75, 1]))
    ),
    "Drawn rates agree with": lambda: noise.corruption_rates(AGREED),
    "Drawn rates depart from the expected ones: 0 of 2": lambda: noise.corruption_rates(WRONG),
    "Bidirectional and prompt-causal let the answer attend to its right": lambda: (
        attention.attention_masks(MASKS, 3)
    ),
    "Prompt-causal and mask-blind let": lambda: attention.attention_masks(BLIND, 3, [4, 6]),
    "No answer position": lambda: attention.attention_masks({"causal": MASKS["causal"]}, 3),
    NONE.replace("none", "bidirectional only"): lambda: attention.attention_effects(
        MOVES, ["a", "b", "$c$"], 2, 2
    ),
    NONE: lambda: attention.attention_effects(STILL, "ab", 1, 1),
    "The trained adapter has 15 % of the frozen": lambda: attention.parameter_bars(
        {"backbone": 100, "adapter": 15}
    ),
    "The adapter moves weights by 15 %": lambda: attention.adapter_update(UPDATES),
    "“Tokyo” has 90 % (": lambda: attention.predictions(GUESSES, " Tokyo"),
    "The loss falls: 4.95 at step 1, 2.": lambda: training.loss_curve(ROWS),
    "The loss rises": lambda: loss(range(60)),
    "The loss stays": lambda: loss(np.random.default_rng(0).normal(3, 0.3, 60)),
    "With 50 % masked, 64 % of the held-out tokens are right": lambda: validation(0.64),
    "With 50 % masked, 90 % of the held-out tokens are right, 64 %": lambda: validation(0.64, 0.9),
}


def title(figure: Figure) -> str:
    """The title; it has one line of at most 90 characters and is not cut off."""
    text = figure.get_suptitle()
    assert len(text) <= 90 and not text.endswith("…") and "\n" not in text
    return text


@pytest.mark.parametrize("found", FIGURES)
def test_a_figure_is_the_same_bytes_twice_and_its_title_follows_the_data(found):
    figure = FIGURES[found]()
    untitled = found == "attention_explorer"
    assert title(figure).startswith("" if untitled else found)
    first = to_png(figure)
    assert first.startswith(b"\x89PNG")
    assert to_png(figure) == first  # drawn again
    assert to_png(FIGURES[found]()) == first  # and made again
    assert to_svg(FIGURES[found]()) == to_svg(figure)
    if found.startswith("Structural"):  # it has no axes
        return
    # Axes are named by a label, by one on a panel that shares the axis, or by ticks that are words.
    for axes in figure.axes:
        if axes.get_label() == "<colorbar>":
            assert axes.get_ylabel()
            continue
        beside = axes.get_shared_y_axes().get_siblings(axes)
        below = axes.get_shared_x_axes().get_siblings(axes)
        ticks = "".join(label.get_text() for label in axes.get_yticklabels())
        assert any(panel.get_xlabel() for panel in below)
        assert any(panel.get_ylabel() for panel in beside) or any(map(str.isalpha, ticks))


def test_recorded_figures_are_drawn_without_torch_and_pyplot():
    code = (
        "import sys, lad.cli.assets; from lad.viz import gallery\n"
        "for name in {*gallery.DRAWN} - {*gallery.unrecorded()}: gallery.draw(name)\n"
        "print(*{'torch', 'transformers', 'peft', 'matplotlib.pyplot'} & set(sys.modules))"
    )
    ran = subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True)
    assert ran.stdout.strip() == ""


def test_the_readers_own_matplotlib_settings_do_not_show(monkeypatch):
    plain = to_png(noise.schedule_by_noise_start())
    with matplotlib.rc_context({"font.size": 20, "axes.grid": False, "legend.frameon": True}):
        assert to_png(noise.schedule_by_noise_start()) == plain
        assert matplotlib.rcParams["font.size"] == 20  # and are left as they were


def test_drawing_in_threads_gives_the_same_bytes():
    names = ["attention_explorer", "The loss rises", "No answer position"] * 3
    alone = {name: to_png(FIGURES[name]()) for name in names}
    with ThreadPoolExecutor(4) as pool:
        together = list(pool.map(lambda name: to_png(FIGURES[name]()), names))
    assert together == [alone[name] for name in names]


def test_show_says_in_words_what_the_figure_finds():
    picture = show(noise.schedule_by_sharpness(), 'Lines & "curves".\n')
    bundle = picture._repr_mimebundle_()
    assert bundle["text/plain"].startswith("The last masks come after iteration 14 at")
    assert bundle["text/plain"].endswith('Lines & "curves".')
    assert "Lines &amp; &quot;curves&quot;." in bundle["text/html"]
    with pytest.raises(InvalidInput, match="alt is empty"):
        show(new_figure()[0], "  ")


@pytest.fixture
def folder(tmp_path, monkeypatch):
    monkeypatch.setenv("LAD_FIGURES", str(tmp_path / "figures"))
    return tmp_path / "figures"


def test_save_writes_whole_files_or_leaves_nothing_and_says_what_to_do(folder):
    path = save(new_figure()[0], "plain-1", svg=True)
    assert path == folder / "plain-1.png" and path.read_bytes() == to_png(new_figure()[0])
    assert path.stat().st_mode & 0o777 == 0o644
    show(new_figure()[0], "nothing", name="shown")
    (folder / "taken.png").mkdir()  # a folder stands where the file should go
    with pytest.raises(CacheError, match="LAD_FIGURES"):
        save(new_figure()[0], "taken")
    names = ["plain-1.png", "plain-1.svg", "shown.png", "taken.png"]
    assert sorted(p.name for p in folder.iterdir()) == names
    assert list(folder.parent.iterdir()) == [folder]


def test_the_loss_curve_needs_rows_and_takes_a_log_with_validations_in_it():
    with pytest.raises(InvalidInput, match="1 rows with a loss"):
        training.loss_curve([*ROWS[:1], {"step": 1, "validation": SCORES}])
    with pytest.raises(InvalidInput, match="no row with a validation"):
        training.validation_curves(ROWS)
    mixed = [*ROWS, {"step": 60, "validation": SCORES, "seconds": 31}]
    assert to_png(training.loss_curve(mixed)) == to_png(training.loss_curve(ROWS))


def test_a_validation_on_other_pairs_is_joined_to_no_earlier_one():
    rows = [{"step": step, "validation": SCORES} for step in (1, 2, 5)]
    rows[2] = {"step": 5, "validation": {k: s | {"n": s["n"] + 1} for k, s in SCORES.items()}}
    figure = training.validation_curves(rows)
    drawn = [list(line.get_xdata()) for line in figure.axes[0].lines]
    assert drawn == [[1, 2], [5], [1, 2], [5], [3.5, 3.5]]
    assert [text.get_text() for text in figure.legends[0].texts] == ["25 % masked", "50 % masked"]
    assert title(figure).endswith("64 % of the held-out tokens are right")
    assert "the held-out pairs change" in figure.legends[0].get_title().get_text()


def test_the_sentence_of_an_effect_follows_the_data():
    words = attention.effect_sentence("causal", np.array([0, 0, 0.5]), ["a", "b", "<c>"], 2, 2)
    assert "('<c>') moves 0 of 2 states of the prompt and 1 of 1 of the answer" in words


def test_the_time_axis_reads_seconds_off_the_log():
    figure = training.loss_curve(ROWS)
    (upper,) = figure.axes[0].child_axes
    figure.draw_without_rendering()
    assert upper.get_xlabel() == "seconds"
    assert upper.get_xlim()[1] == pytest.approx(60 * 1.01 / 2, rel=0.01)


def iteration(bits: int, ratios: dict[int, float]) -> dict:
    cells = [{"batch": b, "sampler": {"iteration_by_floor": r}} for b, r in ratios.items()]
    return {"kind": "iteration", "bits": bits, "provenance": {"model": "llama:x"}, "cells": cells}


def trained(processes: int, rate: float, bits: int = 16) -> dict:
    run = {"kind": "training", "bits": bits, "provenance": {"model": "llama:x"}}
    run |= {"processes": processes, "tokens_per_second": rate, "aim_tokens": 200_000_000}
    run |= {"denoiser": {"rank": 64, "layers": [0, 1]}, "hours": 200_000_000 / rate / 3600}
    return run


def test_a_large_model_s_figure_has_the_panels_there_are_runs_for():
    runs = [iteration(16, {1: 1.31, 8: 1.22, 32: 1.4}), iteration(4, {1: 2.5, 8: 1.8, 32: 1.6})]
    runs += [trained(4, 60_000), trained(1, 1000), trained(1, 16_000)]  # measured again later
    runs += [trained(2, 31_000), trained(1, 9000, bits=4)]
    figure = throughput.true_shape({"runs": runs})
    refining, rates = figure.axes
    assert [line.get_label() for line in refining.lines] == ["16 bit", "4 bit", "roofline"]
    assert [list(line.get_ydata()) for line in rates.lines[:2]] == [[16, 31, 60], [16, 32, 64]]
    expected = "An iteration takes 1.2 to 1.4 (16 bit), 1.6 to 2.5 (4 bit) times its roofline"
    assert title(figure) == expected
    hours = "llama: 200 million tokens take 3.5 h on 1 GPU; 4 GPUs are 3.8 times as fast"
    assert figure.get_supxlabel() == hours
    for alone in ([iteration(16, {1: 1.3})], [trained(2, 30_000)]):
        assert len(throughput.true_shape({"runs": alone}).axes) == 1
    with pytest.raises(DamagedFile, match="no runs"):
        throughput.true_shape({"runs": []})
