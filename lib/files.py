"""Paths of the project, hashes, and writes that never leave half a file under a final name."""

import hashlib
import json
import os
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pandas as pd

ROOT = Path(__file__).resolve().parent.parent
DATA = ROOT / "data"


def run_dir(profile: str) -> Path:
    """Folder of everything that a profile's run writes: ``data/runs/<profile>``."""
    return DATA / "runs" / profile


@contextmanager
def replacing(path: Path) -> Iterator[Path]:
    """Yield a temporary name beside ``path``; on success rename it to ``path``, else delete it.

    The temporary name keeps the suffix, so that writers which look at it still work.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    handle, name = tempfile.mkstemp(dir=path.parent, prefix=f".{path.stem}-", suffix=path.suffix)
    os.close(handle)
    temporary = Path(name)
    try:
        yield temporary
        temporary.chmod(0o666 & ~_umask())
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)


def _umask() -> int:
    mask = os.umask(0)
    os.umask(mask)
    return mask


def write_text(path: Path, text: str, only_if_changed: bool = False) -> None:
    """Write ``text`` atomically; with ``only_if_changed`` an equal file keeps its time stamp."""
    if only_if_changed and path.exists() and path.read_text(encoding="utf-8") == text:
        return
    with replacing(path) as temporary:
        temporary.write_text(text, encoding="utf-8")


def write_json(path: Path, value: Any, only_if_changed: bool = False) -> None:
    """Write strict JSON (NaN and infinity are an error: missing is ``None``)."""
    text = json.dumps(value, indent=1, ensure_ascii=False, allow_nan=False) + "\n"
    write_text(path, text, only_if_changed)


def write_table(path: Path, table: pd.DataFrame) -> Path:
    """Write a table as parquet, atomically; returns ``path``."""
    with replacing(path) as temporary:
        table.to_parquet(temporary, index=False)
    return path


def cause(error: Exception) -> str:
    """An exception's type and text in one line of at most 300 characters, for the sentence of a ``ValueError``."""
    return " ".join(f"{type(error).__name__}: {error}".split())[:300]


def relative(path: Path | str) -> str:
    """A path inside the project as seen from its root; any other one as it is."""
    resolved = Path(path).resolve()
    return str(resolved.relative_to(ROOT)) if resolved.is_relative_to(ROOT) and resolved.exists() else str(path)


def file_hash(path: Path) -> str:
    """SHA-256 of a file's bytes, in hex."""
    with path.open("rb") as handle:
        return hashlib.file_digest(handle, "sha256").hexdigest()


def value_hash(value: Any) -> str:
    """First 12 hex digits of the SHA-256 of a JSON value, independent of key order."""
    text = json.dumps(value, sort_keys=True, ensure_ascii=False, allow_nan=False)
    return hashlib.sha256(text.encode()).hexdigest()[:12]
