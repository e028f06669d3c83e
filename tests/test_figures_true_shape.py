"""The figure of a large model's speed: its title says what the numbers do."""

from __future__ import annotations

import pytest

from lad.diffusion.config import DenoiserConfig
from lad.utils import DamagedFile
from lad.viz.style import to_png
from lad.viz.true_shape import speed_finding, true_shape

ORIGIN = {"model": "llama-3.1-8b:random"}


def iteration(bits: int, ratios: dict[int, float]) -> dict:
    cells = [{"batch": b, "sampler": {"iteration_by_floor": r}} for b, r in ratios.items()]
    return {"kind": "iteration", "bits": bits, "provenance": ORIGIN, "cells": cells}


def training(processes: int, rate: float, bits: int = 16) -> dict:
    return {
        "kind": "training",
        "bits": bits,
        "provenance": ORIGIN,
        "denoiser": DenoiserConfig().to_dict(),
        "processes": processes,
        "tokens_per_second": rate,
        "aim_tokens": 200_000_000,
        "hours": 200_000_000 / rate / 3600,
    }


def test_both_panels_and_the_finding():
    data = {
        "runs": [
            iteration(16, {1: 1.31, 8: 1.22, 32: 1.4}),
            iteration(4, {1: 2.5, 8: 1.8, 32: 1.6}),
            training(4, 60_000),
            training(1, 1000),  # measured again later
            training(1, 16_000),
            training(2, 31_000),
            training(1, 9000, bits=4),
        ]
    }
    figure = true_shape(data)
    refining, trained = figure.axes
    assert [line.get_label() for line in refining.lines] == ["16 bit", "4 bit", "floor"]
    rates, proportion = trained.lines[0], trained.lines[1]
    assert list(rates.get_xdata()) == [1, 2, 4] and list(rates.get_ydata()) == [16, 31, 60]
    assert list(proportion.get_ydata()) == [16, 32, 64]
    assert (
        figure.get_suptitle().replace("\n", " ")
        == speed_finding(data)
        == (
            "llama-3.1-8b: an iteration takes 1.2 to 1.4 times its floor in 16 bit, 1.6 to 2.5 "
            "times its floor in 4 bit; 200 million tokens take 3.5 h on 1 GPU; 4 are 3.8 times as "
            "fast as 1"
        )
    )
    assert to_png(figure)[:4] == b"\x89PNG"


def test_one_kind_of_run_is_enough():
    assert len(true_shape({"runs": [iteration(16, {1: 1.3})]}).axes) == 1
    assert "takes 1.3 times its floor in 16 bit" in speed_finding(
        {"runs": [iteration(16, {1: 1.3})]}
    )
    assert speed_finding({"runs": [training(2, 30_000)]}).endswith("take 1.9 h on 2 GPUs")
    assert len(true_shape({"runs": [training(2, 30_000)]}).axes) == 1
    assert len(true_shape({"runs": [iteration(16, {1: 1.3}), training(2, 30_000)]}).axes) == 1


@pytest.mark.parametrize("data", [{}, {"runs": []}, {"runs": [{"kind": "training"}]}, {"runs": 3}])
def test_other_data_is_told(data):
    with pytest.raises(DamagedFile, match="not the numbers of a shape"):
        true_shape(data)
