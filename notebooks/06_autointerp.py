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
# # 06 · Auto-interp, uniform and weighted by how often latents fire
#
# Claims C9 and C12.
#
# **The claims** (the paper, sections on chat finetuning and on high-frequency latents). Auto-interp scores say how well a short
# explanation predicts a latent. Averaged over latents they show no clear pattern among SAEs; weighted by firing frequency they
# rank them differently, because frequent latents score worse (C12). By the weighted mean, finetuning the SAE of pretraining data
# is slightly ahead of the other ways to a chat SAE, unless latents are resampled (C9).

# %%
import numpy as np
import pandas as pd
from IPython.display import HTML, Markdown, display
from lib.base.files import write_table, write_text
from lib.interp import autointerp, cards, examples, judges, llm
from lib.model import models
from lib.results import figures, records, tables
from lib.sae import folders
from lib.stats import metrics, populations
from lib.texts import corpora, datasets

# %% [markdown]
# ## Parameters

# %% tags=["parameters"]
profile = "embedded"
device = "cpu"
interp_corpus = "docstrings"  # docstrings | pretraining | rollouts | hf:<data set>; plain training and validation prompts are added
interp_tokens = 60_000  # read in random order; half of the texts for explaining, half for scoring
n_latents = 100  # judged per SAE, drawn by firing frequency
interp_seeds = [0]  # SAEs of these seeds
scoring = "simulation"  # simulation (the paper's) | detection | fuzzing
judge = "ngram"  # ngram (offline) | llm
llm_model = ""  # as the server calls it
llm_base_url = "http://localhost:11434/v1"  # any OpenAI-compatible server
llm_key_variable = "OPENAI_API_KEY"  # environment variable that holds the key
llm_max_requests = 20_000  # budget; what is judged before it is spent is kept
llm_max_tokens = 20_000_000
llm_prices = [0.0, 0.0]  # per million input and output tokens
n_cards = 6  # latents of each kind on the page of latent cards
seed = 0

# %% [markdown]
# ## Inputs
# The SAEs of notebooks 03 (architectures and sparsities) and 04 (ways to a chat SAE), and text cut into sequences of 32 tokens.
# A text is either for explaining or for scoring, for all latents and SAEs.

# %%
run = records.start("06_autointerp", globals())
prompts_path = records.output(run, "01_datasets", "prompts")
list_paths = [records.output(run, "03_sae_training", "saes"), records.output(run, "04_chat_finetune", "saes")]
prompts, (architectures, chat_saes) = datasets.load(prompts_path), map(pd.read_parquet, list_paths)
architectures = architectures[architectures["seed"].isin(interp_seeds)].assign(notebook="03")
chat_saes = chat_saes[chat_saes["seed"].isna() | chat_saes["seed"].isin(interp_seeds)].assign(notebook="04")
saes = pd.concat([architectures, chat_saes], ignore_index=True)
(model, dtype), layer = (records.read(run, "02_activations")["parameters"][name] for name in ("model", "dtype")), records.read(run, "04_chat_finetune")["parameters"]["layer"]
plain = prompts[(prompts["transform"] == "plain") & prompts["split"].isin(["train", "val"])]["text"].tolist()
texts = corpora.corpus(interp_corpus, interp_tokens) + plain
sequences = examples.harvest(models.load_model(model, device, dtype), models.identity(model), texts, layer, run.folder / "activations", interp_tokens, seed)
print(f"{len(saes)} SAEs at layer {layer}; {len(sequences.tokens):,} tokens in {len(sequences.scoring):,} sequences of {len(texts):,} texts")

# %% [markdown]
# ## Method
# The judge sees top-activating sequences of a latent, sequences from each quantile of its activating ones, and silent ones, with
# activations quantised to 0–10, and writes an **explanation**. For sequences it has not seen, without activations, it then
# estimates the quantised activation of the highest-activating token; the **score** is Spearman's $\rho$ between the true and the
# estimated. The offline judge learns a rule on tokens, word stems and neighbours; a language model behind any OpenAI-compatible
# server takes its place with `judge: llm`.
#
# The uniform mean is over latents, $\frac1N\sum_i s_i$; the weighted one over firings, $\sum_i \phi_i s_i / \sum_i \phi_i$, with
# firing frequency $\phi_i$. Latents are drawn in strata of frequency, so that one sample serves both, and stand for their stratum.

# %%
if judge == "llm":
    cache = run.folder / "llm"
    judging = llm.LLMJudge(llm_model, llm_base_url, llm_key_variable, cache, llm_max_requests, llm_max_tokens)
else:
    judging = judges.offline(judge)
