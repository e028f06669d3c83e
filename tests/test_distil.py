"""Self-distillation: what is kept, what is refused, and batches that any run can take up again."""

import dataclasses
import json

import pytest
from conftest import json_lines, run

from lad.diffusion.drafts import REPAIR_PROMPT
from lad.evaluation.adapter_eval import same_fact
from lad.models.registry import load_backbone
from lad.training import (
    Pair,
    fact_questions,
    held_out_prompts,
    read_pairs,
    sentences_to_repair,
)
from lad.training.contamination import Passages, normalised
from lad.training.data import read_lines
from lad.training.distillation import (
    DistilConfig,
    answer_prompts,
    collect,
    correction_pairs,
    distil,
    odd,
    reject,
    write_pairs,
)
from lad.utils import CacheError, DamagedFile, InvalidInput, sha256_file

SMALL = DistilConfig(batch_size=6, context=128, prompt_tokens=8)


def write_batch(folder, number, pairs, **counts):
    folder.mkdir(exist_ok=True)
    last = json.dumps({"counts": {"tried": 10, "kept": len(pairs)} | counts})
    (folder / f"{number:05d}.jsonl").write_text(json_lines(pairs) + last)


def test_what_is_worth_learning():
    answers = {
        "The capital of France is Paris.": None,
        " ": "answer empty",
        "It is <|im_start|> a city.": "answer holds control tokens",
        "Amsterdam is a city city in Holland.": "answer stutters",
        "I can help. " * 6: "answer loops",
    }
    assert {answer: reject(answer) for answer in answers} == answers
    assert not odd("What is a boat?", "What is") and not odd("Good morning!", "Good morning")
    for rest in ("", " this?\nAnd what is that?", " <|im_start|>user here?", " a caf\ufffd like?"):
        assert odd(f"What is{rest}", "What is")


def test_contamination_is_an_exact_stem_or_thirteen_words_in_a_row():
    words = [f"w{n}" for n in range(20)]
    passages = Passages(["Which gas do plants take in?", " ".join(words)])
    assert passages.overlap("which GAS do plants take in", "Carbon dioxide.")
    assert passages.overlap("Tell me.", f"Well, {' '.join(words[3:16])} indeed.")
    assert not passages.overlap("Tell me.", f"Well, {' '.join(words[3:15])} indeed.")


def test_prompts_that_come_with_the_package_are_clean_and_apart():
    held, shown = (
        {" ".join(normalised(p)) for p in read_lines(name)}
        for name in ("held-out.txt", "prompts.txt")
    )
    assert len(held_out_prompts()) == len(held) == 100 and not held & shown
    questions, sentences = fact_questions(), sentences_to_repair()
    asked = {" ".join(normalised(question.prompt)) for question in questions}
    assert len(questions) == len(asked) == 100 and not asked & (held | shown)
    assert len(sentences) == len(set(sentences)) == 100
    assert all(6 <= len(sentence.split()) <= 16 for sentence in sentences)
    # A question that has its own answer in it could be answered by a copy.
    assert not any(
        same_fact([question], [question.prompt])["value"] or not question.facts
        for question in questions
    )
    openings = read_lines("openings.txt")
    assert len(set(openings)) > 300
    assert all(line and line == " ".join(line.split()) for line in openings + held_out_prompts())


def make(*args) -> list[int]:
    """The numbers of the batches that were made."""
    return [number for number, _ in distil(*args)]


def test_a_run_goes_on_where_it_stopped_and_processes_share_the_work(tmp_path):
    backbone = load_backbone("tiny")
    for number, counts in distil(backbone, tmp_path / "whole", range(4), SMALL):
        assert counts["tried"] == SMALL.batch_size and number < 4
    assert make(backbone, tmp_path / "parts", range(1, 4, 2), SMALL) == [1, 3]
    assert next(distil(backbone, tmp_path / "parts", range(4), SMALL))[0] == 0
    assert make(backbone, tmp_path / "parts", range(4), SMALL) == [2]
    for path in (tmp_path / "whole").iterdir():
        assert path.read_bytes() == (tmp_path / "parts" / path.name).read_bytes()


