"""The shipped SAEs of the embedded model, trained on pretraining-like text without chat. ``make pretrained``.

``base`` stands for Gemma Scope's pretraining-data SAE; ``prompts`` saw the same texts wrapped as user prompts, as the
Gemma Scope IT SAEs did.
"""

import argparse
from pathlib import Path

from lib.base.files import DATA, run_dir
from lib.model import models, weights
from lib.sae import folders, harvest, training
from lib.sae.recipes import Recipe
from lib.texts import corpora

FOLDER = DATA / "pretrained"
HELD_OUT_TOKENS = 200_000


def make(
    name: str, *, layer: int, tokens: int, max_tokens: int, d_sae: int, target_l0: float, seed: int
) -> Path:
    """Train one SAE and write it, in float16, to ``data/pretrained/<model>-layer-<layer>-<name>``."""
    parent = run_dir("pretrained")
    texts = corpora.corpus("pretraining")
    texts = corpora.as_user_prompts(texts) if name == "prompts" else texts
    store, held_out = harvest.token_stores(
        models.Reader(weights.MINILM),
        texts,
        layer,
        parent / "activations",
        max_tokens=max_tokens,
        held_out_tokens=HELD_OUT_TOKENS,
        seed=seed,
    )
    recipe = Recipe(d_sae=d_sae, target_l0=target_l0, tokens=tokens, lr=2e-3, seed=seed)
    folder = training.train(recipe, store, held_out, parent / "saes")
    sae = folders.load(folder)
    for parameter in sae.parameters():  # the rounded weights are measured, because they are what is shipped
        parameter.data = parameter.data.half().float()
    measured = folders.held_out_record(sae, training.load_tokens(held_out))
    record = folders.training_record(folder) | measured | {"corpus": "pretraining"}
    return folders.save(sae, FOLDER / f"{weights.MINILM}-layer-{layer}-{name}", record, "float16")


if __name__ == "__main__":
    defaults = {
        "layer": 2,
        "tokens": 4_000_000,
        "max_tokens": 2_000_000,
        "d_sae": 1536,
        "target_l0": 30.0,
        "seed": 0,
    }
    parser = argparse.ArgumentParser(description=__doc__)
    for option, value in defaults.items():
        parser.add_argument(f"--{option.replace('_', '-')}", type=type(value), default=value)
    for which in ("base", "prompts"):
        print(make(which, **vars(parser.parse_args())))
