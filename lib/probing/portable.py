"""A probe to take away: a linear probe as a folder of tensors, JSON and a model card, written and read back.

``probe.safetensors`` holds ``mean``, ``scale``, ``weights`` (d_model) and ``bias`` in float32, ``probe.json`` what they
read and what was measured, ``README.md`` the model card. Nothing is pickled. ``docs/monitor.md`` reads the folder
without this project; ``lib.probing.refit`` makes one of a profile's runs, ``lib.probing.scoring`` scores texts with it.
"""

import json
from pathlib import Path
from typing import Any, NamedTuple

import jinja2
import pandas as pd
import safetensors.torch
from jaxtyping import Float
from safetensors import SafetensorError
from torch import Tensor
from transformers import PreTrainedTokenizerBase

from lib.base.build_graph import text_hash
from lib.base.files import ROOT, cause, file_hash, relative, replacing, write_json, write_text
from lib.model import chat, models
from lib.results import tables

FORMAT = "linear probe, format 1"
TENSORS, ABOUT, CARD = "probe.safetensors", "probe.json", "README.md"
FPRS = {"0.01": 0.01, "0.001": 0.001}  # as probe.json names them -> false-positive rate
NUMBER, NUMBER_OR_NULL = (int, float), (int, float, type(None))
KINDS: dict[str, Any] = {  # fields of probe.json that scoring needs -> what they hold, or their own fields
    "model": {"model": str, "revision": (str, type(None))},
    "dtype": str,
    "layer": int,
    "pooling": str,
    "pool_over": str,
    "template": (dict, type(None)),
    "thresholds": dict.fromkeys(FPRS, NUMBER),
    "distance": dict.fromkeys(("usual", "above"), NUMBER),
    "metrics": [{"metric": str, "split": str, "fpr": NUMBER_OR_NULL, "value": NUMBER_OR_NULL}],
    "tensors_sha256": str,
}


class Portable(NamedTuple):
    """A linear probe: score = Σᵢ wᵢ zᵢ + b with zᵢ = (xᵢ − meanᵢ) / scaleᵢ and x a pooled residual stream; the higher,
    the likelier label 1.

    Attributes:
        about: ``probe.json``.
    """

    mean: Float[Tensor, " d_model"]
    scale: Float[Tensor, " d_model"]
    weights: Float[Tensor, " d_model"]
    bias: Float[Tensor, ""]
    about: dict[str, Any]

    def standardised(self, x: Float[Tensor, "*rows d_model"]) -> Float[Tensor, "*rows d_model"]:
        """z of activations x."""
        return (x - self.mean) / self.scale

    def score(self, x: Float[Tensor, "rows d_model"]) -> Float[Tensor, " rows"]:
        """The score of each row of pooled activations."""
        return self.standardised(x) @ self.weights + self.bias

    def distance(self, x: Float[Tensor, "rows d_model"]) -> Float[Tensor, " rows"]:
        """How far each row is from the training prompts: max |zᵢ|, its farthest coordinate in standard deviations."""
        return self.standardised(x).abs().amax(-1)


def check_model(identity: dict[str, str | None]) -> None:
    """Raise ``ValueError`` if the model that is here under a name is another one, or is told another date
    (``models.identity``)."""
    here = models.identity(identity["model"])
    for key in identity | here:
        if here.get(key) != identity.get(key):
            raise ValueError(
                f"the probe reads {identity['model']!r} at {key} {identity.get(key)}, and the one that is here is "
                f"{here.get(key)}; get that {key}, or run make reproduce and make probe with this one"
            )


def template(tokenizer: PreTrainedTokenizerBase) -> dict[str, str] | None:
    """What the chat template writes before and behind a prompt, and the hash of both; None without a template.

    Raises:
        ValueError: see :func:`lib.model.chat.rendered`.
    """
    if not chat.has_template(tokenizer):
        return None
    word = "word"
    whole, begin = chat.rendered(tokenizer, word)
    before, behind = whole[:begin], whole[begin + len(word) :]
    return {"before": before, "behind": behind, "sha256": text_hash(f"{before}\0{behind}")}


def save(probe: Portable, folder: Path) -> Path:
    """Write the folder, and return it; a probe that is there is replaced file by file.

    Raises:
        ValueError: something else is there, or it cannot be written.
    """
    is_free = not folder.exists() or folder.is_dir() and not any(folder.iterdir())
    if not is_free and not (folder / ABOUT).is_file():
        raise ValueError(f"{relative(folder)} holds something else; give a new folder, or one of make probe")
    tensors = {name: getattr(probe, name) for name in probe._fields if name != "about"}
    with replacing(folder / TENSORS) as temporary:
        safetensors.torch.save_file(tensors, temporary)
    about = {"format": FORMAT} | probe.about | {"tensors_sha256": file_hash(folder / TENSORS)}
    write_text(folder / CARD, card(about))
    write_json(folder / ABOUT, about)  # At last, as it vouches for the tensors.
    return folder


