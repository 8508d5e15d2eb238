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
# **What this is.** Each claim of the paper in parts that can be true or false alone, what this
# profile measured of them, and a verdict on each part by a rule that stands in `data/claims.yaml`.
# Profiles whose records are kept in `data/records` stand beside it.

# %%
import pandas as pd
from IPython.display import HTML, Markdown

from lib.results import claims, figures, records, scorecard

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
    records.read(run, "09_many_tasks"),
]
by_profile = scorecard.with_run(scorecard.committed(), profile, upstream)
rules = claims.load()
parts = f"{len(rules.parts())} parts of {len(rules.claims)} claims"
print(f"{parts}; records of the profiles {', '.join(by_profile)}")

# %% [markdown]
# ## Method
# A part says of a difference $d$ that it is above zero, below zero, or too small to matter. The
# interval $[l, h]$ of $d$ and the margin $m$, the smallest difference that matters, decide:
#
# - *above*: reproduced if $l > 0$ and $h > m$, opposite if $h < 0$ and $l < -m$, no difference if
#   $-m \le l$ and $h \le m$; *below* is its mirror image;
# - *the same*: reproduced if $-m \le l$ and $h \le m$, opposite if $l > m$ or $h < -m$.
#
# What the interval shows nothing of is *inconclusive*. Where several comparisons make a part,
# every one must hold, with intervals at Holm's levels, and one that is opposite is enough for
# *opposite*. A part whose quantity this setting does not have is *not applicable*, and without a
# record it is *not run*. A claim has no verdict beside those on its parts.

# %%
HTML(claims.margin_table(rules).to_html())

# %% [markdown]
# What the paper says, what we take for it, and when it holds. *seen*: whether an earlier run had
# shown the quantity when the rule was written; *mends*: what was wrong with the earlier rules, by
# the numbers of the table below.

# %%
Markdown(claims.known(rules))

# %%
with pd.option_context("display.max_colwidth", None):
    rules_html = claims.part_table(rules).to_html()
HTML(rules_html)

# %%
with pd.option_context("display.max_colwidth", None):
    faults_html = claims.fault_table(rules).to_html()
HTML(faults_html)

# %% [markdown]
# ## Verdicts
# **What to look for:** parts on which the profiles agree, and claims of which one part holds and
# another does not. **What would refute a part:** *opposite* in every profile. *Inconclusive* says
# that this many prompts, seeds or artefacts cannot tell. The model is far from the paper's, so a
# verdict here is on the claim in this setting, but for C16 a to c, which are published numbers of
# Gemma 2 9B.

# %%
rows = scorecard.every(rules, by_profile)
table = scorecard.table(rows, rules)
caption = (
    "Parts of the paper's claims by profile, each with its value and 95 % interval; of several "
    "comparisons how many hold, and the one that speaks most against the claim.\nA value is a "
    "difference, or is compared with the number that it should be the same as. The margin is the "
    "smallest difference that matters. Rules: data/claims.yaml."
)
figure = figures.verdicts(table, scorecard.VERDICTS)
figures.save(figure, run.figures, "10_scorecard", caption)

# %% [markdown]
# This profile's verdicts with all that they rest on, or why there is none.

# %%
columns = ["id", "claim_title", "title", "verdict", "measured", "why", "n"]
own = table.loc[table["profile"] == profile, columns].set_index("id")
# In a column of whole numbers pandas writes what is missing as <NA>, whatever na_rep says.
shown = own.astype(object).where(own.notna(), "")
with pd.option_context("display.max_colwidth", None):
    verdicts_html = shown.to_html()
HTML(verdicts_html)

# %% [markdown]
# ## Takeaway

# %%
Markdown(scorecard.summary(rows))

# %%
place = table["verdict"].map(scorecard.VERDICTS.index).astype(float)
tidy = table.assign(metric="verdict", value=place, unit="place in the list of verdicts")
headline = scorecard.counts(rows).assign(metric="parts", unit="parts of claims")
records.write(run, tidy, headline, inputs=[], outputs={}).name
