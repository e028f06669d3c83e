"""Figures: the same bytes twice, titles of one line that follow the data, axes with names."""

import subprocess
import sys

import numpy as np
import pytest
from matplotlib.figure import Figure

from lad.diffusion.config import CorruptionConfig
from lad.evaluation.probes import Candidate, Update, visible
from lad.utils import CacheError, DamagedFile, InvalidInput
from lad.viz import attention, noise, style, throughput, training
from lad.viz.style import new_figure, save, show, to_png, to_svg
from lad.viz.word_corruption import (
    Rate,
    Sentence,
    corrupt,
    drawn_rates,
    masked_shares,
    one_of_each,
    only,
)

SENTENCE = Sentence.of("The river flows past the old town.", ends=2)
BLIND = {kind: visible(kind, 3, 7, masked=[4, 6]) for kind in ("prompt-causal", "mask-blind")}
MASKS = {kind: visible(kind, 3, 7) for kind in ("causal", "bidirectional", "prompt-causal")}
MOVES = {"causal": np.array([0, 0, 0.5]), "bidirectional": np.array([0.02, 0.1, 0.6])}
ROWS = [{"step": s, "loss": 5 - s / 20, "seconds": s / 2} for s in range(1, 61)]
SCORES = {"0.25": {"ce": 1.0, "accuracy": 0.8, "n": 500}, "0.5": {"ce": 1.6, "accuracy": 0.64}}
UPDATES = [Update(layer, name, 0.1 + layer / 10) for layer in range(2) for name in ("q", "v")]
GUESSES = {
    "one": [Candidate(" Tokyo", 0.9), Candidate(" Rome", 0.05)],
    "two": [Candidate(" a$b$", 0.3), Candidate("\n", 0.2)],
}

FIGURES = {
    "schedule_by_sharpness": noise.schedule_by_sharpness,
    "schedule_by_noise_start": noise.schedule_by_noise_start,
    "schedule_curve": lambda: noise.schedule_curve(16, 64, 5.0, 0.5),
    "kinds_of_noise": lambda: noise.kinds_of_noise(one_of_each(SENTENCE, 0.8), 0.8),
    "masked_share": lambda: noise.masked_share(masked_shares(rows=200)),
    "corruption_rates": lambda: noise.corruption_rates(drawn_rates([0.5, 1.0], rows=50)),
    "attention_masks": lambda: attention.attention_masks(MASKS, 3),
    "masks_with_masked": lambda: attention.attention_masks(BLIND, 3, [4, 6]),
    "attention_effects": lambda: attention.attention_effects(MOVES, ["a", "b", "$c$"], 2, 2),
    "attention_explorer": lambda: attention.attention_explorer(
        np.ones((3, 3), dtype=bool), MOVES["causal"], ["a", "b", "c"], 2, 2
    ),
    "parameter_bars": lambda: attention.parameter_bars({"backbone": 100, "adapter": 15}),
    "adapter_update": lambda: attention.adapter_update(UPDATES),
    "predictions": lambda: attention.predictions(GUESSES, " Tokyo"),
    "loss_curve": lambda: training.loss_curve(ROWS),
    "validation_curves": lambda: training.validation_curves(
        [{"step": s, "validation": SCORES} for s in (10, 20)]
    ),
}


def title(figure: Figure) -> str:
    """The title; it has one line of at most 90 characters and is not cut off."""
    text = figure.get_suptitle()
    assert len(text) <= 90 and not text.endswith("…") and "\n" not in text
    return text


@pytest.mark.parametrize("name", FIGURES)
def test_a_figure_is_the_same_bytes_twice_and_its_axes_are_named(name):
    figure = FIGURES[name]()
    first = to_png(figure)
    assert first.startswith(b"\x89PNG")
    assert to_png(figure) == first  # drawn again
    assert to_png(FIGURES[name]()) == first  # and made again
    if name in ("kinds_of_noise", "schedule_curve"):
        assert to_svg(FIGURES[name]()) == to_svg(figure)
    assert name.endswith(("curve", "explorer")) or title(figure)
    if name == "kinds_of_noise":
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


