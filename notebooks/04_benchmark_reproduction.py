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
# # 4. Benchmarks: is the authors' table reproduced?
#
# The authors report multiple-choice accuracies of an adapted LLaMA 3.1 8B. This notebook asks the
# same questions in the same words, of a model a sixtieth of that size: the default here,
# with the adapter that was trained for such questions, and the backbone under it.
#
# **Recorded** numbers were measured on whole sets (of HellaSwag the validation split), the curve on
# 1,000 questions, by the commands in the last section. Tables, figures and every **Takeaway** that
# depends on them are computed from the recorded data when this notebook runs. **Live** numbers are
# of a few questions and are no result.

# %% [markdown]
# *In JupyterLab: Run > Run All Cells, on opening. It takes a minute or two on two CPU cores.*

# %%
from collections import Counter

from IPython.display import Markdown

from lad.diffusion.adapter import choice_adapter, load_denoiser
from lad.diffusion.config import preset
from lad.evaluation.benchmark import refine_traces
from lad.evaluation.tables import authors_table, curve_table, likelihood_table, scoring_label
from lad.evaluation.tasks import format_question, live_items
from lad.utils import profile
from lad.viz.benchmarks import (
    against_authors,
    against_backbone,
    against_chance,
    iterations_help,
)
from lad.viz.gallery import read_numbers, show_recorded
from lad.widgets import Answered, browse

denoiser = load_denoiser(adapter=choice_adapter("smollm2-135m"))

# %%
items, where_from = live_items("arc-easy", 4 if profile() == "fast" else 12)
results, curve = read_numbers("benchmarks"), read_numbers("benchmark_curve")
print("Live:", where_from)
recorded = [*results["runs"], curve["origin"]]
adapters = {one["adapter_sha256"] for one in recorded} - {None}
same = "the one here" if adapters == {denoiser.adapter_sha256} else "NOT the one here"
print(f"Recorded with adapter {', '.join(sorted(x[:12] for x in adapters))}: {same}.")

# %% [markdown]
# ## How is a question asked, and what is right?
#
# As the authors ask it: the question, a line that asks for the best option, one option a line with
# its letter. The answer repeats the line of the right option.

# %%
question = format_question(items[0])
print(question.prompt, "\n\nRight:", question.lines[question.gold])

# %% [markdown]
# **By generation** the model answers in words, and three things are counted apart:
#
# | | right when | |
# | --- | --- | --- |
# | the letter | the leading letter is that of the right option | the authors' score |
# | the text | what follows `X: ` is the right option's text, whatever X is | knowledge in words |
# | a whole line | the answer is one of the lines shown, right or wrong | well-formed |
#
# An answer that no option's letter leads counts as wrong. A denoiser refines its answer with a
# preset; the backbone writes it from left to right.
#
# **By likelihood** each option is scored, and the likeliest is chosen. Of the *text* of an option,
# after a prompt without options, it asks for knowledge without letters: the usual way for ARC and
# HellaSwag. *By characters* divides by the option's length (`acc_norm`).
#
# Every share has a 95 % interval (Wilson's), in brackets. Compare it with **chance**, and with the
# **majority** share, the accuracy of always giving the commonest right letter.
#
# **Takeaway.** A right letter, a right text and a well-formed line are different claims. Only the
# letter is comparable with the authors' table.

# %% [markdown]
# ## Do our scores reproduce the authors' table?
#
# Their scores and ours are *in-distribution*, not zero-shot. The authors' training mix held the
# train splits of ARC-Easy and HellaSwag, MMLU's auxiliary set and GSM8K. Our adapter was trained on
# multiple-choice questions of train splits too (MMLU: dev and validation), without those that stand
# in a test split. The authors asked 200 random questions of each task, which leaves the intervals
# computed here from their numbers; ours are of all of them.

# %%
first = next(r for r in results["runs"] if (r["by"], r["scoring"]) == ("denoiser", "generation"))
origin = first["origin"]
print(f"Ours: {origin['model']}, preset {origin['preset']}, {origin['dtype']}, ", end="")
print(f"{origin['processor']}. The authors': LLaMA 3.1 8B Instruct, n = 200, not measured here.")
print("Percent by generation:")
authors_table(results)

# %%
Markdown(f"**Takeaway.** {against_chance(results, 'denoiser')} {against_authors(results)}")

# %% [markdown]
# For orientation, others' published figures, not re-run here: LLaDA 8B Instruct, trained as a
# diffusion model on 2.3 T tokens, reports 65.5 on MMLU, 74.6 on HellaSwag and 88.5 on
# ARC-Challenge. Tiny-A2D on Qwen3-0.6B, an adapted model nearer to this size, reports 40.0 on MMLU
# (its left-to-right base 52.8) and 42.1 on HellaSwag (47.4).

# %% [markdown]
# ## What does the backbone do alone?
#
# An adapter can keep what its backbone knows, lose it, or add the skill of answering with letters.
# The same questions were put to the backbone without the adapter. It was not trained on this form;
# the comparison of letters shows what the training adds, not what either knows.

# %%
show_recorded(
    "benchmarks",
    "Accuracy by task of backbone and denoiser with 95 % intervals: a panel for each way of "
    "scoring, with chance as a dotted line.",
)

