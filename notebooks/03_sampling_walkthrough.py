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
from dataclasses import replace

from IPython.display import HTML

from lad.diffusion.adapter import load_denoiser
from lad.diffusion.config import RefineConfig, preset
from lad.diffusion.drafts import INFILL_PROMPT, gapped, visible_text
from lad.diffusion.sampler import record
from lad.utils import profile
from lad.viz.gallery import FIGURES, gallery, save_trace, show_recorded
from lad.viz.html import costs_text, draft_html, filmstrip_text, legend_html, page_html
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
name_controls()  # so that a screen reader can tell the sliders below apart

# %% [markdown]
# ## What does the denoiser do with a short question?
#
# A noiseless run with room for 24 tokens. In the text below, tokens that differ from the draft
# before stand in brackets.

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
NOISELESS = RefineConfig(iterations=16, remasking="none")
RENOISED = RefineConfig(iterations=32, remasking="guided", noise_start=0.9, sharpness=1)
noiseless = record(denoiser, QUESTION, NOISELESS)
remasked = record(denoiser, QUESTION, RENOISED)
for run, name in ((noiseless, "amsterdam_noiseless"), (remasked, "amsterdam_renoised")):
    save_trace(run, name)

# %% [markdown]
# One iteration of the run with re-noising in its two phases: after denoising, with what changed in
# green and underlined, and after noising, with what was masked again in red, hatched and struck.

# %%
phases = [draft_html(remasked, 2, phase) for phase in ("denoised", "remask")]
HTML(page_html(legend_html(remasked), *phases))

# %% [markdown]
# The next two figures follow the authors' page. With re-noising there are two columns: what the
# denoiser saw, MASK in black, and the draft it drew.

# %%
film = filmstrip_figure(remasked, FIGURES["filmstrip_renoised"][1])
save(film, "filmstrip_renoised", svg=True)
show(film, alt=f"Drafts with re-noising at iterations 0 to 32; the last reads: {remasked.answer}")

# %% [markdown]
# Without re-noising nothing is ever hidden again, so one column says it all.

# %%
film = filmstrip_figure(noiseless, FIGURES["filmstrip_noiseless"][1])
save(film, "filmstrip_noiseless", svg=True)
show(film, alt=f"Drafts without re-noising; the last reads: {noiseless.answer}")

# %% [markdown]
# **Conclusion.** In a first draft each position is drawn without knowing what its neighbours will
# be, so the same likely word tends to stand at several of them. Later drafts see their neighbours.
# Where the pictures show a token change that was not black in the row before, the denoiser has
# repaired visible text: in the noiseless run every change after the first row is one of those.

# %% [markdown]
# ## Where is the denoiser sure, and when?
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
# **Conclusion.** The titles say how far the mean rises. Read a column from top to bottom: where it
# is dark for long, the draft had to guess for long. Whether that is the right end of the answer, as
# one expects of a sentence that hangs on its beginning, is asked of many answers further below.

# %% [markdown]
# ## Which positions settle, and which keep moving?
#
# A position has **settled** at the iteration from which it keeps its final token to the end.
# Green: still changing. Grey: resting, but not on its final token. Pale: settled. Hatched: was
# MASK in the input of that iteration.

# %%
heat = settling_heatmap(remasked)
show(heat, alt=f"Changed, unchanged and settled tokens, with re-noising. {heat.get_suptitle()}.")

# %%
heat = settling_heatmap(noiseless)
show(heat, alt=f"Changed, unchanged and settled tokens, noiseless. {heat.get_suptitle()}.")

# %% [markdown]
# The same as one line a run: the share of the final answer that stands already, and the mean
# confidence of the draft.

# %%
runs = {"without re-noising": noiseless, "with re-noising": remasked}
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
noisy = [remasked] + [record(denoiser, question, RENOISED) for question in OTHERS]
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
# paper's 8 B model (100,000 steps, about ten hours on an A100). Two failures are typical. The
# stutter: neighbouring positions, drawn in parallel, each take the same likely word, as in every
# first draft above. And the loop: the answer says the same thing again, which its backbone does as
# well. Here are both final answers about Amsterdam and, of the runs with re-noising above, the one
# that repeats itself most, each with its share of tokens that equal the one before.

# %%
worst = max(noisy, key=repeated_share)
for name, run in {**runs, f"with re-noising, {worst.prompt}": worst}.items():
    print(f"{name}, {repeated_share(run):.0%} repeats: {run.answer}\n")

# %% [markdown]
# **Conclusion.** This is the model's limit, shown as it is; the shares count the stutter, a loop
# has to be read. A draft stutters where the heatmaps are dark, where it was unsure and its
# neighbours were no help. Drawing doubtful positions again is the remedy at hand, and its price is
# iterations.

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
# alone is no merit, though: read it beside the last column, for a run that comes to rest in a
# stutter comes to rest early.

# %% [markdown]
# In seconds, what a pass costs decides. On a CPU it costs every position of the window, and a
# left-to-right model, which computes one position a token, is faster. On a GPU positions are nearly
# free until it is full. Recorded with `lad bench`, every pass one compiled launch (`generate` of
# `transformers` is neither; `docs/performance.md` takes the ratio apart):

# %%
show_recorded(
    "speed",
    "Three panels: seconds an answer by window for plain loops, left to right and refinement; "
    "milliseconds an iteration with their floor; milliseconds gone by after each iteration.",
)

