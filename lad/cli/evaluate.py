"""`lad evaluate`: how good an adapter is, in numbers with intervals."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

from typer import Option

from lad.cli import common

ON_A_CPU = {"pairs": 40, "prompts": 20}  # a few minutes on two cores; elsewhere, all there are
# What is shown of a setting: name, key, factor, digits.
ROWS = (
    ("perplexity by backbone's", "relative_perplexity_with_end", 1, 2),
    ("the same, EOS left out", "relative_perplexity", 1, 2),
    ("perplexity, EOS left out", "perplexity", 1, 2),
    ("repeated neighbours, %", "repeats", 100, 1),
    ("repeated 4-grams, %", "repeated_4grams", 100, 1),
    ("end in a whole sentence, %", "whole_sentences", 100, 0),
    ("answers that end, %", "ended", 100, 0),
    ("tokens an answer", "tokens", 1, 1),
    ("NFE", "nfe", 1, 1),
    ("forwards a token", "forwards_per_token", 1, 2),
    ("TPF", "tpf", 1, 2),
)

DAMAGED = {"two tokens swapped": "swap", "a token doubled over the next": "duplicate"}
DAMAGED |= {"a token replaced": "replace", "all three": "mended", "no damage": "sound"}


def evaluate(
    settings: Annotated[
        str, Option(help="Presets, or JSON files with settings, separated by commas.")
    ] = "quality,default,noiseless",
    n_prompts: Annotated[
        int | None, Option(help="Prompts, questions, sentences: 20 on a CPU, else all.", min=1)
    ] = None,
    n_pairs: Annotated[int | None, Option(help="Pairs: 40 on a CPU, else all.", min=1)] = None,
    prompts: Annotated[Path, Option(help="One a line.", show_default=False)] = common.PROMPTS,
    pairs: Annotated[Path, Option(help=".jsonl, .jsonl.gz.", show_default=False)] = common.PAIRS,
    seed: Annotated[int, Option(help="Of masks and corruption.")] = 0,
    batch_size: common.BatchSize = None,
    model: common.Model = "smollm2-135m",
    adapter: common.Adapter = None,
    device: common.Device = "auto",
    as_json: common.AsJson = False,
) -> None:
    """Measure an adapter on pairs and prompts it never saw, beside the backbone it sits on."""
    from lad.diffusion.adapter import load_denoiser
    from lad.evaluation.adapter_eval import evaluate as run_evaluation
    from lad.training import fact_questions, read_pairs, sentences_to_repair
    from lad.training.data import ASSETS
    from lad.utils import sha256_file

    chosen = common.read_settings(settings)
    data = {
        "pairs": (read_pairs(pairs), pairs),
        "prompts": (common.read_prompts(prompts), prompts),
        "facts": (fact_questions(), ASSETS / "facts.jsonl"),
        "sentences": (sentences_to_repair(), ASSETS / "sentences.txt"),
    }
    denoiser = load_denoiser(model, adapter, common.choose_device(device))
    few = ON_A_CPU if denoiser.device.type == "cpu" else {}
    n = {"pairs": n_pairs or few.get("pairs")}
    n |= dict.fromkeys(("prompts", "facts", "sentences"), n_prompts or few.get("prompts"))
    some = {key: common.evenly_spaced(data[key][0], number) for key, number in n.items()}
    options = seed, batch_size, some["facts"], some["sentences"]
    result = run_evaluation(denoiser, some["pairs"], some["prompts"], chosen, *options)
    for key, (everything, path) in data.items():
        result[key] |= {"of": len(everything), "file": path.name, "sha256": sha256_file(path)}
    common.print_result(result, as_json, as_text(result))


def as_text(result: dict) -> str:
    from lad.diffusion.config import RefineConfig
    from lad.evaluation.statistics import Estimate

    def text(estimate: dict, factor: float = 100, digits: int = 1) -> str:
        return Estimate.from_dict(estimate).text(factor, digits)

    columns = result["settings"] | {"backbone": result["backbone"]}
    repair, sentences = result["repair"], result["sentences"]
    repairs = {f"p = {repair['severity']}, {repair['iterations']} iterations": repair}
    repairs["the same from MASK: generation"] = repair["from_mask"]
    repairs["the same with another prompt: repair alone"] = repair["other_prompt"]
    quality = [
        (name, *(text(scores[key], factor, digits) for scores in columns.values()))
        for name, key, factor, digits in ROWS
    ]
    seconds = [f"{scores['seconds_per_answer']:.2f}" for scores in columns.values()]
    facts = [text(scores["same_fact"]) for scores in columns.values()]
    tables = [  # what it is measured on, headings, rows
        (
            "pairs",
            ("held-out pairs", "cross-entropy, nats", "accuracy, %"),
            [
                (f"{100 * float(share):.0f} % masked", text(one["ce"], 1, 3), text(one["accuracy"]))
                for share, one in result["masked"].items()
            ],
        ),
        (
            "pairs",
            ("tokens behind a clean beginning", "accuracy, %"),
            [(f"number {distance}", text(share)) for distance, share in result["ahead"].items()],
        ),
        (
            "pairs",
            ("structural repair", "restored, %", "kept, %"),
            [(name, text(one["restored"]), text(one["kept"])) for name, one in repairs.items()],
        ),
        (
            "sentences",
            ("repair without a question", "sentences as they were, %"),
            [(name, text(sentences[key])) for name, key in DAMAGED.items()],
        ),
        ("prompts", ("held-out prompts", *columns), [*quality, ("seconds an answer", *seconds)]),
        ("facts", ("short questions", *columns), [("the fact as whole words, %", *facts)]),
    ]
    lines = [common.origin_line(result["provenance"])]
    lines.append("Each number with its 95 % interval over answers.")
    for data, headings, rows in tables:
        title = "{used} of {of:,} from {file}".format(**result[data])
        lines.append(common.table(headings, rows, title))
    usual = RefineConfig().to_dict()
    for name, scores in result["settings"].items():
        changed = [f"{key} {v}" for key, v in scores["config"].items() if v != usual[key]]
        lines.append(f"{name}: {', '.join(changed) or 'all defaults'}")
    return "\n".join(lines)
