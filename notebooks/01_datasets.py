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
# # 01 · Data sets: harmful intent, also behind a jailbreak
#
# Prepares claims C1–C8 and shows the problem behind C13.
#
# The paper asks whether SAE latents give better *out-of-distribution* probes than dense linear
# probes for one task: telling from a user's prompt whether the intent is harmful. The label stays
# "harmful" when a jailbreak hides the request, and it is "harmless" when a harmful text is only an
# object of something innocent ("How many words are in the following text: …"). This notebook builds
# the labelled prompts: base prompts are drawn, their formatting is normalised, they are split, and
# each is put into the wrappers of its split.
#
# **Content note.** The harmful class consists of short requests at the level of AdvBench; there are
# no answers.

# %%
import functools

import numpy as np
import pandas as pd
from IPython.display import Markdown, display

from lib.interp import llm, refusals
from lib.model import chat, models, rollouts
from lib.probing import dense as dense_probes
from lib.results import figures, records, tables
from lib.stats import metrics
from lib.texts import datasets, own_texts, sources
from lib.texts.labelled import Columns

# %% [markdown]
# ## Parameters
# The defaults are the `embedded` profile. With `train_csv` your own labelled texts take the place
# of the shipped ones; augmentation is then off unless you set `augment="on"`.

# %% tags=["parameters"]
profile = "embedded"
dataset = "embedded"  # embedded | public
toxic_looking = "xstest"  # harmless prompts of public that look toxic, xstest | or_bench (hub)
train_csv = ""  # your own labelled texts, as CSV of any dialect, JSON lines or parquet
ood_csv = ""  # the same, out of distribution
text_column = ""  # of these files; found where it is unambiguous
label_column = ""
group_column = ""  # variants of one text
positive_label = []  # labels of the positive class, or a threshold of scores; empty: found
encoding = ""
drop_duplicates = True  # in these files, repeats of a text with its label
drop_conflicts = True  # in these files, all rows of a text that has both labels
decode_entities = False  # in these files, of HTML, such as &amp;
csv_rows = 2000  # of each file, at most; each class keeps its share (0: all)
csv_tokens = 512  # of a text in them, whose end is kept
normalize = True  # remove formatting that tells the label
augment = "auto"  # auto | on | off, wrap prompts in jailbreaks and innocuous transformations
n_harmful = 160  # base prompts at most, in distribution
n_harmless = 450
n_ood_harmful = 180
n_ood_toxic_looking = 170
n_ood_chat = 160
length_matched = True  # draw harmless prompts with the harmful ones' lengths, in distribution
benign_jailbreak_share = 1.0  # fraction of harmless prompts that are also put into a jailbreak
innocuous_share = 0.3  # the same for an innocuous transformation
val_share = 0.2  # fraction of in-distribution base prompts
max_cosine = 0.9  # near-duplicates across splits above this MiniLM cosine are removed
n_bootstrap = 2000
model = "SmolLM2-135M-Instruct"  # packaged, a Hugging Face id, a folder, or a GGUF file
device = "cpu"
dtype = "float32"  # of the forward pass, float32 | bfloat16 | float16
n_jailbroken = 20  # harmful base prompts of each pool that a chat model answers (0: none)
response_tokens = 48  # of such an answer, at most
refusal_judge = "phrases"  # phrases | llm
llm_model = ""  # as the server calls it
llm_base_url = "http://localhost:11434/v1"  # any OpenAI-compatible server
llm_key_variable = "OPENAI_API_KEY"  # environment variable that holds the key
llm_max_requests = 20_000  # budget; what is judged before it is spent is kept
llm_max_tokens = 20_000_000
seed = 0

# %% [markdown]
# ## Base prompts
# In distribution, the harmful requests are formal imperatives and questions (HarmBench in the
# public profile) and the harmless ones ordinary instructions (Alpaca). Out of distribution, the
# harmful requests have another style (AdvBench), and the harmless ones are prompts that look
# toxic and are not (XSTest in the place of OR-Bench, which needs the Hugging Face hub) and plain
# chat requests. Of your own files it is said what was found in them, and what was left out.

# %%
run = records.start("01_datasets", globals())
cleaning, own = own_texts.Cleaning(drop_duplicates, drop_conflicts, decode_entities), None
if train_csv or ood_csv:
    columns = Columns(text_column, label_column, group_column, tuple(positive_label), encoding)
    tokenizer = models.load_tokenizer(model)
    shorten = functools.partial(models.shortened, tokenizer, most_tokens=csv_tokens)
    files = {"id": train_csv, "ood": ood_csv}
    own = own_texts.read(files, columns, cleaning, csv_rows, shorten)
    print("\n".join(own.said))
