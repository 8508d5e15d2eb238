"""Texts scored with a portable probe: scores, the tokens that carried them, and whether texts are unlike training.

Texts are read as the training prompts were: the same model, in its chat template, pooled over the same tokens.
"""

from collections.abc import Callable, Iterator
from typing import NamedTuple

import numpy as np
import pandas as pd
import scipy.stats
import torch
from jaxtyping import Bool, Float
from torch import Tensor
from tqdm import tqdm
from transformer_lens.model_bridge import TransformerBridge

from lib.model import forward, models, poolings
from lib.model.collectors import in_spans
from lib.probing import portable
from lib.probing.portable import FPRS, Portable

TOP = 3  # tokens that are named for a text
CHUNK = 4096  # texts that are tokenised at a time
FAR_SHARE, CHANCE = 0.1, 0.02  # see :func:`drift`
Carriers = list[tuple[str, float]]  # tokens with what each gives to the score


def reader(probe: Portable, device: str = "cpu") -> TransformerBridge:
    """The model that a probe reads.

    Raises:
        ValueError: the model that is here under that name is of another revision or size; or see
            :func:`lib.model.models.load_model`.
    """
    about = probe.about
    portable.check_model(about["model"])
    bridge = models.load_model(about["model"]["model"], device, about["dtype"])
    models.check_layers(bridge, [about["layer"]])
    if len(probe.weights) != bridge.cfg.d_model:
        raise ValueError(f"the probe has {len(probe.weights)} weights, and the model's d_model is {bridge.cfg.d_model}")
    return bridge


class Scored(NamedTuple):
    """What a probe says of texts, in their order.

    Attributes:
        scores: of :meth:`Portable.score`.
        distances: of :meth:`Portable.distance`.
        carriers: the ``TOP`` tokens that give most to the score, the largest first; what all pooled tokens give and the
            bias add up to it. Empty where tokens cannot be told apart (see ``SHARES``).
    """

    scores: Float[np.ndarray, " texts"]
    distances: Float[np.ndarray, " texts"]
    carriers: list[Carriers]


def _mean_shares(
    probe: Portable, resid: Float[Tensor, "batch pos d_model"], pooled: Bool[Tensor, "batch pos"]
) -> Float[Tensor, "batch pos"]:
    """w·z_t / T of each of the T pooled tokens."""
    return probe.standardised(resid) @ probe.weights / pooled.sum(1, keepdim=True)


def _max_shares(
    probe: Portable, resid: Float[Tensor, "batch pos d_model"], pooled: Bool[Tensor, "batch pos"]
) -> Float[Tensor, "batch pos"]:
    """Σ wᵢ zᵢ over the coordinates i whose maximum stands at the token (one of them, where several are equal)."""
    largest, place = resid.masked_fill(~pooled[..., None], -torch.inf).max(1)
    return torch.zeros(resid.shape[:2]).scatter_add(1, place, probe.standardised(largest) * probe.weights)


# Pooling -> what each token gives to the score. A pooling that reads one position has none: all the score is that
# token's, and what it has read before cannot be told apart.
SHARES: dict[str, Callable[[Portable, Tensor, Tensor], Tensor]] = {"mean": _mean_shares, "max": _max_shares}


def score(probe: Portable, bridge: TransformerBridge, texts: list[str]) -> Scored:
    """Scores of texts, with a progress bar. A text that is empty has none: NaN, and no tokens.

    Raises:
        ValueError: none of the texts holds anything, or memory does not suffice for one of them.
    """
    full = [i for i, text in enumerate(texts) if text.strip()]
    if not full:
        raise ValueError(f"none of the {len(texts)} texts holds anything that could be scored")
    scores, distances = np.full((2, len(texts)), np.nan, dtype=np.float32)
    carriers: list[Carriers] = [[] for _ in texts]
    with tqdm(total=len(full), desc="score", unit="text") as bar:
        for start in range(0, len(full), CHUNK):
            chunk = full[start : start + CHUNK]
            for rows, pooled, named in _read(probe, bridge, [texts[i] for i in chunk]):
                at = [chunk[row] for row in rows]
                scores[at], distances[at] = probe.score(pooled).numpy(), probe.distance(pooled).numpy()
                for i, of_text in zip(at, named, strict=True):
                    carriers[i] = of_text
                bar.update(len(rows))
    return Scored(scores, distances, carriers)


