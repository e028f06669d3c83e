"""The log-likelihood of every option of a question: by a denoiser, and by its backbone.

A denoiser's is an expectation over masks, estimated from samples (LLaDA's estimator, Nie et al.
2025, https://arxiv.org/abs/2502.09992): the number l of masked tokens is drawn evenly from 1 to L,
then which; the sample is L / l times the sum of log p over the masked tokens. Options of a question
share their random numbers. With 0 samples an option is read from left to right instead: all behind
a token is MASK, only that token is scored. A backbone reads left to right, and its is exact.

Shapes: b = inputs of a batch, p = prompt positions, a = answer positions, d = hidden size,
v = vocabulary, s = samples, t = tokens that are scored.
"""

from __future__ import annotations

import hashlib
from collections import defaultdict
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field

import numpy as np
import torch
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.nn.utils.rnn import pad_sequence
from transformers import LlamaForCausalLM

from lad.diffusion.denoiser import Denoiser, PromptCache, pad_prompts
from lad.evaluation.tasks import Question
from lad.evaluation.text_metrics import answer_losses
from lad.models.chat import encode_prompts, encode_text
from lad.utils import InvalidInput, NumericalError

# Positions of inputs that run together: 8 GB of keys and values at 8 B, less at fewer parameters.
POSITIONS_AT_ONCE = {"cpu": 2**13, "cuda": 2**16}
OPTIONS_AT_ONCE = {"cpu": 16, "cuda": 128}  # sequences that a backbone reads together
FLOATS_AT_ONCE = 2**26  # logits whose sum is taken at a time
# Batches differ in shape: cuDNN would plan attention for each, and has failed in long runs.
KERNELS = [SDPBackend.FLASH_ATTENTION, SDPBackend.EFFICIENT_ATTENTION, SDPBackend.MATH]


@dataclass(frozen=True)
class Score:
    """The log-likelihood of one option, in nats."""

    samples: np.ndarray  # `(s,)`, whose mean it is; those of a question's options are paired
    greedy: bool | None = None  # every token was the likeliest where scored; None for a backbone

    @property
    def log_likelihood(self) -> float:
        """The estimate."""
        return float(self.samples.mean())

    @property
    def standard_error(self) -> float:
        """Of the estimate; 0 where nothing is random."""
        n = len(self.samples)
        return float(self.samples.std(ddof=1) / n**0.5) if n > 1 else 0.0


@dataclass(frozen=True)
class EncodedQuestion:
    """A question as token ids."""

    key: str  # seeds its masks, together with the run's seed
    prompt: list[int]  # with its chat template, at least one
    options: list[list[int]]  # the tokens scored of each option, at least one each
    suffix: list[int] = field(default_factory=list)  # what follows them in a denoiser's answer


def encode_questions(
    tokenizer, questions: Sequence[Question], target: str, mask_token_id: int, eos_token_id: int
) -> list[EncodedQuestion]:
    """Questions as token ids; InvalidInput for letters that begin with the same token.

    One EOS follows an option, as an answer ends in training. A letter is followed by MASK, in a
    region as long as the longest line: one token, one mask, nothing random.
    """
    prompts = encode_prompts(tokenizer, [question.prompt for question in questions])
    encoded = []
    for question, prompt in zip(questions, prompts, strict=True):
        texts = question.lines if target == "letter" else question.answers
        options = [encode_text(tokenizer, text) for text in texts]
        suffix = [eos_token_id]
        if target == "letter":
            suffix = [mask_token_id] * max(map(len, options))
            options = [ids[:1] for ids in options]
            if len({ids[0] for ids in options}) < len(options):
                raise InvalidInput(f"{question.key}: two letters are one token; use --target line")
        encoded.append(EncodedQuestion(question.key, prompt, options, suffix))
    return encoded


# -- masks -----------------------------------------------------------------------------------------


