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
# # 03 · SAE training: JumpReLU, high-frequency latents and the quadratic-frequency penalty
#
# Claims C10 and C11.
#
# **The claims** (the paper, section on high-frequency latents). SAEs trained with JumpReLU (L0
# penalty) or TopK have latents that fire on more than 10 % of tokens; Gated SAEs do not (C10). A
# quadratic-frequency (QF) penalty removes them, leaves the rest of the frequency histogram alone
# and costs a little reconstruction at fixed L0, still ahead of TopK and Gated (C11). The paper
# trains on chat rollouts of Gemma 2; here small SAEs see chat that the model had with itself (an
# encoder: docstrings), in minutes.
#
# How many latents are frequent depends on L0, and so does FVU. Architectures are therefore compared
# at equal L0 only, between the SAEs of each curve, and latents are weighed: the *frequent mass* is
# the share of a token's active latents that fire on more than 10 % of tokens.

# %%
import pandas as pd
from IPython.display import Markdown, display

from lib.base.files import relative, write_table
from lib.model import models, rollouts
from lib.results import figures, records, sae_figures, tables
from lib.sae import comparison, folders, harvest, learning_rates, matched, splice, token_blocks
from lib.sae.recipes import Recipe
from lib.texts import corpora, datasets

# %% [markdown]
# ## Parameters
# A corpus is `docstrings` (of installed packages), `pretraining` (public prose), `rollouts` (public
# chat), `shipped:<model>` (chat that a model had with itself, in `data/rollouts`), `hf:<data set>`,
# or `own:<corpus>` (answered by the model itself).

# %% tags=["parameters"]
profile = "embedded"
device = "cpu"
layer = 21  # block whose residual stream is trained on, chosen on validation
corpus = "shipped:SmolLM2-135M-Instruct"  # docstrings | pretraining | rollouts, …
n_rollouts = 2000  # of the model's own, where a corpus is own:…
rollout_tokens = 128  # of a rollout, at most
rollout_temperature = 1.0  # 0: greedy
context = 128  # tokens of a window of text
store = "disk"  # disk | stream, training activations kept, or made anew for each training
buffer_tokens = 4_000_000  # shuffled at a time
max_tokens = 45_000  # training tokens harvested
held_out_tokens = 12_000
d_sae = 4096
train_tokens = 80_000  # tokens seen in training
batch_tokens = 256  # few, so that short trainings have enough steps
target_l0s = [16, 32]  # active latents per token
f0s = [0.1, 0.01]  # frequency scales of the QF penalty, fraction of tokens; empty: no QF
penalties = []  # of JumpReLU beside L0 and QF, such as [squared_frequency]; empty: none
comparators = ["topk", "gated"]  # of SAELens: topk | batchtopk | matryoshka | gated; empty: none
lr = 4e-3  # of JumpReLU, chosen on a calibration split of the text, once; 0: again
comparator_lr = 4e-3  # of those but for gated, chosen in the same way, once; 0: again
gated_lr = 4e-3  # chosen in the same way, once, by FVU at both L0s; 0: again
lm_loss_tokens = 2_000  # held-out tokens, for the loss of a causal model; 0: not measured
n_bootstrap = 2000  # replicates over sequences, for the language-model loss
split_seed = 1  # division of the passages into training and held-out ones
seeds = [0, 1, 2]

# %% [markdown]
# ## Inputs: token activations
# Passages, not windows, are held out. Special tokens are left out, and tokens are shuffled over the
# shards.

# %%
run = records.start("03_sae_training", globals())
prompts_path = records.output(run, "01_datasets", "prompts")
prompts = datasets.load(prompts_path)
upstream = records.read(run, "02_activations")["parameters"]
model = upstream["model"]
reader = models.Reader(model, device, upstream["dtype"], context, store)

# %%
sampling = rollouts.Sampling(n_rollouts, rollout_tokens, rollout_temperature, split_seed)
asked = prompts.loc[prompts["split"] == "train", "text"].tolist()
wanted = max_tokens + held_out_tokens
place, share = run.folder / "rollouts", harvest.HELD_OUT_SHARE
texts = rollouts.split_corpus(corpus, reader, sampling, asked, place, wanted, share=share)
stores = harvest.token_stores(
    reader, texts, layer, run.folder / "activations",
    max_tokens=max_tokens, held_out_tokens=held_out_tokens, seed=split_seed,
    calibrates=learning_rates.CHOSEN in (lr, comparator_lr, gated_lr),
)  # fmt: skip
x_held = token_blocks.load_tokens(stores.held_out)
print(f"{len(texts.training):,} passages to train on; layer {layer} of {model}")
print(f"held out: {tuple(x_held.shape)} (tokens, d_model)")

