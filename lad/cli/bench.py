"""`lad bench`: how fast, beside plain loops and beside the backbone from left to right."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Annotated

from typer import Option

from lad.cli import common
from lad.utils import check_writable

DEFAULTS = {  # windows, batches, prompts, how many of these by the reference, its iterations
    "cpu": ("64,128", "1,4", 4, 2, 1),  # six minutes on two cores
    "gpu": ("64,128,256,512", "1,32", 32, 3, 2),
    "random": ("256", "1,8,32", 4, 1, 1),
}
# Random weights never settle on an answer: all iterations are run.
RANDOM = {"iterations": 8, "temperature": 0.0, "remasking": "random", "patience": 0}

N = {"metavar": "N"}  # shorter than what typer calls a number in a range


@common.stopped("what was timed is in --out, if given")
def bench(
    setting: Annotated[str, Option(help="A preset, or a JSON file with settings.")] = "default",
    windows: Annotated[str | None, Option(help="Answer regions: 64,128 on a CPU.")] = None,
    batches: Annotated[str | None, Option(help="Prompts at once: 1,4 on a CPU, else 1,32.")] = None,
    n_prompts: Annotated[int | None, Option(help="4 on a CPU, else 32.", min=1, **N)] = None,
    reference_prompts: Annotated[int | None, Option(help="By the reference.", min=0, **N)] = None,
    reference_iterations: Annotated[int | None, Option(help="It runs; 0: all.", min=0, **N)] = None,
    iterations: Annotated[int | None, Option(help="Of every run, for the setting's.")] = None,
    prompts: Annotated[Path, Option(help="One a line.", show_default=False)] = common.PROMPTS,
    config: Annotated[Path | None, Option(help="YAML that describes a new adapter.")] = None,
    graphs: Annotated[bool, Option(help="On a GPU, a pass is one CUDA graph.")] = True,
    out: Annotated[Path | None, Option(help="Write the JSON object to this file.")] = None,
    record: Annotated[Path | None, Option(help="Add it to this JSON file of runs.")] = None,
    model: common.Model = "smollm2-135m",
    adapter: common.Adapter = None,
    device: common.Device = "auto",
    as_json: common.AsJson = False,
) -> None:
    """Time the sampler against its plain loops and the backbone's left-to-right answers.

    A model NAME:random (or NAME:random:4bit) has random weights of that shape and a new adapter:
    nothing is downloaded.
    """
    from lad.diffusion.adapter import load_denoiser
    from lad.diffusion.config import DenoiserConfig, RefineConfig
    from lad.diffusion.denoiser import Denoiser
    from lad.evaluation.throughput import add_run, read_runs
    from lad.evaluation.throughput import bench as run_bench
    from lad.models.registry import load_backbone
    from lad.training.config import read_config
    from lad.utils import sha256_file

    where, random = common.choose_device(device), ":random" in model
    usual = DEFAULTS["random" if random else "cpu" if where == "cpu" else "gpu"]
    given = (windows, batches, n_prompts, reference_prompts, reference_iterations)
    windows, batches, n_prompts, reference_prompts, reference_iterations = (
        default if value is None else value for value, default in zip(given, usual, strict=True)
    )
    sizes = common.parse_numbers("windows", windows), common.parse_numbers("batches", batches)
    # What cannot be written is an error now, not after minutes of timing.
    for path in filter(None, (out, record)):
        check_writable(path)
    if record is not None:
        read_runs(record)
    values = ("random", RefineConfig(**RANDOM)) if random else common.read_setting(setting)
    setting, values = values
    if iterations is not None:
        values = replace(values, iterations=iterations)
    texts = common.read_prompts(prompts)
    if random:
        given = read_config(config).get("denoiser", {}) if config is not None else {}
        denoiser = Denoiser.create(load_backbone(model, where), DenoiserConfig.from_dict(given))
        denoiser = denoiser if denoiser.backbone.spec.bits else denoiser.merge()
    else:
        denoiser = load_denoiser(model, adapter, where)
    captured = graphs and denoiser.device.type == "cuda"
    if captured:
        from lad.accel import capture

        capture(denoiser)

    def keep(result: dict) -> None:
        """Into the file after every window and batch, so that timings outlive a stop."""
        command, digest = common.command_line(), sha256_file(prompts)
        result |= {"kind": "iteration", "command": command, "setting": setting, "graphs": captured}
        result["prompts"] |= {"of": len(texts), "file": prompts.name, "sha256": digest}
        if out is not None:
            common.save_json(out, result)

    chosen, backbone = common.evenly_spaced(texts, n_prompts), load_backbone(model, where).model
    limits = {"reference_prompts": reference_prompts}
    limits["reference_iterations"] = reference_iterations or None  # 0: all
    result = run_bench(denoiser, backbone, chosen, values, *sizes, on_result=keep, **limits)
    try:
        common.print_result(result, as_json, as_text(result))
    finally:
        if record is not None:
            add_run(record, result)


def as_text(result: dict) -> str:
    from lad.evaluation.statistics import Estimate
    from lad.evaluation.throughput import WAYS
    from lad.viz.tokens import count

    def number(estimate: dict | None, factor: float = 1) -> str:
        return Estimate.from_dict(estimate).text(factor) if estimate else "–"

    headings = ("window", "batch", "s an answer", "NFE", "TPF", "tokens/s", "iteration, ms")
    headings += ("by roofline", "× reference", "× its forwards")
    baselines = ("window", "batch", "ms a token")
    baselines += tuple(words for way in WAYS for words in (f"{way}, ms a token", f"× {way}"))
    rows, others = [], []
    for cell in result["cells"]:
        sampler = cell["sampler"]
        row = [str(cell["window"]), str(cell["batch"]), f"{sampler['seconds_per_answer']:.3f}"]
        row += [f"{sampler['nfe']:.1f}", f"{sampler['tpf']:.2f}"]
        row += [f"{sampler['tokens_per_second']:.1f}", f"{1000 * sampler['iteration_seconds']:.1f}"]
        row.append(f"{sampler['iteration_by_floor']:.1f}")
        keys = ("speedup_vs_reference", "speedup_vs_reference_forwards")
        rows.append(row + [number(cell[key]) for key in keys])
        others.append([*row[:2], number(sampler["seconds_per_token"], 1000)])
        for way in WAYS:
            others[-1].append(number((cell[way] or {}).get("seconds_per_token"), 1000))
            others[-1].append(number(cell[f"speedup_vs_{way}"]))
    prompts, limit = result["prompts"], result["reference_iterations"]
    text = f"{prompts['used']} of {prompts['of']} prompts from {prompts['file']}"
    if prompts["by_reference"]:
        text += f"; the reference answered {prompts['by_reference']} of them"
        text += f", {count(limit, 'iteration')} of each" if limit else ""
    lines = (
        f"{common.origin_line(result['provenance'])}, {result['setting']}",
        "Medians over rounds; a speed-up, for an answer, with its 95 % interval.",
        common.table(headings, rows),
        common.table(baselines, others, "beside the backbone from left to right"),
        "generate is not compiled; static, on a GPU, is, with a cache of fixed size; lookup "
        "speculates with n-grams of the text so far, one prompt at a time.",
        f"{text}.",
    )
    return "\n".join(lines)