# -- style -----------------------------------------------------------------------------------------


def test_drawing_recorded_figures_loads_no_model_libraries_and_no_pyplot():
    code = (
        "import sys; from lad.viz import gallery, style\n"
        "for name in ('convergence', 'attention_masks'): style.to_png(gallery.draw(name))\n"
        "print(*{'matplotlib.pyplot', 'transformers', 'peft'} & set(sys.modules))"
    )
    ran = subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True)
    assert ran.stdout.strip() == ""


def test_the_readers_own_matplotlib_settings_do_not_show(monkeypatch):
    import matplotlib

    plain = to_png(noise.schedule_by_noise_start())
    with matplotlib.rc_context({"font.size": 20, "axes.grid": False, "legend.frameon": True}):
        assert to_png(noise.schedule_by_noise_start()) == plain
        assert matplotlib.rcParams["font.size"] == 20  # and are left as they were


def test_drawing_in_threads_gives_the_same_bytes():
    from concurrent.futures import ThreadPoolExecutor

    names = ["schedule_curve", "loss_curve", "predictions"] * 3
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
        show(new_figure(), "  ")


def test_save_writes_whole_files_into_the_figures_folder(tmp_path, monkeypatch):
    monkeypatch.setenv("LAD_FIGURES", str(tmp_path / "figures"))
    path = save(new_figure(), "plain-1", svg=True)
    assert path == tmp_path / "figures" / "plain-1.png"
    assert path.read_bytes() == to_png(new_figure())
    assert sorted(p.name for p in path.parent.iterdir()) == ["plain-1.png", "plain-1.svg"]
    assert path.stat().st_mode & 0o777 == 0o644
    show(new_figure(), "nothing", name="shown")
    assert (path.parent / "shown.png").exists()


@pytest.mark.parametrize("name", ["../up", "a/b", "", ".hidden", "a b"])
def test_save_refuses_a_name_that_is_a_path(name, tmp_path, monkeypatch):
    monkeypatch.setenv("LAD_FIGURES", str(tmp_path))
    with pytest.raises(InvalidInput, match="figure name"):
        save(new_figure(), name)
    assert not list(tmp_path.iterdir())


def test_a_failed_save_leaves_nothing_and_says_what_to_do(tmp_path, monkeypatch):
    monkeypatch.setenv("LAD_FIGURES", str(tmp_path))
    (tmp_path / "taken.png").mkdir()  # a folder stands where the file should go
    with pytest.raises(CacheError, match="LAD_FIGURES"):
        save(new_figure(), "taken")
    assert [p.name for p in tmp_path.iterdir()] == ["taken.png"]


def test_hatches_and_colours_come_in_pairs():
    kinds = ("masked", "swap", "duplicate", "replace", "shift")
    assert len({style.HATCHES[kind] for kind in kinds}) == len(kinds)
    assert len({style.COLORS[kind] for kind in kinds}) == len(kinds)
    looks = [style.series(n) for n in range(5)]
    assert len({look["marker"] for look in looks}) == len({str(look) for look in looks}) == 5


# -- titles follow the data ------------------------------------------------------------------------


def test_the_schedules_titles_compare_the_ends():
    assert title(noise.schedule_by_sharpness()) == (
        "The last masks come after iteration 14 at sharpness 1, after 2 at 20"
    )
    none = noise.schedule_by_sharpness(noise_start=0)
    assert title(none) == "Nothing is masked again at any sharpness"
    assert title(noise.schedule_by_noise_start((0, 0.5))) == (
        "Noise start 0 masks a token 0.0 times in 16 iterations, 0.5 masks it 1.7 times"
    )


def test_the_schedule_in_words():
    assert noise.schedule_sentence(16, 64, 5.0, 0.5).startswith("32 of 64 tokens masked after it")
    assert "noiseless" in noise.schedule_sentence(16, 64, 5.0, 0.0)


