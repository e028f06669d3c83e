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
# stays. LAD (LoRA-Adapted Diffusion) writes the whole answer at once and then improves it.
#
# 1. The **answer region**, a fixed number of positions after the prompt, starts as **MASK**.
# 2. The **denoiser**, a LLaMA with an adapter (notebook 2), predicts every position of it in one
#    forward pass. Drawing a token at each gives a **draft**; the probability of a drawn token is
#    its **confidence**. After the answer follow EOS, end-of-sequence tokens.
# 3. The draft is the next input. One such round is an **iteration**, counted from 0.
# 4. With **re-masking** some tokens are masked again before the next iteration, fewer each time
#    (notebook 1). Without it the run is **noiseless**: the denoiser has to repair visible tokens.
# 5. When three drafts in a row are identical, the run stops early; without randomness and
#    re-masking as soon as a draft equals its input.
#
# A **trace** records everything that happens in a run. All figures below are made from traces.

# %% [markdown]
# *In JupyterLab: Run > Run All Cells, on opening and wherever an explorer says "model not found".
# It takes one to four minutes on two CPU cores.*

# %%
from dataclasses import replace

import torch

from lad.diffusion.adapter import load_denoiser
from lad.diffusion.config import RefineConfig, preset
from lad.diffusion.drafts import INFILL_PROMPT, gapped, visible_text
from lad.diffusion.resume import branch, next_input
from lad.diffusion.sampler import record
from lad.evaluation.race import race
from lad.evaluation.text_metrics import repeated_ngrams
from lad.models.chat import encode_text
from lad.utils import profile
from lad.viz.gallery import FIGURES, gallery, recorded_race, save_race, save_trace
from lad.viz.html import costs_table, gallery_html
from lad.viz.refinement import confidence_heatmap, filmstrip_figure, settled_curve, settling_heatmap
from lad.viz.style import save, show
from lad.viz.tokens import repeated_share
from lad.widgets import InfillExplorer, RaceExplorer, RefinementExplorer, RepairExplorer
from lad.widgets.accessibility import name_controls

denoiser = load_denoiser()
print(f"{denoiser.backbone.spec.name}, adapter {denoiser.adapter_sha256[:12]}, profile {profile()}")
name_controls()  # so that a screen reader can tell the sliders below apart

# %%
QUESTION = "What do you know about Amsterdam?"
NOISELESS = RefineConfig(iterations=16, remasking="none")
REMASKED = RefineConfig(iterations=32, remasking="guided", noise_start=0.9, sharpness=1)
SHORT = RefineConfig(iterations=8, remasking="none", answer_length=24)
confident = replace(preset("quality"), iterations=4) if profile() == "fast" else preset("quality")
runs = {
    "paris_noiseless": record(denoiser, "What is the capital of France?", SHORT),
    "amsterdam_noiseless": record(denoiser, QUESTION, NOISELESS),
    "amsterdam_renoised": record(denoiser, QUESTION, REMASKED),
    "amsterdam_quality": record(denoiser, QUESTION, confident),
}
for name, run in runs.items():
    save_trace(run, name)
paris, noiseless, remasked, _ = runs.values()

# %% [markdown]
# ## What does a refinement look like?
#
# Recorded runs, two phases an iteration: after denoising, changed tokens in green and underlined;
# after re-masking, masked tokens in red, hatched and struck. Press *Play*, drag the slider, or use
# the arrow keys once it has the focus. A click on a token shows the five likeliest there and its
# history; so do the arrow keys in the box below the draft.

# %%
gallery_html(gallery())

# %% [markdown]
# **Takeaway.** A short, well-known answer is complete in one of the first drafts. The rest raises
# the confidence; then the draft no longer changes and the run stops, after fewer forward passes
# than the answer has tokens.

# %% [markdown]
# ## How does a longer answer develop?
#
# The question of the authors' figure, answered with re-masking and without, in the form of their
# page: a row for each iteration shown, every token on the colour of its confidence, from dark red
# (a guess) through olive to pale green (certain). With re-masking there are two columns: what the
# denoiser saw, MASK in black, and the draft it drew. The lower the confidence of a token, the
# likelier it is masked again.

# %%
film = filmstrip_figure(remasked, FIGURES["filmstrip_renoised"][1])
save(film, "filmstrip_renoised", svg=True)
show(film, alt=f"Drafts with re-masking at iterations 0 to 31; the last reads: {remasked.answer}")

# %%
film = filmstrip_figure(noiseless, FIGURES["filmstrip_noiseless"][1])
save(film, "filmstrip_noiseless", svg=True)
show(film, alt=f"Drafts without re-masking; the last reads: {noiseless.answer}")

# %% [markdown]
# **Takeaway.** In a first draft each position is drawn without its neighbours, so the same likely
# word is drawn at several of them; later drafts see their neighbours. In the noiseless run every
# change after the first row replaces a visible token, not always rightly.

# %% [markdown]
# ## Where is the denoiser confident, and when does a token settle?
#
# Position in the answer region across, iteration downwards. First the confidence, with a dashed
# line at the end of the final answer. Then what happens to each token: it has **settled** at the
# iteration from which it no longer changes.

# %%
heat = confidence_heatmap(remasked)
show(heat, alt=f"Confidence by position and iteration. {heat.get_suptitle()}.")

# %%
heat = settling_heatmap(remasked)
show(heat, alt=f"Changed, unchanged and settled tokens, with re-masking. {heat.get_suptitle()}.")

