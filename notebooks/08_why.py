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
# # 08 · Why: controls, directions, latents in and out of distribution, scarcity, label noise
#
# Claims C2 and C3, looked at from behind.
#
# **What this is.** The paper asks whether it is surprising that sparse probes lose, and lists
# reasons: the concept is no simple function of few latents, the SAE has not learned the concepts
# cleanly, directions are missing from the dictionary, spurious directions are represented as well
# as true ones. This notebook sets the probes of notebook 05 beside bases that no training made,
# looks for the dense probe's direction in the dictionary, follows latents out of distribution, and
# takes training prompts or right labels away.

# %%
import json

import numpy as np
import pandas as pd
from IPython.display import Markdown, display

from lib.model import activations, models
from lib.probing import controls, on_saes, stress
from lib.probing import dense as dense_probes
from lib.probing.tasks import Task, load_scores
from lib.results import figures, probe_tables, records, tables
from lib.sae import folders, latents
from lib.stats import metrics
from lib.stats.draws import Draws
from lib.texts import datasets

# %% [markdown]
# ## Parameters

# %% tags=["parameters"]
profile = "embedded"
device = "cpu"
n_bootstrap = 2000  # replicates over base prompts
grid_bootstrap = 200  # replicates for the curves over k
control_draws = 10  # of each control basis of the pooled residual stream
dictionary_draws = 3  # of each control dictionary, through which every token is encoded
train_sizes = [60, 200, 600, 2000, 0]  # training prompts; 0: all; empty: not measured
noise_shares = [0.0, 0.1, 0.2, 0.4]  # of training labels flipped; empty: not measured
stress_draws = 5  # draws of training prompts, or of flipped labels
seed = 0

# %% [markdown]
# ## Inputs

# %%
run = records.start("08_why", globals())
prompts_path = records.output(run, "01_datasets", "prompts")
store = records.output(run, "02_activations", "pooled")
saes_path = records.output(run, "04_chat_finetune", "saes")
probes_path = records.output(run, "05_probing", "probes")
choices_path = records.output(run, "05_probing", "choices")
latents_path = records.output(run, "05_probing", "latents")
scores_path = records.output(run, "05_probing", "sae_scores")
choices = json.loads(choices_path.read_text())
layer, gap_split = choices["sae_layer"], choices["split"]
linear_pooling, forms = choices["linear_pooling"], choices["forms"]
ks, show_k, main = choices["ks"], choices["show_k"], choices["variants"]

# %%
prompts, probes = datasets.load(prompts_path), pd.read_parquet(probes_path)
task, texts = Task.of(prompts), prompts["text"].tolist()
here = activations.at_layer(activations.load_pooled(store), layer)
harvest = records.read(run, "02_activations")["parameters"]
bridge = models.load_model(harvest["model"], device, harvest["dtype"])
identity = models.identity(harvest["model"])
tokens = activations.prompt_tokens(
    bridge, identity, texts, layer, run.folder / "activations", harvest["pool_over"]
)
every_sae = pd.read_parquet(saes_path)
first_of_kind = every_sae[every_sae["variant"].isin(main)].drop_duplicates("variant")
dictionaries = {row.variant: folders.load(row.folder, device) for row in first_of_kind.itertuples()}
read = {*choices["k_poolings"], linear_pooling}
pooled = {name: latents.pool_latents(sae, tokens, read) for name, sae in dictionaries.items()}
dense_line = probes[probes["probe"] == "dense"]
print(f"{len(prompts):,} prompts, layer {layer}; {', '.join(dictionaries)}")

# %% [markdown]
# ## Controls at equal k
# The same probes, in their best form as well (pooling and selection chosen on validation), on bases
# that no SAE training made: principal components, coordinates and random unit directions of the
# pooled residual stream; an SAE of random weights, and one whose rows are random training tokens,
# both with thresholds that give the same L0; and the SAE's own latents with shuffled labels. Every
# random control is drawn several times. **What to look for:** whether the SAE is ahead of them.
# **What would refute that its training helps:** a basis of no meaning that does as well; then k
# sets the result, and not the dictionary.

