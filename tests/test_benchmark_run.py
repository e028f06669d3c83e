"""Runs: what they keep, how they resume, what they sum up to, and how two compare."""

import json

import pytest
from filelock import FileLock
from scripted import line_of, oracle, scripted, some_items

from lad.diffusion.config import RefineConfig
from lad.evaluation import benchmark
from lad.evaluation.benchmark import BenchmarkConfig, ScoredModel, compare, read_run, run
from lad.evaluation.statistics import wilson
from lad.evaluation.tasks import Item
from lad.utils import DamagedFile, InvalidInput, checked

QUIET = RefineConfig(iterations=4, remasking="none")
ITEMS = some_items(60)
ORIGIN = {"model": "scripted", "adapter_sha256": None}
ALL = BenchmarkConfig("arc-easy", "test")
BY_WORDS = BenchmarkConfig("arc-easy", "test", n=20)
BY_LETTER = BenchmarkConfig("arc-easy", "test", scoring="likelihood", target="letter")
ROTATED = BenchmarkConfig("arc-easy", "test", rotate=True)


def saying(say) -> ScoredModel:
    return ScoredModel(scripted(say), QUIET, samples=2, batch_size=8)


def four(n: int) -> list[Item]:
    """Questions of four options, the right one A, B, C, D, A, ... in turn."""
    return [Item("arc-easy", f"i{x}", f"Q{x}?", ("k", "l", "m", "n"), x % 4) for x in range(n)]


class Breaking:
    """Answers some questions and then fails, as a machine does."""

    def __init__(self, inner, after: int) -> None:
        self.inner, self.after, self.scored = inner, after, []

    def generate(self, questions):
        self.scored.append(len(questions))
        for n, answer in enumerate(self.inner.generate(questions)):
            if n == self.after:
                raise KeyboardInterrupt
            yield answer


@pytest.fixture(scope="module")
def b() -> ScoredModel:
    """Says the line of B whatever the question."""
    return saying(line_of("B"))


@pytest.fixture
def finished(tmp_path, b):
    """A folder with a finished run of 20 questions."""
    run(b, ITEMS, BY_WORDS, ORIGIN, tmp_path)
    return tmp_path


# -- models with known answers ---------------------------------------------------------------------


def test_an_oracle_is_always_right():
    likelihoods = [
        BenchmarkConfig("arc-easy", "test", n=20, scoring="likelihood", target=target)
        for target in ("line", "letter", "text")
    ]
    knowing = saying(oracle(ITEMS))
    for config in [BY_WORDS, *likelihoods]:
        result = run(knowing, ITEMS, config, ORIGIN)
        summary = result.summary
        assert summary["accuracy"] == summary["parsable"] == 1
        assert summary["n"] == 20 and summary["interval"][1] == 1 and summary["interval"][0] > 0.8
        assert json.loads(json.dumps(summary)) == summary
        assert summary["chance"] == pytest.approx(sum(1 / x["options"] for x in result.rows) / 20)


def test_a_model_that_always_says_b_gets_the_share_of_b(b):
    for config in (ALL, BY_LETTER):
        result = run(b, four(40), config, ORIGIN)
        assert result.summary["accuracy"] == result.summary["majority"] == 0.25
        assert result.summary["letters"]["B"] == {"chosen": 1.0, "right": 0.25}
        assert all(row["choice"] == 1 for row in result.rows)


def test_a_model_that_knows_nothing_scores_at_chance():
    result = run(saying(lambda text: None), four(200), BY_LETTER, ORIGIN)
    low, high = result.summary["interval"]
    assert low < 0.25 < high
    assert all(0.12 < x["chosen"] < 0.38 for x in result.summary["letters"].values())


def test_an_answer_that_names_no_option_is_unparsable():
    result = run(saying(lambda text: "Who?"), ITEMS, BY_WORDS, ORIGIN)
    assert result.summary["parsable"] == result.summary["accuracy"] == 0
    assert result.summary["letters"]["none"]["chosen"] == 1
    assert result.rows[0]["choice"] is None and result.rows[0]["answer"] == "Who?"
    assert compare(result, result)["same"] == 1


