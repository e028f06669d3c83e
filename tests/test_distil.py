"""Self-distillation: what is kept, what is refused, and batches that any run can take up again."""

import gzip
import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from lad.assets import sha256_file
from lad.backbones import load_backbone
from lad.errors import CacheError, DamagedFile, InvalidInput
from lad.training import Pair, read_pairs
from lad.training.distil import (
    DistilConfig,
    collect,
    contaminated,
    distil,
    generate,
    openings,
    reject,
)

SMALL = DistilConfig(batch_size=6, context=128, prompt_tokens=8)


def write_batch(folder, number, pairs, **counts):
    folder.mkdir(exist_ok=True)
    rows = [*map(vars, pairs), {"counts": {"tried": 10, "kept": len(pairs)} | counts}]
    text = "".join(json.dumps(row) + "\n" for row in rows)
    (folder / f"{number:05d}.jsonl").write_text(text)


@pytest.mark.parametrize(
    ("answer", "reason"),
    [
        ("The capital of France is Paris.", None),
        ("Paris.", None),
        (" ", "answer empty"),
        ("It is <|im_start|> a city.", "answer holds control tokens"),
        ("It is a caf\ufffd.", "answer holds control tokens"),
        ("Amsterdam is a city city in Holland.", "answer stutters"),
        ("I can help. " * 6, "answer loops"),
    ],
)
def test_what_is_worth_learning(answer, reason):
    assert reject(answer) == reason


def test_contamination_is_an_exact_stem_or_thirteen_words_in_a_row():
    words = [f"w{n}" for n in range(20)]
    passages = ["Which gas do plants take in?", " ".join(words)]
    stem = Pair("which GAS do plants take in", "Carbon dioxide.")
    overlap = Pair("Tell me.", "Well, " + " ".join(words[3:16]) + " indeed.")
    twelve = Pair("Tell me more.", "Well, " + " ".join(words[3:15]) + " indeed.")
    assert contaminated([stem, overlap, twelve], passages) == {stem, overlap}
    assert contaminated([stem, overlap, twelve], []) == set()


@given(st.lists(st.sampled_from("abcdefgh"), min_size=13, max_size=40))
def test_a_passage_contaminates_itself(words):
    text = " ".join(words)
    assert contaminated([Pair("p", text)], [text])


def test_openings_are_varied_and_clean():
    lines = openings()
    assert len(set(lines)) > 80
    assert all(line == line.strip() and line for line in lines)


def test_generation_stops_at_eos_and_says_when_it_did_not():
    backbone = load_backbone("tiny")
    rows = generate(backbone, [[1, 2, 3], [4]], new_tokens=60, temperature=1.0, top_k=300)
    for row in rows:
        assert row is None or (backbone.eos_token_id not in row and len(row) < 60)


def test_a_run_goes_on_where_it_stopped_and_processes_share_the_work(tmp_path):
    backbone, made = load_backbone("tiny"), []

    def note(number, counts):
        made.append(number)
        assert counts["tried"] == SMALL.batch_size

    distil(backbone, tmp_path / "whole", 4, SMALL, on_batch=note)
    assert made == [0, 1, 2, 3]
    made.clear()
    distil(backbone, tmp_path / "parts", 4, SMALL, rank=1, processes=2, on_batch=note)
    distil(backbone, tmp_path / "parts", 4, SMALL, on_batch=note, more=lambda: len(made) < 3)
    assert made == [1, 3, 0]
    distil(backbone, tmp_path / "parts", 4, SMALL, on_batch=note)
    assert made == [1, 3, 0, 2]
    for path in (tmp_path / "whole").iterdir():
        assert path.read_bytes() == (tmp_path / "parts" / path.name).read_bytes()


def test_joining_keeps_each_prompt_once_and_accounts_for_the_rest(tmp_path):
    folder, out = tmp_path / "batches", tmp_path / "pairs.jsonl.gz"
    write_batch(folder, 0, [Pair("What is it?", "A."), Pair("Who?", "B.")], **{"answer loops": 3})
    write_batch(folder, 1, [Pair("what IS it", "C."), Pair("Where?", "D.")])
    card = collect(folder, out, SMALL, passages=["where"])
    assert read_pairs(out) == [Pair("What is it?", "A."), Pair("Who?", "B.")]
    assert card["pairs"] == 2 and card["batches"] == 2
    assert card["counts"] == {
        "answer loops": 3,
        "contaminated": 1,
        "kept": 4,
        "prompt in another batch": 1,
        "tried": 20,
    }
    assert card["sha256"] == sha256_file(out)
    assert json.loads((tmp_path / "pairs-card.json").read_text()) == card
    first = out.read_bytes()
    collect(folder, out, SMALL, passages=["where"])
    assert out.read_bytes() == first
    assert gzip.decompress(first).count(b"\n") == 2


def test_what_cannot_be_joined_is_named(tmp_path):
    with pytest.raises(InvalidInput, match="no batches in"):
        collect(tmp_path, tmp_path / "p.jsonl", SMALL)
    (tmp_path / "00000.jsonl").write_text('{"prompt": "p", "answer": "a"}\n')
    with pytest.raises(DamagedFile, match=r"00000\.jsonl is not whole"):
        collect(tmp_path, tmp_path / "p.jsonl", SMALL)
    assert not (tmp_path / "p.jsonl").exists()


def test_bad_settings_and_disks(tmp_path):
    with pytest.raises(InvalidInput, match="batch_size = 0"):
        DistilConfig(batch_size=0)
    (tmp_path / "file").write_text("")
    with pytest.raises(CacheError, match="cannot write to"):
        distil(load_backbone("tiny"), tmp_path / "file" / "x", 1, SMALL)


@pytest.mark.real
def test_the_backbone_writes_pairs_of_its_own(tmp_path):
    config = DistilConfig(batch_size=12, context=96, prompt_tokens=24)
    distil(load_backbone("smollm2-135m"), tmp_path / "b", 1, config)
    card = collect(tmp_path / "b", tmp_path / "p.jsonl", config)
    assert card["counts"]["tried"] == 12
    unaccounted = card["counts"]["tried"] - sum(
        n for reason, n in card["counts"].items() if reason != "tried"
    )
    assert unaccounted == 0
