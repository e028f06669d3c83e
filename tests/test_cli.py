"""The command line: what others rely on, and one line with status 2 for whatever is wrong."""

import io
import json
import os
import re
import shlex
import signal
import subprocess
import sys
from pathlib import Path

import pytest
import typer
from conftest import run, run_in_terminal

from lad import __version__
from lad.__main__ import main, make_app
from lad.cli.common import command_line, read_prompts, save_json
from lad.diffusion.config import PRESETS, RefineConfig, to_text
from lad.diffusion.trace import Trace
from lad.utils import CacheError, describe

ROOT = Path(__file__).parents[1]


def refused(capsys, *arguments: str) -> str:
    """The one line of a refused command; checks everything else about a refusal."""
    status, out, err = run(capsys, *arguments)
    assert (status, out) == (2, "")
    assert err.startswith("lad: ") and err.count("\n") == 1 and err.endswith("\n")
    return err


@pytest.fixture
def refine(capsys, adapter):
    """Runs `lad refine hello` on the tiny model; returns the JSON object."""

    def refined(*arguments: str) -> dict:
        few = ("--iterations=3", "--answer-length=8", "--context=64", "--json")
        tiny = ("--model=tiny", f"--adapter={adapter}", *few)
        status, out, err = run(capsys, "refine", "hello", *tiny, *arguments)
        assert (status, err) == (0, "")
        return json.loads(out)

    return refined


FEW = {"iterations": 3, "answer_length": 8, "context": 64}


def test_refine_prints_the_answer_or_one_json_object(capsys, adapter, tmp_path):
    own = ("--model=tiny", f"--adapter={adapter}", "--iterations=4", "--answer-length=12")
    trace = f"--trace={tmp_path / 'run.jsonl'}"
    arguments = ("refine", "héllo <b>", *own, "--noiseless", "--seed=7", trace, "--json")
    status, out, err = run(capsys, *arguments)
    assert (status, err) == (0, "")
    values = json.loads(out)
    keys = "answer tokens iterations stopped_early nfe backbone_passes seconds model"
    keys += " adapter_sha256 seed preset"
    assert list(values) == [*keys.split(), "config"]
    assert values["model"] == "tiny" and values["seed"] == 7
    assert values["nfe"] == values["iterations"] <= 4
    trace = Trace.load(tmp_path / "run.jsonl")
    assert trace.answer == values["answer"] and trace.config["remasking"] == "none"
    assert trace.provenance["adapter_sha256"] == values["adapter_sha256"]
    assert trace.prompt == "héllo <b>"
    assert run(capsys, *arguments[:-2])[1] == values["answer"] + "\n"


@pytest.mark.parametrize("name", ["refine", "infill", "repair"])
def test_every_setting_is_an_option_with_its_range_help_and_group(name):
    command = typer.main.get_command(make_app("refine", "infill", "repair")).commands[name]
    options = {option.name: option for option in command.params}
    fields = describe(RefineConfig)
    if name == "repair":  # which is noiseless
        fields = {n: f for n, f in fields.items() if "used_by" not in f and n != "remasking"}
    assert [option for option in options if option in describe(RefineConfig)] == list(fields)
    for setting, field in fields.items():
        option = options[setting]
        assert option.help.lower().startswith(field["help"].lower())
        assert option.rich_help_panel == field["group"]
        assert option.default is None  # the preset decides
        assert all(choice in option.help for choice in field["choices"] or ())
        if field["low"] is not None and setting != "seed":
            assert option.metavar == f"{field['low']} to {field['high']}"


def every_command(command, *path):
    yield path, command
    for name, one in getattr(command, "commands", {}).items():
        yield from every_command(one, *path, name)


def test_help_fits_80_columns_and_no_word_of_it_is_cut(capsys, monkeypatch):
    monkeypatch.setenv("COLUMNS", "80")
    for path, command in every_command(typer.main.get_command(make_app())):
        status, shown, _ = run(capsys, *path, "--help")
        assert status == 0 and max(map(len, shown.splitlines())) <= 80
        for option in command.params:
            names = [name for name in (*option.opts, *option.secondary_opts) if "-" in name]
            words = {*names, *(option.help or "").split()}
            assert words <= {*shown.replace("│", " ").split()}, path


