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
# # 07 · What would a probe cheat on? Data-set debugging with SAE latents
#
# Claim C13.
#
# **The claim** (the paper, sections on data sets and on what SAEs are good for). Latents whose
# activation differs most between the classes showed spurious correlations of the data set: question
# marks and closing punctuation that one class had and the other had not. Removing them made the
# data set harder to cheat on. This notebook does the same on the prompts *before* normalisation,
# and then measures the method: known artefacts are planted, and four methods look for them.

# %%
import numpy as np
import pandas as pd
import torch
from IPython.display import HTML, Markdown, display

from lib.base.files import write_text
from lib.interp import cards, debugging, examples, planted, readings
from lib.interp.ngram import NgramJudge
from lib.model import models
from lib.results import figures, records, tables
from lib.sae import checks, folders
from lib.stats import families, metrics
from lib.texts import artefacts, datasets

# %% [markdown]
# ## Parameters

# %% tags=["parameters"]
profile = "embedded"
device = "cpu"
dtype = "float32"  # of the forward pass, float32 | bfloat16 | float16
model = "SmolLM2-135M-Instruct"  # packaged, a Hugging Face id, a folder, or a GGUF file
layer = 21  # block whose residual stream is trained on, chosen on validation
base_saes = [
    "data/pretrained/SmolLM2-135M-Instruct-layer-21-base",
    "data/pretrained/SmolLM2-135M-Instruct-layer-21-base-1",
    "data/pretrained/SmolLM2-135M-Instruct-layer-21-base-2",
]  # folder | release:sae_id, of which the first is read; empty: that of notebook 04
insist = False  # true: an SAE whose record names another model or place is used all the same
n_bootstrap = 2000  # replicates over base prompts
show_k = 20  # of the figures that show one k
plant_shares = [0.05, 0.1, 0.25, 0.5, 1.0]  # of one class that gets an artefact, beside show_share
n_planted = 300  # training prompts of which some get an artefact, at most; 0: all
plant_seeds = [0, 1, 2, 3, 4]  # each draws 80 % of the prompts
show_share = 0.5  # share of the figures and tables that show one
seed = 0

# %% [markdown]
# ## Inputs
# Plain prompts as they came, and the same prompts with their formatting normalised. The SAE is one
# of pretraining text, so that nothing in it comes from this data set.

# %%
run = records.start("07_dataset_debugging", globals())
raw_path = records.output(run, "01_datasets", "raw_prompts")
prompts = datasets.load(raw_path)
bridge, identity = models.load_model(model, device, dtype), models.identity(model)
place = next(iter(base_saes), None)
if place is None:
    saes = pd.read_parquet(records.output(run, "04_chat_finetune", "saes"))
    place = saes.loc[saes["variant"] == "pretraining SAE", "folder"].iloc[0]
base = folders.load(place)
folders.check_fits(base, bridge.cfg.d_model, models.resid_post(layer), model, insist)

# %%
parent = run.folder / "activations"
raw_texts = prompts["text"].tolist()
clean_texts = prompts["text"].map(datasets.normalise).tolist()
raw, clean = readings.read_all(bridge, identity, [raw_texts, clean_texts], layer, parent)
formatted = np.array(raw_texts, dtype=object) != np.array(clean_texts, dtype=object)
print(f"{len(prompts):,} prompts, {len(raw.ids):,} tokens")
print(f"normalising changes {formatted.mean():.0%} of the prompts")
print(f"SAE with {base.cfg.d_sae:,} latents, layer {layer}")

# %% [markdown]
# What the SAE does on the prompts' tokens. **What to look for:** an FVU far below 1, and an L0 near
# the recorded one; else it reads another scale, layer or model than here.

# %%
own_tokens = torch.from_numpy(raw.activations)
Markdown(checks.measured(f"the SAE `{place}`", base, own_tokens, place))

# %% [markdown]
# ## Method
# Latents are pooled by maximum over a prompt's tokens and ranked on the training split by the
# **standardised mean difference**,
#
# $$d_j = \frac{|\mu_{1j} - \mu_{0j}|}{\sqrt{(\sigma_{1j}^2 + \sigma_{0j}^2)/2}} .$$
#
# Somebody who debugs a data set reads the top prompts of the first ten. In their place a rule,
# fixed before anything was measured: an item **exposes** an artefact if for more than half of its
# ten top training prompts the artefact is there, the token of the largest value lies in the
# characters that the artefact changed, and the value is larger than in the same prompt without it.
# What the rule compares with are the ten residual-stream coordinates of largest difference (either
# sign), the hundred highest-scoring prompts of a dense probe in tens (Kantamneni et al. 2025 read
# such prompts), and the ten TF-IDF terms (cased words, marks and pairs) of largest coefficient.

# %% [markdown]
# ## The ten latents that differ most between the classes
# AUROC of each latent alone. **What to look for:** latents that work in distribution and not out of
# distribution; their cards below show what they fire on. **What would refute C13:** ten latents of
# which none fires on formatting.

