"""Views of a trace: token spans, HTML, plain text, sentences, the player of a page."""

import math
import re
from dataclasses import replace
from html.parser import HTMLParser

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from traces import EOS, TURN, make_trace, words

from lad.utils import InvalidInput
from lad.viz.html import (
    answer_html,
    caption_html,
    costs_html,
    costs_text,
    draft_html,
    draft_text,
    escape,
    filmstrip_text,
    legend_html,
    page_html,
    replay_html,
    replays_html,
)
from lad.viz.style import COLORS
from lad.viz.tokens import (
    CONFIDENCE_STOPS,
    choose_steps,
    confidence_color,
    frames,
    half_settled,
    repeated_share,
    sentence,
    summary,
    token_spans,
    visible,
)

SMALL = make_trace(
    words("Paris is is", 5),
    words("Paris is nice", 5),
    words("Paris is nice", 5),
    remask=[[1, 2, 4], [0]],
    confidence=[[0.9, 0.5, 0.1, 0.8, 0.8], [0.9, 0.6, 0.5, 0.9, 0.9], [1, 1, 1, 1, 1]],
    prompt="Where?",
    iterations=8,
    stopped_early=True,
)


def seen(trace, row, phase="denoised"):
    return [(span.text, span.state, span.count) for span in token_spans(trace, row, phase)]


class Checker(HTMLParser):
    """Collects tags and text, and fails on a tag that is closed out of turn."""

    def __init__(self):
        super().__init__()
        self.open, self.tags, self.text = [], [], []

    def handle_starttag(self, tag, attrs):
        self.tags.append((tag, dict(attrs)))
        if tag != "br":
            self.open.append(tag)

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        self.text.append(data)


def parse(html):
    checker = Checker()
    checker.feed(html)
    checker.close()
    assert not checker.open
    return checker


# -- spans -----------------------------------------------------------------------------------------


def test_cells_of_the_three_phases():
    assert seen(SMALL, 0, "input") == [("MASK", "masked", 1)] * 5
    first = [("Paris", "changed", 1), (" is", "changed", 1), (" is", "changed", 1)]
    assert seen(SMALL, 0) == [*first, ("EOS", "changed", 2)]
    assert seen(SMALL, 0, "remasked") == [
        ("Paris", "plain", 1),
        (" is", "masked", 1),
        (" is", "masked", 1),
        ("EOS", "plain", 1),
        ("EOS", "masked", 1),
    ]
    assert seen(SMALL, 1, "input") == [
        ("Paris", "plain", 1),
        ("MASK", "masked", 1),
        ("MASK", "masked", 1),
        ("EOS", "plain", 1),
        ("MASK", "masked", 1),
    ]
    assert [span.state for span in token_spans(SMALL, 1)] == ["plain", "plain", "changed", "plain"]


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


def test_a_character_split_over_tokens_is_one_cell():
    smile = "😀".encode()
    trace = make_trace([b"a", smile[:1], smile[1:2], smile[2:] + b"b", b"c"], remask=[[2]])
    assert seen(trace, 0) == [("a", "changed", 1), ("😀b", "changed", 3), ("c", "changed", 1)]
    # Without one of its bytes the character is gone, whatever the others are.
    assert seen(trace, 0, "remasked")[1] == ("😀b", "masked", 3)


def test_an_unfinished_character_takes_no_neighbour_along():
    half = "é".encode()[:1]
    trace = make_trace([half, b"a", half, EOS])
    assert [text for text, _, _ in seen(trace, 0)] == ["�", "a", "�", "EOS"]
    trace = make_trace([half, TURN, b"\xa9"])
    assert [text for text, _, _ in seen(trace, 0)] == ["�", "<turn>", "�"]


def test_what_stands_after_the_end_is_marked():
    trace = make_trace([b"Yes", EOS, b" but", EOS, EOS])
    spans = token_spans(trace, 0)
    assert [(span.text, span.after_eos) for span in spans] == [
        ("Yes", False),
        ("EOS", False),
        (" but", True),
        ("EOS", False),
    ]
    assert [span.count for span in spans] == [1, 1, 1, 2]


def test_the_tail_of_an_input_mixes_eos_and_masks():
    trace = make_trace([b"a", *[EOS] * 5], [b"a", *[EOS] * 5], remask=[[2, 4]])
    assert seen(trace, 1, "input") == [
        ("a", "plain", 1),
        ("EOS", "plain", 3),
        ("MASK", "masked", 2),
    ]


tokens = st.one_of(
    st.sampled_from([EOS, TURN]),
    st.binary(min_size=1, max_size=3),
    st.text(min_size=1, max_size=2).map(lambda text: text.encode("utf-8", "surrogatepass")),
    st.sampled_from([bytes([byte]) for byte in "é漢😀".encode()]),
)


