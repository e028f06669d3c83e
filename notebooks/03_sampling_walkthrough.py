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
# # 3. Sampling: how an answer is refined
#
# A language model usually writes an answer token by token, left to right, and what is written
# stays. LAD (LoRA-Adapted Diffusion) writes the whole answer at once and then improves it. This
# notebook follows answers from the first MASK to the last draft: how they get better, where the
# model is confident, what it costs, and how it fails.
#
# 1. The **answer region**, a fixed number of positions after the prompt, starts as **MASK**.
# 2. The **denoiser**, a LLaMA with an adapter (notebook 2), reads prompt and answer region and
#    predicts every position of the answer in one forward pass. Drawing a token at each position
#    gives a **draft**. The probability of a drawn token is its **confidence**. After the answer
#    follow EOS, end-of-sequence tokens.
# 3. The draft is the next input, which gives a better draft. One such round is an **iteration**,
#    counted from 0.
# 4. With **re-masking** some tokens are masked again before the next iteration, fewer each time
#    (notebook 1). Without it the run is **noiseless**: the denoiser has to repair tokens that are
#    visible and wrong.
# 5. When three drafts in a row are identical, the run stops early.
#
# A **trace** records everything that happens in a run. All figures below are made from traces.

# %% [markdown]
# *In JupyterLab: Run > Run All Cells, on opening and wherever an explorer says "model not found".
# It takes one to four minutes on two CPU cores.*

# %%
from dataclasses import replace

from IPython.display import HTML

from lad.diffusion.adapter import load_denoiser
from lad.diffusion.config import RefineConfig, preset
from lad.diffusion.drafts import INFILL_PROMPT, gapped, visible_text
from lad.diffusion.sampler import record
from lad.evaluation.text_metrics import repeated_ngrams
from lad.utils import profile
from lad.viz.gallery import FIGURES, gallery, save_trace, show_recorded
from lad.viz.html import costs_table, draft_html, filmstrip_text, legend_html, page_html
from lad.viz.refinement import (
    confidence_curve,
    confidence_heatmap,
    filmstrip_figure,
    settled_curve,
    settling_heatmap,
)
from lad.viz.style import save, show
from lad.viz.tokens import half_settled, repeated_share
from lad.widgets import (
    Gallery,
    InfillExplorer,
    RefinementExplorer,
    RepairExplorer,
    TracePlayer,
)
from lad.widgets.accessibility import name_controls

FAST = profile() == "fast"
denoiser = load_denoiser()
print(f"{denoiser.backbone.spec.name}, adapter {denoiser.adapter_sha256[:12]}, profile {profile()}")
name_controls()  # for a screen reader, and for a click on a token

# %% [markdown]
# ## What does the denoiser do with a short question?
#
# A noiseless run with an answer region of 24 tokens. Brackets mark tokens that differ from the
# draft before.

# %%
paris = record(
    denoiser,
    "What is the capital of France?",
    RefineConfig(iterations=8, remasking="none", answer_length=24),
)
save_trace(paris, "paris_noiseless")
print(filmstrip_text(paris))

# %% [markdown]
# The same run as a picture: one row an iteration, every token on the colour of its confidence,
# from dark red (a guess) through olive to pale green (certain).

# %%
show(filmstrip_figure(paris), alt="The drafts listed above, coloured by confidence.")

# %% [markdown]
# **Conclusion.** A short, well-known answer is complete in one of the first drafts. The remaining
# iterations raise the confidence; then the draft no longer changes and the run stops, after fewer
# forward passes than the answer has tokens.

# %% [markdown]
# ## How does a longer answer develop, with and without re-masking?
#
# The question of the authors' figure, answered twice: without re-masking, and with. Re-masking is
# guided by confidence: the lower the confidence of a token, the likelier it is masked again.

# %%
QUESTION = "What do you know about Amsterdam?"
NOISELESS = RefineConfig(iterations=16, remasking="none")
REMASKED = RefineConfig(iterations=32, remasking="guided", noise_start=0.9, sharpness=1)
noiseless = record(denoiser, QUESTION, NOISELESS)
remasked = record(denoiser, QUESTION, REMASKED)
for run, name in ((noiseless, "amsterdam_noiseless"), (remasked, "amsterdam_renoised")):
    save_trace(run, name)

