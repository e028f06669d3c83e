"""`lad frontier`: the area by hand and by property, the run and its figure on the tiny model."""

import json
from dataclasses import replace

import numpy as np
import pytest
from conftest import run, tiny_denoiser
from hypothesis import given
from hypothesis import strategies as st

from lad.evaluation import frontier, generation
from lad.evaluation.frontier import SWEEPS, area, lookup_answers, run_frontier
from lad.evaluation.generation import Answers, greedy_answers
from lad.utils import InvalidInput
from lad.viz.frontier import frontier as draw

FEW = {
    name: sweep._replace(config=replace(sweep.config, answer_length=12), values=sweep.values[:2])
    for name, sweep in SWEEPS.items()
}


def answers(speed: int, ratio: float, n: int = 3) -> Answers:
    """n answers of 11 tokens and EOS, so many a pass, of so many times the perplexity e."""
    losses = [np.full(12, 1 + np.log(ratio))] * n
    return Answers([[1] * 11] * n, [True] * n, [12 // speed] * n, 0.0, 0, losses)


def test_the_area_is_that_of_the_best_quality_at_each_speed():
    usual = answers(1, 1.0)
    for runs, expected in (
        ([usual], 1),
        ([answers(3, 2**0.5)], 1.5),  # half a bit a token
        ([answers(3, 2**0.5), usual], 1 + 2 / 2),
        ([answers(4, 2.5)], 0),
        ([usual, answers(2, 0.5)], 2),  # a loop is no better than the backbone
        ([answers(2, 1.0), answers(1, 4.0)], 2),
        ([answers(1, np.inf)], 0),
    ):
        assert area(runs, usual).value == pytest.approx(expected)
    assert area([usual.select([])], usual.select([])).n == 0


run_of = st.builds(answers, st.sampled_from([1, 2, 3, 4]), st.floats(0.5, 50))


@given(st.lists(run_of, min_size=1, max_size=5), run_of)
def test_another_run_never_takes_area_away(runs, more):
    usual = answers(1, 1.0)
    before, after = area(runs, usual).value, area([*runs, more], usual).value
    assert after >= before - 1e-9 and after <= 4


def test_prompt_lookup_gives_the_greedy_answers_in_fewer_passes():
    denoiser = tiny_denoiser()
    prompts = [denoiser.encode(text).tolist() for text in ("ab ab ab", "hello")]
    with denoiser.adapter_off():
        options = denoiser.causal_lm, prompts, 40, denoiser.eos_token_id
        expected, got = greedy_answers(*options), lookup_answers(*options)
    assert (got.tokens, got.ended) == (expected.tokens, expected.ended)
    assert all(0 < n <= len(ids) for n, ids in zip(got.forwards, got.with_eos, strict=True))
    assert sum(got.forwards) < sum(expected.forwards)


def test_strategies_are_swept_and_drawn():
    result = run_frontier(tiny_denoiser(), ["hi", "hello there", "x"], FEW)
    json.dumps(result, allow_nan=False)
    assert sum(result["answers"].values()) == 3
    for name, strategy in result["strategies"].items():
        assert [point["value"] for point in strategy["points"]] == list(FEW[name].values)
        assert {point["short"]["repeats"]["n"] for point in strategy["points"]} <= {0, 1, 2, 3}
    assert result["left_to_right"]["short"]["tokens_per_forward"]["value"] == 1
    assert result["left_to_right"]["short"]["relative_perplexity_with_end"]["value"] == 1
    title = draw(result).get_suptitle()
    best = max(s["area"]["short"]["value"] for s in result["strategies"].values())
    assert title.endswith(f"{best:.2f} on short") and len(title) <= 90
    fewer = run_frontier(tiny_denoiser(), ["hi"], {"editing": FEW["editing"]})
    figure = draw(frontier.added(result, fewer))
    assert "editing (n = 1)" in {label.get_text() for label in figure.axes[2].get_yticklabels()}
    with pytest.raises(InvalidInput, match="prompts = 0"):
        run_frontier(tiny_denoiser(), [], FEW)


def test_the_command_writes_the_figures_data(adapter, tmp_path, monkeypatch, capsys):
    monkeypatch.setenv("LAD_FIGURES", str(tmp_path / "figures"))
    monkeypatch.setattr(frontier, "SWEEPS", FEW)
    few = ["--n-prompts=2", "--device=cpu", "--model=tiny", f"--adapter={adapter}"]
    status, out, _ = run(capsys, "frontier", *few)
    path = tmp_path / "figures" / "data" / "frontier.json"
    assert (status, out.strip()) == (0, str(path))
    assert json.loads(path.read_text())["command"] == "lad frontier --n-prompts 2"
    path.write_text(path.read_text().replace('"verified"', '"older"'))  # a strategy of another run
    assert run(capsys, "frontier", "--strategy=verified", *few)[0] == 0
    strategies = json.loads(path.read_text())["strategies"]
    assert [*strategies] == [*[*FEW][:-1], "older", "verified"]
    assert strategies["verified"]["command"] == "lad frontier --n-prompts 2 --strategy verified"
    status, _, error = run(capsys, "frontier", "--strategy=guess", *few)
    assert status == 2 and "expected one of threshold, " in error
    # Ctrl-C after one strategy: that one is there.
    sweep, calls = generation.refine_traces, []

    def stopped(*args):
        calls.append(args)
        if len(calls) > 2:
            raise KeyboardInterrupt
        return sweep(*args)

    with monkeypatch.context() as patch:
        patch.setattr(generation, "refine_traces", stopped)
        patch.setattr(frontier, "SWEEPS", {name: FEW[name] for name in ("entropy", "threshold")})
        status, _, error = run(capsys, "frontier", *few, f"--out={tmp_path / 'cut.json'}")
    assert status == 130 and "strategies done are in the file" in error
    assert [*json.loads((tmp_path / "cut.json").read_text())["strategies"]] == ["entropy"]
    # A file that cannot be added to is refused before the work.
    monkeypatch.setattr(frontier, "run_frontier", None)
    whole = path.read_text()
    other = whole.replace('"adapter_sha256": "', '"adapter_sha256": "x')
    for text, named in ((other, "was made with adapter_sha256"), ("{", "expected what `lad front")):
        path.write_text(text)
        status, _, error = run(capsys, "frontier", "--strategy=verified", *few)
        assert status == 2 and named in error
    path.write_text(whole)
    assert run(capsys, "figures", "frontier")[0] == 0
    assert (tmp_path / "figures" / "frontier.svg").is_file()
