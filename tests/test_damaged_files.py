"""Files that people edit, cut or receive: any JSON in them loads, or is an error of one line."""

from __future__ import annotations

import copy
import json

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from traces import EOS, make_trace

from lad.diffusion.adapter import read_card
from lad.diffusion.config import DenoiserConfig
from lad.diffusion.trace import Trace
from lad.evaluation.benchmark import compare, join_runs, read_run
from lad.evaluation.tasks import load_items
from lad.evaluation.throughput import read_runs
from lad.training.data import read_pairs
from lad.training.distillation import DistilConfig, collect
from lad.utils import AdapterMismatch, DamagedFile, InvalidInput

CARD = {"schema": 1, "backbone": "tiny", "backbone_digest": "0", "mask_token_id": 1}
CARD |= {"eos_token_id": 2, "adapter_sha256": "0", **DenoiserConfig().to_dict()}
SUMMARY = {"n": 1, "task": "arc-easy", "scoring": "likelihood", "target": "line"}
SUMMARY |= {"adapter_sha256": None, "asked": {"rotate": False}}
ROW = {"key": "a", "id": "a", "task": "arc-easy", "rotation": 0, "options": 4, "gold": 1}
ROW |= {"choice": 1, "correct": True, "parsable": True, "seconds": 0.1, "margin": 1.0}
ROW |= {"choice_normalised": 1, "correct_normalised": True, "margin_error": 0.5}

ITEM = {"id": "a1", "question": "Which is wet?", "options": ["Sand", "Water"], "gold": 1}


def use_run(path):
    run = read_run(path.parent)
    compare(run, run)
    join_runs([path.parent])


def use_trace(path):
    trace = Trace.load(path)
    assert trace.answer is not None and trace.seconds >= 0 and len(trace.settled_share) == trace.nfe
    assert Trace.load(trace.save(path)) == trace


# What a file holds, one JSON object a line; how it is read and used.
LORA = {"r": CARD["rank"], "lora_alpha": CARD["alpha"], "target_modules": CARD["layers"]}
FILES = {
    "adapter_config.json": ([LORA], lambda path: read_card(path.parent)),
    "denoiser.json": ([CARD], lambda path: read_card(path.parent)),
    "trace.jsonl": ([], use_trace),
    "rows.jsonl": ([ROW], use_run),
    "summary.json": ([SUMMARY], use_run),
    "runs.json": ([{"schema": 1, "runs": [{"kind": "a"}]}], read_runs),
    "arc-easy-test.jsonl": ([ITEM], lambda path: load_items("arc-easy", source=path.parent)),
    "pairs.jsonl": ([{"prompt": "p", "answer": "a"}], read_pairs),
    "00000.jsonl": (
        [{"prompt": "p", "answer": "a"}, {"counts": {"kept": 1}}],
        lambda path: collect(path.parent, DistilConfig()),
    ),
}
ODD = st.sampled_from([10**400, 2**63, -1, 0.5, True, None, "", "1", "\u2028", [], {}, [[1]]])
ODD |= st.floats() | st.sampled_from([[10**400], [0.5], [None], [-1], ["q_proj", 1], {"a": {}}])
VALUES = st.recursive(
    ODD | st.text(max_size=3) | st.integers(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=3), inner),
    max_leaves=4,
)


def write(folder, name, lines):
    beside = {"summary.json": [SUMMARY], "rows.jsonl": [ROW], "denoiser.json": [CARD]}
    beside |= {"adapter_config.json": [LORA]}
    for other, content in (beside | {name: lines}).items():
        (folder / other).write_text("".join(json.dumps(line) + "\n" for line in content))
    return folder / name


@pytest.mark.parametrize("name", FILES)
@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(data=st.data())
def test_any_value_loads_or_is_refused_in_a_line(tmp_path_factory, name, data):
    folder = tmp_path_factory.mktemp("files")
    lines, use = FILES[name]
    if name == "trace.jsonl":
        path = make_trace([b"a", EOS], [b"b", EOS], remask=[[0], []]).save(folder / name)
        lines = [json.loads(line) for line in path.read_text().splitlines()]
    use(write(folder, name, lines))  # as it is, it can be used
    lines = copy.deepcopy(lines)
    number = data.draw(st.integers(0, len(lines) - 1))
    target, value = lines[number], data.draw(ODD | VALUES)
    key = data.draw(st.sampled_from([None, *target]))
    if key is None:
        lines[number] = value
    elif isinstance(target[key], dict | list) and target[key] and data.draw(st.booleans()):
        inner = target[key]
        places = [*inner] if isinstance(inner, dict) else range(len(inner))
        inner[data.draw(st.sampled_from(places))] = value
    else:
        target[key] = value
    check(use, write(folder, name, lines))


@pytest.mark.parametrize("name", FILES)
@pytest.mark.parametrize("text", ["[" * 100_000, '{"a":' * 100_000, "", "\ud800", "1" * 5000])
def test_deep_and_odd_text_is_refused_in_a_line(tmp_path, name, text):
    path = write(tmp_path, name, [])
    path.write_bytes(text.encode("utf-8", "surrogatepass"))
    with pytest.raises((DamagedFile, InvalidInput)):
        check(FILES[name][1], path, again=True)


def check(use, path, again=False):
    try:
        use(path)
    except (DamagedFile, InvalidInput, AdapterMismatch) as error:
        assert "\n" not in str(error) and len(str(error)) < 700
        if again:
            raise
