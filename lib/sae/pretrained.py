"""The shipped SAEs: trained on public prose without chat, in the place of Gemma Scope's. ``make pretrained``.

``base`` stands for Gemma Scope's pretraining-data SAE, one for each seed; ``prompts`` saw the same texts wrapped as
user prompts, as the Gemma Scope IT SAEs did.
"""

import argparse
import dataclasses
from pathlib import Path
from typing import NamedTuple

from lib.base.files import DATA, run_dir
from lib.model import models, weights
from lib.sae import folders, harvest, training
from lib.sae.recipes import Recipe
from lib.texts import corpora

FOLDER = DATA / "pretrained"
HELD_OUT_TOKENS = 200_000
LOSS_TOKENS = 20_000  # of each text, on which the loss recovered is measured
PROSE = "pretraining"  # the corpus


class Shipped(NamedTuple):
    """The SAEs that are shipped for a model.

    Attributes:
        layer: the block that notebook 05 chose on validation.
        seeds: of the SAEs ``base``; the first one is also that of ``prompts``.
        max_tokens: different tokens to train on.
        recipe: of all of them. Its learning rate was chosen on the calibration split (:func:`choose_lr`).
    """

    layer: int
    seeds: tuple[int, ...]
    max_tokens: int
    recipe: Recipe


SHIPPED = {
    weights.SMOLLM2: Shipped(15, (0, 1, 2), 2_000_000, Recipe(d_sae=4096, target_l0=45.0, tokens=6_000_000, lr=2e-3)),
    weights.MINILM: Shipped(2, (0,), 2_000_000, Recipe(d_sae=1536, target_l0=30.0, tokens=4_000_000, lr=2e-3)),
}


def folder(model: str, layer: int, name: str) -> Path:
    """Where a shipped SAE lies: ``data/pretrained/<model>-layer-<layer>-<name>``."""
    return FOLDER / f"{model}-layer-{layer}-{name}"


def make(model: str, name: str, recipe: Recipe, device: str = "cpu") -> Path:
    """Train one SAE and write it, in float16, to :func:`folder`; its ``training.json`` says what it was measured at.

    ``name`` is ``base``, ``base-<seed>`` or ``prompts``.
    """

    shipped, parent = SHIPPED[model], run_dir("pretrained")
    texts = corpora.corpus(PROSE)
    texts = corpora.as_user_prompts(texts) if name == "prompts" else texts
    store, held_out = harvest.token_stores(
        models.Reader(model, device),
        texts,
        shipped.layer,
        parent / "activations",
        max_tokens=shipped.max_tokens,
        held_out_tokens=HELD_OUT_TOKENS,
        seed=0,
    )
    trained = training.train(recipe, store, held_out, parent / "saes", device=device)
    sae = folders.load(trained, device)
    for parameter in sae.parameters():  # the rounded weights are measured, because they are what is shipped
        parameter.data = parameter.data.half().float()
    measured = folders.held_out_record(sae, training.load_tokens(held_out))
    record = folders.training_record(trained) | measured | {"corpus": PROSE}
    return folders.save(sae.cpu(), folder(model, shipped.layer, name), record, "float16")


def names(seeds: tuple[int, ...]) -> dict[str, int]:
    """The shipped SAEs by name, with the seed of each."""
    return {"base": seeds[0]} | {f"base-{seed}": seed for seed in seeds[1:]} | {"prompts": seeds[0]}


def main() -> None:
    """Train all SAEs of a model, or those that are named."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--model", default=weights.SMOLLM2, choices=SHIPPED)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("names", nargs="*", help="base, base-1, prompts, …; all of them if none is named")
    arguments = parser.parse_args()
    shipped = SHIPPED[arguments.model]
    for name, seed in names(shipped.seeds).items():
        if name in arguments.names or not arguments.names:
            print(make(arguments.model, name, dataclasses.replace(shipped.recipe, seed=seed), arguments.device))


if __name__ == "__main__":
    main()
