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

import datetime
import gzip
import hashlib
import itertools
import json
import random
import sys
import time
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from types import ModuleType

from accelerate import PartialState
from tqdm import tqdm

from lad.models.chat import encode_prompts
from lad.models.generate import generate
from lad.models.registry import LoadedBackbone, load_backbone
from lad.training.contamination import Passages, contaminated, normalised
from lad.training.data import Pair, everyday_prompts, held_out_prompts, read_lines
from lad.training.multiple_choice import benchmark_passages, choices_for
from lad.utils import (
    DamagedFile,
    InvalidInput,
    disk_errors,
    setting,
    settings,
    sha256_file,
    write_json,
    write_whole,
)

BEGINNING = 8  # words of an answer that tell one beginning from another
REMEDY = "choose another --out or free space"
CPU_BATCH = 32  # answers generated together on a CPU, where more only take more memory


@settings
class DistilConfig:
    """How pairs are made.

    Raises:
        InvalidInput: a value outside its range.
    """

    batch_size: int = setting(2048, "prompts in a batch; a GPU generates all together", ge=1)
    context: int = setting(256, "tokens of prompt, answer and its EOS together at most", ge=1)
    prompt_tokens: int = setting(48, "tokens that the backbone adds to an opening at most", ge=1)
    prompt_temperature: float = setting(0.8, "of prompts; high, for variety", ge=0)
    prompt_top_k: int = setting(100, "likeliest tokens that prompts are drawn from; 0: all", ge=0)
    answer_tokens: int | None = setting(
        None, "tokens of an answer with its EOS at most; all that fit by default", ge=1
    )
    answer_temperature: float = setting(0.0, "0 takes the likeliest token", ge=0)
    answer_top_k: int = setting(0, "likeliest tokens that answers are drawn from; 0: all", ge=0)
    same_beginning: int = setting(
        20, "pairs kept whose answers begin with the same 8 words at most", ge=1
    )
    seed: int = setting(0, "of prompts and answers", ge=0)


