"""The refinement explorer and its controls, driven by their traits as a page would drive them."""

import base64
import re
import threading
from dataclasses import replace
from datetime import UTC, datetime

import pytest
from traces import make_trace, words
from traitlets import TraitError

from lad.diffusion.config import PRESETS, RANGES, RefineConfig, preset
from lad.diffusion.denoiser import PromptForward
from lad.diffusion.sampler import record
from lad.diffusion.trace_file import from_lines, to_lines
from lad.utils import AssetUnavailable, describe
from lad.viz.tokens import frames
from lad.widgets import Limits, RefinementExplorer
from lad.widgets.controls import CUSTOM, PURPOSES, set_value
from lad.widgets.refinement import VARIATIONS, variation

PATIENCE = 60  # seconds until a test gives up waiting
SHORT = RefineConfig(iterations=6, answer_length=12, patience=0)
ENDLESS = replace(SHORT, iterations=512)


def make_explorer(denoiser, config=SHORT, **options):
    return RefinementExplorer(denoiser, "hello", config, **options)


def run(explorer):
    """Run to the end; the trace."""
    explorer.run_button.click()
    assert explorer.wait(PATIENCE)
    return explorer.trace


@pytest.fixture
def explorer(denoiser):
    explorer = make_explorer(denoiser)
    yield explorer
    explorer.stop()
    assert explorer.wait(PATIENCE)


class Gate:
    """Before a denoiser: lets `free` forwards through, then raises an error or waits for `open`."""

    def __init__(self, denoiser, free, error=None):
        self.denoiser, self.free, self.error = denoiser, free, error
        self.reached, self.opened = threading.Event(), threading.Event()
        self.calls = 0

    def __getattr__(self, name):
        return getattr(self.denoiser, name)

    def prepare(self, prompts, padding=None):
        return PromptForward(self, prompts, padding)

    def logits(self, *args):
        self.calls += 1
        if self.calls > self.free:
            self.reached.set()
            if self.error:
                raise self.error
            assert self.opened.wait(PATIENCE)
        return self.denoiser.logits(*args)

    def open(self, explorer):
        """Let the rest through, to the end of the explorer's run."""
        self.opened.set()
        assert explorer.wait(PATIENCE)


def player(explorer):
    """The page under which the last run can be played, or ""."""
    shown = explorer.screen.player.outputs
    return shown[0]["data"]["text/html"] if shown else ""


def values(control):
    return [value for _, value in control.options]


def test_every_setting_has_a_control_with_its_range_and_help(explorer):
    fields = describe(RefineConfig)
    assert list(explorer.controls) == list(fields)
    assert len({field["label"] for field in fields.values()} - {""}) == len(fields)
    for name, field in fields.items():
        control = explorer.controls[name]
        assert (control.description, control.tooltip) == (field["label"], field["help"])
        if field["choices"]:
            assert values(control) == list(field["choices"])
        elif name == "iterations":
            assert (values(control)[0], values(control)[-1]) == RANGES[name]
        elif field["type"] == int | None:
            assert control.label == "none"  # a blank would look like a broken control
            assert values(control)[0] is None
            assert (values(control)[1], values(control)[-1]) == RANGES[name]
        elif field["type"] is not bool:
            low, high = RANGES[name]
            assert low <= control.min < low + 0.1
            assert control.max == min(high, 2**31 - 1)


def test_a_control_sets_its_field_and_no_other(explorer):
    for name, control in explorer.controls.items():
        before = explorer.settings.config.to_dict()
        if hasattr(control, "options"):
            value = values(control)[-1]
        else:
            value = control.max if hasattr(control, "max") else not control.value
        set_value(control, value)
        assert explorer.settings.config.to_dict() == before | {name: value}


def test_the_controls_start_from_the_configuration_given(denoiser):
    odd = RefineConfig(remasking="threshold", iterations=7, window=7, added_tokens=5, context=100)
    for config in (odd, *PRESETS.values()):
        assert RefinementExplorer(denoiser, config=config).settings.config == config


def test_controls_without_effect_are_switched_off(explorer):
    thresholds = {"confidence_threshold", "isolated_threshold", "window", "lookahead"}
    scheduled = {"noise_start", "sharpness", "noise_clipping", "clustering"}
    others = {"entropy_bound", "editing_threshold", "variants"}
    expected = {
        "guided": thresholds | others,
        "random": thresholds | others | {"noise_clipping"},
        "threshold": scheduled | others,
        "none": scheduled | thresholds | others | {"permanent"},
    }
    for temperature, sampling in ((1.0, set()), (0.0, {"top_k", "top_p"})):
        explorer.controls["temperature"].value = temperature
        for strategy, names in expected.items():
            explorer.controls["remasking"].value = strategy
            off = {name for name, control in explorer.controls.items() if control.disabled}
            assert off == names | sampling
    assert explorer.noiseless.value
    explorer.noiseless.value = False
    assert explorer.settings.config.remasking == "threshold"  # the strategy from before
    explorer.noiseless.value = True
    assert explorer.settings.config.remasking == "none"
    explorer.controls["remasking"].value = "verified"
    assert not explorer.controls["variants"].disabled


