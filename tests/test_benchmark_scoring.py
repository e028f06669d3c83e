"""Likelihoods and answers of models that are known: constructed ones, and naive sums over masks."""

import itertools
import math

import numpy as np
import pytest
import torch
from scripted import line_of, oracle, scripted, some_items

from lad.diffusion.config import RefineConfig
from lad.evaluation import metrics
from lad.evaluation.benchmark import Item
from lad.evaluation.generation import parse_letter, refine_answers, regions, write_answers
from lad.evaluation.likelihood import Ask, ask, exact_scores, masked_scores
from lad.evaluation.masks import sample_masks
from lad.evaluation.questions import TARGETS, put
from lad.models.chat import encode_prompts
from lad.models.registry import load_backbone
from lad.utils import InvalidInput, NumericalError

ITEM = Item("arc-easy", "a", "Which is wet?", ("Sand", "Water", "Glass"), 1)
QUIET = RefineConfig(iterations=4, remasking="none")


# -- a question as it is put -----------------------------------------------------------------------


def test_a_target_says_what_is_scored():
    line, letter, text = (put(ITEM, target) for target in TARGETS)
    assert line.answers == line.lines == ("A: Sand", "B: Water", "C: Glass")
    assert letter.answers == ("A", "B", "C") and letter.prompt == line.prompt
    assert text.answers == ("Sand", "Water", "Glass") and text.prompt == "Which is wet?"
    assert {q.gold for q in (line, letter, text)} == {1}


def test_a_rotation_moves_the_options_and_the_answer_with_them():
    turned = put(ITEM, "line", 1)
    assert turned.lines == ("A: Water", "B: Glass", "C: Sand") and turned.gold == 0
    assert put(ITEM, "line", 3).lines == put(ITEM).lines
    assert len({put(ITEM, "line", r).key for r in range(3)}) == 3


def test_what_cannot_be_put():
    empty = Item("arc-easy", "e", "Which?", ("x", ""), 0)
    assert put(empty).lines == ("A: x", "B: ")
    with pytest.raises(InvalidInput, match="arc-easy e: an option is empty"):
        put(empty, "text")
    with pytest.raises(InvalidInput, match="target = 'word': expected one of line, letter, text"):
        put(ITEM, "word")


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


def test_one_token_has_one_mask():
    ((masks, weights),) = sample_masks([1], 5, 0, "key")
    assert masks.all() and (weights == 1).all()


# -- masked log-likelihood -------------------------------------------------------------------------


def expected(denoiser, own: Ask, option: list[int]) -> float:
    """The mean over all masks of one option, as a plain reader would compute it."""
    length, by_count = len(option), []
    for count in range(1, length + 1):
        values = []
        for places in itertools.combinations(range(length), count):
            tokens = [denoiser.mask_token_id if i in places else t for i, t in enumerate(option)]
            answer = torch.tensor([tokens + own.behind])
            logits = denoiser.logits(torch.tensor([own.prompt]), answer)[0].detach()
            logits[:, denoiser.mask_token_id] = -math.inf
            logs = logits.log_softmax(dim=-1)
            values.append(length / count * sum(float(logs[i, option[i]]) for i in places))
        by_count.append(sum(values) / len(values))
    return sum(by_count) / length


def test_the_estimate_is_the_mean_over_all_masks(any_denoiser):
    eos = any_denoiser.eos_token_id
    asks = [Ask("one", [5, 6, 7, 8], [[10, 11, 12], [13, 14]], [eos]), Ask("two", [9], [[15]], [])]
    for index, scores in masked_scores(any_denoiser, asks, samples=3000):
        for score, option in zip(scores, asks[index].options, strict=True):
            exact = expected(any_denoiser, asks[index], option)
            assert abs(score.log_likelihood - exact) <= 4 * score.standard_error + 1e-4
            assert (score.standard_error > 0) == (len(option) > 1)
            assert score.samples.shape == (3000,)


def test_without_samples_an_option_is_read_from_left_to_right(any_denoiser):
    eos, mask = any_denoiser.eos_token_id, any_denoiser.mask_token_id
    asks = [Ask("one", [5, 6, 7, 8], [[10, 11, 12], [13, 14]], [eos]), Ask("two", [9], [[15]], [])]
    for index, scores in masked_scores(any_denoiser, asks, samples=0):
        own = asks[index]
        for score, option in zip(scores, own.options, strict=True):
            total = 0.0
            for place, token in enumerate(option):
                tokens = option[:place] + [mask] * (len(option) - place) + own.behind
                logits = any_denoiser.logits(torch.tensor([own.prompt]), torch.tensor([tokens]))
                logits = logits[0, place].detach()
                logits[mask] = -math.inf
                total += float(logits.log_softmax(dim=-1)[token])
            assert score.log_likelihood == pytest.approx(total, abs=1e-4)
            assert score.standard_error == 0 and score.samples.shape == (1,)
    [(_, [one])] = masked_scores(any_denoiser, asks[1:], samples=0)
    [(_, [other])] = masked_scores(any_denoiser, asks[1:], samples=3)
    assert one.log_likelihood == pytest.approx(other.log_likelihood)  # one token, one mask


