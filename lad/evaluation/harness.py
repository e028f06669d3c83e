"""LAD as a model of lm-evaluation-harness: a denoiser, or its bare backbone, on its tasks.

    python -m lad.evaluation.harness --model lad --model_args name=smollm2-135m --tasks arc_easy

is the harness's own command line, with `lad` among its models; versions of the harness that read
entry points of the group `lm_eval.models` take `lm_eval --model lad ...` as well.

A context becomes the user's turn under the backbone's chat template, and a continuation the
assistant's, without its leading space; with `--apply_chat_template` the harness builds the turns,
and with `chat=False` both are plain text. All continuations of a context are scored with the same
masks. A denoiser has no order of tokens and therefore no rolling likelihood.

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
from lad.evaluation.generation import greedy_answers
from lad.evaluation.likelihood import EncodedQuestion, loglikelihood
from lad.models.chat import encode_prompt
from lad.models.registry import LoadedBackbone, load_backbone
from lad.utils import AssetUnavailable, InvalidInput

try:
    from lm_eval.api.instance import Instance
    from lm_eval.api.model import TemplateLM
except ImportError as error:
    raise AssetUnavailable(
        "lm-evaluation-harness is not installed: run `pip install 'lad[eval]'`"
    ) from error

BATCH = {"cpu": 8, "cuda": 64}
DTYPES = {None: None, "auto": None, "float32": torch.float32, "bfloat16": torch.bfloat16}


class LADLM(TemplateLM):
    """A denoiser, or a backbone, with the methods that the harness calls.

    Attributes:
        denoiser: None for a bare backbone.
        backbone: the model itself, or the one under the adapter.
        config: how answers are refined.
    """

    def __init__(
        self,
        name: str | Denoiser | LoadedBackbone = "smollm2-135m",
        adapter: str | None = None,
        backbone: bool = False,
        preset_name: str | RefineConfig = "default",
        iterations: int | None = None,
        samples: int = 16,
        seed: int = 0,
        chat: bool = True,
        device: str | None = None,
        dtype: str | None = None,
        batch_size: int | str | None = None,
        max_batch_size: int | None = None,
    ) -> None:
        """Each argument can stand in `--model_args`.

        Args:
            name, adapter: as `lad.load_denoiser` takes them; in Python also a loaded model.
            backbone: the backbone from left to right, without an adapter.
            preset_name, iterations: how answers are refined, as `lad refine` takes them.
            samples, seed: masks a continuation, and their seed.
            chat: wrap contexts in the chat template.
            device, dtype: "cpu" or "cuda" (a GPU if there is one), "float32" or "bfloat16".
            batch_size: answers refined at once; "auto" is 8 on a CPU and 64 elsewhere.
            max_batch_size: passed by the harness; not used.

        Raises:
            InvalidInput, AssetUnavailable, DamagedFile, AdapterMismatch: as `lad.load_denoiser`.
        """
        super().__init__()
        if dtype not in DTYPES:
            raise InvalidInput(f"dtype = {dtype!r}: expected float32 or bfloat16")
        # The harness passes "cuda:0" by default, also where there is no GPU.
        gpu = torch.cuda.is_available()
        if device is None or (device.startswith("cuda") and not gpu):
            device = "cuda" if gpu else "cpu"
        model = name
        if isinstance(name, str) and backbone:
            model = load_backbone(name, device, DTYPES[dtype])
        elif isinstance(name, str):
            model = load_denoiser(name, adapter, device, DTYPES[dtype])
        self.denoiser = model if isinstance(model, Denoiser) else None
        self.backbone = model.backbone if isinstance(model, Denoiser) else model
        self.tokenizer = self.backbone.tokenizer
        config = preset(preset_name) if isinstance(preset_name, str) else preset_name
        self.config = config if iterations is None else replace(config, iterations=iterations)
        self.samples, self.seed, self.chat = samples, seed, chat
        self._device = self.backbone.model.lm_head.weight.device
        auto = BATCH.get(self._device.type, 8)
        self.batch_size = auto if batch_size in (None, "auto") else int(batch_size)
        if self.batch_size < 1:
            raise InvalidInput(f"batch_size = {batch_size}: expected at least 1, or auto")
        self._templated: set[str] = set()  # contexts that have the chat template already
        self._last: tuple[str | None, list[int]] = (None, [])  # a context and its token ids

    # -- requests ----------------------------------------------------------------------------------

    def loglikelihood_rolling(self, requests: list[Instance], disable_tqdm: bool = False):
        """Not offered: it is defined from left to right.

        Raises:
            NotImplementedError: always.
        """
        raise NotImplementedError(
            "lad has no rolling log-likelihood: a denoiser has no order of tokens; choose tasks of "
            "type multiple_choice, loglikelihood or generate_until"
        )

    def generate_until(self, requests: list[Instance], disable_tqdm: bool = False) -> list[str]:
        """An answer to each context, cut off before the first of its stop texts.

        Of the harness's settings `until`, `max_gen_toks`, `do_sample`, `temperature` and `top_p`
        are used; the rest is the preset's.
        """
        results: list[str | None] = [None] * len(requests)
        groups: dict[RefineConfig, list[int]] = {}
        for index, request in enumerate(requests):
            groups.setdefault(self._config(request.args[1]), []).append(index)
        for config, indices in groups.items():
            prompts = [self._encode_context(requests[index].args[0]) for index in indices]
            for index, text in zip(indices, self._generate(prompts, config), strict=True):
                context, settings = requests[index].args
                results[index] = cut(text, settings.get("until"))
                self.cache_hook.add_partial("generate_until", (context, settings), results[index])
        return results

    def _loglikelihood_tokens(
        self, requests: list[tuple[tuple[str, str], list[int], list[int]]], **kwargs
    ) -> list[tuple[float, bool]]:
        """Log-likelihood of each continuation in nats, and whether it is the greedy one.

        A denoiser's is estimated over masks; greedy then means that at every masked position its
        token was the likeliest, under every mask that was drawn.
        """
        suffix = [] if self.denoiser is None else [self.eot_token_id]
        # One question a context: its continuations share their masks, and it is read once.
        questions: dict[str, EncodedQuestion] = {}
        for (context, _), prompt, ids in requests:
            question = questions.setdefault(context, EncodedQuestion(context, prompt, [], suffix))
            if ids and ids not in question.options:
                question.options.append(ids)
        scored = [question for question in questions.values() if question.options]
        found: dict[tuple, tuple[float, bool]] = {}
        model = self.denoiser or self.backbone.model
        for index, scores in loglikelihood(model, scored, self.samples, self.seed):
            for ids, score in zip(scored[index].options, scores, strict=True):
                found[scored[index].key, *ids] = (score.log_likelihood, score.greedy)
        results = []
        for pair, _, ids in requests:
            results.append(found.get((pair[0], *ids), (0.0, True)))  # an empty text is certain
            self.cache_hook.add_partial("loglikelihood", pair, results[-1])
        return results

    # -- text to token ids -------------------------------------------------------------------------

    @property
    def eot_token_id(self) -> int:
        """The backbone's EOS."""
        return self.backbone.eos_token_id

    @property
    def tokenizer_name(self) -> str:
        """What the harness keeps cached requests apart by."""
        return f"lad-{self.backbone.spec.name}-{self.backbone.digest[:12]}"

    def tok_encode(self, string: str, add_special_tokens: bool | None = None, **kwargs):
        """Token ids of plain text."""
        return self.tokenizer(string, add_special_tokens=False)["input_ids"]

    def apply_chat_template(
        self, chat_history: list[dict[str, str]], add_generation_prompt: bool = True
    ) -> str:
        """A conversation under the backbone's chat template."""
        text = self.tokenizer.apply_chat_template(
            chat_history,
            tokenize=False,
            add_generation_prompt=add_generation_prompt,
            continue_final_message=not add_generation_prompt,
        )
        self._templated.add(text)
        self._last = (None, [])
        return text

    def _encode_context(self, text: str) -> list[int]:
        """Token ids of a context, at least one."""
        if self.chat and text.strip() and text not in self._templated:
            return encode_prompt(self.tokenizer, text)
        return self.tok_encode(text) or [self.eot_token_id]

    def _encode_pair(self, context: str, continuation: str) -> tuple[list[int], list[int]]:
        if not self.chat:
            return super()._encode_pair(context, continuation)
        if self._last[0] != context:  # continuations of a context follow each other: encode it once
            self._last = (context, self._encode_context(context))
        return self._last[1], self.tok_encode(continuation.lstrip())

    # -- generation --------------------------------------------------------------------------------

    def _config(self, settings: dict) -> RefineConfig:
        """The preset with the settings of a task."""
        length = int(settings.get("max_gen_toks", self.config.answer_length))
        config = replace(self.config, answer_length=min(length, RANGES["answer_length"][1]))
        temperature = float(settings.get("temperature", 1.0))
        if settings.get("do_sample") and temperature > 0:
            top_p = float(settings.get("top_p", 1.0))
            config = replace(config, temperature=temperature, top_p=top_p)
        return config

    def _generate(self, prompts: list[list[int]], config: RefineConfig) -> list[str]:
        causal_lm, eos = self.backbone.model, self.eot_token_id
        limit = min(RANGES["context"][1], causal_lm.config.max_position_embeddings)
        longest = max(map(len, prompts))
        if longest >= limit:
            raise InvalidInput(
                f"a context of {longest} tokens: expected fewer than {limit}; use fewer examples "
                "(--num_fewshot)"
            )
        length = min(config.answer_length, limit - longest)
        if self.denoiser is None:
            answers = greedy_answers(causal_lm, prompts, length, eos, self.batch_size)
            return self.tokenizer.batch_decode(answers.tokens, skip_special_tokens=True)
        config = replace(config, answer_length=length, context=limit)
        tensors = [torch.tensor(prompt, device=self._device) for prompt in prompts]
        traces = refine_batch(self.denoiser, tensors, config, batch_size=self.batch_size)
        return [trace.answer for trace in traces]


def cut(text: str, until: str | Sequence[str] | None) -> str:
    """The text before the first of the stop texts."""
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
