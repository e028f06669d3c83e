"""Traces on disk: JSON Lines with a header, one line a step, and a closing line.

A file without its closing line counts as truncated. Settings that earlier versions wrote under
other names are read under today's. Version 2 adds the fixed positions to each step, and to the
closing line the alternatives of all steps: records of type `RECORD`, those of the first step first,
their bytes transposed (the first byte of every record, then the second, and so on), compressed by
zlib, in base 64.
"""

from __future__ import annotations

import base64
import json
import zlib
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Annotated, Literal

import numpy as np
from pydantic import Field
from typing_extensions import TypedDict

from lad.diffusion.config import RefineConfig, upgrade
from lad.diffusion.trace import ALTERNATIVES, Step, Trace
from lad.utils import Count, InvalidInput, checked, damaged_file, record, write_whole

SCHEMA = "lad-trace"
SCHEMA_VERSION = 2
RECORD = [("alternatives", "<i4", ALTERNATIVES), ("probabilities", "<f2", ALTERNATIVES)]
RECORD = np.dtype([*RECORD, ("entropy", "<f2")])
# Of a trace, in the header, in this order.
FIELDS = ("prompt", "mask_token_id", "eos_token_id", "special_ids", "vocabulary", "prepend_scheme")
FIELDS += ("prompt_ids", "config", "provenance")

# The lines: a header, one for each iteration, and the end.
Ids = list[Count]
HEADER = {"schema": Literal[SCHEMA], "version": Literal[1, SCHEMA_VERSION], "prompt": str}
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
    header = {"schema": SCHEMA, "version": SCHEMA_VERSION}
    header |= {name: getattr(trace, name) for name in FIELDS}
    header |= {"special_ids": sorted(trace.special_ids), "prompt_ids": trace.prompt_ids.tolist()}
    # One character a byte: readable for ASCII, exact for the halves of a split character.
    words = {str(k): v.decode("latin-1") for k, v in sorted(trace.vocabulary.items())}
    yield json.dumps(header | {"vocabulary": words}, ensure_ascii=False)
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
        if step.fixed is not None:
            entry["fixed"] = np.flatnonzero(step.fixed).tolist()
        yield json.dumps(entry)
    end = {"end": len(trace.steps), "stopped_early": trace.stopped_early}
    if trace.alternatives is not None:
        records = np.empty(trace.drafts.shape, RECORD)
        for name in RECORD.names:
            records[name] = getattr(trace, name)
        data = records.view(np.uint8).reshape(-1, RECORD.itemsize).T.tobytes()
        end["alternatives"] = base64.b64encode(zlib.compress(data, 9)).decode()
    yield json.dumps(end)


def from_lines(lines: list[str]) -> Trace:
    """Inverse of `to_lines`; ValueError or LookupError on other text."""
    header = checked(lines[0], Header)
    end = checked(lines[-1], End)  # missing where the file is truncated
    steps = [_read_step(number, checked(line, Line)) for number, line in enumerate(lines[1:-1])]
    if end["end"] != len(steps):
        raise ValueError(f"{len(steps)} of {end['end']} steps: truncated")
    for step in steps:
        if len(step.draft) != len(steps[0].draft):
            raise ValueError(f"step {step.iteration} is inconsistent")
    if "alternatives" in end:
        steps = _with_alternatives(steps, end["alternatives"])
    vocabulary = {token: text.encode("latin-1") for token, text in header["vocabulary"].items()}
    for step in steps:
        named = [x for x in (step.inputs, step.draft, step.alternatives) if x is not None]
        unknown = set(np.concatenate(named, axis=None).tolist()) - set(vocabulary)
        if unknown:
            raise ValueError(f"token {min(unknown)} is not in the vocabulary")
    config = upgrade(header["config"])
    RefineConfig.from_dict(config)
    values = {name: header.get(name) for name in FIELDS} | {"vocabulary": vocabulary}
    values |= {"special_ids": frozenset(header["special_ids"]), "config": config}
    values["prompt_ids"] = np.array(header["prompt_ids"], dtype=np.int64)
    return Trace(steps=steps, stopped_early=end["stopped_early"], **values)


def _read_step(number: int, entry: dict) -> Step:
    draft = np.array(entry["draft"], dtype=np.int64)
    remask, fixed = np.zeros((2, len(draft)), dtype=bool)
    remask[entry["renoised"]] = True
    fixed[checked(entry.get("fixed", []), Ids)] = True
    step = Step(
        iteration=entry["iteration"],
        inputs=np.array(entry["inputs"], dtype=np.int64),
        draft=draft,
        confidence=np.array(entry["confidence"], dtype=np.float32),
        remask=remask,
        fixed=fixed if "fixed" in entry else None,
        seconds=entry["seconds"],
    )
    if step.iteration != number or not len(step.inputs) == len(draft) == len(step.confidence):
        raise ValueError(f"step {number} is inconsistent")
    return step


def _with_alternatives(steps: list[Step], text: str) -> list[Step]:
    shape = RECORD.itemsize, len(steps), len(steps[0].draft)
    data = zlib.decompressobj().decompress(base64.b64decode(text), np.prod(shape) + 1)
    planes = np.frombuffer(data, np.uint8).reshape(shape)  # a ValueError where the length is wrong
    records = np.moveaxis(planes, 0, -1).copy().view(RECORD)[..., 0]
    p, entropy = records["probabilities"], records["entropy"]
    if not ((p >= 0) & (p <= 1)).all() or not ((entropy >= 0) & (entropy < np.inf)).all():
        raise ValueError("alternatives: expected probabilities in [0, 1] and an entropy from 0 up")
    each = [{name: of[name].copy() for name in RECORD.names} for of in records]
    return [replace(step, **fields) for step, fields in zip(steps, each, strict=True)]