def test_letter_text_and_whole_line_are_counted_apart():
    items = four(8)  # options k, l, m, n; the right one is A, B, C, D in turn

    def say(text: str) -> str:
        number = int(text[1 : text.index("?")])
        if number >= 4:
            return "A: k"  # a line, right for the fifth question alone
        return ["A: k", "C: l", "C: x", "n"][number]

    result = run(saying(say), items, ALL, ORIGIN)
    rows = [[row[x] for x in ("correct", "correct_text", "exact")] for row in result.rows[:5]]
    right, wrong = True, False
    assert rows[:2] == [[right, right, right], [wrong, right, wrong]]
    assert rows[2:] == [[right, wrong, wrong], [wrong, wrong, wrong], [right, right, right]]
    assert [row["choice_text"] for row in result.rows[:5]] == [0, 1, None, None, 0]
    summary = result.summary
    shares = summary["accuracy"], summary["text"]["value"], summary["line"]["value"]
    assert shares == (3 / 8, 3 / 8, 5 / 8)
    for share in (summary["text"], summary["line"]):
        assert wilson(round(share["value"] * 8), 8).to_dict() == share
    other = run(saying(lambda text: "A: k"), items, ALL, ORIGIN)
    assert compare(other, result)["difference_text"]["value"] == 1 / 8
    # A row that was written before texts were counted still loads, and has no text.
    old = [{k: v for k, v in row.items() if "_text" not in k} for row in result.rows]
    header = {"asked": ALL.to_dict(), "origin": ORIGIN}
    assert "text" not in benchmark.summarise(old, header)
    for row in old:
        assert checked(row, benchmark.ROWS["generation"]) == row


def test_options_of_the_same_text_are_one_answer_unless_letters_tell_them_apart():
    twice = [Item("arc-easy", str(n), f"Q{n}?", ("same", "same", "x"), n % 2) for n in range(20)]
    model = saying(lambda text: "A: same" if "\n" in text else "same")
    by_text = BenchmarkConfig("arc-easy", "test", scoring="likelihood", target="text")
    assert run(model, twice, by_text, ORIGIN).summary["accuracy"] == 1
    assert run(model, twice, ALL, ORIGIN).summary["accuracy"] == 0.5


def test_rotation_shows_a_favourite_place(b):
    items = some_items(9)
    knowing, biased = (run(x, items, ROTATED, ORIGIN) for x in (saying(oracle(items)), b))
    assert len(biased.rows) == 3 * (3 + 4 + 5) and biased.summary["n"] == 9  # questions, not rows
    assert biased.summary["steady"]["value"] == 0 and biased.summary["letters"]["B"]["chosen"] == 1
    assert knowing.summary["accuracy"] == knowing.summary["steady"]["value"] == 1
    paired = compare(biased, knowing)
    assert paired["n"] == 9 and paired["both"] + paired["only_b"] == 9
    silent = run(saying(lambda text: "Who?"), items, ROTATED, ORIGIN).summary
    assert silent["steady"]["value"] == 0


# -- resuming --------------------------------------------------------------------------------------


def test_a_killed_run_resumes_and_scores_nothing_twice(tmp_path, b):
    whole = run(b, ITEMS, BY_WORDS, ORIGIN)
    with pytest.raises(KeyboardInterrupt):
        run(Breaking(b, after=7), ITEMS, BY_WORDS, ORIGIN, tmp_path)
    path = tmp_path / "rows.jsonl"
    assert len(path.read_text().splitlines()) == 7
    assert not (tmp_path / "summary.json").exists()
    with open(path, "a") as file:
        file.write('{"key": "arc-ea')  # as it is when a process dies within a line
    second = Breaking(b, after=99)
    found = run(second, ITEMS, BY_WORDS, ORIGIN, tmp_path)
    assert second.scored == [13]
    untimed = [[row | {"seconds": 0} for row in x.rows] for x in (found, whole)]
    assert untimed[0] == untimed[1]
    assert len(path.read_text().splitlines()) == 20
    assert read_run(tmp_path).summary["accuracy"] == whole.summary["accuracy"]


