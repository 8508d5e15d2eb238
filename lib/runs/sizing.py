"""What a profile will take, before it starts: tokens, disk, memory and hours of each step."""

import functools
import json
import math
import re
import shutil
import time
from pathlib import Path
from typing import Any

import pandas as pd
import torch
from huggingface_hub import try_to_load_from_cache
from transformers import AutoModelForCausalLM

from lib.base.files import DATA, value_hash
from lib.model import chat, models, weights
from lib.model.poolings import POOLINGS
from lib.runs import profiles, task_sizes
from lib.runs.steps import PROMPTS, ROLLOUTS, Step, key_of, key_of_tokens, once
from lib.sae import architectures, names
from lib.sae.finetuning import first_bases
from lib.sae.folders import check_start, locate
from lib.sae.formats import CONFIG
from lib.sae.learning_rates import CHOSEN

TOKENS_PER_PROMPT = 80
COMPUTED_PER_PROMPT = 26  # of them by a causal model, as prompts share what they begin with (21 in public)
TRIALS = 4  # trainings from which a learning rate is chosen
SHARE_OF_PEAK = 0.4  # of the speed of one large product, which forward passes and trainings reach
SEARCH = 30  # refits of probes and bootstraps, in forward passes of the prompts
GIB = 2**30
WEIGHTS = ("model.safetensors", "model.safetensors.index.json")


def estimate(profile: dict[str, Any], flops: float | None = None) -> pd.DataFrame:
    """A row per step: notebook, step, tokens, disk_gib (written), memory_gib (peak, of the model and the SAE), hours.

    Products count 2 floating-point operations per weight and token: a forward pass reads the weights up to the layer,
    an SAE's training step five products of d_model × d_sae (an upper bound for sparse steps). ``flops`` is the
    machine's speed in operations per second, measured on one large product if not given. The weights of a model that
    is not on disk yet count as written.

    Raises:
        ValueError: a model that cannot be had, a negative number of base SAEs (``other_bases``), or one of a folder
            that cannot be finetuned or is of another layer.
    """
    _check_saes(profiles.complete(profile))
    return once(steps(profile, flops)).drop(columns="key")


def _check_saes(v: dict[str, Any]) -> None:
    """Refuse SAEs that cannot be finetuned, or are of another layer, now: notebook 04 would so after the harvests."""
    hook_name = models.resid_post(v["layer"])
    for place in filter(None, [*v["base_saes"], v["prompts_sae"]]):
        config = _config(place)
        if config and place in v["base_saes"]:
            check_start(config.get("architecture"), config.get("normalize_activations") or "none", place)
        trained_on = str((config.get("metadata") or {}).get("hook_name") or config.get("hook_name") or hook_name)
        if not v["insist"] and not names.same_place(trained_on, hook_name):
            raise ValueError(
                f"layer: {v['layer']}, but the SAE {place} was trained on {trained_on}; name SAEs of that layer, or "
                "set base_saes: [] and prompts_sae: '' (they are trained then), or insist: true"
            )


def steps(profile: dict[str, Any], flops: float | None = None) -> pd.DataFrame:
    """:func:`estimate` with each step's ``key`` (empty: nothing that another one makes too), before any is left out.

    Raises:
        ValueError: see :func:`estimate`.
    """
    values = profiles.complete(profile)
    shape = _shape(values["model"], next(iter(values["base_saes"]), ""))
    speed = SHARE_OF_PEAK * (flops or peak_flops(values["device"], values["dtype"]))
    table = pd.DataFrame([*_steps(values, shape), *task_sizes.steps(values, shape)])
    return pd.DataFrame(
        {
            "notebook": table["notebook"],
            "step": table["step"],
            "tokens": table["tokens"],
            "disk_gib": table["disk"] / GIB,
            "memory_gib": table["memory"] / GIB,
            "hours": (table["operations"] / speed + table["seconds"]) / 3600,
            "key": table["key"],
        }
    )


