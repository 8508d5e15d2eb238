"""The shipped base SAE of the embedded model: trained on pretraining-like text, no chat. ``make pretrained``."""

import argparse
from pathlib import Path

import torch

from lib import activations, corpora, models, sae_training
from lib import sae as saes
from lib.files import DATA, run_dir
from lib.trainers import Recipe

FOLDER = DATA / "pretrained"
CONTEXT = 128  # tokens of a window


def token_stores(
    model: str, texts: list[str], layer: int, parent: Path, max_tokens: int, held_out_tokens: int, seed: int, device: str = "cpu"
) -> tuple[Path, Path]:
    """Training and held-out token stores of a corpus at one layer; passages are on one side only.

    ``max_tokens`` and ``held_out_tokens`` bound the tokens of the two (0: all there are).

    Raises:
        ValueError: fewer than two passages, or a layer out of range.
    """
    bridge, identity = models.load_model(model, device), models.identity(model)
    stores = []
    for part, limit in zip(corpora.hold_out(texts, 0.05, seed), (max_tokens, held_out_tokens), strict=True):
        token_ids = corpora.first_tokens(models.split_tokens(bridge, part, CONTEXT), limit, seed)
        content = activations.texts_hash([str(ids) for ids in token_ids])
        stores.append(activations.harvest_tokens(bridge, identity, content, token_ids, layer, parent, special=False, shuffle_seed=seed))
    return stores[0], stores[1]


def make(layer: int, tokens: int, d_sae: int, target_l0: float, seed: int) -> Path:
    """Train the base SAE and write it, in float16, to ``data/pretrained/<model>-layer-<layer>``."""
    parent = run_dir("pretrained")
    texts = corpora.corpus("pretraining")
    store, held_out = token_stores(models.MINILM, texts, layer, parent / "activations", 0, 200_000, seed)
    recipe = Recipe(d_sae=d_sae, target_l0=target_l0, tokens=tokens, lr=2e-3, seed=seed)
    folder = sae_training.train(recipe, store, held_out, parent / "saes")
    sae = saes.load(folder)
    for parameter in sae.parameters():  # what is shipped is measured: the rounded weights
        parameter.data = parameter.data.half().float()
    found = saes.evaluate(sae, sae_training.load_tokens(held_out))
    frequency = found.pop("frequency")
    record = saes.training_record(folder) | {"held_out": found, "frequency": frequency.round(7).tolist(), "corpus": "pretraining"}
    return saes.save(sae, FOLDER / f"{models.MINILM}-layer-{layer}", record, torch.float16)


if __name__ == "__main__":
    defaults = {"layer": 2, "tokens": 12_000_000, "d_sae": 3072, "target_l0": 30.0, "seed": 0}
    parser = argparse.ArgumentParser(description=__doc__)
    for name, value in defaults.items():
        parser.add_argument(f"--{name}", type=type(value), default=value)
    print(make(**vars(parser.parse_args())))
