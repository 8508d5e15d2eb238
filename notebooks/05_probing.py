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
# # 05 · Probing for harmful intent: dense probes, SAE probes and their controls
#
# Claims C1 to C8.
#
# **The claims** (the paper, section on probing; Gemma 2 9B IT, layer 20). A dense linear probe on the residual stream is
# nearly perfect, also out of distribution (C1). Single SAE latents (C2) and k-sparse probes (C3) are worse, most of all out
# of distribution; chat finetuning of the SAE closes about half of that gap (C4). A linear probe on the SAE's reconstruction
# loses to one on the residual stream (C5). How latents are chosen (C6), the pooling (C7) and the way to a chat SAE (C8)
# matter little.

# %%
import itertools

import joblib
import numpy as np
import pandas as pd
import torch
from IPython.display import Markdown, display
from lib.base import processes
from lib.base.files import write_table
from lib.model import activations, models
from lib.probing import dense as dense_probes
from lib.probing import ksparse, on_saes, stress
from lib.results import figures, records, tables
from lib.sae import folders, latents
from lib.stats import draws, metrics
from lib.texts import datasets

# %% [markdown]
# ## Parameters

# %% tags=["parameters"]
profile = "embedded"
c_grid = [1e-4, 1e-3, 1e-2, 1e-1, 1.0]  # inverse L2 strengths; chosen by cross-validation on the training split
attention_probe = True  # reads every token of the chosen layer
device = "cpu"
n_bootstrap = 1000  # replicates over base prompts
ks = [1, 2, 5, 10, 20, 50, 100]  # latents of a k-sparse probe
show_k = 20  # of the figures that show one k
k_poolings = ["max", "mean", "fixed"]  # of the latents over a prompt's tokens: max | mean | fixed
grid_bootstrap = 200  # replicates for the grid of SAE probes
train_sizes = [60, 200, 600, 2000, 0]  # training prompts; 0: all
noise_shares = [0.0, 0.1, 0.2, 0.4]  # of training labels flipped
stress_draws = 5  # draws of training prompts, or of flipped labels
seed = 0

# %% [markdown]
# ## Inputs

# %%
run = records.start("05_probing", globals())
prompts_path = records.output(run, "01_datasets", "prompts")
store = records.output(run, "02_activations", "pooled")
prompts, pooled = datasets.load(prompts_path), activations.load_pooled(store)
model, dtype = (records.read(run, "02_activations")["parameters"][name] for name in ("model", "dtype"))
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
found = processes.parallel(len(pooled))(joblib.delayed(dense_probes.fit_logistic)(x[train], y[train], ids[train], tuple(c_grid)) for x in pooled.values())
rows, scores, fits = [], {}, dict(zip(pooled, found, strict=True))
for (layer, pooling), probe in fits.items():
    scores[layer, pooling] = probe.decision_function(pooled[layer, pooling])
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
tfidf = dense_probes.fit_tfidf(texts[train].tolist(), y[train], ids[train])
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
scores["mean difference"] = x @ dense_probes.mean_difference(x[train], y[train])
if attention_probe:
    tokens = activations.prompt_tokens(models.load_model(model, device, dtype), models.identity(model), texts.tolist(), layer, run.folder / "activations")
    everyone = np.arange(len(prompts))
    head = dense_probes.fit_attention(tokens, everyone[train], y[train], ids[train], seed)
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
table[table["probe"] == "dense"].assign(auroc=[tables.text(r) for r in table[table["probe"] == "dense"].itertuples()])[
    ["split", "wrapper", "n", "auroc"]
].reset_index(drop=True)

# %% [markdown]
# ## SAE probes
# All SAEs of notebook 04 read the residual stream of one layer. Their latents are computed once for every token of every
# prompt and pooled per latent. A **k-sparse probe** chooses k latents on the training split, by the largest difference of class
# means or by the support of an L1 path whose size is nearest k, and refits a logistic regression on them without penalty; k = 1
# is the single latent of best training AUROC. **Linear probes** read the SAE's reconstruction $\hat x$, its error $x - \hat x$,
# and all latents; their C is chosen by cross-validation on the first SAE and kept for the others. The dense probe of the same
# layer is the line to beat. The pooling of either is the one of best validation AUROC (for latents: at one k, mean over SAEs).

