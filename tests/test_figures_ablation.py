"""The ablation's figure: verdicts, title, and what chapter 5 says of the committed numbers."""

import pytest

from lad.viz.ablation import MEASURES, ablation, seed_spread, verdict
from lad.viz.gallery import read_numbers

BASE = {"ce": 2.0, "restored": 0.6, "kept": 0.9, "repeats": 0.5}
BETTER = {"ce": 1.5, "restored": 0.8, "kept": 0.95, "repeats": 0.2}
WORSE = {key: 2 * BASE[key] - value for key, value in BETTER.items()}


def variant(name: str, changes: dict | None = None, half: float = 0.02, **values: float) -> dict:
    """One row; what is not given is as in the base."""
    measures = {
        key: {"value": v, "low": v - half, "high": v + half, "n": 50}
        for key, v in (BASE | values).items()
    }
    return {"name": name, "changes": changes or {}, "measures": measures}


def data(*variants: dict) -> dict:
    return {"steps": 1500, "base": "plain", "variants": [variant("plain"), *variants]}


def verdicts(rows: dict, name: str) -> set[str]:
    (row,) = (row for row in rows["variants"] if row["name"] == name)
    return {verdict(rows, row, measure) for measure in MEASURES}


def test_better_means_less_of_some_things_and_more_of_others():
    rows = data(variant("good", **BETTER), variant("bad", **WORSE))
    assert verdicts(rows, "good") == {"better"} and verdicts(rows, "bad") == {"worse"}


def test_a_difference_within_an_interval_or_a_seed_is_none():
    near = data(variant("near", ce=1.97), variant("nearer", ce=1.99))
    assert [verdict(near, row, "ce") for row in near["variants"]] == ["alike", "better", "alike"]
    wide = data(variant("wide", half=0.05, ce=1.97))  # the base lies in its interval
    assert verdict(wide, wide["variants"][1], "ce") == "alike"
    seeded = data(variant("near", ce=1.97), variant("again", {"training.seed": 1}, ce=2.04))
    assert seed_spread(seeded, "ce") == pytest.approx(0.04)
    assert verdict(seeded, seeded["variants"][1], "ce") == "alike"
    other = data(variant("near", ce=1.97), variant("x", {"training.seed": 1, "denoiser.rank": 2}))
    assert seed_spread(other, "ce") == 0  # it changes more than the seed


def test_the_title_names_what_wins_everywhere():
    paid = variant("masks", ce=1.5, restored=0.3)
    figure = ablation(data(paid, variant("good", **BETTER)))
    expected = "After 1,500 steps “good” beats the base on all four measures"
    assert figure.get_suptitle() == expected
    names = [tick.get_text() for tick in figure.axes[0].get_yticklabels()]
    assert names == ["plain (base)", "masks", "good"]
    kinds = {"training.corruption.kinds": ["swap"]}
    both = [variant("paper's noise", changes) for changes in ({}, kinds)]
    ticks = ablation(data(*both)).axes[0].get_yticklabels()
    assert [tick.get_text() for tick in ticks[1:]] == ["paper's noise + replace", "paper's noise"]
    several = [variant(name, **BETTER) for name in "abc"]
    assert "steps 3 changes beat the base" in ablation(data(*several)).get_suptitle()
    seeded = ablation(data(paid, variant("again", {"training.seed": 1}, ce=2.2)))
    assert "steps no changes beat the base" in seeded.get_suptitle()
    last = [one.legends[0].get_texts()[-1].get_text() for one in (figure, seeded)]
    assert last == ["the base", "what another seed changes"]


def test_what_chapter_5_says_of_the_ablation_is_in_the_numbers():
    committed = read_numbers("ablation")
    rows = {row["name"]: row for row in committed["variants"]}

    def found(name: str, *measures: str) -> set[str]:
        return {verdict(committed, rows[name], measure) for measure in measures}

    # Masks alone: better at filling in, the worst of all at repairing.
    assert found("masks only", "ce") == {"better"}
    for measure in ("restored", "kept"):
        worst = min(rows, key=lambda name: rows[name]["measures"][measure]["value"])
        assert worst == "masks only"
    # Drafts, this early: leaving them out is better on every count.
    assert found("no drafts", *MEASURES) == {"better"}
    # Rank: the wider the better at filling in and at repairing.
    assert found("rank 16", "ce", "restored") == {"worse"}
    assert found("rank 256", "ce", "restored") == {"better"}
    # The target of the backbone's pretraining is worth keeping.
    assert found("target same", "ce", "restored") == {"worse"}
