"""Committed figures: drawn from recorded data, twice the same, and traceable to what made them."""

import json
import re
import textwrap

import matplotlib
import pytest
from conftest import run
from traces import EOS, make_trace

from lad.diffusion.adapter import read_card, shipped_adapter
from lad.diffusion.trace import Trace
from lad.utils import CacheError, DamagedFile, InvalidInput
from lad.viz import convergence
from lad.viz import gallery as recorded
from lad.viz.gallery import (
    CHECKOUT,
    DRAWN,
    FIGURES,
    draw,
    read_numbers,
    redraw,
    save_numbers,
    unrecorded,
)
from lad.viz.gallery import gallery as runs

COMMITTED = CHECKOUT / "figures" / "data"


@pytest.fixture
def folder(tmp_path, monkeypatch):
    monkeypatch.setenv("LAD_FIGURES", str(tmp_path))
    (tmp_path / "data").mkdir()
    return tmp_path


@pytest.fixture
def alone(folder, monkeypatch):
    """The figures folder, and no checkout to fall back on."""
    monkeypatch.setattr(recorded, "CHECKOUT", folder / "elsewhere")
    return folder


def test_recorded_data_names_what_made_it(folder, monkeypatch):
    monkeypatch.setenv("LAD_PROFILE", "fast")
    path = recorded.save_trace(make_trace([b"a", EOS]), "run")
    assert path == folder / "data" / "run.jsonl"
    assert Trace.load(path).provenance == {"command": "make report", "profile": "fast"}
    assert save_numbers("numbers", {"a": 1}) == folder / "data" / "numbers.json"
    assert read_numbers("numbers") == {"command": "make report", "a": 1}
    (folder / "data" / "taken.json").mkdir()
    with pytest.raises(CacheError, match="LAD_FIGURES"):
        save_numbers("taken", {})


@pytest.mark.parametrize("name", [name for name in DRAWN if name not in unrecorded()])
def test_the_committed_figure_is_what_its_data_draws(name, folder):
    (path,) = redraw([name])
    title = draw(name).get_suptitle()
    assert 20 <= len(title) <= 90 and not title.endswith("…") and "\n" not in title
    lock = (CHECKOUT / "requirements.lock").read_text()
    if f"matplotlib=={matplotlib.__version__}\n" in lock:  # others may draw other bytes
        committed = CHECKOUT / "figures" / f"{name}.svg"
        assert path.with_suffix(".svg").read_bytes() == committed.read_bytes()
    if DRAWN[name].data is not None:
        path = COMMITTED / DRAWN[name].data
        first = path.read_text().splitlines()[0] if path.suffix == ".jsonl" else path.read_text()
        assert DRAWN[name].by.split()[-1] in json.dumps(json.loads(first))


def test_the_example_of_a_new_figure_is_drawn():
    guide = (CHECKOUT / "docs" / "contributing.md").read_text()
    code = textwrap.dedent(re.search(r"```python\n(   @styled.*?)   ```", guide, re.DOTALL)[1])
    names = vars(convergence).copy()
    exec(code, names)
    figure = names["tokens_per_forward"](read_numbers("study"))
    assert figure.get_suptitle() == "The most tokens a forward pass: noiseless"


def test_the_speed_names_a_baseline_that_is_not_compiled(folder):
    bench = read_numbers("bench")
    for graphs, named in ((True, "uncompiled generate:"), (False, "as fast as generate:")):
        save_numbers("bench", bench | {"graphs": graphs})
        assert named in draw("speed").get_suptitle()
    fair = {"static": {"seconds_per_answer": 0.2}, "speedup_vs_static": {"value": 2.5}}
    save_numbers("bench", bench | {"cells": [cell | fair for cell in bench["cells"]]})
    expected = "Times as fast as left to right, compiled: 2.5 at batch 1"
    assert draw("speed").get_suptitle().startswith(expected)


