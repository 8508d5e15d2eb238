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
# # 05 · Probing for harmful intent: dense probes and SAE probes
#
# Claims C1 to C8.
#
# **The claims** (the paper, section on probing; Gemma 2 9B IT, layer 20). A dense linear probe on
# the residual stream is nearly perfect, also out of distribution (C1). Single SAE latents (C2) and
# k-sparse probes (C3) are worse, most of all out of distribution; chat finetuning of the SAE closes
# about half of that gap (C4). A linear probe on the SAE's reconstruction loses to one on the
# residual stream (C5). How latents are chosen (C6), the pooling (C7) and the way to a chat SAE (C8)
# matter little.
#
# Controls, and reasons why sparse probes may lose, are in notebook 08.

# %%
import numpy as np
import pandas as pd
from IPython.display import Markdown

from lib.base.files import write_json, write_table
from lib.model import activations, models, poolings
from lib.probing import controls, ksparse, on_saes, rotation, stress
from lib.probing import dense as dense_probes
from lib.probing.tasks import Probe, Task, save_scores
from lib.results import figures, probe_tables, records, rotation_tables, tables, thresholds
from lib.sae import finetuning, folders, latents
from lib.stats import metrics
from lib.stats.draws import Draws
from lib.texts import datasets

# %% [markdown]
# ## Parameters

# %% tags=["parameters"]
profile = "embedded"
c_grid = [1e-4, 1e-3, 1e-2, 1e-1, 1.0]  # inverse L2 strengths, chosen in training folds
attention_probe = True  # reads every token of notebook 02's `layer`
device = "cpu"
n_bootstrap = 2000  # replicates over base prompts (and wrappers)
ks = [1, 2, 5, 10, 20, 50, 100]  # latents of a k-sparse probe, beside 1 and show_k
show_k = 20  # of the figures that show one k
k_poolings = ["max", "mean", "fixed"]  # of the latents over a prompt's tokens: max | mean | fixed
selections = ["standardised gap", "mean difference"]  # of the latents: these | L1 path
rotated_controls = [
    "principal components", "coordinates", "untrained SAE",
]  # beside SAEs where wrappers are held out; empty: none
rotated_draws = 10  # of each of them that is random
grid_bootstrap = 200  # replicates for the whole grid of SAE probes, of which few are shown
seed = 0

# %% [markdown]
# ## Inputs

# %%
run = records.start("05_probing", globals())
prompts_path = records.output(run, "01_datasets", "prompts")
store = records.output(run, "02_activations", "pooled")
grid_path = records.output(run, "02_activations", "dense")
scores_path = records.output(run, "02_activations", "dense_scores")
prompts, pooled = datasets.load(prompts_path), activations.load_pooled(store)
harvest = records.read(run, "02_activations")["parameters"]
model, dtype = harvest["model"], harvest["dtype"]
task, texts = Task.of(prompts), prompts["text"].tolist()
poolings.named(k_poolings)  # an unknown one ends the notebook here
kinds = datasets.kind(prompts)
weights = metrics.split_weights(prompts, n_bootstrap, seed)
shape = next(iter(pooled.values())).shape
print(f"{len(prompts):,} prompts; {len(pooled)} cells of layer × pooling, each {shape}")

# %% [markdown]
# ## Dense probes
# Notebook 02 has fitted them: logistic regression for every layer and pooling, $C$ chosen in
# training folds. **Layer and pooling are chosen on validation AUROC**; OOD is looked at afterwards.
# Intervals are 95 % percentile bootstraps over base prompts.

# %%
grid = pd.read_parquet(grid_path)
dense_scores = dense_probes.load_scores(scores_path)
areas = grid[grid["metric"] == "auroc"]
best_cell = probe_tables.best_cell(areas)
layer, pooling = int(best_cell["layer"]), best_cell["pooling"]
areas.pivot_table("value", ["pooling", "layer"], "split", sort=False)[list(weights)].round(3)

