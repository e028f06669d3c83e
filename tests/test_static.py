"""Pages without a kernel: the script computes what Python does, menus show what was recorded."""

import base64
import json
import re
import shutil
import subprocess
from dataclasses import asdict
from xml.dom import minidom

import pytest
from conftest import run, tiny_denoiser
from IPython.core.formatters import DisplayFormatter
from nbformat.v4 import new_code_cell, new_markdown_cell, new_notebook, new_output
from traces import make_trace, words

from lad.diffusion.adapter import read_card, shipped_adapter
from lad.diffusion.config import KINDS, CorruptionConfig
from lad.diffusion.schedule import mask_counts
from lad.diffusion.trace import Trace
from lad.report import page as report_page
from lad.utils import DamagedFile
from lad.viz.export import animation, as_text
from lad.viz.gallery import CHECKOUT
from lad.viz.tokens import visible
from lad.viz.word_corruption import EVERYDAY, Sentence, corrupt, drawn_rates
from lad.widgets.editing import InfillExplorer, RepairExplorer
from lad.widgets.noise import SCRIPT, CorruptionExplorer, ScheduleExplorer
from lad.widgets.recorded import FILE, choices, read_runs, run_choice, save_runs
from lad.widgets.refinement import RefinementExplorer

HOSTILE = '<img src=x onerror="window.hacked=1"> </script><b>no'
SENTENCE = "The rivier größer flows past the old_town, 3 times; και τελειώνει."


@pytest.fixture(scope="module")
def js(request):
    """A function from an expression to its value, with the script's formulas as `ladNoise`."""
    if node := shutil.which("node"):

        def evaluate(expression):
            code = f"{SCRIPT}\nconsole.log(JSON.stringify({expression}))"
            done = subprocess.run([node, "-"], input=code, capture_output=True, text=True)
            assert done.returncode == 0, done.stderr
            return json.loads(done.stdout)

        return evaluate
    tab = request.getfixturevalue("chromium").open("about:blank")
    tab.evaluate(SCRIPT)
    request.addfinalizer(tab.close)
    return tab.evaluate


def test_the_script_has_the_schedule_of_python(js):
    grid = [
        {"iterations": n, "answer_length": a, "sharpness": s, "noise_start": z}
        for n in (1, 2, 16, 37, 128)
        for a in (1, 64, 255)
        for s in (0.01, 0.5, 1, 5, 12.3, 20)
        for z in (0, 0.05, 0.3, 0.5, 0.9, 1)
    ]
    counts = js(f"{json.dumps(grid)}.map(ladNoise.maskCounts)")
    assert counts == [mask_counts(**settings) for settings in grid]
    said = js("[ladNoise.scheduleWords([5, 2, 0, 0], 64), ladNoise.countWords([5, 2, 0, 0])]")
    words = "5 of 64 tokens masked after iteration 0, the last 2 after iteration 1 of 4; 7 in all."
    assert said == [words, "Masks after each iteration: 5, 2, none from iteration 2 on."]
    assert js("ladNoise.scheduleWords([0, 0], 64)").endswith("in 2 iterations: a noiseless run.")


def test_the_script_draws_the_corruption_of_python_from_the_same_seed(js):
    configs = [CorruptionConfig(all_masked=0.0), CorruptionConfig(kinds=("swap", "shift"))]
    configs += [CorruptionConfig(all_masked=0.0, mask_probability=1.0, kinds=KINDS[1:3])]
    grid = [
        (asdict(c), p, seed) for c in configs for p in (0, 0.35, 1) for seed in (0, 7, 2**31 - 1)
    ]
    given = f"{json.dumps(SENTENCE)}, 3, {json.dumps(EVERYDAY)}"
    drawn = js(f"{json.dumps(grid)}.map(([c, p, seed]) => ladNoise.corrupt({given}, c, p, seed))")
    sentence = Sentence.of(SENTENCE, 3)
    for (config, p, seed), one in zip(grid, drawn, strict=True):
        expected = corrupt(sentence, p, CorruptionConfig(**config), seed)
        assert one["before"] == list(expected.before) and one["after"] == list(expected.after)
        assert one["shown"] == list(expected.shown) and one["masked"] == list(expected.masked)
        assert one["shares"] == pytest.approx(expected.shares)
    config = asdict(configs[0])
    for p in (0.0, 0.35, 1.0):
        call = f"{json.dumps(config)}, {p}"
        assert js(f"ladNoise.expectedRates({call})") == pytest.approx(configs[0].expected_rates(p))
        expected = [(r.mean, r.low, r.high) for r in drawn_rates([p], configs[0], 17, 100, 5)]
        rates = js(f"ladNoise.drawnRates({call}, 17, 100, 5)")
        assert [(r["mean"], r["low"], r["high"]) for r in rates] == [
            pytest.approx(e) for e in expected
        ]


