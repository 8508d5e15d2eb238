"""Sparse autoencoders as SAELens objects: made from trained weights, saved, loaded, checked and measured.

Inference everywhere uses ``sae_lens.SAE`` (``W_enc, W_dec, b_enc, b_dec, threshold``; ``encode``, ``decode``), so a
Gemma Scope SAE is usable wherever ours is.
"""

import json
import re
import shutil
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
import torch
from jaxtyping import Float
from sae_lens import SAE
from sae_lens.saes.jumprelu_sae import JumpReLUSAE, JumpReLUSAEConfig
from sae_lens.saes.sae import SAEMetadata
from safetensors.torch import save_file
from torch import Tensor

from lib.base.files import ROOT, cause, file_hash, write_json, writing
from lib.sae.jumprelu import Parameters

HIGH_FREQUENCY = 0.1  # a latent is high-frequency if it fires on more than this fraction of tokens
BATCH_TOKENS = 4096
NPZ = "params.npz"  # of Gemma Scope


def from_parameters(
    p: Parameters, mean: Float[Tensor, " d_model"], scale: float, metadata: dict[str, Any]
) -> JumpReLUSAE:
    """The SAE on unscaled activations that equals ``p`` on (x − mean) / scale.

    W_enc and W_dec stay (decoder rows unit); b_enc' = scale·b_enc − mean·W_enc, θ' = scale·θ,
    b_dec' = mean + scale·b_dec. No bias is taken off the input (``apply_b_dec_to_input`` false, as Gemma Scope).
    """
    d_sae, d_model = p.enc.shape
    config = JumpReLUSAEConfig(d_in=d_model, d_sae=d_sae, apply_b_dec_to_input=False, metadata=SAEMetadata(**metadata))
    sae = JumpReLUSAE(config)
    weights = {
        "W_enc": p.enc.T.contiguous(),
        "W_dec": p.dec,
        "threshold": scale * p.threshold,
        "b_enc": scale * p.b_enc - p.enc @ mean,
        "b_dec": mean + scale * p.b_dec,
    }
    sae.load_state_dict(weights)
    return sae


@torch.no_grad()
def to_parameters(sae: SAE, mean: Float[Tensor, " d_model"], scale: float) -> Parameters:
    """A JumpReLU SAE on unscaled activations as parameters on (x − mean) / scale: inverse of :func:`from_parameters`.

    Decoder rows become unit ones first; a bias that is taken off the input is folded into b_enc.

    Raises:
        ValueError: another architecture than JumpReLU.
    """
    if sae.cfg.architecture() != "jumprelu":
        raise ValueError(f"only a jumprelu SAE can be finetuned here, this one is {sae.cfg.architecture()!r}")
    norm = sae.W_dec.norm(dim=1).clamp(min=1e-12)
    enc, b_enc = (sae.W_enc * norm).T.contiguous(), sae.b_enc * norm
    if sae.cfg.apply_b_dec_to_input:
        b_enc = b_enc - enc @ sae.b_dec
    return Parameters(
        enc=enc,
        dec=(sae.W_dec / norm[:, None]).clone(),
        b_enc=(b_enc + enc @ mean) / scale,
        b_dec=(sae.b_dec - mean) / scale,
        threshold=sae.threshold * norm / scale,
    )


def save(sae: SAE, folder: Path, training: dict[str, Any], dtype: str = "float32") -> Path:
    """Write the SAELens folder (``cfg.json``, ``sae_weights.safetensors``) and ``training.json``, all or nothing.

    Raises:
        ValueError: a weight is not finite.
    """
    bad = _not_finite(sae)
    if bad:
        raise ValueError(f"{folder}: {bad} has values that are not finite; nothing was saved")
    with writing(folder):
        folder.parent.mkdir(parents=True, exist_ok=True)
        scratch = Path(tempfile.mkdtemp(dir=folder.parent, prefix=f".{folder.name}-"))
        try:
            sae.cfg.device = "cpu"  # SAELens loads onto the device that is named here, which may not be there.
            sae.save_model(scratch)
            weights = {name: tensor.to(getattr(torch, dtype)).contiguous() for name, tensor in sae.state_dict().items()}
            save_file(weights, scratch / "sae_weights.safetensors")
            write_json(scratch / "training.json", training)
            scratch.chmod(0o755)
            shutil.rmtree(folder, ignore_errors=True)
            scratch.rename(folder)
        finally:
            shutil.rmtree(scratch, ignore_errors=True)
    return folder


def _not_finite(sae: SAE) -> list[str]:
    return [name for name, tensor in sae.state_dict().items() if not torch.isfinite(tensor).all()]


def load(place: str | Path, device: str = "cpu") -> SAE:
    """An SAE in float32 from a SAELens folder, a folder with Gemma Scope's ``params.npz``, or ``release:sae_id`` from
    the registry of ``SAE.from_pretrained``.

    Raises:
        ValueError: no such folder or release, or a folder that is damaged or whose SAE cannot encode; the sentence
            names it.
    """
    if ":" in str(place) and not Path(place).exists():
        release, sae_id = str(place).split(":", 1)
        try:
            return SAE.from_pretrained(release, sae_id, device=device)
        except (OSError, ValueError, KeyError) as error:
            raise ValueError(f"the SAE {place!r} cannot be had from the registry or its hub: {cause(error)}") from error
    folder = Path(locate(str(place)))
    if not any((folder / name).exists() for name in ("cfg.json", NPZ)):
        raise ValueError(
            f"{folder} is no SAE folder (cfg.json, sae_weights.safetensors; or {NPZ}), nor 'release:sae_id'"
        )
    try:
        if (folder / "cfg.json").exists():
            return _working(SAE.load_from_disk(folder, device=device, dtype="float32"))
        return _working(_load_npz(folder).to(device))
    except Exception as error:  # JSON, safetensors, NumPy, SAELens and torch each have their own for a damaged file
        raise ValueError(f"{folder} is damaged or not an SAE folder: {cause(error)}") from error


