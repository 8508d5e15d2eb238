"""A place that all machines of a sweep reach: a folder or any URL of fsspec.

The client for ``s3://bucket/prefix`` is in the extra. What a notebook's run made is copied there, its record last: a
run whose record is there is complete. Credentials come from the environment.
"""

import json
import os
import re
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path, PurePosixPath
from typing import Any

from lib.base.files import ROOT, WriteError, cause, locked, replacing


class Storage:
    """The project's files under a URL, by their path in the project.

    Raises:
        ValueError: an unknown kind of URL, a package that it needs is missing, or the place cannot be reached; so do
            all methods.
    """

    def __init__(self, url: str):
        from fsspec.core import url_to_fs

        self.url = url
        with self._speaking():
            self.system, self.root = url_to_fs(url)

    @contextmanager
    def _speaking(self) -> Iterator[None]:
        """Whatever a file system raises is one sentence, without the name and password that a URL may hold."""
        try:
            yield
        except WriteError:  # of this machine
            raise
        except Exception as error:
            url, reason = (re.sub(r"//[^/@]*@", "//", text) for text in (self.url, cause(error)))
            raise ValueError(
                f"STORE={url!r} cannot be used ({reason}); give a folder, or a URL of fsspec such as s3://bucket/prefix"
            ) from None

    def has(self, path: Path) -> bool:
        """Whether a file is there."""
        with self._speaking():
            return self.system.exists(self._place(path))

    def put(self, paths: list[Path]) -> None:
        """Copy files and folders there, in this order."""
        part = ".part" if "file" in self.system.protocol else ""  # elsewhere a file appears when it is complete
        for path in paths:
            for file in sorted(_files(path)):
                place = self._place(file)
                with self._speaking():
                    self.system.makedirs(str(PurePosixPath(place).parent), exist_ok=True)
                    self.system.put_file(str(file), place + part)
                    if part:
                        os.replace(place + part, place)

    def get(self, paths: list[Path]) -> None:
        """Copy those files and folders that are not here.

        A folder appears when it is complete, and an incomplete one is completed.
        """
        for path in paths:
            place = self._place(path)
            with self._speaking(), locked(path):
                if self.system.isdir(place):
                    self._get_folder(place, path)
                elif not path.exists():
                    with replacing(path) as temporary:
                        self.system.get_file(place, str(temporary))

    def _get_folder(self, place: str, path: Path) -> None:
        with tempfile.TemporaryDirectory(dir=path.parent, prefix=f".{path.name}-") as scratch:
            new = path if path.exists() else Path(scratch) / path.name
            for source, about in self.system.find(place, detail=True).items():
                target = _within(new, new / PurePosixPath(source).relative_to(place))
                if not target.exists() or target.stat().st_size != about["size"]:
                    with replacing(target) as temporary:
                        self.system.get_file(source, str(temporary))
            if new != path:
                os.replace(new, path)

    def _place(self, path: Path) -> str:
        return f"{self.root}/{_within(ROOT, path).relative_to(ROOT).as_posix()}"


def _within(folder: Path, path: Path) -> Path:
    """The path, if its name lies in the folder; where a link in it leads is up to whoever made the link.

    Raises:
        ValueError: it does not, as when a record from elsewhere names ``../../x``.
    """
    if ".." in path.parts or not path.is_relative_to(folder):
        raise ValueError(f"the path {str(path)!r} leads out of {str(folder)!r}; STORE keeps what lies in it only")
    return path


def _files(path: Path) -> list[Path]:
    if path.is_file():
        return [path]
    return [file for file in path.rglob("*") if file.is_file() and not file.name.startswith(".")]


def products(record: Path) -> list[Path]:
    """Files and folders that a run's record names as made: its outputs, and the SAEs that these list."""
    content: dict[str, Any] = json.loads(record.read_text(encoding="utf-8"))
    paths = [output["path"] for output in content["outputs"].values()] + content["folders"]
    return [ROOT / path for path in paths]
