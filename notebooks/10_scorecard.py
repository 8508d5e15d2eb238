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
# # 10 · Scorecard: which of the paper's claims reproduce here?
#
# Claims: all of `data/claims.yaml`.
#
# **What this is.** Each claim in our words, where the paper makes it, the paper's number where it
# gives one, what this profile measured, and a verdict by a rule that stands in `data/claims.yaml`.
# Profiles whose records are kept in `data/records` stand beside it.

# %%
import pandas as pd
from IPython.display import HTML, Markdown

from lib.results import figures, records, scorecard

# %% [markdown]
# ## Parameters

# %% tags=["parameters"]
profile = "embedded"

# %% [markdown]
# ## Inputs
# The records of all notebooks before this one, so that a claim may rest on any of them.

# %%
run = records.start("10_scorecard", globals())
upstream = [
    records.read(run, "01_datasets"),
    records.read(run, "02_activations"),
    records.read(run, "03_sae_training"),
    records.read(run, "04_chat_finetune"),
    records.read(run, "05_probing"),
    records.read(run, "06_autointerp"),
    records.read(run, "07_dataset_debugging"),
    records.read(run, "08_why"),
]
kept = {name: of_profile for name, of_profile in scorecard.committed().items() if name != profile}
by_profile = {profile: {record["notebook"]: record for record in upstream}} | kept
claims = scorecard.load()
print(f"{len(claims)} claims: {', '.join(claims)}; records of the profiles {', '.join(by_profile)}")

# %% [markdown]
# ## Method
# A rule is a list of conditions on measured values and the ends of their 95 % intervals. If all
# conditions of *reproduced* hold, the claim is reproduced; if not, but all of *direction only*
# hold, the paper's direction is there and its size is not; otherwise it is not reproduced. A claim
# whose quantity this setting does not have is not applicable, and without a record it is not run.
# The last column says what was known when a rule was written. Rules follow the claims' wording,
# with two margins for all: 0.02 AUROC is the same, 0.05 is much.

# %%
with pd.option_context("display.max_colwidth", None):
    rules_html = scorecard.rules(claims).to_html()
HTML(rules_html)

# %% [markdown]
# ## Verdicts
# **What to look for:** claims on which the profiles agree. **What would refute a claim:** *not
# reproduced* in both, with intervals narrow enough to tell. The model is far from the paper's, so a
# verdict here is on the claim in this setting.

# %%
rows = scorecard.every(claims, by_profile)
table = scorecard.table(rows)
short = table.assign(measured=[scorecard.shown(row, 1) for row in rows])
caption = (
    "Claims of the paper by profile; first quantity of each with its 95 % interval. "
    "Rules: data/claims.yaml."
)
figure = figures.verdicts(short, scorecard.VERDICTS)
figures.save(figure, run.figures, "10_scorecard", caption)

# %%
own = table[table["profile"] == profile].drop(columns=["profile", "title"]).set_index("id")
with pd.option_context("display.max_colwidth", None):
    claims_html = own.to_html(na_rep="")
HTML(claims_html)

# %% [markdown]
# ## Takeaway

# %%
Markdown(scorecard.summary(rows))

# %%
place = table["verdict"].map(scorecard.VERDICTS.index).astype(float)
tidy = table.assign(metric="verdict", value=place, unit="place in the list of verdicts")
headline = scorecard.counts(rows).assign(metric="claims", unit="claims")
records.write(run, tidy, headline, inputs=[], outputs={}).name
