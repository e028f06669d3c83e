# ---
# jupyter:
#   jupytext:
#     formats: ipynb,py:percent
#     text_representation:
#       extension: .py
#       format_name: percent
#       format_version: '1.3'
#   kernelspec:
#     display_name: Python 3 (ipykernel)
#     language: python
#     name: python3
# ---

# %% [markdown]
# # 4. Benchmarks: what survives the adapter
#
# A denoiser is a left-to-right model that was made to do something else. What does it still know?
# Multiple-choice questions tell: the same questions, in the same words, to the denoiser and to the
# backbone it sits on. This notebook shows the authors' results, this project's, how to read both,
# and a few questions asked live.
#
# Two kinds of numbers appear. **Recorded** ones were measured once on full test sets, by the
# commands that are printed beside them. **Live** ones are measured while the notebook runs, on so
# few questions that they show how it works and say nothing about how good the model is.

# %% [markdown]
# *In JupyterLab: Run > Run All Cells, on opening and wherever an explorer says "model not found".
# It takes one to four minutes on two CPU cores.*

# %%
from collections import Counter

import torch

from lad.diffusion.adapter import load_denoiser
from lad.diffusion.config import preset
from lad.evaluation.benchmark import BenchmarkConfig, ScoredModel, compare, refine_traces, run
from lad.evaluation.likelihood import encode_questions
from lad.evaluation.statistics import wilson
from lad.evaluation.tables import (
    authors_table,
    bias_table,
    points,
    read_letters,
    results_tables,
    scoring_label,
)
from lad.evaluation.tasks import format_question, live_items, title_of
from lad.models.registry import load_backbone
from lad.utils import profile
from lad.viz.gallery import read_numbers, show_recorded
from lad.widgets import Answered, ItemBrowser

FAST = profile() == "fast"
denoiser = load_denoiser()
backbone = load_backbone(denoiser.backbone.spec.name)
items, where_from = live_items("arc-easy", 4 if FAST else 12)
print(f"{denoiser.backbone.spec.name}, adapter {denoiser.adapter_sha256[:12]}, profile {profile()}")
print("Live:", where_from)

# %% [markdown]
# ## How is a question asked?
#
# As the authors ask it: the question, a line that asks for the best option, one option a line with
# its letter. The answer repeats the line of the right option.

# %%
question = format_question(items[0])
print(question.prompt, "\n\nRight:", question.lines[question.gold])

# %% [markdown]
# There are two ways of scoring.
#
# **By generation**: the model answers in words, and the leading letter is read. Whatever does not
# begin with an option's letter is *unparsable*; it counts as wrong and is reported. A denoiser
# refines its answer, the backbone writes it from left to right.
#
# **By likelihood**: how likely does the model find each option's line? The backbone's answer is
# exact: the sum of log p over the tokens, each after the ones before it. A denoiser has no order of
# tokens. Its log-likelihood is an expectation over masks,
#
# $$\mathbb{E}_{l \sim U\{1, \ldots, L\}}\; \frac{L}{l} \sum_{i\ \mathrm{masked}} \log p_i ,$$
#
# estimated from a few masks for each option, as LLaDA does. All options of a question are masked by
# the same random numbers, so that noise affects them alike; every estimate has a standard error.
#
# Every accuracy below has a 95 % interval (Wilson's). Compare it with **chance**, and with the
# **majority** share: the accuracy of always answering the commonest right letter.

# %% [markdown]
# ## What do the authors report?
#
# Their adapter sits on LLaMA 3.1 8B Instruct, sixty times the size of the default here. Each score
# is of 200 random questions, which leaves the wide intervals that are computed here from their
# numbers. And the training mix held the train splits of ARC-Easy and HellaSwag, MMLU's auxiliary
# set and GSM8K: the scores are *in-distribution*, not zero-shot.

# %%
print("The authors' figures, 8B, n = 200 each (not measured here):")
authors_table()

# %% [markdown]
# For orientation, figures that others have published, not re-run here: LLaDA 8B Instruct, trained
# as a diffusion model on 2.3 T tokens, reports 65.5 on MMLU, 74.6 on HellaSwag and 88.5 on
# ARC-Challenge. Tiny-A2D on Qwen3-0.6B, an adapted model of a size closer to ours, reports 40.0 on
# MMLU where its left-to-right base has 52.8, and 42.1 on HellaSwag (base 47.4).

