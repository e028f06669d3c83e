"""Left-to-right answers: those of one prompt at a time, whatever is batched with what."""

import dataclasses
import random

import pytest
import torch

from lad.models.chat import encode_prompt
from lad.models.generate import generate
from lad.models.registry import load_backbone
from lad.utils import InvalidInput


@pytest.fixture(scope="module")
def backbone():
    """The tiny model with an EOS that it says often, at very different times."""
    return dataclasses.replace(load_backbone("tiny"), eos_token_id=34)


def prompts_of_lengths(lengths, seed=0):
    choice = random.Random(seed)
    return [[choice.randrange(256) for _ in range(length)] for length in lengths]


def continued(backbone, prompts, new_tokens, *args, **kwargs):
    return generate(backbone.model, backbone.eos_token_id, prompts, new_tokens, *args, **kwargs)


def by_argmax(backbone, prompt, new_tokens):
    """Greedy, one prompt, without a cache."""
    answer = []
    while len(answer) < new_tokens and answer[-1:] != [backbone.eos_token_id]:
        with torch.no_grad():
            logits = backbone.model(torch.tensor([[*prompt, *answer]])).logits[0, -1]
        answer.append(int(logits.argmax()))
    return answer


@pytest.fixture(scope="module")
def expected(backbone):
    """Prompts of many lengths with their greedy answers; some end early, some late, some never."""
    prompts = prompts_of_lengths([1, 40, 3, 17, 2, 9, 33, 5, 25, 12, 7, 50] * 2)
    return prompts, [by_argmax(backbone, prompt, 70) for prompt in prompts]


@pytest.mark.parametrize("static_cache", [False, True])
@pytest.mark.parametrize("batch_size", [24, 7, 1])
def test_greedy_answers_are_the_likeliest_tokens(backbone, expected, batch_size, static_cache):
    prompts, answers = expected
    ended = [len(answer) for answer in answers if answer[-1] == backbone.eos_token_id]
    assert min(ended) < 10 < 40 < max(ended) and len(ended) < len(answers)
    given = {"batch_size": batch_size, "static_cache": static_cache}
    assert continued(backbone, prompts, 70, **given) == answers
    assert continued(backbone, [], 70) == []


def test_an_answer_ends_where_the_longest_sequence_does(backbone, expected):
    """A short prompt has room that a long one in its batch does not leave."""
    prompts, answers = expected
    short = continued(backbone, prompts, 70, max_length=60)
    assert short == [a[: 60 - len(p)] for p, a in zip(prompts, answers, strict=True)]
    limit = backbone.model.config.max_position_embeddings
    assert len(generate(backbone.model, 999, [[1] * (limit - 2)], 70)[0]) == 2


def test_sampling_depends_on_the_seed_and_not_on_the_batch(backbone):
    prompts = prompts_of_lengths([5, 1, 20, 9, 3, 14] * 5)
    torch.manual_seed(3)
    before = torch.get_rng_state()
    drawn = continued(backbone, prompts, 60, 1.0, 50, seed=0, batch_size=30)
    for batch_size in (7, 1):
        given = {"seed": 0, "batch_size": batch_size, "static_cache": batch_size == 7}
        assert drawn == continued(backbone, prompts, 60, 1.0, 50, **given)
    assert drawn != continued(backbone, prompts, 60, 1.0, 50, seed=1)
    assert drawn != continued(backbone, prompts, 60)
    assert sum(ids[-1] == backbone.eos_token_id for ids in drawn) > 5
    assert torch.equal(torch.get_rng_state(), before)


@pytest.mark.parametrize(("temperature", "top_k"), [(1.0, 0), (0.5, 0), (1.0, 4), (2.0, 10**6)])
def test_what_is_drawn_has_the_distribution_of_the_logits(backbone, temperature, top_k):
    n, prompt = 20_000, [7, 8]
    with torch.no_grad():
        logits = backbone.model(torch.tensor([prompt])).logits[0, -1] / temperature
    if 0 < top_k < len(logits):
        logits[logits < logits.topk(top_k).values[-1]] = -torch.inf
    expected = logits.softmax(-1)
    drawn = continued(backbone, [prompt] * n, 1, temperature, top_k, batch_size=n)
    shares = torch.bincount(torch.tensor(drawn)[:, 0], minlength=len(logits)) / n
    assert (shares[expected == 0] == 0).all()
    # Four standard errors of a share, and a little for the rarest tokens.
    error = (expected * (1 - expected) / n).sqrt()
    assert ((shares - expected).abs() <= 4 * error + 2 / n).all()


def test_what_cannot_be_generated_is_named(backbone):
    with pytest.raises(InvalidInput, match="a prompt of 0 tokens: expected at least 1"):
        continued(backbone, [[1], []], 5)
    with pytest.raises(InvalidInput, match=r"a prompt of 20 tokens: .* fewer than 20"):
        continued(backbone, [[1] * 20], 5, max_length=20)


@pytest.mark.real
def test_the_real_backbone_answers():
    backbone = load_backbone("smollm2-135m")
    prompts = [encode_prompt(backbone.tokenizer, "What is the capital of France?")]
    [answer] = generate(backbone.model, backbone.eos_token_id, prompts, 40)
    assert backbone.tokenizer.decode(answer[:-1]) == "The capital of France is Paris."
    assert answer[-1] == backbone.eos_token_id
