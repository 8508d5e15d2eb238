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
# **The claim** (the paper, sections on data sets and on what SAEs are good for). Latents whose activation differs most between
# the classes showed spurious correlations of the data set: question marks and closing punctuation that one class had and the
# other had not. Removing them made the data set harder to cheat on. This notebook does the same on the prompts *before*
# normalisation, and then measures the method: known artefacts are planted, and four methods look for them.

# %%
import numpy as np
import pandas as pd
from IPython.display import HTML, Markdown, display
from lib.base.files import write_text
from lib.interp import cards, debugging, examples, judges, readings
from lib.model import models
from lib.results import figures, records, tables
from lib.sae import folders
from lib.stats import draws, metrics
from lib.texts import artefacts, datasets

# %% [markdown]
# ## Parameters

# %% tags=["parameters"]
profile = "embedded"
device = "cpu"
dtype = "float32"  # of the forward pass, float32 | bfloat16 | float16
model = "all-MiniLM-L6-v2"  # packaged MiniLM, a Hugging Face id, or a local folder
layer = 2  # block whose residual stream is trained on; notebook 05 chose it on validation
base_sae = "data/pretrained/all-MiniLM-L6-v2-layer-2-base"  # SAELens folder, folder with params.npz, or release:sae_id; empty to train one
n_bootstrap = 1000  # replicates over base prompts
show_k = 20  # of the figures that show one k
plant_shares = [0.05, 0.1, 0.25, 0.5, 1.0]  # of one class that gets an artefact
plant_seeds = [0, 1, 2, 3, 4, 5, 6, 7, 8, 9]  # each draws 80 % of the prompts and which of them get the artefact
show_share = 0.5  # share of the figures and tables that show one
seed = 0

# %% [markdown]
# ## Inputs
# Plain prompts as they came, and the same prompts with their formatting normalised. The SAE is one of pretraining text, so that
# nothing in it comes from this data set.

# %%
run = records.start("07_dataset_debugging", globals())
raw_path = records.output(run, "01_datasets", "raw_prompts")
prompts, parent = datasets.load(raw_path), run.folder / "activations"
if not base_sae:
    saes = pd.read_parquet(records.output(run, "04_chat_finetune", "saes"))
    base_sae = saes.loc[saes["variant"] == "pretraining SAE", "folder"].iloc[0]
base, bridge, identity = folders.load(base_sae), models.load_model(model, device, dtype), models.identity(model)
folders.check_fits(base, bridge.cfg.d_model, models.resid_post(layer), model)
texts = {"raw": prompts["text"].tolist(), "clean": prompts["text"].map(datasets.normalise).tolist()}
raw, clean = (readings.read(bridge, identity, texts[form], layer, parent) for form in ("raw", "clean"))
formatted = np.array([a != b for a, b in zip(texts["raw"], texts["clean"], strict=True)])
print(f"{len(prompts):,} prompts, {len(raw.ids):,} tokens; normalising changes {formatted.mean():.0%} of the prompts; SAE with {base.cfg.d_sae:,} latents, layer {layer}")

# %% [markdown]
# ## Method
# Latents are pooled by maximum over a prompt's tokens and ranked on the training split by the **standardised mean difference**,
#
# $$d_j = \frac{|\mu_{1j} - \mu_{0j}|}{\sqrt{(\sigma_{1j}^2 + \sigma_{0j}^2)/2}} .$$
#
# Somebody who debugs a data set reads the top prompts of the first ten. In their place a rule, fixed before anything was
# measured: an item **exposes** an artefact if for more than half of its ten top training prompts the artefact is there, the
# token of the largest value lies in the characters that the artefact changed, and the value is larger than in the same prompt
# without it. What the rule compares with are the ten residual-stream coordinates of largest difference (either sign), the
# hundred highest-scoring prompts of a dense probe in tens (Kantamneni et al. 2025 read such prompts), and the ten TF-IDF terms
# (cased words, marks and pairs) of largest coefficient.

# %% [markdown]
# ## The ten latents that differ most between the classes
# AUROC of each latent alone. **What to look for:** latents that work in distribution and not out of distribution; their cards
# below show what they fire on. **What would refute C13:** ten latents of which none fires on formatting.