# %%
made = records.read(run, "04_chat_finetune")["parameters"]
list_path = records.output(run, "04_chat_finetune", "saes")
saes = pd.read_parquet(list_path)
sae_layer = made["layer"]
tokens = activations.prompt_tokens(models.load_model(model, device, dtype), models.identity(model), texts.tolist(), sae_layer, run.folder / "activations")
given = on_saes.task(prompts)
here, line = activations.at_layer(pooled, sae_layer), validation[validation["layer"] == sae_layer]
dense_pooling = line.loc[line["value"].idxmax(), "pooling"]
linear_poolings = [dense_pooling if dense_pooling != "max" else "fixed"]  # decoding is linear: exact for mean and fixed
resid = {p: here[p] for p in linear_poolings}
print(f"{len(saes)} SAEs at layer {sae_layer}; {len(tokens.activations):,} tokens; dense probe there: {dense_pooling} pooling")

# %%
ks = sorted({1, show_k, *ks})
probed = on_saes.probe_saes(saes, tokens, resid, given, ks, k_poolings, c_grid, models.resid_post(sae_layer), model, device)
few = {split: draw[:grid_bootstrap] for split, draw in weights.items()}
drawn = draws.table(prompts, probed.scores, on_saes.LEVELS, few)
dense_keys = {("dense", None, "dense", p, "", 0): scores[sae_layer, p] for p in activations.POOLINGS}
dense_drawn = draws.table(prompts, dense_keys, on_saes.LEVELS, few)
sae_table = draws.estimates(draws.over_seeds(drawn, seed))
dense_table = draws.estimates(dense_drawn)
dense_line = dense_table[dense_table["pooling"] == dense_pooling]
sparse_table = sae_table[sae_table["probe"] == "k-sparse"]
by_mean = sparse_table[sparse_table["selection"] == ksparse.SELECTIONS[0]]
k_pooling = by_mean[(by_mean["split"] == "val") & (by_mean["k"] == show_k)].groupby("pooling")["value"].mean().idxmax()
at_pooling = by_mean[by_mean["pooling"] == k_pooling]
print(f"pooling of the latents, chosen on validation: {k_pooling}")

# %% [markdown]
# ## AUROC against k
# **What to look for:** SAE curves that reach the dense line in train and validation and stay below it OOD (C2, C3), and the
# finetuned SAE above the first one (C4). **What would refute C3:** a k-sparse curve at the dense line OOD.

# %%
n_seeds = saes["seed"].nunique()
over = f"95 % over base prompts{f' and {n_seeds} seeds' if n_seeds > 1 else ' only (one seed)'}, one pretraining SAE"
about = f"Profile {profile}, layer {sae_layer}, n = {len(prompts):,} prompts; {over}.\nLatents: {k_pooling} pooling, mean difference. Dotted: dense probe, {dense_pooling} pooling."
main = ["pretraining SAE", "finetuned from pretraining SAE", "from scratch"]
shown = at_pooling[at_pooling["variant"].isin(main)]
figure = figures.curves(shown, "k", "split", "variant", "k (latents)", reference=dense_line, reference_label="dense probe", logx=True)
figures.save(figure, run.figures, "05_k_sparse", about)

# %% [markdown]
# ## Selection and pooling
# **What to look for:** the curves of one SAE close together (C6: the two selections, C7: the poolings). The table below has the
# paired differences, which decide; curves of different poolings may overlap and still differ on the same prompts.

# %%
ways = sparse_table[sparse_table["variant"] == main[1]].assign(way=lambda t: t["pooling"] + ", " + t["selection"])
figure = figures.curves(ways, "k", "split", "way", "k (latents)", reference=dense_line, reference_label="dense probe", logx=True)
figures.save(figure, run.figures, "05_selection", f"{about.splitlines()[0]} SAE: {main[1]}. Dotted: dense probe.")

# %% [markdown]
# ## The ways to a chat SAE
# **What to look for:** no order among the chat SAEs (C8); paired differences to the finetuned SAE that hold zero.

# %%
gap_split = "ood" if "ood" in set(dense_table["split"]) else "val"
variants = at_pooling[at_pooling["k"] == show_k]
figure = figures.points(variants, "variant", "split", reference=dense_line)
figures.save(figure, run.figures, "05_variants", f"{about} k = {show_k}.")

# %%
single = drawn.xs(("k-sparse", show_k, gap_split), level=["probe", "k", "split"])
apart = {("variant", main[1]): draws.paired(draws.over_seeds(single, seed), "variant", main[1])}
for level, other_way in (("selection", ksparse.SELECTIONS[0]), ("pooling", k_pooling)):  # within one SAE: paired by seed
    apart[level, other_way] = draws.over_seeds(draws.paired(single, level, other_way), seed, (-1.0, 1.0))