def test_a_run_records_what_the_sampler_does(explorer, denoiser):
    explorer.pause.value = 0.05  # shows every phase for a while, and changes nothing
    run(explorer)
    assert explorer.message.value == ""
    assert explorer.trace == record(denoiser, "hello", explorer.settings.config)
    assert explorer.screen.trace is explorer.trace
    assert explorer.progress.value == explorer.progress.max == 6
    assert explorer.progress.bar_style == "success"
    assert re.fullmatch(r"6 of 6 iterations, [\d.]+ a second", explorer.status.value)
    assert not explorer.run_button.disabled and explorer.stop_button.disabled


def test_the_model_runs_when_run_is_pressed_and_never_else(denoiser):
    gate = Gate(denoiser, free=1000)
    explorer = make_explorer(gate)
    explorer.controls["iterations"].value = 4
    explorer.noiseless.value = True
    explorer.prompt.value = "other"
    explorer.noiseless.value = False
    assert gate.calls == 0 and not explorer.running
    run(explorer)
    assert gate.calls == 4
    assert player(explorer).count("<div data-frame") == len(frames(explorer.trace)) > 4


def test_a_live_draft_is_coloured_by_its_confidence_while_the_box_is_ticked(explorer):
    for ticked in (True, False):
        explorer.screen.by_confidence.value = ticked
        explorer.screen.show_live(make_trace(words("Paris", 3)), "denoised")
        shown = explorer.screen.draft.value.split("</style>")[1]
        assert ('class="lad-frames lad-by-confidence"' in shown) == ticked


def test_stop_during_a_run_keeps_what_was_done(denoiser):
    gate = Gate(denoiser, free=3)
    explorer = make_explorer(gate, ENDLESS)
    explorer.run_button.click()
    assert gate.reached.wait(PATIENCE)  # in the fourth forward pass
    assert explorer.run_button.disabled and not explorer.stop_button.disabled
    assert player(explorer) == ""  # nothing to scrub yet
    live = explorer.screen.draft.value.split("</style>")[1]
    assert "Iteration 2" in live  # the live view of the third
    assert "settled" not in live  # which is not known yet
    explorer.stop_button.click()
    assert explorer.stop_button.disabled
    gate.open(explorer)
    assert len(explorer.trace.steps) == gate.calls == 4
    assert not explorer.trace.stopped_early
    assert "Cut off after 4 of 512 iterations" in player(explorer)
    assert "; settled" not in player(explorer)
    assert explorer.screen.live.layout.display == "none"
    assert explorer.progress.bar_style == "warning"


def test_a_second_run_during_a_run_is_ignored(denoiser):
    gate = Gate(denoiser, free=1)
    explorer = make_explorer(gate, replace(SHORT, iterations=3))
    explorer.run()
    assert gate.reached.wait(PATIENCE)
    explorer.prompt.value = "something else"
    explorer.run()
    explorer.run_button.click()
    gate.open(explorer)
    assert (gate.calls, explorer.trace.prompt) == (3, "hello")
    assert run(explorer).prompt == "something else"  # and afterwards it works again


def test_bad_input_is_shown_in_the_widget(explorer):
    good = run(explorer)
    explorer.prompt.value = "   "
    run(explorer)
    assert "the prompt is empty" in explorer.message.value
    assert 'role="alert"' in explorer.message.value
    assert explorer.progress.bar_style == "danger"
    assert explorer.screen.trace is good  # what was there stays
    explorer.prompt.value = "hello"
    explorer.controls["sharpness"].max = 30
    explorer.controls["sharpness"].value = 25
    run(explorer)
    assert "sharpness = 25.0: expected a number from 0.01 to 20" in explorer.message.value
    assert not explorer.run_button.disabled
    explorer.controls["sharpness"].value = 1
    run(explorer)
    assert explorer.message.value == ""


