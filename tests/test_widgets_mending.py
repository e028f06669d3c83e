"""Repair and infilling, driven as a page would drive them."""

import pytest
import torch
from conftest import tiny_denoiser

from lad.diffusion.config import PRESETS, RefineConfig
from lad.diffusion.drafts import INFILL_PROMPT, REPAIR_PROMPT, gapped, visible_text
from lad.diffusion.sampler import record
from lad.viz.word_corruption import ALL_KINDS
from lad.widgets import InfillExplorer, Limits, RepairExplorer

PATIENCE = 60
TEXT = "one two three four five six"


@pytest.fixture
def repair(denoiser):
    explorer = RepairExplorer(denoiser, text=TEXT, question="", pause=0)
    explorer.iterations.value = 4
    yield explorer
    explorer.close()


@pytest.fixture
def infill(denoiser):
    explorer = InfillExplorer(denoiser, text="one ___ three [2] six", pause=0)
    yield explorer
    explorer.close()


@pytest.mark.parametrize("kind", ALL_KINDS)
def test_each_button_damages_the_text_and_undo_brings_it_back(repair, kind):
    for _ in range(5):
        before = repair.text.value
        repair.buttons[kind].click()
        assert repair.text.value != before or kind == "duplicate"  # five words may become one
    assert repair.text.value != TEXT
    repair.undo.click()
    assert repair.text.value == TEXT and repair.undo.disabled


def test_undo_comes_back_to_what_was_typed_last(repair):
    repair.buttons["swap"].click()
    repair.text.value = "seven eight nine"
    repair.buttons["mask"].click()
    assert "___" in repair.text.value
    repair.undo.click()
    assert repair.text.value == "seven eight nine"


def test_damage_without_words_is_said(repair):
    repair.text.value = "  "
    repair.buttons["swap"].click()
    assert "0 words: expected at least 2" in repair.message.value
    repair.text.value = "one two"
    repair.buttons["swap"].click()
    assert (repair.text.value, repair.message.value) == ("two one", "")


def test_a_repair_starts_from_the_text_and_masks_nothing(repair, denoiser):
    repair.run()
    assert repair.wait(PATIENCE)
    assert repair.message.value == ""
    draft = visible_text(denoiser, TEXT)
    config = RefineConfig(iterations=4, remasking="none", answer_length=len(draft.tokens))
    prompt = REPAIR_PROMPT.replace("{text}", TEXT)
    assert repair.trace == record(denoiser, prompt, config, draft=draft.tokens)
    assert not repair.trace.is_masked.any()
    repair.player.slider.value = 0
    assert "Before." in repair.player.caption.value
    assert "nothing of it masked" in repair.player.caption.value


def test_a_hidden_word_is_masked_and_the_question_is_asked(repair, denoiser):
    repair.text.value, repair.question.value = "one ___ three", "count!"
    repair.run()
    assert repair.wait(PATIENCE)
    assert repair.trace.prompt == "count!"
    assert repair.trace.is_masked.sum(axis=1).tolist()[:2] == [1, 0]
    repair.player.slider.value = 0
    assert "1 of its positions masked" in repair.player.caption.value


def test_infilling_keeps_the_words_and_fills_the_gaps(infill, denoiser):
    infill.run()
    assert infill.wait(PATIENCE)
    assert infill.message.value == ""
    draft = gapped(denoiser, infill.text.value, 1)
    config = RefineConfig.from_dict(
        PRESETS["quality"].to_dict() | {"answer_length": len(draft.tokens)}
    )
    expected = record(denoiser, INFILL_PROMPT, config, draft=draft.tokens, fixed=draft.fixed)
    assert infill.trace == expected
    kept = draft.fixed.numpy()
    assert (infill.trace.drafts[:, kept] == draft.tokens.numpy()[kept]).all()
    assert infill.trace.is_masked[0].sum() == 3


def test_what_the_text_lacks_is_said(infill, repair):
    infill.text.value = "no gap here"
    infill.run()
    assert infill.wait(PATIENCE)
    assert "no gap in" in infill.message.value
    repair.text.value = ""
    repair.run()
    assert repair.wait(PATIENCE)
    assert "the text is empty" in repair.message.value
    assert repair.trace is None


def test_texts_over_the_limits_are_refused(denoiser):
    explorer = RepairExplorer(denoiser, text=TEXT, limits=Limits(characters=10), pause=0)
    explorer.run()
    assert explorer.wait(PATIENCE)
    assert "expected at most 10" in explorer.message.value
    explorer = InfillExplorer(
        denoiser, text="a ___", limits=Limits(answer_length=5, iterations=3), pause=0
    )
    explorer.run()
    assert explorer.wait(PATIENCE)
    assert "expected at most 5" in explorer.message.value
    assert explorer.trace is None


def test_a_run_is_kept_within_the_iterations_of_the_page():
    explorer = InfillExplorer(tiny_denoiser(), text="a [9] b", limits=Limits(iterations=2), pause=0)
    explorer.run()
    assert explorer.wait(PATIENCE)
    assert len(explorer.trace.steps) <= 2
    assert torch.get_num_threads() == 1
