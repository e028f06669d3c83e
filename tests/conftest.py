"""What several test files need: tiny denoisers of every kind, the real one once, the commands."""

import functools
import itertools
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from browser import Browser

from lad.__main__ import main
from lad.diffusion.adapter import load_denoiser
from lad.diffusion.config import ATTENTIONS, TARGETS, DenoiserConfig
from lad.diffusion.denoiser import Denoiser
from lad.evaluation.tasks import TASKS, Item
from lad.models.registry import load_backbone
from lad.training import Pair, TrainConfig, train

KINDS = list(itertools.product(ATTENTIONS, TARGETS))


def new_denoiser(device: str = "cpu", **config) -> Denoiser:
    """The tiny backbone with an adapter that does something, so that drafts keep moving."""
    config = DenoiserConfig(**{"rank": 4, "alpha": 8} | config)
    denoiser = Denoiser.create(load_backbone("tiny", device, torch.float32), config)
    stir(denoiser)
    return denoiser


@functools.cache
def tiny_denoiser(attention: str = "prompt-causal", target: str = "next") -> Denoiser:
    """One for all tests, which leave it as it is."""
    return new_denoiser(attention=attention, target=target)


def stir(denoiser: Denoiser, seed: int = 1) -> None:
    """Give the adapter random weights: a new one has B = 0 and changes nothing."""
    generator = torch.Generator().manual_seed(seed)
    for name, parameter in denoiser.model.named_parameters():
        if "lora_B" in name:
            values = torch.randn(parameter.shape, generator=generator) * 0.3
            parameter.data = values.to(parameter)


def json_lines(pairs) -> str:
    """The text of a file of pairs."""
    return "".join(json.dumps(vars(pair)) + "\n" for pair in pairs)


def run(capsys, *arguments: object) -> tuple[int, str, str]:
    """Exit status, stdout, stderr of one command."""
    with pytest.raises(SystemExit) as caught:
        main(list(map(str, arguments)))
    captured = capsys.readouterr()
    return caught.value.code, captured.out, captured.err


def run_in_terminal(*arguments: str, stop: tuple[bytes, int] | None = None, status=0) -> bytes:
    """What a command shows in a terminal of its own; `stop` is a text and the signal it gets."""
    ours, theirs = os.openpty()
    command = [sys.executable, "-m", "lad", *arguments]
    environment = os.environ | {"TERM": "xterm-256color", "COLUMNS": "100"}
    with subprocess.Popen(command, stdout=theirs, stderr=theirs, env=environment) as process:
        os.close(theirs)
        shown = b""
        try:
            while chunk := os.read(ours, 4096):
                shown += chunk
                if stop and stop[0] in shown:
                    process.send_signal(stop[1])
                    stop = None
        except OSError:  # how a pseudo-terminal says that the other side is closed
            pass
    os.close(ours)
    assert process.returncode == status
    return shown


def check_learning(denoiser: Denoiser, folder: Path | None = None) -> None:
    """A short training run makes the loss fall."""
    few = {"steps": 40, "learning_rate": 5e-3, "warmup_steps": 5, "widths": (96,)}
    config = TrainConfig(**few | {"batch_tokens": 960, "log_every": 10})
    pairs = [Pair(f"say {n}", f"{n}!") for n in range(60)]
    losses = [row["loss"] for row in train(denoiser, pairs, config, folder) if "loss" in row]
    assert losses[-1] < 0.9 * losses[0]


def pytest_collection_modifyitems(items):
    """Tests marked `gpu` are skipped without one."""
    if not torch.cuda.is_available():
        for item in items:
            if item.get_closest_marker("gpu"):
                item.add_marker(pytest.mark.skip(reason="needs a CUDA GPU"))


@pytest.fixture(autouse=True)
def threads(request):
    """One thread for the tiny model: two would spend their time waiting for each other."""
    many = torch.get_num_threads()
    torch.set_num_threads(many if request.node.get_closest_marker("real") else 1)
    yield
    torch.set_num_threads(many)


@pytest.fixture(params=KINDS, ids=["-".join(kind) for kind in KINDS])
def any_denoiser(request) -> Denoiser:
    """Every attention with every target."""
    return tiny_denoiser(*request.param)


@pytest.fixture
def denoiser() -> Denoiser:
    """The kind that is shipped."""
    return tiny_denoiser()


@pytest.fixture(scope="session")
def adapter(tmp_path_factory) -> str:
    """The folder of an adapter such as `tiny_denoiser` has."""
    return str(new_denoiser().save(tmp_path_factory.mktemp("adapters") / "tiny"))


OPTIONS = ("sand", "water", "glass", "wood")


@pytest.fixture
def few_questions(monkeypatch) -> Item:
    """Benchmarks of a few questions; the one returned is in every train split, and tested."""
    tested = Item("arc-easy", "t", "Which is tested?", OPTIONS, 0)

    def load(task, split):
        if split == TASKS[task].tested_on:
            return [tested] if task == "openbookqa" else []
        n = 40 if task == "hellaswag" else 5
        return [Item(task, str(i), f"{task} {split} {i}?", OPTIONS, 0) for i in range(n)] + [tested]

    monkeypatch.setattr("lad.evaluation.tasks.load_items", load)
    monkeypatch.setattr("lad.training.multiple_choice.SMALL", 20)
    return tested


@pytest.fixture(scope="session")
def chromium():
    """One browser for all tests; without one they are skipped."""
    with Browser() as browser:
        yield browser


@pytest.fixture
def show_page(chromium, tmp_path):
    """A function from HTML to its page in the browser; its scripts must raise nothing."""
    pages = []

    def show(html: str, **options):
        pages.append(chromium.show(html, tmp_path, **options))
        return pages[-1]

    yield show
    for page in pages:
        page.close()
        assert page.errors == []


@pytest.fixture(scope="session")
def real() -> Denoiser:
    """The default model with the shipped adapter."""
    return load_denoiser("smollm2-135m")
