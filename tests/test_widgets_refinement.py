"""The explorer and the player, driven by their traits as a page would drive them."""

import base64
import re
import threading
import time
from dataclasses import replace
from datetime import UTC, datetime

import pytest
from conftest import new_denoiser
from traces import make_trace, words
from traitlets import TraitError

from lad.diffusion.config import CHOICES, PRESETS, RANGES, RefineConfig, preset
from lad.diffusion.sampler import record
from lad.diffusion.trace import Trace
from lad.utils import AssetUnavailable
from lad.viz.tokens import frames
from lad.widgets import Limits, RefinementExplorer
from lad.widgets.controls import CUSTOM
from lad.widgets.refinement import variation

PATIENCE = 60  # seconds until a test gives up waiting


@pytest.fixture(scope="module")
def denoiser():
    """The tiny backbone with an adapter that does something, so that drafts keep moving."""
    return new_denoiser()


@pytest.fixture
def explorer(denoiser):
    config = RefineConfig(iterations=6, answer_length=12, patience=0)
    explorer = RefinementExplorer(denoiser, prompt="hello", config=config)
    yield explorer
    explorer.close()
    assert not explorer.running


class Gate:
    """Stands before a denoiser: lets `free` forwards through, then waits to be opened."""

    def __init__(self, denoiser, free):
        self.denoiser, self.free = denoiser, free
        self.reached, self.opened = threading.Event(), threading.Event()
        self.calls = 0

    def __getattr__(self, name):
        return getattr(self.denoiser, name)

    def logits(self, *args):
        self.calls += 1
        if self.calls > self.free:
            self.reached.set()
            assert self.opened.wait(PATIENCE)
        return self.denoiser.logits(*args)


# -- controls --------------------------------------------------------------------------------------


def test_every_setting_has_a_control_within_its_range(explorer):
    settings = set(RefineConfig().to_dict())
    assert set(explorer.controls) == settings
    for name, control in explorer.controls.items():
        if name == "iterations":
            assert (control.options[0], control.options[-1]) == RANGES[name]
        elif name in ("window", "added_tokens", "tail", "context"):
            values = [value for _, value in control.options]
            assert values[0] is None
            words = "the adapter's own" if name == "context" else "no limit"
            assert control.label == words  # a blank would look like a broken control
            assert (values[1], values[-1]) == RANGES[name]
        elif name in ("remasking", "repeats", "advance"):
            known = {value for _, value in control.options}
            assert known == set(CHOICES[name]) - {"none"}  # which has a box of its own
        elif name not in ("permanent", "redraw"):
            low, high = RANGES[name]
            assert low <= control.min <= control.value <= control.max <= high


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("iterations", 12),
        ("noise_start", 0.25),
        ("sharpness", 2.5),
        ("noise_clipping", 0.5),
        ("temperature", 1.25),
        ("top_k", 7),
        ("top_p", 0.5),
        ("eos_bias", -1.5),
        ("answer_length", 31),
        ("context", 128),
        ("patience", 2),
        ("seed", 99),
        ("remasking", "random"),
        ("remasking", "threshold"),
        ("clustering", 0.5),
        ("threshold", 0.75),
        ("apart", 0.5),
        ("window", 16),
        ("permanent", True),
        ("redraw", False),
        ("added_tokens", 8),
        ("tail", 8),
        ("repeats", "remask"),
        ("repeats", "replace"),
        ("advance", "leftmost"),
    ],
)
def test_a_control_sets_its_field_and_no_other(explorer, name, value):
    before = explorer.config.to_dict()
    explorer.controls[name].value = value
    assert explorer.config.to_dict() == before | {name: value}


def test_the_controls_start_from_the_configuration_given(denoiser):
    config = RefineConfig(
        iterations=7, remasking="random", noise_start=0.3, sharpness=2.0, temperature=1.5,
        top_k=9, top_p=0.8, eos_bias=-2.0, answer_length=20, context=100, patience=4, seed=5,
    )  # fmt: skip
    assert RefinementExplorer(denoiser, config=config).config == config
    for name in ("demo", "quality", "noiseless"):
        assert RefinementExplorer(denoiser, config=preset(name)).config == preset(name)
    odd = RefineConfig(remasking="threshold", window=7, added_tokens=3, repeats="remask")
    assert RefinementExplorer(denoiser, config=odd).config == odd
    quiet = RefineConfig(remasking="none")
    assert RefinementExplorer(denoiser, config=quiet).config == quiet


