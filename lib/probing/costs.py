"""What a dictionary costs: FLOPs to make it, and to read a token with a k-sparse probe; a multiply-add counts as two.

These are operations of the algorithms, not times, and of dense products. What every dictionary needs alike is left out:
thresholds that are set on a sample, and the probe itself.
"""

from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import pandas as pd

from lib.base.registry import lookup
from lib.probing import controls
from lib.sae import folders, pretrained
from lib.sae.recipes import Recipe

COLUMNS = ["variant", "kind", "d_sae", "vectors", "making", "reading", "reading_chosen"]
GAP = ["variant", "value", "low", "high"]


class Size(NamedTuple):
    """What decides the cost of a dictionary.

    Attributes:
        d_model: width of a vector.
        d_sae: rows of the dictionary.
        vectors: those that it was made of, a vector counting each time that it is seen: tokens of an SAE's training,
            the sample of k-means, prompts of principal components. None where that is not known.
    """

    d_model: int
    d_sae: int
    vectors: int | None = 0


def sae_training(size: Size) -> float | None:
    """12 · d_model · d_sae for each token: 4 in the forward pass (encoder and decoder, 2 each), and twice as many in
    the backward one (Kaplan et al. 2020, arXiv 2001.08361, section 2.1).

    That is dense training. The steps of ``lib.sae.jumprelu`` need 2 · d_model · d_sae, and more with L0. Trials of
    other learning rates are not counted.
    """
    return None if size.vectors is None else 12.0 * size.d_model * size.d_sae * size.vectors


def kmeans(size: Size) -> float | None:
    """2 · vectors · d_model · d_sae for each of ``controls.CENTRE_ITERATIONS``: the distances to all centres (Lloyd
    1982, doi 10.1109/TIT.1982.1056489; as many vectors in mini-batches cost the same)."""
    if size.vectors is None:
        return None
    return 2.0 * size.vectors * size.d_model * size.d_sae * controls.CENTRE_ITERATIONS


def pca(size: Size) -> float | None:
    """2 · vectors · d_model² of the covariance, and 9 · d_model³ of its eigenvectors by the symmetric QR algorithm
    (Golub and Van Loan, Matrix Computations, section 8.3)."""
    return None if size.vectors is None else 2.0 * size.vectors * size.d_model**2 + 9.0 * size.d_model**3


def nothing(size: Size) -> float:
    """What is drawn at random, or taken as it is, costs nothing."""
    return 0.0


def rows(size: Size, k: int) -> float:
    """2 · d_model · k: the products with k rows."""
    return 2.0 * size.d_model * k


class Kind(NamedTuple):
    """How dictionaries of a kind are made, whether they have rows to multiply with, and whether a chosen row can be
    read without the others, which the k largest of all cannot."""

    making: Callable[[Size], float | None]
    has_rows: bool = True
    reads_alone: bool = True


SAE_KIND, TOPK_KIND = "SAE", "TopK SAE"
KINDS = {
    SAE_KIND: Kind(sae_training),
    TOPK_KIND: Kind(sae_training, reads_alone=False),
    "k-means centres": Kind(kmeans),
    "principal components": Kind(pca),
    "coordinates": Kind(nothing, has_rows=False),
    "random directions": Kind(nothing),
    "untrained SAE": Kind(nothing),
    "training tokens": Kind(nothing),
}


class Cost(NamedTuple):
    """FLOPs to make a dictionary (None: not known), to read a vector with all its rows, as ``lib.sae.latents`` does,
    and with no more of them than a probe of k chosen rows needs."""

    making: float | None
    reading: float
    reading_chosen: float


def cost(kind: str, size: Size, k: int) -> Cost:
    """The cost of a dictionary of an entry of ``KINDS``.

    Raises:
        ValueError: an unknown kind, or a k that is not among the rows.
    """
    entry = lookup(KINDS, "kind of dictionary", kind)
    if not 1 <= k <= size.d_sae:
        raise ValueError(f"k {k} must lie between 1 and the {size.d_sae} rows of {kind}")
    if not entry.has_rows:
        return Cost(entry.making(size), 0.0, 0.0)
    every = rows(size, size.d_sae)
    return Cost(entry.making(size), every, rows(size, k) if entry.reads_alone else every)