# %% [markdown]
# One iteration with re-masking in its two phases: after denoising, changed tokens in green and
# underlined; after re-masking, masked tokens in red, hatched and struck.

# %%
phases = [draft_html(remasked, 2, phase) for phase in ("denoised", "remasked")]
HTML(page_html(legend_html(remasked), *phases))

# %% [markdown]
# The next two figures follow the authors' page. With re-masking there are two columns: what the
# denoiser saw, MASK in black, and the draft it drew. The noiseless run needs only the second.

# %%
film = filmstrip_figure(remasked, FIGURES["filmstrip_renoised"][1])
save(film, "filmstrip_renoised", svg=True)
show(film, alt=f"Drafts with re-masking at iterations 0 to 32; the last reads: {remasked.answer}")

# %%
film = filmstrip_figure(noiseless, FIGURES["filmstrip_noiseless"][1])
save(film, "filmstrip_noiseless", svg=True)
show(film, alt=f"Drafts without re-masking; the last reads: {noiseless.answer}")

# %% [markdown]
# **Conclusion.** In a first draft each position is drawn without its neighbours, so the same
# likely word is drawn at several of them; later drafts see their neighbours. A token that changes
# without being MASK in the input is visible text repaired: in the noiseless run every change after
# the first row.

# %% [markdown]
# ## Where is the denoiser confident, and when?
#
# Position in the answer region across, iteration downwards, colour for confidence. The dashed line
# is the end of the final answer.

# %%
heat = confidence_heatmap(remasked)
show(heat, alt=f"Confidence by position and iteration. {heat.get_suptitle()}.")

# %%
heat = confidence_heatmap(noiseless)
show(heat, alt=f"Confidence by position and iteration. {heat.get_suptitle()}.")

# %% [markdown]
# **Conclusion.** Confidence rises from draft to draft, at some positions much later than at
# others. Whether those are at the end of the answer is tested on many answers below.

# %% [markdown]
# ## Which positions settle, and which keep moving?
#
# A position has **settled** at the iteration from which it keeps its final token to the end.
# Green: changed. Grey: unchanged, but not its final token. Pale: settled. Hatched: MASK in the
# input of that iteration.

# %%
heat = settling_heatmap(remasked)
show(heat, alt=f"Changed, unchanged and settled tokens, with re-masking. {heat.get_suptitle()}.")

# %%
heat = settling_heatmap(noiseless)
show(heat, alt=f"Changed, unchanged and settled tokens, noiseless. {heat.get_suptitle()}.")

# %% [markdown]
# The same as one line a run: the share of the final answer that has settled, and the mean
# confidence of the draft.

# %%
runs = {"without re-masking": noiseless, "with re-masking": remasked}
curve = settled_curve(runs)
show(curve, alt=f"Share of settled answer tokens against iteration. {curve.get_suptitle()}.")

# %%
curve = confidence_curve(runs)
show(curve, alt=f"Mean confidence against iteration. {curve.get_suptitle()}.")

# %% [markdown]
# A few more questions. *Half settled after* counts iterations; *repeats* is the share of answer
# tokens that equal the token before. NFE, the number of function evaluations, counts forward
# passes; TPF is answer tokens per forward pass.

# %%
OTHERS = ["Name three fruits.", "What is a cat?", "Who was Albert Einstein?"]
OTHERS += ["How do I boil an egg?", "Why is the sky blue?"]
OTHERS = OTHERS[:1] if FAST else OTHERS
quiet = [noiseless] + [record(denoiser, question, NOISELESS) for question in OTHERS]
noisy = [remasked] + [record(denoiser, question, REMASKED) for question in OTHERS]
print("Without re-masking")
costs_table({run.prompt: run for run in quiet})

# %%
print("With re-masking")
costs_table({run.prompt: run for run in noisy})

# %%
earlier = sum(half_settled(q) < half_settled(n) for q, n in zip(quiet, noisy, strict=True))
fewer = sum(repeated_share(n) < repeated_share(q) for q, n in zip(quiet, noisy, strict=True))
print(f"half settled earlier without re-masking: {earlier} of {len(quiet)} questions")
print(f"fewer repeats with re-masking:           {fewer} of {len(quiet)} questions")