def test_the_kinds_title_counts_what_is_wrong_and_what_is_hidden():
    examples = {kind: corrupt(SENTENCE, 1.0, only(kind), 0) for kind in ("swap", "replace")}
    low, high = sorted(example.changed for example in examples.values())
    found = title(noise.kinds_of_noise(examples, 1.0))
    assert found.startswith(f"Structural noise hides nothing: {low} to {high} of 10 tokens")
    hidden = {"swap": corrupt(SENTENCE, 1.0, CorruptionConfig(all_masked=1.0))}
    assert "10 tokens are hidden" in title(noise.kinds_of_noise(hidden, 1.0))


def test_the_mask_title_counts_both_ends():
    assert title(noise.masked_share(np.array([0, 0, 0, 0.25, 0.75, 1]))) == (
        "50 % of the training answers have no mask, 33 % more than half masked"
    )


def test_the_rates_title_sees_a_disagreement():
    agreed = drawn_rates([0.3, 0.6, 0.9], rows=200)
    assert title(noise.corruption_rates(agreed)).startswith("Drawn rates agree with the expected")
    wrong = [Rate("swap", p, 0.9, 0.85, 0.95) for p in (0.1, 0.5)]
    assert title(noise.corruption_rates(wrong)) == (
        "Drawn rates depart from the expected ones: 0 of 2 intervals hold it"
    )


def test_the_masks_title_names_those_that_attend_to_the_right():
    assert title(attention.attention_masks(MASKS, 3)) == (
        "Bidirectional and prompt-causal let the answer attend to its right"
    )
    causal = {"causal": MASKS["causal"]}
    assert title(attention.attention_masks(causal, 3)).startswith("No answer position")


def test_the_effects_title_tells_exactly_zero_from_little():
    found = title(attention.attention_effects(MOVES, ["a", "b", "c"], 2, 2))
    assert found == "Hiding the last token moves position 0's state under bidirectional only"
    tiny = {"causal": np.array([1e-9, 0.2])}
    assert "under causal only" in title(attention.attention_effects(tiny, ["a", "b"], 1, 1))
    still = {"causal": np.array([0, 0.2])}
    assert "under none" in title(attention.attention_effects(still, ["a", "b"], 1, 1))


def test_the_effect_in_words_counts_prompt_and_answer():
    words = attention.effect_sentence("causal", np.array([0, 0, 0.5]), ["a", "b", "<c>"], 2, 2)
    assert "('<c>') moves 0 of 2 states of the prompt and 1 of 1 of the answer" in words


def test_the_adapter_titles_follow_the_sizes():
    assert "has 15 % of the frozen" in title(FIGURES["parameter_bars"]())
    updates = [Update(0, "q", 0.3), Update(0, "v", 0.1)]
    assert title(attention.adapter_update(updates)) == (
        "The adapter moves weights by 20 % (median): q most, v least"
    )


def test_the_predictions_title_finds_the_wanted_token_or_says_it_is_missing():
    found = title(FIGURES["predictions"]())
    assert found == "“Tokyo” gets 90 %, not among them (left to right)"
    assert "“Rome” gets 5 %" in title(attention.predictions(GUESSES, "Rome"))


def test_the_loss_title_says_which_way_it_went():
    down = ROWS
    up = [row | {"loss": 10 - row["loss"]} for row in ROWS]
    noisy = np.random.default_rng(0).normal(3, 0.3, 60)
    flat = [row | {"loss": float(value)} for row, value in zip(ROWS, noisy, strict=True)]
    assert title(training.loss_curve(down)).startswith("The loss falls: 4.8")
    assert title(training.loss_curve(up)).startswith("The loss rises")
    assert title(training.loss_curve(flat)).startswith("The loss stays where it is")


def test_the_loss_curve_needs_rows_and_takes_a_log_with_validations_in_it():
    with pytest.raises(InvalidInput, match="1 rows with a loss"):
        training.loss_curve([*ROWS[:1], {"step": 1, "validation": SCORES}])
    with pytest.raises(InvalidInput, match="no row with a validation"):
        training.validation_curves(ROWS)
    mixed = [*ROWS, {"step": 60, "validation": SCORES, "seconds": 31}]
    assert to_png(training.loss_curve(mixed)) == to_png(training.loss_curve(ROWS))