compared = {key: draws.estimates(part).assign(level=key[0], against=key[1]) for key, part in apart.items()}
differences = pd.concat(compared.values(), ignore_index=True)
chosen_way = (differences["pooling"] == k_pooling) & (differences["selection"] == ksparse.SELECTIONS[0])
told = differences[chosen_way | ((differences["variant"] == main[1]) & (differences["level"] != "variant"))]
told.assign(difference=[tables.text(row) for row in told.itertuples()])[["variant", "pooling", "selection", "against", "difference"]].reset_index(drop=True)

# %% [markdown]
# What the single latent (C2) and the k-sparse probe (C3) lose to the dense probe, and max pooling against the fixed position for the
# dense probe itself (C7), all on the same replicates.

# %%
of_k = drawn.xs(("k-sparse", k_pooling, ksparse.SELECTIONS[0]), level=["probe", "pooling", "selection"])
of_k = draws.over_seeds(of_k[of_k.index.get_level_values("k").isin([1, show_k])], seed)
line_draws = dense_drawn.xs(dense_pooling, level="pooling").droplevel(["variant", "seed", "probe", "selection", "k"])
behind = draws.estimates(line_draws.reindex(of_k.index.get_level_values("split")).to_numpy() - of_k).assign(metric="auroc_behind_dense", pooling=k_pooling)
dense_ways = draws.estimates(draws.paired(dense_drawn, "pooling", "fixed")).assign(metric="auroc_difference", against="fixed", level="pooling")
behind[behind["variant"].isin(main)].assign(behind=[tables.text(r) for r in behind[behind["variant"].isin(main)].itertuples()]).pivot(
    index=["variant", "k"], columns="split", values="behind").reindex(columns=list(few))

# %% [markdown]
# ## SAE probes by jailbreak and transformation, and at 1 % false positives
# As above for the dense probe. **What to look for:** whether the SAE probes lose on the same wrappers as the dense one.

# %%
beside_dense = {"dense": scores[sae_layer, dense_pooling]} | {
    f"k = {show_k}, {name}": probed.scores[on_saes.first_key(probed.chosen, name, k_pooling, ksparse.SELECTIONS[0], show_k)]
    for name in main[:2]
}
by_wrapper = pd.DataFrame([row for name, score in beside_dense.items() for row in metrics.by_transform(prompts, kinds, score, weights, probe=name)])
by_wrapper["wrapper"] = by_wrapper["kind"].str.cat(by_wrapper["transform"], ": ").replace("plain: plain", "plain")
figure = figures.points(by_wrapper[by_wrapper["split"] == gap_split].sort_values("kind", ascending=False, kind="stable"), "wrapper", "split", hue="probe")
display(figures.save(figure, run.figures, "05_transforms_sae", f"Profile {profile}, layer {sae_layer}; 95 % bootstrap over base prompts, one SAE of each kind. Latents: {k_pooling} pooling."))
at_one_percent = pd.DataFrame([row for name, score in beside_dense.items() for row in metrics.by_split(prompts, score, weights, probe=name)])
recall = at_one_percent[at_one_percent["metric"] == "recall_at_1pct_fpr"].assign(shown=lambda t: [tables.text(row) for row in t.itertuples()])
recall.pivot(index="probe", columns="split", values="shown").reindex(index=list(beside_dense), columns=list(few))

# %% [markdown]
# ## How much of the gap does finetuning close?
# $\text{share} = (\mathrm{AUROC}_\text{chat SAE} - \mathrm{AUROC}_\text{pretraining SAE}) / (\mathrm{AUROC}_\text{dense} - \mathrm{AUROC}_\text{pretraining SAE})$
# out of distribution; prompts are resampled together in all three. The paper's value is about one half (C4). It is null where
# the gap itself is not above zero in nearly all replicates. Where notebook 04 took the training prompts as chat text (the
# embedded profile), finetuning means on the task's own kind of text, which the paper's chat rollouts are not.

# %%
gaps = on_saes.gaps_closed(drawn, dense_drawn, main[0], dense_pooling, gap_split, seed)
gap_table = gaps[gaps["selection"] == ksparse.SELECTIONS[0]]
panels = gap_table[gap_table["variant"].isin(main)].assign(panel=lambda t: t["pooling"] + " pooling")
figure = figures.curves(panels, "k", "panel", "variant", "k (latents)", f"share of the {gap_split} gap closed", logx=True)
figures.save(figure, run.figures, "05_gap_closed", f"Profile {profile}, layer {sae_layer}; {over}. Gap to the dense probe; 1: closed, 0: as before.")

