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
# # 02 · Activations: the residual stream of every prompt
#
# Prepares claims C1–C8, and has the first figure of C1 and C7.
#
# The paper probes the residual stream of Gemma 2 9B IT after block 20, aggregated over a prompt's
# tokens in two ways: the maximum over the sequence, per coordinate, or a fixed position at the
# end of the user's turn. Here several layers of the model (`layers`, or all) are harvested in one
# forward pass per batch, with three aggregations: max and mean over the user's turn, and fixed
# positions: the end of the user's turn, and the last token before the response (for MiniLM, an
# encoder without turns, all tokens, and the closing [SEP]).

# %%
import pandas as pd
from IPython.display import Markdown

from lib.base.files import write_table
from lib.model import activations, chat, models, poolings
from lib.probing import dense as dense_probes
from lib.probing.tasks import Task
from lib.results import figures, probe_tables, records, tables
from lib.stats import metrics
from lib.texts import datasets

# %% [markdown]
# ## Parameters

# %% tags=["parameters"]
profile = "embedded"
model = "SmolLM2-135M-Instruct"  # packaged, a Hugging Face id, a folder, or a GGUF file
device = "cpu"
dtype = "float32"  # of the forward pass, float32 | bfloat16 | float16
layers = [6, 9, 12, 15, 18]  # blocks to read beside `layer`, such as [3, 4]; empty: all
layer = 21  # block whose tokens are all kept, for the SAEs of notebook 05
pool_over = "turn"  # what max and mean cover: turn (the user's, if there are turns) | sequence
positions = [-1]  # other fixed positions, counted from the first response token; empty: none
show_layer = 21  # layer of the projection plot
c_grid = [1e-4, 1e-3, 1e-2, 1e-1, 1.0]  # inverse L2 strengths, chosen in training folds
n_bootstrap = 2000  # replicates over base prompts
seed = 0

# %% [markdown]
# ## Inputs

# %%
run = records.start("02_activations", globals())
prompts_path = records.output(run, "01_datasets", "prompts")
prompts = datasets.load(prompts_path)
bridge = models.load_model(model, device, dtype)
every = list(range(bridge.cfg.n_layers))
wanted = models.check_layers(bridge, [*layers, layer] if layers else every)
fixed = models.fixed_position(bridge)
print(
    f"{len(prompts):,} prompts; {model}: {bridge.cfg.n_layers} layers, "
    f"d_model {bridge.cfg.d_model}, context {bridge.cfg.n_ctx}; fixed position {fixed}"
)

# %% [markdown]
# ## Method
# Let $x_{l,t} \in \mathbb{R}^{d}$ be the residual stream after block $l$ at token $t$ of a prompt
# with $T$ tokens. The pooled activations are
#
# $$\text{max: } \max_t x_{l,t,i} \qquad \text{mean: } \tfrac1T \textstyle\sum_t x_{l,t,i}
# \qquad \text{fixed: } x_{l,T+1+p,i}$$
#
# with $p = -1$, or for a chat model the place of the token that closes the user's turn, found
# from its template ($-5$ for Gemma 2, as in the paper); `positions` are further such $p$. A chat
# model reads the prompt in its chat template, with the header of its own turn behind it. Max and
# mean cover the user's turn alone, as the rest of the template is the same in all prompts.
#
# Batches are bucketed by length, padded positions never count, a batch that memory cannot hold is
# halved, and the forward pass stops at the last wanted layer. Prompts of a causal model that begin
# alike, such as those in one jailbreak, share the work on what they begin with: their residual
# stream depends on nothing else. For SAEs, the tokens of one layer are kept beside. The result is
# a folder of checksummed shards, named by a hash of everything that determines it: run this again
# and nothing is computed; interrupt it and it goes on where it was. A pooling is one entry of
# `lib.model.poolings.POOLINGS`; to add one, add an entry.

# %%
store = activations.harvest_pooled(
    bridge,
    models.identity(model),
    prompts["text"].tolist(),
    wanted,
    run.folder / "activations",
    poolings=poolings.with_positions(positions, fixed),
    token_layer=layer,
    over=pool_over,
)
shards = activations.describe(store)
shards[["length", "tokens", "seconds", "tokens_per_s"]].round(1)

# %% [markdown]
# ## Norms and throughput
# **What to look for:** norms of one order of magnitude over the layers; a jump would mean that a
# few coordinates dominate max pooling. Right, a point is a shard: the speed at which it was read,
# once, against its prompts' mean length.

# %%
caption = (
    f"Profile {profile}, {model}, {shards['tokens'].sum():,} tokens. "
    "Left: median over prompts, bars are quartiles."
)
figures.save(figures.norms(shards, wanted), run.figures, "02_norms", caption)

