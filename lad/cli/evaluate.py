"""`lad evaluate`: how good an adapter is, in numbers with intervals."""

from __future__ import annotations

import json
import sys
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from lad.cli.common import (
    Adapter,
    AsJson,
    Device,
    Model,
    check_least,
    choose_device,
    print_json,
)
from lad.utils import InvalidInput

if TYPE_CHECKING:
    from lad.diffusion.config import RefineConfig
    from lad.diffusion.denoiser import Denoiser
    from lad.models.registry import LoadedBackbone

DATA = Path(__file__).parents[1] / "assets"
ON_A_CPU = {"pairs": 40, "prompts": 20}  # a few minutes on two cores; elsewhere, all there are


def evaluate(
    settings: Annotated[
        str, typer.Option(help="Presets, or JSON files with settings, separated by commas.")
    ] = "quality,default,noiseless",
    n_prompts: Annotated[
        int | None, typer.Option(help="Prompts answered, evenly spaced: 20 on a CPU, else all.")
    ] = None,
    n_pairs: Annotated[
        int | None, typer.Option(help="Pairs measured on, evenly spaced: 40 on a CPU, else all.")
    ] = None,
    prompts: Annotated[
        Path, typer.Option(help="Held-out prompts, one a line.", show_default=False)
    ] = DATA / "held-out.txt",
    pairs: Annotated[
        Path, typer.Option(help="Held-out pairs, .jsonl or .jsonl.gz.", show_default=False)
    ] = DATA / "held-out-pairs.jsonl.gz",
    seed: Annotated[int, typer.Option(help="Of masks and damage.")] = 0,
    batch_size: Annotated[int | None, typer.Option(help="Answers at once.")] = None,
    answers: Annotated[bool, typer.Option("--answers", help="The answers too.")] = False,
    model: Model = "smollm2-135m",
    adapter: Adapter = None,
    device: Device = "auto",
    as_json: AsJson = False,
) -> None:
    """Measure an adapter on pairs and prompts it never saw, beside the backbone it sits on."""
    from lad.evaluation.adapter_eval import evaluate as run_evaluation
    from lad.training import read_pairs
    from lad.utils import sha256_file

    check_least(1, n_prompts=n_prompts, n_pairs=n_pairs, batch_size=batch_size)
    chosen = read_settings(settings)
    known_pairs, known_prompts = read_pairs(pairs), read_prompts(prompts)
    denoiser, backbone = load_both(model, adapter, device)
    with progress() as tell:
        result = run_evaluation(
            denoiser,
            some(known_pairs, n_pairs, ON_A_CPU["pairs"], denoiser),
            some(known_prompts, n_prompts, ON_A_CPU["prompts"], denoiser),
            chosen,
            seed=seed,
            batch_size=batch_size,
            backbone=backbone,
            keep_answers=answers,
            on_progress=tell,
        )
    for name, path, number in (
        ("pairs", pairs, len(known_pairs)),
        ("prompts", prompts, len(known_prompts)),
    ):
        result[name] |= {"of": number, "file": path.name, "sha256": sha256_file(path)}
    if as_json:
        print_json(result)
    else:
        show(result)


def read_settings(text: str) -> dict[str, RefineConfig]:
    """Names of presets and of JSON files, separated by commas, as settings by name.

    Raises:
        InvalidInput: no such preset or file, or a file that holds no valid settings.
    """
    from lad.diffusion.config import RefineConfig, preset

    chosen = {}
    for name in text.split(","):
        path = Path(name.strip())
        if path.suffix != ".json":
            chosen[name.strip()] = preset(name.strip())
            continue
        try:
            values = json.loads(path.read_text(encoding="utf-8"))
        except (OSError, ValueError) as error:
            raise InvalidInput(
                f"settings = {name!r}: {error}; expected a JSON file such as "
                '{"iterations": 16, "remasking": "none"}'
            ) from error
        chosen[path.stem] = RefineConfig.from_dict(values)
    return chosen


def read_prompts(path: Path) -> list[str]:
    """Prompts of a text file, one a line; empty lines are none.

    Raises:
        InvalidInput: no such file, not UTF-8, or no prompts in it.
    """
    try:
        lines = path.read_text(encoding="utf-8").split("\n")
    except (OSError, UnicodeDecodeError) as error:
        raise InvalidInput(
            f"no prompts at {path} ({error}): expected a text file, one prompt a line"
        ) from error
    prompts = [line.strip() for line in lines if line.strip()]
    if not prompts:
        raise InvalidInput(f"{path} holds 0 prompts: expected at least one line")
    return prompts


