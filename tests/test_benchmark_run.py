"""Runs: what they keep, how they go on, what they sum up to, and how two compare."""

import json
import multiprocessing

import pytest
from scripted import line_of, oracle, scripted, some_items

from lad.diffusion.config import RefineConfig
from lad.evaluation.benchmark import Item
from lad.evaluation.respondents import Denoising
from lad.evaluation.results import compare, compare_all, find_runs, read_rows, read_run
from lad.evaluation.run import Asked, choose, questions_of, run
from lad.utils import DamagedFile, InvalidInput

QUIET = RefineConfig(iterations=4, remasking="none")
ITEMS = some_items(60)
ORIGIN = {"model": "scripted", "adapter_sha256": None}
BY_WORDS = Asked("arc-easy", "test", n=20)
BY_LETTER = Asked("arc-easy", "test", scoring="likelihood", target="letter")


def asking(say, **changes) -> Denoising:
    return Denoising(scripted(say), QUIET, samples=2, batch_size=8, **changes)


def four(n: int) -> list[Item]:
    """Questions of four options, the right one A, B, C, D, A, ... in turn."""
    return [Item("arc-easy", f"i{x}", f"Q{x}?", ("k", "l", "m", "n"), x % 4) for x in range(n)]


class Breaking:
    """Answers some questions and then fails, as a machine does."""

    def __init__(self, inner, after: int) -> None:
        self.inner, self.after, self.asked = inner, after, []

    def answers(self, questions):
        self.asked.append(len(questions))
        for n, told in enumerate(self.inner.answers(questions)):
            if n == self.after:
                raise KeyboardInterrupt
            yield told


# -- which questions -------------------------------------------------------------------------------


def test_a_seed_draws_the_same_questions_again():
    drawn = choose(ITEMS, 20, 0)
    assert drawn == choose(ITEMS, 20, 0) != choose(ITEMS, 20, 1)
    assert [ITEMS.index(item) for item in drawn] == sorted(ITEMS.index(item) for item in drawn)
    assert choose(ITEMS, None, 0) == ITEMS
    for n in (0, 61):
        with pytest.raises(InvalidInput, match=f"n = {n}: expected 1 to 60"):
            choose(ITEMS, n, 0)


def test_rotating_asks_once_for_every_place():
    turned = questions_of(ITEMS[:3], Asked("arc-easy", "test", rotate=True))
    assert len(turned) == 3 + 4 + 5
    assert sorted(q.gold for q in turned if q.item.id == "q1") == [0, 1, 2, 3]


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"scoring": "guess"}, "scoring = 'guess': expected likelihood or generation"),
        ({"target": "word"}, "target = 'word'"),
        ({"rotate": True, "scoring": "likelihood", "target": "text"}, "not listed"),
        ({"n": 0}, "n = 0"),
    ],
)
def test_what_cannot_be_asked(changes, message):
    with pytest.raises(InvalidInput, match=message):
        Asked("arc-easy", "test", **changes)


# -- models with known answers ---------------------------------------------------------------------


def test_an_oracle_is_right_always():
    asked = [BY_WORDS] + [
        Asked("arc-easy", "test", n=20, scoring="likelihood", target=t)
        for t in ("line", "letter", "text")
    ]
    for each in asked:
        summary = run(asking(oracle(ITEMS)), ITEMS, each, ORIGIN).summary
        assert summary["accuracy"] == summary["parsable"] == 1
        assert summary["n"] == 20 and summary["interval"][1] == 1 and summary["interval"][0] > 0.8


def test_whoever_always_says_b_gets_the_share_of_b():
    items = four(40)
    for asked in (Asked("arc-easy", "test"), BY_LETTER):
        result = run(asking(line_of("B")), items, asked, ORIGIN)
        assert result.summary["accuracy"] == result.summary["majority"] == 0.25
        assert result.summary["letters"]["B"] == {"chosen": 1.0, "right": 0.25}
        assert result.summary["letters"]["A"] == {"chosen": 0.0, "right": 0.25}
        assert all(row["choice"] == 1 for row in result.rows)


def test_whoever_knows_nothing_scores_at_chance():
    result = run(asking(lambda text: None), four(400), BY_LETTER, ORIGIN)
    low, high = result.summary["interval"]
    assert low < 0.25 < high
    assert all(0.15 < x["chosen"] < 0.35 for x in result.summary["letters"].values())
    assert result.summary["close"] == 1  # no best option stands out


def test_what_names_no_option_is_counted_as_that():
    result = run(asking(lambda text: "Who?"), ITEMS, BY_WORDS, ORIGIN)
    assert result.summary["parsable"] == result.summary["accuracy"] == 0
    assert result.summary["letters"]["none"]["chosen"] == 1
    assert result.rows[0]["choice"] is None and result.rows[0]["answer"] == "Who?"


def test_chance_is_that_of_the_options_there_are():
    summary = run(asking(line_of("A")), ITEMS, Asked("arc-easy", "test"), ORIGIN).summary
    assert summary["chance"] == pytest.approx((1 / 3 + 1 / 4 + 1 / 5) / 3)
    assert set(summary["letters"]) == {"A", "B", "C", "D", "E"}


