"""A place that all machines of a sweep reach: a folder or any URL of fsspec (``s3://bucket/prefix``; the S3 client is in the extra).

What a notebook's run made is copied there, its record last: a run whose record is there is complete. Credentials come from the
environment.
"""

import json
import shutil
import tempfile
from pathlib import Path, PurePosixPath
from typing import Any

from lib.files import ROOT, replacing


class Storage:
    """The project's files under a URL, by their path in the project.

    Raises:
        ValueError: an unknown kind of URL, or a package that it needs is missing.
    """

    def __init__(self, url: str):
        from fsspec.core import url_to_fs

        try:
            self.system, self.root = url_to_fs(url)
        except (ValueError, ImportError, OSError) as error:
            raise ValueError(f"STORE={url!r} cannot be used ({str(error).splitlines()[0]}); give a folder, or a URL of fsspec such as s3://bucket/prefix") from error

    def has(self, path: Path) -> bool:
        """Whether a file is there."""
        return self.system.exists(self._place(path))

    def put(self, paths: list[Path]) -> None:
        """Copy files and folders there, in this order."""
        for path in paths:
            for file in sorted(_files(path)):
                place = self._place(file)
                self.system.makedirs(str(PurePosixPath(place).parent), exist_ok=True)
                self.system.put_file(str(file), place)

    def get(self, paths: list[Path]) -> None:
        """Copy those files and folders that are not here; a folder appears when it is complete."""
        for path in paths:
            if path.exists():
                continue
            place = self._place(path)
            if not self.system.isdir(place):
                with replacing(path) as temporary:
                    self.system.get_file(place, str(temporary))
                continue
            path.parent.mkdir(parents=True, exist_ok=True)
            with tempfile.TemporaryDirectory(dir=path.parent, prefix=f".{path.name}-") as scratch:
                for found in self.system.find(place):
                    target = Path(scratch) / path.name / PurePosixPath(found).relative_to(place)
                    target.parent.mkdir(parents=True, exist_ok=True)
                    self.system.get_file(found, str(target))
                shutil.move(Path(scratch) / path.name, path)

    def _place(self, path: Path) -> str:
        return f"{self.root}/{path.relative_to(ROOT).as_posix()}"


def _files(path: Path) -> list[Path]:
    return [path] if path.is_file() else [file for file in path.rglob("*") if file.is_file() and not file.name.startswith(".")]


def products(record: Path) -> list[Path]:
    """Files and folders that a run's record names as made: its outputs, and the SAEs that these list."""
    found: dict[str, Any] = json.loads(record.read_text(encoding="utf-8"))
    return [ROOT / path for path in [*(output["path"] for output in found["outputs"].values()), *found["folders"]]]