# %% [markdown]
# ## What was measured here?
#
# The default model: 135 M parameters, 4-bit. The fair question at this size is not whether it
# matches an 8B model, but what the adapter costs: the same backbone, before and after, on the same
# questions, compared in pairs.

# %%
results = read_numbers("benchmarks")
digest = next(r["adapter_sha256"] for r in results["runs"] if r["by"] == "denoiser")
where = results["runs"][0]["origin"]
print("Recorded, full sets, by:\n  " + "\n  ".join(results["commands"]))
print(f"on {where['processor']}, {where['dtype']}, adapter {digest[:12]}", end=", ")
print("the one here." if digest == denoiser.adapter_sha256 else "NOT the one here.")
shares, tasks = results_tables(results)
shares

# %%
tasks

# %% [markdown]
# Three ways of asking, and they do not agree. **The line** (`B: text`, with all options in the
# prompt) is what LAD is trained to say. **The text** of an option, to a prompt without options,
# asks for knowledge without letters, as ARC and HellaSwag are usually scored. **Generation** reads
# the leading letter. *By characters* divides the log-likelihood by the length of the option: the
# usual score of ARC-Challenge and HellaSwag (`acc_norm`).

# %%
show_recorded(
    "benchmarks",
    "Accuracy by task of backbone and denoiser with 95 % intervals: a panel for each way of "
    "scoring, with chance as a dotted line.",
)

# %% [markdown]
# **What did the adapter cost?** The mark that this project set itself: no task more than 3 points
# below the backbone, in pairs, on the same questions.

# %%
MOST_LOST = 3
for one in results["comparisons"]:
    for key in ("difference", "difference_normalised"):
        if key not in one:
            continue
        low, high = (100 * one[key][end] for end in ("low", "high"))
        mark = "within the mark" if 100 * one[key]["value"] >= -MOST_LOST else "BELOW the mark"
        clear = "clearly" if low > -MOST_LOST or high < -MOST_LOST else "the interval includes -3"
        scoring = scoring_label(one) + ", by characters" * (key != "difference")
        print(f"{scoring:38} {title_of(one['task']):14} {points(one[key]):22} {mark}, {clear}")

# %%
# What the next paragraphs say is checked here: other numbers would stop this cell.
likelihoods = [one for one in results["comparisons"] if one["scoring"] == "likelihood"]
line = {one["task"]: one["difference"] for one in likelihoods if one["target"] == "line"}
assert line["arc-easy"]["low"] > 0
text = {one["task"]: one["difference"] for one in likelihoods if one["target"] == "text"}
assert all(d["low"] > -MOST_LOST / 100 for d in line.values())
assert all(d["high"] < 0 for d in text.values())
assert {task for task, d in text.items() if d["value"] >= -MOST_LOST / 100} == {"mmlu"}
usual = {x["task"]: x["difference_normalised"] for x in likelihoods if x["target"] == "text"}
assert all(d["high"] < 0 for d in usual.values())
assert usual["hellaswag"]["value"] < -0.09 < usual["arc-challenge"]["value"] < -0.03
assert min(usual["arc-easy"]["value"], usual["mmlu"]["value"]) > -0.03
answers = [one for one in results["runs"] if one["scoring"] == "generation"]
assert all(r["parsable"] == 1 for r in answers if r["by"] == "denoiser")
assert all(r["interval"][0] < r["chance"] for r in answers)

# %% [markdown]
# - **By the line, nothing was lost**: no task is below the backbone by 3 points, not even at the
#   low end of its interval, and ARC-Easy gained. But there was little to lose, the backbone stands
#   near chance, and it is not zero-shot: like the authors' adapter, this one was trained on
#   questions in this form, 12,975 from train splits (and MMLU's dev and validation), while the
#   backbone is used as it is.
# - **By the text, the adapter falls short** on all four tasks, on three by more than the 3 points.
#   By characters it is two, and HellaSwag loses most: 9.1 points. There the backbone does know
#   something: about half of ARC-Easy, a third of HellaSwag.
# - **By generation neither model is above chance.** The denoiser's answers are all parsable, which
#   shows that the format was learnt, and only that.
#
# Why is everything so near chance? Because of the backbone. It knows more than it can say with
# letters: compare its ARC-Easy by the text and by the line. Tying an option to its letter is a
# skill of larger models (Robinson et al. 2023), of which the adapter adds a little at 135 M.

