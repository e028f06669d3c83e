"""Repair and infilling, driven as a page would drive them."""

from dataclasses import replace

import numpy as np
import pytest

from lad.diffusion.config import PRESETS, RefineConfig
from lad.diffusion.drafts import INFILL_PROMPT, REPAIR_PROMPT, UNCHANGED, gapped, visible_text
from lad.diffusion.sampler import record
from lad.diffusion.trace import Step
from lad.viz.word_corruption import ALL_KINDS
from lad.widgets import InfillExplorer, Limits, RepairExplorer

TEXT = "one two three four five six"


def run(explorer):
    """Run to the end; the trace."""
    explorer.run()
    assert explorer.wait(60)
    return explorer.trace


@pytest.fixture
def repair(denoiser):
    explorer = RepairExplorer(denoiser, text=TEXT, question="", pause=0)
    explorer.iterations.value = 4
    return explorer


@pytest.fixture
def infill(denoiser):
    return InfillExplorer(denoiser, text="one ___ three [2] six", pause=0)


def test_each_button_corrupts_the_text_and_undo_brings_it_back(repair):
    for kind in ALL_KINDS:
        for _ in range(5):
            before = repair.text.value
            repair.buttons[kind].click()
            assert repair.text.value != before or kind == "duplicate"  # five words may become one
        assert repair.text.value != TEXT
        repair.undo.click()
        assert repair.text.value == TEXT and repair.undo.disabled
    repair.buttons["swap"].click()
    repair.text.value = "seven eight nine"
    repair.buttons["mask"].click()
    repair.undo.click()
    assert repair.text.value == "seven eight nine"  # what was typed last


def test_a_recorded_run_is_on_show_at_first(repair, denoiser, monkeypatch):
    recorded = run(repair)
    other = RepairExplorer(denoiser, recorded=recorded)
    assert other.screen.trace is recorded and other.status.value == "a recorded run"
    for menus, shown in ((None, 'class="lad-replay"'), ("<p>menus</p>", "<p>menus</p>")):
        monkeypatch.setattr("lad.widgets.runner.placeholder", lambda explorer, menus=menus: menus)
        assert shown in other._repr_mimebundle_()["text/html"]  # without a kernel


def test_a_text_without_words_cannot_be_corrupted(repair):
    repair.text.value = "  "
    repair.buttons["swap"].click()
    assert "0 words: expected at least 2" in repair.message.value
    repair.text.value = "one two"
    repair.buttons["swap"].click()
    assert (repair.text.value, repair.message.value) == ("two one", "")


def test_a_repair_starts_from_the_text_and_masks_nothing(repair, denoiser):
    trace = run(repair)
    assert repair.message.value == ""
    draft = visible_text(denoiser, TEXT).tokens
    config = RefineConfig(iterations=4, remasking="none", answer_length=len(draft))
    assert trace == record(denoiser, REPAIR_PROMPT, config, draft=draft)
    assert UNCHANGED not in repair.status.value
    shown = repair.screen.player.outputs[0]["data"]["text/html"]
    assert "<b>Before.</b> What the run starts from, nothing of it masked" in shown


def test_a_repair_that_changes_nothing_says_so(repair, monkeypatch):
    def refine(_denoiser, _ids, _config, draft, fixed):
        tokens, no = draft.numpy(), np.zeros(len(draft), dtype=bool)
        yield Step(0, tokens, tokens, no.astype(np.float32), no)

    monkeypatch.setattr("lad.widgets.runner.refine", refine)
    assert run(repair).answer == TEXT and repair.status.value == UNCHANGED


def test_a_hidden_word_is_masked_and_the_question_is_the_prompt(repair):
    repair.text.value, repair.question.value = "one ___ three", "count!"
    assert run(repair).prompt == "count!"
    shown = repair.screen.player.outputs[0]["data"]["text/html"]
    assert "1 of its positions masked" in shown


def test_infilling_keeps_the_words_and_fills_the_gaps(infill, denoiser):
    trace = run(infill)
    assert infill.message.value == ""
    draft = gapped(denoiser, infill.text.value, 1)
    config = replace(PRESETS["quality"], answer_length=len(draft.tokens))
    expected = record(denoiser, INFILL_PROMPT, config, draft=draft.tokens, fixed=draft.fixed)
    assert trace == expected
    kept = draft.fixed.numpy()
    assert (trace.drafts[:, kept] == draft.tokens.numpy()[kept]).all()


def test_a_text_is_edited_between_two_drafts_and_both_branches_are_shown(infill, denoiser):
    whole, editor = run(infill), infill.editor
    editor.after.value = 0
    kept = np.flatnonzero(editor.fixed)
    assert kept.tolist() == np.flatnonzero(whole.steps[0].fixed).tolist()  # pinned: the words
    editor.chosen.value = (int(kept[0]),)
    editor.buttons["Mask"].click()
    editor.go.click()
    assert infill.wait(60) and infill.message.value == "" and infill.trace != whole
    assert infill.compared == {"as it was": whole, "edited after iteration 0": infill.trace}
    run(infill)
    assert infill.compared == {}


def test_an_error_of_the_text_is_shown(infill, repair):
    infill.text.value = "no gap here"
    assert run(infill) is None and "no gap in" in infill.message.value
    infill.text.value = "half \ud83d ___"
    assert run(infill) is None and "half a character" in infill.message.value
    repair.text.value = ""
    assert run(repair) is None and "the text is empty" in repair.message.value


def test_the_limits_of_the_page_hold(denoiser):
    explorer = RepairExplorer(denoiser, text=TEXT, limits=Limits(characters=10), pause=0)
    assert run(explorer) is None
    assert "expected at most 10" in explorer.message.value
    explorer = InfillExplorer(denoiser, text="a ___", limits=Limits(answer_length=5), pause=0)
    assert run(explorer) is None
    assert "expected at most 5" in explorer.message.value
    explorer = InfillExplorer(denoiser, text="a [9] b", limits=Limits(iterations=2), pause=0)
    assert len(run(explorer).steps) <= 2
    explorer.text.value = "a ___ b"
    explorer.gap.set_state({"max": 10**9})  # what a changed page may send
    explorer.gap.set_state({"value": 10**9})
    run(explorer)
    assert "a gap of 1000000000 tokens" in explorer.message.value
