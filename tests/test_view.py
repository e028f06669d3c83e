"""Views of a trace: token spans, HTML, plain text, sentences, the player of a page."""

import base64
import json
import math
import re
import zlib
from dataclasses import replace
from xml.etree import ElementTree

import numpy as np
import pytest
from browser import contrast
from conftest import tiny_denoiser
from hypothesis import given, settings
from hypothesis import strategies as st
from traces import EOS, TURN, make_trace, words

from lad.diffusion.config import RefineConfig
from lad.diffusion.sampler import record
from lad.viz import html, tokens
from lad.viz.html import draft_html
from lad.viz.style import COLORS
from lad.viz.tokens import confidence_color, sentence, summary, token_spans

SMALL = make_trace(
    *(words(text, 5) for text in ("Paris is is", "Paris is nice", "Paris is nice")),
    remask=[[1, 2, 4], [0]],
    confidence=[[0.9, 0.5, 0.1, 0.8, 0.8], [0.9, 0.6, 0.5, 0.9, 0.9], [1, 1, 1, 1, 1]],
    prompt="Where?",
    iterations=8,
    stopped_early=True,
)


DRAFT = ["denoised"]


def seen(trace, row, phase="denoised"):
    return [(span.text, span.state, span.count) for span in token_spans(trace, row, phase)]


def parse(page):
    """The page as one element; an error if a tag is closed out of turn."""
    page = re.sub(r"<(br|input)([^>]*)>", r"<\1\2/>", re.sub("[\ufffe\uffff]", "", page))
    page = re.sub(r" (hidden|selected|data-frame|data-lane)(?=[ >])", "", page)
    return ElementTree.fromstring(f"<div>{page}</div>")


def test_spans_of_the_three_phases():
    mask, plain, masked = ("MASK", "masked", 1), ("EOS", "plain", 1), (" is", "masked", 1)
    assert seen(SMALL, 0, "input") == [mask] * 5
    first = [("Paris", "changed", 1), (" is", "changed", 1), (" is", "changed", 1)]
    assert seen(SMALL, 0) == [*first, ("EOS", "changed", 2)]
    paris = ("Paris", "plain", 1)
    assert seen(SMALL, 0, "remasked") == [paris, masked, masked, plain, ("EOS", "masked", 1)]
    assert seen(SMALL, 1, "input") == [paris, mask, mask, plain, mask]
    assert [span.state for span in token_spans(SMALL, 1)] == ["plain", "plain", "changed", "plain"]
    tail = make_trace([b"a", *[EOS] * 5], [b"a", *[EOS] * 5], remask=[[2, 4]])
    end = [("EOS", "plain", 3), ("MASK", "masked", 2)]
    assert seen(tail, 1, "input") == [("a", "plain", 1), *end]


def test_confidence_of_a_kept_token_is_that_of_its_draw():
    trace = make_trace(
        [b"a", b"b"], [b"a", b"c"], remask=[[1]], confidence=[[0.2, 0.3], [0.4, 0.5]]
    )
    assert [span.confidence for span in token_spans(trace, 0)] == pytest.approx([0.2, 0.3])
    kept, unknown = token_spans(trace, 1, "input")
    assert kept.confidence == pytest.approx(0.2)
    assert math.isnan(unknown.confidence)
    assert [span.confidence for span in token_spans(trace, 1)] == pytest.approx([0.4, 0.5])
    assert all(math.isnan(span.confidence) for span in token_spans(trace, 0, "input"))


def test_a_character_split_over_tokens_is_one_span():
    smile = "😀".encode()
    trace = make_trace([b"a", smile[:1], smile[1:2], smile[2:] + b"b", b"c"], remask=[[2]])
    assert seen(trace, 0) == [("a", "changed", 1), ("😀b", "changed", 3), ("c", "changed", 1)]
    # Without one of its bytes the character is gone, whatever the others are.
    assert seen(trace, 0, "remasked")[1] == ("😀b", "masked", 3)


def test_what_stands_after_the_end_is_marked():
    trace = make_trace([b"Yes", EOS, b" but", EOS, EOS])
    assert seen(trace, 0) == [
        (text, "changed", n) for text, n in (("Yes", 1), ("EOS", 1), (" but", 1), ("EOS", 2))
    ]
    assert [span.after_eos for span in token_spans(trace, 0)] == [False, False, True, False]