# %% [markdown]
# ## Why is the text lost?
#
# Two suspects. The denoiser's likelihood is an *estimate* from 16 masks an option, while the
# backbone's is exact: noise alone costs accuracy. And the denoiser is asked something harder: most
# of its masks hide words to the left of the word that it must tell. Where its two best options are
# more than two standard errors apart (*clear*), more samples would rarely change the choice:

# %%
for one in likelihoods:
    if one["target"] == "text":
        for name in ("difference", "difference_clear"):
            part = "all" if name == "difference" else "clear"
            part += f", n = {one[name]['n']:,}"
            print(f"{title_of(one['task']):14} {part:18} {points(one[name])}")
clear = {one["task"]: one["difference_clear"] for one in likelihoods if one["target"] == "text"}
assert all(clear[task]["value"] > text[task]["value"] for task in text)
assert clear["hellaswag"]["high"] < 0

# %% [markdown]
# Where the choice is clear the gap is smaller on every task, so a part of it is probably the
# estimate's noise (or the clear questions are the easier ones, which this cannot tell apart). It is
# not all of it: on HellaSwag, whose endings are the longest, the denoiser is below its backbone
# there too.
#
# A denoiser's likelihood can also be read from left to right: everything behind a token is MASK,
# only that token is scored, and nothing is left to luck (`--samples 0`). The same questions again:

# %%
left = read_numbers("benchmarks_left_to_right")
print("Recorded by:", left["commands"][1])
for one in left["comparisons"]:
    for key, masked, name in (
        ("difference", text, "sum"),
        ("difference_normalised", usual, "by characters"),
    ):
        before = 100 * masked[one["task"]]["value"]
        numbers = f"{points(one[key]):22} with masks {before:+.1f}"
        print(f"{title_of(one['task']):14} {name:14} {numbers}")
        assert masked[one["task"]]["value"] < one[key]["value"] < 0
    assert one["difference"]["high"] < 0
    assert (one["difference_normalised"]["value"] < -0.07) == (one["task"] == "hellaswag")

# %% [markdown]
# So luck costs a point or two at most, and the rest is lost: of the sum, about four points on
# ARC-Easy and HellaSwag; by characters 1.8 on ARC-Easy, where the interval includes 0, and 7.5 on
# HellaSwag. The adapter learnt to answer as a chat does, in sentences. A bare text is less likely
# to it, right or wrong (`docs/benchmarks.md` has the numbers), and a difference of a few nats among
# so many is easily reversed.

# %% [markdown]
# ## Which letters?
#
# A model that cannot tell the options apart still has to pick one, and many have a favourite. How
# often each letter was chosen beside how often it was right:

# %%
bias_table(results)

# %% [markdown]
# And the other way round: how often was A right when it was chosen? A model that knows nothing is
# right with every letter about as often as that letter is right at all.

# %%
for one in answers:
    letters = read_letters(one["choices"])
    chose_a = [right for place, right in letters if place == 0]
    share = wilson(sum(chose_a), len(chose_a))
    ends = f"{share.low:.1%} to {share.high:.1%}"
    print(
        f"{one['by']}, {title_of(one['task'])}: A chosen {len(chose_a) / len(letters):.0%}, right "
        f"{share.value:.1%} of those ({ends}); A is right in {one['letters']['A']['right']:.1%}"
    )

# %% [markdown]
# So generation is a letter A with a text behind it, and whoever always says A scores below chance
# on MMLU, where A is the rarest key. But how much of that favourite is the model's?
#
# **Rounding.** The letters' logits lie close together and far from zero, and bfloat16 has 8 bits:
# above 32 it knows steps of a quarter. Ties are the rule then, and the first of them, A, is taken.
# With the live questions below, the same logits in float32 and rounded:

