"""Recorded runs under a player: frames, steps, pace, a gallery, and two runs side by side."""

import pytest
from traces import make_trace, words

from lad.utils import InvalidInput
from lad.viz.tokens import frames
from lad.widgets import Comparison, Gallery, TracePlayer

TRACE = make_trace(
    words("Paris is is", 5),
    words("Paris is nice", 5),
    words("Paris is nice", 5),
    remask=[[1, 2], []],
    iterations=8,
    stopped_early=True,
)
OTHER = make_trace(words("Oslo", 5), words("Bergen", 5), prompt="<b>Where?</b>")


def test_the_player_steps_through_two_phases_where_tokens_were_masked():
    assert frames(TRACE) == [(0, "denoised"), (0, "remasked"), (1, "denoised"), (2, "denoised")]
    player = TracePlayer(TRACE)
    assert (player.slider.max, player.play.max) == (3, 3)
    assert player.slider.value == 3  # the answer first
    assert "Iteration 2" in player.caption.value and "settled 100 %" in player.caption.value
    player.slider.value = 0
    assert "After denoising" in player.caption.value and "Iteration 0" in player.caption.value
    assert "masked again" not in player.caption.value  # nothing is red yet
    assert player.screen.value.count("<ins") == 4 + 1  # tokens and tail; the key
    assert player.screen.value.count("<del") == 1  # the key
    player.slider.value = 1
    assert "After re-masking" in player.caption.value
    assert "2 masked again" in player.caption.value and "changed" not in player.caption.value
    assert player.screen.value.count("<del") == 2 + 1
    assert "Stopped early after 3 of 8 iterations" in player.answer.value
    player.forward.click()
    assert player.slider.value == 2
    for _ in range(9):
        player.back.click()
    assert player.slider.value == 0


def test_the_player_takes_a_shorter_trace_after_a_longer_one():
    player = TracePlayer(TRACE)
    player.load(make_trace([b"short"]))
    assert (player.slider.max, player.slider.value, player.play.max) == (0, 0, 0)
    assert "short" in player.screen.value
    player.load(None)
    assert player.slider.disabled and player.play.disabled
    assert player.screen.value == player.caption.value == player.answer.value == ""


def test_the_players_pace():
    player = TracePlayer(TRACE, pause=0.25)
    assert player.play.interval == 250
    player.pause.value = 0
    assert player.play.interval == 50
    assert player.link.source == (player.play, "value")  # tied in the browser, not through here
    assert player.link.target == (player.slider, "value")


def test_a_gallery_shows_the_trace_that_is_chosen():
    gallery = Gallery({"one": TRACE, "<i>two</i>": OTHER})
    assert gallery.player.trace is TRACE
    gallery.choice.value = "<i>two</i>"
    assert gallery.player.trace is OTHER and "Bergen" in gallery.player.screen.value
    assert "<strong>&lt;b&gt;Where?&lt;/b&gt;</strong>" in gallery.player.head.value
    other = Gallery({"one": TRACE}, gallery.player)  # leaves it alone until something is chosen
    assert gallery.player.trace is OTHER
    other.choice.value = "one"
    assert gallery.player.trace is TRACE
    assert "text/html" not in Gallery({})._repr_mimebundle_()
    still = gallery._repr_mimebundle_()["text/html"]
    assert still.count('class="lad-replay"') == 2
    assert "&lt;i&gt;two&lt;/i&gt;" in still and "<i>two" not in still
    assert "&lt;b&gt;Where?" in still


def test_two_runs_step_together_and_the_shorter_one_waits_at_its_answer():
    comparison = Comparison()
    assert comparison.widget.layout.display == "none"
    comparison.load({"a": TRACE, "<s>b</s>": OTHER})
    assert comparison.widget.layout.display == ""
    assert comparison.slider.max == 2
    comparison.slider.value = 0
    first = [screen.value.split("</style>")[1] for screen in comparison.screens]
    assert "Oslo" in first[1] and "Bergen" not in first[1]
    comparison.slider.value = 2
    assert "Iteration 2" in comparison.heads[0].value
    assert "Iteration 1" in comparison.heads[1].value and "Bergen" in comparison.screens[1].value
    assert "&lt;s&gt;b&lt;/s&gt;" in comparison.heads[1].value
    assert comparison.costs.value.count("<tr") == 3  # names of the columns, and two runs
    assert "</del>" not in comparison.screens[0].value  # what it never shows is not in the key
    comparison.by_confidence.value = True
    assert "lad-confidence" in comparison.screens[0].value.split("</style>")[1]
    with pytest.raises(InvalidInput, match="1 traces to compare: expected two"):
        comparison.load({"a": TRACE})