# %% [markdown]
# ## Linear probes on the reconstruction, the error and all latents
# AUROC of the dense probe minus that of the probe on the SAE, same pooling. **What to look for:** losses above zero for the
# reconstruction, largest OOD (C5); an error that can be probed as well shows what the dictionary leaves out. SAEs are trained
# without special tokens: the printed FVU says how well they reconstruct what each pooling reads.

# %%
lost = on_saes.auroc_lost(drawn, dense_drawn, seed)
dictionaries = {row.variant: folders.load(row.folder) for row in saes[saes["variant"].isin(main)].drop_duplicates("variant").itertuples()}
for (name, one), p in itertools.product(dictionaries.items(), linear_poolings):
    print(f"{name}, {p} pooling: FVU {latents.pooled_fvu(one, probed.latents[name][p], resid[p]):.3f}")
part = lost[lost["variant"].isin(main) & (lost["pooling"] == linear_poolings[0])].assign(what=lambda t: t["probe"] + ", " + t["variant"])
figure = figures.points(part, "what", "split", xlabel="AUROC lost")
display(figures.save(figure, run.figures, "05_linear", f"Profile {profile}, layer {sae_layer}, {linear_poolings[0]} pooling; {over}. AUROC of the dense probe minus that on the SAE."))
lost.assign(lost=[tables.text(r, 4) for r in lost.itertuples()]).query("probe == 'reconstruction'").pivot(
    index=["variant", "pooling"], columns="split", values="lost").reindex(columns=list(few))

# %% [markdown]
# ## Controls at equal k
# The same selection and refit on bases that no SAE training made: principal components, coordinates of the residual stream,
# random unit directions, and an SAE of random weights whose thresholds give the same L0 on training prompts (one draw of each). **What to look for:** whether the SAE
# beats them; a basis of no meaning that does as well would say that k, not the dictionary, sets the result.

# %%
first = folders.load(saes["folder"].iloc[0])
untrained = on_saes.untrained(first, tokens, given, seed)
bases = {("untrained SAE", p): x for p, x in latents.pool_latents(untrained, tokens).items() if p in k_poolings}
for p in k_poolings:
    found = on_saes.controls(here[p], given, first.cfg.d_sae, seed)
    bases |= {(name, p): x for name, x in found.items()}
fitted = processes.parallel(len(bases))(joblib.delayed(on_saes.k_sparse)(x, given, ks, ksparse.SELECTIONS[0]) for x in bases.values())
control_scores = {
    (name, None, "control", p, ksparse.SELECTIONS[0], k): score
    for (name, p), found in zip(bases, fitted, strict=True) for k, _, score in found
}
control_table = draws.estimates(draws.table(prompts, control_scores, on_saes.LEVELS, few))

# %%
beside = pd.concat([shown[shown["variant"].isin(main[:2])], control_table[control_table["pooling"] == k_pooling]])
figure = figures.curves(beside, "k", "split", "variant", "k (columns)", reference=dense_line, reference_label="dense probe", logx=True)
figures.save(figure, run.figures, "05_controls", about)

# %% [markdown]
# ## Is it surprising? (a) Is the dense probe's direction in the dictionary?
# The probe's weights $w$ (in model units), and the pattern $\Sigma w$ that they respond to (Haufe et al. 2014), are expressed
# by k decoder rows, chosen by orthogonal matching pursuit. **What to look for:** curves above those of an untrained SAE, and above
# those of as many random training tokens, which share the activations' covariance and no training.

# %%
linear_pooling = linear_poolings[0]
dense_fit = fits[sae_layer, linear_pooling].best_estimator_
weight = dense_fit[-1].coef_[0] / dense_fit[0].scale_
x = here[linear_pooling][train]
directions = {"probe weights w": weight, "pattern Σw": np.cov(x.T) @ weight}
rows_of = {name: one.W_dec.detach().float().numpy() for name, one in dictionaries.items()} | {"untrained SAE": untrained.W_dec.detach().numpy()}
tokens_drawn = on_saes.training_sample(tokens, given, torch.Generator().manual_seed(seed), first.cfg.d_sae).numpy()
rows_of["random training tokens"] = tokens_drawn - tokens_drawn.mean(0)
omp = pd.DataFrame([
    {"direction": name, "dictionary": which, "k": k, "value": share, "low": np.nan, "high": np.nan}
    for name, w in directions.items() for which, dictionary in rows_of.items()
    for k, share in zip(ks, on_saes.directions_in_dictionary(w, dictionary, ks), strict=True)
])
figure = figures.curves(omp, "k", "direction", "dictionary", "k (decoder rows)", "share of squared norm", logx=True)
figures.save(figure, run.figures, "05_directions", f"Profile {profile}, layer {sae_layer}, dense probe with {linear_pooling} pooling; one SAE of each kind, no intervals.")

