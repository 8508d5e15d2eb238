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
# # 05 · Probing for harmful intent: the dense probes
#
# Claim C1; the fixed position and max pooling of C7 for dense probes.
#
# **The claim.** A dense linear probe on the residual stream is nearly perfect, also out of distribution (the paper,
# section on probing; Gemma 2 9B IT, layer 20). It is the line that every SAE probe has to beat. This notebook fits it for
# every layer and pooling, beside a mean-difference direction, a one-head attention probe, and a baseline that sees words
# only (TF-IDF).

# %%
import numpy as np
import pandas as pd
from IPython.display import Markdown

from lib import activations, datasets, figures, metrics, models, probes, records

# %% [markdown]
# ## Parameters

# %% tags=["parameters"]
profile = "embedded"
c_grid = [1e-4, 1e-3, 1e-2, 1e-1, 1.0]  # inverse L2 strengths; chosen by cross-validation on the training split
attention_probe = True  # needs the activations of every token, a second harvest of one layer
device = "cpu"
n_bootstrap = 1000  # replicates over base prompts
seed = 0

# %% [markdown]
# ## Inputs

# %%
run = records.start("05_probing", globals())
prompts_path = records.output(run, "01_datasets", "prompts")
store = records.output(run, "02_activations", "pooled")
prompts, pooled = datasets.load(prompts_path), activations.load_pooled(store)
train = (prompts["split"] == "train").to_numpy()
y, ids = prompts["label"].to_numpy(), prompts["base_id"].to_numpy()
weights = metrics.split_weights(prompts, n_bootstrap, seed)
print(f"{len(prompts):,} prompts; {len(pooled)} cells of layer × pooling, each {next(iter(pooled.values())).shape}")

# %% [markdown]
# ## Method
# The dense probe is logistic regression with an L2 penalty on standardised activations $z$,
#
# $$\min_{w,b}\ \sum_i \log\!\big(1 + e^{-\tilde y_i (w \cdot z_i + b)}\big) + \tfrac{1}{2C}\lVert w\rVert^2 ,$$
#
# with $C$ by cross-validated AUROC in folds that keep the variants of a base prompt together. Scaling and $C$ see the
# training split only. **Layer and pooling are chosen on validation AUROC**; OOD is looked at afterwards. Intervals are
# 95 % percentile bootstraps that draw *base prompts* with replacement, since the variants of one prompt are not
# independent.

# %%
rows, scores = [], {}
for (layer, pooling), x in pooled.items():
    probe = probes.fit_logistic(x[train], y[train], ids[train], tuple(c_grid))
    scores[layer, pooling] = probe.decision_function(x)
    chosen_c = probe.best_params_["logisticregression__C"]
    rows += metrics.by_split(prompts, scores[layer, pooling], weights, layer=layer, pooling=pooling, c=chosen_c, probe="dense")
grid = pd.DataFrame(rows)
validation = grid[(grid["metric"] == "auroc") & (grid["split"] == "val")]
best = validation.loc[validation["value"].idxmax()]
layer, pooling = int(best["layer"]), best["pooling"]
grid[grid["metric"] == "auroc"].pivot_table("value", ["pooling", "layer"], "split", sort=False)[list(weights)].round(3)

# %% [markdown]
# ## The lexical baseline
# Logistic regression on TF-IDF of words and word pairs. What it reaches needs no model at all.

# %%
texts = prompts["text"].to_numpy()
tfidf = probes.fit_tfidf(texts[train].tolist(), y[train], ids[train])
scores["tfidf"] = tfidf.decision_function(texts.tolist())
lexical = pd.DataFrame(metrics.by_split(prompts, scores["tfidf"], weights, probe="TF-IDF"))

# %% [markdown]
# ## By layer and pooling
# **What to look for:** curves above the dotted TF-IDF line, most of all OOD; max and fixed position close together (C7).
# **What would refute C1 here:** dense probes that fall OOD to the level of TF-IDF.

# %%
caption = f"Profile {profile}. Dense probe; bands: 95 % bootstrap over base prompts. Layer and pooling chosen on validation: {layer}, {pooling}."
auroc = grid[grid["metric"] == "auroc"]
reference = lexical[lexical["metric"] == "auroc"]
figure = figures.curves(auroc, "layer", "split", "pooling", "layer (after block)", reference=reference, share_y=False)
figures.save(figure, run.figures, "05_layers", caption)