def test_options_of_the_same_text_are_one_answer_unless_letters_tell_them_apart():
    twice = [Item("arc-easy", str(n), f"Q{n}?", ("same", "same", "x"), n % 2) for n in range(20)]

    def say(text: str) -> str:
        return "A: same" if "\n" in text else "same"

    by_text = Asked("arc-easy", "test", scoring="likelihood", target="text")
    assert run(asking(say), twice, by_text, ORIGIN).summary["accuracy"] == 1
    assert run(asking(say), twice, Asked("arc-easy", "test"), ORIGIN).summary["accuracy"] == 0.5


def test_rotation_shows_who_looks_at_places():
    asked = Asked("arc-easy", "test", rotate=True)
    biased = run(asking(line_of("B")), four(12), asked, ORIGIN).summary
    assert biased["accuracy"] == 0.25 and biased["steady"]["value"] == 0
    assert biased["letters"]["B"]["chosen"] == 1
    assert biased["n"] == 12  # questions, not rows
    items = some_items(12)
    fair = run(asking(oracle(items)), items, asked, ORIGIN).summary
    assert fair["accuracy"] == fair["steady"]["value"] == 1


def test_a_summary_has_what_is_promised():
    keys = "task n seed scoring accuracy interval parsable chance seconds model adapter_sha256"
    summary = run(asking(line_of("A")), ITEMS, BY_WORDS, ORIGIN).summary
    assert set(keys.split()) <= set(summary)
    assert json.loads(json.dumps(summary)) == summary


def test_subjects_of_mmlu_are_told_apart():
    items = [Item("mmlu", f"high_school-x-{n}", f"Q{n}?", ("a", "b"), 0) for n in range(3)]
    items += [Item("mmlu", "law-0", "Q?", ("a", "b"), 1)]
    summary = run(asking(line_of("A")), items, Asked("mmlu", "test"), ORIGIN).summary
    assert {k: (v["value"], v["n"]) for k, v in summary["subjects"].items()} == {
        "high_school-x": (1.0, 3),
        "law": (0.0, 1),
    }


# -- going on --------------------------------------------------------------------------------------


def test_a_killed_run_goes_on_and_nothing_is_asked_twice(tmp_path):
    whole = run(asking(line_of("B")), ITEMS, BY_WORDS, ORIGIN)
    breaking = Breaking(asking(line_of("B")), after=7)
    with pytest.raises(KeyboardInterrupt):
        run(breaking, ITEMS, BY_WORDS, ORIGIN, tmp_path)
    rows = tmp_path / "rows.jsonl"
    assert len(rows.read_text().splitlines()) == 7
    assert not (tmp_path / "summary.json").exists()
    with open(rows, "a") as file:
        file.write('{"key": "arc-ea')  # as it is when a process dies within a line
    told = []
    second = Breaking(asking(line_of("B")), after=99)
    found = run(
        second, ITEMS, BY_WORDS, ORIGIN, tmp_path, lambda stage, done, total: told.append(done)
    )
    assert second.asked == [13] and told == list(range(7, 21))
    times = {"seconds": 0}
    assert [r | times for r in found.rows] == [r | times for r in whole.rows]
    assert read_run(tmp_path).summary["accuracy"] == whole.summary["accuracy"]
    third = Breaking(asking(line_of("B")), after=0)
    assert run(third, ITEMS, BY_WORDS, ORIGIN, tmp_path).rows == found.rows
    assert third.asked == []


@pytest.mark.parametrize(
    ("asked", "origin", "items", "part"),
    [
        (Asked("arc-easy", "test", n=20, seed=1), ORIGIN, ITEMS, "asked"),
        (BY_WORDS, {"model": "other"}, ITEMS, "origin"),
        (BY_WORDS, ORIGIN, some_items(61)[1:], "items_sha256"),
    ],
)
def test_rows_of_another_run_are_refused(tmp_path, asked, origin, items, part):
    run(asking(line_of("B")), ITEMS, BY_WORDS, ORIGIN, tmp_path)
    before = (tmp_path / "rows.jsonl").read_bytes()
    with pytest.raises(InvalidInput, match=f"another {part}.*delete"):
        run(asking(line_of("B")), items, asked, origin, tmp_path)
    assert (tmp_path / "rows.jsonl").read_bytes() == before


def test_another_number_of_threads_is_the_same_run(tmp_path):
    for processor in ("x86_64, 1 threads", "x86_64, 2 threads"):
        found = run(
            asking(line_of("B")), ITEMS, BY_WORDS, ORIGIN | {"processor": processor}, tmp_path
        )
        assert found.summary["n"] == 20
    (tmp_path / "run.json").write_text("{")
    with pytest.raises(InvalidInput, match="another asked"):
        run(asking(line_of("B")), ITEMS, BY_WORDS, ORIGIN, tmp_path)


def _hold(path, started, done):
    from filelock import FileLock

    with FileLock(path):
        started.set()
        done.wait(30)