def test_the_time_axis_reads_seconds_off_the_log():
    figure = training.loss_curve(ROWS)
    (upper,) = figure.axes[0].child_axes
    figure.draw_without_rendering()
    assert upper.get_xlabel() == "seconds"
    assert upper.get_xlim()[1] == pytest.approx(60 * 1.01 / 2, rel=0.01)
    untimed = [{"step": row["step"], "loss": row["loss"]} for row in ROWS]
    assert not training.loss_curve(untimed).axes[0].child_axes


def test_the_running_median_ignores_an_outlier():
    values = np.array([1.0, 1, 1, 50, 1, 1, 1])
    assert (training.running_median(values, 3) == 1).all()


def test_the_validation_title_gives_the_middle_share_first_and_last():
    later = {key: score | {"accuracy": 0.9} for key, score in SCORES.items()}
    rows = [{"step": 100, "validation": SCORES}, {"step": 2000, "validation": later}]
    first = "With 50 % masked, 64 % of the held-out tokens are right"
    assert title(training.validation_curves(rows[:1])) == first
    assert title(training.validation_curves(rows)) == (
        first.replace("64", "90") + ", 64 % at step 100"
    )
    bars = training.validation_curves(rows).axes[1].collections[0].get_segments()
    assert [tuple(bars[0][:, 1].round(1))] == [(76.3, 83.3)]  # Wilson's, of 80 % of 500


# -- throughput ------------------------------------------------------------------------------------

ORIGIN = {"model": "llama-3.1-8b:random"}


def iteration(bits: int, ratios: dict[int, float]) -> dict:
    cells = [{"batch": b, "sampler": {"iteration_by_floor": r}} for b, r in ratios.items()]
    return {"kind": "iteration", "bits": bits, "provenance": ORIGIN, "cells": cells}


def trained(processes: int, rate: float, bits: int = 16) -> dict:
    return {
        "kind": "training",
        "bits": bits,
        "provenance": ORIGIN,
        "denoiser": {"rank": 64, "layers": [0, 1]},
        "processes": processes,
        "tokens_per_second": rate,
        "aim_tokens": 200_000_000,
        "hours": 200_000_000 / rate / 3600,
    }


def test_a_large_model_s_figure_has_both_panels_and_the_details_below():
    runs = [iteration(16, {1: 1.31, 8: 1.22, 32: 1.4}), iteration(4, {1: 2.5, 8: 1.8, 32: 1.6})]
    runs += [trained(4, 60_000), trained(1, 1000), trained(1, 16_000)]  # measured again later
    runs += [trained(2, 31_000), trained(1, 9000, bits=4)]
    figure = throughput.true_shape({"runs": runs})
    refining, rates = figure.axes
    assert [line.get_label() for line in refining.lines] == ["16 bit", "4 bit", "roofline"]
    rate, proportion = rates.lines[0], rates.lines[1]
    assert list(rate.get_xdata()) == [1, 2, 4] and list(rate.get_ydata()) == [16, 31, 60]
    assert list(proportion.get_ydata()) == [16, 32, 64]
    assert (
        title(figure)
        == "An iteration takes 1.2 to 1.4 (16 bit), 1.6 to 2.5 (4 bit) times its roofline"
    )
    assert figure.get_supxlabel() == (
        "llama-3.1-8b: 200 million tokens take 3.5 h on 1 GPU; 4 GPUs are 3.8 times as fast"
    )


def test_one_kind_of_run_is_enough():
    alone = throughput.true_shape({"runs": [iteration(16, {1: 1.3})]})
    assert "takes 1.3 (16 bit) times its roofline" in title(alone) and len(alone.axes) == 1
    alone = throughput.true_shape({"runs": [trained(2, 30_000)]})
    assert title(alone).endswith("take 1.9 h on 2 GPUs") and len(alone.axes) == 1
    both = throughput.true_shape({"runs": [iteration(16, {1: 1.3}), trained(2, 30_000)]})
    assert len(both.axes) == 1
    with pytest.raises(DamagedFile, match="no runs"):
        throughput.true_shape({"runs": []})