def test_a_question_scores_in_company_as_it_does_alone(denoiser):
    questions = [put(item) for item in some_items(7)]
    asks = ask(denoiser.tokenizer, questions, "line", 259, denoiser.eos_token_id)
    together = dict(masked_scores(denoiser, asks, samples=4))
    assert sorted(together) == list(range(7))
    for index, own in enumerate(asks):
        [(_, alone)] = masked_scores(denoiser, [own], samples=4)
        for one, other in zip(alone, together[index], strict=True):
            assert one.samples == pytest.approx(other.samples, abs=1e-4)
            assert one.greedy == other.greedy


def test_small_batches_give_the_same(denoiser, monkeypatch):
    questions = [put(item) for item in some_items(5)]
    asks = ask(denoiser.tokenizer, questions, "line", 259, denoiser.eos_token_id)
    whole = dict(masked_scores(denoiser, asks, samples=4))
    exact = dict(exact_scores(denoiser.causal_lm, asks))
    monkeypatch.setattr("lad.evaluation.likelihood.BYTES_AT_ONCE", {"cpu": 1})
    small = dict(masked_scores(denoiser, asks, samples=4))
    for index in whole:
        for one, other in zip(whole[index], small[index], strict=True):
            assert one.log_likelihood == pytest.approx(other.log_likelihood, abs=1e-4)
    for index, scores in exact_scores(denoiser.causal_lm, asks):
        for one, other in zip(scores, exact[index], strict=True):
            assert one.log_likelihood == pytest.approx(other.log_likelihood, abs=1e-4)


def test_whoever_knows_the_answer_prefers_it():
    items = some_items(12)
    knowing = scripted(oracle(items))
    for target in TARGETS:
        questions = [put(item, target) for item in items]
        asks = ask(knowing.tokenizer, questions, target, 259, knowing.eos_token_id)
        for index, scores in masked_scores(knowing, asks, samples=8):
            best = max(range(len(scores)), key=lambda n: scores[n].log_likelihood)
            assert best == questions[index].gold
            assert scores[best].greedy
            assert scores[best].log_likelihood == pytest.approx(0, abs=0.1)


def test_whoever_knows_nothing_pays_the_same_for_every_token():
    blank = scripted(lambda text: None)
    questions = [put(item) for item in some_items(4)]
    asks = ask(blank.tokenizer, questions, "line", 259, blank.eos_token_id)
    one = -math.log(blank.vocabulary_size - 1)  # MASK is no answer
    for index, scores in masked_scores(blank, asks, samples=6):
        for score, option in zip(scores, asks[index].options, strict=True):
            assert score.log_likelihood == pytest.approx(len(option) * one)
            assert score.standard_error == pytest.approx(0, abs=1e-6)


def test_a_letter_is_one_pass_without_chance(denoiser):
    question = put(ITEM, "letter")
    [own] = ask(denoiser.tokenizer, [question], "letter", 259, denoiser.eos_token_id)
    letters = [ids for text in "ABC" for ids in denoiser.tokenizer(text)["input_ids"]]
    assert own.options == [[letter] for letter in letters]
    assert own.behind == [259] * len("B: Water")
    [(_, scores)] = masked_scores(denoiser, [own], samples=9)
    assert all(score.standard_error == 0 for score in scores)
    total = sum(math.exp(score.log_likelihood) for score in scores)
    assert 0 < total < 1


def test_numbers_that_are_none(denoiser, monkeypatch):
    asks = [Ask("x", [5, 6], [[7, 8], [9]], [])]
    nothing = torch.full((1, 260), math.nan)
    monkeypatch.setattr(
        denoiser.causal_lm.lm_head, "forward", lambda x: nothing.expand(*x.shape[:-1], -1).clone()
    )
    with pytest.raises(NumericalError, match="NaN or infinite"):
        list(masked_scores(denoiser, asks))
    with pytest.raises(NumericalError, match="NaN or infinite"):
        list(exact_scores(denoiser.causal_lm, asks))


