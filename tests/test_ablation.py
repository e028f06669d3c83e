"""Ablations: grids are checked, shares add up, killed runs go on, other settings are refused."""

import copy
import json

import pytest
import yaml
from conftest import json_lines, run

from lad.diffusion.config import CorruptionConfig
from lad.evaluation.ablation import collect, read_grid, run_variants, settings_of
from lad.training import Pair
from lad.utils import DamagedFile, InvalidInput, write_json
from lad.viz.ablation import MEASURES as DRAWN
from lad.viz.ablation import ablation
from lad.viz.gallery import CHECKOUT

NOISE = {"all_masked": 0.1, "structural_probability": 0.0, "rate": 0.25}
GRID = {
    "steps": 3,
    "base": {
        "denoiser": {"rank": 4, "alpha": 8, "context": 96},
        "training": {"widths": [96], "batch_tokens": 384, "warmup_steps": 1, "log_every": 1}
        | {"corruption": {"all_masked": 0.2}},
    },
    "variants": {
        "plain": {},
        "another seed": {"training": {"seed": 1}},
        "target same": {"denoiser": {"target": "same"}},
        "masks only": {"training": {"corruption": NOISE}},
    },
}
PROMPTS = ["hello", "what is this?"]


def written(folder, **changes):
    path = folder / "grid.yaml"
    path.write_text(yaml.safe_dump(GRID | changes, sort_keys=False))
    return path


@pytest.fixture(scope="module")
def pairs(tmp_path_factory):
    path = tmp_path_factory.mktemp("pairs") / "pairs.jsonl"
    path.write_text(json_lines(Pair(f"say {n}", f"the number {n}!") for n in range(150)))
    return path


@pytest.fixture(scope="module")
def folder(pairs, tmp_path_factory):
    """Results of the whole grid, made by two processes' shares one after the other."""
    folder = tmp_path_factory.mktemp("ablation") / "variants"
    for rank in (1, 0):
        made = run_variants(GRID, pairs, PROMPTS, folder, "tiny", "cpu", rank, 2)
        assert [name for name, _ in made] == list(GRID["variants"])[rank::2]
    return folder


@pytest.fixture(scope="module")
def results(folder):
    return [json.loads((folder / f"{n:02d}.json").read_text()) for n in range(4)]


def test_a_variant_is_the_base_with_its_changes_over_it(tmp_path):
    grid = read_grid(written(tmp_path))
    plain, same = settings_of(grid, "plain"), settings_of(grid, "target same")
    assert (plain[0].rank, plain[0].target, plain[1].steps) == (4, "next", 3)
    assert same[0].target == "same" and same[1] == plain[1]
    assert settings_of(grid, "another seed")[1].seed == 1
    # Noise is one setting: what a variant leaves out is the paper's, and not the base's.
    noise = settings_of(grid, "masks only")[1].corruption
    assert noise == CorruptionConfig(**NOISE) and plain[1].corruption.all_masked == 0.2
    committed = read_grid(CHECKOUT / "configs" / "ablation.yaml")
    different = {str(settings_of(committed, name)) for name in committed["variants"]}
    assert len(different) == len(committed["variants"])


@pytest.mark.parametrize(
    "changes, named",
    [
        ({"variants": {"a": {"denoiser": {"rank": 8}}}}, "the first variant .* changes nothing"),
        ({"base": {"training": [1]}}, "base: training is a list"),
        ({"variants": {"a": {}, "b": {"model": {}}}}, "variant 'b'"),
        ({"variants": {"a": {}, "b": {"denoiser": {"ranks": 3}}}}, "ranks"),
        ({"more": 1}, "expected the sections base, steps, variants"),
        ({"steps": 0}, "steps = 0"),
    ],
)
def test_a_bad_grid_is_refused_before_anything_runs(tmp_path, changes, named):
    with pytest.raises(InvalidInput, match=named):
        read_grid(written(tmp_path, **changes))
    (tmp_path / "bad.yaml").write_text("steps: [")
    with pytest.raises(InvalidInput, match=r"bad\.yaml is no readable YAML"):
        read_grid(tmp_path / "bad.yaml")


def test_every_variant_is_trained_with_its_own_settings_and_measured(results):
    assert [result["variant"] for result in results] == list(GRID["variants"])
    assert [result["training"]["seed"] for result in results] == [0, 1, 0, 0]
    assert [result["denoiser"]["target"] for result in results] == ["next", "next", "same", "next"]
    assert {result["pairs"]["used"] for result in results} == {150 - results[0]["trained_on"]}
    losses = [result["masked"]["0.5"]["ce"]["value"] for result in results]
    assert len(set(losses)) == 4  # four trainings, not one measured four times
    assert {result["prompts"]["used"] for result in results} == {2}


