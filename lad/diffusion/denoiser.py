"""The denoiser: a frozen causal LLaMA plus LoRA, run so that the answer sees all of itself.

Two choices turn a left-to-right model into a denoiser, and `denoiser.json` beside the adapter fixes
them, because weights trained under one choice are noise under another.

Attention
    bidirectional   every position attends to every position: the paper's.
    prompt-causal   the prompt attends causally, as the backbone was pretrained, and only the answer
                    attends to everything. The prompt's states then do not depend on the answer, so
                    its keys and values are computed once and reused at every iteration.
    mask-blind      prompt-causal, and nothing visible looks at a MASK: a MASK has nothing to tell,
                    and a pretrained model that never met one is thrown off by sixty. MASK positions
                    themselves look at everything, so masked neighbours can still agree.

Target
    same            the state at position i predicts token i: the paper's.
    next            the state at position i - 1 predicts token i, as the backbone was pretrained
                    (DiffuLLaMA calls it shifted). The last prompt position predicts the first
                    answer token, so under prompt-causal attention it attends to everything too.

Sources: LAD: LoRA-Adapted Diffusion (EMNLP 2025 demo); DiffuLLaMA (Gong et al., 2024) for the
shifted target; LoRA (Hu et al., 2021).

Shapes: b = batch, p = prompt positions, a = answer positions, t = p + a, d = hidden size,
v = vocabulary.
"""

from __future__ import annotations

import contextlib
import warnings
from collections.abc import Iterator, Sequence
from pathlib import Path

import torch
from peft import LoraConfig, PeftModel, get_peft_model
from torch import Tensor
from transformers import DynamicCache

from lad.accel.llama_layers import Graphs, Layers
from lad.diffusion.adapter import (
    ATTENTIONS,
    LINEAR_LAYERS,
    TARGETS,
    DenoiserConfig,
    check_equal,
    read_card,
    read_weights,
    shipped_adapter,
    write_adapter,
)
from lad.models.chat import Prompt, encode_prompt
from lad.models.registry import LoadedBackbone, get_backbone, load_backbone
from lad.utils import AdapterMismatch

__all__ = [
    "ATTENTIONS",
    "LINEAR_LAYERS",
    "TARGETS",
    "Denoiser",
    "DenoiserConfig",
    "PromptCache",
    "attention_mask",
    "load_denoiser",
    "pad_prompts",
]


def attention_mask(
    prompt_lengths: Tensor,
    total: int,
    attention: str,
    target: str = "next",
    padding: Tensor | None = None,
    masked: Tensor | None = None,
    reading_from: Tensor | None = None,
) -> Tensor:
    """Which position may attend to which: `(b, 1, t, t)` bool, rows are queries, True is visible.

    Args:
        prompt_lengths: `(b,)` int64, positions before the answer, padding among them.
        total: t, prompt and answer positions together.
        padding: `(b,)` int64, positions on the left that stand for nothing and that no other sees;
            each sees itself, because a softmax over nothing is NaN.
        masked: `(b, t)` bool, where the input is MASK; only "mask-blind" asks.
        reading_from: `(b,)` int64, the position from which on a row is read from left to right:
            what stands there is seen only by itself and what follows it.
    """
    position = torch.arange(total, device=prompt_lengths.device)
    if attention == "bidirectional":
        visible = position.new_ones((len(prompt_lengths), total, total), dtype=torch.bool)
    else:
        causal = position[None, :] <= position[:, None]  # (t, t)
        first_free = prompt_lengths - TARGETS.index(target)  # what predicts the answer is free
        free = position[None, :] >= first_free[:, None]  # (b, t), queries that see everything
        visible = causal[None] | free[:, :, None]
    if attention == "mask-blind" and masked is not None:
        visible = visible & (masked[:, :, None] | ~masked[:, None, :])
    if reading_from is not None:
        before = position[None, :] < reading_from[:, None]  # (b, t), keys that all may see
        visible = visible & (before[:, None, :] | (position[None, :] <= position[:, None]))
    if padding is not None:
        real = position[None, :] >= padding[:, None]  # (b, t)
        visible = (visible & real[:, None, :]) | (position[None, :] == position[:, None])
    return visible[:, None]


