"""Figures: the same bytes twice, titles that follow the data, axes that are named."""

import numpy as np
import pytest
from matplotlib.figure import Figure

from lad.diffusion.config import CorruptionConfig
from lad.evaluation.probes import Candidate, Update, visible
from lad.utils import CacheError, InvalidInput
from lad.viz import attention, noise, style, training
from lad.viz.style import new_figure, save, show, text_color, to_png, to_svg
from lad.viz.word_corruption import (
    Rate,
    Sentence,
    damage,
    drawn_rates,
    masked_shares,
    one_of_each,
    only,
)

SENTENCE = Sentence.of("The river flows past the old town.", ends=2)
BLIND = {kind: visible(kind, 3, 7, masked=[4, 6]) for kind in ("prompt-causal", "mask-blind")}
MASKS = {kind: visible(kind, 3, 7) for kind in ("causal", "bidirectional", "prompt-causal")}
MOVES = {"causal": np.array([0, 0, 0.5]), "bidirectional": np.array([0.02, 0.1, 0.6])}
ROWS = [{"step": s, "loss": 5 - s / 20, "seconds": s / 2, "drafts": s > 40} for s in range(1, 61)]
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
    "damage_rates": lambda: noise.damage_rates(drawn_rates([0.5, 1.0], rows=50)),
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
    """The title on one line."""
    return " ".join(figure.get_suptitle().split())


@pytest.mark.parametrize("name", FIGURES)
def test_a_figure_is_the_same_bytes_twice(name):
    figure = FIGURES[name]()
    first = to_png(figure)
    assert first.startswith(b"\x89PNG")
    assert to_png(figure) == first  # drawn again
    assert to_png(FIGURES[name]()) == first  # and made again
    assert to_svg(FIGURES[name]()) == to_svg(FIGURES[name]())


@pytest.mark.parametrize("name", sorted(set(FIGURES) - {"kinds_of_noise"}))
def test_every_panel_has_its_axes_named(name):
    """By a label, by one on a panel that shares the axis, or by ticks that are words."""
    for axes in FIGURES[name]().axes:
        if axes.get_label() == "<colorbar>":
            assert axes.get_ylabel()
            continue
        beside = axes.get_shared_y_axes().get_siblings(axes)
        below = axes.get_shared_x_axes().get_siblings(axes)
        ticks = "".join(label.get_text() for label in axes.get_yticklabels())
        assert any(panel.get_xlabel() for panel in below)
        assert any(panel.get_ylabel() for panel in beside) or any(map(str.isalpha, ticks))


# -- style -----------------------------------------------------------------------------------------


def test_pyplot_is_never_imported():
    import subprocess
    import sys

    code = (
        "import sys, lad.viz.noise, lad.viz.attention, lad.viz.training\n"
        "from lad.viz.noise import schedule_by_sharpness as draw\n"
        "from lad.viz.style import to_png; to_png(draw())\n"
        "sys.exit('matplotlib.pyplot' in sys.modules)"
    )
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


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
    assert bundle["text/plain"].startswith("At sharpness 1 the last masks come after iteration 14")
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


@pytest.mark.parametrize("background, text", [("#FFFFFF", "#000000"), ("#000000", "#FFFFFF")])
def test_text_on_a_colour_contrasts(background, text):
    assert text_color(background) == text


def test_hatches_and_colours_come_in_pairs():
    kinds = ("masked", "swap", "duplicate", "replace", "shift")
    assert len({style.HATCHES[kind] for kind in kinds}) == len(kinds)
    assert len({style.COLORS[kind] for kind in kinds}) == len(kinds)
    looks = [style.series(n) for n in range(5)]
    assert len({look["marker"] for look in looks}) == len({str(look) for look in looks}) == 5


# -- titles follow the data ------------------------------------------------------------------------


def test_the_schedule_s_title_names_the_last_masks():
    assert title(noise.schedule_by_sharpness()) == (
        "At sharpness 1 the last masks come after iteration 14 of 16, "
        "at sharpness 20 after iteration 2"
    )
    same = noise.schedule_by_sharpness((1, 2), iterations=2)
    assert title(same) == "At sharpness 1 as at 2 the last masks come after iteration 0"
    assert "nothing is masked" in title(noise.schedule_by_sharpness(noise_start=0))


def test_the_noise_start_s_title_compares_the_ends():
    assert "4.3 times as often: 0.8 against 3.5" in title(noise.schedule_by_noise_start())
    assert "noiseless" in title(noise.schedule_by_noise_start((0.0,)))
    assert "Noise start 0 masks nothing again" in title(noise.schedule_by_noise_start((0, 0.5)))


