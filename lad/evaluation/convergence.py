"""What refinement does, measured on many answers: the numbers behind five figures.

    quality       stutter, variety and perplexity of the answers against the iterations allowed
    runs          for each answer, its tokens and the iterations after which it stood
    settled       share of an answer's tokens that are final, against iteration
    order         the iteration at which a token becomes final, against its place in the answer
    calibration   how often a token that the denoiser is sure of is right, against how sure it is

Three ways to refine are set side by side: noiseless, with re-noising, and committing only sure
tokens, window after window. Prompts and pairs are held out from training. Everything is greedy or
seeded. Every mean has its 95 % interval over answers.

Source of the claims looked at: LAD: LoRA-Adapted Diffusion, Kuiper et al., EMNLP 2025 System
Demonstrations (more iterations, better answers; fewer iterations than tokens).

Shapes: n = answers, a = positions of the answer region, i = iterations, m = masked positions.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace

import numpy as np
import torch

from lad.diffusion.config import PRESETS, RefineConfig
from lad.diffusion.denoiser import Denoiser
from lad.diffusion.sampler import refine_batch
from lad.diffusion.trace import Trace
from lad.evaluation import metrics
from lad.evaluation.adapter_eval import Progress, masked_predictions, provenance, yardstick
from lad.evaluation.answers import Answers, measure_answers
from lad.models.registry import LoadedBackbone
from lad.training.data import PackedPairs, Pair, pack
from lad.training.loss import MASKED_FRACTIONS
from lad.utils import InvalidInput

__all__ = ["ITERATIONS", "WAYS", "calibration", "run_study", "settling"]

ITERATIONS = (1, 2, 4, 8, 16, 32, 64)
WAYS: Mapping[str, RefineConfig] = {
    "without re-noising": RefineConfig(remasking="none"),
    "with re-noising": RefineConfig(remasking="guided", noise_start=0.9, sharpness=1.0),
    "sure tokens only": replace(
        PRESETS["quality"], confidence_threshold=0.3, isolated_threshold=0.9
    ),
}
BINS = 10
LEAST_TOKENS = 10  # of an answer whose tenths are told apart
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
    on_progress: Progress = lambda stage, done, total: None,
) -> dict:
    """Answer the prompts in every way and for every number of iterations, and measure.

    Args:
        prompts, pairs: held out from training; pairs longer than the context are dropped.
        iterations: rising numbers, 1 to 512; the runs that are followed step by step get the last.
        batch_size: answers at once; by default 8 on a CPU and 64 elsewhere.
        backbone: the yardstick of perplexity, as in `lad.evaluation.adapter_eval.evaluate`.

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
    batch_size = batch_size or (8 if denoiser.device.type == "cpu" else 64)
    packed = pack(denoiser.backbone, pairs, denoiser.config.context).to(denoiser.device)
    sure = calibration(denoiser, packed, batch_size, seed, on_progress)

    spoken: dict[str, list[tuple[int, Answers]]] = {}
    followed: dict[str, list[Trace]] = {}
    for name, way in WAYS.items():
        longest = replace(way, iterations=iterations[-1])
        traces = _refine(denoiser, prompts, longest, batch_size, name, on_progress)
        followed[name], points = traces, []
        for number in iterations:
            if way.remasking == "none":  # a shorter noiseless run is the beginning of a longer one
                points.append((number, _cut(denoiser, traces, number)))
            elif way.remasking == "guided":  # but here the schedule depends on the number
                config = replace(way, iterations=number)
                last = number == iterations[-1]
                own = traces if last else None
                own = own or _refine(
                    denoiser, prompts, config, batch_size, f"{name}, {number}", on_progress
                )
                points.append((number, _cut(denoiser, own, number)))
            elif number == iterations[-1]:  # one that waits until it is sure has no shorter run
                points.append((number, _cut(denoiser, traces, number)))
        spoken[name] = points

    quality: dict[str, list[dict]] = {}
    longest_answer = max(way.answer_length for way in WAYS.values())
    with yardstick(denoiser, prompts, longest_answer, batch_size, backbone) as (own, judged):
        done, total = 0, sum(map(len, spoken.values()))
        for name, points in spoken.items():
            quality[name] = []
            for number, answers in points:
                scores = measure_answers(judged(answers), own.cut(WAYS[name].answer_length))
                quality[name].append({"iterations": number} | {key: scores[key] for key in QUALITY})
                done += 1
                on_progress("perplexity", done, total)
    return {
        "command": command,
        "provenance": provenance(denoiser) | {"seed": seed},
        "prompts": len(prompts),
        "pairs": len(packed),
        "ways": {name: way.to_dict() for name, way in WAYS.items()},
        "iterations": list(iterations),
        "quality": quality,
        **settling(followed, iterations[-1]),
        "calibration": sure,
    }


def _refine(
    denoiser: Denoiser,
    prompts: Sequence[str],
    config: RefineConfig,
    batch_size: int,
    stage: str,
    on_progress: Progress,
) -> list[Trace]:
    traces: list[Trace] = []
    for first in range(0, len(prompts), batch_size):
        part = prompts[first : first + batch_size]
        traces += refine_batch(denoiser, part, config, batch_size=batch_size)
        on_progress(stage, len(traces), len(prompts))
    return traces


