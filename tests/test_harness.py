"""LAD as lm-evaluation-harness sees it, on task files made here; no network."""

import json
import subprocess
import sys
from importlib.metadata import entry_points

import pytest
import torch
from scripted import line_of, oracle, scripted, some_items

from lad.diffusion.config import RefineConfig
from lad.evaluation.likelihood import encode_questions, loglikelihood
from lad.evaluation.tasks import format_question
from lad.models.registry import load_backbone
from lad.utils import InvalidInput

lm_eval = pytest.importorskip("lm_eval", reason="the extra `eval` is not installed")

import lad.evaluation.harness  # noqa: E402
from lad.evaluation.harness import LADLM, cut, register  # noqa: E402

ITEMS = some_items(20)
QUIET = RefineConfig(iterations=4, remasking="none", answer_length=16)
CHOICE = """
task: {name}
dataset_path: json
dataset_kwargs: {{data_files: {{test: {data}}}}}
test_split: test
output_type: {kind}
doc_to_text: "{{{{prompt}}}}"
doc_to_target: {target}
{more}
"""
MORE = {
    "multiple_choice": "doc_to_choice: choices\nmetric_list: [{metric: acc}, {metric: acc_norm}]",
    "generate_until": "generation_kwargs: {until: ['\\n'], max_gen_toks: 16}\n"
    "metric_list: [{metric: exact_match}]",
}


@pytest.fixture(autouse=True)
def offline(monkeypatch, tmp_path_factory):
    """The harness reads task files through `datasets`, which must ask no network."""
    monkeypatch.setenv("HF_DATASETS_OFFLINE", "1")
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    import datasets

    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path_factory.mktemp("datasets"))


def task_files(folder, items=ITEMS):
    """The questions as two tasks, by likelihood and by generation."""
    questions = [format_question(item) for item in items]
    rows = [
        {"prompt": q.prompt, "choices": list(q.lines), "gold": q.gold, "line": q.lines[q.gold]}
        for q in questions
    ]
    data = folder / "rows.jsonl"
    data.write_text("".join(json.dumps(row) + "\n" for row in rows))
    for kind, target in (("multiple_choice", "gold"), ("generate_until", "line")):
        name = f"lad_{kind}"
        text = CHOICE.format(name=name, data=data, kind=kind, target=target, more=MORE[kind])
        (folder / f"{name}.yaml").write_text(text)
    return folder


def evaluate(model, folder, *tasks, **options):
    from lm_eval.tasks import TaskManager

    manager = TaskManager(include_path=str(folder), include_defaults=False)
    return lm_eval.simple_evaluate(
        model=model, tasks=[f"lad_{task}" for task in tasks], task_manager=manager,
        bootstrap_iters=0, **options,
    )["results"]  # fmt: skip


def test_models_with_known_answers_score_what_they_must(tmp_path):
    folder = task_files(tmp_path)
    knowing = LADLM(scripted(oracle(ITEMS)), preset_name=QUIET, samples=4)
    found = evaluate(knowing, folder, "multiple_choice", "generate_until")
    assert found["lad_multiple_choice"]["acc,none"] == 1
    assert found["lad_generate_until"]["exact_match,none"] == 1
    stubborn = LADLM(scripted(line_of("B")), preset_name=QUIET, samples=4)
    found = evaluate(stubborn, folder, "multiple_choice", "generate_until")
    share = sum(item.gold == 1 for item in ITEMS) / len(ITEMS)
    assert found["lad_multiple_choice"]["acc,none"] == share
    assert found["lad_generate_until"]["exact_match,none"] == share


def test_the_harness_scores_as_lad_benchmark_does(tmp_path, denoiser):
    """The same questions, prompts and models: the same choices, question by question."""
    folder = task_files(tmp_path)
    questions = [format_question(item) for item in ITEMS]
    backbone = load_backbone("tiny")
    for made in (denoiser, backbone):
        encoded = encode_questions(backbone.tokenizer, questions, "line", 259, made.eos_token_id)
        exact = made is backbone
        right = sum(
            max(range(len(s)), key=lambda n: s[n].log_likelihood) == questions[i].gold
            for i, s in loglikelihood(made.model if exact else made, encoded, 64)
        )
        model = LADLM(made, samples=64)
        found = evaluate(model, folder, "multiple_choice")["lad_multiple_choice"]["acc,none"]
        # Masks are drawn by context here and by question there: a close call may go another way.
        assert abs(found * len(ITEMS) - right) <= (0 if exact else 2)


