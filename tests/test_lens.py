"""The logit lens: against the model itself, on a run made by hand, and in its explorer."""

import json

import numpy as np
import pytest
import torch
from conftest import tiny_denoiser
from traces import make_trace, words

from lad.diffusion.config import PRESETS, RefineConfig
from lad.diffusion.sampler import record
from lad.evaluation import lens as lenses
from lad.evaluation.lens import GROUPS, Lens, first_layers, layer_states, lens, likeliest, spread
from lad.utils import InvalidInput
from lad.viz.lens import first_layer, lens_html, lens_sentence
from lad.widgets import LensExplorer

CONFIG = RefineConfig(answer_length=12, iterations=6, remasking="guided", eos_bias=-5)


def test_the_last_layer_s_prediction_is_the_denoiser_s(any_denoiser):
    trace = record(any_denoiser, "hello", CONFIG)
    steps = spread(trace, 3)
    assert steps == sorted({0, round((trace.nfe - 1) / 2), trace.nfe - 1})
    states = layer_states(any_denoiser, trace, steps)
    assert states.shape[:2] == (2, len(steps))
    prompt = torch.from_numpy(trace.prompt_ids)[None]
    for row, step in enumerate(steps):
        with torch.no_grad():
            logits = any_denoiser.logits(prompt, torch.from_numpy(trace.inputs[step])[None])
        top = logits[0, : states.shape[2]].softmax(-1).max(-1)
        tokens, probability = likeliest(any_denoiser, states[-1, row])
        assert tokens.tolist() == top.indices.tolist()
        assert probability == pytest.approx(top.values.numpy(), abs=1e-5)
    # A layer's output is the next one's input: without the second layer, the first has the word.
    layers = any_denoiser.causal_lm.model.layers
    any_denoiser.causal_lm.model.layers = layers[:1]
    try:
        assert torch.equal(layer_states(any_denoiser, trace, steps)[0], states[0])
    finally:
        any_denoiser.causal_lm.model.layers = layers


def test_the_lens_at_a_position_names_its_tokens(denoiser):
    trace = record(denoiser, "hello", CONFIG)
    whole = lens(denoiser, trace, 3)
    assert [one.position for one in whole] == list(range(min(trace.tokens + 1, 12)))
    [found] = lens(denoiser, trace, 3, [3])
    assert found.tokens.shape == found.is_final.shape == (2, 3)
    assert (found.tokens == whole[3].tokens).all() and found.iterations == spread(trace, 3)
    assert found.is_masked.tolist() == trace.is_masked[found.iterations, 3].tolist()
    assert found.texts[found.final] == denoiser.tokenizer.decode([trace.drafts[-1, 3]])
    with pytest.raises(InvalidInput, match=f"position 99: expected 0 to {len(whole) - 1}"):
        lens(denoiser, trace, 3, [99])


def test_positions_are_grouped_and_their_first_layer_counted(monkeypatch, denoiser):
    trace = record(denoiser, "hello", CONFIG)
    final = trace.drafts[-1, : min(trace.tokens + 1, 12)]
    wrong = np.broadcast_to(final + 1, (trace.nfe, len(final)))
    layers = iter([wrong, np.broadcast_to(final, wrong.shape)] * 2)
    monkeypatch.setattr(lenses, "likeliest", lambda *_: (next(layers), None))
    data = first_layers(denoiser, [trace, trace], iterations=99)
    json.dumps(data, allow_nan=False)
    was, again = trace.is_masked[:, : len(final)], trace.remask[:, : len(final)]
    counts = [one["positions"] for one in data["groups"].values()]
    assert counts == [2 * n for n in ((~was).sum(), (was & ~again).sum(), (was & again).sum())]
    for one in data["groups"].values():
        if one["positions"]:
            assert [layer["value"] for layer in one["likeliest"]] == [0, 1]
            assert (one["first"]["value"], one["never"]["value"], one["first"]["n"]) == (2, 0, 2)
    title = first_layer({"layers": data}).get_suptitle()
    assert title.startswith("Half of final tokens lead after layer 2 (visible), 2 (shown now)")


def test_a_group_that_never_leads_is_named_so():
    one = dict.fromkeys(("value", "low", "high"), 0.0) | {"n": 3}
    nothing = dict.fromkeys(("value", "low", "high"), None) | {"n": 0}
    group = {"positions": 4, "likeliest": [one] * 2, "first": nothing, "never": one | {"value": 1}}
    empty = group | {"positions": 0, "likeliest": []}
    data = {"layers": {"groups": dict(zip(GROUPS, (empty, empty, group), strict=True))}}
    figure = first_layer(data)
    assert figure.get_suptitle().endswith("after layer none (still masked)")
    assert "first after –\nnever: 100 %" in figure.legends[0].texts[0].get_text()


TEXTS = {4: "$x$", 5: " ", 6: "\n", 7: "internationally", 8: "</script><b>a"}
SQUARES = np.array([[4, 5], [6, 7]])


def lens_of(final):
    return Lens(0, [0, 7], SQUARES, np.full((2, 2), 0.5), np.array([True, False]), final, TEXTS)


def test_a_sentence_says_after_which_layer_the_final_token_leads():
    expected = (
        "“internati…” first leads after no layer at iteration 0, after layer 2 at iteration 7"
    )
    assert lens_sentence(lens_of(7)) == expected


def test_a_slider_chooses_the_position_in_a_page_without_a_kernel(show_page):
    trace = make_trace(words("a b", 2), prompt="<b>Why?")
    page = lens_html([lens_of(8), lens_of(7)._replace(position=1)], trace)
    assert "<b>Why" not in page and "<b>a" not in page and page.count("</script>") == 1
    page = show_page(page, width=390)
    shown = "[data-frame]:not([hidden])"
    cells = f"[...document.querySelectorAll('{shown} td')].map(e => e.textContent)"
    assert page.evaluate(cells) == ["↵", "internationally", "$x$", "␣"]  # the last layer on top
    final = f"[...document.querySelectorAll('{shown} .lad-final')].map(e => e.textContent)"
    label = "document.querySelector('[data-part=slider]').getAttribute('aria-valuetext')"
    assert page.evaluate(label) == "Token 1: internationally"
    assert page.evaluate(final) == ["internationally"]
    page.evaluate("document.querySelector('[data-part=slider]').focus()")
    page.press("ArrowLeft", 37)
    assert page.evaluate(label) == "Token 0: </script><b>a" and page.evaluate(final) == []
    assert page.evaluate("document.documentElement.scrollWidth <= innerWidth")


def test_the_explorer_shows_a_run_and_runs_a_prompt():
    denoiser = tiny_denoiser()
    explorer = LensExplorer(denoiser, record(denoiser, "<b>hi", CONFIG))
    page = explorer.screen.player
    shown = page.outputs
    assert explorer.prompt.value == "<b>hi" and "at iteration 0" in shown[0]["data"]["text/plain"]
    explorer.prompt.value, explorer.preset.value = "hello", "noiseless"
    explorer.run()
    assert explorer.wait(60) and not explorer.message.value and page.outputs != shown
    assert explorer.trace.config["iterations"] == PRESETS["noiseless"].iterations
    assert "lad-lens" in explorer._repr_mimebundle_()["text/html"]