# %%
weights = metrics.split_weights(prompts, n_bootstrap, seed)
value = readings.latent_peaks(base, raw).value
top = debugging.top_latents(value, prompts, weights)
train = np.flatnonzero(prompts["split"] == "train")
labels = prompts["label"].to_numpy()
on_formatting = debugging.Draw(train, labels[train], formatted[train])
before = debugging.pair(clean, raw, base)
exposed = {method: debugging.exposing(before, method, on_formatting) for method in debugging.METHODS}
latents = top.drop_duplicates("latent").assign(formatting=exposed["SAE latents"][: top["latent"].nunique()])
pd.Series({method: sum(found) for method, found in exposed.items()}, name="of ten items, expose formatting").to_frame()

# %%
judge, rng = judges.offline("ngram"), np.random.default_rng(seed)
readable = readings.sequences(raw, bridge, train)
matrix = examples.encode(base, readable)
drawn = {i: examples.draw(matrix, i, readable, judge.plan, rng) for i in latents["latent"]}
explained = {i: judge.explain(one.explaining).text if one else "too few prompts" for i, one in drawn.items()}
by_split = top.assign(auroc=[tables.text(row, 2) for row in top.itertuples()]).pivot(index="latent", columns="split", values="auroc")
shown = latents.set_index("latent")[["difference", "formatting", "fails_ood"]].join(by_split[[s for s in datasets.SPLITS if s in by_split]])
shown.assign(explanation=pd.Series(explained)).round({"difference": 2})

# %%
made = []
for one in latents.itertuples():
    facts = top[top["latent"] == one.latent].set_index("split")["value"].add_prefix("AUROC ").to_dict()
    why = "higher in class 1" if one.difference > 0 else "higher in class 0"
    why += (", formatting" if one.formatting else "") + (", fails OOD" if one.fails_ood else "")
    made.append(cards.card(matrix, one.latent, readable, "pretraining SAE", why, {"difference": one.difference} | facts, explained[one.latent]))
write_text(run.figures / "debugging.html", cards.page(made, f"Latents that differ between the classes, profile {profile}, layer {layer}"))
print(f"all ten: figures/{profile}/debugging.html")
display(HTML(cards.fragment(made[:4])))

# %%
marks = latents.set_index("latent").apply(lambda r: " (formatting)" if r["formatting"] else " (fails OOD)" if r["fails_ood"] else "", axis=1)
points = top.assign(latent=top["latent"].map(lambda i: f"latent {i}{marks[i]}"), order=top["split"].map(datasets.SPLITS.index)).sort_values("order", kind="stable")
chance = pd.DataFrame({"split": list(datasets.SPLITS), "value": 0.5, "low": 0.5, "high": 0.5})
caption = f"Profile {profile}, layer {layer}, plain prompts before normalisation; 95 % bootstrap over base prompts. Latents by standardised difference, largest first."
figure = figures.points(points, "latent", "split", reference=chance, reference_label="chance", xlim=(0.0, 1.02))
figures.save(figure, run.figures, "07_top_latents", caption)

# %% [markdown]
# ## Planted artefacts
# Into the normalised training prompts, each artefact is planted in a share of class 1; in the placebo in the same share of
# both classes, where it tells nothing and whatever is "exposed" is a false alarm.

# %%
plain = prompts.iloc[train].assign(text=np.array(texts["clean"])[train]).drop_duplicates("text")
parts = []
for name in artefacts.ARTEFACTS:
    forms = [readings.read(bridge, identity, form, layer, parent) for form in artefacts.plant(name, plain["text"].tolist(), seed)]
    ranks = debugging.benchmark(debugging.pair(*forms, base), plain["label"].to_numpy(), plant_shares, plant_seeds)
    parts.append(ranks.assign(artefact=name))
ranks = pd.concat(parts, ignore_index=True)
recall = debugging.recall(ranks, ["method", "control", "share"]).assign(artefact="all")
each = debugging.recall(ranks, ["method", "control", "share", "artefact"])

# %% [markdown]
# **What to look for:** the planted panel well above the placebo panel; the share at which SAE latents pass the other methods.
# **What would refute C13:** SAE latents that expose no more than in the placebo.

# %%
caption = f"Profile {profile}, layer {layer}; {len(artefacts.ARTEFACTS)} artefacts in {len(plain):,} prompts (n), {len(plant_seeds)} seeds; bands: 95 % t intervals over seeds."
panels = recall.assign(panel=recall["control"].map({"planted": "planted in one class", "placebo": "placebo: in both classes"}))
figure = figures.curves(panels, "share", "panel", "method", "share of a class with the artefact (fraction)", f"recall at {debugging.TOP} (fraction of artefacts)")
figures.save(figure, run.figures, "07_planted", caption + "\nThe first ten items of each method.")

