"""LoRA computed with the adapter merged in is LoRA: the same values, the same gradients."""

from __future__ import annotations

import pytest
import torch

from lad.accel.merged_lora import merged_lora
from lad.diffusion.config import DenoiserConfig
from lad.diffusion.denoiser import Denoiser
from lad.models.registry import load_backbone


@pytest.fixture
def trained():
    """A tiny denoiser whose adapter does something."""
    denoiser = Denoiser.create(load_backbone("tiny"), DenoiserConfig(rank=4, alpha=12))
    generator = torch.Generator().manual_seed(0)
    for name, parameter in denoiser.model.named_parameters():
        if "lora_" in name:
            parameter.data = 0.1 * torch.randn(parameter.shape, generator=generator)
            parameter.requires_grad_(True)
    return denoiser


def run(denoiser, tokens):
    """Logits, and the gradients of their squares' mean by the adapter's weights."""
    mask = torch.ones((len(tokens), 1, tokens.shape[1], tokens.shape[1]), dtype=torch.bool)
    states = denoiser.hidden_states(tokens, mask)
    denoiser.model.zero_grad()
    states.square().mean().backward()
    return states.detach(), {
        name: p.grad.clone() for name, p in denoiser.model.named_parameters() if p.requires_grad
    }


def test_values_and_gradients_are_those_of_two_thin_products(trained):
    tokens = torch.randint(0, 100, (3, 11), generator=torch.Generator().manual_seed(1))
    states, gradients = run(trained, tokens)
    with merged_lora(trained.model):
        again, merged_gradients = run(trained, tokens)
    torch.testing.assert_close(again, states, atol=1e-5, rtol=1e-4)
    assert gradients.keys() == merged_gradients.keys()
    assert sum(float(g.abs().sum()) for g in gradients.values()) > 0
    for name, gradient in gradients.items():
        torch.testing.assert_close(merged_gradients[name], gradient, atol=1e-6, rtol=1e-3)


def test_the_layers_are_as_before_afterwards(trained):
    layers = [m for m in trained.model.modules() if hasattr(m, "lora_A")]
    with pytest.raises(KeyboardInterrupt), merged_lora(trained.model):
        assert all("forward" in vars(layer) for layer in layers)
        raise KeyboardInterrupt
    assert layers and not any("forward" in vars(layer) for layer in layers)
