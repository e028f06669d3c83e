"""Traces on disk: JSON Lines with a header, one line a step, and a closing line.

A file without its closing line counts as truncated. Settings that earlier versions wrote under
other names are read under today's.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Annotated, Literal

import numpy as np
from pydantic import Field
from typing_extensions import TypedDict

from lad.diffusion.config import RefineConfig, upgrade
from lad.diffusion.trace import Step, Trace
from lad.utils import Count, InvalidInput, checked, damaged_file, record, write_whole

SCHEMA = "lad-trace"
SCHEMA_VERSION = 1


# The lines: a header, one for each iteration, and the end.
Ids = list[Count]
HEADER = {"schema": Literal[SCHEMA], "version": Literal[SCHEMA_VERSION], "prompt": str}
HEADER |= {"mask_token_id": Count, "eos_token_id": Count, "special_ids": Ids, "prompt_ids": Ids}
HEADER |= {"vocabulary": dict[Count, str], "config": dict, "provenance": dict}
STEP = {"iteration": Count, "inputs": Ids, "draft": Annotated[Ids, Field(min_length=1)]}
STEP |= {"confidence": list[float], "renoised": Ids, "seconds": Annotated[float, Field(ge=0)]}
Header = record(TypedDict("Header", HEADER))
Line = record(TypedDict("Line", STEP))
End = record(TypedDict("End", {"end": Count, "stopped_early": bool}))


def save(trace: Trace, path: Path) -> Path:
    """Write a trace; see `Trace.save`."""
    write_whole(path, "".join(line + "\n" for line in to_lines(trace)).encode())
    return path


def load(path: Path) -> Trace:
    """Read a trace; see `Trace.load`."""
    if not path.exists():
        raise InvalidInput(f"no trace at {path}: expected a .jsonl file that `Trace.save` wrote")
    with damaged_file(path, "expected a whole file of `Trace.save`; record the trace again"):
        return from_lines(path.read_text(encoding="utf-8").removesuffix("\n").split("\n"))


def to_lines(trace: Trace) -> Iterator[str]:
    """The lines of the file."""
    header = {
        "schema": SCHEMA,
        "version": SCHEMA_VERSION,
        "prompt": trace.prompt,
        "mask_token_id": trace.mask_token_id,
        "eos_token_id": trace.eos_token_id,
        "special_ids": sorted(trace.special_ids),
        # One character a byte: readable for ASCII, exact for the halves of a split character.
        "vocabulary": {str(k): v.decode("latin-1") for k, v in sorted(trace.vocabulary.items())},
        "prepend_scheme": trace.prepend_scheme,
        "prompt_ids": trace.prompt_ids.tolist(),
        "config": trace.config,
        "provenance": trace.provenance,
    }
    yield json.dumps(header, ensure_ascii=False)
    for step in trace.steps:
        entry = {
            "iteration": step.iteration,
            "inputs": step.inputs.tolist(),
            "draft": step.draft.tolist(),
            # str() of a float32 is the shortest decimal that reads back as the same bits.
            "confidence": [float(str(c)) for c in step.confidence],
            "renoised": np.flatnonzero(step.remask).tolist(),
            "seconds": round(step.seconds, 6),
        }
        yield json.dumps(entry)
    yield json.dumps({"end": len(trace.steps), "stopped_early": trace.stopped_early})


def from_lines(lines: list[str]) -> Trace:
    """Inverse of `to_lines`; ValueError or LookupError on other text."""
    header = checked(lines[0], Header)
    end = checked(lines[-1], End)  # missing where the file is truncated
    steps = [_read_step(number, checked(line, Line)) for number, line in enumerate(lines[1:-1])]
    if end["end"] != len(steps):
        raise ValueError(f"{len(steps)} of {end['end']} steps: truncated")
    vocabulary = {token: text.encode("latin-1") for token, text in header["vocabulary"].items()}
    for step in steps:
        if len(step.draft) != len(steps[0].draft):
            raise ValueError(f"step {step.iteration} is inconsistent")
        unknown = {*step.inputs.tolist(), *step.draft.tolist()} - set(vocabulary)
        if unknown:
            raise ValueError(f"token {min(unknown)} is not in the vocabulary")
    config = upgrade(header["config"])
    RefineConfig.from_dict(config)
    return Trace(
        prompt=header["prompt"],
        steps=steps,
        stopped_early=end["stopped_early"],
        mask_token_id=header["mask_token_id"],
        eos_token_id=header["eos_token_id"],
        special_ids=frozenset(header["special_ids"]),
        vocabulary=vocabulary,
        prompt_ids=np.array(header["prompt_ids"], dtype=np.int64),
        config=config,
        provenance=header["provenance"],
        prepend_scheme=header.get("prepend_scheme"),
    )


def _read_step(number: int, entry: dict) -> Step:
    draft = np.array(entry["draft"], dtype=np.int64)
    remask = np.zeros(len(draft), dtype=bool)
    remask[entry["renoised"]] = True
    step = Step(
        iteration=entry["iteration"],
        inputs=np.array(entry["inputs"], dtype=np.int64),
        draft=draft,
        confidence=np.array(entry["confidence"], dtype=np.float32),
        remask=remask,
        seconds=entry["seconds"],
    )
    if step.iteration != number or not len(step.inputs) == len(draft) == len(step.confidence):
        raise ValueError(f"step {number} is inconsistent")
    return step