def test_help_has_its_groups_in_order_the_defaults_and_two_examples_that_work(capsys, monkeypatch):
    calls = []
    monkeypatch.setattr("lad.cli.generate._generate", lambda *given: calls.append(given))
    for name, start in (("refine", "default"), ("infill", "quality"), ("repair", None)):
        shown = run(capsys, name, "--help")[1]
        groups = ["Basics", "Noise", "Sampling", "Length", "Model", "Output"]
        assert re.findall("╭─ (\\w+) ─", shown)[1:] == groups
        if start:
            assert f"Default {PRESETS[start].confidence_threshold}." in shown
        lines = [line for line in shown.splitlines() if line.startswith(f" lad {name} ")]
        assert len(lines) == 2
        for line in lines:
            assert run(capsys, *shlex.split(line)[1:]) == (0, "", "")
    assert [call[6].iterations for call in calls] == [8, 64, 64, 64, 16, 16]


def test_every_option_reaches_its_setting(refine):
    values = {}
    for name, field in describe(RefineConfig).items():
        if field["choices"]:
            values[name] = field["choices"][-1]
        elif field["type"] is bool:
            values[name] = True
        else:
            is_float = field["type"] is float
            values[name] = (field["low"] + field["high"]) / 2 if is_float else field["low"] + 1
    values["context"] = 64
    options = [f"--{n.replace('_', '-')}={to_text(v)}" for n, v in values.items()]
    assert refine(*options)["config"] == values
    config = refine("--preset=quality", "--permanent=no", "--window=none")["config"]
    assert (config["permanent"], config["window"]) == (False, None)


@pytest.mark.parametrize("name", PRESETS)
def test_a_preset_is_where_the_options_start_from(refine, name):
    expected = PRESETS[name].to_dict() | FEW
    assert refine(f"--preset={name}")["config"] == expected
    expected |= {"remasking": "none", "repeats": "replace"}
    assert refine("--noiseless", f"--preset={name}", "--length=4")["config"] == expected


@pytest.mark.skipif(sys.platform == "win32", reason="no pseudo-terminals")
def test_a_terminal_shows_drafts_and_then_the_answer(adapter):
    """Markup in an answer or prompt is text there too; the last line counts tokens."""
    few = ("--iterations=3", "--answer-length=12")
    shown = run_in_terminal("refine", "[red]hi[/red]", "--model=tiny", f"--adapter={adapter}", *few)
    assert b"iteration 1 of at most 3" in shown and b"iteration 3 of at most 3" in shown
    assert b"tokens a pass)" in shown


