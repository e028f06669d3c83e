"""Traces: what is derived from the arrays, and files that come back as they went."""

import base64
import json
import zlib
from dataclasses import replace

import numpy as np
import pytest
from conftest import tiny_denoiser
from hypothesis import given, settings
from hypothesis import strategies as st
from traces import EOS, MASK, make_trace

from lad.diffusion.config import RefineConfig
from lad.diffusion.sampler import record
from lad.diffusion.trace import Trace
from lad.diffusion.trace_file import RECORD
from lad.utils import CacheError, DamagedFile, InvalidInput


def test_what_changed_and_when_it_settled():
    trace = make_trace(
        [b"a", b"b", EOS, EOS],
        [b"a", b"c", EOS, EOS],
        [b"a", b"c", b"d", EOS],
        remask=[[1], [2], []],
    )
    assert trace.is_masked.tolist() == [[True] * 4, [False, True, False, False], [0, 0, 1, 0]]
    assert trace.changed.tolist() == [[True] * 4, [False, True, False, False], [0, 0, 1, 0]]
    assert trace.settled_at.tolist() == [0, 1, 2, 0]
    assert trace.tokens == 3 and trace.answer == "acd"
    assert trace.settled_share.tolist() == pytest.approx([2 / 4, 3 / 4, 1])  # EOS too
    assert trace.nfe == 3 and trace.tpf == 1.0
    assert [trace.text(i) for i in range(3)] == ["ab", "ac", "acd"]

    returned = make_trace([b"a"], [b"b"], [b"a"])
    assert returned.settled_at.tolist() == [2]


@pytest.mark.parametrize(
    ("draft", "tokens", "answer"),
    [
        ([b"x", "🎉".encode()[:2], "🎉".encode()[2:], EOS], 3, "x🎉"),
        (["🎉".encode()[:2], EOS], 1, "\ufffd"),
        ([b"a", b"b"], 2, "ab"),
        ([EOS, b"b"], 0, ""),
    ],
)
def test_an_answer_has_whole_characters_and_ends_at_eos(draft, tokens, answer):
    trace = make_trace(draft)
    assert (trace.tokens, trace.answer) == (tokens, answer)
    assert trace.settled_share.tolist() == [1.0]


@settings(max_examples=15, deadline=None)
@given(st.integers(1, 4), st.integers(1, 12), st.integers(0, 99), st.sampled_from([0.0, 1.5]))
def test_a_real_run_comes_back_as_it_went(tmp_path_factory, iterations, length, seed, temperature):
    config = RefineConfig(
        iterations=iterations, answer_length=length, seed=seed, temperature=temperature, top_k=200
    )
    trace = record(tiny_denoiser(), "é <b>\u202e\u2028\x85\n", config)
    path = trace.save(tmp_path_factory.mktemp("traces") / "trace.jsonl")
    again = Trace.load(path)
    assert again == trace
    assert again.answer == trace.answer
    assert again.provenance == trace.provenance
    assert again.confidence.tobytes() == trace.confidence.tobytes()
    assert again.probabilities.tobytes() == trace.probabilities.tobytes()
    assert [p.name for p in path.parent.iterdir()] == ["trace.jsonl"]


def test_alternatives_at_most_double_a_file_and_older_files_have_none(tmp_path):
    trace = record(tiny_denoiser(), "hello", RefineConfig(iterations=16, patience=0))
    path = trace.save(tmp_path / "new.jsonl")
    plain = replace(trace, steps=[replace(s, alternatives=None) for s in trace.steps])
    old = plain.save(tmp_path / "old.jsonl")
    assert old.stat().st_size < path.stat().st_size < 2 * old.stat().st_size
    lines = old.read_text().split("\n")
    change(lines, 0, version=1)
    old.write_text("\n".join(lines))
    again = Trace.load(old)
    assert again.alternatives is None and again.entropy is None
    assert np.array_equal(again.drafts, trace.drafts) and again != trace


@pytest.fixture
def path(tmp_path):
    return make_trace([b"a", EOS], [b"b", EOS], remask=[[0], []]).save(tmp_path / "t.jsonl")


def test_every_truncation_is_damage(path):
    whole = path.read_bytes()
    for cut in range(0, len(whole) - 1, 7):
        path.write_bytes(whole[:cut])
        with pytest.raises(DamagedFile, match=r"t\.jsonl"):
            Trace.load(path)


def recorded(ids, probabilities=0.1, entropy=0.5):
    """What stands in the last line of a trace of two steps of two positions, all alike."""
    data = np.array([(ids, probabilities, entropy)] * 4, RECORD).view(np.uint8).reshape(4, -1)
    return base64.b64encode(zlib.compress(data.T.tobytes())).decode()


def change(lines, number, **changes):
    lines[number] = json.dumps(json.loads(lines[number]) | changes)


@pytest.mark.parametrize(
    ("number", "changes", "named"),
    [
        (0, {"version": 99}, "version = 99"),
        (0, {"config": {"iterations": 0.5}}, r"iterations = 0\.5"),
        (1, {"draft": [1]}, "inconsistent"),
        (1, {"draft": [1, 5000]}, "5000"),
        (3, {"end": 9}, "truncated"),
        (3, {"alternatives": "eJwDAAAAAAE="}, "cannot reshape"),
        (3, {"alternatives": recorded([1, 2, 0, 5000, 1])}, "5000"),
        (3, {"alternatives": recorded([1, 2, 0, 0, 1], [np.nan] * 5)}, r"in \[0, 1\]"),
        (3, {"alternatives": recorded([1, 2, 0, 0, 1], entropy=-1)}, "entropy from 0 up"),
    ],
)
def test_inconsistent_files_say_what_is_wrong(path, number, changes, named):
    lines = path.read_text().splitlines()
    change(lines, number, **changes)
    path.write_text("\n".join(lines))
    with pytest.raises(DamagedFile, match=named):
        Trace.load(path)


def test_a_failing_save_leaves_nothing(tmp_path, monkeypatch):
    trace = make_trace([b"a"])

    def full(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("os.replace", full)
    with pytest.raises(CacheError, match="No space"):
        trace.save(tmp_path / "t.jsonl")
    assert list(tmp_path.iterdir()) == []
    (tmp_path / "file").write_text("")
    with pytest.raises(CacheError, match="cannot write to"):
        trace.save(tmp_path / "file" / "t.jsonl")


def test_what_is_no_trace(tmp_path):
    with pytest.raises(InvalidInput, match="no trace at"):
        Trace.load(tmp_path / "none.jsonl")
    with pytest.raises(InvalidInput, match="0 steps"):
        Trace("p", [], False, MASK, EOS, frozenset(), {}, np.array([1]))
