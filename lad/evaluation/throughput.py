"""How fast answers and training steps are on this machine.

`bench` times three ways to answer the same prompts, side by side in one run:

    reference   `lad.diffusion.reference`, refinement as plain loops, one prompt at a time
    sampler     `lad.diffusion.sampler`, the same refinement, batched and cached
    generate    the backbone alone, left to right (`transformers`, key/value cache, greedy)

For every window (positions of the answer region) and batch size, prompts are answered in rounds of
one batch. Within a round all ways run one after the other and everything is warm, so a speed-up is
a ratio of times that a busy machine slows alike; it is the median over rounds with a 95 % interval.
Reference and sampler give the same tokens, which is checked as they run. The reference spends most
of its time in Python loops over the vocabulary, so its forward passes are timed alone, too.

An iteration is compared with its roofline: the larger of the times for reading the weights once, at
the machine's memory bandwidth, and for doing the multiplications once, at its matrix rate, both
measured in the same run (Williams et al., 2009). Recorded files call it "floor".

`training_throughput` times real training steps. Neither needs trained weights: the cost does not
depend on them, so a large model is measured with random weights of its shape, without a download.
"""

from __future__ import annotations

import json
import math
import time
from collections.abc import Callable, Sequence
from dataclasses import replace
from itertools import compress, cycle, islice
from pathlib import Path
from statistics import median

import numpy as np
import torch
from accelerate import Accelerator
from torch import Tensor
from transformers import LlamaForCausalLM

from lad.diffusion import reference
from lad.diffusion.config import RANGES, RefineConfig
from lad.diffusion.denoiser import Denoiser
from lad.diffusion.sampler import refine_batch
from lad.diffusion.trace import Trace
from lad.evaluation import statistics
from lad.evaluation.adapter_eval import Progress, provenance, silent
from lad.evaluation.answers import greedy_answers
from lad.training.config import TrainConfig
from lad.training.data import PackedPairs
from lad.training.loss import corrupt_batch, loss_weights, take
from lad.training.trainer import Trainer
from lad.utils import DamagedFile, InvalidInput, disk_errors, write_json

LONG_ANSWER = 40  # tokens from which an answer counts as long, where left to right is slowest
AIM = 200_000_000  # tokens, which is how many the paper's adapter saw
UNTIMED = 5  # training steps in which kernels are compiled and chosen
SCHEMA = 1  # of files with several recorded runs


# -- roofline --------------------------------------------------------------------------------------


