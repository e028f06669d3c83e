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
# # 3. Sampling: how an answer comes about
#
# A language model usually writes an answer word by word, left to right, and what is written stays.
# LAD (LoRA-Adapted Diffusion) writes the whole answer at once and then improves it. This notebook
# follows answers from the first mask to the last draft: how they get better, where the model is
# sure, what it costs, and how it fails.
#
# It goes like this.
#
# 1. The **answer region**, a fixed number of positions after the prompt, starts out as **MASK**.
# 2. The **denoiser**, a LLaMA with an adapter (notebook 2), reads prompt and answer region and
#    predicts every position of the answer in one forward pass. Drawing a token at each position
#    gives a **draft**. The probability of a drawn token is its **confidence**. What follows the
#    answer is filled with EOS, the end-of-sequence token.
# 3. The draft goes back in as input, and out comes a better one. One such round is an
#    **iteration**; they are counted from 0.
# 4. With **re-noising** some tokens are masked again before the next iteration, fewer each time
#    (notebook 1). Without it, the run is **noiseless**: the denoiser has to repair tokens that are
#    visible and wrong.
# 5. When three drafts in a row are identical, the run stops early.
#
# Everything that happens in a run is kept in a **trace**. All that follows is read from traces.

# %%
from IPython.display import HTML

from lad.cells import half_settled, repeated_share
from lad.denoiser import load_denoiser
from lad.figures.recorded import FIGURES, save_trace
from lad.figures.refinement import (
    confidence_curve,
    confidence_heatmap,
    filmstrip_figure,
    settled_curve,
    settling_heatmap,
)
from lad.figures.style import save, show
from lad.sampler import RefineConfig, record
from lad.settings import profile
from lad.view import costs_text, draft_html, filmstrip_text, legend_html, page_html
from lad.widgets import RefinementExplorer, TracePlayer

FAST = profile() == "fast"
denoiser = load_denoiser()
print(f"{denoiser.backbone.spec.name}, adapter {denoiser.adapter_sha256[:12]}, profile {profile()}")

# %% [markdown]
# ## What does the denoiser do with a short question?
#
# A noiseless run with room for 24 tokens. In the text below, tokens that differ from the draft
# before stand in brackets.

# %%
paris = record(
    denoiser,
    "What is the capital of France?",
    RefineConfig(iterations=8, renoising="none", answer_length=24),
)
print(filmstrip_text(paris))

# %% [markdown]
# The same run as a picture: one row an iteration, every token on the colour of its confidence,
# from dark red (a guess) through olive to pale green (certain). The scale gets evenly lighter, so
# it reads the same in grey and with any kind of colour vision.

# %%
show(filmstrip_figure(paris), alt="The drafts listed above, coloured by confidence.")

# %% [markdown]
# **Conclusion.** A short, well-known answer stands in the first draft or in one of the next, all
# of its tokens drawn in parallel. The remaining iterations raise the confidence; then the draft
# stands still and the run stops by itself, after fewer forward passes than the answer has tokens.

# %% [markdown]
# ## How does a longer answer take shape, with and without re-noising?
#
# The question of the authors' own figure, answered twice: without re-noising, and with. Re-noising
# is guided by confidence here: the less sure a token is, the likelier it is masked again.

# %%
QUESTION = "What do you know about Amsterdam?"
NOISELESS = RefineConfig(iterations=16, renoising="none")
RENOISED = RefineConfig(iterations=32, renoising="confidence", noise_start=0.9, sharpness=1)
noiseless = record(denoiser, QUESTION, NOISELESS)
renoised = record(denoiser, QUESTION, RENOISED)
for run, name in ((noiseless, "amsterdam_noiseless"), (renoised, "amsterdam_renoised")):
    save_trace(run, name)

# %% [markdown]
# One iteration of the run with re-noising in its two phases: after denoising, with what changed in
# green and underlined, and after noising, with what was masked again in red, hatched and struck.

# %%
phases = [draft_html(renoised, 2, phase) for phase in ("denoised", "renoised")]
HTML(page_html(legend_html(renoised), *phases))

# %% [markdown]
# The next two figures follow the authors' page. With re-noising there are two columns: what the
# denoiser saw, MASK in black, and the draft it drew.

# %%
film = filmstrip_figure(renoised, FIGURES["filmstrip_renoised"][1])
save(film, "filmstrip_renoised", svg=True)
show(film, alt=f"Drafts with re-noising at iterations 0 to 32; the last reads: {renoised.answer}")

# %% [markdown]
# Without re-noising nothing is ever hidden again, so one column says it all.

# %%
film = filmstrip_figure(noiseless, FIGURES["filmstrip_noiseless"][1])
save(film, "filmstrip_noiseless", svg=True)
show(film, alt=f"Drafts without re-noising; the last reads: {noiseless.answer}")

# %% [markdown]
# **Conclusion.** The first draft has the topic and the opening words, and then repeats the
# likeliest words over and over: each position was drawn without knowing what its neighbours would
# be. Later drafts see their neighbours, and sentences grow from the left, where the draft is
# already sure. Even the noiseless run replaces tokens that were never masked: the denoiser repairs
# visible text.

# %% [markdown]
# ## Where is the denoiser sure, and when?
#
# Position in the answer region across, iteration downwards, colour for confidence. The dashed line
# is the end of the final answer.

# %%
heat = confidence_heatmap(renoised)
show(heat, alt=f"Confidence by position and iteration. {heat.get_suptitle()}.")

