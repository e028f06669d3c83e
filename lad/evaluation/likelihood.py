"""The log-likelihood of every option of a question: by a denoiser, and by its backbone.

A denoiser has no order of tokens, so its log-likelihood of an answer of L tokens is an expectation
over masks, estimated from samples (LLaDA's estimator): draw how many tokens are masked, l, evenly
from 1 to L, then which; the sample is L / l times the sum of log p over the masked tokens. All
options of a question share their random numbers, so that the masks affect them alike, and l is
drawn in equal steps over the samples. The standard error is that of independent samples, which the
true one does not exceed.

Without samples, an option is read from left to right: everything after a token is MASK, only that
token is scored, and the sum is a likelihood too, exact in this one order.

One visible EOS follows the option in the answer region, as an answer ends in training; EOS itself
is not scored. For the target "letter" everything after the letter is MASK, in a region as long as
the longest line: one token, one mask, nothing random.

A backbone reads left to right, and its log-likelihood is exact.

A prompt is computed once for all its options and samples, and equal inputs are run once.

Reference: Large Language Diffusion Models, Nie et al. 2025, https://arxiv.org/abs/2502.09992

Shapes: b = inputs of a batch, p = prompt positions, a = answer positions, d = hidden size,
v = vocabulary, s = samples.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.nn.utils.rnn import pad_sequence
from transformers import LlamaForCausalLM

from lad.diffusion.denoiser import Denoiser, PromptCache, pad_prompts
from lad.evaluation.tasks import Question
from lad.models.chat import encode_prompts
from lad.utils import InvalidInput, NumericalError

# Keys and values of inputs that run together: 8 GB of a GPU's memory, 256 MB of a CPU's.
BYTES_AT_ONCE = {"cpu": 2**28, "cuda": 2**33}
FLOATS_AT_ONCE = 2**26  # logits that are float32 at a time
# Every batch has another shape, for each of which cuDNN's attention would make a plan; and it has
# stopped with an error in the middle of such runs.
KERNELS = [SDPBackend.FLASH_ATTENTION, SDPBackend.EFFICIENT_ATTENTION, SDPBackend.MATH]


@dataclass(frozen=True)
class Score:
    """The log-likelihood of one option.

    Attributes:
        log_likelihood: in nats.
        standard_error: of the estimate; 0 where nothing is random.
        samples: `(s,)`, whose mean it is; those of a question's options are paired.
        greedy: every token was the likeliest one where it was scored.
    """

    log_likelihood: float
    standard_error: float
    samples: np.ndarray
    greedy: bool


@dataclass(frozen=True)
class EncodedQuestion:
    """A question as token ids.

    Attributes:
        key: seeds its masks, together with the run's seed.
        prompt: with its chat template, at least one.
        options: the tokens scored of each option, at least one each.
        suffix: input ids that follow an option's tokens.
    """

    key: str
    prompt: list[int]
    options: list[list[int]]
    suffix: list[int] = field(default_factory=list)


def encode_questions(
    tokenizer, questions: Sequence[Question], target: str, mask_token_id: int, eos_token_id: int
) -> list[EncodedQuestion]:
    """Questions as token ids.

    Raises:
        InvalidInput: letters that this tokenizer cannot tell apart by their first token.
    """
    prompts = encode_prompts(tokenizer, [question.prompt for question in questions])
    encoded = []
    for question, prompt in zip(questions, prompts, strict=True):
        texts = question.lines if target == "letter" else question.answers
        options = tokenizer(list(texts), add_special_tokens=False)["input_ids"]
        suffix = [eos_token_id]
        if target == "letter":
            suffix = [mask_token_id] * max(map(len, options))
            options = [ids[:1] for ids in options]
            if len({ids[0] for ids in options}) < len(options):
                raise InvalidInput(
                    f"{question.key}: two letters begin with the same token, expected one token a "
                    "letter; use --target line"
                )
        encoded.append(EncodedQuestion(question.key, prompt, options, suffix))
    return encoded


# -- masks -----------------------------------------------------------------------------------------


def sample_masks(
    lengths: Sequence[int], samples: int, seed: int, key: str
) -> list[tuple[np.ndarray, np.ndarray]]:
    """Masks for options of these lengths, from the same random numbers.

    Returns:
        For each option `(s, length)` bool, True is masked, and `(s,)` the weights length / masked.
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


class _Reading(NamedTuple):
    """What is read off one input: tokens of an option, for one sample."""

    option: int
    sample: int
    weight: float
    places: np.ndarray
    tokens: np.ndarray


