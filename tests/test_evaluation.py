"""Evaluation: bookkeeping against oracles and plain loops, and the command on the tiny model."""

import gzip
import json
import math
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from conftest import json_lines, run, tiny_denoiser

import lad
from lad.cli.common import evenly_spaced, read_settings
from lad.diffusion.config import PRESETS, REPAIR, DenoiserConfig, RefineConfig
from lad.diffusion.denoiser import Denoiser
from lad.evaluation import adapter_eval
from lad.evaluation.adapter_eval import (
    DAMAGES,
    damaged,
    lookahead_accuracy,
    masked_scores,
    repair_scores,
    same_fact,
    sentence_repair,
)
from lad.evaluation.generation import Answers, measure_answers
from lad.evaluation.statistics import Estimate
from lad.models.chat import encode_text
from lad.models.registry import load_backbone
from lad.training import Pair, fact_questions, pack, sentences_to_repair, validate
from lad.training.data import Question
from lad.utils import DamagedFile, InvalidInput, NumericalError

PAIRS = [Pair(f"say {n}", f"the number {n} and then {n + 1}!") for n in range(7)]
PROMPTS = ["hello", "and what is this?", "x", "one two three"]
SETTINGS = {
    "noiseless": RefineConfig(iterations=4, remasking="none", answer_length=16),
    "noisy": RefineConfig(iterations=3, answer_length=24),
}


def packed(denoiser, pairs=PAIRS, context=96):
    return pack(denoiser.backbone, pairs, context)


def one_hot(ids, vocabulary):
    return torch.nn.functional.one_hot(ids, vocabulary).float()


def test_the_batch_size_changes_nothing_and_scores_are_those_of_a_validation(any_denoiser):
    data = packed(any_denoiser)
    expected = validate(any_denoiser, data, batch_size=3)
    whole, parts = (masked_scores(any_denoiser, data, size) for size in (9, 2))
    assert list(whole) == list(expected) == ["0.25", "0.5", "0.75"]
    for fraction, scores in whole.items():
        for key in ("ce", "accuracy"):
            values = scores[key]["value"], parts[fraction][key]["value"]
            assert values == pytest.approx([expected[fraction][key]] * 2, rel=1e-4)
        assert scores["tokens"] == expected[fraction]["n"]
        assert scores["ce"]["low"] < scores["ce"]["value"] < scores["ce"]["high"]
        assert scores["ce"]["n"] == expected[fraction]["answers"] <= len(data)
    assert repair_scores(any_denoiser, data, 7) == repair_scores(any_denoiser, data, 3)


def test_lookahead_predicts_the_tokens_behind_a_cut(denoiser, monkeypatch):
    """A stand-in that is right about two masked tokens behind the cut, and wrong about the rest."""
    data = packed(denoiser, context=128)

    def stand_in(_, inputs, prompt_lengths, chosen):
        is_masked = inputs == denoiser.mask_token_id
        logits = torch.zeros(int(chosen.sum()), denoiser.vocabulary_size)
        for n, (row, column) in enumerate(chosen.nonzero().tolist()):
            p, behind = int(prompt_lengths[row]), column - int(is_masked[row].long().argmax())
            assert behind >= 0  # only what is masked is predicted
            pair = (data.tokens[:, :p] == inputs[row, :p]).all(dim=1) & (data.prompt_lengths == p)
            truth = int(data.tokens[pair.nonzero()[0, 0], column])
            logits[n, truth if behind < 2 else (truth + 1) % 256] = 1.0
        return logits

    monkeypatch.setattr(adapter_eval, "answer_logits", stand_in)
    scores = lookahead_accuracy(denoiser, data, batch_size=3)
    assert list(scores) == ["1", "2", "4", "8"]
    assert scores["1"]["value"] == scores["2"]["value"] == 1.0
    assert scores["4"]["value"] == 0.0
    assert scores["1"]["n"] == len(data) >= scores["2"]["n"] >= scores["4"]["n"] > 0


