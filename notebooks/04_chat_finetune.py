# ---
# jupyter:
#   jupytext:
#     formats: ipynb,py:percent
#     text_representation:
#       extension: .py
#       format_name: percent
#   kernelspec:
#     display_name: Python 3
#     language: python
#     name: python3
# ---
# %% [markdown]
# # 04 · Chat SAEs: finetuned, resampled, or from scratch
#
# Prepares claims C4 and C8.
#
# **The claims** (the paper, section on chat finetuning). SAEs that saw only pretraining text may
# miss what matters in chat. Finetuning on chat data closes about half of the gap between SAE probes
# and dense probes out of distribution (C4), and how the chat SAE came about makes no systematic
# difference (C8). This notebook makes the SAEs and shows what finetuning changes; notebook 05
# probes with all of them.
#
# Base SAEs of different seeds differ by more than finetuning changes. So several are finetuned,
# each on chat and, as a **placebo**, on as much pretraining text, and each is compared with what
# was made of itself.

# %%
import dataclasses
from pathlib import Path

import numpy as np
import pandas as pd
from IPython.display import Markdown

from lib.base.files import write_table
from lib.model import models, rollouts
from lib.results import figures, records, tables
from lib.sae import (
    checks,
    finetuning,
    folders,
    harvest,
    learning_rates,
    shares,
    splice,
    token_blocks,
    training,
    widths,
)
from lib.sae.recipes import Recipe
from lib.texts import corpora, datasets

# %% [markdown]
# ## Parameters
# An SAE to begin with is a SAELens folder, a folder with Gemma Scope's `params.npz`, or
# `release:sae_id`; where none is given they are trained here. `prompts_sae` saw pretraining text as
# user prompts. With one entry of `base_saes` everything runs, but no interval says how much base
# SAEs differ.
#
# A corpus is `docstrings` (of installed packages), `pretraining` (public prose), `rollouts` (public
# chat), `shipped:<model>` (chat that a model had with itself, in `data/rollouts`), `hf:<data set>`,
# or `own:<corpus>` (answered by the model itself).

# %% tags=["parameters"]
profile = "embedded"
device = "cpu"
layer = 21  # block whose residual stream is trained on, chosen on validation
base_saes = [
    "data/pretrained/SmolLM2-135M-Instruct-layer-21-base",
    "data/pretrained/SmolLM2-135M-Instruct-layer-21-base-1",
    "data/pretrained/SmolLM2-135M-Instruct-layer-21-base-2",
]  # folder | release:sae_id, of seeds 0, 1, 2 …; empty: trained here, of the seeds base_seeds
base_seeds = [0, 1, 2]  # of base SAEs that are trained here
other_bases = 1  # base SAEs from which the ways beside chat and placebo begin; 0: all
prompts_sae = "data/pretrained/SmolLM2-135M-Instruct-layer-21-prompts"  # or empty
insist = False  # true: an SAE whose record names another model or place is used all the same
chat_corpus = "shipped:SmolLM2-135M-Instruct"  # or prompts (in all wrappers)
pretraining_corpus = "docstrings"  # docstrings | pretraining | hf:<data set>
n_rollouts = 2000  # of the model's own, where a corpus is own:…
rollout_tokens = 128  # of a rollout, at most
rollout_temperature = 1.0  # 0: greedy
context = 128  # tokens of a window of text
store = "disk"  # disk | stream, training activations kept, or made anew for each training
buffer_tokens = 4_000_000  # shuffled at a time
pretraining_tokens = 45_000  # harvested; as many as of chat, or the placebo would see other text
chat_tokens = 45_000  # harvested
held_out_tokens = 12_000
lm_loss_tokens = 2_000  # held-out tokens of each text, for the loss of a causal model
base_d_sae = 4096  # of SAEs that are trained here
base_train_tokens = 1_500_000  # seen by an SAE that is trained here
finetune_tokens = 90_000  # tokens seen in finetuning
scratch_tokens = 180_000  # tokens seen by an SAE from scratch
sae_target_l0 = 45.0  # active latents per token
base_lr = 4e-3  # of SAEs that are trained here; 0: chosen on a calibration split of the text
finetune_lr = 2e-3  # chosen in the same way, once, on chat; 0: again
scratch_lr = 8e-3  # chosen in the same way, once; 0: again
resample_shares = [0.25]  # share of latents made anew before finetuning; empty: none
prompt_repeats = []  # copies of the training prompts in the mix, such as [1, 4]; empty: none
token_shares = [0.1, 0.01]  # of the tokens from scratch, for notebook 08; empty: none
sae_widths = [1024]  # latents of other SAEs from scratch, for notebook 08; empty: none
n_bootstrap = 2000  # replicates over sequences, for the language-model loss
split_seed = 1  # division of the passages into training and held-out ones