# %% [markdown]
# ## C1: dense probes, and other ways to read a layer
# At the layer and pooling of best validation AUROC. Beside the dense probe stand the
# mean-difference direction (no fitting beyond two means), one attention head over the tokens,
# $\sum_t \mathrm{softmax}_t(q \cdot z_t)\,(v \cdot z_t) + b$, whose weight decay and epochs are
# chosen on held-out *training* prompts (of the layer whose tokens notebook 02 keeps for the SAEs),
# and logistic regression on TF-IDF of words and word pairs, and on the surface form alone (closing
# marks, quotes, commas, length …), which need no model at all. **What would refute C1 here:**
# dense probes that are behind the paper's OOD by more than the margin of its rule (C1b), above all
# if they fall to the level of TF-IDF.

# %%
tokens = None
if attention_probe:
    of_layer = harvest["layer"]
    bridge, identity = models.load_model(model, device, dtype), models.identity(model)
    folder, over = run.folder / "activations", harvest["pool_over"]
    tokens = activations.prompt_tokens(bridge, identity, texts, of_layer, folder, over)
reading = dense_probes.Inputs(pooled[layer, pooling], texts, task, tokens, tuple(c_grid), seed)
scores = dense_probes.all_scores(reading, known={"dense": dense_scores[layer, pooling]})
methods = probe_tables.by_split(prompts, scores, weights)
methods_auroc = methods[methods["metric"] == "auroc"]

# %% [markdown]
# The same probes within quintiles of the base prompts' length: only pairs of about equal length
# count. **What to look for:** values at those of all pairs; where one is lower, length helped.

# %%
within_length = probe_tables.within_length(prompts, scores, weights)
methods = pd.concat([methods, within_length], ignore_index=True)
tables.in_columns(within_length, "probe")

# %%
setting = f"Profile {profile}, layer {layer}, pooling {pooling} (chosen on validation)"
caption = f"{setting}, 95 % bootstrap over base prompts. Dotted: dense probe."
dense_rows = methods_auroc[methods_auroc["probe"] == "dense"]
figure = figures.points(methods_auroc, "probe", "split", reference=dense_rows, xlabel="AUROC")
figures.save(figure, run.figures, "05_methods_auroc", caption)

# %%
paper = records.claims()["C1"]["paper"]
beside_paper = tables.in_columns(methods_auroc, "probe")
for split, auroc_of_paper in paper.items():
    beside_paper.loc["dense", f"the paper, {split}"] = f"{auroc_of_paper:g}"
beside_paper.fillna("")

# %% [markdown]
# The dense probe minus the words alone, on the same replicates:

# %%
by_method = Draws.of(prompts, {Probe(name): of_all for name, of_all in scores.items()}, weights)
ahead_of_words = probe_tables.ahead_of(by_method, "TF-IDF")
tables.in_columns(ahead_of_words, "probe")

# %% [markdown]
# The same probes at 1 % false positives, as a monitor would run them.

# %%
recall = methods[methods["metric"] == "recall_at_1pct_fpr"]
dense_rows = recall[recall["probe"] == "dense"]
label = "recall at 1 % false positives"
figure = figures.points(recall, "probe", "split", reference=dense_rows, xlabel=label)
figures.save(figure, run.figures, "05_methods_recall_at_1pct_fpr", caption)

# %% [markdown]
# ## C1 by jailbreak and transformation
# A jailbreak's harmful prompts against harmless ones *in the same wrapper*, and plain harmful
# prompts against harmful text in an innocuous wrapper. **What to look for:** whether one wrapper
# carries the OOD loss.

# %%
transforms = probe_tables.by_wrapper(prompts, kinds, scores, weights)
last_split = "ood" if (prompts["split"] == "ood").any() else "val"
shown = probe_tables.in_wrapper_order(transforms, last_split)
caption = f"Profile {profile}, layer {layer}, pooling {pooling}, 95 % bootstrap over base prompts."
figure = figures.points(shown, "wrapper", "split", hue="probe")
figures.save(figure, run.figures, "05_transforms", caption)

# %%
of_dense = transforms[transforms["probe"] == "dense"]
ordered = of_dense.sort_values("kind", ascending=False, kind="stable")
columns = ["split", "wrapper", "n", "auroc"]
ordered.assign(auroc=tables.texts(ordered))[columns].reset_index(drop=True)

# %% [markdown]
# ## C7: layer and pooling of the dense probe
# **What to look for:** curves above the dotted TF-IDF line, most of all OOD; max and fixed position
# close together. **What would refute C7 here:** an interval of their paired OOD difference beyond
# the margin of its rule.