def _steps(v: dict[str, Any], shape: dict[str, Any]) -> list[Step]:
    d_model = shape["d_model"]
    # The model: bytes of its weights, operations per token of a whole pass and of one that ends at the layer.
    weights = shape["weights"] * torch.finfo(models.DTYPES[v["dtype"]]).bits // 8
    whole, cut = 2 * shape["weights"], 2 * shape["per_layer"] * (v["layer"] + 1)
    half = 2 * d_model  # bytes of a token's activation in half precision
    kept = half if v["store"] == "disk" else 0

    responses = shape["chat"] * v["n_jailbroken"] * 12
    response_tokens = responses * (v["response_tokens"] + TOKENS_PER_PROMPT)
    has_rollouts = any(str(v[name]).startswith("own:") for name in ("corpus", "chat_corpus"))
    rollouts = has_rollouts * v["n_rollouts"]
    rollout_tokens = rollouts * v["rollout_tokens"]
    of_rollouts = key_of(v, PROMPTS, "corpus", "chat_corpus", *ROLLOUTS)

    prompts = _prompts(v)
    prompt_tokens = prompts * TOKENS_PER_PROMPT
    computed_tokens = prompts * (COMPUTED_PER_PROMPT if shape["causal"] else TOKENS_PER_PROMPT)
    read = {*v["layers"], v["layer"]} if v["layers"] else set(range(shape["n_layers"]))
    pooled_bytes = prompts * len(read) * (len(POOLINGS) + len(v["positions"])) * 4 * d_model
    pooled_operations = computed_tokens * 2 * shape["per_layer"] * (max(read) + 1)

    # SAEs: how many, how wide, and operations per token and latent of a training step.
    n_compared = _architectures(v)
    compared_trials = TRIALS * sum(v[name] == CHOSEN for name in ("lr", "comparator_lr"))
    # Of each base SAE: finetuned on chat and on pretraining text. Of the first of them also resampled, with prompts,
    # and one from scratch with its seed; where it is trained here also from an earlier checkpoint. The IT-formatted
    # SAE is finetuned once.
    n_bases = len(v["base_saes"] or v["base_seeds"])
    n_first = len(first_bases(range(n_bases), v["other_bases"]))
    n_others = len(v["resample_shares"]) + len(v["prompt_repeats"]) + 1 + (not v["base_saes"])
    n_finetuned = n_bases * 2 + n_first * n_others + 1
    n_cheaper = len(v["token_shares"]) + len(v["sae_widths"])  # SAEs from scratch of fewer tokens, or of other widths
    # Control dictionaries; then one of each with the main SAEs and others.
    read_again = 3 * v["dictionary_draws"] + 9 + n_cheaper
    finetuned_trials = TRIALS * sum(v[name] == CHOSEN for name in ("finetune_lr", "scratch_lr"))
    base_d_sae = v["base_d_sae"] if not v["base_saes"] else shape["d_sae"] or v["base_d_sae"]
    per_latent = 10 * d_model
    compared_tokens = (n_compared + compared_trials) * v["train_tokens"]
    finetuned_tokens = (n_finetuned + finetuned_trials) * max(v["finetune_tokens"], v["scratch_tokens"])
    finetuned_tokens += (sum(v["token_shares"]) + len(v["sae_widths"])) * v["scratch_tokens"]
    # The earlier checkpoint of a base SAE that is trained here is nearly as long a training as the SAE itself.
    n_trained = (not v["base_saes"]) * (n_bases + n_first) + (not v["prompts_sae"])
    n_trained += TRIALS * (n_trained > 0 and v["base_lr"] == CHOSEN)
    finetuned_tokens += n_trained * v["base_train_tokens"]
    pretraining_tokens = v["pretraining_tokens"] * (1 if v["prompts_sae"] else 2)
    passes = n_finetuned if v["store"] == "stream" else 1
    of_03 = key_of_tokens(v, v["corpus"], v["max_tokens"])
    of_chat = key_of_tokens(v, v["chat_corpus"], v["chat_tokens"])
    of_pretraining = key_of_tokens(v, v["pretraining_corpus"], v["pretraining_tokens"], v["prompts_sae"] == "")
    encode = 2 * d_model * base_d_sae  # operations of encoding a token with one SAE
    read_saes = (n_finetuned + n_bases + 1) * encode
    return [
        Step("01", "weights of the model", disk=shape["download"], key=value_hash(["weights", v["model"]])),
        Step("01", "responses to jailbreaks", response_tokens, responses * 2e3, weights, response_tokens * whole),
        Step(
            "02",
            "pooled and token activations",
            prompt_tokens,
            pooled_bytes + prompt_tokens * half,
            weights,
            pooled_operations,
            key=key_of(v, PROMPTS, "layers", "layer", "positions", "pool_over"),
        ),
        Step("03", "rollouts", rollout_tokens, rollouts * 2e3, weights, rollout_tokens * whole, key=of_rollouts),
        Step("03", "harvest", v["max_tokens"], v["max_tokens"] * kept, weights, v["max_tokens"] * cut, key=of_03),
        Step(
            "03",
            "SAE training",
            compared_tokens,
            n_compared * _bytes(shape, v["d_sae"]),
            _training(shape, v["d_sae"], v["batch_tokens"]),
            compared_tokens * per_latent * v["d_sae"],
        ),
        Step(
            "04",
            "harvest of chat",
            v["chat_tokens"],
            v["chat_tokens"] * kept,
            weights,
            passes * v["chat_tokens"] * cut,
            key=of_chat,
        ),
        Step(
            "04",
            "harvest",
            pretraining_tokens,
            pretraining_tokens * kept,
            weights,
            passes * pretraining_tokens * cut,
            key=of_pretraining,
        ),
        Step(
            "04",
            "SAE training",
            finetuned_tokens,
            (n_finetuned + n_trained) * _bytes(shape, base_d_sae),
            _training(shape, base_d_sae, 2048),
            finetuned_tokens * per_latent * base_d_sae,
        ),
        Step("05", "probes", prompt_tokens, 0, weights, prompt_tokens * (SEARCH * 2 * d_model**2 + read_saes)),
        Step(
            "06",
            "sequences",
            v["interp_tokens"],
            v["interp_tokens"] * half,
            weights,
            v["interp_tokens"] * cut,
            key=key_of(v, PROMPTS, "layer", "interp_corpus", "interp_tokens", "seed"),
        ),
        Step(
            "06",
            "latents of sequences",
            v["interp_tokens"],
            0,
            weights,
            v["interp_tokens"] * (n_compared + n_finetuned) * encode,
        ),
        Step(
            "07",
            "raw and planted prompts",
            prompt_tokens * 4,
            prompt_tokens * 4 * half,
            weights,
            computed_tokens * 4 * cut,
            key=key_of(v, PROMPTS, "layer", "seed"),
        ),
        Step(
            "08",
            "controls and the loss in parts",
            prompt_tokens,
            0,
            weights + 8 * prompts * base_d_sae,  # all columns of one control basis, and a copy, of one process
            computed_tokens * read_again * encode,
        ),
    ]


