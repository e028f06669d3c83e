"""How fast answers and training steps are on this machine.

`bench` answers the same prompts by `lad.diffusion.sampler`, by `lad.diffusion.reference` (plain
loops), and by the backbone from left to right, in the three ways of `transformers`: `generate` as
it is; `static`, on a GPU, with a cache of fixed size, for which a pass is compiled and captured as
ours are; `lookup`, one prompt at a time, which speculates with n-grams of the text so far.

A speed-up is the median of ratios of times that were taken one after the other. An iteration is
compared with its roofline (Williams et al., 2009), which recorded files call "floor". Random
weights are as slow as trained ones.

Reference: https://huggingface.co/docs/transformers/kv_cache and .../assisted_decoding
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import partial
from itertools import cycle, islice
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np
import pandas as pd
import torch
from accelerate import Accelerator
from torch import Tensor
from transformers import LlamaForCausalLM, StaticCache

from lad.diffusion import reference
from lad.diffusion.config import RANGES, RefineConfig
from lad.diffusion.denoiser import Denoiser
from lad.diffusion.sampler import refine_batch
from lad.diffusion.trace import Trace
from lad.evaluation import statistics
from lad.evaluation.frontier import LOOKUP
from lad.evaluation.generation import Answers, bar, greedy_answers, provenance
from lad.training.config import TrainConfig
from lad.training.data import PackedPairs
from lad.training.loss import loss_weights, noisy_inputs, take
from lad.training.trainer import Trainer
from lad.utils import check_least, checked, damaged_file, write_json

AIM = 200_000_000  # tokens, which is how many the paper's adapter saw
WAYS = ("generate", "static", "lookup")  # from left to right
UNTIMED = 5  # training steps in which kernels are compiled and chosen


def machine_rates(device: torch.device, dtype: torch.dtype) -> dict:
    """Bytes read from memory and operations done (on squares of ones) in a second, best of five."""
    big = device.type == "cuda"
    values = torch.ones((2**31 if big else 2**28) // dtype.itemsize, dtype=dtype, device=device)
    n = 8192 if big else 1536
    square = torch.ones(n, n, dtype=dtype, device=device)

    def best(work: Callable[[], object]) -> float:
        return min(_timed(device, work)[0] for _ in range(5))

    return {
        "bytes_per_second": values.numel() * dtype.itemsize / best(values.sum),
        "flops_per_second": 2 * n**3 / best(lambda: square @ square),
    }


def weight_counts(denoiser: Denoiser) -> dict[str, int]:
    """Numbers in the weight matrices of `backbone`, `head` and `adapter`, without embeddings."""
    counts = {"backbone": 0, "head": 0, "adapter": 0}
    for name, module in denoiser.causal_lm.named_modules():
        # From the shapes of the layers, because quantised tensors are packed.
        size = getattr(module, "in_features", 0) * getattr(module, "out_features", 0)
        if size and not hasattr(module, "base_layer"):  # LoRA's wrapper repeats the shape
            part = "adapter" if "lora_" in name else "head" if name == "lm_head" else "backbone"
            counts[part] += size
    return counts


def roofline(denoiser: Denoiser, rates: dict, batch: int, prompt: int, window: int) -> dict:
    """`weight_bytes` read and `flops` done in an iteration, and `seconds`, the longer of the times.

    The adapter is merged. `prompt` and `window` are positions of the prompt and the answer region.
    """
    config, counts = denoiser.causal_lm.config, weight_counts(denoiser)
    cached = denoiser.config.attention != "bidirectional"
    queries = window + (min(denoiser.config.shift, prompt) if cached else prompt)
    heads = config.num_attention_heads
    width = heads * (getattr(config, "head_dim", None) or config.hidden_size // heads)
    attention = 4 * config.num_hidden_layers * width * queries * (prompt + window)
    flops = batch * (2 * counts["backbone"] * queries + 2 * counts["head"] * window + attention)
    head_bytes = counts["head"] * denoiser.causal_lm.lm_head.weight.dtype.itemsize
    weight_bytes = head_bytes + counts["backbone"] * _bits(denoiser) // 8
    seconds = max(weight_bytes / rates["bytes_per_second"], flops / rates["flops_per_second"])
    return {"weight_bytes": weight_bytes, "flops": flops, "seconds": seconds}


def _bits(denoiser: Denoiser) -> int:
    return denoiser.backbone.spec.bits or 8 * denoiser.causal_lm.lm_head.weight.dtype.itemsize


@torch.inference_mode()
def bench(
    denoiser: Denoiser,
    backbone: LlamaForCausalLM,
    prompts: Sequence[str],
    config: RefineConfig,
    windows: Sequence[int],
    batches: Sequence[int],
    reference_prompts: int = 1,
    reference_iterations: int | None = None,
    on_result: Callable[[dict], object] = lambda result: None,
) -> dict:
    """Times of all ways, for every window and batch size, as plain values for JSON.

    Args:
        backbone: without an adapter; on the denoiser's device and in its dtype.
        prompts: a batch larger than their number takes them more than once.
        config: its answer length is replaced by each window.
        reference_prompts, reference_iterations: how many prompts the reference answers, from the
            first, and the iterations it runs; all by default, and each costs the same.
        on_result: called after every window and batch with what is returned so far.
    """
    started = time.perf_counter()
    ids = [denoiser.encode(prompt) for prompt in prompts]
    has_reference = 1 in batches and config.remasking != "verified"
    n_reference = min(reference_prompts, len(prompts)) if has_reference else 0
    rates = machine_rates(denoiser.device, denoiser.causal_lm.dtype)
    origin = provenance(denoiser.backbone, denoiser.adapter_sha256)
    longest, cells = max(map(len, ids)), []
    # One size for all windows, so that a pass is compiled once for a batch size.
    static = partial(StaticCache, backbone.config, longest + max(windows))
    caches = {batch: static() for batch in batches} if denoiser.device.type == "cuda" else {}
    result = {
        "device": denoiser.device.type,
        "provenance": origin | {"threads": torch.get_num_threads()},
        "rates": rates,
        "bits": _bits(denoiser),
        "denoiser": denoiser.config.to_dict(),
        "prompts": {"used": len(prompts), "by_reference": n_reference},
        "reference_iterations": reference_iterations,
        "config": config.to_dict(),
        "cells": cells,
    }
    for window in windows:
        context = min(max(longest + window, denoiser.config.context), RANGES["context"][1])
        settings = replace(config, answer_length=window, context=context)
        alone = None  # seconds an answer takes the reference
        for batch in sorted(batches):
            limits = n_reference if batch == 1 else 0, reference_iterations
            ways = {"generate": {}, "lookup": LOOKUP} if batch == 1 else {"generate": {}}
            if batch in caches:
                ways["static"] = {"past_key_values": caches[batch]}
            times = _measure(denoiser, backbone, ids, settings, batch, ways, *limits)
            times["floor"] = roofline(denoiser, rates, batch, longest, window)
            sampler = times["sampler"]
            sampler["iteration_by_floor"] = sampler["iteration_seconds"] / times["floor"]["seconds"]
            if times["reference"] is not None:
                alone = times["reference"]["seconds_per_answer"]
            elif alone is not None:  # the reference, run once for each answer of the batch
                ratios = [alone / seconds for seconds in sampler["seconds_by_round"]]
                times["speedup_vs_reference"] = statistics.median(ratios).to_dict()
            cells.append(times)
            for key in (f"speedup_vs_{way}" for way in ("reference", *WAYS)):
                result[key] = (cells[0][key] or {}).get("value")
            result |= {key: cells[0]["sampler"][key] for key in ("nfe", "tpf")}
            result["provenance"]["seconds"] = time.perf_counter() - started
            on_result(result)
    return result


def _measure(
    denoiser, backbone, ids, config, batch, ways, n_reference, reference_iterations
) -> dict:
    """The times of one window and batch size; the arguments are as in `bench`.

    `ways` are options of `transformers` for each way to answer from left to right.
    """
    n_rounds, repeated = math.ceil(len(ids) / batch), cycle(ids)
    rounds = [list(islice(repeated, batch)) for _ in range(n_rounds)]

    def refine(chunk: list[Tensor], config: RefineConfig) -> tuple[float, int | None, list[Trace]]:
        return _timed(denoiser.device, refine_batch, denoiser, chunk, config, batch_size=batch)

    def generate(way: str, chunk: list[Tensor], length: int) -> Answers:
        if "past_key_values" in ways[way]:
            ways[way]["past_key_values"].reset()
        prompts, eos = [prompt.tolist() for prompt in chunk], denoiser.eos_token_id
        return greedy_answers(backbone, prompts, length, eos, batch, **ways[way])

    # Warm up: on a GPU to the end, because finished answers change shapes, and kernels with them.
    short = replace(config, iterations=min(2, config.iterations))
    refine(rounds[0], short if denoiser.device.type == "cpu" else config)
    refined, compared, others = [], [], {way: [] for way in ways}
    for way in ways:
        generate(way, rounds[0], min(8, config.answer_length))
    for n, chunk in enumerate(bar(rounds, f"window {config.answer_length}, batch {batch}")):
        refined.append(refine(chunk, config))
        for way, answers in others.items():
            answers.append(generate(way, chunk, config.answer_length))
        if n < n_reference:
            seconds, _, [trace] = refined[-1]
            compared.append(_compare(denoiser, chunk[0], config, reference_iterations))
            compared[-1] |= {"sampler": seconds / trace.nfe, "nfe": trace.nfe}
    seconds, memory, groups = zip(*refined, strict=True)
    traces = [trace for group in groups for trace in group]
    nfe, tokens = sum(trace.nfe for trace in traces), sum(trace.tokens for trace in traces)
    # Full batches only, and the first step, which may still be warming up, if it is the only one.
    full = [min(group, key=lambda trace: trace.nfe).steps for group in groups]
    iterations = [step.seconds for steps in full for step in steps[1:] or steps]

    def per_token(seconds: Sequence[float], tokens: Sequence[int]) -> dict:
        return statistics.pooled_ratio(seconds, tokens).to_dict()

    left_to_right = dict.fromkeys(f"speedup_vs_{way}" for way in WAYS) | dict.fromkeys(WAYS)
    for way, answers in others.items():
        taken = [one.seconds for one in answers]
        left_to_right[f"speedup_vs_{way}"] = statistics.median(np.divide(taken, seconds)).to_dict()
        left_to_right[way] = {
            "seconds_per_answer": median(taken) / batch,
            "seconds_per_token": per_token(taken, [sum(map(len, a.tokens)) for a in answers]),
        }
    return (
        {
            "window": config.answer_length,
            "batch": batch,
            "rounds": n_rounds,
            "sampler": {
                "seconds_per_answer": median(seconds) / batch,
                "seconds_per_token": per_token(seconds, [sum(t.tokens for t in g) for g in groups]),
                "seconds_by_round": [x / batch for x in seconds],  # of one answer
                "iteration_seconds": median(iterations),
                "step_seconds": [
                    median(trace.steps[n].seconds for trace in traces if trace.nfe > n)
                    for n in range(max(trace.nfe for trace in traces))
                ],
                "nfe": nfe / len(traces),
                "tpf": tokens / nfe,
                "tokens": tokens / len(traces),
                "tokens_per_second": tokens / sum(seconds),
                "peak_memory": memory[0] and max(memory),
            },
        }
        | left_to_right
        | _reference_times(pd.DataFrame(compared))
    )


def _compare(denoiser: Denoiser, ids: Tensor, config: RefineConfig, iterations: int | None) -> dict:
    """The reference's seconds an iteration, and the share of its drafts that are the sampler's."""
    if iterations is not None and iterations < config.iterations:
        config = replace(config, iterations=iterations, patience=0)
    seconds, _, steps = _timed(denoiser.device, reference.refine, denoiser, ids, config)
    # The forward passes again, without the Python loops that take most of the time.
    forward = partial(reference.answer_logits, denoiser, ids)
    inputs = [step.inputs.tolist() for step in steps]
    forwards, _, _ = _timed(denoiser.device, lambda: list(map(forward, inputs)))
    [trace] = refine_batch(denoiser, [ids], config, batch_size=1)
    equal = sum(np.array_equal(a.draft, b.draft) for a, b in zip(steps, trace.steps, strict=False))
    return {
        "iteration_seconds": seconds / len(steps),
        "forward_seconds": forwards / len(steps),
        "iterations_run": len(steps),
        "drafts_equal": equal / max(len(steps), trace.nfe),  # 1 but for ties in half precision
    }


def _reference_times(compared: pd.DataFrame) -> dict:
    """Speed-up against the reference, against its forward passes, and the reference's numbers."""
    keys = "speedup_vs_reference", "speedup_vs_reference_forwards", "reference"
    if compared.empty:
        return dict.fromkeys(keys)
    columns, others = ["iteration_seconds", "forward_seconds"], ["iterations_run", "drafts_equal"]
    speedups = [statistics.median(compared[c] / compared["sampler"]).to_dict() for c in columns]
    answers = {"seconds_per_answer": (compared["iteration_seconds"] * compared["nfe"]).median()}
    numbers = answers | dict(compared[columns].median()) | dict(compared[others].mean())
    return dict(zip(keys, [*speedups, numbers], strict=True))