def test_the_schedule_in_words():
    assert noise.schedule_sentence(16, 64, 5.0, 0.5).startswith("32 of 64 tokens masked after it")
    assert "noiseless" in noise.schedule_sentence(16, 64, 5.0, 0.0)


def test_the_kinds_title_counts_what_is_wrong_and_what_is_hidden():
    examples = {kind: damage(SENTENCE, 1.0, only(kind), 0) for kind in ("swap", "replace")}
    changed = sorted(example.changed for example in examples.values())
    found = title(noise.kinds_of_noise(examples, 1.0))
    assert found.startswith(f"Structural noise hides nothing: {changed[0]} to {changed[1]} of 10")
    hidden = {"mask": damage(SENTENCE, 1.0, CorruptionConfig(all_masked=1.0))}
    assert "10 tokens are hidden" in title(noise.kinds_of_noise(hidden, 1.0))


def test_the_mask_title_counts_both_ends():
    shares = np.array([0, 0, 0, 0.25, 0.75, 1])
    assert title(noise.masked_share(shares)).startswith("50 % of the training answers have no mask")
    assert title(noise.masked_share(shares)).endswith("33 % are masked by more than half")


def test_the_damage_title_sees_a_disagreement():
    assert "agrees with" in title(noise.damage_rates(drawn_rates([0.3, 0.6, 0.9], rows=200)))
    wrong = [Rate("swap", p, 0.9, 0.85, 0.95) for p in (0.1, 0.5)]
    assert title(noise.damage_rates(wrong)).startswith(
        "Drawn damage departs from what is expected (dashed): 0 of 2"
    )


def test_the_mask_matrices_title_names_who_looks_right():
    assert title(attention.attention_masks(MASKS, 3)) == (
        "Bidirectional and prompt-causal let the answer look to its right; under prompt-causal the "
        "prompt still reads left to right"
    )
    assert title(attention.attention_masks(BLIND, 3, [4, 6])) == (
        "Prompt-causal and mask-blind let the answer look to its right; under prompt-causal and "
        "mask-blind the prompt still reads left to right, and under mask-blind nothing visible "
        "looks at a MASK (M)"
    )
    assert "MASK" not in title(attention.attention_masks(BLIND, 3))
    causal = {"causal": MASKS["causal"]}
    assert title(attention.attention_masks(causal, 3)).startswith("No answer position")


def test_the_effects_title_tells_exactly_zero_from_little():
    found = title(attention.attention_effects(MOVES, ["a", "b", "c"], 2, 2))
    assert found == (
        "Hiding the last token moves position 0's state by 2 % under bidirectional, and by exactly "
        "0 under causal"
    )
    tiny = {"causal": np.array([1e-9, 0.2])}
    assert "1e-07 % under causal" in title(attention.attention_effects(tiny, ["a", "b"], 1, 1))
    still = {"causal": np.array([0, 0.2])}
    assert "exactly as it was" in title(attention.attention_effects(still, ["a", "b"], 1, 1))


def test_the_effect_in_words_counts_prompt_and_answer():
    words = attention.effect_sentence("causal", np.array([0, 0, 0.5]), ["a", "b", "<c>"], 2, 2)
    assert "('<c>') moves 0 of 2 states of the prompt and 1 of 1 of the answer" in words


def test_the_adapter_titles_follow_the_sizes():
    assert "15 % as many parameters" in title(FIGURES["parameter_bars"]())
    big = attention.parameter_bars({"backbone": 10, "adapter": 25})
    assert "2.5 times as many" in title(big)
    updates = [Update(0, "q", 0.3), Update(0, "v", 0.1)]
    assert "q most, 30 %; v least, 10 %" in title(attention.adapter_update(updates))
    fresh = [Update(0, "q", 0.0), Update(0, "v", 0.0)]
    assert "changes nothing" in title(attention.adapter_update(fresh))


def test_the_predictions_title_finds_the_wanted_token_or_says_it_is_missing():
    assert title(FIGURES["predictions"]()) == (
        "“Tokyo” gets 90 % (one), no place in the first 2 (two)"
    )
    assert "“Rome” gets 5 % (one)" in title(attention.predictions(GUESSES, "Rome"))


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
    assert title(training.validation_curves(rows)) == (
        "With 50 % masked, 90 % of the held-out tokens are right (cross-entropy 1.60); at step 100 "
        "it was 64 %"
    )
    assert title(training.validation_curves(rows[:1])).endswith("(cross-entropy 1.60)")


def test_wilson_s_interval():
    low, high = training.wilson(0.5, 100)
    assert (round(low, 4), round(high, 4)) == (0.4038, 0.5962)
    assert training.wilson(0.0, 10)[0] == 0
    assert 0.2 < training.wilson(0.0, 10)[1] < 0.35