# %% [markdown]
# **Conclusion.** Without re-masking an answer settles early: only the denoiser changes a token.
# Re-masking keeps positions open, so the answer settles later and can improve for longer. The
# lines above count for how many of these questions that was so, and whether it reduced repeats.

# %% [markdown]
# ## What does failure look like?
#
# The default model is small (135 M parameters) and its adapter saw far less training than the
# paper's 8 B model (100,000 steps, about ten hours on an A100). Two failures are typical. Stutter:
# neighbouring positions, drawn in parallel, each get the same likely word, as in every first draft
# above. Loops: the answer repeats a statement, as its backbone does too. Below are both final
# answers about Amsterdam and, of the runs with re-masking, the one with the most repeats; beside
# each, the share of tokens that repeat the one before, and of runs of four that occurred before.

# %%
worst = max(noisy, key=repeated_share)
for name, run in {**runs, f"with re-masking, {worst.prompt}": worst}.items():
    loops = repeated_ngrams([run.drafts[-1][: run.tokens].tolist()], n=4).value
    print(f"{name}, repeats {repeated_share(run):.0%}, loops {loops:.0%}: {run.answer}\n")

# %% [markdown]
# **Conclusion.** The two shares count different failures: a loop need not stutter, and neither sees
# an answer that breaks off. A draft stutters where its confidence is low. Re-masking those
# positions helps, and costs iterations.

# %% [markdown]
# ## What does an answer cost?
#
# A left-to-right model spends one forward pass a token: its TPF is 1. Seconds are wall time.

# %%
costs_table({"short answer, noiseless": paris, **runs})

# %% [markdown]
# **Conclusion.** Parallel drawing gives more than one token a pass; every further iteration trades
# some of that for a better draft. Read TPF beside the last column: a run that ends in a stutter
# ends early.

# %% [markdown]
# In seconds, the cost of a pass decides. On a CPU a pass costs every position of the window, and a
# left-to-right model, which computes one position a token, is faster. On a GPU positions are
# nearly free until it is full. Recorded with `lad bench`: every pass of the refinement is one
# compiled launch, `generate` of `transformers` is not compiled. Most of the ratio is that
# difference (`docs/performance.md`), so it does not say that refinement as such is so much faster.

# %%
show_recorded(
    "speed",
    "Three panels: seconds an answer by window for plain loops, `generate` and refinement; "
    "milliseconds an iteration with their roofline; milliseconds elapsed after each iteration.",
)

# %% [markdown]
# ## What holds over many answers?
#
# The next five figures come from `lad study`: prompts and answers kept out of training, three
# strategies, and a 95 % interval over answers on every mean. The third strategy, *confident only*,
# works in a window that moves from left to right: it unmasks the next token, those right of an
# unmasked one from a confidence of 0.3, and others from 0.9.
#
# **Do more iterations give better answers?** *Perplexity* of the answer under the backbone is
# divided by that of the backbone's answer to the same prompt: 1 is as good. It has blind spots.
# Text that stutters, loops or copies the prompt is easy to predict, and so is an answer that is
# broken off, unless its EOS is counted. So read it beside the other panels.

# %%
show_recorded(
    "quality_against_iterations",
    "Panels against the iterations allowed: relative perplexity, repeats, forward passes.",
)

# %% [markdown]
# **Does an answer come to rest in fewer iterations than it has tokens?** Below the dashed line it
# does. Only the noiseless panel tests that. With re-masking the schedule decides, which masks until
# its end; *confident only* unmasks at least one token a pass, so it cannot need more passes than
# tokens. A hollow mark used up its iterations and might have changed again.

# %%
show_recorded(
    "convergence",
    "A panel for each strategy: a dot for each answer, its tokens against the iterations until it "
    "stood, and the line y = x.",
)

# %% [markdown]
# **Is a token of confidence 0.9 right nine times out of ten?** Held-out answers were masked, and
# the likeliest token for each MASK compared with the original. A calibrated denoiser lies on the
# dashed line; above it, it is underconfident.

