"""LAD as lm-evaluation-harness sees it, on task files made here; no network."""

import importlib
import json
import runpy
import sys
from importlib.metadata import entry_points

import pytest
import torch
from scripted import line_of, oracle, scripted, some_items

from lad.diffusion.config import RefineConfig
from lad.evaluation.likelihood import encode_questions, loglikelihood
from lad.evaluation.tasks import format_question
from lad.models.chat import encode_prompt
from lad.utils import AssetUnavailable, InvalidInput

lm_eval = pytest.importorskip("lm_eval", reason="the extra `eval` is not installed")

import lad.evaluation.harness  # noqa: E402
from lad.evaluation.harness import LADLM, cut, register  # noqa: E402

ITEMS = some_items(12)
QUIET = RefineConfig(iterations=4, remasking="none", answer_length=16)
TASK = """
task: lad_{kind}
dataset_path: json
dataset_kwargs: {{data_files: {{test: {data}}}}}
test_split: test
output_type: {kind}
doc_to_text: "{{{{prompt}}}}"
"""
MORE = {
    "multiple_choice": "doc_to_target: gold\ndoc_to_choice: choices\nmetric_list: [{metric: acc}]",
    "generate_until": "doc_to_target: line\nmetric_list: [{metric: exact_match}]\n"
    "generation_kwargs: {until: ['\\n'], max_gen_toks: 16}",
}


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """The questions as two tasks, by likelihood and by generation."""
    folder = tmp_path_factory.mktemp("tasks")
    questions = [format_question(item) for item in ITEMS]
    rows = [
        {"prompt": q.prompt, "choices": list(q.lines), "gold": q.gold, "line": q.lines[q.gold]}
        for q in questions
    ]
    data = folder / "rows.jsonl"
    data.write_text("".join(json.dumps(row) + "\n" for row in rows))
    for kind, more in MORE.items():
        (folder / f"lad_{kind}.yaml").write_text(TASK.format(kind=kind, data=data) + more)
    return folder


@pytest.fixture
def evaluate(monkeypatch, folder, tmp_path_factory):
    """Runs the harness on tasks, without network; gives the results by task."""
    monkeypatch.setenv("HF_DATASETS_OFFLINE", "1")
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    import datasets
    from lm_eval.tasks import TaskManager

    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path_factory.mktemp("datasets"))
    manager = TaskManager(include_path=str(folder), include_defaults=False)

    def call(model, *tasks, **options):
        names = [f"lad_{task}" for task in tasks]
        chosen = {"task_manager": manager, "bootstrap_iters": 0} | options
        found = lm_eval.simple_evaluate(model=model, tasks=names, **chosen)["results"]
        return [found[name] for name in names]

    return call


def test_models_with_known_answers_score_what_they_must(evaluate):
    share = sum(item.gold == 1 for item in ITEMS) / len(ITEMS)
    for say, right in ((oracle(ITEMS), 1), (line_of("B"), share)):
        model = LADLM(scripted(say), preset_name=QUIET, samples=4)
        choice, written = evaluate(model, "multiple_choice", "generate_until")
        assert choice["acc,none"] == written["exact_match,none"] == right


def test_the_harness_scores_as_lad_benchmark_does(evaluate, denoiser):
    """The same questions and prompts, with the harness's chat template too."""
    questions = [format_question(item) for item in ITEMS]
    ids = (denoiser.mask_token_id, denoiser.eos_token_id)
    encoded = encode_questions(denoiser.tokenizer, questions, "line", *ids)
    right = sum(
        max(range(len(s)), key=lambda n: s[n].log_likelihood) == questions[i].gold
        for i, s in loglikelihood(denoiser, encoded, samples=0)
    )
    model = LADLM(denoiser, samples=0)
    for built in (False, True):
        [found] = evaluate(model, "multiple_choice", apply_chat_template=built)
        assert found["acc,none"] == pytest.approx(right / len(ITEMS))
    bare = LADLM(denoiser, chat=False)
    assert denoiser.tokenizer.decode(bare._encode_context("Which?")) == "Which?"
    assert bare._encode_context("") == [denoiser.eos_token_id]
    turns = [{"role": "user", "content": "a<|im_end|>b<mask>"}]
    for made in (model, bare):  # a control token that is typed is text
        context, continuation = made._encode_pair(made.apply_chat_template(turns), " <mask>")
        assert context == encode_prompt(denoiser.tokenizer, turns)
        assert len(continuation) == len("<mask>")
    assert len(bare.tok_encode("<|im_end|>")) == len("<|im_end|>")
    prefix = bare.apply_chat_template([*turns, {"role": "assistant", "content": "So"}], False)
    assert denoiser.tokenizer.decode(bare._encode_context(prefix)).endswith("assistant\nSo")


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
    said = LADLM(scripted(lambda text: "B: Water. Yes."), preset_name=QUIET)
    answers = said.generate_until(
        [Request("x", {"until": ["."]}), Request("y", {"max_gen_toks": 4}), Request("z", {})]
    )
    assert answers == ["B: Water", "B: W", "B: Water. Yes."]
    hot = {"temperature": 5.0}  # without do_sample it is greedy all the same
    greedy, drawn = said.generate_until([Request("x", hot), Request("x", hot | {"do_sample": 1})])
    assert greedy == answers[2] != drawn


def test_what_is_refused(denoiser, monkeypatch):
    model = LADLM(denoiser, preset_name=QUIET)
    with pytest.raises(NotImplementedError, match="no order of tokens"):
        model.loglikelihood_rolling([])
    with pytest.raises(InvalidInput, match="expected fewer than 512"):
        model.generate_until([Request("why " * 200, {})])
    with pytest.raises(InvalidInput, match="batch_size = 0"):
        LADLM(denoiser, batch_size=0)
    monkeypatch.setitem(sys.modules, "lm_eval.api.model", None)
    try:
        with pytest.raises(AssetUnavailable, match=r"pip install 'lad\[eval\]'"):
            importlib.reload(lad.evaluation.harness)
    finally:
        monkeypatch.undo()
        importlib.reload(lad.evaluation.harness)


def test_lad_is_one_of_the_harness_models(adapter):
    from lm_eval.api.registry import get_model

    register()
    register()
    assert get_model("lad").__name__ == "LADLM"
    assert get_model("dummy")  # its own are still there
    [point] = [p for p in entry_points(group="lm_eval.models") if p.name == "lad"]
    text = f"name=tiny,adapter={adapter},preset_name=quality,iterations=3,samples=5,dtype=float32"
    settings = {"batch_size": "auto", "device": "cpu"}
    model = point.load().create_from_arg_string(text, settings)
    assert model.denoiser.causal_lm.dtype == torch.float32
    assert (model.config.iterations, model.config.window, model.samples) == (3, 16, 5)
    assert model.batch_size == 8


def test_the_command_line_is_that_of_the_harness(monkeypatch):
    called = []
    monkeypatch.setattr("lm_eval.__main__.cli_evaluate", lambda: called.append(sys.argv))
    monkeypatch.setattr(sys, "argv", ["harness.py", "--model", "lad"])
    monkeypatch.delitem(sys.modules, "lad.evaluation.harness")
    runpy.run_module("lad.evaluation.harness", run_name="__main__")
    assert called == [["lm_eval", "--model", "lad"]]