# %%
Markdown(
    "**Takeaway.** "
    f"{against_chance(results, 'backbone', 'likelihood', 'text')} "
    f"{against_chance(results, 'backbone')} "
    f"With the adapter, generated letters are {against_backbone(results)}."
)

# %% [markdown]
# ## Do more iterations give better answers?
#
# This is the authors' central claim: quality can be bought with compute at test time. Three presets
# differ in what happens between iterations. *noiseless* masks nothing again, so that visible tokens
# are repaired; *guided* masks again where confidence is low, as the authors' demo can; *default*
# never masks a token again that was shown.

# %%
show_recorded(
    "benchmark_curve",
    "Three panels against the number of iterations allowed, a line for each preset, with 95 % "
    "intervals: right letters and right texts, with chance as a dotted line, and whole lines.",
)

# %%
origin = curve["origin"]
print(f"Recorded on {origin['processor']}, {origin['dtype']}, n = {curve['n']}, percent;")
print("passes: the forward passes spent, because a run stops early when nothing changes any more")
shown = curve_table({"points": [x for x in curve["points"] if x["iterations"] in (1, 2, 4, 8, 32)]})
shown

# %%
Markdown(f"**Takeaway.** {iterations_help(curve)} A curve may turn between.")

# %% [markdown]
# A letter is one token of the first draft. Later iterations fit the text to it, or it to the text.
# Notebook 5 shows what iterations do to longer answers.

# %% [markdown]
# ## What survives of the backbone's knowledge?
#
# Naming an option by its letter is a skill of larger models (Robinson et al. 2023). Knowledge shows
# without letters, in the likelihood of an option's text. The backbone's is exact: the sum of log p
# over its tokens, each after the ones before it. The denoiser is read the same way here: all behind
# a token is MASK, only that token is scored, and nothing is random (`--samples 0`; LLaDA's estimate
# from random masks is in `docs/benchmarks.md`). Differences are of the same questions, in pairs.

# %%
likelihood_table(results)

# %%
text = ("likelihood", "text")
Markdown(
    f"**Takeaway.** {against_chance(results, 'denoiser', *text)} Beside its backbone it is "
    f"{against_backbone(results, *text)}; by characters, the usual score, "
    f"{against_backbone(results, *text, 'difference_normalised')}."
)

# %% [markdown]
# ## What do the answers look like?
#
# A few questions, answered live by the preset *noiseless*. Each answer is a whole refinement, and
# its trace is kept. Choose a question that was answered wrong and step through: is the letter wrong
# from the first draft on, does it change on the way, does the text belong to another letter?

# %%
questions = [format_question(item) for item in items]
traces = dict(refine_traces(denoiser, questions, preset("noiseless"), batch_size=8))
answered = [Answered(question, traces[n]) for n, question in enumerate(questions)]
browse(answered)

# %%
counts = Counter(one.outcome for one in answered)
lines = sum(one.trace.answer in one.question.lines for one in answered)
Markdown(
    f"**Takeaway.** Of {len(answered)} live answers, right letters: {counts['right']}, whole "
    f"lines: {lines}. So few show how an answer comes about, not how good the model is."
)

# %% [markdown]
# ## How are these numbers made?
#
# On one GPU, all questions of the five tasks, adapter and backbone:
#
# ```sh
# all="lad benchmark --task all --n all"
# $all --preset noiseless --out runs/adapter
# $all --scoring likelihood --target text --samples 0 --out runs/adapter
# $all --backbone --out runs/backbone
# $all --backbone --scoring likelihood --target text --out runs/backbone
# lad benchmark compare runs/backbone runs/adapter
# lad benchmark collect runs/backbone runs/adapter --out figures/data/benchmarks.json
# lad benchmark curve --n 1000 --out figures/data/benchmark_curve.json
# ```
#
# A killed run goes on where it stopped. The logits that choose a letter are float32 whatever the
# model's dtype, because rounded ones tie. On two CPU cores `lad benchmark --n 200` takes a minute.
# What was recorded came from:

# %%
print("\n".join([*results["commands"], curve["command"]]))

# %%
for by in ("denoiser", "backbone"):
    seconds = Counter()
    for run in results["runs"]:
        if run["by"] == by:
            seconds[scoring_label(run)] += run["seconds"]
    print(by, "on", origin["processor"] + ":", end=" ")
    print(", ".join(f"{name} {value / 60:.1f} minutes" for name, value in seconds.items()))

# %% [markdown]
# **With the paper's 8B backbone**: accept its licence, `lad fetch llama-3.1-8b` (16 GB), train an
# adapter or import the authors' (`docs/llama-3.1-8b.md`), then the same commands with `--model
# llama-3.1-8b --adapter FOLDER`. This was not done here: no accuracy of an 8B model on this page
# is ours.
#
# **Takeaway.** Everything above but the live part is drawn from two committed files,
# `figures/data/benchmarks.json` and `benchmark_curve.json`. The first holds one letter a question
# and no text of a benchmark, so that every share and every comparison can be computed again; the
# second holds the shares alone. `docs/benchmarks.md` has what is left: rounding, which letters are
# chosen, estimates from masks.