def _readings(
    part: list[EncodedQuestion], mask_token_id: int | None, samples: int, seed: int
) -> dict[tuple[int, tuple[int, ...]], list[_Reading]]:
    """(index of the question, input ids of the answer region) -> what is read off that input."""
    readings: dict[tuple[int, tuple[int, ...]], list[_Reading]] = {}
    for n, question in enumerate(part):
        suffix = [] if mask_token_id is None else question.suffix
        for option, masks in enumerate(_masks(question, mask_token_id is None, samples, seed)):
            tokens = np.array(question.options[option])
            for sample, weight, mask, places in masks:
                region = np.where(mask, mask_token_id or 0, tokens).tolist()
                reading = _Reading(option, sample, weight, places, tokens[places])
                readings.setdefault((n, (*region, *suffix)), []).append(reading)
    return readings


def _masks(question: EncodedQuestion, causal: bool, samples: int, seed: int) -> list[list[tuple]]:
    """For each option: the sample, its weight, `(length,)` True is masked, and places scored."""
    lengths = [len(ids) for ids in question.options]
    if causal:
        return [[(0, 1.0, np.zeros(n, dtype=bool), np.arange(n))] for n in lengths]
    if not samples:
        return [[(0, 1.0, np.arange(n) >= i, np.array([i])) for i in range(n)] for n in lengths]
    return [
        [(s, w, mask, np.flatnonzero(mask)) for s, (mask, w) in enumerate(zip(*drawn, strict=True))]
        for drawn in sample_masks(lengths, samples, seed, question.key)
    ]


# -- scoring ---------------------------------------------------------------------------------------


@torch.inference_mode()
def loglikelihood(
    model: Denoiser | LlamaForCausalLM,
    questions: Sequence[EncodedQuestion],
    samples: int = 16,
    seed: int = 0,
) -> Iterator[tuple[int, list[Score]]]:
    """Every question's index with the scores of its options; short prompts first.

    Args:
        model: a denoiser, or a causal LM (bare, or inside `Denoiser.adapter_off`).
        samples: masks an option; 0 reads from left to right. A denoiser only.
        seed: of the masks.

    Raises:
        InvalidInput: negative samples, or a question longer than the backbone can read.
        NumericalError: NaN or infinite logits.
    """
    if samples < 0:
        raise InvalidInput(f"samples = {samples}: expected at least 1, or 0 for left to right")
    reader = model if isinstance(model, Denoiser) else _CausalReader(model)
    for indices, most in _batches(questions, reader.causal_lm):
        part = [questions[index] for index in indices]
        yield from zip(indices, _score_batch(reader, part, samples, seed, most), strict=True)


class _CausalReader:
    """A causal LM behind the methods of a denoiser that scoring calls."""

    mask_token_id = None

    def __init__(self, causal_lm: LlamaForCausalLM) -> None:
        self.causal_lm = causal_lm
        self.device = causal_lm.lm_head.weight.device

    def read_prompt(self, prompts: Tensor, padding: Tensor | None) -> PromptCache | None:
        """Keys and values of all but the last prompt token, which predicts the first answer's."""
        if prompts.shape[1] == 1:
            return None
        cache = PromptCache(config=self.causal_lm.config)
        self._states(prompts[:, :-1], cache, 0, padding)
        return cache

    def logits(self, prompts, answer, cache, padding, width) -> Tensor:
        """`(b, a, v)` logits of every answer position, from what stands before it."""
        tokens = torch.cat([prompts[:, -1:], answer[:, :-1]], dim=1)
        states = self._states(tokens, cache, prompts.shape[1] - 1, padding)
        return self.causal_lm.lm_head(states)

    def _states(self, tokens, cache, start: int, padding: Tensor | None) -> Tensor:
        """`(b, ·, d)` states of tokens from position `start` on."""
        padding = tokens.new_zeros(len(tokens)) if padding is None else padding
        position = torch.arange(start, start + tokens.shape[1], device=tokens.device)
        key = torch.arange(start + tokens.shape[1], device=tokens.device)
        visible = (key <= position[:, None]) & (key >= padding[:, None, None])
        visible |= key == position[:, None]  # padding sees itself: a softmax over nothing is NaN
        return self.causal_lm.model(
            input_ids=tokens,
            attention_mask=visible[:, None],
            position_ids=(position - padding[:, None]).clamp(min=0),
            past_key_values=cache,
            use_cache=cache is not None,
        ).last_hidden_state


