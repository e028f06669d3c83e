"""Drafts made of text, and the commands that start from them."""

import json
from dataclasses import replace

import pytest
from conftest import run
from traces import make_trace
from traces import words as tokens_of

from lad.diffusion import drafts
from lad.diffusion.adapter import load_denoiser
from lad.diffusion.config import PRESETS, RefineConfig
from lad.diffusion.drafts import LONGEST_GAP, SPARE, gapped, limited, visible_text
from lad.diffusion.sampler import record
from lad.diffusion.trace import Trace
from lad.utils import InvalidInput


def ids(denoiser, text: str) -> list[int]:
    return denoiser.tokenizer(text, add_special_tokens=False)["input_ids"]


def test_a_corrupted_text_is_the_draft_and_eos_follows(denoiser):
    draft = visible_text(denoiser, " a  cat\n")
    assert draft.fixed is None
    assert draft.tokens.tolist() == ids(denoiser, "a  cat") + [denoiser.eos_token_id] * SPARE
    assert len(visible_text(denoiser, "cat", 20).tokens) == 20


def test_gaps_are_masks_of_their_size_words_stay_and_the_end_can_be_given(denoiser):
    mask, eos = denoiser.mask_token_id, denoiser.eos_token_id
    draft = gapped(denoiser, "ab ___ c [3], d.", gap=2)
    expected = [*ids(denoiser, "ab"), mask, mask, *ids(denoiser, " c"), mask, mask, mask]
    expected += [*ids(denoiser, ", d."), *[eos] * SPARE]
    assert draft.tokens.tolist() == expected
    assert draft.fixed.tolist() == [token != mask for token in expected]
    expected = [mask, *ids(denoiser, "a"), mask, mask]
    assert gapped(denoiser, "_____a[2]").tokens.tolist()[:4] == expected
    assert gapped(denoiser, "[4]", answer_length=6).tokens.tolist() == [mask] * 4 + [eos] * 2
    draft = limited(denoiser, 3, 5)
    assert draft.tokens.tolist() == [mask, mask, mask, eos, eos]
    assert draft.fixed.tolist() == [False, False, False, True, True]


@pytest.mark.parametrize(
    ("text", "before", "behind"),
    [
        ("Roses are red,\n___ are blue.", "Roses are red,\n", " are blue."),
        ("def f(x):\n    ___ x + 1\n", "def f(x):\n   ", " x + 1\n"),
        (" \t[1]  ", " \t", "  "),
        (r"See \[2], \____ and \\[3]: ___.", r"See [2], ____ and \[3]:", "."),
        (r"_[1] \n\_", "_", r" \n\_"),
    ],
)
def test_fixed_text_stays_byte_for_byte(denoiser, text, before, behind):
    draft = gapped(denoiser, text)
    expected = [*ids(denoiser, before), denoiser.mask_token_id, *ids(denoiser, behind)]
    assert draft.tokens.tolist() == expected + [denoiser.eos_token_id] * SPARE


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda d: visible_text(d, " \n"), "the text is empty"),
        (lambda d: visible_text(d, "abcd", 4), "a text of 4 tokens in an answer region of 4"),
        (lambda d: gapped(d, "no gap"), "no gap in 'no gap': expected ___ or"),
        (lambda d: gapped(d, "two __ only"), "no gap in"),
        (lambda d: gapped(d, r"text \[2] \___"), "no gap in"),
        (lambda d: visible_text(d, "\udce9"), "no UTF-8"),
        (lambda d: gapped(d, "a [0]"), "a gap of 0 tokens: expected a whole number from 1"),
        (lambda d: gapped(d, f"a [{LONGEST_GAP + 1}]"), "a gap of 257 tokens"),
        (lambda d: gapped(d, "a ___", gap=0), "a gap of 0 tokens"),
        (lambda d: gapped(d, "a [9]", answer_length=10), "a text of 10 tokens in an answer region"),
        (lambda d: limited(d, 0, 8), "length = 0: expected a whole number from 1 to 8"),
        (lambda d: limited(d, 9, 8), "length = 9"),
    ],
)
def test_what_cannot_be_a_draft_is_refused(denoiser, make, message):
    with pytest.raises(InvalidInput, match="expected") as caught:
        make(denoiser)
    assert message in str(caught.value)


def test_repair_prints_what_noiseless_refinement_of_the_text_gives(capsys, adapter, tmp_path):
    keep = tmp_path / "run.jsonl"
    arguments = ("repair", "teh cat", "--model=tiny", f"--adapter={adapter}", "--iterations=3")
    status, out, err = run(capsys, *arguments, f"--trace={keep}", "--json", "--prompt=hi")
    assert (status, err) == (0, "")
    values = json.loads(out)
    assert (values["text"], values["prompt"]) == ("teh cat", "hi")
    denoiser = load_denoiser("tiny", adapter)
    draft = visible_text(denoiser, "teh cat").tokens
    config = RefineConfig(iterations=3, remasking="none", answer_length=len(draft))
    expected = record(denoiser, "hi", config, draft=draft)
    assert Trace.load(keep).drafts.tolist() == expected.drafts.tolist()
    assert (values["answer"], values["config"]) == (expected.answer, config.to_dict())
    assert run(capsys, *arguments, "--prompt=hi")[1] == expected.answer + "\n"
    prompt = json.loads(run(capsys, *arguments, "--json")[1])["prompt"]
    assert prompt == drafts.REPAIR_PROMPT and "teh" not in prompt


def test_a_repair_that_changes_nothing_says_so(capsys, adapter, monkeypatch):
    trace = make_trace(tokens_of("teh cat", 4))
    same = replace(trace, steps=[replace(trace.steps[0], inputs=trace.drafts[0])])
    monkeypatch.setattr("lad.diffusion.sampler.record", lambda *_, **__: same)
    arguments = ("repair", "teh cat", "--model=tiny", f"--adapter={adapter}")
    assert run(capsys, *arguments) == (0, "teh cat\n", f"lad: {drafts.UNCHANGED}\n")


def test_infill_fills_the_gaps_and_nothing_else(capsys, adapter):
    arguments = ("infill", "ab ___ cd", "--gap=3", "--model=tiny", f"--adapter={adapter}")
    values = json.loads(run(capsys, *arguments, "--json")[1])
    assert values["answer"].startswith("ab") and values["answer"].endswith(" cd")
    assert values["tokens"] == len("ab") + 3 + len(" cd")
    assert values["preset"] == "quality" and values["config"]["remasking"] == "threshold"
    assert run(capsys, *arguments, "--preset=noiseless", "--json")[0] == 0


@pytest.mark.real
def test_the_default_model_fills_a_gap_from_both_sides(real):
    draft = gapped(real, "The capital of ___ is Paris.")
    config = replace(PRESETS["quality"], answer_length=len(draft.tokens))
    trace = record(real, "Write a sentence.", config, draft=draft.tokens, fixed=draft.fixed)
    assert trace.answer == "The capital of France is Paris."