def _cut(denoiser: Denoiser, traces: Sequence[Trace], number: int) -> Answers:
    """The answers after at most that many iterations."""
    rows = [min(number, len(trace.steps)) - 1 for trace in traces]
    pairs = list(zip(traces, rows, strict=True))
    lengths = [trace.answer_length(row) for trace, row in pairs]
    return Answers(
        tokens=[
            trace.drafts[row][:length].tolist()
            for (trace, row), length in zip(pairs, lengths, strict=True)
        ],
        ended=[length < traces[0].drafts.shape[1] for length in lengths],
        forwards=[row + 1 for row in rows],
        seconds=sum(step.seconds for trace, row in pairs for step in trace.steps[: row + 1]),
        eos_token_id=denoiser.eos_token_id,
    )


# -- what settles, and when ------------------------------------------------------------------------


def settling(followed: Mapping[str, Sequence[Trace]], iterations: int) -> dict:
    """How answers come to rest.

    Args:
        followed: way -> its traces.
        iterations: how many each was allowed.

    Returns:
        runs: way -> for each answer its tokens, the iterations after which it stood (its EOS too)
        and the iterations that were run. settled: way -> for each iteration, from the first, the
        mean share of an answer's tokens that are final. order: way -> for each tenth of the answer
        the mean iteration, counted from 1, after which its tokens are final; answers of fewer than
        10 tokens have no tenths and are left out.
    """
    runs, settled, order = {}, {}, {}
    for name, traces in followed.items():
        runs[name] = [
            {
                "tokens": trace.tokens,
                "stood": int(trace.settled_at[: trace.tokens + 1].max()) + 1,
                "ran": len(trace.steps),
            }
            for trace in traces
        ]
        spoken = [trace for trace in traces if trace.tokens]
        shares = np.ones((len(spoken), iterations))  # (n, i), final once the run has ended
        for row, trace in enumerate(spoken):
            shares[row, : len(trace.steps)] = trace.settled_share
        settled[name] = [metrics.mean(column).to_dict() for column in shares.T]
        long = [trace for trace in spoken if trace.tokens >= LEAST_TOKENS]
        tenths = np.array([_tenths(trace) for trace in long]).reshape(len(long), BINS)
        order[name] = [metrics.mean(column).to_dict() for column in tenths.T]
    return {"runs": runs, "settled": settled, "order": order}


def _tenths(trace: Trace) -> list[float]:
    """Mean iteration, from 1, at which the tokens of each tenth of an answer became final."""
    parts = np.array_split(trace.settled_at[: trace.tokens] + 1, BINS)
    return [float(part.mean()) for part in parts]


# -- how sure, and how right -----------------------------------------------------------------------


@torch.inference_mode()
def calibration(
    denoiser: Denoiser,
    pairs: PackedPairs,
    batch_size: int = 8,
    seed: int = 0,
    on_progress: Progress = lambda stage, done, total: None,
) -> dict[str, dict]:
    """How often the likeliest token behind a MASK is the right one, by the confidence it has.

    What is masked is that of `lad.evaluation.adapter_eval.masked_scores`; the right token is the one that the
    backbone's own answer has there.

    Returns:
        For each share masked: bins of confidence (low, high, its mean in the bin, right as an
        `Estimate`, tokens), and gap, the mean distance of confidence and share right over all
        tokens ("expected calibration error").
    """
    found = {}
    for fraction in MASKED_FRACTIONS:
        sure, right, owner = [], [], []
        for logits, targets, answers in masked_predictions(
            denoiser, pairs, fraction, batch_size, seed,
            lambda done, f=fraction: on_progress(f"calibration, {100 * f:.0f} %", done, len(pairs)),
        ):  # fmt: skip
            top, tokens = logits.softmax(dim=-1).max(dim=-1)  # (m,)
            sure.append(top.cpu().numpy())
            right.append((tokens == targets).cpu().numpy())
            owner.append(answers.numpy())
        found[f"{fraction:g}"] = _bins(*map(np.concatenate, (sure, right, owner)))
    return found


def _bins(sure: np.ndarray, right: np.ndarray, owner: np.ndarray) -> dict:
    """`(m,)` confidences, hits and the answers they belong to, as bins of confidence."""
    number = np.minimum((sure * BINS).astype(int), BINS - 1)
    bins, gap = [], 0.0
    for k in range(BINS):
        here = number == k
        hits, counts = (
            np.bincount(owner[here], weights=weights, minlength=int(owner.max(initial=0)) + 1)
            for weights in (right[here].astype(float), np.ones(here.sum()))
        )
        mean = float(sure[here].mean()) if here.any() else None
        if here.any():
            gap += here.sum() / len(sure) * abs(mean - float(right[here].mean()))
        bins.append(
            {
                "low": k / BINS,
                "high": (k + 1) / BINS,
                "confidence": mean,
                "right": metrics.pooled_share(hits.tolist(), counts.tolist()).to_dict(),
                "tokens": int(here.sum()),
            }
        )
    return {"bins": bins, "gap": gap}
