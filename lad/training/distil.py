"""Self-distillation: the backbone invents prompts and answers them, and both are kept.

A user's turn is opened with a word or two ("What is", "Name three", "Explain") and the backbone
finishes it; then it answers at a low temperature. Opening words make prompts far more varied than
letting the turn start freely, and need no outside data, so an adapter trained on the result may go
wherever the backbone may. An answer is kept when it ends inside the window and does not loop.

Work is cut into numbered batches, each written to a file of its own when complete: any number of
processes share them (`torchrun`), a killed run goes on where it stopped, and one seed gives one
set of pairs on one kind of device.

Shapes: b = batch, p = prompt positions (left-padded), n = new tokens.
"""

from __future__ import annotations

import gzip
import itertools
import json
import random
import re
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from lad.assets import sha256_file, write_whole
from lad.backbones import LoadedBackbone
from lad.errors import DamagedFile, InvalidInput
from lad.prompts import encode_prompt
from lad.training.config import writing
from lad.training.pairs import Pair

__all__ = ["DistilConfig", "collect", "contaminated", "distil", "openings", "reject"]

NGRAM = 13  # length of an overlap, in words, that counts as contamination


@dataclass(frozen=True)
class DistilConfig:
    """How pairs are made.

    Attributes:
        batch_size: prompts tried at once.
        context: most tokens of prompt, answer and its EOS together.
        prompt_tokens: most tokens of an invented prompt.
        prompt_temperature, prompt_top_k: how prompts are drawn; high, for variety.
        answer_temperature, answer_top_k: how answers are drawn; low, because parallel decoding
            needs targets of low entropy.
        seed: of everything.
    """

    batch_size: int = 2048
    context: int = 256
    prompt_tokens: int = 32
    prompt_temperature: float = 1.0
    prompt_top_k: int = 100
    answer_temperature: float = 0.3
    answer_top_k: int = 20
    seed: int = 0

    def __post_init__(self) -> None:
        for name, value in vars(self).items():
            if not (value >= 0 if name == "seed" else value > 0):
                raise InvalidInput(f"{name} = {value}: expected a number above 0")


def openings() -> list[str]:
    """Beginnings of a user's turn, with the weight given by how often a line stands there."""
    path = Path(__file__).parent.parent / "data" / "openings.txt"
    return path.read_text(encoding="utf-8").split("\n")[:-1]


def distil(
    backbone: LoadedBackbone,
    folder: str | Path,
    batches: int,
    config: DistilConfig | None = None,
    rank: int = 0,
    processes: int = 1,
    on_batch: Callable[[int, Counter], object] | None = None,
    more: Callable[[], bool] = lambda: True,
) -> None:
    """Make this process's share of `batches` batches, each as `folder`/00012.jsonl.

    Batches that are there already are not made again.

    Args:
        on_batch: called with the number of a batch and the counts of what became of its prompts.
        more: asked before each batch; False ends the run.

    Raises:
        CacheError: `folder` cannot be written.
    """
    config, folder = config or DistilConfig(), Path(folder)
    with writing(folder):
        folder.mkdir(parents=True, exist_ok=True)
    for number in range(rank, batches, processes):
        path = folder / f"{number:05d}.jsonl"
        if path.exists():
            continue
        if not more():
            return
        pairs, counts = make_batch(backbone, number, config)
        lines = [json.dumps(vars(pair), ensure_ascii=False) for pair in pairs]
        lines.append(json.dumps({"counts": counts}))  # last: without it the file is not whole
        with writing(folder):
            write_whole(path, "".join(line + "\n" for line in lines).encode())
        if on_batch is not None:
            on_batch(number, counts)


def make_batch(
    backbone: LoadedBackbone, number: int, config: DistilConfig
) -> tuple[list[Pair], Counter]:
    """One batch of pairs, and how many prompts went which way."""
    choice = random.Random(f"{config.seed}-{number}")
    with torch.random.fork_rng(
        devices=[backbone.model.device] if backbone.model.device.type == "cuda" else []
    ):
        torch.manual_seed(choice.getrandbits(62))
        starts = choice.choices(openings(), k=config.batch_size)
        prompts = invent_prompts(backbone, starts, config)
        counts = Counter(tried=len(prompts))
        fresh = list(dict.fromkeys(prompt for prompt in prompts if prompt))
        counts["prompt unfinished"] = sum(not prompt for prompt in prompts)
        counts["prompt repeated"] = len(prompts) - counts["prompt unfinished"] - len(fresh)
        answers = answer_prompts(backbone, fresh, config) if fresh else []
    kept = []
    for prompt, answer in zip(fresh, answers, strict=True):
        reason = "answer unfinished" if answer is None else reject(answer)
        counts[reason or "kept"] += 1
        if reason is None:
            kept.append(Pair(prompt, answer))
    return kept, counts


def invent_prompts(
    backbone: LoadedBackbone, starts: Sequence[str], config: DistilConfig
) -> list[str]:
    """Prompts that begin with `starts`; empty where the turn did not end in time."""
    tokenizer = backbone.tokenizer
    # The chat template up to the middle of the user's turn.
    stand_in = "\ue000"
    text = tokenizer.apply_chat_template(
        [{"role": "user", "content": stand_in}], tokenize=False, add_generation_prompt=False
    )
    before = text[: text.index(stand_in)]
    ids = [tokenizer(before + start, add_special_tokens=False)["input_ids"] for start in starts]
    produced = generate(
        backbone, ids, config.prompt_tokens, config.prompt_temperature, config.prompt_top_k
    )
    prompts = []
    for start, new in zip(starts, produced, strict=True):
        prompt = "" if new is None else start + tokenizer.decode(new, skip_special_tokens=False)
        # A prompt of several lines, or one holding control tokens, is the model losing the thread.
        odd = "\n" in prompt or "<|" in prompt or len(prompt.split()) < 3
        prompts.append("" if odd else " ".join(prompt.split()))
    return prompts


