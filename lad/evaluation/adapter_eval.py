"""How good a denoiser is: four questions, every answer with its interval.

    masked      how well it fills in held-out answers of which a share is masked
    ahead       how many tokens it sees beyond a clean beginning
    repair      how well it mends held-out answers whose damage is all visible, nothing masked
    settings    how well it answers held-out prompts, setting by setting: stutter, variety,
                perplexity beside that of the backbone's own greedy answers, and what it cost

Pairs for the first three are the backbone's own answers to prompts that were never trained on. The
backbone's greedy answers to the prompts of the last are the yardstick: a denoiser is taught to say
what the backbone would say.

Everything is greedy or seeded, so one machine gives one set of numbers; the batch size moves them
by rounding alone.

Source of structural repair: LAD: LoRA-Adapted Diffusion, Kuiper et al., EMNLP 2025 System
Demonstrations, whose denoiser refines with nothing masked.

Shapes: n = answers, b = batch, t = width, m = positions that are predicted, v = vocabulary.
"""

from __future__ import annotations

import contextlib
import platform
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace
from importlib.metadata import version

import torch
from torch import Tensor

from lad import __version__
from lad.diffusion.config import CorruptionConfig, RefineConfig
from lad.diffusion.corruption import corrupt
from lad.diffusion.denoiser import Denoiser
from lad.evaluation import metrics
from lad.evaluation.answers import Answers, greedy_answers, measure_answers, refined_answers
from lad.models.chat import encode_prompts
from lad.models.registry import LoadedBackbone
from lad.training.data import PackedPairs, Pair, pack
from lad.training.loss import MASKED_FRACTIONS, answer_logits, mask_share, take, token_losses
from lad.utils import InvalidInput, NumericalError

__all__ = [
    "AHEAD",
    "REPAIR_ITERATIONS",
    "REPAIR_SEVERITY",
    "ahead_scores",
    "evaluate",
    "masked_predictions",
    "masked_scores",
    "provenance",
    "repair_scores",
    "yardstick",
]

REPAIR_SEVERITY = 0.3
REPAIR_ITERATIONS = 4
AHEAD = (1, 2, 4, 8)  # tokens behind a clean beginning
VISIBLE_DAMAGE = CorruptionConfig(all_masked=0.0, mask_probability=0.0, structural_probability=1.0)

# Called with what is being done, how many answers it is done for, and for how many it will be.
Progress = Callable[[str, int, int], object]


def evaluate(
    denoiser: Denoiser,
    pairs: Sequence[Pair],
    prompts: Sequence[str],
    settings: Mapping[str, RefineConfig],
    seed: int = 0,
    batch_size: int | None = None,
    backbone: LoadedBackbone | None = None,
    keep_answers: bool = False,
    on_progress: Progress = lambda stage, done, total: None,
) -> dict:
    """Ask all four questions.

    Args:
        pairs: held out from training; those longer than the denoiser's context are dropped.
        prompts: texts of one turn, held out from training too.
        settings: name -> settings to answer them with.
        seed: of masks and damage; the settings have seeds of their own.
        batch_size: rows at once; by default 8 on a CPU and 64 elsewhere.
        backbone: the yardstick, untouched; by default the denoiser's own with its adapter off,
            which in half precision is not to the last bit what it was before a merge.
        keep_answers: put the text of every answer into the result.

    Returns:
        Plain values for JSON: provenance, settings, counts, and numbers as `Estimate.to_dict`.

    Raises:
        InvalidInput: nothing to measure on, or a prompt that leaves no room for its answer.
        NumericalError: NaN or infinite logits.
    """
    if not (pairs and prompts and settings):
        raise InvalidInput(
            f"{len(pairs)} pairs, {len(prompts)} prompts and {len(settings)} settings: "
            "expected at least one of each"
        )
    batch_size = batch_size or (8 if denoiser.device.type == "cpu" else 64)
    started = time.perf_counter()
    packed = pack(denoiser.backbone, pairs, denoiser.config.context).to(denoiser.device)
    masked = masked_scores(denoiser, packed, batch_size, seed, on_progress)
    ahead = ahead_scores(denoiser, packed, batch_size, seed, on_progress)
    repair = repair_scores(denoiser, packed, batch_size, seed, on_progress)

    spoken = {
        name: refined_answers(
            denoiser, prompts, config, batch_size, lambda *done, n=name: on_progress(n, *done)
        )
        for name, config in settings.items()
    }
    # The adapter goes off once, after everything that needs it.
    longest = max(config.answer_length for config in settings.values())
    on_progress("backbone", 0, len(prompts))
    with yardstick(denoiser, prompts, longest, batch_size, backbone) as (own, judged):
        spoken = {name: judged(answers) for name, answers in spoken.items()}
    on_progress("backbone", len(prompts), len(prompts))

    def describe(answers: Answers, length: int) -> dict:
        scores = measure_answers(answers, own.cut(length))
        if keep_answers:
            texts = denoiser.tokenizer.batch_decode(answers.tokens, skip_special_tokens=True)
            pairs = zip(prompts, texts, strict=True)
            scores["answers"] = [{"prompt": prompt, "answer": text} for prompt, text in pairs]
        return scores

    return {
        "provenance": provenance(denoiser)
        | {"seed": seed, "batch_size": batch_size, "seconds": time.perf_counter() - started},
        "pairs": {"used": len(packed), "too_long": packed.dropped},
        "prompts": {"used": len(prompts)},
        "masked": masked,
        "ahead": ahead,
        "repair": repair,
        "settings": {
            name: {"config": config.to_dict()} | describe(spoken[name], config.answer_length)
            for name, config in settings.items()
        },
        "backbone": {"answer_length": longest} | describe(own, longest),
    }


