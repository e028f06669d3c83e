"""Self-distillation: the backbone invents prompts and answers them, and both are kept.

A user's turn is opened with a word or two ("What is", "Name three", "Explain") and the backbone
finishes it; then it answers, greedily: one answer to a prompt is the target of lowest entropy, and
that is what decoding in parallel needs. Opening words make prompts far more varied than letting the
turn start freely, and need no outside data, so an adapter trained on the result may go wherever the
backbone may. An answer is kept when it ends inside the window and does not loop; a prompt that this
project tests with is never kept.

Work is cut into numbered batches, each written to a file of its own when complete: any number of
processes share them (`torchrun`), a killed run goes on where it stopped, and one seed gives one
set of pairs on one kind of device.

Reference: sequence-level knowledge distillation, Kim and Rush, https://arxiv.org/abs/1606.07947.
"""

from __future__ import annotations

import gzip
import hashlib
import itertools
import json
import random
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch

from lad.models.chat import encode_prompts
from lad.models.registry import LoadedBackbone
from lad.training.config import writing
from lad.training.contamination import Passages, contaminated, normalised
from lad.training.data import Pair, everyday_prompts, held_out_prompts
from lad.training.decode import Decoder
from lad.utils import DamagedFile, InvalidInput, sha256_file, write_whole

__all__ = ["DistilConfig", "collect", "distil", "openings", "reject", "write_pairs"]

BEGINNING = 8  # words of an answer that tell one beginning from another
CPU_ROWS = 32  # decoded at once on a CPU, where more rows only take more memory


@dataclass(frozen=True)
class DistilConfig:
    """How pairs are made.

    Attributes:
        batch_size: prompts tried at once; a GPU decodes all of them together.
        context: most tokens of prompt, answer and its EOS together.
        prompt_tokens: most tokens that the backbone adds to an opening.
        prompt_temperature, prompt_top_k: how prompts are drawn; high, for variety. A temperature
            of 0 takes the likeliest token; a top-k of 0 draws among all.
        answer_tokens: most tokens of an answer with its EOS; up to the end of the context if None.
        answer_temperature, answer_top_k: how answers are drawn.
        same_beginning: most pairs kept whose answers begin with the same 8 words.
        seed: of everything.
    """

    batch_size: int = 2048
    context: int = 256
    prompt_tokens: int = 48
    prompt_temperature: float = 0.8
    prompt_top_k: int = 100
    answer_tokens: int | None = None
    answer_temperature: float = 0.0
    answer_top_k: int = 0
    same_beginning: int = 20
    seed: int = 0

    def __post_init__(self) -> None:
        for name, value in vars(self).items():
            may_be_zero = name == "seed" or name.endswith(("_temperature", "_top_k"))
            if value is not None and not (value >= 0 if may_be_zero else value > 0):
                least = "at least" if may_be_zero else "a number above"
                raise InvalidInput(f"{name} = {value}: expected {least} 0")


