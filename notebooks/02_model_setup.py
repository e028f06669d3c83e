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
# # 2. The model: a left-to-right reader learns to look both ways
#
# LAD does not train a language model. It takes one that exists, leaves its weights as they are,
# lets it look in both directions, and trains a small add-on until it can repair damaged answers.
# This notebook takes that model apart, shows that it does look both ways, and trains such an
# add-on for a minute.
#
# Words from [notebook 1](01_noising_schedule.ipynb): token, prompt, answer, MASK, draft,
# iteration, noise, denoiser. New ones:
#
# - The **backbone** is the language model that exists. It is **causal**: trained to guess each
#   next token from those before it, and never allowed to look ahead.
# - **Attention** is how a position in the text takes in what stands at other positions. An
#   **attention mask** says which positions it may look at. (In spite of its name it has nothing
#   to do with the token MASK.)
# - A position's **state** is the list of numbers the model has computed there after its last
#   layer. The guess for a token is read off a state.
# - The **adapter** is the add-on. It is of the kind called **LoRA** (low-rank adaptation): beside
#   a weight matrix $W$ it keeps two narrow matrices $A$ and $B$, and the model computes with $W +
#   \text{scale} \cdot B A$. Only $A$ and $B$ are trained; how narrow they are is the **rank**.
# - **Denoiser** means backbone plus adapter, run with a mask that is not causal.

# %%
import json

import torch

import lad
from lad.diffusion.adapter import shipped_adapter
from lad.evaluation.probes import (
    KINDS_OF_ATTENTION,
    effects,
    fill_mask,
    next_token_accuracy,
    update_sizes,
    visible,
)
from lad.training import self_distil
from lad.viz import attention, training
from lad.viz.ablation import ablation
from lad.viz.gallery import read_numbers, save_numbers
from lad.viz.style import show
from lad.widgets.accessibility import name_controls
from lad.widgets.attention import AttentionExplorer

full = lad.profile() == "full"
print("profile:", lad.profile())
name_controls()  # so that a screen reader can tell the sliders below apart

# %% [markdown]
# ## Which backbone, and how much of the model is trained?
#
# The package knows three backbones. The small one is the default, because it runs on two CPU
# cores; the large one is the paper's, and needs a GPU and an account.

# %%
for spec in lad.BACKBONES.values():
    print(f"{spec.name}: {spec.parameters / 1e6:,.1f} million parameters\n    {spec.note}")

# %%
denoiser = lad.load_denoiser("smollm2-135m", merge=False)  # keeps A and B apart from W, to be seen
show(
    attention.parameter_bars(denoiser.parameter_counts()),
    "Two bars: millions of parameters of the frozen backbone and of the trained adapter.",
    name="parameters",
)

# %%
settings = denoiser.config
mask_token = denoiser.tokenizer.convert_ids_to_tokens(denoiser.mask_token_id)
print("MASK      token", denoiser.mask_token_id, repr(mask_token))
print("LoRA      rank", settings.rank, "on", ", ".join(settings.layers))
print("attention", settings.attention)
print("target   ", settings.target)

# %% [markdown]
# **What follows.** Most of the model is frozen. MASK is not a new token either: it is one that the
# backbone's vocabulary has and ordinary text hardly ever uses. What it means here, the adapter
# learns. The last two lines are the choices that the next section is about.

# %% [markdown]
# ## Who may look at whom?
#
# Four attention masks, drawn for a prompt of 4 tokens and an answer of 5, of which two are MASK at
# the moment (M). A filled square with a dot means: this row's position looks at this column's.
#
# - **causal**: at itself and what stands before it. This is how the backbone was trained.
# - **bidirectional**: everybody looks at everybody. This is the paper's choice.
# - **prompt-causal**: the prompt reads left to right as before, and only the answer looks
#   everywhere. The prompt then does not depend on the draft, so it is computed once and not at
#   every iteration.
# - **mask-blind**: prompt-causal, and no visible token looks at a MASK, which has nothing to tell.
#   The MASKs themselves look everywhere, for they are to be guessed from what they see.
#
# The lines above say which of them the shipped adapter was trained with.
#
# The **target** says which state guesses which token: with *same*, a state guesses its own token
# (the paper's choice); with *next*, the one after it, as the backbone has always done. With *next*
# the last prompt position guesses the first answer token, so it looks at the answer too: see its
# row in the two grids on the right.

