"""LoRA computed with the adapter merged in is LoRA: the same values, the same gradients."""

from __future__ import annotations

import pytest
import torch
from conftest import new_denoiser

from lad.accel.merged_lora import merged_lora
from lad.diffusion.denoiser import Denoiser


@pytest.fixture
def trained() -> Denoiser:
    denoiser = new_denoiser(alpha=12)
    for name, parameter in denoiser.model.named_parameters():
        parameter.requires_grad_("lora_" in name)
    return denoiser


def run(denoiser):
    """States, and the gradients of their squares' mean by the adapter's weights."""
    tokens = torch.randint(0, 100, (3, 11), generator=torch.Generator().manual_seed(1))
    states = denoiser.hidden_states(tokens, torch.ones((3, 1, 11, 11), dtype=torch.bool))
    parameters = [p for p in denoiser.model.parameters() if p.requires_grad]
    return states, torch.autograd.grad(states.square().mean(), parameters)


def test_values_and_gradients_are_those_of_two_thin_products(trained):
    states, gradients = run(trained)
    with merged_lora(trained.model):
        again, merged_gradients = run(trained)
    torch.testing.assert_close(again, states, atol=1e-5, rtol=1e-4)
    assert sum(float(g.abs().sum()) for g in gradients) > 0
    torch.testing.assert_close(merged_gradients, gradients, atol=1e-6, rtol=1e-3)


def test_the_layers_are_as_before_afterwards(trained):
    layers = [m for m in trained.model.modules() if hasattr(m, "lora_A")]
    with pytest.raises(KeyboardInterrupt), merged_lora(trained.model):
        assert all("forward" in vars(layer) for layer in layers)
        raise KeyboardInterrupt
    assert layers and not any("forward" in vars(layer) for layer in layers)
