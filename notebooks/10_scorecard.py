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
# Claims C1 to C13.
#
# **What this is.** Each claim in our words, where the paper makes it, the paper's number where it gives one, what this profile
# measured, and a verdict by a rule that stands in `data/claims.yaml`. Profiles whose records are kept in `data/records` stand beside it.

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

# %%
run = records.start("10_scorecard", globals())
upstream = [
    records.read(run, "03_sae_training"), records.read(run, "04_chat_finetune"), records.read(run, "05_probing"),
    records.read(run, "06_autointerp"), records.read(run, "07_dataset_debugging"),
]  # fmt: skip
by_profile = {profile: {record["notebook"]: record for record in upstream}}
by_profile |= {name: found for name, found in scorecard.committed().items() if name != profile}
claims = scorecard.load()
print(f"{len(claims)} claims; records of the profiles {', '.join(by_profile)}")

# %% [markdown]
# ## Method
# A rule is a list of conditions on measured values and the ends of their 95 % intervals. If all conditions of *reproduced* hold, the
# claim is reproduced; if not, but all of *direction only* hold, the paper's direction is there and its size is not; otherwise it is not
# reproduced. A claim whose quantity this setting does not have is not applicable, and without a record it is not run. The rules of C13
# were written before its numbers were seen; those of C1 to C12 when earlier runs of the embedded profile were known, from the claims'
# wording and with two margins for all (0.02 AUROC is the same, 0.05 is much).

# %%
rules = [{"claim": name, "rule": rule, "conditions": " and ".join(claim["rule"][rule])} for name, claim in claims.items() for rule in scorecard.RULES]
with pd.option_context("display.max_colwidth", None):
    shown = pd.DataFrame(rules).pivot(index="claim", columns="rule", values="conditions").loc[list(claims), list(scorecard.RULES)]
    rules_html = shown.to_html()
HTML(rules_html)

# %% [markdown]
# ## Verdicts
# **What to look for:** claims on which the profiles agree. **What would refute a claim:** *not reproduced* in both, with intervals
# narrow enough to tell. The model is far from the paper's, so a verdict here is on the claim in this setting.

# %%
rows = scorecard.every(claims, by_profile)
table = scorecard.table(rows)
short = [scorecard.shown(row, 1) for row in rows]
caption = "Claims of the paper by profile; first quantity of each with its 95 % interval. Rules: data/claims.yaml."
figures.save(figures.verdicts(table.assign(measured=short), scorecard.VERDICTS), run.figures, "10_scorecard", caption)

# %%
own = table[table["profile"] == profile].set_index("id")
with pd.option_context("display.max_colwidth", None):
    claims_html = own[["claim", "where", "paper", "measured", "n", "seeds", "verdict", "why", "difference"]].to_html(na_rep="")
HTML(claims_html)

# %% [markdown]
# ## Takeaway

# %%
counted = scorecard.counts(rows)
said = {name: part.set_index("verdict")["value"].to_dict() for name, part in counted.groupby("profile", sort=False)}
lines = [f"- {name}: " + ", ".join(f"{found[verdict]} {verdict}" for verdict in scorecard.VERDICTS if verdict in found) for name, found in said.items()]
verdicts = {name: table[table["profile"] == name].set_index("id")["verdict"] for name in by_profile}
same = [claim for claim in claims if len({found[claim] for found in verdicts.values()}) == 1]
together = f"\n\nThe profiles agree on {', '.join(same) or 'none'}." if len(by_profile) > 1 else ""
Markdown(f"Of {len(claims)} claims:\n\n" + "\n".join(lines) + together)

# %%
tidy = table.assign(metric="verdict", value=table["verdict"].map(scorecard.VERDICTS.index).astype(float), unit="place in the list of verdicts")
headline = counted.assign(metric="claims", unit="claims")
records.write(run, tidy, headline, inputs=[], outputs={}).name
