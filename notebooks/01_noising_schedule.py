# ---
# jupyter:
#   jupytext:
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
# # 1. Noise: what the model learns to undo
#
# LAD writes a whole answer at once and then improves it, draft after draft. To learn that, it is
# trained on corrupted answers with the originals as the target. This notebook shows the
# corruption: what it does to a sentence, how much of it there is, and how it fades while an answer
# is refined. No model is needed yet.
#
# Words used from here on:
#
# - A **token** is a piece of text with a number, usually a word or part of one. A model reads and
#   writes tokens. Here whole words stand in for tokens, so that you can read them.
# - The **prompt** is the question, the **answer** the reply. Noise falls on the answer only.
# - **MASK** is a token that means "something is hidden here". **END** (EOS, end of sequence, for
#   the model) follows the answer and fills the rest of the answer region.
# - A **draft** is a whole answer, good or bad. An **iteration** turns one draft into the next.
# - **Noise** or **corruption** is error added on purpose, and a **denoiser** is a model trained to
#   remove it.
#
# LAD stands for *LoRA-Adapted Diffusion* (Kuiper et al., EMNLP 2025 System Demonstrations).
# *Diffusion* models learn to undo corruption step by step. *LoRA* is the small set of weights that
# is trained; see [notebook 2](02_model_setup.ipynb).

# %% [markdown]
# *In JupyterLab: Run > Run All Cells, on opening. It takes half a minute on two CPU cores.*

# %%
from dataclasses import asdict

import lad
from lad.viz import noise
from lad.viz.gallery import save_numbers
from lad.viz.style import show
from lad.viz.word_corruption import Sentence, drawn_rates, masked_shares, one_of_each
from lad.widgets.noise import CorruptionExplorer, ScheduleExplorer

print("profile:", lad.profile())

# %% [markdown]
# ## What can go wrong with a sentence?
#
# Most models of this family hide tokens behind MASK and learn to fill the gaps. LAD does that too,
# and adds **structural noise**: errors as in a first draft, such as words in the wrong order or
# repeated. There are four kinds; the figure shows one sentence under each. Coloured is what is no
# longer as it was: two END that change places stay white.

# %%
sentence = Sentence.of("The river flows past the old town and ends in the sea.", ends=3)
examples = one_of_each(sentence, severity=0.8)
recorded = {kind: asdict(example) for kind, example in examples.items()}
save_numbers("kinds_of_noise", {"severity": 0.8, "examples": recorded})  # for `lad figures`
show(
    noise.kinds_of_noise(examples, severity=0.8),
    "A table: the sentence as it was, then under mask, swap, duplicate, replace, shift and all of "
    "them; tokens that changed are coloured and hatched.",
    name="kinds_of_noise",
)

# %% [markdown]
# **Takeaway.** A mask marks the position of the error. Structural noise does not: every token is
# visible and some are wrong. A denoiser trained on it can improve a draft in which nothing is
# masked. This is *noiseless* refinement: no token is masked again between iterations.

# %% [markdown]
# ## How much is corrupted?
#
# Each training answer draws its own **severity** $p$, a number between 0 and 1, all values equally
# likely. Then, independently of one another:
#
# | kind | what is drawn | how often |
# | --- | --- | --- |
# | mask | with probability 1/2, a share of the positions between 0 and 1/2 | whatever $p$ is |
# | swap | each pair of neighbours | with probability $p/4$ |
# | duplicate | each position | with probability $p/4$ |
# | replace | each position | with probability $p/4$ |
# | shift | one run of 1-3 tokens in the answer | with probability $p/4$ |
#
# One answer in ten is masked whole, since every refinement starts from MASK alone. All amounts are
# settings. The amounts are the paper's. *Replace* is added: the authors' post names it, their code
# does not apply it. It makes more errors visible: at $p = 0.8$, 51 % of the positions hold a wrong
# token that is not masked, without it 39 %, answers masked whole left out. (`docs/differences.md`
# has all differences.)
#
# First the masks: how much of an answer is masked?