# %%
caption = (
    f"Profile {profile}. Dense probe; bands: 95 % bootstrap over base prompts. "
    f"Layer and pooling chosen on validation: {layer}, {pooling}. Each panel has its own scale.\n"
    f"{poolings.MEANING}"
)
lexical = methods_auroc[methods_auroc["probe"] == "TF-IDF"]
figure = figures.curves(
    areas, "layer", "split", "pooling", "layer (after block)", reference=lexical, share_y=False
)
figures.save(figure, run.figures, "05_layers", caption)

# %% [markdown]
# ## SAE probes
# All SAEs of notebook 04 read the residual stream of one layer. Their latents are computed once for
# every token of every prompt and pooled per latent. A **k-sparse probe** takes the latent of best
# training AUROC, then those of largest standardised gap $|\mu_1-\mu_0|/\sigma$ or, as the paper,
# of largest raw gap $|\mu_1-\mu_0|$, so that the latents of a smaller k are among those of a larger
# one; a logistic regression without penalty is refitted on them. **Linear probes** read the SAE's
# reconstruction $\hat x$, its error $x - \hat x$, and all latents. Every probe gets its best honest
# form: selection and pooling (at one k) and C are chosen on validation, for each SAE. The dense
# probe of the same layer, its pooling chosen in the same way among the same poolings, is the line
# to beat.

# %%
saes_path = records.output(run, "04_chat_finetune", "saes")
saes = pd.read_parquet(saes_path)
sae_layer = records.read(run, "04_chat_finetune")["parameters"]["layer"]
bridge, identity = models.load_model(model, device, dtype), models.identity(model)
tokens = activations.prompt_tokens(
    bridge, identity, texts, sae_layer, run.folder / "activations", harvest["pool_over"]
)
here = activations.at_layer(pooled, sae_layer)
at_layer = areas[areas["layer"] == sae_layer]
dense_pooling = probe_tables.best_cell(at_layer[at_layer["pooling"].isin(k_poolings)])["pooling"]
linear_pooling = poolings.exact_or(dense_pooling)  # decoding pooled latents is exact under it
print(f"{len(saes)} SAEs at layer {sae_layer}; {len(tokens.activations):,} tokens")
print(f"pooling of the dense probe there: {dense_pooling}")

# %%
main = ["pretraining SAE", "finetuned from pretraining SAE", "from scratch"]
pretraining, finetuned = main[:2]
placebo = finetuning.PLACEBO
ks = sorted({1, show_k, *ks})
sae_inputs = on_saes.Inputs(
    tokens, {linear_pooling: here[linear_pooling]}, task,
    models.resid_post(sae_layer), model, device,
)  # fmt: skip
compared = [ksparse.MEAN_DIFFERENCE, ksparse.L1_PATH]  # of claim C6, at show_k
every_selection = tuple(dict.fromkeys([*selections, *compared]))
own_ks = {name: [show_k] for name in compared if name not in selections}
probe_grid = on_saes.Grid(
    ks, k_poolings, c_grid, every_selection, own_ks, linear_on=main, kept=(*main[:2], placebo)
)
probed = on_saes.probe_saes(saes, sae_inputs, probe_grid)

# %%
forms = on_saes.best_forms(probed.scores, task, show_k, selections)
best = on_saes.in_best_form(probed.scores, forms)
linear = {probe: of_all for probe, of_all in probed.scores.items() if probe.k is None}
dense_by_pooling = {
    Probe("dense", name, "dense"): dense_scores[sae_layer, name] for name in here
}
drawn = Draws.of(prompts, best | linear, weights)
dense_drawn = Draws.of(prompts, dense_by_pooling, weights)
dense_at_pooling = dense_drawn.where(pooling=dense_pooling)
dense_line = dense_at_pooling.estimates()
probe_tables.forms(forms)

# %%
few = {split: replicates[:grid_bootstrap] for split, replicates in weights.items()}
grid_table = probe_tables.over_seeds(Draws.of(prompts, probed.scores, few), seed).estimates()
sparse_grid = grid_table[grid_table["probe"] == on_saes.K_SPARSE]
best_table = probe_tables.over_seeds(drawn, seed).estimates()
best_sparse = best_table[best_table["probe"] == on_saes.K_SPARSE]