def machine_rates(device: torch.device, dtype: torch.dtype) -> dict:
    """Bytes a second read from memory and floating-point operations a second, the best of a few.

    Operations are counted on squares of ones, and on squares of normally distributed numbers, like
    weights: those switch more transistors, and a GPU at its limit of power multiplies them slower.
    """
    big = device.type == "cuda"
    values = torch.ones((2**31 if big else 2**28) // dtype.itemsize, dtype=dtype, device=device)
    n = 8192 if big else 1536
    ones = torch.ones(n, n, dtype=dtype, device=device)
    normals = torch.randn(n, n, device=device).to(dtype)

    def best(work: Callable[[], object]) -> float:
        return min(_timed(device, work)[0] for _ in range(5))

    return {
        "bytes_per_second": values.numel() * dtype.itemsize / best(values.sum),
        "flops_per_second": 2 * n**3 / best(lambda: ones @ ones),
        "flops_per_second_of_normals": 2 * n**3 / best(lambda: normals @ normals),
    }


def weight_counts(denoiser: Denoiser) -> dict[str, int]:
    """Numbers in the weight matrices of `backbone`, `head` and `adapter`; embeddings left out.

    From the shapes of the layers, because the tensors of quantised ones are packed. For the same
    reason `torch.utils.flop_counter` does not serve here; the tests compare with it.
    """
    counts = {"backbone": 0, "head": 0, "adapter": 0}
    for name, module in denoiser.causal_lm.named_modules():
        size = getattr(module, "in_features", 0) * getattr(module, "out_features", 0)
        if size and not hasattr(module, "base_layer"):  # LoRA's wrapper repeats the shape
            part = "adapter" if "lora_" in name else "head" if name == "lm_head" else "backbone"
            counts[part] += size
    return counts


def roofline(denoiser: Denoiser, rates: dict, batch: int, prompt: int, window: int) -> dict:
    """The least time of an iteration on a machine of these rates, with the adapter merged.

    Quantised weights are multiplied in 16 bit; only the bytes that are read are fewer.

    Args:
        rates: from `machine_rates`.
        prompt: p, positions of the prompt.
        window: positions of the answer region.

    Returns:
        `weight_bytes` read once, `flops` done once, and `seconds`, the larger of their times; in
        `seconds_of_normals` the operations are done at the rate of normally distributed numbers.
    """
    config, counts = denoiser.causal_lm.config, weight_counts(denoiser)
    cached = denoiser.config.attention != "bidirectional"
    queries = window + (min(denoiser.config.shift, prompt) if cached else prompt)
    head_dim = getattr(config, "head_dim", None)
    width = config.num_attention_heads * head_dim if head_dim else config.hidden_size
    attention = 4 * config.num_hidden_layers * width * queries * (prompt + window)
    linear = 2 * counts["backbone"] * queries + 2 * counts["head"] * window
    flops = batch * (linear + attention)
    itemsize = denoiser.causal_lm.lm_head.weight.dtype.itemsize
    bits = denoiser.backbone.spec.bits or 8 * itemsize
    weight_bytes = counts["head"] * itemsize + counts["backbone"] * bits // 8
    by_memory = weight_bytes / rates["bytes_per_second"]
    by_arithmetic = flops / rates["flops_per_second"]
    return {
        "weight_bytes": weight_bytes,
        "flops": flops,
        "memory_seconds": by_memory,
        "arithmetic_seconds": by_arithmetic,
        "seconds": max(by_memory, by_arithmetic),
        "seconds_of_normals": max(by_memory, flops / rates["flops_per_second_of_normals"]),
    }


# -- iterations ------------------------------------------------------------------------------------


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
    on_progress: Progress = silent,
    on_result: Callable[[dict], object] = lambda result: None,
) -> dict:
    """Times of the three ways, for every window and batch size.

    Args:
        backbone: for `generate`, without an adapter; on the denoiser's device and in its dtype.
        prompts: texts of one turn. A batch larger than their number takes them more than once.
        config: settings of the refinement; its answer length is replaced by each window.
        reference_prompts: how many of them the reference answers, from the first.
        reference_iterations: how many iterations it runs, from the first; all by default. Each
            costs the same, so times scale.
        on_result: called after every cell with what is returned so far.

    Returns:
        Plain values for JSON: provenance, the machine's rates, one cell for every window and batch,
        and, from the first of them, `speedup_vs_reference`, `speedup_vs_generate`, `nfe`, `tpf`
        and `device`.

    Raises:
        InvalidInput: a prompt and a window that do not fit the model's context together.
        NumericalError: NaN or infinite logits.
    """
    started = time.perf_counter()
    ids = [denoiser.encode(prompt) for prompt in prompts]
    longest = max(map(len, ids))
    n_reference = min(reference_prompts, len(prompts)) if 1 in batches else 0
    rates = machine_rates(denoiser.device, denoiser.causal_lm.dtype)
    result = {
        "device": denoiser.device.type,
        "provenance": provenance(denoiser.backbone, denoiser.adapter_sha256)
        | {"threads": torch.get_num_threads()},
        "rates": rates,
        "bits": denoiser.backbone.spec.bits or 8 * denoiser.causal_lm.dtype.itemsize,
        "denoiser": denoiser.config.to_dict(),
        "prompts": {"used": len(prompts), "by_reference": n_reference},
        "reference_iterations": reference_iterations,
        "config": config.to_dict(),
        "cells": [],
    }
    for window in windows:
        context = max(longest + window, denoiser.config.context)
        settings = replace(config, answer_length=window, context=min(RANGES["context"][1], context))
        alone = None  # seconds an answer takes the reference
        for batch in sorted(batches):
            stage = f"window {window}, batch {batch}"
            cell = _measure(
                denoiser, backbone, ids, settings, batch, rates,
                n_reference if batch == 1 else 0, reference_iterations,
                lambda done, total, stage=stage: on_progress(stage, done, total),
            )  # fmt: skip
            if cell["reference"] is not None:
                alone = cell["reference"]["seconds_per_answer"]
            elif alone is not None:  # the reference, run once for each answer of the batch
                times = [alone / seconds for seconds in cell["sampler"]["seconds_by_round"]]
                cell["speedup_vs_reference"] = statistics.median(times).to_dict()
            result["cells"].append(cell)
            first = result["cells"][0]
            result["speedup_vs_reference"] = (first["speedup_vs_reference"] or {}).get("value")
            result["speedup_vs_generate"] = first["speedup_vs_generate"]["value"]
            result["nfe"], result["tpf"] = first["sampler"]["nfe"], first["sampler"]["tpf"]
            result["provenance"]["seconds"] = time.perf_counter() - started
            on_result(result)
    return result