# %% [markdown]
# The same fixed weights applied to the two parts of the activation, $w\cdot x = w\cdot\hat x + w\cdot(x-\hat x)$: how much of
# the logit's variance and of its AUROC is in the part that the SAE leaves out. (Nothing is refitted here.)

# %%
split_rows = [
    {"SAE": name, **row} for name, one in dictionaries.items()
    for row in on_saes.logit_parts(weight, on_saes.views(one, probed.latents[name], resid[linear_pooling], linear_pooling), prompts)
]
parts_table = pd.DataFrame(split_rows)
parts_table.pivot(index=["SAE", "part"], columns="split", values="auroc").join(
    parts_table[parts_table["split"] == gap_split].set_index(["SAE", "part"])["variance_share"]).round(3)

# %% [markdown]
# ## (b) Do latents that work in distribution work OOD?
# Every latent's own AUROC on validation and OOD prompts; below 0.5 it fires for harmless prompts. **What to look for:** chosen
# latents (marked) that are far from 0.5 in validation and near it, or on the other side, OOD: right for the wrong reason.

# %%
areas = []
for name in main[:2]:
    x = probed.latents[name][k_pooling]
    columns = probed.chosen[on_saes.first_key(probed.chosen, name, k_pooling, ksparse.SELECTIONS[0], show_k)]
    per_split = {s: ksparse.column_aurocs(x[(prompts["split"] == s).to_numpy()], y[(prompts["split"] == s).to_numpy()]) for s in ("val", gap_split)}
    frequency = np.asarray((x > 0).mean(0)).ravel()
    areas.append(pd.DataFrame(per_split).assign(variant=name, latent=np.arange(x.shape[1]), chosen=np.isin(np.arange(x.shape[1]), columns), frequency=frequency))
areas = pd.concat(areas, ignore_index=True)
figure = figures.latent_scatter(areas[areas["frequency"] > 0.01], "val", gap_split)
figures.save(figure, run.figures, "05_latents", f"Profile {profile}, layer {sae_layer}, {k_pooling} pooling; latents that fire in more than 1 % of prompts. Marked: chosen for k = {show_k} on the training split.")

# %% [markdown]
# ## (c) Few training prompts, (d) wrong labels
# Training prompts are taken by whole base prompts; the same draws for every probe. **What to look for:** a range in which the
# k-sparse probe is ahead. Kantamneni et al. (arXiv 2502.16681) found none on average. The comparison leans to the dense probe: its
# C was chosen on all, rightly labelled training prompts, while the k-sparse probe has no penalty and the same k throughout.

# %%
strength = fits[sae_layer, dense_pooling].best_params_["logisticregression__C"]
contenders = {"dense": (here[dense_pooling], 0, strength)}
contenders |= {f"k = {show_k}, {name}": (probed.latents[name][k_pooling], show_k, 0.0) for name in main[:2]}
sizes = sorted({n if 0 < n < train.sum() else int(train.sum()) for n in train_sizes})
stressed = {
    "training prompts": stress.sweep(prompts, given, contenders, {n: stress.fewer(n) for n in sizes}, stress_draws, seed),
    "share of labels flipped": stress.sweep(prompts, given, contenders, {s: stress.mislabelled(s) for s in noise_shares}, stress_draws, seed),
}
for name, found in stressed.items():
    figure = figures.curves(found, "setting", "split", "probe", name, logx=name == "training prompts")
    caption = f"Profile {profile}, layer {sae_layer}; mean and 95 % t interval over {stress_draws} draws. Dense: C = {strength:g}, chosen on all training prompts."
    display(figures.save(figure, run.figures, f"05_{'scarcity' if name == 'training prompts' else 'label_noise'}", caption))

# %% [markdown]
# ## Takeaway

