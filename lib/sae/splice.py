"""Language-model loss with an SAE's reconstruction spliced into the residual stream."""

from collections.abc import Callable
from typing import NamedTuple

import numpy as np
import pandas as pd
import torch
from jaxtyping import Float
from sae_lens import SAE
from torch import Tensor
from tqdm import tqdm
from transformer_lens.model_bridge import TransformerBridge

from lib.model.forward import batches, padded
from lib.model.models import check_layers, is_causal, resid_post, special_ids
from lib.sae.folders import load
from lib.sae.token_blocks import SINK
from lib.stats.metrics import Estimate, bootstrap_weights, row

BATCH_TOKENS = 2048  # padded tokens per forward pass; the logits of each take d_vocab numbers

Losses = Float[np.ndarray, " sequences"]  # cross-entropy, nats, summed over a sequence's predicted tokens
Change = Callable[[Tensor], Tensor]  # of the residual stream


def reconstruction(sae: SAE) -> Change:
    """The SAE's reconstruction in the place of the residual stream."""
    return lambda resid: sae.decode(sae.encode(resid.float())).to(resid.dtype)


@torch.inference_mode()
def losses(
    bridge: TransformerBridge, token_ids: list[list[int]], layer: int, change: Change | None = None
) -> tuple[Losses, Losses]:
    """Losses of the sequences with ``resid_post`` of ``layer`` changed, and how many tokens each predicts.

    Without a ``change`` the stream stays as it is. Special tokens and attention sinks, on which SAEs are not trained,
    keep their residual stream; special ones are not predicted.

    Raises:
        ValueError: a model that is not causal, a layer that it does not have, or nothing to predict.
    """
    if not is_causal(bridge):
        model = type(bridge.original_model).__name__
        raise ValueError(f"{model} is no causal language model; it has no loss on the next token")
    check_layers(bridge, [layer])
    summed, tokens = np.zeros(len(token_ids)), np.zeros(len(token_ids))
    device, special = bridge.original_model.device, special_ids(bridge)
    order = sorted(range(len(token_ids)), key=lambda i: (len(token_ids[i]), i))
    for batch in batches([len(token_ids[i]) for i in order], BATCH_TOKENS):
        rows = [order[i] for i in batch]
        ids, mask = padded([token_ids[i] for i in rows], bridge.tokenizer.pad_token_id, device)
        plain = mask.bool() & ~torch.isin(ids, special.to(device))
        summed[rows] = _loss(bridge, ids, mask, plain, layer, change).cpu()
        tokens[rows] = plain[:, 1:].sum(1).cpu()
    if not tokens.any():
        raise ValueError(f"{len(token_ids)} sequences have no token to predict")
    return summed, tokens


def _loss(
    bridge: TransformerBridge, ids: Tensor, mask: Tensor, plain: Tensor, layer: int, change: Change | None
) -> Tensor:
    def replace(resid, hook):
        norm = resid.float().norm(dim=-1)
        changed = plain & (norm <= SINK * norm[plain].median())
        return torch.where(changed[..., None], change(resid), resid)

    with bridge.hooks(fwd_hooks=[(resid_post(layer), replace)] if change else []):
        logits = bridge.original_model(input_ids=ids, attention_mask=mask).logits
    predictions = logits[:, :-1].flatten(0, 1).float()
    each = torch.nn.functional.cross_entropy(predictions, ids[:, 1:].flatten(), reduction="none")
    return (each.view_as(ids[:, 1:]) * plain[:, 1:]).double().sum(1)


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
        clean, tokens = losses(bridge, token_ids, layer)
        zero, _ = losses(bridge, token_ids, layer, torch.zeros_like)
        for variant, part in tqdm(saes.groupby("variant", sort=False), desc=f"LM loss, {text}", unit="variant"):
            by_seed = []
            for folder in part["folder"]:
                spliced, _ = losses(bridge, token_ids, layer, reconstruction(load(folder, device)))
                by_seed.append(spliced)
            estimates = summary(clean, np.mean(by_seed, axis=0), zero, tokens, replicates, seed)
            for metric, estimate in estimates.items():
                unit = "fraction" if metric == "loss_recovered" else "nats per token"
                rows.append(row(metric, estimate, unit, variant=variant, text=text))
    return pd.DataFrame(rows)