# %% [markdown]
# ## Method
# With inputs $x$ scaled to unit mean square,
# $f = \mathrm{JumpReLU}_\theta(x W_\mathrm{enc} + b_\mathrm{enc})$ and
# $\hat x = f W_\mathrm{dec} + b_\mathrm{dec}$, the loss is
# $\overline{(x-\hat x)^2} + \lambda P(\phi)$ on the firing frequencies $\phi_i$ of the latents in
# the batch:
#
# $$P_{L_0} = \sum_i \phi_i \qquad P_{QF} = \sum_i \phi_i\,(1 + \phi_i / f_0) \qquad
# P_{\phi^2} = \sum_i \phi_i^2$$
#
# The last is the paper's ablation (`penalties`). Straight-through gradients reach the thresholds
# only (arXiv 2407.14435). L0 is held at its target: all thresholds move together by the batch's
# error, and $\lambda$ is the multiplier at which penalty and reconstruction balance. Gated, TopK,
# BatchTopK and Matryoshka are SAELens' own training classes on the same tokens, in the same loop;
# Gated's L1 coefficient follows the batches' L0 to the target. At the end of training all gates, or
# thresholds, move by the one amount that gives the target.

# %%
lrs = dict.fromkeys(comparators, comparator_lr) | {"gated": gated_lr}
variants = comparison.variants(f0s, penalties, comparators, lrs)
base = Recipe(d_sae=d_sae, tokens=train_tokens, batch_tokens=batch_tokens, lr=lr)
grid = comparison.recipes(base, variants, target_l0s, seeds)
options = {"device": device, "buffer_tokens": buffer_tokens}
table = comparison.train_grid(grid, stores, run.folder / "saes", **options)
by_setting = table.drop(columns="folder").groupby(["variant", "sparsity"], sort=False)
by_setting[["l0", "fvu", "dead", "lr", "tokens_per_s"]].mean().round(3)

# %% [markdown]
# ## Has training converged?
# The change of FVU over the last fifth of training, and the share of SAEs for which it is below
# 1 %. **What to look for:** the change of an architecture that is compared. Where it is large, the
# order of architectures is that of such short runs: one that learns more slowly looks worse.

# %%
convergence = comparison.convergence(table)
not_converged = comparison.not_converged(table)
tables.in_columns(convergence, "variant", "metric")

# %% [markdown]
# ## Reconstruction against sparsity
# **What to look for:** the QF curves on or just above the JumpReLU curve (C11c: a small cost),
# below TopK (C11d) and Gated (C11e). **What would refute C11c:** a QF curve farther from JumpReLU
# with the L0 penalty than the margin. **What would refute C11d or C11e:** TopK or Gated below QF,
# with an interval that leaves out zero and reaches beyond the margin; one that lies within the
# margin shows no difference that matters. Margins, the smallest differences that matter, stand in
# `data/claims.yaml`; the rules take means over equal L0s (below).

# %%
panel = f"layer {layer}, {d_sae:,} latents"
about = f"Profile {profile}; {corpora.in_words(corpus)}, {train_tokens:,} training tokens; "
about += f"held-out tokens, mean of {len(seeds)} seeds, bands: their range.\n{not_converged}"
labels = {"x": "l0", "panel": "panel", "hue": "variant", "xlabel": "L0 (active latents per token)"}
points = comparison.curves(table, "fvu", panel)
label = "FVU (fraction of variance)"
figure = figures.curves(points, **labels, ylabel=label, logx=True, share_y=False)
figures.save(figure, run.figures, "03_pareto", about)

# %% [markdown]
# ## Frequent mass against sparsity
# **What to look for:** JumpReLU with the L0 penalty and TopK above Gated (C10a, C10b), Gated near
# zero (C10c), and QF near zero (C11a) and below the L0 penalty (C11f), at every L0. **What would
# refute C10a or C10b:** Gated above the other, with an interval that leaves out zero and reaches
# beyond the margin. **What would refute C10c or C11a:** a curve above zero by more than the margin.

# %%
points = comparison.curves(table, "high_frequency_mass", panel)
label = "share of firings by latents\nthat fire on > 10 % of tokens"
figure = figures.curves(points, **labels, ylabel=label, logx=True)
figures.save(figure, run.figures, "03_frequent_mass", about)

# %% [markdown]
# ## At equal L0
# The curves are read at the same L0s, the inner targets and the geometric mean of each two
# neighbours, linearly in $\log L_0$ within each seed. An L0 that one seed's SAEs do not span is
# left out. The weighted frequency is $\sum\phi_i^2 / \sum\phi_i$, the mean frequency of the
# latents that are active on a token. The line at ten times the mean frequency (C10d) moves with
# L0 and width. Values are means over these L0s, with 95 % t intervals over seeds.

# %%
l0s = matched.inner_l0s(target_l0s)
of_variants = matched.of_variants(table, l0s)
tables.in_columns(of_variants, "variant", "metric")

# %% [markdown]
# Differences at equal L0: FVU from JumpReLU with the L0 penalty (C11c), frequent mass from Gated
# (C10), FVU from the QF penalty of largest $f_0$ (C11d, C11e; the comparators are one family, with
# intervals at Holm's levels). The others are 95 % t intervals over seeds.

# %%
differences = matched.differences(table, l0s, f0s, comparators)
tables.in_columns(differences, "variant", "metric", digits=4).fillna("")