def test_what_is_too_long_or_too_few(denoiser):
    with pytest.raises(InvalidInput, match=r"x has 603 tokens .* expected at most 512"):
        list(masked_scores(denoiser, [Ask("x", [5] * 600, [[7, 8]], [1])]))
    with pytest.raises(InvalidInput, match="samples = -1"):
        list(masked_scores(denoiser, [Ask("x", [5], [[7]], [])], samples=-1))


# -- left to right ---------------------------------------------------------------------------------


def test_the_backbones_likelihood_is_that_of_a_plain_pass():
    backbone = load_backbone("tiny")
    questions = [put(item, "line") for item in some_items(6)]
    asks = ask(backbone.tokenizer, questions, "line", 259, backbone.eos_token_id)
    asks.append(Ask("one token", [5], [[7, 8], [9]], []))
    for index, scores in exact_scores(backbone.model, asks):
        own = asks[index]
        prompts = [own.prompt] * len(own.options)
        losses = metrics.answer_losses(backbone.model, prompts, own.options)
        for score, loss in zip(scores, losses, strict=True):
            assert score.log_likelihood == pytest.approx(-loss.sum(), abs=1e-4)
            assert score.standard_error == 0


def test_greedy_says_whether_the_backbone_would_have_written_it():
    backbone = load_backbone("tiny")
    question = put(ITEM)
    [prompt] = encode_prompts(backbone.tokenizer, [question.prompt])
    from lad.evaluation.answers import greedy_answers

    own = greedy_answers(backbone.model, [prompt], 6, eos_token_id=-1).tokens[0]
    other = [*own[:-1], own[-1] ^ 1]
    [(_, scores)] = exact_scores(backbone.model, [Ask("x", prompt, [own, other], [])])
    assert [score.greedy for score in scores] == [True, False]


# -- in words --------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "place"),
    [
        ("B: Water", 1),
        ("B", 1),
        (" b. Water", 1),
        ("(C) Glass", 2),
        ("**A:** Sand", 0),
        ("A\nSand", 0),
        ("B - Water", 1),
        ("D: Gold", None),  # there are three
        ("A cat", None),
        ("As it is", None),
        ("The answer is B", None),
        ("Water", None),
        ("1: Sand", None),
        ("", None),
    ],
)
def test_the_leading_letter(text, place):
    assert parse_letter(text, 3) == place


def test_a_region_holds_the_longest_line_and_its_end():
    backbone = load_backbone("tiny")  # a token is a byte
    wide = Item("arc-easy", "w", "Which?", ("x" * 20, "y"), 0)
    questions = [put(ITEM), put(wide)]
    assert regions(backbone.tokenizer, questions, 64) == [16, 24]  # 8 + 1 and 23 + 1
    assert regions(backbone.tokenizer, questions, 20) == [16, 20]
    assert regions(backbone.tokenizer, [], 20) == []


def test_answers_come_from_refinement():
    items = some_items(9)
    questions = [put(item) for item in items]
    for say, right in ((oracle(items), True), (line_of("B"), False)):
        found = dict(refine_answers(scripted(say), questions, QUIET, batch_size=4))
        assert sorted(found) == list(range(9))
        for index, answer in found.items():
            expected = questions[index].lines[questions[index].gold if right else 1]
            assert answer.text == expected
            assert 1 <= answer.forwards <= 4


def test_answers_in_company_are_those_alone(denoiser):
    questions = [put(item) for item in some_items(5)]
    together = dict(refine_answers(denoiser, questions, QUIET, batch_size=3))
    for index, question in enumerate(questions):
        assert dict(refine_answers(denoiser, [question], QUIET, 1))[0] == together[index]


def test_the_backbone_writes_into_the_same_region():
    backbone = load_backbone("tiny")
    questions = [put(item) for item in some_items(5)]
    eos = backbone.eos_token_id
    found = dict(write_answers(backbone.model, backbone.tokenizer, questions, 64, eos, 2))
    most = regions(backbone.tokenizer, questions, 64)
    assert sorted(found) == list(range(5))
    assert all(0 < found[index].forwards <= most[index] for index in found)


def test_a_question_without_room_is_named(denoiser):
    long = Item("arc-easy", "long", "why " * 200, ("x", "y"), 0)
    with pytest.raises(InvalidInput, match=r"arc-easy/long/0 has .* expected at most 512"):
        list(refine_answers(denoiser, [put(long)], QUIET, 1))
    with pytest.raises(InvalidInput, match="batch_size = 0"):
        list(refine_answers(denoiser, [put(ITEM)], QUIET, 0))
