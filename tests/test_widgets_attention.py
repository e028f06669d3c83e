"""The attention explorer: drags never infer, a new mask is measured once, errors are shown."""

import threading

import pytest
from conftest import tiny_denoiser

from lad.utils import InvalidInput, NumericalError
from lad.widgets import attention
from lad.widgets.attention import AttentionExplorer

PATIENCE = 60  # seconds until a test gives up waiting


@pytest.fixture
def calls(monkeypatch):
    """Counts measurements; each lets itself be held up at `gate`."""

    class Calls(list):
        gate = threading.Event()

    calls, real = Calls(), attention.effects
    calls.gate.set()

    def counted(denoiser, tokens, kind, prompt_length, target, **kwargs):
        calls.append((kind, prompt_length, target))
        assert calls.gate.wait(PATIENCE)
        return real(denoiser, tokens, kind, prompt_length, target, **kwargs)

    monkeypatch.setattr(attention, "effects", counted)
    return calls


@pytest.fixture
def explorer(calls):
    explorer = AttentionExplorer(tiny_denoiser(), "ask:reply")
    yield explorer
    calls.gate.set()
    assert explorer.wait(PATIENCE)


def test_it_starts_with_two_masks_measured_and_one_shown(explorer, calls):
    assert [kind for kind, *_ in calls] == ["causal", "prompt-causal"]
    assert explorer.image.value.startswith('<img src="data:image/png;base64,')
    assert "1 of 4 states of the prompt and 5 of 5 of the answer" in explorer.caption.value
    assert "Under prompt-causal attention, hiding token 8" in explorer.image.value  # the alt


def test_dragging_the_hidden_token_never_runs_the_model(explorer, calls):
    done = len(calls)
    seen = {explorer.image.value}
    for position in range(9):
        explorer.hidden.value = position
        seen.add(explorer.image.value)
    assert len(calls) == done
    assert len(seen) == 9


def test_a_new_mask_is_measured_once_and_then_remembered(explorer, calls):
    for kind in ("bidirectional", "prompt-causal", "bidirectional", "causal"):
        explorer.kind.value = kind
        assert explorer.wait(PATIENCE)
    assert [kind for kind, *_ in calls] == ["causal", "prompt-causal", "bidirectional"]
    explorer.kind.value = "bidirectional"
    assert "4 of 4 states of the prompt" in explorer.caption.value


def test_target_and_prompt_length_change_what_is_let_through(explorer):
    explorer.target.value = "same"
    assert explorer.wait(PATIENCE)
    assert "0 of 4 states of the prompt" in explorer.caption.value
    explorer.prompt_length.value = 6
    assert explorer.wait(PATIENCE)
    assert "0 of 6 states of the prompt and 3 of 3" in explorer.caption.value


def test_mask_blind_takes_the_hidden_token_out_of_the_mask_that_is_drawn(explorer, monkeypatch):
    drawn = []
    real = attention.attention_explorer
    monkeypatch.setattr(
        attention, "attention_explorer", lambda mask, *rest: drawn.append(mask) or real(mask, *rest)
    )
    explorer.kind.value = "mask-blind"
    assert explorer.wait(PATIENCE)
    assert not explorer.target.disabled
    assert "1 of 4 states of the prompt and 5 of 5 of the answer" in explorer.caption.value
    explorer.hidden.value = 6
    assert drawn[-1][:, 6].nonzero()[0].tolist() == [6]  # it alone still sees itself
    explorer.kind.value = "prompt-causal"
    assert drawn[-1][:, 6].sum() == 6


def test_under_causal_attention_the_target_has_no_effect(explorer, calls):
    explorer.kind.value = "causal"
    assert explorer.target.disabled
    done = len(calls)
    explorer.prompt_length.value = 7
    assert explorer.wait(PATIENCE) and len(calls) == done
    assert "0 of 7 states of the prompt and 1 of 2" in explorer.caption.value


def test_the_last_choice_wins_over_what_was_begun(explorer, calls):
    calls.gate.clear()
    explorer.kind.value = "bidirectional"
    assert explorer.caption.value == "Measuring …"
    explorer.kind.value = "prompt-causal"
    explorer.prompt_length.value = 2
    calls.gate.set()
    assert explorer.wait(PATIENCE)
    assert "of 2 states of the prompt" in explorer.caption.value
    done = len(calls)
    explorer.kind.value = "bidirectional"  # was given up half-way, so it is measured again
    assert explorer.wait(PATIENCE) and len(calls) == done + 1


def test_sliders_that_start_a_measurement_wait_for_the_release(explorer):
    assert explorer.prompt_length.continuous_update is False
    assert explorer.hidden.continuous_update is True


def test_an_error_of_the_model_is_shown_and_can_be_got_over(explorer, monkeypatch):
    working = attention.effects

    def broken(*args, **kwargs):
        raise NumericalError("NaN in <layer 3>")

    monkeypatch.setattr(attention, "effects", broken)
    explorer.kind.value = "bidirectional"
    assert explorer.wait(PATIENCE)
    assert 'role="alert"' in explorer.message.value
    assert "NaN in &lt;layer 3&gt;" in explorer.message.value
    monkeypatch.setattr(attention, "effects", working)
    explorer.kind.value = "causal"
    assert explorer.message.value == ""
    explorer.kind.value = "bidirectional"
    assert explorer.wait(PATIENCE) and "4 of 4" in explorer.caption.value


def test_hostile_text_is_escaped():
    explorer = AttentionExplorer(tiny_denoiser(), "<s>$x$&y")
    explorer.hidden.value = 0
    assert "&lt;" in explorer.caption.value
    for shown in (explorer.caption.value, explorer.image.value):
        assert "(&#x27;<" not in shown and "<s>" not in shown


def test_without_a_denoiser_a_random_model_stands_in():
    explorer = AttentionExplorer()
    assert "".join(explorer.tokens) == "ask:reply"


@pytest.mark.parametrize("text", ["ab", "x" * 25])
def test_a_text_of_the_wrong_length_is_refused(text):
    with pytest.raises(InvalidInput, match="tokens: expected 3 to 24"):
        AttentionExplorer(tiny_denoiser(), text)