@pytest.fixture(scope="module")
def recorded(tmp_path_factory):
    """A tiny matrix in a figures folder of its own, and its traces."""
    wanted = choices(["hello", HOSTILE], ["noiseless", "default"], (0, 1))
    traces = [run_choice(tiny_denoiser(), choice) for choice in wanted]
    folder = tmp_path_factory.mktemp("figures")
    save_runs(traces, folder / "data" / FILE)
    return folder, traces


@pytest.fixture(scope="module")
def tab(chromium, recorded, tmp_path_factory):
    """A page with every explorer, as a file, with the network off."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("LAD_FIGURES", str(recorded[0]))
        kinds = CorruptionExplorer, ScheduleExplorer, RefinementExplorer
        shown = [kind() for kind in (*kinds, RepairExplorer, InfillExplorer)]
        outputs = [new_output("display_data", DisplayFormatter().format(one)[0]) for one in shown]
        printed = new_output("stream", text="printed")
        cells = [new_code_cell("explorer", outputs=[printed, output]) for output in outputs]
        folder = tmp_path_factory.mktemp("static")
        notebook = new_notebook(cells=[new_markdown_cell("# Explorers"), *cells])
        made = report_page(notebook, "explorers", folder)
    assert "This works in Jupyter" not in made
    page = chromium.show(made, folder, offline=True)
    yield page
    assert page.errors == []
    page.close()


def set_to(tab, number, name, value):
    """Set a control of the explorer of this number, as a reader's hand would."""
    control = f"document.querySelectorAll('.lad-static')[{number}].querySelector('[name={name}]')"
    tab.evaluate(
        f"(() => {{ const c = {control}; c.value = {json.dumps(value)}; "
        "c.dispatchEvent(new Event('input')); })()"
    )


def test_the_explorers_of_the_noise_answer_to_their_controls(tab):
    explorer = "document.querySelector('.lad-static')"
    screen = f"{explorer}.querySelector('[data-part=screen]')"
    rows = f"[...{screen}.querySelectorAll('.lad-tokens')].map(row => [...row.children]"
    tokens = f"{rows}.map(e => e.textContent))"

    def expected(text, p, seed, **config):
        config = CorruptionConfig(all_masked=0.0, **config)
        drawn = corrupt(Sentence.of(text, 3), p, config, seed)
        after = zip(drawn.after, drawn.shown, strict=True)
        return [[*drawn.before], [piece + kind for piece, kind in after]]

    first = "The river flows past the old town and ends in the sea."
    assert tab.evaluate(tokens) == expected(first, 0.6, 0)
    for name, value in {"sentence": HOSTILE, "severity": 1.0, "seed": 3}.items():
        set_to(tab, 0, name, str(value))
    assert tab.evaluate(tokens) == expected(HOSTILE, 1.0, 3)
    tab.click("Draw again")
    assert tab.evaluate(tokens) == expected(HOSTILE, 1.0, 4)
    assert tab.evaluate("window.hacked === undefined")
    shown = tab.evaluate(f"{screen}.querySelector('table').innerText.replace(/\\s+/g, ' ')")
    assert "Tokens touched at p = 1 " in shown
    assert re.search(r"duplicate 25\.0 % \d+ % 2[0-9]\.\d %", shown)
    assert re.search(r"shift \(share of sentences\) 25\.0 % (yes|no) ", shown)
    for kind in ("mask", "swap", "duplicate"):
        tab.evaluate(f"{explorer}.querySelector('[name={kind}]').click()")
    rest = {"mask_probability": 0.0, "kinds": KINDS[2:]}
    assert tab.evaluate(tokens) == expected(HOSTILE, 1.0, 4, **rest)
    set_to(tab, 0, "sentence", "שלום עולם טוב")
    for places in tab.evaluate(f"{rows}.map(e => e.getBoundingClientRect().left))"):
        assert places == sorted(places, reverse=True) and len(places) == 6  # right to left
    for text in (" ", "word " * 201):
        set_to(tab, 0, "sentence", text)
        said = tab.evaluate(f"{screen}.querySelector('[role=alert]').textContent")
        assert "words: expected a text of 1 to 200" in said

    tab.evaluate("document.querySelector('[name=noise_start]').focus()")
    tab.press("ArrowRight", 39)
    said = tab.evaluate("document.querySelectorAll('.lad-static')[1].textContent")
    masks = mask_counts(iterations=16, answer_length=64, sharpness=5.0, noise_start=0.55)
    assert f"{masks[0]} of 64 tokens masked after" in said and f"; {sum(masks)} in all." in said
    drawn = "document.querySelector('.lad-static svg[role=img]').getAttribute('aria-label')"
    assert tab.evaluate(drawn) in said