# %%
rows = 4000 if lad.profile() == "full" else 1000
show(
    noise.masked_share(masked_shares(rows=rows)),
    "A histogram of the share masked: one spike at nothing, a flat stretch up to one half, and one "
    "spike at everything.",
    name="masked_share",
)

# %% [markdown]
# **Takeaway.** Nearly half of the training answers have no MASK: there the denoiser must find
# the wrong tokens itself. Only answers masked whole are masked by more than half.
#
# Do the other kinds occur as often as the table says? The rates *drawn* must agree with the rates
# *expected* at each severity. A swap changes two tokens, so the expected share is $1-(1-p/4)^2$;
# for duplicate and replace it is $p/4$, for shift $p/4$ of the answers; for masks it is half of one
# quarter, 12.5 %, at any $p$, answers masked whole left out.

# %%
severities = [0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9, 1.0]
rows = 400 if lad.profile() == "full" else 100
show(
    noise.corruption_rates(drawn_rates(severities, rows=rows)),
    "Five panels, one a kind of noise: the share of tokens corrupted against severity, drawn "
    "points with intervals around a dashed expected line.",
    name="damage_expected_and_drawn",
)

# %% [markdown]
# **Takeaway.** The points lie on the dashed lines, up to chance: of 50 intervals at 95 %, two or
# three are expected to miss the true value. At full severity 44 % of the tokens have changed
# places.
#
# Corrupt a sentence of your own. The table compares what is expected with this one draw and with
# the mean of many.

# %%
CorruptionExplorer()

# %% [markdown]
# ## How does the noise fade while an answer is refined?
#
# When LAD *writes*, it starts from an answer that is all MASK, draws every token, and may then
# mask some of them again, so that they are drawn anew, given the others. This is **re-masking**
# (the paper's demo calls it *intermediate noising*). After iteration $i$ of $N$ (counted from 0)
# it masks
#
# $$n_i = \lfloor \theta_i \cdot \text{answer length} \cdot \text{noise start} \rfloor$$
#
# tokens, where
#
# $$\theta_i = \frac{e^{-s x} - e^{-s}}{1 - e^{-s}} \quad\text{with}\quad x = \frac{i}{N}$$
#
# is the **noise level**: the share of the starting noise that is left, which falls from 1 towards
# 0. The **sharpness** $s$ sets how fast it falls, the **noise start** the share masked after the
# first iteration. Together they are the **noising schedule**.

# %%
show(
    noise.schedule_by_sharpness(),
    "Two panels against the iteration: the noise level, and the tokens masked again, one line for "
    "each of five sharpnesses. All fall; a sharper one falls faster.",
    name="schedule_by_sharpness",
)

# %% [markdown]
# **Takeaway.** With a low sharpness tokens are masked again almost to the end; with a high one
# only in the first iterations, and the rest is noiseless refinement. After the last iteration
# nothing is masked, or the answer would contain MASK.

# %%
show(
    noise.schedule_by_noise_start(),
    "Left, tokens masked again against the iteration for four noise starts. Right, how often that "
    "masks a token in the whole run: in proportion to the noise start.",
    name="schedule_by_noise_start",
)

# %% [markdown]
# **Takeaway.** The noise start scales the whole curve: twice the noise start, about twice the
# masks (rounding down costs small numbers more). With a noise start of 0 refinement is noiseless.
#
# Move the four controls and watch the curve and the numbers below it.

# %%
ScheduleExplorer()

# %% [markdown]
# ## Try it
#
# 1. In the first explorer, tick *shift* alone and set the severity to 1. How often do you have to
#    draw before anything changes, and what does the table expect?
# 2. Tick *swap* alone at severity 1. Some words move far. Why, if only
#    neighbours change places? (Pairs are taken from left to right.)
# 3. In the second explorer, find settings with which each token is masked about once in the whole
#    run. Is there more than one way?
# 4. Make the answer one token long. With which noise start is that token ever masked again?
#
# Next: [the model that has to undo all this](02_model_setup.ipynb).
