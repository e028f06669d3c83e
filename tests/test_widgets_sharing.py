"""What is copied out of an explorer gives the same prompt and settings again."""

import shlex

import pytest
from conftest import run
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

import lad
from lad.diffusion.config import PRESETS, SETTINGS, RefineConfig
from lad.utils import InvalidInput
from lad.widgets import RefinementExplorer
from lad.widgets.sharing import as_command, as_python, as_query, from_query


def values(field):
    """A strategy for what one setting can be."""
    low, high = field["low"], field["high"]
    if field["choices"]:
        return st.sampled_from(field["choices"])
    if field["type"] is bool:
        return st.booleans()
    number = st.floats(low, high) if field["type"] is float else st.integers(low, high)
    return st.none() | number if field["type"] == int | None else number


def changed(name, changes):
    return RefineConfig.from_dict(PRESETS[name].to_dict() | changes)


CHANGES = st.fixed_dictionaries({}, optional={n: values(f) for n, f in SETTINGS.items()})
CONFIGS = st.builds(changed, st.sampled_from(sorted(PRESETS)), CHANGES)
PROMPTS = st.text(st.characters(exclude_categories=["Cs"])).filter(str.strip)
OFTEN = settings(
    max_examples=50, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)


@OFTEN
@given(prompt=PROMPTS | PROMPTS.map("--{}".format), config=CONFIGS)
def test_a_command_code_and_a_link_give_prompt_and_settings_again(
    capsys, monkeypatch, prompt, config
):
    made = []
    monkeypatch.setattr("lad.cli.generate._generate", lambda *given: made.append(given[5:7]))
    monkeypatch.setattr(lad, "load_denoiser", lambda name: name, raising=False)
    monkeypatch.setattr(lad, "record", lambda *given: made.append(given[1:]) or lad, raising=False)
    monkeypatch.setattr(lad, "answer", "", raising=False)
    assert run(capsys, *shlex.split(as_command(prompt, config))[1:])[0] == 0
    exec(as_python(prompt, config), {})
    assert [*made, from_query(as_query(prompt, config))] == [(prompt, config)] * 3


@pytest.mark.parametrize("name", PRESETS)
def test_a_preset_is_copied_by_its_name(name):
    option = f" --preset={name}" * (name != "default")
    assert as_command("hi", PRESETS[name], "tiny") == f"lad refine hi{option} --model=tiny"


def test_the_open_fold_shows_the_controls_as_text(denoiser):
    explorer = RefinementExplorer(denoiser, "<b>hi</b>")
    explorer.sharing.widget.selected_index = 0
    shown = explorer.sharing.text
    assert "&lt;b&gt;hi&lt;/b&gt;" in shown.value and "<b>" not in shown.value
    explorer.controls["temperature"].value = 0.5
    assert "--temperature=0.5" in shown.value and "temperature=0.5" in shown.value
    explorer.controls["sharpness"].max = 30
    explorer.controls["sharpness"].value = 25
    assert shown.value == "sharpness = 25.0: expected a number from 0.01 to 20"


@pytest.mark.parametrize("query", ["?preset=best", "?sharpness=99", "?window=x", "?answer=42"])
def test_a_link_with_other_settings_is_refused(query):
    with pytest.raises(InvalidInput, match="expected"):
        from_query(query)
