"""Formats of published SAEs: what is read, and what SAELens loads or others publish that cannot be used here, by name.

A folder is one of SAELens, of Gemma Scope (``params.npz``) or of Gemma Scope 2 (``params.safetensors``);
``release:sae_id`` is in SAELens' registry. All give a ``sae_lens.SAE`` in float32 that encodes and decodes tokens.
"""

import difflib
import json
import re
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from sae_lens import SAE
from sae_lens.loading.pretrained_sae_loaders import load_sae_config_from_huggingface
from sae_lens.loading.pretrained_saes_directory import get_pretrained_saes_directory
from sae_lens.saes.jumprelu_sae import JumpReLUSAE, JumpReLUSAEConfig
from sae_lens.saes.sae import SAEMetadata
from safetensors import safe_open
from safetensors.torch import load_file
from torch import Tensor

from lib.base.files import cause
from lib.sae import names

CONFIG, WEIGHTS = "cfg.json", "sae_weights.safetensors"  # of SAELens
NPZ = "params.npz"  # of Gemma Scope
SCOPE_2 = "params.safetensors"  # of Gemma Scope 2

# Architectures of SAELens' registry. A new one there fails a test until it is put into one of these three.
READ = ("standard", "gated", "jumprelu", "topk", "matching_pursuit")
TRAINED = ("batchtopk", "matryoshka_batchtopk")  # exist while they are trained, and are exported as another
TRANSCODER = "a transcoder, which reads one place of the model and writes another; give an SAE"
UNREAD = {
    "transcoder": TRANSCODER,
    "skip_transcoder": TRANSCODER,
    "jumprelu_transcoder": TRANSCODER,
    "jumprelu_skip_transcoder": TRANSCODER,
    "temporal": "a temporal SAE, whose latents of a token depend on the tokens before it; here each is encoded alone",
    "abstopk": "an AbsTopK SAE, whose latents have signs; here a latent is active where it is above 0",
    "crosscoder": "a crosscoder, which reads several layers at once; give an SAE of one layer",  # not SAELens'
}
HOOK_Z = "an SAE of the attention heads' outputs (hook_z); activations here are of the residual stream"
FOREIGN = {"sae.safetensors": "sparsify", "ae.pt": "dictionary_learning", "hyperparams.json": "Llama Scope"}

# Settings under which weights expect activations that somebody else has scaled, and what these are scaled to.
UNSCALED = {"expected_average_only_in": "a mean norm of √d_in", "covariance_whitening": "a covariance of 1"}
SCALER = "activation_scaler.json"  # beside a checkpoint of SAELens

SCOPE = re.compile(r"gemma-scope-(\d+b)-(pt|it)-(\w+)")  # a repository of Gemma Scope
SCOPE_PLACES = {"res": "hook_resid_post", "mlp": "hook_mlp_out", "att": "attn.hook_z"}


class Unsupported(Exception):
    """Something that is known and cannot be used as an SAE of the residual stream; the text goes on after “is”."""


def from_registry(place: str, device: str) -> SAE:
    """The SAE ``release:sae_id`` of SAELens' registry, or of a repository of the hub that holds folders of SAELens.

    What cannot be used is refused before its weights are downloaded.

    Raises:
        ValueError: no such release or SAE, none that can be had, or one that cannot be used.
    """
    release, sae_id = place.split(":", 1)
    _check_registered(release, sae_id)
    try:
        check_config(load_sae_config_from_huggingface(release, sae_id, device))
        return _usable(SAE.from_pretrained(release, sae_id, device=device), place)
    except Unsupported as error:
        raise ValueError(f"{place!r} is {error}") from error
    except Exception as error:  # The hub, requests, SAELens and torch each have their own.
        raise ValueError(f"the SAE {place!r} cannot be had from the registry or its hub: {cause(error)}") from error


def _check_registered(release: str, sae_id: str) -> None:
    releases = get_pretrained_saes_directory()
    if release not in releases and "/" not in release:
        near = difflib.get_close_matches(release, releases, n=3, cutoff=0.5)
        raise ValueError(
            f"there is no folder and no release {release!r} of SAELens; near it are {near}, or give the id of a "
            "repository on the hub"
        )
    if release in releases and sae_id not in releases[release].saes_map:
        ids = list(releases[release].saes_map)
        near = difflib.get_close_matches(sae_id, ids, n=3) or ids[:3]
        raise ValueError(f"the release {release!r} has no SAE {sae_id!r}; it has {len(ids)}, such as {near}")