@given(st.data())
def test_every_position_is_in_exactly_one_cell_and_no_text_is_lost(data):
    length = data.draw(st.integers(1, 12))
    drafts = data.draw(
        st.lists(st.lists(tokens, min_size=length, max_size=length), min_size=1, max_size=3)
    )
    positions = st.lists(st.integers(0, length - 1), unique=True)
    trace = make_trace(*drafts, remask=[data.draw(positions) for _ in drafts[:-1]])
    for row in range(len(drafts)):
        for phase in ("input", "denoised", "remasked"):
            spans = token_spans(trace, row, phase)
            covered = [position for span in spans for position in span.positions]
            assert sorted(covered) == list(range(length))
            parse(
                page_html(
                    draft_html(trace, row, phase), draft_html(trace, row, phase, "confidence")
                )
            )
            assert "\n" not in draft_text(trace, row, phase)


@given(st.lists(st.binary(min_size=1, max_size=3), min_size=1, max_size=12))
def test_cells_read_in_order_are_the_decoded_text(pieces):
    trace = make_trace(pieces)
    text = "".join(span.text for span in token_spans(trace, 0))
    assert text == b"".join(pieces).decode("utf-8", errors="replace") == trace.answer


# -- HTML ------------------------------------------------------------------------------------------


def test_html_of_a_draft_exactly():
    span = '<span class="lad-token" title="position {}, confidence {}"><bdi>{}</bdi></span>'
    assert draft_html(SMALL, 1) == (
        '<div class="lad-draft" role="group" aria-label="Draft after iteration 1">'
        + span.format(0, "0.90", "Paris")
        + span.format(1, "0.60", " is")
        + '<ins class="lad-token" title="position 2, changed, confidence 0.50">'
        "<bdi> nice</bdi></ins>"
        '<span class="lad-token lad-eos" title="2 positions, 3 to 4, confidence 0.90">'
        "<bdi>EOS × 2</bdi></span></div>"
    )


def test_html_of_the_noised_draft_and_of_the_input():
    assert (
        '<del class="lad-token" title="position 1, masked, confidence 0.50"><bdi> is</bdi></del>'
        in draft_html(SMALL, 0, "remasked")
    )
    mask = '<del class="lad-token lad-mask" title="position 1, masked"><bdi>MASK</bdi></del>'
    assert mask in draft_html(SMALL, 1, "input")
    # What is masked stays red under either colouring.
    assert mask in draft_html(SMALL, 1, "input", "confidence")


def test_html_coloured_by_confidence_keeps_the_underline():
    text = draft_html(SMALL, 1, coloring="confidence")
    assert (
        f'<ins class="lad-token lad-confidence" style="background:{confidence_color(0.5)}"' in text
    )


HOSTILE = [
    b'<img src=x onerror="alert(1)">',
    b"</bdi></div><script>alert(2)</script>",
    b"' onmouseover='alert(3)",
    b"&lt;s&gt;",
    b"<s>",
]


def test_markup_is_shown_and_never_run():
    trace = make_trace(HOSTILE, HOSTILE, remask=[[0]], prompt=HOSTILE[0].decode())
    page = parse(
        page_html(
            legend_html(trace),
            draft_html(trace, 0),
            draft_html(trace, 0, "remasked", "confidence"),
            answer_html(trace),
        )
    )
    ours = {"div", "style", "span", "ins", "del", "bdi", "u"}
    assert {tag for tag, _ in page.tags} <= ours
    assert not any(name.startswith("on") for _, attrs in page.tags for name in attrs)
    text = "".join(page.text)
    for piece in HOSTILE:
        assert text.count(piece.decode()) >= 2


def test_newlines_tabs_and_control_characters_are_signs():
    assert visible("a\n\tb\x1b[0m\x00\x7f") == "a↵\n⇥b␛[0m␀␡"
    assert escape('<a b="c">&\'') == "&lt;a b=&quot;c&quot;&gt;&amp;&#x27;"
    trace = make_trace([b"a\n", b"\n b\t"])
    text = draft_html(trace, 0)
    assert "<bdi>a↵<br></bdi>" in text
    assert "<bdi>↵<br> b⇥</bdi>" in text
    assert "a\n\n b⇥" in answer_html(trace)  # the answer itself has its line breaks


def test_right_to_left_text_is_isolated_in_its_cell():
    trace = make_trace(["שלום".encode(), "\u202eevil".encode(), b" end"])
    assert "<bdi>שלום</bdi>" in draft_html(trace, 0)
    assert draft_html(trace, 0).count("<bdi>") == 3


def test_the_legend_names_only_what_can_occur():
    assert "masked" in legend_html(SMALL)
    assert "masked" not in legend_html(make_trace([b"a"]))
    assert "confidence" in legend_html(SMALL, "confidence")


def test_an_empty_answer_says_so():
    assert "(empty)" in answer_html(make_trace([EOS, EOS]))