# %%
encoded = encode_questions(
    denoiser.tokenizer,
    [format_question(item) for item in items],
    "letter",
    denoiser.mask_token_id,
    denoiser.eos_token_id,
)
ties = 0
for one in encoded:
    masked = torch.full((1, 1 + len(one.suffix)), denoiser.mask_token_id)
    with torch.inference_mode():
        logits = denoiser.logits(torch.tensor([one.prompt]), masked)[0, 0]
    letters = logits[[ids[0] for ids in one.options]].float()
    rounded = letters.bfloat16().float()
    ties += int((rounded == rounded.max()).sum()) > 1
    print("float32", [f"{x:.2f}" for x in letters], "  rounded", [f"{x:.2f}" for x in rounded])
print(f"live: the largest is shared after rounding in {ties} of {len(encoded)} questions")

# %% [markdown]
# The runs above are in bfloat16, a GPU's default. The same questions in float32, recorded:

# %%
exact = read_numbers("benchmarks_float32")
for task in ("arc-easy", "arc-challenge"):
    for name, recorded in (("bfloat16", results), ("float32", exact)):
        one = next(
            r
            for r in recorded["runs"]
            if (r["by"], r["task"], r["scoring"]) == ("denoiser", task, "generation")
            and not r["asked"]["rotate"]
        )
        low, high = (100 * end for end in one["interval"])
        print(
            f"{title_of(task):14} {name:9} A chosen {one['letters']['A']['chosen']:.0%}, "
            f"right {one['accuracy']:.1%} ({low:.1f} to {high:.1f})"
        )
        assert one["interval"][0] < one["chance"] < one["interval"][1]
        assert (one["letters"]["A"]["chosen"] > 0.6) == (name == "bfloat16")

# %% [markdown]
# So most of that favourite was rounding, and accuracy is at chance either way: there is nothing in
# the letters to be lost. To measure letters on a GPU, ask for `--dtype float32`.
#
# **Places.** `--rotate` asks every question with the options in every place. A model that knows the
# answer chooses the same option throughout; one with a favourite place never does.

# %%
for one in (r for r in exact["runs"] if r["asked"]["rotate"]):
    steady, accuracy = (one["steady"], one["accuracy"])
    print(
        f"{one['by']} by {scoring_label(one)}, {one['asked']['n']} questions of "
        f"{title_of(one['task'])} in every order: right {accuracy:.0%}; "
        f"the same option throughout {steady['value']:.0%} "
        f"({steady['low']:.0%} to {steady['high']:.0%})"
    )
    assert (steady["value"] < 0.05) == (one["scoring"] == "generation")

# %% [markdown]
# The letter it generates hangs on the place and hardly ever on the option. By the likelihood of the
# line the option counts, on about a third of the questions: there, it also stands above chance.

# %% [markdown]
# ## Do two ways of asking agree?
#
# Every letter is recorded, question by question. If line and text named the same option more often
# than two independent choices would, and were right more often then, they would be two views of one
# knowledge:

# %%
likelihood_runs = [one for one in results["runs"] if one["scoring"] == "likelihood"]
for by in ("backbone", "denoiser"):
    for task in ("arc-easy", "arc-challenge", "hellaswag"):
        chosen = {
            one["target"]: read_letters(one["choices"])
            for one in likelihood_runs
            if (one["by"], one["task"]) == (by, task)
        }
        pairs = list(zip(chosen["line"], chosen["text"], strict=True))
        same = [b[1] for a, b in pairs if a[0] == b[0]]
        other = [b[1] for a, b in pairs if a[0] != b[0]]
        agreed = wilson(sum(same), len(same)).low > wilson(sum(other), len(other)).high
        assert agreed == ((by, task) == ("denoiser", "arc-easy"))  # what is said below
        by_chance = sum(
            Counter(a[0] for a, _ in pairs)[place] * Counter(b[0] for _, b in pairs)[place]
            for place in range(5)
        )
        print(
            f"{by}, {title_of(task)}: the same option {len(same) / len(pairs):.0%} (independent "
            f"{by_chance / len(pairs) ** 2:.0%}); the text's is right {sum(same) / len(same):.0%} "
            f"of those, {sum(other) / len(other):.0%} of the others"
        )

# %% [markdown]
# On ARC-Easy the denoiser's text is right clearly more often where its line agrees: there the line
# carries a part of what the text knows, which the backbone's line does not. On HellaSwag the two
# agree more often than chance, and are right no more often: a shared preference, not knowledge.

