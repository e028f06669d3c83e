"""The cards of the shipped adapters say what was recorded of them."""

import re

from lad.diffusion.adapter import read_card, shipped_adapter
from lad.evaluation.tables import share_of, with_interval
from lad.evaluation.tasks import title_of
from lad.viz.gallery import read_numbers, recorded_file


def cells(name: str) -> dict[str, list[str]]:
    """The rows of all tables of a card, by their first cell."""
    text = (shipped_adapter(name) / "README.md").read_text(encoding="utf-8")
    rows = [line.strip("| ").split(" | ") for line in text.splitlines() if line.startswith("|")]
    return {row[0]: row[1:] for row in rows}


def estimate(value: dict, digits: int = 1, factor: int = 100) -> str:
    value, low, high = (f"{factor * value[key]:.{digits}f}" for key in ("value", "low", "high"))
    return f"{value} ({low} to {high})"


def test_the_card_of_the_default_adapter_holds_what_lad_evaluate_wrote():
    data, rows = read_numbers("evaluate"), cells("smollm2-135m")
    _, card = read_card(shipped_adapter("smollm2-135m"))
    assert data["provenance"]["adapter_sha256"] == card["adapter_sha256"]
    for fraction, scores in data["masked"].items():
        found = rows[f"{100 * float(fraction):.0f} %"]
        assert found == [estimate(scores["ce"], 3, 1), estimate(scores["accuracy"]) + " %"]
    for name in ("default", "quality", "noiseless", "guided"):
        one = data["settings"][name]
        keys = ("forwards_per_token", "relative_perplexity_with_end")
        found = next(row for key, row in rows.items() if key.startswith(f"`{name}`"))
        assert found[:2] == [estimate(one[key], 2, 1) for key in keys]
        assert found[3] == estimate(one["repeats"]) + " %"
        assert found[-1] == estimate(one["same_fact"], 0) + " %"
    mended = rows["a sentence without a question: one damage mended exactly"][0]
    assert mended.startswith(estimate(data["sentences"]["mended"], 0))


def test_no_recorded_command_names_a_folder_of_one_machine():
    for path in recorded_file("evaluate.json").parent.glob("*.json"):
        assert not re.search(r'"lad [^"]*[ =]/', path.read_text(encoding="utf-8")), path


def test_the_card_for_questions_holds_what_lad_benchmark_wrote():
    rows = cells("smollm2-135m-choice")
    _, card = read_card(shipped_adapter("smollm2-135m-choice"))
    for run in read_numbers("benchmarks")["runs"]:
        if (run["by"], run["scoring"]) == ("denoiser", "generation"):
            assert run["adapter_sha256"] == card["adapter_sha256"]
            shares = [f"{100 * share_of(run, key).value:.1f}" for key in ("text", "line")]
            letter = with_interval(run).replace("–", " to ")
            assert rows[title_of(run["task"])] == [letter, *shares]