@torch.no_grad()
def _working(sae: SAE) -> SAE:
    """The SAE, if its weights are finite and it encodes and decodes two tokens.

    Raises:
        ValueError: it does not; SAELens accepts any weights and settings.
    """
    bad = _not_finite(sae)
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
    return sae


def _load_npz(folder: Path) -> JumpReLUSAE:
    """The SAE of Gemma Scope's format: ``W_enc`` (d_model, d_sae), ``W_dec`` (d_sae, d_model) and three vectors.

    No bias is taken off the input. The layer is read from the folder's path, ``…/layer_12/width_16k/average_l0_82``.
    """
    names = ("W_enc", "W_dec", "b_enc", "threshold", "b_dec")
    with np.load(folder / NPZ, allow_pickle=False) as file:
        weights = {name: torch.from_numpy(file[name]).float() for name in names}
    shape = tuple(weights["W_enc"].shape)
    if len(shape) != 2:
        raise ValueError(f"W_enc has shape {shape}, needed is (d_model, d_sae)")
    d_model, d_sae = shape
    layers = [part.removeprefix("layer_") for part in folder.parts if re.fullmatch(r"layer_\d+", part)]
    metadata = SAEMetadata(hook_name=f"blocks.{layers[0]}.hook_resid_post") if layers else SAEMetadata()
    sae = JumpReLUSAE(JumpReLUSAEConfig(d_in=d_model, d_sae=d_sae, apply_b_dec_to_input=False, metadata=metadata))
    sae.load_state_dict(weights)
    return sae


def locate(place: str) -> str:
    """A place for :func:`load` with a relative folder made absolute, from the project's root."""
    return place if ":" in place and not (ROOT / place).exists() else str(ROOT / place)


def identity(place: str | Path) -> str:
    """What tells one SAE from another: the SHA-256 of a folder's weights, or ``release:sae_id``."""
    for name in ("sae_weights.safetensors", NPZ):
        weights = Path(locate(str(place))) / name
        if weights.exists():
            return file_hash(weights)
    return str(place)


def training_record(folder: Path) -> dict[str, Any]:
    """``training.json`` of an SAE that was trained here."""
    return json.loads((folder / "training.json").read_text(encoding="utf-8"))


def check_fits(sae: SAE, d_model: int, hook_name: str | None = None, model: str | None = None) -> None:
    """Raise ``ValueError`` if an SAE is of another width, layer or model than the activations."""
    if sae.cfg.d_in != d_model:
        raise ValueError(f"the SAE reads d_in {sae.cfg.d_in}, the activations have d_model {d_model}")
    for name, ours in (("hook_name", hook_name), ("model_name", model)):
        theirs = sae.cfg.metadata[name]  # whatever cfg.json says, None if nothing
        if ours and theirs and _family(str(theirs)) != _family(ours):
            raise ValueError(
                f"the SAE was trained on {name} {theirs!r}, the activations are of {ours!r}; "
                "give an SAE of theirs, or none"
            )


def _family(name: str) -> str:
    """A model's name without organisation, -it and -pt: an SAE of a base model may be used on its chat model."""
    return name.split("/")[-1].removesuffix("-it").removesuffix("-pt")


@torch.inference_mode()
def evaluate(sae: SAE, x: Float[Tensor, "tokens d_model"]) -> dict[str, Any]:
    """Metrics of an SAE on held-out tokens.

    fvu = Σ‖x − x̂‖² / Σ‖x − mean‖²; l0 = mean number of active latents a token; dead = share of latents that never
    fire; high_frequency, above_1pct = latents that fire on more than 10 % and 1 % of tokens; high_frequency_mass =
    their (10 %) share of all firings; frequency = firing frequency of each latent (fraction of tokens).
    """
    error, count = 0.0, torch.zeros(sae.cfg.d_sae, dtype=torch.float64)
    device = sae.W_dec.device
    mean = x.float().mean(0).to(device)
    total = 0.0
    for chunk in x.split(BATCH_TOKENS):
        chunk = chunk.to(device).float()
        latents = sae.encode(chunk)
        latents = latents.to_dense() if latents.is_sparse else latents
        error += (chunk - sae.decode(latents)).square().sum().item()
        total += (chunk - mean).square().sum().item()
        count += (latents > 0).sum(0).cpu()
    frequency = (count / len(x)).numpy()
    return {"fvu": error / total} | frequency_summary(frequency) | {"frequency": frequency}


def held_out_record(sae: SAE, x: Float[Tensor, "tokens d_model"]) -> dict[str, Any]:
    """:func:`evaluate` as it stands in ``training.json``: ``held_out`` metrics, and ``frequency`` as a list."""
    metrics = evaluate(sae, x)
    frequency = metrics.pop("frequency")
    return {"frequency": frequency.round(7).tolist(), "held_out": metrics}


def frequency_summary(frequency: Float[np.ndarray, " d_sae"]) -> dict[str, float]:
    """L0, dead share, and how much the high-frequency latents hold (see :func:`evaluate`)."""
    high = frequency > HIGH_FREQUENCY
    return {
        "l0": float(frequency.sum()),
        "dead": float((frequency == 0).mean()),
        "high_frequency": int(high.sum()),
        "above_1pct": int((frequency > 0.01).sum()),
        "high_frequency_mass": float(frequency[high].sum() / max(frequency.sum(), 1e-12)),
    }