# %% [markdown]
# ## C2 and C3: AUROC against k
# **What to look for:** SAE curves that reach the dense line in train and validation and stay below
# it OOD. **What would refute C3:** a k-sparse curve at the dense line OOD, within the margin.

# %%
over = f"95 % over {probe_tables.units(saes, pretraining, main)}"
setting_of_saes = f"Profile {profile}, layer {sae_layer}, n = {len(prompts):,} prompts"
about = f"{setting_of_saes}; {over}."
latents_read = "Latents: pooling and selection chosen on validation for each SAE."
dotted = f"Dotted: dense probe, {dense_pooling} pooling."

# %%
shown = best_sparse[best_sparse["variant"].isin(main)]
line = {"reference": dense_line, "reference_label": "dense probe"}
figure = figures.curves(shown, "k", "split", "variant", "k (latents)", logx=True, **line)
figures.save(figure, run.figures, "05_k_sparse", f"{about}\n{latents_read} {dotted}")

# %% [markdown]
# What the single latent (C2) and the k-sparse probe (C3) lose to the dense probe, on the same
# replicates.

# %%
of_k = drawn.where(probe=on_saes.K_SPARSE, k=[1, show_k])
behind = probe_tables.behind_dense(of_k, dense_at_pooling, seed).assign(metric="auroc_behind_dense")
tables.in_columns(behind[behind["variant"].isin(main)], ["variant", "k"])

# %% [markdown]
# Validation hardly tells the poolings of a dense probe apart, and out of distribution they may
# differ. What the k-sparse probe loses to the dense probe of every pooling, as one family:

# %%
at_show_k = of_k.where(k=show_k, variant=pretraining)
in_pooling = probe_tables.behind_in_poolings(at_show_k, dense_drawn, k_poolings, seed)
tables.in_columns(in_pooling, "against", "split")

# %% [markdown]
# The same loss by jailbreak and transformation, one SAE of each kind. **What to look for:** whether
# the SAE probes lose on the same wrappers as the dense one.

# %%
first_forms = {variant: form for (variant, _), form in reversed(forms.items())}
first_probes = {name: probed.first(name, *first_forms[name], show_k) for name in main[:2]}
at_sae = f"dense, layer {sae_layer}"
beside_dense = {at_sae: dense_scores[sae_layer, dense_pooling]}
of_first = {f"k = {show_k}, {name}": probed.scores[first_probes[name]] for name in main[:2]}
beside_dense |= of_first
wrappers_of_saes = probe_tables.by_wrapper(prompts, kinds, beside_dense, weights)
gap_split = last_split if last_split in set(dense_line["split"]) else "val"
shown = probe_tables.in_wrapper_order(wrappers_of_saes, gap_split)
caption = (
    f"Profile {profile}, layer {sae_layer}; 95 % bootstrap over base prompts, one SAE of each kind."
    f" {latents_read}"
)
figure = figures.points(shown, "wrapper", "split", hue="probe")
figures.save(figure, run.figures, "05_transforms_sae", caption)

# %% [markdown]
# And at 1 % false positives.

# %%
at_one_percent = probe_tables.by_split(prompts, beside_dense, weights)
tables.in_columns(at_one_percent[at_one_percent["metric"] == "recall_at_1pct_fpr"], "probe")

# %% [markdown]
# And among prompts of like length, so that length cannot help.

# %%
saes_within_length = probe_tables.within_length(prompts, beside_dense, weights)
tables.in_columns(saes_within_length, "probe")

# %% [markdown]
# ## Out of distribution in three numbers, and every wrapper held out in turn
# The pooled AUROC mixes two things: telling harmful from harmless *within* a wrapper, and a
# threshold that holds *across* wrappers. Beside it stand the mean AUROC within wrapper, and recall
# and false-positive rate at the threshold that validation sets for 1 % false positives. There are
# few OOD wrappers, so every wrapper is also held out of training in turn: probes are fitted anew
# without it (form and C as above) and tested within it, on other base prompts. Intervals are over
# base prompts and wrappers, as wide as Student's for so few of them. **What to look for:** SAE
# probes behind the dense one in all three. **What would refute that they lose OOD:** a loss in the
# pooled number alone.

