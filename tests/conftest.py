"""What several test files need: tiny denoisers of every kind, and the real one once."""

import functools
import itertools

import pytest
import torch

from lad.backbones import load_backbone
from lad.denoiser import ATTENTIONS, TARGETS, Denoiser, DenoiserConfig, load_denoiser

KINDS = list(itertools.product(ATTENTIONS, TARGETS))


@functools.cache
def tiny_denoiser(attention: str = "prompt-causal", target: str = "next") -> Denoiser:
    """The tiny backbone with an adapter that does something, so that drafts keep moving."""
    config = DenoiserConfig(attention=attention, target=target, rank=4, alpha=8)
    denoiser = Denoiser.create(load_backbone("tiny"), config)
    stir(denoiser)
    return denoiser


def stir(denoiser: Denoiser, seed: int = 1) -> None:
    """Give the adapter random weights: a new one has B = 0 and changes nothing."""
    generator = torch.Generator().manual_seed(seed)
    for name, parameter in denoiser.model.named_parameters():
        if "lora_B" in name:
            parameter.data = torch.randn(parameter.shape, generator=generator) * 0.3


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
def real() -> Denoiser:
    """The default model with the shipped adapter."""
    return load_denoiser("smollm2-135m")
