"""Likelihoods and answers of constructed models, against plain sums over masks."""

import itertools
import math

import numpy as np
import pytest
import torch
from scripted import some_items

from lad.diffusion.config import RefineConfig
from lad.diffusion.denoiser import Denoiser
from lad.evaluation.benchmark import ScoredModel, refine_traces
from lad.evaluation.likelihood import (
    EncodedQuestion,
    encode_questions,
    loglikelihood,
    sample_masks,
)
from lad.evaluation.tasks import Item, format_question
from lad.models.registry import load_backbone
from lad.utils import InvalidInput, NumericalError

ITEM = Item("arc-easy", "a", "Which is wet?", ("Sand", "Water", "Glass"), 1)
QUIET = RefineConfig(iterations=4, remasking="none")
ASKED = [format_question(item) for item in some_items(7)]


@pytest.fixture(scope="module")
def backbone():
    return load_backbone("tiny")  # a token is a byte


def encode(model, questions, target="line") -> list[EncodedQuestion]:
    return encode_questions(model.tokenizer, questions, target, 259, model.eos_token_id)


# -- masks -----------------------------------------------------------------------------------------


def test_masks_are_even_in_number_and_place_and_shared_between_options():
    (long, weights), (short, _) = sample_masks([8, 3], 800, 0, "key")
    counts = long.sum(axis=1)
    assert np.bincount(counts, minlength=9)[1:].tolist() == [100] * 8  # drawn in equal steps
    assert (weights == 8 / counts).all()
    assert abs(long.mean(axis=0) - 4.5 / 8).max() < 0.06
    # The same random numbers: where much of one option is masked, much of the other is.
    assert np.corrcoef(counts, short.sum(axis=1))[0, 1] > 0.9
    again = sample_masks([8, 3], 800, 0, "key")
    assert (again[0][0] == long).all()
    assert (sample_masks([8], 800, 0, "other")[0][0] != long).any()
    assert (sample_masks([8], 800, 1, "key")[0][0] != long).any()


# -- a denoiser's likelihood -----------------------------------------------------------------------


def log_p(denoiser, question: EncodedQuestion, tokens: list[int]) -> torch.Tensor:
    """`(a, v)` log-probabilities of one input, as a plain reader would compute them."""
    answer = torch.tensor([tokens + question.suffix])
    logits = denoiser.logits(torch.tensor([question.prompt]), answer)[0].detach()
    logits[:, denoiser.mask_token_id] = -math.inf
    return logits.log_softmax(dim=-1)


def mean_over_masks(denoiser, question: EncodedQuestion, option: list[int]) -> float:
    length, by_count = len(option), []
    for count in range(1, length + 1):
        values = []
        for places in itertools.combinations(range(length), count):
            tokens = [denoiser.mask_token_id if i in places else t for i, t in enumerate(option)]
            found = log_p(denoiser, question, tokens)
            values.append(length / count * sum(float(found[i, option[i]]) for i in places))
        by_count.append(sum(values) / len(values))
    return sum(by_count) / length


def left_to_right(denoiser, question: EncodedQuestion, option: list[int]) -> float:
    total = 0.0
    for place, token in enumerate(option):
        tokens = option[:place] + [denoiser.mask_token_id] * (len(option) - place)
        total += float(log_p(denoiser, question, tokens)[place, token])
    return total


def test_a_score_is_the_mean_over_all_masks_or_the_sum_from_left_to_right(any_denoiser):
    questions = [
        EncodedQuestion("one", [5, 6, 7, 8], [[10, 11, 12], [13, 14]], [any_denoiser.eos_token_id]),
        EncodedQuestion("two", [9], [[15]], []),
    ]
    for samples, expected in ((1000, mean_over_masks), (0, left_to_right)):
        for index, scores in loglikelihood(any_denoiser, questions, samples):
            for score, option in zip(scores, questions[index].options, strict=True):
                exact = expected(any_denoiser, questions[index], option)
                assert abs(score.log_likelihood - exact) <= 4 * score.standard_error + 1e-4
                assert (score.standard_error > 0) == (len(option) > 1 and samples > 0)
                assert score.samples.shape == (max(samples, 1),)


def test_a_question_in_a_batch_scores_as_it_does_alone(denoiser, monkeypatch):
    questions = encode(denoiser, ASKED)
    together = dict(loglikelihood(denoiser, questions, samples=4))
    assert sorted(together) == list(range(7))
    monkeypatch.setattr("lad.evaluation.likelihood.POSITIONS_AT_ONCE", {"cpu": 1})
    for index, scores in loglikelihood(denoiser, questions, samples=4):
        for one, other in zip(scores, together[index], strict=True):
            assert one.samples == pytest.approx(other.samples, abs=1e-4)
            assert one.greedy == other.greedy