# %%
both = {"without re-masking": noiseless, "with re-masking": remasked}
curve = settled_curve(both)
show(curve, alt=f"Share of settled answer tokens against iteration. {curve.get_suptitle()}.")

# %% [markdown]
# **Takeaway.** Without re-masking only the denoiser changes a token, and half of this answer's
# tokens are settled sooner. Re-masking keeps positions open, so more of it can improve.
# Chapter 5 asks whether that holds over many answers.

# %% [markdown]
# ## What does failure look like?
#
# The model is small (135 M parameters). Two failures are typical. **Stutter**: neighbouring
# positions, drawn in parallel, each get the same likely word. **Loops**: the answer repeats a
# statement, as its backbone does too. Beside each answer about Amsterdam stand two shares that see
# them: of tokens that repeat the one before, and of runs of three that occurred before.

# %%
for name, run in both.items():
    loops = repeated_ngrams([run.drafts[-1][: run.tokens].tolist()], n=3).value
    print(f"{name}, stutter {repeated_share(run):.0%}, loops {loops:.0%}: {run.answer}\n")

# %% [markdown]
# **Takeaway.** A loop need not stutter, and neither share sees an answer that breaks off: no single
# number says that an answer is good.

# %% [markdown]
# ## What does an answer cost?
#
# A left-to-right model spends one forward pass a token. NFE, the number of function evaluations,
# counts forward passes; TPF is answer tokens per forward pass.

# %%
costs_table({"short answer, noiseless": paris, **both})

# %% [markdown]
# Play a race: the same backbone, its adapter off, writes an answer from left to right, and refines
# one. Choose the clock; *Run* races anew, on this machine. The recorded seconds are those of the
# machine that is named below the answers.

# %%
runners = recorded_race(denoiser.adapter_sha256)
runners = runners or save_race(race(denoiser, QUESTION, preset("default")))
RaceExplorer(denoiser, runners)

# %% [markdown]
# **Takeaway.** By passes refinement is ahead, because a pass shows several tokens. By seconds it
# need not be: one of its passes computes many positions, one from left to right only one. Compare
# seconds a token, because the two answers differ in length. On a GPU positions are nearly free
# until it is full (chapter 5).

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
start = gapped(denoiser, "The capital of ___ is Paris, and the capital of ___ is Berlin.")
settings = replace(preset("quality"), answer_length=len(start.tokens))
filled = record(denoiser, INFILL_PROMPT, settings, draft=start.tokens, fixed=start.fixed)
save_trace(filled, "capitals_infill")
print("repaired:", repaired.answer, "\nfilled:  ", filled.answer)

# %% [markdown]
# Corrupt a text yourself, by hand or with the buttons, and press *Run*; then fill gaps, written
# `___` or, for three tokens, `[3]`. Both can be edited between two drafts, as below. (On a page
# without a kernel menus choose from recorded runs.)

# %%
RepairExplorer(denoiser, recorded=repaired)

# %%
InfillExplorer(denoiser, recorded=filled)

# %% [markdown]
# **Takeaway.** A left-to-right model would have to write both texts anew. Here most was given, and
# the denoiser changed the rest.

# %% [markdown]
# ## What follows from one token?
#
# A run can be stopped after any iteration and go on from an edited draft: tokens changed, masked,
# or pinned, so that they stay. Below, the run about Paris is stopped after its second draft and
# *France* becomes *Germany*, pinned; what stands behind it is left visible, or masked.

# %%
paused = replace(paris, steps=paris.steps[:2])
france, germany = (encode_text(denoiser.tokenizer, f" {w}", True)[0] for w in ("France", "Germany"))
draft = torch.from_numpy(next_input(paused))
pinned = draft == france
visible = torch.where(pinned, germany, draft)
masked = visible.masked_fill((pinned.cumsum(0) > 0) & ~pinned, denoiser.mask_token_id)
for name, start in {"left visible": visible, "masked": masked}.items():
    print(f"{name}: {branch(denoiser, paused, draft=start, fixed=pinned).answer}")

# %% [markdown]
# **Takeaway.** Without re-masking a visible token may stay although it no longer fits; drawn anew,
# it follows the token that was changed. A run that goes on unedited is the run that was not
# stopped, token for token.

# %% [markdown]
# ## Try your own
#
# It opens with a recorded run. Type a prompt and press *Run* (Ctrl-Enter); *Stop* ends it after the
# current iteration; afterwards the player steps through the trace (space plays). Things to try:
#
# - tick *noiseless* and compare the number of iterations until it stops early;
# - pick another *Preset*, or press *Compare* to see two runs side by side, step by step; one may be
#   *the run on show*, and so have any settings;
# - open *Edit a draft and go on*: stop after an iteration, change, pin or mask tokens, and see both
#   branches side by side; *Which others move?* hides one token and measures, as in chapter 2, how
#   far each state moves;
# - open *Sweep one setting* for the same prompt at several values;
# - under *All controls*, raise *Temperature* to 1 and change *Seed*: other answers, other stutters;
# - open *Copy*: prompt and settings as a command, as Python, and as a link to the demo page;
# - save the run as a page that plays it, as an animation, or as a trace to load on another day.
#
# `make demo` serves this explorer as a page. On a page without a kernel menus choose from recorded
# runs.

# %%
start = {"prompt": QUESTION, "config": preset("default"), "pause": 0.1}
RefinementExplorer(denoiser, gallery=gallery(), **start)