def forward_pass(n_weights: int, tokens: float | int) -> float:
    """2 · n_weights · tokens: what a language model's weights up to a layer cost to make the activations (Kaplan et al.
    2020). Control dictionaries are made of activations that the probe needs anyway; those of an SAE come on top."""
    return 2.0 * n_weights * tokens


def tokens_seen(place: Path | str) -> int | None:
    """Tokens that an SAE was trained on, with those of the SAE that it began with; one seen twice counts twice.

    Read from ``training.json``. None where there is no recipe, as in an SAE of others, or where the SAE that it began
    with is neither beside it nor shipped.
    """
    folder = Path(folders.locate(str(place)))
    record = folders.training_record(folder) if (folder / "training.json").exists() else {}
    if not record.get("recipe"):
        return None
    recipe, start = Recipe(**record["recipe"]), record.get("start")
    own = recipe.last_step * recipe.batch_tokens
    if not start:
        return own
    began = [parent / start for parent in (folder.parent, pretrained.FOLDER) if (parent / start).is_dir()]
    before = tokens_seen(began[0]) if began else None
    return None if before is None else before + own


def of_saes(saes: pd.DataFrame, k: int) -> pd.DataFrame:
    """The costs of every variant of a table of SAEs (columns variant, folder): a row each with the columns ``COLUMNS``.

    Means over the SAEs of a variant; null where it is not known of one of them.

    Raises:
        ValueError: a folder that is none of an SAE, or a k above its latents.
    """
    table = []
    for row in saes.itertuples():
        sae = folders.load(row.folder)
        kind = TOPK_KIND if sae.cfg.architecture() == "topk" else SAE_KIND
        table.append(_row(row.variant, kind, Size(sae.cfg.d_in, sae.cfg.d_sae, tokens_seen(row.folder)), k))
    by_variant = pd.DataFrame(table, columns=COLUMNS).groupby(["variant", "kind"], sort=False)
    return by_variant.agg(lambda column: column.mean(skipna=False)).reset_index()[COLUMNS]


def of_controls(inputs: controls.Inputs, k: int) -> pd.DataFrame:
    """The costs of every control basis and dictionary on the same inputs: a row each with the columns ``COLUMNS``.

    Bases are read once a prompt, pooled, and not once a token.

    Raises:
        ValueError: a k above the rows of one of them.
    """
    d_model, d_sae = inputs.tokens.activations.shape[1], inputs.like.cfg.d_sae
    n_prompts = int(inputs.task.train.sum())
    n_tokens = int(inputs.tokens.starts.diff().numpy()[inputs.task.train].sum())
    own = {
        "principal components": Size(d_model, min(d_model, n_prompts), n_prompts),
        "coordinates": Size(d_model, d_model),
        "k-means centres": Size(d_model, d_sae, min(n_tokens, controls.CENTRE_TOKENS)),
    }
    names = [*controls.BASES, *controls.DICTIONARIES]
    table = [_row(name, name, own.get(name, Size(d_model, d_sae)), k) for name in names]
    return pd.DataFrame(table, columns=COLUMNS)


def _row(variant: str, kind: str, size: Size, k: int) -> dict:
    of_kind = cost(kind, size, k)
    vectors = None if size.vectors is None else float(size.vectors)
    return {"variant": variant, "kind": kind, "d_sae": size.d_sae, "vectors": vectors} | of_kind._asdict()


def beside_gaps(gaps: pd.DataFrame, costs: pd.DataFrame) -> pd.DataFrame:
    """AUROC gaps (columns ``GAP``) with the costs of their variants: all columns of both, in the order of ``gaps``.

    Raises:
        ValueError: a column that is missing, or a variant with no cost or two.
    """
    for name, table, needed in (("gaps", gaps, GAP), ("costs", costs, COLUMNS)):
        missing = [column for column in needed if column not in table]
        if missing:
            raise ValueError(f"the table of {name} has no columns {missing}; needed are {', '.join(needed)}")
    known = costs["variant"].value_counts()
    wrong = [variant for variant in gaps["variant"] if known.get(variant, 0) != 1]
    if wrong:
        raise ValueError(f"{wrong[0]!r} has {known.get(wrong[0], 0)} costs; each of {', '.join(known.index)} has one")
    return gaps.merge(costs, on="variant", how="left")
