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
# and costs a little reconstruction at fixed L0 (C11). The paper trains on chat rollouts of
# Gemma 2; here small SAEs see chat that the model had with itself (an encoder: docstrings), in
# minutes.

# %%
import statistics

import numpy as np
import pandas as pd
from IPython.display import Markdown, display

from lib.base.files import relative, write_table
from lib.model import models, rollouts
from lib.results import figures, records, tables
from lib.sae import comparison, folders, harvest, learning_rates, token_blocks
from lib.sae.recipes import Recipe
from lib.texts import datasets

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
max_tokens = 80_000  # training tokens harvested
held_out_tokens = 15_000
d_sae = 1024
train_tokens = 80_000  # tokens seen in training
batch_tokens = 1024
target_l0s = [16, 32]  # active latents per token
gated_coefficients = [6.0, 20.0]  # L1 coefficients of the gated SAEs; empty: no such SAE
f0s = [0.1, 0.01]  # frequency scales of the QF penalty, fraction of tokens; empty: no QF
comparators = ["topk", "gated"]  # of SAELens: topk | batchtopk | matryoshka | gated; empty: none
lr = 8e-3  # of JumpReLU, chosen on a calibration split of the text, once; 0: again
comparator_lr = 8e-3  # of those with a target L0, chosen in the same way, once; 0: again
gated_lr = 4e-3  # of those with a coefficient, of 2e-3 to 8e-3 by FVU at like L0
split_seed = 1  # division of the passages into training and held-out ones
seeds = [0, 1, 2]

# %% [markdown]
# ## Inputs: token activations
# Passages, not windows, are held out. Special tokens
# are left out, and tokens are shuffled over the shards.

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
texts = rollouts.corpus(corpus, reader, sampling, asked, run.folder / "rollouts", wanted)
stores = harvest.token_stores(
    reader, texts, layer, run.folder / "activations",
    max_tokens=max_tokens, held_out_tokens=held_out_tokens, seed=split_seed,
    calibrates=learning_rates.CHOSEN in (lr, comparator_lr),
)  # fmt: skip
x_held = token_blocks.load_tokens(stores.held_out)
print(f"{len(texts):,} passages; layer {layer} of {model}")
print(f"held out: {tuple(x_held.shape)} (tokens, d_model)")

# %% [markdown]
# ## Method
# With inputs $x$ scaled to unit mean square,
# $f = \mathrm{JumpReLU}_\theta(x W_\mathrm{enc} + b_\mathrm{enc})$ and
# $\hat x = f W_\mathrm{dec} + b_\mathrm{dec}$, the loss is
# $\overline{(x-\hat x)^2} + \lambda P(\phi)$ on the firing frequencies $\phi_i$ of the latents in
# the batch:
#
# $$P_{L_0} = \sum_i \phi_i \qquad P_{QF} = \sum_i \phi_i\,(1 + \phi_i / f_0)$$
#
# Straight-through gradients reach the thresholds only (arXiv 2407.14435). L0 is held at its
# target: all thresholds move together by the batch's error, and $\lambda$ is the multiplier at
# which penalty and reconstruction balance. Gated and TopK are SAELens' own training classes on the
# same tokens, in the same loop. `comparator_lr` is for those that are steered by a target L0,
# `gated_lr` and `gated_coefficients` for those that are steered by a coefficient.

# %%
lrs = {"target_l0": comparator_lr, "coefficient": gated_lr}
variants = comparison.variants(f0s, comparators, lrs)
sparsities = {"target_l0": target_l0s, "coefficient": gated_coefficients}
base = Recipe(d_sae=d_sae, tokens=train_tokens, batch_tokens=batch_tokens, lr=lr)
grid = comparison.recipes(base, variants, sparsities, seeds)
options = {"device": device, "buffer_tokens": buffer_tokens}
table = comparison.train_grid(grid, stores, run.folder / "saes", **options)
by_setting = table.drop(columns="folder").groupby(["variant", "sparsity"], sort=False)
by_setting.mean().drop(columns="seed").round(3)

# %% [markdown]
# ## Reconstruction against sparsity
# **What to look for:** the QF curves on or just above the JumpReLU curve (a small cost), below TopK
# and Gated. **What would refute C11:** QF curves at the level of TopK or Gated, or frequent latents
# left below.