of = models.resid_post(layer), model
scored = autointerp.score_saes(judging, saes["folder"].tolist(), sequences, n_latents, seed, scoring, *of)
stopped = [one.stopped for one in scored if one.stopped]
print(stopped[0] + "; the means speak of what was judged before" if stopped else "all judged")

# %%
rows = []
for place, (row, one) in enumerate(zip(saes.itertuples(), scored, strict=True)):
    of_sae = {"sae": place, "notebook": row.notebook, "variant": row.variant, "sparsity": row.sparsity, "seed": row.seed, "l0": one.table["frequency"].sum()}
    rows += [of_sae | {"mean": name} | found._asdict() for name, found in autointerp.means(one.table).items()]
table = pd.DataFrame(rows)
counts = pd.concat([autointerp.coverage(one.table).assign(sae=i) for i, one in enumerate(scored)])
coverage = counts.pivot(index="sae", columns="status", values=["latents", "firing_mass"]).fillna(0.0)
coverage.agg(["mean", "min", "max"]).T.round(3)

# %% [markdown]
# ## Scores against L0
# **What to look for:** curves that lie together on the left, and in another order on the right, JumpReLU ahead at high L0 (C12).
# **What would refute C12:** the same order in both.

# %%
score_label = f"auto-interp score ({'Spearman ρ' if scoring == 'simulation' else 'true minus false positive rate'})"
names = {"uniform": "uniform mean", "weighted": "weighted by firing frequency"}
about = f"Profile {profile}, layer {layer}, {judge} judge, {scoring}; 95 % intervals over latents ({n_latents} per SAE), not over SAEs."
about += f"\nPartial: {stopped[0]}." if stopped else ""
points = table[table["notebook"] == "03"].assign(panel=lambda t: t["mean"].map(names))
figure = figures.curves(points, "l0", "panel", "variant", "L0 (active latents per token)", score_label, logx=True)
figures.save(figure, run.figures, "06_scores", about)

# %% [markdown]
# ## Scores by frequency
# Latents in fifths: of their number, and of the firings. **What to look for:** scores that fall to the right (C12).
# **What would refute it:** level or rising curves.

# %%
of_03 = saes[(saes["notebook"] == "03") & (saes["seed"] == interp_seeds[0])]
third = of_03[of_03.groupby("variant")["sparsity"].rank() == min(3, of_03.groupby("variant").size().min())]
fifths = pd.concat([autointerp.by_frequency(scored[i].table).assign(variant=row["variant"], sae=i) for i, row in third.iterrows()])
panels = fifths.assign(panel=lambda t: "fifths of the " + t["by"])
if len(panels):
    figure = figures.curves(panels, "quantile", "panel", "variant", "fifth by frequency (1: rarest)", score_label)
    display(figures.save(figure, run.figures, "06_frequency", f"{about}\nOne SAE of each architecture of notebook 03, of the same rank of sparsity (L0 {', '.join(f'{scored[i].table.frequency.sum():.0f}' for i in third.index)})."))

# %% [markdown]
# In numbers, over the SAEs of notebook 03: how far the score falls from the rarest to the most frequent fifth of the latents, the
# rank correlation of the two means, and what the JumpReLU SAEs are ahead of TopK at the highest L0.

# %%
of_architectures = [i for i, row in saes.iterrows() if row["notebook"] == "03"]
wide = points.pivot(index="sae", columns="mean", values="value")
falls = np.array([autointerp.fall(scored[i].table) for i in of_architectures])
checks = [{"metric": "autointerp_fall"} | metrics.t_interval(falls[~np.isnan(falls)])._asdict()]
checks += [{"metric": "rank_correlation", "value": wide["uniform"].corr(wide["weighted"], method="spearman"), "n": len(wide), "n_groups": len(wide)}]
densest = points[points["sparsity"] == points.loc[points["variant"] == "topk", "sparsity"].max()]
at_densest = {(r.mean, r.variant): populations.Estimate(r.value, r.low, r.high, r.n, r.n_groups) for r in densest[densest["seed"] == interp_seeds[0]].itertuples()}
checks += [
    {"metric": "autointerp_lead", "variant": variant, "mean": mean, "against": "topk"} | populations.difference(found, at_densest[mean, "topk"])._asdict()
    for (mean, variant), found in at_densest.items() if variant.startswith("JumpReLU")
]
checks = pd.DataFrame(checks)
checks.assign(found=[tables.text(r) for r in checks.itertuples()]).drop(columns=["value", "low", "high"])

# %% [markdown]
# ## The ways to a chat SAE
# **What to look for:** `finetuned from pretraining SAE` slightly ahead by the weighted mean, the resampled one behind (C9).

