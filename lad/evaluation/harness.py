"""LAD inside lm-evaluation-harness: its tasks, asked of a denoiser or of its bare backbone.

    python -m lad.evaluation.harness --model lad --model_args name=smollm2-135m --tasks arc_easy

is the harness's own command line, with `lad` among its models; from a version of the harness that
knows entry points of the group `lm_eval.models` on, `lm_eval --model lad ...` does the same.

A context becomes the user's turn under the backbone's chat template, and a continuation the
assistant's, without its leading space; with `--apply_chat_template` the harness has built the turns
itself, and with `chat=False` both are taken as plain text. All continuations of a context are
scored with the same masks. A denoiser has no order of tokens and therefore no rolling likelihood.

Needs the extra `eval`. Reference: https://github.com/EleutherAI/lm-evaluation-harness
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from dataclasses import replace

import torch

from lad.diffusion.adapter import load_denoiser
from lad.diffusion.config import RANGES, RefineConfig, preset
from lad.diffusion.denoiser import Denoiser
from lad.diffusion.sampler import refine_batch
from lad.evaluation.answers import greedy_answers
from lad.evaluation.likelihood import Ask, Score, exact_scores, masked_scores
from lad.models.chat import encode_prompt
from lad.models.registry import LoadedBackbone, load_backbone
from lad.utils import AssetUnavailable, InvalidInput

try:
    from lm_eval.api.instance import Instance
    from lm_eval.api.model import LM
except ImportError as error:
    raise AssetUnavailable(
        "lm-evaluation-harness is not installed: run `pip install 'lad[eval]'`"
    ) from error

__all__ = ["LADLM", "main", "register"]

BATCH = {"cpu": 8, "cuda": 64}


class LADLM(LM):
    """A denoiser, or its backbone, as the harness asks for it.

    Attributes:
        denoiser: None where the bare backbone is asked.
        backbone: the model under it.
        config: how answers are refined.
    """

    def __init__(
        self,
        name: str = "smollm2-135m",
        adapter: str | None = None,
        backbone: bool = False,
        preset_name: str = "default",
        iterations: int | None = None,
        samples: int = 16,
        seed: int = 0,
        chat: bool = True,
        device: str | None = None,
        dtype: str | None = None,
        batch_size: int | str | None = None,
        max_batch_size: int | None = None,
    ) -> None:
        """All of them may stand in `--model_args`.

        Args:
            name, adapter: as `lad.load_denoiser` takes them.
            backbone: ask the backbone from left to right, without an adapter.
            preset_name, iterations: how answers are refined, as `lad refine` takes them.
            samples: masks a continuation.
            seed: of the masks.
            chat: put contexts under the chat template.
            device, dtype: where it runs ("cpu", "cuda"; a GPU if there is one), and in which type
                ("float32", "bfloat16").
            batch_size: answers refined at once; "auto" is 8 on a CPU and 64 elsewhere.
            max_batch_size: what the harness passes along; not used.

        Raises:
            InvalidInput, AssetUnavailable, DamagedFile, AdapterMismatch: as `lad.load_denoiser`.
        """
        # The harness says "cuda:0" unless it is told otherwise; its own models then make do.
        gpu = torch.cuda.is_available()
        if device is None or (device.startswith("cuda") and not gpu):
            device = "cuda" if gpu else "cpu"
        kinds = {None: None, "auto": None, "float32": torch.float32, "bfloat16": torch.bfloat16}
        if dtype not in kinds:
            raise InvalidInput(f"dtype = {dtype!r}: expected float32 or bfloat16")
        config = preset(preset_name)
        if iterations is not None:
            config = replace(config, iterations=iterations)
        made = (
            load_backbone(name, device, kinds[dtype])
            if backbone
            else load_denoiser(name, adapter, device, kinds[dtype])
        )
        self._begin(made, config, samples, seed, chat, batch_size)

    @classmethod
    def of(
        cls,
        made: Denoiser | LoadedBackbone,
        config: RefineConfig | None = None,
        samples: int = 16,
        seed: int = 0,
        chat: bool = True,
        batch_size: int | None = None,
    ) -> LADLM:
        """The same around a model that is loaded already."""
        new = cls.__new__(cls)
        new._begin(made, config or preset("default"), samples, seed, chat, batch_size)
        return new

    def _begin(self, made, config, samples, seed, chat, batch_size) -> None:
        super().__init__()
        self.denoiser = made if isinstance(made, Denoiser) else None
        self.backbone = made.backbone if isinstance(made, Denoiser) else made
        self.config, self.samples, self.seed, self.chat = config, samples, seed, chat
        self._device = self.backbone.model.lm_head.weight.device
        usual = BATCH.get(self._device.type, 8)
        self.batch_size = usual if batch_size in (None, "auto") else int(batch_size)
        if self.batch_size < 1:
            raise InvalidInput(f"batch_size = {batch_size}: expected at least 1, or auto")
        self._turns: set[str] = set()  # contexts that stand under the chat template already

    # -- what the harness asks -------------------------------------------------------------------

    def loglikelihood(self, requests: list[Instance]) -> list[tuple[float, bool]]:
        """Log-likelihood of each continuation in nats, and whether it would have been written.

        A denoiser's is estimated over masks; "would have been written" then means that at every
        masked position its token was the likeliest, under every mask that was drawn.
        """
        texts = [request.args for request in requests]
        # One question a context: its continuations share their masks, and it is read once.
        of_context: dict[str, dict[str, list[int]]] = {}
        for context, continuation in texts:
            own = of_context.setdefault(context, {})
            if continuation not in own:
                own[continuation] = self._continuation(context, continuation)
        asks, scored = [], []
        behind = [] if self.denoiser is None else [self.backbone.eos_token_id]
        for context, continuations in of_context.items():
            options = {text: ids for text, ids in continuations.items() if ids}
            if options:
                asks.append(Ask(context, self._context(context), [*options.values()], behind))
                scored.append((context, list(options)))
        found: dict[tuple[str, str], tuple[float, bool]] = {}
        for index, scores in self._scores(asks):
            context, options = scored[index]
            for text, score in zip(options, scores, strict=True):
                found[context, text] = (score.log_likelihood, score.greedy)
        results = [found.get(pair, (0.0, True)) for pair in texts]  # nothing costs nothing
        for pair, result in zip(texts, results, strict=True):
            self.cache_hook.add_partial("loglikelihood", pair, result)
        return results

    def loglikelihood_rolling(self, requests: list[Instance]) -> list[float]:
        """Not offered: it is defined from left to right.

        Raises:
            NotImplementedError: always.
        """
        raise NotImplementedError(
            "lad has no rolling log-likelihood: a denoiser has no order of tokens; choose tasks of "
            "type multiple_choice, loglikelihood or generate_until"
        )

    def generate_until(self, requests: list[Instance]) -> list[str]:
        """An answer to each context, cut off before the first of its stop texts.

        Of the harness's settings `until`, `max_gen_toks`, `do_sample`, `temperature` and `top_p`
        are heeded; the rest are the preset's.
        """
        results: list[str | None] = [None] * len(requests)
        groups: dict[RefineConfig, list[int]] = {}
        for index, request in enumerate(requests):
            groups.setdefault(self._config(request.args[1]), []).append(index)
        for config, indices in groups.items():
            prompts = [self._context(requests[index].args[0]) for index in indices]
            for index, text in zip(indices, self._answers(prompts, config), strict=True):
                context, settings = requests[index].args
                results[index] = cut(text, settings.get("until"))
                self.cache_hook.add_partial("generate_until", (context, settings), results[index])
        return results

    # -- chat ------------------------------------------------------------------------------------

    @property
    def tokenizer_name(self) -> str:
        """What the harness keeps cached requests apart by."""
        return f"lad-{self.backbone.spec.name}-{self.backbone.digest[:12]}"

    def chat_template(self, chat_template: bool | str = False) -> str:
        """The backbone's own."""
        return self.backbone.tokenizer.chat_template or ""

    def apply_chat_template(
        self, chat_history: list[dict[str, str]], add_generation_prompt: bool = True
    ) -> str:
        """A conversation under the backbone's chat template."""
        text = self.backbone.tokenizer.apply_chat_template(
            chat_history,
            tokenize=False,
            add_generation_prompt=add_generation_prompt,
            continue_final_message=not add_generation_prompt,
        )
        self._turns.add(text)
        return text

    # -- how it is answered ----------------------------------------------------------------------

    def _context(self, text: str) -> list[int]:
        """Token ids of a context, at least one."""
        own = self.backbone
        if self.chat and text.strip() and text not in self._turns:
            return encode_prompt(own.tokenizer, text)
        ids = own.tokenizer(text, add_special_tokens=False)["input_ids"]
        return ids or [own.eos_token_id]

    def _continuation(self, context: str, text: str) -> list[int]:
        """Token ids of what follows a context."""
        tokenizer = self.backbone.tokenizer
        if self.chat or not context:
            text = text.lstrip() if self.chat else text
            return tokenizer(text, add_special_tokens=False)["input_ids"]
        # Plain text: a token may reach over the seam, so both are read together.
        whole = tokenizer(context + text, add_special_tokens=False)["input_ids"]
        return whole[len(tokenizer(context, add_special_tokens=False)["input_ids"]) :]

    def _scores(self, asks: Sequence[Ask]) -> Sequence[tuple[int, list[Score]]]:
        if self.denoiser is None:
            return list(exact_scores(self.backbone.model, asks))
        return list(masked_scores(self.denoiser, asks, self.samples, self.seed))

    def _config(self, settings: dict) -> RefineConfig:
        """The preset, with what a task asks for put over it."""
        config = self.config
        length = settings.get("max_gen_toks", config.answer_length)
        config = replace(config, answer_length=min(int(length), RANGES["answer_length"][1]))
        if settings.get("do_sample") and settings.get("temperature", 1.0) > 0:
            config = replace(
                config,
                temperature=float(settings.get("temperature", 1.0)),
                top_p=float(settings.get("top_p", 1.0)),
            )
        return config

    def _answers(self, prompts: list[list[int]], config: RefineConfig) -> list[str]:
        longest = min(RANGES["context"][1], self.backbone.model.config.max_position_embeddings)
        room = longest - max(map(len, prompts))
        if room < 1:
            raise InvalidInput(
                f"a context of {longest - room} tokens: expected fewer than {longest}; use fewer "
                "examples (--num_fewshot)"
            )
        length = min(config.answer_length, room)
        if self.denoiser is None:
            found = greedy_answers(
                self.backbone.model, prompts, length, self.backbone.eos_token_id, self.batch_size
            )
            return self.backbone.tokenizer.batch_decode(found.tokens, skip_special_tokens=True)
        traces = refine_batch(
            self.denoiser,
            [torch.tensor(prompt, device=self.device) for prompt in prompts],
            replace(config, answer_length=length, context=longest),
            batch_size=self.batch_size,
        )
        return [trace.answer for trace in traces]


def cut(text: str, until: str | Sequence[str] | None) -> str:
    """The text before the first of the stop texts, which is what the harness expects."""
    stops = [until] if isinstance(until, str) else until or []
    return min((text.partition(stop)[0] for stop in stops if stop), key=len, default=text)


def register() -> None:
    """Make `lad` one of the harness's models, unless it is already."""
    import lm_eval.models  # noqa: F401  the harness enters its own only while there are none
    from lm_eval.api.registry import model_registry

    if "lad" not in model_registry:
        model_registry.register("lad", target="lad.evaluation.harness:LADLM")


def main() -> None:
    """The harness's command line, with `lad` among its models."""
    from lm_eval.__main__ import cli_evaluate

    register()
    sys.argv[0] = "lm_eval"
    cli_evaluate()


if __name__ == "__main__":
    main()