# %%
weights = metrics.split_weights(prompts, n_bootstrap, seed)
top = debugging.top_latents(readings.latent_peaks(base, raw).value, prompts, weights)
train = np.flatnonzero(prompts["split"] == "train")
on_formatting = debugging.Dataset(train, prompts["label"].to_numpy()[train], formatted[train])
before = debugging.paired(clean, raw, base)
exposed = {
    method: debugging.exposing(before, method, on_formatting) for method in debugging.METHODS
}
n_exposed = pd.Series({method: sum(exposes) for method, exposes in exposed.items()})
n_exposed.to_frame("of ten items, expose formatting")

# %%
latents = top.drop_duplicates("latent")
latents = latents.assign(formatting=exposed["SAE latents"][: len(latents)])
encoded = examples.encode(base, readings.sequences(raw, bridge, train))
rng = np.random.default_rng(seed)
explained = debugging.explain(NgramJudge(), encoded, latents["latent"], rng)
debugging.overview(top, latents, explained)

# %%
page = debugging.cards(encoded, top, latents, explained, cards.neuronpedia_id(base))
title = f"Latents that differ between the classes, profile {profile}, layer {layer}"
write_text(run.figures / "debugging.html", cards.page(page, title))
print(f"all ten: figures/{profile}/debugging.html")
display(HTML(cards.fragment(page[:4])))

# %%
points = debugging.marked(top, latents)
chance = pd.DataFrame({"split": list(datasets.SPLITS), "value": 0.5, "low": 0.5, "high": 0.5})
caption = f"Profile {profile}, layer {layer}, plain prompts before normalisation; 95 % bootstrap "
caption += "over base prompts. Latents by standardised difference, largest first."
figure = figures.points(
    points, "latent", "split", reference=chance, reference_label="chance", xlim=(0.0, 1.02)
)
figures.save(figure, run.figures, "07_top_latents", caption)

# %% [markdown]
# ## Planted artefacts
# Into the normalised training prompts, each artefact is planted in a share of class 1; in the
# placebo in the same share of both classes, where it tells nothing and whatever is "exposed" is a
# false alarm. A method's **recall net of placebo** is the share of the artefacts that one of its
# first ten items exposes when planted, minus that in the placebo. What we planted are a few of many
# artefacts that there could be: intervals are over artefacts, and over draws of the prompts.

# %%
plain = prompts.assign(text=clean_texts).iloc[train].drop_duplicates("text")
if n_planted:
    plain = plain.sample(min(n_planted, len(plain)), random_state=seed)
labels = plain["label"].to_numpy()
plant_shares = sorted({show_share, *plant_shares})
forms = [artefacts.plant(name, plain["text"].tolist(), seed) for name in artefacts.ARTEFACTS]
# They lie in one list, which is read at once: without and with the first artefact, and so on.
forms = [form for without_and_with in forms for form in without_and_with]
of_forms = readings.read_all(bridge, identity, forms, layer, parent)
parts = []
for name, *forms_read in zip(artefacts.ARTEFACTS, of_forms[::2], of_forms[1::2], strict=True):
    pair = debugging.paired(*forms_read, base)
    ranks = planted.benchmark(pair, labels, plant_shares, plant_seeds)
    parts.append(ranks.assign(artefact=name))
ranks = pd.concat(parts, ignore_index=True)

# %% [markdown]
# **What to look for:** SAE latents above zero, and above the other methods; the share at which each
# method begins to see anything. **What would refute C13:** SAE latents that expose no more than in
# the placebo, or than what costs nothing to look at (terms, coordinates).

# %%
recall_draws = planted.recall_draws(ranks, seed)
net_draws = planted.net(recall_draws)
recall, recall_net = (
    planted.over_artefacts(draws, ranks) for draws in (recall_draws, net_draws)
)
caption = f"Profile {profile}, layer {layer}; {len(artefacts.ARTEFACTS)} artefacts. Each of "
caption += f"{len(plant_seeds)} draws takes 80 % of {len(plain):,} training prompts; one artefact "
caption += "is planted in a share of class 1 of these."
is_of_one = recall_net["share"] != planted.ALL
by_share = recall_net[is_of_one].astype({"share": float}).assign(line="net of placebo")
x_label = "share of a class with the artefact (fraction)"
y_label = f"recall at {debugging.TOP} net of placebo (fraction)"
figure = figures.curves(by_share, "share", "method", "line", x_label, y_label, logx=True)
about = f"{caption} Placebo: it is planted in that share of both classes. The first ten items of "
about += "each method. Bands: 95 % bootstrap over artefacts and draws; of no width where all of "
about += "these agree, which does not say that others would."
figures.save(figure, run.figures, "07_planted", about)

# %% [markdown]
# Over all shares, and against the SAE latents' rivals.