# %%
first = dictionaries[main[0]]
read_by_sparse = {p: here[p] for p in choices["k_poolings"]}
basis_inputs = controls.Inputs(read_by_sparse, tokens, task, first, device)
probe_grid = on_saes.Grid(ks, choices["k_poolings"], [], tuple(choices["selections"]))
of_controls = controls.of_bases(basis_inputs, probe_grid, show_k, control_draws)
of_controls |= controls.of_dictionaries(
    basis_inputs, probe_grid, show_k, dictionary_draws, run.folder / "controls"
)
form = forms[main[0]]
sparse = stress.Contender(pooled[main[0]][form["pooling"]], show_k, selection=form["selection"])
of_controls |= controls.of_shuffled_labels(sparse, task, control_draws)

# %%
weights = metrics.split_weights(prompts, n_bootstrap, seed)
few = {split: replicates[:grid_bootstrap] for split, replicates in weights.items()}
every_score = load_scores(scores_path) | of_controls
beside = Draws.of(prompts, every_score, few).over_seeds(seed).estimates()
beside = beside[beside["variant"].isin(main[:2]) | (beside["probe"] == controls.CONTROL)]
about = f"Profile {profile}, layer {layer}, n = {len(prompts):,} prompts; 95 % over base prompts"
caption = (
    f"{about}, SAEs and draws ({control_draws} of a basis, {dictionary_draws} of a dictionary).\n"
    f"Form chosen on validation. Dotted: dense probe, {choices['dense_pooling']} pooling."
)
figure = figures.curves(
    beside, "k", "split", "variant", "k (columns)",
    reference=dense_line, reference_label="dense probe", logx=True,
)  # fmt: skip
figures.save(figure, run.figures, "08_controls", caption)

# %% [markdown]
# What the SAE is ahead of each control, on the same replicates (intervals at Holm's levels, as
# these comparisons are judged together).

# %%
at_show_k = {probe: of_all for probe, of_all in every_score.items() if probe.k == show_k}
drawn = Draws.of(prompts, at_show_k, {gap_split: weights[gap_split]})
ahead = probe_tables.ahead_of_controls(drawn, main[0], gap_split, seed)
tables.in_columns(ahead, "control")

# %% [markdown]
# ## (a) Is the dense probe's direction in the dictionary?
# The probe's weights $w$ (in model units), and the pattern $\Sigma w$ that they respond to (Haufe
# et al. 2014), are expressed by k decoder rows, chosen by orthogonal matching pursuit. **What to
# look for:** curves above those of an untrained SAE, and above those of as many random training
# tokens, which share the activations' covariance and no training. **What would refute that the SAE
# lacks the direction:** a curve far above both.

# %%
x, c = here[linear_pooling], choices["c"]
dense_probe = dense_probes.logistic(c[linear_pooling]).fit(x[task.train], task.y[task.train])
weight = dense_probe[-1].coef_[0] / dense_probe[0].scale_
directions = {"probe weights w": weight, "pattern Σw": np.cov(x[task.train].T) @ weight}
rows_of = dictionaries | {
    name: make(basis_inputs, seed) for name, make in controls.DICTIONARIES.items()
}
rows_of = {name: sae.W_dec.detach().float().cpu().numpy() for name, sae in rows_of.items()}
shares = controls.direction_shares(directions, rows_of, ks)

# %%
figure = figures.curves(
    shares, "k", "direction", "dictionary", "k (decoder rows)",
    ylabel="share of squared norm", logx=True,
)  # fmt: skip
caption = f"Profile {profile}, layer {layer}, dense probe with {linear_pooling} pooling;"
figures.save(figure, run.figures, "08_directions", f"{caption} one SAE of each kind, no intervals.")

# %% [markdown]
# The same fixed weights applied to the two parts of the activation, $w\cdot x = w\cdot\hat x +
# w\cdot(x-\hat x)$: how much of the logit's variance and of its AUROC is in the part that the SAE
# leaves out. (Nothing is refitted here.)

# %%
parts_table = pd.DataFrame([
    {"SAE": name, **row}
    for name, sae in dictionaries.items()
    for row in controls.logit_parts(
        weight, on_saes.views(on_saes.Encoded(sae, pooled[name][linear_pooling], x)), prompts
    )
])
by_part = parts_table.set_index(["SAE", "part"])
variance = by_part.loc[by_part["split"] == gap_split, "variance_share"]
by_part.pivot(columns="split", values="auroc").join(variance).round(3)