def _read(
    probe: Portable, bridge: TransformerBridge, texts: list[str]
) -> Iterator[tuple[list[int], Tensor, list[Carriers]]]:
    """Yield rows of ``texts``, their pooled activations, and the tokens that carry their scores, batch by batch."""
    layer, pooling, fixed = probe.about["layer"], probe.about["pooling"], models.fixed_position(bridge)
    token_ids, spans = models.tokenise_with_spans(bridge, texts, probe.about["pool_over"])
    for rows, counted, resid in forward.run(bridge, token_ids, [layer]):
        x, inside = resid[layer].float().cpu(), in_spans(spans[rows], counted.cpu())
        end = torch.tensor([len(token_ids[row]) for row in rows])
        named: list[Carriers] = [[] for _ in rows]
        if pooling in SHARES:
            shares = SHARES[pooling](probe, x, inside).masked_fill(~inside, -torch.inf)
            for place, row in enumerate(rows):
                largest = shares[place].topk(min(TOP, int(inside[place].sum())))
                tokens = [bridge.tokenizer.decode(token_ids[row][position]) for position in largest.indices.tolist()]
                named[place] = list(zip(tokens, largest.values.tolist(), strict=True))
        yield rows, poolings.pooling(pooling).dense(x, poolings.Tokens(inside, end, fixed)), named


def table(probe: Portable, texts: list[str], scored: Scored) -> pd.DataFrame:
    """A row for each text: its score, whether it lies above each threshold (1 or 0), and the tokens that carried it.

    Without a score there is no flag.
    """
    columns = {"text": texts, "score": scored.scores}
    for name, fpr in FPRS.items():
        flagged = pd.Series(scored.scores > probe.about["thresholds"][name]).astype("Int64")
        columns[_flag(fpr)] = flagged.mask(np.isnan(scored.scores))
    tokens = [", ".join(f"{token!r} {share:+.2f}" for token, share in of_text) for of_text in scored.carriers]
    return pd.DataFrame(columns | {"tokens": tokens})


def summary(table: pd.DataFrame) -> str:
    """How many texts of :func:`table` lie above the thresholds, in one sentence."""
    n, without = table["score"].notna().sum(), table["score"].isna().sum()
    flagged = ", ".join(
        f"{table[_flag(fpr)].sum()} above the threshold of {100 * fpr:g} % false positives" for fpr in FPRS.values()
    )
    return f"{n} texts scored: {flagged}" + (f"; {without} rows hold no text" if without else "")


def _flag(fpr: float) -> str:
    return f"flagged_at_{100 * fpr:g}pct_fpr"


def warnings(probe: Portable, bridge: TransformerBridge, scored: Scored) -> list[str]:
    """Sentences on what may make the scores wrong: :func:`drift`, and a chat template that renders otherwise (one that
    writes the date, or that another version of transformers reads in another way)."""
    renders_otherwise = portable.template(bridge.tokenizer) != probe.about["template"]
    sentence = "the chat template renders a prompt otherwise than when the probe was fitted, which may move scores"
    return [sentence] * renders_otherwise + [said for said in [drift(probe, scored)] if said]


def drift(probe: Portable, scored: Scored) -> str:
    """One sentence if texts are unlike the training prompts in what the probe reads, else nothing.

    A text is unusual if its :meth:`Portable.distance`, max |zᵢ|, is above that of 99 % of the training prompts. These z
    are what the score weighs, a single one far away can move it, and the rule needs two numbers and no covariance. On
    the packaged chat model it calls nearly all texts in other languages, code, random characters and single words
    unusual, and one in a hundred validation prompts; the mean of zᵢ² misses code and documents. **Silence proves
    little**: the OOD prompts are near by this measure, and the thresholds fail on them.

    The sentence is due if more than a tenth of n texts are unusual, ten times as many as of training prompts, and if
    as many, k, would be so in at most 2 % of batches of training prompts: P(Bin(n, 0.01) ≥ k) ≤ 0.02. One among five
    alone says nothing, as a batch in twenty has one.
    """
    of_training, distances = probe.about["distance"], scored.distances[~np.isnan(scored.distances)]
    n, k, share = len(distances), int((distances > of_training["usual"]).sum()), of_training["above"]
    if k <= FAR_SHARE * n or scipy.stats.binom.sf(k - 1, n, share) > CHANCE:
        return ""
    return (
        f"{k} of {n} texts are unlike the training prompts in what the probe reads ({100 * share:g} % is usual): its "
        "thresholds and what was measured of it do not hold for them"
    )
