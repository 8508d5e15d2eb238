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
# # 08 · Why: controls, the loss in parts, silent latents, directions, scarcity, wrong labels
#
# Claim C14, and C2 and C3 looked at from behind.
#
# **What this is.** The paper asks whether it is surprising that sparse probes lose, and lists
# reasons: the concept is no simple function of few latents, the SAE has not learned the concepts
# cleanly, directions are missing from the dictionary, spurious directions are represented as well
# as true ones. This notebook sets the probes of notebook 05 beside bases that no training made,
# takes their loss out of distribution apart, follows latents into wrappers, looks for the dense
# probe's direction in the dictionary, and takes training prompts or right labels away.

# %%
import json

import numpy as np
import pandas as pd
import torch
from IPython.display import HTML, Markdown, display

from lib.base.files import ROOT
from lib.interp import cards
from lib.model import activations, models
from lib.probing import controls, loss_parts, on_saes, silence, stress
from lib.probing import dense as dense_probes
from lib.probing.tasks import Task, load_scores
from lib.results import figures, probe_tables, records, tables, why_figures
from lib.sae import comparison, folders, latents
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
positive_shares = [0.5, 0.1, 0.01]  # of training prompts that are positive; empty: not measured
stress_draws = 5  # draws of training prompts, or of flipped labels
seed = 0

# %% [markdown]
# ## Inputs

# %%
run = records.start("08_why", globals())
prompts_path = records.output(run, "01_datasets", "prompts")
store = records.output(run, "02_activations", "pooled")
architectures_path = records.output(run, "03_sae_training", "saes")
saes_path = records.output(run, "04_chat_finetune", "saes")
probes_path = records.output(run, "05_probing", "probes")
choices_path = records.output(run, "05_probing", "choices")
latents_path = records.output(run, "05_probing", "latents")
scores_path = records.output(run, "05_probing", "sae_scores")
choices = json.loads(choices_path.read_text())
layer, gap_split = choices["sae_layer"], choices["split"]
linear_pooling = choices["linear_pooling"]
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
first = folders.load(first_of_kind["folder"].iloc[0], device)
dense_line = probes[probes["probe"] == "dense"]
print(f"{len(prompts):,} prompts, layer {layer}; {', '.join(first_of_kind['variant'])}")

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
read_by_sparse = {p: here[p] for p in choices["k_poolings"]}
basis_inputs = controls.Inputs(read_by_sparse, tokens, task, first, device)
probe_grid = on_saes.Grid(ks, choices["k_poolings"], [], tuple(choices["selections"]))
of_controls = controls.of_bases(basis_inputs, probe_grid, show_k, control_draws)
of_controls |= controls.of_dictionaries(
    basis_inputs, probe_grid, show_k, dictionary_draws, run.folder / "controls"
)

# %% [markdown]
# The dictionaries that are looked into: the SAEs of notebook 04, those of notebook 03 (one of each
# architecture, of the L0 nearest to the pretraining SAE's on these prompts), and a draw of either
# control dictionary.

# %%
sample = controls.training_sample(tokens, task, torch.Generator().manual_seed(seed))
looked_into = [first_of_kind]
if records.read(run, "03_sae_training")["parameters"]["layer"] == layer:
    architectures = pd.read_parquet(architectures_path)
    records_of = [folders.training_record(ROOT / place) for place in architectures["folder"]]
    architectures["l0"] = [record["held_out"]["l0"] for record in records_of]
    near = comparison.nearest(architectures, folders.evaluate(first, sample)["l0"])
    looked_into.append(near.drop_duplicates("variant"))
looked_into.append(controls.first_draws(run.folder / "controls"))
looked_into = pd.concat(looked_into, ignore_index=True)[["variant", "seed", "folder"]]
dictionaries = {row.variant: folders.load(row.folder, device) for row in looked_into.itertuples()}
sae_inputs = on_saes.Inputs(tokens, {linear_pooling: here[linear_pooling]}, task, device=device)
at_show_k = probe_grid._replace(ks=[show_k], linear_on=[])
probed = on_saes.probe_saes(looked_into, sae_inputs, at_show_k)
forms = on_saes.best_forms(probed.scores, task, show_k, choices["selections"])
forms = {variant: form for (variant, _), form in forms.items()}
in_form = {name: probed.latents[name][form.pooling] for name, form in forms.items()}