def sample_masks(
    lengths: Sequence[int], samples: int, seed: int, key: str
) -> list[tuple[np.ndarray, np.ndarray]]:
    """For each option `(s, length)`, True is masked, and `(s,)` weights length / masked.

    Options of these lengths share their random numbers.
    """
    digest = hashlib.sha256(f"{seed}/{key}".encode()).digest()
    generator = np.random.default_rng(np.frombuffer(digest, dtype=np.uint32))
    # In equal steps from 0 to 1, then shuffled, so that l and the places are unrelated.
    shares = generator.permutation((np.arange(samples) + generator.random(samples)) / samples)
    order = generator.random((samples, max(lengths)))
    masks = []
    for length in lengths:
        count = 1 + np.floor(shares * length).astype(int).clip(max=length - 1)  # (s,)
        rank = order[:, :length].argsort(axis=1).argsort(axis=1)
        masks.append((rank < count[:, None], length / count))
    return masks


def _masks(question: EncodedQuestion, samples: int, seed: int) -> list[list[tuple]]:
    """For each option: sample, weight, `(length,)` True is masked, and the places scored."""
    lengths = [len(ids) for ids in question.options]
    if not samples:
        return [[(0, 1.0, np.arange(n) >= i, np.array([i])) for i in range(n)] for n in lengths]
    return [
        [(s, w, mask, np.flatnonzero(mask)) for s, (mask, w) in enumerate(zip(*drawn, strict=True))]
        for drawn in sample_masks(lengths, samples, seed, question.key)
    ]


# -- scoring ---------------------------------------------------------------------------------------


@contextmanager
def float32_logits(causal_lm: LlamaForCausalLM) -> Iterator[None]:
    """In this context the head multiplies in float32, whatever the dtype of the model.

    The logits of letters lie close together and far from zero: rounded to bfloat16 they tie.
    """
    head, weight = causal_lm.lm_head, causal_lm.lm_head.weight
    if weight.dtype == torch.float32:
        yield
        return
    widen = head.register_forward_pre_hook(lambda _, states: states[0].float())
    head.weight = torch.nn.Parameter(weight.detach().float(), requires_grad=False)
    try:
        yield
    finally:
        head.weight = weight  # again the embeddings', where they are shared
        widen.remove()


@torch.inference_mode()
def loglikelihood(
    model: Denoiser | LlamaForCausalLM,
    questions: Sequence[EncodedQuestion],
    samples: int = 16,
    seed: int = 0,
) -> Iterator[tuple[int, list[Score]]]:
    """Every question's index with the scores of its options; short prompts first.

    A causal LM is bare, or inside `Denoiser.adapter_off`. `samples` are masks an option, of a
    denoiser only; 0 reads from left to right.
    """
    if samples < 0:
        raise InvalidInput(f"samples = {samples}: expected at least 1, or 0 for left to right")
    causal_lm = model.causal_lm if isinstance(model, Denoiser) else model
    limit = causal_lm.config.max_position_embeddings
    for question in questions:
        longest = len(question.prompt) + max(map(len, question.options)) + len(question.suffix)
        if longest > limit:
            raise InvalidInput(
                f"{question.key} has {longest} tokens with its longest option: expected at most "
                f"{limit}; use a smaller --n, another --seed or task"
            )
    with float32_logits(causal_lm):
        if causal_lm is model:
            yield from _causal_scores(model, questions)
            return
        most = POSITIONS_AT_ONCE.get(model.device.type, 2**13)
        for indices in _batches(questions, most):
            part = [questions[index] for index in indices]
            yield from zip(indices, _score_batch(model, part, samples, seed, most), strict=True)