def pad_prompts(prompts: Sequence[Tensor], filler: int = 0) -> tuple[Tensor, Tensor | None]:
    """Prompts of different lengths as one batch, padded on the left so that their ends meet.

    Args:
        prompts: `(p_i,)` int64 each.
        filler: token id that stands where nothing is; no position sees it.

    Returns:
        `(b, p)` int64, p being the longest, and `(b,)` int64, the padding of each; None when all
        have the same length.
    """
    longest = max(len(ids) for ids in prompts)
    padding = [longest - len(ids) for ids in prompts]
    if not any(padding):
        return torch.stack(list(prompts)), None
    padded = [
        torch.cat([ids.new_full((n,), filler), ids])
        for ids, n in zip(prompts, padding, strict=True)
    ]
    return torch.stack(padded), torch.tensor(padding, device=prompts[0].device)


class PromptCache(DynamicCache):
    """Keys and values of prompts. Once `whole`, an answer's are joined to them but not kept."""

    whole = False

    def update(self, key_states: Tensor, value_states: Tensor, layer_idx: int, *args, **kwargs):
        """Keys and values of prompt and answer together, for one pass through one layer."""
        if not self.whole:
            return super().update(key_states, value_states, layer_idx, *args, **kwargs)
        own = self.layers[layer_idx]
        return torch.cat([own.keys, key_states], -2), torch.cat([own.values, value_states], -2)