def check(table: pd.DataFrame, free: int | None = None) -> None:
    """Raise ``ValueError`` if the disk has less than the estimate.

    ``free`` is in bytes; the default is what is free beside ``data``.
    """
    needed = table["disk_gib"].sum()
    free_gib = (free if free is not None else shutil.disk_usage(DATA).free) / GIB
    if needed > free_gib:
        most = table.loc[table["disk_gib"].idxmax()]
        raise ValueError(
            f"about {needed:.1f} GiB of disk are needed, {free_gib:.1f} GiB are free; the most, "
            f"{most['disk_gib']:.1f} GiB, takes {most['step']} of notebook {most['notebook']} "
            "(store: stream keeps no training activations)"
        )


@functools.lru_cache(maxsize=4)  # a sweep asks for each of its cells
def _shape(name: str, base_sae: str) -> dict[str, Any]:
    """Sizes of the model from its configuration alone, and what has to be downloaded (2 bytes a weight)."""
    config = models.load_config(name)
    with torch.device("meta"):
        model = models.auto_class(config).from_config(config)
    embeddings = [model.get_input_embeddings(), model.get_output_embeddings()]
    # By identity, so that a matrix that both share counts once.
    sizes = {id(part.weight): part.weight.numel() for part in embeddings if part is not None}
    total = sum(p.numel() for p in model.parameters())
    text = config.get_text_config()
    is_here = weights.model_path(name) != name or Path(name).is_dir()
    if not is_here:
        is_here = any(isinstance(try_to_load_from_cache(name, file), str) for file in WEIGHTS)
    return {
        "d_model": text.hidden_size,
        "n_layers": text.num_hidden_layers,
        "weights": total,
        "download": 0 if is_here else 2 * total,
        "per_layer": (total - sum(sizes.values())) / text.num_hidden_layers,
        "causal": models.auto_class(config) is AutoModelForCausalLM,
        "chat": chat.has_template(models.load_tokenizer(name)),
        "d_sae": _width(base_sae),
    }


