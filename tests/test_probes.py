"""Probes: what attention lets through, how large an update is, what stands behind a MASK."""

import numpy as np
import pytest
import torch
from conftest import tiny_denoiser

from lad.diffusion.config import DenoiserConfig
from lad.diffusion.denoiser import Denoiser
from lad.evaluation.probes import (
    KINDS_OF_ATTENTION,
    effects,
    fill_mask,
    next_token_accuracy,
    update_sizes,
    visible,
)
from lad.models.registry import load_backbone
from lad.training import Pair
from lad.utils import InvalidInput

TOKENS = torch.arange(40, 52)
P, T = 5, 12


def test_causal_attention_carries_nothing_to_the_left(denoiser):
    moves = effects(denoiser, TOKENS, "causal", P)
    assert moves.shape == (T, T)
    assert (moves[np.tril_indices(T, -1)] == 0).all()
    assert (moves[np.triu_indices(T)] > 0).all()


def test_bidirectional_attention_carries_the_last_token_to_position_0(denoiser):
    assert (effects(denoiser, TOKENS, "bidirectional", P) > 0).all()


@pytest.mark.parametrize("kind", ["prompt-causal", "mask-blind"])
@pytest.mark.parametrize("target, kept", [("next", P - 1), ("same", P)])
def test_the_answer_does_not_move_the_prompt(denoiser, kind, target, kept):
    moves = effects(denoiser, TOKENS, kind, P, target)
    assert (moves[P:, :kept] == 0).all()
    assert (moves[P:, kept:] > 0).all()


def test_no_position_attends_to_a_mask_under_mask_blind():
    plain = visible("prompt-causal", P, T)
    assert np.array_equal(visible("mask-blind", P, T), plain)
    masked = [7, 10]
    allowed = visible("mask-blind", P, T, masked=masked)
    others = np.setdiff1d(np.arange(T), masked)
    assert not allowed[np.ix_(others, masked)].any()
    assert allowed[masked].all()  # a MASK attends to everything
    assert np.array_equal(allowed[np.ix_(others, others)], plain[np.ix_(others, others)])
    assert np.array_equal(visible("prompt-causal", P, T, masked=masked), plain)


def test_effects_under_mask_blind_mask_each_position_in_turn(denoiser):
    moves = effects(denoiser, TOKENS, "mask-blind", P)
    before = torch.from_numpy(visible("mask-blind", P, T))[None, None]
    after = torch.from_numpy(visible("mask-blind", P, T, masked=[9]))[None, None]
    hidden = TOKENS.clone()
    hidden[9] = denoiser.mask_token_id
    with torch.no_grad():
        one = denoiser.hidden_states(TOKENS[None], before)[0].double()
        two = denoiser.hidden_states(hidden[None], after)[0].double()
    assert np.array_equal(moves[9], ((two - one).norm(dim=1) / one.norm(dim=1)).numpy())
    assert not np.allclose(moves[9], effects(denoiser, TOKENS, "prompt-causal", P)[9])


def test_effects_of_chosen_positions_are_rows_of_all(denoiser):
    every = effects(denoiser, TOKENS, "prompt-causal", P)
    seen = []
    some = effects(denoiser, TOKENS, "prompt-causal", P, positions=[11, 2], progress=seen.append)
    assert np.array_equal(some, every[[11, 2]])
    assert seen == [0, 1]


def test_the_causal_probe_runs_the_backbone_without_its_adapter(denoiser):
    plain = Denoiser.create(load_backbone("tiny"))  # B = 0: as good as none
    assert np.array_equal(
        effects(denoiser, TOKENS, "causal", P), effects(plain, TOKENS, "causal", P)
    )
    other = "bidirectional"
    assert not np.allclose(effects(denoiser, TOKENS, other, P), effects(plain, TOKENS, other, P))


def test_read_on_asks_the_bare_backbone(denoiser, monkeypatch):
    """Under a causal mask what follows is not seen: its own greedy answer is right throughout."""
    backbone, prompt = load_backbone("tiny").model, denoiser.encode("hello")
    ids = prompt[None]
    with torch.no_grad():
        for _ in range(8):
            ids = torch.cat([ids, backbone(ids).logits[:, -1:].argmax(-1)], dim=1)
    answer = ids[0, len(prompt) :].tolist()
    monkeypatch.setattr(denoiser, "encode", lambda text: prompt)
    # The tiny model babbles bytes that are no text and would come back as others.
    monkeypatch.setattr(denoiser, "tokenizer", lambda text, **kwargs: {"input_ids": answer})
    pairs = [Pair("hello", "babble")] * 2
    scores = {
        kind: next_token_accuracy(denoiser, pairs, kind, length=24) for kind in KINDS_OF_ATTENTION
    }
    assert (scores["causal"].value, scores["causal"].n) == (1.0, 2)
    assert min(score.value for score in scores.values()) < 1  # MASKs do throw it off