def _timed(device: torch.device, work: Callable, *args, **more) -> tuple[float, int | None, Any]:
    """Wall seconds, peak bytes of tensors (None on a CPU) and the result of `work`."""
    cuda = device.type == "cuda"
    if cuda:
        torch.cuda.reset_peak_memory_stats(device)
        torch.cuda.synchronize(device)
    started = time.perf_counter()
    result = work(*args, **more)
    if cuda:
        torch.cuda.synchronize(device)
    seconds = time.perf_counter() - started
    return seconds, torch.cuda.max_memory_allocated(device) if cuda else None, result


def training_throughput(
    denoiser: Denoiser, config: TrainConfig, steps: int = 20, on_step=lambda done, total: None
) -> dict:
    """Times of training steps on random pairs, for `add_run`; the adapter is trained by them.

    `config` is of the run that is planned; all batches get its longest width. `steps` optimiser
    steps are timed, after a few that are not.
    """
    check_least(1, steps=steps)
    total, context, device = UNTIMED + steps, config.context, denoiser.device
    processes = Accelerator().num_processes
    size = max(config.batch_tokens // context, 1) * config.accumulate * processes
    pairs = random_pairs(denoiser, size, context)
    rates = machine_rates(device, denoiser.causal_lm.dtype)
    times = {}

    def on_row(row: dict) -> None:  # the loss has been read, so the device is done with the step
        times[row["step"]] = time.perf_counter()
        on_step(row["step"], total)

    timed = replace(config, widths=(context,), steps=total, log_every=UNTIMED)
    trainer = Trainer(denoiser, timed, pairs, on_row=on_row)
    _, memory, _ = _timed(device, trainer.run)
    if memory is None:
        import resource  # not on every system, nor needed with a GPU

        memory = 1024 * resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    memory = Accelerator().gather(torch.tensor([memory], device=device))  # (processes,)
    seconds = times[total] - times[UNTIMED]
    rate = size * context * steps / seconds
    batch, generator = take(pairs, list(range(size)), context), torch.Generator().manual_seed(0)
    inputs = noisy_inputs(denoiser, batch, config, generator)
    predicted = loss_weights(batch, inputs, denoiser.mask_token_id, timed, generator) > 0
    work = flops_per_token(denoiser, float(predicted.float().mean()))
    flops = work["total"] * rate / processes
    return {
        "kind": "training",
        "bits": _bits(denoiser),
        "provenance": provenance(denoiser.backbone, denoiser.adapter_sha256),
        "rates": rates,
        "of_matrix_rate": flops / rates["flops_per_second"],
        "steps": steps,
        "processes": processes,
        "positions_per_step": size * context,
        "step_seconds": seconds / steps,
        "tokens_per_second": rate,
        "aim_tokens": AIM,
        "hours": AIM / rate / 3600,
        "peak_memory": int(memory.max()),
        "flops_per_token": work,
        "flops_per_second": flops,
        "config": config.to_dict(),
        "denoiser": denoiser.config.to_dict(),
    }


def random_pairs(denoiser: Denoiser, n: int, context: int) -> PackedPairs:
    """Random tokens: prompts of an eighth to a quarter of the context, and answers after them."""
    random = np.random.default_rng(0)
    ids = min(denoiser.vocabulary_size, 256)
    tokens = torch.from_numpy(random.integers(ids, size=(n, context), dtype=np.int32))
    lengths = random.integers(max(context // 8, 1), max(context // 4, 1) + 1, n)
    ends = random.integers(np.minimum(lengths + 1, context - 1), context)
    tokens[np.arange(context) >= ends[:, None]] = denoiser.eos_token_id
    kinds = torch.zeros(len(tokens), dtype=torch.int64)
    return PackedPairs(tokens, torch.from_numpy(lengths), torch.from_numpy(ends), kinds, 0)


def flops_per_token(denoiser: Denoiser, predicted: float) -> dict[str, float]:
    """Floating-point operations of a position in a training step, without attention products.

    4 for a frozen weight (forward, and the gradient of the states), 6 for a trained one. The head
    works on the share of positions that are `predicted`.
    """
    factors = {"backbone": 4.0, "head": 4.0 * predicted, "adapter": 6.0}
    work = {part: factors[part] * count for part, count in weight_counts(denoiser).items()}
    return work | {"total": sum(work.values())}


def read_runs(path: Path) -> list[dict]:
    """The runs in a file of `add_run`, none where there is no file; else DamagedFile."""
    with damaged_file(path, "expected measurements that --record wrote; name another file"):
        return list(checked(path.read_bytes(), dict)["runs"]) if path.exists() else []


def add_run(path: Path, run: dict) -> None:
    """Add a measurement to a JSON file of runs, which is created if it does not exist."""
    write_json(path, {"schema": 1, "runs": [*read_runs(path), run]})
