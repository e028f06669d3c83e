"""The forward process on words: which positions each kind acts on, and how often."""

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from lad.diffusion.config import KINDS, CorruptionConfig
from lad.utils import InvalidInput
from lad.viz import word_corruption as forward
from lad.viz.word_corruption import ALL_KINDS, Sentence, corrupt, corrupt_text

SENTENCE = Sentence.of("The river flows past the old town and ends in the sea.", ends=3)


def test_a_sentence_reads_back_as_it_was_typed():
    sentence = Sentence.of("Well, END or MASK? 100 %", ends=2)
    pieces = ("Well", ",", "END", "or", "MASK", "?", "100", "%", "END", "END")
    assert sentence.pieces == pieces
    assert sentence.read(sentence.ids[0]) == sentence.pieces
    # Words that look like the special pieces are words: they get other ids.
    assert 0 not in sentence.ids
    assert sentence.ids[0, 2] != sentence.ids[0, -1]


@settings(max_examples=30, deadline=None)
@given(st.floats(0, 1), st.integers(0, 10_000))
def test_untouched_tokens_stay_and_every_mask_is_marked(severity, seed):
    result = corrupt(SENTENCE, severity, seed=seed)
    for before, after, causes in zip(result.before, result.after, result.causes, strict=True):
        if not causes:
            assert after == before
    assert [piece == forward.MASK for piece in result.after] == list(result.masked)
    assert [kind == "mask" for kind in result.shown] == list(result.masked)
    assert sum(kind != "" for kind in result.shown) == result.changed


def test_examples_show_every_kind():
    examples = forward.one_of_each(SENTENCE, 0.8)
    assert [*examples] == [*ALL_KINDS, "all of them"]
    for kind in ALL_KINDS:
        assert set(examples[kind].shown) == {kind, ""}
        assert examples[kind].changed >= 2
    assert len(set(examples["all of them"].shown) - {""}) >= 4
    assert forward.one_of_each(Sentence.of("Hello"), 0.5)["swap"].after == ("Hello",)


def test_drawn_rates_agree_with_the_expected_ones_and_notice_a_wrong_expectation():
    rates = forward.drawn_rates([0.25, 0.5, 0.75, 1.0], rows=400, seed=3)

    def share_inside(config):
        inside = [r.low <= config.expected_rates(r.severity)[r.kind] <= r.high for r in rates]
        return sum(inside) / len(inside)

    assert share_inside(CorruptionConfig()) >= 0.85
    assert share_inside(CorruptionConfig(rate=0.3, mask_fraction=(0, 0.9))) < 0.5
    rates = forward.drawn_rates([0.5], CorruptionConfig(kinds=("swap",)), rows=20)
    assert [rate.kind for rate in rates] == ["mask", "swap"]


WORDS = "alpha beta gamma delta epsilon zeta"


def test_one_kind_alone_acts_and_hides_nothing():
    for kind in KINDS:
        results = [corrupt(SENTENCE, 1.0, forward.only(kind), seed) for seed in range(20)]
        causes = {cause for result in results for position in result.causes for cause in position}
        assert causes == {kind}
        assert not any(forward.MASK in result.after for result in results)


@pytest.mark.parametrize("seed", range(4))
def test_each_kind_of_corruption_of_a_text_is_what_it_says(seed):
    before = WORDS.split()
    after = {kind: corrupt_text(WORDS, kind, seed).split() for kind in ALL_KINDS}
    differ = {kind: [a != b for a, b in zip(before, after[kind], strict=True)] for kind in after}
    assert sorted(after["swap"]) == sorted(before) and sum(differ["swap"]) == 2
    for kind in ("mask", "duplicate", "replace"):
        assert sum(differ[kind]) == 1
    (at,) = (i for i, new in enumerate(differ["duplicate"]) if new)
    assert after["duplicate"][at] == before[at - 1]
    assert "___" in after["mask"]
    assert len(set(after["replace"]) - set(before)) == 1
    assert 1 <= sum(differ["shift"]) <= 3
    assert set(after["shift"]) < set(before)
    assert after == {kind: corrupt_text(WORDS, kind, seed).split() for kind in ALL_KINDS}


def test_errors_say_what_is_expected():
    for text in ("", "  \n", "word " * 201):
        with pytest.raises(InvalidInput, match="words: expected a text of 1 to 200"):
            Sentence.of(text)
    assert corrupt_text("word", "mask") == "___"
    with pytest.raises(InvalidInput, match="1 words: expected at least 2 for 'swap'"):
        corrupt_text("word", "swap")