# %%
at_share = each[(each["share"] == show_share) & (each["control"] == "planted")]
figure = figures.points(at_share, "artefact", "method", xlabel=f"exposed within {debugging.TOP} (fraction of seeds)", xlim=(-0.05, 1.05))
figures.save(figure, run.figures, "07_artefacts", f"{caption} Planted in {show_share:.0%} of class 1. No bar: all seeds agree.")

# %% [markdown]
# Rank of the first item that exposes the artefact, median over the seeds in which one does; empty where none ever does.

# %%
first = ranks[(ranks["share"] == show_share) & (ranks["control"] == "planted")]
first.pivot_table("rank", "artefact", "method", "median", sort=False).reindex(list(artefacts.ARTEFACTS)).reindex(columns=list(debugging.METHODS))

# %% [markdown]
# ## What cleaning changes
# Dense and sparse probes trained on raw or on normalised prompts, tested on both forms. **What to look for:** a probe trained on
# raw prompts that falls where formatting is gone or another. **What would refute that cleaning helps:** no difference OOD.

# %%
drawn_cells = debugging.cleaning(raw, clean, base, prompts, show_k, weights)
cells = draws.estimates(drawn_cells)
gains = draws.estimates(draws.paired(drawn_cells, "trained", "raw"))
panels = cells[cells["split"] != "train"].assign(panel=lambda t: t["split"].map(figures.SPLITS) + ", tested " + t["tested"])
panels = panels.assign(probe="trained " + panels["trained"], row=panels["probe"]).sort_values("split", ascending=False, kind="stable")
caption = f"Profile {profile}, layer {layer}, plain prompts; 95 % bootstrap over base prompts (n = {', '.join(f'{n:,} {split}' for split, n in prompts['split'].value_counts().items())})."
figures.save(figures.points(panels, "row", "panel", "probe"), run.figures, "07_cleaning", caption)

# %%
gains.assign(gain=[tables.text(row) for row in gains.itertuples()]).pivot(index=["probe", "tested"], columns="split", values="gain")

# %% [markdown]
# ## Takeaway

# %%
told = recall[recall["share"] == show_share].set_index(["control", "method"])
lines = [f"- {m}: {tables.text(told.loc[('planted', m)], 2)}, placebo {tables.text(told.loc[('placebo', m)], 2)}" for m in debugging.METHODS]
never = [name for name, part in ranks[(ranks["control"] == "planted") & (ranks["method"] == "SAE latents")].groupby("artefact", sort=False) if part["rank"].isna().all()]
gain = [f"{row.probe} {tables.text(row)}" for row in gains[(gains["split"] == "ood") & (gains["tested"] == "raw")].itertuples()]
Markdown(
    f"Before normalisation {sum(exposed['SAE latents'])} of the ten latents expose formatting, and {int(latents['fails_ood'].sum())} of ten work in distribution and "
    f"not out of it. Recall at {debugging.TOP} with an artefact in {show_share:.0%} of one class:\n\n" + "\n".join(lines)
    + f"\n\nNever exposed by SAE latents at any share: {', '.join(never) or 'none'}. AUROC gained by training on normalised prompts, on raw OOD prompts: {'; '.join(gain) or 'no OOD split'}."
    "\n\n*Caveats.* Artefacts of our choice, in one data set; the rule stands for a reader and is stricter with methods that show whole prompts. "
    "MiniLM reads lower case only, so no unit of it can show capital letters."
)

# %%
drop = [{"metric": "raw_exposed", "method": method, "value": float(sum(found)), "n": debugging.TOP, "unit": "items"} for method, found in exposed.items()]
told = pd.concat([recall.assign(metric="recall_at_10", unit="fraction"), pd.DataFrame(drop), gains.assign(metric="auroc_gained_by_cleaning", unit="fraction")])
rest = [each.assign(metric="recall_at_10"), cells.assign(metric="auroc"), top.assign(metric="latent_auroc"), ranks.rename(columns={"rank": "value"}).assign(metric="rank")]
records.write(run, pd.concat([told, *rest], ignore_index=True), told, inputs=[raw_path], outputs={}).name
