"""What refinement does over many answers: the numbers behind five figures.

    quality       repeats, variety and perplexity of the answers against the iterations allowed
    runs          for each answer, its tokens and the iterations after which it stood
    settled       share of an answer's tokens that are final, against iteration
    order         the iteration at which a token becomes final, against its place in the answer
    calibration   accuracy of the likeliest token behind a MASK, against its confidence

Three ways to refine are compared: noiseless, with re-masking, and with a confidence threshold,
window after window. Prompts and pairs are held out from training. Everything is greedy or seeded.
Every mean has its 95 % interval over answers.

Source of the claims: LAD: LoRA-Adapted Diffusion, Kuiper et al., EMNLP 2025 System Demonstrations
(more iterations, better answers; fewer iterations than tokens).

Shapes: n = answers, a = positions of the answer region, i = iterations, m = masked positions.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace

import numpy as np
import torch

from lad.diffusion.config import PRESETS, RefineConfig
from lad.diffusion.denoiser import Denoiser
from lad.diffusion.trace import Trace
from lad.evaluation.adapter_eval import (
    Progress,
    default_batch_size,
    masked_predictions,
    provenance,
    silent,
)
from lad.evaluation.generation import Answers, measure_answers, refine_traces, score_outputs
from lad.evaluation.statistics import mean, pooled_share
from lad.models.registry import LoadedBackbone
from lad.training.data import PackedPairs, Pair, pack
from lad.training.loss import MASKED_FRACTIONS
from lad.utils import InvalidInput

ITERATIONS = (1, 2, 4, 8, 16, 32, 64)
# The names are keys of the recorded figures/data/study.json; `lad.viz.convergence` shows others.
WAYS: Mapping[str, RefineConfig] = {
    "without re-noising": RefineConfig(remasking="none"),
    "with re-noising": RefineConfig(remasking="guided", noise_start=0.9, sharpness=1.0),
    "sure tokens only": replace(
        PRESETS["quality"], confidence_threshold=0.3, isolated_threshold=0.9
    ),
}
BINS = 10
MIN_TOKENS = 10  # of an answer that is divided into tenths
QUALITY = ("repeats", "distinct_3", "relative_perplexity", "ended", "tokens", "nfe")


def run_study(
    denoiser: Denoiser,
    prompts: Sequence[str],
    pairs: Sequence[Pair],
    iterations: Sequence[int] = ITERATIONS,
    seed: int = 0,
    batch_size: int | None = None,
    backbone: LoadedBackbone | None = None,
    command: str = "lad study",
    on_progress: Progress = silent,
) -> dict:
    """Measurements of every way and every number of iterations.

    Args:
        prompts, pairs: held out from training; pairs longer than the context are dropped.
        iterations: rising numbers, 1 to 512; the runs that are followed step by step get the last.
        batch_size: answers at once; by default 8 on a CPU and 64 elsewhere.
        backbone: the baseline of perplexity, as in `lad.evaluation.adapter_eval.evaluate`.

    Returns:
        Plain values for JSON, see the module's docstring; `lad.viz.convergence` draws them.

    Raises:
        InvalidInput: nothing to measure on, or iterations that do not rise.
        NumericalError: NaN or infinite logits.
    """
    if not prompts or not pairs:
        raise InvalidInput(
            f"{len(prompts)} prompts and {len(pairs)} pairs: expected at least one of each"
        )
    if not iterations or list(iterations) != sorted(set(iterations)):
        raise InvalidInput(f"iterations = {list(iterations)}: expected rising numbers")
    batch_size = batch_size or default_batch_size(denoiser)
    packed = pack(denoiser.backbone, pairs, denoiser.config.context).to(denoiser.device)
    confidence = calibration(denoiser, packed, batch_size, seed, on_progress)

    def refine(config: RefineConfig, stage: str) -> list[Trace]:
        def on_batch(done: int, total: int) -> None:
            on_progress(stage, done, total)

        return refine_traces(denoiser, prompts, config, batch_size, on_batch)

    most = iterations[-1]
    traces = {name: refine(replace(way, iterations=most), name) for name, way in WAYS.items()}
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
    baseline, outputs = score_outputs(
        denoiser, prompts, outputs, longest, batch_size, backbone,
        lambda done, total: on_progress("perplexity", done, total),
    )  # fmt: skip
    quality: dict[str, list[dict]] = {name: [] for name in WAYS}
    for name, number in sorted(outputs, key=lambda key: key[1]):
        length = WAYS[name].answer_length
        scores = measure_answers(outputs[name, number], baseline.truncate(length))
        quality[name].append({"iterations": number} | {key: scores[key] for key in QUALITY})
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
    }


def settling(traces: Mapping[str, Sequence[Trace]], iterations: int) -> dict:
    """When tokens and answers become final.

    Args:
        traces: way -> its traces.
        iterations: how many each was allowed.

    Returns:
        runs: way -> for each answer its tokens, the iterations after which it stood (its EOS too)
        and the iterations that were run. settled: way -> for each iteration, from the first, the
        mean share of an answer's tokens that are final. order: way -> for each tenth of the answer
        the mean iteration, counted from 1, after which its tokens are final; answers of fewer than
        10 tokens are left out.
    """
    runs, settled, order = {}, {}, {}
    for name, group in traces.items():
        runs[name] = [
            {
                "tokens": trace.tokens,
                "stood": int(trace.settled_at[: trace.tokens + 1].max()) + 1,
                "ran": len(trace.steps),
            }
            for trace in group
        ]
        nonempty = [trace for trace in group if trace.tokens]
        shares = np.ones((len(nonempty), iterations))  # (n, i), final once the run has ended
        for row, trace in enumerate(nonempty):
            shares[row, : len(trace.steps)] = trace.settled_share
        settled[name] = [mean(column).to_dict() for column in shares.T]
        long = [trace for trace in nonempty if trace.tokens >= MIN_TOKENS]
        tenths = np.array([_tenths(trace) for trace in long]).reshape(len(long), BINS)
        order[name] = [mean(column).to_dict() for column in tenths.T]
    return {"runs": runs, "settled": settled, "order": order}


def _tenths(trace: Trace) -> list[float]:
    """Mean iteration, from 1, at which the tokens of each tenth of an answer became final."""
    parts = np.array_split(trace.settled_at[: trace.tokens] + 1, BINS)
    return [float(part.mean()) for part in parts]


@torch.inference_mode()
def calibration(
    denoiser: Denoiser,
    pairs: PackedPairs,
    batch_size: int = 8,
    seed: int = 0,
    on_progress: Progress = silent,
) -> dict[str, dict]:
    """Accuracy of the likeliest token behind a MASK, by its confidence.

    The masks are those of `lad.evaluation.adapter_eval.masked_scores`; the right token is the one
    in the backbone's answer.

    Returns:
        For each share masked: bins of confidence (low, high, its mean in the bin, right as an
        `Estimate`, tokens), and gap, the expected calibration error: the mean distance of
        confidence and accuracy over all tokens.
    """
    found = {}
    for fraction in MASKED_FRACTIONS:
        confidence, right, owner = [], [], []
        for logits, targets, answers in masked_predictions(
            denoiser, pairs, fraction, batch_size, seed,
            lambda done, f=fraction: on_progress(f"calibration, {100 * f:.0f} %", done, len(pairs)),
        ):  # fmt: skip
            top, tokens = logits.softmax(dim=-1).max(dim=-1)  # (m,)
            confidence.append(top.cpu().numpy())
            right.append((tokens == targets).cpu().numpy())
            owner.append(answers.numpy())
        found[f"{fraction:g}"] = calibration_bins(*map(np.concatenate, (confidence, right, owner)))
    return found


def calibration_bins(confidence: np.ndarray, right: np.ndarray, answer: np.ndarray) -> dict:
    """Bins of `(m,)` confidences, hits and the indices of their answers; see `calibration`."""
    number = np.minimum((confidence * BINS).astype(int), BINS - 1)
    bins, gap = [], 0.0
    for k in range(BINS):
        inside = number == k
        tokens = int(inside.sum())
        average = float(confidence[inside].mean()) if tokens else None
        if tokens:
            gap += tokens / len(number) * abs(average - float(right[inside].mean()))
        bins.append(
            {
                "low": k / BINS,
                "high": (k + 1) / BINS,
                "confidence": average,
                "right": pooled_share(
                    np.bincount(answer[inside], weights=right[inside]), np.bincount(answer[inside])
                ).to_dict(),
                "tokens": tokens,
            }
        )
    return {"bins": bins, "gap": gap}