def test_read_on_takes_answers_of_one_token_and_cuts_long_ones(denoiser):
    assert next_token_accuracy(denoiser, [Pair("hello", "x")], "mask-blind", length=8).n == 1
    long, cut = "abcdefgh" * 4, "abcdefgh"
    for kind in ("prompt-causal", "mask-blind"):
        one, two = (
            next_token_accuracy(denoiser, [Pair("yo", text)], kind, 8, 7) for text in (long, cut)
        )
        assert one == two


def test_bad_input_is_named(denoiser):
    with pytest.raises(InvalidInput, match="'sideways'"):
        visible("sideways", 2, 5)
    with pytest.raises(InvalidInput, match="prompt_length = 5: expected 1 to 4"):
        visible("causal", 5, 5)
    with pytest.raises(InvalidInput, match="masked position 5: expected 0 to 4"):
        visible("mask-blind", 2, 5, masked=[1, 5])
    with pytest.raises(InvalidInput, match="no answer to 'hello'"):
        next_token_accuracy(denoiser, [Pair("hello", "")], "causal")
    with pytest.raises(InvalidInput, match="cuts = 0"):
        next_token_accuracy(denoiser, [Pair("hello", "x")], "causal", cuts=0)
    with pytest.raises(InvalidInput, match="is MASK already"):
        effects(denoiser, torch.tensor([1, denoiser.mask_token_id]), "causal", 1)
    with pytest.raises(InvalidInput, match=r"no \[MASK\]"):
        fill_mask(denoiser, "hello", "no gap")


def test_the_size_of_an_update_is_that_of_its_weights_and_survives_merging():
    assert {update.size for update in update_sizes(Denoiser.create(load_backbone("tiny")))} == {0.0}
    sizes = update_sizes(tiny_denoiser())
    assert len(sizes) == 7 * 2 and {update.layer for update in sizes} == {0, 1}
    config = DenoiserConfig(rank=4, alpha=8, layers=("q_proj",))
    denoiser = Denoiser.create(load_backbone("tiny"), config)
    module = denoiser.causal_lm.model.layers[1].self_attn.q_proj
    module.lora_B["default"].weight.data.fill_(0.05)
    product = module.lora_B["default"].weight @ module.lora_A["default"].weight
    expected = float((2 * product.norm() / module.base_layer.weight.norm()).detach())
    assert update_sizes(denoiser)[1].size == pytest.approx(expected, rel=1e-5)
    assert update_sizes(denoiser)[1].module == "q_proj"
    denoiser.merge()
    assert update_sizes(denoiser)[1].size == pytest.approx(expected, rel=1e-4)


def test_fill_mask_gives_the_denoiser_s_distribution(denoiser):
    first, second = fill_mask(denoiser, "hello", "a [MASK] b[MASK]", top=3)
    mask = denoiser.mask_token_id  # the space before the first one is part of it; one token a byte
    a, b = (denoiser.tokenizer(x, add_special_tokens=False)["input_ids"] for x in ("a", " b"))
    answer = [*a, mask, *b, mask, denoiser.eos_token_id]
    with torch.no_grad():
        logits = denoiser.logits(denoiser.encode("hello")[None], torch.tensor([answer]))[0]
    for candidates, position in ((first, 1), (second, 4)):
        odds = logits[position].softmax(-1).topk(3)
        assert [c.probability for c in candidates] == pytest.approx(odds.values.tolist())
        assert [c.text for c in candidates] == [
            denoiser.tokenizer.decode([i]) for i in odds.indices.tolist()
        ]


@pytest.mark.real
def test_the_real_denoiser_uses_a_clue_on_the_right(real):
    question, answer = "Name a famous city.", "The city of [MASK] is the capital of Japan."
    with_clue = fill_mask(real, question, answer)[0]
    no_clue = fill_mask(real, question, "The city of" + " [MASK]" * 7)[0]
    assert with_clue[0].text == " Tokyo"
    assert no_clue[0].text != " Tokyo"


@pytest.mark.real
def test_masks_throw_the_real_backbone_off_unless_it_is_blind_to_them(real):
    pairs = [
        Pair("What is the capital of France?", "The capital of France is Paris."),
        Pair("What is the capital of Italy?", "The capital of Italy is Rome."),
    ]
    found = {kind: next_token_accuracy(real, pairs, kind).value for kind in KINDS_OF_ATTENTION}
    assert found["bidirectional"] < found["mask-blind"] <= found["causal"]
    assert found["prompt-causal"] < found["mask-blind"]