def test_controls_without_effect_are_switched_off(explorer):
    def off():
        return {name for name, control in explorer.controls.items() if control.disabled}

    explorer.controls["temperature"].value = 1.0
    assert off() == {"threshold", "apart", "window", "advance"}
    explorer.controls["remasking"].value = "random"
    assert off() == {"threshold", "apart", "window", "advance", "noise_clipping"}
    explorer.controls["remasking"].value = "threshold"
    scheduled = {"noise_start", "sharpness", "noise_clipping", "clustering"}
    assert off() == scheduled
    explorer.controls["temperature"].value = 0.0  # greedy
    assert off() == scheduled | {"top_k", "top_p"}
    explorer.noiseless.value = True
    strategy = {"remasking", "threshold", "apart", "window", "advance"}
    shown = {"permanent", "redraw"}
    assert off() == scheduled | strategy | shown | {"top_k", "top_p"}
    assert explorer.config.remasking == "none"


def test_moving_controls_runs_nothing(denoiser):
    gate = Gate(denoiser, free=0)
    explorer = RefinementExplorer(gate, prompt="hello")
    explorer.controls["iterations"].value = 32
    explorer.noiseless.value = True
    explorer.prompt.value = "other"
    assert gate.calls == 0
    assert not explorer.running


# -- runs ------------------------------------------------------------------------------------------


def test_a_run_records_what_the_sampler_does(explorer, denoiser):
    explorer.run_button.click()
    assert explorer.wait(PATIENCE)
    assert explorer.message.value == ""
    assert explorer.trace == record(denoiser, "hello", explorer.config)
    assert explorer.player.trace is explorer.trace
    assert explorer.progress.value == explorer.progress.max == 6
    assert explorer.progress.bar_style == "success"
    assert explorer.status.value.startswith("iteration 6 of 6, ")
    assert explorer.status.value.endswith("iterations a second")
    assert not explorer.run_button.disabled and explorer.stop_button.disabled


def test_scrubbing_afterwards_asks_the_model_nothing(denoiser):
    gate = Gate(denoiser, free=1000)
    explorer = RefinementExplorer(
        gate, prompt="hello", config=RefineConfig(iterations=4, answer_length=12, patience=0)
    )
    explorer.run()
    assert explorer.wait(PATIENCE)
    spent = gate.calls
    assert spent == 4
    seen = set()
    for step in range(explorer.player.slider.max + 1):
        explorer.player.slider.value = step
        seen.add(explorer.player.caption.value)
    explorer.player.by_confidence.value = True
    assert len(seen) == len(frames(explorer.trace)) > 4
    assert gate.calls == spent


def test_a_run_without_noising_has_one_phase_an_iteration(explorer):
    explorer.noiseless.value = True
    explorer.run()
    assert explorer.wait(PATIENCE)
    assert not explorer.trace.remask.any()
    assert explorer.player.slider.max == 5


def test_stop_during_a_run_keeps_what_was_done(denoiser):
    gate = Gate(denoiser, free=3)
    explorer = RefinementExplorer(
        gate, prompt="hello", config=RefineConfig(iterations=50, answer_length=12, patience=0)
    )
    explorer.run_button.click()
    assert gate.reached.wait(PATIENCE)  # in the fourth forward
    assert explorer.run_button.disabled and not explorer.stop_button.disabled
    assert explorer.player.slider.disabled  # nothing to scrub yet
    assert "Iteration 2" in explorer.player.caption.value  # the live view of the third
    assert "settled" not in explorer.player.caption.value  # nobody can know yet
    explorer.stop_button.click()
    assert explorer.stop_button.disabled
    gate.opened.set()
    assert explorer.wait(PATIENCE)
    assert len(explorer.trace.steps) == gate.calls == 4
    assert not explorer.trace.stopped_early
    assert "Cut off after 4 of 50 iterations" in explorer.player.answer.value
    assert "settled" not in explorer.player.caption.value  # and nobody ever will
    assert not explorer.player.slider.disabled
    assert explorer.progress.bar_style == "warning"
    assert not explorer.runner._thread.is_alive()


