"""Weights of 4 and 8 bit: what is asked for without bitsandbytes, and what comes with it."""

from __future__ import annotations

import importlib.util

import pytest
import torch
from checkpoints import save_checkpoint
from conftest import check_learning, stir

from lad.diffusion.config import RefineConfig
from lad.diffusion.denoiser import Denoiser, DenoiserConfig, load_denoiser
from lad.diffusion.sampler import record
from lad.evaluation.throughput import bench, flops_per_token, roofline
from lad.models.registry import load_backbone
from lad.utils import InvalidInput

INSTALLED = importlib.util.find_spec("bitsandbytes") is not None
needs_it = pytest.mark.skipif(
    not INSTALLED, reason="needs bitsandbytes: pip install 'lad[quantized]'"
)
SMALL = DenoiserConfig(rank=4, alpha=8)


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> str:
    return str(save_checkpoint(tmp_path_factory.mktemp("models") / "a-llama", "llama"))


@pytest.mark.parametrize("name", ["llama-3.1-8b:4bit", "tiny:random:8bit"])
def test_without_bitsandbytes_the_remedy_is_named_before_anything_is_fetched(monkeypatch, name):
    known = importlib.util.find_spec
    monkeypatch.setattr(
        importlib.util, "find_spec", lambda n, *a: None if n == "bitsandbytes" else known(n, *a)
    )
    with pytest.raises(InvalidInput, match=r"pip install 'lad\[quantized\]'"):
        load_backbone(name)


def test_the_tiny_model_has_no_use_for_it():
    with pytest.raises(InvalidInput, match="tiny:4bit"):
        load_backbone("tiny:4bit")


@needs_it
@pytest.mark.parametrize("bits", [4, 8])
def test_quantised_weights_are_nearly_the_plain_ones(folder, bits):
    plain, loaded = load_backbone(folder), load_backbone(f"{folder}:{bits}bit")
    assert (loaded.digest, loaded.spec.name) == (plain.digest, plain.spec.name)
    layer = loaded.model.model.layers[0].mlp.up_proj
    assert layer.weight.dtype == (torch.uint8 if bits == 4 else torch.int8)
    assert loaded.model.lm_head.weight.dtype == torch.float32
    tokens = torch.randint(256, (1, 24), generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        expected, got = (backbone.model(tokens).logits for backbone in (plain, loaded))
    error = float((got - expected).norm() / expected.norm())
    assert 1e-4 < error < (0.5 if bits == 4 else 0.1)


@needs_it
@pytest.mark.parametrize("bits", [4, 8])
@pytest.mark.parametrize("knobs", [{}, {"gradient_checkpointing": True, "loss_chunk": 32}])
def test_an_adapter_is_trained_on_quantised_weights(folder, bits, knobs):
    denoiser = Denoiser.create(load_backbone(f"{folder}:{bits}bit"), SMALL)
    frozen = denoiser.causal_lm.model.layers[0].mlp.up_proj.base_layer.weight.clone()
    check_learning(denoiser, **knobs)
    assert torch.equal(denoiser.causal_lm.model.layers[0].mlp.up_proj.base_layer.weight, frozen)
    trace = record(denoiser, "say 3", RefineConfig(answer_length=6, iterations=2, patience=0))
    assert len(trace.steps) == 2


@needs_it
@pytest.mark.parametrize("bits", [4, 8])
def test_an_adapter_stays_beside_quantised_weights(folder, tmp_path, bits):
    """Trained on plain weights or on quantised ones, it is the same model's; it is not merged."""
    denoiser = Denoiser.create(load_backbone(folder), SMALL)
    stir(denoiser)
    denoiser.save(tmp_path / "adapter")
    loaded = load_denoiser(f"{folder}:{bits}bit", tmp_path / "adapter")
    assert not any(getattr(m, "merged", False) for m in loaded.model.modules())
    trace = record(loaded, "hi", RefineConfig(answer_length=6, iterations=2, patience=0))
    assert len(trace.steps) == 2


@needs_it
@pytest.mark.parametrize("bits", [4, 8])
def test_random_quantised_weights_of_a_shape(bits):
    loaded = load_backbone(f"tiny:random:{bits}bit")
    denoiser = Denoiser.create(loaded, SMALL)
    trace = record(denoiser, "hi", RefineConfig(answer_length=6, iterations=2, patience=0))
    assert len(trace.steps) == 2
    # Counted from shapes, not from packed bytes.
    plain = Denoiser.create(load_backbone("tiny:random"), SMALL)
    assert flops_per_token(denoiser, 1.0) == flops_per_token(plain, 1.0)
    rates = {"bytes_per_second": 1e6, "flops_per_second": 1e15, "flops_per_second_of_normals": 1e15}
    few, all_bits = (roofline(one, rates, 1, 20, 16) for one in (denoiser, plain))
    assert few["flops"] == all_bits["flops"]
    head = 4 * plain.causal_lm.lm_head.weight.numel()
    assert few["weight_bytes"] == head + (all_bits["weight_bytes"] - head) * bits // 32


@needs_it
def test_quantised_iterations_are_measured():
    denoiser = Denoiser.create(load_backbone("tiny:random:4bit"), SMALL)
    plain = load_backbone("tiny:random:4bit").model
    run = bench(denoiser, plain, ["hi"], RefineConfig(iterations=2), (16,), (1,))
    assert run["bits"] == 4 and run["cells"][0]["sampler"]["iteration_by_floor"] > 0.5
