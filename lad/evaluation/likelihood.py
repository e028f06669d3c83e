"""The log-likelihood of every option of a question: by a denoiser, and by its backbone.

A denoiser has no order of tokens, so its log-likelihood of an answer of L tokens is an expectation
over masks, estimated from samples (LLaDA's estimator): draw how many tokens are masked, l, evenly
from 1 to L, then which; the sample is L / l times the sum of log p over the masked tokens. All
options of a question share their random numbers, so what the masks do to one they do to the others,
and l is drawn in equal steps over the samples. The standard error is that of independent samples,
which the true one does not exceed.

Without samples, an option is read from left to right instead: everything behind a token is MASK,
only that token is scored, and their sum is a likelihood too, in one order of many and exact in it.

The answer region ends with one visible EOS behind the option, as an answer ends in training; EOS
itself is not scored. For the target "letter" everything behind the letter is MASK instead, in a
region as long as the longest line: one token, one mask, no chance.

A backbone reads left to right, and its log-likelihood is exact.

A prompt is read once for all its options and samples, and inputs that are the same are run once.

Reference: Large Language Diffusion Models, Nie et al. 2025, https://arxiv.org/abs/2502.09992

Shapes: q = questions, r = rows, p = prompt positions, a = answer positions, v = vocabulary,
s = samples.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field

import numpy as np
import torch
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel
from transformers import DynamicCache, LlamaForCausalLM

from lad.diffusion.denoiser import Denoiser, PromptCache, pad_prompts
from lad.evaluation.masks import drawn, left_to_right, sample_masks
from lad.evaluation.questions import Question
from lad.models.chat import encode_prompts
from lad.utils import InvalidInput, NumericalError

__all__ = ["Ask", "Score", "ask", "exact_scores", "masked_scores"]

# Keys and values of rows that run together: 8 GB of a GPU's memory, 256 MB of a CPU's.
BYTES_AT_ONCE = {"cpu": 2**28, "cuda": 2**33}
FLOATS_AT_ONCE = 2**26  # logits that are float32 at a time
# Every batch has a shape of its own, for each of which cuDNN's attention would make a plan; and it
# has stopped with an error in the middle of such runs.
KERNELS = [SDPBackend.FLASH_ATTENTION, SDPBackend.EFFICIENT_ATTENTION, SDPBackend.MATH]


@dataclass(frozen=True)
class Score:
    """The log-likelihood of one option.

    Attributes:
        log_likelihood: in nats.
        standard_error: of the estimate; 0 where nothing is left to chance.
        samples: `(s,)` what it is the mean of; options of a question are sampled in pairs.
        greedy: every token was the likeliest one where it was scored.
    """

    log_likelihood: float
    standard_error: float
    samples: np.ndarray
    greedy: bool


@dataclass(frozen=True)
class Ask:
    """A question as token ids.

    Attributes:
        key: what its random numbers are drawn from, together with the seed.
        prompt: with its chat template.
        options: the tokens scored of each option, at least one.
        behind: input ids that stand behind an option's tokens.
    """

    key: str
    prompt: list[int]
    options: list[list[int]]
    behind: list[int] = field(default_factory=list)


def ask(
    tokenizer, questions: Sequence[Question], target: str, mask_token_id: int, eos_token_id: int
) -> list[Ask]:
    """Questions as token ids, for `masked_scores` and `exact_scores`.

    Raises:
        InvalidInput: letters that this tokenizer cannot tell apart by their first token.
    """
    prompts = encode_prompts(tokenizer, [question.prompt for question in questions])
    asks = []
    for question, prompt in zip(questions, prompts, strict=True):
        texts = question.lines if target == "letter" else question.answers
        options = tokenizer(list(texts), add_special_tokens=False)["input_ids"]
        behind = [eos_token_id]
        if target == "letter":
            # Up to the longest line and its EOS; what stands there is not known yet.
            behind = [mask_token_id] * max(map(len, options))
            options = [ids[:1] for ids in options]
            if len({ids[0] for ids in options}) < len(options):
                raise InvalidInput(
                    f"{question.key}: two letters begin with the same token, expected one token a "
                    "letter; use --target line"
                )
        asks.append(Ask(question.key, prompt, options, behind))
    return asks


# -- a denoiser ------------------------------------------------------------------------------------


@dataclass
class _Reading:
    """What is read off one input: the tokens of one option where a mask stands."""

    question: int
    option: int
    row: int
    places: np.ndarray
    tokens: np.ndarray
    weight: float
    samples: np.ndarray  # which of them it is


@torch.inference_mode()
def masked_scores(
    denoiser: Denoiser, asks: Sequence[Ask], samples: int = 16, seed: int = 0
) -> Iterator[tuple[int, list[Score]]]:
    """Every question's index with its options' scores; short prompts first.

    Args:
        samples: masks an option; 0 reads from left to right.
        seed: of the masks.

    Raises:
        InvalidInput: fewer than no samples, or a question longer than the backbone can read.
        NumericalError: NaN or infinite logits.
    """
    if samples < 0:
        raise InvalidInput(f"samples = {samples}: expected at least 1, or 0 for left to right")
    _check_lengths(asks, denoiser.causal_lm.config.max_position_embeddings)
    most = _positions_at_once(denoiser.causal_lm)
    for part in _batches(asks, most):
        yield from _masked_batch(denoiser, asks, part, samples, seed, most)


@sdpa_kernel(KERNELS)
def _masked_batch(
    denoiser: Denoiser, asks: Sequence[Ask], part: list[int], samples: int, seed: int, most: int
) -> list[tuple[int, list[Score]]]:
    inputs: list[list[int]] = []  # what is run
    owners: list[int] = []  # by row: which prompt of this batch
    readings: list[_Reading] = []
    for n, index in enumerate(part):
        own, rows = asks[index], {}
        lengths = [len(ids) for ids in own.options]
        hidden = (
            [drawn(*one) for one in sample_masks(lengths, samples, seed, own.key)]
            if samples
            else map(left_to_right, lengths)
        )
        for option, (ids, masks) in enumerate(zip(own.options, hidden, strict=True)):
            tokens = np.array(ids)
            for mask, places, weight, which in masks:
                row = tuple(np.where(mask, denoiser.mask_token_id, tokens).tolist() + own.behind)
                if row not in rows:
                    rows[row] = len(inputs)
                    inputs.append(list(row))
                    owners.append(n)
                readings.append(
                    _Reading(index, option, rows[row], places, tokens[places], weight, which)
                )
    device = denoiser.device
    prompts, padding = pad_prompts(
        [torch.tensor(asks[index].prompt) for index in part], denoiser.eos_token_id
    )
    prompts = prompts.to(device)
    padding = None if padding is None else padding.to(device)
    cache = denoiser.read_prompt(prompts, padding)

    values = {index: np.zeros((len(asks[index].options), samples or 1)) for index in part}
    greedy = {index: np.ones(len(asks[index].options), dtype=bool) for index in part}
    of_row: dict[int, list[_Reading]] = {}
    for reading in readings:
        of_row.setdefault(reading.row, []).append(reading)
    by_length = sorted(range(len(inputs)), key=lambda row: len(inputs[row]))
    at_once = max(1, most // (prompts.shape[1] + max(map(len, inputs))))
    for first in range(0, len(by_length), at_once):
        chunk = by_length[first : first + at_once]
        owner = torch.tensor([owners[row] for row in chunk], device=device)
        width = torch.tensor([len(inputs[row]) for row in chunk], device=device)
        answer = torch.full((len(chunk), int(width.max())), denoiser.eos_token_id)  # (r, a)
        for n, row in enumerate(chunk):
            answer[n, : len(inputs[row])] = torch.tensor(inputs[row])
        logits = denoiser.logits(
            prompts[owner],
            answer.to(device),
            None if cache is None else select_rows(cache, owner, denoiser),
            None if padding is None else padding[owner],
            width if bool((width < width.max()).any()) else None,
        )
        logits[..., denoiser.mask_token_id] = -torch.inf  # MASK is an input, never an answer
        told = [(n, reading) for n, row in enumerate(chunk) for reading in of_row[row]]
        rows = np.concatenate([np.full(len(r.places), n) for n, r in told])
        places = np.concatenate([r.places for _, r in told])
        tokens = np.concatenate([r.tokens for _, r in told])
        found, best = _picked(logits, rows, places, tokens)
        del logits
        ends = np.cumsum([len(r.places) for _, r in told])[:-1]
        parts = zip(told, np.split(found, ends), np.split(best, ends), strict=True)
        for (_, r), own, likeliest in parts:
            values[r.question][r.option, r.samples] += r.weight * own.sum()
            greedy[r.question][r.option] &= bool(likeliest.all())
    return [
        (index, [_score(x, bool(g)) for x, g in zip(values[index], greedy[index], strict=True)])
        for index in part
    ]


def _score(samples: np.ndarray, greedy: bool) -> Score:
    error = samples.std(ddof=1) / len(samples) ** 0.5 if len(samples) > 1 else 0.0
    return Score(float(samples.mean()), float(error), samples, greedy)


def select_rows(cache: PromptCache, rows: Tensor, denoiser: Denoiser) -> PromptCache:
    """The keys and values of these prompts, in this order, repeats allowed; `cache` stays."""
    chosen = PromptCache(config=denoiser.causal_lm.config)
    for number, layer in enumerate(cache.layers):
        chosen.update(layer.keys[rows], layer.values[rows], number)
    chosen.whole = True
    return chosen


def _picked(
    logits: Tensor, rows: np.ndarray, places: np.ndarray, tokens: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """Log-probability of each token at its row and place, and whether it is the likeliest there."""
    found, best = [], []
    at_once = max(1, FLOATS_AT_ONCE // logits.shape[-1])
    for n in range(0, len(rows), at_once):
        part = slice(n, n + at_once)
        index = [torch.from_numpy(x[part]).to(logits.device) for x in (rows, places, tokens)]
        own = logits[index[0], index[1]].float()  # (·, v)
        chosen = own.gather(-1, index[2][:, None])[:, 0]
        found.append((chosen - own.logsumexp(dim=-1)).double().cpu())
        best.append((own.argmax(dim=-1) == index[2]).cpu())
    result = torch.cat(found).numpy()
    if not np.isfinite(result).all():
        raise NumericalError(
            "a log-likelihood is NaN or infinite, expected finite numbers; check the adapter with "
            "`lad info`, or use float32"
        )
    return result, torch.cat(best).numpy()


# -- a backbone ------------------------------------------------------------------------------------


@torch.inference_mode()
def exact_scores(
    backbone: LlamaForCausalLM, asks: Sequence[Ask]
) -> Iterator[tuple[int, list[Score]]]:
    """The same left to right, exactly: log p of the option's tokens after the prompt.

    Args:
        backbone: bare, or inside `Denoiser.adapter_off`.

    Raises:
        InvalidInput: a question longer than the backbone can read.
        NumericalError: NaN or infinite logits.
    """
    _check_lengths(asks, backbone.config.max_position_embeddings)
    most = _positions_at_once(backbone)
    for part in _batches(asks, most):
        yield from _exact_batch(backbone, asks, part, most)


@sdpa_kernel(KERNELS)
def _exact_batch(
    backbone: LlamaForCausalLM, asks: Sequence[Ask], part: list[int], most: int
) -> list[tuple[int, list[Score]]]:
    device = backbone.lm_head.weight.device
    prompts, padding = pad_prompts([torch.tensor(asks[index].prompt) for index in part])
    prompts = prompts.to(device)
    padding = torch.zeros(len(part), dtype=torch.int64) if padding is None else padding
    padding = padding.to(device)
    p = prompts.shape[1]
    # All but the last prompt token are read once; that one predicts the first of the option.
    cache = None
    if p > 1:
        cache = DynamicCache(config=backbone.config)
        _read(backbone, prompts[:, :-1], cache, 0, padding)
    rows = [(n, option) for n, index in enumerate(part) for option in asks[index].options]
    by_length = sorted(range(len(rows)), key=lambda row: len(rows[row][1]))
    scores: list[Score | None] = [None] * len(rows)
    at_once = max(1, most // (p + max(len(option) for _, option in rows)))
    for first in range(0, len(rows), at_once):
        chunk = by_length[first : first + at_once]
        owner = torch.tensor([rows[row][0] for row in chunk], device=device)
        longest = max(len(rows[row][1]) for row in chunk)
        option = torch.zeros((len(chunk), longest), dtype=torch.int64)  # (r, a), padded behind
        for n, row in enumerate(chunk):
            option[n, : len(rows[row][1])] = torch.tensor(rows[row][1])
        tokens = torch.cat([prompts[owner, -1:], option[:, :-1].to(device)], dim=1)
        own = None
        if cache is not None:
            own = DynamicCache(config=backbone.config)
            for number, layer in enumerate(cache.layers):
                own.update(layer.keys[owner], layer.values[owner], number)
        states = _read(backbone, tokens, own, p - 1, padding[owner])
        logits = backbone.lm_head(states)  # (r, a, v)
        lengths = [len(rows[row][1]) for row in chunk]
        found, best = _picked(
            logits,
            np.repeat(np.arange(len(chunk)), lengths),
            np.concatenate([np.arange(length) for length in lengths]),
            np.concatenate([np.array(rows[row][1]) for row in chunk]),
        )
        ends = np.cumsum(lengths)[:-1]
        parts = zip(chunk, np.split(found, ends), np.split(best, ends), strict=True)
        for row, x, likeliest in parts:
            scores[row] = Score(float(x.sum()), 0.0, x.sum()[None], bool(likeliest.all()))
    result, first = [], 0
    for index in part:
        many = len(asks[index].options)
        result.append((index, scores[first : first + many]))
        first += many
    return result


def _read(
    backbone: LlamaForCausalLM, tokens: Tensor, cache: DynamicCache | None, start: int, pad: Tensor
) -> Tensor:
    """`(r, ·, d)` states of tokens from position `start` on, each seeing what stands before it."""
    position = torch.arange(start, start + tokens.shape[1], device=tokens.device)
    key = torch.arange(start + tokens.shape[1], device=tokens.device)
    visible = (key <= position[:, None]) & (key >= pad[:, None, None])
    visible |= key == position[:, None]  # padding sees itself: a softmax over nothing is NaN
    return backbone.model(
        input_ids=tokens,
        attention_mask=visible[:, None],
        position_ids=(position - pad[:, None]).clamp(min=0),
        past_key_values=cache,
        use_cache=cache is not None,
    ).last_hidden_state


# -- batches ---------------------------------------------------------------------------------------


def _batches(asks: Sequence[Ask], most: int) -> Iterator[list[int]]:
    """Indices of questions with prompts of like length, whose prompts fit in a quarter of `most`.

    The other three quarters are for the rows that are made of them.
    """
    part: list[int] = []
    for index in sorted(range(len(asks)), key=lambda n: len(asks[n].prompt)):
        if part and (len(part) + 1) * len(asks[index].prompt) > most // 4:
            yield part
            part = []
        part.append(index)
    if part:
        yield part


def _positions_at_once(model: LlamaForCausalLM) -> int:
    """How many positions' keys and values fit in `BYTES_AT_ONCE`."""
    config = model.config
    size = getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads
    one = 2 * config.num_hidden_layers * config.num_key_value_heads * size * model.dtype.itemsize
    return BYTES_AT_ONCE.get(model.lm_head.weight.device.type, 2**28) // one


def _check_lengths(asks: Sequence[Ask], most: int) -> None:
    for own in asks:
        longest = len(own.prompt) + max(map(len, own.options)) + len(own.behind)
        if longest > most:
            raise InvalidInput(
                f"{own.key} has {longest} tokens with its longest option, expected at most {most}, "
                "all that this backbone can read; use a smaller --n, another --seed or another task"
            )