def from_folder(folder: Path, device: str) -> SAE:
    """The SAE in a folder.

    Raises:
        ValueError: no SAE folder, one of a format or an architecture that is not read, one that is damaged, or whose
            SAE cannot encode; the sentence names it.
    """
    foreign = next((who for name, who in FOREIGN.items() if (folder / name).exists()), None)
    reader = next((read for name, read in READERS.items() if (folder / name).exists()), None)
    if foreign and not (folder / WEIGHTS).exists():
        raise ValueError(
            f"{folder} is a folder of {foreign}, which is not read here; save it with SAELens (sae.save_model), or "
            "give 'release:sae_id' if its registry has it"
        )
    if reader is None:
        raise ValueError(
            f"{folder} is no SAE folder ({CONFIG}, {WEIGHTS}; or {NPZ}; or {SCOPE_2}), nor 'release:sae_id'"
        )
    try:
        return _usable(reader(folder, device), str(folder))
    except Unsupported as error:
        raise ValueError(f"{folder} is {error}") from error
    except Exception as error:  # JSON, safetensors, NumPy, SAELens and torch each have their own for a damaged file.
        raise ValueError(f"{folder} is damaged or not an SAE folder: {cause(error)}") from error


def check_config(config: dict[str, Any]) -> None:
    """Whether a configuration, as SAELens writes it, is that of an SAE which can be used here.

    Raises:
        Unsupported: it is known to be something else.
        ValueError: it is no configuration at all.
    """
    if not isinstance(config, dict):
        raise ValueError(f"the configuration is {type(config).__name__}, and must be a mapping")
    metadata = config["metadata"] if isinstance(config.get("metadata"), dict) else {}
    # Before version 6 there was no part of its own for the metadata, and once the place had another name.
    said = {"hook_name": config.get("hook_point")} | config | metadata
    architecture = str(config.get("architecture", "standard"))
    if architecture in TRAINED:
        raise Unsupported(
            f"a training checkpoint of SAELens ({architecture}); export it with "
            "sae_lens.TrainingSAE.load_from_disk(folder).save_inference_model(another_folder)"
        )
    reason = UNREAD.get("crosscoder" if "crosscoder" in architecture.lower() else architecture)
    if reason:
        raise Unsupported(reason)
    if architecture not in READ:
        raise Unsupported(f"an SAE of the architecture {architecture[:60]!r}, which is unknown; read are {READ}")
    place, place_out = (str(said.get(name) or "") for name in ("hook_name", "hook_name_out"))
    if config.get("reshape_activations") == "hook_z" or "hook_z" in place:
        raise Unsupported(HOOK_Z)
    is_elsewhere = bool(place_out) and not names.same_place(place, place_out)
    if is_elsewhere or config.get("d_out") not in (None, config.get("d_in")):
        raise Unsupported(TRANSCODER)


def not_finite(sae: SAE) -> list[str]:
    """Names of weights that hold NaN or infinity."""
    return [name for name, tensor in sae.state_dict().items() if not torch.isfinite(tensor).all()]


@torch.no_grad()
def _usable(sae: SAE, place: str) -> SAE:
    """The SAE, if its weights are finite and it encodes and decodes two tokens; a warning if its scale is missing.

    Raises:
        ValueError: it does not; SAELens accepts any weights and settings.
    """
    bad = not_finite(sae)
    if bad:
        raise ValueError(f"{bad} has values that are not finite")
    x = torch.linspace(-100, 100, 2 * sae.cfg.d_in, device=sae.W_dec.device).reshape(2, -1)
    latents = sae.encode(x)
    decoded = sae.decode(latents)
    if latents.shape != (2, sae.cfg.d_sae) or decoded.shape != x.shape or not torch.isfinite(decoded).all():
        raise ValueError(
            f"tokens {tuple(x.shape)} are encoded as {tuple(latents.shape)} and "
            f"decoded as {tuple(decoded.shape)}, or not finite"
        )
    setting = sae.cfg.normalize_activations
    if setting in UNSCALED:
        beside = f" ({SCALER} beside it has it)" if (Path(place) / SCALER).exists() else ""
        warnings.warn(
            f"the SAE {place} expects activations scaled to {UNSCALED[setting]} (normalize_activations: {setting}), "
            f"and its weights do not hold the scale{beside}: what it gives is wrong until SAELens has folded it in",
            stacklevel=5,  # Where the SAE is loaded.
        )
    return sae


