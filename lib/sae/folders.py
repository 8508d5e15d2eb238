"""Sparse autoencoders as SAELens objects: made from trained weights, saved, loaded, checked and measured.

Inference everywhere uses ``sae_lens.SAE`` (``W_enc, W_dec, b_enc, b_dec, threshold``; ``encode``, ``decode``), so a
Gemma Scope SAE is usable wherever ours is.
"""

import json
import re
import shutil
import tempfile
import warnings
from pathlib import Path
from typing import Any

import numpy as np
import torch
from jaxtyping import Float
from sae_lens import SAE
from sae_lens.loading.pretrained_saes_directory import get_pretrained_saes_directory
from sae_lens.saes.jumprelu_sae import JumpReLUSAE, JumpReLUSAEConfig
from sae_lens.saes.sae import SAEMetadata
from safetensors.torch import save_file
from torch import Tensor

from lib.base.files import ROOT, file_hash, write_json, writing
from lib.sae import formats, names
from lib.sae.jumprelu import Parameters

HIGH_FREQUENCY = 0.1  # a latent is high-frequency if it fires on more than this fraction of tokens
BATCH_TOKENS = 4096
RELATIONS = {  # of two models' names -> what it means for an SAE of one on activations of the other
    names.VARIANT: "these are a base model and its chat model, whose activations are near and not the same",
    names.UNTOLD: "one of these is a folder or file, whose name does not tell whether they are one model",
}
TIMES_RECORDED = 10.0  # an L0 that is so many times the recorded one, or one part in so many of it, is not the SAE's


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
        ValueError: see :func:`check_start`.
    """
    check_start(sae.cfg.architecture(), sae.cfg.normalize_activations)
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


def check_start(architecture: str, normalize_activations: str, place: str = "this one") -> None:
    """Whether an SAE can be finetuned.

    Raises:
        ValueError: another architecture than JumpReLU, or one whose weights are on rescaled activations.
    """
    if (architecture, normalize_activations) != ("jumprelu", "none"):
        raise ValueError(
            f"only a jumprelu SAE on activations as they are can be finetuned here, and {place} is {architecture!r} "
            f"with normalize_activations {normalize_activations!r}; make tasks and make debug read such an SAE as it is"
        )


def save(sae: SAE, folder: Path, training: dict[str, Any], dtype: str = "float32") -> Path:
    """Write the SAELens folder (``cfg.json``, ``sae_weights.safetensors``) and ``training.json``, all or nothing.

    Raises:
        ValueError: a weight is not finite.
    """
    bad = formats.not_finite(sae)
    if bad:
        raise ValueError(f"{folder}: {bad} has values that are not finite; nothing was saved")
    with writing(folder):
        folder.parent.mkdir(parents=True, exist_ok=True)
        scratch = Path(tempfile.mkdtemp(dir=folder.parent, prefix=f".{folder.name}-"))
        try:
            sae.cfg.device = "cpu"  # SAELens loads onto the device that is named here, which may not be there.
            sae.save_model(scratch)
            weights = {name: tensor.to(getattr(torch, dtype)).contiguous() for name, tensor in sae.state_dict().items()}
            save_file(weights, scratch / formats.WEIGHTS)
            write_json(scratch / "training.json", training)
            scratch.chmod(0o755)
            shutil.rmtree(folder, ignore_errors=True)
            scratch.rename(folder)
        finally:
            shutil.rmtree(scratch, ignore_errors=True)
    return folder


def load(place: str | Path, device: str = "cpu") -> SAE:
    """An SAE in float32 from a SAELens folder, a folder of Gemma Scope (``params.npz``) or Gemma Scope 2
    (``params.safetensors``), or ``release:sae_id`` from the registry of ``SAE.from_pretrained``.

    Raises:
        ValueError: no such folder or release, a folder that is damaged or whose SAE cannot encode, or something else
            than an SAE of single tokens' residual stream (see ``lib.sae.formats``); the sentence names it.
    """
    if ":" in str(place) and not Path(place).exists():
        return formats.from_registry(str(place), device)
    return formats.from_folder(Path(locate(str(place))), device)


def locate(place: str) -> str:
    """A place for :func:`load` with a relative folder made absolute, from the project's root."""
    return place if ":" in place and not (ROOT / place).exists() else str(ROOT / place)


def identity(place: str | Path) -> str:
    """What tells one SAE from another: the SHA-256 of a folder's weights, or ``release:sae_id``."""
    for name in (formats.WEIGHTS, formats.NPZ, formats.SCOPE_2):
        weights = Path(locate(str(place))) / name
        if weights.exists():
            return file_hash(weights)
    return str(place)


