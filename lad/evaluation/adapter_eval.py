"""The quality of a denoiser in six parts, every number with its interval.

Cross-entropy and accuracy of masked tokens, accuracy behind a clean beginning, structural repair
(Kuiper et al., EMNLP 2025 System Demonstrations), repair of a sentence without a question,
perplexity, repeats, whole sentences and cost of answers to held-out prompts, and facts in answers
to short questions. Everything is greedy or seeded.

Shapes: n = answers, b = batch, t = width, m = positions that are predicted, v = vocabulary.
"""

from __future__ import annotations

import re
import time
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import replace
from random import Random

import torch
from torch import Tensor

from lad.diffusion.config import REPAIR, CorruptionConfig, RefineConfig
from lad.diffusion.corruption import corrupt
from lad.diffusion.denoiser import Denoiser
from lad.diffusion.drafts import REPAIR_PROMPT, visible_text
from lad.diffusion.sampler import refine_batch
from lad.evaluation import generation
from lad.evaluation.generation import Answers, bar, provenance
from lad.evaluation.statistics import pooled_ratio, pooled_share, wilson
from lad.models.chat import encode_text
from lad.training.data import PackedPairs, Pair, Question, pack
from lad.training.loss import MASKED_FRACTIONS, answer_logits, masked_sums, take
from lad.utils import check_least

REPAIR_SEVERITY, REPAIR_ITERATIONS = 0.3, 4
LOOKAHEAD = (1, 2, 4, 8)  # tokens behind a clean beginning
STRUCTURAL = CorruptionConfig(all_masked=0.0, mask_probability=0.0, structural_probability=1.0)
DAMAGES = ("swap", "duplicate", "replace")  # of one token or two in a sentence
MOST_DRAWS = 1000  # a few will do, unless the tokenizer never reads what it wrote
FACT_TOKENS = 20  # of the backbone's answers to short questions at most, EOS included


def evaluate(
    denoiser: Denoiser,
    pairs: Sequence[Pair],
    prompts: Sequence[str],
    settings: Mapping[str, RefineConfig],
    seed: int = 0,
    batch_size: int | None = None,
    questions: Sequence[Question] = (),
    sentences: Sequence[str] = (),
) -> dict:
    """All six parts, as plain values for JSON.

    Args:
        pairs, prompts: not trained on; pairs longer than the denoiser's context are dropped.
        settings: name -> settings to answer the prompts with.
        seed: of masks and corruption.
        batch_size: answers at once; by default 8 on a CPU and 64 elsewhere.
        questions: short ones, answered with each of the settings, see `same_fact`.
        sentences: to damage and to repair, see `sentence_repair`.
    """
    check_least(1, pairs=len(pairs), prompts=len(prompts), settings=len(settings))
    batch_size = batch_size or generation.default_batch_size(denoiser)
    started = time.perf_counter()
    packed = pack(denoiser.backbone, pairs, denoiser.config.context).to(denoiser.device)
    measured_on = denoiser, packed, batch_size, seed
    masked, ahead = masked_scores(*measured_on), lookahead_accuracy(*measured_on)
    repair, outputs, fact_answers = repair_scores(*measured_on), {}, {}
    repair["from_mask"] = repair_scores(*measured_on, from_mask=True)
    # Each answer behind the prompt of the pair before it.
    others = [Pair(pairs[n - 1].prompt, pair.answer) for n, pair in enumerate(pairs)]
    others = pack(denoiser.backbone, others, denoiser.config.context).to(denoiser.device)
    repair["other_prompt"] = repair_scores(denoiser, others, *measured_on[2:])
    repaired = sentence_repair(denoiser, sentences, batch_size, seed)
    asked = [question.prompt for question in questions]
    for name, config in settings.items():
        start = time.perf_counter()
        traces = generation.refine_traces(denoiser, prompts, config, batch_size, name)
        outputs[name] = Answers.from_traces(traces, seconds=time.perf_counter() - start)
        traces = generation.refine_traces(denoiser, asked, config, batch_size, f"{name}, facts")
        fact_answers[name] = [trace.answer for trace in traces]
    longest = max(config.answer_length for config in settings.values())
    baseline, outputs = generation.score_outputs(denoiser, prompts, outputs, longest, batch_size)
    short, _ = generation.score_outputs(denoiser, asked, {}, FACT_TOKENS, batch_size)
    backbone_facts = denoiser.tokenizer.batch_decode(short.tokens, skip_special_tokens=True)

    def measured(answers: Answers, length: int, facts: list[str]) -> dict:
        cut = baseline.truncate(length)
        scores = generation.measure_answers(denoiser.tokenizer, answers, cut)
        scores["seconds_per_answer"] = answers.seconds / len(prompts)
        scores["same_fact"] = same_fact(questions, facts)
        return scores

    seconds = time.perf_counter() - started
    return {
        "provenance": provenance(denoiser.backbone, denoiser.adapter_sha256)
        | {"seed": seed, "batch_size": batch_size, "seconds": seconds},
        "pairs": {"used": len(packed), "too_long": packed.dropped},
        "prompts": {"used": len(prompts)},
        "facts": {"used": len(questions)},
        "sentences": {"used": len(sentences)} | repaired,
        "masked": masked,
        "ahead": ahead,
        "repair": repair,
        "settings": {
            name: {"config": config.to_dict()}
            | measured(outputs[name], config.answer_length, fact_answers[name])
            for name, config in settings.items()
        },
        "backbone": {"answer_length": longest} | measured(baseline, longest, backbone_facts),
    }


