"""A denoiser as a model of lm-evaluation-harness (https://github.com/EleutherAI/lm-evaluation-harness).

    python -m lad.evaluation.harness --model lad --model_args name=smollm2-135m --tasks arc_easy

is the harness's own command line, with `lad` among its models; the bare backbone is its model `hf`.
A context becomes the user's turn under the backbone's chat template, and a continuation the
assistant's, without its leading space; with `--apply_chat_template` the harness builds the turns,
and with `chat=False` both are plain text. Needs the extra `eval`.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from dataclasses import replace

import torch

from lad.diffusion.config import RANGES, RefineConfig, preset
from lad.diffusion.denoiser import Denoiser
from lad.diffusion.sampler import refine_batch
from lad.evaluation.benchmark import ScoredModel
from lad.evaluation.generation import default_batch_size
from lad.evaluation.likelihood import EncodedQuestion, loglikelihood
from lad.models.chat import encode_prompt, encode_text
from lad.utils import AssetUnavailable, InvalidInput, check_least

try:
    from lm_eval.api.instance import Instance
    from lm_eval.api.model import TemplateLM
except ImportError as error:
    raise AssetUnavailable(
        "lm-evaluation-harness is not installed: run `pip install 'lad[eval]'`"
    ) from error


class LADLM(TemplateLM):
    """A denoiser with the methods that the harness calls."""

    def __init__(
        self,
        name: str | Denoiser = "smollm2-135m",
        adapter: str | None = None,
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
        """Each argument can stand in `--model_args`; errors as `lad.load_denoiser`.

        Args:
            name, adapter: as `lad.load_denoiser` takes them, the adapter by default the one for
                multiple-choice questions, if shipped; in Python also a loaded denoiser.
            preset_name, iterations: how answers are refined, as `lad refine` takes them.
            samples, seed: masks a continuation, and their seed.
            chat: wrap contexts in the chat template.
            device, dtype: "cpu" or "cuda" (a GPU if there is one), "float32" or "bfloat16".
            batch_size: answers refined at once; "auto" is 8 on a CPU, 64 elsewhere, without a most.
        """
        super().__init__()
        # The harness passes "cuda:0" by default, also where there is no GPU.
        gpu = torch.cuda.is_available()
        if device is None or (device.startswith("cuda") and not gpu):
            device = "cuda" if gpu else "cpu"
        if isinstance(name, str):
            name = ScoredModel.load(name, adapter, device, dtype, backbone=False).model
        self.denoiser, self.tokenizer = name, name.tokenizer
        config = preset(preset_name) if isinstance(preset_name, str) else preset_name
        self.config = config if iterations is None else replace(config, iterations=iterations)
        self.samples, self.seed, self.chat = samples, seed, chat
        self._device = name.device
        auto = batch_size in (None, "auto")
        self.batch_size = default_batch_size(name) if auto else int(batch_size)
        check_least(1, batch_size=self.batch_size)
        self._templated: dict[str, tuple] = {}  # context -> its messages and how they end

    def loglikelihood_rolling(self, requests: list[Instance], disable_tqdm: bool = False):
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
        """Log-likelihood of each continuation in nats, and whether it is greedy under all masks."""
        # One question a context: its continuations share their masks, and it is read once.
        questions: dict[str, EncodedQuestion] = {}
        for (context, _), prompt, ids in requests:
            new = EncodedQuestion(context, prompt, [], [self.eot_token_id])
            question = questions.setdefault(context, new)
            if ids and ids not in question.options:
                question.options.append(ids)
        scored = [question for question in questions.values() if question.options]
        found: dict[tuple, tuple[float, bool]] = {}
        for index, scores in loglikelihood(self.denoiser, scored, self.samples, self.seed):
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
        return self.denoiser.eos_token_id

    @property
    def tokenizer_name(self) -> str:
        """What the harness keeps cached requests apart by."""
        backbone = self.denoiser.backbone
        return f"lad-{backbone.spec.name}-{backbone.digest[:12]}"

    def tok_encode(self, string: str, add_special_tokens: bool | None = None, **kwargs):
        """Token ids of plain text."""
        return encode_text(self.tokenizer, string)

    def apply_chat_template(
        self, chat_history: list[dict[str, str]], add_generation_prompt: bool = True
    ) -> str:
        """A conversation under the backbone's chat template."""
        turn = {"add_generation_prompt": add_generation_prompt}
        turn["continue_final_message"] = not add_generation_prompt
        text = self.tokenizer.apply_chat_template(chat_history, tokenize=False, **turn)
        self._templated[text] = chat_history, turn
        return text

    def _encode_context(self, text: str) -> list[int]:
        if text in self._templated:
            messages, turn = self._templated[text]
            return encode_prompt(self.tokenizer, messages, **turn)
        if self.chat and text.strip():
            return encode_prompt(self.tokenizer, text)
        return self.tok_encode(text) or [self.eot_token_id]

    def _encode_pair(self, context: str, continuation: str) -> tuple[list[int], list[int]]:
        if not self.chat and context not in self._templated:
            return super()._encode_pair(context, continuation)
        return self._encode_context(context), self.tok_encode(continuation.lstrip())

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
        positions = self.denoiser.causal_lm.config.max_position_embeddings
        limit, longest = min(RANGES["context"][1], positions), max(map(len, prompts))
        if longest >= limit:
            raise InvalidInput(
                f"{longest} tokens: expected fewer than {limit}; use a smaller --num_fewshot"
            )
        length = min(config.answer_length, limit - longest)
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


if __name__ == "__main__":
    from lm_eval.__main__ import cli_evaluate

    register()
    sys.argv[0] = "lm_eval"
    cli_evaluate()
