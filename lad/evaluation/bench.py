"""How fast answers are made, side by side in one run: three ways to answer the same prompts.

    reference   `lad.diffusion.reference`, refinement as plain loops, one prompt at a time
    sampler     `lad.diffusion.sampler`, the same refinement, batched and cached
    generate    the backbone alone, from left to right (`transformers`, key/value cache, greedy)

For every window (positions of the answer region) and batch, prompts are answered in rounds of one
batch. Within a round all ways run one after the other and everything is warm, so a speed-up is a
ratio of times that a busy machine slows alike; it is reported as the median over rounds with a 95 %
interval. Reference and sampler answer token for token alike, which is checked as they run.

The reference spends most of its time in Python loops over the vocabulary, so beside the speed-up
against all of it stands the one against its forward passes alone. To be done in minutes it may be
run for its first iterations only: each costs the same, so times scale.

An iteration is compared with its floor (lad/evaluation/floor.py), at rates measured in the same run.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from itertools import cycle, islice
from pathlib import Path
from statistics import median

import numpy as np
import torch
from transformers import LlamaForCausalLM

from lad.diffusion import reference
from lad.diffusion.config import RANGES, RefineConfig
from lad.diffusion.denoiser import Denoiser
from lad.diffusion.sampler import refine_batch
from lad.diffusion.trace import Trace
from lad.evaluation import metrics
from lad.evaluation.adapter_eval import provenance
from lad.evaluation.answers import greedy_answers
from lad.evaluation.floor import floor, machine_rates
from lad.utils import InvalidInput

__all__ = ["LONG_ANSWER", "bench"]

LONG_ANSWER = 40  # tokens from which an answer counts as long, where left to right has most to lose

Progress = Callable[[str, int, int], object]


@torch.inference_mode()
def bench(
    denoiser: Denoiser,
    backbone: LlamaForCausalLM,
    prompts: Sequence[str],
    config: RefineConfig,
    windows: Sequence[int] = (64, 128, 256, 512),
    batches: Sequence[int] = (1, 32),
    reference_prompts: int | None = None,
    reference_iterations: int | None = None,
    on_progress: Progress = lambda stage, done, total: None,
    on_result: Callable[[dict], object] = lambda result: None,
) -> dict:
    """Time everything.

    Args:
        backbone: for `generate`, without an adapter; on the denoiser's device and in its dtype.
        prompts: texts of one turn. A batch larger than their number takes them more than once.
        config: settings of the refinement; its answer length is replaced by each window.
        reference_prompts: how many of them the reference answers, from the first; all by default.
        reference_iterations: how many iterations it runs, from the first; all by default.
        on_result: called after every cell with what is returned so far.

    Returns:
        Plain values for JSON: provenance, the machine's rates, one cell for every window and batch,
        and, from the first of them, what is asked for most: `speedup_vs_reference`,
        `speedup_vs_generate`, `nfe`, `tpf`, `device`.

    Raises:
        InvalidInput: nothing to time, or a window or batch below 1.
        NumericalError: NaN or infinite logits.
    """
    if not prompts or not windows or not batches:
        raise InvalidInput(
            f"{len(prompts)} prompts, {len(windows)} windows and {len(batches)} batches: expected "
            "at least one of each"
        )
    for name, values in (("windows", windows), ("batches", batches)):
        if min(values) < 1:
            raise InvalidInput(f"{name} = {min(values)}: expected whole numbers from 1 up")
    for name, value in (
        ("reference_prompts", reference_prompts),
        ("reference_iterations", reference_iterations),
    ):
        if value is not None and value < (0 if name == "reference_prompts" else 1):
            raise InvalidInput(f"{name} = {value}: expected a whole number from 1 up")
    ids = [denoiser.encode(prompt) for prompt in prompts]
    longest = max(map(len, ids))
    settings = {
        window: replace(
            config,
            answer_length=window,
            context=min(RANGES["context"][1], max(longest + window, denoiser.config.context)),
        )
        for window in windows
    }
    started = time.perf_counter()
    rates = machine_rates(denoiser.device, denoiser.causal_lm.dtype)
    machine = Machine(denoiser, backbone, ids, rates)
    origin, cells = provenance(denoiser), []
    plainly = len(prompts) if reference_prompts is None else min(reference_prompts, len(prompts))
    for window in windows:
        alone = None  # seconds an answer takes the reference, one after the other
        for batch in sorted(batches):
            stage = f"window {window}, batch {batch}"
            cell = machine.measure(
                settings[window],
                batch,
                plainly if batch == 1 else 0,
                reference_iterations,
                lambda done, total, stage=stage: on_progress(stage, done, total),
            )
            if batch == 1 and cell["reference"] is not None:
                alone = cell["reference"]["seconds_per_answer"]
            elif alone is not None:  # the reference, run as many times as the batch has rows
                times = [alone / seconds for seconds in cell["sampler"]["seconds_by_round"]]
                cell["speedup_vs_reference"] = metrics.median(times).to_dict()
            cells.append(cell)
            first = cells[0]
            result = {
                "device": denoiser.device.type,
                "speedup_vs_reference": (first["speedup_vs_reference"] or {}).get("value"),
                "speedup_vs_generate": first["speedup_vs_generate"]["value"],
                "nfe": first["sampler"]["nfe"],
                "tpf": first["sampler"]["tpf"],
                "provenance": origin
                | {"seconds": time.perf_counter() - started, "threads": torch.get_num_threads()},
                "rates": rates,
                "prompts": {"used": len(prompts), "by_reference": plainly if 1 in batches else 0},
                "reference_iterations": reference_iterations,
                "config": config.to_dict(),
                "cells": cells,
            }
            on_result(result)
    return result


class Machine:
    """What is timed, and where."""

    def __init__(
        self, denoiser: Denoiser, backbone: LlamaForCausalLM, ids: list, rates: dict
    ) -> None:
        self.denoiser, self.backbone, self.ids, self.rates = denoiser, backbone, ids, rates

    def measure(
        self,
        config: RefineConfig,
        batch: int,
        by_reference: int,
        reference_iterations: int | None,
        on_round: Callable[[int, int], object],
    ) -> dict:
        """One cell: every number of one window and batch."""
        rounds = math.ceil(len(self.ids) / batch)
        chunks = [list(islice(cycle(self.ids), n * batch, (n + 1) * batch)) for n in range(rounds)]
        # Warm: on a GPU to the end, because rows that leave change shapes, and kernels with them.
        short = replace(config, iterations=min(2, config.iterations))
        self.refine(chunks[0], short if self.denoiser.device.type == "cpu" else config)
        self.generate(chunks[0], 2)
        refined, spoken, plain = [], [], []
        memory = {"sampler": [], "generate": []}
        for n, chunk in enumerate(chunks):
            on_round(n, rounds)
            with self.peak_memory(memory["sampler"]):
                refined.append(self.refine(chunk, config))
            with self.peak_memory(memory["generate"]):
                spoken.append(self.generate(chunk, config.answer_length))
            if n < by_reference:
                seconds, [trace] = refined[-1]
                plain.append(
                    self.compare(chunk[0], config, reference_iterations)
                    | {"sampler": seconds / trace.nfe}
                )
        on_round(rounds, rounds)

        traces = [trace for _, made in refined for trace in made]
        seconds = [x for x, _ in refined]
        ratios = [own.seconds / x for own, x in zip(spoken, seconds, strict=True)]
        # Means over a batch of many would say nothing of one long answer: batches of one only.
        long_ones = [
            ratio
            for own, ratio in zip(spoken, ratios, strict=True)
            if batch == 1 and len(own.tokens[0]) >= LONG_ANSWER
        ]
        tokens = sum(trace.tokens for trace in traces)
        said = sum(len(own) for answers in spoken for own in answers.tokens)
        iteration = steady([made for _, made in refined])
        p = max(len(ids) for ids in self.ids)
        lowest = floor(self.denoiser, self.rates, batch, p, config.answer_length)
        own_seconds = sum(own.seconds for own in spoken)
        return {
            "window": config.answer_length,
            "batch": batch,
            "rounds": rounds,
            "speedup_vs_reference": ratio_of(plain, "reference"),
            "speedup_vs_reference_forwards": ratio_of(plain, "forwards"),
            "speedup_vs_generate": metrics.median(ratios).to_dict(),
            "speedup_vs_generate_long": metrics.median(long_ones).to_dict(),
            # Answers differ in length, so the ratio of token rates stands beside that of times.
            "token_rate_vs_generate": (tokens / sum(seconds)) / (said / own_seconds)
            if said
            else None,
            "sampler": {
                "seconds_per_answer": median(seconds) / batch,
                "seconds_by_round": [x / batch for x in seconds],  # of one answer
                "iteration_seconds": iteration,
                "iteration_by_floor": iteration / lowest["seconds"],
                "iteration_by_floor_of_normals": iteration / lowest["seconds_of_normals"],
                "step_seconds": by_step(traces),
                "nfe": sum(trace.nfe for trace in traces) / len(traces),
                "tpf": tokens / sum(trace.nfe for trace in traces),
                "tokens": tokens / len(traces),
                "tokens_per_second": tokens / sum(seconds),
                "peak_memory": max(memory["sampler"], default=None),
            },
            "generate": {
                "seconds_per_answer": median(own.seconds for own in spoken) / batch,
                "tokens": said / len(traces),
                "tokens_per_second": said / own_seconds,
                "peak_memory": max(memory["generate"], default=None),
            },
            "reference": self.told(plain, traces),
            "floor": lowest,
        }

    def refine(self, chunk: list, config: RefineConfig) -> tuple[float, list[Trace]]:
        """Seconds of a batch, and its traces."""
        with self.clock() as seconds:
            made = refine_batch(self.denoiser, chunk, config, batch_size=len(chunk))
        return seconds[0], made

    def generate(self, chunk: list, most_tokens: int):
        """The backbone's greedy answers; they carry their own seconds."""
        prompts = [ids.tolist() for ids in chunk]
        eos = self.denoiser.eos_token_id
        return greedy_answers(self.backbone, prompts, most_tokens, eos, len(prompts))

    def compare(self, ids: torch.Tensor, config: RefineConfig, iterations: int | None) -> dict:
        """Seconds an iteration of the reference takes, and whether its drafts are the sampler's."""
        if iterations is not None and iterations < config.iterations:
            config = replace(config, iterations=iterations, patience=0)
        with self.clock() as plain:
            steps = reference.refine(self.denoiser, ids, config)
        with self.clock() as forwards:
            for step in steps:
                reference.answer_logits(self.denoiser, ids, step.inputs.tolist())
        _, [trace] = self.refine([ids], config)
        pairs = list(zip(steps, trace.steps, strict=False))
        same = sum(np.array_equal(a.draft, b.draft) for a, b in pairs)
        return {
            "iterations": len(steps),
            "reference": plain[0] / len(steps),
            "forwards": forwards[0] / len(steps),
            "equal": same / max(len(steps), len(trace.steps)),
        }

    def told(self, plain: list[dict], traces: list[Trace]) -> dict | None:
        """The reference's numbers; an answer takes it as many iterations as the sampler."""
        if not plain:
            return None
        pairs = list(zip(plain, traces, strict=False))
        return {
            "seconds_per_answer": median(x["reference"] * trace.nfe for x, trace in pairs),
            "iteration_seconds": median(x["reference"] for x in plain),
            "forward_seconds": median(x["forwards"] for x in plain),
            "iterations_run": sum(x["iterations"] for x in plain) / len(plain),
            # In half precision two ways to add numbers up may differ in a near tie.
            "drafts_equal": sum(x["equal"] for x in plain) / len(plain),
        }

    @contextmanager
    def clock(self) -> Iterator[list[float]]:
        """A list that holds the wall time once the block is left, the GPU waited for."""
        wait = torch.cuda.synchronize if self.denoiser.device.type == "cuda" else lambda: None
        wait()
        seconds: list[float] = []
        started = time.perf_counter()
        yield seconds
        wait()
        seconds.append(time.perf_counter() - started)

    @contextmanager
    def peak_memory(self, kept: list[int]) -> Iterator[None]:
        """Adds the most bytes that were in use: on a GPU of tensors, on Linux of the process."""
        device = self.denoiser.device
        if device.type == "cuda":
            torch.cuda.reset_peak_memory_stats(device)
            yield
            kept.append(torch.cuda.max_memory_allocated(device))
            return
        status = Path("/proc/self/status")
        try:  # 5 sets the high-water mark of resident memory back to what is resident now
            Path("/proc/self/clear_refs").write_text("5")
        except OSError:
            status = None
        yield
        if status is not None:
            mark = next(x for x in status.read_text().splitlines() if x.startswith("VmHWM"))
            kept.append(int(mark.split()[1]) * 1024)


# -- numbers ---------------------------------------------------------------------------------------


def ratio_of(plain: list[dict], what: str) -> dict | None:
    """Median ratio of times to the sampler's whole answer, reading the prompt included.

    None when nothing was compared.
    """
    if not plain:
        return None
    return metrics.median([x[what] / x["sampler"] for x in plain]).to_dict()


def steady(batches: list[list[Trace]]) -> float:
    """Median seconds of an iteration of full batches: before any row has left."""
    taken = []
    for traces in batches:
        full = min(trace.nfe for trace in traces)
        steps = max(traces, key=lambda trace: trace.nfe).steps[:full]
        # The first iteration may still be warming up; it counts when it is the only one.
        taken += [step.seconds for step in steps[1:] or steps]
    return median(taken)


def by_step(traces: list[Trace]) -> list[float]:
    """Median seconds of the first, second, ... iteration, over the runs that had one."""
    longest = max(trace.nfe for trace in traces)
    return [
        median(trace.steps[n].seconds for trace in traces if trace.nfe > n) for n in range(longest)
    ]
