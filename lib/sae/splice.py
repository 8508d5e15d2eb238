"""Language-model loss with an SAE's reconstruction spliced into the residual stream."""

from collections.abc import Callable, Iterator
from typing import NamedTuple

import numpy as np
import pandas as pd
import torch
from jaxtyping import Bool, Float, Int
from sae_lens import SAE
from torch import Tensor
from tqdm import tqdm
from transformer_lens.model_bridge import TransformerBridge

from lib.model import forward
from lib.model.models import check_layers, is_causal, pad_id, special_ids, split_tokens
from lib.sae.folders import load
from lib.sae.token_blocks import SINK
from lib.stats.metrics import Estimate, bootstrap_weights, row
from lib.texts.corpora import first_tokens

BATCH_TOKENS = 2048  # padded tokens per forward pass; the logits of each take d_vocab numbers

Losses = Float[np.ndarray, " sequences"]  # cross-entropy, nats, summed over a sequence's predicted tokens
Change = Callable[[Tensor], Tensor]  # of the residual stream


def reconstruction(sae: SAE) -> Change:
    """The SAE's reconstruction in the place of the residual stream."""
    return lambda resid: sae.decode(sae.encode(resid.float())).to(resid.dtype)


class Batch(NamedTuple):
    """Sequences of like length with their residual stream: their places, ids, mask, tokens that are not special, and
    those of these that are no attention sink."""

    rows: list[int]
    ids: Int[Tensor, "batch pos"]
    mask: Int[Tensor, "batch pos"]
    plain: Bool[Tensor, "batch pos"]
    changed: Bool[Tensor, "batch pos"]
    resid: Float[Tensor, "batch pos d_model"]


class Sequences:
    """Sequences of token ids, read once up to ``resid_post`` of ``layer``, whose losses every change is measured by.

    Raises:
        ValueError: a model that is not causal, a layer that it does not have, or nothing to predict.
    """

    def __init__(self, bridge: TransformerBridge, token_ids: list[list[int]], layer: int):
        if not is_causal(bridge):
            model = type(bridge.original_model).__name__
            raise ValueError(f"{model} is no causal language model; it has no loss on the next token")
        check_layers(bridge, [layer])
        self.bridge, self.layer = bridge, layer
        self.batches = list(_read(bridge, token_ids, layer))
        self.tokens: Losses = np.zeros(len(token_ids))
        for batch in self.batches:
            self.tokens[batch.rows] = batch.plain[:, 1:].sum(1).cpu()
        if not self.tokens.any():
            raise ValueError(f"{len(token_ids)} sequences have no token to predict")

    @torch.inference_mode()
    def losses(self, change: Change | None = None) -> Losses:
        """Cross-entropy of each sequence with the residual stream changed; without a ``change`` it stays as it is.

        Special tokens and attention sinks, on which SAEs are not trained, keep their residual stream; special ones are
        not predicted.
        """
        summed = np.zeros(len(self.tokens))
        for rows, ids, mask, plain, changed, resid in self.batches:
            spliced = torch.where(changed[..., None], change(resid), resid) if change else resid
            logits = forward.logits_from(self.bridge, ids, mask, self.layer, spliced)
            predictions = logits[:, :-1].flatten(0, 1).float()
            each = torch.nn.functional.cross_entropy(predictions, ids[:, 1:].flatten(), reduction="none")
            summed[rows] = (each.view_as(ids[:, 1:]) * plain[:, 1:]).double().sum(1).cpu()
        return summed


def _read(bridge: TransformerBridge, token_ids: list[list[int]], layer: int) -> Iterator[Batch]:
    device, special = bridge.original_model.device, special_ids(bridge)
    order = sorted(range(len(token_ids)), key=lambda i: (len(token_ids[i]), i))
    for batch in forward.batches([len(token_ids[i]) for i in order], BATCH_TOKENS):
        rows = [order[i] for i in batch]
        ids, mask = forward.padded([token_ids[i] for i in rows], pad_id(bridge), device)
        resid = forward.resid_post_at(bridge, ids, mask, [layer])[layer]
        plain, norm = mask.bool() & ~torch.isin(ids, special.to(device)), resid.float().norm(dim=-1)
        yield Batch(rows, ids, mask, plain, plain & (norm <= SINK * norm[plain].median()), resid)