def test_results_are_kept_if_they_are_of_the_same_settings_and_data(folder, pairs, tmp_path):
    def run(grid=GRID, pairs=pairs, folder=folder, **more):
        return list(run_variants(grid, pairs, PROMPTS, folder, "tiny", "cpu", **more))

    before = {path: path.stat().st_mtime_ns for path in folder.iterdir()}
    assert run() == []
    assert {path: path.stat().st_mtime_ns for path in folder.iterdir()} == before
    other = copy.deepcopy(GRID)
    other["base"]["denoiser"]["rank"] = 2
    with pytest.raises(InvalidInput, match=r"made with denoiser = \{"):
        run(other)
    with pytest.raises(InvalidInput, match="made with steps = 3, now it is 4"):
        run(GRID | {"steps": 4})
    more, few = tmp_path / "more.jsonl", tmp_path / "few.jsonl"
    few.write_text('{"prompt": "a", "answer": "b"}\n')
    more.write_text(pairs.read_text() + few.read_text())
    with pytest.raises(InvalidInput, match="made with pairs_sha256"):
        run(pairs=more)
    with pytest.raises(InvalidInput, match="pairs_held_out = 0: expected at least 1"):
        run(pairs=few, folder=tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_joined_they_are_what_the_figure_draws(folder, results, tmp_path):
    out = tmp_path / "new" / "ablation.json"
    assert collect(GRID, folder, out, "lad ablate --steps 3")
    data = json.loads(out.read_text())
    assert (data["command"], data["steps"], data["base"]) == ("lad ablate --steps 3", 3, "plain")
    assert [row["name"] for row in data["variants"]] == list(GRID["variants"])
    assert [row["changes"] for row in data["variants"]] == [
        {},
        {"training.seed": 1},
        {"denoiser.target": "same"},
        {f"training.corruption.{key}": value for key, value in NOISE.items() if key != "rate"},
    ]
    assert set(DRAWN) < set(data["variants"][0]["measures"])
    measures = data["variants"][2]["measures"]
    assert measures["ce"] == results[2]["masked"]["0.5"]["ce"]
    assert measures["repeats"] == results[2]["settings"]["noiseless"]["repeats"]
    assert data["provenance"]["pairs_sha256"] == results[0]["pairs_sha256"]
    assert data["settings"]["denoiser"]["rank"] == 4
    assert "seconds" not in data["provenance"]
    assert "After 3 steps" in ablation(data).get_suptitle()


def test_a_result_that_is_missing_or_not_whole_or_of_another_grid_is_named(folder, tmp_path):
    longer = GRID | {"variants": GRID["variants"] | {"fifth": {}}}
    assert not collect(longer, folder, tmp_path / "out.json")
    assert not (tmp_path / "out.json").exists()
    turned = GRID | {"variants": dict(reversed(GRID["variants"].items()))}
    with pytest.raises(DamagedFile, match=r"00\.json is unusable .*of the variant 'plain'"):
        collect(turned, folder, tmp_path / "out.json")
    (tmp_path / "00.json").write_text('{"variant": "pla')
    with pytest.raises(DamagedFile, match="delete it and run `lad ablate` again"):
        collect(GRID | {"variants": {"plain": {}}}, tmp_path, tmp_path / "out.json")


def test_what_cannot_be_compared_is_refused(results, tmp_path):
    def joined(second):
        write_json(tmp_path / "00.json", results[0])
        write_json(tmp_path / "01.json", second)
        two = dict(list(GRID["variants"].items())[:2])
        assert collect(GRID | {"variants": two}, tmp_path, tmp_path / "out.json")
        return json.loads((tmp_path / "out.json").read_text())

    for key in ("model", "pairs_sha256", "trained_on", "steps"):
        with pytest.raises(InvalidInput, match=rf"01\.json was made with {key} = 'other'"):
            joined(results[1] | {key: "other"})
    # What differs between processes is listed.
    other = results[1] | {"provenance": results[1]["provenance"] | {"torch": "9.9"}}
    origin = joined(other)["provenance"]
    assert origin["torch"] == [results[0]["provenance"]["torch"], "9.9"]
    assert origin["device"] == "cpu"


def command(capsys, *arguments):
    return run(capsys, "ablate", "--model=tiny", "--device=cpu", *arguments)


def test_the_command_runs_a_grid_and_joins_it(capsys, pairs, tmp_path):
    short = {"plain": {}, "another seed": {"training": {"seed": 1}}}
    # The package's own held-out prompts, in bytes, need room.
    base = {"denoiser": {"rank": 4, "alpha": 8}, "training": {"widths": [256], "warmup_steps": 1}}
    base["training"]["batch_tokens"] = 512
    grid, out = written(tmp_path, base=base, variants=short), tmp_path / "ablation.json"
    options = [f"--pairs={pairs}", f"--grid={grid}", f"--out={out}", "--n-prompts=1", "--steps=2"]
    status, out_text, err = command(capsys, *options)
    assert (status, out_text) == (0, f"wrote {out}\n")
    assert [line.split(":")[0] for line in err.splitlines()] == list(short)
    data = json.loads(out.read_text())
    assert data["command"] == "lad ablate --grid grid.yaml --n-pairs 256 --n-prompts 1 --steps 2"
    assert (data["steps"], data["provenance"]["prompts"]) == (2, 1)