# %%
every_score = scores | beside_dense
by_name = {Probe(name): of_all for name, of_all in every_score.items()}
within_wrapper = probe_tables.within_wrappers(prompts, kinds, gap_split, by_name, weights, seed)
at_threshold = thresholds.table(prompts, every_score, weights)
pooled_rows = probe_tables.by_split(prompts, every_score, {gap_split: weights[gap_split]})
numbers = pd.concat([pooled_rows, within_wrapper, at_threshold], ignore_index=True)
numbers = numbers[(numbers["split"] == gap_split) & (numbers["metric"] != "recall_at_1pct_fpr")]
tables.in_columns(numbers, "probe", "metric")

# %%
c_of = at_layer.drop_duplicates("pooling").set_index("pooling")["c"].to_dict()
read = list(dict.fromkeys([dense_pooling, linear_pooling]))
contenders = {Probe("dense", pooling): stress.Contender(pooled[layer, pooling], c=best_cell["c"])}
contenders |= {Probe(at_sae, p): stress.Contender(here[p], c=c_of[p]) for p in read}
first_of_kind = saes[saes["variant"].isin(main)].drop_duplicates("variant")
folder_of = first_of_kind.set_index("variant")["folder"]
beside = contenders[Probe(at_sae, linear_pooling)]
contenders |= stress.on_saes(saes, probed, forms, show_k, beside, linear_pooling)
like = folders.load(folder_of[pretraining], device)
basis_inputs = controls.Inputs({p: here[p] for p in k_poolings}, tokens, task, like, device)
at_one_k = on_saes.Grid([show_k], k_poolings, [], tuple(selections))
contenders |= controls.contenders(
    basis_inputs, rotated_controls, at_one_k, show_k, rotated_draws
)

# %%
held_out = rotation.folds(prompts, kinds, seed)
names = probe_tables.Finetuning.of(saes, pretraining, finetuned, placebo)
jailbreaks = prompts.loc[kinds == "jailbreak", "transform"].unique().tolist()
rotation_rows = pd.DataFrame(columns=["metric", "probe", "value", "split"])
if held_out:
    rotated = rotation.rotate(prompts, held_out, contenders)
    wrappers = list(rotated.parts())
    of_kind = {rotation.SPLIT: wrappers}
    of_kind[rotation.JAILBREAK_SPLIT] = [name for name in wrappers if name in jailbreaks]
    parts = []
    for split, some in of_kind.items():
        if some:
            turns = rotated.draws(n_bootstrap, seed, some, split)
            dense_turns = turns.where(probe=at_sae)
            parts.append(
                rotation_tables.of_wrappers(turns, dense_turns, names, len(some), seed)
            )
    rotation_rows = pd.concat(parts, ignore_index=True)

# %%
if held_out:
    apart = rotation_tables.over_seeds_of_all(rotated.apart(n_bootstrap, seed), seed)
    of_wrappers = probe_tables.named(apart.estimates())
    of_wrappers = of_wrappers[of_wrappers["variant"].isna() | of_wrappers["variant"].isin(main)]
    shown = of_wrappers[of_wrappers["probe"].isin([at_sae, on_saes.K_SPARSE])]
    figure = figures.points(shown, "held_out", "split", hue="name", xlabel="AUROC within wrapper")
    caption = (
        f"Profile {profile}, layer {sae_layer}, k = {show_k}. Each wrapper was held out of "
        f"training; 95 % over {probe_tables.units(saes, pretraining, main[:2])}."
    )
    display(figures.save(figure, run.figures, "05_rotation", caption))
else:
    display(Markdown("Not applicable: no prompt stands in a wrapper."))

# %% [markdown]
# The mean over wrappers, and over jailbreaks alone: an innocuous wrapper's AUROC is of plain
# harmful prompts against harmful text in the wrapper, so that it also measures whether a probe
# takes the wrapper for harm, or for harmless. Beside it what SAE probes are behind the dense probe,
# what finetuning and its placebo gain, and what the SAE is ahead of controls (as one family).

# %%
if held_out:
    is_control = rotation_rows["metric"] == "auroc_ahead_of_control"
    of_probes = probe_tables.named(rotation_rows[~is_control])
    display(tables.in_columns(of_probes, ["split", "name"], "metric"))
    display(tables.in_columns(rotation_rows[is_control], "control", "split"))

# %% [markdown]
# The same with the sources of harmful requests in the place of wrappers: each is tested as it is,
# without wrappers, by a probe of the other side (training and validation, or out of distribution),
# which never saw a request of that source.

