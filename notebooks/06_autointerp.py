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
# **The claims** (the paper, sections on chat finetuning and on high-frequency latents).
# Auto-interp scores say how well a short explanation predicts a latent. Averaged over latents they
# show no clear pattern among SAEs; weighted by firing frequency they rank them differently, because
# frequent latents score worse (C12). By the weighted mean, finetuning the SAE of pretraining data
# is slightly ahead of the other ways to a chat SAE, unless latents are resampled (C9).

# %%
import pandas as pd
from IPython.display import HTML, Markdown, display

from lib.base.files import write_table, write_text
from lib.interp import autointerp, cards, examples, judges, llm, summaries
from lib.model import models
from lib.results import figures, records, tables
from lib.sae import folders
from lib.texts import corpora, datasets

# %% [markdown]
# ## Parameters

# %% tags=["parameters"]
profile = "embedded"
device = "cpu"
interp_corpus = "shipped:SmolLM2-135M-Instruct"  # as notebook 03's corpus; prompts join
interp_tokens = 40_000  # read in random order; half of the texts for explaining, half for scoring
n_latents = 100  # judged per SAE, drawn by firing frequency
interp_seeds = [0, 1, 2]  # SAEs of these seeds
scoring = "simulation"  # simulation (the paper's) | detection | fuzzing
judge = "ngram"  # ngram (offline) | llm
llm_model = ""  # as the server calls it
llm_base_url = "http://localhost:11434/v1"  # any OpenAI-compatible server
llm_key_variable = "OPENAI_API_KEY"  # environment variable that holds the key
llm_max_requests = 20_000  # budget; what is judged before it is spent is kept
llm_max_tokens = 20_000_000
llm_input_price = 0.0  # per million tokens
llm_output_price = 0.0  # per million tokens
n_cards = 6  # latents of each kind on the page of latent cards
seed = 0

# %% [markdown]
# ## Inputs
# The SAEs of notebooks 03 (architectures and sparsities) and 04 (ways to a chat SAE), and text cut
# into sequences of 32 tokens. A text is either for explaining or for scoring, for all latents and
# SAEs.

# %%
run = records.start("06_autointerp", globals())
prompts_path = records.output(run, "01_datasets", "prompts")
model = records.read(run, "02_activations")["parameters"]["model"]
dtype = records.read(run, "02_activations")["parameters"]["dtype"]
layer = records.read(run, "04_chat_finetune")["parameters"]["layer"]

# %%
list_paths = {
    "03": records.output(run, "03_sae_training", "saes"),
    "04": records.output(run, "04_chat_finetune", "saes"),
}
lists = [pd.read_parquet(path).assign(notebook=name) for name, path in list_paths.items()]
saes = pd.concat(lists, ignore_index=True)
shown_seed = summaries.common_seed(saes, interp_seeds)
saes = saes[saes["seed"].isin(interp_seeds)].reset_index(drop=True)
print(f"{len(saes)} SAEs at layer {layer}; those of seed {shown_seed} are shown one by one")

# %%
prompts = datasets.load(prompts_path)
is_plain = (prompts["transform"] == "plain") & prompts["split"].isin(["train", "val"])
texts = corpora.corpus(interp_corpus, interp_tokens) + prompts.loc[is_plain, "text"].tolist()
sequences = examples.harvest(
    models.load_model(model, device, dtype),
    models.identity(model),
    texts,
    layer,
    run.folder / "activations",
    max_tokens=interp_tokens,
    seed=seed,
)
n_sequences = f"{len(sequences.scoring):,} sequences of {len(texts):,} texts"
print(f"{len(sequences.tokens):,} tokens in {n_sequences}")

# %% [markdown]
# ## Method
# The judge sees top-activating sequences of a latent, sequences from each quantile of its
# activating ones, and silent ones, with activations quantised to 0–10, and writes an
# **explanation**. For sequences it has not seen, without activations, it then estimates the
# quantised activation of the highest-activating token; the **score** is Spearman's $\rho$ between
# the true and the estimated. The offline judge learns a rule on tokens, word stems and neighbours;
# a language model behind any OpenAI-compatible server takes its place with `judge: llm`.
#
# The uniform mean is over latents, $\frac1N\sum_i s_i$; the weighted one over firings,
# $\sum_i \phi_i s_i / \sum_i \phi_i$, with firing frequency $\phi_i$. Latents are drawn in strata
# of frequency, so that one sample serves both, and stand for their stratum. Latent $i$ of a
# finetuned SAE began as latent $i$ of the SAE that was finetuned: SAEs that began as one are judged
# by the same latents, and compared latent by latent.
#
# A frequent latent leaves few windows silent and its levels lie closer together, so that any
# explanation has less to predict. Each latent is therefore scored once more with **shuffled**
# explanations, those of other latents of about its frequency.

