"""The attention explorer: drags never infer, a new mask is measured once, errors are shown."""

from unittest.mock import Mock

import pytest
from conftest import tiny_denoiser

from lad.utils import InvalidInput, NumericalError
from lad.widgets import attention
from lad.widgets.attention import AttentionExplorer


@pytest.fixture
def calls(monkeypatch):
    """What was measured."""
    calls = Mock(side_effect=attention.effects)
    monkeypatch.setattr(attention, "effects", calls)
    return calls


@pytest.fixture
def explorer(calls):
    return AttentionExplorer(tiny_denoiser(), "ask:reply")


def test_dragging_the_hidden_token_never_runs_the_model(explorer, calls):
    assert "1 of 4 states of the prompt and 5 of 5 of the answer" in explorer.caption.value
    assert explorer.image.value.startswith('<img src="data:image/png;base64,')
    assert "Under prompt-causal attention, hiding token 8" in explorer.image.value  # the alt
    assert explorer._repr_mimebundle_()["text/html"].startswith(explorer.image.value)
    seen = {explorer.image.value}
    for position in (0, 4, 6):
        explorer.hidden.value = position
        seen.add(explorer.image.value)
    assert calls.call_count == 1 and len(seen) == 4
    assert explorer.prompt_length.continuous_update is False  # it starts a measurement


def test_a_new_mask_is_measured_once_and_then_remembered(explorer, calls):
    for kind in ("bidirectional", "prompt-causal", "causal", "bidirectional"):
        explorer.kind.value = kind
    kinds = [call.args[2] for call in calls.call_args_list]
    assert kinds == ["prompt-causal", "bidirectional", "causal"]
    assert "4 of 4 states of the prompt" in explorer.caption.value


def test_target_and_prompt_length_change_what_is_let_through(explorer, calls):
    explorer.target.value = "same"
    assert "0 of 4 states of the prompt" in explorer.caption.value
    explorer.prompt_length.value = 6
    assert "0 of 6 states of the prompt and 3 of 3" in explorer.caption.value
    explorer.kind.value = "causal"  # where the target has no effect
    assert explorer.target.disabled
    done = calls.call_count
    explorer.prompt_length.value = 7
    assert calls.call_count == done
    assert "0 of 7 states of the prompt and 1 of 2" in explorer.caption.value


def test_mask_blind_takes_the_hidden_token_out_of_the_mask_that_is_drawn(explorer, monkeypatch):
    drawn = Mock(side_effect=attention.attention_explorer)
    monkeypatch.setattr(attention, "attention_explorer", drawn)
    explorer.hidden.value = 6
    assert drawn.call_args[0][0][:, 6].sum() == 6
    explorer.kind.value = "mask-blind"
    assert not explorer.target.disabled
    assert drawn.call_args[0][0][:, 6].nonzero()[0].tolist() == [6]  # it alone still sees itself


def test_an_error_of_the_model_is_shown_and_can_be_got_over(explorer, monkeypatch):
    with monkeypatch.context() as broken:
        broken.setattr(attention, "effects", Mock(side_effect=NumericalError("NaN in <layer 3>")))
        explorer.kind.value = "bidirectional"
    assert 'role="alert"' in explorer.message.value
    assert "NaN in &lt;layer 3&gt;" in explorer.message.value
    explorer.kind.value = "causal"
    assert explorer.message.value == ""


def test_hostile_text_is_escaped():
    explorer = AttentionExplorer(tiny_denoiser(), "<s>$x$&y")
    explorer.hidden.value = 0
    assert "&lt;" in explorer.caption.value
    for shown in (explorer.caption.value, explorer.image.value):
        assert "(&#x27;<" not in shown and "<s>" not in shown


def test_a_text_of_the_wrong_length_is_refused():
    for text in ("ab", "x" * 25):
        with pytest.raises(InvalidInput, match="tokens: expected 3 to 24"):
            AttentionExplorer(tiny_denoiser(), text)