@torch.inference_mode()
def masked_scores(
    denoiser: Denoiser, pairs: PackedPairs, batch_size: int = 8, seed: int = 0
) -> dict[str, dict]:
    """Cross-entropy and accuracy where a given share of the answer is masked and the rest is clean.

    The protocol of `lad.training.validate`, with intervals: {"0.25": {"ce", ...}, ...}.
    """
    scores = {}
    for fraction in bar(MASKED_FRACTIONS, "masked"):
        sums = masked_sums(denoiser, pairs, fraction, batch_size, seed)
        losses, hits, tokens = sums.tolist()
        scores[f"{fraction:g}"] = {
            "ce": pooled_ratio(losses, tokens).to_dict(),
            "accuracy": pooled_share(hits, tokens).to_dict(),
            "tokens": int(sum(tokens)),
        }
    return scores


@torch.inference_mode()
def lookahead_accuracy(
    denoiser: Denoiser, pairs: PackedPairs, batch_size: int = 8, seed: int = 0
) -> dict[str, dict]:
    """Accuracy of the tokens behind a clean beginning, everything after it masked.

    Each answer is cut at a random point. Returns {"1": accuracy of the first token behind the cut,
    ...} for `LOOKAHEAD`; that of the later ones limits parallel decoding.
    """
    n, context = pairs.tokens.shape
    batch = take(pairs, list(range(n)), context)
    generator = torch.Generator().manual_seed(seed)
    place = torch.rand(n, generator=generator).to(pairs.ends.device)
    cut = batch.prompt_lengths + (place * (pairs.ends - batch.prompt_lengths)).long()  # (n,)
    position = torch.arange(context, device=cut.device)
    inputs = batch.tokens.masked_fill(position >= cut[:, None], denoiser.mask_token_id)
    chosen = (position >= cut[:, None]) & (position < cut[:, None] + LOOKAHEAD[-1])
    predicted = torch.zeros_like(batch.tokens)
    for first in bar(range(0, n, batch_size), "lookahead"):
        part = slice(first, first + batch_size)
        wanted = chosen[part]
        logits = answer_logits(denoiser, inputs[part], batch.prompt_lengths[part], wanted)
        predicted[part] = predicted[part].masked_scatter(wanted, logits.argmax(dim=-1))
    right = (chosen & (predicted == batch.tokens)).cpu()
    scores = {}
    for distance in LOOKAHEAD:
        index = (cut + distance - 1).cpu()
        counted = index <= pairs.ends.cpu()  # a token of the answer, or its first EOS
        hits = right[torch.arange(n), index.clamp(max=context - 1)] & counted
        scores[str(distance)] = wilson(int(hits.sum()), int(counted.sum())).to_dict()
    return scores