def test_two_processes_do_not_share_a_folder(tmp_path):
    spawn = multiprocessing.get_context("spawn")
    started, done = spawn.Event(), spawn.Event()
    other = spawn.Process(target=_hold, args=(str(tmp_path / ".lock"), started, done))
    other.start()
    assert started.wait(30)
    with pytest.raises(InvalidInput, match="another process is writing"):
        run(asking(line_of("B")), ITEMS, BY_WORDS, ORIGIN, tmp_path)
    done.set()
    other.join(30)
    assert run(asking(line_of("B")), ITEMS, BY_WORDS, ORIGIN, tmp_path).summary["n"] == 20


def test_two_questions_of_one_name_are_refused():
    with pytest.raises(InvalidInput, match="two questions share an id"):
        run(asking(line_of("B")), [ITEMS[0]] * 2, Asked("arc-easy", "test"), ORIGIN)


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (lambda text: text.replace("{", "(", 1), "line 1, is no row"),
        (lambda text: text.replace('"gold"', '"good"', 1), "line 1, lacks gold"),
        (lambda text: text.split("\n")[0] + "\n" + text, "twice"),
        (lambda text: "\n".join(text.split("\n")[5:]), "15 questions, expected 20"),
    ],
)
def test_damaged_rows_are_named(tmp_path, damage, message):
    run(asking(line_of("B")), ITEMS, BY_WORDS, ORIGIN, tmp_path)
    path = tmp_path / "rows.jsonl"
    path.write_text(damage(path.read_text()))
    with pytest.raises(DamagedFile, match=f"rows.jsonl.*{message}"):
        read_run(tmp_path)


def test_a_missing_or_damaged_summary_is_named(tmp_path):
    with pytest.raises(InvalidInput, match="no finished run"):
        find_runs(tmp_path)
    run(asking(line_of("B")), ITEMS, BY_WORDS, ORIGIN, tmp_path / "x")
    assert list(find_runs(tmp_path)) == ["x"]
    (tmp_path / "x" / "summary.json").write_text("[]")
    with pytest.raises(DamagedFile, match=r"summary.json is unusable"):
        read_run(tmp_path / "x")
    (tmp_path / "x" / "rows.jsonl").unlink()
    with pytest.raises(DamagedFile, match="cannot be read"):
        read_rows(tmp_path / "x" / "rows.jsonl")


# -- two runs --------------------------------------------------------------------------------------


def test_two_runs_are_compared_question_by_question():
    items = four(40)
    a = run(asking(line_of("A")), items, Asked("arc-easy", "test"), ORIGIN)
    best = run(asking(oracle(items)), items, BY_LETTER, ORIGIN)
    told = compare(a, best)
    assert (told["both"], told["only_a"], told["only_b"], told["neither"]) == (10, 0, 30, 0)
    assert told["difference"]["value"] == 0.75
    assert told["p"] == pytest.approx(2 * 0.5**30)  # thirty tosses, all heads or all tails
    assert told["same"] == 0.25 and told["n"] == 40
    assert told["a"]["accuracy"]["value"] == 0.25
    same = compare(a, a)
    assert same["p"] == 1 and same["difference"]["value"] == 0 and same["same"] == 1


def test_only_common_questions_are_compared():
    items = four(40)
    many = run(asking(line_of("A")), items, Asked("arc-easy", "test"), ORIGIN)
    few = run(asking(line_of("A")), items, Asked("arc-easy", "test", n=10), ORIGIN)
    assert compare(many, few)["n"] == compare(few, many)["n"] == 10
    other = [Item("piqa", "p", "Q?", ("a", "b"), 0)]
    strange = run(asking(line_of("A")), other, Asked("piqa", "validation"), ORIGIN)
    with pytest.raises(InvalidInput, match="no question in common"):
        compare(many, strange)
    turned = [Item(i.task, i.id, i.question, i.options, (i.gold + 1) % 4) for i in items]
    with pytest.raises(InvalidInput, match="another right answer"):
        compare(many, run(asking(line_of("A")), turned, Asked("arc-easy", "test"), ORIGIN))


def test_rotations_count_as_one_question_in_a_comparison():
    items = some_items(12)
    asked = Asked("arc-easy", "test", rotate=True)
    one, other = (run(asking(say), items, asked, ORIGIN) for say in (line_of("B"), oracle(items)))
    told = compare(one, other)
    assert told["n"] == 12 and told["both"] + told["only_b"] == 12


def test_folders_of_several_runs_are_compared_by_name(tmp_path):
    for who, say in (("a", line_of("A")), ("b", line_of("B"))):
        for asked in (BY_WORDS, BY_LETTER):
            run(asking(say), four(40), asked, ORIGIN, tmp_path / who / asked.name)
    told = compare_all(tmp_path / "a", tmp_path / "b")
    assert [x["n"] for x in told] == [20, 40]
    single = compare_all(tmp_path / "a" / BY_WORDS.name, tmp_path / "b" / BY_LETTER.name)
    assert [x["n"] for x in single] == [20]
    run(asking(line_of("A")), ITEMS, Asked("arc-easy", "test", rotate=True), ORIGIN, tmp_path / "c")
    with pytest.raises(InvalidInput, match="runs of the same name"):
        compare_all(tmp_path / "a", tmp_path / "c")
