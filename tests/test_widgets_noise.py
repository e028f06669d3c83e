"""The explorers of the noise, driven by their traits as a page would drive them."""

import re
import time

from lad.diffusion.config import CorruptionConfig
from lad.diffusion.schedule import mask_counts
from lad.viz.noise import schedule_curve, schedule_sentence
from lad.viz.style import show
from lad.widgets.noise import (
    CorruptionExplorer,
    ScheduleExplorer,
    counts_html,
    damage_html,
    rates_html,
)

HOSTILE = '<img src=x onerror=alert(1)> </s> <s> "quoted" \U0001f600 \u05e9\u05dc\u05d5\u05dd'


def plain(html: str) -> str:
    """The text of some HTML."""
    return re.sub(r"\s+", " ", re.sub(r"<style>.*?</style>|<[^>]*>", " ", html, flags=re.DOTALL))


# -- the schedule ----------------------------------------------------------------------------------


def test_every_control_of_the_schedule_redraws_curve_and_numbers():
    explorer = ScheduleExplorer()
    settings = {"iterations": 16, "answer_length": 64, "sharpness": 5.0, "noise_start": 0.5}
    changes = {"sharpness": 12.0, "noise_start": 0.9, "iterations": 31, "answer_length": 200}
    for name, value in changes.items():
        getattr(explorer, name).value = value
        settings[name] = value
        words = schedule_sentence(**settings)
        assert explorer.image.value == show(schedule_curve(**settings), words).html
        assert f'alt="{words}"' in explorer.image.value and words in explorer.text.value
        assert counts_html(mask_counts(**settings)) in explorer.text.value
    for name in changes:  # the ends of all sliders are drawn
        control = getattr(explorer, name)
        for value in (control.min, control.max):
            control.value = value
            assert explorer.image.value.startswith("<img src=")


def test_counts_say_none_instead_of_a_row_of_zeros():
    assert plain(counts_html([5, 2, 0, 0])).strip() == (
        "Masks after each iteration: 5, 2, none from iteration 2 on."
    )
    assert "none from iteration 0 on" in counts_html([0])


def test_the_schedule_redraws_fast_enough_to_follow_a_slider():
    explorer = ScheduleExplorer()
    times = []
    for value in range(1, 12):
        begin = time.thread_time()  # of this thread: a busy machine is not a slow explorer
        explorer.sharpness.value = float(value)
        times.append(time.thread_time() - begin)
    assert sorted(times)[len(times) // 2] < 0.15


# -- the damage ------------------------------------------------------------------------------------


def test_every_control_of_the_damage_changes_what_is_shown():
    explorer = CorruptionExplorer(severity=1.0)
    for change in (
        lambda: setattr(explorer.severity, "value", 0.3),
        lambda: setattr(explorer.sentence, "value", "Another sentence altogether, is it not?"),
        lambda: setattr(explorer.seed, "value", 17),
        lambda: setattr(explorer.kinds["replace"], "value", False),
    ):
        before = explorer.screen.value + explorer.table.value
        change()
        assert explorer.screen.value + explorer.table.value != before


def test_draw_again_takes_the_next_seed_and_a_seed_gives_one_draw():
    explorer = CorruptionExplorer(severity=1.0, seed=5)
    first = explorer.screen.value
    explorer.again.click()
    assert explorer.seed.value == 6
    assert explorer.screen.value != first
    explorer.seed.value = 5
    assert explorer.screen.value == first


def test_an_unticked_kind_never_strikes():
    explorer = CorruptionExplorer(severity=1.0)
    for kind, box in explorer.kinds.items():
        box.value = False
        for seed in range(10):
            explorer.seed.value = seed
            assert kind not in {cause for causes in explorer.damage.causes for cause in causes}
        box.value = True


def test_nothing_ticked_leaves_the_sentence_alone():
    explorer = CorruptionExplorer(severity=1.0)
    for box in explorer.kinds.values():
        box.value = False
    assert explorer.damage.before == explorer.damage.after
    assert "0 of 16 tokens differ" in explorer.screen.value


def test_the_configuration_is_training_s_less_what_is_not_ticked():
    explorer = CorruptionExplorer()
    assert explorer.config == CorruptionConfig(all_masked=0.0)
    explorer.kinds["mask"].value = explorer.kinds["swap"].value = False
    assert explorer.config.mask_probability == 0
    assert explorer.config.kinds == ("duplicate", "replace", "shift")


def test_the_table_compares_expected_and_drawn():
    explorer = CorruptionExplorer(severity=0.8)
    text = plain(explorer.table.value)
    assert "Tokens touched at p = 0.8" in text
    assert re.search(r"duplicate 20\.0 % \d+ % (1[89]|2[01])\.\d %", text)
    assert re.search(r"shift \(share of sentences\) 20\.0 % (yes|no) ", text)


def test_a_kind_that_strikes_is_named_under_the_token_and_not_only_coloured():
    explorer = CorruptionExplorer(severity=1.0)
    for cause, shown in zip(explorer.damage.after, explorer.damage.shown, strict=True):
        if shown:
            assert f"<bdi>{cause}</bdi><small>{shown}</small>" in explorer.screen.value


def test_hostile_text_is_shown_and_never_markup():
    explorer = CorruptionExplorer(HOSTILE, severity=0.0)
    for box in explorer.kinds.values():
        box.value = False
    screen = explorer.screen.value
    assert "&lt;" in screen and "&gt;" in screen and "&#34;" in screen
    assert not re.search(r"<(?!/?(div|span|bdi|small|style)\b)", screen)
    assert "\U0001f600" in screen and "\u05e9\u05dc\u05d5\u05dd" in screen


def test_a_text_that_cannot_be_shown_is_an_error_in_the_widget():
    explorer = CorruptionExplorer()
    for text in ("", "   ", "word " * 300):
        explorer.sentence.value = text
        assert 'role="alert"' in explorer.message.value
        assert "expected a text of 1 to 200" in explorer.message.value
        assert explorer.screen.value == explorer.table.value == "" and explorer.damage is None
        explorer.sentence.value = "Better."
        assert explorer.message.value == "" and "Better" in explorer.screen.value


def test_the_views_are_pure():
    explorer = CorruptionExplorer()
    assert damage_html(explorer.damage) == explorer.screen.value
    assert rates_html(explorer.damage, [], explorer.config) == ""