def test_stop_cuts_a_pause_short(denoiser):
    explorer = RefinementExplorer(
        denoiser, prompt="hello", config=RefineConfig(iterations=50, answer_length=12), pause=5
    )
    explorer.run()
    deadline = time.monotonic() + PATIENCE
    while not explorer.progress.value and time.monotonic() < deadline:
        time.sleep(0.01)
    started = time.monotonic()
    explorer.stop()
    assert explorer.wait(PATIENCE)
    assert time.monotonic() - started < 4
    assert len(explorer.trace.steps) == 1


def test_a_second_run_during_a_run_is_ignored(denoiser):
    gate = Gate(denoiser, free=1)
    explorer = RefinementExplorer(
        gate, prompt="hello", config=RefineConfig(iterations=3, answer_length=12, patience=0)
    )
    explorer.run()
    assert gate.reached.wait(PATIENCE)
    first = explorer.runner._thread
    explorer.prompt.value = "something else"
    explorer.run()
    explorer.run_button.click()
    assert explorer.runner._thread is first
    gate.opened.set()
    assert explorer.wait(PATIENCE)
    assert gate.calls == 3
    assert explorer.trace.prompt == "hello"
    explorer.run()  # and afterwards it works again
    assert explorer.wait(PATIENCE)
    assert explorer.trace.prompt == "something else"


def test_bad_input_is_said_in_the_widget(explorer):
    explorer.run()
    assert explorer.wait(PATIENCE)
    good = explorer.trace
    explorer.prompt.value = "   "
    explorer.run()
    assert explorer.wait(PATIENCE)
    assert "the prompt is empty" in explorer.message.value
    assert 'role="alert"' in explorer.message.value
    assert explorer.progress.bar_style == "danger"
    assert explorer.player.trace is good  # what was there stays
    explorer.prompt.value = "hello"
    explorer.run()
    assert explorer.wait(PATIENCE)
    assert explorer.message.value == ""


def test_a_field_that_the_sampler_refuses_is_said_too(explorer):
    explorer.controls["sharpness"].max = 30
    explorer.controls["sharpness"].value = 25
    explorer.run()
    assert explorer.wait(PATIENCE)
    assert "sharpness = 25.0: expected a number from 0.01 to 20" in explorer.message.value
    assert not explorer.run_button.disabled


def test_an_error_in_the_model_is_shown_escaped_with_the_steps_before_it(denoiser):
    class Breaking(Gate):
        def logits(self, *args):
            self.calls += 1
            if self.calls == 3:
                raise RuntimeError("<b>out of memory</b>")
            return self.denoiser.logits(*args)

    explorer = RefinementExplorer(
        Breaking(denoiser, 0), prompt="hello", config=RefineConfig(answer_length=12, patience=0)
    )
    explorer.run()
    assert explorer.wait(PATIENCE)
    assert "Unexpected RuntimeError: &lt;b&gt;out of memory&lt;/b&gt;" in explorer.message.value
    assert explorer.progress.bar_style == "danger"
    assert len(explorer.trace.steps) == 2
    assert not explorer.trace.stopped_early
    assert not explorer.run_button.disabled and explorer.stop_button.disabled


def test_nan_in_the_model_is_named(denoiser):
    class Broken(Gate):
        def logits(self, *args):
            return self.denoiser.logits(*args) * float("nan")

    explorer = RefinementExplorer(Broken(denoiser, 0), prompt="hello")
    explorer.run()
    assert explorer.wait(PATIENCE)
    assert "NaN or infinity" in explorer.message.value
    assert explorer.trace is None


def test_a_model_is_loaded_once_and_only_when_needed(denoiser):
    loads = []

    def load():
        loads.append(threading.current_thread())
        return denoiser

    explorer = RefinementExplorer(load, prompt="hello", config=RefineConfig(iterations=2))
    assert not loads
    for _ in range(2):
        explorer.run()
        assert explorer.wait(PATIENCE)
    assert len(loads) == 1
    assert loads[0] is not threading.main_thread()


def test_a_model_that_cannot_be_had_is_said_and_asked_for_again(denoiser):
    answers = [AssetUnavailable("no network: <offline>"), denoiser]

    def load():
        answer = answers.pop(0)
        if isinstance(answer, Exception):
            raise answer
        return answer

    explorer = RefinementExplorer(load, prompt="hello", config=RefineConfig(iterations=2))
    explorer.run()
    assert explorer.wait(PATIENCE)
    assert "no network: &lt;offline&gt;" in explorer.message.value
    explorer.run()
    assert explorer.wait(PATIENCE)
    assert explorer.message.value == ""
    assert explorer.trace is not None


