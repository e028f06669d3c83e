"""The explorers of the noise, driven by their traits as a page would drive them."""

import re

import pytest

from lad.diffusion.schedule import mask_counts
from lad.viz.noise import schedule_curve, schedule_sentence
from lad.viz.style import show
from lad.widgets.noise import CorruptionExplorer, ScheduleExplorer, counts_html

HOSTILE = '<img src=x onerror=alert(1)> </s> <s> "quoted" \U0001f600 \u05e9\u05dc\u05d5\u05dd'


@pytest.fixture
def explorer():
    explorer = CorruptionExplorer()
    explorer.severity.value = 1.0
    return explorer


def untick_all(explorer):
    for box in explorer.kinds.values():
        box.value = False


def test_every_control_of_the_schedule_redraws_curve_and_numbers():
    explorer = ScheduleExplorer()
    settings = {"iterations": 16, "answer_length": 64, "sharpness": 5.0, "noise_start": 0.5}
    changes = {"sharpness": 12.0, "noise_start": 0.9, "iterations": 31, "answer_length": 200}
    for name, value in changes.items():
        getattr(explorer, name).value = value
        settings[name] = value
    masks = mask_counts(**settings)
    words = schedule_sentence(masks, 200)
    assert explorer.image.value == show(schedule_curve(masks, 200), words).html
    assert f'alt="{words}"' in explorer.image.value and words in explorer.text.value
    assert counts_html(masks) in explorer.text.value
    assert "each iteration: 5, 2, none from iteration 2 on." in counts_html([5, 2, 0, 0])
    for end in ("min", "max"):  # the ends of all sliders are drawn
        for name in changes:
            control = getattr(explorer, name)
            control.value = getattr(control, end)
        assert explorer.image.value.startswith("<img src=")


def test_every_control_of_the_damage_changes_what_is_shown(explorer):
    for control, value in (
        (explorer.severity, 0.3),
        (explorer.sentence, "Another sentence altogether, is it not?"),
        (explorer.seed, 17),
        (explorer.kinds["replace"], False),
    ):
        before = explorer.screen.value + explorer.table.value
        control.value = value
        assert explorer.screen.value + explorer.table.value != before
    explorer.again.click()
    assert explorer.seed.value == 18


def test_a_kind_that_is_not_ticked_never_strikes(explorer):
    for kind, box in explorer.kinds.items():
        box.value = False
        for seed in range(5):
            explorer.seed.value = seed
            assert kind not in {cause for causes in explorer.damage.causes for cause in causes}
        box.value = True
    untick_all(explorer)
    assert explorer.damage.before == explorer.damage.after
    assert "0 of 16 tokens differ" in explorer.screen.value


def test_the_table_compares_expected_and_drawn_and_kinds_are_named_under_tokens(explorer):
    for token, kind in zip(explorer.damage.after, explorer.damage.shown, strict=True):
        if kind:
            tag = "bdi" if kind == "mask" else "span"
            shown = f'<{tag}>{token}</{tag}><small dir="ltr">{kind}</small>'
            assert shown in explorer.screen.value
    explorer.severity.value = 0.8
    text = " ".join(re.sub(r"<[^>]*>", " ", explorer.table.value).split())
    assert "Tokens touched at p = 0.8" in text
    assert re.search(r"duplicate 20\.0 % \d+ % (1[89]|2[01])\.\d %", text)
    assert re.search(r"shift \(share of sentences\) 20\.0 % (yes|no) ", text)


def test_hostile_text_is_shown_and_never_markup(explorer):
    explorer.sentence.value = HOSTILE
    untick_all(explorer)
    screen = explorer.screen.value
    assert "&lt;" in screen and "&gt;" in screen and "&#34;" in screen
    assert not re.search(r"<(?!/?(div|span|bdi|small|style)\b)", screen)
    assert "\U0001f600" in screen and "\u05e9\u05dc\u05d5\u05dd" in screen


def test_a_text_that_cannot_be_shown_is_an_error_in_the_widget(explorer):
    for text in ("   ", "word " * 300):
        explorer.sentence.value = text
        assert 'role="alert"' in explorer.message.value
        assert "expected a text of 1 to 200" in explorer.message.value
        assert explorer.screen.value == explorer.table.value == "" and explorer.damage is None
        explorer.sentence.value = "Better."
        assert explorer.message.value == "" and "Better" in explorer.screen.value