@torch.inference_mode()
def repair_scores(
    denoiser: Denoiser,
    pairs: PackedPairs,
    batch_size: int = 8,
    seed: int = 0,
    from_mask: bool = False,
) -> dict:
    """Structural repair: corrupted answers, nothing masked, refined noiselessly and greedily.

    Of the tokens of an answer and its first EOS: `restored`, the share of corrupted ones that are
    right in the last draft; `kept`, the same of the others; `damaged`, the share corrupted.
    `from_mask` counts the same tokens after as many iterations from all MASK: what the question
    alone tells. Pairs with others' prompts give the opposite: what the corrupted text alone tells.
    """
    n, context = pairs.tokens.shape
    batch = take(pairs, list(range(n)), context)
    generator = torch.Generator(batch.tokens.device).manual_seed(seed)
    ids = denoiser.vocabulary_size, denoiser.mask_token_id
    # All answers at once, so that the batch size does not change what is corrupted.
    noisy = corrupt(batch.tokens, batch.answer, *ids, generator, STRUCTURAL, REPAIR_SEVERITY)
    repaired = torch.empty_like(noisy)
    for first in bar(range(0, n, batch_size), "repair"):
        part = slice(first, first + batch_size)
        draft, answer = noisy[part], batch.answer[part]  # (b, t)
        if from_mask:
            draft = draft.masked_fill(answer, denoiser.mask_token_id)
        for _ in range(REPAIR_ITERATIONS):
            logits = answer_logits(denoiser, draft, batch.prompt_lengths[part], answer)  # (m, v)
            logits[:, denoiser.mask_token_id] = -torch.inf  # MASK is an input, never an answer
            draft = draft.masked_scatter(answer, logits.argmax(dim=-1))
        repaired[part] = draft
    counted = batch.answer & ~batch.tail
    corrupted = counted & (noisy != batch.tokens)
    right = repaired == batch.tokens

    def share(hits: Tensor, of: Tensor) -> dict:
        return pooled_share((hits & of).sum(dim=1).tolist(), of.sum(dim=1).tolist()).to_dict()

    return {
        "restored": share(right, corrupted),
        "kept": share(right, counted & ~corrupted),
        "damaged": share(corrupted, counted),
        "tokens": int(counted.sum()),
        "severity": REPAIR_SEVERITY,
        "iterations": REPAIR_ITERATIONS,
    }


def same_fact(questions: Sequence[Question], answers: Sequence[str]) -> dict:
    """The share of answers that have a fact of their question as whole words, in any case."""

    def has_fact(question: Question, answer: str) -> bool:
        facts = "|".join(map(re.escape, question.facts))
        return bool(re.search(rf"(?<!\w)(?:{facts})(?!\w)", answer, re.IGNORECASE))

    return wilson(sum(map(has_fact, questions, answers)), len(answers)).to_dict()


def sentence_repair(
    denoiser: Denoiser, sentences: Sequence[str], batch_size: int = 8, seed: int = 0
) -> dict:
    """Repair without a question, as `lad repair` does it: the share of sentences that come out.

    For each of `DAMAGES`, sentences with one such damage that are mended to the character; `mended`
    is all of them together; `sound` are undamaged sentences that stay as they are.
    """
    starts = {kind: [damaged(denoiser, s, kind, seed) for s in sentences] for kind in DAMAGES}
    starts["sound"] = list(sentences)
    of_length = defaultdict(list)  # (kind, place, draft), by the size of their answer region
    for kind, texts in starts.items():
        for place, text in enumerate(texts):
            draft = visible_text(denoiser, text).tokens
            of_length[len(draft)].append((kind, place, draft))
    right = {kind: [False] * len(sentences) for kind in starts}
    for length, items in bar(of_length.items(), "sentences"):
        kinds, places, drafts = zip(*items, strict=True)
        config, prompts = replace(REPAIR, answer_length=length), [REPAIR_PROMPT] * len(items)
        traces = refine_batch(denoiser, prompts, config, drafts=drafts, batch_size=batch_size)
        for kind, place, trace in zip(kinds, places, traces, strict=True):
            right[kind][place] = trace.answer == sentences[place]
    scores = {kind: wilson(sum(found), len(found)).to_dict() for kind, found in right.items()}
    mended = [sum(found) for found in zip(*(right[kind] for kind in DAMAGES), strict=True)]
    scores["mended"] = pooled_share(mended, [len(DAMAGES)] * len(mended)).to_dict()
    return scores | {"iterations": REPAIR.iterations}


def damaged(denoiser: Denoiser, sentence: str, kind: str, seed: int = 0) -> str:
    """The sentence with one damage of `DAMAGES` at a random place; its length in tokens stays.

    Two neighbours are swapped, or one token is written over the next, or replaced by any other.
    Drawn again, `MOST_DRAWS` times, is what changes nothing or is read as other tokens.
    """
    random, tokenizer = Random(f"{seed} {kind} {sentence}"), denoiser.tokenizer
    ids = encode_text(tokenizer, sentence)
    for _ in range(MOST_DRAWS):
        place = random.randrange(len(ids) - 1)
        first, second = ids[place : place + 2]
        other = random.randrange(denoiser.vocabulary_size)
        new = {"swap": (second, first), "duplicate": (first, first), "replace": (other, second)}
        found = [*ids[:place], *new[kind], *ids[place + 2 :]]
        text = tokenizer.decode(found).strip()
        if found != ids and encode_text(tokenizer, text) == found:
            break
    return text