def test_repair_of_a_perfect_denoiser_and_an_idle_one(denoiser, monkeypatch):
    data = packed(denoiser)
    clean, v = data.tokens.long(), denoiser.vocabulary_size

    def idle(denoiser, inputs, prompt_lengths, chosen):
        return one_hot(inputs[chosen], v)

    monkeypatch.setattr(adapter_eval, "answer_logits", lambda *given: one_hot(clean[given[-1]], v))
    scores = repair_scores(denoiser, data)
    assert scores["restored"]["value"] == scores["kept"]["value"] == 1
    assert scores["tokens"] == sum(len(pair.answer) + 1 for pair in PAIRS)
    # Three kinds act on a position with probability p / 4 each and swaps move two tokens, but some
    # change nothing (a token doubled over its equal, a swap of equals).
    assert 0.1 < scores["damaged"]["value"] < 0.4
    assert scores["damaged"]["n"] == len(PAIRS) >= scores["restored"]["n"]
    monkeypatch.setattr(adapter_eval, "answer_logits", idle)
    scores = repair_scores(denoiser, data)
    assert (scores["restored"]["value"], scores["kept"]["value"]) == (0, 1)


def test_from_mask_the_text_is_gone(denoiser, monkeypatch):
    data, mask, seen = packed(denoiser), denoiser.mask_token_id, []

    def stand_in(_, inputs, prompt_lengths, chosen):
        seen.append(inputs[chosen])
        return one_hot(torch.zeros_like(inputs[chosen]), denoiser.vocabulary_size)

    monkeypatch.setattr(adapter_eval, "answer_logits", stand_in)
    scores = [repair_scores(denoiser, data, from_mask=masked) for masked in (True, False)]
    assert (seen[0] == mask).all() and not (seen[adapter_eval.REPAIR_ITERATIONS] == mask).any()
    assert scores[0]["damaged"] == scores[1]["damaged"]  # the same tokens are counted


def test_all_positions_at_once_is_noiseless_without_growth_as_in_a_repair():
    file = Path(__file__).parents[1] / "configs" / "at-once.json"
    expected = replace(PRESETS["noiseless"], added_tokens=None)
    assert read_settings(str(file)) == {"at-once": expected} and expected == REPAIR


@pytest.mark.parametrize(
    ("files", "named"),
    [
        (["a.json", "b/a.json"], "'b/a.json': there are settings 'a' already"),
        (["default", "default.json"], "'default.json': there are settings 'default' already"),
        (["backbone.json"], "there are settings 'backbone' already"),
        (["odd.json"], r"odd.json is unusable \(unknown setting 'iterrations'"),
    ],
)
def test_settings_have_names_of_their_own(tmp_path, monkeypatch, files, named):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "b").mkdir()
    for name in files:
        if name.endswith(".json"):
            text = '{"iterrations": 3}' if name == "odd.json" else '{"iterations": 3}'
            Path(name).write_text(text, encoding="utf-8-sig")
    with pytest.raises((InvalidInput, DamagedFile), match=named):
        read_settings(",".join(files))


def test_a_fact_is_a_whole_word_in_any_case():
    questions = [Question("Which?", ["4", "four", "New York", "C++"])] * 7
    answers = ["It is FOUR.", "4!", "in new york,", "C++.", "fourteen", "14", "York is new"]
    assert same_fact(questions, answers)["value"] == pytest.approx(4 / 7)
    assert same_fact([], []) == {"value": None, "low": None, "high": None, "n": 0}


def test_a_damage_is_one_and_can_be_read_as_it_was_made(any_denoiser):
    for sentence in sentences_to_repair()[:9]:
        clean = encode_text(any_denoiser.tokenizer, sentence)
        for kind in DAMAGES:
            text = damaged(any_denoiser, sentence, kind)
            assert text == damaged(any_denoiser, sentence, kind)  # whatever else is damaged
            ids = encode_text(any_denoiser.tokenizer, text)
            assert len(ids) == len(clean)
            places = [i for i, (a, b) in enumerate(zip(ids, clean, strict=True)) if a != b]
            if kind == "swap":
                i, j = places
                assert j == i + 1 and ids[i : j + 1] == [clean[j], clean[i]]
            elif kind == "duplicate":
                assert ids[places[0]] == clean[places[0] - 1] and len(places) == 1
            else:
                assert len(places) == 1