def test_the_menus_show_the_recorded_runs(tab, recorded):
    answers = "document.querySelectorAll('.lad-static')[2].querySelector('.lad-answer').textContent"
    names = "[...document.querySelectorAll('.lad-static')[2].querySelectorAll('select')]"
    of_refine = [t for t in recorded[1] if t.provenance["explorer"] == "refine"]
    chosen = next(
        t for t in of_refine if [*t.provenance["menus"].values()][1:] == ["default", "1, sampled"]
    )
    tab.evaluate(f"{names}[1].focus()")
    tab.press("ArrowDown", 40)
    tab.evaluate(f"{names}[2].focus()")
    tab.press("ArrowDown", 40)
    expected = visible(chosen.answer, "\n").strip() or "(empty)"
    tab.wait(f"{answers}.trim() === {json.dumps(expected)}")
    player = "document.querySelectorAll('.lad-static')[2].querySelector('[data-part=run]')"
    tab.click("Back", player)
    shown = f"[...{player}.querySelectorAll('[data-frame]')].map(e => !e.hidden)"
    assert tab.evaluate(shown).index(True) == tab.evaluate(f"{shown}.length") - 2
    saved = "fetch(document.querySelectorAll('[data-part=save]')[0].href).then(r => r.text())"
    assert expected in tab.evaluate(saved) and tab.evaluate(saved).startswith("<!DOCTYPE html>")
    for number in (3, 4):
        runs = f"document.querySelectorAll('.lad-static')[{number}].querySelectorAll('.lad-replay')"
        assert tab.evaluate(f"{runs}.length") == 1
    assert all(name for _role, name in tab.names())


def test_recorded_runs_are_read_as_they_were_and_a_cut_file_is_refused(recorded, tmp_path):
    folder, traces = recorded
    kept = read_runs(folder / "data" / FILE)
    assert kept == traces and [t.provenance for t in kept] == [t.provenance for t in traces]
    cut = tmp_path / FILE
    for data in (b"", b"not gzip", (folder / "data" / FILE).read_bytes()[:-20]):
        cut.write_bytes(data)
        with pytest.raises(DamagedFile, match="lad gallery"):
            read_runs(cut)


def test_the_committed_runs_are_all_there_and_of_the_shipped_adapter():
    path = CHECKOUT / "figures" / "data" / FILE
    _, card = read_card(shipped_adapter("smollm2-135m"))
    made = [trace.provenance for trace in read_runs(path)]
    assert [(one["explorer"], one["menus"]) for one in made] == [c[:2] for c in choices()]
    assert {one["adapter_sha256"] for one in made} == {card["adapter_sha256"]}


def test_one_command_records_every_choice(adapter, tmp_path, capsys):
    out = tmp_path / "runs.gz"
    options = "--n-prompts", 1, "--presets", "noiseless", "--seeds", 2, "--out", out
    status, said, _ = run(capsys, "gallery", "--model", "tiny", "--adapter", adapter, *options)
    assert status == 0 and "8 runs" in said
    menus = [trace.provenance["menus"] for trace in read_runs(out)]
    assert menus[0]["Preset"] == "noiseless" and menus[0]["Prompt"].endswith("?")
    assert {one["Corrupt it"] for one in menus[2:6]} == set(KINDS)


def test_an_animation_shows_one_draft_at_a_time_and_rests_on_the_last(chromium, tmp_path):
    trace = make_trace(
        words("Paris is is", 5), words("Paris < <b>", 5), remask=[[1]], prompt=f"{HOSTILE}\0\uffff"
    )
    drawn = animation(trace, seconds=1, hold=2)
    minidom.parseString(drawn)
    assert "Paris" in drawn and "&lt;b&gt;" in drawn and "<script" not in drawn
    file = tmp_path / "run.svg"
    file.write_text(drawn, encoding="utf-8")
    page = chromium.open(file.as_uri())
    page.wait("document.getAnimations().length === 3")
    visible = "[...document.querySelectorAll('.frame')].map(e => getComputedStyle(e).visibility)"
    for second, frame in {0.5: 0, 1.5: 1, 2.5: 2, 4.5: 2, 5.5: 0}.items():
        at = f"a.currentTime = {1000 * second}"  # less the delay, which is the frame's own
        page.evaluate(f"void document.getAnimations().forEach(a => {{ a.pause(); {at}; }})")
        assert page.evaluate(visible) == ["visible" if n == frame else "hidden" for n in range(3)]
    page.close()


def test_a_run_is_saved_as_its_name_says(adapter, tmp_path, capsys):
    for name, start in {"a.jsonl": "{", "b.html": "<!DOCTYPE html>", "c.SVG": "<svg"}.items():
        options = "--model", "tiny", "--adapter", adapter, "--iterations", 2, "--trace"
        assert run(capsys, "refine", "hi", *options, tmp_path / name)[0] == 0
        assert (tmp_path / name).read_text().startswith(start)
    trace = Trace.load(tmp_path / "a.jsonl")
    explorer = RefinementExplorer()
    explorer._keep(trace)
    for suffix, kind in ((".html", "text/html"), (".svg", "image/svg+xml")):
        explorer.save_as.value = (suffix, kind)
        name, link = re.search(
            r'download="([^"]+)".*base64,([^"]+)', explorer.download.value
        ).groups()
        assert name == f"lad-run{suffix}"
        assert base64.b64decode(link).decode() == as_text(trace, suffix)