# %% [markdown]
# ## Inputs
# Chat text for the SAEs and its held-out part, text that is no chat (public prose, or docstrings
# where there is no network), and the probe's own training prompts. Validation and OOD prompts are
# in none of the training stores. With `chat_corpus: prompts`, as of an encoder, chat text *is* the
# training prompts in all wrappers: finetuning then means on the task's own kind of text, and
# `prompt_repeats` would test nothing.
#
# The placebo's text is what the base SAEs were trained on where `pretraining_corpus` is
# `pretraining` (as in the profile `public`). Docstrings, which need no network, are new to the
# shipped SAEs: that placebo also changes the kind of text, only not to chat. What chat adds to it
# is then no effect of new text as such.

# %%
run = records.start("04_chat_finetune", globals())
prompts_path = records.output(run, "01_datasets", "prompts")
prompts = datasets.load(prompts_path)
upstream = records.read(run, "02_activations")["parameters"]
model = upstream["model"]
reader = models.Reader(model, device, upstream["dtype"], context, store)
probe_texts = prompts.loc[prompts["split"] == "train", "text"].tolist()

# %%
if chat_corpus == "prompts":
    dataset = records.read(run, "01_datasets")["parameters"]["dataset"]
    templates = datasets.load_templates(dataset)
    rng = np.random.default_rng(split_seed)
    in_wrappers = [
        datasets.chat_texts(prompts, split, templates, rng) for split in ("train", "val")
    ]
    chat_texts = corpora.Split(*in_wrappers, calibration=[])
else:
    sampling = rollouts.Sampling(n_rollouts, rollout_tokens, rollout_temperature, split_seed)
    wanted = chat_tokens + held_out_tokens
    chat_texts = rollouts.split_corpus(
        chat_corpus, reader, sampling, probe_texts, run.folder / "rollouts", wanted,
        share=harvest.HELD_OUT_SHARE,
    )  # fmt: skip
other_text = corpora.corpus(pretraining_corpus, pretraining_tokens + held_out_tokens)
pretraining_texts = corpora.split(other_text, harvest.HELD_OUT_SHARE, split_seed)

# %%
parent = run.folder / "activations"
limits = {"held_out_tokens": held_out_tokens, "seed": split_seed}
chat = harvest.token_stores(
    reader, chat_texts, layer, parent, max_tokens=chat_tokens, **limits,
    calibrates=learning_rates.CHOSEN in (finetune_lr, scratch_lr),
)  # fmt: skip
pretraining = harvest.token_stores(
    reader, pretraining_texts, layer, parent, max_tokens=pretraining_tokens, **limits,
    calibrates=base_lr == learning_rates.CHOSEN,
)  # fmt: skip
probe_prompts = None
if any(prompt_repeats):
    probe_prompts = harvest.token_store(reader, probe_texts, layer, parent, 0, split_seed)

# %%
held_out = {"chat": chat.held_out, pretraining_corpus: pretraining.held_out}
sources = {"chat": chat.training, pretraining_corpus: pretraining.training}
sources |= {"probe prompts": probe_prompts} if probe_prompts else {}
sources |= {f"{name}, held out": path for name, path in held_out.items()}
counts = {name: sum(token_blocks.counts(source)) for name, source in sources.items()}
pd.Series(counts, name="tokens").to_frame()

# %% [markdown]
# ## The SAEs to begin with
# `pretraining SAE` saw pretraining text; `IT-formatted SAE` the same text wrapped as user prompts,
# as Gemma Scope's IT SAEs. SAEs that are trained here also give an earlier checkpoint, from which
# finetuning ends at the base SAE's number of steps.
#
# What is given is measured first, on held-out chat. **What to look for:** an FVU far below 1, and
# an L0 near the recorded one. An FVU above 1, or ten times the L0 or a tenth of it, is that of an
# SAE which reads another scale, layer or model than here, and whatever follows is then of no worth.

# %%
site = checks.Site(models.resid_post(layer), model, insist)
own_tokens = token_blocks.load_tokens(chat.held_out)
starts, account = checks.check(
    finetuning.shipped(base_saes, prompts_sae), own_tokens, site, run.folder / "saes", device
)
Markdown(account or "No SAE is given; all are trained here.")