@sdpa_kernel(KERNELS)
def _score_batch(
    reader: Denoiser | _CausalReader,
    part: list[EncodedQuestion],
    samples: int,
    seed: int,
    most: int,
) -> list[list[Score]]:
    readings = _readings(part, reader.mask_token_id, samples, seed)
    prompts, padding = pad_prompts([torch.tensor(question.prompt) for question in part])
    prompts = prompts.to(reader.device)
    padding = None if padding is None else padding.to(reader.device)
    cache = reader.read_prompt(prompts, padding)
    drawn = 1 if reader.mask_token_id is None else max(samples, 1)
    values = [np.zeros((len(question.options), drawn)) for question in part]
    greedy = [np.ones(len(question.options), dtype=bool) for question in part]
    inputs = sorted(readings, key=lambda key: len(key[1]))
    at_once = max(1, most // (prompts.shape[1] + len(inputs[-1][1])))
    for first in range(0, len(inputs), at_once):
        chunk = inputs[first : first + at_once]
        owner = torch.tensor([n for n, _ in chunk], device=reader.device)
        width = torch.tensor([len(ids) for _, ids in chunk], device=reader.device)
        answer = pad_sequence([torch.tensor(ids) for _, ids in chunk], batch_first=True)  # (b, a)
        logits = reader.logits(
            prompts[owner],
            answer.to(reader.device),
            None if cache is None else _select(cache, owner, reader.causal_lm),
            None if padding is None else padding[owner],
            width if bool((width < width.max()).any()) else None,
        )
        if reader.mask_token_id is not None:
            logits[..., reader.mask_token_id] = -torch.inf  # MASK is an input, never an answer
        found = [(i, key[0], reading) for i, key in enumerate(chunk) for reading in readings[key]]
        scored = _log_probabilities(logits, [(i, r.places, r.tokens) for i, _, r in found])
        del logits
        for (_, n, reading), (log_p, likeliest) in zip(found, scored, strict=True):
            values[n][reading.option, reading.sample] += reading.weight * log_p.sum()
            greedy[n][reading.option] &= likeliest
    return [
        [_score(*x) for x in zip(v, g, strict=True)] for v, g in zip(values, greedy, strict=True)
    ]


def _score(samples: np.ndarray, greedy: bool) -> Score:
    error = samples.std(ddof=1) / len(samples) ** 0.5 if len(samples) > 1 else 0.0
    return Score(float(samples.mean()), float(error), samples, bool(greedy))


# -- batches ---------------------------------------------------------------------------------------


def _batches(
    questions: Sequence[EncodedQuestion], model: LlamaForCausalLM
) -> Iterator[tuple[list[int], int]]:
    """Indices of questions with prompts of similar length, and how many positions fit at once.

    The prompts of a batch fit in a quarter of these positions; the rest is for their inputs.
    """
    config, limit = model.config, model.config.max_position_embeddings
    for question in questions:
        longest = len(question.prompt) + max(map(len, question.options)) + len(question.suffix)
        if longest > limit:
            raise InvalidInput(
                f"{question.key} has {longest} tokens with its longest option, expected at most "
                f"{limit}, all that this backbone can read; use a smaller --n, another --seed or "
                "another task"
            )
    size = getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads
    one = 2 * config.num_hidden_layers * config.num_key_value_heads * size * model.dtype.itemsize
    most = BYTES_AT_ONCE.get(model.lm_head.weight.device.type, 2**28) // one
    part: list[int] = []
    for index in sorted(range(len(questions)), key=lambda n: len(questions[n].prompt)):
        if part and (len(part) + 1) * len(questions[index].prompt) > most // 4:
            yield part, most
            part = []
        part.append(index)
    if part:
        yield part, most


def _select(cache: PromptCache, indices: Tensor, model: LlamaForCausalLM) -> PromptCache:
    """The keys and values of these prompts, in this order, repeats allowed; `cache` stays."""
    selected = PromptCache(config=model.config)
    for number, layer in enumerate(cache.layers):
        selected.update(layer.keys[indices], layer.values[indices], number)
    selected.whole = True
    return selected


def _log_probabilities(
    logits: Tensor, parts: Sequence[tuple[int, np.ndarray, np.ndarray]]
) -> list[tuple[np.ndarray, bool]]:
    """log p of the tokens of each part, and whether all of them are the likeliest.

    Args:
        logits: `(b, a, v)`.
        parts: index in the batch, `(t,)` positions, `(t,)` token ids.
    """
    lengths = [len(places) for _, places, _ in parts]
    batch = np.repeat([n for n, _, _ in parts], lengths)
    places, tokens = (np.concatenate([part[k] for part in parts]) for k in (1, 2))
    log_p, likeliest = [], []
    at_once = max(1, FLOATS_AT_ONCE // logits.shape[-1])
    for first in range(0, len(tokens), at_once):
        chunk = slice(first, first + at_once)
        n, i, ids = (torch.from_numpy(x[chunk]).to(logits.device) for x in (batch, places, tokens))
        chosen = logits[n, i].float()  # (·, v)
        log_p.append((chosen.gather(-1, ids[:, None])[:, 0] - chosen.logsumexp(-1)).double().cpu())
        likeliest.append((chosen.argmax(dim=-1) == ids).cpu())
    values = torch.cat(log_p).numpy()
    if not np.isfinite(values).all():
        raise NumericalError(
            "a log-likelihood is NaN or infinite, expected finite numbers; check the adapter with "
            "`lad info`, or use float32"
        )
    ends = np.cumsum(lengths)[:-1]
    split = (np.split(values, ends), np.split(torch.cat(likeliest).numpy(), ends))
    return [(x, bool(best.all())) for x, best in zip(*split, strict=True)]