# %%
heat = confidence_heatmap(noiseless)
show(heat, alt=f"Confidence by position and iteration. {heat.get_suptitle()}.")

# %% [markdown]
# **Conclusion.** At first only the opening words are drawn with confidence; from there it spreads
# to the right, along with the sentences. What lies far to the right stays a guess for long: a
# parallel draft knows least about the middle and the end of a long answer.

# %% [markdown]
# ## Which positions settle, and which keep moving?
#
# A position has **settled** at the iteration from which it keeps its final token to the end.
# Green: still changing. Grey: resting, but not on its final token. Pale: settled. Hatched: was
# MASK in the input of that iteration.

# %%
heat = settling_heatmap(renoised)
show(heat, alt=f"Changed, unchanged and settled tokens, with re-noising. {heat.get_suptitle()}.")

# %%
heat = settling_heatmap(noiseless)
show(heat, alt=f"Changed, unchanged and settled tokens, noiseless. {heat.get_suptitle()}.")

# %% [markdown]
# The same as one line a run: the share of the final answer that stands already, and the mean
# confidence of the draft.

# %%
runs = {"without re-noising": noiseless, "with re-noising": renoised}
curve = settled_curve(runs)
show(curve, alt=f"Share of settled answer tokens against iteration. {curve.get_suptitle()}.")

# %%
curve = confidence_curve(runs)
show(curve, alt=f"Mean confidence against iteration. {curve.get_suptitle()}.")

# %% [markdown]
# One question proves little, so here are a few more. *Half settled after* counts iterations;
# *repeats* is the share of answer tokens that equal the token before them. NFE, the number of
# function evaluations, counts forward passes, and TPF is answer tokens per forward pass.

# %%
OTHERS = ["Name three fruits.", "What is a cat?", "Who was Albert Einstein?"]
OTHERS += ["How do I boil an egg?", "Why is the sky blue?"]
OTHERS = OTHERS[:1] if FAST else OTHERS
quiet = [noiseless] + [record(denoiser, question, NOISELESS) for question in OTHERS]
noisy = [renoised] + [record(denoiser, question, RENOISED) for question in OTHERS]
print("Without re-noising\n" + costs_text({run.prompt: run for run in quiet}))
print("\nWith re-noising\n" + costs_text({run.prompt: run for run in noisy}))

# %%
earlier = sum(half_settled(q) < half_settled(n) for q, n in zip(quiet, noisy, strict=True))
fewer = sum(repeated_share(n) < repeated_share(q) for q, n in zip(quiet, noisy, strict=True))
print(f"half settled earlier without re-noising: {earlier} of {len(quiet)} questions")
print(f"fewer repeats with re-noising:           {fewer} of {len(quiet)} questions")

# %% [markdown]
# **Conclusion.** Without re-noising an answer settles early, because nothing but the denoiser's
# own doubt can move a token. Re-noising keeps reopening positions, so the answer settles later;
# that is the time in which it can still get better. The lines above say in how many of these few
# questions that was so, and whether it paid.

# %% [markdown]
# ## What does failure look like?
#
# The default model is small (135 M parameters) and its adapter saw far less training than the
# paper's 8 B model (100,000 steps, about ten hours on an A100). It fails in a typical way: it
# stutters. Neighbouring positions, drawn in parallel, each take the same likely word. Both final
# answers about Amsterdam, and the worst of the runs with re-noising above:

# %%
worst = max(noisy, key=repeated_share)
for name, run in {**runs, f"with re-noising, {worst.prompt}": worst}.items():
    print(f"{name}, {repeated_share(run):.0%} repeats: {run.answer}\n")

# %% [markdown]
# **Conclusion.** Fluent at the start, an answer decays where the heatmaps are dark: where the
# draft was unsure and its neighbours were no help. Drawing doubtful positions again helps, at the
# price of more iterations, and does not cure it. That is a limit of this small model and its short
# training, shown here as it is.

# %% [markdown]
# ## What does an answer cost?
#
# A left-to-right model spends one forward pass a token: its TPF is 1. Seconds are wall time on the
# machine that ran this notebook.

# %%
print(costs_text({"short answer, noiseless": paris, **runs}))

# %% [markdown]
# **Conclusion.** More than one token a pass is what parallel drawing buys. Every further iteration
# gives some of it back in exchange for a better draft: the number of iterations is the knob. TPF
# alone is no merit, though: in the tables above the runs with the highest TPF are those that came
# to rest in a stutter.

# %% [markdown]
# ## Step through a run yourself
#
# The player below shows the recorded run with re-noising, two phases an iteration; it needs no
# model. Drag the slider, or use the arrow keys once it has the focus. Where widgets don't move,
# this is what they show, in plain text: brackets around what changed, `░` for what was masked.

# %%
print(filmstrip_text(renoised, [0, 2, 8, 32]))

# %%
TracePlayer(renoised).widget

# %% [markdown]
# ## Try your own
#
# Type a prompt and press *Run*. The model works only then, and *Stop* ends it after the iteration
# it is in; afterwards the player steps through what happened. Things to try:
#
# - tick *disable intermediate noising* and compare the number of iterations until it stops early;
# - set *Pause* to a second to watch the two phases;
# - under *All controls*, raise *Temperature* to 1 and change *Seed*: other answers, other stutters;
# - lower *EOS bias* for longer answers, raise it for shorter ones.
#
# Without a running kernel the buttons do nothing; the text and the figures above show what they
# would.

# %%
explorer = RefinementExplorer(denoiser, prompt=QUESTION, pause=0.1)
explorer.widget