# %%
hidden = [6, 8]
masks = {kind: visible(kind, 4, 9, masked=hidden) for kind in KINDS_OF_ATTENTION}
recorded = {kind: mask.astype(int).tolist() for kind, mask in masks.items()}
save_numbers("attention_masks", {"prompt_length": 4, "masked": hidden, "masks": recorded})
show(
    attention.attention_masks(masks, prompt_length=4, masked=hidden),
    "Four square grids. Causal is a lower triangle; bidirectional is full; prompt-causal is a "
    "triangle in the first three rows and full in the others; mask-blind is the same, but the "
    "columns of the two MASKs are empty except in the rows of the MASKs.",
    name="attention_masks",
)

# %% [markdown]
# **What follows.** Under a causal mask no answer position sees what comes later. Under the three
# others every answer position sees all the words of the draft, which is what repairing it takes.
# Only the last one depends on the draft: as MASKs are filled in, it opens up.

# %% [markdown]
# ## Does the denoiser really see what stands to its right?
#
# A mask in a picture proves nothing about a program. So here is a test from outside: hide the
# *last* token of a short text behind MASK, and measure by how much each position's state moves, as
# a share of its length. What cannot see the last token must not move at all, not by the smallest
# rounding error. The causal row is the bare backbone, the others are the denoiser (under all masks
# the same one, although it was trained under one of them only).

# %%
text, prompt_length = "What is the capital of France? It is Paris, on the Seine.", 7
tokens = torch.tensor(denoiser.tokenizer(text)["input_ids"])
last = len(tokens) - 1
moves = {
    kind: effects(denoiser, tokens, kind, prompt_length, positions=[last])[0]
    for kind in KINDS_OF_ATTENTION
}
pieces = [denoiser.tokenizer.decode([token]) for token in tokens]
show(
    attention.attention_effects(moves, pieces, prompt_length, hidden=last),
    "Four rows of bars over the tokens. Causal: zero everywhere but at the last token. "
    "Bidirectional: every state moves. Prompt-causal and mask-blind: zero in the prompt but for "
    "its last position, and every state of the answer moves.",
    name="attention_effects",
)

# %%
assert moves["causal"][0] == 0 and moves["bidirectional"][0] > 0
for kind in ("prompt-causal", "mask-blind"):
    assert (moves[kind][: prompt_length - 1] == 0).all()
    assert (moves[kind][prompt_length:] > 0).all()
print("Measured, not drawn: the four masks let through what they should, and nothing else.")

# %% [markdown]
# **What follows.** Under the bidirectional mask the last token reaches even position 0. Under the
# prompt-causal one it reaches the whole answer, and of the prompt only the last position, the one
# that guesses the answer's first token. Under mask-blind the same states move, but for another
# reason: nobody sees the MASK, so all that they can notice is that a word is gone.
#
# Now choose mask, target, length of the prompt and the token to hide. The frame in the mask marks
# the hidden token's column: whoever has a dot there is touched at once, others may be touched by
# way of them. (Under mask-blind that column is empty, and those are touched who lost sight of the
# token.) A new mask is measured once, which takes a few seconds; after that the slider is free.
# (Without a running kernel the figure above stands for it.)

# %%
AttentionExplorer(denoiser, "What is the capital? It is Paris.", prompt_length=5).widget

# %% [markdown]
# ## Why be blind to MASKs?
#
# An answer begins as nothing but MASKs, and the backbone was never shown a single one. What does
# looking at them do to it? Here it gets a question and the beginning of an answer that it gave
# itself; the rest of a region of 64 positions is MASK. Nothing is trained, and the adapter is
# off. How often is the next word still its first guess, under each attention mask? (The interval
# is 95 %, over answers.)

# %%
questions = [
    "Explain in one sentence what a magnet is.", "Name three vegetables.",
    "Describe an elephant in one sentence.", "What is the capital of Canada?",
    "In one sentence, what is a poem?", "Name a famous scientist.",
    "In one sentence, explain why we sleep.", "What is the opposite of big?",
    "List three things to take to the beach.", "Describe a thunderstorm in one sentence.",
    "Write one sentence about a summer morning.", "Tell me a very short story about a lost key.",
]  # fmt: skip
backbone = lad.load_backbone("smollm2-135m")
own_answers = self_distil(backbone, questions[: None if full else 4], max_tokens=48)
for kind in KINDS_OF_ATTENTION:
    score = next_token_accuracy(denoiser, own_answers, kind)
    low, value, high = (f"{100 * share:.0f}" for share in (score.low, score.value, score.high))
    print(f"{kind:<14}{value:>4} % right  ({low} to {high} %, {score.n} answers)")

