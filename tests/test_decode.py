"""Batched decoding gives what plain decoding gives, whatever is batched with what."""

import dataclasses
import random

import pytest
import torch

from lad.models.chat import encode_prompt
from lad.models.registry import load_backbone
from lad.training.decode import Decoder, generate
from lad.utils import InvalidInput


@pytest.fixture(scope="module")
def backbone():
    """The tiny model with an EOS that it says often, at very different times."""
    return dataclasses.replace(load_backbone("tiny"), eos_token_id=34)


def prompts_of_lengths(lengths, seed=0):
    choice = random.Random(seed)
    return [[choice.randrange(256) for _ in range(length)] for length in lengths]


def by_transformers(backbone, prompt, new_tokens):
    """Greedy, one prompt, by the library the models come from."""
    ids = torch.tensor([prompt])
    produced = backbone.model.generate(
        input_ids=ids,
        attention_mask=torch.ones_like(ids),
        max_new_tokens=new_tokens,
        do_sample=False,
        eos_token_id=backbone.eos_token_id,
        pad_token_id=backbone.eos_token_id,
    )[0, len(prompt) :].tolist()
    eos = backbone.eos_token_id
    return produced[: produced.index(eos)] if eos in produced else None


@pytest.fixture(scope="module")
def wanted(backbone):
    """Prompts of many lengths with their greedy answers; some end early, some late, some never."""
    prompts = prompts_of_lengths([1, 40, 3, 17, 2, 9, 33, 5, 25, 12, 7, 50] * 4)
    return prompts, [by_transformers(backbone, prompt, 70) for prompt in prompts]


@pytest.mark.parametrize(
    ("batch_size", "look_every"), [(48, 1), (48, 16), (48, 1000), (7, 5), (1, 3)]
)
def test_greedy_decoding_is_that_of_transformers(backbone, wanted, batch_size, look_every):
    prompts, answers = wanted
    ended = [len(answer) for answer in answers if answer is not None]
    # Without these the test would not see rows leave at different times.
    assert min(ended) < 10 < 40 < max(ended) and len(ended) < len(answers)
    decoder = Decoder(backbone, batch_size, context=120, look_every=look_every)
    assert decoder.generate(prompts, 70) == answers
    assert decoder.generate(prompts, 70) == answers  # nothing of the first call is left over


def test_rows_leave_the_batch_where_sizes_are_few(backbone, wanted, monkeypatch):
    """The batch sizes of a GPU, on a CPU: rows that only fill up are computed and never seen."""
    unended = iter([True, True])  # two of those are enough
    some = [pair for pair in zip(*wanted, strict=True) if pair[1] or next(unended, False)]
    prompts, answers = map(list, zip(*some, strict=True))
    monkeypatch.setattr("lad.training.decode.FEWEST", 2)
    decoder, sizes = Decoder(backbone, 64, context=120, look_every=4), []
    step = decoder._step
    monkeypatch.setattr(
        decoder, "_step", lambda rows, *rest: (sizes.append(rows), step(rows, *rest))
    )
    decoder.graphs = True
    monkeypatch.setattr(decoder, "_capture", lambda *key: Replay(decoder, key))
    assert decoder.generate(prompts, 70) == answers
    assert len(set(sizes)) > 3 and set(sizes) <= {64, 48, 32, 24, 16, 12, 8, 6, 4, 3, 2}
    assert sizes == sorted(sizes, reverse=True)
    assert len(decoder._captured) < 20  # not one a step


class Replay:
    """Stands in for a CUDA graph: the step it was captured from, run plainly."""

    def __init__(self, decoder, key):
        self.replay = lambda: decoder._step(*key)


def test_prompts_are_read_some_rows_at_a_time(backbone, wanted, monkeypatch):
    prompts, answers = wanted
    monkeypatch.setattr("lad.training.decode.PREFILL", 100)
    assert generate(backbone, prompts, 70) == answers


def test_sampling_depends_on_the_generator_and_not_on_the_batch(backbone):
    prompts = prompts_of_lengths([5, 1, 20, 9, 3, 14] * 10)

    def draw(seed, **how):
        generator = torch.Generator().manual_seed(seed)
        return generate(backbone, prompts, 60, 1.0, 50, generator, **how)

    drawn = draw(0, batch_size=60)
    assert drawn == draw(0, batch_size=7) == draw(0, batch_size=1)
    assert sum(ids is not None for ids in drawn) > 10
    assert drawn != draw(1) and drawn != generate(backbone, prompts, 60)