class Denoiser:
    """Backbone and adapter, from token ids to logits for the answer.

    Make one with `load_denoiser` (a trained adapter) or `Denoiser.create` (a new one).
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
        # Set by `capture`: `lad.accel.cuda_graphs` then runs captured passes and keeps them in it.
        self.graphs: Graphs | None = None

    # -- making and keeping ----------------------------------------------------------------------

    @classmethod
    def create(
        cls, backbone: LoadedBackbone, config: DenoiserConfig | None = None, seed: int = 0
    ) -> Denoiser:
        """A fresh adapter on a backbone; B = 0, so at first it changes nothing.

        The global random state is left as it was.
        """
        config = config or DenoiserConfig()
        lora = LoraConfig(
            r=config.rank,
            lora_alpha=config.alpha,
            target_modules=list(config.layers),
            lora_dropout=0.0,
            bias="none",
        )
        with torch.random.fork_rng(devices=[]), warnings.catch_warnings():
            # peft asks transformers for something by its old name; nothing a reader could act on.
            warnings.simplefilter("ignore", FutureWarning)
            torch.manual_seed(seed)
            model = get_peft_model(backbone.model, lora)
        return cls(backbone, model.eval(), config, digest=None)

    def save(self, folder: str | Path) -> Path:
        """Write adapter and `denoiser.json`; the folder appears whole or not at all.

        Raises:
            CacheError: the disk is full or cannot be written.
        """
        card = {
            "backbone": self.backbone.spec.name,
            "backbone_digest": self.backbone.digest,
            "mask_token_id": self.mask_token_id,
            "eos_token_id": self.eos_token_id,
        }
        self.adapter_sha256 = write_adapter(Path(folder), self.model, self.config, card)
        return Path(folder)

    # -- reading -----------------------------------------------------------------------------------

    @property
    def device(self) -> torch.device:
        """Where the weights are."""
        return self.causal_lm.lm_head.weight.device

    @property
    def vocabulary_size(self) -> int:
        """v, the number of logits a position gets."""
        return self.causal_lm.config.vocab_size

    def encode(self, prompt: Prompt) -> Tensor:
        """`(p,)` int64: a prompt, or a list of chat messages, under the backbone's chat template.

        Raises:
            InvalidInput: an empty prompt.
        """
        return torch.tensor(encode_prompt(self.tokenizer, prompt), device=self.device)

    def hidden_states(
        self,
        tokens: Tensor,
        mask: Tensor,
        cache: DynamicCache | None = None,
        start: int = 0,
        padding: Tensor | None = None,
        layers: Layers | None = None,
    ) -> Tensor:
        """`(b, t, d)` final hidden states of `(b, t)` tokens that begin at position `start`.

        Args:
            mask: `(b, 1, t, start + t)` bool, True where a query (row) may see a key (column).
            cache: keys and values of the `start` positions before; the new ones are appended.
            padding: `(b,)` int64, positions on the left that do not count; None when there are
                none.
            layers: run these, which are faster; they append nothing to the cache.
        """
        positions = torch.arange(start, start + tokens.shape[1], device=tokens.device)[None]
        if padding is not None:
            positions = (positions - padding[:, None]).clamp(min=0)
        if layers is not None:
            return layers(tokens, layers.given(positions, mask), cache)
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
        width: Tensor | None = None,
        layers: Layers | None = None,
    ) -> Tensor:
        """`(b, a, v)` logits of every answer position.

        Args:
            prompt: `(b, p)` int64, p >= 1.
            answer: `(b, a)` int64, the current draft, MASK where unknown.
            cache: from `read_prompt`, and not changed: the prompt is then not computed again.
            padding: `(b,)` int64, how many tokens on the left of each prompt are none, see
                `pad_prompts`; the logits are those of the prompt without them.
            width: `(b,)` int64, positions of each answer that count; what lies behind is not seen,
                and its own logits mean nothing.
            layers: as in `hidden_states`.
        """
        p, a = prompt.shape[1], answer.shape[1]
        start = 0 if cache is None else cache.get_seq_length()
        tokens = torch.cat([prompt, answer], dim=1)[:, start:]
        lengths = torch.full((len(prompt),), p, device=prompt.device)
        # A prompt that holds the MASK token as text is read as text.
        text = torch.zeros_like(prompt, dtype=torch.bool)
        masked = torch.cat([text, answer == self.mask_token_id], dim=1)
        mask = attention_mask(
            lengths, p + a, self.config.attention, self.config.target, padding, masked
        )
        if width is not None:
            position = torch.arange(p + a, device=prompt.device)
            counts = (position < p + width[:, None])[:, None, None]  # (b, 1, 1, t), by key
            mask = mask & (counts | torch.eye(p + a, dtype=torch.bool, device=prompt.device))
        states = self.hidden_states(tokens, mask[:, :, start:], cache, start, padding, layers)
        first = p - start - self.config.shift
        return self.causal_lm.lm_head(states[:, first : first + a])

    def read_prompt(self, prompt: Tensor, padding: Tensor | None = None) -> PromptCache | None:
        """Keys and values of the `(b, p)` prompt positions that never see the answer.

        None where there are none to reuse: under bidirectional attention every state moves with
        every token of the answer. `padding` is as in `logits`.
        """
        keep = prompt.shape[1] - self.config.shift
        if self.config.attention == "bidirectional" or keep < 1:
            return None
        cache = PromptCache(config=self.causal_lm.config)
        # Its own mask is the left upper part of the whole one, in which it sees no answer.
        ends = torch.full((len(prompt),), keep, device=prompt.device)
        causal = attention_mask(ends, keep, "prompt-causal", "same", padding)
        self.hidden_states(prompt[:, :keep], causal, cache, padding=padding)
        cache.whole = True
        return cache

    @contextlib.contextmanager
    def adapter_off(self) -> Iterator[None]:
        """The bare backbone for a while: its own weights, but this denoiser's masks."""
        captured, self.graphs = self.graphs is not None, None
        try:
            with self.model.disable_adapter():
                yield
        finally:
            # What was captured reads weights into which the adapter was folded; it is not now.
            self.graphs = Graphs() if captured else None

    def merge(self) -> Denoiser:
        """Fold the adapter into the weights: the same function, 1.2 times as fast (2 CPU cores).

        `adapter_off` still works: peft takes the adapter out again for as long as it lasts.
        """
        self.model.merge_adapter()
        return self if self.graphs is None else self.capture()

    def capture(self) -> Denoiser:
        """Launch each forward pass as one CUDA graph from now on, see `lad.accel.cuda_graphs`.

        Only useful on a GPU; elsewhere nothing is captured, though the same tensors are computed.
        Fold the adapter in first: `lad.accel.llama_layers` takes no other. Anything captured so far is dropped.
        """
        self.graphs = Graphs()
        return self

    def parameter_counts(self) -> dict[str, int]:
        """Number of parameters of `backbone` (tied ones once) and `adapter`."""
        adapter = sum(p.numel() for name, p in self.model.named_parameters() if "lora_" in name)
        return {
            "backbone": sum(p.numel() for p in self.model.parameters()) - adapter,
            "adapter": adapter,
        }


