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

from lib.base import build_graph
from lib.base.files import DATA
from lib.model import chat, models
from lib.model.poolings import POOLINGS
from lib.sae import architectures
from lib.sae.folders import locate

TOKENS_PER_PROMPT = 80
SHARE_OF_PEAK = 0.4  # of the speed of one large product, which forward passes and trainings reach
SEARCH = 30  # refits of probes and bootstraps, in forward passes of the prompts; small beside the rest on large models
GIB = 2**30
WEIGHTS = ("model.safetensors", "model.safetensors.index.json")


def values_of(profile: dict[str, Any]) -> dict[str, Any]:
    """All notebooks' parameters with a profile's values."""
    return {name: value for path in build_graph.notebooks() for name, value in build_graph.parameters(path).items()} | profile


def estimate(profile: dict[str, Any], flops: float | None = None) -> pd.DataFrame:
    """A row per step: notebook, step, tokens, disk_gib (written), memory_gib (peak, of the model and the SAE), hours.

    Products count 2 floating-point operations per weight and token: a forward pass reads the weights up to the layer, an SAE's
    training step five products of d_model × d_sae (an upper bound for sparse steps). ``flops`` is the machine's speed in
    operations per second, measured on one large product if not given. The weights of a model that is not on disk yet count as
    written.

    Raises:
        ValueError: a model that cannot be had.
    """
    v = values_of(profile)
    shape = _shape(v["model"], v["base_sae"])
    speed = SHARE_OF_PEAK * (flops or peak_flops(v["device"], v["dtype"]))
    size, cut = shape["weights"], shape["per_layer"] * (v["layer"] + 1)
    wide = v["base_d_sae"] if not v["base_sae"] else shape["d_sae"] or v["base_d_sae"]
    prompts = _prompts(v)
    read = prompts * TOKENS_PER_PROMPT
    layers = len(v["layers"]) or shape["n_layers"]
    saes = {"03": _architectures(v), "04": (len(v["resample_shares"]) + len(v["prompt_repeats"]) + 3) * len(v["finetune_seeds"])}
    kept, width = (2 if v["store"] == "disk" else 0) * shape["d_model"], 10 * shape["d_model"]
    weights, half = size * torch.finfo(models.DTYPES[v["dtype"]]).bits // 8, 2 * shape["d_model"]
    asked, own = shape["chat"] * v["n_jailbroken"] * 12, any(str(v[name]).startswith("own:") for name in ("corpus", "chat_corpus")) * v["n_rollouts"]
    seen = saes["04"] * max(v["finetune_tokens"], v["scratch_tokens"]) + (not v["base_sae"]) * v["base_train_tokens"]
    harvested = v["pretraining_tokens"] + v["chat_tokens"]
    again = saes["04"] if v["store"] == "stream" else 1
    rows = [
        ("01", "weights of the model", 0, shape["download"], 0, 0),
        ("01", "responses to jailbreaks", asked * (v["response_tokens"] + TOKENS_PER_PROMPT), asked * 2e3, weights, asked * (v["response_tokens"] + TOKENS_PER_PROMPT) * 2 * size),
        ("02", "pooled and token activations", read, prompts * layers * len(POOLINGS) * 4 * shape["d_model"] + read * half, weights, read * 2 * shape["per_layer"] * (max(v["layers"], default=shape["n_layers"] - 1) + 1)),
        ("03", "rollouts", own * v["rollout_tokens"], own * 2e3, weights, own * v["rollout_tokens"] * 2 * size),
        ("03", "harvest", v["max_tokens"], v["max_tokens"] * kept, weights, v["max_tokens"] * 2 * cut),
        ("03", "SAE training", saes["03"] * v["train_tokens"], saes["03"] * _bytes(shape, v["d_sae"]), _training(shape, v["d_sae"], v["batch_tokens"]), saes["03"] * v["train_tokens"] * width * v["d_sae"]),
        ("04", "harvest", harvested, harvested * kept, weights, again * harvested * 2 * cut),
        ("04", "SAE training", seen, (saes["04"] + 2) * _bytes(shape, wide), _training(shape, wide, 2048), seen * width * wide),
        ("05", "probes", read, 0, weights, read * (SEARCH * 2 * shape["d_model"] ** 2 + (saes["04"] + 3) * 2 * shape["d_model"] * wide)),
        ("06", "sequences", v["interp_tokens"], v["interp_tokens"] * half, weights, v["interp_tokens"] * (2 * cut + sum(saes.values()) * 2 * shape["d_model"] * wide)),
        ("07", "raw and planted prompts", read * 4, read * 4 * half, weights, read * 4 * 2 * cut),
    ]  # fmt: skip
    table = pd.DataFrame(rows, columns=["notebook", "step", "tokens", "disk_gib", "memory_gib", "hours"])
    return table.assign(disk_gib=table["disk_gib"] / GIB, memory_gib=table["memory_gib"] / GIB, hours=table["hours"] / speed / 3600)