# %% [markdown]
# ## A few questions, live
#
# The same machinery on a handful of questions, so that each step can be seen. These numbers are no
# result.

# %%
config = preset("noiseless")
live = {}
for name, model in (
    ("backbone", ScoredModel(backbone)),
    ("denoiser", ScoredModel(denoiser, config)),
):
    for scoring, target in (("generation", "line"), ("likelihood", "letter")):
        chosen = BenchmarkConfig(items[0].task, "live", scoring=scoring, target=target)
        live[name, scoring] = run(model, items, chosen, {"adapter_sha256": None})
for (name, scoring), result in live.items():
    low, high = result.summary["interval"]
    print(
        f"live, n = {result.summary['n']}: {name} by {scoring}: {result.summary['accuracy']:.0%} "
        f"({low:.0%} to {high:.0%}), parsable {result.summary['parsable']:.0%}"
    )

# %%
paired = compare(live["backbone", "generation"], live["denoiser", "generation"])
print(
    f"live, in pairs: both right {paired['both']}, backbone alone {paired['only_a']}, "
    f"denoiser alone {paired['only_b']}, neither {paired['neither']}; McNemar p = {paired['p']:.2f}"
)

# %% [markdown]
# ## What goes wrong, question by question
#
# Each answer is a whole refinement, and its trace is kept. Choose *wrong* or *unparsable* in the
# browser and step through: is the letter wrong from the first draft on, does it change on the way,
# or does the text disagree with its letter?

# %%
questions = [format_question(item) for item in items]
traces = dict(refine_traces(denoiser, questions, config, batch_size=8))
answered = [Answered(question, traces[n]) for n, question in enumerate(questions)]
print("live outcomes:", dict(Counter(one.outcome for one in answered)))
print(
    "whole line as it stands among the options:",
    sum(one.trace.answer in one.question.lines for one in answered),
    "of",
    len(answered),
)

# %%
ItemBrowser(answered).widget

# %% [markdown]
# Without a running kernel, the first of them in plain text:

# %%
for one in answered[:3]:
    print(one.question.item.question)
    print("  right:", one.question.lines[one.question.gold])
    print("  said: ", one.trace.answer, f"({one.outcome}, {one.trace.nfe} iterations)")

# %% [markdown]
# Where the recorded runs were right most and least often, by subject of MMLU. Single subjects have
# a hundred questions or so, and an interval of ten points to either side. Of 57 subjects, one or
# two intervals would lie above chance, and as many below, if there were nothing but luck:

# %%
for one in results["runs"]:
    if one["task"] != "mmlu":
        continue
    ranked = sorted(one["subjects"].items(), key=lambda pair: pair[1]["value"])
    ends = [f"{name} {share['value']:.0%}" for name, share in (*ranked[:3], *ranked[-3:])]
    above = sum(share["low"] > 0.25 for share in one["subjects"].values())
    below = sum(share["high"] < 0.25 for share in one["subjects"].values())
    print(f"{one['by']} by {scoring_label(one)}: {above} above, {below} below")
    print("   least", ", ".join(ends[:3]))
    print("   most ", ", ".join(ends[3:]))

# %% [markdown]
# ## Do more iterations help?
#
# The authors' central claim is that quality can be bought with compute at test time: more
# iterations, better answers. By generation, against the number of iterations allowed, for the
# presets named: is the letter right, and is the answer one of the lines, word for word?

# %%
show_recorded(
    "benchmark_curve",
    "Two panels against the number of iterations allowed, a line for each preset, with 95 % "
    "intervals: the share of right letters, chance as a dotted line, and the share of whole lines.",
)

# %%
curve = read_numbers("benchmark_curve")
origin = curve["origin"]
print(f"Recorded on {origin['processor']}, {origin['dtype']}, n = {curve['n']}: {curve['command']}")
for point in (p for p in curve["points"] if p["iterations"] in (1, 8, 128)):
    print(
        f"{point['preset']:9} {point['iterations']:4} iterations allowed, "
        f"{point['forwards']['value']:.1f} spent: letter right {point['accuracy']['value']:.0%}, "
        f"whole line {point['exact']:.0%}"
    )

