"""Paths of the project, hashes, and writes that never leave half a file under a final name."""

import base64
import errno
import glob
import hashlib
import json
import os
import re
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pandas as pd
from filelock import FileLock, Timeout
from safetensors import SafetensorError

ROOT = Path(__file__).resolve().parents[2]
DATA = ROOT / "data"
SCRATCH = re.compile(r"-[a-z0-9_]{8}$")  # how tempfile ends the name of a folder that a half-written file lies in
UNWRITABLE = (errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.EACCES, errno.EPERM)


class WriteError(ValueError):
    """A file cannot be written: the disk is full, or the folder is read-only.

    Nothing stands under its name, or what stood there before.
    """


def run_dir(profile: str) -> Path:
    """Folder of everything that a profile's run writes: ``data/runs/<profile>``."""
    return DATA / "runs" / profile


@contextmanager
def replacing(path: Path) -> Iterator[Path]:
    """Yield a name to write to in a temporary folder beside ``path``; on success the file is renamed to ``path``.

    Raises:
        WriteError: see :func:`writing`.
    """
    with writing(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        # A folder and not a file, as safetensors makes a temporary file of its own beside the one that it writes.
        with tempfile.TemporaryDirectory(dir=path.parent, prefix=f".{path.name}-") as scratch:
            temporary = Path(scratch) / path.name
            yield temporary
            os.replace(temporary, path)


@contextmanager
def replacing_folder(path: Path) -> Iterator[Path]:
    """Yield an empty folder beside ``path``; on success it is renamed to ``path``, which must not be there yet.

    Raises:
        WriteError: see :func:`writing`.
    """
    with replacing(path) as temporary:
        temporary.mkdir()
        yield temporary


@contextmanager
def writing(path: Path) -> Iterator[None]:
    """Turn a full disk or a read-only folder into a ``WriteError`` of one sentence that names ``path``."""
    try:
        yield
    except (OSError, SafetensorError) as error:
        in_text = re.search(r"os error (\d+)", str(error))  # safetensors has the number in its text only
        number = int(in_text[1]) if in_text else getattr(error, "errno", None)
        if number not in UNWRITABLE:
            raise
        what = "the disk is full" if number in (errno.ENOSPC, errno.EDQUOT) else "its folder is not writable"
        raise WriteError(
            f"{path} cannot be written: {what} ({os.strerror(number)}); "
            "make room, or choose another place, and run again"
        ) from error


@contextmanager
def locked(path: Path, wait: bool = True) -> Iterator[None]:
    """Hold the lock of a file or folder that one process at a time makes; another one waits, and then finds it made.

    The lock goes with its process, even a killed one, whose half-written temporary files are removed here.

    Raises:
        WriteError: the folder is read-only, or the disk full.
        ValueError: another process holds the lock, and ``wait`` is off.
    """
    with writing(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        lock = FileLock(path.parent / f".{path.name}.lock")
        try:
            lock.acquire(timeout=-1 if wait else 0)
        except Timeout as error:
            name = f"{relative(path.parent)}/{path.name}"
            raise ValueError(
                f"another process is at work on {name}; wait for it, or stop it, and run again"
            ) from error
    try:
        inside = [*path.glob(".*"), *path.glob("*/.*")]
        for file in [*path.parent.glob(f".{glob.escape(path.name)}-????????"), *inside]:
            if SCRATCH.search(file.name):
                shutil.rmtree(file) if file.is_dir() else file.unlink(missing_ok=True)
        yield
    finally:
        lock.release()


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


def typed_path(text: str | Path) -> Path:
    """A path as somebody typed it: ``~`` is the home folder, and a relative path begins at the project's root.

    So a text names the same file to ``make``, to a sweep, and to a notebook, whose kernel runs in another folder.
    """
    return ROOT / os.path.expanduser(text)


def named_files(value: Any) -> list[Path]:
    """The files and folders that a parameter's value, a text or a list of them, names; other texts name none."""
    texts = value if isinstance(value, list) else [value]
    paths = [typed_path(text) for text in texts if isinstance(text, str) and text]
    return [path for path in paths if os.path.exists(path)]


def file_hash(path: Path) -> str:
    """SHA-256 of a file's bytes, in hex."""
    with path.open("rb") as handle:
        return hashlib.file_digest(handle, "sha256").hexdigest()


def content_hash(path: Path) -> str:
    """Hash of a file, or of the files of a folder.

    Raises:
        ValueError: a file that cannot be read.
    """
    try:
        if path.is_file():
            return file_hash(path)
        files = [file for file in sorted(path.rglob("*")) if file.is_file()]
        return value_hash([[file.relative_to(path).as_posix(), file_hash(file)] for file in files])
    except OSError as error:
        raise ValueError(f"{path} cannot be read: {cause(error)}") from error


def script_hash(text: str) -> str:
    """The hash by which a page's content security policy names a script."""
    return "sha256-" + base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()


def value_hash(value: Any) -> str:
    """First 12 hex digits of the SHA-256 of a JSON value, independent of key order."""
    text = json.dumps(value, sort_keys=True, ensure_ascii=False, allow_nan=False)
    return hashlib.sha256(text.encode()).hexdigest()[:12]