def check(table: pd.DataFrame, free: int | None = None) -> None:
    """Raise ``ValueError`` if the disk has less than the estimate (``free``: bytes, default: what is free beside ``data``)."""
    needed, free = table["disk_gib"].sum(), (free if free is not None else shutil.disk_usage(DATA).free) / GIB
    if needed > free:
        most = table.loc[table["disk_gib"].idxmax()]
        raise ValueError(f"about {needed:.1f} GiB of disk are needed, {free:.1f} GiB are free; the most, {most['disk_gib']:.1f} GiB, takes {most['step']} of notebook {most['notebook']} (store: stream keeps no training activations)")


@functools.lru_cache(maxsize=4)  # a sweep asks for each of its cells
def _shape(name: str, base_sae: str) -> dict[str, Any]:
    """Sizes of the model from its configuration alone, and what has to be downloaded (2 bytes a weight)."""
    config = models.load_config(name)
    with torch.device("meta"):
        model = models.auto_class(config).from_config(config)
    embeddings = {id(part.weight): part.weight.numel() for part in (model.get_input_embeddings(), model.get_output_embeddings()) if part is not None}
    total, text = sum(p.numel() for p in model.parameters()), config.get_text_config()
    here = models.model_path(name) != name or Path(name).is_dir() or any(isinstance(try_to_load_from_cache(name, file), str) for file in WEIGHTS)
    return {"d_model": text.hidden_size, "n_layers": text.num_hidden_layers, "weights": total, "download": 0 if here else 2 * total,
            "per_layer": (total - sum(embeddings.values())) / text.num_hidden_layers, "chat": chat.has_template(models.load_tokenizer(name)),
            "d_sae": _width(base_sae)}  # fmt: skip


def _width(place: str) -> int:
    """Latents of the SAE to begin with: from its configuration, or from its name (``width_131k``); 0 if neither tells."""
    configuration = Path(locate(place)) / "cfg.json"
    if place and configuration.exists():
        return json.loads(configuration.read_text(encoding="utf-8"))["d_sae"]
    found = re.search(r"width_(\d+)(k|m)?", place)
    if not found or not found[2]:
        return int(found[1]) if found else 0
    return 2 ** round(math.log2(int(found[1]) * {"k": 1e3, "m": 1e6}[found[2]]))  # 131k is 2¹⁷


def _prompts(v: dict[str, Any]) -> int:
    """Prompts after augmentation, at most: four jailbreaks and two transformations in training, two of each out of distribution."""
    harmless = 1 + v["benign_jailbreak_share"]
    return round(v["n_harmful"] * 7 + v["n_harmless"] * harmless + v["n_ood_harmful"] * 5 + (v["n_ood_toxic_looking"] + v["n_ood_chat"]) * harmless)


def _architectures(v: dict[str, Any]) -> int:
    """SAEs that notebook 03 trains.

    Raises:
        ValueError: an unknown architecture among the comparators.
    """
    by_field = {"target_l0": v["target_l0s"], "coefficient": v["gated_coefficients"]}
    jumprelu = (1 + len(v["f0s"])) * len(architectures.sparsities("jumprelu", by_field))
    compared = sum(len(architectures.sparsities(name, by_field)) for name in dict.fromkeys(v["comparators"]))
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