# %%
ends = {}
for point in curve["points"]:
    ends.setdefault(point["preset"], []).append(point)
for first, *_, last in ends.values():
    assert last["exact"] > 2 * first["exact"]  # lines become whole ...
    assert last["accuracy"]["low"] < first["accuracy"]["value"] < last["accuracy"]["high"]

# %% [markdown]
# Both. **The answer gets better**: the first draft almost never repeats a line, and after a few
# passes of the preset *noiseless* almost every answer does. The preset *default* shows a token from
# a confidence of 0.1 on and never masks it again, so most tokens are final at once, and fewer lines
# become whole. LAD's own re-masking is the preset *guided*, of which nothing was recorded yet.
# **The letter does not**: it is one token, it stands in the first draft, and what follows fits the
# text to it. A run stops when nothing changes any more, so beyond eight iterations little is spent.
# Notebook 3 shows what iterations do to longer answers.

# %% [markdown]
# ## How to make these numbers
#
# On one GPU, all questions of the four tasks, both ways of scoring, adapter and backbone:
#
# ```sh
# lad benchmark --task all --n all --scoring likelihood,generation --out runs/adapter
# lad benchmark --task all --n all --scoring likelihood,generation --out runs/backbone --backbone
# lad benchmark compare runs/backbone runs/adapter
# lad benchmark collect runs/backbone runs/adapter --out figures/data/benchmarks.json
# lad benchmark curve --n 1000 --dtype float32 --out figures/data/benchmark_curve.json
# ```
#
# A killed run goes on where it stopped, and asks nothing twice. On two CPU cores,
# `lad benchmark --n 200` takes a few minutes.

# %%
for by in ("denoiser", "backbone"):
    runs = [one for one in results["runs"] if one["by"] == by and one["target"] == "line"]
    parts = [
        f"{scoring} {sum(one['seconds'] for one in runs if one['scoring'] == scoring) / 60:.1f}"
        for scoring in ("likelihood", "generation")
    ]
    print(f"measured at 135 M on {where['processor']}, four tasks, {by}, minutes:", *parts)

# %% [markdown]
# **With the paper's 8B backbone**: accept its licence, `lad fetch llama-3.1-8b` (16 GB), train an
# adapter (`lad train`; the authors' took about ten hours on one A100 with 40 GB) or import theirs
# (`docs/llama-3.1-8b.md`), then the commands above with `--model llama-3.1-8b --adapter
# runs/8b/adapter`. That needs a GPU with more than 16 GB and has not been done here: no accuracy of
# an 8B model on this page is ours.
#
# Iterations measured with random weights of the true shape give the cost. An upper end: every
# answer takes all 64 iterations, every likelihood 16 masks for each of four options, and every pass
# reads 256 positions.

# %%
shape = next(r for r in read_numbers("llama-3.1-8b")["runs"] if r["kind"] == "iteration")
gpu = shape["provenance"]["processor"]
cells = {cell["batch"]: cell["sampler"]["iteration_seconds"] for cell in shape["cells"]}
batch, iteration = max(cells.items())
print(f"8 B on {gpu}, {shape['bits']} bit: {1000 * cells[1]:.1f} ms an iteration of one prompt,")
print(f"{1000 * iteration:.0f} ms of {batch} at once")
sizes = {r["task"]: r["n"] for r in results["runs"]}
for name, questions in (("the authors' 4 x 200", 800), ("all four sets", sum(sizes.values()))):
    hours = questions * 64 * iteration / batch / 3600
    print(f"{name}: at most {hours:.1f} hours by generation, and {hours:.1f} by likelihood")

# %% [markdown]
# **Conclusion.** A denoiser's score depends on how the question is asked and scored. At 135 M,
# generated letters say nothing about either model. By the line the adapter costs nothing, in a form
# that it was trained on and its backbone fails at. By the text it costs a part of what the backbone
# knew: one to four points by the sum; by characters, the usual score, one to three, and on
# HellaSwag 7.5; and up to two more when the likelihood is estimated from a few masks. The
# comparison that counts is the paired one, against the same backbone on the same questions. The
# authors' table is of another model, sixty times as large and trained on the questions' siblings,
# and nothing measured here confirms or contradicts it.