def distil_pairs(
    out: Path,
    model: str,
    device: str,
    config: DistilConfig,
    batches: int,
    minutes: float | None = None,
    prompts: Sequence[str] | None = None,
    exclude: Sequence[str] = (),
    tasks: ModuleType | None = None,
    choices: float = 0.0,
) -> dict | None:
    """Make batches, join them, and write pairs and data card; under `torchrun`, on every GPU.

    Batches are kept beside `out` and not made twice.

    Args:
        out: the file to write, .jsonl or .jsonl.gz.
        model, device: as in `load_backbone`.
        batches: batches of prompts to try.
        minutes: begin no batch after this.
        prompts: to be answered in place of invented ones.
        exclude: passages that no pair may share text with.
        tasks: `lad.evaluation.tasks`; pairs that overlap with its tests are left out.
        choices: fraction of multiple-choice questions among the pairs; 0 without `tasks`.

    Returns:
        The data card; None in all processes but the first.

    Raises:
        AssetUnavailable: the benchmarks are not in the cache, and cannot be had.
        InvalidInput, DamagedFile, CacheError: see `distil` and `collect`.
    """
    # Whole batches pass before processes meet again.
    state = PartialState(cpu=device == "cpu", timeout=datetime.timedelta(days=1))
    if tasks is not None and state.is_main_process:
        tasks.fetch_benchmarks()  # before the work: without them it could not be finished
    if state.num_processes > 1 and device != "cpu":
        device = str(state.device)
    backbone = load_backbone(model, device)
    if prompts is not None:
        batches = min(batches, -(-len(prompts) // config.batch_size))
    folder = out.with_name(out.name.split(".")[0] + "-batches")
    numbers = range(state.process_index, batches, state.num_processes)
    started, kept = time.monotonic(), 0
    # A bar in a terminal, else a line for each batch; every process shows its own.
    bar = tqdm(total=len(numbers), desc=f"batches ({device})", disable=None, position=numbers.start)
    with bar:
        for number, counts in distil(backbone, folder, numbers, config, prompts):
            seconds = time.monotonic() - started
            kept += counts["kept"]
            bar.update()
            bar.set_postfix_str(f"{kept:,} pairs kept")
            if bar.disable:
                reasons = ", ".join(f"{reason} {n}" for reason, n in counts.most_common() if n)
                line = f"batch {number + 1:>5} of {batches}  {seconds:>7.1f} s  {reasons}"
                print(line, file=sys.stderr)
            if minutes is not None and seconds > 60 * minutes:
                break
    state.wait_for_everyone()  # the first process joins the batches of all
    if not state.is_main_process:
        return None
    tests = benchmark_passages(tasks) if tasks is not None else ()
    away = Passages([*exclude, *tests])
    pairs, card = collect(folder, config, away)
    tested = {task.name: task.tested_on for task in tasks.TASKS.values()} if tasks else {}
    card |= {"backbone": model, "kept apart from": {"passages": len(exclude), "benchmarks": tested}}
    added = []
    if tasks is not None:
        added, card["choices"] = choices_for(
            tasks, backbone, len(pairs), choices, config.context, away, config.seed
        )
    return write_pairs(out, [*pairs, *added], card)


def distil(
    backbone: LoadedBackbone,
    folder: Path,
    numbers: Iterable[int],
    config: DistilConfig,
    prompts: Sequence[str] | None = None,
) -> Iterator[tuple[int, Counter]]:
    """Make the batches `numbers`, each as `folder`/00012.jsonl, but for those already there.

    Args:
        prompts: to be answered in place of invented ones, `config.batch_size` of them a batch.

    Yields:
        The number of a batch, and how many of its prompts went which way.

    Raises:
        InvalidInput: `folder` holds batches of other settings, or the context is longer than the
            backbone's.
        CacheError: `folder` cannot be written.
    """
    if config.context > backbone.spec.context:
        raise InvalidInput(
            f"context = {config.context}: expected at most {backbone.spec.context} tokens, which "
            f"is what {backbone.spec.name} was trained for"
        )
    given = hashlib.sha256("\n".join(prompts).encode()).hexdigest() if prompts else None
    with disk_errors(folder, REMEDY):
        folder.mkdir(parents=True, exist_ok=True)
    check_settings(folder, {"backbone": backbone.digest, "prompts": given, **config.to_dict()})
    for number in numbers:
        path = folder / f"{number:05d}.jsonl"
        if path.exists():
            continue
        first = number * config.batch_size
        part = prompts[first : first + config.batch_size] if prompts else None
        pairs, counts = make_batch(backbone, number, config, part)
        lines = [json.dumps(vars(pair), ensure_ascii=False) for pair in pairs]
        lines.append(json.dumps({"counts": counts}))  # last: without it the file is not whole
        with disk_errors(folder, REMEDY):
            write_whole(path, "".join(line + "\n" for line in lines).encode())
        yield number, counts


def check_settings(folder: Path, settings: dict) -> None:
    """Write down what batches are made with; refuse to mix in those of other settings."""
    del settings["same_beginning"]  # it counts when batches are joined
    path = folder / "settings.json"
    with disk_errors(folder, REMEDY):
        if not path.exists():
            write_json(path, settings)
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


def make_batch(
    backbone: LoadedBackbone,
    number: int,
    config: DistilConfig,
    prompts: Sequence[str] | None = None,
) -> tuple[list[Pair], Counter]:
    """One batch of pairs, and how many prompts went which way; invents prompts if given none."""
    choice = random.Random(f"{config.seed}-{number}")
    seed = choice.getrandbits(62)
    if prompts is None:
        starts = choice.choices(read_lines("openings.txt"), k=config.batch_size)
        prompts = invent_prompts(backbone, starts, config, seed)
    fresh = list(dict.fromkeys(prompt for prompt in prompts if prompt))
    counts = Counter(
        {
            "tried": len(prompts),
            "prompt unfinished": prompts.count(None),
            "prompt odd": prompts.count(""),
            "prompt repeated": sum(map(bool, prompts)) - len(fresh),
        }
    )
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
    """`generate` as text without its EOS; None where none came."""
    on_cpu = backbone.model.device.type == "cpu"
    answers = generate(
        *(backbone.model, backbone.tokenizer, ids, *args),
        batch_size=min(config.batch_size, CPU_BATCH) if on_cpu else config.batch_size,
        eos_token_id=backbone.eos_token_id,
        **kwargs,
    )
    return [
        backbone.tokenizer.decode(answer[:-1], skip_special_tokens=False)
        if answer[-1] == backbone.eos_token_id
        else None
        for answer in answers
    ]


def invent_prompts(
    backbone: LoadedBackbone, starts: Sequence[str], config: DistilConfig, seed: int
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
    sampling = (config.prompt_tokens, config.prompt_temperature, config.prompt_top_k, seed)
    prompts = []
    for start, new in zip(starts, _continue(backbone, ids, config, *sampling), strict=True):
        if new is None:
            prompts.append(None)
            continue
        text = (start + new).strip()
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
    backbone: LoadedBackbone, prompts: Sequence[str], config: DistilConfig, seed: int
) -> list[str | None]:
    """The backbone's answers; None where one did not end inside the window."""
    ids = encode_prompts(backbone.tokenizer, prompts)
    fitting = [prompt for prompt in ids if len(prompt) < config.context]
    most = config.answer_tokens or config.context
    sampling = (most, config.answer_temperature, config.answer_top_k, seed)
    answers = iter(_continue(backbone, fitting, config, *sampling, max_length=config.context))
    found = [next(answers) if len(prompt) < config.context else None for prompt in ids]
    return [answer if answer is None else answer.strip() for answer in found]


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
        "settings": config.to_dict(),
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
    with disk_errors(out.parent, REMEDY):
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