def _width(place: str) -> int:
    """Latents of the SAE to begin with, from its configuration or its name (``width_131k``); 0 if neither tells."""
    if config := _config(place):
        return config["d_sae"]
    in_name = re.search(r"width_(\d+)(k|m)?", place)
    if not in_name:
        return 0
    number, unit = in_name.groups()
    if unit is None:
        return int(number)
    return 2 ** round(math.log2(int(number) * {"k": 1e3, "m": 1e6}[unit]))  # 131k is 2¹⁷


def _config(place: str) -> dict[str, Any]:
    """What the folder of an SAE of SAELens says of it; nothing of another place."""
    path = Path(locate(place)) / CONFIG
    return json.loads(path.read_text(encoding="utf-8")) if place and path.exists() else {}


def _prompts(v: dict[str, Any]) -> int:
    """Prompts after augmentation, at most.

    A harmful one is wrapped in four jailbreaks and two transformations in training, and in two of each out of
    distribution.
    """
    harmful = v["n_harmful"] * 7 + v["n_ood_harmful"] * 5
    harmless = v["n_harmless"] + v["n_ood_toxic_looking"] + v["n_ood_chat"]
    return round(harmful + harmless * (1 + v["benign_jailbreak_share"] + v["innocuous_share"]))


def _architectures(v: dict[str, Any]) -> int:
    """SAEs that notebook 03 trains.

    Raises:
        ValueError: an unknown architecture among the comparators.
    """
    jumprelu = (1 + len(v["f0s"]) + len(v["penalties"])) * len(v["target_l0s"])
    compared = sum(len(architectures.target_l0s(name, v["target_l0s"])) for name in dict.fromkeys(v["comparators"]))
    return len(v["seeds"]) * (jumprelu + compared)


def _bytes(shape: dict[str, Any], d_sae: int) -> int:
    return 4 * 2 * shape["d_model"] * d_sae


def _training(shape: dict[str, Any], d_sae: int, batch: int) -> int:
    """Weights, gradients and two moments in float32, and a batch of pre-activations, three times."""
    return 4 * _bytes(shape, d_sae) + 3 * 4 * batch * d_sae


def peak_flops(device: str, dtype: str) -> float:
    """Operations per second of one large product."""
    n = 1024 if device == "cpu" else 8192
    x = torch.ones(n, n, device=models.check_device(device), dtype=models.DTYPES[dtype])
    best = float("inf")
    for _ in range(4):
        began = time.perf_counter()
        (x @ x).sum().item()
        best = min(best, time.perf_counter() - began)
    return 2 * n**3 / best
