"""What each strategy masks, on drafts made up for the purpose: no model is asked."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from lad.diffusion import reference, schedule
from lad.diffusion.config import RefineConfig
from lad.diffusion.remasking import STRATEGIES, Look, make_strategy, repeated

EOS = 0


def look(
    confidence,
    *,
    masked=None,
    open_=None,
    draft=None,
    again=None,
    iteration=0,
    sharpness=1.0,
    draws=2,
):
    """A batch of one row; by default a first draft of different words, free to be masked."""
    a = len(confidence)
    draft = torch.tensor([draft if draft is not None else range(1, a + 1)])
    every = torch.ones(1, a, dtype=torch.bool)
    masked = every if masked is None else torch.tensor([masked], dtype=torch.bool)
    open_ = every if open_ is None else torch.tensor([open_], dtype=torch.bool)
    return Look(
        left=torch.tensor(schedule.noise_level(iteration, 10, sharpness), dtype=torch.float64),
        draft=draft,
        confidence=torch.tensor([confidence]),
        masked=masked,
        open=open_,
        sizes=torch.tensor([a]),
        repeated=~every if again is None else torch.tensor([again], dtype=torch.bool),
        ends=draft == EOS,
        uniforms=torch.rand(1, 2, a, generator=torch.Generator().manual_seed(0)),
    )


def choose(seen: Look, **settings) -> list[int]:
    """0 and 1 for every position: masked before the next iteration or not."""
    return make_strategy(RefineConfig(**settings)).choose(seen)[0].long().tolist()


def threshold(seen: Look, limit=0.9, **settings) -> list[int]:
    return choose(seen, remasking="threshold", confidence_threshold=limit, **settings)


def test_noiseless_masks_nothing_even_what_repeats():
    assert choose(look([0.1] * 4, again=[1, 1, 0, 0]), remasking="none") == [0, 0, 0, 0]


def test_threshold_shows_what_is_sure_enough():
    assert threshold(look([0.95, 0.5, 0.9, 0.2])) == [0, 1, 0, 1]
    assert threshold(look([0.95, 0.5, 0.9, 0.2]), 0.5) == [0, 0, 0, 1]


def test_threshold_shows_the_surest_when_none_is_sure_enough():
    assert threshold(look([0.1, 0.5, 0.7, 0.2])) == [1, 1, 0, 1]
    # Of equally sure ones the leftmost; and what is visible already is no progress.
    assert threshold(look([0.1, 0.5, 0.5])) == [1, 0, 1]
    assert threshold(look([0.99, 0.2, 0.5], masked=[0, 1, 1])) == [0, 1, 0]


def test_threshold_masks_a_visible_token_again_unless_that_is_closed():
    seen = {"masked": [0, 0, 1, 1]}
    assert threshold(look([0.95, 0.3, 0.95, 0.2], **seen)) == [0, 1, 0, 1]
    assert threshold(look([0.95, 0.3, 0.95, 0.2], open_=[0, 0, 1, 1], **seen)) == [0, 0, 0, 1]


def test_the_window_begins_at_the_leftmost_mask():
    sure = [0.99] * 6
    assert threshold(look(sure), window=2) == [0, 0, 1, 1, 1, 1]
    assert threshold(look(sure, masked=[0, 0, 1, 0, 1, 1]), window=2) == [0, 0, 0, 0, 1, 1]
    # A sure token right of the window is not shown, and the surest one inside is.
    assert threshold(look([0.1, 0.2, 0.99, 0.99]), window=2) == [1, 0, 1, 1]


def test_progress_is_made_before_the_drafts_end_while_there_is_something():
    draft = [1, 2, EOS, EOS]
    assert threshold(look([0.1, 0.2, 0.3, 0.8], draft=draft)) == [1, 1, 0, 1]
    # A sure tail is shown, but is not what the iteration is for.
    assert threshold(look([0.1, 0.2, 0.3, 0.99], draft=draft)) == [1, 1, 0, 0]
    only_tail = look([0.1, 0.2, 0.3, 0.8], draft=[EOS] * 4, masked=[0, 0, 1, 1])
    assert threshold(only_tail, 0.05) == [0, 0, 0, 0]
    assert threshold(only_tail, 0.9)[2:] == [1, 0]


def test_the_leftmost_mask_is_shown_however_unsure():
    leftmost = {"advance": "leftmost"}
    assert threshold(look([0.1, 0.2, 0.95, 0.3]), **leftmost) == [0, 1, 0, 1]
    assert threshold(look([0.1, 0.2, 0.95, 0.3])) == [1, 1, 0, 1]
    seen = {"masked": [0, 0, 1, 1]}
    assert threshold(look([0.95, 0.95, 0.1, 0.2], **seen), **leftmost) == [0, 0, 0, 1]
    # One that repeats its neighbour waits, while there is another to show.
    assert threshold(look([0.1, 0.2, 0.3], again=[1, 0, 0]), **leftmost) == [1, 1, 0]


def test_a_run_goes_on_while_what_is_left_of_it_is_sure():
    run = {"advance": "run"}
    assert threshold(look([0.3, 0.99, 0.99]), 0.5, **run) == [0, 1, 1]
    assert threshold(look([0.8, 0.7, 0.9, 0.99]), 0.5, **run) == [0, 0, 0, 0]
    assert threshold(look([0.8, 0.6, 0.9, 0.99]), 0.5, **run) == [0, 0, 1, 1]
    # What is visible already is no doubt, and the window bounds a run too.
    seen = look([0.1, 0.9, 0.1, 0.2, 0.9], masked=[0, 1, 0, 1, 1], open_=[0, 1, 0, 1, 1])
    assert threshold(seen, 0.5, **run) == [0, 0, 0, 0, 1]
    assert threshold(look([0.99] * 4), 0.5, window=2, **run) == [0, 0, 1, 1]
    assert threshold(look([0.9, 0.9, 0.9], again=[0, 1, 0]), 0.5, **run) == [0, 1, 1]


def test_beside_an_unknown_left_neighbour_a_token_must_be_surer():
    apart = {"isolated_threshold": 0.8}
    assert threshold(look([0.6, 0.6, 0.6, 0.6]), 0.5, **apart) == [0, 1, 1, 1]
    assert threshold(look([0.6, 0.9, 0.6, 0.6]), 0.5, **apart) == [0, 0, 0, 1]
    # What is visible is known, and a neighbour that waits because it repeats is not.
    assert threshold(look([0.6] * 3, masked=[0, 1, 1], open_=[0, 1, 1]), 0.5, **apart) == [0, 0, 1]
    assert threshold(look([0.9, 0.6], again=[1, 0]), 0.5, **apart) == [1, 0]
    assert threshold(look([0.4, 0.9, 0.6, 0.3]), 0.5, **apart) == [1, 0, 0, 1]


def test_threshold_never_masks_what_repeats_for_ever():
    assert threshold(look([0.95, 0.99], again=[1, 0])) == [1, 0]
    assert threshold(look([0.95, 0.99], again=[1, 1])) == [1, 0]
    assert threshold(look([0.5, 0.99], again=[0, 1])) == [0, 1]


@pytest.mark.parametrize("remasking", ["random", "guided"])
def test_scheduled_strategies_mask_the_schedules_number_of_open_positions(remasking):
    for iteration in range(9):
        seen = look([0.5] * 20, iteration=iteration, sharpness=2.0)
        count = sum(choose(seen, remasking=remasking, noise_start=0.7))
        assert count == reference.mask_count(iteration, 10, 20, 2.0, 0.7)
    closed = look([0.5] * 20, open_=[0] * 15 + [1] * 5)
    assert choose(closed, remasking=remasking, noise_start=0.7) == [0] * 15 + [1] * 5
    again = look([0.5] * 20, iteration=8, again=[1] + [0] * 19)
    assert choose(again, remasking=remasking, noise_start=0.1) == [1] + [0] * 19


@pytest.mark.parametrize("remasking", ["random", "guided"])
def test_clustering_reaches_the_choice(remasking):
    chosen = choose(
        look([0.5] * 40), remasking=remasking, noise_start=0.3, clustering=1.0
    )  # one run of 12
    assert sum(chosen) == 12
    assert "".join(map(str, chosen)).strip("0") == "1" * 12


def test_guidance_masks_doubt_and_shares_the_number_with_the_tail():
    doubtful = [0.999] * 10 + [0.001] * 10
    settings = {"remasking": "guided", "noise_start": 0.5, "noise_clipping": 0.01}
    assert sum(choose(look(doubtful, draft=[1, 2] * 10), **settings)[10:]) >= 8
    tail = look([0.5] * 15 + [1.0] * 5, draft=[1, 2, 3] * 5 + [EOS] * 5)
    chosen = choose(tail, **settings)
    assert (sum(chosen[:15]), sum(chosen[15:])) == (7, 3)  # 10 in proportion, half rounded up


# -- repeats ---------------------------------------------------------------------------------------


def again(draft, confidence, may=None) -> list[int]:
    may = torch.ones(len(draft), dtype=torch.bool) if may is None else torch.tensor(may).bool()
    drafts = torch.tensor([draft])
    result = repeated(drafts, torch.tensor([confidence]), drafts == EOS, may[None])
    return result[0].long().tolist()


def test_of_two_equal_neighbours_the_less_sure_is_drawn_again():
    assert again([1, 1, 2], [0.3, 0.9, 0.1]) == [1, 0, 0]
    assert again([1, 1, 2], [0.9, 0.3, 0.1]) == [0, 1, 0]
    assert again([1, 1, 2], [0.5, 0.5, 0.1]) == [0, 1, 0]
    assert again([1, 2, 1], [0.5, 0.5, 0.5]) == [0, 0, 0]


def test_of_a_run_the_surest_stays_and_eos_may_repeat():
    assert again([7, 7, 7, 7], [0.1, 0.2, 0.9, 0.3]) == [1, 1, 0, 1]
    assert again([1, EOS, EOS, EOS], [0.1] * 4) == [0, 0, 0, 0]


def test_what_may_not_be_masked_is_not():
    assert again([1, 1], [0.3, 0.9], may=[0, 1]) == [0, 1]
    assert again([1, 1], [0.9, 0.3], may=[1, 0]) == [1, 0]
    assert again([1, 1], [0.9, 0.3], may=[0, 0]) == [0, 0]


row = st.tuples(st.integers(0, 3), st.sampled_from([0.1, 0.5, 0.9]), st.booleans())


@settings(max_examples=200, deadline=None)
@given(st.lists(row, min_size=1, max_size=12))
def test_repeats_equal_the_plain_ones(rows):
    draft, confidence, may = (list(column) for column in zip(*rows, strict=True))
    expected = reference.repeated(draft, confidence, EOS, may)
    assert again(draft, confidence, may) == [int(x) for x in expected]


# -- all of them -----------------------------------------------------------------------------------


@settings(max_examples=100, deadline=None)
@given(
    st.sampled_from(sorted(STRATEGIES)),
    st.lists(row, min_size=1, max_size=12),
    st.integers(0, 8),
    st.sampled_from([0.0, 0.6]),
    st.sampled_from([None, 1, 4]),
    st.data(),
)
def test_no_strategy_masks_a_visible_position_that_is_closed(
    name, rows, iteration, clustering, window, data
):
    draft, confidence, open_ = (list(column) for column in zip(*rows, strict=True))
    masked = [data.draw(st.booleans()) for _ in rows]
    seen = look(confidence, draft=draft, open_=open_, masked=masked, iteration=iteration)
    chosen = choose(
        seen, remasking=name, confidence_threshold=0.5, clustering=clustering, window=window
    )
    for position, hidden in enumerate(chosen):
        assert not hidden or masked[position] or open_[position]
    if name == "threshold" and any(m and o for m, o in zip(masked, open_, strict=True)):
        first = masked.index(True)
        reach = range(first, len(masked) if window is None else first + window)
        able = [n for n in reach if n < len(masked) and masked[n] and open_[n]]
        assert not able or any(not chosen[n] for n in able)


def test_a_strategy_takes_the_settings_it_names():
    config = RefineConfig(remasking="guided", noise_start=0.3, noise_clipping=0.5)
    guided = make_strategy(config)
    assert (guided.noise_start, guided.noise_clipping) == (0.3, 0.5)
    with pytest.raises(AttributeError):
        guided.noise_start = 0.5
