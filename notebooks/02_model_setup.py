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
# # 2. The model: a left-to-right backbone with an adapter that reads both ways
#
# LAD does not train a language model. It takes a pretrained one, leaves its weights as they are,
# lets it attend in both directions, and trains a small adapter until it can repair damaged answers.
# This notebook takes that model apart, measures that it attends both ways, and trains an adapter.
#
# Words from [notebook 1](01_noising_schedule.ipynb): token, prompt, answer, MASK, draft, iteration,
# corruption, denoiser. New ones:
#
# - The **backbone** is the pretrained language model. It is **causal**: trained to predict each
#   next token from those before it.
# - By **attention** a position takes in what stands at others; an **attention mask** says at which.
#   (It has nothing to do with the token MASK.)
# - A position's **state** is the vector there after the last layer. A token is predicted from it.
# - The **adapter** is **LoRA** (low-rank adaptation): beside a weight matrix $W$ it has two narrow
#   matrices $A$ and $B$, and the model computes with $W + \text{scale} \cdot B A$. Only $A$ and
#   $B$ are trained; how narrow they are is the **rank**.
# - **Denoiser** means backbone plus adapter, run with a mask that is not causal.

# %% [markdown]
# *In JupyterLab: Run > Run All Cells, on opening and wherever an explorer says "model not found".
# It takes one to four minutes on two CPU cores.*

# %%
import json

import torch

import lad
from lad.diffusion.adapter import shipped_adapter
from lad.evaluation.probes import KINDS_OF_ATTENTION, effects, fill_mask, update_sizes, visible
from lad.training import self_distil
from lad.viz import attention, training
from lad.viz.gallery import save_numbers, show_recorded
from lad.viz.style import show
from lad.widgets.accessibility import name_controls
from lad.widgets.attention import AttentionExplorer
from lad.widgets.lens import LensExplorer

full = lad.profile() == "full"
name_controls()  # so that a screen reader can tell the sliders below apart

# %% [markdown]
# ## Which backbone, and how much of the model is trained?
#
# These are the backbones that the package knows by name. The first is the default, because it runs
# on two CPU cores; the paper's, with 8 B parameters, needs a GPU and an account.

# %%
for spec in lad.BACKBONES.values():
    print(f"{spec.name}: {spec.parameters / 1e6:,.1f} million parameters\n    {spec.note}")

# %%
denoiser = lad.load_denoiser("smollm2-135m", merge=False)  # keeps A and B apart from W, to be seen
settings, mask = denoiser.config, denoiser.tokenizer.convert_ids_to_tokens(denoiser.mask_token_id)
print(f"MASK: {mask!r}; attention: {settings.attention}; target: {settings.target}")
print(f"LoRA: rank {settings.rank} on {', '.join(settings.layers)}")
show(
    attention.parameter_bars(denoiser.parameter_counts()),
    "Two bars: millions of parameters of the frozen backbone and of the trained adapter.",
    name="parameters",
)

# %% [markdown]
# **Takeaway.** Most of the model is frozen. MASK is not a new token either: the backbone's
# vocabulary has it, and ordinary text hardly ever uses it. The adapter learns what it means here.

# %% [markdown]
# ## Which positions attend to which?
#
# Four attention masks, drawn for a prompt of 4 tokens and an answer of 5, two of which are MASK
# (M). A filled square with a dot means: the row's position attends to the column's.
#
# - **causal**: to itself and what stands before it. So the backbone was trained.
# - **bidirectional**: all to all. This is the paper's choice.
# - **prompt-causal**: the prompt is read left to right, and only the answer attends to everything.
#   The prompt then does not depend on the draft, so it is computed once and not at every iteration.
# - **mask-blind**: prompt-causal, and no visible token attends to a MASK, which carries no
#   information; MASKs attend to all. No adapter is trained with it yet (`docs/differences.md`).
#
# The shipped adapter's is printed above, beside its **target**: which token a state predicts. With
# *same* it is the position's own (the paper's choice); with *next*, the one after it, as in the
# backbone. With *next* the last prompt position predicts the first answer token, so it attends to
# the answer too: see its row in the two grids on the right.

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
# **Takeaway.** Under the causal mask no answer position sees what comes later. Under the three
# others each sees all words of the draft, which is what repair takes.

