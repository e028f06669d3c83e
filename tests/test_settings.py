"""The profile, the figures folder, and classes of settings."""

import json
from pathlib import Path

import pytest

from lad import utils
from lad.diffusion.config import DenoiserConfig
from lad.training import TrainConfig
from lad.utils import CacheError, InvalidInput, figures_folder, profile


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
    with pytest.raises(CacheError, match="LAD_FIGURES"):
        figures_folder()
    monkeypatch.delenv("LAD_FIGURES")
    monkeypatch.chdir(tmp_path)
    assert figures_folder() == Path(utils.__file__).resolve().parent.parent / "figures"


DEEP = []
for _ in range(100_000):
    DEEP = [DEEP, DEEP]


@pytest.mark.parametrize(
    ("values", "named"),
    [
        ({"rank": True}, "rank = True: expected a whole number from 1 to 65536"),
        ({"context": 0}, "context = 0: expected a whole number of at least 1"),
        ({"alpha": 10**5000}, "alpha = <int instance"),
        ({"attention": "sideways"}, "attention = 'sideways': expected one of bidirectional"),
        ({"layers": "q_proj"}, "layers = 'q_proj': expected a list of q_proj, k_proj"),
        ({"layers": []}, "layers = (): expected a list of q_proj"),
        ({"layers": {"q_proj": DEEP}}, "layers = {'q_proj': [[[..."),
        ({"ranks": 8}, "unknown setting 'ranks': expected one of attention, target, rank"),
        ([1], "settings of type list"),
    ],
)
def test_a_setting_names_itself_its_value_and_what_is_expected(values, named):
    with pytest.raises(InvalidInput) as caught:
        DenoiserConfig.from_dict(values)
    assert str(caught.value).startswith(named)


def test_settings_survive_json_nested_ones_too():
    config = TrainConfig.from_dict({"widths": [32, 64], "corruption": {"mask_fraction": [0, 1]}})
    assert TrainConfig.from_dict(json.loads(json.dumps(config.to_dict()))) == config
    assert config.corruption.mask_fraction == (0.0, 1.0)
