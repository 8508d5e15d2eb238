"""SAEs with a planted fault: of another scale, place or model than its record says."""

from pathlib import Path

import torch

from lib.base.files import DATA
from lib.model import models
from lib.sae import folders

SHIPPED, LAYER, MODEL = DATA / "pretrained" / "all-MiniLM-L6-v2-layer-2-base", 2, "all-MiniLM-L6-v2"


def planted(folder: Path, scale: float = 1.0, **metadata) -> Path:
    """The shipped SAE as one of activations that are ``scale`` times as large, whose record says ``metadata``."""
    sae = folders.load(SHIPPED)
    zero = torch.zeros(sae.cfg.d_in)
    about = {"model_name": MODEL, "hook_name": models.resid_post(LAYER)} | metadata
    changed = folders.from_parameters(folders.to_parameters(sae, zero, 1.0), zero, scale, about)
    return folders.save(changed, folder, folders.training_record(SHIPPED))
