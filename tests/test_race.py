"""The race: two timed traces, the page that plays them, the explorer that measures them."""

import threading
import time

import pytest
from browser import until
from conftest import new_denoiser, tiny_denoiser
from traces import make_trace, words

from lad.diffusion.config import RefineConfig
from lad.diffusion.sampler import record
from lad.diffusion.trace import Trace
from lad.evaluation import race as racing
from lad.evaluation.race import LEFT_TO_RIGHT, REFINEMENT, race
from lad.models.generate import generate
from lad.utils import InvalidInput
from lad.viz.gallery import recorded_race, save_race
from lad.viz.race import race_html, race_sentence
from lad.viz.tokens import summary
from lad.widgets import Limits, RaceExplorer, RefinementExplorer

CONFIG = RefineConfig(answer_length=16, iterations=5)
HOSTILE = "<b>Why?</b></script><script>window.hacked=1</script>"


def slow(trace, *seconds):
    for step, taken in zip(trace.steps, seconds, strict=True):
        object.__setattr__(step, "seconds", taken)
    return trace


def runners():
    """By hand: three passes in 0.3 s against two in 1.5 s."""
    drafts = [words(text, 3) for text in ("Paris", "Paris is", "Paris is nice")]
    written = slow(make_trace(*drafts, prompt=HOSTILE), 0.1, 0.1, 0.1)
    written.provenance["decoding"] = LEFT_TO_RIGHT
    refined = make_trace(words("Oslo <i>is", 4), words("Oslo <i>is cold", 4), prompt=HOSTILE)
    return {LEFT_TO_RIGHT: written, REFINEMENT: slow(refined, 1.0, 0.5)}


def test_both_run_on_one_backbone_and_the_adapter_stays_merged():
    denoiser = new_denoiser().merge()
    passes = []
    found = race(denoiser, "hello", CONFIG, lambda *one: passes.append(one[:2]))
    assert denoiser.model.get_model_status().merged_adapters
    assert found[REFINEMENT] == record(denoiser, "hello", CONFIG)
    written = found[LEFT_TO_RIGHT]
    assert passes == [(name, n + 1) for name, one in found.items() for n in range(one.nfe)]
    prompt = denoiser.encode("hello").tolist()
    with denoiser.adapter_off():
        [tokens] = generate(denoiser.causal_lm, denoiser.eos_token_id, [prompt], 16)
    assert written.drafts[-1].tolist() == tokens
    assert written.nfe == len(tokens) and 0 < written.confidence[-1].min() <= 1
    origins = [trace.provenance["adapter_sha256"] for trace in found.values()]
    assert origins == [None, denoiser.adapter_sha256] and written.seconds > 0


def test_every_pass_from_left_to_right_adds_a_token_and_the_trace_is_an_ordinary_one(tmp_path):
    written = race(tiny_denoiser(), "hello", CONFIG)[LEFT_TO_RIGHT]
    last = written.drafts[-1]
    for n, (seen, draft) in enumerate(zip(written.inputs, written.drafts, strict=True)):
        assert (seen[:n] == last[:n]).all() and (seen[n:] == written.mask_token_id).all()
        assert (draft[: n + 1] == last[: n + 1]).all()
        assert (draft[n + 1 :] == written.eos_token_id).all()
    assert written.settled_at.tolist() == list(range(written.nfe))
    assert Trace.load(written.save(tmp_path / "run.jsonl")) == written
    assert f"{written.nfe} iterations" in summary(written)


def test_reading_the_prompt_is_in_the_seconds_of_both(monkeypatch):
    denoiser = new_denoiser()
    forward = denoiser.causal_lm.model.forward

    def slower(*args, **more):  # by the positions that it computes
        time.sleep(0.002 * more["input_ids"].shape[1])
        return forward(*args, **more)

    monkeypatch.setattr(denoiser.causal_lm.model, "forward", slower)
    for trace in race(denoiser, "hello " * 6, CONFIG).values():
        first, *others = (step.seconds for step in trace.steps)
        assert first > min(others) + 0.002 * 0.8 * (len(trace.prompt_ids) - 1)


def test_a_prompt_that_leaves_no_room_is_refused_before_anything_runs(monkeypatch):
    monkeypatch.setattr(racing, "generate", None)
    with pytest.raises(InvalidInput, match="tokens"):
        race(tiny_denoiser(), "x" * 5000, CONFIG)


def test_a_recorded_race_keeps_its_seconds_and_belongs_to_its_adapter(tmp_path, monkeypatch):
    monkeypatch.setenv("LAD_FIGURES", str(tmp_path))
    monkeypatch.setattr("lad.viz.gallery.CHECKOUT", tmp_path / "elsewhere")
    assert recorded_race() == {}
    found = runners()
    for trace, name in zip(found.values(), found, strict=True):
        trace.config.clear()
        trace.provenance.update(decoding=name, adapter_sha256="abc")
    save_race(found)
    assert [trace.seconds for trace in recorded_race("abc").values()] == pytest.approx([0.3, 1.5])
    assert list(recorded_race()) == list(found) and recorded_race("def") == {}