# %%
options = {"device": device, "buffer_tokens": buffer_tokens}
start = next((path for by_seed in starts.values() for path in by_seed.values()), None)
d_sae = folders.load(start).cfg.d_sae if start else base_d_sae
first_seed = min(starts.get(finetuning.BASE, base_seeds))
base_recipe = Recipe(
    d_sae=d_sae, target_l0=sae_target_l0, tokens=base_train_tokens, lr=base_lr, seed=first_seed
)
place = run.folder / "saes"
if len(starts) < 2:
    base_recipe = learning_rates.settled(base_recipe, pretraining, place, **options)

# %%
if finetuning.BASE not in starts:
    stop_tokens = max(base_train_tokens - finetune_tokens, base_recipe.batch_tokens)
    begun = dataclasses.replace(base_recipe, stop_tokens=stop_tokens)
    starts |= finetuning.train_bases(
        begun, base_seeds, pretraining, place, other_bases, **options
    )
if finetuning.IT_FORMATTED not in starts:
    wrapped = corpora.as_user_prompts(pretraining_texts.training)
    as_prompts = harvest.token_store(
        reader, wrapped, layer, parent, pretraining_tokens, split_seed
    )
    trained = training.train(base_recipe, as_prompts, pretraining.held_out, place, **options)
    starts[finetuning.IT_FORMATTED] = {first_seed: trained}
bases = finetuning.untrained(starts)
bases.drop(columns="start")

# %% [markdown]
# ## Method
# All SAEs are JumpReLU with the L0 penalty at one target L0 (notebook 03). Finetuning starts at the
# given weights with a new optimiser, and rescales to the new activations. The **placebo**,
# *finetuned on pretraining text*, is the same recipe with as many tokens, of as many different
# ones, and the learning rate that was chosen for chat. *Resampling* replaces the latents that fire
# least on chat tokens by unit residuals of badly reconstructed tokens. *prompts ×n* mixes n copies
# of the probe's training prompts into the chat tokens. Finetuning on chat and the placebo begin at
# every base SAE: from them we learn how much base SAEs differ. The other ways (resampled, prompts
# ×n, from scratch, and from an earlier checkpoint) begin at the first `other_bases` of these, or
# take their seeds; the IT-formatted SAE is one only.

# %%
d_sae = folders.load(next(iter(starts[finetuning.BASE].values()))).cfg.d_sae
recipe = Recipe(d_sae=d_sae, target_l0=sae_target_l0, tokens=finetune_tokens, lr=finetune_lr)
scratch = {"tokens": scratch_tokens, "lr": scratch_lr}
ways = finetuning.variants(starts, scratch, resample_shares, prompt_repeats, other_bases)
tokens = finetuning.Tokens(chat, pretraining, probe_prompts)
finetuned = finetuning.train_variants(ways, recipe, tokens, place, **options)
saes = pd.concat([bases, finetuned], ignore_index=True)
measured = finetuning.measure(saes, held_out, device)
summary = finetuning.over_seeds(measured)

# %% [markdown]
# Notebook 08 asks what tokens and latents are worth. For it the SAE from scratch is trained again,
# on a share of the tokens (as many steps, of smaller batches) and with other numbers of latents (at
# the same L0; the learning rate falls with the root of the width).

# %%
from_scratch = finetuned[finetuned["variant"] == "from scratch"]
settled = dataclasses.replace(
    recipe, tokens=scratch_tokens, lr=from_scratch["lr"].iloc[0], seed=first_seed
)
needed = ["variant", "differs_in", "seed", "folder"]
for_08 = [pd.DataFrame(columns=needed)]
if token_shares:
    of_shares = shares.train_shares(settled, token_shares, chat, place, [first_seed], **options)
    for_08.append(of_shares.assign(differs_in="tokens"))
if sae_widths:
    of_widths = widths.train_widths(settled, sae_widths, chat, place, [first_seed], **options)
    for_08.append(of_widths.assign(differs_in="width"))
for_08 = pd.concat(for_08, ignore_index=True)
for_08.drop(columns="folder")

# %% [markdown]
# ## Reconstruction before and after
# **What to look for:** finetuning lowers FVU on chat and raises it on the other text; the placebo
# does the reverse. **What would speak against finetuning having worked:** chat FVU at the level of
# the SAEs it began with or of the placebo, or far above the SAE from scratch.

# %%
n_bases, n_others = len(starts[finetuning.BASE]), len(ways["from scratch"].starts)
caption = (
    f"Profile {profile}, layer {layer}, {d_sae:,} latents, held-out tokens. "
    f"Bars: 95 % t interval over base SAEs ({n_bases} of chat and placebo, {n_others} of other "
    "ways); none where there is one SAE."
)
labels = {"fvu": "FVU (fraction of variance)", "l0": "L0 (active latents per token)"}
for metric, label in labels.items():
    figure = figures.points(summary[summary["metric"] == metric], "variant", "text", xlabel=label)
    display(figures.save(figure, run.figures, f"04_{metric}", caption))