# %%
of_sources = rotation.source_folds(prompts, kinds)
source_rows = pd.DataFrame(columns=["metric", "probe", "value"])
if of_sources:
    rotated = rotation.rotate(prompts, of_sources, contenders, rotation.SOURCE_SPLIT)
    by_source = rotated.apart(n_bootstrap, seed)
    beside_sparse = by_source.where(probe=at_sae, pooling=dense_pooling)
    source_rows = rotation_tables.of_sources(by_source, beside_sparse, pretraining, seed)
    display(tables.in_columns(probe_tables.named(source_rows), ["name", "metric"], "held_out"))
else:
    display(Markdown("Not applicable: no source of harmful prompts stands on one side only."))

# %% [markdown]
# ## C4: what does finetuning on chat gain?
# $\Delta_\text{chat} = \mathrm{AUROC}_\text{finetuned on chat} - \mathrm{AUROC}_\text{base}$, each
# base SAE against what was made of it, on the same replicates; the **placebo**
# $\Delta_\text{text}$ is the same with as much pretraining text in the place of chat. A mean over k
# stands beside the curves, because a gain at one k may be a loss at the next. Base prompts and base
# SAEs are the units; the seed noise is that of the differences, pooled over what was finetuned from
# the same SAEs. Where notebook 04 took the training prompts as chat text (as of an encoder),
# finetuning means on the task's own kind of text, which the paper's chat rollouts are not.
# **What would refute C4:** $\Delta_\text{chat}$ not above zero, or not above
# $\Delta_\text{text}$, out of distribution.

# %%
sparse_drawn = drawn.where(probe=on_saes.K_SPARSE)
gained = probe_tables.gained(sparse_drawn, names, seed)
gains = probe_tables.curves_of_gains(gained, pretraining)
single = probe_tables.gained_by_seed(sparse_drawn, names)
figure = figures.curves(
    gains, "k", "split", "variant", "k (latents)", ylabel="AUROC gained", logx=True,
    reference=probe_tables.zero_lines(gains), reference_label="as before", single=single,
)  # fmt: skip
caption = f"{about}\nEach base SAE against what was made of it. {latents_read} "
figures.save(figure, run.figures, "05_finetuning", caption + "Small: single base SAEs.")

# %% [markdown]
# In numbers: chat against before, the placebo against before, and chat against the placebo.

# %%
shown = gained[gained["k"].isin([1, show_k, probe_tables.MEAN])]
tables.in_columns(shown, ["variant", "against", "k"])

# %% [markdown]
# The paper's number is a **share of the gap** to the dense probe, $\Delta_\text{chat} /
# (\mathrm{AUROC}_\text{dense} - \mathrm{AUROC}_\text{base})$, about one half. It says something
# only where there is a gap: it is null where the gap's own interval does not lie above zero.

# %%
gap_draws = sparse_drawn.where(split=gap_split)
dense_in_gap = dense_at_pooling.where(split=gap_split)
gaps = probe_tables.gaps_closed(gap_draws, dense_in_gap, pretraining, seed)
closed = gaps[gaps["variant"].isin(main)]
tables.in_columns(closed, "variant", "k", digits=2)

# %% [markdown]
# ## C5: linear probes on the reconstruction, the error and all latents
# AUROC of the dense probe minus that of the probe on the SAE, same pooling. **What to look for:**
# losses above zero for the reconstruction, largest OOD; an error that can be probed as well shows
# what the dictionary leaves out. SAEs are trained without special tokens: the printed FVU says how
# well they reconstruct what each pooling reads. **What would refute C5:** no loss OOD.

# %%
lost_drawn = probe_tables.auroc_lost(drawn.without(probe=on_saes.K_SPARSE), dense_drawn, seed)
lost = lost_drawn.estimates().assign(metric="auroc_lost")
lost_more = probe_tables.lost_more(lost_drawn, gap_split)
for name, folder in zip(first_of_kind["variant"], first_of_kind["folder"], strict=True):
    of_sae = probed.latents[name][linear_pooling]
    fvu = latents.pooled_fvu(folders.load(folder), of_sae, here[linear_pooling])
    print(f"{name}, {linear_pooling} pooling: FVU {fvu:.3f}")