@pytest.mark.parametrize(
    ("config", "origin", "items", "part"),
    [
        (BenchmarkConfig("arc-easy", "test", n=20, seed=1), ORIGIN, ITEMS, "asked"),
        (BY_WORDS, {"model": "other"}, ITEMS, "origin"),
        (BY_WORDS, ORIGIN, some_items(61)[1:], "items_sha256"),
    ],
)
def test_rows_of_another_run_are_refused(finished, b, config, origin, items, part):
    before = (finished / "rows.jsonl").read_bytes()
    with pytest.raises(InvalidInput, match=f"made with {part} = .*delete"):
        run(b, items, config, origin, finished)
    assert (finished / "rows.jsonl").read_bytes() == before


def test_another_number_of_threads_is_the_same_run(tmp_path, b):
    for processor in ("x86_64, 1 threads", "x86_64, 2 threads"):
        origin = ORIGIN | {"processor": processor}
        assert run(b, ITEMS, BY_WORDS, origin, tmp_path).summary["n"] == 20
    (tmp_path / "run.json").write_text("{")
    with pytest.raises(DamagedFile, match=r"run\.json is unusable"):
        run(b, ITEMS, BY_WORDS, ORIGIN, tmp_path)
    with FileLock(tmp_path / ".lock"), pytest.raises(InvalidInput, match="another process"):
        run(b, ITEMS, BY_WORDS, ORIGIN, tmp_path)


def test_a_missing_or_damaged_file_is_named(tmp_path, b):
    with pytest.raises(InvalidInput, match="no finished run"):
        benchmark.find_runs(tmp_path)
    run(b, ITEMS, BY_WORDS, ORIGIN, tmp_path / "x")
    assert list(benchmark.find_runs(tmp_path)) == ["x"]
    rows = tmp_path / "x" / "rows.jsonl"
    rows.write_text("\n".join(rows.read_text().split("\n")[5:]))
    with pytest.raises(DamagedFile, match=r"15 questions in rows.jsonl, expected 20"):
        read_run(tmp_path / "x")
    rows.unlink()
    with pytest.raises(DamagedFile, match=r"rows.jsonl is unusable"):
        read_run(tmp_path / "x")
    for name, config in (("y", ALL), ("y", BY_LETTER), ("z", ROTATED)):
        run(b, four(2), config, ORIGIN, tmp_path / name / config.name)
    with pytest.raises(InvalidInput, match="runs of the same name"):
        benchmark.compare_all(tmp_path / "y", tmp_path / "z")


# -- two runs --------------------------------------------------------------------------------------


def test_two_runs_are_compared_question_by_question():
    items = four(40)
    a = run(saying(line_of("A")), items, ALL, ORIGIN)
    best = run(saying(oracle(items)), items, BY_LETTER, ORIGIN)
    paired = compare(a, best)
    assert (paired["both"], paired["only_a"], paired["only_b"], paired["neither"]) == (10, 0, 30, 0)
    assert paired["difference"]["value"] == 0.75
    assert paired["p"] == pytest.approx(2 * 0.5**30)  # thirty tosses, all heads or all tails
    assert paired["same"] == 0.25 and paired["n"] == 40
    assert paired["a"]["accuracy"]["value"] == 0.25
    same = compare(best, best)
    assert same["p"] == 1 and same["difference"]["value"] == 0 and same["same"] == 1
    assert same["difference_normalised"]["n"] == 40


def test_only_common_questions_are_compared():
    items = four(40)
    model = saying(line_of("A"))
    many = run(model, items, ALL, ORIGIN)
    few = run(model, items, BenchmarkConfig("arc-easy", "test", n=10), ORIGIN)
    assert compare(many, few)["n"] == compare(few, many)["n"] == 10
    other = [Item("piqa", "p", "Q?", ("a", "b"), 0)]
    piqa = run(model, other, BenchmarkConfig("piqa", "validation"), ORIGIN)
    with pytest.raises(InvalidInput, match="no question in common"):
        compare(many, piqa)
    turned = [Item(i.task, i.id, i.question, i.options, (i.gold + 1) % 4) for i in items]
    with pytest.raises(InvalidInput, match="another right answer"):
        compare(many, run(model, turned, ALL, ORIGIN))
