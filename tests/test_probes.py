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


def test_causal_attention_carries_nothing_to_the_left_and_bidirectional_does(denoiser):
    assert (effects(denoiser, TOKENS, "bidirectional", P) > 0).all()
    moves = effects(denoiser, TOKENS, "causal", P)
    assert (moves[np.tril_indices(T, -1)] == 0).all() and (moves[np.triu_indices(T)] > 0).all()
    # It is the backbone without its adapter: a new one (B = 0) is as good as none.
    plain = Denoiser.create(load_backbone("tiny"))
    assert np.array_equal(moves, effects(plain, TOKENS, "causal", P))


@pytest.mark.parametrize("kind", ["prompt-causal", "mask-blind"])
@pytest.mark.parametrize("target, kept", [("next", P - 1), ("same", P)])
def test_the_answer_does_not_move_the_prompt(denoiser, kind, target, kept):
    moves = effects(denoiser, TOKENS, kind, P, target)
    assert (moves[P:, :kept] == 0).all() and (moves[P:, kept:] > 0).all()
    some = effects(denoiser, TOKENS, kind, P, target, positions=[11, 2])
    assert np.array_equal(some, moves[[11, 2]])


def test_no_position_attends_to_a_mask_under_mask_blind():
    plain, masked = visible("prompt-causal", P, T), [7, 10]
    assert np.array_equal(visible("mask-blind", P, T), plain)
    allowed = visible("mask-blind", P, T, masked=masked)
    others = np.setdiff1d(np.arange(T), masked)
    assert not allowed[np.ix_(others, masked)].any()
    assert allowed[masked].all()  # a MASK attends to everything
    assert np.array_equal(allowed[np.ix_(others, others)], plain[np.ix_(others, others)])
    assert np.array_equal(visible("prompt-causal", P, T, masked=masked), plain)


def test_the_backbone_s_own_answers_are_its_next_tokens(denoiser, monkeypatch):
    """Under a causal mask what follows is not seen: its own greedy answer is right throughout."""
    backbone, prompt = load_backbone("tiny").model, denoiser.encode("hello")
    ids = prompt[None]
    with torch.no_grad():
        for _ in range(8):
            ids = torch.cat([ids, backbone(ids).logits[:, -1:].argmax(-1)], dim=1)
    answer = ids[0, len(prompt) :].tolist()
    monkeypatch.setattr(denoiser, "encode", lambda text: prompt)
    # The tiny model's answer is bytes that are no text and would come back as others.
    monkeypatch.setattr("lad.evaluation.probes.encode_text", lambda *_: answer)
    pairs = [Pair("hello", "bytes")] * 2
    scores = {
        kind: next_token_accuracy(denoiser, pairs, kind, length=24) for kind in KINDS_OF_ATTENTION
    }
    assert (scores["causal"].value, scores["causal"].n) == (1.0, 2)
    assert min(score.value for score in scores.values()) < 1  # MASKs do throw it off


def test_bad_input_is_named(denoiser):
    with pytest.raises(InvalidInput, match="'sideways'"):
        visible("sideways", 2, 5)
    with pytest.raises(InvalidInput, match="prompt_length = 5: expected 1 to 4"):
        visible("causal", 5, 5)
    with pytest.raises(InvalidInput, match="no answer to 'hello'"):
        next_token_accuracy(denoiser, [Pair("hello", "")], "causal")
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
    found = fill_mask(denoiser, "hello", "a [MASK] b[MASK]", top=3)
    mask = denoiser.mask_token_id  # the space before the first one is part of it; one token a byte
    a, b = (denoiser.tokenizer(x, add_special_tokens=False)["input_ids"] for x in ("a", " b"))
    answer = [*a, mask, *b, mask, denoiser.eos_token_id]
    with torch.no_grad():
        logits = denoiser.logits(denoiser.encode("hello")[None], torch.tensor([answer]))[0]
    for candidates, position in zip(found, (1, 4), strict=True):
        best = logits[position].softmax(-1).topk(3)
        assert [c.probability for c in candidates] == pytest.approx(best.values.tolist())
        texts = [denoiser.tokenizer.decode([i]) for i in best.indices.tolist()]
        assert [c.text for c in candidates] == texts


@pytest.mark.real
def test_the_real_denoiser_uses_a_clue_on_the_right(real):
    question, answer = "Name a famous city.", "The city of [MASK] is the capital of Japan."
    assert fill_mask(real, question, answer)[0][0].text == " Tokyo"
    assert fill_mask(real, question, "The city of" + " [MASK]" * 7)[0][0].text != " Tokyo"
    # The bare backbone is thrown off by MASKs unless it is blind to them.
    pairs = [Pair("What is the capital of France?", "The capital of France is Paris.")]
    found = {kind: next_token_accuracy(real, pairs, kind, 32).value for kind in KINDS_OF_ATTENTION}
    assert max(found["bidirectional"], found["prompt-causal"]) < found["mask-blind"]
