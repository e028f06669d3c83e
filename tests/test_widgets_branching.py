"""Stopping, editing and going on; one setting at several values; two settings side by side."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from test_widgets_refinement import PATIENCE, SHORT, Gate, make_explorer, run
from traces import make_trace, words

from lad.diffusion.config import RefineConfig
from lad.diffusion.resume import branch, next_input
from lad.diffusion.sampler import record
from lad.diffusion.trace import Trace
from lad.evaluation.probes import effects
from lad.utils import InvalidInput
from lad.viz.tokens import frames
from lad.widgets.controls import SETTINGS, Limits
from lad.widgets.sweep import parse, suggested


@pytest.fixture
def explorer(denoiser):
    return make_explorer(denoiser)


def press(explorer, name, *chosen, text=None):
    explorer.editor.chosen.value = chosen
    if text is not None:
        explorer.editor.text.value = text
    explorer.editor.buttons[name].click()
    return explorer.editor.message.value


def go_on(explorer):
    explorer.editor.go.click()
    assert explorer.wait(PATIENCE)
    assert explorer.message.value == ""
    return explorer.trace


def stopped(denoiser, free: int):
    """An explorer whose run was stopped during the pass after `free` of them."""
    gate = Gate(denoiser, free=free)
    explorer = make_explorer(gate)
    explorer.run()
    assert gate.reached.wait(PATIENCE)
    explorer.stop()
    gate.open(explorer)
    return explorer


def test_a_stopped_run_goes_on_as_if_it_had_not_been(denoiser):
    explorer = stopped(denoiser, free=2)
    assert len(explorer.trace.steps) == 3 and explorer.editor.after.value == 2  # where it stopped
    assert go_on(explorer) == record(denoiser, "hello", SHORT)
    assert explorer.compared == {}  # nothing was edited: there is one run only
    assert explorer.progress.value == 6


def test_two_branches_stand_side_by_side_and_what_is_pinned_stays(explorer, denoiser):
    whole, editor = run(explorer), explorer.editor
    editor.after.value = 1
    assert press(explorer, "Change", 2, text="é") == ""  # two tokens of one byte each
    assert editor.chosen.value[0] == 2 and len(editor.chosen.value) == 3  # and a space
    assert press(explorer, "Pin", *editor.chosen.value) == ""
    assert press(explorer, "Mask", 6) == ""
    labels = [label for label, _ in editor.chosen.options]
    assert labels[2].endswith("changed, pinned") and labels[6].startswith("6: MASK")
    draft, fixed = editor.draft.copy(), editor.fixed.copy()
    other = go_on(explorer)
    paused = replace(whole, steps=whole.steps[:2], stopped_early=False)
    arrays = {"draft": torch.from_numpy(draft), "fixed": torch.from_numpy(fixed)}
    assert other == branch(denoiser, paused, **arrays) and other.prompt == "hello"
    assert (other.drafts[2:, 2:5] == draft[2:5]).all()
    runs = {"as it was": whole, "edited after iteration 1": other}
    assert explorer.compared == runs
    assert (2, "input") in frames(other) and explorer.screen.trace is other
    assert "changed by hand, " in explorer.screen.player.outputs[0]["data"]["text/html"]
    # What is pinned in a run is pinned where it goes on.
    editor.after.value = 3
    assert not editor.is_edited
    assert go_on(explorer) == other


def test_a_run_that_was_cut_off_goes_on_in_both_branches(denoiser):
    explorer = stopped(denoiser, free=1)
    visible = np.flatnonzero(explorer.editor.draft != denoiser.mask_token_id).tolist()
    assert press(explorer, "Mask", *visible[:2]) == ""
    other = go_on(explorer)
    as_it_was = explorer.compared["as it was"]
    assert as_it_was == record(denoiser, "hello", SHORT) and as_it_was != other
    assert len(other.steps) == 6


def test_a_saved_run_keeps_what_was_pinned(explorer, denoiser, tmp_path):
    run(explorer)
    explorer.editor.after.value = 1
    assert press(explorer, "Change", 3, text="x") == ""
    press(explorer, "Pin", 3)
    other = Trace.load(go_on(explorer).save(tmp_path / "run.jsonl"))
    explorer._load(other, "from a file")
    explorer.editor.after.value = 0
    assert not explorer.editor.fixed.any()  # before the edit
    explorer.editor.after.value = 4
    assert np.flatnonzero(explorer.editor.fixed).tolist() == [3]
    assert go_on(explorer) == other


def test_undo_and_what_cannot_be_edited(explorer):
    assert "there is no run yet" in press(explorer, "Mask")
    explorer.editor.go.click()
    assert "no run to go on from" in explorer.message.value
    run(explorer)
    before = explorer.editor.draft.copy()
    assert "no token is chosen" in press(explorer, "Pin")
    assert press(explorer, "Mask", 0) == ""
    assert "a MASK is chosen" in press(explorer, "Pin", 0)
    assert "0 tokens for position 0" in press(explorer, "Change", 0, text=" ")
    assert "expected 1 to 12" in press(explorer, "Change", 0, text="x" * 13)
    assert press(explorer, "Undo all") == ""
    assert (explorer.editor.draft == before).all() and not explorer.editor.is_edited
    explorer.editor.after.value = 5  # the last
    explorer.editor.go.click()
    assert explorer.wait(PATIENCE) and "expected some that are left" in explorer.message.value


def test_a_run_of_another_model_is_refused(denoiser):
    explorer = make_explorer(denoiser, gallery={"Oslo": make_trace(words("Oslo <b>", 5))})
    explorer.recorded.value = "Oslo"
    assert "expected one of tiny" in press(explorer, "Which others move?", 0)
    assert "&lt;b&gt;" in explorer.editor.screen.value  # a token is text
    assert "<b>" not in explorer.editor.screen.value.split("</div>")[1]


def test_hiding_a_token_shows_how_far_the_others_move(explorer, denoiser):
    trace = run(explorer)
    explorer.editor.after.value = 5
    assert press(explorer, "Which others move?", 3) == ""
    shown = explorer.editor.moves.value
    prompt, end = len(trace.prompt_ids), trace.answer_length(5) + 1
    tokens = torch.from_numpy(np.concatenate([trace.prompt_ids, trace.drafts[5][:end]]))
    moves = effects(denoiser, tokens, "prompt-causal", prompt, "next", [prompt + 3])[0, prompt:]
    most = int(np.argmax(np.where(np.arange(len(moves)) == 3, 0, moves)))
    assert f"most {most} “" in shown and f"” by {100 * moves[most]:.1f} %" in shown
    assert f"moves {100 * moves[most]:.1f} %" in shown.split("</p>")[1]
    assert shown.count("<del") == 1 and ", hidden" in shown


# -- sweep and compare -----------------------------------------------------------------------------


def test_a_sweep_runs_each_value_and_shows_a_card_for_each(explorer, denoiser):
    explorer.sweep.setting.value = "noise_start"
    explorer.sweep.values.value = "0, 0.5,1"
    explorer.sweep.button.click()
    assert explorer.wait(PATIENCE) and explorer.message.value == ""
    cards = [card.value for card in explorer.sweep.cards.children]
    assert len(cards) == 3
    for value, card in zip((0.0, 0.5, 1.0), cards, strict=True):
        trace = record(denoiser, "hello", replace(SHORT, noise_start=value))
        assert "Noise start" in card and "<img" in card and "of its tokens repeat" in card
        assert f"{trace.tokens} token" in card
    run(explorer)
    assert explorer.sweep.cards.children == ()
    explorer.noiseless.value = True
    explorer.sweep.button.click()
    assert "Noise start has no effect where" in explorer.message.value


@pytest.mark.parametrize("name", SETTINGS)
def test_every_setting_has_values_to_sweep(name):
    values = suggested(name, RefineConfig())
    assert 2 <= len(values) <= 6
    config = replace(RefineConfig(), remasking=SETTINGS[name].get("used_by", ["guided"])[0])
    runs = parse(name, ", ".join(map(str, values)).replace("None", "none").lower(), config)
    assert [getattr(config, name) for config in runs.values()] == values


@pytest.mark.parametrize("text", ["0.5", "", "1, 2, 3, 4, 5, 6, 7", "0.5, much", "0.5, 9"])
def test_values_that_cannot_be_run_are_refused(text):
    with pytest.raises(InvalidInput, match=r"expected (2 to 6|a number from 0 to 1)"):
        parse("noise_start", text, RefineConfig())


def test_a_page_with_limits_refuses_longer_runs(denoiser):
    explorer = make_explorer(denoiser, limits=Limits(answer_length=16))
    explorer.sweep.setting.value, explorer.sweep.values.value = "answer_length", "8, 32"
    explorer.sweep.button.click()
    assert "Answer length 32: expected at most Answer length 16" in explorer.message.value
    longer = make_explorer(denoiser, replace(SHORT, answer_length=20))
    explorer._load(run(longer), "from a file")
    explorer.editor.after.value = 0
    explorer.editor.go.click()
    assert "Answer length 20: expected at most" in explorer.message.value


def test_compare_takes_the_run_on_show_whatever_its_settings(explorer, denoiser):
    explorer.compare_with.value = "the run on show"
    explorer.compare()
    assert "there is no run on show" in explorer.message.value
    first = run(explorer)
    explorer.noiseless.value = True
    explorer.controls["seed"].value = 7
    explorer.compare()
    assert explorer.wait(PATIENCE)
    (before, old), (now, new) = explorer.compared.items()
    assert old is first and new == record(denoiser, "hello", explorer.settings.config)
    assert before.startswith("before: ") and "guided" in before
    assert now.startswith("now: ") and "none, Seed 7" in now
    explorer.prompt.value = "another"
    explorer.compare()
    assert "answers another" in explorer.message.value


def test_an_edited_draft_is_what_follows_unless_it_is_edited(explorer):
    run(explorer)
    for iteration in (0, 2, 4):
        explorer.editor.after.value = iteration
        assert (explorer.editor.draft == explorer.trace.inputs[iteration + 1]).all()
        assert (next_input(explorer.editor.paused) == explorer.editor.draft).all()