# %% [markdown]
# ## Does the denoiser really see what stands to its right?
#
# Replace the *last* token of a short text by MASK, and measure by how much each position's state
# moves, as a share of its length. What does not attend to the last token must not move at all. The
# causal row is the bare backbone, the others are the denoiser, trained under one of them only.

# %%
text, prompt_length = "What is the capital of France? It is Paris, on the Seine.", 7
tokens = torch.tensor(denoiser.tokenizer(text)["input_ids"])
pieces, last = [denoiser.tokenizer.decode([token]) for token in tokens], len(tokens) - 1
moves = {
    kind: effects(denoiser, tokens, kind, prompt_length, positions=[last])[0]
    for kind in KINDS_OF_ATTENTION
}
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

# %% [markdown]
# Now choose mask, target, length of the prompt and the token to hide. The frame marks the hidden
# token's column: positions with a dot there are affected directly, others by way of them. A new
# mask takes a few seconds. (A page without a kernel shows the first choice.)

# %%
AttentionExplorer(denoiser, "What is the capital? It is Paris.", prompt_length=5)

# %% [markdown]
# **Takeaway.** Under the bidirectional mask the last token reaches even position 0. Under the
# prompt-causal one it reaches the answer, and of the prompt only the last position. Under
# mask-blind the same states move because a word is missing: no position attends to the MASK.

# %% [markdown]
# ## Where does the adapter change the weights?
#
# The length of the update $\text{scale} \cdot BA$ divided by that of $W$, for every matrix. (q, k,
# v and o belong to attention; gate, up and down treat each position by itself.)

# %%
show(
    attention.adapter_update(update_sizes(denoiser)),
    "A heat map, weight matrices by layers: the relative size of the adapter's update.",
    name="adapter_update",
)

# %% [markdown]
# **Takeaway.** In most matrices the update is at most half as long as the weights. It is largest in
# queries and keys of the first layer, where bare tokens attend to each other, MASK among them.

# %% [markdown]
# ## What does the adapter change in a prediction?
#
# One token of an answer is hidden; the clue stands to the *right* of it. Three predictions: the
# denoiser's, the denoiser's with all to the right hidden too, and the bare backbone's, same mask.

# %%
question, answer = "Name a famous city.", "The city of [MASK] is the capital of Japan."
candidates = {"adapter": fill_mask(denoiser, question, answer)[0]}
candidates["adapter, no clue"] = fill_mask(denoiser, question, "The city of" + 7 * " [MASK]")[0]
with denoiser.adapter_off():
    candidates["bare backbone"] = fill_mask(denoiser, question, answer)[0]
show(
    attention.predictions(candidates, wanted=" Tokyo"),
    "Three bar charts of the five likeliest tokens and their probabilities; ␣ is a space that "
    "belongs to the token.",
    name="behind_the_mask",
)

# %% [markdown]
# **Takeaway.** Attending to the right is not enough: the bare backbone has the same mask and
# misses the clue. The denoiser uses it, and without the clue can only name some city.

# %% [markdown]
# ## What would each layer predict?
#
# Every layer adds to a state; after the last one the backbone's head reads a token off it. The
# **logit lens** (nostalgebraist, 2020) applies the head after every layer: which token would be the
# likeliest if the model ended there? Below, over layers and iterations, at a position of an answer
# that you choose; framed is the final token, that of the last draft. *Run* answers another prompt.

# %%
prompt = "What do you know about Amsterdam?" if full else "What is the capital of France?"
run = lad.record(denoiser, prompt, lad.PRESETS["default"])
LensExplorer(denoiser, run)

# %% [markdown]
# And over many answers (`lad study`, bands are 95 % intervals): after which layer does the final
# token lead, where it is already visible, where this iteration shows it, where it stays masked?

# %%
show_recorded(
    "first_layer",
    "Share of positions whose final token is the likeliest, against the layer, a line for visible "
    "tokens, for those shown in the iteration and for those still masked.",
)