def test_an_error_in_the_model_is_shown_escaped_with_the_steps_before_it(denoiser):
    explorer = make_explorer(Gate(denoiser, 2, RuntimeError("<b>out of memory</b>")))
    trace = run(explorer)
    assert "Unexpected RuntimeError: &lt;b&gt;out of memory&lt;/b&gt;" in explorer.message.value
    assert explorer.progress.bar_style == "danger"
    assert len(trace.steps) == 2 and not trace.stopped_early
    assert not explorer.run_button.disabled and explorer.stop_button.disabled


def test_a_model_is_loaded_once_in_the_thread_and_tried_again_after_an_error(denoiser):
    answers = [AssetUnavailable("no network: <offline>"), denoiser]
    threads = []

    def load():
        threads.append(threading.current_thread())
        answer = answers.pop(0)
        if isinstance(answer, Exception):
            raise answer
        return answer

    explorer = make_explorer(load)
    assert not threads
    run(explorer)
    assert "no network: &lt;offline&gt;" in explorer.message.value
    for _ in range(2):
        assert run(explorer) is not None
        assert explorer.message.value == ""
    assert len(threads) == 2 and threading.main_thread() not in threads


@pytest.mark.parametrize("name", PRESETS)
def test_a_preset_sets_every_control_and_moving_one_leaves_it(explorer, name):
    explorer.preset.value = name
    assert explorer.settings.config == preset(name)
    assert explorer.preset.label.startswith(f"{name}: ")  # what it is for
    labels = [getattr(control, "label", "") for control in explorer.controls.values()]
    assert None not in labels, labels  # a blank would look like a broken control
    explorer.controls["seed"].value = 7  # any seed is the preset's
    assert explorer.preset.value == name
    explorer.controls["eos_bias"].value = 0.5
    assert explorer.preset.value == CUSTOM
    assert explorer.settings.config.eos_bias == 0.5  # "custom" sets nothing


def test_a_preset_outside_the_limits_is_brought_within(denoiser):
    limits = Limits(iterations=10, answer_length=20, context=128)
    explorer = make_explorer(denoiser, preset("demo"), limits=limits)
    assert explorer.preset.value == "demo"
    assert explorer.settings.config == limits.apply(preset("demo"))
    assert max(values(explorer.controls["iterations"])) == 10
    assert explorer.controls["answer_length"].max == 20
    assert values(explorer.controls["context"])[-1] == 128
    with pytest.raises(TraitError):
        explorer.controls["iterations"].value = 12
    explorer.controls["answer_length"].value = 500  # what a page may send
    assert explorer.settings.config.answer_length == 20
    explorer.controls["answer_length"].set_state({"max": 2048})  # and of a page that was changed
    explorer.controls["answer_length"].set_state({"value": 440})
    assert run(explorer).config["answer_length"] == 20


def test_a_prompt_over_the_limit_is_refused_and_a_run_ends_at_the_limit_of_time(denoiser):
    limits = Limits(characters=30, seconds=0.2)
    explorer = make_explorer(denoiser, ENDLESS, limits=limits)
    explorer.prompt.value = "x" * 31
    assert run(explorer) is None
    assert "a text of 31 characters: expected at most 30" in explorer.message.value
    explorer.prompt.value = "hello"
    assert 0 < len(run(explorer).steps) < 512
    assert "ended after 0.2 s, the most that a run may take here" in explorer.status.value
    assert "Cut off after" in player(explorer)
    assert explorer.progress.bar_style == "warning"


def test_earlier_turns_are_part_of_the_prompt_while_the_box_is_ticked(explorer, denoiser):
    explorer.turns.value = True
    first = run(explorer)
    explorer.prompt.value = "again"
    talk = [
        {"role": "user", "content": "hello"},
        {"role": "assistant", "content": first.answer or "…"},
        {"role": "user", "content": "again"},
    ]
    assert run(explorer) == record(denoiser, talk, explorer.settings.config)
    assert "2 earlier turn" in explorer.talk.value
    explorer.turns.value = False
    assert explorer.talk.value == ""
    assert run(explorer) == record(denoiser, "again", explorer.settings.config)


def test_an_example_is_put_into_the_prompt_by_a_click(explorer):
    buttons = {one.description: one for one in explorer.examples.children[1:]}
    assert len(buttons) >= 3
    for text, button in buttons.items():
        button.click()
        assert explorer.prompt.value == text and not explorer.running


def test_a_variation_changes_what_it_names_and_nothing_else():
    base = RefineConfig(iterations=9, seed=3)
    assert {*PURPOSES.values()} == {*PRESETS} <= {*VARIATIONS.values()}
    name, other = variation(base, "remasking")
    assert (name, other) == ("without re-masking", replace(base, remasking="none"))
    assert variation(other, "remasking") == ("with re-masking", base)
    expected = replace(base, seed=4, temperature=1.0)  # a greedy run does not depend on its seed
    assert variation(base, "seed") == ("seed 4, temperature 1", expected)
    assert variation(base, "quality") == ("preset quality", replace(preset("quality"), seed=3))