def test_style_is_scoped_and_shares_the_colours_of_the_figures():
    style = re.search(r"<style>(.*)</style>", page_html(), re.DOTALL)[1]
    style = re.sub(r"/\*.*?\*/|@media print {", "", style, flags=re.DOTALL)
    selectors = re.findall(r"([^{}]+)\{", style)
    assert len(selectors) > 20
    for selector in selectors:
        assert all(part.strip().startswith(".lad-view") for part in selector.split(","))
    assert COLORS["masked"] in style and COLORS["changed"] in style
    assert ", ".join(confidence_color(stop) for stop, _ in CONFIDENCE_STOPS) in style


def test_confidence_colours_get_lighter_and_carry_black_text():
    def luminance(color):
        channels = [int(color[n : n + 2], 16) / 255 for n in (1, 3, 5)]
        linear = [c / 12.92 if c <= 0.04045 else ((c + 0.055) / 1.055) ** 2.4 for c in channels]
        return float(np.dot(linear, [0.2126, 0.7152, 0.0722]))

    colors = [confidence_color(c) for c in np.linspace(0, 1, 21)]
    light = [luminance(color) for color in colors]
    assert light == sorted(set(light))
    lightness = [116 * y ** (1 / 3) - 16 for y in light]
    assert max(np.diff(lightness)) < 1.7 * min(np.diff(lightness))  # evenly
    for color in [*colors, COLORS["masked"], COLORS["changed"]]:
        assert (luminance(color) + 0.05) / 0.05 >= 4.5  # WCAG AA
    assert confidence_color(float("nan")) == "#ffffff"


# -- plain text and sentences ----------------------------------------------------------------------


def test_plain_text_of_a_draft():
    assert draft_text(SMALL, 0) == "[Paris is is <EOS × 2>]"
    assert draft_text(SMALL, 1) == "Paris is[ nice] <EOS × 2>"
    assert draft_text(SMALL, 0, "remasked") == "Paris ░░ ░░ <EOS> <masked EOS>"
    assert draft_text(SMALL, 1, "input") == "Paris░░ <EOS>░"
    assert draft_text(make_trace([b"a\n", b"b"]), 0) == "[a↵b]"


def test_plain_text_filmstrip_exactly():
    assert filmstrip_text(SMALL, [0, 2]) == (
        "Where? (3 tokens in 3 iterations, with re-masking)\n"
        "[changed]  ░ masked\n"
        "\n"
        "Iteration 0: all 3 tokens are new, 2 masked again (and 1 EOS after the end), mean "
        "confidence\n0.50; settled 67 %.\n"
        "  input  ░░░░░\n"
        "  draft  [Paris is is <EOS × 2>]\n"
        "\n"
        "Iteration 2: 0 of 3 tokens changed, mean confidence 1.00; settled 100 %.\n"
        "  input  ░ is nice <EOS × 2>\n"
        "  draft  Paris is nice <EOS × 2>\n"
        "\n"
        "Stopped early after 3 of 8 iterations: the draft stood still. 3 tokens from 3 forward "
        "passes\n(1.00 tokens a pass) in 0.8 s, 4.0 iterations a second."
    )


def test_the_end_of_a_run_that_waited_for_a_whole_answer_is_called_that():
    trace = make_trace([b"a"], iterations=4, stopped_early=True)
    whole = replace(trace, config=trace.config | {"remasking": "threshold"})
    assert summary(whole).startswith(
        "Stopped early after 1 of 4 iterations: no MASK was left in the answer. "
    )


def test_plain_text_filmstrip_keeps_to_its_width():
    trace = make_trace(words("word " * 60, 60), words("other " * 60, 60), remask=[range(60)])
    lines = filmstrip_text(trace, width=50).splitlines()
    assert len(lines) > 20
    assert max(map(len, lines[1:])) <= 50


def test_sentences():
    assert sentence(SMALL, 1) == (
        "Iteration 1: 1 of 3 tokens changed, 1 masked again, mean confidence 0.67; settled 100 %."
    )
    assert sentence(SMALL, -2, settled=False).endswith("mean confidence 0.67.")
    assert sentence(make_trace([EOS, EOS]), 0).startswith("Iteration 0: the draft is empty;")
    assert sentence(make_trace([b"a"]), 0).startswith("Iteration 0: the one token is new,")


def test_summaries():
    assert summary(make_trace([b"a"])).startswith(
        "Ran its one iteration. 1 token from 1 forward pass"
    )
    assert summary(make_trace([b"a"], [b"a"])).startswith("Ran all 2 iterations.")
    assert summary(make_trace([b"a"], iterations=4)).startswith("Cut off after 1 of 4 iterations.")