def test_a_letter_is_one_token_and_one_mask(denoiser):
    [question] = encode(denoiser, [format_question(ITEM, "letter")], "letter")
    assert question.options == [denoiser.tokenizer(x)["input_ids"] for x in "ABC"]
    assert question.suffix == [259] * len("B: Water")
    [(_, scores)] = loglikelihood(denoiser, [question], samples=9)
    assert all(score.standard_error == 0 for score in scores)
    assert 0 < sum(math.exp(score.log_likelihood) for score in scores) < 1


def test_what_cannot_be_scored(denoiser, monkeypatch):
    with pytest.raises(InvalidInput, match=r"x has 603 tokens .* expected at most 512"):
        list(loglikelihood(denoiser, [EncodedQuestion("x", [5] * 600, [[7, 8]], [1])]))
    with pytest.raises(InvalidInput, match="samples = -1"):
        list(loglikelihood(denoiser, [EncodedQuestion("x", [5], [[7]])], samples=-1))
    nothing = torch.full((1, 260), math.nan)
    monkeypatch.setattr(
        denoiser.causal_lm.lm_head, "forward", lambda x: nothing.expand(*x.shape[:-1], -1).clone()
    )
    for model in (denoiser, denoiser.causal_lm):
        with pytest.raises(NumericalError, match="NaN or infinite"):
            list(loglikelihood(model, [EncodedQuestion("x", [5, 6], [[7, 8], [9]])]))


def test_logits_that_choose_an_option_are_not_rounded():
    model = load_backbone("tiny", "cpu", torch.bfloat16)
    made, seen = Denoiser.create(model), []
    head = model.model.lm_head
    head.register_forward_hook(lambda _, states, logits: seen.append((states[0], logits.clone())))
    weight = head.weight
    list(loglikelihood(made, encode(made, ASKED), samples=2))
    list(loglikelihood(model.model, encode(made, ASKED)))
    for scored in (ScoredModel(made, QUIET), ScoredModel(model)):
        list(scored.generate(ASKED))
    assert len(seen) > 10 and {logits.dtype for _, logits in seen} == {torch.float32}
    states, logits = seen[0]
    assert torch.allclose(logits, states.float() @ weight.float().T, atol=1e-5)
    assert not torch.equal(logits, logits.bfloat16().float())  # finer than bfloat16 can tell
    # Afterwards the model is as it was, its head again tied to the embeddings.
    assert head.weight is weight is model.model.get_input_embeddings().weight
    assert made.logits(torch.tensor([[5]]), torch.tensor([[6]])).dtype == torch.bfloat16


# -- a backbone's likelihood -----------------------------------------------------------------------


def test_the_backbones_likelihood_is_that_of_a_plain_pass(backbone):
    questions = encode(backbone, ASKED)
    questions.append(EncodedQuestion("one token", [5], [[7, 8], [9]]))
    for index, scores in loglikelihood(backbone.model, questions):
        prompt = questions[index].prompt
        for score, option in zip(scores, questions[index].options, strict=True):
            logits = backbone.model(torch.tensor([prompt + option])).logits[0].detach()
            log_p = logits[len(prompt) - 1 : -1].log_softmax(dim=-1)
            expected = sum(float(log_p[i, token]) for i, token in enumerate(option))
            assert score.log_likelihood == pytest.approx(expected, abs=1e-4)
            assert score.standard_error == 0


# -- answers ---------------------------------------------------------------------------------------


def test_an_answer_in_a_batch_is_that_alone(denoiser, backbone):
    together = dict(refine_traces(denoiser, ASKED, QUIET, batch_size=3))
    for index, question in enumerate(ASKED):
        alone = dict(refine_traces(denoiser, [question], QUIET, 1))[0]
        assert (alone.answer, alone.nfe) == (together[index].answer, together[index].nfe)
        assert alone.prompt == question.prompt
        longest = max(len(line) for line in question.lines) + 1  # a token is a byte
        assert alone.drafts.shape[1] == -(-longest // 8) * 8
    found = list(ScoredModel(backbone, batch_size=2).generate(ASKED))
    assert sorted(index for index, *_ in found) == list(range(7))
    assert all(0 < forwards <= 8 for _, _, forwards in found)  # the same region


def test_a_question_that_does_not_fit_is_named(denoiser):
    long = Item("arc-easy", "long", "why " * 200, ("x", "y"), 0)
    with pytest.raises(InvalidInput, match=r"arc-easy/long/0 has .* expected at most 512"):
        list(refine_traces(denoiser, [format_question(long)], QUIET, 1))
