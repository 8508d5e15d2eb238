"""SAEs that somebody gives: whether each is of this model and place, and what it does here, before it is used.

An SAE of another scale, place or model loads and gives numbers, all of them wrong; its FVU and L0 on the model's own
activations tell.
"""

import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

import torch
from jaxtyping import Float
from sae_lens import SAE
from torch import Tensor

from lib.base.files import relative, value_hash
from lib.sae import folders
from lib.sae.token_blocks import sink_limit, without_sinks

MEASURED_TOKENS = 2048  # spread over those that there are
Place = Path | str


class SAEWarning(UserWarning):
    """An SAE that is measured on a model's activations behaves as one of other activations does."""


class Site(NamedTuple):
    """What activations are of: a place in the model (``hook_name``), and the model's name.

    ``insists``: an SAE whose record names another place or model is used all the same.
    """

    hook_name: str
    model: str
    insists: bool = False


class Checked(NamedTuple):
    """The SAEs as they can be used, where they lie by kind and seed; and what was found, as Markdown."""

    saes: dict[str, dict[int, Place]]
    text: str


def check(
    saes: Mapping[str, Mapping[int, Place]],
    x: Float[Tensor, "tokens d_model"],
    site: Site,
    parent: Path,
    device: str = "cpu",
) -> Checked:
    """Whether SAEs (by kind and seed) fit ``site``, and what each does on ``x``, activations of it: :func:`measured`.

    An SAE that fits only as one insists is copied into ``parent`` with a record that names ``site``, so that whatever
    reads it later takes it too.

    Raises:
        ValueError: an SAE that cannot be loaded, of another width, or of another place or model unless one insists; or
            fewer than two tokens.
    """
    accepted: dict[str, dict[int, Place]] = {}
    lines = []
    for kind, by_seed in saes.items():
        for seed, place in by_seed.items():
            sae = folders.load(place, device)
            name = f"{kind} {seed} (`{relative(place)}`)"
            lines.append(measured(name, sae, x, place))
            accepted.setdefault(kind, {})[seed] = _accepted(sae, place, site, x.shape[1], parent)
    return Checked(accepted, "\n\n".join(lines))


def measured(name: str, sae: SAE, x: Float[Tensor, "tokens d_model"], place: Place = "") -> str:
    """FVU and L0 of an SAE on a model's own activations, as a paragraph of Markdown (see ``folders.sanity``), beside
    those that the record at ``place`` says.

    Of ``x`` attention sinks are left out, and so are tokens beyond ``MEASURED_TOKENS``, evenly. What is wrong is also
    told by a warning, ``SAEWarning``.

    Raises:
        ValueError: fewer than two tokens, or another width.
    """
    x = x[:: max(1, len(x) // MEASURED_TOKENS)][:MEASURED_TOKENS].float()
    x = without_sinks(x, sink_limit(x)) if len(x) else x
    l0 = folders.recorded_l0(place) if place else None
    fvu = _record(place).get("held_out", {}).get("fvu") if place else None
    first, *wrong = folders.sanity(sae, x, l0)
    known = {"an L0": l0 or getattr(sae.cfg, "k", None), "an FVU": fvu}
    said = " and ".join(f"{metric} of {value:.3g}" for metric, value in known.items() if value)
    for sentence in wrong:
        warnings.warn(f"{name}: {sentence}", SAEWarning, stacklevel=2)
    beside = f"its record says {said}" if said else "no record says what they were"
    return " ".join([f"{name}: {first}; {beside}.", *(f"**Warning: {sentence}.**" for sentence in wrong)])


def _record(place: Place) -> dict[str, Any]:
    """``training.json`` of an SAE that has one."""
    folder = Path(folders.locate(str(place)))
    return folders.training_record(folder) if (folder / "training.json").exists() else {}


def _accepted(sae: SAE, place: Place, site: Site, d_model: int, parent: Path) -> Place:
    """Where the SAE can be used from: ``place``, or the copy that one insists on."""
    try:
        folders.check_fits(sae, d_model, site.hook_name, site.model)
    except ValueError:
        if not site.insists:
            raise
        folders.check_fits(sae, d_model, site.hook_name, site.model, insist=True)
        return _adopted(sae, place, site, parent)
    return place


@torch.no_grad()
def _adopted(sae: SAE, place: Place, site: Site, parent: Path) -> Path:
    """A copy whose record names ``site``, and beside it what the SAE's own record names."""
    own = {"place": str(place), "model_name": sae.cfg.metadata.model_name, "hook_name": sae.cfg.metadata.hook_name}
    folder = parent / f"adopted-{value_hash([folders.identity(place), *map(str, own.values()), *site])}"
    if not folder.exists():
        sae.cfg.metadata.model_name, sae.cfg.metadata.hook_name = site.model, site.hook_name
        sae.cfg.metadata.hf_hook_name = None
        sae.cfg.metadata.adopted_from = own
        folders.save(sae.cpu(), folder, _record(place))
    return folder