# %% [markdown]
# ## What holds over many answers?
#
# One run is an anecdote. The next five figures come from `lad study`: prompts and answers kept out
# of training, three ways to refine them, and a 95 % interval over answers on every mean. Each title
# is computed from the numbers. The third way, *sure tokens only*, works in a window that moves from
# left to right: it shows the next token and those right of a known one that are not guesses
# (confidence 0.3), elsewhere only what it is sure of (0.9), and leaves the others masked.
#
# **Do more iterations give better answers?** *Perplexity* is how surprised the backbone is by the
# answer, here divided by what its own answer to the same prompt gets: 1 is as good. Text that
# stutters is easy to predict, so the share of repeats stands beside it.

# %%
show_recorded(
    "quality_against_iterations",
    "Three panels against the iterations allowed: relative perplexity, repeats, forward passes.",
)

# %% [markdown]
# **Does an answer come to rest in fewer iterations than it has tokens?** Below the dashed line it
# does. A hollow mark used up its iterations: nobody knows whether it would have changed again.

# %%
show_recorded(
    "convergence",
    "A panel for each way: a dot for each answer, its tokens against the iterations until it "
    "stood, and the line y = x.",
)

# %% [markdown]
# **Is a token of confidence 0.9 right nine times out of ten?** Held-out answers were masked, and
# the likeliest token behind each MASK compared with the one that stood there. An honest denoiser
# lies on the dashed line; above it, it knows more than it says.

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
    "The mean share of final tokens against iterations, a line with a band for each way.",
)

# %%
show_recorded(
    "settling_order",
    "Iterations until a token is final against its place in the answer, in tenths, for each way.",
)

# %% [markdown]
# **Conclusion.** Iterations buy quality, up to a point. Without re-noising an answer rests after
# some eight passes, and more of them are not even used; with re-noising a second look pays for
# longer, in less stutter and likelier text, at up to a pass a token. Showing only sure tokens beats
# both for the passes it spends, because what is drawn beside a guess is a guess too, and the
# denoiser knows fairly well which of its tokens are guesses. This goes no further than the
# intervals: where two overlap, the figure does not tell the ways apart. It is about this model and
# these prompts; the authors' claims are about a model sixty times larger.

# %% [markdown]
# ## What can it do that a left-to-right model cannot?
#
# Refinement may start from any text instead of from MASK. **Repair**: the text is the first draft,
# and noiseless refinement mends what is visible and wrong. **Infilling**: words stay where they
# are, and gaps between them are filled, in the light of what follows as well.

# %%
asked = "What is the capital of France?"
start = visible_text(denoiser, "The capital of of France Paris is.")
settings = RefineConfig(iterations=16, remasking="none", answer_length=len(start.tokens))
mended = record(denoiser, asked, settings, draft=start.tokens)
save_trace(mended, "paris_repair")
print(filmstrip_text(mended))

# %%
start = gapped(denoiser, "The capital of ___ is Paris, and the capital of ___ is Berlin.")
settings = replace(preset("quality"), answer_length=len(start.tokens))
filled = record(denoiser, INFILL_PROMPT, settings, draft=start.tokens, fixed=start.fixed)
save_trace(filled, "capitals_infill")
print(filmstrip_text(filled))

# %% [markdown]
# **Conclusion.** A left-to-right model would have to write both texts anew. Here the tokens outside
# the brackets are the ones that were given; the brackets hold what the denoiser changed.
#
# Damage a text yourself, by hand or with the buttons, and press *Run*; then fill gaps, written
# `___` or, for three tokens, `[3]`.

# %%
RepairExplorer(denoiser).widget

# %%
InfillExplorer(denoiser).widget

# %% [markdown]
# ## Step through a run yourself
#
# The player below shows the recorded run with re-noising, two phases an iteration; it needs no
# model, and on a page made from this notebook it works without a kernel. Drag the slider, or use
# the arrow keys once it has the focus. Where nothing moves, this is what it shows, in plain text:
# brackets around what changed, `░` for what was masked.

# %%
print(filmstrip_text(remasked, [0, 2, 8, 32]))

# %%
TracePlayer(remasked)

# %% [markdown]
# And a gallery of recorded runs, among them the same question answered a few sure tokens at a time.

# %%
sure = preset("quality") if not FAST else replace(preset("quality"), iterations=4)
save_trace(record(denoiser, QUESTION, sure), "amsterdam_quality")
Gallery(gallery())

# %% [markdown]
# ## Try your own
#
# Type a prompt and press *Run*. The model works only then, and *Stop* ends it after the iteration
# it is in; afterwards the player steps through what happened. Things to try:
#
# - tick *disable intermediate noising* and compare the number of iterations until it stops early;
# - pick another *Preset*, or press *Compare* to see two runs side by side, step by step;
# - set *Pause* to a second to watch the two phases;
# - under *All controls*, raise *Temperature* to 1 and change *Seed*: other answers, other stutters;
# - lower *EOS bias* for longer answers, raise it for shorter ones;
# - save a trace, and load it again on another day.
#
# `make demo` serves this explorer as a page of its own, without the notebook around it. Without a
# running kernel the buttons do nothing; the text and the figures above show what they would.

# %%
explorer = RefinementExplorer(denoiser, prompt=QUESTION, pause=0.1, gallery=gallery())
explorer.widget