def test_the_page_says_who_won_by_which_clock():
    found = runners()
    words_ = race_sentence(found)
    assert words_.startswith(
        "Left to right: 3 tokens, cut off, in 3 passes, 0.30 s; refinement: 3 tokens in 2"
    )
    assert words_.endswith("Here refinement needs fewer passes and left to right less time.")
    page = race_html(found)
    assert page.count("data-frame") >= 2 + 3 + 2 and "1 1.0000" in page and "2 1.5000" in page
    assert "<b>Why" not in page and "<i>is" not in page


def test_the_explorer_races_stops_and_keeps_the_last_race():
    explorer = RaceExplorer(tiny_denoiser(), runners(), Limits(iterations=3, answer_length=8))
    shown = explorer.screen.player.outputs
    assert "Oslo" in shown[0]["data"]["text/html"] and explorer.prompt.value == HOSTILE
    assert "Oslo" in explorer._repr_mimebundle_()["text/html"]
    explorer.prompt.value = "hello"
    explorer.preset.value = "noiseless"
    explorer.run()
    assert explorer.wait(60) and explorer.traces[REFINEMENT].prompt == "hello"
    assert explorer.traces[REFINEMENT].nfe <= 3 and explorer.screen.player.outputs != shown
    assert explorer.message.value == "" and "at most" in explorer.status.value


def test_half_a_race_is_not_shown_and_leaves_the_adapter_merged():
    denoiser = new_denoiser().merge()
    explorer = RaceExplorer(denoiser, runners(), Limits(seconds=0.0001))
    explorer.prompt.value = "hello"
    explorer.run()
    assert explorer.wait(60) and "half a race is not shown" in explorer.status.value
    assert list(explorer.traces.values()) == list(runners().values())
    assert denoiser.model.get_model_status().merged_adapters


def test_explorers_of_one_model_take_turns(monkeypatch):
    denoiser = tiny_denoiser()
    first, second = RefinementExplorer(denoiser, prompt="hello"), RaceExplorer(denoiser)
    go_on = threading.Event()
    monkeypatch.setattr(first, "_show", lambda _recent: go_on.wait(30))
    first.run()
    second.run()
    until(lambda: "Waiting" in second.status.value, lambda: second.status.value, 30)
    assert second.running and not second.traces
    go_on.set()
    assert first.wait(60) and second.wait(60)
    assert first.trace == record(denoiser, "hello", first.settings.config) and second.traces


@pytest.fixture
def page(show_page):
    page = show_page(race_html(runners()))
    yield page
    assert page.evaluate("window.hacked === undefined")


def standing(page):
    found = "[...document.querySelectorAll('[data-part=standing]')]"
    return page.evaluate(f"{found}.map(e => e.textContent)")


def test_the_race_plays_by_passes_and_by_seconds_from_the_keyboard(page):
    part = "document.querySelector('[data-part={}]')"
    done = ["Done: 3 passes, 0.30 s", "Done: 2 passes, 1.50 s"]
    assert standing(page) == done
    page.click("Back")
    assert standing(page) == ["Running: 2 passes, 0.20 s", done[1]]
    page.evaluate(part.format("slider") + ".focus()")
    page.press("ArrowLeft", 37)
    assert standing(page) == ["Running: 1 pass, 0.10 s", "Running: 1 pass, 1.00 s"]
    page.evaluate(part.format("by") + ".focus()")
    page.press("ArrowDown", 40)
    assert page.evaluate(part.format("clock") + ".textContent") == "1.50 seconds"
    page.click("Back")
    assert standing(page) == [done[0], "Running: 1 pass, 1.00 s"]
    shown = "[...document.querySelectorAll('[data-frame]')].filter(e => !e.hidden)"
    assert page.evaluate(f"{shown}.map(e => e.textContent)")[0] == "Paris is nice"
    started = time.monotonic()
    page.evaluate(part.format("play") + ".focus()")
    page.click("Next")
    page.click("Play")
    page.wait(part.format("play") + ".textContent === 'Play'")
    assert 1.4 < time.monotonic() - started < 10 and standing(page) == done  # in real time
    names = {name for _, name in page.names()}
    assert {"Play", "Back", "Next", "Clock", "Pace", LEFT_TO_RIGHT, REFINEMENT} <= names - {""}


@pytest.mark.parametrize("width", [1400, 390])
def test_a_race_fits_the_page(page, width):
    page.resize(width, 900)
    assert page.evaluate("document.documentElement.scrollWidth <= innerWidth")