base = own.base if own else sources.base_prompts(dataset, toxic_looking)
label_names = figures.OWN_LABELS if own else figures.LABELS

# %%
base.groupby(["pool", "source", "label"], sort=False).agg(
    prompts=("text", "size"),
    questions=("text", lambda t: t.map(datasets.is_question).mean()),
    words=("text", lambda t: t.str.split().str.len().mean()),
    example=("text", lambda t: t.iloc[0][:70]),
).round(2)

# %% [markdown]
# ## Draw, normalise, split
# Normalising removes closing punctuation and brackets, straightens quotes, and makes the first
# letter a capital. The harmless class is drawn with the harmful class's share of questions and its
# histogram of lengths (`length_matched`), so that a probe cannot learn either as the label; out of
# distribution nothing is matched, as nothing is learned there. Base prompts, not their variants,
# are divided into training and validation, so variants of one prompt never cross splits.

# %%
rng = np.random.default_rng(seed)
limits = sources.limits(
    harmful=n_harmful,
    harmless=n_harmless,
    ood_harmful=n_ood_harmful,
    ood_toxic_looking=n_ood_toxic_looking,
    ood_chat=n_ood_chat,
)
raw = datasets.split_base(datasets.draw(base, limits, False, rng), val_share, rng)

# %%
questions = normalize and not train_csv
lengths = length_matched and not train_csv
drawn = datasets.draw(base, limits, questions, rng, length_matched=lengths)
if normalize:
    drawn = drawn.assign(text=drawn["text"].map(datasets.normalise))
drawn, left_out = own_texts.distinct(drawn, "once normalised", cleaning)
clean = datasets.split_base(drawn, val_share, rng)

# %%
rows_read = own_texts.account([*own.counts, *left_out], clean) if own else pd.DataFrame()
if own:
    display(own_texts.overview(rows_read))
clean.groupby(["split", "label"], sort=False).size().unstack()

# %% [markdown]
# ## What formatting alone gives away
# A probe that sees only the surface form (closing marks, brackets, quotes, capital first letter,
# question form, commas, number of words) should be near chance. **What to look for:** in
# validation the AUROC of this probe falls towards 0.5 with normalisation and matched lengths; what
# is left is mostly commas and quotes. Out of distribution nothing is matched, so that it may fall
# or rise there: the prompts differ in length, and the probe in what it has learned. **What would
# refute that either helps:** the same AUROC in validation before and after.

# %%
rows, drawn_as = [], "normalised" if normalize else "raw, drawn again"
drawn_as += ", lengths matched" if lengths else ""
for name, drawing in {"raw": raw, drawn_as: clean}.items():
    form = datasets.surface_form(drawing["text"].tolist()).to_numpy()
    train, y = (drawing["split"] == "train").to_numpy(), drawing["label"].to_numpy()
    probe = dense_probes.fit_logistic(form[train], y[train], drawing["base_id"].to_numpy()[train])
    weights = metrics.split_weights(drawing, n_bootstrap, seed)
    rows += metrics.by_split(drawing, probe.decision_function(form), weights, formatting=name)
formatting = pd.DataFrame(rows).query("metric == 'auroc' and split != 'train' and n > 0")
formatting = formatting.assign(metric="formatting_auroc")

# %%
caption = (
    f"Probe on surface form only. Profile {profile}, base prompts, "
    "95 % bootstrap over base prompts."
)
chance = pd.DataFrame({"split": ["val", "ood"], "value": 0.5, "low": 0.5, "high": 0.5})
options = {"reference": chance, "reference_label": "chance", "xlim": (0.3, 1.02)}
figure = figures.points(formatting, "formatting", "split", **options)
figures.save(figure, run.figures, "01_formatting", caption)

# %% [markdown]
# ## Register
# Whether somebody speaks of themselves (I, my, we …) is no formatting, and a probe may still read
# it. **What to look for:** the shares of the two classes close together within a pool, and those
# of harmful prompts close across pools, so that what is lost out of distribution is not a change
# of register. **What would show a set where it is the label:** a harmful row far from the others.

