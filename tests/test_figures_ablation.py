"""The ablation's figure: verdicts, title, and what notebook 2 says of the committed numbers."""

import json
from pathlib import Path

import pytest

import lad
from lad.viz.ablation import MEASURES, ablation, seed_spread, verdict
from lad.viz.style import to_png

COMMITTED = Path(lad.__file__).parents[1] / "figures" / "data" / "ablation.json"
BASE = {"ce": 2.0, "restored": 0.6, "kept": 0.9, "repeats": 0.5}


def variant(name: str, changes: dict | None = None, half: float = 0.02, **values: float) -> dict:
    """One row; what is not given is as in the base."""
    measures = {
        key: {"value": v, "low": v - half, "high": v + half, "n": 50}
        for key, v in (BASE | values).items()
    }
    return {"name": name, "changes": changes or {}, "measures": measures}


def data(*variants: dict) -> dict:
    return {"steps": 1500, "base": "plain", "variants": [variant("plain"), *variants]}


def title(values: dict) -> str:
    return ablation(values).get_suptitle()


BETTER = {"ce": 1.5, "restored": 0.8, "kept": 0.95, "repeats": 0.2}


def test_better_means_less_of_some_things_and_more_of_others():
    rows = data(variant("good", **BETTER))
    assert {verdict(rows, rows["variants"][1], m) for m in MEASURES} == {"better"}
    turned = data(variant("bad", **{k: 2 * BASE[k] - v for k, v in BETTER.items()}))
    assert {verdict(turned, turned["variants"][1], m) for m in MEASURES} == {"worse"}


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
    assert title(data(paid, variant("good", **BETTER))) == (
        "After 1,500 steps “good” beats the base on all four measures"
    )
    several = [variant(name, **BETTER) for name in "abc"]
    assert "steps 3 changes beat the base" in title(data(*several))
    assert "steps no changes beat the base" in title(data(paid))


def test_the_figure_is_the_same_bytes_twice_and_names_its_axes():
    rows = data(variant("good", **BETTER), variant("again", {"training.seed": 1}, ce=2.2))
    figure = ablation(rows)
    assert to_png(figure) == to_png(ablation(rows))
    assert [axes.get_xlabel() != "" for axes in figure.axes] == [True] * 4
    names = [tick.get_text() for tick in figure.axes[0].get_yticklabels()]
    assert names == ["plain (base)", "good", "again"]
    words = [text.get_text() for text in figure.legends[0].get_texts()]
    assert words[-1] == "what another seed changes"
    unseeded = ablation(data(variant("good", **BETTER))).legends[0].get_texts()
    assert [text.get_text() for text in unseeded][-1] == "the base"


# -- the committed numbers -------------------------------------------------------------------------


@pytest.fixture(scope="module")
def committed() -> dict:
    return json.loads(COMMITTED.read_text(encoding="utf-8"))


def test_the_committed_numbers_name_what_made_them(committed):
    assert committed["command"].startswith("lad ablate")
    assert committed["settings"]["training"]["steps"] == committed["steps"]
    for key in ("model", "backbone_digest", "pairs_sha256", "device", "dtype", "torch", "seed"):
        assert committed["provenance"][key] is not None
    for row in committed["variants"]:
        for measure in row["measures"].values():
            assert measure["low"] <= measure["value"] <= measure["high"] and measure["n"] >= 100
    assert seed_spread(committed, "ce") > 0  # the band that the notebook speaks of


def test_what_notebook_2_says_of_the_ablation_is_in_the_numbers(committed):
    rows = {row["name"]: row for row in committed["variants"]}
    value = {
        name: {key: m["value"] for key, m in row["measures"].items()} for name, row in rows.items()
    }

    def found(name: str, measure: str) -> str:
        return verdict(committed, rows[name], measure)

    # Masks alone: better at filling in, the worst of all at repairing.
    assert found("masks only", "ce") == "better"
    for measure in ("restored", "kept"):
        assert min(value, key=lambda name: value[name][measure]) == "masks only"
    # Drafts, this early: leaving them out is better on every count.
    assert {found("no drafts", measure) for measure in MEASURES} == {"better"}
    # Rank: the wider the better at filling in and at repairing.
    assert found("rank 16", "ce") == found("rank 16", "restored") == "worse"
    assert found("rank 256", "ce") == found("rank 256", "restored") == "better"
    # The target of the backbone's pretraining is worth keeping.
    assert found("target same", "ce") == found("target same", "restored") == "worse"