# %% [markdown]
# **What follows.** Left to right the MASKs are out of sight, and its own words are no riddle to
# the backbone. Once its words may look at the MASKs, it loses most of the thread, although MASKs
# say nothing; it simply never learnt to ignore them. Blind to them, it keeps most of what it knew,
# and so much less is left for an adapter to learn.

# %% [markdown]
# ## What does the adapter change?
#
# First its size: the length of the update $\text{scale} \cdot BA$ against the length of the weight
# matrix $W$ that it is added to, for every layer and each of the matrices in it. (In attention, q,
# k, v and o are the matrices for queries, keys, values and output; gate, up and down belong to the
# part of a layer that treats each position by itself.)

# %%
show(
    attention.adapter_update(update_sizes(denoiser)),
    "A heat map, weight matrices by layers: the relative size of the adapter's update.",
    name="adapter_update",
)

# %% [markdown]
# **What follows.** The adapter reaches every layer. Nearly everywhere its update is about half as
# long as the weight it corrects, or less: it bends the backbone rather than replacing it. It is
# largest in the queries and keys of the first layer, which decide what is looked at among the bare
# tokens, MASK among them.
#
# Second, its effect. Here is an answer with one token hidden, and the clue stands to the *right*
# of it. Three readers guess: the denoiser; the denoiser when everything to the right is hidden as
# well; and the bare backbone, its adapter switched off, under the very same attention mask.

# %%
question = "Name a famous city."
answer = "The city of [MASK] is the capital of Japan."
no_clue = "The city of [MASK] [MASK] [MASK] [MASK] [MASK] [MASK] [MASK]"
guesses = {"adapter": fill_mask(denoiser, question, answer)[0]}
guesses["adapter, no clue"] = fill_mask(denoiser, question, no_clue)[0]
with denoiser.adapter_off():
    guesses["bare backbone"] = fill_mask(denoiser, question, answer)[0]
show(
    attention.predictions(guesses, wanted=" Tokyo"),
    "Three bar charts of the five likeliest tokens and their probabilities; ␣ is a space that "
    "belongs to the token.",
    name="behind_the_mask",
)

# %% [markdown]
# **What follows.** Permission to look right is not the ability to use it: the bare backbone has
# the same mask and is lost. With the adapter the clue is used, and without the clue the denoiser
# can only name some city. (␣ marks a space that belongs to the token.)

# %% [markdown]
# ## Can we watch one being trained?
#
# A fresh adapter starts with $B = 0$ and changes nothing. We give it a minute on two CPU cores.
#
# The pairs of prompt and answer come from the backbone itself: it answers some questions from left
# to right, in its own words. This is called **self-distillation**. The adapter then learns to
# restore those answers after they were damaged as in notebook 1. The **loss** is the
# cross-entropy: how much the right token surprises the denoiser, on average, in nats (0 for
# certainty, 0.7 for one chance in two, 2.3 for one in ten). An optimiser **step** is one small
# correction of $A$ and $B$.

# %%
countries = ["France", "Spain", "Italy", "Japan", "Egypt", "Poland", "Norway", "Peru", "Cuba"]
pairs = self_distil(backbone, [f"What is the capital of {c}?" for c in countries], max_tokens=20)
print(f"{len(pairs)} pairs, such as:", *(f"{p.prompt} {p.answer}" for p in pairs[:3]), sep="\n  ")

# %%
beginner = lad.Denoiser.create(backbone, lad.DenoiserConfig(rank=8, alpha=16))
hidden_answer = " ".join(["[MASK]"] * 8)
before = fill_mask(beginner, "What is the capital of Greece?", hidden_answer, top=1)
rows = lad.train(
    beginner,
    pairs,
    lad.TrainConfig(
        steps=40 if full else 10, learning_rate=3e-3, warmup_steps=4, batch_tokens=480,
        widths=(64, 96), widen=0, log_every=1,
    ),
    held_out=[],
)  # fmt: skip
show(
    training.loss_curve(rows),
    "The loss against the optimiser step: dots, and their running median; the upper axis counts "
    "seconds.",
)