# %%
sparse = {
    name: stress.Contender(in_form[name], k=show_k, selection=forms[name].selection)
    for name in main[:2]
}
of_controls |= controls.of_shuffled_labels(sparse[main[0]], task, control_draws)

# %%
weights = metrics.split_weights(prompts, n_bootstrap, seed)
few = {split: replicates[:grid_bootstrap] for split, replicates in weights.items()}
every_score = load_scores(scores_path) | of_controls
apart = {*probe_tables.APART, *(probe.variant for probe in of_controls)}  # vary as they do
beside = Draws.of(prompts, every_score, few).over_seeds(seed, apart=tuple(apart)).estimates()
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
of_show_k = {probe: of_all for probe, of_all in every_score.items() if probe.k == show_k}
drawn = Draws.of(prompts, of_show_k, {gap_split: weights[gap_split]})
ahead = probe_tables.ahead_of_controls(drawn, main[0], gap_split, seed)
tables.in_columns(ahead, "control")

# %% [markdown]
# ## The loss in parts
# What the k-sparse probe loses to the dense probe, taken apart by repairs with prompts of the split
# that is looked at: folds over base prompts, every wrapper in each, so that a repair is tested on
# other base prompts than it is made on.
#
# | part | repair |
# |---|---|
# | threshold | each jailbreak has its own threshold |
# | weights | the same latents, refitted |
# | latents | the k latents are chosen anew as well |
# | number | all latents in the place of k |
# | decoder | the reconstruction is read in the place of the latents |
# | error | what the dictionary leaves out is read too |
#
# After the last one the probe *is* the dense one, refitted in the same way. A part is what its
# repair gains, a mean over the orders in which they can be made (Shapley values under precedence,
# Faigle and Kern 1992), minus what the dense probe gains by it; so the parts sum to the loss. Below
# zero the repair does harm, or the dense probe needs it more. A latent that falls silent in one
# wrapper moves that wrapper's scores: some of this is seen as threshold. **What to look for:** the
# largest part of each dictionary. **What would refute that the paper's reasons hold here:** their
# parts (number, latents, error) not above zero.

# %%
dense_c = choices["c"][linear_pooling]
readable = {
    name: loss_parts.Readable(
        in_form[name], show_k, form.selection,
        latents.reconstruction(dictionaries[name], probed.latents[name][linear_pooling]),
        here[linear_pooling],
    )
    for name, form in forms.items()
}  # fmt: skip
part_rows = pd.DataFrame(columns=["variant", "part", "split", "value", "low", "high"])
impossible = loss_parts.impossible(prompts, gap_split)
if not impossible:
    part_rows = loss_parts.taken_apart(
        prompts, readable, stress.Contender(here[linear_pooling], c=dense_c),
        {gap_split: weights[gap_split]}, records.read(run, "05_probing")["parameters"]["c_grid"],
        seed,
    ).estimates()  # fmt: skip
    figure = why_figures.stacked(part_rows, loss_parts.LOSS, "AUROC lost to the dense probe")
    caption = (
        f"Profile {profile}, layer {layer}, k = {show_k}, split {gap_split}; one dictionary of "
        f"each kind. Dense: {linear_pooling} pooling. Dots: 95 % bootstrap over base prompts."
    )
    display(figures.save(figure, run.figures, "08_loss_parts", caption))
else:
    display(Markdown(f"Not applicable: {impossible}."))

# %%
if len(part_rows):
    display(tables.in_columns(part_rows, "variant", "part"))

# %% [markdown]
# ## Latents that fall silent
# Every harmful base prompt stands plain and in wrappers. Of the prompts whose plain form a latent
# fires on, in how many is it silent once they are wrapped? The paper saw many such **false
# negatives**. Looked at are all latents of the k-sparse probe, each on the prompts of the class
# that it speaks for in training. **What to look for:** high shares in jailbreaks, where the prompt
# is as harmful as before. (In an innocuous wrapper a latent may rightly be silent.) The second map
# is the reverse, on prompts of the other class: how often a wrapper *makes* a latent fire that is
# silent on the plain prompt, so that it speaks for the wrong class.