# %%
register = datasets.register(clean, n_bootstrap, seed)
named = register.assign(
    row=register["source"] + " (" + register["label"].map(label_names) + ")",
    panel="base prompts in the first person",
)
caption = f"Profile {profile}, base prompts as drawn; 95 % bootstrap over base prompts."
axis = {"xlabel": "share (fraction)", "xlim": (-0.02, 1.02)}
figure = figures.points(named, "row", "panel", **axis)
figures.save(figure, run.figures, "01_register", caption)

# %% [markdown]
# ## Near-duplicates across splits
# Prompts that say the same in two splits would make validation and OOD look easier than they are.
# For each base prompt the largest cosine of MiniLM sentence embeddings to the earlier splits;
# those above the threshold are removed (of your own texts they are only shown).

# %%
clean["cosine"] = datasets.cross_split_cosine(clean)
near = clean["cosine"] > max_cosine
caption = f"Profile {profile}; {near.sum()} of {len(clean):,} base prompts above {max_cosine}."
what = "shown, not removed" if train_csv else "removed above"
figure = figures.nearest_neighbours(clean, max_cosine, what)
figures.save(figure, run.figures, "01_near_duplicates", caption)

# %%
clean = clean if train_csv else clean[~near]

# %% [markdown]
# ## Augmentation
# A harmful prompt appears as it is, in every jailbreak of its split (label 1), and in every
# innocuous transformation (label 0): hard positives and hard negatives. So that a jailbreak is not
# the label, harmless prompts are wrapped in the jailbreaks too. An innocuous transformation *is*
# the label, by the paper's definition (to count words is harmless, whatever the words say). What
# it must not be is a sign of what it holds: a share of the harmless prompts stands in one as well.
# Wrappers of the OOD split are never seen in training.

# %%
wrap = augment == "on" or (augment == "auto" and not train_csv)
templates = datasets.load_templates("embedded" if train_csv else dataset)
if wrap:
    prompts = datasets.augment(
        clean, templates, benign_jailbreak_share, rng, innocuous_share=innocuous_share
    )
else:
    prompts = datasets.plain(clean)
prompts = datasets.check(prompts)
example = prompts[prompts["base_id"] == prompts["base_id"].iloc[0]]
example[["transform", "label", "text"]].assign(text=lambda t: t["text"].str[:110])

# %%
caption = f"Profile {profile}; {prompts['base_id'].nunique():,} base prompts."
figures.save(figures.composition(prompts, label_names), run.figures, "01_composition", caption)

# %%
caption = f"Profile {profile}; n = {len(prompts):,} prompts after augmentation, of which the "
caption += f"longest {1 - figures.SHOWN_LENGTHS:.1%} are not shown."
figures.save(figures.lengths(prompts, label_names), run.figures, "01_lengths", caption)

# %% [markdown]
# What the wrapper alone says, its share of positives in training as the score: of the label, and
# of whether the base prompt is harmful. **What to look for:** the first is what a probe reaches
# that never reads the content, and stays above 0.5 because a transformation is harmless by
# definition and harmful prompts stand in more wrappers; the second is nearer to 0.5 the larger
# `innocuous_share`.

# %%
of_base = f"a base prompt that is {label_names[1]}" if own else "a harmful base prompt"
targets = {"the label": prompts["label"], of_base: datasets.content(prompts)}
weights = metrics.split_weights(prompts, n_bootstrap, seed)
rows = [
    row
    for of, target in targets.items()
    for row in metrics.by_split(
        prompts.assign(label=target), datasets.wrapper_scores(prompts, target), weights, of=of
    )
]
wrapper = pd.DataFrame(rows).query("metric == 'auroc'").assign(metric="wrapper_auroc")
tables.in_columns(wrapper, "of")

# %% [markdown]
# ## Jailbreak effectiveness
# The paper plots how well each jailbreak works on the model, and takes the stronger of a kind for
# OOD. A chat model answers harmful base prompts in every wrapper, greedily; an answer counts as
# refused by the phrases it begins with, or by a language model's judgement (`refusal_judge`).
# **What the paper leads us to expect:** plain requests are refused most, jailbreaks less, innocuous
# transformations least. **What would refute it for this model:** a wrapper in which it refuses more
# than plain requests of the same pool, or plain requests that it hardly ever refuses, of which a
# jailbreak has nothing to take away. A model without chat template cannot be asked: not applicable.
# (Where all answers agree, the bootstrap has no spread, and the interval is the exact one of
# Clopper and Pearson.)