pieces = st.one_of(
    st.sampled_from([EOS, TURN]),
    st.binary(min_size=1, max_size=3),
    st.text(min_size=1, max_size=2).map(lambda text: text.encode("utf-8", "surrogatepass")),
    st.sampled_from([bytes([byte]) for byte in "é漢😀".encode()]),
)


@settings(max_examples=50, deadline=None)
@given(st.data())
def test_every_position_is_in_exactly_one_span_and_no_text_is_lost(data):
    length = data.draw(st.integers(1, 12))
    drafts = data.draw(
        st.lists(st.lists(pieces, min_size=length, max_size=length), min_size=1, max_size=3)
    )
    positions = st.lists(st.integers(0, length - 1), unique=True)
    trace = make_trace(*drafts, remask=[data.draw(positions) for _ in drafts[:-1]])
    for row in range(len(drafts)):
        for phase in ("input", "denoised", "remasked"):
            spans = token_spans(trace, row, phase)
            covered = [position for span in spans for position in span.positions]
            assert sorted(covered) == list(range(length))
            parse(draft_html(trace, row, phase))
    plain = [token for token in drafts[-1] if isinstance(token, bytes)]
    text = "".join(span.text for span in token_spans(make_trace(plain or [b"a"]), 0))
    assert text == b"".join(plain or [b"a"]).decode("utf-8", errors="replace")


def test_html_of_a_draft_exactly():
    color = {c: f' style="--lad-confidence:{confidence_color(c)}"' for c in (0.5, 0.6, 0.9)}
    token = 'class="lad-token lad-confidence"'

    def span(at, confidence, text):
        title = f'title="confidence {confidence:.2f}"'
        return f'<span {token}{color[confidence]} {title} data-at="{at}">{text}</span>'

    assert draft_html(SMALL, 1) == (
        '<div class="lad-draft" dir="auto" role="group" aria-label="Draft after iteration 1" '
        'data-step="1">'
        + span(0, 0.9, "Paris")
        + span(1, 0.6, " is")
        + f'<ins {token}{color[0.5]} title="changed, confidence 0.50" data-at="2"> nice</ins>'
        f'<span class="lad-token lad-eos lad-confidence"{color[0.9]} '
        'title="2 positions, confidence 0.90" data-at="3-4"><bdi>EOS × 2</bdi></span></div>'
    )
    remasked = 'title="masked, confidence 0.50" data-at="1"> is</del>'
    assert f'<del class="lad-token" {remasked}' in draft_html(SMALL, 0, "remasked")
    mask = '<del class="lad-token lad-mask" title="masked" data-at="1"><bdi>MASK</bdi></del>'
    assert mask in draft_html(SMALL, 1, "input")  # what is masked has one colour


HOSTILE = [
    "<img src=x onerror=alert(1)>",
    "</bdi></div></script><script>alert(2)</script>",
    "\"' onmouseover='alert(3)",
    "&lt;s&gt; <s> 😀",
    "\u202eevil שלום",
]


@pytest.mark.parametrize("hostile", HOSTILE)
def test_markup_is_shown_and_never_run(hostile):
    data = hostile.encode()
    trace = make_trace([data[:2], data[2:]], [data[:2], data[2:]], remask=[[0]], prompt=hostile)
    drafts = [draft_html(trace, 0), draft_html(trace, 0, "remasked")]
    page = parse(html.page_html(html.legend_html(trace), *drafts, html.answer_html(trace)))
    assert {one.tag for one in page.iter()} <= {"div", "style", "span", "ins", "del", "bdi", "u"}
    assert not any(name.startswith("on") for one in page.iter() for name in one.attrib)
    assert "".join(page.itertext()).count(hostile) >= 3  # whole: no element cuts it up
    page = html.gallery_html({hostile: trace}) + html.comparison_html({hostile: trace})
    assert page.count("<script") == page.count("</script>") == 4
    assert "<img" not in page and "<s>" not in page and "\ufffd" not in page