# %% [markdown]
# ## Firing frequencies
# **What to look for:** latents to the right of the 10 % line for JumpReLU with the L0 penalty and
# TopK (C10), fewer or none with QF (C11a), and left of the line the outline of JumpReLU with the L0
# penalty (C11b: the rest stays). **What would refute C11b:** a QF histogram that is narrower than
# the outline, or shifted, by more than the margin beyond what two seeds of one recipe differ by.

# %%
shown_l0 = comparison.common_l0(table, target_l0s)
shown = comparison.nearest(table, shown_l0)
frequencies = comparison.frequencies(shown)
line, baseline = folders.HIGH_FREQUENCY, comparison.BASELINE
figure = sae_figures.frequency_histograms(frequencies, baseline, line)
caption = (
    f"Profile {profile}, of each variant and seed the SAE of L0 nearest {shown_l0}; mean of "
    f"{len(seeds)} seeds, {len(x_held):,} held-out tokens.\nOutline: {baseline}. "
    f"Counts on an axis of square roots.\n{not_converged}"
)
figures.save(figure, run.figures, "03_frequencies", caption)

# %% [markdown]
# As a number: the Kolmogorov–Smirnov distance between the distributions of log frequency below
# 10 % of a variant and of JumpReLU with the L0 penalty, at targets where their L0s are equal within
# 5 %, minus that between two seeds of the latter. The two SAEs differ in their seed in both terms,
# so that a variant which changes nothing has zero on average. Intervals are jackknives over seeds.

# %%
distances = matched.histogram_distances(table)
if len(seeds) > 1:
    display(tables.in_columns(distances, "variant", "metric"))
else:
    display(Markdown("No value: one seed has no distance between two seeds."))

# %% [markdown]
# ## What becomes of a frequent latent
# For each latent that fires on more than 10 % of tokens under the L0 penalty, at that L0: the
# largest cosine of its decoder row to a row of the QF run of the same seed (of the largest f₀), and
# the number of rows above 0.5. A latent that QF splits has several near rows.

# %%
of_seed = shown[shown["seed"] == min(seeds)]
if f0s:
    descendants = comparison.descendants_under_qf(of_seed, max(f0s))
    display(descendants.describe().loc[["count", "mean", "min", "max"]].round(2))
else:
    display(Markdown("Not applicable: `f0s` is empty, so no SAE has the QF penalty."))

# %% [markdown]
# ## Loss recovered
# The reconstruction takes the place of the residual stream on held-out text, and the model goes on
# from there: `delta_lm_loss` is what its loss per token rises by, `loss_recovered` is 1 for a
# perfect SAE and 0 for one no better than zeros. **What to look for:** the order of FVU, at like
# L0. **What would speak against FVU as the measure of a cost:** another order here.

# %%
losses, bridge = pd.DataFrame(), reader.bridge()
if lm_loss_tokens and models.is_causal(bridge):
    passages = {corpus: texts.held_out}
    windows = splice.windows(bridge, passages, context, lm_loss_tokens, split_seed)
    losses = splice.measure(bridge, of_seed, windows, layer, n_bootstrap, split_seed)
    display(tables.in_columns(losses, "variant", "metric"))
else:
    display(Markdown(f"Not measured: `lm_loss_tokens` is 0, or {model} is no causal model."))

# %% [markdown]
# ## Training curves

# %%
curves = {
    row.variant: pd.DataFrame(folders.training_record(row.folder)["curve"])
    for row in of_seed.itertuples()
}
caption = (
    f"Profile {profile}, seed {min(seeds)}, L0 nearest {shown_l0}; values of single training "
    f"batches.\n{not_converged}"
)
figures.save(sae_figures.training_curves(curves), run.figures, "03_training", caption)

# %% [markdown]
# ## Takeaway

# %%
estimates = pd.concat([of_variants, differences, distances])
lines = matched.sentences(estimates)
at = ", ".join(f"{l0:.1f}" for l0 in l0s) or "none, as there is one target"
opening = f"At equal L0 ({at}), with 95 % intervals over seeds (n = {len(seeds)}):"
caveat = (
    f"{not_converged} The SAEs are small and see few tokens; learning rates were chosen for each "
    "architecture on another split."
)
Markdown("\n\n".join([opening, "\n".join(lines), caveat]))

# %%
saes = table[["variant", "sparsity", "seed"]].assign(folder=table["folder"].map(relative))
list_path = write_table(run.results / "architectures.parquet", saes)
outputs = {"held_out": stores.held_out, "saes": list_path}
outputs |= {"tokens": stores.training} if store == "disk" else {}
tidy = table.drop(columns="folder").melt(["variant", "sparsity", "seed"], var_name="metric")
headline = pd.concat([estimates, convergence, losses], ignore_index=True)
values = pd.concat([tidy, headline], ignore_index=True)
record = records.write(run, values, headline,
                       inputs=[prompts_path], outputs=outputs, folders=saes["folder"])
print(record.name)
