"""SAE training on the public pretraining corpus, layer 4, 384 -> 3,072 latents, 1.5 M tokens, batch 2,048.

Reconstruction at L0 30 and L0 at four targets from whole trainings; speed of whole steps (optimiser included) beside
SAELens JumpReLU, dictionary_learning JumpReLU and the dense floor (five dense products a step), in turn. Needs the
public files (MIRROR=folder, or the network); dictionary_learning is installed by ``make bench``.

Rows ``chat_…`` are of the chat model at the block of its shipped SAEs, on its own rollouts: JumpReLU beside SAELens'
TopK and BatchTopK at the shipped SAEs' size and L0, each at the learning rate of smallest FVU on a calibration split;
and the same speeds with 576 -> 4,608 latents.
"""

import dataclasses
import itertools
import sys
import time
import types
from collections.abc import Callable, Iterator

import torch

from lib.base.files import run_dir
from lib.model import models, weights
from lib.sae import folders, harvest, learning_rates, pretrained, training
from lib.sae.architectures import make_trainer
from lib.sae.recipes import Recipe
from lib.texts import corpora

PROFILE = "public"  # whose data are measured
LAYER, SEEDS, ROUNDS, STEPS = 4, (0, 1, 2), 5, 12
CHAT, CHAT_TOKENS, CHAT_ARCHITECTURES = weights.SMOLLM2, 250_000, ("jumprelu", "topk", "batchtopk")
CHAT_D_SAE = 4608  # of the speeds
RECIPE = Recipe(d_sae=3072, target_l0=30.0, tokens=1_500_000, batch_tokens=2048)
SETTLED = 150  # steps, after which L0 has settled


def _saelens(x: torch.Tensor, recipe: Recipe) -> Callable:
    from sae_lens.saes.jumprelu_sae import JumpReLUTrainingSAE, JumpReLUTrainingSAEConfig
    from sae_lens.saes.sae import TrainStepInput

    sae = JumpReLUTrainingSAE(JumpReLUTrainingSAEConfig(d_in=x.shape[1], d_sae=recipe.d_sae))
    optimizer = torch.optim.Adam(sae.parameters(), lr=3e-4)
    dead = torch.zeros(recipe.d_sae, dtype=torch.bool)

    def step(batch):
        inputs = TrainStepInput(
            sae_in=batch,
            coefficients={"l0": 1.0},
            dead_neuron_mask=dead,
            n_training_steps=0,
            is_logging_step=False,
        )
        output = sae.training_forward_pass(inputs)
        optimizer.zero_grad()
        output.loss.backward()
        optimizer.step()

    return step


def _dictionary_learning(x: torch.Tensor, recipe: Recipe) -> Callable:
    # The package imports nnsight for its activation buffer, which is not used here.
    sys.modules.setdefault("nnsight", types.SimpleNamespace(LanguageModel=None))
    from dictionary_learning.trainers.jumprelu import JumpReluTrainer

    trainer = JumpReluTrainer(
        steps=100_000,
        activation_dim=x.shape[1],
        dict_size=recipe.d_sae,
        layer=LAYER,
        lm_name="-",
        device="cpu",
        target_l0=recipe.target_l0,
    )
    counter = iter(range(10**6))
    return lambda batch: trainer.update(next(counter), batch)


def _floor(x: torch.Tensor, recipe: Recipe) -> Callable:
    w = torch.randn(x.shape[1], recipe.d_sae)

    def step(batch):
        latents = batch @ w
        recon = latents @ w.T
        return recon.T @ latents, batch.T @ latents, recon @ w

    return step


def _trained(x: torch.Tensor, recipe: Recipe) -> Callable:
    """Our trainer after ``SETTLED`` steps."""
    trainer = make_trainer(recipe, x[:16_384].float())
    for batch in _batches(x, recipe, SETTLED):
        trainer.step(batch, 1.0)
    return lambda batch: trainer.step(batch, 1.0)


PEERS = {
    "saelens_jumprelu": _saelens,
    "dictionary_learning_jumprelu": _dictionary_learning,
    "dense_gemm_floor": _floor,
}


