"""The profile and the figures folder."""

from pathlib import Path

import pytest

from lad import utils as settings
from lad.utils import InvalidInput, figures_folder, profile


def test_profile_is_full_unless_told_otherwise(monkeypatch):
    monkeypatch.delenv("LAD_PROFILE", raising=False)
    assert profile() == "full"
    monkeypatch.setenv("LAD_PROFILE", "")
    assert profile() == "full"
    monkeypatch.setenv("LAD_PROFILE", "fast")
    assert profile() == "fast"


@pytest.mark.parametrize("name", ["quick", "FAST", " fast"])
def test_an_unknown_profile_is_named(monkeypatch, name):
    monkeypatch.setenv("LAD_PROFILE", name)
    with pytest.raises(InvalidInput, match=name):
        profile()


def test_figures_go_where_the_variable_says(monkeypatch, tmp_path):
    monkeypatch.setenv("LAD_FIGURES", str(tmp_path / "a" / "b"))
    assert figures_folder() == tmp_path / "a" / "b"
    assert figures_folder().is_dir()


def test_figures_do_not_depend_on_the_working_folder(monkeypatch, tmp_path):
    monkeypatch.delenv("LAD_FIGURES", raising=False)
    monkeypatch.chdir(tmp_path)
    root = Path(settings.__file__).resolve().parent.parent
    assert figures_folder() == root / "figures"


def test_a_figures_folder_that_cannot_be_made_is_an_error(monkeypatch, tmp_path):
    (tmp_path / "file").write_text("in the way")
    monkeypatch.setenv("LAD_FIGURES", str(tmp_path / "file" / "figures"))
    with pytest.raises(InvalidInput, match="LAD_FIGURES"):
        figures_folder()
