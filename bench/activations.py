"""Harvest speed beside the plain Hugging Face model cut at the same layer, and beside ``run_with_cache``."""

import time
from collections.abc import Callable, Iterator

import torch
import transformers

from lib.model import forward, models, poolings, weights
from lib.texts import sources

PROFILE = "embedded"  # whose data are measured
LAYER = 3
ROUNDS = 9
N_TEXTS = 1500


def _cut_model(name: str, layer: int) -> torch.nn.Module:
    """The HF encoder with the blocks after ``layer`` taken away."""
    model = transformers.AutoModel.from_pretrained(weights.model_path(name)).eval()
    model.encoder.layer = model.encoder.layer[: layer + 1]
    return model


def _rate(step: Callable, work: list, n_tokens: int) -> float:
    started = time.perf_counter()
    with torch.inference_mode():
        for ids, mask in work:
            step(ids, mask)
    return n_tokens / (time.perf_counter() - started)


def measure() -> Iterator[tuple[str, str, list[float]]]:
    """Rates on the same batches, in turn; a ratio is taken within a round. Ours includes all poolings."""
    bridge, hf = models.load_model(weights.MINILM), _cut_model(weights.MINILM, LAYER)
    token_ids = sorted(models.tokenise(bridge, sources.base_prompts("embedded")["text"].tolist()[:N_TEXTS]), key=len)
    lengths = [len(ids) for ids in token_ids]
    pad = bridge.tokenizer.pad_token_id
    work = [forward.padded([token_ids[i] for i in rows], pad) for rows in forward.batches(lengths)]

    def ours(ids, mask):
        resid = forward.resid_post_at(bridge, ids, mask, [LAYER])[LAYER]
        return [poolings.pool(resid, mask.bool(), name) for name in poolings.POOLINGS]

    steps = {
        "ours": ours,
        "hf_cut": lambda ids, mask: hf(input_ids=ids, attention_mask=mask),
        "run_with_cache": lambda ids, mask: bridge.run_with_cache(ids, attention_mask=mask),
    }
    for step in steps.values():
        _rate(step, work[:3], 1)
    rates = {name: [] for name in steps}
    for _ in range(ROUNDS):
        for name, step in steps.items():
            rates[name].append(_rate(step, work, sum(lengths)))
    yield "harvest_tokens_per_s", "tokens/s", rates["ours"]
    for peer in ("hf_cut", "run_with_cache"):
        ratios = [a / b for a, b in zip(rates["ours"], rates[peer], strict=True)]
        yield f"harvest_vs_{peer}", "ratio", ratios
