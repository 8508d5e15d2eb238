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
# # 08 · Why sparse probes lose, and what would help
#
# Claims C14 and C15, and C2 and C3 looked at from behind.
#
# **What this is.** The paper asks whether it is surprising that sparse probes lose, and lists
# reasons: the concept is no simple function of few latents, the SAE has not learned the concepts
# cleanly, directions are missing from the dictionary, spurious directions are represented as well
# as true ones. This notebook sets the probes of notebook 05 beside bases that no training made,
# takes their loss out of distribution apart, follows latents into wrappers, looks for the dense
# probe's direction in the dictionary, and takes training prompts or right labels away. Then it asks
# what would help: other probes, a cascade, cheaper dictionaries, more latents.

# %%
import json
from urllib.parse import quote

import numpy as np
import pandas as pd
import torch
from IPython.display import HTML, Markdown, display

from lib.base.files import ROOT
from lib.interp import cards
from lib.model import activations, models
from lib.probing import cascade, controls, costs, loss_parts, monitors, on_saes, silence, stress
from lib.probing import dense as dense_probes
from lib.probing.asked import asked_about, why_not_asked, yes_over_no
from lib.probing.directions import direction_shares, logit_parts
from lib.probing.tasks import Probe, Task, load_scores
from lib.probing.token_probes import Grid, Inputs, fit_seeds, steadiest, table_of_choices
from lib.results import figures, monitor_tables, probe_tables, records, tables, why_figures
from lib.results.cost_figures import gaps_against_cost
from lib.sae import comparison, folders, latents, widths
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
dictionary_draws = 10  # of each control dictionary, through which every token is encoded
train_sizes = [60, 200, 600, 2000, 0]  # training prompts; 0: all; empty: not measured
noise_shares = [0.0, 0.1, 0.2, 0.4]  # of training labels flipped; empty: not measured
positive_shares = [0.5, 0.1, 0.01]  # of training prompts that are positive; empty: not measured
stress_draws = 5  # draws of training prompts, or of flipped labels
aggregations = [
    "mean", "max", "last", "softmax", "attention", "MultiMax", "rolling mean, max", "EMA, max",
]  # of a token probe's scores; empty: none
token_seeds = 5  # of each token probe: its held-out prompts, batches and weights before training
n_asked = 80  # prompts of each class, each of another base prompt, that the model is asked about
passed_on = [0.0, 0.1, 0.2, 0.5, 1.0]  # shares of prompts that a cascade passes on to the model
seed = 0

# %% [markdown]
# ## Inputs

# %%
run = records.start("08_why", globals())
prompts_path = records.output(run, "01_datasets", "prompts")
store = records.output(run, "02_activations", "pooled")
architectures_path = records.output(run, "03_sae_training", "saes")
saes_path = records.output(run, "04_chat_finetune", "saes")
others_path = records.output(run, "04_chat_finetune", "others")
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
n_bases = int((every_sae["variant"] == main[0]).sum())
where = figures.SPLITS[gap_split]  # in captions
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
# architecture, of the L0 nearest to the pretraining SAE's on these prompts), and a draw of each
# control dictionary. Beside them the SAEs of fewer tokens or other widths are probed, and the other
# base SAEs, over which the parts of the loss are averaged.

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

# %%
others = pd.read_parquet(others_path)
bases = every_sae[every_sae["variant"] == main[0]].iloc[1:]
bases = bases.assign(variant=main[0] + ", base " + bases["seed"].astype(str))
dictionaries = {row.variant: folders.load(row.folder, device) for row in looked_into.itertuples()}
sae_inputs = on_saes.Inputs(tokens, {linear_pooling: here[linear_pooling]}, task, device=device)