# %% [markdown]
# **Takeaway.** A prediction is made late, in the last third of the layers, even of a token that
# stands in the input: the state is read off at the position before it, which has to fetch the token
# by attention. What an iteration shows leads later still. Behind most MASKs that stay, the final
# token leads after no layer: it is predicted only once its neighbours are visible.

# %% [markdown]
# ## Can we watch one being trained?
#
# A new adapter has $B = 0$ and changes nothing. We give it a minute on two CPU cores. The backbone
# answers questions from left to right (**self-distillation**), and the adapter learns to restore
# those answers after corruption as in notebook 1. The **loss** is the cross-entropy in nats (0 for
# certainty, 0.7 for one chance in two, 2.3 for one in ten). An optimiser **step** is one small
# correction of $A$ and $B$.

# %%
countries = ["France", "Austria", "Japan", "Egypt", "Poland", "Norway", "Peru", "Cuba", "Kenya"]
backbone = lad.load_backbone("smollm2-135m")
pairs = self_distil(backbone, [f"What is the capital of {c}?" for c in countries], max_tokens=20)
print(f"{len(pairs)} pairs, such as:", *(f"{p.prompt} {p.answer}" for p in pairs[:3]), sep="\n  ")

# %%
beginner = lad.Denoiser.create(backbone, lad.DenoiserConfig(rank=8, alpha=16))
greece = beginner, "What is the capital of Greece?", " ".join(["[MASK]"] * 8)
before = fill_mask(*greece, top=1)
settings = lad.TrainConfig(
    steps=40 if full else 10, learning_rate=3e-3, warmup_steps=4, batch_tokens=480,
    widths=(64, 96), widen=0, log_every=1,
)  # fmt: skip
rows = lad.train(beginner, pairs, settings, held_out=[])
print("Greece was not among the questions. From eight MASKs, in one pass, the likeliest tokens:")
print("  before:", "|".join(token.text for (token,) in before))
print("  after: ", "|".join(token.text for (token,) in fill_mask(*greece, top=1)))
show(training.loss_curve(rows), "The loss against the optimiser step and seconds, falling.")

# %% [markdown]
# **Takeaway.** A few steps are enough to see the loss fall. This is a toy: in the answer about
# Greece look for the pattern of the training answers, not for the right city. A word stands
# twice because all positions were predicted at once; repairing that takes iterations (notebook 3).

# %% [markdown]
# ## How was the shipped adapter trained?
#
# With the same code on GPUs and far more pairs, in three runs one after the other, and four side
# by side from there (see its `README.md`). Masks reach up to the whole answer, and structural
# corruption falls on some of the answers; some are predicted from left to right instead, which
# keeps the backbone's skill. The shipped weights are a mean, so no curve ends at them.
#
# Now and then it was tested on held-out pairs with a quarter, a half and three quarters of the
# answer masked. **Accuracy** is the share of masked tokens whose likeliest prediction is right;
# there is often more than one good answer, so it cannot reach 100 %. The runs had three sets of
# held-out pairs: points on two sides of a dotted line are not comparable.

# %%
with open(shipped_adapter("smollm2-135m") / "training_log.jsonl", encoding="utf-8") as file:
    log = [json.loads(line) for line in file]
show(
    training.validation_curves(log),
    "Cross-entropy and accuracy on held-out pairs by step and share masked, a gap between sets.",
    name="training_validation",
)

# %% [markdown]
# **Takeaway.** The more of an answer is visible, the better the rest is predicted: each draft, if
# it is better than the last, makes the next one easier.

# %% [markdown]
# ## Try it
#
# 1. In the explorer, choose *prompt-causal* and change the target from *next* to *same*. Which row
#    of the mask changes, and which bar disappears?
# 2. Under *causal*, hide a token in the middle. Which states move, and why only those?
# 3. Replace `answer` above by a sentence with the clue on the left of `[MASK]`. How well does the
#    bare backbone do now?
# 4. Train the beginner with `rank=1`. Does the loss still fall?
#
# Next: one answer, draft by draft, in [notebook 3](03_sampling_walkthrough.ipynb).