def _measure(
    denoiser: Denoiser,
    backbone: LlamaForCausalLM,
    ids: list[Tensor],
    config: RefineConfig,
    batch: int,
    rates: dict,
    n_reference: int,
    reference_iterations: int | None,
    on_round: Callable[[int, int], object],
) -> dict:
    """Every number of one window and batch size."""
    device, window = denoiser.device, config.answer_length
    n_rounds = math.ceil(len(ids) / batch)
    rounds = [list(islice(cycle(ids), n * batch, (n + 1) * batch)) for n in range(n_rounds)]

    def refine(chunk: list[Tensor], config: RefineConfig) -> tuple[float, int | None, list[Trace]]:
        return _timed(device, lambda: refine_batch(denoiser, chunk, config, batch_size=batch))

    def generate(chunk: list[Tensor], length: int) -> tuple[float, int | None, list[list[int]]]:
        prompts = [prompt.tolist() for prompt in chunk]
        given = (backbone, prompts, length, denoiser.eos_token_id, batch)
        _, memory, answers = _timed(device, lambda: greedy_answers(*given))
        return answers.seconds, memory, answers.tokens

    # Warm up: on a GPU to the end, because finished answers change shapes, and kernels with them.
    short = replace(config, iterations=min(2, config.iterations))
    refine(rounds[0], short if device.type == "cpu" else config)
    generate(rounds[0], 2)
    refined, generated, compared = [], [], []
    for n, chunk in enumerate(rounds):
        on_round(n, n_rounds)
        refined.append(refine(chunk, config))
        generated.append(generate(chunk, window))
        if n < n_reference:
            found = _compare(denoiser, chunk[0], config, reference_iterations)
            [trace] = refined[-1][2]
            compared.append(found | {"sampler": refined[-1][0] / trace.nfe, "nfe": trace.nfe})
    on_round(n_rounds, n_rounds)

    seconds, memory, groups = zip(*refined, strict=True)
    base_seconds, base_memory, base_groups = zip(*generated, strict=True)
    traces = [trace for group in groups for trace in group]
    nfe, tokens = sum(trace.nfe for trace in traces), sum(trace.tokens for trace in traces)
    base_tokens = sum(len(answer) for group in base_groups for answer in group)
    ratios = [base / own for base, own in zip(base_seconds, seconds, strict=True)]
    # In larger batches one long answer decides the time of all: single ones only.
    long = [batch == 1 and len(group[0]) >= LONG_ANSWER for group in base_groups]
    rate, base_rate = tokens / sum(seconds), base_tokens / sum(base_seconds)
    iteration = _iteration_seconds(groups)
    bound = roofline(denoiser, rates, batch, max(map(len, ids)), window)
    speedup, speedup_forwards, reference_numbers = _reference_numbers(compared)
    return {
        "window": window,
        "batch": batch,
        "rounds": n_rounds,
        "speedup_vs_reference": speedup,
        "speedup_vs_reference_forwards": speedup_forwards,
        "speedup_vs_generate": statistics.median(ratios).to_dict(),
        "speedup_vs_generate_long": statistics.median(list(compress(ratios, long))).to_dict(),
        # Answers differ in length, so the ratio of token rates stands beside that of times.
        "token_rate_vs_generate": rate / base_rate if base_tokens else None,
        "sampler": {
            "seconds_per_answer": median(seconds) / batch,
            "seconds_by_round": [x / batch for x in seconds],  # of one answer
            "iteration_seconds": iteration,
            "iteration_by_floor": iteration / bound["seconds"],
            "iteration_by_floor_of_normals": iteration / bound["seconds_of_normals"],
            "step_seconds": [
                median(trace.steps[n].seconds for trace in traces if trace.nfe > n)
                for n in range(max(trace.nfe for trace in traces))
            ],
            "nfe": nfe / len(traces),
            "tpf": tokens / nfe,
            "tokens": tokens / len(traces),
            "tokens_per_second": rate,
            "peak_memory": memory[0] and max(memory),
        },
        "generate": {
            "seconds_per_answer": median(base_seconds) / batch,
            "tokens": base_tokens / len(traces),
            "tokens_per_second": base_rate,
            "peak_memory": base_memory[0] and max(base_memory),
        },
        "reference": reference_numbers,
        "floor": bound,
    }