def card(about: dict[str, Any]) -> str:
    """The model card of what is in ``probe.json``."""
    loader = jinja2.FileSystemLoader(ROOT / "lib" / "results" / "templates")
    settings = {"undefined": jinja2.StrictUndefined, "keep_trailing_newline": True, "trim_blocks": True}
    environment = jinja2.Environment(loader=loader, autoescape=False, **settings)  # The card is Markdown, not HTML.
    shown = tables.texts(pd.DataFrame(about["metrics"]))
    rows = [row | {"shown": text} for row, text in zip(about["metrics"], shown, strict=True)]
    return environment.get_template("probe.md").render(about=about, rows=rows, sentences=measured(about))


def measured(about: dict[str, Any]) -> list[str]:
    """A sentence on what the first threshold did out of distribution; none where that was not measured."""
    name, fpr = next(iter(FPRS.items()))
    rows = [row for row in about["metrics"] if row["split"] == "ood" and row["fpr"] == fpr]
    value = {row["metric"]: row["value"] for row in rows}
    rates = [value.get(f"{rate}_at_validation_threshold") for rate in ("fpr", "recall")]
    if None in rates:
        return []
    return [
        f"out of distribution {100 * rates[0]:.1f} % of the prompts with label 0 and {100 * rates[1]:.1f} % of those "
        f"with label 1 lie above the threshold of {100 * fpr:g} % false positives ({about['thresholds'][name]:.3f})"
    ]


def load(folder: Path) -> Portable:
    """A probe from its folder.

    Raises:
        ValueError: no such folder, one that is no probe, damaged tensors, or shapes that do not fit together.
    """
    where = relative(folder)
    if not folder.is_dir():
        raise ValueError(f"there is no folder {where!r}; make probe writes one, such as data/runs/embedded/probe")
    try:
        about = json.loads((folder / ABOUT).read_text(encoding="utf-8"))
        sha256 = file_hash(folder / TENSORS)
    except (OSError, ValueError, RecursionError) as error:
        raise ValueError(f"{where} is no probe ({cause(error)}); make probe writes one") from error
    if not isinstance(about, dict) or about.get("format") != FORMAT:
        raise ValueError(f"{where} is no probe: {ABOUT} does not say that its format is {FORMAT!r}")
    wrong = _wrong(about, KINDS)
    if wrong is not None:
        raise ValueError(f"{where} is no probe that can be read: {ABOUT} lacks {wrong}, or it is of another kind")
    if sha256 != about["tensors_sha256"]:
        raise ValueError(f"{where}/{TENSORS} is damaged: its hash is not that of {ABOUT}; make probe writes it anew")
    return Portable(**_tensors(folder / TENSORS), about=about)


def _wrong(value: Any, kind: Any) -> str | None:
    """The first field of a JSON value that is missing or not of its kind, by its path; None if there is none.

    A kind is a type or several, a dictionary of fields' kinds, or a list of the kind of all elements.
    """
    if isinstance(kind, dict):
        if not isinstance(value, dict):
            return ""
        inner = ((name, _wrong(value[name], of_field) if name in value else "") for name, of_field in kind.items())
        return next((f"{name}.{path}".strip(".") for name, path in inner if path is not None), None)
    if isinstance(kind, list):
        if not isinstance(value, list):
            return ""
        return next((path for path in (_wrong(element, kind[0]) for element in value) if path is not None), None)
    return None if isinstance(value, kind) else ""


def _tensors(path: Path) -> dict[str, Tensor]:
    where = relative(path)
    try:
        tensors = safetensors.torch.load_file(path)
    except SafetensorError as error:
        raise ValueError(f"{where} is damaged ({cause(error)}); make probe writes it anew") from error
    shapes = {name: f"{str(tensor.dtype)} {list(tensor.shape)}" for name, tensor in sorted(tensors.items())}
    d_model = tensors["weights"].numel() if "weights" in tensors else 0
    vector = f"torch.float32 [{d_model}]"
    wanted = {"bias": "torch.float32 []", "mean": vector, "scale": vector, "weights": vector}
    if shapes != wanted:
        raise ValueError(f"{where} holds {shapes}; wanted are {wanted}")
    if not all(tensor.isfinite().all() for tensor in tensors.values()) or not (tensors["scale"] > 0).all():
        raise ValueError(f"{where} holds numbers that are not finite, or scales that are not above 0")
    return tensors