def test_sentences_are_mended_or_left_alone(denoiser, monkeypatch):
    """Stand-ins: one changes nothing, one mends swaps and spoils sound sentences."""
    sentences = sentences_to_repair()[:5]
    mend = {damaged(denoiser, sentence, "swap"): sentence for sentence in sentences}

    def shares(answer):
        def stand_in(denoiser, prompts, config, drafts, batch_size):
            assert set(prompts) == {"Correct this sentence."} and config.remasking == "none"
            assert {len(draft) for draft in drafts} == {config.answer_length}
            texts = denoiser.tokenizer.batch_decode(torch.stack(drafts), skip_special_tokens=True)
            return [SimpleNamespace(answer=answer(text)) for text in texts]

        monkeypatch.setattr(adapter_eval, "refine_batch", stand_in)
        scores = sentence_repair(denoiser, sentences)
        return [scores[name]["value"] for name in (*DAMAGES, "mended", "sound")]

    assert shares(lambda text: text) == [0, 0, 0, 0, 1]
    assert shares(lambda text: mend.get(text, "")) == [1, 0, 0, pytest.approx(1 / 3), 0]


def test_truncating_gives_what_a_smaller_region_would_have():
    losses = [np.arange(4.0), np.arange(5.0)]
    answers = Answers([[5, 6, 7], [1, 2, 3, 4, 5]], [True, False], [4, 5], 1.0, 9, losses)
    assert answers.with_eos == [[5, 6, 7, 9], [1, 2, 3, 4, 5]]
    four, three = answers.truncate(4), answers.truncate(3)
    assert four.with_eos == [[5, 6, 7, 9], [1, 2, 3, 4]] and four.ended == [True, False]
    assert three.with_eos == [[5, 6, 7], [1, 2, 3]] and three.ended == [False, False]
    for one in (four, three):
        assert list(map(len, one.losses)) == list(map(len, one.with_eos)) == one.forwards


def test_the_baseline_has_relative_perplexity_1():
    losses = [np.array([0.5, 0.1, 2.0]), np.array([0.3, 0.2])]
    baseline = Answers([[5, 5], [7]], [True, True], [3, 2], 6.0, 9, losses)
    tokenizer = load_backbone("tiny").tokenizer
    scores = measure_answers(tokenizer, baseline, baseline)
    assert list(scores)[:2] == ["relative_perplexity_with_end", "relative_perplexity"]
    assert all(scores[key]["value"] == 1 for key in list(scores)[:2])
    assert scores["perplexity"]["value"] == pytest.approx((math.exp(0.3) + math.exp(0.3)) / 2)
    assert scores["repeats"] == {"value": 1.0, "low": scores["repeats"]["low"], "high": 1, "n": 1}
    assert scores["forwards_per_token"]["value"] == pytest.approx(5 / 3)
    assert scores["tpf"]["value"] == pytest.approx(3 / 5)


def test_an_evaluation_is_json_with_intervals_and_leaves_the_denoiser_as_it_was():
    denoiser = tiny_denoiser()
    answer = torch.full((1, 4), denoiser.mask_token_id)
    prompt = denoiser.encode("hi")[None]
    before = denoiser.logits(prompt, answer)
    state = torch.random.get_rng_state()

    arguments = (denoiser, PAIRS, PROMPTS, SETTINGS)
    tested = {"questions": fact_questions()[:2], "sentences": sentences_to_repair()[:2]}
    result = lad.evaluate(*arguments, **tested)
    assert torch.equal(torch.random.get_rng_state(), state)
    assert torch.allclose(denoiser.logits(prompt, answer), before)
    assert json.loads(json.dumps(result, allow_nan=False)) == result
    assert result["pairs"] == {"used": 7, "too_long": 0}
    for name, config in SETTINGS.items():
        scores = result["settings"][name]
        assert RefineConfig.from_dict(scores["config"]) == config
        assert scores["same_fact"]["n"] == result["backbone"]["same_fact"]["n"] == 2
        assert scores["nfe"]["value"] <= config.iterations and scores["nfe"]["n"] == 4
        assert scores["relative_perplexity"]["value"] > 1  # greedy is hard to beat
    assert result["backbone"]["relative_perplexity"]["value"] == 1
    assert result["backbone"]["answer_length"] == 24
    assert result["provenance"]["model"] == "tiny" and result["provenance"]["seed"] == 0

    again = lad.evaluate(*arguments, **tested)
    for found in (result, again):  # without what a clock gives
        del found["provenance"]
        for scores in (found["backbone"], *found["settings"].values()):
            del scores["seconds_per_answer"]
    assert again == result