# %%
jailbreaks = prompts.loc[datasets.kind(prompts) == "jailbreak", "transform"].unique().tolist()
silent = {}
for name in main[:2]:
    chosen = probed.chosen[probed.first(name, *forms[name], show_k)]
    decoder = dictionaries[name].W_dec.detach().float().cpu().numpy()
    silent[name] = silence.of_probe(
        in_form[name], prompts, chosen, decoder, jailbreaks, replicates=n_bootstrap, seed=seed
    )
silent = {name: of_probe for name, of_probe in silent.items() if of_probe}
if not silent:
    display(Markdown("Not applicable: no chosen latent speaks for prompts that are also wrapped."))

# %%
n_pairs = {wrapper: len(of_one.base) for wrapper, of_one in silence.pairs(prompts).items()}
for name in list(silent)[:1]:
    about = (
        f"Profile {profile}, layer {layer}; latents of the {name} that the k = {show_k} probe "
        "reads: share of the prompts of"
    )
    counted = "harmful prompts: " + ", ".join(f"{wrapper} {n}" for wrapper, n in n_pairs.items())
    for file, of_latents, label, which in (
        ("08_silent", silent[name].table, "share silent", "their class whose plain form they fire"),
        ("08_begins", silent[name].begins, "share fires", "the other class that they do not fire"),
    ):
        names = [f"{latent}, {figures.LABELS[side]}" for side, latent in of_latents.index]
        shown = of_latents.set_axis(names)
        figure = why_figures.shares(shown, label, "latent, and what it speaks for")
        caption = f"{about} {which} on. Empty: there is none. N of {counted}."
        display(figures.save(figure, run.figures, file, caption))

# %% [markdown]
# Beside latents of equal frequency (twenty for each, that fire on about as many plain prompts): how
# much more often the latents that speak for harm are silent. The mean over jailbreaks is as wide as
# Student's for so few of them. **What would refute false negatives:** a mean that is not above
# zero.

# %%
silent_rows = silence.table(silent, jailbreaks, seed)
if silent:
    display(tables.in_columns(silent_rows, "wrapper", "variant"))

# %% [markdown]
# Does another latent take over? For each chosen latent the one that begins to fire in a jailbreak
# most often where the chosen one falls silent, beyond how often it does where that goes on
# (`excess`). Feature absorption (Chanin et al. 2024) would show as a like decoder row (`cosine`).
# Each latent is linked to its card.

# %%
for name in list(silent)[:1]:
    instead = silent[name].instead.round(2)
    page = f"../figures/{profile}/latents.html"
    link = '<a href="{}#{}">{}</a>'
    instead["latent"] = [
        link.format(page, cards.anchor(name, latent), latent) for latent in instead["latent"]
    ]
    display(HTML(instead.to_html(escape=False, index=False, na_rep="")))

# %% [markdown]
# ## (a) Is the dense probe's direction in the dictionary?
# The probe's weights $w$ (in model units), and the pattern $\Sigma w$ that they respond to (Haufe
# et al. 2014), are expressed by k decoder rows, chosen by orthogonal matching pursuit. **What to
# look for:** curves above those of an untrained SAE, and above those of as many random training
# tokens, which share the activations' covariance and no training. **What would refute that the SAE
# lacks the direction:** a curve far above both.

