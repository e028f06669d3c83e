"""Figures of traces: what they show, that they fit, and that they come out the same."""

import warnings

import numpy as np
from hypothesis import example, given, settings
from hypothesis import strategies as st
from matplotlib.colors import to_hex
from matplotlib.patches import Rectangle
from traces import EOS, make_trace, words

from lad.viz import refinement
from lad.viz.style import WIDTH, to_png
from lad.viz.tokens import confidence_color

NOISY = make_trace(
    *(words(text, 6) for text in ("it is is", "it is so", "it was so", "it was so")),
    remask=[[1, 2], [1]],
    confidence=[[0.2] * 6, [0.4] * 6, [0.6] * 6, [0.9] * 6],
    prompt="Why $is$ that?",
)
QUIET = make_trace(words("no", 3), words("no way", 3), words("no", 3))


def texts(figure):
    return [text.get_text() for text in figure.axes[0].texts]


def black_boxes(figure):
    patches = [p for p in figure.axes[0].patches if isinstance(p, Rectangle)]
    return [p for p in patches if to_hex(p.get_facecolor()) == "#000000"]


def test_filmstrip_with_remasking_has_both_columns_and_black_masks():
    figure = refinement.filmstrip_figure(NOISY)
    assert "what the denoiser saw" in texts(figure)
    assert figure.get_suptitle() == "“Why $is$ that?”: 3 tokens in 4 iterations with re-masking"
    # 6 of the first input, 2 and 1 masked again, and one in the key
    assert len(black_boxes(figure)) == 6 + 2 + 1 + 1
    assert [text for text in texts(figure) if text.isdigit()][:4] == ["0", "1", "2", "3"]


def test_filmstrip_without_remasking_has_one_column_and_no_mask():
    figure = refinement.filmstrip_figure(QUIET, [0, 2])
    assert "what the denoiser saw" not in texts(figure)
    assert not black_boxes(figure)
    assert " EOS × 2 " in texts(figure)
    assert figure.get_suptitle().endswith("1 token in 3 iterations without re-masking")
    assert " way" not in texts(figure)  # iteration 1 was not asked for


def test_filmstrip_colours_each_token_by_its_own_confidence():
    figure = refinement.filmstrip_figure(make_trace([b"a", b"b"], confidence=[[0.0, 1.0]]))
    fills = [to_hex(patch.get_facecolor()) for patch in figure.axes[0].patches]
    assert fills == [confidence_color(0), confidence_color(1)]


def test_lines_break_between_tokens_and_at_newlines():
    trace = make_trace([f" token{n}".encode() for n in range(100)] + [b" a\nb"])
    shown = texts(refinement.filmstrip_figure(trace))
    assert {f" token{n}" for n in range(100)} <= set(shown)
    assert shown.index(" a↵") + 1 == shown.index("b")


long_text = st.text(st.characters(exclude_categories=["Cs"]), min_size=1, max_size=120)


@settings(max_examples=15, deadline=None)
@given(st.lists(long_text, min_size=1, max_size=8), st.booleans())
@example(["\u2335 of the tokens' font, \u0639 not of its italics, \U0001d400 of the titles'"], True)
@example(["_names that legends leave out"], False)
def test_no_text_leaves_the_filmstrip(pieces, noisy):
    """And every font is asked for its own characters: behind an EOS tokens are in italics."""
    draft = [*(piece.encode() for piece in pieces), EOS, pieces[0].encode()]
    trace = make_trace(draft, draft, remask=[[0]] if noisy else [], prompt="$" + pieces[0])
    figure = refinement.filmstrip_figure(trace)
    with warnings.catch_warnings():
        warnings.simplefilter("error")  # a glyph the font lacks would be reported here
        figure.draw_without_rendering()
        refinement.settled_curve({pieces[0]: trace}).draw_without_rendering()
    width, height = figure.get_size_inches()
    for patch in figure.axes[0].patches:
        box = patch.get_bbox()
        assert 0 <= box.x0 <= box.x1 <= WIDTH + 1e-6
        assert 0 <= box.y0 <= box.y1 <= height
    assert width == WIDTH


def test_only_what_a_font_lacks_becomes_a_box():
    shown = texts(refinement.filmstrip_figure(make_trace(["\u0639\u2335\u4e2d".encode()] * 2)))
    assert "\u0639\u2335□" in shown


def test_the_confidence_heatmap_shows_the_positions_that_ever_held_text():
    figure = refinement.confidence_heatmap(NOISY)
    assert figure.axes[0].images[0].get_array().shape == (4, 3)  # 3 to 5 are EOS throughout
    expected = "Mean confidence goes from 0.20 to 0.90 in 4 iterations with re-masking"
    assert figure.get_suptitle() == expected


def test_settling_heatmap_tells_changed_unchanged_and_settled():
    figure = refinement.settling_heatmap(NOISY)
    changed, unchanged, settled = 0, 1, 2
    assert figure.axes[0].images[0].get_array().tolist() == [
        [settled, changed, changed],
        [settled, unchanged, settled],
        [settled, settled, settled],
        [settled, settled, settled],
    ]
    # was is settled from iteration 2, which lies in the second half of 0 to 3
    assert figure.get_suptitle().startswith("1 of 3 answer tokens settle in the second half")
    hatched = [p.get_bbox().bounds for p in figure.axes[0].patches]
    assert hatched == [(-0.5, -0.5, 3, 1), (0.5, 0.5, 2, 1), (0.5, 1.5, 1, 1)]


def test_curves_name_each_run():
    figure = refinement.settled_curve({"noisy": NOISY, "quiet": QUIET})
    half = "Iterations until half is settled: 1 (noisy), 1 (quiet)"
    assert figure.get_suptitle() == half
    long = refinement.settled_curve({"without re-masking": NOISY, "with re-masking": QUIET})
    assert long.get_suptitle().endswith("1 (without re-masking), 1 (with re-masking)")
    lines = figure.axes[0].lines
    assert [line.get_label() for line in lines] == ["noisy", "quiet"]
    assert np.allclose(lines[0].get_ydata(), [2 / 4, 3 / 4, 1, 1])
    assert lines[0].get_linestyle() != lines[1].get_linestyle()


def test_an_answer_that_is_empty_or_one_iteration_long_can_be_drawn():
    for trace in (make_trace([EOS, EOS]), make_trace([b"a"])):
        for draw in (
            refinement.filmstrip_figure,
            refinement.confidence_heatmap,
            refinement.settling_heatmap,
        ):
            assert to_png(draw(trace)) == to_png(draw(trace))  # and it is the same bytes twice
        assert to_png(refinement.settled_curve({"$": trace}))