# %%
answered = pd.DataFrame(columns=[*prompts.columns, "response", "refused"])
if n_jailbroken and chat.has_template(models.load_tokenizer(model)):
    answered = refusals.asked(prompts, n_jailbroken, np.random.default_rng(seed))
    bridge, parent = models.load_model(model, device, dtype), run.folder / "rollouts"
    asked = answered["text"].tolist()
    responses = rollouts.generate(
        bridge, models.identity(model), asked, parent, response_tokens, temperature=0.0
    )["response"]
    answered = answered.assign(response=responses.to_numpy())

# %%
settings = llm.Settings(
    llm_model, llm_base_url, llm_key_variable, run.folder / "llm", llm_max_requests, llm_max_tokens
)
answered["refused"] = refusals.refused(answered["response"].tolist(), refusal_judge, settings)
refused = refusals.rates(answered, n_bootstrap, seed)

# %%
caption = (
    f"Profile {profile}, {model}; greedy, {response_tokens} tokens; refusal by {refusal_judge}; "
    "95 % bootstrap over base prompts, exact (Clopper and Pearson) where all answers agree."
)
if len(refused):
    kinds = refused["kind"].where(refused["kind"] != "plain", "request")
    named = refused.assign(
        row=kinds + ", " + refused["transform"] + " (" + refused["pool"].map(figures.SPLITS)
        + ", n = " + refused["n"].astype(str) + ")",
        panel="harmful base prompts",
    )
    axis = {"xlabel": "refusal rate (fraction)", "xlim": (-0.02, 1.02)}
    figure = figures.points(named, "row", "panel", **axis)
    display(figures.save(figure, run.figures, "01_jailbreaks", caption))

# %%
not_asked = f"Not applicable: {model} is no chat model."
if not n_jailbroken:
    not_asked = "Not asked: `n_jailbroken` is 0."
Markdown("" if len(refused) else not_asked)

# %% [markdown]
# ## Sizes beside the paper's

# %%
paper = records.claims()["setting"]["prompts"]
sizes = prompts.groupby("split").agg(
    prompts=("text", "size"), harmful=("label", "mean"), base_prompts=("base_id", "nunique")
)
in_order = [split for split in datasets.SPLITS if split in sizes.index]
shown = sizes.loc[in_order].assign(paper=pd.Series(paper)).round(3)
shown.drop(columns="paper").rename(columns={"harmful": "share of label 1"}) if own else shown

# %% [markdown]
# ## Takeaway

# %%
lines = [
    f"- {figures.SPLITS[split]}: AUROC {tables.course(of_split, 2)}"
    for split, of_split in formatting.groupby("split", sort=False)
]
of_refusals = f" Of {label_names[1]} base prompts, {model} refuses {refusals.in_words(refused)}."
of_sets = (
    "The embedded prompts were written for this project and are smaller in topic than the paper's "
    "sets; XSTest stands in for OR-Bench in the public profile, and the paper's internal chat set "
    "cannot be had."
)

# %%
Markdown(
    f"{len(prompts):,} prompts from {prompts['base_id'].nunique():,} base prompts. "
    f"Surface form alone separates the classes so far, raw and then {drawn_as}:\n\n"
    + "\n".join(lines)
    + "\n\nCommas and quotes are left as they are, so a score above 0.5 may stay; the baselines of "
    "notebook 05 (TF-IDF, surface form) say what they give once prompts are wrapped, and AUROC "
    f"within strata of length what length gives.{of_refusals if len(refused) else ''} "
    f"{'' if own else of_sets}"
)

# %%
path, raw_path = run.results / "prompts.parquet", run.results / "raw_prompts.parquet"
datasets.save(prompts, path)
datasets.save(datasets.plain(raw), raw_path)  # Notebook 07 reads them as they came.
counts = [
    {"metric": "prompts", "split": split, "value": float(n), "n": int(n), "unit": "prompts"}
    for split, n in prompts["split"].value_counts(sort=False).items()
]
parts = [formatting, register, wrapper, pd.DataFrame(counts)]
parts += [refused] if len(refused) else []
parts += [rows_read.rename(columns={"rows": "value"}).assign(metric="rows")] if own else []
table = pd.concat(parts, ignore_index=True)
outputs = {"prompts": path, "raw_prompts": raw_path}
records.write(run, table, table, inputs=[], outputs=outputs).name
