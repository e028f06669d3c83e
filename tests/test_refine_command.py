"""`lad refine`: presets, and an option for every control."""

import inspect
import json

import pytest
from conftest import run

from lad.cli.generate import refine
from lad.diffusion.config import PRESETS, RefineConfig, preset


def used(capsys, adapter: str, *arguments: str) -> RefineConfig:
    """The settings a run says it had."""
    own = ("--model=tiny", f"--adapter={adapter}", "--json")
    status, out, _ = run(capsys, "refine", "hello", *own, *arguments)
    assert status == 0
    return RefineConfig.from_dict(json.loads(out)["config"])


def test_every_control_is_an_option():
    assert set(RefineConfig().to_dict()) <= set(inspect.signature(refine).parameters)


@pytest.mark.parametrize("name", PRESETS)
def test_a_preset_is_where_the_options_start_from(capsys, adapter, name):
    few = ("--iterations=2", "--answer-length=8", "--context=64")
    expected = preset(name).to_dict() | {"iterations": 2, "answer_length": 8, "context": 64}
    assert used(capsys, adapter, f"--preset={name}", *few) == RefineConfig(**expected)


def test_every_option_reaches_its_control(capsys, adapter):
    values = {
        "iterations": 3, "remasking": "threshold", "noise_start": 0.25, "sharpness": 2.0,
        "noise_clipping": 0.5, "clustering": 0.75, "confidence_threshold": 0.125, "window": 5, "isolated_threshold": 0.75,
        "added_tokens": 4, "tail": 6, "repeats": "remask", "advance": "leftmost",
        "temperature": 0.5, "top_k": 7, "top_p": 0.5, "eos_bias": -1.0,
        "answer_length": 9, "context": 64, "patience": 2, "seed": 11,
    }  # fmt: skip
    options = [f"--{name.replace('_', '-')}={value}" for name, value in values.items()]
    assert used(capsys, adapter, *options, "--permanent") == RefineConfig(permanent=True, **values)
    assert used(capsys, adapter, "--preset=quality", "--no-permanent").permanent is False


def test_a_preset_nobody_knows_is_refused(capsys):
    status, _, err = run(capsys, "refine", "hi", "--preset=best")
    assert status == 2
    assert "unknown preset 'best': expected one of default, guided, demo" in err


def test_noiseless_masks_nothing_again_whatever_the_preset(capsys, adapter):
    few = ("--iterations=2", "--answer-length=8", "--context=64")
    changed = {"iterations": 2, "answer_length": 8, "context": 64, "remasking": "none"}
    changed["repeats"] = "replace"  # what is not masked again cannot be drawn again
    expected = RefineConfig(**preset("default").to_dict() | changed)
    assert used(capsys, adapter, "--noiseless", *few) == expected
    expected = RefineConfig(**preset("quality").to_dict() | changed)
    assert used(capsys, adapter, "--noiseless", "--preset=quality", *few) == expected
    assert used(capsys, adapter, "--noiseless", "--repeats=allow", *few).repeats == "allow"