def test_the_box_below_a_draft_has_the_numbers_of_every_token():
    def read(trace):
        box = parse(html.inside_html(trace)).find("*")
        data = json.loads(box.get("data-inside"))
        numbers = np.frombuffer(zlib.decompress(base64.b64decode(data["numbers"])), "<u4")
        return data, numbers.reshape(-1, data["steps"], data["length"])

    data, (drawn, confidence) = read(make_trace([b"\xf0\x9f", b" a\n", EOS], confidence=0.25))
    assert [data["tokens"][n] for n in drawn[0]] == [r"\xf0\x9f", " a↵", "EOS"]
    assert confidence.tolist() == [[250] * 3] and data["alternatives"] == 0
    assert data["settled"] == [0, 0, 0]
    assert read(make_trace([EOS], iterations=2))[0]["settled"] is None  # it was cut off

    trace = record(tiny_denoiser(), "hello", RefineConfig(iterations=3, answer_length=4))
    data, numbers = read(trace)
    for column in range(5):
        found = numbers[1 + column]
        ids = trace.alternatives[..., column]
        assert len({*zip(found.flat, ids.flat, strict=True)}) == len({*ids.flat})
        assert np.allclose(numbers[7 + column] / 1000, trace.probabilities[..., column], atol=6e-4)
    assert np.allclose(numbers[12] / 1000, trace.entropy, atol=1e-3)


def test_newlines_tabs_and_control_characters_are_signs():
    assert tokens.visible("a\n\tb\x1b[0m\x00\x7f") == "a↵\n⇥b␛[0m␀␡"
    assert html.escape('<a b="c">&\'') == "&lt;a b=&quot;c&quot;&gt;&amp;&#x27;"
    trace = make_trace([b"a\n", b"\n b\t"])
    text = draft_html(trace, 0)
    assert ">a↵<br></ins>" in text
    assert ">↵<br> b⇥</ins>" in text
    assert "a\n\n b⇥" in html.answer_html(trace)  # the answer itself has its line breaks


def test_the_legend_names_only_what_can_occur():
    assert "masked" in html.legend_html(SMALL)
    assert "masked" not in html.legend_html(make_trace([b"a"]))
    assert "(empty)" in html.answer_html(make_trace([EOS, EOS]))


def test_style_is_scoped_and_shares_the_colours_of_the_figures():
    style = re.search(r"<style>(.*)</style>", html.page_html(), re.DOTALL)[1]
    style = re.sub(r"/\*.*?\*/|@media [^{]*{", "", style, flags=re.DOTALL)
    selectors = re.findall(r"([^{}]+)\{", style)
    assert len(selectors) > 20
    for selector in selectors:
        assert all(part.strip().startswith(".lad-view") for part in selector.split(","))
    assert COLORS["masked"] in style and COLORS["changed"] in style
    assert ", ".join(confidence_color(stop) for stop, _ in tokens.CONFIDENCE_STOPS) in style


def test_confidence_colours_get_lighter_and_carry_black_text():
    def on_black(color):
        return contrast([int(color[n : n + 2], 16) for n in (1, 3, 5)], [0, 0, 0])

    light = [on_black(confidence_color(c)) for c in np.linspace(0, 1, 21)]
    assert light == sorted(set(light))
    lightness = [116 * (y / 20 - 0.05) ** (1 / 3) for y in light]
    assert max(np.diff(lightness)) < 1.7 * min(np.diff(lightness))  # evenly
    assert min(*light, on_black(COLORS["masked"]), on_black(COLORS["changed"])) >= 4.5  # WCAG AA
    assert confidence_color(float("nan")) == "#ffffff"


letters = st.lists(st.sampled_from([b"a", b"b", EOS]), min_size=5, max_size=5)


@settings(max_examples=100, deadline=None)
@given(st.lists(letters, min_size=2, max_size=4), st.lists(st.integers(0, 4), unique=True))
def test_the_numbers_are_those_on_the_screen(drafts, again):
    trace = make_trace(*drafts, remask=[again])
    for step, phase in tokens.frames(trace):
        words = sentence(trace, step, [phase]).replace("the one token is", "all 1 tokens are")
        counts = re.findall(r"(\d+)(?: of \d+ tokens?)?(?: ch| tokens are| masked| from)", words)
        marked = (s.count for s in token_spans(trace, step, phase) if s.state != "plain")
        assert sum(map(int, counts)) == sum(marked), words
        final = all(trace.text(later) == trace.answer for later in range(step, len(drafts)))
        assert final or "settled 100 %" not in words