def test_invented_prompts_begin_with_the_openings_given(tmp_path, capsys):
    invented = []

    def invent(backbone, starts, *_):
        invented.extend(starts)
        return [None] * len(starts)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("lad.training.distillation.invent_prompts", invent)
        backbone = load_backbone("tiny")
        make(backbone, tmp_path / "a", range(2), SMALL, None, ["How", "Why"])
    assert set(invented) == {"How", "Why"}
    with pytest.raises(InvalidInput, match="made with openings = "):
        make(backbone, tmp_path / "a", range(2), SMALL)
    (tmp_path / "lines.txt").write_text("How\n")
    both = [f"--{name}={tmp_path / 'lines.txt'}" for name in ("prompts", "openings")]
    status, _, err = distil_command(capsys, f"--out={tmp_path / 'x.jsonl'}", *both)
    assert status == 2 and "expected one, to answer or to invent" in err


def test_joining_keeps_each_prompt_once_and_accounts_for_the_rest(tmp_path):
    folder, out = tmp_path / "batches", tmp_path / "pairs.jsonl.gz"
    write_batch(folder, 0, [Pair("What is it?", "A."), Pair("Who?", "B.")], **{"answer loops": 3})
    tested = [Pair(held_out_prompts()[3].upper(), "A."), Pair(read_lines("prompts.txt")[5], "B.")]
    tested += [
        Pair(fact_questions()[7].prompt, "E."),
        Pair("Yes?", f"F. {sentences_to_repair()[2]}"),
    ]
    write_batch(folder, 1, [Pair("what IS it", "C."), Pair("Where?", "D."), *tested])
    card = write_pairs(out, *collect(folder, SMALL, passages=Passages(["where"])))
    assert read_pairs(out) == [Pair("What is it?", "A."), Pair("Who?", "B.")]
    assert card["pairs"] == 2 and card["batches"] == 2
    counts = {"answer loops": 3, "contaminated": 1, "kept": 8, "kept for testing": 4}
    assert card["counts"] == counts | {"prompt in another batch": 1, "tried": 20}
    assert card["sha256"] == sha256_file(out)
    assert json.loads((tmp_path / "pairs-card.json").read_text()) == card


def test_answers_that_begin_alike_are_few(tmp_path):
    alike = [Pair(f"Do {n}?", f"I am sorry but I can not do {n}.") for n in range(9)]
    other = Pair("Can you not?", "I am sorry but I can not")
    write_batch(tmp_path, 0, [*alike, other])
    kept, card = collect(tmp_path, DistilConfig(same_beginning=3))
    assert kept == [*alike[:3], other]
    assert card["counts"]["answer begins like others"] == 6


def test_batches_of_other_settings_are_not_mixed_in(tmp_path):
    backbone = load_backbone("tiny")
    make(backbone, tmp_path, range(1), SMALL)
    make(backbone, tmp_path, range(1), dataclasses.replace(SMALL, same_beginning=5))
    with pytest.raises(InvalidInput, match="made with seed = 0, now it is 1: use the same"):
        make(backbone, tmp_path, range(2), dataclasses.replace(SMALL, seed=1))
    with pytest.raises(InvalidInput, match="made with backbone = '"):
        make(dataclasses.replace(backbone, digest="other"), tmp_path, range(2), SMALL)
    with pytest.raises(InvalidInput, match="made with prompts = None, now"):
        make(backbone, tmp_path, range(2), SMALL, ["What is it?"])
    (tmp_path / "settings.json").write_text("[]")
    with pytest.raises(DamagedFile, match=r"settings\.json is unusable"):
        make(backbone, tmp_path, range(2), SMALL)
    with pytest.raises(CacheError, match="cannot write to"):
        make(backbone, tmp_path / "settings.json" / "x", range(1), SMALL)