def test_no_thread_is_left_alive(denoiser):
    before = set(threading.enumerate())
    explorer = RefinementExplorer(
        denoiser, prompt="hello", config=RefineConfig(iterations=512, answer_length=12, patience=0)
    )
    explorer.run()
    assert set(threading.enumerate()) - before
    explorer.close()
    assert set(threading.enumerate()) == before


def test_pausing_is_for_the_eyes_only(explorer, denoiser):
    explorer.pause.value = 0.05
    explorer.run()
    assert explorer.wait(PATIENCE)
    assert explorer.player.play.interval == 50
    assert explorer.trace == record(denoiser, "hello", explorer.config)


# -- presets, limits, turns ------------------------------------------------------------------------


@pytest.mark.parametrize("name", PRESETS)
def test_a_preset_sets_every_control_and_moving_one_leaves_it(explorer, name):
    explorer.preset.value = name
    assert explorer.config == preset(name)
    assert explorer.preset.value == name
    explorer.controls["seed"].value = 7  # anybody's
    assert explorer.preset.value == name
    explorer.controls["eos_bias"].value = 0.5
    assert explorer.preset.value == CUSTOM
    assert explorer.config.eos_bias == 0.5  # "custom" sets nothing


def test_a_preset_outside_the_limits_is_brought_within(denoiser):
    limits = Limits(iterations=10, answer_length=20, context=128)
    explorer = RefinementExplorer(denoiser, limits=limits, config=preset("demo"))
    assert explorer.preset.value == "demo"
    assert explorer.config == limits.apply(preset("demo"))
    assert (explorer.config.iterations, explorer.config.answer_length) == (10, 20)
    assert max(explorer.controls["iterations"].options) == 10
    assert explorer.controls["answer_length"].max == 20
    assert max(n for _, n in explorer.controls["context"].options if n is not None) == 128
    with pytest.raises(TraitError):
        explorer.controls["iterations"].value = 12
    explorer.controls["answer_length"].value = 500  # what a page may send
    assert explorer.config.answer_length == 20


def test_a_prompt_over_the_limit_is_refused(denoiser):
    gate = Gate(denoiser, free=0)
    explorer = RefinementExplorer(gate, prompt="x" * 31, limits=Limits(characters=30))
    explorer.run()
    assert explorer.wait(PATIENCE)
    assert "a text of 31 characters: expected at most 30" in explorer.message.value
    assert gate.calls == 0


def test_a_run_ends_at_the_limit_of_time(denoiser):
    explorer = RefinementExplorer(
        denoiser,
        prompt="hello",
        config=RefineConfig(iterations=512, answer_length=12, patience=0),
        limits=Limits(seconds=0.2),
    )
    explorer.run()
    assert explorer.wait(PATIENCE)
    assert 0 < len(explorer.trace.steps) < 512
    assert "ended after 0.2 s, the most that a run may take here" in explorer.status.value
    assert "Cut off after" in explorer.player.answer.value
    assert explorer.progress.bar_style == "warning"


def test_earlier_turns_are_part_of_the_prompt_while_the_box_is_ticked(explorer, denoiser):
    explorer.turns.value = True
    explorer.run()
    assert explorer.wait(PATIENCE)
    first = explorer.trace
    explorer.prompt.value = "again"
    explorer.run()
    assert explorer.wait(PATIENCE)
    talk = [
        {"role": "user", "content": "hello"},
        {"role": "assistant", "content": first.answer or "…"},
        {"role": "user", "content": "again"},
    ]
    assert explorer.trace == record(denoiser, talk, explorer.config)
    assert "2 earlier turns" in explorer.talk.value
    explorer.turns.value = False
    assert explorer.talk.value == ""
    explorer.run()
    assert explorer.wait(PATIENCE)
    assert explorer.trace == record(denoiser, "again", explorer.config)


def test_the_model_that_is_chosen_answers(denoiser):
    gates = {"one": Gate(denoiser, free=99), "two": Gate(denoiser, free=99)}
    explorer = RefinementExplorer(
        models=gates, prompt="hello", config=RefineConfig(iterations=2, answer_length=8)
    )
    assert not explorer.model.disabled
    explorer.model.value = "two"
    explorer.run()
    assert explorer.wait(PATIENCE)
    assert (gates["one"].calls, gates["two"].calls) == (0, len(explorer.trace.steps))


