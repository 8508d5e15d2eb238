"""Names of models and of places in them, as those who publish SAEs write them: which mean the same, and which nearly.

TransformerLens counts from the block (``blocks.7.hook_resid_post`` is ``blocks.8.hook_resid_pre``), Hugging Face names
modules (``model.layers.7``), and a model has a name on the hub, in TransformerLens, and of a folder on the disk.
"""

import re

from lib.base.files import ROOT

IN_RESIDUAL = re.compile(r"(?:\w+\.)*(?:blocks|layers?|h)\.(\d{1,9})(?:\.(\w+))?")
BEFORE = ("hook_resid_pre", "hook_in", "input")
AFTER = (None, "hook_resid_post", "hook_out", "output")  # A module of Hugging Face stands for its output.
ALIASES = {"gpt2-small": "gpt2", "distillgpt2": "distilgpt2", "mistral-7b": "mistral-7b-v0.1"}  # of TransformerLens
VARIANTS = {"base", "pt", "it", "instruct", "chat", "hf"}  # parts of a name that tell a base model from a chat model
FILE_ENDING = re.compile(r"([.-](i?q\d\w*|b?f16|fp16|f32))?\.gguf$")

SAME, VARIANT, UNTOLD, OTHER = "same", "base or chat", "untold", "other"  # what two models' names tell of each other


def blocks_before(place: str) -> int | None:
    """How many blocks have written to the residual stream at ``place``; None for places that are not in it.

    0 is what the first block reads; ``blocks.7.hook_resid_post`` and ``blocks.8.hook_resid_pre`` are both 8.
    """
    match = IN_RESIDUAL.fullmatch(place)
    if not match or match[2] not in (*BEFORE, *AFTER):
        return None
    return int(match[1]) + (match[2] in AFTER)


def same_place(place: str, other: str) -> bool:
    """Whether two names mean one place of a model."""
    before = blocks_before(place)
    return place == other or (before is not None and before == blocks_before(other))


def relation(name: str, other: str) -> str:
    """What the names of two models tell: ``SAME``; ``VARIANT``, base and chat version of one model; ``UNTOLD``, where
    one is a folder or file of another name, which may hold any model; or ``OTHER``."""
    if _plain(name) == _plain(other):
        return SAME
    if _without_variants(name) == _without_variants(other):
        return VARIANT
    return UNTOLD if _is_on_disk(name) or _is_on_disk(other) else OTHER


def _plain(name: str) -> str:
    """A model's name without organisation, file ending and capitals, as the hub has it."""
    plain = FILE_ENDING.sub("", name.rstrip("/").split("/")[-1].lower()).removeprefix("meta-")
    return ALIASES.get(plain, plain)


def _without_variants(name: str) -> str:
    return "-".join(part for part in _plain(name).split("-") if part not in VARIANTS)


def _is_on_disk(name: str) -> bool:
    """Whether a name is a folder or a file; an id of the hub has one stroke at most, and no ending of a file."""
    return name.startswith(("/", ".", "~")) or name.count("/") > 1 or name.endswith(".gguf") or _is_folder(name)


def _is_folder(name: str) -> bool:
    try:
        return bool(name) and (ROOT / name).is_dir()
    except (OSError, ValueError):  # A name that no file system takes.
        return False
