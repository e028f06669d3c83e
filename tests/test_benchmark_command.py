"""`lad benchmark`: what it prints and keeps, that it goes on, and what it refuses."""

import json

import pytest
from conftest import run
from scripted import some_items

from lad.cli.benchmark import ALL
from lad.diffusion.adapter import read_card, shipped_adapter
from lad.evaluation.tables import AUTHORS

PROMISED = "task n seed scoring accuracy interval parsable chance seconds model adapter_sha256"


@pytest.fixture(scope="module")
def source(tmp_path_factory) -> str:
    """Two benchmarks as a folder of JSON Lines."""
    folder = tmp_path_factory.mktemp("source")
    for task, split in (("arc-easy", "test"), ("mmlu", "test")):
        rows = [
            {"id": f"{task}-{i.id}", "question": i.question, "options": i.options, "gold": i.gold}
            for i in some_items(12)
        ]
        text = "".join(json.dumps(row) + "\n" for row in rows)
        (folder / f"{task}-{split}.jsonl").write_text(text)
    return str(folder)


@pytest.fixture
def benchmark(capsys, adapter, source):
    """Runs the command on the tiny model; gives status, stdout and stderr."""

    def call(*arguments: str, bare: bool = False):
        own = ["benchmark", "--model=tiny", f"--source={source}", "--n=6", "--device=cpu"]
        own += [] if bare else [f"--adapter={adapter}"]
        return run(capsys, *own, *arguments)

    return call


QUICK = ("--preset=noiseless", "--iterations=3")


def test_a_finished_run_is_not_run_again(benchmark, tmp_path):
    status, out, err = benchmark(f"--out={tmp_path}", "--json", *QUICK)
    result = json.loads(out)
    assert (status, err) == (0, "")
    assert set(PROMISED.split()) <= set(result)
    assert (result["task"], result["n"], result["scoring"]) == ("arc-easy", 6, "generation")
    assert result["model"] == "tiny" and len(result["adapter_sha256"]) == 64
    assert result["interval"][0] <= result["accuracy"] <= result["interval"][1]
    origin = result["origin"]
    assert origin["config"]["iterations"] == 3 and origin["preset"] == "noiseless"
    assert {"torch", "device", "dtype", "backbone_digest", "processor"} <= set(origin)
    _, again, _ = benchmark(f"--out={tmp_path}", "--json", *QUICK)
    assert again == out  # seconds too: nothing was asked
    shown = benchmark(f"--out={tmp_path}", *QUICK)[1]
    assert "letter right, %" in shown and "text right, %" in shown and "a whole line, %" in shown
    status, out, err = benchmark(f"--out={tmp_path}", "--preset=noiseless", "--iterations=4")
    assert (status, out) == (2, "") and "made with origin = " in err and err.count("\n") == 1


@pytest.mark.parametrize("target", ["line", "letter", "text"])
def test_every_target_of_adapter_and_backbone(benchmark, target):
    chosen = ("--scoring=likelihood", f"--target={target}", "--samples=2", "--json")
    shown = benchmark(*chosen[:-1], *["--rotate"] * (target != "text"))[1]
    assert f"likelihood, {target}" in shown and "chance" in shown
    for bare in (False, True):
        extra = ("--backbone",) if bare else ()
        status, out, _ = benchmark(*chosen, *extra, bare=bare)
        result = json.loads(out)
        assert status == 0 and result["target"] == target
        assert (result["adapter_sha256"] is None) == bare
        assert 0 <= result["accuracy_normalised"] <= 1


@pytest.mark.real
@pytest.mark.parametrize("name", [None, "smollm2-135m"])
def test_the_adapter_for_questions_is_the_default(capsys, source, name):
    own = ["benchmark", f"--source={source}", "--n=1", "--device=cpu", "--json", *QUICK]
    status, out, _ = run(capsys, *own, *([f"--adapter={name}"] if name else []))
    digest = read_card(shipped_adapter(name or "smollm2-135m-choice"))[1]["adapter_sha256"]
    assert status == 0 and json.loads(out)["adapter_sha256"] == digest