# %%
x = here[linear_pooling]
dense_probe = dense_probes.logistic(dense_c).fit(x[task.train], task.y[task.train])
weight = dense_probe[-1].coef_[0] / dense_probe[0].scale_
directions = {"probe weights w": weight, "pattern Σw": np.cov(x[task.train].T) @ weight}
of_equal_size = [*first_of_kind["variant"], *controls.DICTIONARIES]
rows_of = {
    name: dictionaries[name].W_dec.detach().float().cpu().numpy() for name in of_equal_size
}
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
    for name, of_one in readable.items()
    for row in controls.logit_parts(weight, of_one.views(), prompts)
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
# ## (c) Few training prompts, (d) wrong labels, (e) few positives
# Training prompts are taken by whole base prompts; the same draws for every probe. **What to look
# for:** a range in which the k-sparse probe is ahead. Kantamneni et al. (arXiv 2502.16681) found
# none on average. The comparison leans to the dense probe: its C was chosen on all, rightly
# labelled training prompts, while the k-sparse probe has no penalty and the same k throughout.
# **What would refute that sparse probes lose here too:** a k-sparse curve above the dense one.

# %%
strength = choices["c"][choices["dense_pooling"]]
contenders = {"dense": stress.Contender(here[choices["dense_pooling"]], c=strength)}
contenders |= {f"k = {show_k}, {name}": contender for name, contender in sparse.items()}
n_train = int(task.train.sum())
sizes = sorted({n if 0 < n < n_train else n_train for n in train_sizes})
changes = {
    "training prompts": {n: stress.fewer(n) for n in sizes},
    "share of labels flipped": {share: stress.mislabelled(share) for share in noise_shares},
    "share of positives": {share: stress.imbalanced(share) for share in positive_shares},
}
stressed = {
    what: stress.sweep(prompts, contenders, of_one, stress_draws, seed)
    for what, of_one in changes.items()
}

# %%
caption = (
    f"Profile {profile}, layer {layer}; mean and 95 % t interval over {stress_draws} draws. "
    f"Dense: C = {strength:g}, chosen on all training prompts."
)
names = {
    "training prompts": ("08_scarcity", "train_sizes", True),
    "share of labels flipped": ("08_label_noise", "noise_shares", False),
    "share of positives": ("08_imbalance", "positive_shares", True),
}
for what, (file, parameter, is_log) in names.items():
    if len(stressed[what]):
        figure = figures.curves(stressed[what], "setting", "split", "probe", what, logx=is_log)
        display(figures.save(figure, run.figures, file, caption))
    else:
        display(Markdown(f"Not measured: `{parameter}` is empty."))

# %% [markdown]
# ## Takeaway

# %%
at_k = beside[(beside["k"] == show_k) & (beside["split"] == gap_split)]
tables.in_columns(at_k, "variant")

# %%
behind = ahead.loc[ahead["low"] <= 0, "control"].tolist()
least = min(sizes, default=0)
scarcity = stressed["training prompts"]
scarce = scarcity[(scarcity["split"] == gap_split) & (scarcity["setting"] == least)]
of_few = "; ".join(scarce["probe"] + " " + tables.texts(scarce)) or "not measured"
loss = part_rows[part_rows["variant"] == main[0]].set_index("part")
in_words = ", ".join(f"{part} {text}" for part, text in tables.texts(loss).items())
over_jailbreaks = silent_rows[silent_rows["wrapper"] == silence.JAILBREAKS].set_index("variant")
Markdown(
    f"Loss of the {main[0]}'s probe to the dense one, {gap_split}, and its parts: "
    f"{in_words or 'not applicable'}. Silent in jailbreaks beyond latents of equal frequency: "
    f"{'; '.join(f'{name} {text}' for name, text in tables.texts(over_jailbreaks).items())}. "
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
    part_rows.assign(metric="loss_part", n=part_rows["split"].map(prompts["split"].value_counts())),
    silent_rows.assign(metric="silent_beyond_control"),
    *(of_one.assign(metric="auroc", change=what) for what, of_one in stressed.items()),
], ignore_index=True).assign(layer=layer, unit="fraction")  # fmt: skip
of_probes = table["k"].isin([1, show_k]) & (table["metric"] != "direction_share")
of_directions = (table["metric"] == "direction_share") & (table["k"] == show_k)
of_reasons = table["metric"].isin(["loss_part", "silent_beyond_control"])
headline = table[of_probes | of_directions | of_reasons]
inputs = [prompts_path, store, architectures_path, saes_path, probes_path, choices_path]
inputs += [latents_path, scores_path]
records.write(run, table, headline, inputs=inputs, outputs={}).name