def _batches(x: torch.Tensor, recipe: Recipe, n: int) -> Iterator[torch.Tensor]:
    """``n`` batches, from the beginning again where the tokens are too few."""
    whole = x[: len(x) // recipe.batch_tokens * recipe.batch_tokens].split(recipe.batch_tokens)
    for batch in itertools.islice(itertools.cycle(whole), n):
        yield batch.float()


def _speeds(x: torch.Tensor, recipe: Recipe, prefix: str) -> Iterator[tuple[str, str, list[float]]]:
    """Tokens per second of whole steps, ours and the peers' in turn, and the ratios within a round."""
    steps = {"ours": _trained(x, recipe)} | {name: step(x, recipe) for name, step in PEERS.items()}
    rates: dict[str, list[float]] = {name: [] for name in steps}
    for _ in range(ROUNDS):
        for name, step in steps.items():
            started = time.perf_counter()
            for batch in _batches(x, recipe, STEPS):
                step(batch)
            rates[name].append(STEPS * recipe.batch_tokens / (time.perf_counter() - started))
    for name, values in rates.items():
        yield f"{prefix}{name}_tokens_per_s", "tokens/s", values
    for name in PEERS:
        yield f"{prefix}vs_{name}", "ratio", [a / b for a, b in zip(rates["ours"], rates[name], strict=True)]


def measure() -> Iterator[tuple[str, str, list[float]]]:
    """Trainings first, then the rates in turn."""
    folder = run_dir("bench")
    store, held_out, _ = harvest.token_stores(
        models.Reader(weights.MINILM),
        corpora.corpus("pretraining"),
        LAYER,
        folder / "activations",
        max_tokens=1_580_000,
        held_out_tokens=120_000,
        seed=1,
    )
    held_out_metrics = {}
    for target, seed in [(30.0, seed) for seed in SEEDS] + [(float(target), 0) for target in (10, 20, 40, 80)]:
        recipe = dataclasses.replace(RECIPE, target_l0=target, seed=seed)
        record = folders.training_record(training.train(recipe, store, held_out, folder / "saes"))
        held_out_metrics[target, seed] = record["held_out"]
    for name, key in (("fvu_at_l0_30", "fvu"), ("l0_at_l0_30", "l0"), ("dead_at_l0_30", "dead")):
        unit = "latents per token" if key == "l0" else "fraction"
        yield name, unit, [held_out_metrics[30.0, seed][key] for seed in SEEDS]
    errors = [abs(metrics["l0"] / target - 1) for (target, _), metrics in held_out_metrics.items()]
    yield "target_l0_error_max", "fraction", [max(errors)]
    yield from _speeds(training.load_tokens(store), RECIPE, "")
    yield from _chat()


def _chat() -> Iterator[tuple[str, str, list[float]]]:
    """Speeds, and held-out FVU, L0 and dead latents of the chat model's SAEs by architecture."""
    shipped, folder = pretrained.SHIPPED[CHAT], run_dir("bench")
    reader = models.Reader(CHAT)
    stores = harvest.token_stores(
        reader,
        corpora.corpus(f"shipped:{CHAT}", CHAT_TOKENS + 60_000),
        shipped.layer,
        folder / "activations",
        max_tokens=CHAT_TOKENS,
        held_out_tokens=30_000,
        seed=1,
        calibrates=True,
    )
    wide = dataclasses.replace(shipped.recipe, d_sae=CHAT_D_SAE, batch_tokens=RECIPE.batch_tokens)
    yield from _speeds(training.load_tokens(stores.training), wide, "chat_")
    fvu = {}
    for architecture in CHAT_ARCHITECTURES:
        recipe = dataclasses.replace(
            shipped.recipe, architecture=architecture, tokens=CHAT_TOKENS, lr=learning_rates.CHOSEN
        )
        settled = learning_rates.settled(recipe, stores, folder / "saes")
        measured = []
        for seed in SEEDS:
            of_seed = dataclasses.replace(settled, seed=seed)
            trained = training.train(of_seed, stores.training, stores.held_out, folder / "saes")
            measured.append(folders.training_record(trained)["held_out"])
        fvu[architecture] = [metrics["fvu"] for metrics in measured]
        yield f"chat_{architecture}_fvu", "fraction", fvu[architecture]
        yield f"chat_{architecture}_l0", "latents per token", [metrics["l0"] for metrics in measured]
        yield f"chat_{architecture}_dead", "fraction", [metrics["dead"] for metrics in measured]
        yield f"chat_{architecture}_lr", "learning rate", [settled.lr]
    for architecture in CHAT_ARCHITECTURES[1:]:
        ratios = [ours / theirs for ours, theirs in zip(fvu["jumprelu"], fvu[architecture], strict=True)]
        yield f"chat_fvu_vs_saelens_{architecture}", "ratio", ratios
