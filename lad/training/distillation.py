"""Self-distillation: the backbone invents prompts and answers them, and both are kept.

A user's turn is opened with a few words ("What is", "Name three", "Explain") and the backbone
finishes it; then it answers, greedily: one answer to a prompt is the target of lowest entropy, and
that is what decoding in parallel needs. An adapter may go wherever its backbone may.

Reference: sequence-level knowledge distillation, Kim and Rush, https://arxiv.org/abs/1606.07947.
"""

from __future__ import annotations

import datetime
import gzip
import hashlib
import itertools
import json
import random
import re
import sys
import time
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from types import ModuleType

from accelerate import PartialState
from typing_extensions import TypedDict

from lad import utils
from lad.diffusion.drafts import REPAIR_PROMPT
from lad.models.chat import encode_prompts, encode_text
from lad.models.generate import generate
from lad.models.registry import LoadedBackbone, load_backbone
from lad.training.contamination import Passages, normalised
from lad.training.data import Pair, read_lines, tested_texts
from lad.training.multiple_choice import benchmark_passages, choices_for
from lad.utils import Count, InvalidInput, checked, damaged_file, setting, settings

BEGINNING = 8  # words of an answer, for `same_beginning`
SENTENCE = re.compile(r"[A-Z][^.!?\n]*(?:\.\d[^.!?\n]*)*[.!?](?=\s|$)")
DRIFTED = "\ufffd"  # in place of an answer whose text is read as other tokens
GPU_BATCH, CPU_BATCH = 2048, 32  # answers generated together
JOINING = ("same_beginning", "choice_context", "shuffles", "repair")  # settings used at the end
# What ends the file of a batch; without it the file is not whole.
LastLine = utils.record(TypedDict("LastLine", {"counts": dict[str, Count]}))


@settings
class DistilConfig:
    """How pairs are made."""

    batch_size: int = setting(16_384, "prompts in a batch, which is kept when it is whole", ge=1)
    context: int = setting(256, "tokens of prompt, answer and its EOS together at most", ge=1)
    prompt_tokens: int = setting(48, "tokens that the backbone adds to an opening at most", ge=1)
    prompt_temperature: float = setting(0.8, "of prompts; high, for variety", ge=0)
    prompt_top_k: int = setting(100, "likeliest tokens that prompts are drawn from; 0: all", ge=0)
    answer_tokens: int | None = setting(None, "tokens of an answer and EOS at most", ge=1)
    answer_temperature: float = setting(0.0, "0 takes the likeliest token", ge=0)
    same_beginning: int = setting(20, "pairs at most whose answers begin with the same words", ge=1)
    choice_context: int = setting(352, "tokens of a question and its answer at most", ge=1)
    shuffles: int = setting(3, "orders of options for a multiple-choice question; 0: none", ge=0)
    repair: float = setting(0.1, "fraction of answers of which a sentence is to be corrected", 0, 1)
    seed: int = setting(0, "of prompts and answers", ge=0)