# %%
dense = {r.split: r for r in methods[(methods["probe"] == "dense") & (methods["metric"] == "auroc")].itertuples()}
words = {r.split: r for r in reference.itertuples()}
paper = records.claims()["C1"]["paper"]
lines = [
    f"| {figures.SPLITS[s]} | {tables.text(dense[s])} | {tables.text(words[s])} | {paper.get(s)} |"
    for s in datasets.SPLITS if s in dense
]
Markdown(
    f"Dense probe at layer {layer}, {pooling} pooling (chosen on validation), AUROC with 95 % interval:\n\n"
    "| split | dense | TF-IDF | the paper's dense probe |\n|---|---|---|---|\n" + "\n".join(lines)
    + "\n\n*Caveats.* The validation value is the best of several cells and so a little optimistic; the OOD value is not "
    "selected. The model, the prompts and the layer are not the paper's."
)

# %%
cell = at_pooling.set_index(["variant", "k", "split"])
closed = gap_table[(gap_table["pooling"] == k_pooling) & (gap_table["k"] == show_k)].set_index("variant")
recon = lost[(lost["probe"] == "reconstruction") & (lost["pooling"] == linear_poolings[0])].set_index(["variant", "split"])
claimed = {main[0]: records.claims()["C5"]["paper"]["pretraining SAE"], main[1]: records.claims()["C5"]["paper"]["finetuned"]}
lines = [
    f"| {name} | {s} | {tables.text(cell.loc[(name, 1, s)])} | {tables.text(cell.loc[(name, show_k, s)])} | "
    f"{tables.text(recon.loc[(name, s)], 4)} | {claimed.get(name, {}).get(s, '')} |"
    for name in main for s in few if (name, s) in recon.index
]
by_k = gap_table[(gap_table["pooling"] == k_pooling) & (gap_table["variant"] == main[1])]["value"]
shares = "; ".join(f"{name} {tables.text(closed.loc[name], 2)}" for name in main[1:])

# %%
Markdown(
    f"| SAE | split | k = 1 | k = {show_k} | AUROC lost by the reconstruction | the paper's |\n|---|---|---|---|---|---|\n" + "\n".join(lines)
    + f"\n\nShare of the {gap_split} gap to the dense probe closed at k = {show_k}: {shares} (the paper: about {records.claims()['C4']['paper']['share_of_gap']})."
    + f" It depends on k: over all k, {main[1]} closes from {by_k.min():.2f} to {by_k.max():.2f}."
    + f" Latents: {k_pooling} pooling, mean difference. Intervals: {over}."
)

# %%
found = {"auroc": [sae_table, control_table], "gap_closed": [gaps.assign(split=gap_split)], "auroc_lost": [lost],
         "auroc_difference": [differences.assign(split=gap_split, k=show_k)]}
sae_rows = pd.concat([part.assign(metric=name) for name, parts in found.items() for part in parts] + [behind, dense_ways], ignore_index=True)
sae_rows = sae_rows.assign(layer=sae_layer, n=sae_rows["split"].map(prompts["split"].value_counts()), unit="fraction")
stress_rows = pd.concat([table.assign(metric="auroc", change=name) for name, table in stressed.items()])
other = [by_wrapper, at_one_percent[at_one_percent["probe"] != "dense"], omp.assign(metric="direction_share"), parts_table.assign(metric="logit_parts"), stress_rows]
table = pd.concat([grid, lexical, methods[methods["probe"] != "TF-IDF"], transforms, sae_rows, *other], ignore_index=True)
linear = (sae_rows["k"] == 0) & sae_rows["pooling"].isin(linear_poolings)
at_k = sae_rows["k"].isin([1, show_k]) & (sae_rows["pooling"] == k_pooling) & sae_rows["selection"].isin([ksparse.SELECTIONS[0], np.nan])
within = sae_rows["level"].isin(["selection", "pooling"]) & (sae_rows["variant"] == main[1]) | (sae_rows["probe"] == "dense")
headline = pd.concat([methods.assign(layer=layer, pooling=pooling), sae_rows[linear | at_k | within]], ignore_index=True)
chosen = areas[areas["chosen"]].assign(folder=lambda t: t["variant"].map(saes.drop_duplicates("variant").set_index("variant")["folder"]))
chosen_path = write_table(run.results / "chosen_latents.parquet", chosen.drop(columns="chosen"))
records.write(run, table, headline, inputs=[prompts_path, store, list_path], outputs={"chosen_latents": chosen_path}).name
