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

# %%
from collections import Counter

from lad.backbones import load_backbone
from lad.benchmarks.examples import live_items
from lad.benchmarks.generation import refine_traces
from lad.benchmarks.prompts import put
from lad.benchmarks.respondents import Backbone, Denoising
from lad.benchmarks.results import compare
from lad.benchmarks.run import Asked, run
from lad.benchmarks.tables import authors_text, bias_text, results_text
from lad.denoiser import load_denoiser
from lad.figures.benchmarks import accuracies, compute_curve, recorded
from lad.figures.style import save, show
from lad.sampler import preset
from lad.settings import profile
from lad.widgets.benchmark import Answered, ItemBrowser

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
question = put(items[0])
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
# the same random numbers, so that luck hits them alike, and every estimate has its standard error.
#
# Every accuracy below carries a 95 % interval (Wilson's). It is to be held against **chance**, and
# against the **majority** share: what always answering the commonest right letter would get.

# %% [markdown]
# ## What do the authors report?
#
# Their adapter sits on LLaMA 3.1 8B Instruct, sixty times the size of the default here. Each score
# is of 200 random questions, which leaves the wide intervals that are computed here from their
# numbers. And the training mix held the train splits of ARC-Easy and HellaSwag, MMLU's auxiliary
# set and GSM8K: the scores are *in-distribution*, not zero-shot.

# %%
print("The authors' figures, 8B, n = 200 each (not measured here):\n")
print(authors_text())

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
results = recorded("benchmarks")
if results is None:
    print("Nothing is recorded: no file figures/data/benchmarks.json. What makes it stands below.")
else:
    print("Recorded, by:\n  " + "\n  ".join(results["commands"]) + "\n")
    print(results_text(results))

# %%
if results is not None:
    figure = accuracies(results)
    save(figure, "benchmarks", svg=True)
    show(figure, alt=f"Accuracy by task of backbone and denoiser. {figure.get_suptitle()}.")

# %% [markdown]
# A model that cannot tell the options apart still has to pick a letter, and many have a favourite.
# How often each letter was chosen beside how often it was right:

# %%
print("Nothing is recorded." if results is None else bias_text(results))

# %% [markdown]
# **How to read this.** An accuracy whose interval holds chance shows no knowledge, and one no
# better than the majority share may be a favourite letter. `lad benchmark --rotate` asks every
# question with the options in every place; the share of questions with the same choice throughout
# says how much of a score is the place, and how much is the option.

# %% [markdown]
# ## A few questions, live
#
# The same machinery on a handful of questions, so that each step can be seen. These numbers are no
# result.

# %%
config = preset("noiseless")
live = {}
for name, who in (("backbone", Backbone(backbone)), ("denoiser", Denoising(denoiser, config))):
    for scoring, target in (("generation", "line"), ("likelihood", "letter")):
        asked = Asked(items[0].task, "live", scoring=scoring, target=target)
        live[name, scoring] = run(who, items, asked, {"adapter_sha256": None})
for (name, scoring), told in live.items():
    low, high = told.summary["interval"]
    print(
        f"live, n = {told.summary['n']}: {name} by {scoring}: {told.summary['accuracy']:.0%} "
        f"({low:.0%} to {high:.0%}), parsable {told.summary['parsable']:.0%}"
    )

# %%
told = compare(live["backbone", "generation"], live["denoiser", "generation"])
print(
    f"live, in pairs: both right {told['both']}, backbone alone {told['only_a']}, "
    f"denoiser alone {told['only_b']}, neither {told['neither']}; McNemar p = {told['p']:.2f}"
)

# %% [markdown]
# ## What goes wrong, question by question
#
# Each answer is a whole refinement, and its trace is kept. Choose *wrong* or *unparsable* in the
# browser and step through: is the letter wrong from the first draft on, does it change on the way,
# or does the text disagree with its letter?

# %%
questions = [put(item) for item in items]
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
# a hundred questions or so, and an interval of ten points to either side: the ends of this list are
# partly luck.

# %%
mmlu = [run for run in (results or {"runs": []})["runs"] if run["task"] == "mmlu"]
for one in mmlu:
    ranked = sorted(one["subjects"].items(), key=lambda pair: pair[1]["value"])
    ends = [f"{name} {share['value']:.0%}" for name, share in (*ranked[:3], *ranked[-3:])]
    print(f"{one['by']} by {one['scoring']}:", ", ".join(ends))
if not mmlu:
    print("Nothing is recorded.")

# %% [markdown]
# ## Do more iterations help?
#
# The authors' central claim is that quality can be bought with compute at test time: more
# iterations, better answers. Accuracy by generation, against the number of iterations allowed,
# without re-noising and with:

# %%
curve = recorded("benchmark_curve")
if curve is None:
    print("Nothing is recorded: no file figures/data/benchmark_curve.json.")
else:
    print("Recorded, by:", curve["command"])
    figure = compute_curve(curve)
    save(figure, "benchmark_curve", svg=True)
    show(figure, alt=f"Accuracy against iterations. {figure.get_suptitle()}.")

# %% [markdown]
# A letter is one token, and it stands in the first draft: a benchmark of letters is the least
# likely place for iterations to pay. Notebook 3 shows what they do to longer answers.

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
# lad benchmark curve --n 1000 --out figures/data/benchmark_curve.json
# ```
#
# A killed run goes on where it stopped, and asks nothing twice. On two CPU cores,
# `lad benchmark --n 200` takes a few minutes.
#
# **With the paper's 8B backbone**: accept its licence, `lad fetch llama-3.1-8b` (16 GB), train an
# adapter (`lad train`; the authors' took about ten hours on one A100 with 40 GB), then the commands
# above with `--model llama-3.1-8b --adapter runs/8b/adapter`. That needs a GPU with more than 16 GB
# and has not been done here. A forward pass costs about as many operations as there are parameters,
# so the time can be guessed from what was measured at 135 M:

# %%
if results is None:
    print("Nothing is recorded, so there is nothing to guess from.")
else:
    seconds = sum(one["seconds"] for one in results["runs"] if one["by"] == "denoiser")
    times = 8.03e9 / sum(p.numel() for p in backbone.model.parameters())
    where = results["runs"][0]["origin"]["processor"]
    print(f"measured at 135 M on {where}: {seconds / 60:.0f} minutes for the denoiser's runs")
    print(f"a guess for 8 B, {times:.0f} times the parameters: {seconds * times / 3600:.0f} hours")

# %% [markdown]
# **Conclusion.** What a benchmark says about a denoiser hangs on how it is asked: by likelihood it
# shows what the backbone's knowledge became, by generation also whether the letter can be brought
# to paper. The comparison that counts is the paired one, against the same backbone on the same
# questions; the authors' table is of another model, sixty times as large and trained on the
# questions' siblings.