def distil_pairs(
    out: Path,
    model: str,
    device: str,
    config: DistilConfig,
    batches: int,
    prompts: Sequence[str] | None = None,
    exclude: Sequence[str] = (),
    tasks: ModuleType | None = None,
    openings: Sequence[str] | None = None,
) -> dict | None:
    """Make batches, write pairs and return the data card (None but in the first process).

    Batches are kept beside `out` and not made twice: any number of processes share them, and a
    killed run goes on where it stopped. Each invented prompt begins with one of `openings`, by
    default of openings.txt; given `prompts` are answered instead, and none invented. No pair shares
    text with `exclude`, nor with the tests of `tasks` (the module `lad.evaluation.tasks`), whose
    multiple-choice questions are added.
    """
    if prompts and openings:
        raise InvalidInput("prompts and openings are given: expected one, to answer or to invent")
    # Whole batches pass before processes meet again.
    state = PartialState(cpu=device == "cpu", timeout=datetime.timedelta(days=1))
    if tasks and state.is_main_process:
        tasks.fetch_benchmarks()  # before the work: without them it could not be finished
    if state.num_processes > 1 and device != "cpu":
        device = str(state.device)
    backbone = load_backbone(model, device)
    if prompts is not None:
        batches = min(batches, -(-len(prompts) // config.batch_size))
    folder = out.with_name(out.name.split(".")[0] + "-batches")
    numbers = range(state.process_index, batches, state.num_processes)
    started = time.monotonic()
    for number, counts in distil(backbone, folder, numbers, config, prompts, openings):
        seconds = time.monotonic() - started
        reasons = ", ".join(f"{reason} {n}" for reason, n in counts.most_common() if n)
        print(f"batch {number + 1:>5} of {batches}  {seconds:>7.1f} s  {reasons}", file=sys.stderr)
    state.wait_for_everyone()  # the first process joins the batches of all
    if not state.is_main_process:
        return None
    passages = Passages([*exclude, *(benchmark_passages(tasks) if tasks else ())])
    pairs, card = collect(folder, config, passages)
    corrected = correction_pairs(pairs, config)
    pairs += corrected
    tested = {task.name: task.tested_on for task in tasks.TASKS.values()} if tasks else {}
    card |= {"sentences to correct": len(corrected), "backbone": model}
    card |= {"kept apart from": {"passages": len(exclude), "benchmarks": tested}}
    if tasks:
        added, card["choices"] = choices_for(tasks, backbone, passages, config)
        pairs += added
    return write_pairs(out, pairs, card)


def distil(
    backbone: LoadedBackbone,
    folder: Path,
    numbers: Iterable[int],
    config: DistilConfig,
    prompts: Sequence[str] | None = None,
    openings: Sequence[str] | None = None,
) -> Iterator[tuple[int, Counter]]:
    """Make the missing batches of `numbers` as `folder`/00012.jsonl; yields number and counts."""
    if config.context > backbone.spec.context:
        limit = backbone.spec.context
        raise InvalidInput(f"context = {config.context}: expected at most {limit} tokens")
    settings = {"backbone": backbone.digest, **config.to_dict()}
    for name, lines in (("prompts", prompts), ("openings", openings)):
        settings[name] = lines and hashlib.sha256("\n".join(lines).encode()).hexdigest()
    path = folder / "settings.json"
    if not path.exists():
        utils.write_json(path, settings)
    with damaged_file(path, "delete its folder"):
        before = checked(path.read_bytes(), dict)
    made_with = {name: value for name, value in settings.items() if name not in JOINING}
    utils.check_same(folder, before, made_with, "use the same, delete it, or choose another --out")
    for number in numbers:
        path = folder / f"{number:05d}.jsonl"
        if path.exists():
            continue
        first = number * config.batch_size
        part = prompts[first : first + config.batch_size] if prompts else None
        pairs, counts = _make_batch(backbone, number, config, part, openings)
        utils.write_whole(path, _json_lines(pairs) + json.dumps({"counts": counts}).encode())
        yield number, counts


def _make_batch(
    backbone: LoadedBackbone,
    number: int,
    config: DistilConfig,
    prompts: Sequence[str] | None,
    openings: Sequence[str] | None,
) -> tuple[list[Pair], Counter]:
    choice = random.Random(f"{config.seed}-{number}")
    seed = choice.getrandbits(62)
    if prompts is None:
        starts = choice.choices(openings or read_lines("openings.txt"), k=config.batch_size)
        prompts = invent_prompts(backbone, starts, config, seed)
    fresh = list(dict.fromkeys(prompt for prompt in prompts if prompt))
    counts = Counter({"tried": len(prompts)})
    counts["prompt unfinished"] = prompts.count(None)
    counts["prompt odd"] = prompts.count("")
    counts["prompt repeated"] = sum(map(bool, prompts)) - len(fresh)
    kept = []
    answers = answer_prompts(backbone, fresh, config, seed + 1)
    for prompt, answer in zip(fresh, answers, strict=True):
        reason = "answer unfinished" if answer is None else reject(answer)
        counts[reason or "kept"] += 1
        if reason is None:
            kept.append(Pair(prompt, answer))
    return kept, counts


def _continue(
    backbone: LoadedBackbone, ids: Sequence[Sequence[int]], config: DistilConfig, *args, **kwargs
) -> list[str | None]:
    """`generate` as text without its EOS; None where none came, `DRIFTED` in place of a text whose
    tokens are others than those generated: a pair is stored as text, and read as the latter."""
    tokenizer, eos = backbone.tokenizer, backbone.eos_token_id
    on_gpu = backbone.model.device.type == "cuda"
    kwargs |= {"batch_size": GPU_BATCH if on_gpu else CPU_BATCH, "static_cache": on_gpu}
    answers = generate(backbone.model, eos, ids, *args, **kwargs)
    texts = []
    for new in answers:
        text = tokenizer.decode(new[:-1])
        drifted = encode_text(tokenizer, text) != new[:-1]
        texts.append(None if new[-1] != eos else DRIFTED if drifted else text)
    return texts


def invent_prompts(
    backbone: LoadedBackbone, starts: Sequence[str], config: DistilConfig, seed: int
) -> list[str | None]:
    """Prompts that begin with `starts`; None where the turn did not end in time, "" if `odd`."""
    tokenizer, turn = backbone.tokenizer, [{"role": "user", "content": "\ue000"}]
    # The chat template up to the middle of the user's turn.
    before = tokenizer.apply_chat_template(turn, tokenize=False).split("\ue000")[0]
    ids = tokenizer([before + start for start in starts], add_special_tokens=False)["input_ids"]
    sampling = (config.prompt_tokens, config.prompt_temperature, config.prompt_top_k, seed)
    prompts = []
    for start, new in zip(starts, _continue(backbone, ids, config, *sampling), strict=True):
        text = (start + (new or "")).strip()
        clean = "" if odd(text, start) else " ".join(text.split())
        prompts.append(None if new is None else clean)
    return prompts


def odd(text: str, start: str) -> bool:
    """True for a user's turn that is no prompt."""
    if "\n" in text or "<|" in text or "\ufffd" in text:
        return True
    short = text == start or len(text.split()) < 3
    return short and not text.endswith((".", "!", "?"))  # "Good morning!" is one


def answer_prompts(
    backbone: LoadedBackbone, prompts: Sequence[str], config: DistilConfig, seed: int
) -> list[str | None]:
    """The backbone's answers; None where one did not end inside the window."""
    ids = encode_prompts(backbone.tokenizer, prompts)
    fitting = [prompt for prompt in ids if len(prompt) < config.context]
    sampling = (config.answer_tokens or config.context, config.answer_temperature, 0, seed)
    answers = iter(_continue(backbone, fitting, config, *sampling, max_length=config.context))
    return [next(answers) if len(prompt) < config.context else None for prompt in ids]


def self_distil(
    backbone: LoadedBackbone, prompts: Sequence[str], max_tokens: int = 48
) -> list[Pair]:
    """Pairs with the greedy answers of a backbone without adapter, if they end in `max_tokens`."""
    config = DistilConfig(context=backbone.spec.context, answer_tokens=max_tokens)
    answers = answer_prompts(backbone, prompts, config, seed=0)
    return [Pair(prompt, answer) for prompt, answer in zip(prompts, answers, strict=True) if answer]


def reject(answer: str) -> str | None:
    """Why an answer is not worth learning, or None if it is."""
    words = answer.split()
    if answer == DRIFTED:
        return "answer reads as other tokens"
    if not words:
        return "answer empty"
    if "<|" in answer or "\ufffd" in answer:
        return "answer holds control tokens"
    if any(a == b for a, b in itertools.pairwise(words)):
        return "answer stutters"
    if len(words) >= 12:
        grams = Counter(zip(words, words[1:], words[2:], words[3:], strict=False))
        if grams.most_common(1)[0][1] > 2 or len(grams) < 0.75 * (len(words) - 3):
            return "answer loops"
    return None


def correction_pairs(pairs: Sequence[Pair], config: DistilConfig) -> list[Pair]:
    """A sentence of a fraction of the answers, behind a prompt that says nothing of it.

    In training it is corrupted visibly (`TrainConfig.repair_corruption`), or left sound.
    """
    choice, found = random.Random(f"{config.seed}-repair"), {}
    for pair in pairs:
        sentences = [s for s in SENTENCE.findall(pair.answer) if 4 <= len(s.split()) <= 40]
        if sentences and choice.random() < config.repair:
            found[choice.choice(sentences)] = None
    return [Pair(REPAIR_PROMPT, sentence) for sentence in found]


def collect(
    folder: Path, config: DistilConfig, passages: Passages | None = None
) -> tuple[list[Pair], dict]:
    """The pairs of all batches of `folder`, each prompt once, and their data card.

    Removed are pairs with a prompt, or a sentence in the answer, that this package is tested with,
    pairs that overlap with `passages`, and answers that begin like too many others.
    """
    paths = sorted(folder.glob("[0-9]*.jsonl"))
    if not paths:
        raise InvalidInput(f"no batches in {folder}: expected files such as 00000.jsonl")
    counts = Counter()
    seen = {_key(text) for text in tested_texts()}
    tested, beginnings, kept = frozenset(seen), Counter(), []
    for path in paths:
        with damaged_file(path, "delete it and run `lad distil` again"):
            *rows, last = path.read_bytes().splitlines()
            counts.update(checked(last, LastLine)["counts"])
            pairs = [checked(row, Pair) for row in rows]
        for pair in pairs:
            key = _key(pair.prompt)
            beginning = tuple(normalised(pair.answer)[:BEGINNING])
            if not tested.isdisjoint([key, *map(_key, SENTENCE.findall(pair.answer))]):
                counts["kept for testing"] += 1
            elif key in seen:
                counts["prompt in another batch"] += 1
            elif passages and passages.overlap(pair.prompt, pair.answer):
                counts["contaminated"] += 1
            elif beginnings[beginning] == config.same_beginning:
                counts["answer begins like others"] += 1
            else:
                beginnings[beginning] += 1
                kept.append(pair)
            seen.add(key)
    return kept, {
        "self-distilled": len(kept),
        "batches": len(paths),
        "counts": {key: value for key, value in sorted(counts.items()) if value},
        "settings": config.to_dict(),
    }


def _key(prompt: str) -> str:
    return " ".join(normalised(prompt))


def _json_lines(pairs: Sequence[Pair]) -> bytes:
    return "".join(json.dumps(vars(p), ensure_ascii=False) + "\n" for p in pairs).encode()


def write_pairs(out: Path, pairs: Sequence[Pair], card: dict) -> dict:
    """Write a file of pairs, .jsonl or .jsonl.gz, and beside it the card with number and digest."""
    text = _json_lines(pairs)
    # No time stamp inside: the same pairs give the same bytes.
    utils.write_whole(out, gzip.compress(text, mtime=0) if out.suffix == ".gz" else text)
    card = {"pairs": len(pairs), "sha256": utils.sha256_file(out), **card}
    utils.write_json(out.with_name(out.name.split(".")[0] + "-card.json"), card)
    return card