# %%
settings = llm.Settings(
    llm_model,
    llm_base_url,
    llm_key_variable,
    run.folder / "llm",
    llm_max_requests,
    llm_max_tokens,
)
judging = judges.make(judge, settings)
trial = autointerp.Trial(n_latents, seed, scoring)
hook_name = models.resid_post(layer)
by_folder = autointerp.score_saes(
    judging, summaries.kin(saes), sequences, trial, hook_name=hook_name, model=model
)
scored = [by_folder[folder] for folder in saes["folder"]]
stopped = next((scores.stopped for scores in scored if scores.stopped), "")
print(f"{stopped}; the means speak of what was judged before" if stopped else "all judged")

# %%
draws = summaries.mean_draws(saes, scored, seed)
table = summaries.means_of_saes(draws, scored)
counts = summaries.coverage_of_saes(scored)
summaries.coverage_over_saes(counts).round(3)

# %% [markdown]
# ## What weighting changes, at equal L0
# Frequent latents are more at a higher L0, so architectures are compared at equal L0: their means
# are interpolated to the L0s of the TopK SAEs. **What to look for:** JumpReLU behind TopK by the
# uniform mean and ahead by the weighted one, above all at high L0 (C12). **What would refute C12:**
# the same order by both. Grey: the weighted mean with shuffled explanations.

# %%
score_label = f"auto-interp score ({autointerp.measure(scoring)})"
about = f"Profile {profile}, layer {layer}, {judge} judge, {scoring}; 95 % over latents "
about += f"({n_latents} per SAE)" + (f"; partial: {stopped}" if stopped else "")
of_seeds = f"{about} and SAEs of seeds {interp_seeds}." if len(interp_seeds) > 1 else f"{about}."
leading, reference = "JumpReLU, L0", summaries.reference(saes, "03", "topk")
matched = summaries.at_matched_l0(draws.where(notebook="03"), reference, seed)

# %%
shown = summaries.sorted_means(matched)
figure = figures.points(
    shown, "variant", "panel", "mean", xlabel=score_label, grey=summaries.SHUFFLED
)
figures.save(figure, run.figures, "06_scores", of_seeds)

# %% [markdown]
# In numbers: by how much the weighted mean is below the uniform one (drop), how far the other
# architectures are ahead of TopK by each mean (lead), and what JumpReLU gains on TopK by weighting.

# %%
weighting = summaries.weighting(matched, leading, reference)
tables.in_columns(weighting, ["metric", "variant", "l0"], "mean")

# %% [markdown]
# ## Scores by frequency
# Latents in fifths: of their number, and of the firings. **What to look for:** scores that fall to
# the right (C12). **What would refute it:** level or rising curves.

# %%
compared = summaries.of_same_rank(saes, scored, "03", shown_seed)
fifths = summaries.by_frequency_of_saes(compared, scored)
l0s = ", ".join(f"{summaries.l0(scored[place]):.0f}" for place in compared.index)
caption = f"One SAE of each architecture of notebook 03, seed {shown_seed}, of the same rank of "
caption += f"measured L0 (in the legend's order {l0s})."
shown = fifths.assign(panel="fifths of the " + fifths["by"])
x_label = "fifth by frequency (1: rarest)"
if len(shown):
    figure = figures.curves(shown, "quantile", "panel", "variant", x_label, score_label)
    display(figures.save(figure, run.figures, "06_frequency", f"{about}.\n{caption}"))

# %% [markdown]
# In numbers, a mean over the SAEs of notebook 03: how far the score falls from the rarest to the
# most frequent fifth of the latents; how far it falls with shuffled explanations, which were not
# made for the latent; and the difference, which is not owed to frequency alone.

# %%
is_of_03 = saes["notebook"] == "03"
fall = summaries.fall_rows([scored[place] for place in saes.index[is_of_03]], seed)
fall.assign(estimate=tables.texts(fall))[["metric", "estimate"]]

# %% [markdown]
# ## The ways to a chat SAE
# **What to look for:** `finetuned from pretraining SAE` slightly ahead by the weighted mean, the
# resampled one behind (C9). **What would refute C9:** a way that is ahead of it.