# %%
over_shares = net_draws.where(share=planted.ALL)
ahead = pd.concat([
    planted.over_artefacts(over_shares.against("method", rival), ranks).assign(against=rival)
    for rival in debugging.METHODS
])
ahead = ahead[ahead["method"] == "SAE latents"].reset_index(drop=True)
net_of_all = recall_net[recall_net["share"] == planted.ALL].set_index("method")
ahead_texts = tables.texts(ahead.set_index("against"), 2)
ahead_in_words = {
    row.against: tables.directed(row, "ahead by", "behind by", 2) for row in ahead.itertuples()
}
pd.DataFrame({"net of placebo": tables.texts(net_of_all, 2), "SAE latents ahead": ahead_texts})

# %%
each = planted.of_artefacts(ranks)
at_share = each[(each["share"] == show_share) & (each["control"] == "planted")]
x_label = f"exposed within {debugging.TOP} (fraction of draws)"
figure = figures.points(at_share, "artefact", "method", xlabel=x_label, xlim=(-0.05, 1.05))
about = f"{caption} Here the share is {show_share:.0%}. Bars: 95 % t intervals over draws; no "
about += "bar: all draws agree, which share most of their prompts; other prompts may differ."
figures.save(figure, run.figures, "07_artefacts", about)

# %% [markdown]
# Rank of the first item that exposes the artefact, median over the draws in which one does; empty
# where none ever does.

# %%
planted.median_ranks(ranks, show_share)

# %% [markdown]
# ## What cleaning changes
# Dense and sparse probes trained on raw or on normalised prompts, tested on both forms. **What to
# look for:** a probe trained on raw prompts that falls where formatting is gone or another. **What
# would refute that cleaning helps:** no difference OOD.

# %%
weights = metrics.split_weights(prompts, max(n_bootstrap, families.REPLICATES), seed)
auroc_draws = debugging.cleaning(raw, clean, base, prompts, show_k, weights)
aurocs = auroc_draws.estimates()
gains = debugging.gains_by_cleaning(auroc_draws)

# %%
counts = prompts["split"].value_counts()
sizes = ", ".join(f"{n:,} {figures.SPLITS[split]}" for split, n in counts.items())
caption = f"Profile {profile}, layer {layer}, plain prompts; 95 % bootstrap over base prompts "
caption += f"(n = {sizes})."
shown = aurocs[aurocs["split"] != "train"].sort_values("split", ascending=False, kind="stable")
shown = shown.assign(
    panel=shown["split"].map(figures.SPLITS) + ", tested " + shown["tested"],
    trained="trained " + shown["trained"],
)
figure = figures.points(shown, "probe", "panel", "trained")
figures.save(figure, run.figures, "07_cleaning", caption)

# %% [markdown]
# AUROC gained by training on normalised prompts in place of raw ones; within a split, the probes
# and the forms they are tested on are a family (Holm's levels).

# %%
tables.in_columns(gains, ["probe", "tested"])

# %% [markdown]
# ## Takeaway

# %%
net_texts = tables.texts(net_of_all, 2)
lines = [
    f"- {method}: {net_texts[method]}"
    + (f", SAE latents {ahead_in_words[method]}" if method in ahead_in_words else "")
    for method in debugging.METHODS
]
never = ", ".join(planted.never_exposed(ranks, "SAE latents")) or "none"
n_failing = int(latents["fails_ood"].sum())
failing = f"{n_failing} of ten work in distribution and not out of it"
if not (prompts["split"] == "ood").any():
    failing = "without texts out of distribution it is not known which fail there"

# %%
Markdown(
    f"Before normalisation {n_exposed['SAE latents']} of the ten latents expose formatting, and "
    f"{failing}. Recall at {debugging.TOP} net of placebo, a mean over the shares "
    f"{plant_shares}:\n\n"
    + "\n".join(lines)
    + f"\n\nNever exposed by SAE latents at any share: {never}. Training on normalised prompts in "
    f"place of raw ones, OOD: {debugging.gains_in_words(gains)}.\n\n"
    f"*Caveats.* {len(artefacts.ARTEFACTS)} artefacts of our choice, in one data set; the rule "
    "stands for a reader and "
    "is stricter with methods that show whole prompts. A model that reads lower case only, as "
    "MiniLM does, has no unit that shows capital letters."
)

# %%
exposing = n_exposed.rename_axis("method").reset_index(name="value").astype({"value": float})
exposing = exposing.assign(metric="raw_exposed", n=debugging.TOP, unit="items")
headline = pd.concat([
    recall.assign(metric="recall_at_10", artefact="all", unit="fraction"),
    recall_net.assign(metric="recall_net", unit="fraction"),
    ahead.assign(metric="recall_net_difference", unit="fraction"),
    exposing,
    gains.assign(metric="auroc_gained_by_cleaning", unit="fraction"),
])

# %%
rest = [
    each.assign(metric="recall_at_10"),
    aurocs.assign(metric="auroc"),
    top.assign(metric="latent_auroc"),
    ranks.rename(columns={"rank": "value"}).assign(metric="rank"),
]
full = pd.concat([headline, *rest], ignore_index=True)
# A share is a number or "all", and a column of a parquet file has one type.
full["share"] = full["share"].map(str, na_action="ignore")
records.write(run, full, headline, inputs=[raw_path], outputs={}).name