# %% [markdown]
# ## Other ways to read the same layer
# At the chosen layer: the mean-difference direction (no fitting beyond two means), and one attention head over the
# tokens, $\sum_t \mathrm{softmax}_t(q \cdot z_t)\,(v \cdot z_t) + b$, whose weight decay and epochs are chosen on held-out
# *training* prompts.

# %%
x = pooled[layer, pooling]
scores["mean difference"] = x @ probes.mean_difference(x[train], y[train])
if attention_probe:
    model = records.read(run, "02_activations")["parameters"]["model"]
    tokens = activations.prompt_tokens(models.load_model(model, device), models.identity(model), texts.tolist(), layer, run.folder / "activations")
    everyone = np.arange(len(prompts))
    head = probes.fit_attention(tokens, everyone[train], y[train], ids[train], seed)
    scores["attention"] = head.score(tokens, everyone)

# %%
names = {"dense": (layer, pooling), "mean difference": "mean difference", "attention": "attention", "TF-IDF": "tfidf"}
found = {name: scores[key] for name, key in names.items() if key in scores}
methods = pd.DataFrame([row for name, score in found.items() for row in metrics.by_split(prompts, score, weights, probe=name)])
caption = f"Profile {profile}, layer {layer}, pooling {pooling} (chosen on validation), 95 % bootstrap over base prompts. Dotted: dense probe."
for metric, label in (("auroc", "AUROC"), ("recall_at_1pct_fpr", "recall at 1 % false positives")):
    table = methods[methods["metric"] == metric]
    figure = figures.points(table, "probe", "split", reference=table[table["probe"] == "dense"], xlabel=label)
    display(figures.save(figure, run.figures, f"05_methods_{metric}", caption))

# %% [markdown]
# ## By jailbreak and transformation
# A jailbreak's harmful prompts against harmless ones *in the same wrapper*, and plain harmful prompts against harmful
# text in an innocuous wrapper. **What to look for:** whether one wrapper carries the OOD loss.

# %%
kinds = datasets.kind(prompts)
transforms = pd.DataFrame([
    row for name, score in found.items() for row in metrics.by_transform(prompts, kinds, score, weights, probe=name)
])
table = transforms.assign(wrapper=transforms["kind"].str.cat(transforms["transform"], ": ")).sort_values("kind", ascending=False, kind="stable")
table["wrapper"] = table["wrapper"].replace("plain: plain", "plain")
shown = table[(table["split"] == "ood") if (table["split"] == "ood").any() else (table["split"] == "val")]
caption = f"Profile {profile}, layer {layer}, pooling {pooling}, 95 % bootstrap over base prompts."
figure = figures.points(shown, "wrapper", "split", hue="probe")
figures.save(figure, run.figures, "05_transforms", caption)

# %%
table[table["probe"] == "dense"].assign(auroc=[records.text(r) for r in table[table["probe"] == "dense"].itertuples()])[
    ["split", "wrapper", "n", "auroc"]
].reset_index(drop=True)

# %% [markdown]
# ## Takeaway

# %%
dense = {r.split: r for r in methods[(methods["probe"] == "dense") & (methods["metric"] == "auroc")].itertuples()}
words = {r.split: r for r in reference.itertuples()}
paper = records.claims()["C1"]["paper"]
lines = [
    f"| {figures.SPLITS[s]} | {records.text(dense[s])} | {records.text(words[s])} | {paper.get(s)} |"
    for s in datasets.SPLITS if s in dense
]
Markdown(
    f"Dense probe at layer {layer}, {pooling} pooling (chosen on validation), AUROC with 95 % interval:\n\n"
    "| split | dense | TF-IDF | the paper's dense probe |\n|---|---|---|---|\n" + "\n".join(lines)
    + "\n\n*Caveats.* The validation value is the best of several cells and so a little optimistic; the OOD value is not "
    "selected. The model, the prompts and the layer are not the paper's."
)

# %%
table = pd.concat([grid, lexical, methods[methods["probe"] != "TF-IDF"], transforms], ignore_index=True)
headline = methods.assign(layer=layer, pooling=pooling)
records.write(run, table, headline, inputs=[prompts_path, store], outputs={}).name
