"""The shipped SAEs: trained on public prose without chat, in the place of Gemma Scope's. ``make pretrained``.

``base`` stands for Gemma Scope's pretraining-data SAE, one for each seed; ``prompts`` saw the same texts wrapped as
user prompts, as the Gemma Scope IT SAEs did.
"""

import argparse
import dataclasses
import json
from pathlib import Path
from typing import NamedTuple

import pandas as pd

from lib.base.files import DATA, run_dir, write_json, write_text
from lib.model import models, weights
from lib.results import tables
from lib.sae import folders, harvest, splice, training
from lib.sae.recipes import Recipe
from lib.texts import corpora

FOLDER = DATA / "pretrained"
HELD_OUT_TOKENS = 200_000
LOSS_TOKENS = 10_000  # of each text, on which the loss recovered is measured
REPLICATES = 2000  # over sequences
PROSE = "pretraining"  # the corpus
CONTEXT = 128  # tokens of a window
CARD_HEAD = """# Shipped SAEs

JumpReLU SAEs with the L0 penalty, trained by `make pretrained` on public prose (the corpus `pretraining`),
in the place of Gemma Scope's: `base` on the texts as they are, a folder for each seed, `prompts` on the same texts as
user prompts. SAELens folders, weights in float16; `training.json` holds recipe, training curve and measurements. Held
out: tokens of passages that no SAE was trained on; chat is the model's own ([card](../rollouts/README.md)). Loss
recovered: 1 is the model's own loss, 0 that with zeros in the place of the residual stream, with a 95 % bootstrap over
sequences. Attention sinks are left out of training and measurement, and kept where an SAE is spliced in. Those of the
chat model were all trained and measured with the code of commit ed559bc, for which a sink had ten median norms or more;
today it has three, and a training begins at another scale and with another rate of the thresholds.

| folder | latents | tokens seen | FVU | L0 | dead | above 10 % | recovered, prose | recovered, chat |
|---|---|---|---|---|---|---|---|---|
"""


class Shipped(NamedTuple):
    """The SAEs that are shipped for a model.

    Attributes:
        layer: the block that notebook 05 chose on validation.
        seeds: of the SAEs ``base``; the first one is also that of ``prompts``.
        max_tokens: different tokens to train on.
        recipe: of all of them. Its learning rate was chosen on a calibration split of the training passages.
    """

    layer: int
    seeds: tuple[int, ...]
    max_tokens: int
    recipe: Recipe


SHIPPED = {
    weights.SMOLLM2: Shipped(21, (0, 1, 2, 3, 4), 2_200_000, Recipe(d_sae=4096, target_l0=45.0, tokens=6_000_000, lr=4e-3)),
    weights.MINILM: Shipped(2, (0, 1, 2), 2_000_000, Recipe(d_sae=1536, target_l0=30.0, tokens=4_000_000, lr=2e-3)),
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
    store, held_out, _ = harvest.token_stores(
        models.Reader(model, device, context=CONTEXT),
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


def add_losses(model: str, place: Path, device: str = "cpu") -> None:
    """Measure a shipped SAE of a causal model spliced in, on held-out prose and on chat, into its ``training.json``.

    Raises:
        ValueError: a model that is not causal.
    """
    bridge = models.load_model(model, device)
    texts = {"prose": corpora.corpus(PROSE), "chat": corpora.corpus(f"shipped:{model}")}
    windows = {}
    for name, passages in texts.items():
        held_out = corpora.split(passages, harvest.HELD_OUT_SHARE, seed=0).held_out
        token_ids = models.split_tokens(bridge, held_out, CONTEXT)
        windows[name] = corpora.first_tokens(token_ids, LOSS_TOKENS, seed=0)
    saes = pd.DataFrame([{"variant": place.name, "folder": place}])
    measured = splice.measure(bridge, saes, windows, SHIPPED[model].layer, REPLICATES, seed=0)
    rows = json.loads(measured.drop(columns="variant").to_json(orient="records"))
    write_json(place / "training.json", folders.training_record(place) | {"losses": rows})


def card() -> str:
    """The page on the shipped SAEs, from their ``training.json``."""
    lines = []
    for place in sorted(FOLDER.glob("*-layer-*")):
        record = folders.training_record(place)
        held_out, recipe = record["held_out"], record["recipe"]
        recovered = {row["text"]: row for row in record.get("losses", []) if row["metric"] == "loss_recovered"}
        shown = [
            tables.text(pd.Series(recovered[text]), 3) if text in recovered else "not causal"
            for text in ("prose", "chat")
        ]
        counts = f"{held_out['dead']:.1%} | {held_out['high_frequency']:.0f}"
        sizes = f"{recipe['d_sae']:,} | {recipe['tokens']:,} | {held_out['fvu']:.3f} | {held_out['l0']:.1f}"
        lines.append(f"| `{place.name}` | {sizes} | {counts} | {' | '.join(shown)} |")
    return CARD_HEAD + "\n".join(lines) + "\n"


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
            recipe = dataclasses.replace(shipped.recipe, seed=seed)
            place = make(arguments.model, name, recipe, arguments.device)
            if models.is_causal(models.load_model(arguments.model, arguments.device)):
                add_losses(arguments.model, place, arguments.device)
            print(place)
    write_text(FOLDER / "README.md", card())


if __name__ == "__main__":
    main()