def test_compare_runs_both_and_shows_them_side_by_side(denoiser):
    gate = Gate(denoiser, free=99)
    explorer = make_explorer(gate)
    explorer.compare_with.value = "remasking"
    explorer.compare_button.click()
    assert explorer.wait(PATIENCE)
    assert explorer.message.value == ""
    assert tuple(explorer.compared) == ("these settings", "without re-masking")
    noiseless = replace(SHORT, remasking="none")
    expected = tuple(record(denoiser, "hello", config) for config in (SHORT, noiseless))
    assert tuple(explorer.compared.values()) == expected
    assert explorer.trace is explorer.screen.trace is explorer.compared["these settings"]
    assert "without re-masking" in explorer.comparison.outputs[0]["data"]["text/html"]
    gate.free = gate.calls + 1
    explorer.compare()  # which is stopped in its first run
    assert gate.reached.wait(PATIENCE)
    explorer.stop()
    gate.open(explorer)
    assert len(explorer.trace.steps) == 2 and explorer.comparison.outputs == ()


def upload(explorer, data, name="run.jsonl"):
    file = {"name": name, "type": "", "size": len(data), "content": memoryview(data)}
    explorer.upload.value = (file | {"last_modified": datetime.now(UTC)},)


def saved(explorer):
    link = re.search(r"base64,([^\"]*)\"", explorer.download.value)
    return base64.b64decode(link[1])


def test_a_saved_trace_comes_back_as_it_was_and_so_does_one_of_the_gallery(explorer, denoiser):
    kept, oslo = run(explorer), make_trace(words("Oslo is nice", 5))
    runs = {"Bergen": make_trace(words("Bergen", 5), prompt="hello"), "Oslo": oslo}
    other = make_explorer(Gate(denoiser, free=0), gallery=dict(reversed(runs.items())))
    assert other.screen.trace is other.trace is runs["Bergen"]  # it opens with a run of its prompt
    assert make_explorer(denoiser, gallery={"Oslo": oslo}).trace is oslo
    upload(other, saved(explorer))
    assert other.message.value == ""
    assert other.trace == kept and other.screen.trace is other.trace
    assert other.upload.value == ()  # the same file can be chosen again
    other.recorded.value = "Oslo"
    assert other.screen.trace is other.trace is oslo
    assert from_lines(saved(other).decode().splitlines()) == oslo


def test_what_stands_around_the_player_belongs_to_the_run_in_it(denoiser):
    gate, oslo = Gate(denoiser, free=99), make_trace(words("Oslo is nice", 5), prompt="Oslo?")
    explorer = make_explorer(gate, gallery={"Oslo": oslo})
    gallery, shown = explorer.recorded, explorer.comparison
    explorer.compare()
    assert explorer.wait(PATIENCE) and shown.outputs
    own = saved(explorer)
    gallery.value = "Oslo"
    assert "Oslo?" in player(explorer) and not shown.outputs
    assert (explorer.status.value, explorer.progress.value) == ("a recorded run", 0)
    upload(explorer, own, "<own>.jsonl")
    assert gallery.value == "" and "<strong>hello" in player(explorer)
    assert explorer.status.value == "the run in &lt;own&gt;.jsonl"
    gallery.value, gate.free = "Oslo", gate.calls + 1
    explorer.run()
    assert gate.reached.wait(PATIENCE)
    assert gallery.value == "" and "<strong>hello" in explorer.screen.draft.value
    waiting = [gallery, explorer.upload, explorer.compare_button, explorer.run_button]
    assert all(control.disabled for control in waiting)
    gate.open(explorer)
    assert not any(control.disabled for control in waiting)
    assert "6 of 6 iterations" in explorer.status.value


def test_a_file_that_is_no_trace_is_an_error_in_the_widget(explorer):
    lines = list(to_lines(make_trace(words("a b", 4))))
    lines[0] = lines[0].replace('"iterations": 1', '"iterations": "many"')
    bad = [b"", b"\xff\xfe", b'{"schema": "lad-trace"}', b"[1, 2]", "\n".join(lines).encode()]
    for data in (*bad, b"x" * 20_000_001):
        upload(explorer, data, "<img src=x>.jsonl")
        expected = "is unusable" if data in bad else "20,000,001 bytes"
        assert expected in explorer.message.value
        assert "<img" not in explorer.message.value
        assert explorer.trace is None