# %%
part = lost[lost["variant"].isin(main) & (lost["pooling"] == linear_pooling)]
part = part.assign(what=part["probe"] + ", " + part["variant"])
figure = figures.points(part, "what", "split", xlabel="AUROC lost")
caption = f"{about}\nAUROC of the dense probe minus that on the SAE; {linear_pooling} pooling."
figures.save(figure, run.figures, "05_linear", caption)

# %%
reconstruction = lost[lost["probe"] == "reconstruction"]
tables.in_columns(reconstruction, ["variant", "pooling"], digits=4)

# %% [markdown]
# ## C6 and C7: selection and pooling of the latents
# **What to look for:** the curves of one SAE close together. The table has the paired differences
# of the L1 path to the paper's mean difference, in the SAE's own pooling; they decide C6. **What
# would refute C6:** a paired difference beyond the margin of its rule.

# %%
of_one = sparse_grid[sparse_grid["variant"] == finetuned]
ways = of_one[of_one["selection"].isin(selections)]
ways = ways.assign(way=ways["pooling"] + ", " + ways["selection"])
figure = figures.curves(ways, "k", "split", "way", "k (latents)", logx=True, **line)
caption = f"{about}\nSAE: {finetuned}. {dotted}\n{poolings.MEANING}"
figures.save(figure, run.figures, "05_selection", caption)

# %%
of_forms = on_saes.in_own_pooling(probed.scores, forms, main[:2], show_k)
selected = Draws.of(prompts, of_forms, {gap_split: weights[gap_split]})
selected = selected.where(selection=compared)
by_selection = probe_tables.selection_differences(selected, ksparse.MEAN_DIFFERENCE, seed)
tables.in_columns(by_selection, ["variant", "selection"])

# %% [markdown]
# For the dense probe itself, which C7 is about, every pooling minus the fixed position:

# %%
dense_ways = dense_drawn.against("pooling", "fixed").estimates()
dense_ways = dense_ways.assign(metric="auroc_difference", against="fixed", level="pooling")
tables.in_columns(dense_ways, "pooling")

# %% [markdown]
# ## C8: the ways to a chat SAE
# In the figure a way may be a mean over fewer base SAEs than another; its caption says how many. In
# the table, which decides, each way stands against the finetuned SAE of the *same* base SAEs. A way
# that was made of one base SAE takes the seed noise of the placebo's differences, which is too
# little for one that shares no start with the finetuned SAE (from scratch, or from the IT-formatted
# SAE). **What to look for:** no order among the chat SAEs; paired differences to the finetuned SAE
# that hold zero. **What would refute C8:** a way whose difference lies beyond the margin of its
# rule.

# %%
variants = best_sparse[best_sparse["k"] == show_k]
figure = figures.points(variants, "variant", "split", reference=dense_line)
over_ways = f"95 % over {probe_tables.units(saes, pretraining)}"
caption = f"{setting_of_saes}, k = {show_k}; {over_ways}.\n{latents_read} {dotted}"
figures.save(figure, run.figures, "05_variants", caption)

# %%
no_ways = {pretraining, finetuned, "IT-formatted SAE", placebo}
chat_ways = [name for name in saes["variant"].unique() if name not in no_ways]
of_ways = gap_draws.where(k=show_k)
between = probe_tables.way_differences(of_ways, finetuned, chat_ways, seed, lending=[placebo])
tables.in_columns(between, "variant")

# %% [markdown]
# ## Takeaway

# %%
tables.in_columns(methods_auroc[methods_auroc["probe"].isin(["dense", "TF-IDF"])], "probe")

# %%
Markdown(
    f"Above: probes at layer {layer}, {pooling} pooling (chosen on validation), AUROC with 95 % "
    "interval. *Caveats.* The validation value is the best of several cells and so a little "
    "optimistic; the OOD value is not selected. The model, the prompts and the layer are not the "
    "paper's."
)

# %%
cells = best_sparse[best_sparse["variant"].isin(main) & best_sparse["k"].isin([1, show_k])]
cells = cells.assign(k="k = " + cells["k"].astype(str))
takeaway = tables.in_columns(cells, ["variant", "split"], "k")
of_pooling = reconstruction[reconstruction["pooling"] == linear_pooling]
lost_texts = tables.texts(of_pooling.set_index(["variant", "split"]), 4)
claimed = records.claims()["C5"]["paper"]
claimed = {pretraining: claimed["pretraining SAE"], finetuned: claimed["finetuned"]}
takeaway["lost by the reconstruction"] = lost_texts.reindex(takeaway.index)
takeaway["the paper's"] = [claimed.get(name, {}).get(s, "") for name, s in takeaway.index]
takeaway