# %%
at_show_k = probe_grid._replace(ks=[show_k], linear_on=[])
every_one = pd.concat([looked_into, others, bases])
probed = on_saes.probe_saes(every_one, sae_inputs, at_show_k)
forms = on_saes.best_forms(probed.scores, task, show_k, choices["selections"])
in_best = on_saes.in_best_form(probed.scores, forms)
forms = {variant: form for (variant, _), form in forms.items()}
in_form = {name: of_one[forms[name].pooling] for name, of_one in probed.latents.items()}

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

# %%
over_saes = f"95 % over {probe_tables.units(every_sae, main[0], main[:1])}"
over_draws = f"of controls over base prompts and draws ({control_draws} of a basis, "
over_draws += f"{dictionary_draws} of a dictionary)"
caption = (
    f"Profile {profile}, layer {layer}, n = {len(prompts):,} prompts; {over_saes}; {over_draws}. "
    f"Band: {main[0]}; the others have bars at k = {show_k}, side by side.\n"
    f"Form chosen on validation. Dotted: dense probe, {choices['dense_pooling']} pooling."
)
figure = figures.curves(
    beside, "k", "split", "variant", "k (columns)", logx=True,
    reference=dense_line, reference_label="dense probe",
    colours=why_figures.COLOURS, banded=main[:1], bar_at=show_k,
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
# After the last one the probe *is* the dense one, refitted in the same way. Each part is the AUROC
# that its repair adds, averaged over the orders in which repairs can be made (Shapley values under
# precedence, Faigle and Kern 1992), less what the same repair adds to the dense probe. So the parts
# sum to the loss. Below zero the repair does harm, or the dense probe needs it more. A latent that
# falls silent in one wrapper moves that wrapper's scores: some of this is seen as threshold. **What
# to look for:** the largest part of each dictionary, and whether it is larger than an untrained
# SAE's: that k columns are few holds of any dictionary. **What would refute that the paper's
# reasons hold here:** their parts (number, latents, error) not above zero.

# %%
dense_c = choices["c"][linear_pooling]
taken = pd.concat([looked_into, bases]).set_index("variant")["folder"]
readable = {
    name: loss_parts.Readable(
        in_form[name], show_k, form.selection,
        latents.reconstruction(folders.load(folder), probed.latents[name][linear_pooling]),
        here[linear_pooling],
    )
    for name, folder in taken.items() for form in [forms[name]]
}  # fmt: skip

# %%
part_rows = pd.DataFrame(columns=["variant", "part", "split", "value", "low", "high"])
beyond_rows = part_rows
impossible = loss_parts.impossible(prompts, gap_split)
if not impossible:
    apart_rows = loss_parts.taken_apart(
        prompts, readable, stress.Contender(here[linear_pooling], c=dense_c),
        {gap_split: weights[gap_split]}, records.read(run, "05_probing")["parameters"]["c_grid"],
        seed,
    )  # fmt: skip
    of_bases = dict(zip(bases["variant"], bases["seed"]))
    parts = loss_parts.over_bases(apart_rows, main[0], of_bases, seed)
    part_rows, control = parts.estimates(), "untrained SAE"
    beyond_rows = loss_parts.beyond(parts, main[0], control).estimates().assign(against=control)

# %%
if len(part_rows):
    figure = why_figures.stacked(part_rows, loss_parts.LOSS, "AUROC lost to the dense probe")
    caption = (
        f"Profile {profile}, layer {layer}, k = {show_k}, {where}; mean over {n_bases} of the "
        f"{main[0]}, one of the others. Dense: {linear_pooling} pooling. Lines: 95 % over base "
        f"prompts, and over SAEs where there are several; a part's is below its bar.\n"
        f"{loss_parts.REPAIRS}"
    )
    display(figures.save(figure, run.figures, "08_loss_parts", caption))
    display(tables.in_columns(part_rows, "variant", "part"))
    display(tables.in_columns(beyond_rows, ["variant", "against"], "part"))
else:
    display(Markdown(f"Not applicable: {impossible}."))

# %% [markdown]
# ## Latents that fall silent
# Every harmful base prompt stands plain and in wrappers. Of the prompts whose plain form a latent
# fires on, in how many is it silent once they are wrapped? The paper saw many such **false
# negatives**. Looked at are all latents of the k-sparse probe, each on prompts beyond training of
# the class that it speaks for. **What to look for:** high shares in jailbreaks, where the prompt is
# as harmful as before. (In an innocuous wrapper a latent may rightly be silent. Where text is only
# added behind a prompt, no latent of a causal model can be: such a jailbreak is in the map and not
# in the mean. A latent that fires on the wrapper's own words does not count as silent, so shares
# are lower bounds.) The second map is the reverse, on prompts of the other class: how often a
# wrapper *makes* a latent fire that is silent on the plain prompt, so that it speaks for the wrong
# class.

# %%
jailbreaks = prompts.loc[datasets.kind(prompts) == "jailbreak", "transform"].unique().tolist()
silencing, silent = jailbreaks, {}
if models.is_causal(bridge):
    silencing = silence.that_may_silence(prompts, jailbreaks)
for name in main[:2]:
    chosen = probed.chosen[probed.first(name, *forms[name], show_k)]
    decoder = dictionaries[name].W_dec.detach().float().cpu().numpy()
    silent[name] = silence.of_probe(
        in_form[name], prompts, chosen, decoder, silencing, replicates=n_bootstrap, seed=seed
    )
silent = {name: of_probe for name, of_probe in silent.items() if of_probe}
if not silent:
    display(Markdown("Not applicable: no chosen latent speaks for prompts that are also wrapped."))

# %%
n_pairs = [len(of_one.base) for of_one in silence.pairs(prompts).values()]
for name, of_probe in list(silent.items())[:1]:
    latents_read = f"latents of the {name} (the first seed) that the k = {show_k} probe reads"
    for file, of_latents, counts, which, what in (
        ("08_silent", of_probe.table, of_probe.table_of,
         "the class that a latent speaks for on whose plain form it fires", "is silent"),
        ("08_begins", of_probe.begins, of_probe.begins_of,
         "the other class on whose plain form it does not fire", "fires"),
    ):  # fmt: skip
        label = f"share of prompts on which the latent {what} once they are wrapped"
        figure = why_figures.shares(of_latents, counts, jailbreaks, label)
        caption = (
            f"Profile {profile}, layer {layer}; {latents_read}. Of the base prompts of {which}, it "
            f"{what} on this share once they are wrapped. Where it says of how many: of fewer than "
            f"{why_figures.FEW} prompts; empty: of none. {min(n_pairs)} to {max(n_pairs)} harmful "
            "base prompts beyond training stand in a wrapper."
        )
        display(figures.save(figure, run.figures, file, caption))

# %% [markdown]
# Beside latents of equal frequency (twenty for each, that fire on about as many plain prompts): how
# much more often the latents that speak for harm are silent. The mean over jailbreaks is as wide as
# Student's for so few of them. **What would refute false negatives:** a mean that is not above
# zero.

# %%
silent_rows = silence.table(silent, silencing, seed)
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
    page = f"../figures/{quote(profile)}/latents.html"
    link = '<a href="{}#{}">{}</a>'
    instead["latent"] = [
        link.format(page, cards.anchor(name, latent), latent) for latent in instead["latent"]
    ]
    display(HTML(instead.to_html(escape=False, index=False, na_rep="")))

# %% [markdown]
# ## Is the dense probe's direction in the dictionary?
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
shares = direction_shares(directions, rows_of, ks)

# %%
figure = figures.curves(
    shares, "k", "direction", "dictionary", "k (decoder rows)",
    ylabel="share of squared norm", logx=True, colours=why_figures.COLOURS,
)  # fmt: skip
caption = f"Profile {profile}, layer {layer}, dense probe with {linear_pooling} pooling; one "
caption += "dictionary of each kind, the first seed; no intervals."
figures.save(figure, run.figures, "08_directions", caption)

# %% [markdown]
# The same fixed weights applied to the two parts of the activation, $w\cdot x = w\cdot\hat x +
# w\cdot(x-\hat x)$: how much of the logit's variance and of its AUROC is in the part that the SAE
# leaves out. (Nothing is refitted here.)

# %%
parts_table = pd.DataFrame([
    {"SAE": name, **row}
    for name, of_one in readable.items()
    for row in logit_parts(weight, of_one.views(), prompts)
])
by_part = parts_table.set_index(["SAE", "part"])
variance = by_part.loc[by_part["split"] == gap_split, "variance_share"]
by_part.pivot(columns="split", values="auroc").join(variance).round(3)

# %% [markdown]
# ## Do latents that work in distribution work OOD?
# Every latent's own AUROC on validation and OOD prompts; below 0.5 it fires for harmless prompts.
# **What to look for:** chosen latents (marked) that are far from 0.5 in validation and near it, or
# on the other side, OOD: right for the wrong reason. **What would refute this reason:** marked
# latents along the diagonal.

# %%
areas = pd.read_parquet(latents_path)
figure = why_figures.latent_scatter(areas[areas["frequency"] > 0.01], "val", gap_split)
caption = (
    f"Profile {profile}, layer {layer}; latents that fire in more than 1 % of prompts, of one SAE "
    f"of each kind, the first seed. Marked: chosen for k = {show_k} on the training split."
)
figures.save(figure, run.figures, "08_latents", caption)

# %% [markdown]
# ## Probes that people use as monitors
# All but one read one layer. A token probe has a score for every token, $s_t = w \cdot z_t + b$,
# and an aggregation through which it is trained (McKenzie et al., arXiv 2506.10805; Kramár et al.,
# arXiv 2601.11516); learning rate, weight decay, epochs and what the aggregation has to choose
# (temperature, heads, rate) are chosen on held-out *training* prompts, with each of several seeds:
# their training is less stable than a logistic regression's, and the intervals hold the seeds'
# spread. Beside them stand the dense probe on several layers, the dense probe with the k chosen
# latents added, the k-sparse probe, and words. **What to look for:** one that is ahead of the dense
# probe pooled *and* within wrappers, at the threshold that validation gave. **What would refute
# that latents add nothing:** dense and latents ahead of dense by the margin of its rule.

# %%
c_grid = tuple(records.read(run, "05_probing")["parameters"]["c_grid"])
chosen = probed.chosen[probed.first(main[0], *forms[main[0]], show_k)]
tokens_per_prompt = len(tokens.activations) / len(prompts)
read = monitors.Read(
    activations.load_pooled(store), layer, linear_pooling, in_form[main[0]][:, chosen], task,
    tokens_per_prompt,
)  # fmt: skip
with_seeds = {}  # token probes by seed and name
if aggregations:
    seeds = range(seed, seed + token_seeds)
    with_seeds = fit_seeds(Inputs(tokens, task), aggregations, Grid(), seeds)
    settings = [table_of_choices(of_one).assign(seed=s) for s, of_one in with_seeds.items()]
    display(pd.concat(settings).sort_values("aggregation", kind="stable").round(3))
else:
    display(Markdown("Not measured: `aggregations` is empty."))

# %%
every_monitor = monitors.linear(read, c_grid)
sparse_scores = probed.scores[probed.first(main[0], *forms[main[0]], show_k)]
of_words = dense_probes.Inputs(here[linear_pooling], texts, task)
words = dense_probes.PROBES["TF-IDF"].scores(of_words)
every_monitor[f"k = {show_k}, first SAE"] = monitors.of_latents(sparse_scores, read)
every_monitor["TF-IDF"] = monitors.Monitor(words, 0.0, None)
monitor_scores = {Probe(name): monitor.scores for name, monitor in every_monitor.items()}
for seed_of_tokens, of_seed in with_seeds.items():
    from_tokens = monitors.on_tokens(of_seed, read)
    every_monitor = from_tokens | every_monitor  # the first seed's stand for the cost
    seeds_of = {name: Probe(name, seed=seed_of_tokens) for name in from_tokens}
    monitor_scores |= {seeds_of[name]: monitor.scores for name, monitor in from_tokens.items()}

# %%
kinds, here_weights = datasets.kind(prompts), {gap_split: weights[gap_split]}
monitor_rows = monitor_tables.measured(prompts, kinds, gap_split, monitor_scores, weights, seed)
tables.in_columns(monitor_rows, "probe", "metric")

# %%
shown = {"auroc": "AUROC, pooled", "auroc_within_wrapper": "AUROC, mean within wrapper"}
areas_shown = monitor_rows[monitor_rows["metric"].isin(list(shown))].replace({"metric": shown})
dense_rows = areas_shown[areas_shown["probe"] == monitors.DENSE]
figure = figures.points(areas_shown, "probe", "metric", reference=dense_rows)
caption = (
    f"Profile {profile}, layer {layer}, {where}; 95 % bootstrap over base prompts (right: and "
    f"wrappers) and the {token_seeds} seeds of token probes. Dotted: dense probe. Latents and "
    f"k = {show_k}: of the {main[0]}, the first seed."
)
figures.save(figure, run.figures, "08_monitors", caption)

# %% [markdown]
# What each is behind the dense probe on the same replicates (below zero: ahead), and what it takes:
# FLOPs of a prompt, those of the model up to the probe's layer and those of the probe. (The
# model's own are none where it runs anyway.) Milliseconds are of this run, and in no record.

# %%
behind_rows = monitor_tables.behind(
    prompts, kinds, gap_split, monitor_scores, weights, seed
)
flops = monitors.cost_table(every_monitor, bridge, tokens_per_prompt)
some = np.flatnonzero(prompts["split"] == gap_split)[:100]
taken = {
    f"tokens, {name}": monitors.milliseconds(probe, tokens, some)
    for name, probe in with_seeds.get(seed, {}).items()
}
cost_columns = flops.rename(columns="FLOPs, {}".format).map("{:.1e}".format)
tables.in_columns(behind_rows, "probe", "metric").join(cost_columns).assign(
    **{"ms, probe": pd.Series(taken, dtype=float).round(3)}
)

# %% [markdown]
# ## Few training prompts, wrong labels, few positives
# Training prompts are taken by whole base prompts; the same draws for every probe. **What to look
# for:** a range in which the k-sparse probe is ahead. Kantamneni et al. (arXiv 2502.16681) found
# none on average. The comparison leans to the dense probe: its C was chosen on all, rightly
# labelled training prompts, while the k-sparse probe has no penalty and the same k throughout. Of
# the token probes the one of the best mean held AUROC over seeds takes part, with the setting that
# was chosen on all, and as many steps.
# **What would refute that sparse probes lose here too:** a k-sparse curve above the dense one.

# %%
strength = choices["c"][choices["dense_pooling"]]
contenders = {"dense": stress.Contender(here[choices["dense_pooling"]], c=strength)}
contenders |= {f"k = {show_k}, {name}": contender for name, contender in sparse.items()}
n_train = int(task.train.sum())
if with_seeds:
    on_tokens = steadiest(with_seeds.values(), tokens, n_train, seed)
    contenders[f"tokens, {on_tokens.name}"] = on_tokens

# %%
sizes = sorted({n if 0 < n < n_train else n_train for n in train_sizes})
changes = {
    "training prompts": {n: stress.fewer(n) for n in sizes},
    "share of labels flipped": {share: stress.mislabelled(share) for share in noise_shares},
    "share of positives": {share: stress.imbalanced(share) for share in positive_shares},
}
stressed = stress.sweep(prompts, contenders, changes, stress_draws, seed)

# %%
caption = (
    f"Profile {profile}, layer {layer}; mean and 95 % t interval over {stress_draws} draws; one "
    f"SAE of each kind, the first seed. Dense: C = {strength:g}, chosen on all training prompts.\n"
)

# %%
n_positive = int(task.y[task.train].sum())
left = [min(n_positive / share, (n_train - n_positive) / (1 - share)) for share in positive_shares]
kept = f"About {' / '.join(f'{n:,.0f}' for n in left)} training prompts"
kept += f" at {' / '.join(map(str, positive_shares))}: some of one class are left out at random."
names = {
    "training prompts": (
        "08_scarcity", "train_sizes", True,
        "No band where all are taken: there the draws are the same.",
    ),
    "share of labels flipped": (
        "08_label_noise", "noise_shares", False,
        f"{n_train:,} training prompts. No band where none is flipped: the draws are the same.",
    ),
    "share of positives": ("08_imbalance", "positive_shares", True, kept),
}  # fmt: skip

# %%
for what, (file, parameter, is_log, about) in names.items():
    of_change = stressed[stressed["change"] == what]
    if len(of_change):
        figure = figures.curves(of_change, "setting", "split", "probe", what, logx=is_log)
        display(figures.save(figure, run.figures, file, caption + about))
    else:
        display(Markdown(f"Not measured: `{parameter}` is empty."))

# %% [markdown]
# ## The model asked itself, and a cascade
# The logit of yes against no to the question whether a request is harmful, asked about some prompts
# of the split, no two of one base prompt. In a **cascade** the dense probe reads every prompt, and
# passes those on to the model of which it is least sure. A small model may answer the request in
# the place of the question, and say No to a harmful one: then its AUROC is below one half. **What
# to look for:** a share passed on at which the cascade is ahead of both its ends. **What would
# refute that a cascade helps:** a curve that falls from its left end.

# %%
why_not = why_not_asked(bridge) if n_asked else "`n_asked` is 0"
cascade_rows = cascade.unmeasured(passed_on, why_not, split=gap_split)
if not why_not:
    is_asked = asked_about(prompts, gap_split, n_asked, seed)
    answers = yes_over_no(bridge, prompts.loc[is_asked, "text"].tolist())
    of_dense = monitor_scores[Probe(monitors.DENSE)]
    quiet = (prompts["split"] == "val").to_numpy() & (task.y == 0)
    threshold = metrics.threshold_at_fpr(of_dense[quiet], np.ones((1, int(quiet.sum()))))
    of_both = cascade.Cascade(of_dense[is_asked], answers, float(threshold.item()))
    bases = prompts.loc[is_asked, "base_id"].to_numpy()
    cascade_rows = cascade.by_share(
        task.y[is_asked], of_both, passed_on, bases,
        metrics.bootstrap_weights(bases, n_bootstrap, seed), split=gap_split,
    )  # fmt: skip

# %%
if not why_not:
    names = {"auroc": "AUROC", "recall_at_1pct_fpr": "recall at 1 % false positives"}
    curve = cascade_rows[cascade_rows["metric"].isin(list(names))].replace({"metric": names})
    chance = pd.DataFrame({"metric": list(names.values()), "value": [0.5, 0.01]})
    figure = figures.curves(
        curve.assign(monitor="cascade"), "share_passed_on", "metric", "monitor",
        "share of prompts passed on to the model", "fraction", share_y=False,
        reference=chance.assign(low=np.nan, high=np.nan), reference_label="chance",
    )  # fmt: skip
    caption = (
        f"Profile {profile}, layer {layer}, {is_asked.sum()} prompts, {where}; 95 % bootstrap "
        "over base prompts. At 0 the dense probe alone, at 1 the model alone."
    )
    display(figures.save(figure, run.figures, "08_cascade", caption))
    display(tables.in_columns(cascade_rows, "share_passed_on", "metric"))
else:
    display(Markdown(f"Not measured: {why_not}."))

# %% [markdown]
# ## Cheaper dictionaries
# What is a dictionary worth, at which cost? Random directions and training tokens cost nothing,
# principal components and k-means centres little, an SAE as much as its training tokens times its
# latents. FLOPs are nominal, $12\,d_{\mathrm{model}}\,d_{\mathrm{SAE}}$ for each training token;
# the language model's own pass over these tokens is left out. **What to look for:** a gap to the
# dense probe that falls with the cost. **What would refute that training pays:** a cheap dictionary
# at an SAE's level.

# %%
of_others = {probe: of_all for probe, of_all in in_best.items() if probe.variant not in apart}
at_cost = Draws.of(prompts, of_show_k | of_others, here_weights)
dense = Draws.of(prompts, {Probe("dense"): monitor_scores[Probe(monitors.DENSE)]}, here_weights)
gaps = at_cost.over_seeds(seed, apart=tuple(apart)).behind(dense, ["split"]).estimates()
cost_table = pd.concat([
    costs.of_controls(basis_inputs, show_k),
    costs.of_saes(pd.concat([every_sae, looked_into, others]), show_k),
], ignore_index=True).drop_duplicates("variant")  # fmt: skip
gaps = gaps[gaps["variant"].isin(cost_table["variant"]) & (gaps["k"] == show_k)]
gaps = costs.beside_gaps(gaps, cost_table)

# %%
alone = " An SAE that is the only one of its kind has the spread of the others." * (n_bases > 1)
figure = gaps_against_cost(gaps)
caption = (
    f"Profile {profile}, layer {layer}, k = {show_k}, {where}; {over_saes}; {over_draws}.{alone} "
    f"Dense: {linear_pooling} pooling. Forms chosen on validation. Colours as beside the controls; "
    "dark grey: other SAEs."
)
figures.save(figure, run.figures, "08_cost", caption)

# %% [markdown]
# The SAE from scratch beside those of a share of its tokens (one family), and the widest SAE from
# scratch beside the narrowest. They are one SAE each; how much such SAEs differ by chance is taken
# from the seeds of all SAEs.

# %%
by_width = others.loc[others["differs_in"] == "width", "variant"].tolist()
cheaper = others.loc[others["differs_in"] == "tokens", "variant"].tolist()
scratch = "from scratch"
from_scratch = every_sae[every_sae["variant"] == scratch].drop_duplicates("variant")
of_width = pd.concat([from_scratch, others[others["variant"].isin(by_width)]])
d_sae = [folders.load(place).cfg.d_sae for place in of_width["folder"]]
in_order = of_width["variant"].iloc[np.argsort(d_sae, kind="stable")].tolist()

# %%
compared = [pd.DataFrame(columns=["against", "metric", "value", "low", "high"])]
if cheaper:
    compared.append(
        monitor_tables.ahead_of_others(at_cost, scratch, cheaper, "auroc_ahead_of_cheaper", seed)
    )
if by_width:
    narrowest, *_, widest = in_order
    compared.append(
        monitor_tables.ahead_of_others(
            at_cost, widest, [narrowest], "auroc_ahead_of_narrower", seed
        )
    )
compared = pd.concat(compared, ignore_index=True)
tables.in_columns(compared, "against", "metric")

# %% [markdown]
# **Feature splitting.** For each latent of the narrowest SAE that its probe reads: how many latents
# of the widest one have a like decoder row (cosine above 0.7), and the cosine of the nearest. Other
# latents of the narrow SAE, and directions drawn at random, stand beside. **What to look for:**
# several near ones, so that k latents hold less of a concept in a wider SAE.

# %%
split_rows = pd.DataFrame(columns=["of", "metric", "value", "low", "high"])
if by_width:
    place_of = dict(zip(of_width["variant"], of_width["folder"]))
    narrow, wide = (folders.load(place_of[name], device) for name in (narrowest, widest))
    chosen = probed.chosen[probed.first(narrowest, *forms[narrowest], show_k)]
    near_rows = widths.splitting(narrow, wide, chosen, np.random.default_rng(seed))
    split_rows = widths.over_latents(near_rows)
    display(tables.in_columns(split_rows, "of", "metric"))
else:
    display(Markdown("Not measured: notebook 04 trained no other widths (`sae_widths`)."))

# %% [markdown]
# ## Takeaway

# %%
at_k = beside[(beside["k"] == show_k) & (beside["split"] == gap_split)]
tables.in_columns(at_k, "variant")

# %%
behind = ahead.loc[ahead["low"] <= 0, "control"].tolist()
least = min(sizes, default=0)
scarcity = stressed[stressed["change"] == "training prompts"]
scarce = scarcity[(scarcity["split"] == gap_split) & (scarcity["setting"] == least)]
of_few = "; ".join(scarce["probe"] + " " + tables.texts(scarce)) or "not measured"
loss = part_rows[part_rows["variant"] == main[0]].set_index("part")
in_words = ", ".join(f"{part} {text}" for part, text in tables.texts(loss).items())
over_jailbreaks = silent_rows[silent_rows["wrapper"] == silence.JAILBREAKS].set_index("variant")
is_ahead = (behind_rows["high"] < 0).groupby(behind_rows["probe"]).all()
ahead_of_dense = ", ".join(is_ahead.index[is_ahead]) or "none"
gained = cascade_rows[cascade_rows["metric"] == cascade.GAINED].dropna(subset=["value"])
of_cascade = "; ".join(gained["share_passed_on"].map("{:.0%} ".format) + tables.texts(gained))
of_training = "; ".join(compared["against"] + " " + tables.texts(compared)) or "not measured"

# %%
Markdown(
    f"Loss of the {main[0]}'s probe to the dense one, {gap_split}, and its parts: "
    f"{in_words or 'not applicable'}. Silent in jailbreaks beyond latents of equal frequency: "
    f"{'; '.join(f'{name} {text}' for name, text in tables.texts(over_jailbreaks).items())}. "
    f"At k = {show_k} and on the {gap_split} split, the controls that the {main[0]} is not shown "
    f"to be ahead of: {', '.join(behind) or 'none'}. With {least or 'few'} training prompts: "
    f"{of_few}. Monitors that are ahead of the dense probe both pooled and within wrappers: "
    f"{ahead_of_dense}. AUROC that a cascade gains over its probe, by the share passed on: "
    f"{of_cascade or 'not measured'}. What the SAE from scratch, or the widest, is ahead of those "
    f"with fewer tokens or latents: {of_training}."
)

# %%
counts = beside["split"].map(prompts["split"].value_counts())
table = pd.concat([
    beside.assign(metric="auroc", n=counts),
    ahead,
    shares.assign(metric="direction_share"),
    parts_table.assign(metric="logit_parts"),
    part_rows.assign(metric="loss_part", n=part_rows["split"].map(prompts["split"].value_counts())),
    beyond_rows.assign(metric="loss_part_beyond_control"),
    silent_rows.assign(metric="silent_beyond_control"),
    monitor_rows, behind_rows, cascade_rows, compared,
    gaps.assign(metric="auroc_gap_at_cost"),
    split_rows.assign(metric="near_rows_" + split_rows["metric"]),
    stressed.assign(metric="auroc"),
], ignore_index=True).assign(layer=layer, unit="fraction")  # fmt: skip

# %%
of_probes = table["k"].isin([1, show_k]) & (table["metric"] != "direction_share")
of_directions = (table["metric"] == "direction_share") & (table["k"] == show_k)
kept = ["loss_part", "loss_part_beyond_control", "silent_beyond_control"]
kept += [*monitor_rows["metric"], *behind_rows["metric"]]
kept += [*cascade_rows["metric"], *compared["metric"], "auroc_gap_at_cost"]
headline = table[of_probes | of_directions | table["metric"].isin(set(kept))]
inputs = [prompts_path, store, architectures_path, saes_path, probes_path, choices_path]
inputs += [latents_path, scores_path, others_path]
records.write(run, table, headline, inputs=inputs, outputs={}).name