@contextlib.contextmanager
def yardstick(
    denoiser: Denoiser,
    prompts: Sequence[str],
    length: int,
    batch_size: int,
    backbone: LoadedBackbone | None = None,
) -> Iterator[tuple[Answers, Callable[[Answers], Answers]]]:
    """What answers to the prompts are held against, for a while: the backbone, untouched.

    Args:
        length: most tokens of its own answers, EOS counted.
        backbone: by default the denoiser's own, whose adapter is off meanwhile.

    Yields:
        Its greedy answers with their losses, and what gives other answers theirs.
    """
    model = denoiser.causal_lm if backbone is None else backbone.model
    ids = encode_prompts(denoiser.tokenizer, prompts)

    def judged(answers: Answers) -> Answers:
        return replace(
            answers, losses=metrics.answer_losses(model, ids, answers.judged, batch_size)
        )

    with denoiser.adapter_off() if backbone is None else contextlib.nullcontext():
        yield judged(greedy_answers(model, ids, length, denoiser.eos_token_id, batch_size)), judged


def provenance(denoiser: Denoiser) -> dict:
    """What the numbers hang on: weights, versions, machine."""
    device = denoiser.device
    return {
        "model": denoiser.backbone.spec.name,
        "backbone_digest": denoiser.backbone.digest,
        "adapter_sha256": denoiser.adapter_sha256,
        "device": device.type,
        "processor": torch.cuda.get_device_name(device)
        if device.type == "cuda"
        else f"{platform.machine()}, {torch.get_num_threads()} threads",
        "dtype": str(denoiser.causal_lm.dtype).removeprefix("torch."),
        "lad": __version__,
        "python": platform.python_version(),
        "torch": torch.__version__,
        "transformers": version("transformers"),
    }


# -- held-out pairs --------------------------------------------------------------------------------


def masked_predictions(
    denoiser: Denoiser,
    pairs: PackedPairs,
    fraction: float,
    batch_size: int,
    seed: int,
    on_done: Callable[[int], object],
) -> Iterator[tuple[Tensor, Tensor, Tensor]]:
    """What a denoiser predicts where a given share of every answer is masked, see `mask_share`.

    Args:
        seed: of the masks, which the batch size does not change.
        on_done: called with how many answers are done.

    Yields:
        `(m, v)` float32 logits, `(m,)` int64 right tokens, and `(m,)` int64, on the CPU, the
        answers that these belong to.
    """
    n, context = pairs.tokens.shape
    rows = take(pairs, list(range(n)), context)
    generator = torch.Generator(rows.tokens.device).manual_seed(seed)
    noisy, counted = mask_share(denoiser, rows, fraction, generator)
    for first in range(0, n, batch_size):
        part = slice(first, first + batch_size)
        chosen = counted[part]
        logits = answer_logits(denoiser, noisy[part], rows.prompt_lengths[part], chosen).float()
        _check_finite(logits)
        yield logits, rows.tokens[part][chosen], first + chosen.nonzero()[:, 0].cpu()
        on_done(min(first + batch_size, n))


@torch.inference_mode()
def masked_scores(
    denoiser: Denoiser,
    pairs: PackedPairs,
    batch_size: int = 8,
    seed: int = 0,
    on_progress: Progress = lambda stage, done, total: None,
) -> dict[str, dict]:
    """Cross-entropy and accuracy where a given share of the answer is masked and the rest is clean.

    The protocol of `lad.training.validate`, but every answer keeps its own sums, for an interval
    over answers.

    Returns:
        {"0.25": {"ce": nats, "accuracy": share, "tokens": how many were counted}, ...}
    """
    n, scores = len(pairs), {}
    for fraction in MASKED_FRACTIONS:
        losses, right = torch.zeros((2, n), dtype=torch.float64)  # (n,) each, sums
        tokens = torch.zeros(n, dtype=torch.int64)
        for logits, targets, owner in masked_predictions(
            denoiser, pairs, fraction, batch_size, seed,
            lambda done, f=fraction: on_progress(f"{100 * f:.0f} % masked", done, n),
        ):  # fmt: skip
            found, hits = token_losses(logits, targets)
            losses.index_add_(0, owner, found.double().cpu())
            right.index_add_(0, owner, hits.double().cpu())
            tokens += owner.bincount(minlength=n)
        scores[f"{fraction:g}"] = {
            "ce": metrics.pooled_ratio(losses.tolist(), tokens.tolist()).to_dict(),
            "accuracy": metrics.pooled_share(right.tolist(), tokens.tolist()).to_dict(),
            "tokens": int(tokens.sum()),
        }
    return scores