# %%
at_k = closed[(closed["k"] == show_k) & (closed["variant"] == finetuned)]
shares = "".join(tables.texts(at_k, 2))
whys = "; ".join(at_k["why"].dropna())
over_k = gained[(gained["k"] == probe_tables.MEAN) & (gained["split"] == gap_split)]
by_metric = tables.texts(over_k.set_index("metric"))
Markdown(
    f"Mean over k, {gap_split}: finetuning on chat gains "
    f"{by_metric['auroc_gained_by_finetuning']} AUROC, on pretraining text "
    f"{by_metric['auroc_gained_by_placebo']}, chat over the placebo "
    f"{by_metric['auroc_gained_over_placebo']}. Share of the gap to the dense probe closed at k = "
    f"{show_k}: {shares}{f' ({whys})' if whys else ''}; the paper: about "
    f"{records.claims()['C4']['paper']['share_of_gap']}. {latents_read} Intervals: {over}."
)

# %%
gap_rows = gaps.assign(metric="gap_closed", split=gap_split)
at_sae_layer = pd.concat([
    best_table.assign(metric="auroc"), gap_rows, lost, lost_more, behind, in_pooling,
    by_selection, between, dense_ways, gained,
], ignore_index=True)  # fmt: skip
at_both = pd.concat([rotation_rows, source_rows, ahead_of_words, within_wrapper])
at_best = at_both["probe"].isin(list(scores))  # probes of the layer that validation chose
at_both["layer"] = np.where(at_best, layer, sae_layer)
judged = pd.concat([at_sae_layer.assign(layer=sae_layer), at_both], ignore_index=True)
counts = judged["split"].map(prompts["split"].value_counts())
judged = judged.assign(n=counts, unit="fraction")
whole_grid = grid_table.assign(metric="auroc", layer=sae_layer, unit="fraction")
others = at_one_percent[at_one_percent["probe"] != at_sae]
parts = [grid, methods, transforms, at_threshold, judged, whole_grid, wrappers_of_saes, others]
parts.append(saes_within_length)
table = probe_tables.with_numeric_k(pd.concat(parts, ignore_index=True))

# %%
chosen_cell = methods.assign(layer=layer, pooling=pooling)
at_k = judged["k"].isna() | judged["k"].isin([1, show_k, probe_tables.MEAN])
headline = pd.concat([chosen_cell, at_threshold, judged[at_k]], ignore_index=True)

# %% [markdown]
# What notebooks 06 and 08 read: the chosen latents with their own AUROC, the probes' estimates, and
# what was chosen on validation.

# %%
chosen_by = list(first_probes.values())
every_latent = on_saes.chosen_latents(probed, prompts, ["val", gap_split], chosen_by)
chosen = every_latent[every_latent["chosen"]].assign(folder=lambda t: t["variant"].map(folder_of))
choices = {
    "sae_layer": sae_layer, "dense_pooling": dense_pooling, "linear_pooling": linear_pooling,
    "forms": {name: form._asdict() for name, form in first_forms.items()},
    "k_poolings": k_poolings, "selections": selections, "ks": ks, "show_k": show_k,
    "split": gap_split, "variants": main, "c": c_of,
}  # fmt: skip

# %%
outputs_of = {
    "chosen_latents": chosen.drop(columns="chosen"),
    "latents": every_latent,
    "probes": pd.concat([best_sparse, dense_line]),
}
outputs = {
    name: write_table(run.results / f"{name}.parquet", part) for name, part in outputs_of.items()
}
of_sparse = {probe: of_all for probe, of_all in best.items() if probe.k is not None}
outputs["sae_scores"] = save_scores(of_sparse, run.results / "sae_scores.parquet")
outputs["choices"] = run.results / "choices.json"
write_json(outputs["choices"], choices)
inputs = [prompts_path, store, grid_path, scores_path, saes_path]
records.write(run, table, headline, inputs=inputs, outputs=outputs).name