def _iteration_seconds(groups: Sequence[list[Trace]]) -> float:
    """Median seconds of an iteration of full batches: before any answer is finished."""
    seconds = []
    for traces in groups:
        full = min(trace.nfe for trace in traces)
        steps = max(traces, key=lambda trace: trace.nfe).steps[:full]
        # The first iteration may still be warming up; it counts when it is the only one.
        seconds += [step.seconds for step in steps[1:] or steps]
    return median(seconds)


def _compare(denoiser: Denoiser, ids: Tensor, config: RefineConfig, iterations: int | None) -> dict:
    """Seconds an iteration of the reference takes, and how many drafts equal the sampler's."""
    if iterations is not None and iterations < config.iterations:
        config = replace(config, iterations=iterations, patience=0)
    device = denoiser.device
    seconds, _, steps = _timed(device, lambda: reference.refine(denoiser, ids, config))
    inputs = [step.inputs.tolist() for step in steps]
    forwards, _, _ = _timed(
        device, lambda: [reference.answer_logits(denoiser, ids, tokens) for tokens in inputs]
    )
    [trace] = refine_batch(denoiser, [ids], config, batch_size=1)
    pairs = zip(steps, trace.steps, strict=False)
    equal = sum(np.array_equal(a.draft, b.draft) for a, b in pairs)
    return {
        "iterations": len(steps),
        "reference": seconds / len(steps),
        "forwards": forwards / len(steps),
        "equal": equal / max(len(steps), len(trace.steps)),
    }


def _reference_numbers(compared: list[dict]) -> tuple[dict | None, dict | None, dict | None]:
    """Speed-up against the reference, against its forward passes, and the reference's numbers.

    A speed-up is a ratio to the sampler's time an iteration of a whole answer, prompt included; an
    answer takes the reference as many iterations as the sampler.
    """
    if not compared:
        return None, None, None
    speedups = [
        statistics.median([one[part] / one["sampler"] for one in compared]).to_dict()
        for part in ("reference", "forwards")
    ]
    return *speedups, {
        "seconds_per_answer": median(one["reference"] * one["nfe"] for one in compared),
        "iteration_seconds": median(one["reference"] for one in compared),
        "forward_seconds": median(one["forwards"] for one in compared),
        "iterations_run": sum(one["iterations"] for one in compared) / len(compared),
        # In half precision two ways to add numbers up may differ in a near tie.
        "drafts_equal": sum(one["equal"] for one in compared) / len(compared),
    }


def _timed(device: torch.device, work: Callable[[], object]) -> tuple[float, int | None, object]:
    """Wall seconds, peak bytes of tensors (None on a CPU) and the result of `work`."""
    cuda = device.type == "cuda"
    if cuda:
        torch.cuda.reset_peak_memory_stats(device)
        torch.cuda.synchronize(device)
    started = time.perf_counter()
    result = work()
    if cuda:
        torch.cuda.synchronize(device)
    seconds = time.perf_counter() - started
    return seconds, torch.cuda.max_memory_allocated(device) if cuda else None, result


# -- training --------------------------------------------------------------------------------------