def test_nothing_is_drawn_from_the_global_generator_when_one_is_given(backbone):
    torch.manual_seed(3)
    before = torch.get_rng_state()
    generate(backbone, [[1]], 5, 1.0, 0, torch.Generator().manual_seed(0))
    generate(backbone, [[1]], 5)
    assert torch.equal(torch.get_rng_state(), before)
    generate(backbone, [[1]], 5, 1.0)
    assert not torch.equal(torch.get_rng_state(), before)


@pytest.mark.parametrize(("temperature", "top_k"), [(1.0, 0), (0.5, 0), (1.0, 4), (2.0, 10**6)])
def test_what_is_drawn_has_the_distribution_of_the_logits(backbone, temperature, top_k):
    n, prompt = 20_000, [7, 8]
    with torch.no_grad():
        logits = backbone.model(torch.tensor([prompt])).logits[0, -1] / temperature
    if 0 < top_k < len(logits):
        logits[logits < logits.topk(top_k).values[-1]] = -torch.inf
    expected = logits.softmax(-1)
    decoder = Decoder(backbone, n, context=3)
    decoder.generate([prompt] * n, 1, temperature, top_k, torch.Generator().manual_seed(0))
    drawn = torch.bincount(decoder.token, minlength=len(logits)) / n
    assert (drawn[expected == 0] == 0).all()
    # Four standard errors of a share, and a little for the rarest tokens.
    error = (expected * (1 - expected) / n).sqrt()
    assert ((drawn - expected).abs() <= 4 * error + 2 / n).all()


@pytest.mark.parametrize(
    ("how", "message"),
    [
        ({"prompts": [[1], []]}, "a prompt without tokens"),
        ({"new_tokens": 0}, "new_tokens = 0: expected at least 1"),
        ({"temperature": -0.1}, "temperature = -0.1: expected at least 0"),
        ({"temperature": float("nan")}, "temperature = nan"),
        ({"top_k": -1}, "top_k = -1"),
        ({"prompts": [[1] * 20]}, "20 prompt tokens and 8 new ones: expected at most 24"),
    ],
)
def test_what_cannot_be_decoded_is_named(backbone, how, message):
    decoder = Decoder(backbone, 2, context=24)
    with pytest.raises(InvalidInput, match=message):
        decoder.generate(**{"prompts": [[1]], "new_tokens": 8} | how)


@pytest.mark.parametrize(
    ("how", "message"),
    [
        ({"batch_size": 0}, "batch_size = 0"),
        ({"context": 513}, "context = 513: expected at most 512"),
        ({"look_every": 0}, "look_every = 0"),
        ({"graphs": True}, "graphs = True on cpu"),
    ],
)
def test_what_cannot_be_made_is_named(backbone, how, message):
    with pytest.raises(InvalidInput, match=message):
        Decoder(backbone, **how)


def test_no_prompts_give_no_answers(backbone):
    assert generate(backbone, [], 5) == []


def agreement(one, other):
    return sum(a == b for a, b in zip(one, other, strict=True)) / len(one)


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA GPU")
def test_captured_steps_do_what_plain_ones_do(wanted):
    prompts, answers = wanted
    backbone = load_backbone("tiny", "cuda", torch.float32)
    backbone = dataclasses.replace(backbone, eos_token_id=34)
    captured = Decoder(backbone, 128, context=120, look_every=4)
    plain = Decoder(backbone, 128, context=120, graphs=False)
    generator = torch.Generator("cuda")
    for settings in ((0.0, 0), (1.0, 50), (0.7, 0), (0.0, 0)):
        one, other = (
            decoder.generate(prompts * 2, 70, *settings, generator.manual_seed(0))
            for decoder in (captured, plain)
        )
        assert agreement(one, other) > 0.9  # sums of another order may turn a close decision
    assert agreement(one, answers * 2) > 0.9
    assert {key[0] for key in captured._captured} == {96, 64}


@pytest.mark.real
def test_the_real_backbone_answers_as_with_transformers():
    backbone = load_backbone("smollm2-135m")
    texts = ["What is the capital of France?", "Hi", "Name three fruits."]
    prompts = [encode_prompt(backbone.tokenizer, text) for text in texts]
    answers = generate(backbone, prompts, 40)
    assert answers == [by_transformers(backbone, prompt, 40) for prompt in prompts]
    assert backbone.tokenizer.decode(answers[0]) == "The capital of France is Paris."