def test_sentences_to_correct():
    text = (
        "Hi. The pie is 3.14 wide and warm. 1. Take it\nout now, it is hot! Why not do so? No end"
    )
    pairs = [Pair(f"Ask {n}", text) for n in range(40)] + [Pair("No sentence", "no, none")]
    found = correction_pairs(pairs, DistilConfig(repair=1))
    assert {pair.prompt for pair in found} == {REPAIR_PROMPT}
    assert {p.answer for p in found} == {"The pie is 3.14 wide and warm.", "Why not do so?"}
    assert correction_pairs(pairs, DistilConfig(repair=0)) == []


def test_an_answer_is_kept_only_if_its_text_is_read_as_its_tokens(monkeypatch):
    """Generated token by token, "ab" may be two tokens where the text is one."""
    backbone, config = load_backbone("tiny"), DistilConfig(batch_size=2, context=128)
    eos = backbone.eos_token_id
    text = backbone.tokenizer.encode("hi")
    written = [[*text, eos], [backbone.mask_token_id, eos], text]  # the last without an end
    monkeypatch.setattr("lad.training.distillation.generate", lambda *_, **__: written)
    answers = answer_prompts(backbone, ["one", "two", "three"], config, 0)
    assert [answers[0], answers[2]] == ["hi", None]
    assert reject(answers[1]) == "answer reads as other tokens"


@pytest.fixture
def chatty(monkeypatch):
    """The tiny backbone with an EOS that it says often; its gibberish is let through."""
    backbone = dataclasses.replace(load_backbone("tiny"), eos_token_id=34)
    monkeypatch.setattr("lad.training.distillation.load_backbone", lambda *_: backbone)
    monkeypatch.setattr("lad.training.distillation.reject", lambda answer: None)
    return backbone


def distil_command(capsys, *arguments):
    return run(capsys, "distil", "--model=tiny", "--device=cpu", *arguments)


def test_the_command_writes_pairs_and_questions_to_choose(
    chatty, few_questions, monkeypatch, capsys, tmp_path
):
    fetched = []
    monkeypatch.setattr("lad.evaluation.tasks.fetch_benchmarks", lambda: fetched.append(1))
    prompts, out = tmp_path / "prompts.txt", tmp_path / "pairs.jsonl.gz"
    texts = [chr(97 + n) * (n % 13 + 3) for n in range(26)]
    prompts.write_text("\n".join([*texts, "Which is tested?", held_out_prompts()[0]]))
    arguments = (f"--out={out}", f"--prompts={prompts}", "--batch-size=10", "--repair=1")
    status, _, err = distil_command(capsys, *arguments)
    assert status == 0 and fetched == [1] and err.count("batch ") == 3
    pairs, card = read_pairs(out), json.loads((tmp_path / "pairs-card.json").read_text())
    own = [pair for pair in pairs if pair.prompt in texts]
    assert len(own) > 9 and "Which is tested?" not in {pair.prompt for pair in pairs}
    assert card["pairs"] == len(pairs) and card["self-distilled"] == len(own)
    tasks = card["choices"]["tasks"]
    assert len(pairs) - len(own) == sum(task["pairs"] for task in tasks.values())
    assert card["choices"]["left out, tested elsewhere"]["openbookqa"] == 1
    assert tasks["arc-easy"]["licence"] == "CC-BY-SA-4.0"
    assert card["kept apart from"]["benchmarks"]["hellaswag"] == "validation"
    assert card["counts"]["tried"] == 28 and card["counts"]["kept"] >= len(own)
    # All there: the second run only joins, and gives the same bytes.
    before = out.read_bytes()
    status, _, err = distil_command(capsys, *arguments)
    assert status == 0 and "batch " not in err and out.read_bytes() == before
