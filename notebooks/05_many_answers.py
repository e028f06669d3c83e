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
# # 5. Over many answers: quality, speed, convergence
#
# Notebook 3 shows single runs. Here are prompts kept out of training, and answers kept out of the
# second and third edition's, with a 95 % interval over answers on every mean. All numbers were
# **recorded** by the commands that stand at each figure, mostly on a GPU; nothing on this page runs
# a model. It is one small model and these prompts; the authors' claims are about a model sixty
# times larger.
#
# Three strategies of re-masking are compared: none (*noiseless*); LAD's, *guided* by confidence;
# and the preset *quality*, which works in a window that moves from left to right and unmasks the
# next token, those right of an unmasked one from a confidence of 0.5, and others from 0.92. Here
# *noiseless* drafts all positions at once; the preset of that name grows four an iteration and
# stutters less.

# %% [markdown]
# *In JupyterLab: Run > Run All Cells, on opening. It takes less than a minute.*

# %%
from lad.viz.gallery import show_recorded

# %% [markdown]
# ## Do more iterations give better answers?
#
# *Perplexity* of the answer under the backbone is divided by that of the backbone's answer to the
# same prompt: 1 is as good. It has blind spots. Text that stutters, loops or copies the prompt is
# easy to predict, and so is an answer that is broken off, unless its EOS is counted. So read it
# beside the other panels. Recorded by `lad study`, as are the next four figures.

# %%
show_recorded(
    "quality_against_iterations",
    "Panels against the iterations allowed: relative perplexity, repeats, forward passes.",
)

# %% [markdown]
# **Takeaway.** Iterations improve quality, up to a point. Without re-masking perplexity is halved
# and an answer settles after some twelve passes, but many of its tokens stutter or loop. With
# re-masking two iterations have a higher perplexity than one; 16 or more reach the same without the
# stutter, at up to a pass a token. *Quality* reaches 1.3 in 31 passes, with shorter answers (40
# tokens, not 46). Where intervals overlap, no difference is claimed.

# %% [markdown]
# ## Does an answer settle in fewer iterations than it has tokens?
#
# Below the dashed line it does. Only the noiseless panel tests that. With re-masking the schedule
# decides, which masks until its end; *quality* unmasks at least one token a pass, so it cannot need
# more passes than tokens. A hollow mark used up its iterations and might have changed again.

# %%
show_recorded(
    "convergence",
    "A panel for each strategy: a dot for each answer, its tokens against the iterations until it "
    "settled, and the line y = x.",
)

# %% [markdown]
# **Takeaway.** Nearly all noiseless answers settle in fewer passes than they have tokens: parallel,
# as the authors say. The others used up their iterations. The number grows with the length. What
# they settle on is another question.

# %% [markdown]
# ## Is a token of confidence 0.9 right nine times out of ten?
#
# Held-out answers were masked, and the likeliest token for each MASK compared with the original. A
# calibrated denoiser lies on the dashed line; above it, it is underconfident.

# %%
show_recorded(
    "calibration",
    "Left, the share of right tokens against confidence, one line for each share masked. Right, "
    "how often each confidence occurs.",
)

# %% [markdown]
# **Takeaway.** Confidence is close to the share of right tokens, mostly a few points too high, so a
# threshold on it means something.

# %% [markdown]
# ## How fast does an answer settle, and from which end?
#
# First the share of tokens that are settled after so many iterations, then the iterations it takes
# by the place in the answer.

# %%
show_recorded(
    "settled_share",
    "The mean share of settled tokens against iterations, a line with a band for each strategy.",
)

# %%
show_recorded(
    "settling_order",
    "Iterations until a token is settled against its place in the answer, in tenths, by strategy.",
)

# %% [markdown]
# **Takeaway.** The beginning settles first under every strategy, also under those that could begin
# anywhere.

# %% [markdown]
# ## What does a token more a pass cost in quality?
#
# Each strategy over a sweep of its main setting (`lad frontier` on an H100; *verified* on a CPU,
# with every second prompt). Left to right is the star: one token a pass, a ratio of 1. *Entropy*
# unmasks tokens while their entropies fit under a bound; *editing* lets a visible token give way to
# a confident one; prompt lookup is speculation, exact but rarely fast. The area is one number a
# strategy: the quality that it keeps at each number of tokens a pass, summed. Quality is 1 where
# the perplexity is the backbone's and 0 where it is twice that. Left to right has 1.

# %%
show_recorded(
    "frontier",
    "Relative perplexity and repeats against tokens a forward pass, a line a strategy, short "
    "answers and long ones apart; and the area under quality of each strategy, with intervals.",
)

# %% [markdown]
# **Takeaway.** An area above 1 is more than left to right gives. *Verified* has it on answers of
# any length: the backbone's own text at 1.5 tokens a pass. *Threshold*, the strategy of the preset
# *default*, has it on short answers; on long ones two tokens a pass double the perplexity. *Guided*
# and *noiseless* lose more than they gain. Read the lower panels too: stutter is easy to predict.

# %% [markdown]
# ## And in seconds?
#
# On a CPU a pass costs every position that it computes, and a left-to-right model computes one a
# token. On a GPU positions are nearly free until it is full. Recorded with `lad bench`: the first
# figure with the adapter's first edition on an H200, the second with this one, on an H100 and on
# two CPU cores, beside fair baselines too: a static cache, compiled as refinement is, and prompt
# lookup. Against one that is not compiled, most of the ratio is compiling (`docs/performance.md`).

# %%
show_recorded(
    "speed",
    "Three panels: seconds an answer by window for plain loops, `generate` and refinement; "
    "milliseconds an iteration with their roofline; milliseconds elapsed after each iteration.",
)

# %%
show_recorded(
    "seconds_per_token",
    "Milliseconds a token with intervals, a panel a device: refinement and three baselines.",
)

# %% [markdown]
# **Takeaway.** Fewer passes are fewer seconds only where a pass over many positions costs little
# more than one over a single position.

# %% [markdown]
# ## Which choices of training matter?
#
# The same short training again and again, on a GPU, one choice changed at a time (`lad ablate`),
# measured on held-out answers and prompts. The base is an earlier recipe than the shipped
# adapter's: it also trains on the model's drafts, each drawn from the one before. *Paper's noise +
# replace* has the paper's amounts of noise and also random tokens, as in chapter 1.
#
# - **filling in**: the cross-entropy where half of the answer is masked;
# - **repair**: answers with structural corruption of severity 0.3 and no MASK go through four
#   noiseless iterations. Which share of the corrupted tokens comes out right, and which share of
#   the others is left as it was?
# - **noiseless answers**: how often a token repeats the one before.
#
# The intervals are 95 %, over answers. They leave out chance in training: for that one run differs
# from the base in its seed only, and the grey bands show how far that moved it.

# %%
show_recorded(
    "ablation",
    "Four panels of dots with intervals, a row for each variant of the training: cross-entropy, "
    "corrupted tokens restored, other tokens kept, and repeats in noiseless answers. The base is a "
    "dashed line in each.",
)

# %% [markdown]
# **Takeaway.** Trained on masks only, an adapter fills in better than the base and is the worst of
# all at repair. Training on drafts does not pay in a run this short. A higher rank fills in better
# and restores more corrupted tokens. One other seed is a rough measure of chance: what lies close
# to a grey band may not be there the next time.