# %%
ways = table[table["notebook"] == "04"].assign(panel=lambda t: t["mean"].map(names))
label = ways["seed"].map(lambda s: "" if pd.isna(s) or len(interp_seeds) == 1 else f", seed {int(s)}")
figure = figures.points(ways.assign(variant=ways["variant"] + label), "variant", "panel", xlabel=score_label)
figures.save(figure, run.figures, "06_chat", about)

# %%
first = "finetuned from pretraining SAE"
estimates = {(r.variant, r.mean): populations.Estimate(r.value, r.low, r.high, r.n, r.n_groups) for r in ways[ways["seed"].isna() | (ways["seed"] == interp_seeds[0])].itertuples()}
apart = pd.DataFrame([
    {"variant": variant, "mean": mean, "against": first} | populations.difference(found, estimates[first, mean])._asdict()
    for (variant, mean), found in estimates.items() if variant != first
])
apart.assign(difference=[tables.text(r) for r in apart.itertuples()]).pivot(index="variant", columns="mean", values="difference")

# %% [markdown]
# ## Explained examples
# Two well and two badly explained latents of the finetuned SAE. Orange: activation, on the scale of the latent's own maximum.

# %%
chosen_path = records.output(run, "05_probing", "chosen_latents")
probe_latents = pd.read_parquet(chosen_path)
shown = saes[saes["folder"].isin(probe_latents["folder"])]
made = {}
for place, row in shown.iterrows():
    matrix = examples.encode(folders.load(row["folder"]), sequences)
    of_probe = probe_latents[probe_latents["folder"] == row["folder"]].set_index("latent")
    aurocs = of_probe.filter(regex="^(val|ood)$").add_prefix("AUROC ").to_dict("index")
    picked = {"chosen by the probe": of_probe.index.tolist()} | cards.pick(scored[place].table, n_cards)
    wanted = sorted({latent for members in picked.values() for latent in members} - set(scored[place].table.dropna(subset="score")["latent"]))
    judged = autointerp.judge_also(judging, matrix, sequences, scored[place], wanted, seed, scoring)
    made[row["variant"]] = cards.cards(matrix, sequences, row["variant"], picked, judged.table, aurocs)
few = [one for which in ("best explained", "worst explained") for one in [card for card in made[first] if which in card.why][:2]]
display(HTML(cards.fragment(few)))

# %%
page = [one for part in made.values() for one in part]
write_text(run.figures / "latents.html", cards.page(page, f"Latents of profile {profile}, layer {layer}"))
print(f"{len(page)} latents with search and sort: figures/{profile}/latents.html")

# %% [markdown]
# ## Takeaway

# %%
spread = points.groupby("mean")["value"].agg(lambda values: values.max() - values.min())
ends = fifths[fifths["by"] == "latents"].groupby("quantile")["value"].mean().reindex([1, 5])
at = {key: tables.text(found) for key, found in estimates.items()}
cost = ""
if judge == "llm":
    cost = f"\n\nThe judge: {judging.usage._asdict()}, cost {judging.cost(*llm_prices):.2f}."
Markdown(
    f"Over the SAEs of notebook 03 the uniform mean spans {spread['uniform']:.3f}, the weighted one {spread['weighted']:.3f}. From the rarest to the most "
    f"frequent fifth of the latents the score goes from {ends[1]:.3f} to {ends[5]:.3f}. Weighted means: {first} {at[first, 'weighted']}, "
    f"pretraining SAE {at['pretraining SAE', 'weighted']}, from scratch {at['from scratch', 'weighted']}.\n\n"
    f"*Caveats.* The score is of SAE and judge together: the {judge} judge is the limit of what can be explained. One SAE of each kind and seed "
    f"{interp_seeds}; intervals are over the latents drawn." + cost
)

# %%
every = pd.concat([one.table[one.table["status"] != "not drawn"].assign(sae=i, folder=saes.loc[i, "folder"]) for i, one in enumerate(scored)])
latents_path = write_table(run.results / "latent_scores.parquet", every.reset_index(drop=True))
unit = {"unit": score_label}
full = pd.concat([table.assign(metric="autointerp", **unit), fifths.assign(metric="autointerp_by_frequency", **unit), apart.assign(metric="autointerp_difference", **unit), checks.assign(**unit), counts.assign(metric="coverage")], ignore_index=True)
headline = full[full["metric"].isin(["autointerp", "autointerp_difference", *checks["metric"]])]
records.write(run, full, headline, inputs=[prompts_path, *list_paths, chosen_path], outputs={"latent_scores": latents_path}).name