# %%
ways = summaries.over_seeds(draws, "04", seed)
figure = figures.points(ways, "variant", "panel", xlabel=score_label)
figures.save(figure, run.figures, "06_chat", of_seeds)

# %% [markdown]
# How far each way is behind the finetuned one, within a seed of both. All are a family of
# comparisons, with intervals at Holm's levels; SAEs that began as one are compared latent by
# latent.

# %%
first = "finetuned from pretraining SAE"
apart = summaries.differences(draws.where(notebook="04"), first, seed)
behind = summaries.behind(apart)
tables.in_columns(behind, "variant", "mean")

# %% [markdown]
# ## Explained examples
# Two well and two badly explained latents of the finetuned SAE. Orange: activation, on the scale of
# the latent's own maximum.

# %%
chosen_path = records.output(run, "05_probing", "chosen_latents")
probe_latents = pd.read_parquet(chosen_path)
cards_of = {}
for place, row in saes[saes["folder"].isin(probe_latents["folder"])].iterrows():
    sae = folders.load(row["folder"])
    encoded, sae_id = examples.encode(sae, sequences), cards.neuronpedia_id(sae)
    of_probe = probe_latents[probe_latents["folder"] == row["folder"]].set_index("latent")
    aurocs = of_probe.filter(regex="^(val|ood)$").add_prefix("AUROC ").to_dict("index")
    picked = cards.pick(scored[place].table, n_cards)
    picked = {"chosen by the probe": of_probe.index.tolist()} | picked
    unjudged = cards.unjudged(picked, scored[place].table)
    judged = autointerp.judge_also(judging, encoded, scored[place], unjudged, trial)
    cards_of[row["variant"]] = cards.cards(
        encoded, row["variant"], picked, judged.table, aurocs, sae_id
    )

# %%
best, worst = (
    [card for card in cards_of[first] if f"{which} explained" in card.why]
    for which in ("best", "worst")
)
display(HTML(cards.fragment(best[:2] + worst[:2])))

# %%
page = [card for of_sae in cards_of.values() for card in of_sae]
title = f"Latents of profile {profile}, layer {layer}"
write_text(run.figures / "latents.html", cards.page(page, title))
print(f"{len(page)} latents with search and sort: figures/{profile}/latents.html")

# %% [markdown]
# ## Takeaway

# %%
of_fall = {
    row.metric: tables.directed(row, "falls by", "rises by") for row in fall.itertuples()
}
behind_texts = tables.texts(behind[behind["mean"] == "weighted"].set_index("variant"))
lines = [f"- {variant}: {text}" for variant, text in behind_texts.items()]
bill = judging.bill((llm_input_price, llm_output_price))
Markdown(
    summaries.in_words(weighting, leading, reference)
    + f" From the rarest to the most frequent fifth of the latents the score "
    f"{of_fall['autointerp_fall']}; with shuffled explanations it "
    f"{of_fall['autointerp_fall_shuffled']}; beyond these it "
    f"{of_fall['autointerp_fall_over_shuffled']}.\n\n"
    f"Behind the SAE {first}, by the weighted mean:\n\n"
    + "\n".join(lines)
    + f"\n\n*Caveats.* The score is of SAE and judge together: the {judge} judge is the limit of "
    f"what can be explained. At most one SAE of each kind and seed in {interp_seeds}."
    + (f"\n\nThe judge: {bill}." if bill else "")
)

# %%
drawn = summaries.drawn_latents(saes, scored)
latents_path = write_table(run.results / "latent_scores.parquet", drawn)
estimates = {
    "autointerp": table,
    "autointerp_by_frequency": fifths,
    "autointerp_difference": apart,
    "autointerp_behind_finetuned": behind,
}
named = [rows.assign(metric=metric) for metric, rows in estimates.items()]
correlation = summaries.rank_correlation(table[table["notebook"] == "03"])
full = pd.concat([*named, weighting, fall, correlation], ignore_index=True)
full = pd.concat([full.assign(unit=score_label), counts.assign(metric="coverage")])
in_full_only = ["autointerp_by_frequency", "coverage"]
headline = full[~full["metric"].isin(in_full_only)]

# %%
inputs, outputs = [prompts_path, *list_paths.values(), chosen_path], {"latent_scores": latents_path}
records.write(run, full, headline, inputs=inputs, outputs=outputs).name