def test_several_tasks_and_all_questions(benchmark):
    assert {*AUTHORS, "openbookqa"} <= {*ALL.split(", ")}
    status, out, _ = benchmark("--task=arc-easy,mmlu", "--n=all", "--json", *QUICK)
    runs = json.loads(out)["runs"]
    assert status == 0
    assert [(run["task"], run["n"]) for run in runs] == [("arc-easy", 12), ("mmlu", 12)]
    assert sum(x["n"] for x in runs[1]["subjects"].values()) == 12


def test_compare_and_collect(benchmark, capsys, tmp_path):
    for where, extra in (("a", ()), ("b", ("--backbone",))):
        chosen = ("--scoring=likelihood,generation", f"--out={tmp_path / where}")
        assert benchmark(*chosen, *QUICK, *extra, bare=where == "b")[0] == 0
    status, shown, _ = run(capsys, "benchmark", "compare", tmp_path / "b", tmp_path / "a", "--json")
    result = json.loads(shown)["comparisons"]
    assert status == 0 and [x["n"] for x in result] == [6, 6]
    assert (result[0]["a"]["who"], result[0]["a"]["how"]) == ("backbone", "generation")
    _, shown, _ = run(capsys, "benchmark", "compare", tmp_path / "b", tmp_path / "a")
    assert "B - A, points" in shown
    out = tmp_path / "numbers.json"
    collect = ("benchmark", "collect", f"--out={out}", tmp_path / "a")
    status, shown, _ = run(capsys, *collect, tmp_path / "b")
    assert status == 0 and "4 runs, 2 comparisons" in shown
    joined = json.loads(out.read_text())
    assert [run["by"] for run in joined["runs"]].count("backbone") == 2
    assert all(len(run["choices"]) == 6 for run in joined["runs"])
    assert "Question" not in out.read_text()  # no text of a benchmark
    assert "expected each kind once" in run(capsys, *collect, tmp_path / "a")[2]


def test_curve(capsys, adapter, source, tmp_path):
    out = tmp_path / "numbers" / "curve.json"
    own = ["benchmark", "curve", "--model=tiny", f"--adapter={adapter}", f"--source={source}"]
    own += ["--n=6", f"--out={out}", "--iterations=1,3"]
    for _ in range(2):  # the second finds every run finished
        status, shown, _ = run(capsys, *own, "--json")
        result = json.loads(shown)
        assert status == 0 and result == json.loads(out.read_text())
    points = {(p["preset"], p["iterations"]): p for p in result["points"]}
    assert list(points) == [(p, i) for p in ("noiseless", "guided", "default") for i in (1, 3)]
    assert all(p["forwards"]["value"] <= i for (_, i), p in points.items())
    assert result["n"] == 6 and result["command"].startswith("lad")
    assert all(p[key]["n"] == 6 for p in points.values() for key in ("accuracy", "text", "line"))
    shown = run(capsys, *own)[1]
    assert all(x in shown for x in ("noiseless", "letter right", "text right", "a whole line"))


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--n=some"], "n = 'some': expected a whole number"),
        (["--n=99"], "n = 99: expected 1 to 12"),
        (["--scoring=guess"], "scoring = 'guess'"),
        (["--samples=-1"], "'--samples': Input should be greater than or equal to 0"),
        (["--dtype=int8"], "dtype = 'int8'"),
        (["--backbone"], "--backbone with --adapter"),
        (["--split=dev"], "arc-easy-dev.jsonl"),
        (["--scoring=likelihood", "--target=text", "--rotate"], "not listed"),
    ],
)
def test_what_is_refused(benchmark, arguments, message):
    status, out, err = benchmark(*arguments)
    assert (status, out) == (2, "")
    assert message in err and err.count("\n") == 1
