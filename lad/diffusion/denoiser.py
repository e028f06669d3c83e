"""The denoiser: a frozen causal LLaMA plus LoRA, run with a non-causal attention mask.

Two choices turn a left-to-right model into a denoiser; an adapter works only with those it learnt.

Attention
    bidirectional   every position attends to every position: the paper's.
    prompt-causal   the prompt attends causally, as the backbone was pretrained, and only the answer
                    attends to everything. The prompt's states then do not depend on the answer, so
                    its keys and values are computed once and reused at every iteration.
    mask-blind      prompt-causal, and no visible position attends to a MASK: MASK carries no
                    information and is out of distribution for the backbone. MASK positions attend
                    to everything, so masked neighbours can still agree.

Target
    same            the state at position i predicts token i: the paper's.
    next            the state at position i - 1 predicts token i, as the backbone was pretrained
                    (DiffuLLaMA calls it shifted). The last prompt position predicts the first
                    answer token, so under prompt-causal attention it attends to everything too.

Sources: LAD: LoRA-Adapted Diffusion (EMNLP 2025 demo); DiffuLLaMA (Gong et al., 2024) for the
shifted target; LoRA (Hu et al., 2021).

Shapes: b = batch, p = prompt, a = answer, t = p + a positions, d = hidden size, v = vocabulary.
"""

from __future__ import annotations

import contextlib
import warnings
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from pathlib import Path

import torch
from peft import LoraConfig, PeftModel, get_peft_model
from torch import Tensor
from transformers import DynamicCache

from lad.diffusion.config import TARGETS, DenoiserConfig
from lad.models.chat import Prompt, encode_prompt
from lad.models.registry import LoadedBackbone


def attention_mask(
    prompt_lengths: Tensor,
    total: int,
    attention: str,
    target: str = "next",
    padding: Tensor | None = None,
    is_masked: Tensor | None = None,
    causal_from: Tensor | None = None,
) -> Tensor:
    """Which position attends to which: `(b, 1, t, t)` bool, a row a query, True is visible.

    Args:
        prompt_lengths: `(b,)` int64, positions before the answer, padding included; total is t.
        padding: `(b,)` int64, left-padding length of each prompt. A padding position attends to
            itself alone, because a softmax over nothing is NaN.
        is_masked: `(b, t)` bool, where the input is MASK; used by "mask-blind".
        causal_from: `(b,)` int64, the position from which on attention is causal: those positions
            are visible only to themselves and to later ones (training on left-to-right rows).
    """
    position = torch.arange(total, device=prompt_lengths.device)
    causal = position[None, :] <= position[:, None]  # (t, t)
    if attention == "bidirectional":
        visible = position.new_ones((len(prompt_lengths), total, total), dtype=torch.bool)
    else:
        first_free = prompt_lengths - TARGETS.index(target)  # what predicts the answer is free
        free = position[None, :] >= first_free[:, None]  # (b, t), queries that see everything
        visible = causal[None] | free[:, :, None]
    if attention == "mask-blind" and is_masked is not None:
        visible = visible & (is_masked[:, :, None] | ~is_masked[:, None, :])
    if causal_from is not None:
        before = position[None, :] < causal_from[:, None]  # (b, t), keys that all may see
        visible = visible & (before[:, None, :] | causal)
    if padding is not None:
        real = position[None, :] >= padding[:, None]  # (b, t)
        visible = (visible & real[:, None, :]) | (position[None, :] == position[:, None])
    return visible[:, None]


def pad_prompts(prompts: Sequence[Tensor], filler: int = 0) -> tuple[Tensor, Tensor | None]:
    """Prompts of different lengths as one batch, padded on the left so that their ends meet.

    Args:
        prompts: `(p_i,)` int64 each.
        filler: token id of padding; no position attends to it.

    Returns:
        `(b, p)` int64, p being the longest, and `(b,)` int64, the padding of each; None when all
        have the same length.
    """
    longest = max(len(ids) for ids in prompts)
    padding = [longest - len(ids) for ids in prompts]
    if not any(padding):
        return torch.stack(list(prompts)), None
    both = zip(prompts, padding, strict=True)
    padded = [torch.cat([ids.new_full((n,), filler), ids]) for ids, n in both]
    return torch.stack(padded), torch.tensor(padding, device=prompts[0].device)