def _causal_scores(
    model: LlamaForCausalLM, questions: Sequence[EncodedQuestion]
) -> Iterator[tuple[int, list[Score]]]:
    """Exact scores; a few questions at a time, so that a run can be resumed."""
    size = OPTIONS_AT_ONCE.get(model.lm_head.weight.device.type, 16)
    order = sorted(range(len(questions)), key=lambda n: len(questions[n].prompt))
    for first in range(0, len(order), size // 2):
        part = [(n, ids) for n in order[first : first + size // 2] for ids in questions[n].options]
        prompts = [questions[n].prompt for n, _ in part]
        losses = iter(answer_losses(model, prompts, [ids for _, ids in part], size))
        for n in order[first : first + size // 2]:
            yield n, [Score(-next(losses).sum(keepdims=True)) for _ in questions[n].options]


@sdpa_kernel(KERNELS)
def _score_batch(
    denoiser: Denoiser, part: list[EncodedQuestion], samples: int, seed: int, most: int
) -> list[list[Score]]:
    device, mask_token_id = denoiser.device, denoiser.mask_token_id
    # (question, input ids of the answer region) -> option, sample, weight and places scored.
    inputs = defaultdict(list)
    for n, question in enumerate(part):
        for option, masks in enumerate(_masks(question, samples, seed)):
            for sample, weight, mask, places in masks:
                region = np.where(mask, mask_token_id, question.options[option]).tolist()
                inputs[n, (*region, *question.suffix)].append((option, sample, weight, places))
    prompts, padding = pad_prompts([torch.tensor(q.prompt, device=device) for q in part])
    cache = denoiser.read_prompt(prompts, padding)
    values = np.zeros((len(part), max(len(q.options) for q in part), max(samples, 1)))
    greedy = np.ones(values.shape[:2], dtype=bool)
    keys = sorted(inputs, key=lambda key: len(key[1]))
    at_once = max(1, most // (prompts.shape[1] + len(keys[-1][1])))
    for first in range(0, len(keys), at_once):
        chunk = keys[first : first + at_once]
        index = torch.tensor([n for n, _ in chunk], device=device)
        lengths = torch.tensor([len(ids) for _, ids in chunk], device=device)
        answer = pad_sequence([torch.tensor(ids) for _, ids in chunk], batch_first=True)  # (b, a)
        logits = denoiser.logits(
            prompts[index],
            answer.to(device),
            None if cache is None else _select(cache, index, denoiser.causal_lm),
            None if padding is None else padding[index],
            lengths if bool((lengths < lengths.max()).any()) else None,
        )
        logits[..., mask_token_id] = -torch.inf  # MASK is an input, never an answer
        read = [(i, n, *x) for i, (n, ids) in enumerate(chunk) for x in inputs[n, ids]]
        *labels, places = zip(*read, strict=True)
        batch, n, option, sample, weight = (np.repeat(x, [*map(len, places)]) for x in labels)
        tokens = [np.array(part[x[1]].options[x[2]])[x[-1]] for x in read]
        flat = (batch, np.concatenate(places), np.concatenate(tokens))
        log_p, best = _log_probabilities(logits, *flat)
        np.add.at(values, (n, option, sample), weight * log_p)
        np.logical_and.at(greedy, (n, option), best)
    return [
        [Score(values[n, k], bool(greedy[n, k])) for k in range(len(question.options))]
        for n, question in enumerate(part)
    ]


def _log_probabilities(
    logits: Tensor, batch: np.ndarray, places: np.ndarray, tokens: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """`(t,)` log p of tokens at places of a batch, and whether each is the likeliest there."""
    log_p, best = [], []
    at_once = max(1, FLOATS_AT_ONCE // logits.shape[-1])
    for first in range(0, len(tokens), at_once):
        chunk = slice(first, first + at_once)
        n, i, ids = (torch.from_numpy(x[chunk]).to(logits.device) for x in (batch, places, tokens))
        chosen = logits[n, i]  # (·, v)
        log_p.append((chosen.gather(-1, ids[:, None])[:, 0] - chosen.logsumexp(-1)).double().cpu())
        best.append((chosen.argmax(dim=-1) == ids).cpu())
    values = torch.cat(log_p).numpy()
    if not np.isfinite(values).all():
        raise NumericalError(
            "a log-likelihood is NaN or infinite, expected finite numbers; check the adapter with "
            "`lad info`, or use float32"
        )
    return values, torch.cat(best).numpy()


def _batches(questions: Sequence[EncodedQuestion], most: int) -> Iterator[list[int]]:
    """Indices of questions with similar prompts, which fill a quarter of `most` positions."""
    part: list[int] = []
    for index in sorted(range(len(questions)), key=lambda n: len(questions[n].prompt)):
        if part and (len(part) + 1) * len(questions[index].prompt) > most // 4:
            yield part
            part = []
        part.append(index)
    yield from [part] if part else []


def _select(cache: PromptCache, indices: Tensor, model: LlamaForCausalLM) -> PromptCache:
    """The keys and values of these prompts, in this order, repeats allowed; `cache` stays."""
    selected = PromptCache(config=model.config)
    for number, layer in enumerate(cache.layers):
        selected.update(layer.keys[indices], layer.values[indices], number)
    selected.complete = True
    return selected