def training_throughput(
    denoiser: Denoiser,
    config: TrainConfig,
    steps: int = 20,
    on_step: Callable[[int, int], object] = lambda done, total: None,
) -> dict:
    """Times of real training steps on random pairs; the adapter's weights are restored.

    Args:
        denoiser: unmerged.
        config: of the run that is planned. Batches are all of its longest width, because memory
            must hold those.
        steps: optimiser steps that are timed, after a few that are not.
        on_step: called with steps taken and in all.

    Returns:
        Plain values for `add_run`: `tokens_per_second` of all processes together, `step_seconds`,
        `hours` for `AIM` tokens, `peak_memory` in bytes (of the busiest process; on a GPU of
        tensors, else of the process), `flops_per_token`, `flops_per_second` (of one process), its
        share of the matrix rate measured here, and the settings.

    Raises:
        InvalidInput: steps below 1, or a batch that this machine's memory does not hold.
    """
    if steps < 1:
        raise InvalidInput(f"steps = {steps}: expected at least 1")
    total, context, device = UNTIMED + steps, config.context, denoiser.device
    accelerator = Accelerator()
    processes = accelerator.num_processes
    size = max(config.batch_tokens // context, 1) * config.accumulate * processes
    pairs = random_pairs(denoiser, size, context)
    rates = machine_rates(device, denoiser.causal_lm.dtype)
    times: dict[int, float] = {}

    def on_row(row: dict) -> None:  # the loss has been read, so the device is done with the step
        times[row["step"]] = time.perf_counter()
        on_step(row["step"], total)

    timed = replace(config, widths=(context,), steps=total, log_every=UNTIMED)
    trainer = Trainer(denoiser, timed, pairs, on_row=on_row)
    before = [parameter.detach().clone() for parameter in trainer.parameters]
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)
    try:
        trainer.run()
    finally:
        with torch.no_grad():
            for parameter, value in zip(trainer.parameters, before, strict=True):
                parameter.copy_(value)
    if device.type == "cuda":
        memory = torch.cuda.max_memory_allocated(device), torch.cuda.max_memory_reserved(device)
    else:
        import resource  # not on every system, nor needed with a GPU

        memory = (1024 * resource.getrusage(resource.RUSAGE_SELF).ru_maxrss,) * 2
    memory = accelerator.gather(torch.tensor([memory], device=device)).amax(dim=0).tolist()
    seconds = times[total] - times[UNTIMED]
    rate = size * context * steps / seconds
    work = flops_per_token(denoiser, predicted_share(denoiser, pairs, timed))
    flops = work["total"] * rate / processes
    return {
        "kind": "training",
        "bits": denoiser.backbone.spec.bits or 8 * denoiser.causal_lm.dtype.itemsize,
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
        "peak_memory": memory[0],
        "reserved_memory": memory[1],
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
    for row, end in enumerate(ends):
        tokens[row, end:] = denoiser.eos_token_id
    return PackedPairs(tokens, torch.from_numpy(lengths), torch.from_numpy(ends), 0)


def predicted_share(denoiser: Denoiser, pairs: PackedPairs, config: TrainConfig) -> float:
    """Share of all positions whose logits a training step computes."""
    batch = take(pairs, list(range(len(pairs))), config.context)
    generator = torch.Generator().manual_seed(0)
    inputs = corrupt_batch(denoiser, batch, config.corruption, generator)
    weights = loss_weights(batch, inputs, denoiser.mask_token_id, config, generator)
    return float((weights > 0).float().mean())


def flops_per_token(denoiser: Denoiser, predicted: float) -> dict[str, float]:
    """Floating-point operations of a position in a training step, counted from shapes.

    A frozen weight is multiplied twice, forward and for the gradient of the states, 2 operations
    each: 4 N. A trained one once more, for its own gradient: 6 N. The head works on the share of
    positions that are `predicted`; attention between positions, recomputed layers and the optimiser
    are left out.

    Returns:
        `backbone`, `head`, `adapter`, and their `total`.
    """
    counts = weight_counts(denoiser)
    work = {
        "backbone": 4.0 * counts["backbone"],
        "head": 4.0 * counts["head"] * predicted,
        "adapter": 6.0 * counts["adapter"],
    }
    return work | {"total": sum(work.values())}


# -- files of recorded runs ------------------------------------------------------------------------


def read_runs(path: Path) -> list[dict]:
    """The runs in a file of `add_run`; none where there is no file.

    Raises:
        DamagedFile: the file holds something else.
    """
    if not path.exists():
        return []
    try:
        data = json.loads(path.read_text(encoding="utf-8"))
        if data["schema"] != SCHEMA:
            raise ValueError(f"schema {data['schema']}, this code writes {SCHEMA}")
        return list(data["runs"])
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise DamagedFile(
            f"{path} holds no measurements ({error!r}): expected what `--record` wrote; "
            "name another file"
        ) from error


def add_run(path: Path, run: dict) -> None:
    """Add a measurement to a JSON file of runs, which is created if it does not exist.

    Raises:
        DamagedFile: the file holds something else.
        CacheError: the disk refuses.
    """
    runs = [*read_runs(path), run]
    with disk_errors(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        write_json(path, {"schema": SCHEMA, "runs": runs})