def openings() -> list[str]:
    """Beginnings of a user's turn, with the weight given by how often a line stands there."""
    path = Path(__file__).parents[1] / "assets" / "openings.txt"
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
    prompts: Sequence[str] | None = None,
) -> None:
    """Make this process's share of `batches` batches, each as `folder`/00012.jsonl.

    Batches that are there already are not made again.

    Args:
        on_batch: called with the number of a batch and the counts of what became of its prompts.
        more: asked before each batch; False ends the run.
        prompts: to be answered in place of invented ones, `config.batch_size` of them a batch.

    Raises:
        InvalidInput: the batches that are there were made with other settings, or the context is
            longer than the backbone's.
        CacheError: `folder` cannot be written.
    """
    config, folder = config or DistilConfig(), Path(folder)
    if config.context > backbone.spec.context:
        raise InvalidInput(
            f"context = {config.context}: expected at most {backbone.spec.context} tokens, which "
            f"is what {backbone.spec.name} was trained for"
        )
    given = None
    if prompts is not None:
        batches = min(batches, -(-len(prompts) // config.batch_size))
        given = hashlib.sha256("\n".join(prompts).encode()).hexdigest()
    with writing(folder):
        folder.mkdir(parents=True, exist_ok=True)
    note_settings(folder, {"backbone": backbone.digest, "prompts": given, **vars(config)})
    decoder = None
    for number in range(rank, batches, processes):
        path = folder / f"{number:05d}.jsonl"
        if path.exists():
            continue
        if not more():
            return
        decoder = decoder or make_decoder(backbone, config)
        own = None
        if prompts is not None:
            own = prompts[number * config.batch_size : (number + 1) * config.batch_size]
        pairs, counts = make_batch(backbone, decoder, number, config, own)
        lines = [json.dumps(vars(pair), ensure_ascii=False) for pair in pairs]
        lines.append(json.dumps({"counts": counts}))  # last: without it the file is not whole
        with writing(folder):
            write_whole(path, "".join(line + "\n" for line in lines).encode())
        if on_batch is not None:
            on_batch(number, counts)


def note_settings(folder: Path, settings: dict) -> None:
    """Write down what batches are made with; those of other settings must not be mixed in."""
    del settings["same_beginning"]  # it has its say when they are joined
    path = folder / "settings.json"
    with writing(folder):
        if not path.exists():
            write_whole(path, (json.dumps(settings, indent=2) + "\n").encode())
        try:
            before = json.loads(path.read_bytes())
        except ValueError as error:
            raise DamagedFile(f"{path} is not whole ({error}): delete its folder") from error
    for name in settings:
        if before.get(name) != settings[name]:
            raise InvalidInput(
                f"{folder} holds batches made with {name} = {before.get(name)}, now it is "
                f"{settings[name]}: use the same, delete the folder, or choose another --out"
            )


def make_decoder(backbone: LoadedBackbone, config: DistilConfig) -> Decoder:
    """A decoder with room for whole batches on a GPU, and for some of their rows on a CPU."""
    on_cpu = backbone.model.device.type == "cpu"
    rows = min(config.batch_size, CPU_ROWS) if on_cpu else config.batch_size
    # Rows are padded to the longest prompt: with room for that too, each may fill the context.
    context = min(config.context + config.prompt_tokens, backbone.spec.context)
    return Decoder(backbone, rows, context)


def make_batch(
    backbone: LoadedBackbone,
    decoder: Decoder,
    number: int,
    config: DistilConfig,
    prompts: Sequence[str] | None = None,
) -> tuple[list[Pair], Counter]:
    """One batch of pairs, and how many prompts went which way; invents prompts if given none."""
    choice = random.Random(f"{config.seed}-{number}")
    # On the CPU, so that every kind of device is given the same numbers.
    generator = torch.Generator().manual_seed(choice.getrandbits(62))
    if prompts is None:
        starts = choice.choices(openings(), k=config.batch_size)
        prompts = invent_prompts(backbone, decoder, starts, config, generator)
    counts = Counter(tried=len(prompts))
    fresh = list(dict.fromkeys(prompt for prompt in prompts if prompt))
    counts["prompt unfinished"] = sum(prompt is None for prompt in prompts)
    counts["prompt odd"] = sum(prompt == "" for prompt in prompts)
    repeated = len(prompts) - len(fresh) - counts["prompt unfinished"] - counts["prompt odd"]
    counts["prompt repeated"] = repeated
    answers = answer_prompts(backbone, decoder, fresh, config, generator)
    kept = []
    for prompt, answer in zip(fresh, answers, strict=True):
        reason = "answer unfinished" if answer is None else reject(answer)
        counts[reason or "kept"] += 1
        if reason is None:
            kept.append(Pair(prompt, answer))
    return kept, counts


def invent_prompts(
    backbone: LoadedBackbone,
    decoder: Decoder,
    starts: Sequence[str],
    config: DistilConfig,
    generator: torch.Generator,
) -> list[str | None]:
    """Prompts that begin with `starts`; None where the turn did not end in time, "" if it is odd"""
    tokenizer = backbone.tokenizer
    # The chat template up to the middle of the user's turn.
    stand_in = "\ue000"
    text = tokenizer.apply_chat_template(
        [{"role": "user", "content": stand_in}], tokenize=False, add_generation_prompt=False
    )
    before = text[: text.index(stand_in)]
    ids = tokenizer([before + start for start in starts], add_special_tokens=False)["input_ids"]
    produced = decoder.generate(
        ids,
        min(config.prompt_tokens, decoder.context - max(map(len, ids))),
        config.prompt_temperature,
        config.prompt_top_k,
        generator,
    )
    prompts = []
    for start, new in zip(starts, produced, strict=True):
        if new is None:
            prompts.append(None)
            continue
        text = (start + tokenizer.decode(new, skip_special_tokens=False)).strip()
        prompts.append("" if odd(text, start) else " ".join(text.split()))
    return prompts


def odd(text: str, start: str) -> bool:
    """True for a user's turn that is no prompt: the model lost the thread, or said nothing."""
    if "\n" in text or "<|" in text or "\ufffd" in text:  # no turn of a user
        return True
    # An opening alone, or a word or two, must at least be a whole remark, such as "Good morning!".
    short = text == start or len(text.split()) < 3
    return short and not text.endswith((".", "!", "?"))


def answer_prompts(
    backbone: LoadedBackbone,
    decoder: Decoder,
    prompts: Sequence[str],
    config: DistilConfig,
    generator: torch.Generator,
) -> list[str | None]:
    """The backbone's answers; None where one did not end inside the window."""
    ids = encode_prompts(backbone.tokenizer, prompts)
    fitting = [row for row in ids if len(row) < config.context]
    if not fitting:
        return [None] * len(prompts)
    new_tokens = min(
        config.answer_tokens or config.context,
        config.context - min(map(len, fitting)),
        decoder.context - max(map(len, fitting)),
    )
    produced = iter(
        decoder.generate(
            fitting, new_tokens, config.answer_temperature, config.answer_top_k, generator
        )
    )
    answers = []
    for row in ids:
        new = next(produced) if len(row) < config.context else None
        inside = new is not None and len(row) + len(new) < config.context
        text = backbone.tokenizer.decode(new, skip_special_tokens=False) if inside else None
        answers.append(text if text is None else text.strip())
    return answers


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


def collect(
    folder: str | Path, config: DistilConfig, passages: Passages | Iterable[str] = ()
) -> tuple[list[Pair], dict]:
    """Join the batches of `folder`.

    Each prompt is kept once, in the order of the batches. Away go prompts that this package is
    tested with, pairs that share text with `passages`, and answers that begin like too many others.

    Returns:
        The pairs, and what a data card says of them: counts by reason, and settings.

    Raises:
        InvalidInput: no batches there.
        DamagedFile: a batch that is not whole.
    """
    folder = Path(folder)
    pairs: dict[str, Pair] = {}
    counts: Counter = Counter()
    for pair in read_batches(folder, counts):
        key = " ".join(normalised(pair.prompt))
        counts["prompt in another batch"] += key in pairs
        pairs.setdefault(key, pair)
    tested = {" ".join(normalised(p)) for p in [*everyday_prompts(), *held_out_prompts()]}
    counts["kept for testing"] = len(tested & pairs.keys())
    rest = [pair for key, pair in pairs.items() if key not in tested]
    found = contaminated(rest, passages)
    counts["contaminated"] = len(found)
    kept, beginnings = [], Counter()
    for pair in rest:
        if pair in found:
            continue
        beginning = tuple(normalised(pair.answer)[:BEGINNING])
        beginnings[beginning] += 1
        if beginnings[beginning] <= config.same_beginning:
            kept.append(pair)
    counts["answer begins like others"] = len(rest) - len(found) - len(kept)
    return kept, {
        "self-distilled": len(kept),
        "batches": len(batch_paths(folder)),
        "counts": {key: value for key, value in sorted(counts.items()) if value},
        "settings": vars(config),
    }


def write_pairs(out: str | Path, pairs: Sequence[Pair], card: dict) -> dict:
    """Write a file of pairs, .jsonl or .jsonl.gz, and a data card beside it.

    Returns:
        The card, to which number and digest of the pairs are added.

    Raises:
        CacheError: it cannot be written.
    """
    out = Path(out)
    text = "".join(json.dumps(vars(pair), ensure_ascii=False) + "\n" for pair in pairs).encode()
    with writing(out.parent):
        out.parent.mkdir(parents=True, exist_ok=True)
        # No time stamp inside: the same pairs give the same bytes.
        write_whole(out, gzip.compress(text, mtime=0) if out.suffix == ".gz" else text)
        card = {"pairs": len(pairs), "sha256": sha256_file(out), **card}
        text = json.dumps(card, indent=2, ensure_ascii=False) + "\n"
        write_whole(out.with_name(out.name.split(".")[0] + "-card.json"), text.encode())
    return card


def batch_paths(folder: Path) -> list[Path]:
    """Files of batches, in their order."""
    return sorted(folder.glob("[0-9]*.jsonl"))


def read_batches(folder: Path, counts: Counter) -> Iterator[Pair]:
    """Every pair of every batch; their counts are added to `counts`."""
    paths = batch_paths(folder)
    if not paths:
        raise InvalidInput(f"no batches in {folder}: expected files such as 00000.jsonl")
    for path in paths:
        try:
            *rows, last = (json.loads(line) for line in path.open(encoding="utf-8"))
            counts.update(last["counts"])
            pairs = [Pair(**row) for row in rows]
        except (ValueError, KeyError, TypeError) as error:
            raise DamagedFile(
                f"{path} is not whole ({error!r}): delete it and run `lad distil` again"
            ) from error
        yield from pairs