# %%
after = fill_mask(beginner, "What is the capital of Greece?", hidden_answer, top=1)
print("Greece was not among the questions. From eight MASKs, in one pass, the likeliest tokens:")
print("  before:", "|".join(token.text for (token,) in before))
print("  after: ", "|".join(token.text for (token,) in after))

# %% [markdown]
# **What follows.** A few steps are enough to see the loss fall. But this is a toy: a handful of
# questions, and answers that are the backbone's own, mistakes included. In its answer about Greece
# look for the pattern of the answers it was trained on, not for the right city; and where a word
# stands twice, remember that all eight positions guessed at the same time, each by itself. Mending
# that takes more iterations than one, which is what notebook 3 shows.

# %% [markdown]
# ## How was the shipped adapter trained?
#
# With the same code, for longer, on two GPUs and on far more pairs, as `configs/smollm2-135m.yaml`
# says. Its log comes with it. The noise was that of notebook 1 in other amounts: masks reach up to
# the whole answer, stand in blocks or cover what is yet to be written, and structural noise falls
# on some of the answers. About one row in seven is not damaged at all but read on from a random
# position, from left to right, so that the adapter keeps what the backbone knows best: which token
# comes next.

# %%
with open(shipped_adapter("smollm2-135m") / "training_log.jsonl", encoding="utf-8") as file:
    log = [json.loads(line) for line in file]
show(
    training.loss_curve(log),
    "The shipped adapter's training loss against the optimiser step; the upper axis counts time.",
    name="training_loss",
)

# %% [markdown]
# From time to time it was tested on pairs that it is never trained on, with a quarter, a half and
# three quarters of the answer masked. **Accuracy** is the share of masked tokens whose likeliest
# guess is right; there is often more than one good answer, so it cannot reach 100 %.

# %%
show(
    training.validation_curves(log),
    "Cross-entropy and accuracy on held-out pairs against the optimiser step, one line for each "
    "share masked.",
    name="training_validation",
)

# %% [markdown]
# **What follows.** The more of an answer is visible, the better the rest is guessed. That is the
# whole idea of refinement: each draft, if it is better than the last, makes the next one easier.

# %% [markdown]
# ## Which of these choices matter?
#
# The same short training again and again, on a GPU, one choice changed at a time (`lad ablate`).
# Every row is one such run, measured on answers and prompts that none of them saw. The base is not
# how the shipped adapter was made but an earlier recipe, which these runs helped to leave behind:
# it also trains on the model's own drafts, in chains, each drawn from the one before, and it learns
# more slowly.
#
# - **filling in**: the cross-entropy where half of the answer is masked;
# - **repair**: answers with structural noise of severity 0.3 and not one MASK go through four
#   noiseless iterations. Which share of the damaged tokens comes out right, and which share of
#   the sound ones is left alone?
# - **noiseless answers**: how much a whole answer, refined without masking again, stutters.
#
# The intervals are 95 %, over answers. They do not say what chance does in training: for that one
# run differs from the base in its seed only, and the grey bands show how far that took it.

# %%
show(
    ablation(read_numbers("ablation")),
    "Four panels of dots with intervals, a row for each variant of the training: cross-entropy, "
    "damaged tokens restored, sound tokens kept, and repeats in noiseless answers. The base is a "
    "dashed line in each.",
    name="ablation",
)

# %% [markdown]
# **What follows.** Trained on masks only, an adapter fills in better than the base and is the worst
# of all at repair: what is never damaged in training is not mended afterwards. Training on the
# model's own drafts does not pay yet: without it, every count is better. Drafts this early are poor
# ones, and a run this short cannot say whether it pays later. A wider adapter (a higher rank) both
# fills in and repairs better. And one other seed is a rough measure of chance: what lies close to a
# grey band may not be there the next time.

# %% [markdown]
# ## Try it
#
# 1. In the explorer, choose *prompt-causal* and change the target from *next* to *same*. Which
#    single row of the mask changes, and which bar disappears?
# 2. Under *causal*, hide a token in the middle. Which states move, and why only those?
# 3. Choose *mask-blind* and hide one token of the answer after the other. What happens to the
#    column in the frame, and who still looks there?
# 4. Replace `answer` above by a sentence of your own with the clue on the left of `[MASK]`. How
#    well does the bare backbone do now, and why?
# 5. Train the beginner with `rank=1`. Does the loss still fall?
#
# Next: one answer, draft by draft, in [notebook 3](03_sampling_walkthrough.ipynb).