def test_the_seconds_of_a_token_are_those_of_the_later_run_on_each_device(folder):
    def run_on(device, setting, ours, static=None):
        times = {"sampler": ours, "generate": 4.0, "static": static, "lookup": 3.0}
        cell = {"batch": 1, "window": 64}
        for way, value in times.items():
            one = None if value is None else {"value": value, "low": value, "high": value}
            cell[way] = one and {"seconds_per_token": one}
        where = {"processor": device}
        return {"device": device, "setting": setting, "cells": [cell], "provenance": where}

    runs = [run_on("cpu", "default", 9.0), run_on("cpu", "default", 2.0)]
    runs += [run_on("cpu", "verified", 6.0), run_on("cuda", "default", 1.0, static=0.5)]
    save_numbers("seconds_per_token", {"runs": runs})
    figure = draw("seconds_per_token")
    expected = (
        "A token takes 2,000 ms refined, 3,000 left to right on a CPU; 1,000 and 500 on a GPU"
    )
    assert figure.get_suptitle() == expected
    assert [len(axes.get_yticks()) for axes in figure.axes] == [4, 4]


def test_unknown_figures_and_missing_data_are_named(alone):
    with pytest.raises(InvalidInput, match="'nonsense'"):
        redraw(["ablation", "nonsense"])
    with pytest.raises(InvalidInput, match="no trace at"):
        redraw(["filmstrip_renoised"])
    with pytest.raises(InvalidInput, match=r"no numbers at .*ablation\.json"):
        redraw(["ablation"])
    assert list(alone.glob("*.png")) == []


def test_data_is_the_folder_s_or_else_the_checkout_s(folder):
    assert read_numbers("ablation")["variants"]
    save_numbers("ablation", {"mine": 1})
    assert read_numbers("ablation")["mine"] == 1
    (folder / "data" / "ablation.json").write_text('{"mine": ')
    with pytest.raises(DamagedFile, match=r"ablation\.json is unusable"):
        read_numbers("ablation")


@pytest.mark.parametrize("name", [n for n, one in DRAWN.items() if str(one.data).endswith("json")])
def test_other_numbers_are_refused_with_the_command_to_run(folder, name):
    for broken in ({}, [], {"runs": 3, "points": 3, "cells": 3, "examples": 3}):
        (folder / "data" / DRAWN[name].data).write_text(json.dumps(broken))
        with pytest.raises(DamagedFile, match=f"{DRAWN[name].data}.*{DRAWN[name].by}"):
            draw(name)


def test_a_figure_without_its_data_is_left_out_and_named(alone, capsys):
    status, _, said = run(capsys, "figures")
    drawn = {path.stem for path in alone.glob("*.png")}
    assert drawn == {"schedule_by_sharpness", "schedule_by_noise_start"}
    assert status == 0
    assert "calibration: not drawn, its data comes with `lad study`" in said


def test_a_cell_shows_recorded_numbers_or_the_command_to_run(folder, monkeypatch, capsys):
    show = recorded.show_recorded
    assert show("ablation", "Dots with intervals.").alt.endswith("Dots with intervals.")
    assert (folder / "ablation.png").is_file()
    monkeypatch.setattr(recorded, "CHECKOUT", folder / "elsewhere")
    assert show("ablation", "Dots with intervals.") is None
    assert "its numbers come with `lad ablate`" in capsys.readouterr().out


def test_the_gallery_holds_the_runs_that_are_recorded(alone):
    assert runs() == {}
    recorded.save_trace(make_trace([b"a", EOS], prompt="Why?\nNow."), "paris_noiseless")
    ((name, trace),) = runs().items()
    assert name == "Why? Now. (a short answer, without re-masking)"
    assert trace.answer == "a"
    (alone / "data" / "capitals_infill.jsonl").write_text("{}")
    with pytest.raises(DamagedFile, match="capitals_infill"):
        runs()


@pytest.mark.parametrize("name", FIGURES)
def test_the_committed_figures_come_from_the_shipped_adapter(name):
    trace = Trace.load(COMMITTED / f"{FIGURES[name][0]}.jsonl")
    _, card = read_card(shipped_adapter("smollm2-135m"))
    assert trace.provenance["adapter_sha256"] == card["adapter_sha256"]
    assert trace.provenance["profile"] == "full"
    assert {"command", "model", "device", "dtype", "torch"} <= set(trace.provenance)
    assert isinstance(trace.config["seed"], int)
    assert (CHECKOUT / "figures" / f"{name}.png").is_file()
