"""The profile and the figures folder."""

from pathlib import Path

import pytest

from lad import utils
from lad.utils import InvalidInput, figures_folder, profile


def test_profile_is_full_unless_chosen(monkeypatch):
    monkeypatch.delenv("LAD_PROFILE", raising=False)
    assert profile() == "full"
    for name, expected in (("", "full"), ("fast", "fast")):
        monkeypatch.setenv("LAD_PROFILE", name)
        assert profile() == expected
    for name in ("quick", "FAST", " fast"):
        monkeypatch.setenv("LAD_PROFILE", name)
        with pytest.raises(InvalidInput, match=name):
            profile()


def test_figures_go_where_the_variable_says_or_to_the_checkout(monkeypatch, tmp_path):
    monkeypatch.setenv("LAD_FIGURES", str(tmp_path / "a" / "b"))
    assert figures_folder() == tmp_path / "a" / "b" and figures_folder().is_dir()
    (tmp_path / "file").write_text("in the way")
    monkeypatch.setenv("LAD_FIGURES", str(tmp_path / "file" / "figures"))
    with pytest.raises(InvalidInput, match="LAD_FIGURES"):
        figures_folder()
    monkeypatch.delenv("LAD_FIGURES")
    monkeypatch.chdir(tmp_path)
    assert figures_folder() == Path(utils.__file__).resolve().parent.parent / "figures"