def _saelens(folder: Path, device: str) -> SAE:
    check_config(_json(folder / CONFIG))
    with safe_open(folder / WEIGHTS, "pt") as weights:
        if "W_dec" in weights.keys() and len(weights.get_slice("W_dec").get_shape()) == 3:
            raise Unsupported(UNREAD["crosscoder"])
    return SAE.load_from_disk(folder, device=device, dtype="float32")


def _json(path: Path) -> Any:
    return json.loads(path.read_text(encoding="utf-8"))


def _gemma_scope(folder: Path, device: str) -> SAE:
    """The SAE of Gemma Scope's format: ``W_enc`` (d_model, d_sae), ``W_dec`` (d_sae, d_model) and three vectors.

    The layer is read from the folder's path, ``…/layer_12/width_16k/average_l0_82``; the model and what was read of it
    too, if a folder above has the name of the repository.
    """
    repository = next((match for match in map(SCOPE.search, folder.parts[::-1]) if match), None)
    kind = repository[3] if repository else "res"
    if kind not in SCOPE_PLACES:
        raise Unsupported(TRANSCODER)
    with np.load(folder / NPZ, allow_pickle=False) as file:
        weights = {name: torch.from_numpy(file[name]) for name in ("W_enc", "W_dec", "b_enc", "threshold", "b_dec")}
    layers = [part.removeprefix("layer_") for part in folder.parts if re.fullmatch(r"layer_\d+", part)]
    metadata = {"hook_name": f"blocks.{layers[0]}.{SCOPE_PLACES[kind]}"} if layers else {}
    if repository:
        metadata["model_name"] = f"gemma-2-{repository[1]}" + "-it" * (repository[2] == "it")
    check_config(metadata)
    return _jumprelu(weights, metadata, device)


def _gemma_scope_2(folder: Path, device: str) -> SAE:
    """The SAE of Gemma Scope 2's format: ``w_enc`` (d_model, d_sae), ``w_dec`` (d_sae, d_model) and three vectors.

    The place and the model stand in ``config.json``, or the place in the path, ``resid_post/layer_12_width_16k_…``.
    """
    said = _json(folder / "config.json") if (folder / "config.json").exists() else {}
    layer = re.match(r"layer_(\d+)_", folder.name)
    from_path = f"model.layers.{layer[1]}.output" if layer and folder.parent.name == "resid_post" else ""
    place = str(said.get("hf_hook_point_in") or from_path)
    before = names.blocks_before(place)
    metadata = {"hook_name": f"blocks.{before - 1}.hook_resid_post" if before else place, "hf_hook_name": place}
    check_config({"hook_name": place, "hook_name_out": said.get("hf_hook_point_out")})
    if said.get("model_name"):
        metadata["model_name"] = str(said["model_name"]).replace("gemma-v3", "gemma-3")
    weights = load_file(folder / SCOPE_2)
    if "affine_skip_connection" in weights:
        raise Unsupported(TRANSCODER)
    renamed = {"W_enc": weights["w_enc"], "W_dec": weights["w_dec"]}
    renamed |= {name: weights[name] for name in ("b_enc", "threshold", "b_dec")}
    if renamed["W_dec"].ndim == 3:
        raise Unsupported(UNREAD["crosscoder"])
    return _jumprelu(renamed, {name: value for name, value in metadata.items() if value}, device)


def _jumprelu(weights: dict[str, Tensor], metadata: dict[str, str], device: str) -> JumpReLUSAE:
    """The JumpReLU SAE of these weights; no bias is taken off the input."""
    shape = tuple(weights["W_enc"].shape)
    if len(shape) != 2:
        raise ValueError(f"W_enc has shape {shape}, needed is (d_model, d_sae)")
    if weights["b_dec"].shape[-1:] != shape[:1]:
        raise Unsupported(TRANSCODER)
    d_in, d_sae = shape
    config = JumpReLUSAEConfig(d_in, d_sae, apply_b_dec_to_input=False, metadata=SAEMetadata(**metadata))
    sae = JumpReLUSAE(config)
    sae.load_state_dict({name: tensor.float() for name, tensor in weights.items()})
    return sae.to(device)


READERS: dict[str, Callable[[Path, str], SAE]] = {CONFIG: _saelens, NPZ: _gemma_scope, SCOPE_2: _gemma_scope_2}