# %% [markdown]
# ## A first look at the classes
# The plane is spanned by the difference of the class means of the *training* split and the largest
# principal component beside it; validation and OOD prompts are laid onto the same plane. **What to
# look for:** classes apart along the horizontal axis in validation, closer together out of
# distribution, and hard negatives (a harmful text inside an innocuous wrapper) close to the harmful
# prompts.

# %%
shown_layer = show_layer if show_layer in wanted else layer
pooled = activations.load_pooled(store)[shown_layer, "mean"]
train = (prompts["split"] == "train").to_numpy()
mean, plane = dense_probes.projection_plane(pooled[train], prompts["label"].to_numpy()[train])
direction, component = ((pooled - mean) @ plane.T).T
placed = prompts.assign(direction=direction, component=component, kind=datasets.kind(prompts))
shown = placed.sample(frac=1, random_state=seed).groupby("split").head(900)
by_split = {split: shown[shown["split"] == split] for split in datasets.SPLITS}
parts = {split: rows for split, rows in by_split.items() if len(rows)}

# %%
caption = (
    f"Profile {profile}, {model}, residual stream after block {shown_layer}, mean over tokens; "
    "at most 900 prompts a panel, drawn at random."
)
figures.save(figures.projection(parts), run.figures, "02_projection", caption)

# %% [markdown]
# ## A first result: dense probes by block
# Logistic regression with an L2 penalty on standardised activations $z$,
#
# $$\min_{w,b}\ \sum_i \log\!\big(1 + e^{-\tilde y_i (w \cdot z_i + b)}\big)
# + \tfrac{1}{2C}\lVert w\rVert^2 ,$$
#
# for every block that was read and every pooling, with $C$ by cross-validated AUROC in folds that
# keep the variants of a base prompt together. Scaling and $C$ see the training split only.
# Intervals are 95 % percentile bootstraps that draw *base prompts* with replacement, since the
# variants of one prompt are not independent. Notebook 05 goes on from here. **What to look for:** a
# probe that stays high out of distribution (C1), and poolings that lie together (C7).

# %%
every_cell = activations.load_pooled(store)
probes = dense_probes.of_cells(every_cell, Task.of(prompts), tuple(c_grid))
weights = metrics.split_weights(prompts, n_bootstrap, seed)
dense = dense_probes.table(prompts, probes, weights)
areas = dense[dense["metric"] == "auroc"]

# %%
caption = f"Profile {profile}, {model}. Dense probe; bands: 95 % bootstrap over base prompts. "
caption += f"Each panel has its own scale.\n{poolings.MEANING}"
labels = "layer", "split", "pooling", "layer (after block)"
figure = figures.curves(areas, *labels, share_y=False)
figures.save(figure, run.figures, "02_dense", caption)

# %% [markdown]
# ## Takeaway

# %%
speed = shards["tokens"].sum() / shards["seconds"].sum()
best = probe_tables.best_cell(areas)
at_best = areas[(areas["layer"] == best["layer"]) & (areas["pooling"] == best["pooling"])]
texts = dict(zip(at_best["split"], tables.texts(at_best)))
validation, outside = texts["val"], texts.get("ood", "not measured")
Markdown(
    f"{shards['tokens'].sum():,} tokens of {len(prompts):,} prompts at {speed:,.0f} tokens/s, "
    f"layers {wanted[0]} to {wanted[-1]} in one pass (with all poolings; hardware in the record). "
    f"The store is `{store.name}`.\n\nDense probe of best validation AUROC: layer {best['layer']}, "
    f"{best['pooling']} pooling, {validation} in validation, {outside} out of distribution."
)

# %%
has_turn = float(chat.has_template(bridge.tokenizer))
n_tokens = float(shards["tokens"].sum())
table = pd.DataFrame([
    {
        "metric": "harvest_tokens_per_s",
        "value": float(speed),
        "n": len(shards),
        "unit": "tokens/s",
    },
    {"metric": "tokens", "value": n_tokens, "n": len(prompts), "unit": "tokens"},
    {"metric": "has_user_turn", "value": has_turn, "n": 1, "unit": "1: yes, 0: no"},
])

# %%
table = pd.concat([table, dense], ignore_index=True)
headline = table[(table["metric"] != "auroc") | (table["split"] != "train")]
outputs = {
    "pooled": store,
    "dense": write_table(run.results / "dense.parquet", dense),
    "dense_scores": dense_probes.save_scores(probes, run.results / "dense_scores.parquet"),
}
records.write(run, table, headline, inputs=[prompts_path], outputs=outputs).name