class PromptCache(DynamicCache):
    """Keys and values of prompts. Once `complete`, an answer's are joined to them but not kept."""

    complete = False

    def update(self, key_states: Tensor, value_states: Tensor, layer_idx: int, *args, **kwargs):
        """Keys and values of prompt and answer together, for one pass through one layer."""
        if not self.complete:
            return super().update(key_states, value_states, layer_idx, *args, **kwargs)
        prompt = self.layers[layer_idx]
        keys = torch.cat([prompt.keys, key_states], dim=-2)
        return keys, torch.cat([prompt.values, value_states], dim=-2)


class Denoiser:
    """Backbone and adapter, from token ids to logits of the answer.

    Make one with `lad.diffusion.adapter.load_denoiser` (a trained adapter) or `Denoiser.create` (a
    new one).

    Attributes:
        prepare: `(prompts, padding)` -> an object like `PromptForward`. Replaceable: a faster one
            comes from `lad.accel.capture`.
        step: a faster function with the results of `lad.diffusion.sampler.step`, or None.
        version: changes whenever the merged weights do, so that copies of them can be renewed.
    """

    def __init__(
        self, backbone: LoadedBackbone, model: PeftModel, config: DenoiserConfig, digest: str | None
    ) -> None:
        self.backbone = backbone
        self.model = model
        self.config = config
        self.adapter_sha256 = digest  # None until the adapter is saved
        # LoRA lives inside the backbone's own modules, so calling them directly runs the adapter.
        self.causal_lm = model.get_base_model()
        # Every mask is passed explicitly, as booleans, which only this attention takes as they are.
        self.causal_lm.config._attn_implementation = "sdpa"
        self.tokenizer = backbone.tokenizer
        self.mask_token_id = backbone.mask_token_id
        self.eos_token_id = backbone.eos_token_id
        self.prepare: Callable = partial(PromptForward, self)
        self.step: Callable | None = None
        self.version = 0

    @classmethod
    def create(
        cls, backbone: LoadedBackbone, config: DenoiserConfig | None = None, seed: int = 0
    ) -> Denoiser:
        """A new adapter on a backbone; LoRA's B is 0, so at first it changes nothing."""
        config = config or DenoiserConfig()
        layers = list(config.layers)
        lora = LoraConfig(r=config.rank, lora_alpha=config.alpha, target_modules=layers)
        with torch.random.fork_rng(devices=[]), warnings.catch_warnings():
            # peft asks transformers for something by its old name; nothing a reader could act on.
            warnings.simplefilter("ignore", FutureWarning)
            torch.manual_seed(seed)
            model = get_peft_model(backbone.model, lora)
        return cls(backbone, model.eval(), config, digest=None)

    def save(self, folder: str | Path) -> Path:
        """Write the adapter; see `lad.diffusion.adapter.save_adapter`."""
        from lad.diffusion.adapter import save_adapter

        return save_adapter(self, Path(folder))

    @property
    def device(self) -> torch.device:
        """Where the weights are."""
        return self.causal_lm.lm_head.weight.device

    @property
    def vocabulary_size(self) -> int:
        """v, the number of logits a position has."""
        return self.causal_lm.config.vocab_size

    def encode(self, prompt: Prompt) -> Tensor:
        """`(p,)` int64: text or chat messages under the chat template; InvalidInput if empty."""
        return torch.tensor(encode_prompt(self.tokenizer, prompt), device=self.device)

    # -- forward passes ----------------------------------------------------------------------------

    def hidden_states(
        self,
        tokens: Tensor,
        mask: Tensor,
        cache: DynamicCache | None = None,
        start: int = 0,
        padding: Tensor | None = None,
    ) -> Tensor:
        """`(b, t, d)` final hidden states of `(b, t)` tokens that begin at position `start`.

        Args:
            mask: `(b, 1, t, start + t)` bool, True where a query may attend to a key.
            cache: keys and values of the `start` positions before; the new ones are appended.
            padding: `(b,)` int64, left-padding length of each row; None when there is none.
        """
        positions = torch.arange(start, start + tokens.shape[1], device=tokens.device)[None]
        if padding is not None:
            positions = (positions - padding[:, None]).clamp(min=0)
        return self.causal_lm.model(
            input_ids=tokens,
            attention_mask=mask,
            position_ids=positions,
            past_key_values=cache,
            use_cache=cache is not None,
        ).last_hidden_state

    def logits(
        self,
        prompt: Tensor,
        answer: Tensor,
        cache: PromptCache | None = None,
        padding: Tensor | None = None,
        answer_lengths: Tensor | None = None,
    ) -> Tensor:
        """`(b, a, v)` logits of every answer position.

        Args:
            prompt: `(b, p)` int64, p >= 1.
            answer: `(b, a)` int64, the current draft, MASK where unknown.
            cache: from `read_prompt`, left unchanged; the prompt is then not computed again.
            padding: `(b,)` int64, left-padding length of each prompt, see `pad_prompts`; the logits
                are those of the prompt without it.
            answer_lengths: `(b,)` int64, positions of each answer; those behind are invisible, and
                their own logits mean nothing.
        """
        p, a = prompt.shape[1], answer.shape[1]
        start = 0 if cache is None else cache.get_seq_length()
        tokens = torch.cat([prompt, answer], dim=1)[:, start:]
        lengths = torch.full((len(prompt),), p, device=prompt.device)
        # A prompt that holds the MASK token as text is read as text.
        text = torch.zeros_like(prompt, dtype=torch.bool)
        is_masked = torch.cat([text, answer == self.mask_token_id], dim=1)
        mask = attention_mask(
            lengths, p + a, self.config.attention, self.config.target, padding, is_masked
        )
        if answer_lengths is not None:
            position = torch.arange(p + a, device=prompt.device)
            counts = (position < p + answer_lengths[:, None])[:, None, None]  # (b, 1, 1, t), by key
            mask = mask & (counts | torch.eye(p + a, dtype=torch.bool, device=prompt.device))
        states = self.hidden_states(tokens, mask[:, :, start:], cache, start, padding)
        first = p - start - self.config.shift
        return self.causal_lm.lm_head(states[:, first : first + a])

    def read_prompt(self, prompt: Tensor, padding: Tensor | None = None) -> PromptCache | None:
        """Keys and values of the `(b, p)` prompt positions that never attend to the answer.

        None where there are none to reuse: under bidirectional attention every state depends on
        every token of the answer. `padding` is as in `logits`.
        """
        keep = prompt.shape[1] - self.config.shift
        if self.config.attention == "bidirectional" or keep < 1:
            return None
        cache = PromptCache(config=self.causal_lm.config)
        # The upper left part of the whole mask, which sees no answer.
        ends = torch.full((len(prompt),), keep, device=prompt.device)
        causal = attention_mask(ends, keep, "prompt-causal", "same", padding)
        self.hidden_states(prompt[:, :keep], causal, cache, padding=padding)
        cache.complete = True
        return cache

    # -- weights -----------------------------------------------------------------------------------

    @contextlib.contextmanager
    def adapter_off(self) -> Iterator[None]:
        """The bare backbone in this context: its own weights under this denoiser's masks."""
        prepare, self.prepare = self.prepare, partial(PromptForward, self)
        try:
            with self.model.disable_adapter():
                yield
        finally:
            self.prepare = prepare
            self.version += 1

    def merge(self) -> Denoiser:
        """Fold the adapter into the weights: 1.2 times as fast on a CPU; `adapter_off` works."""
        self.model.merge_adapter()
        self.version += 1
        return self

    def parameter_counts(self) -> dict[str, int]:
        """Number of parameters of `backbone` (tied ones once) and `adapter`."""
        adapter = sum(p.numel() for name, p in self.model.named_parameters() if "lora_" in name)
        backbone = sum(p.numel() for p in self.model.parameters()) - adapter
        return {"backbone": backbone, "adapter": adapter}


class PromptForward:
    """Logits of answers to the same `(b, p)` prompts, read once; see `Denoiser.logits`."""

    def __init__(self, denoiser: Denoiser, prompts: Tensor, padding: Tensor | None = None) -> None:
        self.denoiser, self.prompts, self.padding = denoiser, prompts, padding
        self.cache = denoiser.read_prompt(prompts, padding)

    def __call__(self, answer: Tensor, lengths: Tensor | None = None) -> Tensor:
        """`(b, a, v)` logits of `(b, a)` answers; with `lengths` `(b,)` a is the longest of them.

        What stands behind an answer's length is neither computed nor seen.
        """
        answer = answer if lengths is None else answer[:, : int(lengths.max())]
        return self.denoiser.logits(self.prompts, answer, self.cache, self.padding, lengths)

    def select(self, keep: Tensor) -> None:
        """Drop all sequences but those that `keep`, an index on the device, names."""
        self.prompts = self.prompts[keep]
        self.padding = None if self.padding is None else self.padding[keep]
        if self.cache is not None:
            self.cache.batch_select_indices(keep)