# %% [markdown]
# ## (b) Do latents that work in distribution work OOD?
# Every latent's own AUROC on validation and OOD prompts; below 0.5 it fires for harmless prompts.
# **What to look for:** chosen latents (marked) that are far from 0.5 in validation and near it, or
# on the other side, OOD: right for the wrong reason. **What would refute this reason:** marked
# latents along the diagonal.

# %%
areas = pd.read_parquet(latents_path)
figure = figures.latent_scatter(areas[areas["frequency"] > 0.01], "val", gap_split)
caption = (
    f"Profile {profile}, layer {layer}; latents that fire in more than 1 % of "
    f"prompts. Marked: chosen for k = {show_k} on the training split."
)
figures.save(figure, run.figures, "08_latents", caption)

# %% [markdown]
# ## (c) Few training prompts, (d) wrong labels
# Training prompts are taken by whole base prompts; the same draws for every probe. **What to look
# for:** a range in which the k-sparse probe is ahead. Kantamneni et al. (arXiv 2502.16681) found
# none on average. The comparison leans to the dense probe: its C was chosen on all, rightly
# labelled training prompts, while the k-sparse probe has no penalty and the same k throughout.
# **What would refute that sparse probes lose here too:** a k-sparse curve above the dense one.

# %%
strength = c[choices["dense_pooling"]]
contenders = {"dense": stress.Contender(here[choices["dense_pooling"]], c=strength)}
for name in main[:2]:
    form = forms[name]
    contenders[f"k = {show_k}, {name}"] = stress.Contender(
        pooled[name][form["pooling"]], k=show_k, selection=form["selection"]
    )
n_train = int(task.train.sum())
sizes = sorted({n if 0 < n < n_train else n_train for n in train_sizes})
fewer = {n: stress.fewer(n) for n in sizes}
mislabelled = {share: stress.mislabelled(share) for share in noise_shares}
scarcity = stress.sweep(prompts, contenders, fewer, stress_draws, seed)
noise = stress.sweep(prompts, contenders, mislabelled, stress_draws, seed)

# %%
caption = (
    f"Profile {profile}, layer {layer}; mean and 95 % t interval over {stress_draws} draws. "
    f"Dense: C = {strength:g}, chosen on all training prompts."
)
if len(scarcity):
    figure = figures.curves(scarcity, "setting", "split", "probe", "training prompts", logx=True)
    display(figures.save(figure, run.figures, "08_scarcity", caption))
else:
    display(Markdown("Not measured: `train_sizes` is empty."))

# %%
if len(noise):
    figure = figures.curves(noise, "setting", "split", "probe", "share of labels flipped")
    display(figures.save(figure, run.figures, "08_label_noise", caption))
else:
    display(Markdown("Not measured: `noise_shares` is empty."))

# %% [markdown]
# ## Takeaway

# %%
at_k = beside[(beside["k"] == show_k) & (beside["split"] == gap_split)]
tables.in_columns(at_k, "variant")

# %%
behind = ahead.loc[ahead["low"] <= 0, "control"].tolist()
least = min(sizes, default=0)
scarce = scarcity[(scarcity["split"] == gap_split) & (scarcity["setting"] == least)]
of_few = "; ".join(scarce["probe"] + " " + tables.texts(scarce)) or "not measured"
Markdown(
    f"At k = {show_k} and on the {gap_split} split, the controls that the {main[0]} is not shown "
    f"to be ahead of: {', '.join(behind) or 'none'}. With {least or 'few'} training prompts: "
    f"{of_few}."
)

# %%
counts = beside["split"].map(prompts["split"].value_counts())
table = pd.concat([
    beside.assign(metric="auroc", n=counts),
    ahead,
    shares.assign(metric="direction_share"),
    parts_table.assign(metric="logit_parts"),
    scarcity.assign(metric="auroc", change="training prompts"),
    noise.assign(metric="auroc", change="share of labels flipped"),
], ignore_index=True).assign(layer=layer, unit="fraction")  # fmt: skip
of_probes = table["k"].isin([1, show_k]) & (table["metric"] != "direction_share")
of_directions = (table["metric"] == "direction_share") & (table["k"] == show_k)
headline = table[of_probes | of_directions]
inputs = [prompts_path, store, saes_path, probes_path, choices_path, latents_path, scores_path]
records.write(run, table, headline, inputs=inputs, outputs={}).name