def test_sentences_and_summaries():
    assert sentence(SMALL, -2, DRAFT, settled=False).endswith("mean confidence 0.67.")
    empty = "Iteration 0: the draft is empty (and 2 from EOS on);"
    assert sentence(make_trace([EOS, EOS]), 0, DRAFT).startswith(empty)
    one = make_trace([b"a"])
    assert sentence(one, 0, DRAFT).startswith("Iteration 0: the one token is new,")
    assert summary(one).startswith("Ran its one iteration. 1 token from 1 forward pass (1.00")
    assert summary(one).endswith(" in 0.2 s, 4.0 iterations a second.")
    timeless = replace(one, steps=[replace(step, seconds=0.0) for step in one.steps])
    assert summary(timeless).endswith("(1.00 tokens a pass).")
    assert summary(make_trace([b"a"], [b"a"])).startswith("Ran all 2 iterations.")
    assert summary(make_trace([b"a"], iterations=4)).startswith("Cut off after 1 of 4 iterations.")
    whole = make_trace([b"a"], iterations=4, stopped_early=True)
    whole = replace(whole, config=whole.config | {"remasking": "threshold"})
    end = "Stopped early after 1 of 4 iterations: no MASK was left in the answer. "
    assert summary(whole).startswith(end)
    assert tokens.ran(whole) == "1 iteration with a confidence threshold"


def test_what_is_counted_about_a_run():
    moving = make_trace(words("a b c d", 6), words("a x y d", 6), words("a x y z", 6))
    assert tokens.half_settled(moving) == 2 and tokens.half_settled(make_trace([EOS])) == 1
    assert tokens.repeated_share(make_trace([b"a", b"a", b"b", EOS, EOS])) == 0.5
    stutter = make_trace(words("no no no yes", 5))
    recorded = [replace(step, seconds=0.0) for step in stutter.steps]
    cut = replace(stutter, steps=recorded, config={"iterations": 2})
    table = html.costs_table({"noisy": SMALL, "one": stutter, "<cut>": cut})
    assert table.to_csv().splitlines() == [
        ",tokens,NFE (*: stopped early),TPF,seconds,half settled after,repeats",
        "noisy,3,3*,1.00,0.8,1,0%",
        "one,4,1,4.00,0.2,1,33%",
        "<cut>,4,1,4.00,–,–,33%",  # not recorded; not certain
    ]
    assert "<td>4.00</td>" in table._repr_html_() and "&lt;cut&gt;" in table._repr_html_()


def test_steps_of_a_filmstrip():
    chosen = {n: tokens.choose_steps(make_trace(*[[b"a"]] * n)) for n in (5, 10, 32, 33)}
    assert chosen[5] == [0, 1, 2, 3, 4] and chosen[10] == [0, 4, 9]
    assert chosen[32] == [0, 4, 8, 16, 31] and chosen[33] == [0, 4, 8, 16, 32]
    assert tokens.choose_steps(make_trace(*[[b"a"]] * 5), [0, 4, 8, 16]) == [0, 4]


def test_a_run_from_a_text_shows_what_it_changed_and_begins_with_the_text():
    fresh = make_trace([b"a", b" b", EOS], [b"a", b" c", EOS])
    assert tokens.frames(fresh) == [(0, "denoised"), (1, "denoised")]
    given = replace(fresh, steps=[replace(fresh.steps[0], inputs=fresh.steps[1].draft)])
    assert tokens.frames(given) == [(0, "input"), (0, "denoised")]
    assert [span.state for span in token_spans(given, 0)] == ["plain", "changed", "plain"]
    assert "1 of 2 tokens changed" in sentence(given, 0, DRAFT)


def test_the_player_of_a_page_has_every_frame_and_loads_nothing():  # test_browser.py plays it
    trace = make_trace(words("Paris is", 3), words("Paris was", 3), remask=[[1], []], iterations=2)
    page = html.replay_html(trace)
    assert page.count("<div data-frame") == len(tokens.frames(trace)) == 3
    assert not re.search(r"(?:src|href)\s*=|url\(|import\b|https?:", page)
    bare = re.sub(r"(?s)<(style|script)>.*?</\1>", "", page)
    assert "lad-by-confidence" not in bare  # it waits for its box
    parse(bare)
    both = html.comparison_html({"a": trace, "b": make_trace(words("Oslo", 2))})
    assert both.count("<div data-frame") == 2 + 1  # what was masked again is not shown