class Replicates(NamedTuple):
    """Loss per token of the model as it is, with the SAE spliced in, and with zeros: the point, then the replicates."""

    clean: np.ndarray
    spliced: np.ndarray
    zero: np.ndarray


def summary(
    clean: Losses, spliced: Losses, zero: Losses, tokens: Losses, replicates: int, seed: int
) -> dict[str, Estimate]:
    """Loss in nats per token of the model as it is (``lm_loss``), what splicing adds (``delta_lm_loss``), and

        loss_recovered = (L_zero − L_spliced) / (L_zero − L_clean),

    1 for a perfect SAE and 0 for one no better than zeros (arXiv 2403.19647); None where zeros do no harm. Intervals
    are 95 % bootstraps over sequences; n counts predicted tokens, n_groups sequences.
    """
    n = len(tokens)
    weights = np.vstack([np.ones((1, n)), bootstrap_weights(np.arange(n), replicates, seed)])
    per_token = Replicates(*(weights @ part / np.maximum(weights @ tokens, 1e-12) for part in (clean, spliced, zero)))
    harm = np.where(per_token.zero > per_token.clean, per_token.zero - per_token.clean, np.nan)
    values = {
        "lm_loss": per_token.clean,
        "delta_lm_loss": per_token.spliced - per_token.clean,
        "loss_recovered": (per_token.zero - per_token.spliced) / harm,
    }
    return {metric: _estimate(part, int(tokens.sum()), n) for metric, part in values.items()}


def _estimate(values: np.ndarray, predicted: int, n: int) -> Estimate:
    """The point, which stands first, with the percentiles of its replicates; None where one of them is undefined."""
    if np.isnan(values).any():
        return Estimate(None, None, None, predicted, n)
    low, high = np.percentile(values[1:], [2.5, 97.5])
    return Estimate(float(values[0]), float(low), float(high), predicted, n)


def windows(
    bridge: TransformerBridge, passages: dict[str, list[str]], context: int, tokens: int, seed: int
) -> dict[str, list[list[int]]]:
    """Token ids of each text's passages in windows of at most ``context`` tokens, drawn at random until they hold
    ``tokens`` (0: all).

    Raises:
        ValueError: see ``models.split_tokens``.
    """
    token_ids = {text: split_tokens(bridge, of_text, context) for text, of_text in passages.items()}
    return {text: first_tokens(of_text, tokens, seed) for text, of_text in token_ids.items()}


def measure(
    bridge: TransformerBridge,
    saes: pd.DataFrame,
    texts: dict[str, list[list[int]]],
    layer: int,
    replicates: int,
    seed: int,
) -> pd.DataFrame:
    """:func:`summary` of every variant of ``saes`` (columns variant, folder) on each text, losses averaged over seeds.

    Columns metric, variant, text, value, low, high, n, n_groups, unit.
    """
    device, rows = str(bridge.original_model.device), []
    for text, token_ids in texts.items():
        sequences = Sequences(bridge, token_ids, layer)
        clean, zero = sequences.losses(), sequences.losses(torch.zeros_like)
        for variant, part in tqdm(saes.groupby("variant", sort=False), desc=f"LM loss, {text}", unit="variant"):
            by_seed = []
            for folder in part["folder"]:
                by_seed.append(sequences.losses(reconstruction(load(folder, device))))
            estimates = summary(clean, np.mean(by_seed, axis=0), zero, sequences.tokens, replicates, seed)
            for metric, estimate in estimates.items():
                unit = "fraction" if metric == "loss_recovered" else "nats per token"
                rows.append(row(metric, estimate, unit, variant=variant, text=text))
    return pd.DataFrame(rows)