# %%
show_recorded(
    "calibration",
    "Left, the share of right tokens against confidence, one line for each share masked. Right, "
    "how often each confidence occurs.",
)

# %% [markdown]
# **How fast does an answer settle, and from which end?** First the share of tokens that are final
# after so many iterations, then the iterations it takes by the place in the answer.

# %%
show_recorded(
    "settled_share",
    "The mean share of final tokens against iterations, a line with a band for each strategy.",
)

# %%
show_recorded(
    "settling_order",
    "Iterations until a token is final against its place in the answer, in tenths, by strategy.",
)

# %% [markdown]
# **Conclusion.** Iterations improve quality, up to a point. Without re-masking an answer comes to
# rest after some eight passes and uses no more. With re-masking two iterations are worse than one:
# perplexity more than doubles. Beyond eight it falls below the noiseless one, at up to a pass a
# token. Unmasking only confident tokens is better than both for the passes it spends: a token drawn
# beside a guess is a guess too, and confidence is fairly well calibrated. Where intervals overlap,
# no difference is claimed. This is one small model and these prompts; the authors' claims are about
# a model sixty times larger.

# %% [markdown]
# ## What can it do that a left-to-right model cannot?
#
# Refinement may start from any text instead of from MASK. **Repair**: the text is the first draft,
# and noiseless refinement corrects it. **Infilling**: words stay, and the gaps between them are
# filled, given what follows as well.

# %%
question = "What is the capital of France?"
start = visible_text(denoiser, "The capital of of France Paris is.")
settings = RefineConfig(iterations=16, remasking="none", answer_length=len(start.tokens))
repaired = record(denoiser, question, settings, draft=start.tokens)
save_trace(repaired, "paris_repair")
print(filmstrip_text(repaired))

# %%
start = gapped(denoiser, "The capital of ___ is Paris, and the capital of ___ is Berlin.")
settings = replace(preset("quality"), answer_length=len(start.tokens))
filled = record(denoiser, INFILL_PROMPT, settings, draft=start.tokens, fixed=start.fixed)
save_trace(filled, "capitals_infill")
print(filmstrip_text(filled))

# %% [markdown]
# **Conclusion.** A left-to-right model would have to write both texts anew. Here the tokens
# outside the brackets are given; those inside the denoiser changed.
#
# Corrupt a text yourself, by hand or with the buttons, and press *Run*; then fill gaps, written
# `___` or, for three tokens, `[3]`.

# %%
RepairExplorer(denoiser).widget

# %%
InfillExplorer(denoiser).widget

# %% [markdown]
# ## Step through a run yourself
#
# The player shows the run with re-masking, two phases an iteration; it needs no model, and on a
# page made from this notebook no kernel. Drag the slider, or use the arrow keys once it has the
# focus. A click on a token shows the five likeliest there and its history; so do the arrow keys in
# the box below the draft. The run in plain text: brackets around what changed, `░` for MASK.

# %%
print(filmstrip_text(remasked, [0, 2, 8, 32]))

# %%
TracePlayer(remasked)

# %% [markdown]
# And a gallery of recorded runs, among them the same question, a few confident tokens at a time.

# %%
confident = preset("quality") if not FAST else replace(preset("quality"), iterations=4)
save_trace(record(denoiser, QUESTION, confident), "amsterdam_quality")
Gallery(gallery())

# %% [markdown]
# ## Try your own
#
# Type a prompt and press *Run*; *Stop* ends it after the current iteration; afterwards the player
# steps through the trace. Things to try:
#
# - tick *disable intermediate noising* and compare the number of iterations until it stops early;
# - pick another *Preset*, or press *Compare* to see two runs side by side, step by step;
# - set *Pause* to a second to watch the two phases;
# - under *All controls*, raise *Temperature* to 1 and change *Seed*: other answers, other stutters;
# - lower *EOS bias* for longer answers, raise it for shorter ones;
# - save a trace, and load it again on another day.
#
# `make demo` serves this explorer as a page. Without a running kernel the buttons do nothing; the
# text and the figures above show what they would.

# %%
start = {"prompt": QUESTION, "config": preset("default"), "pause": 0.1}
explorer = RefinementExplorer(denoiser, gallery=gallery(), **start)
explorer.widget