def load_denoiser(
    name: str = "smollm2-135m",
    adapter: str | Path | None = None,
    device: str | torch.device = "cpu",
    dtype: torch.dtype | None = None,
    merge: bool = True,
    graphs: bool = False,
) -> Denoiser:
    """Load a backbone with a trained adapter.

    Args:
        name: a backbone, as `lad.models.registry.get_backbone` reads it.
        adapter: folder with `denoiser.json`; the shipped one by default.
        dtype: float32 on a CPU and bfloat16 elsewhere by default.
        merge: fold the adapter into the weights, see `Denoiser.merge`; never into quantised ones,
            whose rounding would swallow it.
        graphs: on a GPU, launch each forward pass as one CUDA graph, see `lad.accel.cuda_graphs`.

    Raises:
        InvalidInput: unknown backbone, or a path that is no adapter.
        AssetUnavailable: weights that cannot be had, or no adapter shipped.
        DamagedFile: a truncated or altered adapter, or one with NaN weights.
        AdapterMismatch: an adapter for another backbone.
    """
    spec = get_backbone(name)  # an unknown model is the first thing to say
    folder = Path(adapter) if adapter is not None else shipped_adapter(spec.name)
    config, card = read_card(folder)
    weights = read_weights(folder, card)
    if card["backbone"] != spec.name:
        raise AdapterMismatch(
            f"the adapter in {folder} was trained for {card['backbone']!r}, not for {spec.name!r}: "
            f"expected a matching pair; pass --model {card['backbone']}"
        )
    backbone = load_backbone(name, device=device, dtype=dtype)
    for key in ("mask_token_id", "eos_token_id"):
        check_equal(folder, key, card[key], getattr(backbone, key))
    check_equal(folder, "backbone_digest", card["backbone_digest"], backbone.digest)

    denoiser = Denoiser.create(backbone, config)
    own = {name: tensor for name, tensor in denoiser.model.state_dict().items() if "lora_" in name}
    # peft writes "…lora_A.weight" and holds "…lora_A.default.weight".
    weights = {key.replace(".weight", ".default.weight"): value for key, value in weights.items()}
    if {k: v.shape for k, v in own.items()} != {k: v.shape for k, v in weights.items()}:
        raise AdapterMismatch(
            f"the weights in {folder} do not fit its denoiser.json (rank {config.rank} on "
            f"{', '.join(config.layers)}): expected both from one training run"
        )
    with torch.no_grad():
        for key, value in weights.items():
            own[key].copy_(value)
    denoiser.adapter_sha256 = card["adapter_sha256"]
    if merge and not spec.bits:
        denoiser.merge()
    return denoiser.capture() if graphs and denoiser.device.type == "cuda" else denoiser