# %%
points = comparison.pareto(table, f"layer {layer}, {d_sae:,} latents")
figure = figures.curves(
    points, "l0", "panel", "variant",
    "L0 (active latents per token)", "FVU (fraction of variance)", logx=True,
)
caption = (
    f"Profile {profile}, {corpus}, {train_tokens:,} training tokens, held-out FVU; "
    f"mean of {len(seeds)} seeds, bands: their range."
)
figures.save(figure, run.figures, "03_pareto", caption)

# %%
costs = comparison.fvu_costs(table, comparison.with_middles(target_l0s))
costs.assign(cost=tables.texts(costs, 4))[["variant", "cost", "n", "n_groups"]]

# %% [markdown]
# ## Firing frequencies
# **What to look for:** latents to the right of the 10 % line for JumpReLU with the L0 penalty and
# TopK (C10), fewer or none with QF, and otherwise equal histograms (C11).

# %%
seed = min(seeds)
middle = comparison.of_middle_l0(table, seed)
frequencies = {
    row.variant: np.array(folders.training_record(row.folder)["frequency"])
    for row in middle.itertuples()
}
figure = figures.frequency_histograms(frequencies, folders.HIGH_FREQUENCY)
l0s = ", ".join(f"{l0:.0f}" for l0 in middle["l0"])
shown = f"Profile {profile}, seed {seed}, of each variant the SAE of middle L0 ({l0s})"
caption = f"{shown}; {len(x_held):,} held-out tokens."
figures.save(figure, run.figures, "03_frequencies", caption)

# %%
columns = ["l0", "high_frequency", "above_1pct", "high_frequency_mass", "dead"]
by_setting[columns].mean().round(3)

# %%
least_l0 = statistics.median_low(target_l0s)
frequent = comparison.frequent_latents(table, 0.9 * least_l0)
frequent.assign(latents=tables.texts(frequent, 1))[["variant", "latents", "n"]]

# %% [markdown]
# ## What becomes of a frequent latent
# For each latent that fires on more than 10 % of tokens under the L0 penalty, at middle L0: the
# largest cosine of its decoder row to a row of the QF run of the same target and seed (of the
# largest f₀), and the number of rows above 0.5. A latent that QF splits has several near rows.

# %%
if f0s:
    split = comparison.descendants_under_qf(table, seed, max(f0s))
    display(split.describe().loc[["count", "mean", "min", "max"]].round(2))
else:
    display(Markdown("Not applicable: `f0s` is empty, so no SAE has the QF penalty."))

# %% [markdown]
# ## Training curves

# %%
curves = {
    row.variant: pd.DataFrame(folders.training_record(row.folder)["curve"])
    for row in middle.itertuples()
}
caption = f"{shown}; values of single training batches."
figures.save(figures.training_curves(curves), run.figures, "03_training", caption)

# %% [markdown]
# ## Takeaway

# %%
cost = dict(zip(costs["variant"], tables.texts(costs, 4)))
lines = []
for variant, latents in zip(frequent["variant"], tables.texts(frequent, 1)):
    at_cost = f", FVU cost at matched L0 {cost[variant]}" if variant in cost else ""
    lines.append(f"- {variant}: {latents} latents above 10 %{at_cost}")
about = f"Means over the SAEs of L0 about {least_l0} and more, {len(seeds)} seeds:"
caveat = (
    "95 % t intervals over seeds. The SAEs are small and see few tokens; learning rates were "
    "chosen for each architecture on another split. The order of the architectures is that of "
    "such short runs."
)
Markdown("\n\n".join([about, "\n".join(lines) or "there is none.", caveat]))

# %%
saes = table[["variant", "sparsity", "seed"]].assign(folder=table["folder"].map(relative))
list_path = write_table(run.results / "architectures.parquet", saes)
outputs = {"held_out": stores.held_out, "saes": list_path}
outputs |= {"tokens": stores.training} if store == "disk" else {}
tidy = table.drop(columns="folder").melt(["variant", "sparsity", "seed"], var_name="metric")
headline = pd.concat([costs, frequent], ignore_index=True)
values = pd.concat([tidy, headline], ignore_index=True)
record = records.write(run, values, headline,
                       inputs=[prompts_path], outputs=outputs, folders=saes["folder"])
print(record.name)