# %% [markdown]
# ## Language-model loss with the SAE spliced in
# The reconstruction takes the place of the residual stream, and the model goes on from there:
# `delta_lm_loss` is what its loss per token rises by, and the loss recovered is 1 for a perfect SAE
# and 0 for one no better than zeros. Only a causal model has such a loss. **What to look for:**
# finetuning lowers the delta on chat. **What would speak against it:** a delta on chat that stays,
# or that the placebo lowers as much.

# %%
losses = pd.DataFrame(columns=["metric", "variant", "text", "value", "low", "high", "n"])
bridge = reader.bridge()
if lm_loss_tokens and models.is_causal(bridge):
    passages = {"chat": chat_texts.held_out, pretraining_corpus: pretraining_texts.held_out}
    windows = splice.windows(bridge, passages, context, lm_loss_tokens, split_seed)
    first_of_kind = saes.drop_duplicates("variant")  # Whole passes of the model take long.
    losses = splice.measure(bridge, first_of_kind, windows, layer, n_bootstrap, split_seed)

# %%
if len(losses):
    sizes = losses.groupby("text")["n"].first()
    counted = ", ".join(f"{n:,.0f} tokens of {text}" for text, n in sizes.items())
    caption = (
        f"Profile {profile}, {model}, layer {layer}, {counted}; 95 % bootstrap over sequences. "
        "One SAE of each kind."
    )
    delta = losses[losses["metric"] == "delta_lm_loss"]
    label = "rise of the loss (nats per token)"
    figure = figures.points(delta, "variant", "text", xlabel=label)
    display(figures.save(figure, run.figures, "04_lm_loss", caption))

# %%
if len(losses):
    display(tables.in_columns(finetuning.with_text(losses), "variant", "measure"))
else:
    display(Markdown(f"Not applicable: {model} is no causal language model."))

# %% [markdown]
# ## Drift, dead and high-frequency latents
# Cosine of each decoder row with its own row before, and the share of latents below 0.9. Latents
# are counted on held-out tokens; dead is the share that never fires there.

# %%
others = summary[~summary["metric"].isin(list(labels))]
tables.in_columns(finetuning.with_text(others), "variant", "measure")

# %% [markdown]
# ## Takeaway

# %%
fvu = tables.in_columns(summary[summary["metric"] == "fvu"], "variant", "text")
moved = tables.in_columns(summary[summary["text"] == finetuning.DECODER], "variant", "metric")
first = f"finetuned from {finetuning.BASE}"
spliced = ""
if len(losses):
    on_chat = losses[(losses["metric"] == "delta_lm_loss") & (losses["text"] == "chat")]
    added = dict(zip(on_chat["variant"], tables.texts(on_chat)))
    spliced = (
        f" Spliced in, it adds {added['pretraining SAE']} nats per token of chat before, "
        f"{added[first]} after, {added[finetuning.PLACEBO]} after the placebo."
    )

# %%
Markdown(
    f"FVU on chat: {fvu.loc['pretraining SAE', 'chat']} before, {fvu.loc[first, 'chat']} after "
    f"finetuning, {fvu.loc[finetuning.PLACEBO, 'chat']} after the placebo, "
    f"{fvu.loc['from scratch', 'chat']} from scratch. On {pretraining_corpus}: "
    f"{fvu.loc['pretraining SAE', pretraining_corpus]} before, "
    f"{fvu.loc[first, pretraining_corpus]} after.{spliced} Decoder rows keep a mean cosine of "
    f"{moved.loc[first, 'cosine']}; {moved.loc[first, 'moved']} of the latents moved. Tokens seen: "
    f"{finetune_tokens:,} in finetuning, {scratch_tokens:,} from scratch. Intervals are over "
    f"{n_bases} base SAEs, each with its own finetunings ({n_others} from scratch, without an "
    "interval if one); that of the loss over sequences only."
    + (" One base SAE: no interval says how much such SAEs differ." if n_bases == 1 else "")
)

# %%
list_path = write_table(run.results / "chat_saes.parquet", saes)
others_path = write_table(run.results / "other_saes.parquet", for_08[needed])
headline = pd.concat([summary, losses], ignore_index=True) if len(losses) else summary
values = pd.concat([measured, headline], ignore_index=True)
inputs = [prompts_path, *(source for source in sources.values() if isinstance(source, Path))]
folders_made = [*saes["folder"], *for_08["folder"]]
record = records.write(run, values, headline, inputs=inputs, folders=folders_made,
                       outputs={"saes": list_path, "others": others_path})
print(record.name)
