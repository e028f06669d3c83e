"""The forward process on words: which positions each kind acts on, and how often."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from lad.diffusion.config import CorruptionConfig
from lad.diffusion.corruption import draw_plan
from lad.utils import InvalidInput
from lad.viz.word_corruption import (
    ALL_KINDS,
    END,
    MASK,
    Sentence,
    corrupt,
    corrupt_text,
    corrupted_positions,
    drawn_rates,
    masked_shares,
    one_of_each,
    only,
)

SENTENCE = Sentence.of("The river flows past the old town and ends in the sea.", ends=3)


def test_a_sentence_reads_back_as_it_was_typed():
    sentence = Sentence.of("Well, END or MASK? 100 %", ends=2)
    assert sentence.pieces == ("Well", ",", "END", "or", "MASK", "?", "100", "%", END, END)
    assert sentence.read(sentence.ids[0]) == sentence.pieces
    # Words that look like the special pieces are words: they get other ids.
    assert 0 not in sentence.ids
    assert sentence.ids[0, 2] != sentence.ids[0, -1]


@pytest.mark.parametrize("text", ["", "  \n", "word " * 201])
def test_a_text_without_words_or_with_too_many_is_refused(text):
    with pytest.raises(InvalidInput, match="words: expected a text of 1 to 200"):
        Sentence.of(text)


@settings(max_examples=60, deadline=None)
@given(st.floats(0, 1), st.integers(0, 10_000))
def test_untouched_tokens_stay_and_every_mask_is_marked(severity, seed):
    result = corrupt(SENTENCE, severity, seed=seed)
    for before, after, causes in zip(result.before, result.after, result.causes, strict=True):
        if not causes:
            assert after == before
    assert [piece == MASK for piece in result.after] == list(result.masked)
    assert [kind == "mask" for kind in result.shown] == list(result.masked)


def test_nothing_is_replaced_by_mask_or_end():
    text = Sentence.of("one two three four five six")
    for seed in range(100):
        result = corrupt(text, 1.0, only("replace"), seed)
        assert not {MASK, END} & set(result.after)


@pytest.mark.parametrize("kind", ALL_KINDS)
def test_one_kind_alone_acts_as_that_kind_and_as_no_other(kind):
    results = [corrupt(SENTENCE, 1.0, only(kind), seed) for seed in range(40)]
    causes = {cause for result in results for position in result.causes for cause in position}
    assert causes == {kind}


def test_an_unknown_kind_is_refused():
    with pytest.raises(InvalidInput, match="'melt'"):
        only("melt")


def test_examples_show_every_kind():
    examples = one_of_each(SENTENCE, 0.8)
    assert [*examples] == [*ALL_KINDS, "all of them"]
    for kind in ALL_KINDS:
        assert set(examples[kind].shown) == {kind, ""}
        assert examples[kind].changed >= 2
    assert len(set(examples["all of them"].shown) - {""}) >= 4


def test_a_single_word_can_be_shown_too():
    assert one_of_each(Sentence.of("Hello"), 0.5)["swap"].after == ("Hello",)


def test_positions_count_both_ends_of_a_swap_and_the_target_of_a_shift():
    answer = torch.ones(200, 30, dtype=torch.bool)
    plan = draw_plan(answer, 50, 0, torch.Generator().manual_seed(0), severity=1.0)
    where = corrupted_positions(plan)
    for row in range(200):
        swaps = plan.swap[row].nonzero().flatten().tolist()
        assert set(where["swap"][row].nonzero().flatten().tolist()) == {
            i for s in swaps for i in (s, s + 1)
        }
        length, start = int(plan.shift_length[row]), int(plan.shift_to[row])
        expected = list(range(start, start + length))
        assert where["shift"][row].nonzero().flatten().tolist() == expected


def test_drawn_rates_agree_with_the_expected_ones_and_notice_a_wrong_expectation():
    rates = drawn_rates([0.25, 0.5, 0.75, 1.0], rows=400, seed=3)

    def share_inside(config):
        inside = [r.low <= config.expected_rates(r.severity)[r.kind] <= r.high for r in rates]
        return sum(inside) / len(inside)

    assert share_inside(CorruptionConfig()) >= 0.85
    assert share_inside(CorruptionConfig(rate=0.3, mask_fraction=(0, 0.9))) < 0.5


def test_drawn_rates_leave_out_kinds_that_are_off():
    rates = drawn_rates([0.5], CorruptionConfig(kinds=("swap",)), rows=20)
    assert [rate.kind for rate in rates] == ["mask", "swap"]


def test_masked_shares_have_the_paper_s_form():
    shares = masked_shares(rows=4000)
    assert abs((shares == 1).mean() - 0.1) < 0.02
    # 0.45 draw no masks, and 2 of 256 of the others round down to none.
    assert abs((shares == 0).mean() - 0.454) < 0.03
    assert shares[shares < 1].max() <= 0.5


# -- a text with one more thing wrong --------------------------------------------------------------

WORDS = "alpha beta gamma delta epsilon zeta"


@pytest.mark.parametrize("seed", range(8))
def test_each_kind_of_corruption_of_a_text_is_what_it_says(seed):
    before = WORDS.split()
    after = {kind: corrupt_text(WORDS, kind, seed).split() for kind in ALL_KINDS}
    differ = {  # which words
        kind: [a != b for a, b in zip(before, now, strict=True)] for kind, now in after.items()
    }
    assert sorted(after["swap"]) == sorted(before) and sum(differ["swap"]) == 2
    for kind in ("mask", "duplicate", "replace"):
        assert sum(differ[kind]) == 1
    (at,) = (i for i, new in enumerate(differ["duplicate"]) if new)
    assert after["duplicate"][at] == before[at - 1]
    assert "___" in after["mask"]
    assert len(set(after["replace"]) - set(before)) == 1
    assert 1 <= sum(differ["shift"]) <= 3
    assert set(after["shift"]) < set(before)


def test_a_corrupted_text_is_the_same_again_from_the_same_seed():
    for kind in ALL_KINDS:
        assert corrupt_text(WORDS, kind, 3) == corrupt_text(WORDS, kind, 3)
    assert len({corrupt_text(WORDS, "swap", seed) for seed in range(30)}) == 5


def test_texts_too_short_to_corrupt_are_refused():
    assert corrupt_text("word", "mask") == "___"
    with pytest.raises(InvalidInput, match="1 words: expected at least 2 for 'swap'"):
        corrupt_text("word", "swap")
    with pytest.raises(InvalidInput, match="kind = 'nonsense'"):
        corrupt_text("word", "nonsense")
