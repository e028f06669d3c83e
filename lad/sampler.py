"""The reverse process: refine a whole answer, draft after draft.

    answer <- all MASK
    repeat: run the denoiser once; draw every position anew from its logits;
            stop early when the draft stood still in `patience` successive iterations;
            with re-noising, mask some positions again (lad/schedule.py says how many and which).

Without re-noising ("noiseless") the next input is the draft itself: the denoiser, trained on
structural noise and on its own drafts, repairs tokens that are visible and wrong.

Source: LAD: LoRA-Adapted Diffusion (EMNLP 2025 demo). `lad/reference.py` is the same loop as a
plain reader would write it; the tests hold the two together token for token.

Shapes: a = positions of the answer region, v = vocabulary.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from importlib.metadata import version

import numpy as np
import torch
from torch import Tensor

from lad import schedule
from lad.denoiser import Denoiser
from lad.errors import InvalidInput, NumericalError
from lad.prompts import Prompt
from lad.trace import Step, Trace

__all__ = ["RENOISING", "RefineConfig", "draw", "record", "refine"]

RENOISING = ("none", "uniform", "confidence")


@dataclass(frozen=True)
class RefineConfig:
    """Every control of one refinement. Ranges are the authors' demo's.

    The defaults are for the small default model, which needs much re-noising to write a longer
    answer without stuttering; the authors' library starts at noise 0.5 with sharpness 5.

    Attributes:
        iterations: most refinement steps, 1 to 512.
        renoising: which positions are masked again: "none" (noiseless), "uniform", or "confidence"
            (where the denoiser doubts itself).
        noise_start: fraction masked after the first iteration, 0 to 1.
        sharpness: how fast that fraction decays, above 0 and up to 20.
        noise_clipping: least weight of a sure token in confidence-guided noising, 0.01 to 1.
        temperature: 0 is greedy; 1 draws from the denoiser's own probabilities; up to 5.
        top_k: draw among the k likeliest tokens, 1 to 1000.
        top_p: and among those, the fewest that hold this much probability, above 0 and up to 1.
        eos_bias: added to EOS's logit, -5 to 5: negative for longer answers.
        answer_length: positions of the answer region, 1 to 2048.
        context: most tokens that prompt and answer region may have together, 16 to 2048; None is
            the longest the adapter was trained on.
        patience: stop when this many successive drafts are identical; 0 never stops early.
        seed: of the run's own generator; the global one is not touched.
    """

    iterations: int = 32
    renoising: str = "confidence"
    noise_start: float = 0.9
    sharpness: float = 1.0
    noise_clipping: float = 0.01
    temperature: float = 0.0
    top_k: int = 3
    top_p: float = 1.0
    eos_bias: float = 0.0
    answer_length: int = 64
    context: int | None = None
    patience: int = 3
    seed: int = 0

    def __post_init__(self) -> None:
        if self.renoising not in RENOISING:
            raise InvalidInput(
                f"renoising = {self.renoising!r}: expected one of {', '.join(RENOISING)}"
            )
        for name, (low, high) in RANGES.items():
            value = getattr(self, name)
            if name == "context" and value is None:
                continue
            number = isinstance(value, int | float) and not isinstance(value, bool)
            whole = self.__dataclass_fields__[name].type == "float" or isinstance(value, int)
            if not (number and whole and math.isfinite(value) and low <= value <= high):
                real = self.__dataclass_fields__[name].type == "float"
                kind = "a number" if real else "a whole number"
                raise InvalidInput(f"{name} = {value!r}: expected {kind} from {low} to {high}")

    @property
    def greedy(self) -> bool:
        """True when nothing is left to chance in the draw."""
        return self.temperature == 0 or self.top_k == 1

    def to_dict(self) -> dict:
        """Plain values, for JSON; `RefineConfig(**values)` reads them back."""
        return asdict(self)


RANGES = {
    "iterations": (1, 512),
    "noise_start": (0, 1),
    "sharpness": (0.01, 20),
    "noise_clipping": (0.01, 1),
    "temperature": (0, 5),
    "top_k": (1, 1000),
    "top_p": (0.01, 1),
    "eos_bias": (-5, 5),
    "answer_length": (1, 2048),
    "context": (16, 2048),
    "patience": (0, 512),
    "seed": (0, 2**63 - 1),
}


def draw(logits: Tensor, config: RefineConfig, generator: torch.Generator) -> tuple[Tensor, Tensor]:
    """Draw a token at every position.

    Args:
        logits: `(a, v)` float.
        generator: a CPU generator; one number per position is taken from it, so one seed gives one
            answer on every device.

    Returns:
        tokens `(a,)` int64, and their confidence `(a,)` float32: the probability under the
        denoiser's own distribution, before temperature, top-k and top-p narrow it.
    """
    total = logits.logsumexp(dim=-1)  # (a,)
    k = 1 if config.greedy else min(config.top_k, logits.shape[-1])
    top, ids = logits.topk(k, dim=-1)  # (a, k), likeliest first
    if config.greedy:
        return ids[:, 0], (top[:, 0] - total).exp()
    weights = (top / config.temperature).softmax(dim=-1)
    # Keep a token when what precedes it holds less than top_p: the likeliest always stays.
    weights = weights * (weights.cumsum(dim=-1) - weights < config.top_p)
    ladder = weights.cumsum(dim=-1)
    uniform = torch.rand(len(logits), generator=generator).to(logits.device)
    rung = (ladder <= uniform[:, None] * ladder[:, -1:]).sum(dim=-1, keepdim=True)
    rung = rung.clamp(max=k - 1)
    tokens = ids.gather(1, rung)[:, 0]
    return tokens, (top.gather(1, rung)[:, 0] - total).exp()


def refine(
    denoiser: Denoiser, prompt: Prompt | Tensor, config: RefineConfig | None = None
) -> Iterator[Step]:
    """Refine an answer, yielding a `Step` after every iteration; the last holds the final draft.

    Inputs are checked at the call, before the first step is asked for. To stop a run, stop asking.

    Args:
        prompt: text, chat messages, or `(p,)` token ids from `denoiser.encode`.

    Raises:
        InvalidInput: an empty prompt, or one that leaves no room for the answer.
        NumericalError: NaN or infinite logits, named with the iteration.
    """
    config = config or RefineConfig()
    prompt_ids = prompt if isinstance(prompt, Tensor) else denoiser.encode(prompt)
    longest = min(
        config.context or denoiser.config.context, denoiser.causal_lm.config.max_position_embeddings
    )
    if len(prompt_ids) + config.answer_length > longest:
        raise InvalidInput(
            f"a prompt of {len(prompt_ids)} tokens and an answer region of {config.answer_length}: "
            f"expected at most {longest} together, the context window; shorten the prompt, or "
            "lower answer_length, or raise context"
        )
    return _iterate(denoiser, prompt_ids[None], config)


@torch.inference_mode()
def _iterate(denoiser: Denoiser, prompt_ids: Tensor, config: RefineConfig) -> Iterator[Step]:
    generator = torch.Generator().manual_seed(config.seed)
    cache = denoiser.read_prompt(prompt_ids)
    answer = torch.full((config.answer_length,), denoiser.mask_token_id, device=denoiser.device)
    previous, unchanged = None, 0

    for i in range(config.iterations):
        started = time.perf_counter()
        logits = denoiser.logits(prompt_ids, answer[None], cache)[0].float()  # (a, v)
        if not bool(torch.isfinite(logits).all()):
            raise NumericalError(
                f"iteration {i}: the logits hold NaN or infinity, expected finite numbers; "
                "check the adapter with `lad info`, or use float32"
            )
        logits[:, denoiser.eos_token_id] += config.eos_bias
        logits[:, denoiser.mask_token_id] = -math.inf  # MASK is an input, never an answer
        draft, confidence = draw(logits, config, generator)

        unchanged = unchanged + 1 if previous is not None and bool((draft == previous).all()) else 1
        stopping = config.patience > 0 and unchanged >= config.patience
        last = stopping or i == config.iterations - 1
        renoised = torch.zeros_like(draft, dtype=torch.bool)
        if config.renoising != "none" and not last:
            renoised = _choose(denoiser, draft, confidence, i, config, generator)
        yield Step(
            iteration=i,
            inputs=answer.cpu().numpy(),
            draft=draft.cpu().numpy(),
            confidence=confidence.cpu().numpy(),
            renoised=renoised.cpu().numpy(),
            seconds=time.perf_counter() - started,
        )
        if stopping:
            return
        previous = draft
        answer = draft.masked_fill(renoised, denoiser.mask_token_id)


def _choose(
    denoiser: Denoiser,
    draft: Tensor,
    confidence: Tensor,
    iteration: int,
    config: RefineConfig,
    generator: torch.Generator,
) -> Tensor:
    """`(a,)` bool: the positions to mask again after an iteration."""
    count = schedule.mask_count(
        iteration, config.iterations, len(draft), config.sharpness, config.noise_start
    )
    if config.renoising == "uniform":
        return schedule.choose_positions(torch.ones_like(confidence), count, generator)
    weights = schedule.confidence_weights(confidence, config.noise_clipping)
    eos = draft == denoiser.eos_token_id
    for_eos, for_others = schedule.split_budget(count, int(eos.sum()), len(draft))
    return schedule.choose_positions(weights * eos, for_eos, generator) | schedule.choose_positions(
        weights * ~eos, for_others, generator
    )


def record(
    denoiser: Denoiser,
    prompt: Prompt,
    config: RefineConfig | None = None,
    on_step: Callable[[Step], object] | None = None,
) -> Trace:
    """Refine to the end and keep everything; `on_step` is called after every iteration.

    A run is cut short by raising from `on_step`.
    """
    config = config or RefineConfig()
    prompt_ids = denoiser.encode(prompt)
    steps = []
    for step in refine(denoiser, prompt_ids, config):
        steps.append(step)
        if on_step is not None:
            on_step(step)
    return make_trace(denoiser, prompt, prompt_ids, config, steps)


def make_trace(
    denoiser: Denoiser, prompt: Prompt, prompt_ids: Tensor, config: RefineConfig, steps: list[Step]
) -> Trace:
    """Bundle steps that ran with what is needed to read them without a model."""
    used = {int(t) for step in steps for t in np.union1d(step.inputs, step.draft)}
    used |= set(prompt_ids.tolist())
    added = denoiser.tokenizer.added_tokens_decoder
    special = {t for t in used if t == denoiser.mask_token_id or (t in added and added[t].special)}
    return Trace(
        prompt=prompt if isinstance(prompt, str) else prompt[-1]["content"],
        steps=steps,
        stopped_early=len(steps) < config.iterations,
        mask_token_id=denoiser.mask_token_id,
        eos_token_id=denoiser.eos_token_id,
        special_ids=frozenset(special),
        vocabulary={t: token_bytes(denoiser.tokenizer, t, t in special) for t in used},
        prompt_ids=prompt_ids.cpu().numpy(),
        config=config.to_dict(),
        provenance={
            "model": denoiser.backbone.spec.name,
            "backbone_digest": denoiser.backbone.digest,
            "adapter_sha256": denoiser.adapter_sha256,
            "device": denoiser.device.type,
            "dtype": str(denoiser.causal_lm.dtype).removeprefix("torch."),
            "torch": torch.__version__,
            "transformers": version("transformers"),
        },
    )


def _byte_of_character() -> dict[str, int]:
    """Byte-level BPE spells each of the 256 bytes as one printable character (GPT-2's table)."""
    printable = [*range(33, 127), *range(161, 173), *range(174, 256)]
    others = [byte for byte in range(256) if byte not in printable]
    table = {chr(byte): byte for byte in printable}
    return table | {chr(256 + n): byte for n, byte in enumerate(others)}


BYTE_OF_CHARACTER = _byte_of_character()


def token_bytes(tokenizer, token_id: int, special: bool = False) -> bytes:
    """The bytes one token stands for; a special token's are its name."""
    token = tokenizer.convert_ids_to_tokens(token_id)
    if token is None:  # a padded vocabulary has ids without a token
        return f"<{token_id}>".encode()
    if special or not all(character in BYTE_OF_CHARACTER for character in token):
        return token.encode()
    return bytes(BYTE_OF_CHARACTER[character] for character in token)