def answer_prompts(
    backbone: LoadedBackbone, prompts: Sequence[str], config: DistilConfig
) -> list[str | None]:
    """The backbone's answers; None where one did not end inside the window."""
    ids = [encode_prompt(backbone.tokenizer, prompt) for prompt in prompts]
    room = config.context - max(map(len, ids)) - 1
    produced = generate(backbone, ids, room, config.answer_temperature, config.answer_top_k)
    return [
        None if new is None else backbone.tokenizer.decode(new, skip_special_tokens=False).strip()
        for new in produced
    ]


@torch.inference_mode()
def generate(
    backbone: LoadedBackbone,
    prompts: Sequence[Sequence[int]],
    new_tokens: int,
    temperature: float,
    top_k: int,
) -> list[list[int] | None]:
    """Token ids after each prompt, up to EOS; None where no EOS came within `new_tokens`."""
    device, eos = backbone.model.device, backbone.eos_token_id
    # On a GPU widths are rounded up, so that a compiled decoding step is reused.
    step = 16 if device.type == "cuda" else 1
    width = -(-max(map(len, prompts)) // step) * step
    ids = torch.full((len(prompts), width), eos, device=device)
    real = torch.zeros_like(ids)
    for row, prompt in enumerate(prompts):
        ids[row, width - len(prompt) :] = torch.tensor(prompt, device=device)
        real[row, width - len(prompt) :] = 1
    produced: Tensor = backbone.model.generate(
        input_ids=ids,
        attention_mask=real,
        max_new_tokens=new_tokens,
        do_sample=True,
        temperature=temperature,
        top_k=top_k,
        eos_token_id=eos,
        pad_token_id=eos,
        # A fixed cache keeps shapes fixed: transformers then compiles the step.
        **({"cache_implementation": "static"} if device.type == "cuda" else {}),
    )[:, width:]
    return [new[: new.index(eos)] if eos in new else None for new in produced.tolist()]


def reject(answer: str) -> str | None:
    """Why an answer is not worth learning, or None if it is."""
    words = answer.split()
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


def normalised(text: str) -> list[str]:
    """Words in lower case without punctuation: what counts as the same text."""
    return re.findall(r"[^\W_]+", text.lower())


def contaminated(pairs: Iterable[Pair], passages: Iterable[str]) -> set[Pair]:
    """Pairs that share text with `passages`, such as the questions of a benchmark.

    A pair counts when its prompt is a passage, or when prompt or answer has 13 words in a row in
    common with one (the overlap GPT-3's authors used).
    """
    stems, grams = set(), set()
    for passage in passages:
        words = normalised(passage)
        stems.add(tuple(words))
        grams.update(zip(*(words[i:] for i in range(NGRAM)), strict=False))
    found = set()
    for pair in pairs:
        prompt, answer = normalised(pair.prompt), normalised(pair.answer)
        overlaps = (
            gram in grams
            for words in (prompt, answer)
            for gram in zip(*(words[i:] for i in range(NGRAM)), strict=False)
        )
        if tuple(prompt) in stems or any(overlaps):
            found.add(pair)
    return found


def collect(
    folder: str | Path, out: str | Path, config: DistilConfig, passages: Iterable[str] = ()
) -> dict:
    """Join the batches of `folder` into one file of pairs and a data card beside it.

    Each prompt is kept once, in the order of the batches; contaminated pairs go.

    Returns:
        The card: counts by reason, settings, and the digest of the file.

    Raises:
        InvalidInput: no batches there.
        DamagedFile: a batch that is not whole.
    """
    folder, out = Path(folder), Path(out)
    pairs: dict[str, Pair] = {}
    counts: Counter = Counter()
    paths = sorted(folder.glob("[0-9]*.jsonl"))
    if not paths:
        raise InvalidInput(f"no batches in {folder}: expected files such as 00000.jsonl")
    for path in paths:
        try:
            *rows, last = (json.loads(line) for line in path.open(encoding="utf-8"))
            counts.update(last["counts"])
            for row in rows:
                pair = Pair(**row)
                key = " ".join(normalised(pair.prompt))
                counts["prompt in another batch"] += key in pairs
                pairs.setdefault(key, pair)
        except (ValueError, KeyError, TypeError) as error:
            raise DamagedFile(
                f"{path} is not whole ({error!r}): delete it and run `lad distil` again"
            ) from error
    found = contaminated(pairs.values(), passages)
    kept = [pair for pair in pairs.values() if pair not in found]
    counts["contaminated"] = len(found)
    text = "".join(json.dumps(vars(pair), ensure_ascii=False) + "\n" for pair in kept).encode()
    with writing(out.parent):
        out.parent.mkdir(parents=True, exist_ok=True)
        # No time stamp inside: the same pairs give the same bytes.
        write_whole(out, gzip.compress(text, mtime=0) if out.suffix == ".gz" else text)
    card = {
        "pairs": len(kept),
        "sha256": sha256_file(out),
        "batches": len(paths),
        "counts": {key: value for key, value in sorted(counts.items()) if value},
        "settings": vars(config),
    }
    with writing(out.parent):
        write_whole(out.with_name(out.name.split(".")[0] + "-card.json"), pretty(card))
    return card


def pretty(values: dict) -> bytes:
    """JSON for people."""
    return (json.dumps(values, indent=2) + "\n").encode()