@torch.inference_mode()
def ahead_scores(
    denoiser: Denoiser,
    pairs: PackedPairs,
    batch_size: int = 8,
    seed: int = 0,
    on_progress: Progress = lambda stage, done, total: None,
) -> dict[str, dict]:
    """How far a denoiser sees beyond a clean beginning, everything after it masked.

    Each answer is cut at a random point. The first token behind the cut is what the backbone, left
    to right, is made to know; what can be known of the later ones in the same forward pass is what
    decoding in parallel lives on.

    Returns:
        {"1": accuracy of the first token behind the cut, "2": of the second, ...}, for `AHEAD`.
    """
    n, context = pairs.tokens.shape
    rows = take(pairs, list(range(n)), context)
    generator = torch.Generator().manual_seed(seed)
    place = torch.rand(n, generator=generator).to(pairs.ends.device)
    cut = rows.prompt_lengths + (place * (pairs.ends - rows.prompt_lengths)).long()  # (n,)
    position = torch.arange(context, device=cut.device)
    hidden = rows.tokens.masked_fill(position >= cut[:, None], denoiser.mask_token_id)
    right = torch.zeros((n, context), dtype=torch.bool)
    for first in range(0, n, batch_size):
        part = slice(first, first + batch_size)
        chosen = (position >= cut[part, None]) & (position < cut[part, None] + AHEAD[-1])
        logits = answer_logits(denoiser, hidden[part], rows.prompt_lengths[part], chosen)
        _check_finite(logits)
        hits = (logits.argmax(dim=-1) == rows.tokens[part][chosen]).cpu()
        right[part] = right[part].masked_scatter(chosen.cpu(), hits)
        on_progress("looking ahead", min(first + batch_size, n), n)
    scores = {}
    for distance in AHEAD:
        where = (cut + distance - 1).cpu()
        there = where <= pairs.ends.cpu()  # a token of the answer, or its first EOS
        hits = right[torch.arange(n), where.clamp(max=context - 1)] & there
        scores[str(distance)] = metrics.wilson(int(hits.sum()), int(there.sum())).to_dict()
    return scores


@torch.inference_mode()
def repair_scores(
    denoiser: Denoiser,
    pairs: PackedPairs,
    batch_size: int = 8,
    seed: int = 0,
    on_progress: Progress = lambda stage, done, total: None,
) -> dict:
    """Structural repair: damaged answers, nothing masked, refined noiselessly and greedily.

    The answer region, EOS tail included, is damaged at severity p = 0.3 with every structural kind
    of the paper (swapped, duplicated, replaced, shifted), then drawn anew 4 times, each draft the
    input of the next. Counted are tokens of the answer and its first EOS.

    Returns:
        restored: share of damaged tokens (those that differ from the clean answer) that are right
        in the last draft; kept: the same of the others; damaged: share that was damaged; and the
        number of tokens counted, severity and iterations.
    """
    n, context = pairs.tokens.shape
    rows = take(pairs, list(range(n)), context)
    # Every row at once, so that the batch size does not change what is damaged.
    noisy = corrupt(
        rows.tokens,
        rows.answer,
        denoiser.vocabulary_size,
        denoiser.mask_token_id,
        torch.Generator(rows.tokens.device).manual_seed(seed),
        VISIBLE_DAMAGE,
        REPAIR_SEVERITY,
    )
    mended = torch.empty_like(noisy)
    for first in range(0, n, batch_size):
        part = slice(first, first + batch_size)
        draft, answer = noisy[part], rows.answer[part]  # (b, t)
        for _ in range(REPAIR_ITERATIONS):
            logits = answer_logits(denoiser, draft, rows.prompt_lengths[part], answer)  # (m, v)
            _check_finite(logits)
            logits[:, denoiser.mask_token_id] = -torch.inf  # MASK is an input, never an answer
            previous, draft = draft, draft.masked_scatter(answer, logits.argmax(dim=-1))
            if torch.equal(draft, previous):  # so would be every later one
                break
        mended[part] = draft
        on_progress("repair", min(first + batch_size, n), n)
    counted = rows.answer & ~rows.tail
    damaged = counted & (noisy != rows.tokens)
    right = mended == rows.tokens

    def share(hits: Tensor, of: Tensor) -> dict:
        return metrics.pooled_share(
            (hits & of).sum(dim=1).tolist(), of.sum(dim=1).tolist()
        ).to_dict()

    return {
        "restored": share(right, damaged),
        "kept": share(right, counted & ~damaged),
        "damaged": share(damaged, counted),
        "tokens": int(counted.sum()),
        "severity": REPAIR_SEVERITY,
        "iterations": REPAIR_ITERATIONS,
    }


def _check_finite(logits: Tensor) -> None:
    if not bool(torch.isfinite(logits).all()):
        raise NumericalError(
            "the logits hold NaN or infinity, expected finite numbers; "
            "check the adapter with `lad info`, or use float32"
        )
