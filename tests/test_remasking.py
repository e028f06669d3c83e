"""What each strategy masks, on drafts made up for the purpose."""

import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from lad.diffusion import reference, schedule
from lad.diffusion.config import RefineConfig
from lad.diffusion.remasking import STRATEGIES, StepView, repeated

EOS = 0


def view(
    confidence,
    *,
    is_masked=None,
    maskable=None,
    tokens=None,
    again=None,
    entropy=None,
    iteration=0,
    sharpness=1.0,
) -> StepView:
    """A batch of one; by default a first draft of different words, free to be masked."""
    a = len(confidence)
    tokens = torch.tensor([tokens if tokens is not None else range(1, a + 1)])
    every = torch.ones(1, a, dtype=torch.bool)
    return StepView(
        tokens=tokens,
        confidence=torch.tensor([confidence]),
        entropy=torch.tensor([entropy or [1.0 - c for c in confidence]]),
        is_masked=every if is_masked is None else torch.tensor([is_masked], dtype=torch.bool),
        maskable=every if maskable is None else torch.tensor([maskable], dtype=torch.bool),
        repeated=~every if again is None else torch.tensor([again], dtype=torch.bool),
        is_eos=tokens == EOS,
        region=torch.tensor([a]),
        noise_level=torch.tensor(
            schedule.noise_level(iteration, 10, sharpness), dtype=torch.float64
        ),
        uniforms=torch.rand(1, 2, a, generator=torch.Generator().manual_seed(0)),
    )


def choose(seen: StepView, **settings) -> list[int]:
    """0 and 1 for every position: masked before the next iteration or not."""
    config = RefineConfig(**settings)
    return STRATEGIES[config.remasking].remask(seen, config)[0].long().tolist()


def threshold(seen: StepView, limit=0.9, **settings) -> list[int]:
    return choose(seen, remasking="threshold", confidence_threshold=limit, **settings)


def test_threshold_shows_confident_tokens_and_the_leftmost_mask():
    assert threshold(view([0.95, 0.5, 0.9, 0.2])) == [0, 1, 0, 1]
    assert threshold(view([0.95, 0.5, 0.9, 0.2]), 0.5) == [0, 0, 0, 1]
    assert threshold(view([0.1, 0.2, 0.95, 0.3])) == [0, 1, 0, 1]
    assert threshold(view([0.95, 0.95, 0.1, 0.2], is_masked=[0, 0, 1, 1])) == [0, 0, 0, 1]
    # One that repeats its neighbour waits while there is another to show.
    assert threshold(view([0.1, 0.2, 0.3], again=[1, 0, 0])) == [1, 1, 0]


def test_the_window_begins_at_the_leftmost_mask():
    confident = [0.99] * 6
    assert threshold(view(confident), window=2) == [0, 0, 1, 1, 1, 1]
    seen = view(confident, is_masked=[0, 0, 1, 0, 1, 1])
    assert threshold(seen, window=2) == [0, 0, 0, 0, 1, 1]


def test_next_to_a_gap_a_token_needs_more_confidence():
    isolated = {"isolated_threshold": 0.8}
    assert threshold(view([0.6, 0.6, 0.6, 0.6]), 0.5, **isolated) == [0, 1, 1, 1]
    assert threshold(view([0.6, 0.9, 0.6, 0.6]), 0.5, **isolated) == [0, 0, 0, 1]
    # A visible neighbour is enough; one that waits because it repeats is not.
    seen = {"is_masked": [0, 1, 1], "maskable": [0, 1, 1]}
    assert threshold(view([0.6] * 3, **seen), 0.5, **isolated) == [0, 0, 1]
    assert threshold(view([0.9, 0.6], again=[1, 0]), 0.5, **isolated) == [1, 0]
    assert threshold(view([0.4, 0.9, 0.6, 0.3]), 0.5, **isolated) == [0, 0, 0, 1]


def bounded(entropies, bound, **seen) -> list[int]:
    settings = {"remasking": "entropy", "entropy_bound": bound}
    return choose(view([0.5] * len(entropies), entropy=entropies, **seen), **settings)


def test_what_is_shown_together_has_entropies_that_fit_under_the_bound():
    """All but the largest of them sum to at most the bound."""
    assert bounded([2.0, 0.25, 1.0, 0.5], 0.0) == [1, 0, 1, 1]
    assert bounded([2.0, 0.25, 1.0, 0.5], 0.25) == [1, 0, 1, 0]
    assert bounded([2.0, 0.25, 1.0, 0.5], 0.75) == [1, 0, 0, 0]
    assert bounded([2.0, 0.25, 1.0, 0.5], 1.75) == [0, 0, 0, 0]
    # What is visible is not counted and stays; behind the draft's end nothing is shown yet.
    assert bounded([0.0, 0.25, 1.0, 0.5], 0.0, is_masked=[0, 1, 1, 1]) == [0, 0, 1, 1]
    assert bounded([2.0, 1.0, 0.0, 0.0], 0.0, tokens=[1, EOS, EOS, EOS]) == [1, 0, 1, 1]
    # One that repeats its neighbour waits while there is another to show.
    assert bounded([0.25, 0.5, 2.0], 9.0, again=[1, 0, 0]) == [1, 0, 0]
    assert bounded([0.25, 0.5], 9.0, again=[1, 1]) == [0, 1]


def test_editing_masks_nothing_that_is_visible():
    seen = view([0.95, 0.3, 0.95, 0.2], is_masked=[0, 0, 1, 1], again=[0, 1, 0, 0])
    assert choose(seen, remasking="editing") == [0, 0, 0, 1]


def test_guidance_masks_doubt_and_shares_the_number_with_the_tail():
    doubtful = [0.999] * 10 + [0.001] * 10
    settings = {"remasking": "guided", "noise_start": 0.5, "noise_clipping": 0.01}
    assert sum(choose(view(doubtful, tokens=[1, 2] * 10), **settings)[10:]) >= 8
    tail = view([0.5] * 15 + [1.0] * 5, tokens=[1, 2, 3] * 5 + [EOS] * 5)
    chosen = choose(tail, **settings)
    assert (sum(chosen[:15]), sum(chosen[15:])) == (7, 3)  # 10 in proportion, half rounded up
    # A larger clipping guides less.
    seen = view([0.9999] * 20 + [0.2] * 20)
    sharp, blunt = (choose(seen, **settings | {"noise_clipping": c})[20:] for c in (0.01, 1.0))
    assert sum(sharp) > sum(blunt)


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


row = st.tuples(st.integers(0, 3), st.sampled_from([0.1, 0.5, 0.9]), st.booleans())


@settings(max_examples=200, deadline=None)
@given(st.lists(row, min_size=1, max_size=12))
def test_repeats_equal_the_plain_ones(rows):
    draft, confidence, may = (list(column) for column in zip(*rows, strict=True))
    expected = reference.repeated(draft, confidence, EOS, may)
    assert again(draft, confidence, may) == [int(x) for x in expected]