def spread(items: list, n: int) -> list:
    """At most n of the items, evenly spaced: files tend to be sorted by kind."""
    n = min(n, len(items))
    return [items[i * len(items) // n] for i in range(n)]


def some(items: list, n: int | None, on_a_cpu: int, denoiser: Denoiser) -> list:
    """As many as asked for, evenly spaced; by default a few on a CPU and all elsewhere."""
    return spread(items, n or (on_a_cpu if denoiser.device.type == "cpu" else len(items)))


def load_both(
    model: str, adapter: Path | None, device: str
) -> tuple[Denoiser, LoadedBackbone | None]:
    """What is measured, and by which backbone; None where its own with the adapter off will do."""
    import torch

    from lad.diffusion.adapter import load_denoiser
    from lad.models.registry import load_backbone

    where = choose_device(device)
    denoiser = load_denoiser(model, adapter, where)
    # Taking a merged adapter out again is exact enough in float32 alone.
    exact = denoiser.causal_lm.dtype == torch.float32
    return denoiser, None if exact else load_backbone(model, where)


@contextmanager
def progress():
    """A bar on stderr, where that is a terminal; yields what `evaluate` calls."""
    from rich.console import Console
    from rich.progress import Progress

    console = Console(stderr=True)
    with Progress(console=console, transient=True, disable=not sys.stderr.isatty()) as bars:
        tasks = {}

        def tell(stage: str, done: int, total: int) -> None:
            if stage not in tasks:
                tasks[stage] = bars.add_task(stage, total=total)
            bars.update(tasks[stage], completed=done)

        yield tell


# -- for people ------------------------------------------------------------------------------------

# What is shown of a setting: name, key, factor, digits.
ROWS = (
    ("repeats, %", "repeats", 100, 1),
    ("distinct-3, %", "distinct_3", 100, 1),
    ("perplexity by backbone's", "relative_perplexity", 1, 2),
    ("the same, EOS counted", "relative_perplexity_with_end", 1, 2),
    ("perplexity", "perplexity", 1, 2),
    ("answers that end, %", "ended", 100, 0),
    ("tokens an answer", "tokens", 1, 1),
    ("NFE", "nfe", 1, 1),
    ("forwards a token", "forwards_per_token", 1, 2),
    ("TPF", "tpf", 1, 2),
)


def written(estimate: dict, factor: float = 100, digits: int = 1) -> str:
    """An estimate as text, such as "78.1 (75.0–81.2)"; a dash where there is none.

    JSON has no infinity: where something was measured, None stands for it.
    """

    def number(x: float | None) -> str:
        return "∞" if x is None else f"{factor * x:.{digits if abs(factor * x) < 1000 else 0}f}"

    value, low, high = (number(estimate[key]) for key in ("value", "low", "high"))
    return f"{value} ({low}–{high})" if estimate["n"] else "–"


def show(result: dict) -> None:
    """The result as tables on stdout."""
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    # A terminal wraps as it must; a file or a pipe gets lines as long as the table needs.
    console = Console(width=None if sys.stdout.isatty() else 120)
    origin, pairs, prompts = result["provenance"], result["pairs"], result["prompts"]
    columns = result["settings"] | {"backbone": result["backbone"]}

    def table(used: dict, *headings: str) -> Table:
        title = f"{used['used']} of {used['of']:,} from {used['file']}"
        made = Table(title=Text(title), title_justify="left")
        for heading in headings:
            made.add_column(Text(heading))
        return made

    digest = (origin["adapter_sha256"] or "unsaved")[:12]
    where = f"{origin['device']} ({origin['processor']}), {origin['dtype']}"
    console.print(Text(f"{origin['model']}, adapter {digest}, {where}"))
    console.print(Text("Each number with its 95 % interval over answers."))
    rows = table(pairs, "held-out pairs", "cross-entropy, nats", "accuracy, %")
    for fraction, scores in result["masked"].items():
        ce, accuracy = written(scores["ce"], 1, 3), written(scores["accuracy"])
        rows.add_row(f"{100 * float(fraction):.0f} % masked", ce, accuracy)
    console.print(rows)
    rows = table(pairs, "tokens behind a clean beginning", "accuracy, %")
    for distance, share in result["ahead"].items():
        rows.add_row(f"number {distance}", written(share))
    console.print(rows)
    repair = result["repair"]
    rows = table(pairs, "structural repair", "restored, %", "kept, %")
    how = f"p = {repair['severity']}, {repair['iterations']} iterations"
    rows.add_row(how, written(repair["restored"]), written(repair["kept"]))
    console.print(rows)
    rows = table(prompts, "held-out prompts", *columns)
    for name, key, factor, digits in ROWS:
        rows.add_row(name, *(written(c[key], factor, digits) for c in columns.values()))
    rows.add_row("seconds an answer", *(f"{c['seconds_per_answer']:.2f}" for c in columns.values()))
    console.print(rows)
    for name, scores in result["settings"].items():
        console.print(Text(f"{name}: {describe(scores['config'])}"))
    if "answers" in result["backbone"]:
        for rows in zip(*(scores["answers"] for scores in columns.values()), strict=True):
            console.print(Text(f"\n{rows[0]['prompt']}", style="bold"))
            for name, row in zip(columns, rows, strict=True):
                console.print(Text(f"  {name}: {row['answer']}"))


def describe(config: dict) -> str:
    """Settings as text, those that are as `RefineConfig` has them left out."""
    from lad.diffusion.config import RefineConfig

    usual = RefineConfig().to_dict()
    told = [f"{key} {value}" for key, value in config.items() if value != usual[key]]
    return ", ".join(told) or "every control as it comes"
