"""Committed figures: drawn from recorded runs, twice the same, and traceable to what made them."""

import pytest
from traces import EOS, make_trace

from lad.errors import InvalidInput
from lad.figures.recorded import FIGURES, redraw, save_trace
from lad.settings import figures_folder
from lad.trace import Trace


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
        save_trace(make_trace([b"a", b" b", EOS], [b"a", b" c", EOS], renoised=[[1], []]), trace)
    first = {path: path.read_bytes() for path in redraw()}
    svg = {path: path.with_suffix(".svg").read_bytes() for path in first}
    assert [path.stem for path in first] == list(FIGURES)
    assert {path: path.read_bytes() for path in redraw()} == first
    assert {path: path.with_suffix(".svg").read_bytes() for path in first} == svg


def test_unknown_figures_and_missing_runs_are_named(folder):
    with pytest.raises(InvalidInput, match="'nonsense'"):
        redraw(["nonsense"])
    with pytest.raises(InvalidInput, match="no trace at"):
        redraw(["filmstrip_renoised"])
    assert list(folder.glob("*.png")) == []


@pytest.mark.parametrize("name", FIGURES)
def test_the_committed_figures_come_from_the_shipped_adapter(name, monkeypatch):
    from lad.adapter import read_card, shipped_adapter

    monkeypatch.delenv("LAD_FIGURES", raising=False)
    trace = Trace.load(figures_folder() / "data" / f"{FIGURES[name][0]}.jsonl")
    _, card = read_card(shipped_adapter("smollm2-135m"))
    assert trace.provenance["adapter_sha256"] == card["adapter_sha256"]
    assert trace.provenance["profile"] == "full"
    assert {"command", "model", "device", "dtype", "torch"} <= set(trace.provenance)
    assert isinstance(trace.config["seed"], int)
    assert (figures_folder() / f"{name}.png").is_file()