# -- comparing -------------------------------------------------------------------------------------


def test_a_variation_changes_what_it_names_and_nothing_else():
    base = RefineConfig(iterations=9, seed=3)
    name, other = variation(base, "manner")
    assert (name, other) == ("without re-noising", replace(base, remasking="none"))
    name, back = variation(other, "manner")
    assert name == "with re-noising" and back == base
    name, other = variation(base, "seed")
    assert name == "seed 4, temperature 1"  # a greedy run does not ask its seed
    assert other == replace(base, seed=4, temperature=1.0)
    assert variation(base, "quality") == ("preset quality", replace(preset("quality"), seed=3))


def test_compare_runs_both_and_shows_them_side_by_side(explorer, denoiser):
    assert explorer.comparison.widget.layout.display == "none"
    config = explorer.config
    explorer.compare_with.value = "manner"
    explorer.compare_button.click()
    assert explorer.wait(PATIENCE)
    assert explorer.message.value == ""
    assert explorer.comparison.names == ("these settings", "without re-noising")
    noiseless = replace(config, remasking="none")
    assert explorer.comparison.traces[0] == record(denoiser, "hello", config)
    assert explorer.comparison.traces[1] == record(denoiser, "hello", noiseless)
    assert explorer.trace is explorer.comparison.traces[0]  # the player and the file follow
    assert explorer.player.trace is explorer.trace
    assert explorer.comparison.widget.layout.display == ""


def test_a_comparison_that_is_stopped_in_its_first_run_shows_that_run_alone(denoiser):
    gate = Gate(denoiser, free=1)
    explorer = RefinementExplorer(
        gate, prompt="hello", config=RefineConfig(iterations=9, answer_length=12, patience=0)
    )
    explorer.compare()
    assert gate.reached.wait(PATIENCE)
    explorer.stop()
    gate.opened.set()
    assert explorer.wait(PATIENCE)
    assert gate.calls == len(explorer.trace.steps) == 2
    assert explorer.comparison.widget.layout.display == "none"


# -- traces to keep and to bring back --------------------------------------------------------------


def upload(explorer, data, name="run.jsonl"):
    explorer.upload.value = (
        {
            "name": name,
            "type": "",
            "size": len(data),
            "content": memoryview(data),
            "last_modified": datetime.now(UTC),
        },
    )


def saved(explorer):
    link = re.search(r"base64,([^\"]*)\"", explorer.keep.value)
    return base64.b64decode(link[1])


def test_a_saved_trace_comes_back_as_it_was(explorer, denoiser):
    explorer.run()
    assert explorer.wait(PATIENCE)
    kept, data = explorer.trace, saved(explorer)
    other = RefinementExplorer(Gate(denoiser, free=0))
    upload(other, data)
    assert other.message.value == ""
    assert other.trace == kept and other.player.trace is other.trace
    assert saved(other) == data
    assert other.upload.value == ()  # the same file can be chosen again


@pytest.mark.parametrize(
    ("data", "words"),
    [
        (b"", "no readable trace"),
        (b"\xff\xfe", "no readable trace"),
        (b'{"schema": "lad-trace"}', "no readable trace"),
        (b"[1, 2]", "no readable trace"),
        (b"x" * 20_000_001, "20,000,001 bytes"),
    ],
)
def test_a_file_that_is_no_trace_is_said(explorer, data, words):
    upload(explorer, data, "<img src=x>.jsonl")
    assert words in explorer.message.value
    assert "<img" not in explorer.message.value
    assert explorer.trace is None


def test_a_trace_whose_settings_are_not_numbers_is_refused(explorer):
    lines = list(make_trace(words("a b", 4)).lines())
    lines[0] = lines[0].replace('"iterations": 1', '"iterations": "many"')
    upload(explorer, "\n".join(lines).encode())
    assert "no readable trace" in explorer.message.value


def test_the_gallery_fills_the_player_and_can_be_saved(denoiser):
    trace = make_trace(words("Oslo is nice", 5))
    explorer = RefinementExplorer(Gate(denoiser, free=0), gallery={"Oslo": trace})
    assert explorer.player.trace is None
    explorer.gallery.choice.value = "Oslo"
    assert explorer.player.trace is trace and explorer.trace is trace
    assert Trace.from_lines(saved(explorer).decode().splitlines()) == trace
