"""What refinement does over many answers: the numbers behind six figures.

`quality` of answers against the iterations allowed; `runs`, tokens and iterations of each answer;
`settled`, the share of settled tokens, EOS included, by iteration; `order`, when a token settles
against its place in the answer; `calibration`, accuracy of the likeliest token by its confidence;
`layers`, after which layer a final token leads, see `lad.evaluation.lens`.

Shapes: n = answers, i = iterations, m = masked positions.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace

import numpy as np
import torch

from lad.diffusion.config import PRESETS, RefineConfig
from lad.diffusion.denoiser import Denoiser
from lad.diffusion.trace import Trace
from lad.evaluation import generation
from lad.evaluation.generation import Answers, bar, provenance
from lad.evaluation.lens import first_layers
from lad.evaluation.statistics import mean, pooled_share
from lad.training.data import PackedPairs, Pair, pack
from lad.training.loss import MASKED_FRACTIONS, masked_predictions
from lad.utils import InvalidInput, check_least

# Noiseless drafts all positions at once; the preset of that name grows four an iteration.
WAYS: Mapping[str, RefineConfig] = {
    "noiseless": RefineConfig(remasking="none"),
    "guided": PRESETS["guided"],
    "quality": PRESETS["quality"],
}
BINS = 10
MIN_TOKENS = 10  # of an answer that is divided into tenths


def run_study(
    denoiser: Denoiser,
    prompts: Sequence[str],
    pairs: Sequence[Pair],
    iterations: Sequence[int] = (1, 2, 4, 8, 16, 32, 64),
    seed: int = 0,
    batch_size: int | None = None,
    command: str = "lad study",
) -> dict:
    """Measurements of every way and every number of iterations; `lad.viz.convergence` draws them.

    Args:
        prompts, pairs, batch_size: as in `lad.evaluation.adapter_eval.evaluate`.
        iterations: rising numbers, 1 to 512; the runs that are followed step by step get the last.
    """
    check_least(1, prompts=len(prompts), pairs=len(pairs))
    if not iterations or list(iterations) != sorted(set(iterations)):
        raise InvalidInput(f"iterations = {list(iterations)}: expected rising numbers")
    batch_size = batch_size or generation.default_batch_size(denoiser)
    packed = pack(denoiser.backbone, pairs, denoiser.config.context).to(denoiser.device)
    confidence = calibration(denoiser, packed, batch_size, seed)

    def refine(config: RefineConfig, stage: str) -> list[Trace]:
        return generation.refine_traces(denoiser, prompts, config, batch_size, stage)

    most = iterations[-1]
    traces = {name: refine(replace(way, iterations=most), name) for name, way in WAYS.items()}
    layers = first_layers(denoiser, traces["quality"])
    outputs = {}
    for name, way in WAYS.items():
        outputs[name, most] = Answers.from_traces(traces[name])
        for number in iterations[:-1]:
            if way.remasking == "none":  # a shorter noiseless run is the beginning of a longer one
                outputs[name, number] = Answers.from_traces(traces[name], number)
            elif way.remasking == "guided":  # but here the schedule depends on the number
                shorter = refine(replace(way, iterations=number), f"{name}, {number}")
                outputs[name, number] = Answers.from_traces(shorter)
            # A run with a threshold ends when every token has passed it: there is no shorter one.

    longest = max(way.answer_length for way in WAYS.values())
    baseline, outputs = generation.score_outputs(denoiser, prompts, outputs, longest, batch_size)
    quality: dict[str, list[dict]] = {name: [] for name in WAYS}
    for name, number in sorted(outputs, key=lambda key: key[1]):
        cut = baseline.truncate(WAYS[name].answer_length)
        scores = generation.measure_answers(denoiser.tokenizer, outputs[name, number], cut)
        quality[name].append({"iterations": number} | scores)
    return {
        "command": command,
        "provenance": provenance(denoiser.backbone, denoiser.adapter_sha256) | {"seed": seed},
        "prompts": len(prompts),
        "pairs": len(packed),
        "ways": {name: way.to_dict() for name, way in WAYS.items()},
        "iterations": list(iterations),
        "quality": quality,
        **settling(traces, most),
        "calibration": confidence,
        "layers": layers,
    }


def settling(traces: Mapping[str, Sequence[Trace]], iterations: int) -> dict:
    """When tokens and answers settle: `runs`, `settled` and `order` of each way's traces.

    Iterations count from 1. `order` is by tenths, without answers of fewer than 10 tokens.
    """
    runs, settled, order = {}, {}, {}
    for name, group in traces.items():
        runs[name] = [{"tokens": trace.tokens, "ran": trace.nfe} for trace in group]
        for run, trace in zip(runs[name], group, strict=True):
            run["stood"] = int(trace.settled_at[: trace.tokens + 1].max()) + 1
        nonempty = [trace for trace in group if trace.tokens]
        shares = np.ones((len(nonempty), iterations))  # (n, i), settled once the run has ended
        for row, trace in enumerate(nonempty):
            shares[row, : len(trace.steps)] = trace.settled_share
        settled[name] = [mean(column).to_dict() for column in shares.T]
        long = [trace for trace in nonempty if trace.tokens >= MIN_TOKENS]
        tenths = [np.array_split(trace.settled_at[: trace.tokens] + 1, BINS) for trace in long]
        order[name] = [mean([parts[k].mean() for parts in tenths]).to_dict() for k in range(BINS)]
    return {"runs": runs, "settled": settled, "order": order}


@torch.inference_mode()
def calibration(
    denoiser: Denoiser, pairs: PackedPairs, batch_size: int = 8, seed: int = 0
) -> dict[str, dict]:
    """Accuracy of the likeliest token behind a MASK, by its confidence, for each share masked.

    The masks are those of `masked_scores`; `gap` is the expected calibration error.
    """
    found = {}
    for fraction in bar(MASKED_FRACTIONS, "calibration"):
        parts, given = [], (denoiser, pairs, fraction, batch_size, seed)
        for logits, targets, answers in masked_predictions(*given):
            top, tokens = logits.softmax(dim=-1).max(dim=-1)  # (m,)
            parts.append([x.cpu().numpy() for x in (top, tokens == targets, answers)])
        found[f"{fraction:g}"] = calibration_bins(*map(np.concatenate, zip(*parts, strict=True)))
    return found


def calibration_bins(confidence: np.ndarray, right: np.ndarray, answer: np.ndarray) -> dict:
    """Bins of `(m,)` confidences, hits and the indices of their answers; see `calibration`."""
    number = np.minimum((confidence * BINS).astype(int), BINS - 1)
    bins, gap = [], 0.0
    for k in range(BINS):
        inside = number == k
        tokens, average = int(inside.sum()), None
        if tokens:
            average = float(confidence[inside].mean())
            gap += tokens / len(number) * abs(average - float(right[inside].mean()))
        hits, counts = (np.bincount(answer[inside], weights=w) for w in (right[inside], None))
        share = pooled_share(hits, counts).to_dict()
        limits = {"low": k / BINS, "high": (k + 1) / BINS}
        bins.append(limits | {"confidence": average, "right": share, "tokens": tokens})
    return {"bins": bins, "gap": gap}