def training_record(folder: Path) -> dict[str, Any]:
    """``training.json`` of an SAE that was trained here."""
    return json.loads((folder / "training.json").read_text(encoding="utf-8"))


def recorded_l0(place: str | Path) -> float | None:
    """The L0 (active latents a token) that was measured where the SAE was published: in ``training.json``, in the
    registry, or in the path (``average_l0_82``); None if nothing says so."""
    if ":" in str(place) and not Path(place).exists():
        release, sae_id = str(place).split(":", 1)
        known = get_pretrained_saes_directory().get(release)
        in_registry = known.expected_l0.get(sae_id) if known else None
        if in_registry:
            return float(in_registry)
    elif (Path(locate(str(place))) / "training.json").exists():
        return training_record(Path(locate(str(place)))).get("held_out", {}).get("l0")
    in_path = re.search(r"average_l0_(\d+)", str(place))
    return float(in_path[1]) if in_path else None


def check_fits(
    sae: SAE, d_model: int, hook_name: str | None = None, model: str | None = None, insist: bool = False
) -> None:
    """Whether an SAE is of the activations' width, place and model, as far as its record says what it is of.

    A place or model under another name of its own is the same (``blocks.8.hook_resid_pre`` is the output of block 7,
    ``gpt2-small`` is ``openai-community/gpt2``). An SAE of the base model on the chat model, or the other way round,
    and a model whose name is that of a folder, which may hold any, are told by a warning. With ``insist`` another place
    or model is told by one, too.

    Raises:
        ValueError: another width; or another place or model, unless one insists.
    """
    if sae.cfg.d_in != d_model:
        raise ValueError(f"the SAE reads d_in {sae.cfg.d_in}, the activations have d_model {d_model}")
    metadata = sae.cfg.metadata  # Whatever cfg.json says, None if nothing.
    place, trained_on = metadata["hook_name"] or metadata["hf_hook_name"], metadata["model_name"]
    if hook_name and place and not names.same_place(str(place), hook_name):
        _misfit(f"hook_name {place!r}, the activations are of {hook_name!r}", insist)
    relation = names.relation(str(trained_on), model) if model and trained_on else names.SAME
    differ = f"model_name {trained_on!r}, the activations are of {model!r}"
    if relation == names.OTHER:
        _misfit(differ, insist)
    elif relation != names.SAME:
        warnings.warn(f"the SAE was trained on {differ}: {RELATIONS[relation]}", stacklevel=2)


def _misfit(differ: str, insist: bool) -> None:
    if not insist:
        raise ValueError(f"the SAE was trained on {differ}; give an SAE of theirs, or none, or insist (insist=True)")
    warnings.warn(f"the SAE was trained on {differ}, and is used all the same", stacklevel=3)


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


def sanity(sae: SAE, x: Float[Tensor, "tokens d_model"], recorded: float | None = None) -> list[str]:
    """What an SAE does on a model's own activations, in sentences: FVU and L0 first, then what is wrong with them.

    FVU = Σ‖x − x̂‖² / Σ‖x − mean‖² above 1 is worse than no SAE. ``recorded`` is the L0 that was published
    (:func:`recorded_l0`; of a TopK SAE it is k): ten times as many active latents, or a tenth, mean that the SAE reads
    something else than what it was trained on. ``x`` should hold no attention sinks (``token_blocks.without_sinks``).

    Raises:
        ValueError: fewer than two tokens, or another width (:func:`check_fits`).
    """
    if len(x) < 2:
        raise ValueError(f"{len(x)} tokens have no variance; give two or more")
    check_fits(sae, x.shape[1])
    metrics = evaluate(sae, x)
    fvu, l0 = metrics["fvu"], metrics["l0"]
    recorded = recorded or getattr(sae.cfg, "k", None)
    sentences = [f"on {len(x):,} tokens the SAE has an FVU of {fvu:.3g} and an L0 of {l0:.3g}"]
    suspects = "its scale, its place in the model or the model is another one than here"
    if not fvu <= 1:
        sentences.append(f"an FVU of {fvu:.3g}, above 1, is worse than the mean of the tokens; {suspects}")
    if recorded and not recorded / TIMES_RECORDED < l0 < recorded * TIMES_RECORDED:
        sentences.append(f"an L0 of {l0:.3g} in the place of the recorded {recorded:.3g} is far off; {suspects}")
    return sentences


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
