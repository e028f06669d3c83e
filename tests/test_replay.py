"""The player for pages without a kernel: what it holds, escaped; tests/test_browser.py plays it."""

import re

import pytest
from test_view import parse
from traces import make_trace, words

from lad.viz.replay import replay_html, replays_html
from lad.viz.tokens import frames

TRACE = make_trace(
    words("Paris is is", 5), words("Paris is nice", 5), remask=[[1, 2], []], iterations=2
)


def test_every_frame_is_there_and_the_last_one_shows():
    page = replay_html(TRACE)
    drawn = re.findall(r"<div data-frame( hidden)?>", page)
    assert len(drawn) == len(frames(TRACE)) == 3
    assert drawn == [" hidden", " hidden", ""]
    assert 'max="2" value="2"' in page
    assert "After noising" in page and "Ran all 2 iterations" in page
    parse(re.sub(r"(?s)<(style|script)>.*?</\1>", "", page).replace("<input", "<br"))


def test_nothing_is_loaded_from_elsewhere():
    page = replays_html({"a": TRACE})
    assert not re.search(r"(?:src|href)\s*=|url\(|import\b|https?:", page)


@pytest.mark.parametrize(
    "hostile",
    [
        "<img src=x onerror=alert(1)>",
        "</script><script>alert(1)</script>",
        "<s>",
        "\u202eevil",
        "😀",
    ],
)
def test_hostile_text_stays_text(hostile):
    data = hostile.encode()
    trace = make_trace([data[:2], data[2:]], prompt=hostile)
    page = replays_html({hostile: trace})
    assert page.count("<script") == page.count("</script>") == 1
    assert "<img" not in page and "<s>" not in page
    shown = re.sub(r"(?s)<(style|script)>.*?</\1>|<[^>]*>", " ", page)
    if hostile == "😀":  # four bytes in two tokens come as one character
        assert "😀" in shown and "\ufffd" not in page


def test_confidence_waits_for_its_box():
    page = replay_html(TRACE)
    assert "--lad-sure:#" in page
    assert "lad-by-confidence" not in re.sub(r"(?s)<(style|script)>.*?</\1>", "", page)


def test_of_several_the_first_is_open():
    page = replays_html({"a": TRACE, "b": TRACE})
    assert page.count("<details open>") == 1 and page.count("<details>") == 1