def test_table_of_costs():
    stutter = make_trace(words("no no no yes", 5))
    assert costs_text({"noisy": SMALL, "one": stutter}).splitlines() == [
        "run    tokens  NFE   TPF  seconds  half settled after  repeats",
        "-" * 62,
        "noisy       3   3*  1.00      0.8                   1       0%",
        "one         4    1  4.00      0.2                   1      33%",
        "* stopped early",
    ]


def test_what_is_counted_about_a_run():
    moving = make_trace(words("a b c d", 6), words("a x y d", 6), words("a x y z", 6))
    assert [round(share, 2) for share in moving.settled_share] == [0.25, 0.75, 1]
    assert half_settled(moving) == 2
    assert half_settled(make_trace([EOS])) == 1
    assert repeated_share(make_trace([b"a", b"a", b"b", EOS, EOS])) == 0.5
    assert repeated_share(make_trace([b"a", EOS])) == 0


def test_rows_of_a_filmstrip():
    def run(length):
        return make_trace(*[[b"a"]] * length)

    assert choose_steps(run(5)) == [0, 1, 2, 3, 4]
    assert choose_steps(run(33)) == [0, 4, 8, 16, 32]
    assert choose_steps(run(32)) == [0, 4, 8, 16, 31]
    assert choose_steps(run(10)) == [0, 4, 9]
    assert choose_steps(run(5), [0, 4, 8, 16]) == [0, 4]
    assert choose_steps(run(5), (3, 1, 3)) == [1, 3]


@pytest.mark.parametrize("iterations", [[-1], [1.5], [True], []])
def test_rows_that_make_no_sense(iterations):
    with pytest.raises(InvalidInput, match="expected"):
        choose_steps(SMALL, iterations)


def test_unknown_rows_phases_and_colourings():
    with pytest.raises(InvalidInput, match="step 3: the trace has 3"):
        token_spans(SMALL, 3)
    with pytest.raises(InvalidInput, match="phase = 'after'"):
        draft_html(SMALL, 0, "after")
    with pytest.raises(InvalidInput, match="coloring = 'red'"):
        draft_html(SMALL, 0, coloring="red")


def test_a_run_without_wall_times_does_not_claim_to_have_taken_none():
    trace = make_trace(words("Paris is nice", 5))
    assert "in 0.2 s, 4.0 iterations a second." in summary(trace)
    timeless = replace(trace, steps=[replace(step, seconds=0.0) for step in trace.steps])
    assert summary(timeless).endswith("(3.00 tokens a pass).")


def test_a_run_from_a_text_shows_what_it_changed_and_begins_with_the_text():
    fresh = make_trace([b"a", b" b", EOS], [b"a", b" c", EOS])
    assert frames(fresh) == [(0, "denoised"), (1, "denoised")]
    given = replace(fresh, steps=[replace(fresh.steps[0], inputs=fresh.steps[1].draft)])
    assert frames(given) == [(0, "input"), (0, "denoised")]
    assert [span.state for span in token_spans(given, 0)] == ["plain", "changed", "plain"]
    assert "1 of 2 tokens changed" in sentence(given, 0)
    assert "Before." in caption_html(given, 0, "input")
    assert "nothing of it masked" in caption_html(given, 0, "input")


def test_either_colouring_can_be_switched_by_one_class():
    both = draft_html(SMALL, 0, coloring="either")
    assert "--lad-confidence:#" in both and "background" not in both
    assert "lad-confidence" not in draft_html(SMALL, 0)


def test_costs_as_a_table_escape_their_labels():
    page = costs_html({"<b>one</b>": SMALL, "two": SMALL})
    assert "&lt;b&gt;one" in page and page.count("<tr>") == 3
    parse(page)


# -- the player of a page; tests/test_browser.py plays it ------------------------------------------

PLAYED = make_trace(
    words("Paris is is", 5), words("Paris is nice", 5), remask=[[1, 2], []], iterations=2
)


def test_every_frame_is_there_and_the_last_one_shows():
    page = replay_html(PLAYED)
    drawn = re.findall(r"<div data-frame( hidden)?>", page)
    assert len(drawn) == len(frames(PLAYED)) == 3
    assert drawn == [" hidden", " hidden", ""]
    assert 'max="2" value="2"' in page
    assert "After re-masking" in page and "Ran all 2 iterations" in page
    parse(re.sub(r"(?s)<(style|script)>.*?</\1>", "", page).replace("<input", "<br"))


def test_nothing_is_loaded_from_elsewhere():
    page = replays_html({"a": PLAYED})
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
    page = replay_html(PLAYED)
    assert "--lad-confidence:#" in page
    assert "lad-by-confidence" not in re.sub(r"(?s)<(style|script)>.*?</\1>", "", page)


def test_of_several_the_first_is_open():
    page = replays_html({"a": PLAYED, "b": PLAYED})
    assert page.count("<details open>") == 1 and page.count("<details>") == 1
