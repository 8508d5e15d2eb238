"""Public tensor arguments are checked while testing: jaxtyping with beartype on every module of lib."""

from pathlib import Path

import pytest
from jaxtyping import install_import_hook

install_import_hook("lib", "beartype.beartype")

from lib import models  # noqa: E402  (after the hook)


@pytest.fixture(scope="session")
def minilm():
    return models.load_model(models.MINILM)


@pytest.fixture
def csv(tmp_path):
    """Write a CSV of text,label rows and return its path."""

    def write(rows, name="data.csv", header="text,label") -> str:
        path = Path(tmp_path / name)
        path.write_text("\n".join([header, *rows]) + "\n", encoding="utf-8")
        return str(path)

    return write
