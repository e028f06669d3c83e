"""Committed figures: drawn from recorded runs, twice the same, and traceable to what made them."""

import json
import shutil

import matplotlib
import pytest
from conftest import run
from traces import EOS, make_trace

from lad.diffusion.trace import Trace
from lad.utils import DamagedFile, InvalidInput, figures_folder
from lad.viz import gallery as recorded
from lad.viz.gallery import (
    CHECKOUT,
    DRAWN,
    FIGURES,
    gallery,
    read_numbers,
    redraw,
    save_trace,
    show_recorded,
    unrecorded,
)


@pytest.fixture
def folder(tmp_path, monkeypatch):
    monkeypatch.setenv("LAD_FIGURES", str(tmp_path))
    return tmp_path


def test_a_recorded_run_names_what_made_it(folder, monkeypatch):
    monkeypatch.setenv("LAD_PROFILE", "fast")
    path = save_trace(make_trace([b"a", EOS]), "run")
    assert path == folder / "data" / "run.jsonl"
    assert Trace.load(path).provenance == {"command": "make report", "profile": "fast"}


def test_drawing_twice_gives_the_same_files(folder):
    for trace, _ in FIGURES.values():
        save_trace(make_trace([b"a", b" b", EOS], [b"a", b" c", EOS], remask=[[1], []]), trace)
    first = {path: path.read_bytes() for path in redraw()}
    svg = {path: path.with_suffix(".svg").read_bytes() for path in first}
    assert unrecorded() == {}
    assert [path.stem for path in first] == list(DRAWN)
    assert {path: path.read_bytes() for path in redraw()} == first
    assert {path: path.with_suffix(".svg").read_bytes() for path in first} == svg


def test_unknown_figures_and_missing_runs_are_named(folder):
    with pytest.raises(InvalidInput, match="'nonsense'"):
        redraw(["nonsense"])
    with pytest.raises(InvalidInput, match="no trace at"):
        redraw(["filmstrip_renoised"])
    assert list(folder.glob("*.png")) == []


def test_numbers_are_the_folder_s_own_or_else_the_checkout_s(folder, monkeypatch):
    committed = read_numbers("ablation")
    assert committed["variants"]
    (folder / "data").mkdir()
    (folder / "data" / "ablation.json").write_text('{"own": 1}')
    assert read_numbers("ablation") == {"own": 1}
    (folder / "data" / "ablation.json").write_text('{"own": ')
    with pytest.raises(DamagedFile, match=r"ablation\.json cannot be read"):
        read_numbers("ablation")
    with pytest.raises(InvalidInput, match=r"no numbers at .*nonsense\.json"):
        read_numbers("nonsense")
    monkeypatch.setattr(recorded, "CHECKOUT", folder / "elsewhere")
    (folder / "data" / "ablation.json").unlink()
    with pytest.raises(InvalidInput, match="no numbers at"):
        redraw(["ablation"])


@pytest.mark.parametrize("name", DRAWN)
def test_every_drawing_s_data_is_committed_and_names_what_made_it(name):
    drawing = DRAWN[name]
    if drawing.data is None:
        return
    path = CHECKOUT / "figures" / "data" / drawing.data
    first = path.read_text().splitlines()[0] if path.suffix == ".jsonl" else path.read_text()
    assert drawing.by.split()[-1] in json.dumps(json.loads(first))


def test_a_figure_without_its_data_is_left_out_and_told(folder, monkeypatch, capsys):
    monkeypatch.setattr(recorded, "CHECKOUT", folder / "elsewhere")
    drawn = {path.stem for path in redraw()}
    assert drawn == {"schedule_by_sharpness", "schedule_by_noise_start", "kinds_of_noise",
                     "attention_masks"}  # fmt: skip
    assert set(unrecorded()) == set(DRAWN) - drawn
    status, _, told = run(capsys, "figures")
    assert status == 0
    assert "calibration: not drawn, its data comes with `lad study`" in told
    with pytest.raises(InvalidInput, match=r"no numbers at .*study\.json"):
        redraw(["calibration"])


def test_a_cell_shows_recorded_numbers_or_says_which_command_records_them(
    folder, monkeypatch, capsys
):
    assert show_recorded("ablation", "Dots with intervals.").alt.endswith("Dots with intervals.")
    assert (folder / "ablation.png").is_file()
    monkeypatch.setattr(recorded, "CHECKOUT", folder / "elsewhere")
    assert show_recorded("ablation", "Dots with intervals.") is None
    assert "its numbers come with `lad ablate`" in capsys.readouterr().out


def test_the_gallery_holds_the_runs_that_are_recorded(folder, monkeypatch):
    monkeypatch.setattr(recorded, "CHECKOUT", folder / "elsewhere")
    assert gallery() == {}
    save_trace(make_trace([b"a", EOS], prompt="Why?\nNow."), "paris_noiseless")
    ((name, trace),) = gallery().items()
    assert name == "Why? Now. (a short answer, without re-noising)"
    assert trace.answer == "a"
    (folder / "data" / "capitals_infill.jsonl").write_text("{}")
    with pytest.raises(DamagedFile, match="capitals_infill"):
        gallery()


def test_the_committed_ablation_is_drawn_from_the_committed_numbers(folder):
    committed = CHECKOUT / "figures" / "ablation.svg"
    (folder / "data").mkdir()
    shutil.copy(CHECKOUT / "figures" / "data" / "ablation.json", folder / "data")
    redraw(["ablation"])
    lock = (CHECKOUT / "requirements.lock").read_text()
    if f"matplotlib=={matplotlib.__version__}\n" not in lock:
        pytest.skip(f"matplotlib {matplotlib.__version__} is not the lock's: its bytes may differ")
    assert (folder / "ablation.svg").read_bytes() == committed.read_bytes()


@pytest.mark.parametrize("name", FIGURES)
def test_the_committed_figures_come_from_the_shipped_adapter(name, monkeypatch):
    from lad.diffusion.adapter import read_card, shipped_adapter

    monkeypatch.delenv("LAD_FIGURES", raising=False)
    trace = Trace.load(figures_folder() / "data" / f"{FIGURES[name][0]}.jsonl")
    _, card = read_card(shipped_adapter("smollm2-135m"))
    assert trace.provenance["adapter_sha256"] == card["adapter_sha256"]
    assert trace.provenance["profile"] == "full"
    assert {"command", "model", "device", "dtype", "torch"} <= set(trace.provenance)
    assert isinstance(trace.config["seed"], int)
    assert (figures_folder() / f"{name}.png").is_file()