def test_the_chat_template_of_the_harness_gives_the_same(tmp_path):
    folder = task_files(tmp_path)
    model = LADLM(load_backbone("tiny"))
    plain = evaluate(model, folder, "multiple_choice")
    built = evaluate(model, folder, "multiple_choice", apply_chat_template=True)
    assert plain["lad_multiple_choice"] == built["lad_multiple_choice"]
    bare = LADLM(load_backbone("tiny"), chat=False)
    ids = bare._encode_context("Which?")
    assert bare.backbone.tokenizer.decode(ids) == "Which?"
    assert len(model._encode_context("Which?")) > len(ids)
    assert bare._encode_context("") == [bare.backbone.eos_token_id]


class Request:
    def __init__(self, *args):
        self.args = args


def test_requests_come_back_in_their_order(denoiser):
    model = LADLM(denoiser, preset_name=QUIET, samples=4)
    pairs = [("why?", " a"), ("how?", " bc"), ("why?", " bc"), ("why?", " a"), ("how?", "")]
    found = model.loglikelihood([Request(*pair) for pair in pairs])
    assert found[0] == found[3] and found[0] != found[2] and found[1] != found[2]
    assert found[4] == (0.0, True)
    assert all(isinstance(x, float) and isinstance(g, bool) for x, g in found)
    [alone] = model.loglikelihood([Request("how?", " bc")])
    assert alone[0] == pytest.approx(found[1][0], abs=1e-4)


def test_an_answer_ends_at_the_first_stop_text():
    assert cut("one\ntwo. three", ["\n", "."]) == "one"
    assert cut("one two", [". ", "\n"]) == cut("one two", None) == cut("one two", "") == "one two"
    assert cut("one. two", ". ") == "one"
    said = LADLM(scripted(lambda text: "B: Water. Yes."), preset_name=QUIET)
    answers = said.generate_until(
        [Request("x", {"until": ["."]}), Request("y", {"max_gen_toks": 4}), Request("z", {})]
    )
    assert answers == ["B: Water", "B: W", "B: Water. Yes."]
    hot = {"temperature": 5.0}  # without do_sample it is greedy all the same
    greedy, drawn = said.generate_until([Request("x", hot), Request("x", hot | {"do_sample": 1})])
    assert greedy == answers[2] != drawn


def test_what_is_refused(denoiser):
    model = LADLM(denoiser, preset_name=QUIET)
    with pytest.raises(NotImplementedError, match="no order of tokens"):
        model.loglikelihood_rolling([])
    with pytest.raises(InvalidInput, match="expected fewer than 512"):
        model.generate_until([Request("why " * 200, {})])
    with pytest.raises(InvalidInput, match="dtype = 'int8'"):
        LADLM("tiny", backbone=True, dtype="int8")
    with pytest.raises(InvalidInput, match="batch_size = 0"):
        LADLM(denoiser, batch_size=0)


def test_lad_is_one_of_the_harness_models():
    from lm_eval.api.registry import get_model

    register()
    register()
    assert get_model("lad") is LADLM
    assert get_model("dummy")  # its own are still there
    [point] = [p for p in entry_points(group="lm_eval.models") if p.name == "lad"]
    assert point.load() is LADLM


def test_model_args_reach_the_model(adapter):
    text = f"name=tiny,adapter={adapter},preset_name=quality,iterations=3,samples=5,dtype=float32"
    model = LADLM.create_from_arg_string(text, {"batch_size": "auto", "device": "cpu"})
    assert model.denoiser.causal_lm.dtype == torch.float32
    assert (model.config.iterations, model.config.window, model.samples) == (3, 16, 5)
    assert model.batch_size == 8
    bare = LADLM.create_from_arg_string("name=tiny,backbone=True", {"batch_size": 2})
    assert bare.denoiser is None and bare.batch_size == 2


def test_the_command_line(tmp_path, adapter):
    folder = task_files(tmp_path, ITEMS[:3])
    command = [sys.executable, "-m", "lad.evaluation.harness", "--model", "lad", "--model_args"]
    command += [f"name=tiny,adapter={adapter},samples=2", "--tasks", "lad_multiple_choice"]
    command += ["--include_path", str(folder), "--output_path", str(tmp_path / "out")]
    done = subprocess.run(command, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr[-2000:]
    [path] = (tmp_path / "out").rglob("results_*.json")
    results = json.loads(path.read_text())["results"]["lad_multiple_choice"]
    assert 0 <= results["acc,none"] <= 1


def test_without_the_extra_it_says_so(monkeypatch):
    import importlib

    from lad.utils import AssetUnavailable

    monkeypatch.setitem(sys.modules, "lm_eval.api.model", None)
    try:
        with pytest.raises(AssetUnavailable, match=r"pip install 'lad\[eval\]'"):
            importlib.reload(lad.evaluation.harness)
    finally:
        monkeypatch.undo()
        importlib.reload(lad.evaluation.harness)