@pytest.mark.parametrize(("number", "status"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_a_stopped_live_view_leaves_the_draft_and_the_cursor(adapter, number, status):
    few = ("--iterations=512", "--answer-length=12", "--remasking=random", "--patience=0")
    arguments = ("refine", "hi", "--model=tiny", f"--adapter={adapter}", *few)
    shown = run_in_terminal(*arguments, stop=(b"iteration 3 of", number), status=status)
    assert shown.startswith(b"lad: loading")
    *_, drawn, last = shown.split(b"\x1b[2K")[-1].rpartition(b"of at most 512")
    assert drawn and b"iteration" in shown.split(b"\x1b[2K")[-1]
    assert shown.rindex(b"\x1b[?25h") > shown.rindex(b"\x1b[?25l")  # the cursor
    assert (b"lad: stopped" in last) == (number == signal.SIGINT)


@pytest.mark.parametrize("more", [[], ["--json"]])
def test_an_answer_outlives_stdout_and_its_trace_is_saved(
    capsys, adapter, monkeypatch, tmp_path, more
):
    few = ("--model=tiny", f"--adapter={adapter}", "--iterations=2", "--answer-length=8")
    with open("/dev/full", "w") as full:
        monkeypatch.setattr(sys, "stdout", full)
        path = tmp_path / "run.jsonl"
        status, _, err = run(capsys, "refine", "hi", *few, f"--trace={path}", *more)
    assert status == 1 and "lad: cannot write to stdout (No space left on device)" in err
    answer = Trace.load(path).answer
    assert (json.dumps(answer) if more else answer) in err


def test_an_answer_outlives_its_trace(capsys, adapter, monkeypatch, tmp_path):
    def full(*_):
        raise CacheError("the disk is full")

    few = ("--model=tiny", f"--adapter={adapter}", "--iterations=2", "--answer-length=8")
    monkeypatch.setattr("lad.viz.export.write_whole", full)
    status, out, err = run(capsys, "refine", "hi", *few, f"--trace={tmp_path / 'x'}")
    assert (status, err) == (2, "lad: the disk is full\n") and out.strip()


def test_numbers_that_a_disk_refuses_are_printed(capsys):
    with pytest.raises(CacheError, match="Is a directory"):
        save_json(Path("/dev"), {"a": 1})
    assert json.loads(capsys.readouterr().out) == {"a": 1}


def test_a_recorded_command_names_no_folder_of_one_machine(monkeypatch):
    words = "bench --out /x=1/a.json --record=/y=2/b.json --record figures/data/c.json --device cpu"
    monkeypatch.setattr(sys, "argv", ["lad", *words.split()])
    kept = "--out a.json --record=b.json --record figures/data/c.json --device cpu"
    assert command_line() == f"lad bench {kept}"


def test_a_closed_pipe_is_status_one_and_silent():
    command = [sys.executable, "-m", "lad", "info"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE) as process:
        process.stdout.close()
        assert process.stderr.read() == b""
    assert process.returncode == 1


def test_a_locale_without_utf8_reads_it_and_gets_question_marks(adapter, monkeypatch, tmp_path):
    """UTF-8 arrives as it does under LC_ALL=C PYTHONUTF8=0; the terminal shows Latin-1."""
    out = io.TextIOWrapper(io.BytesIO(), "latin-1")
    monkeypatch.setattr(sys, "stdout", out)
    path = tmp_path / "run.jsonl"
    few = ("--model=tiny", f"--adapter={adapter}", f"--trace={path}", "--prompt=hi")
    with pytest.raises(SystemExit):
        main(["infill", "caf\udcc3\udca9 \u2192___", *few])
    assert out.buffer.getvalue().startswith(b"caf\xe9 ?")
    assert Trace.load(path).answer.startswith("caf\u00e9 \u2192")


def test_prompts_are_read_with_a_byte_order_mark_and_blank_lines(tmp_path):
    path = tmp_path / "prompts.txt"
    path.write_bytes("\ufeffWhat is it?\r\n\n Why? \n".encode())
    assert read_prompts(path) == ["What is it?", "Why?"]


def test_options_that_the_pages_name_exist():
    def options(command):
        for parameter in command.params:
            yield from (*parameter.opts, *parameter.secondary_opts)
        for part in getattr(command, "commands", {}).values():
            yield from options(part)

    known = {*options(typer.main.get_command(make_app()))} | {"--help"}
    others = "--nproc-per-node --fix --tasks --no-deps --index-url"  # torchrun, ruff, lm-eval, pip
    known |= {*others.split()}
    for path in (ROOT / "README.md", *ROOT.glob("docs/*.md")):
        named = re.findall(r"(?<![\w-])--[a-z][a-z0-9-]+", path.read_text(encoding="utf-8"))
        assert {*named} - known == set(), path.name


def test_the_version_and_an_unknown_profile(capsys, monkeypatch):
    assert run(capsys, "--version") == (0, f"lad {__version__}\n", "")
    monkeypatch.setenv("LAD_PROFILE", "fats")
    assert "LAD_PROFILE is 'fats'" in refused(capsys, "figures", "attention_masks")


TINY = ("--model=tiny", "ADAPTER", "--device=cpu")
DISTIL = ("distil", "--out=x.jsonl", "--no-benchmarks", "--model=tiny", "--device=cpu")


@pytest.mark.parametrize(
    ("arguments", "named"),
    [
        (["refine", " \n "], "the prompt is empty"),
        (["refine", "caf\udce9"], r"'caf\udce9' holds bytes that are no UTF-8"),
        (["repair", "hi", "--prompt", "\ud83d"], r"'\ud83d' holds bytes that are no UTF-8"),
        (["infill", "\ud83d ___"], "half a character"),
        (["refine", "- what is this?"], "before a text that begins with a hyphen put --"),
        (["refine", "hi", "--trace=/dev", "--model=tiny", "ADAPTER"], "/dev (Is a directory)"),
        (["refine", "hi", "--trace=/dev/null"], "/dev/null is a device or a pipe: expected a file"),
        (["study", "--out=/dev"], "/dev (Is a directory)"),
        (["ablate", "--pairs=x", "--out=/dev"], "/dev (Is a directory)"),
        (["distil", "--out="], "Is a directory"),
        (["benchmark", "curve", "--out=/dev"], "/dev (Is a directory)"),
        (["refine", "hi", "--device=meta", "--model=tiny", "ADAPTER"], "'meta' is not usable"),
        (
            ["refine", "hi", "--iterations=many"],
            "iterations = 'many': expected a whole number from",
        ),
        (["refine", "hi", "--permanent=maybe"], "permanent = 'maybe': expected True or False"),
        (["refine", "hi", "--temperature=nan"], "temperature = nan"),
        (["refine", "hi", "--remasking=some"], "none, random, guided"),
        (["refine", "hi", "--preset=best"], "unknown preset 'best': expected one of default, g"),
        (["repair", "hi", "--noise-start=1"], "--noise-start"),
        (["infill", "a ___", "--top-p=0"], "top_p = 0: expected a number from 0.01 to 1"),
        (["demo", "--model=tiny"], "no adapter is shipped for 'tiny'"),
        (["refine", "hi", "--model=tiny"], "no adapter is shipped for 'tiny'"),
        (["refine", "hi", "--model=tiny", "--adapter=/nowhere"], "/nowhere is no adapter"),
        (["refine", "hi", "--adapter=any"], "a shipped one: smollm2-135m, smollm2-135m-choice"),
        (["refine"], "prompt"),
        (["frobnicate"], "frobnicate"),
        (["fetch", "gpt-5"], "unknown model"),
        (["train", "--pairs=/nowhere", "--out=/tmp/x"], "no pairs at /nowhere"),
        (["train", "--pairs=/nowhere", "--out=/tmp/x", "--steps=0"], "steps = 0"),
        (["refine", "word " * 200, "--model=tiny", "ADAPTER"], "shorten the prompt"),
        (["repair", "hi", "--prompt= ", "--model=tiny", "ADAPTER"], "the prompt is empty"),
        (["repair", "x" * 300, "--prompt=hi", "--model=tiny", "ADAPTER"], "the context window"),
        (["demo", "--model=tiny", "ADAPTER", "--port=70000"], "port = 70000"),
        (["demo", "--model=tiny", "ADAPTER", "--sessions=0"], "sessions = 0"),
        (["refine", "hi", "--model=smollm2-135m", "ADAPTER"], "was trained for 'tiny'"),
        (["bench", *TINY, "--windows=64,many"], "windows = '64,many': expected whole numbers"),
        (["bench", *TINY, "--n-prompts=0"], "or equal to 1, got '0'"),
        (["bench", *TINY, "--setting=default,demo"], "2 settings in 'default,demo': expected one"),
        (["bench", *TINY, "--windows=4000", "--n-prompts=1"], "answer_length = 4000"),
        (["bench", *TINY, "--out=/proc/no/x.json"], "cannot write"),
        (["evaluate", "--pairs=/nowhere.jsonl"], "no pairs at /nowhere.jsonl"),
        (["evaluate", "--prompts=/nowhere.txt"], "/nowhere.txt is unusable"),
        (["evaluate", "--prompts=/dev/null"], "/dev/null holds 0 prompts"),
        (["evaluate", "--settings=/nowhere.json"], "expected a JSON file such as"),
        (["evaluate", "--settings=default, default"], "there are settings 'default' already"),
        (
            ["infill", "[2024] ___", *TINY],
            r"from 1 to 256; \[2024] is text",
        ),
        (["infill", "a" * 999, *TINY], f"no gap in '{'a' * 60}': expected"),
        (["repair", "x" * 5000, *TINY], "a text of 5000 tokens: expected at most 2040; shorten it"),
        (["study", *TINY, "--json", "--iterations=1,x"], "iterations = '1,x': expected whole"),
        (["study", *TINY, "--json", "--iterations=4,2"], "[4, 2]: expected rising numbers"),
        (["train", "--dry-run", "--model=tiny", "--record=/dev"], "/dev (Is a directory)"),
        ([*DISTIL, "--batches=0"], "'--batches': Input should be greater than or equal to 1"),
        ([*DISTIL, "--prompts=none.txt"], "none.txt is unusable"),
        ([*DISTIL, "--repair=2"], "repair = 2.0: expected a number from 0 to 1"),
        ([*DISTIL, "--answer-temperature=-1"], "answer_temperature = -1.0: expected a number of"),
        ([*DISTIL, "--context=1000"], "context = 1000: expected at most 512 tokens"),
    ],
)
def test_bad_input_is_one_line_and_status_two(
    capsys, adapter, tmp_path, monkeypatch, arguments, named
):
    monkeypatch.chdir(tmp_path)
    arguments = [f"--adapter={adapter}" if a == "ADAPTER" else a for a in arguments]
    assert named in refused(capsys, *arguments)
    assert [*tmp_path.iterdir()] == []


def test_no_network_and_an_empty_cache_is_one_line(capsys, tmp_path, monkeypatch):
    names = {"LAD_CACHE": tmp_path / "cache", "PIP_NO_INDEX": 1, "PIP_FIND_LINKS": tmp_path}
    for name, value in (names | {"PIP_CONFIG_FILE": os.devnull}).items():
        monkeypatch.setenv(name, str(value))
    assert "cannot download" in refused(capsys, "refine", "hi")
    left = [path for path in tmp_path.rglob("*") if path.is_file()]
    assert all(path.name.endswith(".lock") for path in left)


def test_info_lists_backbones_adapters_licences_and_digests(capsys):
    status, out, _ = run(capsys, "info", "--json")
    values = json.loads(out)
    assert status == 0
    assert set(values["backbones"]) >= {"smollm2-135m", "tiny", "llama-3.1-8b", "llama-3.2-1b"}
    assert values["backbones"]["smollm2-135m"]["digest"].startswith("b179c9523d0e")
    shipped = values["adapters"]
    assert list(shipped) == ["smollm2-135m", "smollm2-135m-choice"]
    assert all(one["intact"] is True and len(one["sha256"]) == 64 for one in shipped.values())
    assert "import-checkpoint" in run(capsys)[1]  # the help
    status, out, _ = run(capsys, "info")
    assert status == 0 and "Apache-2.0" in out
    assert all(one["sha256"][:12] in out for one in shipped.values())


def test_every_public_name_can_be_had():
    import lad

    assert all(getattr(lad, name) is not None for name in lad.__all__)
    assert set(lad.__all__) <= set(dir(lad))
    with pytest.raises(AttributeError, match="no attribute 'nonsense'"):
        _ = lad.nonsense


@pytest.mark.real
def test_the_readme_command_in_a_process_of_its_own(tmp_path):
    """Module, arguments, model, JSON on stdout: as a user's shell sees it."""
    command = [sys.executable, "-m", "lad", "refine", "What is the capital of France?"]
    command += ["--noiseless", "--iterations", "8", "--json"]
    done = subprocess.run(command, capture_output=True, text=True, cwd=tmp_path, timeout=120)
    assert done.returncode == 0, done.stderr
    values = json.loads(done.stdout)
    assert "Paris" in values["answer"] and values["iterations"] <= 8
    assert list(tmp_path.iterdir()) == []