def test_nothing_to_measure_on_and_broken_weights_are_named(denoiser):
    for empty in range(3):
        arguments = [PAIRS, PROMPTS, SETTINGS]
        arguments[empty] = type(arguments[empty])()
        with pytest.raises(InvalidInput, match="= 0: expected at least 1"):
            lad.evaluate(denoiser, *arguments)
    with pytest.raises(InvalidInput, match="context window"):
        lad.evaluate(denoiser, PAIRS, ["word " * 60], SETTINGS)
    broken = Denoiser.create(load_backbone("tiny"), DenoiserConfig(rank=4, alpha=8))
    for name, parameter in broken.model.named_parameters():
        if "lora_A" in name:
            parameter.data.fill_(math.nan)
    for score in (masked_scores, lookahead_accuracy, repair_scores):
        with pytest.raises(NumericalError, match="NaN or infinity"):
            score(broken, packed(broken))


@pytest.fixture(scope="module")
def files(tmp_path_factory, adapter):
    """Options that name a tiny adapter, pairs and prompts."""
    folder = tmp_path_factory.mktemp("evaluate")
    (folder / "pairs.jsonl.gz").write_bytes(gzip.compress(json_lines(PAIRS).encode()))
    (folder / "prompts.txt").write_text("\n".join(PROMPTS) + "\n\n")
    (folder / "short.json").write_text('{"iterations": 2, "answer_length": 8}')
    return {
        "model": "tiny",
        "adapter": adapter,
        "pairs": folder / "pairs.jsonl.gz",
        "prompts": folder / "prompts.txt",
        "settings": f"noiseless,{folder / 'short.json'}",
    }


def command(capsys, files, *more, **changed):
    arguments = [f"--{key}={value}" for key, value in (files | changed).items()]
    return run(capsys, "evaluate", *arguments, *more)


def test_the_command_says_what_it_measured(capsys, files):
    status, out, err = command(capsys, files, "--json", "--n-pairs=5", "--n-prompts=3")
    result = json.loads(out)
    assert (status, err) == (0, "")
    assert result["pairs"]["used"] == 5 and result["pairs"]["of"] == 7
    assert result["prompts"]["used"] == 3 and result["prompts"]["of"] == 4
    assert result["prompts"]["file"] == "prompts.txt" and len(result["prompts"]["sha256"]) == 64
    assert list(result["settings"]) == ["noiseless", "short"]
    assert result["settings"]["short"]["config"]["answer_length"] == 8
    assert [evenly_spaced([1, 2, 3], n) for n in (1, 2, 9)] == [[1], [1, 2], [1, 2, 3]]
    card = json.loads((Path(files["adapter"]) / "denoiser.json").read_text())
    assert result["provenance"]["adapter_sha256"] == card["adapter_sha256"]

    status, out, err = command(capsys, files, "--n-pairs=5", "--n-prompts=3")
    assert (status, err) == (0, "")
    assert "5 of 7 from pairs.jsonl.gz" in out and "3 of 4 from prompts.txt" in out
    assert "3 of 100 from facts.jsonl" in out and "3 of 100 from sentences.txt" in out
    for one in (result["repair"], result["repair"]["from_mask"], result["repair"]["other_prompt"]):
        assert Estimate.from_dict(one["restored"]).text(100) in out
    for share in (result["sentences"]["swap"], result["settings"]["short"]["same_fact"]):
        assert Estimate.from_dict(share).text(100) in out and share["n"] == 3
    for scores in result["settings"].values():
        assert Estimate.from_dict(scores["relative_perplexity_with_end"]).text(1, 2) in out
        for key in ("repeated_4grams", "whole_sentences"):
            assert Estimate.from_dict(scores[key]).text(100, int(key[0] == "r")) in out
    assert "short: iterations 2, answer_length 8" in out
